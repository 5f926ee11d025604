//! The rows of both sides compared, table by table.
//!
//! * [`digest`](fn@digest): what a table's rows are, in two numbers
//! * `pace`: what fits into a budget; `sides`: both servers asked at the same time
//! * `difference`: which rows differ; `settle`: whether they still do once the subscriber has caught up
//! * this file: what is compared in which order, and what came of it

mod difference;
mod digest;
mod pace;
mod settle;
mod sides;

use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::context::Cutover;
use super::error::{CutoverError, Result};
use super::node::{Node, Place};
use super::quantity::{bytes_text, time_text};
use super::tables::Table;
use pace::Pace;
use sides::{Answer, Sides};

pub use difference::{DifferingRow, RowDifference};
pub use digest::{Digest, Sample, digest};

/// How often a long comparison says how far it is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// How long it may take, within a budget, to name the rows that differ.
const NAMING_TIME: Duration = Duration::from_secs(5);

/// How long a digest may take when there is no budget.
const UNBOUNDED: Duration = Duration::from_secs(14 * 24 * 3600);

/// How many tables an error names.
const NAMED: usize = 20;

/// What became of one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    /// Both sides have the same rows, as far as the sample shows.
    Equal,
    /// They do not.
    Differs {
        /// The publisher's.
        publisher: Digest,
        /// The subscriber's.
        subscriber: Digest,
        /// Some of the rows that differ; none when there was no time to find them.
        rows: Vec<DifferingRow>,
    },
    /// The sides differed each time, in rows that were just being changed. Only without a budget.
    Changing,
    /// It was not compared.
    NotCompared {
        /// Completes "it was not compared: …".
        reason: String,
    },
}

/// One table's comparison.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Comparison {
    /// `schema.table`.
    pub table: String,
    /// Its bytes on the publisher.
    pub bytes: u64,
    /// How thorough it was; none when it was not compared.
    pub sample: Option<Sample>,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What came of all tables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ComparisonReport {
    /// In the order in which they were compared.
    pub tables: Vec<Comparison>,
    /// How long it took.
    pub milliseconds: u64,
    /// What a person should know besides: whole sentences.
    pub notes: Vec<String>,
}

impl ComparisonReport {
    /// The tables whose rows differ.
    pub fn differing(&self) -> impl Iterator<Item = &Comparison> {
        self.tables.iter().filter(|table| matches!(table.outcome, Outcome::Differs { .. }))
    }

    /// The tables that were not compared, or changed too much to be.
    pub fn unknown(&self) -> impl Iterator<Item = &Comparison> {
        self.tables.iter().filter(|table| matches!(table.outcome, Outcome::NotCompared { .. } | Outcome::Changing))
    }

    /// The tables of which all rows were compared, and are equal.
    pub fn proved(&self) -> impl Iterator<Item = &Comparison> {
        self.tables.iter().filter(|table| table.outcome == Outcome::Equal && table.sample == Some(Sample::All))
    }

    /// Refuses to go on when any table differs.
    ///
    /// # Errors
    ///
    /// When one does, naming tables and rows.
    pub fn require_no_difference(&self, publisher: Place, subscriber: Place) -> Result<()> {
        let count = self.differing().count();
        if count == 0 {
            return Ok(());
        }
        let tables = self.tables.len();
        let mut lines: Vec<_> =
            self.differing().take(NAMED).filter_map(|table| table.difference(publisher, subscriber)).collect();
        if count > NAMED {
            lines.push(format!("And {} more.", count - NAMED));
        }
        Err(CutoverError::refused(format!("{count} of {tables} tables differ between the {publisher} and the {subscriber}"))
            .with_detail(lines.join(" "))
            .with_hint(format!(
                "Find who wrote to the {subscriber} besides the subscription, or why the subscription left rows out; mend the rows, \
                 or copy those tables anew."
            )))
    }
}

impl Comparison {
    /// How it differs, as a whole sentence.
    fn difference(&self, publisher: Place, subscriber: Place) -> Option<String> {
        let Outcome::Differs { publisher: left, subscriber: right, rows } = &self.outcome else { return None };
        let counts = match left.rows == right.rows {
            true => format!("{} rows on both sides", left.rows),
            false => format!("{} rows on the {publisher}, {} on the {subscriber}", left.rows, right.rows),
        };
        let rows: String = rows.iter().map(|row| format!("; {}", row.sentence(publisher, subscriber))).collect();
        Some(format!("{}: {counts}{rows}.", self.table))
    }
}

/// Compares tables, those named in `first` (`schema.table`) before the others and then small ones before large ones.
///
/// With a budget nobody may write meanwhile: each table is compared as thoroughly as the time that is left allows, and a
/// difference is one. Without a budget everything is compared while replication goes on: what differs is looked at again when
/// the subscriber has caught up. Afterwards questions have their usual
/// time again.
///
/// # Errors
///
/// When a server is gone, or when the user asks for the end: then what ran on the servers is cancelled.
pub async fn compare_tables(
    cutover: &Cutover,
    publisher: &mut Node,
    subscriber: &mut Node,
    tables: &[Table],
    budget: Option<Duration>,
    first: &[String],
) -> Result<ComparisonReport> {
    let began = Instant::now();
    let mut sides = Sides::new(cutover, publisher, subscriber).await?;
    let mut comparer = Comparer {
        only_counts: !sides.have_same_encoding,
        sides: &mut sides,
        deadline: budget.map(|budget| began + budget),
        pace: Pace::guess(),
    };
    let mut report = ComparisonReport { tables: Vec::with_capacity(tables.len()), milliseconds: 0, notes: Vec::new() };
    if comparer.only_counts {
        report.notes.push("The encodings of the two databases differ: rows are only counted.".to_owned());
    }
    let compared = comparer.compare_all(&in_order(tables, first), &mut report).await;
    let restored = sides.restore_limits().await;
    compared.and(restored)?;
    report.milliseconds = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(report)
}

