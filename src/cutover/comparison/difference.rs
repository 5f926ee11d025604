//! Which rows differ: found by digests of ever smaller parts of the table, until a part is small enough to be listed.

use std::collections::HashMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::UNBOUNDED;
use super::digest::{key_hash, row_hash};
use super::sides::{Answer, Sides};
use crate::cutover::error::Result;
use crate::cutover::node::Place;
use crate::cutover::tables::Table;
use crate::pg::quote::identifier;

/// How many rows are named.
pub(super) const NAMED: usize = 5;

/// How many rows are kept for a closer look.
const KEPT: usize = 40;

/// Each part is divided into 2 to the power of this many.
const PART_BITS: u32 = 10;

/// How many parts are followed at a time: more than the rows that replication is carrying at any moment should touch.
const FOLLOWED: usize = 16;

/// How many times a part is divided.
const DEPTH: u32 = 4;

/// How many rows are listed.
const LISTED: u64 = 5000;

/// How a row differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RowDifference {
    /// Only the publisher has it.
    MissingOnSubscriber,
    /// Only the subscriber has it.
    MissingOnPublisher,
    /// Both have it with other values.
    OtherValues,
}

/// A row that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DifferingRow {
    /// Its key, as `(id) = (5)`; without a key its place on the side that has it, as `ctid = (0,1)`.
    pub row: String,
    /// How it differs.
    pub how: RowDifference,
}

impl DifferingRow {
    /// For messages, without a full stop.
    pub(super) fn sentence(&self, publisher: Place, subscriber: Place) -> String {
        let row = &self.row;
        match self.how {
            RowDifference::MissingOnSubscriber => format!("{row} is missing on the {subscriber}"),
            RowDifference::MissingOnPublisher => format!("{row} is only on the {subscriber}, not on the {publisher}"),
            RowDifference::OtherValues => format!("{row} has other values"),
        }
    }
}

/// A row that was seen to differ: the hashes of both sides' versions, none where it is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    /// The text of each column of the key; empty without one.
    pub(super) key: Vec<String>,
    place: String,
    pub(super) publisher: Option<i64>,
    pub(super) subscriber: Option<i64>,
}

impl Candidate {
    /// For a report.
    pub(super) fn named(&self, table: &Table) -> DifferingRow {
        let row = match self.key.is_empty() {
            true => format!("ctid = {}", self.place),
            false => format!("({}) = ({})", table.key.join(", "), self.key.join(", ")),
        };
        let how = match (self.publisher, self.subscriber) {
            (_, None) => RowDifference::MissingOnSubscriber,
            (None, _) => RowDifference::MissingOnPublisher,
            (Some(_), Some(_)) => RowDifference::OtherValues,
        };
        DifferingRow { row, how }
    }
}

/// A part of a table: the rows whose key's hash ends in these bits.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Part {
    bits: i64,
    rows: u64,
    sum: String,
}

/// A row of a part that is listed.
#[derive(Debug, Deserialize)]
struct Listed {
    key: Vec<String>,
    place: String,
    hash: i64,
}

impl Sides<'_> {
    /// Some of the rows that differ, as far as they can be found before `until`.
    ///
    /// # Errors
    ///
    /// When a server is gone.
    pub(super) async fn differing_rows(&mut self, table: &Table, until: Option<Instant>) -> Result<Vec<Candidate>> {
        let left = || until.map_or(UNBOUNDED, |until| until.saturating_duration_since(Instant::now()));
        let key = key_hash(table);
        let (mut condition, mut bits) = ("true".to_owned(), 0);
        for _ in 0..DEPTH {
            if left() < Duration::from_millis(5) {
                return Ok(Vec::new());
            }
            bits += PART_BITS;
            let question = |from: &str| {
                format!(
                    "select {key} & {} as bits, count(*) as rows, sum({})::text as sum from {from} where {condition} group by 1",
                    mask(bits),
                    row_hash(table)
                )
            };
            let Answer::Given(one, other) = self.ask::<Part>(table, left(), question).await? else {
                return Ok(Vec::new());
            };
            let parts = differing_parts(one, other);
            if parts.is_empty() {
                return Ok(Vec::new());
            }
            let rows: u64 = parts.iter().map(|(_, rows)| rows).sum();
            let followed: Vec<_> = parts.iter().map(|(bits, _)| bits.to_string()).collect();
            condition = format!("{key} & {} in ({})", mask(bits), followed.join(", "));
            if rows <= LISTED {
                break;
            }
        }
        let columns: Vec<_> = table.key.iter().map(|column| format!("{}::text", identifier(column))).collect();
        let question = |from: &str| {
            format!(
                "select array[{}]::text[] as key, ctid::text as place, {} as hash from {from} where {condition} limit {LISTED}",
                columns.join(", "),
                row_hash(table)
            )
        };
        Ok(match self.ask::<Listed>(table, left().max(Duration::from_millis(5)), question).await? {
            Answer::Given(one, other) if table.key.is_empty() => differing_places(one, other),
            Answer::Given(one, other) => differing_keys(one, other),
            Answer::OutOfTime | Answer::Refused(_) => Vec::new(),
        })
    }
}

