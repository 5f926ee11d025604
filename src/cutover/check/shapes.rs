//! What logical replication treats in a way of its own: unlogged tables, triggers, row security, large objects and the like.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::finding::{Finding, counted};
use crate::cutover::error::Result;
use crate::cutover::node::{Node, Place};
use crate::cutover::quantity::bytes_text;
use crate::cutover::tables::USER_SCHEMAS;
use crate::pg::quote::literal;
use crate::pg::version::Major;

#[derive(Deserialize)]
struct Row {
    kind: String,
    object: String,
}

/// Objects by what is special about them, each quoted for SQL, in order.
struct Shapes(BTreeMap<String, Vec<String>>);

impl Shapes {
    fn take(&mut self, kind: &str) -> Vec<String> {
        self.0.remove(kind).unwrap_or_default()
    }

    /// A finding about the objects of a kind, if there are any.
    fn told(&mut self, kind: &str, tell: impl FnOnce(usize) -> Finding) -> Option<Finding> {
        let objects = self.take(kind);
        (!objects.is_empty()).then(|| tell(objects.len()).about(objects))
    }
}

async fn shapes(node: &mut Node, selection: Option<&[String]>) -> Result<Shapes> {
    let major = node.major();
    let since = |first: u32, expression: &'static str| if major >= Major::new(first) { expression } else { "false" };
    let oids = if major < Major::new(12) { "c.relhasoids" } else { "false" };
    let is_wanted = match selection {
        None => "true".to_owned(),
        Some(names) => {
            let names: Vec<_> = names.iter().map(|name| literal(name)).collect();
            format!("n.nspname || '.' || c.relname = any (array[{}]::text[])", names.join(","))
        }
    };
    let question = format!(
        "with t as ( \
           select c.oid, c.relkind, c.relpersistence, c.relrowsecurity, {is_partition} as is_partition, {oids} as has_oids, \
                  {is_wanted} as is_wanted, format('%I.%I', n.nspname, c.relname) as label \
           from pg_class c join pg_namespace n on n.oid = c.relnamespace \
           where {USER_SCHEMAS} and c.relkind in ('r', 'p', 'm', 'f', 'S') and c.relpersistence <> 't') \
         select 'unlogged' as kind, label as object from t where relkind = 'r' and relpersistence = 'u' \
         union all select 'unlogged-sequence', label from t where relkind = 'S' and relpersistence = 'u' \
         union all select 'partitioned', label from t where relkind = 'p' \
         union all select 'row-security', label from t where relkind = 'r' and is_wanted and relrowsecurity \
         union all select 'materialized-view', label from t where relkind = 'm' \
         union all select 'foreign-table', label from t where relkind = 'f' \
         union all select 'oids', label from t where relkind = 'r' and is_wanted and has_oids \
         union all select 'generated', t.label || '.' || quote_ident(a.attname) from t join pg_attribute a on a.attrelid = t.oid \
             where relkind = 'r' and is_wanted and a.attnum > 0 and not a.attisdropped and {is_generated} \
         union all select case when g.tgenabled in ('A', 'R') then 'eager-trigger' else 'trigger' end, \
                 quote_ident(g.tgname) || ' on ' || t.label from t join pg_trigger g on g.tgrelid = t.oid \
             where not g.tgisinternal and g.tgenabled <> 'D' and relkind in ('r', 'p') \
         union all select 'foreign-key', quote_ident(k.conname) || ' on ' || t.label from t join pg_constraint k on k.conrelid = t.oid \
             where k.contype = 'f' and is_wanted \
         union all select 'foreign-key-out', quote_ident(k.conname) || ' on ' || t.label \
             from t join pg_constraint k on k.conrelid = t.oid join t other on other.oid = k.confrelid \
             where k.contype = 'f' and t.is_wanted and not other.is_wanted and other.relkind = 'r' \
         union all select 'inherits', t.label from t join pg_inherits i on i.inhrelid = t.oid where relkind = 'r' and not is_partition \
         union all select 'extension', t.label || ' of ' || e.extname from t \
             join pg_depend d on d.classid = 'pg_class'::regclass and d.objid = t.oid and d.deptype = 'e' \
             join pg_extension e on d.refclassid = 'pg_extension'::regclass and e.oid = d.refobjid where relkind = 'r' and is_wanted \
         union all select 'event-trigger', quote_ident(evtname) from pg_event_trigger where evtenabled in ('A', 'R') \
         order by 1, 2",
        is_partition = since(10, "c.relispartition"),
        is_generated = since(12, "a.attgenerated <> ''"),
    );
    let mut by_kind: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for Row { kind, object } in node.rows(&question).await? {
        by_kind.entry(kind).or_default().push(object);
    }
    Ok(Shapes(by_kind))
}

