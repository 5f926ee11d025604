//! Sequences by the catalogue: logical replication does not carry them, so their values are set on the subscriber at the end.
//!
//! * this file: what sequences there are, which columns take their values from them, and where they stand
//! * [`position`]: where a sequence is to stand; pure
//! * [`carry_over`](fn@carry_over): the publisher's positions set on the subscriber

mod carry_over;
mod columns;
mod position;

use serde::{Deserialize, Serialize};

use super::error::Result;
use super::node::Node;
use super::tables::USER_SCHEMAS;
use crate::pg::quote::{identifier, literal};

pub use carry_over::{SequencesReport, carry_over};
pub use position::{Bounds, Position};

/// How many relations one statement looks at: each is locked while the statement runs.
const BATCH: usize = 250;

/// A sequence as a catalogue has it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Sequence {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// `smallint`, `integer` or `bigint`.
    pub data_type: String,
    /// Its first value.
    pub start: i64,
    /// Its step, which is not 0; a negative one counts down.
    pub increment: i64,
    /// The least value.
    pub minimum: i64,
    /// The greatest value.
    pub maximum: i64,
    /// How many values a session takes at once.
    pub cache: i64,
    /// Whether it begins again after its last value.
    pub cycle: bool,
    /// Whether the user of this session may set it.
    pub may_be_set: bool,
    /// The columns that take their values from it.
    pub columns: Vec<SequenceColumn>,
}

/// A column that takes its values from a sequence, or owns it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct SequenceColumn {
    /// The table's schema.
    pub schema: String,
    /// The table.
    pub table: String,
    /// The column.
    pub column: String,
    /// Whether the sequence goes when the column does: serial, identity, OWNED BY.
    pub owns: bool,
    /// `a` for an identity column that is GENERATED ALWAYS, `d` for BY DEFAULT, else empty.
    pub identity: String,
    /// Its default as the server writes it; none when it has none.
    pub default: Option<String>,
}

/// What a sequence belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SequenceKind {
    /// A column owns it, as with serial.
    Owned,
    /// It is an identity column's own.
    Identity,
    /// Nothing owns it.
    Standalone,
}

impl Sequence {
    /// What it belongs to.
    pub fn kind(&self) -> SequenceKind {
        match self.owner() {
            Some(owner) if owner.identity.is_empty() => SequenceKind::Owned,
            Some(_) => SequenceKind::Identity,
            None => SequenceKind::Standalone,
        }
    }

    /// The column that owns it.
    pub fn owner(&self) -> Option<&SequenceColumn> {
        self.columns.iter().find(|column| column.owns)
    }

    /// `schema.name` for messages.
    pub fn label(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// For SQL.
    pub fn quoted(&self) -> String {
        format!("{}.{}", identifier(&self.schema), identifier(&self.name))
    }

    /// What values it can have.
    pub fn bounds(&self) -> Bounds {
        Bounds { increment: self.increment, minimum: self.minimum, maximum: self.maximum, cycle: self.cycle }
    }

    fn options(&self) -> String {
        format!(
            "increment by {} minvalue {} maxvalue {} start with {} cache {}{}",
            self.increment,
            self.minimum,
            self.maximum,
            self.start,
            self.cache,
            if self.cycle { " cycle" } else { " no cycle" }
        )
    }

    /// The statement that gives another sequence its options.
    fn alteration(&self, other: &str) -> String {
        format!("alter sequence {other} as {} {} restart;", self.data_type, self.options())
    }

    /// The statements that make it, with its column's default.
    fn creation(&self) -> String {
        let options = self.options();
        if let Some(owner) = self.owner().filter(|owner| !owner.identity.is_empty()) {
            let when = if owner.identity == "a" { "always" } else { "by default" };
            return format!(
                "alter table {} alter column {} add generated {when} as identity (sequence name {} {options});",
                owner.quoted_table(),
                identifier(&owner.column),
                self.quoted()
            );
        }
        let mut statements = format!("create sequence {} as {} {options};", self.quoted(), self.data_type);
        for column in self.columns.iter().filter(|column| column.default.is_some()) {
            statements += &format!(
                " alter table {} alter column {} set default nextval({});",
                column.quoted_table(),
                identifier(&column.column),
                literal(&self.quoted())
            );
        }
        if let Some(owner) = self.owner() {
            let column = format!("{}.{}", owner.quoted_table(), identifier(&owner.column));
            statements += &format!(" alter sequence {} owned by {column};", self.quoted());
        }
        statements
    }
}

impl SequenceColumn {
    /// `schema.table.column` for messages.
    fn label(&self) -> String {
        format!("{}.{}.{}", self.schema, self.table, self.column)
    }

    /// Its table for SQL.
    fn quoted_table(&self) -> String {
        format!("{}.{}", identifier(&self.schema), identifier(&self.table))
    }

