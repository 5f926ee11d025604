//! Roles and their rights: logical replication carries neither.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::finding::{Finding, counted};
use crate::cutover::error::Result;
use crate::cutover::node::{Node, Place};
use crate::cutover::plan::Plan;
use crate::cutover::tables::USER_SCHEMAS;
use crate::pg::quote::{identifier, literal};

#[derive(Deserialize)]
struct Involved {
    role: String,
    owns: bool,
    is_granted: bool,
}

#[derive(Deserialize)]
struct Right {
    label: String,
    rights: Vec<String>,
}

#[derive(Deserialize)]
struct Default {
    role: Option<String>,
    setting: String,
}

/// Roles that own or were granted something at the publisher, against the target's; the rights of the application's role; and
/// settings that databases and roles carry.
pub(super) async fn look(publisher: &mut Node, target: &mut Node, plan: &Plan) -> Result<Vec<Finding>> {
    let mut found = missing_roles(publisher, target, plan).await?;
    if let Some(application) = &plan.application {
        found.extend(rights(publisher, target, application.user()).await?);
    }
    found.extend(settings(publisher, target).await?);
    Ok(found.into_iter().map(|finding| finding.at(Place::Target)).collect())
}

async fn roles(node: &mut Node) -> Result<BTreeSet<String>> {
    node.value("select coalesce(array_agg(rolname), '{}') from pg_roles").await
}

async fn missing_roles(publisher: &mut Node, target: &mut Node, plan: &Plan) -> Result<Vec<Finding>> {
    let involved: Vec<Involved> = publisher
        .rows(&format!(
            "with object as ( \
                select c.relowner as owner, c.relacl as acl from pg_class c join pg_namespace n on n.oid = c.relnamespace where {USER_SCHEMAS} \
                union all select p.proowner, p.proacl from pg_proc p join pg_namespace n on n.oid = p.pronamespace where {USER_SCHEMAS} \
                union all select n.nspowner, n.nspacl from pg_namespace n where {USER_SCHEMAS} \
                union all select t.typowner, t.typacl from pg_type t join pg_namespace n on n.oid = t.typnamespace \
                   where {USER_SCHEMAS} and t.typtype in ('d', 'e')), \
             involved as (select distinct owner as role, true as owns from object \
                union all select distinct a.grantee, false from object, aclexplode(object.acl) a \
                where a.grantee <> 0 and a.grantee <> object.owner) \
             select r.rolname as role, bool_or(i.owns) as owns, bool_or(not i.owns) as is_granted \
             from involved i join pg_roles r on r.oid = i.role where r.rolname !~ '^pg_' group by 1 order by 1"
        ))
        .await?;
    let there = roles(target).await?;
    let schema = &plan.schema;
    let mut found = Vec::new();
    let missing: Vec<&Involved> = involved.iter().filter(|involved| !there.contains(&involved.role)).collect();
    let made = |roles: &[&Involved]| {
        roles.iter().map(|involved| format!("create role {};", identifier(&involved.role))).collect::<Vec<_>>()
    };
    let (granted, owning): (Vec<&Involved>, Vec<&Involved>) =
        missing.iter().copied().partition(|involved| involved.is_granted);
    if !granted.is_empty() {
        let is_stopped =
            schema.copy && (schema.keep_privileges || schema.keep_owners && granted.iter().any(|role| role.owns));
        found.push(
            Finding::error_if(
                is_stopped,
                format!(
                    "{} there that the publisher's objects are granted to",
                    counted(granted.len(), "role is not", "roles are not")
                ),
            )
            .because(if is_stopped {
                "pg_restore stops at a grant to a role that is not there."
            } else {
                "Whoever works by these rights has none on the target."
            })
            .about(granted.iter().map(|involved| involved.role.clone()))
            .mends(made(&granted))
            .mend("And grant them what they have on the publisher."),
        );
    }
    if !owning.is_empty() {
        let what = format!(
            "{} there that own objects on the publisher",
            counted(owning.len(), "role is not", "roles are not")
        );
        let names = owning.iter().map(|involved| involved.role.clone());
        found.push(if schema.copy && schema.keep_owners {
            Finding::error(what)
                .because("schema.keep_owners: pg_restore stops at the first of their objects.")
                .about(names)
                .mends(made(&owning))
        } else {
            Finding::note(what).because("On the target these objects have another owner.").about(names)
        });
    }
    if let Some(application) = &plan.application {
        let role = application.user();
        let is_told = granted.iter().any(|involved| involved.role == role);
        if !there.contains(role) && !is_told {
            found.push(
                Finding::warning(format!("the application's role \"{role}\" is not there"))
                    .because("Unless switch_to_target gives the application another one, it cannot log in.")
                    .mend(format!("create role {} login password '…';", identifier(role))),
            );
        }
    }
    Ok(found)
}

