//! The second move: the application goes from the publisher to the subscriber. Forward that is from the promoted replica to
//! the target; back, after a finish that prepared it, the other way round.
//!
//! What takes hours comes first, while the application works: statistics, materialized views, the full comparison. Then
//! the publisher is fenced, its last write is seen at the subscriber, what fits is compared once more, and the sequences are
//! carried over. Until the subscription is dropped every failure undoes everything; from then on the way is forward.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::time::Instant;

use super::comparison::{ComparisonReport, compare_tables};
use super::context::{Cutover, Look};
use super::error::{CutoverError, Result};
use super::fence;
use super::hook::Hook;
use super::journal::{Mark, time_text as at_text};
use super::link::{Direction, Link};
use super::marker;
use super::node::{Node, Place};
use super::plan::MissingIdentity;
use super::quantity::{bytes_text, time_text};
use super::retreat::Move;
use super::sequences::carry_over;
use super::subscription::CopyState;
use super::tables::{Table, tables};
use super::{publication, replica_identity, replication_role, slot, subscription};
use crate::formats::error_line::joined;
use crate::pg::quote::literal;
use crate::pg::session::Access;

/// How long the gate is waited for before the user is told that it does not open.
const GATE_TIMEOUT: Duration = Duration::from_secs(3600);

/// How long a statement may take that reads whole tables while the application works.
const LONG_STATEMENT: Duration = Duration::from_secs(24 * 3600);

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

/// The publisher's last write.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct FinalPoint {
    lsn: String,
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
    if !cutover.journal.has(Mark::Parting) {
        let carried = check(cutover, &link, options.reverse).await?;
        prepare(cutover, &link, &carried).await?;
        wait_for_gate(cutover, &link).await?;
        if let Err(failed) = hand_over(cutover, &link, &carried, options.reverse).await {
            return Err(undone(cutover, &link, failed).await);
        }
    }
    // it was decided when the subscription was given up
    let reverse = cutover.journal.data(Mark::Parting).unwrap_or(options.reverse);
    part(cutover, &link, reverse).await?;
    switch(cutover, &link, reverse).await
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

/// What must hold before anything is done; the tables that are carried over.
async fn check(cutover: &Cutover, link: &Link, reverse: bool) -> Result<Vec<Table>> {
    if link.direction == Direction::Forward && !cutover.journal.has(Mark::ReplicateDone) {
        return Err(CutoverError::refused("the replication is not set up yet")
            .with_hint("Run cutover replicate to its end first; cutover status shows how far it is."));
    }
    let mut publisher = cutover.connect(link.publisher, Access::ReadOnly).await?;
    let mut subscriber = cutover.connect(link.subscriber, Access::ReadOnly).await?;
    fence::look_for_obstacles(&mut publisher).await?;
    let states = subscription::table_states(&mut subscriber, link).await?;
    if states.is_empty() {
        return Err(CutoverError::refused(format!(
            "the {} has no subscription \"{}\"",
            link.subscriber, link.subscription
        ))
        .with_hint("Run cutover replicate, or cutover abort."));
    }
    let waiting: Vec<_> =
        states.iter().filter(|state| state.state != CopyState::Ready).map(|state| state.label()).collect();
    if !waiting.is_empty() {
        let shown = waiting.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
        return Err(CutoverError::refused(format!("{} tables are not copied yet", waiting.len()))
            .with_detail(format!("Among them {shown}."))
            .with_hint("Wait until cutover status shows all of them ready."));
    }
    if reverse {
        Link::new(&cutover.plan, opposite(link.direction)).connection(&cutover.plan)?;
        let level = subscriber.setting("wal_level").await?.unwrap_or_default();
        if level != "logical" {
            return Err(CutoverError::refused(format!("the {} cannot publish: its wal_level is {level}", link.subscriber))
                .with_hint("Set wal_level = logical (on Aurora rds.logical_replication = 1) and restart it, or finish without --reverse."));
        }
        let lacking = without_identity(cutover, &mut subscriber).await?;
        if !lacking.is_empty() && cutover.plan.replication.missing_identity == MissingIdentity::Refuse {
            let labels: Vec<_> = lacking.iter().map(Table::label).collect();
            return Err(CutoverError::refused(format!("{} tables of the {} could not be updated once they are published", lacking.len(), link.subscriber))
                .with_detail(format!("They have no primary key and no other replica identity: {}.", labels.join(", ")))
                .with_hint("Run ALTER TABLE … REPLICA IDENTITY FULL on each, set replication.missing_identity in the plan, or finish without --reverse."));
        }
    }
    let carried = carried_tables(cutover, &mut publisher).await?;
    publisher.close().await;
    subscriber.close().await;
    Ok(carried)
}

