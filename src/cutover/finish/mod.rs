//! The second move: the application goes from the publisher to the subscriber. Forward that is from the promoted replica to
//! the target; back, after a finish that prepared it, the other way round.
//!
//! What takes hours comes first, while the application works: statistics, materialized views, the full comparison. Then
//! the publisher is fenced, its last write is seen at the subscriber, what fits is compared once more, and the sequences are
//! carried over. Until the subscription is dropped every failure undoes everything; from then on the way is forward.

mod handover;
mod parting;
mod preparation;
mod way_back;

use serde::{Deserialize, Serialize};

use super::comparison::ComparisonReport;
use super::context::Cutover;
use super::error::{CutoverError, Result};
use super::fence;
use super::journal::Mark;
use super::node::Node;
use super::replication::link::{Direction, Link};
use super::replication::subscription;
use super::retreat::Move;
use super::tables::{Table, tables};
use crate::formats::error_line::joined;
use crate::pg::session::Access;

pub use parting::{drop_link, drop_publishers_side, tidy, tidy_replication};

/// How to finish.
#[derive(Debug, Clone, Copy, Default)]
pub struct FinishOptions {
    /// Prepare the way back, from the very moment of the switch.
    pub reverse: bool,
    /// Go back, after a finish that prepared it.
    pub back: bool,
}

/// How it went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FinishReport {
    /// Which way.
    pub direction: Direction,
    /// From before maintenance was switched on until after it was switched off.
    pub downtime_milliseconds: u64,
    /// The publisher's last write, which the subscriber was seen to have.
    pub final_lsn: String,
    /// Sequences that were set.
    pub sequences: usize,
    /// Tables compared under the fence, row by row or by a sample or by their count.
    pub compared_tables: usize,
    /// Tables that did not fit the budget.
    pub not_compared: Vec<String>,
    /// Whether there is a way back.
    pub is_reversible: bool,
}

/// What is known before the downtime.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Prepared {
    /// Tables that were being written to while they were compared.
    changing: Vec<String>,
}

/// What the comparison under the fence came to.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Compared {
    tables: usize,
    row_by_row: usize,
    not_compared: Vec<String>,
}

impl From<&ComparisonReport> for Compared {
    fn from(report: &ComparisonReport) -> Self {
        let not_compared: Vec<_> = report.unknown().map(|table| table.table.clone()).collect();
        Self { tables: report.tables.len() - not_compared.len(), row_by_row: report.proved().count(), not_compared }
    }
}

/// Goes the whole way, or goes on with it; once done it does nothing more.
///
/// # Errors
///
/// Everything that went wrong. Before the subscription was dropped it was all undone, and the error says so.
pub async fn finish(cutover: &mut Cutover, options: FinishOptions) -> Result<FinishReport> {
    let direction = begin(cutover, options)?;
    let link = Link::new(&cutover.plan, direction);
    if let Some(done) = cutover.journal.data(Mark::FinishDone) {
        tracing::info!("this move is over already");
        return Ok(done);
    }
    let parted = has_parted(cutover, &link).await.map_err(|failed| {
        failed
            .with_detail(format!(
                "The subscription was about to go: the {} is read-only and maintenance on.",
                link.publisher
            ))
            .with_hint("Mend that and run the same command again: it goes on from here.")
    })?;
    if !parted && cutover.journal.has(Mark::Parting) {
        cutover.journal.undo(Mark::Parting, "the subscription was not given up: the last write is looked for anew")?;
    }
    if !parted && let Err(failed) = up_to_the_parting(cutover, &link, options.reverse).await {
        let has_begun = [Mark::FinishMaintenance, Mark::PublisherFence].iter().any(|mark| cutover.journal.has(*mark));
        return Err(if has_begun { undone(cutover, &link, failed).await } else { failed });
    }
    // the user may think better of a way back that cannot be set up
    let reverse = options.reverse || cutover.journal.has(Mark::ReverseReady);
    parting::part(cutover, &link, reverse).await?;
    parting::switch(cutover, &link, reverse).await
}

