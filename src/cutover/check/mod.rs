//! Everything that can be known before a move, on whatever can be reached: read-only, as often as wanted.
//!
//! Each file looks at one subject with a few questions for the whole catalogue, so that a thousand tables take seconds. What
//! could not be looked at is a finding like any other, and the rest goes on.

mod archiving;
mod collations;
mod connection;
mod extensions;
mod fencing;
mod finding;
mod identity;
mod planned;
mod progress;
mod reverse;
mod roles;
mod room;
mod schema;
mod sequences;
mod servers;
mod settings;
mod shapes;
mod versions;
mod workers;

use std::time::Duration;

use serde::Serialize;

pub use finding::{Finding, Severity};

use super::context::Cutover;
use super::error::Result;
use super::journal::Mark;
use super::node::Node;
use super::promote::ArchiveEnd;
use super::replicate::schema_copy;
use super::tables::{Table, tables};
use finding::Findings;
use servers::Servers;
use settings::Settings;

/// How long one question may take: one that waits for a lock must not hold up all others.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Longer than any check takes; only the user's wish to end comes before its end.
const NO_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// How many findings are errors.
    pub errors: usize,
    /// How many are warnings.
    pub warnings: usize,
    /// How many are notes.
    pub notes: usize,
    /// All of them, the gravest first.
    pub findings: Vec<Finding>,
}

impl CheckReport {
    fn new(findings: Vec<Finding>) -> Self {
        let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
        Self {
            errors: count(Severity::Error),
            warnings: count(Severity::Warning),
            notes: count(Severity::Note),
            findings,
        }
    }

    /// Whether nothing stands in the way.
    pub fn is_ready(&self) -> bool {
        self.errors == 0
    }
}

/// Looks at everything; changes nothing. `archive` is the one that feeds the replica, where the environment names it.
///
/// # Errors
///
/// When the user asks for the end. Whatever else fails is a finding.
pub async fn check(cutover: &Cutover, archive: Option<ArchiveEnd<'_>>) -> Result<CheckReport> {
    tokio::select! {
        report = look(cutover, archive) => Ok(report),
        Err(stopped) = cutover.pause(NO_LIMIT) => Err(stopped),
    }
}

async fn look(cutover: &Cutover, archive: Option<ArchiveEnd<'_>>) -> CheckReport {
    let mut findings = Findings::new(cutover.plan.target.is_none());
    findings.take("plan", Ok(planned::look(&cutover.plan)));
    let mut unreachable = Vec::new();
    let mut servers = servers::connect(cutover, &mut unreachable).await;
    findings.take("servers", Ok(unreachable));
    for node in [&mut servers.source, &mut servers.replica, &mut servers.target].into_iter().flatten() {
        // a session that is gone shows at the first question
        let _ = node.limit(ANSWER_TIMEOUT).await;
    }
    findings.take("servers", servers::look(cutover, &mut servers).await);
    let standing = first_move(cutover, &mut servers, archive.as_ref(), &mut findings).await;
    second_move(cutover, &mut servers, &mut findings).await;
    if let (Some(replica), Some(standing)) = (&mut servers.replica, standing) {
        findings.take("progress", progress::look_again(replica, standing).await);
    }
    servers.close().await;
    CheckReport::new(findings.sorted())
}

/// What stands between the source and the promoted replica.
async fn first_move(
    cutover: &Cutover,
    servers: &mut Servers,
    archive: Option<&ArchiveEnd<'_>>,
    findings: &mut Findings,
) -> Option<progress::Standing> {
    let is_promoted = cutover.journal.has(Mark::Promoted);
    let mut standing = None;
    let Servers { source, replica, target, .. } = servers;
    if is_promoted {
        // the source is left behind: nothing of it matters any more
        *source = None;
    }
    if let Some(replica) = replica {
        let progress = progress::look(cutover, replica, source.as_mut(), archive).await.map(|(found, at)| {
            standing = at;
            found
        });
        findings.take("progress", progress);
        let sync_workers = match target {
            Some(target) => {
                Settings::of(target).await.ok().and_then(|it| it.number("max_sync_workers_per_subscription"))
            }
            None => None,
        };
        let is_fenced = cutover.journal.has(Mark::SourceFence);
        findings.take("settings", settings::primary(replica, source.as_mut(), is_fenced).await);
        findings.take_for_second_move("settings", settings::publisher(replica, sync_workers).await);
        let address = archive.map(|archive| archive.store.url(archive.layout.prefix()));
        findings.take("archiving", archiving::replica(replica, address.as_deref()).await);
        findings.take("extensions", extensions::replica(replica).await);
        if !is_promoted {
            findings.take("collations", collations::look(replica, source.as_mut()).await);
        }
    }
    if let Some(source) = source {
        findings.take("archiving", archiving::source(source).await);
        findings.take("fence", fencing::look(cutover, source).await);
    }
    standing
}

