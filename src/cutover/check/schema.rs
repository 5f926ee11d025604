//! Whether the target's tables are the publisher's, and empty: what differs stops the copy or the apply worker, or is lost.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Deserialize;

use super::finding::{Finding, counted};
use crate::cutover::error::Result;
use crate::cutover::node::{Node, Place};
use crate::cutover::tables::{Table, USER_SCHEMAS, tables};

/// How many tables one question looks into: a statement with a branch for each grows in planning.
const TABLES_AT_ONCE: usize = 100;

/// What the target has under the name of each table.
struct Target {
    tables: HashMap<String, Table>,
    /// Relations that are no ordinary tables, such as partitioned ones, which can be replicated into from 13 on.
    others: HashMap<String, String>,
    /// Columns that may not be null and have no default.
    required: HashSet<String>,
}

#[derive(Deserialize)]
struct Relation {
    label: String,
    kind: String,
}

async fn target(node: &mut Node) -> Result<Target> {
    let tables = tables(node, None).await?;
    let others: Vec<Relation> = node
        .rows(&format!(
            "select n.nspname || '.' || c.relname as label, case c.relkind when 'p' then 'partitioned table' when 'v' then 'view' \
                when 'm' then 'materialized view' else 'foreign table' end as kind \
             from pg_class c join pg_namespace n on n.oid = c.relnamespace \
             where c.relkind in ('p', 'v', 'm', 'f') and {USER_SCHEMAS}"
        ))
        .await?;
    let required: Vec<String> = node
        .value(&format!(
            "select coalesce(array_agg(n.nspname || '.' || c.relname || '.' || a.attname), '{{}}') \
             from pg_attribute a join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace \
             where c.relkind = 'r' and a.attnum > 0 and not a.attisdropped and a.attnotnull and not a.atthasdef \
               and a.attidentity = '' and {USER_SCHEMAS}"
        ))
        .await?;
    Ok(Target {
        tables: tables.into_iter().map(|table| (table.label(), table)).collect(),
        others: others.into_iter().map(|other| (other.label, other.kind)).collect(),
        required: required.into_iter().collect(),
    })
}

/// What is known of the plan and of what was done.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress {
    /// Whether replicate makes the schema.
    pub(super) is_copied: bool,
    /// Whether the subscription is there: the tables are being filled.
    pub(super) is_subscribed: bool,
}

/// Compares the publisher's tables with the target's, and sees that these are empty.
pub(super) async fn look(node: &mut Node, wanted: &[Table], progress: Progress) -> Result<Vec<Finding>> {
    let there = target(node).await?;
    let wanted: Vec<&Table> = wanted.iter().filter(|table| table.is_logged).collect();
    let found_some = wanted.iter().any(|table| there.tables.contains_key(&table.label()));
    if progress.is_copied && !found_some {
        let what = format!("none of {} there yet", counted(wanted.len(), "table is", "tables is"));
        return Ok(vec![Finding::note(what).at(Place::Target).because("schema.copy: replicate makes them.")]);
    }
    let mut found = differences(&wanted, &there);
    if progress.is_copied && !progress.is_subscribed {
        found.push(
            Finding::warning("tables are there already, and schema.copy would make them")
                .because("pg_restore stops at what exists.")
                .mend("Drop them, or set schema.copy = false."),
        );
    }
    if !progress.is_subscribed {
        found.extend(filled(node, &wanted, &there).await?);
    }
    Ok(found.into_iter().map(|finding| finding.at(Place::Target)).collect())
}

/// How tables can differ, the gravest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Difference {
    Missing,
    NoTable,
    NoColumn,
    Generated,
    Required,
    NotNull,
    NoIdentity,
    OtherKey,
    Type,
    NotGenerated,
}

fn differences(wanted: &[&Table], there: &Target) -> Vec<Finding> {
    let mut by_kind: BTreeMap<Difference, Vec<String>> = BTreeMap::new();
    for table in wanted {
        let label = table.label();
        match (there.tables.get(&label), there.others.get(&label).map(String::as_str)) {
            (Some(other), _) => compare(table, other, &there.required, &mut |kind, text| {
                by_kind.entry(kind).or_default().push(text);
            }),
            (None, Some("partitioned table")) => {}
            (None, Some(kind)) => by_kind.entry(Difference::NoTable).or_default().push(format!("{label}, a {kind}")),
            (None, None) => by_kind.entry(Difference::Missing).or_default().push(label),
        }
    }
    by_kind.into_iter().map(|(kind, objects)| told(kind, objects)).collect()
}

