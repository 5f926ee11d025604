//! What comes before the downtime: everything that can be known, and everything that takes long.

use std::collections::HashSet;
use std::time::Duration;

use serde::Deserialize;
use time::OffsetDateTime;
use tokio::time::Instant;

use super::{Prepared, carried_tables, handover, opposite, tell, way_back};
use crate::cutover::comparison::{ComparisonReport, Outcome, compare_tables};
use crate::cutover::context::{Cutover, Look};
use crate::cutover::error::{CutoverError, Result};
use crate::cutover::fence;
use crate::cutover::journal::Mark;
use crate::cutover::marker;
use crate::cutover::node::Node;
use crate::cutover::quantity::{bytes_text, time_text};
use crate::cutover::replication::link::{Direction, Link};
use crate::cutover::replication::subscription::{self, CopyState};
use crate::cutover::sequences::carry_over;
use crate::cutover::tables::{Table, USER_SCHEMAS};
use crate::pg::quote::{identifier, literal};
use crate::pg::session::Access;

/// How long the gate is waited for before the user is told that it does not open.
const GATE_TIMEOUT: Duration = Duration::from_secs(3600);

/// How long a statement may take that reads whole tables while the application works.
const LONG_STATEMENT: Duration = Duration::from_secs(24 * 3600);

/// How long what was prepared counts.
const PREPARED_FOR: Duration = Duration::from_secs(24 * 3600);

/// What must hold before anything is done; the tables that are carried over.
pub(super) async fn check(cutover: &Cutover, link: &Link, reverse: bool) -> Result<Vec<Table>> {
    if link.direction == Direction::Forward && !cutover.journal.has(Mark::ReplicateDone) {
        return Err(CutoverError::refused("the replication is not set up yet")
            .with_hint("Run cutover replicate to its end first; cutover status shows how far it is."));
    }
    let mut publisher = cutover.look(link.publisher).await?;
    let mut subscriber = cutover.look(link.subscriber).await?;
    fence::look_for_obstacles(&mut publisher).await?;
    let carried = followed_tables(cutover, link, &mut publisher, &mut subscriber).await?;
    if reverse {
        if cutover.plan.finish.leave_publisher_read_only {
            refuse_triggers(&mut publisher).await?;
        }
        let back = Link::new(&cutover.plan, opposite(link.direction));
        way_back::check(cutover, &back, &mut subscriber, &carried).await?;
    }
    // it says what is in the way before it sets anything, and these sessions set nothing
    carry_over(&mut publisher, &mut subscriber, cutover.plan.finish.sequence_margin).await?;
    publisher.close().await;
    subscriber.close().await;
    Ok(carried)
}

/// The tables that are carried over, all of which the subscription has copied and follows.
pub(super) async fn followed_tables(
    cutover: &Cutover,
    link: &Link,
    publisher: &mut Node,
    subscriber: &mut Node,
) -> Result<Vec<Table>> {
    let states = subscription::table_states(subscriber, link).await?;
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
    let carried = carried_tables(cutover, publisher).await?;
    let followed: HashSet<_> = states.iter().map(|state| state.label()).collect();
    let left_out: Vec<_> = carried.iter().map(Table::label).filter(|label| !followed.contains(label)).collect();
    if !left_out.is_empty() {
        return Err(CutoverError::refused(format!("{} tables are not followed by the subscription", left_out.len()))
            .with_detail(format!("They were made after it, and their rows would be lost: {}.", left_out.join(", ")))
            .with_hint(match link.direction {
                Direction::Forward => "Make them on the target, and run cutover replicate, which copies them. Or leave them out with replication.tables in the plan.".to_owned(),
                Direction::Back => format!(
                    "Make them on the {}, add them to the publication, and run there: alter subscription {} refresh publication; Or leave them out with replication.tables in the plan.",
                    link.subscriber,
                    identifier(&link.subscription)
                ),
            }));
    }
    Ok(carried)
}

