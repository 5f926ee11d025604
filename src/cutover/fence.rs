//! No more writes to a database, and where its last write is.
//!
//! The fence is `ALTER DATABASE … SET default_transaction_read_only = on`: what a database's owner may do on a managed server.
//! It binds sessions that begin after it, so those from before are ended. It is a row of the catalogue and so comes along to
//! every physical replica. A session can still ask for a transaction that may write: what wrote after the fence is looked for
//! at the end, by the transactions that were counted.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::context::{Cutover, Look};
use super::error::{CutoverError, Result};
use super::journal::Mark;
use super::node::{Node, Place};
use crate::formats::lsn::Lsn;
use crate::pg::quote::literal;
use crate::pg::session::Access;

/// What makes a database read-only for sessions that do not ask for more.
const SETTING: &str = "default_transaction_read_only";

/// The transaction number after the last one that has ended.
const NEXT_TRANSACTION: &str = "select txid_snapshot_xmax(txid_current_snapshot())";

/// Transactions that have a number, prepared ones included. A snapshot does not show those that are newer than the last one
/// that has ended; the lock on its own number, which each holds to its end, does, and everybody may see it.
const RUNNING_TRANSACTIONS: &str = "select count(*) from pg_locks where locktype = 'transactionid' \
     and mode = 'ExclusiveLock' and granted and pid is distinct from pg_backend_pid()";

/// The most that one message to fill a segment with holds: far below what a record may be.
const MESSAGE_BYTES: u64 = 4 << 20;

/// A database's last write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FencePoint {
    /// Where the WAL ended after the last write, asynchronous commits included.
    pub lsn: String,
    /// The WAL file that holds it, which begins with the timeline.
    pub file: String,
    /// The next transaction's number: when it has grown, something was written after all.
    pub next_transaction: i64,
}

impl FencePoint {
    /// Its position.
    ///
    /// # Errors
    ///
    /// When the journal was edited to something else.
    pub fn lsn(&self) -> Result<Lsn> {
        self.lsn.parse().map_err(|_| CutoverError::failed(format!("\"{}\" is no LSN", self.lsn)))
    }
}

/// What the database said before the fence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Before {
    value: Option<String>,
}

/// A session from before the fence.
#[derive(Debug, Deserialize)]
struct OldSession {
    pid: i32,
    user: Option<String>,
    application: Option<String>,
    is_superuser: bool,
    may_be_ended: bool,
    /// Whether this user may see when it began.
    is_dated: bool,
}

/// Makes the database of `node` read-only, ends the sessions from before, waits until no transaction runs, and tells where
/// the last write is. `mark` is journalled before anything is changed; done again it goes on where it stopped.
///
/// # Errors
///
/// When the user does not own the database, when a role's own setting overrides it, when a prepared transaction could still
/// commit, when sessions cannot be ended, or when `deadline` is over. What was set stays set: see [`lift`].
pub async fn raise(cutover: &mut Cutover, node: &mut Node, mark: Mark, deadline: Instant) -> Result<FencePoint> {
    look_for_obstacles(node).await?;
    let place = node.place();
    if !cutover.journal.has(mark) {
        let before = database_default(node).await?;
        if before.as_deref().is_some_and(is_on) {
            return Err(CutoverError::refused(format!("the {place}'s database is read-only already"))
                .with_detail("This cutover's journal does not say that it is so by its doing. Nothing was changed.")
                .with_hint(format!("If nobody wants it so: {} reset {SETTING};", node.alter_database())));
        }
        cutover.journal.record(mark, format!("making the {place}'s database read-only"), Before { value: before })?;
    }
    node.change(&format!("{} set {SETTING} = on", node.alter_database())).await?;
    let set_at: String = node.value("select clock_timestamp()::text").await?;
    if !cutover.rehearsal.permits(place, "end all sessions from before that with pg_terminate_backend()") {
        return locate(cutover, node, deadline).await;
    }
    let mut clean_looks = 0;
    let mut seen_first: Option<HashSet<i32>> = None;
    cutover
        .until(format_args!("no session from before the fence is left on the {place}"), Some(deadline), async || {
            let so_far = end_old_sessions(node, &set_at, &mut seen_first).await?;
            // a session that was just coming up may not have been shown yet the first time
            clean_looks = if so_far.is_none() { clean_looks + 1 } else { 0 };
            Ok(match so_far {
                None if clean_looks > 1 => Look::Holds,
                so_far => Look::NotYet(so_far.unwrap_or_else(|| "looking once more".to_owned())),
            })
        })
        .await?;
    locate(cutover, node, deadline).await
}

