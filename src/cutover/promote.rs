//! The first move: the application goes from the source to the replica, which becomes a primary.
//!
//! With a fence: the source is made read-only, its last write is located and carried over in a completed WAL segment, and only
//! a replica that has replayed it is promoted. Until then every failure undoes everything; from then on the way is forward.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::time::Instant;

use super::context::{Cutover, Look};
use super::error::{CutoverError, Kind, Result};
use super::fence::{self, FencePoint};
use super::hook::Hook;
use super::journal::{Mark, time_text as at_text};
use super::lineage;
use super::marker;
use super::node::{Node, Place};
use super::quantity::{bytes_text, time_text};
use super::retreat::Move;
use crate::formats::error_line::joined;
use crate::formats::key::Layout;
use crate::formats::wal_name::{SegmentName, SegmentSize};
use crate::pg::quote::literal;
use crate::pg::session::Access;
use crate::pg::version::Major;
use crate::storage::{StorageError, Store};
use crate::transfer::archive_end::archive_end;
use crate::transfer::later_timeline::later_timeline;

/// How often a standby at the end of its archive looks for more while it is waited for.
const RETRY_INTERVAL: &str = "200ms";

/// How long `pg_promote()` waits for the end of recovery, and this program after it.
const PROMOTE_TIMEOUT: Duration = Duration::from_secs(60);

/// How long replay must have stood still at the archive's end to be taken for there, where no fence tells.
const STILL: Duration = Duration::from_secs(5);

/// How long a promotion that may have been asked for can take to show.
const SETTLING: Duration = Duration::from_secs(10);

/// What undoing it means.
const MOVE: Move = Move { fenced: Place::Source, fence: Mark::SourceFence, maintenance: Mark::PromoteMaintenance };

/// What takes the fence's place where the source cannot be asked.
pub struct ArchiveEnd<'a> {
    /// The archive that the replica is fed from.
    pub store: &'a dyn Store,
    /// Its keys.
    pub layout: &'a Layout,
}

/// How to promote.
#[derive(Default)]
pub struct PromoteOptions<'a> {
    /// The user takes it upon himself that the source's last write is in the archive.
    pub without_fence: bool,
    /// Where the archive's end can be looked up.
    pub archive: Option<ArchiveEnd<'a>>,
}

/// How it went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromoteReport {
    /// From before maintenance was switched on until after it was switched off.
    pub downtime_milliseconds: u64,
    /// The new primary's timeline.
    pub timeline: u32,
    /// What the replica was proved to hold; none without a fence.
    pub fence_lsn: Option<String>,
}

/// Goes the whole way, or goes on with it; once done it does nothing more.
///
/// # Errors
///
/// Everything that went wrong. Before the promotion it was all undone, and the error says so.
pub async fn promote(cutover: &mut Cutover, options: &PromoteOptions<'_>) -> Result<PromoteReport> {
    if let Some(done) = cutover.journal.data(Mark::PromoteDone) {
        tracing::info!("the replica was promoted by this cutover already");
        return Ok(done);
    }
    if !is_under_way(cutover).await? {
        let reached = async {
            check(cutover, options).await?;
            reach_the_fence(cutover, options).await
        };
        if let Err(failed) = reached.await {
            let has_begun = [Mark::PromoteMaintenance, Mark::SourceFence].iter().any(|mark| cutover.journal.has(*mark));
            return Err(if has_begun { undone(cutover, failed).await } else { failed });
        }
    }
    go_over(cutover).await.map_err(|failed| {
        failed
            .with_detail("The promotion is under way or done: the source stays read-only and maintenance on.")
            .with_hint(
                "Mend that and run cutover promote again: it goes on from here. \
                 Or go back to the source with cutover abort, which costs the replica.",
            )
    })
}

