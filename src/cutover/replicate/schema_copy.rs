//! Puts the publisher's schema on the subscriber, with a record there of what is done: it is written in the transaction that
//! does it, so that no death in between leads to anything twice. It stays until the cutover is over, so that it also tells
//! whether a database is still the one that the schema was copied to.

use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::cutover::context::Cutover;
use crate::cutover::error::{CutoverError, Result};
use crate::cutover::node::Node;
use crate::cutover::replicate::schema_dump::{Part, SchemaDump, SchemaEntry, SchemaScript, dump_arguments};
use crate::cutover::tables::{OWN_SCHEMA, Table};
use crate::pg::conninfo::Conninfo;
use crate::pg::quote::literal;

/// How long one object may take: an index over terabytes takes hours.
const OBJECT_TIMEOUT: Duration = Duration::from_secs(7 * 86_400);

/// How often an object is tried that lost a deadlock against the apply worker or did not get its lock.
const TRIES: u32 = 10;

/// How long to wait before the next try.
const TRY_PAUSE: Duration = Duration::from_secs(2);

/// How often a log gets a line.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// What the record calls the whole first part.
const TABLES: &str = "tables";

/// The record for SQL.
pub fn record_table() -> String {
    format!("{OWN_SCHEMA}.schema_copy")
}

/// Copies a part of the schema, or what is not there yet of it.
///
/// The first part is one transaction: nothing is left half-made. Of the rest each object is one: an index that took hours
/// stays, and no lock is kept from the rows that arrive meanwhile for longer than one object takes.
///
/// # Errors
///
/// When pg_dump or pg_restore fails, or the subscriber refuses an object, which is then named.
pub async fn copy(
    cutover: &Cutover,
    publisher: &mut Node,
    connection: &Conninfo,
    subscriber: &mut Node,
    tables: &[Table],
    part: Part,
) -> Result<()> {
    if part == Part::Tables && has_tables(subscriber, tables).await? {
        return Ok(());
    }
    let schema = &cutover.plan.schema;
    let shown = format!("{} {}", schema.pg_dump, dump_arguments(connection).join(" "));
    if !cutover.rehearsal.permits("command", shown) {
        let what = match part {
            Part::Tables => "everything but secondary indexes, foreign keys and triggers, in one transaction",
            Part::Rest => "secondary indexes, foreign keys and triggers, each in a transaction of its own",
        };
        let _ = cutover
            .rehearsal
            .permits(subscriber.place(), format_args!("what {} makes of it: {what}", schema.pg_restore));
        return Ok(());
    }
    if part == Part::Tables {
        // it may be of tables that were dropped since
        forget(subscriber).await?;
    }
    let done = done(subscriber).await?;
    let dump = SchemaDump::take(cutover, publisher, connection).await?;
    let script = dump.script(cutover, part).await?;
    subscriber.limit(OBJECT_TIMEOUT).await?;
    subscriber.change_secretly(&script.settings, "the settings of the schema's script").await?;
    match part {
        Part::Tables => copy_tables(subscriber, &script).await,
        Part::Rest => copy_rest(cutover, subscriber, &script, &done).await,
    }
}

/// Whether the first part is there: the record says so, and of `tables` not all were dropped since.
///
/// # Errors
///
/// When the server refuses or is gone.
pub async fn has_tables(node: &mut Node, tables: &[Table]) -> Result<bool> {
    if !has_record(node).await? {
        return Ok(false);
    }
    let names: Vec<_> = tables.iter().map(|table| literal(&table.quoted())).collect();
    node.value(&format!(
        "select exists (select from {} where entry = {}) \
         and exists (select from unnest(array[{}]::text[]) name where to_regclass(name) is not null)",
        record_table(),
        literal(TABLES),
        names.join(",")
    ))
    .await
}

async fn forget(node: &mut Node) -> Result<()> {
    if !has_record(node).await? {
        return Ok(());
    }
    node.change(&format!("drop table if exists {}", record_table())).await
}

#[derive(Debug, Deserialize)]
struct Done {
    entry: String,
}

async fn has_record(node: &mut Node) -> Result<bool> {
    node.value(&format!("select to_regclass({}) is not null", literal(&record_table()))).await
}

async fn done(node: &mut Node) -> Result<Vec<String>> {
    if !has_record(node).await? {
        node.change(&format!(
            "create schema if not exists {OWN_SCHEMA}; create table if not exists {} (entry text primary key)",
            record_table()
        ))
        .await?;
        return Ok(Vec::new());
    }
    let done: Vec<Done> = node.rows(&format!("select entry from {}", record_table())).await?;
    Ok(done.into_iter().map(|row| row.entry).collect())
}

async fn copy_tables(node: &mut Node, script: &SchemaScript) -> Result<()> {
    node.change("begin").await?;
    for entry in &script.entries {
        if let Err(failed) = node.change_secretly(&entry.sql, &entry.label).await {
            // the end of the session would do it too
            let _ = node.change("rollback").await;
            return Err(refused(node, entry, failed, "Nothing of the schema was copied."));
        }
    }
    node.change(&format!("insert into {} values ({})", record_table(), literal(TABLES))).await?;
    node.change("commit").await
}

async fn copy_rest(cutover: &Cutover, node: &mut Node, script: &SchemaScript, done: &[String]) -> Result<()> {
    let mut told = Instant::now();
    for (at, entry) in script.entries.iter().enumerate().filter(|(_, entry)| !done.contains(&entry.label)) {
        if cutover.is_interrupted() {
            return Err(CutoverError::interrupted());
        }
        if told.elapsed() >= PROGRESS_INTERVAL {
            told = Instant::now();
            tracing::info!(
                "{} of {} indexes, foreign keys and the like are made: {} is next",
                at,
                script.entries.len(),
                entry.label
            );
        }
        let statements = format!("{}\ninsert into {} values ({});", entry.sql, record_table(), literal(&entry.label));
        let mut tries = 1;
        while let Err(failed) = node.change_secretly(&statements, &entry.label).await {
            // a deadlock, or a lock that could not be had
            if !matches!(failed.sqlstate(), Some("40P01" | "55P03")) || tries == TRIES {
                return Err(refused(node, entry, failed, "What was made before it stays; rows go on arriving."));
            }
            tries += 1;
            tracing::warn!("{} is tried again: {failed}", entry.label);
            cutover.pause(TRY_PAUSE).await?;
        }
    }
    Ok(())
}

fn refused(node: &Node, entry: &SchemaEntry, failed: CutoverError, left: &str) -> CutoverError {
    let place = node.place();
    let failed = failed.during(format_args!("could not make {} on the {place}", entry.label)).with_detail(left);
    failed.with_hint(if entry.label.starts_with("EXTENSION") {
        format!("Install the extension on the {place}'s server, or drop it on the publisher if nothing needs it; then run this again.")
    } else {
        format!("Mend that on the {place} or the publisher and run this again; or copy the schema by hand and set schema.copy = false.")
    })
}
