//! A replica on another C library sorts text in another way than its indexes, which came along from the source, are sorted.
//!
//! Nothing warns of it: a search just does not find what is there, and a unique index lets in what it has. So each collation
//! that an index uses sorts the same strings on both servers, and the recorded versions are compared where there are any. The
//! strings are a sample: where the versions differ, the same order of these proves nothing for all others.

use serde::Deserialize;

use super::finding::{Finding, counted};
use crate::cutover::error::{Kind, Result};
use crate::cutover::node::{Node, Place};
use crate::cutover::tables::USER_SCHEMAS;
use crate::pg::quote::{identifier, literal};
use crate::pg::version::Major;

/// Strings whose order has changed between versions, or differs between libraries: punctuation, case, accents, contractions.
const ASCII: &[&str] = &[
    "11", "1-1", "1 1", "1_1", "1.1", "a a", "a-a", "a+a", "a_a", "a.a", "aa", "AA", "Aa", "aA", " a", "-a", "_a",
    "@a", "$1", "#1", "ab", "a b", "a-b", "ch", "c", "d", "cz", "ll", "lz", "n", "z", "Z", "0", "9", "10", "2",
    "\"a\"", "(a)", "a/b", "a\\b", "~", "aZ", "az", "co-op", "coop", "CO-OP", "resume", "Resume",
];

/// Those that a database of another encoding than UTF8 may not hold.
const UNICODE: &[&str] = &[
    "é",
    "è",
    "e",
    "E",
    "É",
    "résumé",
    "resumé",
    "ä",
    "Ä",
    "ae",
    "ö",
    "oe",
    "ü",
    "ß",
    "ss",
    "SS",
    "ø",
    "å",
    "Å",
    "æ",
    "ñ",
    "ň",
    "č",
    "ł",
    "þ",
    "ı",
    "İ",
    "i",
    "I",
    "ǆ",
    "ĳ",
    "ﬁ",
    "fi",
    "€",
    "①",
    "½",
    "﹒",
    "a\u{ad}a",
    "a\u{301}",
    "á",
    "a\u{200b}a",
    "日本",
    "中",
    "ア",
    "ｱ",
    "あ",
    "가",
    "я",
    "Я",
    "ё",
    "α",
    "ά",
    "א",
    "ا",
    "\u{1F600}",
    "\u{10400}",
    "\u{FFFD}",
    "\u{E000}",
    "𝒳",
];

/// The oid of the collation called "default" (`pg_collation.dat`).
const DEFAULT_COLLATION: u32 = 100;

/// The library's version by a named collation of the same locale; from 13 on there is one for the C library.
const OF_DATABASE_BEFORE_15: &str = "(select pg_collation_actual_version(l.oid) from pg_collation l \
     where l.collprovider = 'c' and l.collcollate = d.datcollate limit 1)";

#[derive(Debug, Deserialize)]
struct Used {
    /// Quoted for SQL.
    collation: String,
    provider: String,
    /// Whether it is the database's own, whose rules `datcollate` and the like name.
    is_default: bool,
    /// What the catalogue, so the source, has recorded.
    recorded: Option<String>,
    /// What this server's library says of itself.
    actual: Option<String>,
    indexes: Vec<Index>,
    /// Partitioned tables whose bounds are in this order.
    partitioned: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Index {
    label: String,
    is_unique: bool,
    is_exclusion: bool,
}

/// How a collation fares on the replica.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Probe {
    Same,
    Differs,
    /// Without the source there is nothing to compare with.
    Alone,
    /// The replica cannot sort by it.
    Fails(String),
}

/// Compares the collations that indexes of the replica use.
pub(super) async fn look(replica: &mut Node, mut source: Option<&mut Node>) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    let concurrently = if replica.major() >= Major::new(12) { " concurrently" } else { "" };
    for used in used(replica).await? {
        let probe = probe(replica, source.as_deref_mut(), &used.collation).await?;
        let source_version = match source.as_deref_mut() {
            Some(source) => actual_version(source, &used).await?,
            None => None,
        };
        found.extend(finding(&used, &probe, source_version.as_deref(), concurrently));
    }
    Ok(found.into_iter().map(|finding| finding.at(Place::Replica)).collect())
}