/// Whether a promotion that an earlier run announced is to be gone on with. The mark alone is no proof: whoever lifted the
/// fence by hand since then has a source that went on.
async fn is_under_way(cutover: &mut Cutover) -> Result<bool> {
    if !cutover.journal.has(Mark::Promoting) {
        return Ok(false);
    }
    if cutover.journal.has(Mark::SwitchedToReplica) {
        // the application's writes are there: what becomes of the source does not matter any more
        return Ok(true);
    }
    let point = cutover.journal.data::<FencePoint>(Mark::FencePoint);
    // without a point there was no fence to begin with, but the user's word
    let mut is_fenced = point.is_none() || cutover.journal.has(Mark::SourceFence);
    let mut is_proved = is_fenced;
    if let Some(point) = point.filter(|_| is_fenced) {
        if let Ok(mut source) = cutover.connect(Place::Source, Access::ReadOnly).await {
            is_fenced = fence::stands(&mut source).await?;
            is_proved = is_fenced && fence::transactions_since(&mut source, &point).await? == 0;
            source.close().await;
        } else {
            tracing::warn!("the source cannot be asked whether its fence still stands: going on with what was proved");
        }
    }
    let mut replica = cutover.connect(Place::Replica, Access::ReadOnly).await?;
    let mut is_standby = replica.is_in_recovery().await?;
    if is_standby && !is_proved {
        // a promotion that was asked for may take a moment; one that was not is fenced anew
        let settled = Instant::now() + SETTLING;
        while is_standby && Instant::now() < settled {
            cutover.pause(Duration::from_millis(200)).await?;
            is_standby = replica.is_in_recovery().await?;
        }
    }
    replica.close().await;
    if is_standby {
        return Ok(is_proved);
    }
    if is_fenced {
        return Ok(true);
    }
    cutover.journal.record(Mark::Forked, "the replica was promoted, and the source went on without its fence", ())?;
    let failed = CutoverError::refused("the replica was promoted, and the source has been unfenced since")
        .with_detail(
            "What was written to the source since then is not on the replica, which cannot follow it any more.",
        )
        .with_hint("Restore the replica anew with backup-fetch, and begin again.");
    Err(match undo(cutover).await {
        Ok(()) => failed,
        Err(also) => failed.with_detail(format!("Not all could be undone: {}.", joined(&also))),
    })
}

/// What must hold before anybody is kept waiting.
async fn check(cutover: &mut Cutover, options: &PromoteOptions<'_>) -> Result<()> {
    let mut replica = cutover.connect(Place::Replica, Access::ReadOnly).await?;
    let is_standby = replica.is_in_recovery().await?;
    let was_given_up = cutover.journal.has(Mark::Forked);
    if !is_standby {
        let refused = CutoverError::refused("the replica is no standby");
        return Err(match was_given_up {
            true => refused
                .with_detail("It was promoted by an attempt that was given up, and lacks what the source wrote since.")
                .with_hint("Restore it anew with backup-fetch."),
            false => refused
                .with_detail("It was promoted, and not by this cutover.")
                .with_hint("If that was on purpose, go on with cutover replicate."),
        });
    }
    if was_given_up {
        cutover.journal.undo(Mark::Forked, "the replica is a standby again, or still")?;
    }
    if replica.major() < Major::new(12) && cutover.plan.promote_command.is_none() {
        return Err(CutoverError::refused(format!("PostgreSQL {} cannot be promoted by SQL", replica.version()))
            .with_hint("Set replica.promote_command in the plan, such as \"pg_ctl promote -w -D /path/to/data\"."));
    }
    let is_paused: bool = replica.value("select pg_is_wal_replay_paused()").await?;
    if is_paused {
        return Err(CutoverError::refused("the replica's replay is paused").with_hint(
            "Run \"select pg_wal_replay_resume()\" on it, and remove recovery targets from its configuration.",
        ));
    }
    if is_fenced(cutover, options)? {
        let mut source = cutover.connect(Place::Source, Access::ReadOnly).await?;
        fence::look_for_obstacles(&mut source).await?;
        lineage::compare(&mut source, &mut replica).await?;
        source.close().await;
    } else if let Some(archive) = &options.archive {
        let timeline = lineage::replayed_timeline(&mut replica).await?;
        look_for_later_timeline(archive, timeline).await?;
    }
    replica.close().await;
    Ok(())
}

