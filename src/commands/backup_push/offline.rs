//! The backup of a cluster that is shut down.
//!
//! Its name comes from the control file, computed as an online backup's is; WAL-E's own is wrong (`spec/wal-e-format.md`
//! §4.9). What WAL-E leaves out, and a server needs to start, is the WAL from the last checkpoint on: it may not be in the
//! archive yet, so it goes into the backup.

use std::io;
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
use crate::pg::walk::{Entry, Found, Walk, WalkOptions};
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
    let needed = needed_segments(&control);
    let wal = wal_files(archive, &directory, needed).await?;
    let walk = Walk::new(&directory, walk_options)?;
    let tablespaces = walk.tablespaces().to_vec();
    let backup = Unfinished::claim(archive, name, &format!("PostgreSQL {}", directory.major())).await?;

    let taken = async {
        let partitions = Partitions::new(&backup, options, progress.clone())?;
        files::expect(progress.clone(), directory.clone(), walk_options).await;
        let segments = wal.clone().into_iter().map(|segment| Ok(Found::Entry(segment)));
        let archived = partitions.store_files(walk.chain(segments)).await?;
        // a server that was started meanwhile has changed the files under the copy
        let (now, _) = check_stopped(&directory)?;
        if now != control || wal_on_disk(&directory, needed)?.there != wal {
            return Err(CommandError::refused("the cluster was started while it was backed up offline"));
        }
        let range = WalRange { timeline: control.timeline, start: control.redo, end: control.redo };
        let last = vec![("global/pg_control".to_owned(), Bytes::from(control_bytes))];
        partitions.store_last(archived, &directory, last, range).await
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

/// The segments from the last checkpoint to where the cluster is consistent.
fn needed_segments(control: &ControlFile) -> SegmentRange {
    let size = control.wal_segment_size;
    let first = SegmentName::containing(control.timeline, control.redo, size);
    let checkpoint = SegmentName::containing(control.timeline, control.checkpoint, size);
    // the first byte that recovery does not need; 0/0, on timeline 0, on a primary
    let timeline = control.timeline.max(control.min_recovery_timeline);
    let consistent = SegmentName::ending_at(timeline, control.min_recovery_point, size);
    SegmentRange { first, last: checkpoint.max(consistent), size }
}

/// The segments of `needed` that go into the backup. Those that are not there any more have to be in the archive.
async fn wal_files(archive: &Archive, directory: &DataDirectory, needed: SegmentRange) -> Result<Vec<Entry>> {
    let WalOnDisk { there, gone } = wal_on_disk(directory, needed)?;
    if !gone.is_empty() {
        let missing = wal_continuity::missing(archive, needed).await?;
        if let Some(segment) = gone.iter().find(|segment| missing.contains(segment)) {
            let message = format!("segment {segment}, which the server needs to start, is not there");
            let places = (directory.wal_directory(), archive.store.url(&archive.layout.wal_directory()));
            return Err(CommandError::refused(message)
                .with_detail(format!("It is neither in \"{}\" nor under \"{}\".", places.0.display(), places.1))
                .with_hint("Start the server, stop it again and repeat the backup, or back it up online."));
        }
    }
    Ok(there)
}

/// Segments as a stopped server has left them.
struct WalOnDisk {
    there: Vec<Entry>,
    gone: Vec<SegmentName>,
}

fn wal_on_disk(directory: &DataDirectory, range: SegmentRange) -> Result<WalOnDisk> {
    let mut wal = WalOnDisk { there: Vec::new(), gone: Vec::new() };
    for segment in range.names() {
        let path = directory.wal_directory().join(segment.to_string());
        let name = format!("{}/{segment}", directory.major().wal_directory());
        match Entry::file(path.clone(), name.into()) {
            Ok(file) => wal.there.push(file),
            Err(absent) if absent.kind() == io::ErrorKind::NotFound => wal.gone.push(segment),
            Err(failed) => return Err(CommandError::file("examine", path)(failed)),
        }
    }
    Ok(wal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::key::Layout;
    use crate::formats::wal_name::SegmentSize;
    use crate::storage::MemoryStore;
    use crate::transfer::partition_upload::Source;

    #[tokio::test]
    async fn segments_are_known_before_the_copy_and_read_when_their_turn_comes() {
        let data = tempfile::tempdir().unwrap();
        std::fs::write(data.path().join("PG_VERSION"), "15\n").unwrap();
        std::fs::create_dir(data.path().join("pg_wal")).unwrap();
        let [first, between, last]: [SegmentName; 3] =
            ["000000010000000000000002", "000000010000000000000003", "000000010000000000000004"]
                .map(|name| name.parse().unwrap());
        for segment in [first, last] {
            std::fs::write(data.path().join(format!("pg_wal/{segment}")), "wal").unwrap();
        }
        let directory = DataDirectory::open(data.path()).unwrap();
        let store = MemoryStore::new();
        let archive = Archive { store: Arc::new(store.clone()), layout: Layout::new("") };
        let needed = SegmentRange { first, last, size: SegmentSize::DEFAULT };
        let refused = wal_files(&archive, &directory, needed).await.unwrap_err();
        assert_eq!(refused.to_string(), format!("segment {between}, which the server needs to start, is not there"));

        store.overwrite(&format!("{}{between}.lzo", archive.layout.wal_directory()), "");
        let found = wal_files(&archive, &directory, needed).await.unwrap();
        let names: Vec<_> = found.iter().map(|file| file.name.to_str().unwrap()).collect();
        assert_eq!(names, [first, last].map(|segment| format!("pg_wal/{segment}")));
        assert!(found.into_iter().all(|file| matches!(files::member(file).source, Source::Path { size: 3, .. })));
    }
}
