//! Sequences: logical replication does not carry them, finish does; the target needs each of them, able to hold its value.

use std::collections::HashMap;

use serde::Deserialize;

use super::finding::{Finding, counted};
use crate::cutover::error::Result;
use crate::cutover::node::Node;
use crate::cutover::tables::USER_SCHEMAS;
use crate::pg::version::Major;

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Sequence {
    label: String,
    /// `a` when a serial column owns it, `i` for an identity column's; none when it stands alone.
    owner: Option<String>,
    data_type: String,
    increment: i64,
    minimum: i64,
    maximum: i64,
    cycles: bool,
}

async fn sequences(node: &mut Node) -> Result<Vec<Sequence>> {
    if node.major() < Major::new(10) {
        return Ok(Vec::new());
    }
    node.rows(&format!(
        "select n.nspname || '.' || c.relname as label, s.seqtypid::regtype::text as data_type, s.seqincrement as increment, \
                s.seqmin as minimum, s.seqmax as maximum, s.seqcycle as cycles, \
                (select d.deptype::text from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid \
                 and d.refclassid = 'pg_class'::regclass and d.deptype in ('a', 'i') limit 1) as owner \
         from pg_sequence s join pg_class c on c.oid = s.seqrelid join pg_namespace n on n.oid = c.relnamespace \
         where c.relpersistence <> 't' and {USER_SCHEMAS} order by 1"
    ))
    .await
}

/// Counts the publisher's, and compares them with the target's where that has its schema already.
pub(super) async fn look(publisher: &mut Node, target: Option<&mut Node>) -> Result<Vec<Finding>> {
    let ours = sequences(publisher).await?;
    let mut found = Vec::new();
    if !ours.is_empty() {
        let count = |kind: Option<&str>| ours.iter().filter(|sequence| sequence.owner.as_deref() == kind).count();
        found.push(
            Finding::note(format!(
                "{}: {} of serial columns, {} of identity columns, {} standing alone",
                counted(ours.len(), "sequence", "sequences"),
                count(Some("a")),
                count(Some("i")),
                count(None)
            ))
            .at(publisher.place())
            .because("Logical replication does not carry their values: finish sets every one of them on the target."),
        );
    }
    if let Some(target) = target {
        let theirs = sequences(target).await?;
        found.extend(compared(&ours, &theirs).into_iter().map(|finding| finding.at(target.place())));
    }
    Ok(found)
}

fn compared(ours: &[Sequence], theirs: &[Sequence]) -> Vec<Finding> {
    let theirs: HashMap<&str, &Sequence> = theirs.iter().map(|sequence| (sequence.label.as_str(), sequence)).collect();
    let (mut missing, mut differing) = (Vec::new(), Vec::new());
    for sequence in ours {
        match theirs.get(sequence.label.as_str()) {
            None => missing.push(sequence.label.clone()),
            Some(other) => {
                let definition = |it: &Sequence| {
                    let cycle = if it.cycles { ", cycle" } else { "" };
                    format!("{} from {} to {} by {}{cycle}", it.data_type, it.minimum, it.maximum, it.increment)
                };
                let (ours, theirs) = (definition(sequence), definition(other));
                if ours != theirs {
                    differing.push(format!("{}: {theirs}, the publisher's {ours}", sequence.label));
                }
            }
        }
    }
    let mut found = Vec::new();
    if !missing.is_empty() {
        found.push(
            Finding::error(format!("{} there", counted(missing.len(), "sequence is not", "sequences are not")))
                .because("finish could not set them, and the application's inserts would fail.")
                .about(missing)
                .mend("Create them as the publisher has them: pg_dump --schema-only shows how."),
        );
    }
    if !differing.is_empty() {
        found.push(
            Finding::warning(format!(
                "{} defined in another way",
                counted(differing.len(), "sequence is", "sequences are")
            ))
            .because("A value of the publisher's may lie outside of what the target's can hold.")
            .about(differing)
            .mend("alter sequence … as … increment by … minvalue … maxvalue …;"),
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_sequence_is_an_error_and_another_definition_a_warning() {
        let sequence = |label: &str, increment| Sequence {
            label: label.into(),
            owner: None,
            data_type: "bigint".into(),
            increment,
            minimum: 1,
            maximum: 9,
            cycles: false,
        };
        let found = compared(
            &[sequence("a.same", 1), sequence("a.gone", 1), sequence("a.other", 1)],
            &[sequence("a.same", 1), sequence("a.other", 2), sequence("a.more", 1)],
        );
        assert_eq!(found[0].objects, ["a.gone"]);
        assert_eq!(found[1].objects, ["a.other: bigint from 1 to 9 by 2, the publisher's bigint from 1 to 9 by 1"]);
        assert_eq!(found.len(), 2);
    }
}
