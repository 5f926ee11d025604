//! The slot that keeps the publisher's WAL for the subscriber. It is made by us and not by the subscription, so that no death
//! in between leaves one behind that nobody knows of.

use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;

use crate::cutover::error::{CutoverError, Result};
use crate::cutover::node::Node;
use crate::cutover::replication::link::Link;
use crate::pg::quote::literal;
use crate::pg::version::Major;

/// How long making a slot may take: the server waits for the end of every transaction that writes now.
const CREATE_TIMEOUT: Duration = Duration::from_secs(600);

/// How long a slot may stay in use after its subscription was dropped, until its walsender is sent away.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a slot may stay in use until dropping it is given up.
const DROP_TIMEOUT: Duration = Duration::from_secs(15);

/// How often it is looked at meanwhile.
const POLL: Duration = Duration::from_millis(100);

/// A slot as the publisher shows it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// Its output plugin.
    pub plugin: Option<String>,
    /// Its database.
    pub database: Option<String>,
    /// The walsender that uses it.
    pub active_pid: Option<i32>,
    /// Why it is of no use any more, from 13: the WAL it needs is gone, or the server took it away.
    pub lost: Option<String>,
}

/// Makes the slot of `link` on its publisher; one that is there already and of use is kept.
///
/// # Errors
///
/// When the publisher refuses or is gone, when a slot of that name is something else or of no use any more, or when a
/// transaction does not end for ten minutes.
pub async fn create(node: &mut Node, link: &Link) -> Result<()> {
    if let Some(slot) = find(node, link).await? {
        return check(node, &slot);
    }
    if !node.is_rehearsed() {
        node.limit(CREATE_TIMEOUT).await?;
    }
    let statement = format!("select pg_create_logical_replication_slot({}, 'pgoutput')", literal(&link.slot));
    node.change(&statement).await.map_err(|failed| {
        failed.with_hint(
            "A slot waits for every transaction that writes to end: look in pg_stat_activity and pg_prepared_xacts for old ones.",
        )
    })
}

/// The slot of `link` on its publisher.
///
/// # Errors
///
/// When the publisher refuses or is gone.
pub async fn find(node: &mut Node, link: &Link) -> Result<Option<Slot>> {
    Ok(slots(node, &format!("slot_name = {}", literal(&link.slot))).await?.pop())
}

async fn slots(node: &mut Node, condition: &str) -> Result<Vec<Slot>> {
    let lost = lost(node.major());
    node.rows(&format!(
        "select slot_name as name, plugin, database, active_pid, {lost} as lost \
         from pg_replication_slots where {condition} order by slot_name"
    ))
    .await
}

/// Why a row of `pg_replication_slots` is of no use any more, for SQL; null when it is.
pub fn lost(major: Major) -> &'static str {
    if major >= Major::new(17) {
        "coalesce(invalidation_reason, case when wal_status = 'lost' then 'wal_removed' end)"
    } else if major >= Major::new(13) {
        "case when wal_status = 'lost' then 'wal_removed' end"
    } else {
        "null::text"
    }
}

/// Drops the slot of `link` from its publisher, if it is there. Whoever still uses it is waited for a moment and then sent away.
///
/// # Errors
///
/// When the publisher refuses or is gone, or when somebody takes the slot again and again.
pub async fn drop(node: &mut Node, link: &Link) -> Result<()> {
    drop_all(node, &format!("slot_name = {}", literal(&link.slot))).await
}

/// Drops the slots of a subscription's copies, as [`drop`] does; `names` is from [`super::subscription::copy_slots`].
///
/// # Errors
///
/// As [`drop`].
pub async fn drop_copies(node: &mut Node, names: &str) -> Result<()> {
    drop_all(node, &format!("slot_name ~ {}", literal(names))).await
}

async fn drop_all(node: &mut Node, condition: &str) -> Result<()> {
    let began = Instant::now();
    let mut sent_away = false;
    loop {
        let found = slots(node, condition).await?;
        if found.is_empty() {
            return Ok(());
        }
        let active = found.iter().filter_map(|slot| Some((&slot.name, slot.active_pid?)));
        let Some((name, pid)) = active.clone().next() else { break };
        if node.is_rehearsed() {
            break;
        }
        if began.elapsed() > DROP_TIMEOUT {
            return Err(CutoverError::refused(format!("the slot \"{name}\" is in use on the {}", node.place()))
                .with_detail(format!("By the walsender with pid {pid}."))
                .with_hint("See which subscription uses it, disable that one, and run this again."));
        }
        if began.elapsed() > LEAVE_TIMEOUT && !sent_away {
            sent_away = true;
            let pids: Vec<_> = active.map(|(_, pid)| pid.to_string()).collect();
            node.change(&format!("select pg_terminate_backend(pid) from unnest(array[{}]) pid", pids.join(",")))
                .await?;
        }
        tokio::time::sleep(POLL).await;
    }
    let statement = format!("select pg_drop_replication_slot(slot_name) from pg_replication_slots where {condition}");
    node.change(&statement).await
}

fn check(node: &Node, slot: &Slot) -> Result<()> {
    let place = node.place();
    if slot.plugin.as_deref() != Some("pgoutput") || slot.database.as_deref() != Some(node.database()) {
        return Err(CutoverError::refused(format!("the {place} has another slot \"{}\"", slot.name))
            .with_detail(format!(
                "It is of the plugin {} and the database {}.",
                slot.plugin.as_deref().unwrap_or("none"),
                slot.database.as_deref().unwrap_or("none")
            ))
            .with_hint("Drop it if nobody needs it, or give replication.slot another name in the plan."));
    }
    match &slot.lost {
        None => Ok(()),
        Some(why) => Err(CutoverError::refused(format!("the slot \"{}\" on the {place} is lost", slot.name))
            .with_detail(format!("The server gives for a reason: {why}. What the target lacks is not kept any more."))
            .with_hint("Run cutover abort, empty the target's tables, raise max_slot_wal_keep_size, and begin cutover replicate again.")),
    }
}