/// The tables of the plan that can be published.
async fn carried_tables(cutover: &Cutover, node: &mut Node) -> Result<Vec<Table>> {
    let mut carried = tables(node, cutover.plan.replication.tables.as_deref()).await?;
    carried.retain(|table| table.is_logged);
    Ok(carried)
}

/// Those of them whose updates would fail once they are published.
async fn without_identity(cutover: &Cutover, node: &mut Node) -> Result<Vec<Table>> {
    let mut lacking = carried_tables(cutover, node).await?;
    lacking.retain(|table| !table.has_identity);
    Ok(lacking)
}

fn opposite(direction: Direction) -> Direction {
    match direction {
        Direction::Forward => Direction::Back,
        Direction::Back => Direction::Forward,
    }
}

/// What takes long, while the application works: done once for each move.
async fn prepare(cutover: &mut Cutover, link: &Link, carried: &[Table]) -> Result<()> {
    if cutover.journal.has(Mark::Prepared) {
        return Ok(());
    }
    let mut publisher = cutover.connect(link.publisher, Access::ReadOnly).await?;
    let mut subscriber = cutover.connect(link.subscriber, Access::ReadWrite).await?;
    subscriber.limit(LONG_STATEMENT).await?;
    tracing::info!("gathering statistics on the {}", link.subscriber);
    // without them the new home's first minutes go to sequential scans; what this user does not own is passed over
    subscriber.change("set client_min_messages = error; analyze").await?;
    for view in stale_views(&mut publisher, &mut subscriber).await? {
        tracing::info!("refreshing {view} on the {}", link.subscriber);
        subscriber.change(&format!("refresh materialized view {view}")).await?;
    }
    let report = compare_tables(cutover, &mut publisher, &mut subscriber, carried, None, &[]).await?;
    tell(&report.notes);
    report.require_no_difference(link.publisher, link.subscriber)?;
    let prepared = Prepared { changing: report.unknown().map(|table| table.table.clone()).collect() };
    let what = format!(
        "{} of {} tables are the same on both sides; the others are being written to",
        report.proved().count(),
        carried.len()
    );
    publisher.close().await;
    subscriber.close().await;
    cutover.journal.record(Mark::Prepared, what, prepared)
}

fn tell(notes: &[String]) {
    notes.iter().for_each(|note| tracing::warn!("{note}"));
}

/// Materialized views that have rows on the publisher, by their name for SQL, in the order of their making.
async fn stale_views(publisher: &mut Node, subscriber: &mut Node) -> Result<Vec<String>> {
    let views: Vec<ViewName> = publisher
        .rows(
            "select format('%I.%I', n.nspname, c.relname) as name from pg_class c join pg_namespace n on n.oid = c.relnamespace \
             where c.relkind = 'm' and c.relispopulated order by c.oid",
        )
        .await?;
    let mut there = Vec::new();
    for view in views {
        let question = format!(
            "select coalesce((select pg_has_role(relowner, 'usage') from pg_class where oid = to_regclass({})), false)",
            literal(&view.name)
        );
        match subscriber.value::<bool>(&question).await? {
            true => there.push(view.name),
            false => {
                tracing::warn!("the materialized view {} is not refreshed: it is not there, or is another's", view.name)
            }
        }
    }
    Ok(there)
}

#[derive(Debug, Deserialize)]
struct ViewName {
    name: String,
}

/// Waits until the subscriber has kept close to the publisher for a stretch, and has a row that was just written.
async fn wait_for_gate(cutover: &mut Cutover, link: &Link) -> Result<()> {
    let mut publisher = cutover.connect(link.publisher, Access::ReadWrite).await?;
    let mut subscriber = cutover.connect(link.subscriber, Access::ReadOnly).await?;
    let (limit, stretch) = (cutover.plan.finish.lag_limit, cutover.plan.finish.lag_stretch);
    let deadline = Instant::now() + GATE_TIMEOUT;
    let lag = format!(
        "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), confirmed_flush_lsn)::bigint \
         from pg_replication_slots where slot_name = {}",
        literal(&link.slot)
    );
    let mut close_since: Option<Instant> = None;
    let what = format!("the {} has been within {} for {}", link.subscriber, bytes_text(limit), time_text(stretch));
    cutover
        .until(what, Some(deadline), async || {
            let behind: Option<i64> = publisher.value(&lag).await?;
            let Some(behind) = behind.and_then(|behind| u64::try_from(behind).ok()) else {
                return Err(lost_slot(link));
            };
            if behind > limit {
                close_since = None;
                return Ok(Look::NotYet(format!("it is {} behind", bytes_text(behind))));
            }
            let since = *close_since.get_or_insert_with(Instant::now);
            Ok(if since.elapsed() >= stretch {
                Look::Holds
            } else {
                Look::NotYet(format!("it is {} behind, for {} now", bytes_text(behind), time_text(since.elapsed())))
            })
        })
        .await
        .map_err(|failed| failed.with_hint("See cutover status for what holds it up; or raise finish.lag_limit."))?;
    let id = marker::write(&mut publisher, "gate").await?;
    let deadline = Instant::now() + cutover.plan.finish.budget;
    wait_for_marker(cutover, link, &mut subscriber, &id, deadline).await?;
    publisher.close().await;
    subscriber.close().await;
    Ok(())
}

