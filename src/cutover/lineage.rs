//! Whether a replica replays the very WAL that it is to have the end of: an LSN says nothing across clusters and timelines.

use super::error::{CutoverError, Result};
use super::node::Node;
use crate::formats::wal_name::SegmentName;

const SYSTEM_IDENTIFIER: &str = "select system_identifier::text from pg_control_system()";

/// Refuses a replica of another cluster than `source`, or one that stayed on another timeline.
///
/// # Errors
///
/// As said; also when a server is gone.
pub async fn compare(source: &mut Node, replica: &mut Node) -> Result<()> {
    let theirs: String = source.value(SYSTEM_IDENTIFIER).await?;
    let its: String = replica.value(SYSTEM_IDENTIFIER).await?;
    if its != theirs {
        return Err(CutoverError::refused("the replica is no copy of the source")
            .with_detail(format!("Its system identifier is {its}, the source's {theirs}."))
            .with_hint("Correct [source] or [replica] in the plan."));
    }
    let written = written_timeline(source).await?;
    require_timeline(replica, written).await
}

/// Refuses a replica that does not replay `timeline`, where the source writes.
///
/// # Errors
///
/// As said; also when the server is gone.
pub async fn require_timeline(replica: &mut Node, timeline: u32) -> Result<()> {
    let replayed = replayed_timeline(replica).await?;
    if replayed == timeline { Ok(()) } else { Err(elsewhere(replayed, format_args!("the source writes {timeline}"))) }
}

/// The error for a replica on the timeline `replayed` when it should not be; `but` says where the others are.
pub fn elsewhere(replayed: u32, but: impl std::fmt::Display) -> CutoverError {
    CutoverError::refused(format!("the replica replays timeline {replayed}, but {but}"))
        .with_detail("It lacks what was written since the timelines parted, whatever its LSN.")
        .with_hint(
            "Let it follow with recovery_target_timeline = 'latest'; where it is past the parting already, restore it \
             anew with backup-fetch. If it has just changed timelines, run \"checkpoint\" on it and try again.",
        )
}

/// The timeline that a standby replays, as far as its control file knows: a change shows with the next page that is flushed, or
/// the next restartpoint.
///
/// # Errors
///
/// When the server is gone.
pub async fn replayed_timeline(standby: &mut Node) -> Result<u32> {
    standby
        .value(
            "select greatest(timeline_id, (select min_recovery_end_timeline from pg_control_recovery())) \
             from pg_control_checkpoint()",
        )
        .await
}

/// The timeline that a primary writes.
///
/// # Errors
///
/// When the server is gone, or is a standby.
pub async fn written_timeline(primary: &mut Node) -> Result<u32> {
    let file: String = primary.value("select pg_walfile_name(pg_current_wal_insert_lsn())").await?;
    timeline_of(&file)
}

/// The timeline in a segment's name.
///
/// # Errors
///
/// When it is none, as in a journal that was edited.
pub fn timeline_of(file: &str) -> Result<u32> {
    let name: std::result::Result<SegmentName, _> = file.parse();
    name.map(SegmentName::timeline).map_err(|_| CutoverError::failed(format!("\"{file}\" is no segment")))
}
