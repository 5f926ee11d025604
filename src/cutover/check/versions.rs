//! Versions, encodings and locales of publisher and target.

use serde::Deserialize;

use super::finding::Finding;
use crate::cutover::error::Result;
use crate::cutover::node::{Node, Place};

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Database {
    encoding: String,
    collate: String,
    ctype: String,
}

async fn database(node: &mut Node) -> Result<Database> {
    node.row(
        "select pg_encoding_to_char(encoding) as encoding, datcollate as collate, datctype as ctype \
         from pg_database where datname = current_database()",
    )
    .await
}

/// Compares the two databases.
pub(super) async fn look(publisher: &mut Node, target: &mut Node) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    if target.major() < publisher.major() {
        found.push(
            Finding::warning(format!(
                "it is PostgreSQL {}, older than the publisher's {}",
                target.version(),
                publisher.version()
            ))
            .because("Types and functions of the newer version are missing there, and pg_dump's output may not load."),
        );
    }
    let (ours, theirs) = (database(publisher).await?, database(target).await?);
    found.extend(compared(&ours, &theirs));
    Ok(found.into_iter().map(|finding| finding.at(Place::Target)).collect())
}

fn compared(ours: &Database, theirs: &Database) -> Vec<Finding> {
    let mut found = Vec::new();
    if ours.encoding != theirs.encoding {
        let what = format!("its encoding is {}, the publisher's {}", theirs.encoding, ours.encoding);
        found.push(match (ours.encoding.as_str(), theirs.encoding.as_str()) {
            ("SQL_ASCII", _) => Finding::warning(what)
                .because("The publisher checks no bytes: the first that are not valid there stop the copy.")
                .mend("Find and mend such rows first: convert_from(column::bytea, 'UTF8') fails on them."),
            (_, "UTF8") => Finding::note(what).because("Every text is converted on its way."),
            _ => Finding::error(what)
                .because("A character that the target's encoding lacks stops the copy, or replication.")
                .mend("Make the target's database with encoding UTF8, from template0."),
        });
    }
    if (&ours.collate, &ours.ctype) != (&theirs.collate, &theirs.ctype) {
        found.push(
            Finding::warning(format!(
                "its locale is {} and {}, the publisher's {} and {}",
                theirs.collate, theirs.ctype, ours.collate, ours.ctype
            ))
            .because("Queries may give rows in another order, and lower(), upper() and regular expressions other answers.")
            .mend("Make the target's database with the publisher's lc_collate and lc_ctype, from template0, where the application minds."),
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity;
    use super::*;

    #[test]
    fn an_encoding_that_lacks_characters_is_an_error() {
        let of = |encoding: &str, collate: &str| Database {
            encoding: encoding.into(),
            collate: collate.into(),
            ctype: "C".into(),
        };
        let severity = |ours, theirs| compared(&of(ours, "C"), &of(theirs, "C")).first().map(|found| found.severity);
        assert_eq!(severity("UTF8", "UTF8"), None);
        assert_eq!(severity("LATIN1", "UTF8"), Some(Severity::Note));
        assert_eq!(severity("SQL_ASCII", "UTF8"), Some(Severity::Warning));
        assert_eq!(severity("UTF8", "LATIN1"), Some(Severity::Error));
        assert_eq!(compared(&of("UTF8", "C"), &of("UTF8", "de_DE"))[0].severity, Severity::Warning);
    }
}
