//! Settings of the future primary and publisher: those that take a restart are better changed while nobody waits for it.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::finding::Finding;
use crate::cutover::error::Result;
use crate::cutover::node::{Node, Place};
use crate::pg::version::Major;

/// Slots and senders that a subscription takes for each table that is being copied, besides its own: PostgreSQL's default
/// of `max_sync_workers_per_subscription`, where the target cannot be asked.
const DEFAULT_SYNC_WORKERS: i64 = 2;

/// What a standby refuses to start with, or pauses at, when it has less than its primary ("Hot Standby", "Administrator's
/// Overview").
const MINIMUMS: [&str; 5] = [
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
];

#[derive(Deserialize)]
struct Setting {
    name: String,
    value: Option<String>,
    pending_restart: bool,
}

/// Settings by their names; one that the server does not know or show is not there.
pub(super) struct Settings(BTreeMap<String, Setting>);

impl Settings {
    /// Asks for all at once. A session's own changes do not show.
    pub(super) async fn of(node: &mut Node) -> Result<Self> {
        let rows: Vec<Setting> = node.rows("select name, reset_val as value, pending_restart from pg_settings").await?;
        Ok(Self(rows.into_iter().map(|row| (row.name.clone(), row)).collect()))
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.value.as_deref()
    }

    pub(super) fn number(&self, name: &str) -> Option<i64> {
        self.text(name)?.parse().ok()
    }

    pub(super) fn is_on(&self, name: &str) -> bool {
        self.text(name) == Some("on")
    }

    fn waits_for_restart(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|setting| setting.pending_restart)
    }
}

/// What is changed how. A setting that is right in the file already only waits for the restart.
pub(super) fn mended(finding: Finding, settings: &Settings, name: &str, value: &str) -> Finding {
    let finding = match settings.waits_for_restart(name) {
        true => finding,
        false => finding.mend(format!("alter system set {name} = '{value}';")),
    };
    finding.mend("Restart the server: this setting takes one.")
}

#[derive(Deserialize)]
struct InUse {
    slots: i64,
    senders: i64,
}

/// What the replica needs to publish, which is better set before it is promoted. `sync_workers` is the target's setting.
pub(super) async fn publisher(replica: &mut Node, sync_workers: Option<i64>) -> Result<Vec<Finding>> {
    let settings = Settings::of(replica).await?;
    let in_use: InUse = replica
        .row(
            "select (select count(*) from pg_replication_slots) as slots, \
                    (select count(*) from pg_stat_replication) as senders",
        )
        .await?;
    let mut found = Vec::new();
    if settings.text("wal_level") != Some("logical") {
        let finding = Finding::error(format!("wal_level is \"{}\"", settings.text("wal_level").unwrap_or_default()))
            .because("A publisher needs \"logical\". Changed before the promotion, it costs no downtime.");
        found.push(mended(finding, &settings, "wal_level", "logical"));
    }
    let copying = sync_workers.unwrap_or(DEFAULT_SYNC_WORKERS).max(0);
    found.extend(supply(&settings, "max_replication_slots", in_use.slots, copying));
    found.extend(supply(&settings, "max_wal_senders", in_use.senders, copying));
    Ok(found.into_iter().map(|finding| finding.at(Place::Replica)).collect())
}

/// What the replica needs to follow the source to the end, and to be a primary after that.
pub(super) async fn primary(replica: &mut Node, source: Option<&mut Node>, is_fenced: bool) -> Result<Vec<Finding>> {
    let settings = Settings::of(replica).await?;
    let mut found = future_primary(&settings, is_fenced);
    if let Some(source) = source {
        let source = Settings::of(source).await?;
        found.extend(minimums(&settings, &source, replica.major()));
        found.extend(preloaded(&settings, &source));
    }
    Ok(found.into_iter().map(|finding| finding.at(Place::Replica)).collect())
}

/// Whether there is one for the subscription, and one for each table that is copied at the same time.
fn supply(settings: &Settings, name: &str, in_use: i64, copying: i64) -> Option<Finding> {
    let limit = settings.number(name)?;
    let (needed, wished) = (in_use + 1, in_use + 1 + copying);
    if limit >= wished {
        return None;
    }
    let finding =
        Finding::error_if(limit < needed, format!("{name} is {limit}, and {in_use} are in use")).because(format!(
            "The subscription takes one, and each of up to {copying} tables that are copied at the same time another."
        ));
    Some(mended(finding, settings, name, &(wished + 5).to_string()))
}

