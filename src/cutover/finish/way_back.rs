//! The link in the other direction: all that could keep it from being made is known before anybody waits, since it is made when
//! the subscription is dropped already.

use std::collections::HashSet;
use std::time::Duration;

use super::carried_tables;
use crate::cutover::context::Cutover;
use crate::cutover::error::{CutoverError, Result};
use crate::cutover::node::Node;
use crate::cutover::plan::MissingIdentity;
use crate::cutover::replication::identity;
use crate::cutover::replication::link::Link;
use crate::cutover::replication::publication;
use crate::cutover::replication::slot;
use crate::cutover::replication::subscription;
use crate::cutover::tables::Table;
use crate::pg::quote::literal;
use crate::pg::session::Access;

/// The slot that shows that one can be made.
const TRIAL_SLOT: &str = "wal_eve_cutover_trial";

/// What can be seen without changing anything; `carried` is what comes over to the way back's publisher.
pub(super) async fn check(cutover: &Cutover, back: &Link, publisher: &mut Node, carried: &[Table]) -> Result<()> {
    let place = back.publisher;
    back.connection(&cutover.plan)?;
    let level = publisher.setting("wal_level").await?.unwrap_or_default();
    if level != "logical" {
        return Err(CutoverError::refused(format!("the {place} cannot publish: its wal_level is {level}"))
            .with_hint("Set wal_level = logical (on Aurora rds.logical_replication = 1) and restart it, or finish without --reverse."));
    }
    let may_replicate: bool = publisher
        .value(
            "select rolsuper or rolreplication or coalesce((select pg_has_role(oid, 'usage') from pg_roles r \
             where r.rolname = 'rds_replication'), false) from pg_roles where rolname = current_user",
        )
        .await?;
    if !may_replicate {
        return Err(CutoverError::refused(format!("\"{}\" may not make a slot on the {place}", publisher.user()))
            .with_hint("Give it REPLICATION (on Aurora: grant rds_replication to it), or finish without --reverse."));
    }
    let free_slots: i64 = publisher
        .value("select current_setting('max_replication_slots')::bigint - count(*) from pg_replication_slots")
        .await?;
    if free_slots < 1 {
        return Err(CutoverError::refused(format!("the {place} has no free replication slot"))
            .with_hint("Raise max_replication_slots there, or finish without --reverse."));
    }
    let all = carried_tables(cutover, publisher).await?;
    let (published, left_out): (Vec<_>, Vec<_>) = all.into_iter().partition(is_among(carried));
    if !left_out.is_empty() {
        tracing::warn!("the way back leaves out what only the {place} has: {}", labels(&left_out));
    }
    let lacking: Vec<_> = published.into_iter().filter(|table| !table.has_identity).collect();
    if !lacking.is_empty() && cutover.plan.replication.missing_identity == MissingIdentity::Refuse {
        return Err(CutoverError::refused(format!("{} tables of the {place} could not be updated once they are published", lacking.len()))
            .with_detail(format!("They have no primary key and no other replica identity: {}.", labels(&lacking)))
            .with_hint("Run ALTER TABLE … REPLICA IDENTITY FULL on each, set replication.missing_identity in the plan, or finish without --reverse."));
    }
    Ok(())
}

/// Makes publication, slot and subscription, and takes them back at once: a right that is missing, a server that cannot be
/// reached and a transaction that does not end stop the move here.
pub(super) async fn rehearse(cutover: &Cutover, back: &Link) -> Result<()> {
    let impossible = |failed: CutoverError| {
        failed
            .with_detail("The way back could not be set up; nothing was changed.")
            .with_hint("Mend that, or finish without --reverse.")
    };
    let mut publisher = cutover.connect(back.publisher, Access::ReadWrite).await?;
    let mut subscriber = cutover.connect(back.subscriber, Access::ReadWrite).await?;
    let tables = tables(cutover, &mut publisher, &mut subscriber).await?;
    // a failure ends the session, and the transaction with it
    publisher.change("begin").await?;
    publication::create(&mut publisher, back, Some(&tables)).await.map_err(impossible)?;
    publisher.change("rollback").await?;
    subscriber.change("begin").await?;
    subscription::create(&mut subscriber, back, back.connection(&cutover.plan)?, false).await.map_err(impossible)?;
    subscriber.change("rollback").await?;
    publisher.close().await;
    subscriber.close().await;
    try_slot(cutover, back, cutover.plan.finish.budget).await.map_err(impossible)
}

/// Makes a slot that is gone at the end of the session, and waits at most so long as it takes for every transaction that
/// writes now to end.
pub(super) async fn try_slot(cutover: &Cutover, back: &Link, timeout: Duration) -> Result<()> {
    let mut publisher = cutover.connect(back.publisher, Access::ReadWrite).await?;
    if !publisher.is_rehearsed() {
        publisher.limit(timeout).await?;
    }
    let name = literal(TRIAL_SLOT);
    let make = format!("select pg_create_logical_replication_slot({name}, 'pgoutput', true)");
    publisher.change(&make).await.map_err(|failed| {
        failed.with_hint(format!(
            "A slot waits for every transaction that writes on the {} to end, in every database: look in its \
             pg_stat_activity and pg_prepared_xacts for old ones.",
            back.publisher
        ))
    })?;
    publisher.change(&format!("select pg_drop_replication_slot({name})")).await?;
    publisher.close().await;
    Ok(())
}

/// Makes the link, which begins at this moment, with the rows that are there already. The slot is made while nobody can write.
pub(super) async fn set_up(cutover: &mut Cutover, back: &Link) -> Result<()> {
    let mut publisher = cutover.connect(back.publisher, Access::ReadWrite).await?;
    let mut subscriber = cutover.connect(back.subscriber, Access::ReadWrite).await?;
    let tables = tables(cutover, &mut publisher, &mut subscriber).await?;
    if cutover.plan.replication.missing_identity == MissingIdentity::Full {
        let lacking: Vec<_> = tables.iter().filter(|table| !table.has_identity).collect();
        identity::make_full(cutover, &mut publisher, &lacking).await?;
    }
    publication::create(&mut publisher, back, Some(&tables)).await?;
    slot::create(&mut publisher, back).await?;
    subscription::create(&mut subscriber, back, back.connection(&cutover.plan)?, false).await?;
    publisher.close().await;
    subscriber.close().await;
    Ok(())
}

/// What the way back publishes: the tables that have come over, and none that only its publisher has.
async fn tables(cutover: &Cutover, publisher: &mut Node, subscriber: &mut Node) -> Result<Vec<Table>> {
    let carried = carried_tables(cutover, subscriber).await?;
    let mut tables = carried_tables(cutover, publisher).await?;
    tables.retain(is_among(&carried));
    Ok(tables)
}

fn is_among(tables: &[Table]) -> impl Fn(&Table) -> bool {
    let labels: HashSet<_> = tables.iter().map(Table::label).collect();
    move |table| labels.contains(&table.label())
}

fn labels(tables: &[Table]) -> String {
    tables.iter().map(Table::label).collect::<Vec<_>>().join(", ")
}
