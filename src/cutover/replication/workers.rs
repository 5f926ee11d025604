//! The subscriber's workers: one that follows, some that copy; how often they failed.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cutover::error::Result;
use crate::cutover::node::Node;
use crate::cutover::replication::link::Link;
use crate::cutover::replication::subscription;
use crate::pg::version::Major;

/// What the subscriber's workers do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Workers {
    /// Whether the one that follows runs.
    pub is_following: bool,
    /// The tables that are being copied, as `schema.name`.
    pub copying: Vec<String>,
    /// How often following failed since the statistics were reset; none before 15.
    pub apply_errors: Option<i64>,
    /// How often a copy failed; none before 15.
    pub copy_errors: Option<i64>,
}

#[derive(Debug, Deserialize)]
struct Running {
    table: Option<String>,
}

/// Looks at the workers of the subscription of `link`.
///
/// # Errors
///
/// When the subscriber refuses or is gone.
pub async fn look(node: &mut Node, link: &Link) -> Result<Workers> {
    let oid = subscription::oid(node.major(), link);
    let running: Vec<Running> = node
        .rows(&format!(
            "select n.nspname || '.' || c.relname as \"table\" from pg_stat_subscription s \
             left join pg_class c on c.oid = s.relid left join pg_namespace n on n.oid = c.relnamespace \
             where s.subid = {oid} and s.pid is not null"
        ))
        .await?;
    let mut workers =
        Workers { is_following: running.iter().any(|worker| worker.table.is_none()), ..Workers::default() };
    workers.copying = running.into_iter().filter_map(|worker| worker.table).collect();
    if node.major() >= Major::new(15) {
        let counts: Vec<Value> =
            node.rows(&format!("select * from pg_stat_subscription_stats where subid = {oid}")).await?;
        let count = |name: &str| counts.first().and_then(|row| row.get(name)).and_then(Value::as_i64);
        workers.apply_errors = count("apply_error_count");
        // 19 counts tables and sequences apart
        workers.copy_errors = count("sync_error_count").or_else(|| count("sync_table_error_count"));
    }
    Ok(workers)
}
