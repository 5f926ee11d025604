//! How far the replica is: behind the archive's end and, where the source can be reached, behind the source.

use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;

use super::finding::{Finding, Severity};
use crate::cutover::context::Cutover;
use crate::cutover::error::{CutoverError, Result};
use crate::cutover::journal::Mark;
use crate::cutover::lineage;
use crate::cutover::node::{Node, Place};
use crate::cutover::promote::ArchiveEnd;
use crate::cutover::quantity::{bytes_text, time_text};
use crate::formats::lsn::Lsn;
use crate::formats::wal_name::{SegmentName, SegmentSize};
use crate::pg::version::Major;
use crate::transfer::archive_end::archive_end;
use crate::transfer::later_timeline::later_timeline;

/// How long replay that has something to do may stand still before it is called that.
const STILL: Duration = Duration::from_secs(3);

/// How many segments behind the archive's end are the ordinary course: one under way, one being fetched.
const ORDINARY_SEGMENTS: u64 = 2;

/// Where replay was when the check began, and how far the archive reached then.
pub(super) struct Standing {
    at: Lsn,
    since: Instant,
}

#[derive(Deserialize)]
struct Replay {
    at: Option<String>,
    /// How long ago the last replayed transaction was committed, in seconds, by the replica's clock.
    age: Option<f64>,
    is_paused: bool,
    segment_bytes: u64,
}

/// Whether the replica is in recovery and what it has replayed. The answer's second part is for [`look_again`].
pub(super) async fn look(
    cutover: &Cutover,
    replica: &mut Node,
    source: Option<&mut Node>,
    archive: Option<&ArchiveEnd<'_>>,
) -> Result<(Vec<Finding>, Option<Standing>)> {
    if !replica.is_in_recovery().await? {
        return Ok((primary(cutover), None));
    }
    let mut found = Vec::new();
    let replay: Replay = replica
        .row(
            "select pg_last_wal_replay_lsn()::text as at, \
                    extract(epoch from clock_timestamp() - pg_last_xact_replay_timestamp())::float8 as age, \
                    pg_is_wal_replay_paused() as is_paused, \
                    pg_size_bytes(current_setting('wal_segment_size')) as segment_bytes",
        )
        .await?;
    let timeline = lineage::replayed_timeline(replica).await?;
    let at: Lsn = replay.at.as_deref().unwrap_or("0/0").parse().unwrap_or_default();
    if replay.is_paused {
        found.push(
            Finding::error("its replay is paused")
                .at(Place::Replica)
                .because("It does not come any nearer to the source's last write, and promote refuses to begin.")
                .mend("select pg_wal_replay_resume();")
                .mend("Remove recovery targets from its configuration."),
        );
    }
    found.extend(configuration(cutover, replica).await?);
    let age = replay.age.map_or_else(String::new, |age| {
        format!(
            "; the last transaction it replayed was committed {} ago",
            time_text(Duration::from_secs_f64(age.max(0.0)))
        )
    });
    let mut is_behind_archive = false;
    let mut told = false;
    if let Some(source) = source {
        let written = lineage::written_timeline(source).await?;
        if written != timeline {
            found.push(elsewhere(true, timeline, format!("the source writes {written}")));
        }
        let end = source.insert_lsn().await?;
        let behind = end.0.saturating_sub(at.0);
        let what = format!("it has replayed {at}, {} behind the source{age}", bytes_text(behind));
        let is_late = behind > replay.segment_bytes && replay.age.is_some_and(|age| age > budget(cutover));
        found.push(lag(is_late, what));
        told = true;
    }
    if let Some(archive) = archive {
        let size = SegmentSize::new(replay.segment_bytes)
            .ok_or_else(|| CutoverError::failed("the replica's segment size makes no sense"))?;
        let replayed = SegmentName::ending_at(timeline, at, size);
        let no_end = |e| CutoverError::failed("could not look for the archive's end").with_source(e);
        let later = later_timeline(archive.store, archive.layout, timeline).await.map_err(no_end)?;
        if let Some(later) = later {
            // with a fence it is the source's timeline that counts
            let is_all = cutover.plan.source.is_none() || !cutover.plan.promote.fence;
            found.push(elsewhere(is_all, timeline, format!("the archive holds timeline {later}")));
        }
        let last = archive_end(archive.store, archive.layout, replayed, size).await.map_err(no_end)?;
        let finding = match last.filter(|last| *last > replayed) {
            Some(last) => {
                let segments = last.number(size).unwrap_or(0).saturating_sub(replayed.number(size).unwrap_or(0));
                is_behind_archive = segments > ORDINARY_SEGMENTS;
                let what = format!(
                    "it is in {replayed}, and the archive ends with {last}: {} segments, {}, to go",
                    segments,
                    bytes_text(segments * size.bytes())
                );
                lag(is_behind_archive && replay.age.is_some_and(|age| age > budget(cutover)), what)
            }
            None => Finding::note(format!(
                "it has replayed all that the archive holds of timeline {timeline}, up to {replayed}"
            ))
            .at(Place::Replica),
        };
        found.push(finding);
        told = true;
    }
    if !told {
        found.push(
            Finding::note(format!("it has replayed {at}{age}"))
                .at(Place::Replica)
                .because("Neither source nor archive can be asked how far there is to go.")
                .mend("Set WALE_S3_PREFIX and the credentials as for wal-fetch, so that the archive's end can be looked up."),
        );
    }
    Ok((found, is_behind_archive.then(|| Standing { at, since: Instant::now() })))
}

