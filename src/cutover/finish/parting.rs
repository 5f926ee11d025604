//! From the dropped subscription to the application's new home, and what is tidied up after it.

use std::time::Duration;

use time::OffsetDateTime;

use super::{Compared, FinishReport, opposite, way_back};
use crate::cutover::context::Cutover;
use crate::cutover::error::{CutoverError, Result};
use crate::cutover::fence::{self, FencePoint};
use crate::cutover::hook::Hook;
use crate::cutover::journal::{Mark, time_text as at_text};
use crate::cutover::marker;
use crate::cutover::node::Place;
use crate::cutover::quantity::time_text;
use crate::cutover::replication::identity;
use crate::cutover::replication::link::{Direction, Link};
use crate::cutover::replication::publication;
use crate::cutover::replication::role;
use crate::cutover::replication::slot;
use crate::cutover::replication::subscription;
use crate::formats::error_line::joined;
use crate::pg::session::Access;

/// Drops the subscription and its slot, and sets up the way back.
pub(super) async fn part(cutover: &mut Cutover, link: &Link, reverse: bool) -> Result<()> {
    let stuck = |failed: CutoverError| {
        failed
            .with_detail(format!("The {} has everything; the application was not switched yet.", link.subscriber))
            .with_hint("Mend that and run the same command again: it goes on from here.")
    };
    if !cutover.journal.has(Mark::SubscriptionDropped) {
        drop_subscribers_side(cutover, link).await.map_err(stuck)?;
        cutover.journal.record(Mark::SubscriptionDropped, "the subscription is dropped", ())?;
    }
    let back = Link::new(&cutover.plan, opposite(link.direction));
    if reverse && !cutover.journal.has(Mark::ReverseReady) {
        // what this does there has transaction numbers too
        look_back(cutover, link).await;
        drop_publishers_side(cutover, link).await.map_err(stuck)?;
        way_back::set_up(cutover, &back)
            .await
            .map_err(|failed| stuck(failed).with_hint("Or run it without --reverse, and there will be no way back."))?;
        let what = format!("the {} follows the {} from here on", back.subscriber, back.publisher);
        cutover.journal.record(Mark::ReverseReady, what, ())?;
    }
    if !reverse && let Err(failed) = drop_half_made(cutover, &back).await {
        tracing::warn!("a slot of the way back may still be there; cutover abort tries again: {}", joined(&failed));
    }
    Ok(())
}

/// Looks once more at the publisher, which a rehearsal has not fenced.
async fn look_back(cutover: &mut Cutover, link: &Link) {
    if !cutover.rehearsal.is_dry() {
        fence::look_back(cutover, Mark::FinalPoint, link.publisher, link.subscriber).await;
    }
}

/// What an attempt with --reverse may have left before it was run again without.
async fn drop_half_made(cutover: &Cutover, back: &Link) -> Result<()> {
    let mut publisher = cutover.connect(back.publisher, Access::ReadOnly).await?;
    let was_begun = publication::exists(&mut publisher, back).await?;
    publisher.close().await;
    if was_begun { drop_link(cutover, back).await } else { Ok(()) }
}

/// Takes a link away: subscription, slot, publication; what is not there is none the worse.
///
/// # Errors
///
/// When a server refuses or is gone; run again it goes on.
pub async fn drop_link(cutover: &Cutover, link: &Link) -> Result<()> {
    drop_subscribers_side(cutover, link).await?;
    drop_publishers_side(cutover, link).await
}

async fn drop_subscribers_side(cutover: &Cutover, link: &Link) -> Result<()> {
    let mut subscriber = cutover.connect(link.subscriber, Access::ReadWrite).await?;
    subscription::drop(&mut subscriber, link).await?;
    subscriber.close().await;
    Ok(())
}

/// Takes slot and publication away, which keep WAL back on the publisher, whatever the subscriber does.
///
/// # Errors
///
/// When the publisher refuses or is gone; run again it goes on.
pub async fn drop_publishers_side(cutover: &Cutover, link: &Link) -> Result<()> {
    let mut publisher = cutover.connect(link.publisher, Access::ReadWrite).await?;
    slot::drop(&mut publisher, link).await?;
    if link.direction == Direction::Forward
        && let Some(names) = cutover.journal.data::<String>(Mark::CopySlots)
    {
        slot::drop_copies(&mut publisher, &names).await?;
    }
    // one that was there before the cutover is somebody else's
    if link.direction == Direction::Back || cutover.journal.has(Mark::Publication) {
        publication::drop(&mut publisher, link).await?;
    }
    publisher.close().await;
    Ok(())
}

