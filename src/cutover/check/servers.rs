//! The servers that answer, and whether they are what the plan takes them for.

use serde::Deserialize;

use super::finding::{Finding, Severity};
use crate::cutover::context::Cutover;
use crate::cutover::error::Result;
use crate::cutover::journal::Mark;
use crate::cutover::node::{Node, Place};
use crate::pg::quote::{identifier, literal};
use crate::pg::session::Access;
use crate::pg::version::Major;

/// Sessions with those that could be reached.
pub(super) struct Servers {
    pub(super) source: Option<Node>,
    pub(super) replica: Option<Node>,
    pub(super) target: Option<Node>,
    /// Whether the replica is still one; false also where it cannot be reached.
    pub(super) replica_is_standby: bool,
}

impl Servers {
    /// Ends the sessions in good order.
    pub(super) async fn close(self) {
        for node in [self.source, self.replica, self.target].into_iter().flatten() {
            node.close().await;
        }
    }
}

/// Connects to what can be reached; what cannot be is a finding.
pub(super) async fn connect(cutover: &Cutover, findings: &mut Vec<Finding>) -> Servers {
    let is_promoted = cutover.journal.has(Mark::Promoted);
    let plan = &cutover.plan;
    let mut replica = match plan.replica {
        Some(_) => reach(cutover, Place::Replica, Severity::Error, findings).await,
        None => {
            findings.push(
                Finding::error("the plan names no replica")
                    .because("Every step needs it.")
                    .mend("Write [replica] into the plan."),
            );
            None
        }
    };
    let source = match plan.source {
        Some(_) => {
            let severity = if is_promoted { Severity::Note } else { Severity::Warning };
            reach(cutover, Place::Source, severity, findings).await
        }
        None => {
            findings.push(Finding::note("the plan names no source").because(
                "Nothing can be compared with it, and promote cannot prove that the replica has its last write.",
            ));
            None
        }
    };
    let target = match plan.target {
        Some(_) => reach(cutover, Place::Target, Severity::Warning, findings).await,
        None => {
            findings.push(
                Finding::note("the plan names no target").because("What the second move needs there is not looked at."),
            );
            None
        }
    };
    let replica_is_standby = match &mut replica {
        Some(replica) => replica.is_in_recovery().await.unwrap_or(false),
        None => false,
    };
    Servers { source, replica, target, replica_is_standby }
}

async fn reach(cutover: &Cutover, place: Place, severity: Severity, findings: &mut Vec<Finding>) -> Option<Node> {
    match cutover.connect(place, Access::ReadOnly).await {
        Ok(node) => Some(node),
        Err(failed) => {
            let mut found = Finding::failure(severity, &failed);
            found.what = format!("could not be reached: {}", found.what.trim_start_matches(&format!("{place}: ")));
            found.why.get_or_insert_with(|| "What it would have said is missing from this check.".to_owned());
            findings.push(found.at(place));
            None
        }
    }
}

#[derive(Deserialize)]
struct Identity {
    system: String,
    in_recovery: bool,
    is_superuser: bool,
    database: String,
    version: i64,
}

async fn identity(node: &mut Node) -> Result<Identity> {
    node.row(
        "select (select system_identifier::text from pg_control_system()) as system, pg_is_in_recovery() as in_recovery, \
                (select rolsuper from pg_roles where rolname = current_user) as is_superuser, \
                current_database() as database, current_setting('server_version_num')::bigint as version",
    )
    .await
}

