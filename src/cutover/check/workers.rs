//! The target as a subscriber: its workers against the number of tables, and the rights of its user.

use serde::Deserialize;

use super::finding::{Finding, counted};
use super::settings::{Settings, mended};
use crate::cutover::error::Result;
use crate::cutover::node::{Node, Place};
use crate::cutover::plan::Plan;
use crate::cutover::tables::{Table, USER_SCHEMAS};
use crate::pg::quote::identifier;
use crate::pg::version::Major;

/// From how many tables on more than the default of two copies at a time is worth a note.
const MANY_TABLES: usize = 50;

#[derive(Deserialize)]
struct InUse {
    workers: i64,
    origins: i64,
}

/// Whether the target's settings let a subscription run, and copy at a reasonable pace.
pub(super) async fn look(target: &mut Node, tables: &[Table], settings: &Settings) -> Result<Vec<Finding>> {
    let in_use: InUse = target
        .row(
            "select (select count(*) from pg_stat_subscription where pid is not null) as workers, \
                    (select count(*) from pg_replication_origin) as origins",
        )
        .await?;
    let sync = settings.number("max_sync_workers_per_subscription").unwrap_or(2);
    let origins =
        if target.major() < Major::new(18) { "max_replication_slots" } else { "max_active_replication_origins" };
    let mut found = judged(settings, origins, in_use.workers, in_use.origins, sync);
    if tables.len() >= MANY_TABLES && sync <= 2 {
        found.push(
            Finding::note(format!("max_sync_workers_per_subscription is {sync}, for {}", counted(tables.len(), "table", "tables")))
                .because("So many tables are copied at the same time; more make the first copy faster while the disks keep up.")
                .mend("alter system set max_sync_workers_per_subscription = 4; select pg_reload_conf();")
                .mend("On a managed server, in its parameter group; max_logical_replication_workers and max_worker_processes go with it."),
        );
    }
    Ok(found.into_iter().map(|finding| finding.at(Place::Target)).collect())
}

fn judged(settings: &Settings, origins_name: &str, workers: i64, origins: i64, sync: i64) -> Vec<Finding> {
    let mut found = Vec::new();
    // one applies, and one a table copies
    let (needed, wished) = (workers + 1, workers + 1 + sync);
    let mut limit = |name: &str, needed: i64, wished: i64, why: &str| {
        let Some(limit) = settings.number(name) else { return };
        if limit < wished {
            let what = format!("{name} is {limit}, and {wished} are needed");
            let finding =
                mended(Finding::error_if(limit < needed, what).because(why), settings, name, &wished.to_string());
            found.push(finding.mend("On a managed server, in its parameter group."));
        }
    };
    limit(
        "max_logical_replication_workers",
        needed + i64::from(sync > 0),
        wished,
        "One worker applies changes, and one for each table copies it: with none left the subscription waits without an error.",
    );
    limit(
        "max_worker_processes",
        needed + i64::from(sync > 0),
        wished + 1,
        "The launcher and all workers come out of this number, and those of parallel queries too.",
    );
    limit(
        origins_name,
        origins + 1,
        origins + 1 + sync,
        "The subscription takes an origin, and each table that is copied another.",
    );
    if sync == 0 {
        found.push(
            Finding::error("max_sync_workers_per_subscription is 0")
                .because("No table would ever be copied.")
                .mend("alter system reset max_sync_workers_per_subscription; select pg_reload_conf();"),
        );
    }
    found
}

#[derive(Deserialize)]
struct Rights {
    is_superuser: bool,
    may_create: bool,
    may_subscribe: bool,
    is_read_only: bool,
}