fn lost_slot(link: &Link) -> CutoverError {
    CutoverError::refused(format!("the {} has no usable slot \"{}\"", link.publisher, link.slot))
        .with_detail("Without it the subscriber can never have everything.")
        .with_hint("Begin anew: cutover abort, empty the tables on the subscriber, cutover replicate.")
}

async fn wait_for_marker(
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

/// Everything under the fence, up to where the subscription can go.
async fn hand_over(cutover: &mut Cutover, link: &Link, carried: &[Table], reverse: bool) -> Result<()> {
    let deadline = Instant::now() + cutover.plan.finish.budget;
    if !cutover.journal.has(Mark::FinishMaintenance) {
        cutover.journal.record(Mark::FinishMaintenance, "the downtime begins", ())?;
    }
    cutover.hook(Hook::MaintenanceOn).await?;
    let mut publisher = cutover.connect(link.publisher, Access::ReadWrite).await?;
    let mut subscriber = cutover.connect(link.subscriber, Access::ReadWrite).await?;
    let mut point = fence::raise(cutover, &mut publisher, Mark::PublisherFence, deadline).await?;
    loop {
        // whatever committed before this row is applied before it
        let id = marker::write(&mut publisher, "last").await?;
        cutover.journal.record(
            Mark::FinalPoint,
            format!("the {}'s last write is at {}", link.publisher, point.lsn),
            FinalPoint { lsn: point.lsn.clone() },
        )?;
        wait_for_marker(cutover, link, &mut subscriber, &id, deadline).await?;
        // the marker itself is one
        let later = fence::transactions_since(&mut publisher, &point).await? - 1;
        if later <= 0 {
            break;
        }
        tracing::warn!("{later} transactions ran on the {} after the fence: waiting for these too", link.publisher);
        if Instant::now() >= deadline {
            return Err(CutoverError::refused(format!(
                "the {} is still being written to behind its fence",
                link.publisher
            ))
            .with_hint("Look in its pg_stat_activity for sessions that set a transaction read write."));
        }
        point = fence::locate(&mut publisher).await?;
    }
    cutover.journal.record(Mark::Confirmed, format!("the {} has the last write", link.subscriber), ())?;

    if !cutover.rehearsal.is_dry() {
        let prepared: Prepared = cutover.journal.data(Mark::Prepared).unwrap_or_default();
        let budget = cutover.plan.finish.compare_budget.min(deadline.saturating_duration_since(Instant::now()));
        let compared =
            compare_tables(cutover, &mut publisher, &mut subscriber, carried, Some(budget), &prepared.changing).await?;
        tell(&compared.notes);
        compared.require_no_difference(link.publisher, link.subscriber)?;
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
    let sequences = carry_over(&mut publisher, &mut subscriber, margin).await?;
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

/// Drops the subscription and its slot, and sets up the way back.
async fn part(cutover: &mut Cutover, link: &Link, reverse: bool) -> Result<()> {
    let stuck = |failed: CutoverError| {
        failed
            .with_detail(format!("The {} has everything; the application was not switched yet.", link.subscriber))
            .with_hint("Mend that and run the same command again: it goes on from here.")
    };
    if !cutover.journal.has(Mark::SubscriptionDropped) {
        drop_link(cutover, link).await.map_err(stuck)?;
        cutover.journal.record(Mark::SubscriptionDropped, "the subscription and its slot are dropped", ())?;
    }
    if reverse && !cutover.journal.has(Mark::ReverseReady) {
        let back = Link::new(&cutover.plan, opposite(link.direction));
        set_up_the_way_back(cutover, &back).await.map_err(stuck)?;
        let what = format!("the {} follows the {} from here on", back.subscriber, back.publisher);
        cutover.journal.record(Mark::ReverseReady, what, ())?;
    }
    Ok(())
}

/// Takes a link away: subscription, slot, publication; what is not there is none the worse.
///
/// # Errors
///
/// When a server refuses or is gone; run again it goes on.
pub async fn drop_link(cutover: &Cutover, link: &Link) -> Result<()> {
    let mut subscriber = cutover.connect(link.subscriber, Access::ReadWrite).await?;
    subscription::drop(&mut subscriber, link).await?;
    let mut publisher = cutover.connect(link.publisher, Access::ReadWrite).await?;
    slot::drop(&mut publisher, link).await?;
    publication::drop(&mut publisher, link).await?;
    publisher.close().await;
    subscriber.close().await;
    Ok(())
}

/// A link that begins at this moment, with the rows that are there already. The slot is made while nobody can write.
async fn set_up_the_way_back(cutover: &Cutover, back: &Link) -> Result<()> {
    let mut publisher = cutover.connect(back.publisher, Access::ReadWrite).await?;
    let mut subscriber = cutover.connect(back.subscriber, Access::ReadWrite).await?;
    if cutover.plan.replication.missing_identity == MissingIdentity::Full {
        for table in without_identity(cutover, &mut publisher).await? {
            publisher.change(&format!("alter table {} replica identity full", table.quoted())).await?;
        }
    }
    let carried = carried_tables(cutover, &mut publisher).await?;
    publication::create(&mut publisher, back, Some(&carried)).await?;
    slot::create(&mut publisher, back).await?;
    subscription::create(&mut subscriber, back, back.connection(&cutover.plan)?, false).await?;
    publisher.close().await;
    subscriber.close().await;
    Ok(())
}

/// Points the application at the subscriber.
async fn switch(cutover: &mut Cutover, link: &Link, reverse: bool) -> Result<FinishReport> {
    if cutover.journal.has(Mark::PublisherFence) && !cutover.plan.finish.leave_publisher_read_only {
        let mut publisher = cutover.connect(link.publisher, Access::ReadWrite).await?;
        fence::lift(cutover, &mut publisher, Mark::PublisherFence).await?;
        publisher.close().await;
        cutover.journal.undo(Mark::PublisherFence, format!("the {} is no longer read-only", link.publisher))?;
    }
    if !cutover.journal.has(Mark::SwitchedToSubscriber) {
        let hook = if link.subscriber == Place::Target { Hook::SwitchToTarget } else { Hook::SwitchToReplica };
        cutover.hook(hook).await.map_err(|failed| {
            failed
                .with_detail(format!("The {} has everything; the application was not switched yet.", link.subscriber))
                .with_hint("Mend the command and run the same step again: it goes on from here.")
        })?;
        let what = format!("the application uses the {}", link.subscriber);
        cutover.journal.record(Mark::SwitchedToSubscriber, what, ())?;
    }
    cutover.hook(Hook::MaintenanceOff).await.map_err(|failed| {
        failed.with_hint("Mend the command and run the same step again, or switch maintenance off by hand.")
    })?;
    let began = cutover.journal.find(Mark::FinishMaintenance).map(|entry| entry.at);
    let downtime = began.map_or(Duration::ZERO, |began| (OffsetDateTime::now_utc() - began).unsigned_abs());
    let compared: Compared = cutover.journal.data(Mark::Compared).unwrap_or_default();
    let report = FinishReport {
        direction: link.direction,
        downtime_milliseconds: u64::try_from(downtime.as_millis()).unwrap_or(u64::MAX),
        final_lsn: cutover.journal.data::<FinalPoint>(Mark::FinalPoint).map(|point| point.lsn).unwrap_or_default(),
        sequences: cutover.journal.data(Mark::SequencesSet).unwrap_or_default(),
        compared_tables: compared.tables,
        not_compared: compared.not_compared,
        is_reversible: reverse,
    };
    let what = match began {
        Some(began) => format!("the move is over: {} of downtime since {}", time_text(downtime), at_text(began)),
        None => "the move is over".to_owned(),
    };
    cutover.journal.record(Mark::FinishDone, what, &report)?;
    if !reverse && let Err(failed) = tidy(cutover).await {
        tracing::warn!(
            "the move is over, but not all that served it could be removed; cutover abort tries again: {}",
            joined(&failed)
        );
    }
    Ok(report)
}

/// Removes what served the moves: the replication role, the markers, REPLICA IDENTITY FULL.
///
/// # Errors
///
/// When a server refuses or is gone; run again it goes on.
pub async fn tidy(cutover: &mut Cutover) -> Result<()> {
    let mut replica = cutover.connect(Place::Replica, Access::ReadWrite).await?;
    replica_identity::put_back(cutover, &mut replica).await?;
    if cutover.journal.has(Mark::ReplicationRole) {
        replication_role::drop(&mut replica, &cutover.plan.replication.role).await?;
        cutover.journal.undo(Mark::ReplicationRole, format!("the role {} is gone", cutover.plan.replication.role))?;
    }
    marker::remove(&mut replica).await?;
    replica.close().await;
    let mut target = cutover.connect(Place::Target, Access::ReadWrite).await?;
    marker::remove(&mut target).await?;
    target.close().await;
    Ok(())
}