/// Whether there is to be a fence; neither fence nor the user's word is refused.
fn is_fenced(cutover: &Cutover, options: &PromoteOptions<'_>) -> Result<bool> {
    if cutover.plan.source.is_some() && cutover.plan.promote.fence {
        return Ok(true);
    }
    if cutover.rehearsal.is_dry() {
        return Ok(false);
    }
    if options.without_fence && options.archive.is_none() {
        return Err(CutoverError::refused("nothing tells where the archive ends")
            .with_detail("Without a fence the replica is promoted when it has replayed the archive's last segment.")
            .with_hint("Set WALE_S3_PREFIX or WALE_FILE_PREFIX, and the credentials, as for wal-fetch."));
    }
    if options.without_fence {
        return Ok(false);
    }
    Err(CutoverError::refused("nothing proves that the replica has the source's last write")
        .with_detail("The plan names no source, or has promote.fence = false, so the archive's end has to do.")
        .with_hint("Stop all writes to the source, see its last segment archived, and give --without-fence."))
}

/// Everything up to the promotion.
async fn reach_the_fence(cutover: &mut Cutover, options: &PromoteOptions<'_>) -> Result<()> {
    let deadline = Instant::now() + cutover.plan.promote.budget;
    withdraw(cutover)?;
    if !cutover.journal.has(Mark::PromoteMaintenance) {
        cutover.journal.record(Mark::PromoteMaintenance, "the downtime begins", ())?;
    }
    cutover.hook(Hook::MaintenanceOn).await?;
    let mut replica = cutover.connect(Place::Replica, Access::ReadWrite).await?;
    hurry(cutover, &mut replica).await?;
    if is_fenced(cutover, options)? {
        let mut source = cutover.connect(Place::Source, Access::ReadWrite).await?;
        let point = fence::raise(cutover, &mut source, Mark::SourceFence, deadline).await?;
        wait_for_last_write(cutover, &mut source, &mut replica, point, deadline).await?;
        source.close().await;
    } else if let Some(archive) = &options.archive {
        wait_for_archive_end(cutover, &mut replica, archive, deadline).await?;
    }
    replica.close().await;
    cutover.journal.record(Mark::Promoting, "promoting the replica", ())
}

/// Lets the replica look for new segments more often.
async fn hurry(cutover: &mut Cutover, replica: &mut Node) -> Result<()> {
    if cutover.journal.has(Mark::RetryInterval) {
        return Ok(());
    }
    // what ALTER SYSTEM says now is what there is to go back to
    let before: Option<String> = replica
        .value(
            "select (select f.setting from pg_file_settings f where f.name = 'wal_retrieve_retry_interval' \
             and f.sourcefile ~ 'postgresql.auto.conf$' order by f.seqno desc limit 1)",
        )
        .await?;
    cutover.journal.record(Mark::RetryInterval, "letting the replica look for WAL more often", before)?;
    replica.change(&format!("alter system set wal_retrieve_retry_interval = '{RETRY_INTERVAL}'")).await?;
    replica.change("select pg_reload_conf()").await
}

async fn unhurry(cutover: &mut Cutover) -> Result<()> {
    if !cutover.journal.has(Mark::RetryInterval) {
        return Ok(());
    }
    let before: Option<String> = cutover.journal.data(Mark::RetryInterval).flatten();
    let mut replica = cutover.connect(Place::Replica, Access::ReadWrite).await?;
    replica
        .change(&match before {
            None => "alter system reset wal_retrieve_retry_interval".to_owned(),
            Some(value) => format!("alter system set wal_retrieve_retry_interval = {}", literal(&value)),
        })
        .await?;
    replica.change("select pg_reload_conf()").await?;
    replica.close().await;
    cutover.journal.undo(Mark::RetryInterval, "the replica looks for WAL as often as before")
}