/// Whether the target's user may create the subscription and write to the tables.
pub(super) async fn rights(target: &mut Node, plan: &Plan) -> Result<Vec<Finding>> {
    let member = |role: &str, kind: &str| {
        format!("coalesce((select pg_has_role(oid, '{kind}') from pg_roles where rolname = '{role}'), false)")
    };
    let rights: Rights = target
        .row(&format!(
            "select (select rolsuper from pg_roles where rolname = current_user) as is_superuser, \
                    has_database_privilege(current_database(), 'create') as may_create, \
                    {} or {} as may_subscribe, \
                    (select reset_val = 'on' from pg_settings where name = 'default_transaction_read_only') as is_read_only",
            member("rds_superuser", "member"),
            if target.major() >= Major::new(16) { member("pg_create_subscription", "member") } else { "false".to_owned() }
        ))
        .await?;
    let user = identifier(target.user());
    let mut found = Vec::new();
    if !rights.is_superuser && !rights.may_subscribe {
        let mend = match target.major() >= Major::new(16) {
            true => format!("grant pg_create_subscription to {user};"),
            false => "Before 16 only a superuser may, or on Amazon's servers a member of rds_superuser: name such a user in [target].".to_owned(),
        };
        found.push(
            Finding::error(format!("\"{}\" may not create subscriptions", target.user()))
                .because("replicate would fail.")
                .mend(mend),
        );
    }
    if !rights.may_create {
        found.push(
            Finding::error(format!("\"{}\" may not create anything in the database", target.user()))
                .because(
                    "A subscription takes CREATE on the database, and so does the schema of this program's own marker.",
                )
                .mend(format!("grant create on database {} to {user};", identifier(target.database()))),
        );
    }
    if rights.is_read_only {
        found.push(
            Finding::error("default_transaction_read_only is on")
                .because("The application could not write to the target.")
                .mend(format!("{} reset default_transaction_read_only;", target.alter_database())),
        );
    }
    if !rights.is_superuser {
        found.extend(foreign_tables(target).await?);
        let has_password =
            plan.replication.publisher_for_target.as_ref().is_some_and(|conninfo| conninfo.password().is_some());
        if plan.replication.publisher_for_target.is_some() && !has_password {
            found.push(
                Finding::error("the replication role has no password in the plan")
                    .because(format!(
                        "\"{}\" is no superuser, whose subscriptions have to log in with one.",
                        target.user()
                    ))
                    .mend("replication.password_env = \"REPLICATION_PASSWORD\""),
            );
        }
    }
    Ok(found.into_iter().map(|finding| finding.at(Place::Target)).collect())
}

/// Tables that the subscription's owner cannot write to in their owners' names: what apply does from 16 on.
async fn foreign_tables(target: &mut Node) -> Result<Option<Finding>> {
    let kind = if target.major() >= Major::new(16) { "set" } else { "member" };
    let owners: Vec<String> = target
        .value(&format!(
            "select coalesce(array_agg(distinct r.rolname), '{{}}') from pg_class c join pg_namespace n on n.oid = c.relnamespace \
             join pg_roles r on r.oid = c.relowner where c.relkind in ('r', 'p') and {USER_SCHEMAS} \
               and not pg_has_role(c.relowner, '{kind}') \
               and not exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e')"
        ))
        .await?;
    let user = identifier(target.user());
    Ok((!owners.is_empty()).then(|| {
        Finding::error(format!("\"{}\" cannot act for {} of tables", target.user(), counted(owners.len(), "owner", "owners")))
            .because("Replicated rows are written in the name of a table's owner, so the subscription's owner needs SET ROLE to it.")
            .mends(owners.iter().map(|owner| format!("grant {} to {user};", identifier(owner))))
            .about(owners)
    }))
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity;
    use super::*;

    #[test]
    fn workers_are_counted_against_what_a_subscription_takes() {
        let judged = |logical: &str, processes: &str, origins: &str, sync| {
            let settings = Settings::sample(&[
                ("max_logical_replication_workers", logical),
                ("max_worker_processes", processes),
                ("max_replication_slots", origins),
            ]);
            judged(&settings, "max_replication_slots", 0, 0, sync)
                .iter()
                .map(|found| found.severity)
                .collect::<Vec<_>>()
        };
        assert_eq!(judged("4", "8", "10", 2), []);
        assert_eq!(judged("1", "8", "10", 2), [Severity::Error]);
        assert_eq!(judged("2", "8", "10", 2), [Severity::Warning]);
        assert_eq!(judged("4", "3", "10", 2), [Severity::Warning]);
        assert_eq!(judged("4", "8", "0", 2), [Severity::Error]);
        assert_eq!(judged("4", "8", "10", 0), [Severity::Error]);
    }
}