fn compare(ours: &Table, theirs: &Table, required: &HashSet<String>, tell: &mut impl FnMut(Difference, String)) {
    let label = ours.label();
    for column in &ours.columns {
        let name = format!("{label}.{}", column.name);
        let Some(other) = theirs.columns.iter().find(|other| other.name == column.name) else {
            tell(Difference::NoColumn, name);
            continue;
        };
        if other.is_generated && !column.is_generated {
            tell(Difference::Generated, name.clone());
        }
        if column.is_generated && !other.is_generated {
            tell(Difference::NotGenerated, name.clone());
        }
        if other.not_null && !column.not_null {
            tell(Difference::NotNull, name.clone());
        }
        if other.data_type != column.data_type {
            tell(Difference::Type, format!("{name}: {}, the publisher's {}", other.data_type, column.data_type));
        }
    }
    for column in &theirs.columns {
        let name = format!("{label}.{}", column.name);
        let is_ours = ours.columns.iter().any(|ours| ours.name == column.name);
        if !is_ours && !column.is_generated && required.contains(&name) {
            tell(Difference::Required, name);
        }
    }
    if ours.has_identity && !ours.identity_is_full {
        if !theirs.has_identity {
            let key = if ours.key.is_empty() { "…".to_owned() } else { ours.key.join(", ") };
            tell(Difference::NoIdentity, format!("alter table {} add primary key ({key});", theirs.quoted()));
        } else if !ours.key.is_empty() && !theirs.key.is_empty() && ours.key != theirs.key {
            let keys = format!("{label}: ({}), the publisher's ({})", theirs.key.join(", "), ours.key.join(", "));
            tell(Difference::OtherKey, keys);
        }
    }
}

fn told(kind: Difference, objects: Vec<String>) -> Finding {
    let number = objects.len();
    let columns = |one: &str, many: &str| counted(number, &format!("column {one}"), &format!("columns {many}"));
    let finding = match kind {
        Difference::Missing => Finding::error(format!("{} there", counted(number, "table is not", "tables are not")))
            .because("Replication of a table stops where the target has none of its name.")
            .mend("schema.copy = true, or pg_dump --schema-only from the publisher and psql to the target."),
        Difference::NoTable => Finding::error(format!("{} something else", counted(number, "table is", "tables are")))
            .because("Nothing can be replicated into it.")
            .mend("Drop it, and make the table."),
        Difference::NoColumn => Finding::error(format!("{} there", columns("is not", "are not")))
            .because("Replication of the table stops with \"missing replicated column\".")
            .mend("alter table … add column …;"),
        Difference::Generated => {
            Finding::error(format!("{} generated, and on the publisher not", columns("is", "are")))
                .because("A replicated value cannot be put into a generated column.")
                .mend("alter table … alter column … drop expression;")
        }
        Difference::Required => {
            Finding::error(format!("{} not null without a default, and the publisher lacks it", columns("is", "are")))
                .because("What is replicated has no value for it, so the first row is refused.")
                .mend("alter table … alter column … drop not null; or set a default.")
        }
        Difference::NotNull => {
            Finding::error(format!("{} not null, and on the publisher may be", columns("is", "are")))
                .because("The first null stops the copy, or replication.")
                .mend("alter table … alter column … drop not null;")
        }
        Difference::NoIdentity => {
            return Finding::error(format!(
                "{} no primary key or replica identity, unlike the publisher's",
                counted(number, "table has", "tables have")
            ))
            .because("The subscriber stops at the first update or delete, and tries it again without end.")
            .mends(objects);
        }
        Difference::OtherKey => Finding::error(format!(
            "{} another primary key than the publisher's",
            counted(number, "table has", "tables have")
        ))
        .because("The publisher sends the columns of its own key only: the subscriber cannot find the row by others.")
        .mend("Make the keys the same."),
        Difference::Type => Finding::warning(format!("{} another type than on the publisher", columns("has", "have")))
            .because("Values go over as text; one that the other type does not take stops the copy, or replication.")
            .mend("alter table … alter column … type …;"),
        Difference::NotGenerated => {
            Finding::warning(format!("{} generated on the publisher, and not here", columns("is", "are")))
                .because("Generated columns are not replicated: this one stays null.")
                .mend("alter table … drop column …, add column … generated always as (…) stored;")
        }
    };
    finding.about(objects)
}