/// What the application's role may do with the publisher's tables and sequences and may not with the target's.
async fn rights(publisher: &mut Node, target: &mut Node, role: &str) -> Result<Option<Finding>> {
    let name = literal(role);
    let question = format!(
        "select format('%I.%I', n.nspname, c.relname) as label, array(select p from \
            unnest(case when c.relkind = 'S' then array['usage'] else array['select', 'insert', 'update', 'delete'] end) p \
            where case when c.relkind = 'S' then has_sequence_privilege({name}, c.oid, p) \
               else has_table_privilege({name}, c.oid, p) end) as rights \
         from pg_class c join pg_namespace n on n.oid = c.relnamespace \
         where c.relkind in ('r', 'p', 'v', 'S') and c.relpersistence <> 't' and {USER_SCHEMAS}"
    );
    for node in [&mut *publisher, &mut *target] {
        let exists: bool = node.value(&format!("select exists (select from pg_roles where rolname = {name})")).await?;
        if !exists {
            return Ok(None);
        }
    }
    let ours: Vec<Right> = publisher.rows(&question).await?;
    let theirs: Vec<Right> = target.rows(&question).await?;
    let theirs: BTreeMap<String, Vec<String>> = theirs.into_iter().map(|right| (right.label, right.rights)).collect();
    let mut grants: Vec<String> = ours
        .iter()
        .filter_map(|ours| {
            let there = theirs.get(&ours.label)?;
            let lacking: Vec<_> =
                ours.rights.iter().filter(|right| !there.contains(right)).map(String::as_str).collect();
            let kind = if ours.rights.iter().any(|right| right == "usage") { "sequence " } else { "" };
            (!lacking.is_empty())
                .then(|| format!("grant {} on {kind}{} to {};", lacking.join(", "), ours.label, identifier(role)))
        })
        .collect();
    if grants.is_empty() {
        return Ok(None);
    }
    grants.sort();
    Ok(Some(
        Finding::warning(format!(
            "\"{role}\" lacks rights on {} that it has on the publisher",
            counted(grants.len(), "object", "objects")
        ))
        .because("The application meets \"permission denied\" after the switch.")
        .mends(grants),
    ))
}

/// Settings of databases and roles: neither the schema's copy nor replication carries them.
async fn settings(publisher: &mut Node, target: &mut Node) -> Result<Option<Finding>> {
    let question = "select r.rolname as role, c as setting from pg_db_role_setting s left join pg_roles r on r.oid = s.setrole \
                    left join pg_database d on d.oid = s.setdatabase, unnest(s.setconfig) c \
                    where (s.setdatabase = 0 or d.datname = current_database()) and c not like 'default_transaction_read_only=%'";
    let ours: Vec<Default> = publisher.rows(question).await?;
    let theirs: Vec<Default> = target.rows(question).await?;
    let known =
        |default: &Default| theirs.iter().any(|other| other.role == default.role && other.setting == default.setting);
    let missing: Vec<String> = ours
        .iter()
        .filter(|default| !known(default))
        .map(|default| match &default.role {
            Some(role) => format!("alter role {} set {}", identifier(role), default.setting),
            None => format!("alter database {} set {}", identifier(target.database()), default.setting),
        })
        .collect();
    Ok((!missing.is_empty()).then(|| {
        Finding::note(format!(
            "{} of the publisher's database or roles not there",
            counted(missing.len(), "setting", "settings")
        ))
        .because("A search_path, a time zone or a time-out that the application counts on may be among them.")
        .about(missing)
    }))
}
