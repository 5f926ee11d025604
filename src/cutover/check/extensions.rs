//! Extensions: what the target can have of them, and whether their files are on the replica's host.

use std::collections::HashMap;

use serde::Deserialize;

use super::finding::{Finding, counted};
use crate::cutover::error::Result;
use crate::cutover::node::{Node, Place};
use crate::pg::quote::identifier;

#[derive(Debug, Deserialize)]
struct Extension {
    name: String,
    version: String,
    schema: String,
    /// Whether anything of the user's depends on it, as far as the catalogue knows.
    is_used: bool,
}

#[derive(Debug, Deserialize)]
struct Available {
    name: String,
    /// The newest that can be had.
    default_version: Option<String>,
    /// The one that is installed in this database.
    installed: Option<String>,
    versions: Vec<String>,
}

async fn extensions(node: &mut Node) -> Result<Vec<Extension>> {
    node.rows(
        "with member as (select classid, objid, refobjid as extension from pg_depend \
            where refclassid = 'pg_extension'::regclass and deptype = 'e') \
         select e.extname as name, e.extversion as version, n.nspname as schema, \
                exists (select from member m join pg_depend d on d.refclassid = m.classid and d.refobjid = m.objid \
                   where m.extension = e.oid and d.deptype in ('n', 'a') \
                     and not exists (select from member own where own.classid = d.classid and own.objid = d.objid) \
                     and not (d.classid = 'pg_extension'::regclass)) as is_used \
         from pg_extension e join pg_namespace n on n.oid = e.extnamespace where e.extname <> 'plpgsql' order by 1",
    )
    .await
}

async fn available(node: &mut Node) -> Result<HashMap<String, Available>> {
    let rows: Vec<Available> = node
        .rows(
            "select name, a.default_version, a.installed_version as installed, \
                    coalesce(v.versions, '{}') as versions \
             from pg_available_extensions a left join \
                (select name, array_agg(version) as versions from pg_available_extension_versions group by 1) v using (name)",
        )
        .await?;
    Ok(rows.into_iter().map(|row| (row.name.clone(), row)).collect())
}

/// The publisher's extensions against what the target has and could have. `schema_is_copied` makes them there.
pub(super) async fn target(publisher: &mut Node, target: &mut Node, schema_is_copied: bool) -> Result<Vec<Finding>> {
    let wanted = extensions(publisher).await?;
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let there = available(target).await?;
    let found =
        wanted.iter().filter_map(|extension| on_target(extension, there.get(&extension.name), schema_is_copied));
    Ok(found.map(|finding| finding.at(Place::Target)).collect())
}

fn on_target(extension: &Extension, there: Option<&Available>, schema_is_copied: bool) -> Option<Finding> {
    let Extension { name, version, schema, is_used } = extension;
    let use_of_it =
        if *is_used { "Objects of the database depend on it." } else { "No object is known to depend on it." };
    let Some(there) = there.filter(|there| there.default_version.is_some() || there.installed.is_some()) else {
        return Some(
            Finding::error_if(*is_used, format!("the extension \"{name}\" cannot be had there"))
                .because(format!("{use_of_it} What needs it cannot be made on the target."))
                .mend("Do without it, or ask the target's provider for it, or choose another target."),
        );
    };
    let Some(installed) = &there.installed else {
        if schema_is_copied {
            return Some(
                Finding::note(format!("the extension \"{name}\" will be made with the schema"))
                    .because("That takes the right to create it: a trusted extension, a superuser, or rds_superuser."),
            );
        }
        return Some(
            Finding::error_if(*is_used, format!("the extension \"{name}\" is not installed"))
                .because(use_of_it)
                .mend(format!("create extension {} with schema {};", identifier(name), identifier(schema))),
        );
    };
    (is_older(installed, version)).then(|| {
        Finding::warning(format!("the extension \"{name}\" is {installed}, the publisher's {version}"))
            .because("Functions and types of the newer version are missing there.")
            .mend(format!("alter extension {} update;", identifier(name)))
    })
}

