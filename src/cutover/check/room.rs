//! Room for the WAL that the publisher keeps while the target is behind.

use std::path::Path;

use serde::Deserialize;

use super::finding::Finding;
use super::settings::Settings;
use crate::cutover::error::Result;
use crate::cutover::node::Node;
use crate::cutover::plan::Plan;
use crate::cutover::quantity::bytes_text;
use crate::pg::conninfo::Conninfo;

/// Below this a server stops soon, whatever the plan's limit.
const LEAST_FREE: u64 = 2 << 30;

#[derive(Deserialize)]
struct Slot {
    name: String,
    retained_bytes: Option<i64>,
}

/// Looks at the publisher's disk, where it is this host's, at its limits, and at slots that hold WAL for nobody.
pub(super) async fn look(publisher: &mut Node, plan: &Plan) -> Result<Vec<Finding>> {
    let settings = Settings::of(publisher).await?;
    let wished = plan.replication.retained_wal_limit;
    let mut found = Vec::new();
    match free(&settings, plan.replica.as_ref()) {
        Some(free) => found.extend(judged(free, wished)),
        None => found.push(
            Finding::note("its free space cannot be seen from here")
                .because(format!("WAL is kept for the target while it copies and falls behind, up to replication.retained_wal_limit, {}, before there is a warning.", bytes_text(wished)))
                .mend("See that pg_wal has that much room; or run check on the replica's host."),
        ),
    }
    // in MB; -1 is no limit
    match settings.number("max_slot_wal_keep_size") {
        Some(megabytes) if megabytes >= 0 && (megabytes.unsigned_abs() << 20) < wished => found.push(
            Finding::warning(format!(
                "max_slot_wal_keep_size is {}, less than replication.retained_wal_limit, {}",
                bytes_text(megabytes.unsigned_abs() << 20),
                bytes_text(wished)
            ))
            .because("A target that falls behind further loses its slot, and the whole copy begins anew.")
            .mend(format!("alter system set max_slot_wal_keep_size = '{}MB'; select pg_reload_conf();", wished >> 20)),
        ),
        Some(megabytes) if megabytes < 0 => found.push(Finding::note("max_slot_wal_keep_size sets no limit").because(
            "Should the target stay away, WAL piles up until the disk is full: watch it with cutover status.",
        )),
        _ => {}
    }
    let slots: Vec<Slot> = publisher
        .rows(
            "select slot_name as name, pg_wal_lsn_diff(case when pg_is_in_recovery() then pg_last_wal_replay_lsn() \
                else pg_current_wal_lsn() end, restart_lsn)::bigint as retained_bytes \
             from pg_replication_slots where not active and not temporary and restart_lsn is not null order by 1",
        )
        .await?;
    let slots: Vec<_> = slots.into_iter().filter(|slot| slot.name != plan.replication.slot).collect();
    if !slots.is_empty() {
        let told = |slot: &Slot| {
            format!("{}, {}", slot.name, bytes_text(slot.retained_bytes.unwrap_or(0).max(0).unsigned_abs()))
        };
        found.push(
            Finding::warning("it has replication slots that nobody uses")
                .because("Each keeps WAL for somebody who does not come.")
                .about(slots.iter().map(told))
                .mends(slots.iter().map(|slot| format!("select pg_drop_replication_slot('{}');", slot.name))),
        );
    }
    Ok(found.into_iter().map(|finding| finding.at(publisher.place())).collect())
}

/// What is free where the WAL lies, when that is on this host and readable.
fn free(settings: &Settings, replica: Option<&Conninfo>) -> Option<u64> {
    let host = replica?.get("hostaddr").or(replica?.get("host"))?;
    if !is_this_host(host) {
        return None;
    }
    let wal = Path::new(settings.text("data_directory")?).join("pg_wal");
    // another container's server may be reached by a local address: then there is no such directory here
    let seen = rustix::fs::statvfs(&wal).ok()?;
    Some(seen.f_bavail.saturating_mul(seen.f_frsize))
}

/// Whether an address is of this host for certain.
pub(super) fn is_this_host(host: &str) -> bool {
    host.starts_with('/') || matches!(host, "localhost" | "127.0.0.1" | "::1")
}

fn judged(free: u64, wished: u64) -> Option<Finding> {
    if free >= wished && free >= LEAST_FREE {
        return None;
    }
    Some(
        Finding::error_if(free < LEAST_FREE, format!("{} are free where its WAL lies", bytes_text(free)))
            .because(format!(
                "WAL is kept for the target while it copies and falls behind; replication.retained_wal_limit warns at {}, when the disk is full already.",
                bytes_text(wished)
            ))
            .mend("Make room, or set replication.retained_wal_limit below what is free."),
    )
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity;
    use super::*;

    #[test]
    fn room_for_the_limit_is_wished_for_and_some_is_needed() {
        let severity = |free, wished| judged(free, wished).map(|found| found.severity);
        assert_eq!(severity(60 << 30, 50 << 30), None);
        assert_eq!(severity(40 << 30, 50 << 30), Some(Severity::Warning));
        assert_eq!(severity(1 << 30, 50 << 30), Some(Severity::Error));
        assert_eq!(severity(1 << 30, 1 << 20), Some(Severity::Error));
    }
}
