//! Tables whose rows logical replication cannot tell apart: their updates and deletes fail once they are published.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;

use super::finding::{Finding, counted};
use crate::cutover::error::Result;
use crate::cutover::node::Node;
use crate::cutover::plan::MissingIdentity;
use crate::cutover::quantity::bytes_text;
use crate::cutover::tables::{Table, USER_SCHEMAS};
use crate::pg::quote::identifier;
use crate::pg::version::Major;

/// From which size on finding a row by all its columns takes long enough to be talked about.
const LARGE_TABLE: u64 = 100 << 20;

#[derive(Deserialize)]
struct Candidate {
    label: String,
    /// A unique index that could be the identity.
    index: Option<String>,
    /// Columns whose type has no equality that the subscriber could use.
    incomparable: Vec<String>,
}

#[derive(Deserialize)]
struct Activity {
    label: String,
    changes: i64,
}

/// Looks for tables without identity at the publisher. `source` counts updates and deletes, which a standby does not.
pub(super) async fn look(
    publisher: &mut Node,
    source: Option<&mut Node>,
    tables: &[Table],
    missing_identity: MissingIdentity,
) -> Result<Vec<Finding>> {
    let lacking: Vec<&Table> = tables.iter().filter(|table| table.is_logged && !table.has_identity).collect();
    let by_all: HashSet<String> = tables.iter().filter(|table| table.identity_is_full).map(Table::label).collect();
    if lacking.is_empty() && by_all.is_empty() {
        return Ok(Vec::new());
    }
    let candidates = candidates(publisher).await?;
    let changed = match source {
        Some(source) if missing_identity == MissingIdentity::InsertOnly && !lacking.is_empty() => {
            activity(source).await?
        }
        _ => HashMap::new(),
    };
    let mut found = Vec::new();
    if !lacking.is_empty() {
        found.push(lacks(&lacking, &candidates, &changed, missing_identity));
    }
    let is_by_all = |label: &String| {
        by_all.contains(label)
            || missing_identity == MissingIdentity::Full && lacking.iter().any(|table| table.label() == *label)
    };
    let incomparable: Vec<String> = candidates
        .values()
        .filter(|candidate| is_by_all(&candidate.label))
        .flat_map(|candidate| candidate.incomparable.iter().map(|column| format!("{}.{column}", candidate.label)))
        .collect();
    if !incomparable.is_empty() {
        found.push(
            Finding::error(format!("{} no equality", counted(incomparable.len(), "column has", "columns have")))
                .because("A table identified by all its columns (REPLICA IDENTITY FULL) needs one for each: the subscriber stops at the first update or delete.")
                .about(incomparable)
                .mend("Add a primary key to the table, or change the column's type, such as json to jsonb."),
        );
    }
    let large: Vec<_> = tables
        .iter()
        .filter(|table| table.bytes > LARGE_TABLE && is_by_all(&table.label()))
        .map(|table| format!("{}, {}", table.label(), bytes_text(table.bytes)))
        .collect();
    if !large.is_empty() {
        found.push(
            Finding::warning(format!("{} by all columns", counted(large.len(), "large table is identified", "large tables are identified")))
                .because("For every update and delete the subscriber reads the whole table, or any index that serves from 16 on.")
                .about(large)
                .mend("Add a primary key."),
        );
    }
    Ok(found.into_iter().map(|finding| finding.at(publisher.place())).collect())
}

