//! Sets logical replication up from the promoted replica to the target, and sees the initial copy through.
//!
//! Each piece is looked for in the catalogue before it is made, and journalled before that: a run after any death finds what
//! the last one left. No failure keeps anybody from writing to the publisher, and none leaves a slot there that nobody uses.

pub(super) mod copy_wait;
mod preconditions;
pub mod schema_copy;
mod schema_dump;

use std::collections::HashSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::cutover::context::Cutover;
use crate::cutover::error::{CutoverError, Result};
use crate::cutover::journal::{Journal, Mark};
use crate::cutover::marker;
use crate::cutover::node::{Node, Place};
use crate::cutover::quantity::time_text;
use crate::cutover::replication::identity;
use crate::cutover::replication::link::{Direction, Link};
use crate::cutover::replication::publication;
use crate::cutover::replication::role;
use crate::cutover::replication::slot;
use crate::cutover::replication::subscription;
use crate::cutover::replication::subscription::{CopyState, TableState};
use crate::cutover::tables::{OWN_SCHEMA, Table, tables};
use crate::pg::conninfo::Conninfo;
use crate::pg::session::Access;
use schema_dump::Part;

/// How to replicate.
#[derive(Debug, Clone, Copy)]
pub struct ReplicateOptions {
    /// Whether to wait until all tables are copied; else the next run goes on from there.
    pub wait: bool,
}

/// How far it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicateReport {
    /// How many tables are replicated.
    pub tables: usize,
    /// How many of them follow the publisher.
    pub ready: usize,
    /// Whether everything is set up.
    pub done: bool,
    /// From the subscription's making until everything was set up.
    pub milliseconds: u64,
}

/// Goes the whole way, or goes on with it; once done it only takes in tables that were made since.
///
/// # Errors
///
/// What is to be mended; the next run goes on from there.
pub async fn replicate(cutover: &mut Cutover, options: &ReplicateOptions) -> Result<ReplicateReport> {
    if cutover.journal.has(Mark::Forked) {
        return Err(CutoverError::refused(
            "the replica's promotion was given up: it may lack what the source wrote since",
        )
        .with_hint("Restore it anew with backup-fetch, and run cutover promote."));
    }
    let done: Option<ReplicateReport> = cutover.journal.data(Mark::ReplicateDone);
    if let Some(done) = done.clone().filter(|_| is_moving(&cutover.journal)) {
        tracing::info!("replication was set up by this cutover already");
        return Ok(done);
    }
    let link = Link::new(&cutover.plan, Direction::Forward);
    let connection = link.connection(&cutover.plan)?.clone();
    let mut publisher = cutover.connect(link.publisher, Access::ReadWrite).await?;
    preconditions::check_publisher(&mut publisher, &link).await?;
    let mut subscriber = cutover.connect(link.subscriber, Access::ReadWrite).await?;
    preconditions::check_subscriber(&mut subscriber, &link).await?;
    let tables = published_tables(cutover, &mut publisher).await?;

    if subscription::find(&mut subscriber, &link).await?.is_none() {
        if cutover.journal.has(Mark::Copied) {
            return Err(copy_wait::gone(&link));
        }
        // its subscription may only be switched off for a while
        if !cutover.journal.has(Mark::Slot) && slot::find(&mut publisher, &link).await?.is_some() {
            return Err(foreign(link.publisher, "slot", &link.slot));
        }
        prepare(cutover, &link, &connection, &mut publisher, &mut subscriber, &tables).await?;
        subscribe(cutover, &link, &connection, &mut publisher, &mut subscriber).await?;
    } else {
        // the journal knows before anything is made
        if !cutover.journal.has(Mark::Subscription) {
            return Err(foreign(link.subscriber, "subscription", &link.subscription));
        }
        copy_wait::check_slot(&mut publisher, &link).await?;
        let late = not_followed(&link, &mut subscriber, &tables).await?;
        if let Some(done) = done.filter(|_| late.is_empty()) {
            tracing::info!("replication was set up by this cutover already");
            return Ok(done);
        }
        subscription::create(&mut subscriber, &link, &connection, true).await?;
        if !late.is_empty() {
            take_in(cutover, &link, &connection, &mut publisher, &mut subscriber, &late, &tables).await?;
        }
    }
    remember_copy_slots(cutover, &link, &mut subscriber).await?;
    publisher.close().await;
    subscriber.close().await;
    finish_copy(cutover, options, &link, &tables).await
}

/// Whether the application is being moved to the target, or was.
fn is_moving(journal: &Journal) -> bool {
    let marks = [Mark::FinishMaintenance, Mark::PublisherFence, Mark::Parting, Mark::FinishDone];
    marks.iter().any(|mark| journal.has(*mark)) || journal.data(Mark::FinishBegun) == Some(Direction::Back)
}