/// Waits until no transaction runs that has written, and tells where the WAL ends then.
///
/// # Errors
///
/// When the server is gone, or `deadline` is over.
pub async fn locate(cutover: &Cutover, node: &mut Node, deadline: Instant) -> Result<FencePoint> {
    let place = node.place();
    let mut found = None;
    cutover
        .until(format_args!("no transaction runs on the {place}"), Some(deadline), async || {
            // in this order: what begins after the number was read is counted later
            let next_transaction: i64 = node.value(NEXT_TRANSACTION).await?;
            if node.value::<i64>(RUNNING_TRANSACTIONS).await? > 0 {
                return Ok(Look::NotYet(running_transactions(node).await?));
            }
            found = Some(point(node, next_transaction).await?);
            Ok(Look::Holds)
        })
        .await?;
    match found {
        Some(found) => Ok(found),
        // a dry run has not waited
        None => point(node, 0).await,
    }
}

async fn point(node: &mut Node, next_transaction: i64) -> Result<FencePoint> {
    node.row(&format!(
        "select lsn::text, pg_walfile_name(lsn) as file, {next_transaction}::bigint as next_transaction \
         from (select pg_current_wal_insert_lsn() as lsn) at_end"
    ))
    .await
}

/// What the database's own default says.
async fn database_default(node: &mut Node) -> Result<Option<String>> {
    let defaults = node.defaults(SETTING).await?;
    Ok(defaults.into_iter().find(|row| row.role.is_none() && row.in_database).map(|row| row.value))
}

/// As the server reads a boolean.
fn is_on(value: &str) -> bool {
    matches!(value.to_ascii_lowercase().as_str(), "on" | "true" | "yes" | "1" | "t" | "y")
}

/// Finds what makes a fence useless or impossible.
///
/// # Errors
///
/// The first obstacle, and how to remove it.
pub async fn look_for_obstacles(node: &mut Node) -> Result<()> {
    let place = node.place();
    let may_alter: bool = node
        .value(
            "select pg_has_role(datdba, 'usage') or (select rolsuper from pg_roles where rolname = current_user) \
             from pg_database where datname = current_database()",
        )
        .await?;
    if !may_alter {
        let owner: String =
            node.value("select datdba::regrole::text from pg_database where datname = current_database()").await?;
        return Err(CutoverError::refused(format!(
            "the {place} cannot be fenced: \"{}\" does not own the database \"{}\"",
            node.user(),
            node.database()
        ))
        .with_detail(format!("Its owner is {owner}. Nothing was changed."))
        .with_hint(
            "Connect as the owner, or set promote.fence = false and keep the application from writing by other means.",
        ));
    }
    let defaults = node.defaults(SETTING).await?;
    let overriding: Vec<String> = defaults
        .into_iter()
        .filter(|row| !is_on(&row.value))
        .filter_map(|row| row.role.map(|role| (role, row.in_database)))
        .map(|(role, in_database)| {
            let database = if in_database { format!(" in database {}", node.database()) } else { String::new() };
            format!("alter role {role}{database} reset {SETTING}")
        })
        .collect();
    if !overriding.is_empty() {
        return Err(CutoverError::refused(format!(
            "the {place} cannot be fenced: roles have a {SETTING} of their own"
        ))
        .with_detail("It goes before the database's. Nothing was changed.")
        .with_hint(format!("Run: {}.", overriding.join("; "))));
    }
    // one in another database also keeps the snapshot from ever being empty
    let prepared: Vec<Prepared> = node
        .rows("select gid, owner::text, database::text, prepared::text from pg_prepared_xacts order by prepared")
        .await?;
    if !prepared.is_empty() {
        let listed = |each: &Prepared| {
            format!("\"{}\" of {} in {} since {}", each.gid, each.owner, each.database, each.prepared)
        };
        return Err(CutoverError::refused(format!("the {place} cannot be fenced: it has prepared transactions"))
            .with_detail(format!(
                "They are {}. Nothing was changed.",
                prepared.iter().map(listed).collect::<Vec<_>>().join(", ")
            ))
            .with_hint("Commit or roll back each with COMMIT PREPARED or ROLLBACK PREPARED."));
    }
    Ok(())
}

