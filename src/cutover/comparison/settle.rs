//! Whether rows that were seen to differ still do once the subscriber has caught up: while replication goes on, most of them
//! were only on their way.

use std::collections::HashMap;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;

use super::difference::Candidate;
use super::digest::row_hash;
use super::sides::{Answer, Sides};
use crate::cutover::error::Result;
use crate::cutover::node::Place;
use crate::cutover::replication::link::{Direction, Link};
use crate::cutover::tables::Table;
use crate::pg::quote::{identifier, literal};

/// How often a table is compared as a whole before it counts as one that is always changing.
pub(super) const ROUNDS: usize = 3;

/// How often single rows are looked at.
const LOOKS: usize = 6;

/// How often in a row the publisher's row has to be the same, and the subscriber's another, to be a difference.
const PROOFS: u32 = 2;

/// How long the subscriber may take to catch up.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(120);

/// What is waited where there is no slot to ask.
const PAUSE: Duration = Duration::from_millis(500);

/// How long a look at single rows may take.
const LOOK_TIMEOUT: Duration = Duration::from_secs(60);

/// A row that was looked up.
#[derive(Debug, Deserialize)]
struct Looked {
    key: Vec<String>,
    hash: i64,
}

impl Sides<'_> {
    /// Waits until the subscriber has what the publisher has written up to now; whether it came to that.
    ///
    /// # Errors
    ///
    /// When a server is gone, or when the user asks for the end.
    pub(super) async fn catch_up(&mut self) -> Result<bool> {
        let cutover = self.cutover();
        let direction = if self.publisher() == Place::Target { Direction::Back } else { Direction::Forward };
        let slot = literal(&Link::new(&cutover.plan, direction).slot);
        let publisher = self.publisher_node();
        let written = publisher.insert_lsn().await?;
        let until = Instant::now() + CATCH_UP_TIMEOUT;
        loop {
            let has_passed: Option<bool> = publisher
                .value(&format!(
                    "select (select confirmed_flush_lsn >= '{written}'::pg_lsn from pg_replication_slots where slot_name = {slot})"
                ))
                .await?;
            if has_passed == Some(true) {
                return Ok(true);
            }
            cutover.pause(PAUSE).await?;
            match has_passed {
                None => return Ok(true),
                Some(_) if Instant::now() >= until => return Ok(false),
                Some(_) => {}
            }
        }
    }

    /// Those of the rows that differ for good: the publisher's did not change meanwhile, and the subscriber's is still
    /// another one. Rows without a key cannot be looked up: none of them is.
    ///
    /// # Errors
    ///
    /// When a server is gone, or when the user asks for the end.
    pub(super) async fn settle(&mut self, table: &Table, candidates: Vec<Candidate>) -> Result<Vec<Candidate>> {
        let mut open: Vec<_> = candidates.into_iter().filter(|row| !row.key.is_empty()).map(|row| (row, 0)).collect();
        for _ in 0..LOOKS {
            if open.is_empty() || !self.catch_up().await? {
                break;
            }
            let keys: Vec<_> = open.iter().map(|(row, _)| row.key.as_slice()).collect();
            let question = |from: &str| rows_question(table, from, &keys);
            let Answer::Given(one, other) = self.ask::<Looked>(table, LOOK_TIMEOUT, question).await? else {
                break;
            };
            let [one, other] = [one, other].map(by_key);
            open.retain_mut(|(row, proofs)| {
                let (publisher, subscriber) = (one.get(&row.key).copied(), other.get(&row.key).copied());
                *proofs = if publisher == row.publisher { *proofs + 1 } else { 0 };
                (row.publisher, row.subscriber) = (publisher, subscriber);
                publisher != subscriber
            });
            if !open.is_empty() && open.iter().all(|(_, proofs)| *proofs >= PROOFS) {
                break;
            }
        }
        Ok(open.into_iter().filter(|(_, proofs)| *proofs >= PROOFS).map(|(row, _)| row).collect())
    }
}

fn by_key(rows: Vec<Looked>) -> HashMap<Vec<String>, i64> {
    rows.into_iter().map(|row| (row.key, row.hash)).collect()
}

/// The question for rows by their keys, in a form that their index answers.
fn rows_question(table: &Table, from: &str, keys: &[&[String]]) -> String {
    let columns: Vec<_> = table.key.iter().map(|column| identifier(column)).collect();
    let texts: Vec<_> = columns.iter().map(|column| format!("{column}::text")).collect();
    let conditions: Vec<_> = keys
        .iter()
        .map(|key| {
            let parts: Vec<_> =
                columns.iter().zip(*key).map(|(column, value)| format!("{column} = {}", literal(value))).collect();
            format!("({})", parts.join(" and "))
        })
        .collect();
    format!(
        "select array[{}]::text[] as key, {} as hash from {from} where {}",
        texts.join(", "),
        row_hash(table),
        conditions.join(" or ")
    )
}