/// Tables that the subscription does not know: they were made after it, or named in the plan.
async fn not_followed(link: &Link, subscriber: &mut Node, tables: &[Table]) -> Result<Vec<Table>> {
    let states = subscription::table_states(subscriber, link).await?;
    let known: HashSet<String> = states.iter().map(TableState::label).collect();
    Ok(tables.iter().filter(|table| !known.contains(&table.label())).cloned().collect())
}

/// Lets the subscription copy and follow tables that it does not know yet.
async fn take_in(
    cutover: &mut Cutover,
    link: &Link,
    connection: &Conninfo,
    publisher: &mut Node,
    subscriber: &mut Node,
    late: &[Table],
    tables: &[Table],
) -> Result<()> {
    identity::prepare(cutover, publisher, late).await?;
    preconditions::check_tables(subscriber, late).await?;
    preconditions::check_empty(subscriber, late).await?;
    publish(cutover, link, connection, publisher, tables).await?;
    for mark in [Mark::Copied, Mark::ReplicateDone] {
        if cutover.journal.has(mark) {
            cutover.journal.undo(mark, format!("{} more tables are to be copied", late.len()))?;
        }
    }
    subscription::refresh(subscriber, link).await
}

fn foreign(place: Place, kind: &str, name: &str) -> CutoverError {
    CutoverError::refused(format!("the {place} has a {kind} \"{name}\" that is not this cutover's"))
        .with_detail("The journal does not say that it was made here. It was left as it is.")
        .with_hint(format!("Drop it if nobody needs it, or give replication.{kind} another name in the plan; or give the journal with --journal."))
}

/// The tables that are published.
async fn published_tables(cutover: &mut Cutover, publisher: &mut Node) -> Result<Vec<Table>> {
    let mut found = tables(publisher, cutover.plan.replication.tables.as_deref()).await?;
    let unlogged: Vec<_> = found.iter().filter(|table| !table.is_logged).map(Table::label).collect();
    if !unlogged.is_empty() {
        tracing::warn!("unlogged tables are not replicated: {}", unlogged.join(", "));
    }
    found.retain(|table| table.is_logged);
    Ok(found)
}

/// Everything that the subscription needs, in the order in which the least is left behind by a failure.
async fn prepare(
    cutover: &mut Cutover,
    link: &Link,
    connection: &Conninfo,
    publisher: &mut Node,
    subscriber: &mut Node,
    tables: &[Table],
) -> Result<()> {
    identity::prepare(cutover, publisher, tables).await?;
    marker::create(publisher, cutover.plan.application.as_ref().map(Conninfo::user)).await?;
    marker::create(subscriber, None).await?;
    marker::clear(subscriber).await?;
    let copies_schema = cutover.plan.schema.copy;
    if copies_schema && !cutover.journal.has(Mark::SchemaTables) {
        identity::goes_along(cutover)?;
        copy_schema(cutover, publisher, tables, Part::Tables).await?;
        cutover.journal.record(Mark::SchemaTables, "the tables are on the target, with their primary keys", ())?;
    }
    // in a dry run nothing of the schema is there yet
    if !(cutover.rehearsal.is_dry() && copies_schema) {
        preconditions::check_tables(subscriber, tables).await?;
        preconditions::check_empty(subscriber, tables).await?;
    }
    let (role, password) = (connection.user(), connection.password());
    match (role::exists(publisher, role).await?, cutover.journal.has(Mark::ReplicationRole)) {
        (false, was_begun) => {
            if !was_begun {
                cutover.journal.record(Mark::ReplicationRole, format!("making the role \"{role}\""), role)?;
            }
            role::create(publisher, role, password).await?;
        }
        (true, true) => role::set_password(publisher, role, password).await?,
        // it was there before: its password is its owner's business
        (true, false) => {}
    }
    if !publication::exists(publisher, link).await? && !cutover.journal.has(Mark::Publication) {
        let what = format!("making the publication \"{}\"", link.publication);
        cutover.journal.record(Mark::Publication, what, &link.publication)?;
    }
    publish(cutover, link, connection, publisher, tables).await
}

/// Offers the tables, and lets the replication role read them.
async fn publish(
    cutover: &Cutover,
    link: &Link,
    connection: &Conninfo,
    publisher: &mut Node,
    tables: &[Table],
) -> Result<()> {
    role::grant(publisher, connection.user(), tables).await?;
    let listed = cutover.plan.replication.tables.as_ref().map(|_| tables);
    publication::create(publisher, link, listed).await
}