/// Left read-only, the publisher cannot take rows of the way back whose triggers write: its apply worker is bound by the fence.
async fn refuse_triggers(publisher: &mut Node) -> Result<()> {
    let triggers: Option<String> = publisher
        .value(&format!(
            "select string_agg(format('%s of %s', t.tgname, t.tgrelid::regclass), ', ' order by t.tgname) \
             from pg_trigger t join pg_class c on c.oid = t.tgrelid join pg_namespace n on n.oid = c.relnamespace \
             where t.tgenabled in ('A', 'R') and not t.tgisinternal and {USER_SCHEMAS}"
        ))
        .await?;
    let Some(triggers) = triggers else { return Ok(()) };
    let place = publisher.place();
    Err(CutoverError::refused(format!(
        "the {place} is to stay read-only, and has triggers that run for replicated rows"
    ))
    .with_detail(format!("They are {triggers}. The first one that writes would stop the way back."))
    .with_hint(format!(
        "Set finish.leave_publisher_read_only = false, disable them on the {place}, or finish without --reverse."
    )))
}

/// What takes long, while the application works: done once for each move.
pub(super) async fn prepare(cutover: &mut Cutover, link: &Link, carried: &[Table]) -> Result<()> {
    let is_fresh = |at: OffsetDateTime| OffsetDateTime::now_utc() - at < PREPARED_FOR;
    if cutover.journal.find(Mark::Prepared).is_some_and(|entry| is_fresh(entry.at)) {
        return Ok(());
    }
    let mut publisher = cutover.connect(link.publisher, Access::ReadOnly).await?;
    let mut subscriber = cutover.connect(link.subscriber, Access::ReadWrite).await?;
    subscriber.limit(LONG_STATEMENT).await?;
    tracing::info!("gathering statistics on the {}", link.subscriber);
    // without them the new home's first minutes go to sequential scans; what this user does not own is passed over
    subscriber.change("analyze").await?;
    // a view's functions may name things by the path of the database
    subscriber.change("reset search_path").await?;
    for view in stale_views(&mut publisher, &mut subscriber).await? {
        tracing::info!("refreshing {view} on the {}", link.subscriber);
        subscriber.change(&format!("refresh materialized view {view}")).await?;
    }
    subscriber.change("set search_path = pg_catalog").await?;
    if !cutover.rehearsal.permits("compare", "all rows of all tables") {
        return Ok(());
    }
    let report = compare_tables(cutover, &mut publisher, &mut subscriber, carried, None, &[]).await?;
    tell(&report.notes);
    report.require_no_difference(link.publisher, link.subscriber)?;
    refuse_unreadable(&report)?;
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

/// A table that could not be compared because a server refused is no table that is the same.
fn refuse_unreadable(report: &ComparisonReport) -> Result<()> {
    let refused = |table: &crate::cutover::comparison::Comparison| match &table.outcome {
        Outcome::NotCompared { reason } => Some(format!("{}: {reason}", table.table)),
        _ => None,
    };
    let refused: Vec<_> = report.tables.iter().filter_map(refused).collect();
    match refused.is_empty() {
        true => Ok(()),
        false => Err(CutoverError::refused(format!("{} tables could not be compared", refused.len()))
            .with_detail(format!("{}.", refused.join("; ")))
            .with_hint("Let both users read all columns of these tables, and make them alike on both sides.")),
    }
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
pub(super) async fn wait_for_gate(cutover: &mut Cutover, link: &Link) -> Result<()> {
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
    handover::wait_for_marker(cutover, link, &mut subscriber, &id, deadline).await?;
    publisher.close().await;
    subscriber.close().await;
    Ok(())
}

fn lost_slot(link: &Link) -> CutoverError {
    CutoverError::refused(format!("the {} has no usable slot \"{}\"", link.publisher, link.slot))
        .with_detail("Without it the subscriber can never have everything.")
        .with_hint("Begin anew: cutover abort, empty the tables on the subscriber, cutover replicate.")
}