/// Whether the subscription is being dropped, or is. The mark alone is no proof: the statement may have failed, a subscription
/// can be switched off by others too, and whoever lifted the fence since then has a publisher that went on.
///
/// # Errors
///
/// When a server refuses or is gone.
pub async fn has_parted(cutover: &Cutover, link: &Link) -> Result<bool> {
    let journal = &cutover.journal;
    if journal.has(Mark::SubscriptionDropped) {
        return Ok(true);
    }
    if !journal.has(Mark::Parting) || !journal.has(Mark::PublisherFence) {
        return Ok(false);
    }
    let mut subscriber = cutover.connect(link.subscriber, Access::ReadOnly).await?;
    let found = subscription::find(&mut subscriber, link).await?;
    subscriber.close().await;
    if found.is_some_and(|found| found.enabled && found.slot.is_some()) {
        return Ok(false);
    }
    let mut publisher = cutover.connect(link.publisher, Access::ReadOnly).await?;
    let stands = fence::stands(&mut publisher).await?;
    publisher.close().await;
    Ok(stands)
}

async fn up_to_the_parting(cutover: &mut Cutover, link: &Link, reverse: bool) -> Result<()> {
    // taken up under the fence, nobody is to wait for what takes long
    let is_under_way = cutover.journal.has(Mark::FinishMaintenance);
    let carried = preparation::check(cutover, link, reverse).await?;
    if reverse {
        way_back::rehearse(cutover, &Link::new(&cutover.plan, opposite(link.direction))).await?;
    }
    if !is_under_way {
        preparation::prepare(cutover, link, &carried).await?;
        preparation::wait_for_gate(cutover, link).await?;
    }
    handover::hand_over(cutover, link, reverse).await
}

/// Which way to go: the one that was begun, or the next.
fn begin(cutover: &mut Cutover, options: FinishOptions) -> Result<Direction> {
    let direction = if options.back { Direction::Back } else { Direction::Forward };
    let last: Option<Direction> = cutover.journal.data(Mark::FinishBegun);
    let done: Option<FinishReport> = cutover.journal.data(Mark::FinishDone);
    match (last, done) {
        (Some(last), _) if last == direction => return Ok(direction),
        (Some(last), None) => {
            let back = if last == Direction::Back { " --back" } else { "" };
            return Err(CutoverError::refused("the other move is not over yet")
                .with_hint(format!("Run cutover finish{back} to its end, or cutover abort.")));
        }
        (Some(_), Some(done)) if !done.is_reversible => {
            return Err(CutoverError::refused("the last move left no way back")
                .with_detail("It was made without --reverse, so nothing follows what was written since."));
        }
        (None, _) if direction == Direction::Back => {
            return Err(CutoverError::refused("there is nothing to go back from")
                .with_hint("cutover finish --reverse comes first."));
        }
        _ => {}
    }
    let way = match direction {
        Direction::Forward => "from the replica to the target",
        Direction::Back => "back from the target to the replica",
    };
    cutover.journal.record(Mark::FinishBegun, format!("the move {way} begins"), direction)?;
    Ok(direction)
}

/// The tables of the plan that can be published.
async fn carried_tables(cutover: &Cutover, node: &mut Node) -> Result<Vec<Table>> {
    let mut carried = tables(node, cutover.plan.replication.tables.as_deref()).await?;
    carried.retain(|table| table.is_logged);
    Ok(carried)
}

fn opposite(direction: Direction) -> Direction {
    match direction {
        Direction::Forward => Direction::Back,
        Direction::Back => Direction::Forward,
    }
}

fn tell(notes: &[String]) {
    notes.iter().for_each(|note| tracing::warn!("{note}"));
}

/// What undoing the move of this link means.
fn the_move(link: &Link) -> Move {
    Move { fenced: link.publisher, fence: Mark::PublisherFence, maintenance: Mark::FinishMaintenance }
}

async fn undone(cutover: &mut Cutover, link: &Link, failed: CutoverError) -> CutoverError {
    if cutover.rehearsal.is_dry() {
        return failed;
    }
    // what could not be recorded must not be made worse by not undoing it
    let _ = cutover.journal.note(format!("failed: {}", joined(&failed)));
    let undone = the_move(link).retreat(cutover).await;
    let failed = failed.with_detail("The application was not switched, and the replication goes on.");
    the_move(link).explain(cutover, failed, undone)
}

/// Undoes a move that was begun and has not come to its point of no return.
///
/// # Errors
///
/// What could not be undone.
pub async fn undo(cutover: &mut Cutover) -> Result<()> {
    let Some(direction) = cutover.journal.data(Mark::FinishBegun) else { return Ok(()) };
    the_move(&Link::new(&cutover.plan, direction)).retreat(cutover).await
}
