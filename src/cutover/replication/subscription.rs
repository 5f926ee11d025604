//! The subscriber's side of a link: the subscription, and how far each table of it is.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::cutover::error::Result;
use crate::cutover::node::Node;
use crate::cutover::replication::link::Link;
use crate::pg::conninfo::Conninfo;
use crate::pg::quote::{identifier, literal};
use crate::pg::session::SECRET;
use crate::pg::version::Major;

/// The class "Syntax Error or Access Rule Violation" of "PostgreSQL Error Codes".
const ACCESS_RULE_VIOLATION: &str = "42";

/// How far a table is: `srsubstate` in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CopyState {
    /// Nothing is copied yet: every place for a copy is taken.
    #[serde(alias = "i")]
    Waiting,
    /// Its rows are being copied.
    #[serde(alias = "d")]
    Copying,
    /// Its rows are copied; what changed meanwhile is not there yet.
    #[serde(alias = "f")]
    Copied,
    /// It has what changed while it was copied.
    #[serde(alias = "s")]
    CaughtUp,
    /// It follows the publisher.
    #[serde(alias = "r")]
    Ready,
}

impl fmt::Display for CopyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Waiting => "waiting",
            Self::Copying => "copying",
            Self::Copied => "copied, catching up",
            Self::CaughtUp => "caught up",
            Self::Ready => "ready",
        })
    }
}

/// A table of a subscription.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct TableState {
    /// Its number on the subscriber.
    pub oid: u32,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// How far it is.
    pub state: CopyState,
}

impl TableState {
    /// `schema.name` for messages.
    pub fn label(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }
}

/// Makes the subscription of `link` on its subscriber, over the slot that is there; it begins at once. One that is there
/// already is only switched on and pointed at the slot. `connection` is how the subscriber's server reaches the publisher.
///
/// # Errors
///
/// When the subscriber refuses or is gone, or cannot reach the publisher.
pub async fn create(node: &mut Node, link: &Link, connection: &Conninfo, copy_data: bool) -> Result<()> {
    let name = identifier(&link.subscription);
    let (revealed, masked) = (connection.revealed(), connection.masked());
    if let Some(found) = find(node, link).await? {
        // another address or password than at the last try
        node.change_with_secret(&format!("alter subscription {name} connection {SECRET}"), &revealed, &masked).await?;
        if !found.enabled || found.slot.as_deref() != Some(&link.slot) {
            node.change(&format!("alter subscription {name} set (slot_name = {})", literal(&link.slot))).await?;
            node.change(&format!("alter subscription {name} enable")).await?;
        }
        return Ok(());
    }
    let statement = format!(
        "create subscription {name} connection {SECRET} publication {} \
         with (create_slot = false, slot_name = {}, copy_data = {copy_data})",
        identifier(&link.publication),
        literal(&link.slot)
    );
    node.change_with_secret(&statement, &revealed, &masked).await.map_err(|failed| {
        // a table or a right that this server lacks has nothing to do with the way to the other
        if failed.sqlstate().is_some_and(|code| code.starts_with(ACCESS_RULE_VIOLATION)) {
            return failed;
        }
        failed.with_hint(format!(
            "The server of the {} itself has to reach the {} at {connection} and log in there: its address, password and \
             pg_hba.conf are to be right.",
            link.subscriber, link.publisher
        ))
    })
}

/// Lets the subscription of `link` copy and follow what is published and new to it.
///
/// # Errors
///
/// When the subscriber refuses or is gone, or cannot reach the publisher.
pub async fn refresh(node: &mut Node, link: &Link) -> Result<()> {
    node.change(&format!("alter subscription {} refresh publication", identifier(&link.subscription))).await
}

/// Drops the subscription of `link` from its subscriber, if it is there. Its slot stays on the publisher, which need not be
/// reached: see [`crate::cutover::replication::slot::drop`].
///
/// # Errors
///
/// When the subscriber refuses or is gone.
pub async fn drop(node: &mut Node, link: &Link) -> Result<()> {
    let Some(found) = find(node, link).await? else { return Ok(()) };
    let name = identifier(&link.subscription);
    if found.enabled {
        node.change(&format!("alter subscription {name} disable")).await?;
    }
    if found.slot.is_some() {
        node.change(&format!("alter subscription {name} set (slot_name = none)")).await?;
    }
    node.change(&format!("drop subscription if exists {name}")).await
}

/// A subscription as the catalogue shows it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Subscription {
    /// Whether it is switched on.
    pub enabled: bool,
    /// The slot that it uses.
    pub slot: Option<String>,
}

/// The subscription of `link` on its subscriber.
///
/// # Errors
///
/// When the subscriber refuses or is gone.
pub async fn find(node: &mut Node, link: &Link) -> Result<Option<Subscription>> {
    let found: Vec<Subscription> = node
        .rows(&format!(
            "select subenabled as enabled, subslotname as slot from pg_subscription where subname = {} \
             and subdbid = (select oid from pg_database where datname = current_database())",
            literal(&link.subscription)
        ))
        .await?;
    Ok(found.into_iter().next())
}

/// Every table of the subscription of `link`, by schema and name; none when there is no subscription.
///
/// # Errors
///
/// When the subscriber refuses or is gone.
pub async fn table_states(node: &mut Node, link: &Link) -> Result<Vec<TableState>> {
    node.rows(&format!(
        "select c.oid::bigint as oid, n.nspname as schema, c.relname as name, r.srsubstate as state \
         from pg_subscription_rel r join pg_class c on c.oid = r.srrelid join pg_namespace n on n.oid = c.relnamespace \
         where r.srsubid = {} order by n.nspname, c.relname",
        oid(node.major(), link)
    ))
    .await
}

/// How the slots are named on the publisher that the copies of the subscription of `link` use, as a regular expression; none
/// before 14, where each of them ends with its session. A subscription that is dropped drops them itself while its server can
/// reach the publisher; from then on nobody knows them.
///
/// # Errors
///
/// When the subscriber refuses or is gone, or has no such subscription.
pub async fn copy_slots(node: &mut Node, link: &Link) -> Result<Option<String>> {
    if node.major() < Major::new(14) {
        return Ok(None);
    }
    // ReplicationSlotNameForTablesync of the server's tablesync.c
    node.value(&format!(
        "select format('^pg_%s_sync_[0-9]+_%s$', {}, system_identifier) from pg_control_system()",
        oid(node.major(), link)
    ))
    .await
    .map(Some)
}

/// The subscription's number for SQL; null when there is none.
pub fn oid(major: Major, link: &Link) -> String {
    let name = literal(&link.subscription);
    if major >= Major::new(14) {
        format!(
            "(select oid from pg_subscription where subname = {name} \
             and subdbid = (select oid from pg_database where datname = current_database()))"
        )
    } else {
        // there, only a superuser may read pg_subscription.oid
        format!("(select subid from pg_stat_subscription where subname = {name} limit 1)")
    }
}