/// What stands between the promoted replica and the target. Until the replica can be reached, the source's catalogue says
/// what there is to be carried over.
async fn second_move(cutover: &Cutover, servers: &mut Servers, findings: &mut Findings) {
    let plan = &cutover.plan;
    let is_standby = servers.replica_is_standby;
    let Servers { source, replica, target, .. } = servers;
    let tables = match replica.as_mut().or(source.as_mut()) {
        Some(publisher) => {
            let found = tables(publisher, plan.replication.tables.as_deref()).await;
            let tables = found.as_ref().map(Vec::clone).unwrap_or_default();
            // a table that the plan names and that is not there is the plan's error, not a failure to look
            let missing = found.err().map(|failed| Finding::failure(Severity::Error, &failed));
            findings.take_for_second_move("tables", Ok(missing.into_iter().collect()));
            tables
        }
        None => Vec::new(),
    };
    if let Some(replica) = replica.as_mut() {
        let counting = source.as_mut();
        findings.take_for_second_move(
            "identity",
            identity::look(replica, counting, &tables, plan.replication.missing_identity).await,
        );
        if !is_standby {
            findings.take("transactions", fencing::prepared(replica).await.map(Vec::from_iter));
        }
        findings.take_for_second_move("room", room::look(replica, plan).await);
        if let Some(conninfo) = &plan.replication.publisher_for_target {
            let found = connection::publisher(replica, conninfo, &plan.replication.role).await;
            findings.take_for_second_move("connection", found);
        }
        if plan.reverse.is_some() {
            findings.take_for_second_move("reverse", reverse::replica(replica).await);
        }
    } else if let Some(source) = source.as_mut() {
        findings.take_for_second_move(
            "identity",
            identity::look(source, None, &tables, plan.replication.missing_identity).await,
        );
    }
    if let Some(publisher) = replica.as_mut().or(source.as_mut()) {
        publisher_and_target(cutover, publisher, target.as_mut(), &tables, findings).await;
    }
    if let Some(target) = target {
        of_target(cutover, target, &tables, findings).await;
    }
}

async fn publisher_and_target(
    cutover: &Cutover,
    publisher: &mut Node,
    mut target: Option<&mut Node>,
    tables: &[Table],
    findings: &mut Findings,
) {
    let Cutover { plan, journal, .. } = cutover;
    let selection = plan.replication.tables.as_deref();
    match shapes::look(publisher, selection).await {
        Ok((both, second)) => {
            findings.take("tables", Ok(both));
            findings.take_for_second_move("tables", Ok(second));
        }
        Err(failed) => findings.take("tables", Err(failed)),
    }
    let names = connection::names(Some(&mut *publisher), target.as_deref_mut(), plan, journal).await;
    findings.take_for_second_move("names", names);
    // after an abort only the target itself knows
    let has_tables = match target.as_deref_mut() {
        Some(target) if !journal.has(Mark::SchemaTables) => {
            schema_copy::has_tables(target, tables).await.unwrap_or(false)
        }
        _ => journal.has(Mark::SchemaTables),
    };
    let progress =
        schema::Progress { is_copied: plan.schema.copy && !has_tables, is_subscribed: journal.has(Mark::Subscription) };
    let compared = target.as_deref_mut().filter(|_| !progress.is_copied);
    findings.take_for_second_move("sequences", sequences::look(publisher, compared).await);
    let Some(target) = target else { return };
    findings.take_for_second_move("versions", versions::look(publisher, target).await);
    findings.take_for_second_move("extensions", extensions::target(publisher, target, progress.is_copied).await);
    findings.take_for_second_move("schema", schema::look(target, tables, progress).await);
    findings.take_for_second_move("roles", roles::look(publisher, target, plan).await);
}

async fn of_target(cutover: &Cutover, target: &mut Node, tables: &[Table], findings: &mut Findings) {
    let Cutover { plan, journal, .. } = cutover;
    findings.take_for_second_move("tables", shapes::target(target).await);
    findings.take_for_second_move("subscription", workers::rights(target, plan).await);
    if !journal.has(Mark::Subscription) {
        let found = match Settings::of(target).await {
            Ok(settings) => workers::look(target, tables, &settings).await,
            Err(failed) => Err(failed),
        };
        findings.take_for_second_move("workers", found);
        if let Some(conninfo) = &plan.replication.publisher_for_target {
            findings.take_for_second_move("connection", connection::target(target, conninfo).await);
        }
    }
    if let Some(reverse) = &plan.reverse {
        findings.take_for_second_move("reverse", reverse::target(target, reverse).await);
    }
}
