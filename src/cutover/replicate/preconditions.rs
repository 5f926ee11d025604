//! What must hold before anything is set up: of the publisher, of the subscriber, and of the tables there.

use std::collections::HashMap;

use serde::Deserialize;

use crate::cutover::error::{CutoverError, Result};
use crate::cutover::node::Node;
use crate::cutover::replication::link::Link;
use crate::cutover::replication::slot;
use crate::cutover::replication::subscription;
use crate::cutover::tables::{OWN_SCHEMA, Table, USER_SCHEMAS};
use crate::pg::quote::{identifier, literal};
use crate::pg::version::Major;

/// How many names an error repeats.
const SHOWN: usize = 10;

/// How many tables one question asks for rows.
const TABLES_A_QUESTION: usize = 100;

/// One slot and one walsender follow, at least one more copies.
const SLOTS_NEEDED: i64 = 2;

/// Slots in use and those there are; walsenders alike.
#[derive(Debug, Deserialize)]
struct Capacity {
    wal_level: String,
    max_slots: i64,
    slots: i64,
    max_senders: i64,
    senders: i64,
}

/// Checks that a server can publish.
///
/// # Errors
///
/// What is to be changed there.
pub(super) async fn check_publisher(node: &mut Node, link: &Link) -> Result<()> {
    let place = node.place();
    if node.is_in_recovery().await? {
        return Err(CutoverError::refused(format!("the {place} is a standby and cannot publish"))
            .with_hint("Run cutover promote first."));
    }
    let found: Capacity = node
        .row(
            "select current_setting('wal_level') as wal_level, \
                    current_setting('max_replication_slots')::bigint as max_slots, \
                    (select count(*) from pg_replication_slots) as slots, \
                    current_setting('max_wal_senders')::bigint as max_senders, \
                    (select count(*) from pg_stat_get_wal_senders()) as senders",
        )
        .await?;
    if found.wal_level != "logical" {
        return Err(CutoverError::refused(format!("the {place} has wal_level = {}", found.wal_level))
            .with_detail("Logical replication needs more in the WAL. Nothing was changed.")
            .with_hint(
                "Run \"alter system set wal_level = logical\" there and restart it; RDS and Aurora have rds.logical_replication for that.",
            ));
    }
    if slot::find(node, link).await?.is_some() {
        return Ok(());
    }
    for (setting, most, used) in
        [("max_replication_slots", found.max_slots, found.slots), ("max_wal_senders", found.max_senders, found.senders)]
    {
        if most - used < SLOTS_NEEDED {
            return Err(CutoverError::refused(format!("the {place} has {setting} = {most}, and {used} are in use"))
                .with_detail(format!("At least {SLOTS_NEEDED} more are needed. Nothing was changed."))
                .with_hint(format!("Set {setting} to {} or more there and restart it.", used + SLOTS_NEEDED + 2)));
        }
    }
    Ok(())
}

#[derive(Debug, Deserialize)]
struct Subscriber {
    is_standby: bool,
    is_read_only: bool,
    workers: i64,
    origins: i64,
    is_superuser: bool,
    may_subscribe: bool,
    may_create: bool,
}

/// Checks that a server can subscribe, and this user there.
///
/// # Errors
///
/// What is to be changed there.
pub(super) async fn check_subscriber(node: &mut Node, link: &Link) -> Result<()> {
    let place = node.place();
    // from 16 a role may subscribe without being superuser; before, managed servers have their own ways
    let may_subscribe = match node.major() >= Major::new(16) {
        true => "pg_has_role('pg_create_subscription', 'usage')",
        false => "true",
    };
    let found: Subscriber = node
        .row(&format!(
            "select pg_is_in_recovery() as is_standby, \
                    (select reset_val = 'on' from pg_settings where name = 'default_transaction_read_only') as is_read_only, \
                    current_setting('max_logical_replication_workers')::bigint as workers, \
                    coalesce(current_setting('max_active_replication_origins', true), \
                        current_setting('max_replication_slots'))::bigint as origins, \
                    (select rolsuper from pg_roles where rolname = current_user) as is_superuser, \
                    {may_subscribe} as may_subscribe, \
                    has_database_privilege(current_database(), 'create') as may_create"
        ))
        .await?;
    if found.is_standby || found.is_read_only {
        let why = match found.is_standby {
            true => "It is a standby.",
            false => "default_transaction_read_only is on there.",
        };
        return Err(CutoverError::refused(format!("the {place} is read-only"))
            .with_detail(format!("{why} Nothing was changed."))
            .with_hint("Name the server that can be written to (a cluster's writer endpoint), or reset that setting for the database and the user."));
    }
    for (setting, value) in
        [("max_logical_replication_workers", found.workers), ("max_replication_slots", found.origins)]
    {
        if value < SLOTS_NEEDED {
            return Err(CutoverError::refused(format!("the {place} has {setting} = {value}"))
                .with_detail("A subscription needs one to follow and at least one to copy. Nothing was changed.")
                .with_hint(format!("Set {setting} to {} or more there and restart it.", SLOTS_NEEDED + 2)));
        }
    }
    if found.is_superuser || subscription::find(node, link).await?.is_some() {
        return Ok(());
    }
    let user = identifier(node.user());
    let mut lacking = Vec::new();
    if !found.may_subscribe {
        lacking.push(format!("grant pg_create_subscription to {user}"));
    }
    if !found.may_create {
        lacking.push(format!("grant create on database {} to {user}", identifier(node.database())));
    }
    if lacking.is_empty() {
        return Ok(());
    }
    Err(CutoverError::refused(format!("\"{}\" may not subscribe on the {place}", node.user()))
        .with_detail("Nothing was changed.")
        .with_hint(format!("As its administrator run: {}.", lacking.join("; "))))
}