/// Waits until the replica has replayed all that was written on the source, also what slipped past the fence.
async fn wait_for_last_write(
    cutover: &mut Cutover,
    source: &mut Node,
    replica: &mut Node,
    mut point: FencePoint,
    deadline: Instant,
) -> Result<()> {
    loop {
        let what = format!("the source's last write is at {} in {}", point.lsn, point.file);
        cutover.journal.record(Mark::FencePoint, what, &point)?;
        fence::complete_segment(source, &point).await?;
        let lsn = point.lsn()?;
        let waited = cutover
            .until(format_args!("the replica has replayed {lsn}"), Some(deadline), async || {
                if !replica.is_in_recovery().await? {
                    return Err(CutoverError::refused("the replica was promoted by somebody else meanwhile"));
                }
                let at = replica.lsn("select coalesce(pg_last_wal_replay_lsn(), '0/0')::text").await?;
                Ok(if at >= lsn {
                    Look::Holds
                } else {
                    Look::NotYet(format!("it is at {at}, {} behind", bytes_text(lsn.0 - at.0)))
                })
            })
            .await;
        if let Err(failed) = waited {
            if failed.kind() != Kind::User {
                return Err(failed);
            }
            let archived: Option<String> = source.value("select last_archived_wal from pg_stat_archiver").await?;
            let archived = archived.unwrap_or_else(|| "nothing".to_owned());
            return Err(failed
                .with_detail(format!("The source needs to archive {}; it has archived {archived} last.", point.file))
                .with_hint("See whether the source archives (its log), and whether the replica fetches (its log, and prefetch-status); or raise promote.budget."));
        }
        if cutover.rehearsal.is_dry() {
            return Ok(());
        }
        lineage::require_timeline(replica, lineage::timeline_of(&point.file)?).await?;
        let later = fence::transactions_since(source, &point).await?;
        if later == 0 {
            let what = format!("the replica has replayed the source's last write, at {lsn}");
            return cutover.journal.record(Mark::FenceReached, what, ());
        }
        tracing::warn!("{later} transactions ran on the source after the fence: waiting for these too");
        if Instant::now() >= deadline {
            return Err(CutoverError::refused("the source is still being written to behind its fence")
                .with_detail(format!("{later} transactions got a number since {}.", point.lsn))
                .with_hint("Look in the source's pg_stat_activity for sessions that set a transaction read write."));
        }
        point = fence::locate(cutover, source, deadline).await?;
    }
}

/// Waits until the replica has replayed the last segment of the archive, and stands still.
async fn wait_for_archive_end(
    cutover: &Cutover,
    replica: &mut Node,
    archive: &ArchiveEnd<'_>,
    deadline: Instant,
) -> Result<()> {
    let segment_bytes: u64 = replica.value("select pg_size_bytes(current_setting('wal_segment_size'))").await?;
    let size = SegmentSize::new(segment_bytes)
        .ok_or_else(|| CutoverError::failed("the replica's segment size makes no sense"))?;
    let mut still_since = None;
    cutover
        .until("the replica has replayed the archive's last segment and stands still", Some(deadline), async || {
            let at = replica.lsn("select coalesce(pg_last_wal_replay_lsn(), '0/0')::text").await?;
            let standing = *still_since.get_or_insert((at, Instant::now()));
            if standing.0 != at {
                still_since = Some((at, Instant::now()));
                return Ok(Look::NotYet(format!("it is at {at}")));
            }
            if standing.1.elapsed() < STILL {
                return Ok(Look::NotYet(format!(
                    "it is at {at}, and has stood there for {}",
                    time_text(standing.1.elapsed())
                )));
            }
            let timeline = lineage::replayed_timeline(replica).await?;
            look_for_later_timeline(archive, timeline).await?;
            // replay stands at the end of the last record: at a segment's very beginning it has finished the one before
            let replayed = SegmentName::ending_at(timeline, at, size);
            let last = archive_end(archive.store, archive.layout, replayed, size).await.map_err(no_end)?;
            Ok(match last {
                Some(last) if last > replayed => {
                    Look::NotYet(format!("it is in {replayed}, and the archive ends with {last}"))
                }
                Some(_) => Look::Holds,
                // what it replayed came from there
                None => {
                    return Err(CutoverError::refused(format!(
                        "the archive does not hold {replayed}, which the replica has replayed"
                    ))
                    .with_hint("Set WALE_S3_PREFIX or WALE_FILE_PREFIX to the archive that feeds the replica."));
                }
            })
        })
        .await
}