fn finding(used: &Used, probe: &Probe, source_version: Option<&str>, concurrently: &str) -> Option<Finding> {
    let collation = &used.collation;
    let recorded = source_version.or(used.recorded.as_deref());
    let versions = match (recorded, used.actual.as_deref()) {
        (Some(theirs), Some(ours)) if theirs != ours => {
            Some(format!("Its version is {ours} here and {theirs} on the source."))
        }
        _ => None,
    };
    let affected =
        format!("{} by the collation {collation}", counted(used.indexes.len(), "index sorts", "indexes sort"));
    let finding = match (probe, versions) {
        (Probe::Fails(why), _) => {
            return Some(
                Finding::error(format!("cannot sort by the collation {collation}: {why}"))
                    .because("The locale is not on its host: whatever uses an index of this collation fails.")
                    .about(used.indexes.iter().map(|index| index.label.clone()))
                    .mend("Install the locale (locale-gen, or the package with all of them), in the source's version."),
            );
        }
        (Probe::Differs, versions) => Finding::error(format!("{affected}, which sorts in another order than on the source"))
            .because(format!(
                "{}These indexes came along in the source's order and are wrong here: rows are not found, and duplicates get in.",
                versions.map(|text| text + " ").unwrap_or_default()
            )),
        (Probe::Alone, Some(versions)) => Finding::error(format!("{affected}, which has another version than on the source"))
            .because(format!("{versions} Where the order has changed, rows are not found, and duplicates get in.")),
        (Probe::Same, Some(versions)) => Finding::warning(format!("{affected}, which has another version than on the source")).because(
            format!("{versions} A sample of strings sorts the same on both, which does not prove it for all."),
        ),
        (Probe::Alone, None) => {
            let hint = Finding::warning(format!("{affected}, which cannot be compared with the source"))
                .because("The source cannot be asked, and the catalogue holds no version. Another C library sorts in another order.")
                .about(used.indexes.iter().map(|index| index.label.clone()))
                .mend("Run check while the source can be reached, or use a host with the source's operating system.");
            return (used.actual.is_none() || used.recorded.is_none()).then_some(hint);
        }
        (Probe::Same, None) => return None,
    };
    let refresh = match (used.is_default, used.recorded.is_some()) {
        (_, false) => None,
        (true, true) => Some("Then: alter database … refresh collation version;".to_owned()),
        (false, true) => Some(format!("Then: alter collation {collation} refresh version;")),
    };
    let mut indexes: Vec<&Index> = used.indexes.iter().collect();
    indexes.sort_by_key(|index| !index.is_unique);
    let statements = indexes.iter().map(|index| {
        let concurrently = if index.is_exclusion { "" } else { concurrently };
        format!("reindex index{concurrently} {};", index.label)
    });
    let partitioned = used.partitioned.iter().map(|table| format!("{table}, partitioned by ranges of it"));
    Some(
        finding
            .about(indexes.iter().map(|index| index.label.clone()))
            .about(partitioned)
            .mend("Use a replica with the source's operating system; or, once it is promoted and before the application writes:")
            .mends(statements)
            .mends(refresh),
    )
}

async fn used(node: &mut Node) -> Result<Vec<Used>> {
    let from_15 = node.major() >= Major::new(15);
    // before 15 the database's own collation is of the C library, and no version of it is recorded
    let (default_provider, default_recorded, default_actual) = if from_15 {
        ("d.datlocprovider::text", "d.datcollversion", "pg_database_collation_actual_version(d.oid)")
    } else {
        ("'c'", "null::text", OF_DATABASE_BEFORE_15)
    };
    node.rows(&format!(
        "with used as ( \
            select distinct u.of_collation, i.indexrelid, i.indisunique, i.indisexclusion, \
                   format('%I.%I', n.nspname, x.relname) as label \
            from pg_index i join pg_class c on c.oid = i.indrelid join pg_namespace n on n.oid = c.relnamespace \
               join pg_class x on x.oid = i.indexrelid, unnest(i.indcollation) u (of_collation) \
            where u.of_collation <> 0 and x.relkind = 'i' and c.relpersistence <> 't' and {USER_SCHEMAS}), \
         part as (select distinct u.of_collation, format('%I.%I', n.nspname, c.relname) as label from pg_partitioned_table p \
            join pg_class c on c.oid = p.partrelid join pg_namespace n on n.oid = c.relnamespace, \
            unnest(p.partcollation) u (of_collation) where u.of_collation <> 0 and p.partstrat = 'r' and {USER_SCHEMAS}), \
         known as (select l.oid, l.oid = {DEFAULT_COLLATION} as is_default, format('%I.%I', s.nspname, l.collname) as label, \
               l.collprovider::text as provider, l.collcollate, l.collversion as recorded, \
               case when l.collprovider in ('c', 'i') then pg_collation_actual_version(l.oid) end as actual \
            from pg_collation l join pg_namespace s on s.oid = l.collnamespace \
            where l.oid in (select of_collation from used union select of_collation from part)) \
         select k.label as \"collation\", k.is_default, \
                case when k.is_default then {default_provider} else k.provider end as provider, \
                case when k.is_default then {default_recorded} else k.recorded end as recorded, \
                case when k.is_default then {default_actual} else k.actual end as actual, \
                coalesce((select json_agg(json_build_object('label', label, 'is_unique', indisunique, 'is_exclusion', indisexclusion) order by label) \
                   from used where used.of_collation = k.oid), '[]') as indexes, \
                coalesce((select json_agg(label order by label) from part where part.of_collation = k.oid), '[]') as partitioned \
         from known k, pg_database d where d.datname = current_database() \
           and not (case when k.is_default then {default_provider} else k.provider end = 'b') \
           and not (case when k.is_default then {default_provider} else k.provider end = 'c' \
                and case when k.is_default then d.datcollate else k.collcollate end in ('C', 'POSIX')) \
         order by 1"
    ))
    .await
}

