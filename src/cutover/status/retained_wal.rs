//! The WAL that a publisher keeps: for the link's slot, how far that one's walsender is, and for slots that nobody uses.

use std::path::Path;

use serde::Deserialize;

use crate::cutover::error::Result;
use crate::cutover::node::Node;
use crate::cutover::replication::link::Link;
use crate::cutover::replication::slot;
use crate::cutover::status::{IdleSlot, Lag, Retained};
use crate::pg::quote::literal;
use crate::pg::version::Major;

/// Slots that nobody uses, the one that keeps the most first.
///
/// # Errors
///
/// When the publisher refuses or is gone.
pub(super) async fn idle_slots(node: &mut Node) -> Result<Vec<IdleSlot>> {
    node.rows(
        "select slot_name as name, slot_name ~ '^pg_[0-9]+_sync_[0-9]+' as is_of_copy, \
                coalesce(greatest(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0), 0)::bigint as bytes \
         from pg_replication_slots where not active order by 3 desc",
    )
    .await
}

#[derive(Debug, Deserialize)]
struct SlotRow {
    bytes: u64,
    is_active: bool,
    safe_bytes: Option<i64>,
    lost: Option<String>,
    directory: Option<String>,
}

/// What the link's slot keeps, and how far its walsender is; none without a slot. `is_local` is whether the publisher runs on
/// this host, so that its disk can be looked at.
///
/// # Errors
///
/// When the publisher refuses or is gone.
pub(super) async fn retained(
    node: &mut Node,
    link: &Link,
    limit_bytes: u64,
    is_local: bool,
) -> Result<Option<(Retained, Option<Lag>)>> {
    let slot = literal(&link.slot);
    let safe = if node.major() >= Major::new(13) { "safe_wal_size" } else { "null::bigint" };
    let lost = slot::lost(node.major());
    let rows: Vec<SlotRow> = node
        .rows(&format!(
            "select coalesce(greatest(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0), 0)::bigint as bytes, \
                    active as is_active, {safe} as safe_bytes, {lost} as lost, \
                    case when {is_local} and pg_has_role('pg_read_all_settings', 'member') \
                        then current_setting('data_directory') end as directory \
             from pg_replication_slots where slot_name = {slot}"
        ))
        .await?;
    let Some(row) = rows.into_iter().next() else { return Ok(None) };
    let lag: Vec<Lag> = node
        .rows(&format!(
            "select r.state, pg_wal_lsn_diff(now.lsn, r.sent_lsn)::bigint as sent_bytes, \
                    pg_wal_lsn_diff(now.lsn, r.write_lsn)::bigint as write_bytes, \
                    pg_wal_lsn_diff(now.lsn, r.flush_lsn)::bigint as flush_bytes, \
                    pg_wal_lsn_diff(now.lsn, r.replay_lsn)::bigint as replay_bytes, \
                    extract(epoch from r.write_lag)::float8 as write_seconds, \
                    extract(epoch from r.flush_lag)::float8 as flush_seconds, \
                    extract(epoch from r.replay_lag)::float8 as replay_seconds \
             from pg_replication_slots s join pg_stat_replication r on r.pid = s.active_pid, \
                  (select pg_current_wal_lsn() as lsn) now \
             where s.slot_name = {slot} and r.replay_lsn is not null"
        ))
        .await?;
    let disk_bytes = row.directory.as_deref().and_then(free_bytes);
    let SlotRow { bytes, is_active, safe_bytes, lost, .. } = row;
    Ok(Some((Retained { bytes, limit_bytes, safe_bytes, disk_bytes, is_active, lost }, lag.into_iter().next())))
}

/// None where this user cannot see that directory: then the socket leads to another host or container.
fn free_bytes(data_directory: &str) -> Option<u64> {
    let found = rustix::fs::statvfs(Path::new(data_directory).join("pg_wal")).ok()?;
    Some(found.f_bavail * found.f_frsize)
}