/// Refuses an archive that holds a later timeline than the replica's: the source may have gone on there.
async fn look_for_later_timeline(archive: &ArchiveEnd<'_>, timeline: u32) -> Result<()> {
    match later_timeline(archive.store, archive.layout, timeline).await.map_err(no_end)? {
        Some(later) => Err(lineage::elsewhere(timeline, format_args!("the archive holds timeline {later}")).with_hint(
            "If that timeline is not the source's, promote the replica by hand and go on with cutover replicate.",
        )),
        None => Ok(()),
    }
}

fn no_end(failed: StorageError) -> CutoverError {
    CutoverError::failed("could not look for the archive's end").with_source(failed)
}

/// Puts everything back after a failure before the promotion, and says so in the error.
async fn undone(cutover: &mut Cutover, failed: CutoverError) -> CutoverError {
    if cutover.rehearsal.is_dry() {
        return failed;
    }
    // what could not be recorded must not be made worse by not undoing it
    let _ = cutover.journal.note(format!("failed: {}", joined(&failed)));
    let still_follows = match cutover.connect(Place::Replica, Access::ReadOnly).await {
        Ok(mut replica) => replica.is_in_recovery().await.ok(),
        Err(_) => None,
    };
    let failed = failed.with_detail(match still_follows {
        Some(true) => "Nothing was promoted.",
        Some(false) => {
            "The replica is a primary and cannot follow the source any more: restore it anew with backup-fetch."
        }
        None => "The replica cannot be asked whether it still follows.",
    });
    if still_follows == Some(false) {
        let _ = cutover.journal.record(Mark::Forked, "the replica is a primary although nothing was switched", ());
    }
    let undone = undo(cutover).await;
    MOVE.explain(cutover, failed, undone)
}

/// Takes back what an attempt proved and announced, so that nothing of it passes for the next one's. The announcement goes
/// first: without a fence point it would be one that never needed a fence.
fn withdraw(cutover: &mut Cutover) -> Result<()> {
    for (mark, what) in [
        (Mark::Promoting, "the promotion is no longer announced"),
        (Mark::Promoted, "the replica no longer counts as promoted by this cutover"),
        (Mark::WritesProved, "the row written there no longer counts as proof"),
        (Mark::FenceReached, "what the replica had replayed no longer counts as proof"),
        (Mark::FencePoint, "the source's last write is to be located anew"),
    ] {
        if cutover.journal.has(mark) {
            cutover.journal.undo(mark, what)?;
        }
    }
    Ok(())
}

/// Withdraws the attempt, lifts the fence from the source, lets the replica be as it was, and switches maintenance off.
///
/// # Errors
///
/// What could not be undone; the rest was. A promotion that cannot be withdrawn in the journal keeps its fence.
pub async fn undo(cutover: &mut Cutover) -> Result<()> {
    let was_announced = cutover.journal.has(Mark::Promoting);
    let withdrawn = match withdraw(cutover) {
        Err(failed) if was_announced => return Err(failed),
        withdrawn => withdrawn,
    };
    let retreated = MOVE.retreat(cutover).await;
    unhurry(cutover).await.and(retreated).and(withdrawn)
}