/// Makes slot and subscription; without the one the other is taken back.
async fn subscribe(
    cutover: &mut Cutover,
    link: &Link,
    connection: &Conninfo,
    publisher: &mut Node,
    subscriber: &mut Node,
) -> Result<()> {
    if !cutover.journal.has(Mark::Slot) {
        cutover.journal.record(Mark::Slot, format!("making the slot \"{}\"", link.slot), &link.slot)?;
    }
    slot::create(publisher, link).await?;
    if !cutover.journal.has(Mark::Subscription) {
        let what = format!("making the subscription \"{}\": the copy begins", link.subscription);
        cutover.journal.record(Mark::Subscription, what, &link.subscription)?;
    }
    let Err(failed) = subscription::create(subscriber, link, connection, true).await else { return Ok(()) };
    Err(take_slot_back(cutover, link, publisher, failed).await)
}

/// Writes down what the copies' slots are named like: without the target nobody could tell whose they are.
async fn remember_copy_slots(cutover: &mut Cutover, link: &Link, subscriber: &mut Node) -> Result<()> {
    if cutover.rehearsal.is_dry() {
        return Ok(());
    }
    let Some(names) = subscription::copy_slots(subscriber, link).await? else { return Ok(()) };
    if cutover.journal.data::<String>(Mark::CopySlots).as_ref() == Some(&names) {
        return Ok(());
    }
    cutover.journal.record(Mark::CopySlots, "the slots of the tables' copies are known", names)
}

/// Drops the slot that this cutover made, once it is sure that no subscription uses it: it would keep WAL for nobody.
async fn take_slot_back(
    cutover: &mut Cutover,
    link: &Link,
    publisher: &mut Node,
    failed: CutoverError,
) -> CutoverError {
    let undo = async {
        // a lost connection does not tell what became of the statement
        let mut subscriber = cutover.connect(link.subscriber, Access::ReadOnly).await?;
        if subscription::find(&mut subscriber, link).await?.is_some() {
            return Ok("The subscription was made all the same: run this again to go on.".to_owned());
        }
        cutover.journal.undo(Mark::Subscription, "the subscription could not be made")?;
        slot::drop(publisher, link).await?;
        cutover.journal.undo(Mark::Slot, "the slot is dropped again")?;
        Ok(format!("The slot was dropped again, so the {} keeps no WAL for it.", link.publisher))
    };
    let undone: Result<String> = undo.await;
    let failed = failed.with_detail(undone.unwrap_or_else(|also| {
        format!(
            "The slot \"{}\" on the {} could not be dropped either, and keeps its WAL until this is run again or aborted: {also}.",
            link.slot, link.publisher
        )
    }));
    failed.with_hint("Then run this again.")
}

/// Waits for the copy and makes what waited for it.
async fn finish_copy(
    cutover: &mut Cutover,
    options: &ReplicateOptions,
    link: &Link,
    tables: &[Table],
) -> Result<ReplicateReport> {
    if !options.wait && !cutover.journal.has(Mark::Copied) {
        let ready = ready(cutover, link).await?;
        return Ok(ReplicateReport { tables: tables.len(), ready, done: false, milliseconds: 0 });
    }
    if !cutover.journal.has(Mark::Copied) {
        copy_wait::wait(cutover, link, tables).await?;
        cutover.journal.record(Mark::Copied, format!("all {} tables are copied and followed", tables.len()), ())?;
    }
    if cutover.plan.schema.copy && !cutover.journal.has(Mark::SchemaRest) {
        let mut publisher = cutover.connect(link.publisher, Access::ReadOnly).await?;
        copy_schema(cutover, &mut publisher, tables, Part::Rest).await?;
        let what = "secondary indexes, foreign keys and triggers are on the target";
        cutover.journal.record(Mark::SchemaRest, what, ())?;
    }
    let began = cutover.journal.find(Mark::Subscription).map(|entry| entry.at);
    let took = began.map_or(Duration::ZERO, |began| (OffsetDateTime::now_utc() - began).unsigned_abs());
    let report = ReplicateReport {
        tables: tables.len(),
        ready: tables.len(),
        done: true,
        milliseconds: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
    };
    cutover.journal.record(Mark::ReplicateDone, format!("the target follows, after {}", time_text(took)), &report)?;
    Ok(report)
}

async fn ready(cutover: &Cutover, link: &Link) -> Result<usize> {
    let mut subscriber = cutover.connect(link.subscriber, Access::ReadOnly).await?;
    let states = subscription::table_states(&mut subscriber, link).await?;
    subscriber.close().await;
    Ok(states.iter().filter(|table| table.state == CopyState::Ready && table.schema != OWN_SCHEMA).count())
}

async fn copy_schema(cutover: &Cutover, publisher: &mut Node, tables: &[Table], part: Part) -> Result<()> {
    let connection = cutover.plan.replica()?;
    // pg_restore's script leaves its settings behind: it gets a session of its own
    let mut session = cutover.connect(Place::Target, Access::ReadWrite).await?;
    schema_copy::copy(cutover, publisher, connection, &mut session, tables, part).await?;
    session.close().await;
    Ok(())
}
