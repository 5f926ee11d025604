//! Whether what goes and what stays is of one cluster: positions of two clusters do not compare.
//!
//! The start segment of a backup bears its cluster's system identifier. Only the first block of it is read.

use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::super::archive::Archive;
use super::super::{CommandError, Result};
use super::inventory::ArchivedBackup;
use super::plan::Plan;
use crate::formats::error_line::joined;
use crate::storage;
use crate::transfer::TransferError;
use crate::transfer::wal_download::first_page;

/// How many segments are begun to be read at once.
const SEGMENTS_IN_FLIGHT: usize = 8;

/// Which cluster a backup is of.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Identity {
    Known(u64),
    /// The archive does not hold the segment that the backup starts in.
    NoSegment,
    /// Why it cannot be told otherwise.
    Unknown(String),
}

/// Refuses when a backup that goes is of another cluster than one that stays.
pub(super) async fn check(archive: &Archive, plan: &Plan) -> Result<()> {
    let mut kept = vec![plan.oldest_kept()];
    if plan.newest_kept().name != kept[0].name {
        kept.push(plan.newest_kept());
    }
    let identified = stream::iter(kept.into_iter().chain(&plan.going))
        .map(|backup| async move { Ok::<_, CommandError>((backup, identity(archive, backup).await?)) })
        .buffered(SEGMENTS_IN_FLIGHT)
        .try_collect::<Vec<_>>()
        .await?;
    compare(plan, &identified)
}

async fn identity(archive: &Archive, backup: &ArchivedBackup) -> Result<Identity> {
    if !backup.start.is_exact() {
        return Ok(Identity::Unknown("its name is one of WAL-E's offline mode and may tell the wrong segment".into()));
    }
    let segment = backup.name.segment();
    match first_page(&*archive.store, &archive.layout.wal(&segment.to_string()), segment).await {
        Ok(Some(page)) => Ok(Identity::Known(page.system_identifier)),
        Ok(None) => Ok(Identity::NoSegment),
        // moved to a storage class that has to be restored first, or not for these credentials
        Err(TransferError::Storage(failed)) if failed.kind() != storage::Kind::Denied => Err(failed.into()),
        Err(failed) => Ok(Identity::Unknown(joined(&failed))),
    }
}

/// `identified` begins with the backups that stay.
fn compare(plan: &Plan, identified: &[(&ArchivedBackup, Identity)]) -> Result<()> {
    let known = |(backup, identity): &(&ArchivedBackup, Identity)| match identity {
        Identity::Known(id) => Some((backup.name.clone(), *id)),
        _ => None,
    };
    let mut all = identified.iter().filter_map(known);
    if let Some((name, id)) = all.next()
        && let Some((other_name, other_id)) = all.find(|(_, other)| *other != id)
    {
        return Err(CommandError::refused(format!("backups {name} and {other_name} are of different clusters"))
            .with_detail(format!(
                "By the segments that they start in, {name} is of the cluster with system identifier {id}, and {other_name} of {other_id}. What is older cannot be told by their positions in the WAL. Nothing was deleted."
            ))
            .with_hint("Give each cluster a prefix of its own, also after pg_upgrade. Here, remove the objects of the cluster that is no longer needed by hand, the sentinels first."));
    }
    let unknown = identified.iter().filter_map(|(backup, identity)| match identity {
        Identity::Known(_) => None,
        Identity::NoSegment => Some((*backup, "the archive lacks the segment that it starts in", true)),
        Identity::Unknown(why) => Some((*backup, why.as_str(), false)),
    });
    // A backup without its first segment cannot be restored from this archive, so that little is lost with it, and WAL-E's
    // failed backups often lack it: that is worth a warning. One whose segment is there and cannot be read, such as one that
    // WAL-E encrypted, may be good; then the order of time has to agree with that of positions.
    for (backup, why, lost) in unknown {
        if !lost && let Some(kept) = plan.going.contains(backup).then(|| plan.kept_but_older(backup)).flatten() {
            return Err(CommandError::refused(format!("it cannot be told whether backup {} is of the same cluster as {}", backup.name, kept.name))
                .with_detail(format!(
                    "It was completed after {}, which stays, and yet starts before it in the WAL; and its system identifier is not known: {why}. Nothing was deleted.",
                    kept.name
                ))
                .with_hint("If it really is no longer needed, remove its objects by hand, the sentinel first."));
        }
        tracing::warn!(backup = %backup.name, "whether it is of the same cluster as the others was not checked: {why}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::super::inventory::Inventory;
    use super::*;
    use crate::formats::key::Layout;
    use crate::formats::wal_name::SegmentName;
    use crate::storage::Listed;

    /// Backups 2 and 3 go, 4 stays; each with the time of its sentinel.
    fn plan(times: [u64; 3]) -> Plan {
        let rows = (2..).zip(times).map(|(number, seconds)| Listed {
            key: format!("basebackups_005/base_00000001000000000000000{number}_00000040_backup_stop_sentinel.json"),
            size: 1,
            last_modified: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
        });
        let horizon: SegmentName = "000000010000000000000004".parse().unwrap();
        Plan::before(&Inventory::of(&Layout::new(""), rows), horizon.into()).unwrap()
    }

    fn compared(plan: &Plan, kept: Identity, going: [Identity; 2]) -> Result<()> {
        let identities: Vec<_> =
            [&plan.kept[0]].into_iter().chain(&plan.going).zip([kept].into_iter().chain(going)).collect();
        compare(plan, &identities)
    }

    #[test]
    fn one_cluster_passes_whatever_the_times() {
        use Identity::{Known, NoSegment, Unknown};
        compared(&plan([20, 30, 40]), Known(7), [Known(7), Known(7)]).unwrap();
        compared(&plan([20, 50, 40]), Known(7), [Known(7), Known(7)]).unwrap();
        compared(&plan([20, 30, 40]), Known(7), [NoSegment, Unknown("x".into())]).unwrap();
        compared(&plan([20, 50, 40]), NoSegment, [Unknown("x".into()), NoSegment]).unwrap();
    }

    #[test]
    fn another_cluster_is_refused_by_name_and_identifier() {
        use Identity::{Known, NoSegment};
        let failed = compared(&plan([20, 30, 40]), Known(7), [NoSegment, Known(8)]).unwrap_err();
        assert_eq!(failed.kind(), super::super::super::Kind::User);
        let text = format!("{failed} {}", failed.detail().unwrap());
        for part in
            ["base_000000010000000000000004_00000040", "base_000000010000000000000003_00000040", " 7,", " of 8."]
        {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(compared(&plan([20, 30, 40]), NoSegment, [Known(7), Known(8)]).is_err(), "among those that go");
    }

    #[test]
    fn an_unknown_one_that_is_newer_than_what_stays_is_refused() {
        use Identity::{Known, Unknown};
        let failed = compared(&plan([20, 50, 40]), Known(7), [Known(7), Unknown("encrypted".into())]).unwrap_err();
        assert!(failed.detail().unwrap().contains("encrypted"), "{failed}");
    }
}
