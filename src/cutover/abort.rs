//! Back to a safe state, from wherever the cutover stands: what can be undone is, and what is left is said.

use serde::Serialize;

use super::context::Cutover;
use super::error::{CutoverError, Result};
use super::finish::{self, FinishReport, drop_link, drop_publishers_side};
use super::journal::Mark;
use super::promote;
use super::replication::link::{Direction, Link};

/// What an abort did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct AbortReport {
    /// What was undone: whole sentences.
    pub undone: Vec<String>,
    /// What stays as it is, and what that means: whole sentences.
    pub left: Vec<String>,
}

/// What only the user can know.
#[derive(Debug, Clone, Copy, Default)]
pub struct AbortOptions {
    /// The application was not switched, although the command that does it was begun.
    pub not_switched: bool,
}

/// Undoes the step that is under way; with none under way, the replication. Done again it does nothing more.
///
/// # Errors
///
/// What could not be undone; when there is no way back, how to go on.
pub async fn abort(cutover: &mut Cutover, options: AbortOptions) -> Result<AbortReport> {
    let mut report = AbortReport::default();
    let journal = &cutover.journal;
    if journal.has(Mark::FinishBegun) && !journal.has(Mark::FinishDone) {
        abort_finish(cutover, &mut report).await?;
    } else if let Some(done) = journal.data::<FinishReport>(Mark::FinishDone) {
        give_up_the_way_back(cutover, &done, &mut report).await?;
    } else if [Mark::ReplicaIdentity, Mark::ReplicationRole, Mark::Publication, Mark::Slot, Mark::Subscription]
        .iter()
        .any(|mark| journal.has(*mark))
    {
        abort_replication(cutover, &mut report).await?;
    } else if journal.has(Mark::PromoteDone) {
        report.left.push("The application uses the replica; there is nothing under way to undo.".into());
        if journal.has(Mark::SourceFence) {
            report.left.push("The source is still read-only, so that nobody writes to it by mistake.".into());
        }
    } else {
        abort_promotion(cutover, options, &mut report).await?;
    }
    if report.undone.is_empty() && report.left.is_empty() {
        report.left.push("Nothing was under way.".into());
    }
    for done in &report.undone {
        cutover.journal.note(format!("abort: {done}"))?;
    }
    Ok(report)
}

async fn abort_promotion(cutover: &mut Cutover, options: AbortOptions, report: &mut AbortReport) -> Result<()> {
    if cutover.journal.has(Mark::SwitchedToReplica) {
        return Err(CutoverError::refused("the application uses the replica already")
            .with_hint("Run cutover promote again: only switching maintenance off is left."));
    }
    if cutover.journal.has(Mark::SwitchingToReplica) && !options.not_switched {
        return Err(CutoverError::refused("the application may use the replica already")
            .with_detail(
                "The command switch_to_replica was begun; with the source writable again there could be two primaries.",
            )
            .with_hint(
                "Run cutover promote again; or see that the application points at the source, and give --not-switched.",
            ));
    }
    let marks = [Mark::PromoteMaintenance, Mark::SourceFence, Mark::RetryInterval, Mark::Promoting];
    if !marks.iter().any(|mark| cutover.journal.has(*mark)) {
        return Ok(());
    }
    let was_fenced = cutover.journal.has(Mark::SourceFence);
    if cutover.journal.has(Mark::Promoting) {
        // from here on, and not only when it shows: a promotion that was asked for can take its time
        cutover.journal.record(Mark::Forked, "the promotion was given up after it had begun", ())?;
    }
    if cutover.journal.has(Mark::Forked) {
        report.left.push(
            "The replica was promoted, or may be yet, and cannot follow the source any more: restore it anew with backup-fetch before the next try."
                .into(),
        );
    }
    if cutover.journal.has(Mark::SwitchingToReplica) {
        cutover.journal.undo(Mark::SwitchingToReplica, "the application was not switched, by the user's word")?;
    }
    promote::undo(cutover).await?;
    report.undone.push(match was_fenced {
        true => "The source can be written to as before, and maintenance is off.".into(),
        false => "Maintenance is off.".into(),
    });
    Ok(())
}