fn lacks(
    tables: &[&Table],
    candidates: &HashMap<String, Candidate>,
    changed: &HashMap<String, i64>,
    missing_identity: MissingIdentity,
) -> Finding {
    let what = format!("{} no usable replica identity", counted(tables.len(), "table has", "tables have"));
    let label = |table: &&Table| table.label();
    match missing_identity {
        MissingIdentity::Refuse => Finding::error(what)
            .because("Once they are published, the application's updates and deletes of them fail. replication.missing_identity = \"refuse\" stops replicate before that.")
            .about(tables.iter().map(label))
            .mends(tables.iter().map(|table| {
                let index = candidates.get(&table.label()).and_then(|candidate| candidate.index.as_ref());
                match index {
                    Some(index) => format!("alter table {} replica identity using index {};", table.quoted(), identifier(index)),
                    None => format!("alter table {} add primary key (…);", table.quoted()),
                }
            }))
            .mend("Or set replication.missing_identity to \"full\", or to \"insert-only\" where that is what they are."),
        MissingIdentity::Full => Finding::note(what)
            .because("replication.missing_identity = \"full\": they are identified by all their columns until the cutover is over.")
            .about(tables.iter().map(label)),
        MissingIdentity::InsertOnly => {
            let total: i64 = tables.iter().filter_map(|table| changed.get(&table.label())).sum();
            let told = |table: &&Table| match changed.get(&table.label()) {
                Some(changes) if *changes > 0 => format!("{}, {changes} updates and deletes counted", table.label()),
                _ => table.label(),
            };
            let finding = Finding::error_if(total > 0, what).about(tables.iter().map(told));
            if total > 0 {
                finding
                    .because("replication.missing_identity = \"insert-only\", and the source has counted updates and deletes of them: these fail once the tables are published.")
                    .mend("Add primary keys, or set replication.missing_identity to \"full\".")
            } else {
                finding.because("replication.missing_identity = \"insert-only\": an update or delete of them fails once they are published.")
            }
        }
    }
}

async fn candidates(node: &mut Node) -> Result<HashMap<String, Candidate>> {
    let key_columns = if node.major() >= Major::new(11) { "i.indnkeyatts" } else { "i.indnatts" };
    // what lookup_type_cache() takes: a default operator class of btree or hash, for the type or one it is stored as
    let rows: Vec<Candidate> = node
        .rows(&format!(
            "with compared as (select distinct o.opcintype from pg_opclass o join pg_am m on m.oid = o.opcmethod \
                where o.opcdefault and m.amname in ('btree', 'hash')), \
             incomparable as (select t.oid from pg_type t left join pg_type d on d.oid = t.typbasetype \
                cross join lateral (select coalesce(nullif(d.oid, 0), t.oid) as oid) base join pg_type b on b.oid = base.oid \
                cross join lateral (select case when b.typcategory = 'A' and b.typelem <> 0 then b.typelem else b.oid end as oid) item \
                join pg_type e on e.oid = item.oid \
                where e.typtype = 'b' and e.oid not in (select opcintype from compared) \
                  and not exists (select from pg_cast k join compared on compared.opcintype = k.casttarget \
                     where k.castsource = e.oid and k.castmethod = 'b' and k.castcontext = 'i')) \
             select n.nspname || '.' || c.relname as label, \
                (select ic.relname from pg_index i join pg_class ic on ic.oid = i.indexrelid \
                 where i.indrelid = c.oid and i.indisunique and i.indisvalid and i.indimmediate \
                   and i.indpred is null and i.indexprs is null \
                   and not exists (select from unnest(i.indkey) with ordinality k (attnum, place) \
                      join pg_attribute a on a.attrelid = c.oid and a.attnum = k.attnum \
                      where k.place <= {key_columns} and not a.attnotnull) \
                 order by i.indnatts, ic.relname limit 1) as index, \
                array(select a.attname from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped \
                   and a.atttypid in (select oid from incomparable) order by a.attnum) as incomparable \
             from pg_class c join pg_namespace n on n.oid = c.relnamespace \
             where c.relkind = 'r' and c.relpersistence = 'p' and {USER_SCHEMAS} \
               and (c.relreplident in ('f', 'n', 'i') or not exists \
                  (select from pg_index i where i.indrelid = c.oid and i.indisprimary and i.indimmediate))"
        ))
        .await?;
    Ok(rows.into_iter().map(|row| (row.label.clone(), row)).collect())
}

async fn activity(node: &mut Node) -> Result<HashMap<String, i64>> {
    let rows: Vec<Activity> = node
        .rows("select schemaname || '.' || relname as label, n_tup_upd + n_tup_del as changes from pg_stat_user_tables where n_tup_upd + n_tup_del > 0")
        .await?;
    Ok(rows.into_iter().map(|row| (row.label, row.changes)).collect())
}
