//! Tables whose rows logical replication cannot tell apart: once they are published, UPDATE and DELETE fail on the publisher.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cutover::context::Cutover;
use crate::cutover::error::{CutoverError, Result};
use crate::cutover::journal::Mark;
use crate::cutover::node::{Node, Place};
use crate::cutover::plan::MissingIdentity;
use crate::cutover::tables::Table;
use crate::pg::quote::literal;

/// How long a statement may keep others from a table while it waits for it itself.
const LOCK_TIMEOUT: &str = "2s";

/// How often it is tried.
const TRIES: u32 = 10;

/// How long the others have the table in between.
const TRY_PAUSE: Duration = Duration::from_secs(3);

/// `lock_not_available` of "PostgreSQL Error Codes".
const LOCK_NOT_AVAILABLE: &str = "55P03";

/// How many statements a refusal repeats.
const SHOWN: usize = 20;

/// A table that got REPLICA IDENTITY FULL, as the journal remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedIdentity {
    /// The table for SQL.
    pub table: String,
    /// What was there, as ALTER TABLE … REPLICA IDENTITY takes it.
    pub before: String,
}

/// Does what the plan says about tables of the publisher without identity.
///
/// # Errors
///
/// When there are such tables and the plan refuses them; when the server refuses or is gone.
pub async fn prepare(cutover: &mut Cutover, publisher: &mut Node, tables: &[Table]) -> Result<()> {
    let missing: Vec<&Table> = tables.iter().filter(|table| !table.has_identity && table.is_logged).collect();
    if missing.is_empty() {
        return Ok(());
    }
    match cutover.plan.replication.missing_identity {
        MissingIdentity::Refuse => Err(refusal(publisher, &missing)),
        MissingIdentity::InsertOnly => {
            let labels: Vec<_> = missing.iter().map(|table| table.label()).collect();
            tracing::warn!(
                "tables without replica identity are published all the same, UPDATE and DELETE will fail on them: {}",
                labels.join(", ")
            );
            Ok(())
        }
        MissingIdentity::Full => make_full(cutover, publisher, &missing).await,
    }
}

/// Gives tables of the publisher REPLICA IDENTITY FULL until [`put_back`].
///
/// # Errors
///
/// When the server refuses or is gone.
pub async fn make_full(cutover: &mut Cutover, publisher: &mut Node, missing: &[&Table]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let mark = mark(publisher.place());
    let mut changed: Vec<ChangedIdentity> = cutover.journal.data(mark).unwrap_or_default();
    for table in missing {
        let quoted = table.quoted();
        let nothing: bool = publisher
            .value(&format!("select relreplident = 'n' from pg_class where oid = {}::regclass", literal(&quoted)))
            .await?;
        let before = if nothing { "nothing" } else { "default" }.to_owned();
        if !changed.iter().any(|known| known.table == quoted) {
            changed.push(ChangedIdentity { table: quoted, before });
        }
    }
    let what = format!("{} tables of the {} get REPLICA IDENTITY FULL", missing.len(), publisher.place());
    cutover.journal.record(mark, what, &changed)?;
    for table in missing {
        alter(cutover, publisher, &format!("alter table {} replica identity full", table.quoted())).await?;
    }
    Ok(())
}

/// Whoever wants the table waits behind a statement that waits for it: so it waits for short, and several times.
async fn alter(cutover: &Cutover, publisher: &mut Node, statement: &str) -> Result<()> {
    let mut tries = 1;
    while let Err(failed) = publisher.change(&format!("set local lock_timeout = '{LOCK_TIMEOUT}'; {statement}")).await {
        if failed.sqlstate() != Some(LOCK_NOT_AVAILABLE) {
            return Err(failed);
        }
        if tries == TRIES {
            return Err(
                failed.with_hint("A transaction keeps the table locked: look in pg_stat_activity, and run this again.")
            );
        }
        tries += 1;
        cutover.pause(TRY_PAUSE).await?;
    }
    Ok(())
}

/// Writes down that the replica's schema takes what was made of its tables along to the target.
///
/// # Errors
///
/// When the journal cannot be written.
pub fn goes_along(cutover: &mut Cutover) -> Result<()> {
    let Some(changed) = cutover.journal.data::<Vec<ChangedIdentity>>(Mark::ReplicaIdentity) else { return Ok(()) };
    let what = format!("{} tables come to the target with REPLICA IDENTITY FULL", changed.len());
    cutover.journal.record(Mark::TargetIdentity, what, changed)
}

/// Gives every table of a server that this cutover changed the identity back that it had.
///
/// # Errors
///
/// When the server refuses or is gone.
pub async fn put_back(cutover: &mut Cutover, node: &mut Node) -> Result<()> {
    let mark = mark(node.place());
    let Some(changed) = cutover.journal.data::<Vec<ChangedIdentity>>(mark) else { return Ok(()) };
    for ChangedIdentity { table, before } in &changed {
        alter(cutover, node, &format!("alter table if exists {table} replica identity {before}")).await?;
    }
    let what = format!("{} tables of the {} have their replica identity back", changed.len(), node.place());
    cutover.journal.undo(mark, what)
}

fn mark(place: Place) -> Mark {
    match place {
        Place::Target => Mark::TargetIdentity,
        Place::Source | Place::Replica => Mark::ReplicaIdentity,
    }
}

fn refusal(publisher: &Node, missing: &[&Table]) -> CutoverError {
    let mut statements: Vec<_> = missing
        .iter()
        .take(SHOWN)
        .map(|table| format!("alter table {} replica identity full", table.quoted()))
        .collect();
    if missing.len() > SHOWN {
        statements.push(format!("and so on for {} more", missing.len() - SHOWN));
    }
    CutoverError::refused(format!(
        "{} tables of the {} have no primary key and no other replica identity",
        missing.len(),
        publisher.place()
    ))
    .with_detail("Once they are published, every UPDATE and DELETE on them fails. Nothing was changed.")
    .with_hint(format!(
        "Give them a primary key, or run: {}. Or let this do it for as long as it takes with replication.missing_identity = \"full\"; \
         \"insert-only\" goes on without.",
        statements.join("; ")
    ))
}
