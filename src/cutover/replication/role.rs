//! The role that the subscriber logs in as on the publisher: LOGIN, REPLICATION, and reading what is published; nothing else.
//!
//! BYPASSRLS comes on top where a published table has row security: else the copy would leave out, without a word, the rows
//! that its policies hide.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::cutover::error::{CutoverError, Result};
use crate::cutover::marker;
use crate::cutover::node::Node;
use crate::cutover::tables::{OWN_SCHEMA, Table};
use crate::pg::conninfo::{MASK, Password};
use crate::pg::quote::{identifier, literal};
use crate::pg::scram;

/// RDS and Aurora give this role's members what REPLICATION is elsewhere, and nobody the attribute.
const MANAGED: &str = "rds_replication";

#[derive(Debug, Deserialize)]
struct Found {
    can_login: bool,
    can_replicate: bool,
    is_superuser: bool,
    bypasses_rls: bool,
}

#[derive(Debug, Deserialize)]
struct Privileges {
    database: bool,
    schemas: Vec<String>,
    tables: Vec<String>,
}

/// Whether the server has the role.
///
/// # Errors
///
/// When the server refuses or is gone.
pub async fn exists(node: &mut Node, role: &str) -> Result<bool> {
    Ok(find(node, role).await?.is_some())
}

/// Makes the role with a password.
///
/// # Errors
///
/// When there is no password, or one that cannot be sent as a verifier; when the server refuses or is gone.
pub async fn create(node: &mut Node, role: &str, password: Option<&Password>) -> Result<()> {
    let password = password.ok_or_else(|| {
        CutoverError::refused(format!("the role \"{role}\" is to be made on the {} and has no password", node.place()))
            .with_hint("Set replication.password_env or replication.password_file in the plan.")
    })?;
    let name = identifier(role);
    let (attribute, membership) = match is_managed(node).await? {
        true => ("login", format!("; grant {MANAGED} to {name}")),
        false => ("login replication", String::new()),
    };
    let statement =
        |verifier: &str| format!("create role {name} with {attribute} password {}{membership}", literal(verifier));
    node.change_secretly(&statement(&scram::verifier(password)?), &statement(MASK)).await
}

/// Gives a role that was made by this cutover the plan's password, where it has another one.
///
/// # Errors
///
/// As [`create`].
pub async fn set_password(node: &mut Node, role: &str, password: Option<&Password>) -> Result<()> {
    let Some(password) = password else { return Ok(()) };
    let may_look: bool = node.value("select has_column_privilege('pg_authid', 'rolpassword', 'select')").await?;
    if !may_look {
        return Ok(());
    }
    let kept: Option<String> =
        node.value(&format!("select rolpassword from pg_authid where rolname = {}", literal(role))).await?;
    if kept.is_some_and(|kept| scram::matches(password, &kept)) {
        return Ok(());
    }
    let statement = |verifier: &str| format!("alter role {} with password {}", identifier(role), literal(verifier));
    node.change_secretly(&statement(&scram::verifier(password)?), &statement(MASK)).await
}

/// Gives the role what it lacks to read `tables` and the marker, and to replicate.
///
/// # Errors
///
/// When the server refuses or is gone.
pub async fn grant(node: &mut Node, role: &str, tables: &[Table]) -> Result<()> {
    let name = identifier(role);
    let found = find(node, role).await?;
    if let Some(found) = &found {
        if !found.can_login {
            node.change(&format!("alter role {name} with login")).await?;
        }
        if !found.can_replicate && !found.is_superuser {
            let statement = match is_managed(node).await? {
                true => format!("grant {MANAGED} to {name}"),
                false => format!("alter role {name} with replication"),
            };
            node.change(&statement).await?;
        }
    }
    let bypasses = found.as_ref().is_some_and(|found| found.bypasses_rls || found.is_superuser);
    if !bypasses && has_row_security(node, tables).await? {
        node.change(&format!("alter role {name} with bypassrls")).await?;
    }
    let wanted = wanted(tables);
    let lacking = match found {
        None => wanted,
        Some(_) => lacking(node, role, &wanted).await?,
    };
    let mut statements = Vec::new();
    if lacking.database {
        statements.push(format!("grant connect on database {} to {name}", identifier(node.database())));
    }
    if !lacking.schemas.is_empty() {
        statements.push(format!("grant usage on schema {} to {name}", lacking.schemas.join(", ")));
    }
    if !lacking.tables.is_empty() {
        statements.push(format!("grant select on table {} to {name}", lacking.tables.join(", ")));
    }
    if statements.is_empty() {
        return Ok(());
    }
    node.change(&statements.join("; ")).await
}

