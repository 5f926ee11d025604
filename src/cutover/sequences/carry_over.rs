//! The publisher's positions set on the subscriber: looked at and judged whole before anything is set.

use serde::Serialize;

use super::columns::{self, Columns};
use super::{BATCH, Position, Sequence, SequenceColumn, positions, sequences};
use crate::cutover::error::{CutoverError, Result};
use crate::cutover::node::{Node, Place};
use crate::pg::quote::literal;

/// What was done to the subscriber's sequences.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SequencesReport {
    /// How many the publisher has.
    pub sequences: usize,
    /// How many were set.
    pub set: usize,
    /// How many stood right already.
    pub unchanged: usize,
    /// How many were set further than the publisher's because a column is further.
    pub beyond_column: usize,
    /// What a person should know of single sequences: whole sentences.
    pub notes: Vec<String>,
}

/// A sequence on both sides.
struct Pair<'a> {
    publisher: &'a Sequence,
    subscriber: &'a Sequence,
}

impl Pair<'_> {
    /// The columns that either side says take their values from it.
    fn columns(&self) -> impl Iterator<Item = &SequenceColumn> {
        let known = &self.publisher.columns;
        let more = self.subscriber.columns.iter().filter(|column| !known.iter().any(|other| other.is_same(column)));
        known.iter().chain(more)
    }
}

/// Sets every sequence of the subscriber to where the publisher's stands, `margin` steps further as far as there is room, and
/// beyond the values that its columns hold already. It is for a time when nobody writes to either side: a sequence that is
/// further on the subscriber is set back. Done again it sets nothing.
///
/// # Errors
///
/// Before anything is set, when sequences are missing on the subscriber, cannot hold the publisher's value, count the other
/// way or may not be set, with the statements that mend it. Later only when a server is gone.
pub async fn carry_over(publisher: &mut Node, subscriber: &mut Node, margin: u64) -> Result<SequencesReport> {
    let wanted = sequences(publisher).await?;
    let there = sequences(subscriber).await?;
    let columns = Columns::find(subscriber, wanted.iter().chain(&there).flat_map(|sequence| &sequence.columns)).await?;

    let mut report = SequencesReport { sequences: wanted.len(), ..SequencesReport::default() };
    let mut obstacles = Obstacles::default();
    let mut pairs = Vec::new();
    for sequence in &wanted {
        match counterpart(sequence, &there) {
            Some(found) => pairs.push(Pair { publisher: sequence, subscriber: found }),
            None if sequence.columns.is_empty() || sequence.columns.iter().any(|column| columns.has_table(column)) => {
                obstacles.add(format!("{} is missing", sequence.label()), sequence.creation());
            }
            None => report.notes.push(format!(
                "The sequence {} is left out: its table is not on the {}.",
                sequence.label(),
                subscriber.place()
            )),
        }
    }
    let of_publisher: Vec<_> = pairs.iter().map(|pair| pair.publisher).collect();
    let from = positions(publisher, &of_publisher).await?;
    for (pair, position) in pairs.iter().zip(&from) {
        obstacles.look(pair, *position, subscriber);
    }
    obstacles.into_result(publisher.place(), subscriber.place())?;

    let furthest = furthest_values(subscriber, &pairs, &columns, &mut report).await?;
    let of_subscriber: Vec<_> = pairs.iter().map(|pair| pair.subscriber).collect();
    let now = positions(subscriber, &of_subscriber).await?;
    let mut statements = Vec::new();
    for (((pair, from), now), furthest) in pairs.iter().zip(from).zip(now).zip(furthest) {
        let position = target_position(pair, from, margin, &furthest, &mut report);
        if position == now {
            report.unchanged += 1;
            continue;
        }
        if position.is_behind(now, &pair.subscriber.bounds()) && !pair.subscriber.cycle {
            report.notes.push(format!(
                "The sequence {} stood at {} on the {} and is set back to {}.",
                pair.subscriber.label(),
                now.last_value,
                subscriber.place(),
                position.last_value
            ));
        }
        let Position { last_value, is_called } = position;
        statements.push(format!("select setval({}, {last_value}, {is_called})", literal(&pair.subscriber.quoted())));
    }
    report.set = statements.len();
    for batch in statements.chunks(BATCH) {
        subscriber.change(&batch.join(";\n")).await?;
    }
    Ok(report)
}