/// What both moves change: unlogged tables are empty on every physical replica.
fn of_both_moves(shapes: &mut Shapes) -> Vec<Finding> {
    let unlogged = shapes.take("unlogged");
    let sequences = shapes.take("unlogged-sequence");
    let mut found = Vec::new();
    if !unlogged.is_empty() {
        let mends: Vec<_> = unlogged.iter().map(|table| format!("alter table {table} set logged;")).collect();
        found.push(
            Finding::warning(format!("{} not logged", counted(unlogged.len(), "table is", "tables are")))
                .because("Their rows are not in the WAL: the promoted replica has these tables empty, and they are not published.")
                .about(unlogged)
                .mends(mends)
                .mend("To be run on the source before the move, where the rows matter."),
        );
    }
    if !sequences.is_empty() {
        let mends: Vec<_> = sequences.iter().map(|sequence| format!("alter sequence {sequence} set logged;")).collect();
        found.push(
            Finding::warning(format!("{} not logged", counted(sequences.len(), "sequence is", "sequences are")))
                .because("They begin anew on the promoted replica.")
                .about(sequences)
                .mends(mends),
        );
    }
    found
}

/// What the second move treats in a way of its own.
fn of_second_move(shapes: &mut Shapes, place: Place) -> Vec<Finding> {
    let mut found = Vec::new();
    found.extend(shapes.told("row-security", |number| {
        Finding::note(counted(number, "table has row security", "tables have row security")).because(
            "The replication role gets BYPASSRLS for them, or rows would be left out of the copy without a word. On the target, \
             the subscription's owner must own these tables, without FORCE ROW LEVEL SECURITY, or bypass their policies too.",
        )
    }));
    found.extend(shapes.told("partitioned", |number| {
        Finding::note(counted(number, "table is partitioned", "tables are partitioned")).because(
            "Their partitions are replicated one by one, so the target needs the same ones; do not add any while the cutover runs.",
        )
    }));
    found.extend(shapes.told("generated", |number| {
        Finding::note(counted(number, "column is generated", "columns are generated"))
            .because("The target computes their values itself, by the expressions that it has.")
    }));
    found.extend(shapes.told("inherits", |number| {
        Finding::note(counted(number, "table inherits from another", "tables inherit from others"))
            .because("Each is replicated by itself, to the table of its name.")
    }));
    found.extend(shapes.told("trigger", |number| {
        Finding::note(counted(number, "table trigger", "table triggers")).because(
            "They fire for the application's writes only: what is replicated to the target does not fire them again.",
        )
    }));
    found.extend(shapes.told("eager-trigger", |number| {
        Finding::warning(counted(number, "trigger is enabled always or for replicas", "triggers are enabled always or for replicas"))
            .because("On the target they fire once more for every row that is replicated.")
            .mend("On the target: alter table … disable trigger …; until finish has ended. Or be sure that firing twice does no harm.")
    }));
    found.extend(shapes.told("event-trigger", |number| {
        Finding::note(counted(
            number,
            "event trigger is enabled always or for replicas",
            "event triggers are enabled always or for replicas",
        ))
        .because("Schema changes are not replicated, so they do not fire on the target by themselves.")
    }));
    found.extend(shapes.told("foreign-key", |number| {
        Finding::note(counted(number, "foreign key", "foreign keys"))
            .because("They are not checked for what is replicated; with all tables carried over they hold anyway.")
    }));
    found.extend(shapes.told("foreign-key-out", |number| {
        Finding::error(counted(
            number,
            "foreign key refers to a table that is not carried over",
            "foreign keys refer to tables that are not carried over",
        ))
        .because("On the target their rows would refer to nothing.")
        .mend("Add the tables to replication.tables, or drop these foreign keys on the target.")
    }));
    found.extend(shapes.told("materialized-view", |number| {
        Finding::note(counted(number, "materialized view", "materialized views"))
            .because("They are not replicated: finish refreshes them on the target.")
    }));
    found.extend(shapes.told("foreign-table", |number| {
        Finding::note(counted(number, "foreign table", "foreign tables"))
            .because("They hold no rows of their own and are not replicated; the target must reach their servers.")
    }));
    let oids = shapes.take("oids");
    if !oids.is_empty() {
        let mends: Vec<_> = oids.iter().map(|table| format!("alter table {table} set without oids;")).collect();
        found.push(
            Finding::warning(format!("{} WITH OIDS", counted(oids.len(), "table is", "tables are")))
                .because("The numbers are not replicated, and from 12 on there is no such column.")
                .about(oids)
                .mends(mends),
        );
    }
    found.extend(shapes.told("extension", |number| {
        Finding::warning(format!("{} to an extension", counted(number, "table belongs", "tables belong")))
            .because("CREATE EXTENSION fills such tables on the target, and the copy then meets the same keys again.")
            .mend("Leave them out by naming the others in replication.tables, or truncate them on the target before the copy.")
    }));
    found.into_iter().map(|finding| finding.at(place)).collect()
}