/// Whether the servers are what the plan takes them for.
pub(super) async fn look(cutover: &Cutover, servers: &mut Servers) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    let mut seen: [Option<Identity>; 3] = [None, None, None];
    for (node, seen) in [&mut servers.source, &mut servers.replica, &mut servers.target].into_iter().zip(&mut seen) {
        if let Some(node) = node {
            *seen = Some(identity(node).await?);
            let about =
                format!("PostgreSQL {}, database \"{}\", user \"{}\"", node.version(), node.database(), node.user());
            found.push(Finding::note(about).at(node.place()));
            if node.major() < Major::new(10) {
                found.push(
                    Finding::error(format!("PostgreSQL {} has no logical replication", node.major()))
                        .at(node.place())
                        .because("The second move needs publications and subscriptions, which came with 10."),
                );
            }
        }
    }
    let [source, replica, target] = seen;
    if let (Some(source), Some(replica)) = (&source, &replica) {
        if source.system != replica.system {
            found.push(
                Finding::error("it is no copy of the source")
                    .at(Place::Replica)
                    .because(format!(
                        "Its system identifier is {}, the source's {}: it does not replay the source's WAL.",
                        replica.system, source.system
                    ))
                    .mend("Correct [source] or [replica] in the plan."),
            );
        }
        if source.database != replica.database {
            found.push(
                Finding::error(format!("its database is \"{}\", the source's \"{}\"", replica.database, source.database))
                    .at(Place::Replica)
                    .because("A physical replica has the source's databases under their names, and the fence that comes along is lifted in this one.")
                    .mend("Name the same database in [source] and [replica]."),
            );
        }
        if source.version / 10_000 == replica.version / 10_000 && source.version > replica.version {
            found.push(
                Finding::warning("its minor version is older than the source's")
                    .at(Place::Replica)
                    .because("Replay of a newer server's WAL by an older one is not what anybody tests.")
                    .mend("Install the newest minor version and restart the replica."),
            );
        }
    }
    if source.as_ref().is_some_and(|source| source.in_recovery) {
        found.push(
            Finding::error("it is a standby")
                .at(Place::Source)
                .because("A standby cannot be made read-only, and its last write is its primary's.")
                .mend("Name the primary in [source]."),
        );
    }
    if let Some(replica) = &replica
        && !replica.is_superuser
    {
        found.push(
            Finding::error("the user is no superuser")
                .at(Place::Replica)
                .because("Promotion, ALTER SYSTEM and the publication need one.")
                .mend("Name a superuser in [replica]."),
        );
    }
    if let Some(target) = &target {
        found.extend(target_findings(target, source.as_ref(), replica.as_ref()));
    }
    if let Some(replica) = &mut servers.replica {
        found.extend(application(cutover, replica).await?);
    }
    Ok(found)
}

fn target_findings(target: &Identity, source: Option<&Identity>, replica: Option<&Identity>) -> Vec<Finding> {
    let mut found = Vec::new();
    if [source, replica].into_iter().flatten().any(|other| other.system == target.system) {
        found.push(
            Finding::error("it is the same cluster as the source or the replica, or a copy of it")
                .at(Place::Target)
                .because("The second move goes to another cluster: there is nothing to replicate between copies.")
                .mend("Correct [target] in the plan."),
        );
    }
    if target.in_recovery {
        found.push(
            Finding::error("it is a standby")
                .at(Place::Target)
                .because("It cannot be written to.")
                .mend("Name the writer, such as Aurora's cluster endpoint, in [target]."),
        );
    }
    found
}

/// The application's role on the replica: promotion ends with a row that it writes.
async fn application(cutover: &Cutover, replica: &mut Node) -> Result<Vec<Finding>> {
    let Some(application) = &cutover.plan.application else {
        return Ok(vec![
            Finding::warning("the plan has no [application]")
                .because("Nothing will prove that the application's role can write to the new primary.")
                .mend("Write [application] with the role's name into the plan."),
        ]);
    };
    let role = application.user();
    let exists: bool =
        replica.value(&format!("select exists (select from pg_roles where rolname = {})", literal(role))).await?;
    if !exists {
        return Ok(vec![
            Finding::error(format!("the application's role \"{role}\" does not exist"))
                .at(Place::Replica)
                .because("Promotion counts when it has written a row; a physical replica has the roles of its source.")
                .mend("Correct application.user in the plan."),
        ]);
    }
    match Node::connect(Place::Replica, application, Access::AsConfigured, cutover.rehearsal.clone()).await {
        Ok(session) => {
            session.close().await;
            Ok(Vec::new())
        }
        Err(failed) => {
            let mut found = Finding::failure(Severity::Error, &failed).mend(format!(
                "Mend pg_hba.conf of the replica, or the password: alter role {} password …",
                identifier(role)
            ));
            found.what = format!("the application's role \"{role}\" cannot log in: {}", found.what);
            found.why = Some("Promotion counts when it has written a row there.".to_owned());
            Ok(vec![found.at(Place::Replica)])
        }
    }
}
