//! What the publisher offers: all tables, or a list of them. Either way the marker's table is among them.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::cutover::error::{CutoverError, Result};
use crate::cutover::marker;
use crate::cutover::node::Node;
use crate::cutover::replication::link::Link;
use crate::cutover::tables::Table;
use crate::pg::quote::{identifier, literal};

#[derive(Debug, Deserialize)]
struct Found {
    all_tables: bool,
    publishes_all: bool,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
struct Name {
    quoted: String,
}

/// Makes the publication of `link` on its publisher; none of `tables` is all of them, which only a superuser may ask for.
/// One that is there already is completed, and one that is of another kind refused.
///
/// # Errors
///
/// When the publisher refuses or is gone, or has another publication of that name.
pub async fn create(node: &mut Node, link: &Link, tables: Option<&[Table]>) -> Result<()> {
    let name = identifier(&link.publication);
    let wanted = tables.map(names);
    let list = |names: &BTreeSet<String>| names.iter().cloned().collect::<Vec<_>>().join(", ");
    let Some(found) = find(node, link).await? else {
        return node
            .change(&match &wanted {
                None => format!("create publication {name} for all tables"),
                Some(wanted) => format!("create publication {name} for table {}", list(wanted)),
            })
            .await;
    };
    if found.all_tables != wanted.is_none() || !found.publishes_all {
        return Err(CutoverError::refused(format!("the {} has another publication {name}", node.place()))
            .with_detail(format!(
                "It is for {}{}.",
                if found.all_tables { "all tables" } else { "a list of tables" },
                if found.publishes_all { "" } else { ", and leaves out some kind of change" }
            ))
            .with_hint("Drop it if nobody needs it, or give replication.publication another name in the plan."));
    }
    let Some(wanted) = wanted else { return Ok(()) };
    if published(node, link).await? == wanted {
        return Ok(());
    }
    node.change(&format!("alter publication {name} set table {}", list(&wanted))).await
}

/// Whether the publication of `link` is on its publisher.
///
/// # Errors
///
/// When the publisher refuses or is gone.
pub async fn exists(node: &mut Node, link: &Link) -> Result<bool> {
    Ok(find(node, link).await?.is_some())
}

/// Drops the publication of `link` from its publisher, if it is there.
///
/// # Errors
///
/// When the publisher refuses or is gone.
pub async fn drop(node: &mut Node, link: &Link) -> Result<()> {
    if !exists(node, link).await? {
        return Ok(());
    }
    node.change(&format!("drop publication if exists {}", identifier(&link.publication))).await
}

async fn find(node: &mut Node, link: &Link) -> Result<Option<Found>> {
    let found: Vec<Found> = node
        .rows(&format!(
            "select puballtables as all_tables, pubinsert and pubupdate and pubdelete as publishes_all \
             from pg_publication where pubname = {}",
            literal(&link.publication)
        ))
        .await?;
    Ok(found.into_iter().next())
}

async fn published(node: &mut Node, link: &Link) -> Result<BTreeSet<String>> {
    let names: Vec<Name> = node
        .rows(&format!(
            "select '\"' || replace(schemaname, '\"', '\"\"') || '\".\"' || replace(tablename, '\"', '\"\"') || '\"' as quoted \
             from pg_publication_tables where pubname = {}",
            literal(&link.publication)
        ))
        .await?;
    Ok(names.into_iter().map(|name| name.quoted).collect())
}

/// The tables for SQL, the marker's among them.
fn names(tables: &[Table]) -> BTreeSet<String> {
    let marker: Vec<_> = marker::table().split('.').map(identifier).collect();
    tables.iter().map(Table::quoted).chain([marker.join(".")]).collect()
}