#[derive(Debug, Deserialize)]
struct Prepared {
    gid: String,
    owner: String,
    database: String,
    prepared: String,
}

/// Ends the sessions from before the fence; what is left, if anything that counts. Of others' sessions a plain user sees not
/// even when they began: those that were there at the first look are from before.
async fn end_old_sessions(
    node: &mut Node,
    set_at: &str,
    seen_first: &mut Option<HashSet<i32>>,
) -> Result<Option<String>> {
    let mut sessions: Vec<OldSession> = node
        .rows(&format!(
            "select a.pid, a.usename::text as user, a.application_name as application, \
                    coalesce(r.rolsuper, false) as is_superuser, a.backend_start is not null as is_dated, \
                    me.rolsuper or not r.rolsuper and (pg_has_role(a.usesysid, 'usage') \
                        or pg_has_role('pg_signal_backend', 'usage')) as may_be_ended \
             from pg_stat_activity a join pg_roles r on r.oid = a.usesysid \
                  cross join (select rolsuper from pg_roles where rolname = current_user) me \
             where a.datname = current_database() and a.pid <> pg_backend_pid() \
               and coalesce(a.backend_type, 'client backend') = 'client backend' \
               and a.pid not in (select pid from pg_stat_get_wal_senders() where pid is not null) \
               and coalesce(a.backend_start, '-infinity') < '{set_at}'"
        ))
        .await?;
    let first = seen_first.get_or_insert_with(|| sessions.iter().map(|session| session.pid).collect());
    sessions.retain(|session| session.is_dated || first.contains(&session.pid));
    let (mine, others): (Vec<_>, Vec<_>) = sessions.into_iter().partition(|session| session.may_be_ended);
    if !mine.is_empty() {
        let pids: Vec<_> = mine.iter().map(|session| session.pid.to_string()).collect();
        let question = format!("select count(pg_terminate_backend(pid)) from unnest(array[{}]) pid", pids.join(","));
        let _: i64 = node.value(&question).await?;
        return Ok(Some(format!("{} sessions are being ended", mine.len())));
    }
    // a managed server's own superusers watch it from every database, and cannot be sent away
    let foreign: Vec<_> = others.iter().filter(|session| !session.is_superuser).map(describe).collect();
    if foreign.is_empty() {
        Ok(None)
    } else {
        Ok(Some(format!("these sessions cannot be ended by this user: {}", foreign.join(", "))))
    }
}

/// Who they are, as far as this user may see.
async fn running_transactions(node: &mut Node) -> Result<String> {
    let who: Option<String> = node
        .value(
            "select string_agg(format('pid %s of %s in %s', l.pid, coalesce(a.usename, a.backend_type), a.datname), ', ') \
             from pg_locks l left join pg_stat_activity a on a.pid = l.pid \
             where l.locktype = 'transactionid' and l.mode = 'ExclusiveLock' and l.granted \
               and l.pid is distinct from pg_backend_pid()",
        )
        .await?;
    Ok(format!("a transaction is still running: {}", who.unwrap_or_else(|| "it has just ended".to_owned())))
}