/// Tables of the target that hold rows, before the copy.
async fn filled(node: &mut Node, wanted: &[&Table], there: &Target) -> Result<Option<Finding>> {
    let (mut filled, mut unseen): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
    let readable: HashSet<String> = node
        .value::<Vec<String>>(&format!(
            "select coalesce(array_agg(n.nspname || '.' || c.relname), '{{}}') from pg_class c join pg_namespace n on n.oid = c.relnamespace \
             where c.relkind = 'r' and {USER_SCHEMAS} and has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select')"
        ))
        .await?
        .into_iter()
        .collect();
    let wanted: Vec<&&Table> = wanted.iter().filter(|table| there.tables.contains_key(&table.label())).collect();
    let (seen, hidden): (Vec<&&Table>, Vec<&&Table>) =
        wanted.iter().partition(|table| readable.contains(&table.label()));
    unseen.extend(hidden.iter().map(|table| table.label()));
    for some in seen.chunks(TABLES_AT_ONCE) {
        let branches = some
            .iter()
            .enumerate()
            .map(|(at, table)| format!("select {at} as at where exists (select from {})", table.quoted()));
        let question = format!(
            "select coalesce(array_agg(at), '{{}}') from ({}) seen",
            branches.collect::<Vec<_>>().join(" union all ")
        );
        let places: Vec<usize> = node.value(&question).await?;
        filled.extend(places.into_iter().filter_map(|at| some.get(at)).map(|table| table.quoted()));
    }
    if !filled.is_empty() {
        filled.sort();
        let truncate = format!("truncate {};", filled.join(", "));
        return Ok(Some(
            Finding::error(format!("{} rows already", counted(filled.len(), "table holds", "tables hold")))
                .because("The copy adds the publisher's: the same key twice stops it, and without a key rows are there twice.")
                .about(filled)
                .mend(truncate),
        ));
    }
    Ok((!unseen.is_empty()).then(|| {
        Finding::warning(format!("cannot see whether {} empty", counted(unseen.len(), "table is", "tables are")))
            .because("This user may not read them.")
            .about(unseen)
            .mend("grant select on … to …;")
    }))
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity;
    use super::*;
    use crate::cutover::tables::Column;

    fn table(change: impl FnOnce(&mut Table)) -> Table {
        let column =
            |name: &str| Column { name: name.into(), data_type: "text".into(), is_generated: false, not_null: false };
        let mut table = Table {
            schema: "s".into(),
            name: "t".into(),
            bytes: 0,
            estimated_rows: 0.0,
            has_identity: true,
            identity_is_full: false,
            is_logged: true,
            key: vec!["id".into()],
            columns: vec![column("id"), column("text")],
        };
        change(&mut table);
        table
    }

    fn found(ours: &Table, theirs: Option<Table>, required: &[&str]) -> Vec<(Severity, String)> {
        let there = Target {
            tables: theirs.into_iter().map(|table| (table.label(), table)).collect(),
            others: HashMap::new(),
            required: required.iter().map(|name| name.to_string()).collect(),
        };
        let found = differences(&[ours], &there).into_iter();
        found
            .map(|finding| {
                (finding.severity, finding.objects.first().or(finding.mend.first()).cloned().unwrap_or_default())
            })
            .collect()
    }

    #[test]
    fn every_difference_is_told_by_its_weight() {
        let ours = table(|_| {});
        let other = |change: fn(&mut Table)| found(&ours, Some(table(change)), &["s.t.more"]);
        assert_eq!(other(|_| {}), []);
        assert_eq!(found(&ours, None, &[]), [(Severity::Error, "s.t".into())]);
        assert_eq!(other(|t| t.columns.truncate(1)), [(Severity::Error, "s.t.text".into())]);
        assert_eq!(other(|t| t.columns[1].is_generated = true), [(Severity::Error, "s.t.text".into())]);
        assert_eq!(other(|t| t.columns[1].not_null = true), [(Severity::Error, "s.t.text".into())]);
        assert_eq!(
            other(|t| t.columns[1].data_type = "bytea".into()),
            [(Severity::Warning, "s.t.text: bytea, the publisher's text".into())]
        );
        assert_eq!(
            other(|t| (t.has_identity, t.key) = (false, Vec::new())),
            [(Severity::Error, "alter table \"s\".\"t\" add primary key (id);".into())]
        );
        assert_eq!(
            other(|t| t.key = vec!["text".into()]),
            [(Severity::Error, "s.t: (text), the publisher's (id)".into())]
        );
        let more = |name: &str| {
            let mut theirs = table(|_| {});
            theirs.columns.push(Column { name: name.into(), ..theirs.columns[0].clone() });
            found(&ours, Some(theirs), &["s.t.more"])
        };
        assert_eq!(more("more"), [(Severity::Error, "s.t.more".into())]);
        assert_eq!(more("optional"), []);
        let generated = table(|t| t.columns[1].is_generated = true);
        assert_eq!(found(&generated, Some(table(|_| {})), &[]), [(Severity::Warning, "s.t.text".into())]);
    }
}
