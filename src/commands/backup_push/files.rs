//! The cluster's files to partitions, as the walk finds them.

use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::ffi::OsStringExt as _;
use std::sync::Arc;
use std::time::SystemTime;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::mpsc;

use super::{CommandError, Result, Unfinished};
use crate::formats::tar_partition::{Placement, Planner};
use crate::pg;
use crate::pg::tablespace::Tablespace;
use crate::pg::walk::{Entry, EntryKind, Found};
use crate::transfer::partition_upload::{Member, PartitionContext, Source, upload_partition};
use crate::transfer::progress::Progress;
use crate::transfer::{TransferError, off_async};

/// What was archived.
pub(super) struct ArchivedFiles {
    /// How many partitions were stored.
    pub(super) partitions: u32,
    /// The sum of the files' sizes in bytes, without those that were gone before they were read.
    pub(super) bytes: u64,
}

/// Archives everything that `found` tells of, `pool_size` partitions at a time. In memory are the members of those partitions
/// and of one more, at most 6144 each.
pub(super) async fn archive(
    backup: &Unfinished<'_>,
    found: impl Iterator<Item = pg::Result<Found>> + Send + 'static,
    context: &PartitionContext,
    pool_size: NonZeroUsize,
) -> Result<ArchivedFiles> {
    let (sender, receiver) = mpsc::channel(1);
    let planning = off_async(move || plan(found, &sender));
    let planned = stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) });
    let storing = planned
        .zip(stream::iter(0_u32..))
        .map(|(members, number)| store(backup, number, members, context))
        .buffer_unordered(pool_size.get())
        .try_fold(ArchivedFiles { partitions: 0, bytes: 0 }, |sum, bytes| async move {
            Ok(ArchivedFiles { partitions: sum.partitions + 1, bytes: sum.bytes + bytes })
        });
    // when storing fails, dropping it closes the channel, which ends the planning
    let (planned, stored) = futures::join!(planning, storing);
    let stored = stored?;
    planned?;
    Ok(stored)
}

/// Stores one partition; the sum of its files' sizes in bytes.
pub(super) async fn store(
    backup: &Unfinished<'_>,
    number: u32,
    members: Vec<Member>,
    context: &PartitionContext,
) -> Result<u64> {
    let count = members.len();
    let key = backup.archive.layout.partition(&backup.name, number);
    let options = backup.put_options("application/octet-stream");
    let (put, bytes) = upload_partition(&*backup.archive.store, &key, members, &options, context).await?;
    if !backup.is_own(&key, put).await? {
        return Err(TransferError::Conflict { url: backup.archive.store.url(&key) }.into());
    }
    context.progress.part_done();
    tracing::info!(partition = number, members = count, bytes, "partition archived");
    Ok(bytes)
}

/// Cuts what is found into partitions. Ends quietly when nobody wants them any more.
fn plan(found: impl Iterator<Item = pg::Result<Found>>, sender: &mpsc::Sender<Vec<Member>>) -> Result<()> {
    let mut planner = Planner::default();
    let mut members = Vec::new();
    for one in found {
        let entry = match one? {
            Found::Entry(entry) => entry,
            Found::Trap(trap) => {
                tracing::warn!("{trap}");
                continue;
            }
        };
        let path = entry.path.clone();
        let member = member(entry);
        let placement = planner
            .place(member.size())
            .map_err(|source| CommandError::from(TransferError::TooLarge { path, source }))?;
        if placement == Placement::New && sender.blocking_send(std::mem::take(&mut members)).is_err() {
            return Ok(());
        }
        members.push(member);
    }
    // the root is always there, so there is always a last partition
    let _ = sender.blocking_send(members);
    Ok(())
}

pub(super) fn member(entry: Entry) -> Member {
    let source = match entry.kind {
        EntryKind::File { size } => Source::Path { path: entry.path, size },
        EntryKind::Directory => Source::Directory,
        EntryKind::Symlink { target } => Source::Symlink(target.as_os_str().as_bytes().to_vec()),
    };
    let mtime = entry.mtime.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Member { name: entry.name.into_vec(), source, mode: entry.mode, uid: entry.uid, gid: entry.gid, mtime }
}

/// Whether the archived bytes can be the whole cluster: a tablespace that was not seen, or a database behind a link, makes
/// a backup that looks complete and is not.
pub(super) fn check_size(archived: u64, cluster: u64, tablespaces: &[Tablespace]) -> Result<()> {
    // relations may shrink, temporary ones vanish; a fifth is more than both, less than most tablespaces
    if archived >= cluster / 5 * 4 {
        return Ok(());
    }
    let places: Vec<String> = tablespaces.iter().map(|space| space.location.display().to_string()).collect();
    Err(CommandError::refused(format!("only {archived} bytes were archived, but the server's databases have {cluster}"))
        .with_detail(format!("Tablespaces that were seen: {}.", if places.is_empty() { "none".into() } else { places.join(", ") }))
        .with_hint("Something in the data directory is a link to elsewhere that is no tablespace, or the directory is not the server's own."))
}

/// Tells the progress how much there will be; failing to count is no reason to fail.
pub(super) async fn expect(
    progress: Arc<Progress>,
    directory: pg::data_directory::DataDirectory,
    options: pg::walk::WalkOptions,
) {
    let counted = off_async(move || pg::walk::Extent::of(&directory, options)).await;
    if let Ok(extent) = counted {
        progress.set_total(extent.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_that_lacks_more_than_a_fifth_of_the_databases_is_refused() {
        let tablespaces = [Tablespace { oid_name: "16384".into(), location: "/srv/space".into() }];
        for (archived, cluster) in [(0, 0), (80, 100), (800, 100), (1 << 50, 1 << 50)] {
            check_size(archived, cluster, &tablespaces).unwrap();
        }
        for (archived, cluster) in [(79, 100), (0, 5), (1 << 40, 1 << 50)] {
            let refused = check_size(archived, cluster, &tablespaces).unwrap_err();
            let message = format!("only {archived} bytes were archived, but the server's databases have {cluster}");
            assert_eq!(refused.to_string(), message);
            assert_eq!(refused.detail(), Some("Tablespaces that were seen: /srv/space."));
        }
        assert_eq!(check_size(0, 5, &[]).unwrap_err().detail(), Some("Tablespaces that were seen: none."));
    }
}
