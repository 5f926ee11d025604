//! The tables that are carried over, as the publisher's catalogue has them.

use serde::Deserialize;

use super::error::{CutoverError, Result};
use super::node::Node;
use crate::pg::quote::{identifier, literal};
use crate::pg::version::Major;

/// Where this program keeps what it needs on both sides: the marker that shows that the last write has arrived.
pub const OWN_SCHEMA: &str = "wal_eve_cutover";

/// Schemas that hold nothing of the user's, as a condition on `pg_namespace n`.
pub const USER_SCHEMAS: &str =
    "n.nspname !~ '^pg_' and n.nspname <> 'information_schema' and n.nspname <> 'wal_eve_cutover'";

/// A table with rows of its own: no partitioned one, but its leaves.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Table {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Its bytes without indexes, TOAST included.
    pub bytes: u64,
    /// Its rows as far as the last VACUUM or ANALYZE knows; negative or 0 when none was.
    pub estimated_rows: f64,
    /// Whether logical replication can tell its rows apart for updates and deletes.
    pub has_identity: bool,
    /// Whether that is by all columns, REPLICA IDENTITY FULL.
    pub identity_is_full: bool,
    /// Whether it is logged: an unlogged table is empty on a replica and not published.
    pub is_logged: bool,
    /// Its primary key's columns, in its order; empty without one.
    pub key: Vec<String>,
    /// Its columns, in their order.
    pub columns: Vec<Column>,
}

/// A column of a table.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type as `format_type` writes it.
    pub data_type: String,
    /// Whether its value is computed; logical replication leaves it to the subscriber.
    pub is_generated: bool,
    /// Whether it may not be null.
    pub not_null: bool,
}

impl Table {
    /// `schema.name` for messages.
    pub fn label(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// For SQL.
    pub fn quoted(&self) -> String {
        format!("{}.{}", identifier(&self.schema), identifier(&self.name))
    }
}

/// The tables of a database, by schema and name; `selection` has `schema.table`, none is all. What a plan names and the
/// database does not have is refused.
///
/// # Errors
///
/// When the server refuses or is gone, or lacks a table of the selection.
pub async fn tables(node: &mut Node, selection: Option<&[String]>) -> Result<Vec<Table>> {
    let generated = if node.major() >= Major::new(12) { "a.attgenerated <> ''" } else { "false" };
    // a key's INCLUDEd columns are none of it
    let key_columns = if node.major() >= Major::new(11) { "i.indnkeyatts" } else { "i.indnatts" };
    let wanted = match selection {
        None => String::new(),
        Some(names) => {
            let names: Vec<_> = names.iter().map(|name| literal(name)).collect();
            format!("and n.nspname || '.' || c.relname = any (array[{}]::text[])", names.join(","))
        }
    };
    let found: Vec<Table> = node
        .rows(&format!(
            "select n.nspname as schema, c.relname as name, pg_table_size(c.oid) as bytes, c.reltuples as estimated_rows, \
                    c.relpersistence = 'p' as is_logged, c.relreplident = 'f' as identity_is_full, \
                    c.relreplident = 'f' \
                        or c.relreplident = 'd' and exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary and i.indimmediate) \
                        or c.relreplident = 'i' and exists (select from pg_index i where i.indrelid = c.oid and i.indisreplident) \
                        as has_identity, \
                    coalesce((select json_agg(a.attname order by k.place) \
                        from pg_index i, unnest(i.indkey) with ordinality k (attnum, place), pg_attribute a \
                        where i.indrelid = c.oid and i.indisprimary and a.attrelid = c.oid and a.attnum = k.attnum \
                          and k.place <= {key_columns}), '[]') as key, \
                    coalesce((select json_agg(json_build_object('name', a.attname, 'data_type', format_type(a.atttypid, a.atttypmod), \
                            'is_generated', {generated}, 'not_null', a.attnotnull) order by a.attnum) \
                        from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped), '[]') as columns \
             from pg_class c join pg_namespace n on n.oid = c.relnamespace \
             where c.relkind = 'r' and c.relpersistence <> 't' and {USER_SCHEMAS} {wanted} \
             order by n.nspname, c.relname"
        ))
        .await?;
    for name in selection.unwrap_or_default() {
        if !found.iter().any(|table| table.label() == *name) {
            return Err(CutoverError::refused(format!("the {} has no table \"{name}\"", node.place()))
                .with_hint("Correct replication.tables in the plan; each is \"schema.table\", and a partitioned table stands there by its partitions."));
        }
    }
    Ok(found)
}