fn mask(bits: u32) -> i64 {
    (1 << bits) - 1
}

/// The parts that differ, as their bits and the greater number of rows; only as many as are followed.
fn differing_parts(one: Vec<Part>, other: Vec<Part>) -> Vec<(i64, u64)> {
    let mut unmatched: HashMap<i64, Part> = other.into_iter().map(|part| (part.bits, part)).collect();
    let mut parts = Vec::new();
    for part in one {
        let counterpart = unmatched.remove(&part.bits);
        if counterpart.as_ref() != Some(&part) {
            parts.push((part.bits, counterpart.map_or(part.rows, |other| other.rows.max(part.rows))));
        }
    }
    parts.extend(unmatched.into_values().map(|part| (part.bits, part.rows)));
    // the smallest are the quickest to list
    parts.sort_unstable_by_key(|(bits, rows)| (*rows, *bits));
    parts.truncate(FOLLOWED);
    parts
}

/// Rows with a key that differ.
fn differing_keys(one: Vec<Listed>, other: Vec<Listed>) -> Vec<Candidate> {
    let mut unmatched: HashMap<_, _> = other.into_iter().map(|row| (row.key, (row.place, row.hash))).collect();
    let mut found = Vec::new();
    for Listed { key, place, hash } in one {
        let subscriber = unmatched.remove(&key).map(|(_, hash)| hash);
        if subscriber != Some(hash) {
            found.push(Candidate { key, place, publisher: Some(hash), subscriber });
        }
    }
    let only_there = unmatched.into_iter();
    found.extend(only_there.map(|(key, (place, hash))| Candidate {
        key,
        place,
        publisher: None,
        subscriber: Some(hash),
    }));
    found.sort_unstable_by(|a, b| (a.key.len(), &a.key).cmp(&(b.key.len(), &b.key)));
    found.truncate(KEPT);
    found
}

/// Rows without a key that one side has more often than the other.
fn differing_places(one: Vec<Listed>, other: Vec<Listed>) -> Vec<Candidate> {
    let mut unmatched: HashMap<i64, Vec<String>> = HashMap::new();
    for row in other {
        unmatched.entry(row.hash).or_default().push(row.place);
    }
    let mut found = Vec::new();
    for Listed { place, hash, .. } in one {
        if unmatched.get_mut(&hash).and_then(Vec::pop).is_none() {
            found.push(Candidate { key: Vec::new(), place, publisher: Some(hash), subscriber: None });
        }
    }
    for (hash, places) in unmatched {
        let candidates = places.into_iter().map(|place| Candidate {
            key: Vec::new(),
            place,
            publisher: None,
            subscriber: Some(hash),
        });
        found.extend(candidates);
    }
    found.truncate(KEPT);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(key: &str, hash: i64) -> Listed {
        Listed { key: vec![key.to_owned()], place: "(0,1)".to_owned(), hash }
    }

    #[test]
    fn rows_are_matched_by_their_key() {
        let one = vec![listed("1", 10), listed("2", 20), listed("3", 30)];
        let other = vec![listed("4", 40), listed("3", 31), listed("1", 10)];
        let found = differing_keys(one, other);
        let seen: Vec<_> = found.iter().map(|row| (row.key[0].as_str(), row.publisher, row.subscriber)).collect();
        assert_eq!(seen, [("2", Some(20), None), ("3", Some(30), Some(31)), ("4", None, Some(40))]);
    }

    #[test]
    fn a_row_that_is_there_twice_counts_twice() {
        let rows = |hashes: &[i64]| hashes.iter().map(|hash| listed("", *hash)).collect::<Vec<_>>();
        assert_eq!(differing_places(rows(&[1, 1, 2]), rows(&[2, 1])).len(), 1);
        assert_eq!(differing_places(rows(&[1, 2]), rows(&[2, 1])), []);
    }

    #[test]
    fn parts_that_one_side_lacks_differ() {
        let part = |bits, rows, sum: &str| Part { bits, rows, sum: sum.to_owned() };
        let one = vec![part(0, 5, "9"), part(1, 7, "8"), part(2, 1, "1")];
        let other = vec![part(0, 5, "9"), part(1, 9, "8"), part(3, 2, "1")];
        assert_eq!(differing_parts(one, other), [(2, 1), (3, 2), (1, 9)]);
    }
}