/// The version that a server's library has for a collation of the same name.
async fn actual_version(node: &mut Node, used: &Used) -> Result<Option<String>> {
    let question = if used.is_default {
        let version = match node.major() < Major::new(15) {
            true => OF_DATABASE_BEFORE_15,
            false => "pg_database_collation_actual_version(d.oid)",
        };
        format!("select {version} from pg_database d where d.datname = current_database()")
    } else {
        format!(
            "select pg_collation_actual_version(l.oid) from pg_collation l join pg_namespace s on s.oid = l.collnamespace \
             where format('%I.%I', s.nspname, l.collname) = {} and l.collprovider::text = {} \
               and l.collencoding in (-1, (select encoding from pg_database where datname = current_database())) limit 1",
            literal(&used.collation),
            literal(&used.provider)
        )
    };
    node.value(&question).await
}

/// Sorts the sample on the replica, and on the source where that can be reached.
async fn probe(replica: &mut Node, source: Option<&mut Node>, collation: &str) -> Result<Probe> {
    let encoding: Option<String> = replica.setting("server_encoding").await?;
    let question = question(collation, encoding.as_deref() == Some("UTF8"));
    let ours: String = match replica.value(&question).await {
        Ok(sorted) => sorted,
        // a locale that is not there is the server's refusal; a lost session is not
        Err(failed) if failed.kind() == Kind::User => {
            return Ok(Probe::Fails(crate::formats::error_line::joined(&failed)));
        }
        Err(failed) => return Err(failed),
    };
    let Some(source) = source else { return Ok(Probe::Alone) };
    let theirs: String = source.value(&question).await?;
    Ok(if ours == theirs { Probe::Same } else { Probe::Differs })
}

fn question(collation: &str, is_unicode: bool) -> String {
    let strings = ASCII.iter().chain(if is_unicode { UNICODE } else { &[] });
    let strings: Vec<_> = strings.map(|text| literal(text)).collect();
    let by_bytes = identifier("C");
    // equal ones, such as those of a collation that ignores case, follow in the order of their bytes
    format!(
        "select string_agg(s, chr(1) order by s collate {collation}, s collate {by_bytes}) from unnest(array[{}]) s",
        strings.join(",")
    )
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity;
    use super::*;

    fn used(recorded: Option<&str>, actual: Option<&str>) -> Used {
        let index = |label: &str, is_unique, is_exclusion| Index { label: label.into(), is_unique, is_exclusion };
        Used {
            collation: "pg_catalog.\"de_DE\"".into(),
            provider: "c".into(),
            is_default: false,
            recorded: recorded.map(str::to_owned),
            actual: actual.map(str::to_owned),
            indexes: vec![index("s.a", false, false), index("s.b", true, false), index("s.c", false, true)],
            partitioned: vec!["s.p".into()],
        }
    }

    #[test]
    fn the_probe_and_the_versions_decide() {
        let severity = |used: &Used, probe, source| finding(used, &probe, source, "").map(|found| found.severity);
        let (same, other, none) =
            (used(Some("2.31"), Some("2.31")), used(Some("2.31"), Some("2.36")), used(None, None));
        assert_eq!(severity(&same, Probe::Same, Some("2.31")), None);
        assert_eq!(severity(&none, Probe::Same, None), None);
        assert_eq!(severity(&none, Probe::Differs, None), Some(Severity::Error));
        assert_eq!(severity(&same, Probe::Differs, None), Some(Severity::Error));
        assert_eq!(severity(&other, Probe::Same, None), Some(Severity::Warning));
        assert_eq!(severity(&same, Probe::Same, Some("2.28")), Some(Severity::Warning));
        assert_eq!(severity(&other, Probe::Alone, None), Some(Severity::Error));
        assert_eq!(severity(&same, Probe::Alone, None), None);
        assert_eq!(severity(&none, Probe::Alone, None), Some(Severity::Warning));
        assert_eq!(severity(&none, Probe::Fails("no locale".into()), None), Some(Severity::Error));
    }

    #[test]
    fn unique_indexes_are_mended_first_and_those_of_exclusions_not_concurrently() {
        let found = finding(&used(Some("1"), Some("2")), &Probe::Differs, None, " concurrently").unwrap();
        let statements: Vec<_> = found.mend.iter().filter(|mend| mend.starts_with("reindex")).collect();
        assert_eq!(
            statements,
            ["reindex index concurrently s.b;", "reindex index concurrently s.a;", "reindex index s.c;"]
        );
        assert_eq!(found.objects.last().unwrap(), "s.p, partitioned by ranges of it");
        assert!(found.mend.last().unwrap().contains("refresh version"));
    }

    #[test]
    fn no_string_of_the_sample_holds_the_separator_or_comes_twice() {
        let all: Vec<_> = ASCII.iter().chain(UNICODE).collect();
        let unique: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(unique.len(), all.len());
        assert!(ASCII.iter().all(|text| text.is_ascii()) && all.iter().all(|text| !text.contains('\u{1}')));
    }
}