fn describe(session: &OldSession) -> String {
    let user = session.user.as_deref().unwrap_or("someone");
    let application = session.application.as_deref().filter(|name| !name.is_empty());
    format!("pid {} of {user}{}", session.pid, application.map(|name| format!(" ({name})")).unwrap_or_default())
}

/// Whether the database is read-only by default, as a fence leaves it.
///
/// # Errors
///
/// When the server is gone.
pub async fn stands(node: &mut Node) -> Result<bool> {
    Ok(database_default(node).await?.as_deref().is_some_and(is_on))
}

/// How many transactions have got a number since the fence, those that are still running included: autovacuum takes some, and
/// so does a session that overrode it.
///
/// # Errors
///
/// When the server is gone.
pub async fn transactions_since(node: &mut Node, point: &FencePoint) -> Result<i64> {
    // in this order: what was running and has just ended is in the number
    let running: i64 = node.value(RUNNING_TRANSACTIONS).await?;
    let next: i64 = node.value(NEXT_TRANSACTION).await?;
    Ok(running + next - point.next_transaction)
}

/// Looks once more behind the fence on `fenced` that `mark` tells of: a write between the last look and the switch to
/// `follower` is lost but not unsaid.
pub async fn look_back(cutover: &mut Cutover, mark: Mark, fenced: Place, follower: Place) {
    let Some(point) = cutover.journal.data::<FencePoint>(mark) else { return };
    let Ok(mut node) = cutover.connect(fenced, Access::ReadOnly).await else { return };
    if let Ok(later) = transactions_since(&mut node, &point).await
        && later > 0
    {
        let what = format!(
            "{later} transactions got a number on the {fenced} after {}: autovacuum's, or writes behind the fence that the {follower} lacks",
            point.lsn
        );
        tracing::warn!("{what}");
        let _ = cutover.journal.note(what);
    }
    node.close().await;
}

/// Writes as much WAL as it takes to complete the segment that holds `point`, so that it is archived: a plain user may not
/// switch segments, but may write messages that nobody reads.
///
/// # Errors
///
/// When the server refuses or is gone.
pub async fn complete_segment(node: &mut Node, point: &FencePoint) -> Result<()> {
    let may_switch: bool = node.value("select has_function_privilege('pg_switch_wal()', 'execute')").await?;
    if may_switch {
        return node.change("select pg_switch_wal()").await;
    }
    let segment_bytes: u64 = node.value("select pg_size_bytes(current_setting('wal_segment_size'))").await?;
    let end = (point.lsn()?.0 / segment_bytes + 1) * segment_bytes;
    loop {
        let at = node.insert_lsn().await?.0;
        if at >= end {
            return Ok(());
        }
        let bytes = (end - at).min(MESSAGE_BYTES);
        node.change(&format!("select pg_logical_emit_message(false, 'wal-eve', repeat('x', {bytes}))")).await?;
        if node.is_rehearsed() {
            return Ok(());
        }
    }
}

/// Lifts the fence from the database of `node`: there, or where the catalogue's row has come along to. A fence that `mark`
/// does not show to be this cutover's is left alone.
///
/// # Errors
///
/// When the server refuses or is gone: the fence is then still there, and the journal says so.
pub async fn lift(cutover: &Cutover, node: &mut Node, mark: Mark) -> Result<()> {
    let Some(before) = cutover.journal.data::<Before>(mark) else { return Ok(()) };
    let statement = match before.value {
        None => format!("{} reset {SETTING}", node.alter_database()),
        Some(value) => format!("{} set {SETTING} = {}", node.alter_database(), literal(&value)),
    };
    node.change(&statement).await
}

/// Makes sure that the database of `node`, where the application is to live, is not read-only by default: a fence of an earlier
/// move, or of an attempt that was given up, may have come along.
///
/// # Errors
///
/// When the server refuses or is gone.
pub async fn clear(node: &mut Node) -> Result<()> {
    if !stands(node).await? {
        return Ok(());
    }
    tracing::warn!("the {}'s database is read-only by default: it will not be from here on", node.place());
    node.change(&format!("{} reset {SETTING}", node.alter_database())).await
}