/// Takes everything from the role and drops it, if it is there.
///
/// # Errors
///
/// When the server refuses or is gone, or when the role is used elsewhere.
pub async fn drop(node: &mut Node, role: &str) -> Result<()> {
    if !exists(node, role).await? {
        return Ok(());
    }
    let name = identifier(role);
    node.change(&format!("drop owned by {name}; drop role {name}")).await
}

async fn find(node: &mut Node, role: &str) -> Result<Option<Found>> {
    let found: Vec<Found> = node
        .rows(&format!(
            "select rolcanlogin as can_login, rolsuper as is_superuser, rolbypassrls as bypasses_rls, \
                    rolreplication or exists (select from pg_roles m where m.rolname = '{MANAGED}' \
                        and pg_has_role(r.oid, m.oid, 'member')) as can_replicate \
             from pg_roles r where rolname = {}",
            literal(role)
        ))
        .await?;
    Ok(found.into_iter().next())
}

async fn is_managed(node: &mut Node) -> Result<bool> {
    node.value(&format!("select exists (select from pg_roles where rolname = '{MANAGED}')")).await
}

async fn has_row_security(node: &mut Node, tables: &[Table]) -> Result<bool> {
    let secured: Vec<Secured> = node
        .rows("select n.nspname as schema, c.relname as name from pg_class c join pg_namespace n on n.oid = c.relnamespace \
               where c.relrowsecurity and c.relkind = 'r'")
        .await?;
    Ok(secured.iter().any(|one| tables.iter().any(|table| table.schema == one.schema && table.name == one.name)))
}

#[derive(Debug, Deserialize)]
struct Secured {
    schema: String,
    name: String,
}

fn wanted(tables: &[Table]) -> Privileges {
    let schemas: BTreeSet<String> =
        tables.iter().map(|table| identifier(&table.schema)).chain([identifier(OWN_SCHEMA)]).collect();
    let tables = tables.iter().map(Table::quoted).chain([marker::table()]).collect();
    Privileges { database: true, schemas: schemas.into_iter().collect(), tables }
}

async fn lacking(node: &mut Node, role: &str, wanted: &Privileges) -> Result<Privileges> {
    let role = literal(role);
    let array = |names: &[String]| {
        let names: Vec<_> = names.iter().map(|name| literal(name)).collect();
        format!("array[{}]::text[]", names.join(","))
    };
    let schemas: Vec<String> =
        wanted.schemas.iter().map(|quoted| quoted[1..quoted.len() - 1].replace("\"\"", "\"")).collect();
    // what is not there yet in a dry run is null to to_regclass, and lacking
    let mut found: Privileges = node
        .row(&format!(
            "select not has_database_privilege({role}, current_database(), 'connect') as database, \
                    coalesce((select json_agg(quote_ident(name)) from unnest({}) name \
                        where not coalesce((select has_schema_privilege({role}, oid, 'usage') \
                            from pg_namespace where nspname = name), false)), '[]') as schemas, \
                    coalesce((select json_agg(name) from unnest({}) name \
                        where not coalesce(has_table_privilege({role}, to_regclass(name), 'select'), false)), '[]') as tables",
            array(&schemas),
            array(&wanted.tables)
        ))
        .await?;
    found.schemas.sort();
    Ok(found)
}