/// Whether replay has moved since [`look`], where there is more to replay.
pub(super) async fn look_again(replica: &mut Node, standing: Standing) -> Result<Vec<Finding>> {
    tokio::time::sleep(STILL.saturating_sub(standing.since.elapsed())).await;
    let at = replica.lsn("select coalesce(pg_last_wal_replay_lsn(), '0/0')::text").await?;
    if at > standing.at {
        return Ok(Vec::new());
    }
    Ok(vec![
        Finding::error(format!("its replay stands still at {at} although the archive has more"))
            .at(Place::Replica)
            .because(format!("It did not move for {}.", time_text(standing.since.elapsed())))
            .mend("Look in its log for what restore_command says, and for queries that replay waits for."),
    ])
}

fn elsewhere(is_error: bool, timeline: u32, but: String) -> Finding {
    let severity = if is_error { Severity::Error } else { Severity::Warning };
    Finding::failure(severity, &lineage::elsewhere(timeline, but)).at(Place::Replica)
}

fn lag(is_late: bool, what: String) -> Finding {
    if !is_late {
        return Finding::note(what).at(Place::Replica);
    }
    Finding::warning(what)
        .at(Place::Replica)
        .because("That is more than promote.budget: let it catch up before the move begins.")
        .mend("Wait, and look with cutover check again; prefetch-status tells whether fetching or replay is the limit.")
}

fn budget(cutover: &Cutover) -> f64 {
    cutover.plan.promote.budget.as_secs_f64()
}

fn primary(cutover: &Cutover) -> Vec<Finding> {
    let finding = if cutover.journal.has(Mark::Promoted) {
        Finding::note("it is a primary: this cutover has promoted it")
    } else if cutover.plan.source.is_none() {
        Finding::note("it is a primary, and the plan names no source: only the second move is ahead")
    } else {
        Finding::error("it is no standby")
            .because("It was promoted, and not by this cutover: it does not follow the source any more.")
            .mend("Restore it anew with backup-fetch; or, if that was on purpose, go on with cutover replicate.")
    };
    vec![finding.at(Place::Replica)]
}

#[derive(Deserialize)]
struct Setting {
    name: String,
    value: String,
}

/// What keeps it from following to the end, or from being promoted.
async fn configuration(cutover: &Cutover, replica: &mut Node) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    if replica.major() < Major::new(12) {
        // recovery.conf is not shown by these versions
        if cutover.plan.promote_command.is_none() {
            found.push(
                Finding::error(format!("PostgreSQL {} cannot be promoted by SQL", replica.version()))
                    .at(Place::Replica)
                    .because("pg_promote() came with 12, and promote refuses to begin.")
                    .mend("replica.promote_command = \"pg_ctl promote -w -D /path/to/data\""),
            );
        }
        return Ok(found);
    }
    let settings: Vec<Setting> = replica
        .rows(
            "select name, setting as value from pg_settings where setting <> '' and (name in ('restore_command', \
             'primary_conninfo') or name like 'recovery\\_target%' and name not in ('recovery_target_action', \
             'recovery_target_inclusive')) and (name, setting) <> ('recovery_target_timeline', 'latest')",
        )
        .await?;
    let (targets, feeds): (Vec<_>, Vec<_>) =
        settings.into_iter().partition(|setting| setting.name.starts_with("recovery_target"));
    for target in targets {
        if target.name == "recovery_target_timeline" {
            found.push(
                Finding::warning(format!("{} is \"{}\"", target.name, target.value))
                    .at(Place::Replica)
                    .because("After a failover of the source it stays behind on the old timeline.")
                    .mend("alter system reset recovery_target_timeline;")
                    .mend("Restart the replica."),
            );
            continue;
        }
        found.push(
            Finding::error(format!("{} is \"{}\"", target.name, target.value))
                .at(Place::Replica)
                .because("Replay ends there, and not at the source's last write.")
                .mend(format!("alter system reset {};", target.name))
                .mend("Restart the replica."),
        );
    }
    if feeds.is_empty() {
        found.push(
            Finding::warning("neither restore_command nor primary_conninfo is set")
                .at(Place::Replica)
                .because("Nothing feeds it but what is put into pg_wal.")
                .mend("restore_command = 'wal-eve wal-fetch %f %p'"),
        );
    }
    Ok(found)
}