/// Points the application at the subscriber.
pub(super) async fn switch(cutover: &mut Cutover, link: &Link, reverse: bool) -> Result<FinishReport> {
    let mut subscriber = cutover.connect(link.subscriber, Access::ReadWrite).await?;
    fence::clear(&mut subscriber).await?;
    subscriber.close().await;
    if !cutover.journal.has(Mark::SwitchedToSubscriber) {
        let hook = if link.subscriber == Place::Target { Hook::SwitchToTarget } else { Hook::SwitchToReplica };
        cutover.hook(hook).await.map_err(|failed| {
            failed
                .with_detail(format!("The {} has everything; the application was not switched yet.", link.subscriber))
                .with_hint("Mend the command and run the same step again: it goes on from here.")
        })?;
        let what = format!("the application uses the {}", link.subscriber);
        cutover.journal.record(Mark::SwitchedToSubscriber, what, ())?;
    }
    cutover.hook(Hook::MaintenanceOff).await.map_err(|failed| {
        failed.with_hint("Mend the command and run the same step again, or switch maintenance off by hand.")
    })?;
    let began = cutover.journal.find(Mark::FinishMaintenance).map(|entry| entry.at);
    let downtime = began.map_or(Duration::ZERO, |began| (OffsetDateTime::now_utc() - began).unsigned_abs());
    if !reverse {
        look_back(cutover, link).await;
        // the subscriber has everything: a publisher that is gone must not keep the application from it
        if let Err(failed) = drop_publishers_side(cutover, link).await {
            tracing::warn!(
                "the slot may still be there, and keep WAL back; cutover abort tries again: {}",
                joined(&failed)
            );
        }
    }
    lift_fence(cutover, link).await;
    let compared: Compared = cutover.journal.data(Mark::Compared).unwrap_or_default();
    let report = FinishReport {
        direction: link.direction,
        downtime_milliseconds: u64::try_from(downtime.as_millis()).unwrap_or(u64::MAX),
        final_lsn: cutover.journal.data::<FencePoint>(Mark::FinalPoint).map(|point| point.lsn).unwrap_or_default(),
        sequences: cutover.journal.data(Mark::SequencesSet).unwrap_or_default(),
        compared_tables: compared.tables,
        not_compared: compared.not_compared,
        is_reversible: reverse,
    };
    let what = match began {
        Some(began) => format!("the move is over: {} of downtime since {}", time_text(downtime), at_text(began)),
        None => "the move is over".to_owned(),
    };
    cutover.journal.record(Mark::FinishDone, what, &report)?;
    if !reverse && let Err(failed) = tidy(cutover).await {
        tracing::warn!(
            "the move is over, but not all that served it could be removed; cutover abort tries again: {}",
            joined(&failed)
        );
    }
    Ok(report)
}

/// Lifts the publisher's fence when nobody is pointed there any more: before that, whoever still was could write what nothing
/// carries over. The publisher's work is done, so that this is no reason to fail.
async fn lift_fence(cutover: &mut Cutover, link: &Link) {
    if !cutover.journal.has(Mark::PublisherFence) || cutover.plan.finish.leave_publisher_read_only {
        return;
    }
    let lifted = async {
        let mut publisher = cutover.connect(link.publisher, Access::ReadWrite).await?;
        fence::lift(cutover, &mut publisher, Mark::PublisherFence).await?;
        publisher.close().await;
        cutover.journal.undo(Mark::PublisherFence, format!("the {} is no longer read-only", link.publisher))
    };
    if let Err(failed) = lifted.await {
        tracing::warn!("the {} stays read-only: {}", link.publisher, joined(&failed));
    }
}

/// Removes what served the moves: the replication role, the markers, REPLICA IDENTITY FULL, and all that this program keeps on
/// the target.
///
/// # Errors
///
/// When a server refuses or is gone; run again it goes on.
pub async fn tidy(cutover: &mut Cutover) -> Result<()> {
    tidy_replication(cutover).await?;
    let mut target = cutover.connect(Place::Target, Access::ReadWrite).await?;
    marker::remove(&mut target).await?;
    target.close().await;
    Ok(())
}

/// [`tidy`], but for what tells on the target which schema was copied there: the next replication asks for it.
///
/// # Errors
///
/// As [`tidy`].
pub async fn tidy_replication(cutover: &mut Cutover) -> Result<()> {
    let mut replica = cutover.connect(Place::Replica, Access::ReadWrite).await?;
    identity::put_back(cutover, &mut replica).await?;
    if cutover.journal.has(Mark::ReplicationRole) {
        role::drop(&mut replica, &cutover.plan.replication.role).await?;
        cutover.journal.undo(Mark::ReplicationRole, format!("the role {} is gone", cutover.plan.replication.role))?;
    }
    marker::remove(&mut replica).await?;
    replica.close().await;
    let mut target = cutover.connect(Place::Target, Access::ReadWrite).await?;
    identity::put_back(cutover, &mut target).await?;
    target.close().await;
    Ok(())
}