#[derive(Deserialize)]
struct LargeObjects {
    number: i64,
    bytes: Option<i64>,
}

async fn large_objects(node: &mut Node) -> Result<Option<Finding>> {
    // what pg_largeobject holds, only superusers may see; its size everybody
    let found: LargeObjects = node
        .row(
            "select (select count(*) from pg_largeobject_metadata) as number, pg_table_size('pg_largeobject') as bytes",
        )
        .await?;
    if found.number == 0 {
        return Ok(None);
    }
    let bytes = bytes_text(found.bytes.unwrap_or(0).unsigned_abs());
    Ok(Some(
        Finding::error(format!("it has {} large objects, up to {bytes}", found.number))
            .at(node.place())
            .because("Logical replication does not carry large objects: the target would not have them.")
            .mend("Remove those that nothing refers to (vacuumlo), and move the others into a bytea column before the cutover.")
            .mend("Or, when they do not change any more, carry them by hand: pg_dump --large-objects --schema=none."),
    ))
}

/// What the tables of the publisher ask for. The second part is what only the second move needs.
pub(super) async fn look(node: &mut Node, selection: Option<&[String]>) -> Result<(Vec<Finding>, Vec<Finding>)> {
    let mut shapes = shapes(node, selection).await?;
    let place = node.place();
    let both = of_both_moves(&mut shapes).into_iter().map(|finding| finding.at(place)).collect();
    let mut second = Vec::new();
    second.extend(of_second_move(&mut shapes, place));
    second.extend(large_objects(node).await?);
    Ok((both, second))
}

/// Triggers on the target that fire for what is replicated, which may not be the publisher's.
pub(super) async fn target(node: &mut Node) -> Result<Vec<Finding>> {
    let mut shapes = shapes(node, None).await?;
    let eager = shapes.told("eager-trigger", |number| {
        Finding::warning(counted(number, "trigger fires for replicated rows", "triggers fire for replicated rows"))
            .because("It is enabled always or for replicas, so what the publisher's did already is done again.")
            .mend("alter table … disable trigger …; until finish has ended. Or be sure that firing twice does no harm.")
    });
    let unlogged = shapes.told("unlogged", |number| {
        Finding::warning(format!("{} not logged", counted(number, "table is", "tables are")))
            .because("A crash of the target empties them, and replication does not copy them again.")
    });
    Ok(eager.into_iter().chain(unlogged).map(|finding| finding.at(node.place())).collect())
}
