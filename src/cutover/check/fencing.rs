//! What would keep the source from being fenced, or keep its users waiting.

use serde::Deserialize;

use super::finding::{Finding, Severity, counted};
use crate::cutover::context::Cutover;
use crate::cutover::error::Result;
use crate::cutover::fence;
use crate::cutover::node::{Node, Place};
use crate::cutover::quantity::time_text;

#[derive(Deserialize)]
struct Session {
    user: Option<String>,
    pid: i32,
    /// Since when its transaction runs, in seconds; none when it has none.
    transaction_age: Option<f64>,
    may_be_ended: bool,
}

#[derive(Deserialize)]
struct Prepared {
    gid: String,
    owner: String,
}

/// Whether the source's database can be made read-only, and nothing will hold that up.
pub(super) async fn look(cutover: &Cutover, source: &mut Node) -> Result<Vec<Finding>> {
    if !cutover.plan.promote.fence {
        let mut found = vec![
            Finding::warning("promote.fence is false: nothing will prove that the replica has the last write")
                .at(Place::Source)
                .because("The archive's end has to do, and your word that nobody writes.")
                .mend("promote.fence = true"),
        ];
        found.extend(prepared(source).await?);
        return Ok(found);
    }
    let mut found = Vec::new();
    if let Err(obstacle) = fence::look_for_obstacles(source).await {
        found.push(Finding::failure(Severity::Error, &obstacle).at(Place::Source));
    }
    // what this user may not see of others' sessions is null, but for the role, which only autovacuum and the like do not
    // have; superusers watch managed servers and are no obstacle
    let sessions: Vec<Session> = source
        .rows(
            "select a.usename::text as user, a.pid, \
                    extract(epoch from clock_timestamp() - a.xact_start)::float8 as transaction_age, \
                    coalesce((select rolsuper from pg_roles where rolname = current_user) \
                        or pg_has_role(a.usesysid, 'member'), false) as may_be_ended \
             from pg_stat_activity a left join pg_roles r on r.oid = a.usesysid \
             where a.datname = current_database() and a.pid <> pg_backend_pid() and not coalesce(r.rolsuper, false) \
               and a.usesysid is not null and coalesce(a.backend_type, 'client backend') = 'client backend'",
        )
        .await?;
    let named = |session: &Session| format!("pid {} of {}", session.pid, session.user.as_deref().unwrap_or("someone"));
    let foreign: Vec<_> = sessions.iter().filter(|session| !session.may_be_ended).map(named).collect();
    if !foreign.is_empty() {
        found.push(
            Finding::warning(format!(
                "{} cannot be ended by \"{}\"",
                counted(foreign.len(), "session", "sessions"),
                source.user()
            ))
            .at(Place::Source)
            .because("The fence binds new sessions only, so those from before are ended; promote waits for these until its budget is over.")
            .about(foreign)
            .mend("Connect as a role that is a member of theirs, or end them yourself when the move begins."),
        );
    }
    let budget = cutover.plan.promote.budget;
    let is_old = |session: &&Session| session.transaction_age.is_some_and(|age| age > budget.as_secs_f64());
    let old: Vec<_> = sessions.iter().filter(is_old).map(named).collect();
    if !old.is_empty() {
        found.push(
            Finding::warning(format!(
                "{} run for longer than {}",
                counted(old.len(), "transaction", "transactions"),
                time_text(budget)
            ))
            .at(Place::Source)
            .because("The fence ends them, and what they did is rolled back.")
            .about(old),
        );
    }
    Ok(found)
}

/// Prepared transactions of a database: they can commit behind every fence, and a promoted replica has them too.
pub(super) async fn prepared(node: &mut Node) -> Result<Option<Finding>> {
    let prepared: Vec<Prepared> = node
        .rows(
            "select gid, owner::text as owner from pg_prepared_xacts where database = current_database() order by gid",
        )
        .await?;
    if prepared.is_empty() {
        return Ok(None);
    }
    Ok(Some(
        Finding::warning(format!(
            "it has {}",
            counted(prepared.len(), "prepared transaction", "prepared transactions")
        ))
        .at(node.place())
        .because("Each holds its locks, and can still commit after the last write was taken for that.")
        .about(prepared.iter().map(|each| format!("\"{}\" of {}", each.gid, each.owner)))
        .mend("Commit or roll back each with COMMIT PREPARED or ROLLBACK PREPARED."),
    ))
}
