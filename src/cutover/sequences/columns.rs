//! How far the columns are that take their values from sequences: looked up where an index answers at once.

use std::collections::HashMap;

use serde::Deserialize;

use super::{SequenceColumn, each};
use crate::cutover::error::Result;
use crate::cutover::node::Node;
use crate::pg::quote::{identifier, literal};

/// What the subscriber's catalogue knows of one column.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Found {
    schema: String,
    table: String,
    column: String,
    has_table: bool,
    has_column: bool,
    is_partitioned: bool,
    is_integer: bool,
    is_indexed: bool,
    is_readable: bool,
}

/// Columns by schema, table and name.
#[derive(Debug, Default)]
pub(super) struct Columns(HashMap<(String, String, String), Found>);

impl Columns {
    /// Looks columns up in the catalogue.
    ///
    /// # Errors
    ///
    /// When the server refuses or is gone.
    pub(super) async fn find<'a>(node: &mut Node, wanted: impl Iterator<Item = &'a SequenceColumn>) -> Result<Self> {
        let mut wanted: Vec<_> = wanted
            .map(|c| format!("({}, {}, {})", literal(&c.schema), literal(&c.table), literal(&c.column)))
            .collect();
        wanted.sort_unstable();
        wanted.dedup();
        if wanted.is_empty() {
            return Ok(Self::default());
        }
        let found: Vec<Found> = node
            .rows(&format!(
                "select w.schema, w.table, w.column, c.oid is not null as has_table, a.attnum is not null as has_column, \
                     coalesce(c.relkind = 'p', false) as is_partitioned, \
                     coalesce(coalesce(nullif(t.typbasetype, 0), t.oid) in (20, 21, 23), false) as is_integer, \
                     exists (select from pg_index i join pg_class x on x.oid = i.indexrelid join pg_am m on m.oid = x.relam \
                         where i.indrelid = c.oid and i.indkey[0] = a.attnum and i.indpred is null and i.indisvalid \
                             and m.amname = 'btree') as is_indexed, \
                     coalesce(has_schema_privilege(n.oid, 'USAGE') \
                         and has_column_privilege(c.oid, a.attnum, 'SELECT'), false) as is_readable \
                 from (values {}) w (schema, \"table\", \"column\") \
                     left join pg_namespace n on n.nspname = w.schema::name \
                     left join pg_class c on c.relnamespace = n.oid and c.relname = w.table::name and c.relkind in ('r', 'p', 'f') \
                     left join pg_attribute a on a.attrelid = c.oid and a.attname = w.column::name and a.attnum > 0 \
                         and not a.attisdropped \
                     left join pg_type t on t.oid = a.atttypid",
                wanted.join(", ")
            ))
            .await?;
        let keyed = found.into_iter().map(|f| ((f.schema.clone(), f.table.clone(), f.column.clone()), f));
        Ok(Self(keyed.collect()))
    }

    fn get(&self, column: &SequenceColumn) -> Option<&Found> {
        self.0.get(&(column.schema.clone(), column.table.clone(), column.column.clone()))
    }

    /// Whether its table is there.
    pub(super) fn has_table(&self, column: &SequenceColumn) -> bool {
        self.get(column).is_some_and(|found| found.has_table)
    }

    /// The question for the column's furthest value in the direction of the increment, or why it is not asked.
    pub(super) fn question(
        &self,
        column: &SequenceColumn,
        increment: i64,
    ) -> std::result::Result<String, &'static str> {
        let found = self.get(column).filter(|found| found.has_column).ok_or("it is not there")?;
        if !column.takes_plain_values() {
            return Err("its default computes something else from the sequence");
        }
        if !found.is_integer {
            return Err("it is no integer");
        }
        if !found.is_indexed {
            return Err("no index leads with it");
        }
        if !found.is_readable {
            return Err("this user may not read it");
        }
        let furthest = if increment > 0 { "max" } else { "min" };
        let only = if found.is_partitioned { "" } else { "only " };
        Ok(format!("(select {furthest}({})::bigint from {only}{})", identifier(&column.column), column.quoted_table()))
    }
}

/// The answers to such questions, in their order; none for an empty table.
///
/// # Errors
///
/// When the server refuses or is gone.
pub(super) async fn furthest(node: &mut Node, questions: Vec<String>) -> Result<Vec<Option<i64>>> {
    each(node, questions, "bigint").await
}