/// What was fit for a replica and is not for a primary.
fn future_primary(settings: &Settings, is_fenced: bool) -> Vec<Finding> {
    let mut found = Vec::new();
    for (name, why) in [
        ("fsync", "What is committed on the new primary is lost when the machine fails."),
        ("full_page_writes", "A torn page after a crash of the new primary cannot be repaired."),
        ("autovacuum", "Tables bloat, and statistics grow old, on the new primary."),
    ] {
        if settings.text(name) == Some("off") {
            found.push(
                Finding::warning(format!("{name} is off"))
                    .because(why)
                    .mend(format!("alter system set {name} = on; select pg_reload_conf();")),
            );
        }
    }
    if let Some(names) = settings.text("synchronous_standby_names").filter(|names| !names.is_empty()) {
        found.push(
            Finding::warning(format!("synchronous_standby_names is \"{names}\""))
                .because("Unless that standby is there, every commit on the new primary waits without end.")
                .mend("alter system reset synchronous_standby_names; select pg_reload_conf();"),
        );
    }
    // while the source is fenced, the fence's own row has come along
    if settings.is_on("default_transaction_read_only") && !is_fenced {
        found.push(
            Finding::error("default_transaction_read_only is on")
                .because("The application could not write to the new primary.")
                .mend("alter system reset default_transaction_read_only; select pg_reload_conf();")
                .mend("Where it is the database's or the role's own setting, reset it on the source."),
        );
    }
    found
}

fn minimums(replica: &Settings, source: &Settings, major: Major) -> Vec<Finding> {
    let short = |name: &&str| {
        let (ours, theirs) = (replica.number(name)?, source.number(name)?);
        let why = if major < Major::new(14) {
            "A standby with less than its primary stops with an error when the change is replayed, and does not start."
        } else {
            "A standby with less than its primary pauses replay, and does not start."
        };
        (ours < theirs).then(|| {
            let finding = Finding::error(format!("{name} is {ours}, the source's is {theirs}")).because(why);
            mended(finding, replica, name, &theirs.to_string())
        })
    };
    MINIMUMS.iter().filter_map(short).collect()
}

/// Libraries that the source loads at its start and the replica does not.
fn preloaded(replica: &Settings, source: &Settings) -> Option<Finding> {
    let listed = |settings: &Settings| -> Option<Vec<String>> {
        let text = settings.text("shared_preload_libraries")?;
        Some(text.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect())
    };
    let (ours, theirs) = (listed(replica)?, listed(source)?);
    let missing: Vec<_> = theirs.into_iter().filter(|name| !ours.contains(name)).collect();
    (!missing.is_empty()).then(|| {
        Finding::warning("shared_preload_libraries lacks what the source loads")
            .because("What these libraries do ends with the move to the replica.")
            .about(missing)
            .mend("Add them to shared_preload_libraries, and restart the replica.")
    })
}

#[cfg(test)]
impl Settings {
    pub(super) fn sample(rows: &[(&str, &str)]) -> Self {
        let row = |(name, value): &(&str, &str)| {
            let setting = Setting { name: name.to_string(), value: Some(value.to_string()), pending_restart: false };
            (name.to_string(), setting)
        };
        Self(rows.iter().map(row).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(rows: &[(&str, &str)]) -> Settings {
        Settings::sample(rows)
    }

    fn told(found: impl IntoIterator<Item = Finding>) -> Vec<String> {
        found.into_iter().map(|finding| format!("{:?} {}", finding.severity, finding.what)).collect()
    }

    #[test]
    fn a_standby_has_no_less_than_its_primary() {
        let small = settings(&[("max_connections", "50"), ("max_wal_senders", "10")]);
        let large = settings(&[("max_connections", "100"), ("max_wal_senders", "10"), ("max_worker_processes", "8")]);
        assert_eq!(
            told(minimums(&small, &large, Major::new(15))),
            ["Error max_connections is 50, the source's is 100"]
        );
        assert!(minimums(&large, &small, Major::new(15)).is_empty());
    }

    #[test]
    fn the_subscription_needs_one_slot_and_wants_one_a_copy() {
        let slots = |limit: &str| settings(&[("max_replication_slots", limit)]);
        assert_eq!(
            told(supply(&slots("1"), "max_replication_slots", 1, 2)),
            ["Error max_replication_slots is 1, and 1 are in use"]
        );
        assert_eq!(
            told(supply(&slots("3"), "max_replication_slots", 1, 2)),
            ["Warning max_replication_slots is 3, and 1 are in use"]
        );
        assert!(supply(&slots("4"), "max_replication_slots", 1, 2).is_none());
    }

    #[test]
    fn what_was_fit_for_a_replica_is_told() {
        let found = future_primary(
            &settings(&[
                ("fsync", "off"),
                ("autovacuum", "on"),
                ("synchronous_standby_names", "a"),
                ("default_transaction_read_only", "on"),
            ]),
            false,
        );
        assert_eq!(found.len(), 3);
        assert!(future_primary(&settings(&[("default_transaction_read_only", "on")]), true).is_empty());
        let libraries = |text: &str| settings(&[("shared_preload_libraries", text)]);
        assert_eq!(preloaded(&libraries("a"), &libraries("a, b")).unwrap().objects, ["b"]);
        assert!(preloaded(&libraries("a, b"), &libraries("b")).is_none());
    }
}