/// The subscriber's sequence of that name; else the one that the same column owns there under another name.
fn counterpart<'a>(sequence: &Sequence, there: &'a [Sequence]) -> Option<&'a Sequence> {
    let named = there.iter().find(|other| (&other.schema, &other.name) == (&sequence.schema, &sequence.name));
    let owner = sequence.owner();
    named.or_else(|| there.iter().find(|other| owner.zip(other.owner()).is_some_and(|(one, two)| one.is_same(two))))
}

/// The furthest values of each pair's columns, as far as an index leads to them.
async fn furthest_values<'a>(
    subscriber: &mut Node,
    pairs: &'a [Pair<'a>],
    columns: &Columns,
    report: &mut SequencesReport,
) -> Result<Vec<Vec<(&'a SequenceColumn, i64)>>> {
    let mut asked = Vec::new();
    let mut questions = Vec::new();
    for (at, pair) in pairs.iter().enumerate() {
        for column in pair.columns() {
            match columns.question(column, pair.subscriber.increment) {
                Ok(question) => {
                    asked.push((at, column));
                    questions.push(question);
                }
                Err(why) => report.notes.push(format!(
                    "The column {} was not looked at for the sequence {}: {why}.",
                    column.label(),
                    pair.subscriber.label()
                )),
            }
        }
    }
    let mut furthest: Vec<_> = pairs.iter().map(|_| Vec::new()).collect();
    for ((at, column), value) in asked.into_iter().zip(columns::furthest(subscriber, questions).await?) {
        furthest[at].extend(value.map(|value| (column, value)));
    }
    Ok(furthest)
}

/// Where the subscriber's sequence is to stand.
fn target_position(
    pair: &Pair<'_>,
    from: Position,
    margin: u64,
    furthest: &[(&SequenceColumn, i64)],
    report: &mut SequencesReport,
) -> Position {
    let (bounds, label) = (pair.subscriber.bounds(), pair.subscriber.label());
    let (mut position, steps) = from.ahead(margin, &bounds);
    if steps < margin {
        report.notes.push(format!(
            "The sequence {label} is set {steps} steps ahead instead of {margin}: a margin takes half of what is left at most."
        ));
    }
    let mut is_beyond_column = false;
    for (column, value) in furthest {
        let beyond = position.beyond(*value, &bounds);
        let why = match beyond {
            None => continue,
            Some(_) if bounds.cycle => "it begins again after its end",
            Some(_) if !bounds.hold(*value) => "it cannot have that value",
            Some(beyond) => {
                (position, is_beyond_column) = (beyond, true);
                continue;
            }
        };
        report.notes.push(format!(
            "The column {} holds {value}, further than the sequence {label}, which does not follow it: {why}.",
            column.label()
        ));
    }
    report.beyond_column += usize::from(is_beyond_column);
    if position.is_exhausted(&bounds) {
        report.notes.push(format!("The sequence {label} has no value left after {}.", position.last_value));
    }
    position
}

/// What has to be mended before anything is set.
#[derive(Debug, Default)]
struct Obstacles {
    what: Vec<String>,
    statements: Vec<String>,
}

impl Obstacles {
    fn add(&mut self, what: String, statement: String) {
        self.what.push(what);
        self.statements.push(statement);
    }

    /// Looks whether the subscriber's sequence can take the publisher's position.
    fn look(&mut self, pair: &Pair<'_>, position: Position, subscriber: &Node) {
        let (Pair { publisher, subscriber: other }, value) = (pair, position.last_value);
        let label = other.label();
        let quoted = other.quoted();
        let why = if !other.bounds().hold(value) {
            let (data_type, minimum, maximum) = (&other.data_type, other.minimum, other.maximum);
            Some(format!("{label} ({data_type}, {minimum} to {maximum}) cannot hold {value}"))
        } else if other.increment.signum() != publisher.increment.signum() {
            Some(format!("{label} counts by {}, not by {}", other.increment, publisher.increment))
        } else {
            None
        };
        if let Some(why) = why {
            self.add(why, publisher.alteration(&quoted));
        }
        if !other.may_be_set {
            let user = crate::pg::quote::identifier(subscriber.user());
            self.add(
                format!("{label} may not be set by this user"),
                format!("grant usage, update on sequence {quoted} to {user};"),
            );
        }
    }

    fn into_result(self, publisher: Place, subscriber: Place) -> Result<()> {
        if self.what.is_empty() {
            return Ok(());
        }
        let count = self.what.len();
        Err(CutoverError::refused(format!(
            "{count} of the {subscriber}'s sequences cannot take over from the {publisher}'s"
        ))
        .with_detail(format!("Nothing was set: {}.", self.what.join("; ")))
        .with_hint(format!("Run on the {subscriber}: {}", self.statements.join(" "))))
    }
}
