//! What a table's rows are, in two numbers: how many there are, and the sum of a hash of each.
//!
//! The hash is of the row's text, built from the publisher's columns by name and in the publisher's order. The text is the same
//! on every major for the settings that [`crate::pg::session::Session::connect`] makes, and so is `hashtextextended`, which
//! hash partitioning keeps stable. Floats have 15 digits in that text, `real` has 6: what differs beyond is not seen. The order
//! of the rows does not count; a row that is there twice does.

use serde::{Deserialize, Serialize};

use crate::cutover::error::Result;
use crate::cutover::node::Node;
use crate::cutover::tables::Table;
use crate::pg::quote::identifier;

/// Which rows are hashed. All are counted in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sample {
    /// All.
    All,
    /// One in so many, by the hash of the key: the same rows on both sides. Without a key by the hash of the whole row.
    OneIn(u32),
    /// None: they are only counted.
    Nothing,
}

/// What a table's rows are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// How many rows there are.
    pub rows: u64,
    /// The sum of the hashes of the rows in the sample, a whole number of up to 39 digits; "0" when none was hashed.
    pub sum: String,
}

/// Counts and hashes the rows of one side; `table` is as the publisher has it.
///
/// # Errors
///
/// When the server refuses, lacks a column, is gone, or the session's time limit is over.
pub async fn digest(node: &mut Node, table: &Table, sample: Sample) -> Result<Digest> {
    node.row(&digest_question(table, &own_rows(table), sample)).await
}

/// The table's own rows for a FROM clause, not those of tables that inherit from it.
pub(super) fn own_rows(table: &Table) -> String {
    format!("only {}", table.quoted())
}

/// The question for a digest of the rows that `from` names.
pub(super) fn digest_question(table: &Table, from: &str, sample: Sample) -> String {
    let hash = row_hash(table);
    let sum = match sample {
        Sample::All => format!("sum({hash})"),
        // the sign would make the remainder negative
        Sample::OneIn(one_in) => {
            format!("sum({hash}) filter (where ({} & {}) % {} = 0)", key_hash(table), i64::MAX, one_in.max(1))
        }
        Sample::Nothing => "null".to_owned(),
    };
    format!("select count(*) as rows, coalesce({sum}, 0)::text as sum from {from}")
}

/// A 64-bit hash of the whole row.
pub(super) fn row_hash(table: &Table) -> String {
    let columns = table.columns.iter().filter(|column| !column.is_generated);
    let columns: Vec<_> = columns
        .map(|column| match column.data_type.as_str() {
            // from 16 its bytes above 127 are written as \ooo
            "\"char\"" => format!("{}::int4", identifier(&column.name)),
            _ => identifier(&column.name),
        })
        .collect();
    hash_of(&columns, 0)
}

/// A 64-bit hash of what tells the row apart: its key, or all of it.
pub(super) fn key_hash(table: &Table) -> String {
    if table.key.is_empty() {
        return row_hash(table);
    }
    let key: Vec<_> = table.key.iter().map(|column| identifier(column)).collect();
    hash_of(&key, 1)
}

/// The text of a record tells null from an empty text, and `COLLATE "C"` keeps the hash one of bytes.
fn hash_of(columns: &[String], seed: u8) -> String {
    format!("hashtextextended(row({})::text collate \"C\", {seed})", columns.join(", "))
}