async fn abort_finish(cutover: &mut Cutover, report: &mut AbortReport) -> Result<()> {
    let direction: Direction = cutover.journal.data(Mark::FinishBegun).unwrap_or(Direction::Forward);
    if finish::has_parted(cutover, &Link::new(&cutover.plan, direction)).await? {
        return Err(CutoverError::refused("the subscription was given up already: the way is one way from here")
            .with_hint("Run the same cutover finish again: it goes on from where it stopped."));
    }
    let was_fenced = cutover.journal.has(Mark::PublisherFence);
    finish::undo(cutover).await?;
    if was_fenced {
        report.undone.push("The publisher can be written to as before, and maintenance is off.".into());
    }
    cutover.journal.undo(Mark::FinishBegun, "the move was given up")?;
    report.left.push(match direction {
        Direction::Forward => "The replication goes on; run cutover abort once more to take it away too.".into(),
        Direction::Back => "The way back is still there: the replica follows the target.".into(),
    });
    Ok(())
}

async fn give_up_the_way_back(cutover: &mut Cutover, done: &FinishReport, report: &mut AbortReport) -> Result<()> {
    if !done.is_reversible {
        // the move may have left behind what it could not drop at the time
        let forward = take_away(cutover, &Link::new(&cutover.plan, Direction::Forward)).await;
        let back = take_away(cutover, &Link::new(&cutover.plan, Direction::Back)).await;
        forward.and(back)?;
        finish::tidy(cutover).await?;
        report.left.push("The cutover is over, and no subscription, slot or publication of it is left.".into());
        return Ok(());
    }
    let back = match done.direction {
        Direction::Forward => Direction::Back,
        Direction::Back => Direction::Forward,
    };
    let link = Link::new(&cutover.plan, back);
    take_away(cutover, &link).await?;
    let over = FinishReport { is_reversible: false, ..done.clone() };
    cutover.journal.record(Mark::FinishDone, "the way back is given up", over)?;
    finish::tidy(cutover).await?;
    report.undone.push(format!(
        "The {} no longer follows the {}, and keeps no WAL back there.",
        link.subscriber, link.publisher
    ));
    Ok(())
}

async fn abort_replication(cutover: &mut Cutover, report: &mut AbortReport) -> Result<()> {
    let link = Link::new(&cutover.plan, Direction::Forward);
    take_away(cutover, &link).await?;
    report.undone.push("The subscription, its slot and the publication are gone.".into());
    finish::tidy_replication(cutover).await?;
    report.undone.push("The replication role, REPLICA IDENTITY FULL and the markers are gone.".into());
    for mark in [
        Mark::Subscription,
        Mark::Slot,
        Mark::Publication,
        Mark::CopySlots,
        Mark::Copied,
        // the target keeps a record of its own, if it is still the same database
        Mark::SchemaTables,
        Mark::SchemaRest,
        Mark::ReplicateDone,
    ] {
        if cutover.journal.has(mark) {
            cutover.journal.undo(mark, "the replication was given up")?;
        }
    }
    report.left.push("The application stays where it is. The target keeps what was copied: empty its tables before the next cutover replicate.".into());
    Ok(())
}

/// Takes a link away. What fills the publisher's disk has to go even when the subscriber is away.
async fn take_away(cutover: &Cutover, link: &Link) -> Result<()> {
    let Err(failed) = drop_link(cutover, link).await else { return Ok(()) };
    drop_publishers_side(cutover, link).await?;
    Err(failed
        .with_detail(format!("The slots and the publication are gone: the {} keeps no more WAL back.", link.publisher))
        .with_hint("Run cutover abort again for the rest."))
}