    /// Whether it is the same column of the same table, maybe of another server.
    fn is_same(&self, other: &Self) -> bool {
        (&self.schema, &self.table, &self.column) == (&other.schema, &other.table, &other.column)
    }

    /// Whether its values are the sequence's own, not computed from them. A column that only owns the sequence is fed from it
    /// some other way, such as a trigger.
    fn takes_plain_values(&self) -> bool {
        self.default.as_deref().is_none_or(is_plain_nextval)
    }
}

/// Whether a default is `nextval('…'::regclass)` and nothing else.
fn is_plain_nextval(default: &str) -> bool {
    let argument = default.strip_prefix("nextval('").and_then(|rest| rest.strip_suffix("'::regclass)"));
    argument.is_some_and(|argument| !argument.replace("''", "").contains('\''))
}

/// The sequences of a database, by schema and name: not temporary ones, not the system's, not an extension's, not our own.
///
/// # Errors
///
/// When the server refuses or is gone.
pub async fn sequences(node: &mut Node) -> Result<Vec<Sequence>> {
    node.rows(&format!(
        "with link (sequence, relation, attnum, owns) as ( \
             select d.objid, d.refobjid, d.refobjsubid, true from pg_depend d \
             where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass \
                 and d.refobjsubid > 0 and d.deptype in ('a', 'i') \
             union all \
             select d.refobjid, f.adrelid, f.adnum, false from pg_depend d join pg_attrdef f on f.oid = d.objid \
             where d.classid = 'pg_attrdef'::regclass and d.refclassid = 'pg_class'::regclass and d.deptype = 'n'), \
         used (sequence, relation, attnum, owns) as ( \
             select l.sequence, l.relation, l.attnum, bool_or(l.owns) \
             from link l join pg_sequence s on s.seqrelid = l.sequence group by 1, 2, 3), \
         described (sequence, columns) as ( \
             select u.sequence, json_agg(json_build_object('schema', n.nspname, 'table', c.relname, 'column', a.attname, \
                 'owns', u.owns, 'identity', a.attidentity, 'default', pg_get_expr(f.adbin, f.adrelid)) \
                 order by u.owns desc, n.nspname, c.relname, a.attnum) \
             from used u join pg_class c on c.oid = u.relation join pg_namespace n on n.oid = c.relnamespace \
                 join pg_attribute a on a.attrelid = u.relation and a.attnum = u.attnum \
                 left join pg_attrdef f on f.adrelid = u.relation and f.adnum = u.attnum \
             group by 1) \
         select n.nspname as schema, c.relname as name, format_type(s.seqtypid, null) as data_type, s.seqstart as start, \
             s.seqincrement as increment, s.seqmin as minimum, s.seqmax as maximum, s.seqcache as cache, \
             s.seqcycle as cycle, has_sequence_privilege(c.oid, 'UPDATE') as may_be_set, \
             coalesce(x.columns, '[]') as columns \
         from pg_sequence s join pg_class c on c.oid = s.seqrelid join pg_namespace n on n.oid = c.relnamespace \
             left join described x on x.sequence = c.oid \
         where c.relpersistence <> 't' and {USER_SCHEMAS} \
             and not exists (select from pg_depend e \
                 where e.classid = 'pg_class'::regclass and e.objid = c.oid and e.deptype = 'e') \
         order by n.nspname, c.relname"
    ))
    .await
}

/// Where sequences stand, in their order: read from the sequences themselves, since the view shows null before the first use.
///
/// # Errors
///
/// When the server refuses or is gone.
pub async fn positions(node: &mut Node, sequences: &[&Sequence]) -> Result<Vec<Position>> {
    let questions = sequences.iter().map(|sequence| {
        format!(
            "(select json_build_object('last_value', last_value, 'is_called', is_called) from {})",
            sequence.quoted()
        )
    });
    each(node, questions.collect(), "json").await
}

/// The answers of many questions, each a subselect of one value of this type, in few statements.
async fn each<T: serde::de::DeserializeOwned>(
    node: &mut Node,
    questions: Vec<String>,
    data_type: &str,
) -> Result<Vec<T>> {
    let mut answers = Vec::with_capacity(questions.len());
    for batch in questions.chunks(BATCH) {
        let found: Vec<T> = node.value(&format!("select array[{}]::{data_type}[]", batch.join(", "))).await?;
        answers.extend(found);
    }
    Ok(answers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_computed_default_is_not_the_sequences_own_value() {
        for plain in ["nextval('s'::regclass)", "nextval('\"it''s\".\"a b\"'::regclass)"] {
            assert!(is_plain_nextval(plain), "{plain}");
        }
        for computed in [
            "(nextval('s'::regclass) * 10)",
            "nextval('s'::regclass) + nextval('s'::regclass)",
            "('x'::text || nextval('s'::regclass))",
            "nextval('s'::regclass)::text",
            "1",
            "",
        ] {
            assert!(!is_plain_nextval(computed), "{computed}");
        }
    }
}