/// From the promotion on: only forward.
async fn go_over(cutover: &mut Cutover) -> Result<PromoteReport> {
    let timeline = turn_into_primary(cutover).await?;
    unhurry(cutover).await?;
    prove_writes(cutover).await?;
    if !cutover.journal.has(Mark::SwitchedToReplica) {
        // a command that was killed may have done its work
        cutover.journal.record(Mark::SwitchingToReplica, "pointing the application at the replica", ())?;
        cutover.hook(Hook::SwitchToReplica).await?;
        cutover.journal.record(Mark::SwitchedToReplica, "the application uses the replica", ())?;
    }
    cutover.hook(Hook::MaintenanceOff).await?;
    fence::look_back(cutover, Mark::FencePoint, Place::Source, Place::Replica).await;
    let began = cutover.journal.find(Mark::PromoteMaintenance).map(|entry| entry.at);
    let downtime = began.map_or(Duration::ZERO, |began| (OffsetDateTime::now_utc() - began).unsigned_abs());
    let fence_lsn =
        cutover.journal.has(Mark::FenceReached).then(|| cutover.journal.data::<FencePoint>(Mark::FencePoint));
    let report = PromoteReport {
        downtime_milliseconds: u64::try_from(downtime.as_millis()).unwrap_or(u64::MAX),
        timeline,
        fence_lsn: fence_lsn.flatten().map(|point| point.lsn),
    };
    let what = match began {
        Some(began) => format!("the first move is over: {} of downtime since {}", time_text(downtime), at_text(began)),
        None => "the first move is over".to_owned(),
    };
    cutover.journal.record(Mark::PromoteDone, what, &report)?;
    Ok(report)
}

/// Promotes the replica unless it is a primary already; its timeline.
async fn turn_into_primary(cutover: &mut Cutover) -> Result<u32> {
    let mut replica = cutover.connect(Place::Replica, Access::ReadWrite).await?;
    let is_standby = replica.is_in_recovery().await?;
    if is_standby {
        if replica.major() < Major::new(12) {
            let command = cutover.plan.promote_command.clone().unwrap_or_default();
            if cutover.rehearsal.permits("command promote_command", &command) {
                super::hook::run("promote_command", &command, cutover.plan.hooks.timeout, &cutover.plan.secrets())
                    .await?;
            }
        } else {
            replica.limit(PROMOTE_TIMEOUT * 2).await?;
            replica.change(&format!("select pg_promote(true, {})", PROMOTE_TIMEOUT.as_secs())).await?;
        }
        let deadline = Instant::now() + PROMOTE_TIMEOUT;
        cutover
            .until("the replica is a primary", Some(deadline), async || {
                Ok(if replica.is_in_recovery().await? {
                    Look::NotYet("it is still in recovery".into())
                } else {
                    Look::Holds
                })
            })
            .await
            .map_err(|failed| failed.with_hint("Look in the replica's log."))?;
    }
    // the catalogue's row has come along in the WAL, perhaps that of an earlier attempt
    fence::lift(cutover, &mut replica, Mark::SourceFence).await?;
    if !cutover.rehearsal.is_dry() {
        fence::clear(&mut replica).await?;
    }
    marker::create(&mut replica, cutover.plan.application.as_ref().map(|application| application.user())).await?;
    if cutover.rehearsal.is_dry() {
        return Ok(0);
    }
    let timeline = lineage::written_timeline(&mut replica).await?;
    replica.close().await;
    if !cutover.journal.has(Mark::Promoted) {
        cutover.journal.record(Mark::Promoted, format!("the replica is a primary on timeline {timeline}"), timeline)?;
    }
    Ok(timeline)
}

/// Lets the application's role write a row in a session of its own, with all its own defaults.
async fn prove_writes(cutover: &mut Cutover) -> Result<()> {
    if cutover.journal.has(Mark::WritesProved) {
        return Ok(());
    }
    let Some(application) = &cutover.plan.application else {
        tracing::warn!("the plan has no [application]: nothing proves that its role can write to the replica");
        return Ok(());
    };
    let proof = async {
        let mut session =
            Node::connect(Place::Replica, application, Access::AsConfigured, cutover.rehearsal.clone()).await?;
        marker::write(&mut session, "promote").await?;
        session.close().await;
        Ok(())
    };
    proof
        .await
        .map_err(|failed: CutoverError| failed.during("the application's role cannot write to the new primary"))?;
    let what = format!("{} has written a row on the new primary", application.user());
    cutover.journal.record(Mark::WritesProved, what, ())
}