/// Whether a version is the lower one, where both are numbers and dots; what else there is nobody can order.
fn is_older(version: &str, than: &str) -> bool {
    let numbers = |text: &str| text.split('.').map(|part| part.parse::<u32>().ok()).collect::<Option<Vec<_>>>();
    matches!((numbers(version), numbers(than)), (Some(version), Some(than)) if version < than)
}

#[derive(Deserialize)]
struct Library {
    name: String,
    functions: i64,
}

/// Whether the replica's host has the files of what the database uses: they do not come along in the WAL.
pub(super) async fn replica(node: &mut Node) -> Result<Vec<Finding>> {
    let wanted = extensions(node).await?;
    let there = if wanted.is_empty() { HashMap::new() } else { available(node).await? };
    let mut found = Vec::new();
    for extension in &wanted {
        let Extension { name, version, .. } = extension;
        match there.get(name) {
            None => found.push(
                Finding::error(format!("the files of the extension \"{name}\" are not on its host"))
                    .because("The catalogue has come along from the source, the files have not: what uses them fails after the promotion.")
                    .mend(format!("Install the package that brings {name} for PostgreSQL {}.", node.major())),
            ),
            Some(there) if !there.versions.contains(version) => found.push(
                Finding::warning(format!("the extension \"{name}\" is at {version}, and its host has {}", there.versions.join(", ")))
                    .because("The functions as the catalogue has them may not be in the library that is there.")
                    .mend(format!("Install the package of the source's version, or after the promotion: alter extension {} update;", identifier(name))),
            ),
            Some(_) => {}
        }
    }
    let missing: Vec<Library> = node
        .rows(
            "with place as (select setting || '/' as directory from pg_config where name = 'PKGLIBDIR'), \
             library as (select p.probin as name, count(*) as functions from pg_proc p join pg_language l on l.oid = p.prolang \
                where l.lanname = 'c' and p.probin is not null group by 1), \
             located as (select name, functions, case when name like '$libdir/%' then directory || substr(name, 9) \
                   when name like '/%' then name when strpos(name, '/') = 0 then directory || name end as path from library, place) \
             select name, functions from located where path is not null \
                and (pg_stat_file(path, true)).size is null and (pg_stat_file(path || '.so', true)).size is null order by 1",
        )
        .await?;
    if !missing.is_empty() {
        let told = |library: &Library| format!("{}, {} functions", library.name, library.functions);
        found.push(
            Finding::error(format!("{} not on its host", counted(missing.len(), "library is", "libraries are")))
                .because("Functions of the database are in them: after the promotion each call fails, and so does each index that uses one.")
                .about(missing.iter().map(told))
                .mend("Install the packages that bring them, of the source's versions."),
        );
    }
    Ok(found.into_iter().map(|finding| finding.at(node.place())).collect())
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity;
    use super::*;

    fn extension(is_used: bool) -> Extension {
        Extension { name: "x".into(), version: "1.10".into(), schema: "public".into(), is_used }
    }

    fn available(installed: Option<&str>) -> Available {
        let installed = installed.map(str::to_owned);
        Available { name: "x".into(), default_version: Some("2.0".into()), installed, versions: Vec::new() }
    }

    #[test]
    fn what_the_target_lacks_weighs_by_its_use() {
        let severity = |used, there: Option<&Available>, copied| {
            on_target(&extension(used), there, copied).map(|found| found.severity)
        };
        assert_eq!(severity(true, None, true), Some(Severity::Error));
        assert_eq!(severity(false, None, true), Some(Severity::Warning));
        assert_eq!(severity(true, Some(&available(None)), false), Some(Severity::Error));
        assert_eq!(severity(true, Some(&available(None)), true), Some(Severity::Note));
        assert_eq!(severity(true, Some(&available(Some("1.9"))), false), Some(Severity::Warning));
        assert_eq!(severity(true, Some(&available(Some("1.10"))), false), None);
    }

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert!(is_older("1.9", "1.10") && is_older("3", "3.1"));
        assert!(!is_older("1.10", "1.9") && !is_older("1.0", "1.0") && !is_older("unpackaged", "1.0"));
    }
}
