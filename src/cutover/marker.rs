//! Rows that prove something: that a server can be written to, and that what was written before them has arrived.

use time::OffsetDateTime;

use super::error::Result;
use super::node::Node;
use super::replicate::schema_copy;
use super::tables::OWN_SCHEMA;
use crate::pg::quote::{identifier, literal};

/// The table for SQL.
pub fn table() -> String {
    format!("{OWN_SCHEMA}.marker")
}

/// Makes the table, and lets `writer` write to it.
///
/// # Errors
///
/// When the server refuses or is gone.
pub async fn create(node: &mut Node, writer: Option<&str>) -> Result<()> {
    let there: bool = node.value(&format!("select to_regclass({}) is not null", literal(&table()))).await?;
    if !there {
        node.change(&format!(
            "create schema if not exists {OWN_SCHEMA}; \
             create table if not exists {} (id text primary key, at timestamptz not null default now())",
            table()
        ))
        .await?;
    }
    if let Some(writer) = writer.filter(|writer| *writer != node.user()) {
        let writer = identifier(writer);
        node.change(&format!(
            "grant usage on schema {OWN_SCHEMA} to {writer}; grant select, insert on {} to {writer}",
            table()
        ))
        .await?;
    }
    Ok(())
}

/// Writes a row and tells its name.
///
/// # Errors
///
/// When the server refuses or is gone.
pub async fn write(node: &mut Node, why: &str) -> Result<String> {
    let id = format!("{why} {}", OffsetDateTime::now_utc().unix_timestamp_nanos());
    node.change(&format!("insert into {} (id) values ({})", table(), literal(&id))).await?;
    Ok(id)
}

/// Whether a row has arrived.
///
/// # Errors
///
/// When the server refuses or is gone.
pub async fn has_arrived(node: &mut Node, id: &str) -> Result<bool> {
    node.value(&format!("select exists (select from {} where id = {})", table(), literal(id))).await
}

/// Removes the rows that an earlier attempt left, if there are any.
///
/// # Errors
///
/// When the server refuses or is gone.
pub async fn clear(node: &mut Node) -> Result<()> {
    let there: bool = node.value(&format!("select to_regclass({}) is not null", literal(&table()))).await?;
    if there && node.value(&format!("select exists (select from {})", table())).await? {
        node.change(&format!("truncate {}", table())).await?;
    }
    Ok(())
}

/// Removes the table, and the schema with all that this program keeps in it.
///
/// # Errors
///
/// When the server refuses or is gone.
pub async fn remove(node: &mut Node) -> Result<()> {
    node.change(&format!(
        "drop table if exists {}, {}; drop schema if exists {OWN_SCHEMA}",
        table(),
        schema_copy::record_table()
    ))
    .await
}
