//! The backup of a cluster that is shut down.
//!
//! Its name comes from the control file, computed as an online backup's is; WAL-E's own is wrong (`spec/wal-e-format.md`
//! §4.9). What WAL-E leaves out, and a server needs to start, is the segment with the last checkpoint: it may not be in the
//! archive yet, so it goes into the backup.

use std::sync::Arc;

use bytes::Bytes;

use super::partitions::Partitions;
use super::{Archive, BackupPushOptions, BackupPushReport, CommandError, Result, Unfinished, files, sentinel};
use crate::commands::wal_continuity::{self, SegmentRange};
use crate::formats::backup_manifest::WalRange;
use crate::formats::backup_name::BackupName;
use crate::formats::wal_name::SegmentName;
use crate::pg::control_file::ControlFile;
use crate::pg::data_directory::{DataDirectory, Postmaster};
use crate::pg::walk::{Walk, WalkOptions};
use crate::transfer::progress::Progress;

pub(super) async fn backup_push(
    archive: &Archive,
    options: &BackupPushOptions,
    progress: Arc<Progress>,
) -> Result<BackupPushReport> {
    let directory = DataDirectory::open(&options.directory)?;
    let (control, control_bytes) = check_stopped(&directory)?;
    let size = control.wal_segment_size;
    let name = BackupName::at(control.timeline, control.redo, size);
    tracing::info!(backup = %name, "backing up a stopped cluster");
    let walk_options = WalkOptions { include_config: options.include_config, offline: true };
    let walk = Walk::new(&directory, walk_options)?;
    let tablespaces = walk.tablespaces().to_vec();
    let backup = Unfinished::claim(archive, name, &format!("PostgreSQL {}", directory.major())).await?;

    let taken = async {
        let partitions = Partitions::new(&backup, options, progress.clone())?;
        files::expect(progress.clone(), directory.clone(), walk_options).await;
        let archived = partitions.store_files(walk).await?;
        let mut last = wal_files(archive, &directory, &control).await?;
        last.push(("global/pg_control".to_owned(), Bytes::from(control_bytes)));
        // a server that was started meanwhile has changed the files under the copy
        let (now, _) = check_stopped(&directory)?;
        if now != control {
            return Err(CommandError::refused("the cluster was started while it was backed up offline"));
        }
        let wal = WalRange { timeline: control.timeline, start: control.redo, end: control.redo };
        partitions.store_last(archived, &directory, last, wal).await
    }
    .await;
    match taken {
        Ok(archived) => {
            let segment = SegmentName::containing(control.timeline, control.redo, size);
            let sentinel = sentinel((segment, control.redo.0 % size.bytes()), archived.bytes, &directory, &tablespaces);
            let name = backup.complete(&sentinel).await?;
            Ok(BackupPushReport { name, partitions: archived.partitions, expanded_size_bytes: archived.bytes })
        }
        Err(failed) => {
            backup.discard().await;
            Err(failed)
        }
    }
}

fn check_stopped(directory: &DataDirectory) -> Result<(ControlFile, Vec<u8>)> {
    if let Postmaster::Present { .. } = directory.postmaster()? {
        return Err(CommandError::refused("while-offline: the server seems to be running")
            .with_detail(format!("\"{}\" has a postmaster.pid.", directory.path().display()))
            .with_hint("Stop the server, or back it up online without --while-offline."));
    }
    let bytes = directory.copy_control_file()?;
    let control = ControlFile::parse(&bytes)?;
    if !control.state.is_shut_down() {
        return Err(CommandError::refused(format!(
            "the cluster was not shut down cleanly: its state is \"{}\"",
            control.state
        ))
        .with_hint(
            "Start it and stop it again, so that it recovers; what it would recover from is not part of a base backup.",
        ));
    }
    Ok((control, bytes))
}

/// The segments from the last checkpoint to where the cluster became consistent, as members of the log's directory. Those
/// that are not there any more have to be in the archive.
async fn wal_files(
    archive: &Archive,
    directory: &DataDirectory,
    control: &ControlFile,
) -> Result<Vec<(String, Bytes)>> {
    let size = control.wal_segment_size;
    let first = SegmentName::containing(control.timeline, control.redo, size);
    let last = SegmentName::containing(control.timeline, control.checkpoint.max(control.min_recovery_point), size);
    let mut files = Vec::new();
    let mut next = Some(first);
    while let Some(segment) = next.filter(|segment| *segment <= last) {
        let path = directory.wal_directory().join(segment.to_string());
        match std::fs::read(&path) {
            Ok(contents) => {
                files.push((format!("{}/{segment}", directory.major().wal_directory()), Bytes::from(contents)))
            }
            Err(failed) => {
                let missing =
                    wal_continuity::missing(archive, SegmentRange { first: segment, last: segment, size }).await?;
                if !missing.is_empty() {
                    return Err(CommandError::refused(format!(
                        "segment {segment}, which the server needs to start, is not there"
                    ))
                    .with_detail(format!(
                        "It is not in the archive, and \"{}\" cannot be read: {failed}.",
                        path.display()
                    ))
                    .with_hint("Start the server, stop it again and repeat the backup, or back it up online."));
                }
            }
        }
        next = segment.next(size);
    }
    Ok(files)
}