#[derive(Debug, Deserialize)]
struct Counterpart {
    schema: String,
    name: String,
    columns: Vec<String>,
    owner: String,
    may_act_as_owner: bool,
}

/// Checks that every table that is published is on the subscriber, with every column, and that this user may act as its owner.
///
/// # Errors
///
/// What is missing there.
pub(super) async fn check_tables(node: &mut Node, tables: &[Table]) -> Result<()> {
    let place = node.place();
    // from 16 rows are applied as the table's owner
    let may_act = match node.major() >= Major::new(16) {
        true => "pg_has_role(c.relowner, 'set')",
        false => "true",
    };
    let found: Vec<Counterpart> = node
        .rows(&format!(
            "select n.nspname as schema, c.relname as name, pg_get_userbyid(c.relowner) as owner, \
                    {may_act} as may_act_as_owner, \
                    coalesce((select json_agg(a.attname) from pg_attribute a \
                        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped), '[]') as columns \
             from pg_class c join pg_namespace n on n.oid = c.relnamespace \
             where c.relkind in ('r', 'p') and ({USER_SCHEMAS} or n.nspname = '{OWN_SCHEMA}')"
        ))
        .await?;
    let found: HashMap<_, _> = found.iter().map(|one| ((one.schema.as_str(), one.name.as_str()), one)).collect();
    let counterpart = |table: &Table| found.get(&(table.schema.as_str(), table.name.as_str())).copied();

    let missing: Vec<_> = tables.iter().filter(|table| counterpart(table).is_none()).map(Table::label).collect();
    if !missing.is_empty() {
        return Err(CutoverError::refused(format!("{} published tables are missing on the {place}", missing.len()))
            .with_detail(format!("They are {}.", shortened(&missing)))
            .with_hint("Create them there, or choose with replication.tables, and run this again; or drop what is there of the schema, run cutover abort, and let replicate copy the whole schema with schema.copy = true."));
    }
    let mut lacking = Vec::new();
    for table in tables {
        let Some(there) = counterpart(table) else { continue };
        let columns =
            table.columns.iter().filter(|column| !column.is_generated && !there.columns.contains(&column.name));
        lacking.extend(columns.map(|column| format!("{}.{} ({})", table.label(), column.name, column.data_type)));
    }
    if !lacking.is_empty() {
        return Err(CutoverError::refused(format!("{} columns are missing on the {place}", lacking.len()))
            .with_detail(format!("They are {}.", shortened(&lacking)))
            .with_hint("Add them there with ALTER TABLE … ADD COLUMN, and run this again."));
    }
    let mut owners: Vec<_> = tables
        .iter()
        .filter_map(counterpart)
        .filter(|there| !there.may_act_as_owner)
        .map(|there| there.owner.clone())
        .collect();
    owners.sort();
    owners.dedup();
    if owners.is_empty() {
        return Ok(());
    }
    let grants: Vec<_> =
        owners.iter().map(|owner| format!("grant {} to {}", identifier(owner), identifier(node.user()))).collect();
    Err(CutoverError::refused(format!("\"{}\" may not write to tables of others on the {place}", node.user()))
        .with_detail(format!("Rows are applied as the tables' owners, which are {}.", shortened(&owners)))
        .with_hint(format!("Run there: {}; or let the tables be owned by \"{}\".", grants.join("; "), node.user())))
}

#[derive(Debug, Deserialize)]
struct Filled {
    label: String,
}

/// Checks that tables have no row on the subscriber: what is there would be there twice, or stop the copy.
///
/// # Errors
///
/// Which have.
pub(super) async fn check_empty(node: &mut Node, tables: &[Table]) -> Result<()> {
    let filled = filled(node, &tables.iter().collect::<Vec<_>>()).await?;
    if filled.is_empty() {
        return Ok(());
    }
    let quoted: Vec<_> =
        tables.iter().filter(|table| filled.contains(&table.label())).map(Table::quoted).take(SHOWN).collect();
    Err(CutoverError::refused(format!("{} tables have rows on the {} already", filled.len(), node.place()))
        .with_detail(format!("They are {}. The copy brings all rows of the publisher.", shortened(&filled)))
        .with_hint(format!(
            "If nobody needs these rows, run there: truncate {} cascade; then run this again.",
            quoted.join(", ")
        )))
}

/// Which of these tables have a row.
///
/// # Errors
///
/// When the server refuses or is gone.
pub(super) async fn filled(node: &mut Node, tables: &[&Table]) -> Result<Vec<String>> {
    let mut filled = Vec::new();
    for some in tables.chunks(TABLES_A_QUESTION) {
        let questions: Vec<_> = some
            .iter()
            .map(|table| {
                format!("select {} as label where exists (select from {})", literal(&table.label()), table.quoted())
            })
            .collect();
        let rows: Vec<Filled> = node.rows(&questions.join(" union all ")).await?;
        filled.extend(rows.into_iter().map(|row| row.label));
    }
    Ok(filled)
}

fn shortened(names: &[String]) -> String {
    let mut text = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}
