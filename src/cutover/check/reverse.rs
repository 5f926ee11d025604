//! The way back: the target as a publisher, and the replica as its subscriber.

use serde::Deserialize;

use super::finding::Finding;
use super::settings::{Settings, mended};
use crate::cutover::error::Result;
use crate::cutover::node::{Node, Place};
use crate::pg::conninfo::Conninfo;
use crate::pg::quote::{identifier, literal};

/// What the target needs to publish. `conninfo` is how the replica will come to it.
pub(super) async fn target(node: &mut Node, conninfo: &Conninfo) -> Result<Vec<Finding>> {
    let settings = Settings::of(node).await?;
    let mut found = Vec::new();
    if settings.text("wal_level") != Some("logical") {
        let is_managed = settings.text("rds.logical_replication").is_some();
        let finding = Finding::error(format!(
            "wal_level is \"{}\", and the plan has [reverse]",
            settings.text("wal_level").unwrap_or_default()
        ))
        .because(
            "finish --reverse makes the target a publisher; to change this takes a restart, which is better done now.",
        );
        found.push(match is_managed {
            true => finding
                .mend("rds.logical_replication = 1 in the cluster's parameter group, and a restart of the writer"),
            false => mended(finding, &settings, "wal_level", "logical")
                .mend("On Amazon's servers: rds.logical_replication = 1 in the parameter group, and a restart."),
        });
    }
    for name in ["max_replication_slots", "max_wal_senders"] {
        if settings.number(name).is_some_and(|number| number < 1) {
            found.push(mended(
                Finding::error(format!("{name} is 0")).because("finish --reverse takes one."),
                &settings,
                name,
                "10",
            ));
        }
    }
    found.extend(role(node, conninfo.user()).await?);
    Ok(found.into_iter().map(|finding| finding.at(Place::Target)).collect())
}

#[derive(Deserialize)]
struct Role {
    exists: bool,
    may_replicate: bool,
    is_managed: bool,
}

/// The role that the replica logs in as must be one that may replicate.
async fn role(node: &mut Node, user: &str) -> Result<Option<Finding>> {
    let name = literal(user);
    let role: Role = node
        .row(&format!(
            "select exists (select from pg_roles where rolname = {name}) as exists, \
                    exists (select from pg_roles where rolname = 'rds_replication') as is_managed, \
                    exists (select from pg_roles r where r.rolname = {name} and (r.rolsuper or r.rolreplication \
                       or exists (select from pg_roles m where m.rolname in ('rds_replication', 'rds_superuser') \
                          and pg_has_role(r.oid, m.oid, 'member')))) as may_replicate"
        ))
        .await?;
    if role.may_replicate {
        return Ok(None);
    }
    let (what, mend) = match (role.exists, role.is_managed) {
        (false, _) => (
            format!("the role \"{user}\" of [reverse] is not there"),
            "Make it, or name another in reverse.publisher_for_replica.".to_owned(),
        ),
        (true, true) => (
            format!("the role \"{user}\" of [reverse] may not replicate"),
            format!("grant rds_replication to {};", identifier(user)),
        ),
        (true, false) => (
            format!("the role \"{user}\" of [reverse] may not replicate"),
            format!("alter role {} replication;", identifier(user)),
        ),
    };
    Ok(Some(Finding::error(what).because("The replica logs in with it to follow the target.").mend(mend)))
}

/// What the replica needs to subscribe.
pub(super) async fn replica(node: &mut Node) -> Result<Vec<Finding>> {
    let settings = Settings::of(node).await?;
    let mut found = Vec::new();
    for (name, least) in [("max_logical_replication_workers", 1), ("max_worker_processes", 2)] {
        if let Some(number) = settings.number(name).filter(|number| *number < least) {
            let finding = Finding::error(format!("{name} is {number}, and the plan has [reverse]"))
                .because("The subscription to the target takes a worker.");
            found.push(mended(finding, &settings, name, "8").at(Place::Replica));
        }
    }
    Ok(found)
}
