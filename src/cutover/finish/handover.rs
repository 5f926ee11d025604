//! The downtime: the fence, the last write seen at the subscriber, what fits compared once more, the sequences.

use tokio::time::Instant;

use super::{Compared, Prepared, opposite, preparation, tell, way_back};
use crate::cutover::comparison::compare_tables;
use crate::cutover::context::{Cutover, Look};
use crate::cutover::error::{CutoverError, Result};
use crate::cutover::fence::{self, FencePoint};
use crate::cutover::hook::Hook;
use crate::cutover::journal::Mark;
use crate::cutover::marker;
use crate::cutover::node::Node;
use crate::cutover::replication::link::Link;
use crate::cutover::sequences::carry_over;
use crate::pg::session::Access;

/// Everything under the fence, up to where the subscription can go.
pub(super) async fn hand_over(cutover: &mut Cutover, link: &Link, reverse: bool) -> Result<()> {
    let deadline = Instant::now() + cutover.plan.finish.budget;
    if !cutover.journal.has(Mark::FinishMaintenance) {
        cutover.journal.record(Mark::FinishMaintenance, "the downtime begins", ())?;
    }
    cutover.hook(Hook::MaintenanceOn).await?;
    let mut publisher = cutover.connect(link.publisher, Access::ReadWrite).await?;
    let mut subscriber = cutover.connect(link.subscriber, Access::ReadWrite).await?;
    let point = fence::raise(cutover, &mut publisher, Mark::PublisherFence, deadline).await?;
    let mut point = last_write(cutover, link, &mut publisher, &mut subscriber, point, deadline).await?;
    // one that was made since the check would have its rows here only
    let carried = preparation::followed_tables(cutover, link, &mut publisher, &mut subscriber).await?;
    cutover.journal.record(Mark::Confirmed, format!("the {} has the last write", link.subscriber), ())?;

    if reverse {
        let back = Link::new(&cutover.plan, opposite(link.direction));
        way_back::try_slot(cutover, &back, deadline.saturating_duration_since(Instant::now())).await?;
    }
    if !cutover.rehearsal.is_dry() {
        let prepared: Prepared = cutover.journal.data(Mark::Prepared).unwrap_or_default();
        let budget = cutover.plan.finish.compare_budget.min(deadline.saturating_duration_since(Instant::now()));
        let compared =
            compare_tables(cutover, &mut publisher, &mut subscriber, &carried, Some(budget), &prepared.changing)
                .await?;
        tell(&compared.notes);
        if let Err(differs) = compared.require_no_difference(link.publisher, link.subscriber) {
            // what was the same before is so no more: the next try has to look at everything
            if cutover.journal.has(Mark::Prepared) {
                cutover.journal.undo(Mark::Prepared, "the tables are to be compared anew")?;
            }
            return Err(differs);
        }
        let compared = Compared::from(&compared);
        let what = format!(
            "{} tables are the same on both sides, {} of them row by row; {} did not fit the budget",
            compared.tables,
            compared.row_by_row,
            compared.not_compared.len()
        );
        cutover.journal.record(Mark::Compared, what, compared)?;
    }
    let margin = cutover.plan.finish.sequence_margin;
    let sequences = loop {
        let sequences = carry_over(&mut publisher, &mut subscriber, margin).await?;
        let Some(later) = later_write(cutover, &mut publisher, &point, deadline).await? else { break sequences };
        point = last_write(cutover, link, &mut publisher, &mut subscriber, later, deadline).await?;
        preparation::followed_tables(cutover, link, &mut publisher, &mut subscriber).await?;
    };
    tell(&sequences.notes);
    let what = format!("{} sequences of the {} stand where they have to", sequences.sequences, link.subscriber);
    cutover.journal.record(Mark::SequencesSet, what, sequences.sequences)?;
    publisher.close().await;
    subscriber.close().await;
    if cutover.is_interrupted() {
        return Err(CutoverError::interrupted());
    }
    let back = if reverse { "; the way back comes in its place" } else { "" };
    cutover.journal.record(Mark::Parting, format!("dropping the subscription{back}"), reverse)
}

/// Waits until the subscriber has what was written up to `point`, and what slipped past the fence since; tells where the last
/// write is then.
async fn last_write(
    cutover: &mut Cutover,
    link: &Link,
    publisher: &mut Node,
    subscriber: &mut Node,
    mut point: FencePoint,
    deadline: Instant,
) -> Result<FencePoint> {
    loop {
        // whatever committed before this row is applied before it
        let id = marker::write(publisher, "last").await?;
        // the marker has a number too
        point.next_transaction += 1;
        let what = format!("the {}'s last write is at {}", link.publisher, point.lsn);
        cutover.journal.record(Mark::FinalPoint, what, &point)?;
        wait_for_marker(cutover, link, subscriber, &id, deadline).await?;
        let Some(later) = later_write(cutover, publisher, &point, deadline).await? else { return Ok(point) };
        point = later;
    }
}

/// Where the last write is when there was one after `point`.
async fn later_write(
    cutover: &Cutover,
    publisher: &mut Node,
    point: &FencePoint,
    deadline: Instant,
) -> Result<Option<FencePoint>> {
    let later = fence::transactions_since(publisher, point).await?;
    if later <= 0 || cutover.rehearsal.is_dry() {
        return Ok(None);
    }
    let place = publisher.place();
    tracing::warn!("{later} transactions ran on the {place} after the fence: waiting for these too");
    if Instant::now() >= deadline {
        return Err(CutoverError::refused(format!("the {place} is still being written to behind its fence"))
            .with_hint("Look in its pg_stat_activity for sessions that set a transaction read write."));
    }
    Ok(Some(fence::locate(cutover, publisher, deadline).await?))
}

/// Waits until a row that the publisher wrote last has arrived.
pub(super) async fn wait_for_marker(
    cutover: &Cutover,
    link: &Link,
    subscriber: &mut Node,
    id: &str,
    deadline: Instant,
) -> Result<()> {
    cutover
        .until(format_args!("the {} has the publisher's last write", link.subscriber), Some(deadline), async || {
            Ok(match marker::has_arrived(subscriber, id).await? {
                true => Look::Holds,
                false => Look::NotYet("the marker written after it has not arrived".into()),
            })
        })
        .await
        .map_err(|failed| failed.with_hint("See cutover status for what holds it up; or raise finish.budget."))
}