/// Those named first, in that order, then small ones before large ones.
fn in_order<'a>(tables: &'a [Table], first: &[String]) -> Vec<&'a Table> {
    let mut ordered: Vec<_> = tables.iter().collect();
    ordered.sort_by_cached_key(|table| {
        let label = table.label();
        (first.iter().position(|name| *name == label).unwrap_or(usize::MAX), table.bytes, label)
    });
    ordered
}

/// What decides how a table is compared.
struct Comparer<'a, 'b> {
    sides: &'a mut Sides<'b>,
    deadline: Option<Instant>,
    pace: Pace,
    only_counts: bool,
}

impl Comparer<'_, '_> {
    async fn compare_all(&mut self, tables: &[&Table], report: &mut ComparisonReport) -> Result<()> {
        let began = Instant::now();
        let all_bytes = tables.iter().map(|table| table.bytes).sum();
        let (mut bytes, mut told) = (0, began);
        for table in tables {
            if self.sides.cutover().is_interrupted() {
                return Err(CutoverError::interrupted());
            }
            let (sample, outcome) = self.compare(table).await?;
            if matches!(outcome, Outcome::Differs { .. }) {
                tracing::warn!("the table {} differs between the two sides", table.label());
            }
            report.tables.push(Comparison { table: table.label(), bytes: table.bytes, sample, outcome });
            bytes += table.bytes;
            if told.elapsed() >= PROGRESS_INTERVAL {
                told = Instant::now();
                tracing::info!(
                    "compared {} of {} tables, {} of {}, in {}",
                    report.tables.len(),
                    tables.len(),
                    bytes_text(bytes),
                    bytes_text(all_bytes),
                    time_text(began.elapsed())
                );
            }
        }
        Ok(())
    }

    async fn compare(&mut self, table: &Table) -> Result<(Option<Sample>, Outcome)> {
        match self.deadline {
            Some(deadline) => self.compare_within(table, deadline).await,
            None if self.only_counts => self.compare_once(table, Sample::Nothing, UNBOUNDED).await,
            None => self.compare_while_it_changes(table).await,
        }
    }

    /// As thoroughly as the time allows; what takes longer than expected is tried again more quickly.
    async fn compare_within(&mut self, table: &Table, deadline: Instant) -> Result<(Option<Sample>, Outcome)> {
        let mut tried = self.only_counts.then_some(Sample::OneIn(0));
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some((sample, patience)) = self.pace.choose(table.bytes, left, tried) else {
                let reason = format!("the budget is used up, {} are left", time_text(left));
                return Ok((None, Outcome::NotCompared { reason }));
            };
            let began = Instant::now();
            let answer = self.compare_once(table, sample, patience).await?;
            self.pace.learn(table.bytes, sample, began.elapsed());
            if answer.1 != out_of_time() {
                return Ok(answer);
            }
            tried = Some(sample);
        }
    }

    /// One look at both sides when nobody writes.
    async fn compare_once(
        &mut self,
        table: &Table,
        sample: Sample,
        patience: Duration,
    ) -> Result<(Option<Sample>, Outcome)> {
        let (publisher, subscriber) = match self.sides.digests(table, sample, patience).await? {
            Answer::Given(publisher, subscriber) => (publisher, subscriber),
            Answer::OutOfTime => return Ok((None, out_of_time())),
            Answer::Refused(reason) => return Ok((None, Outcome::NotCompared { reason })),
        };
        if publisher == subscriber {
            return Ok((Some(sample), Outcome::Equal));
        }
        let until = Instant::now() + NAMING_TIME;
        let until = self.deadline.map_or(until, |deadline| deadline.min(until));
        let rows = if self.only_counts { Vec::new() } else { self.sides.differing_rows(table, Some(until)).await? };
        let rows = rows.iter().take(difference::NAMED).map(|row| row.named(table)).collect();
        Ok((Some(sample), Outcome::Differs { publisher, subscriber, rows }))
    }

    /// All rows while replication goes on: a difference counts once the subscriber had the time to catch up.
    async fn compare_while_it_changes(&mut self, table: &Table) -> Result<(Option<Sample>, Outcome)> {
        let all = Some(Sample::All);
        let mut before = None;
        for round in 0..settle::ROUNDS {
            if round > 0 && !self.sides.catch_up().await? {
                break;
            }
            let (publisher, subscriber) = match self.sides.digests(table, Sample::All, UNBOUNDED).await? {
                Answer::Given(publisher, subscriber) => (publisher, subscriber),
                Answer::OutOfTime => return Ok((None, out_of_time())),
                Answer::Refused(reason) => return Ok((None, Outcome::NotCompared { reason })),
            };
            if publisher == subscriber {
                return Ok((all, Outcome::Equal));
            }
            let mut found = self.sides.differing_rows(table, None).await?;
            let is_still = before.as_ref() == Some(&(publisher.clone(), subscriber.clone()));
            if !is_still {
                found = self.sides.settle(table, found).await?;
            }
            if is_still || !found.is_empty() {
                let rows = found.iter().take(difference::NAMED).map(|row| row.named(table)).collect();
                return Ok((all, Outcome::Differs { publisher, subscriber, rows }));
            }
            before = Some((publisher, subscriber));
        }
        Ok((all, Outcome::Changing))
    }
}

fn out_of_time() -> Outcome {
    Outcome::NotCompared { reason: "the server cancelled the question after its time".to_owned() }
}
