//! `wal-fetch`: one file of the archive for PostgreSQL's recovery.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::sleep;

use super::archive::Archive;
use super::{CommandError, Result};
use crate::formats::wal_name::{SegmentName, WalName};
use crate::formats::wal_page;
use crate::pg::data_directory::DataDirectory;
use crate::pg::followed_timeline::followed_history;
use crate::pg::segment_file;
use crate::storage;
use crate::transfer::archive_end::{next_after, next_on_later_timelines};
use crate::transfer::wal_download::{Expected, Lane, download_wal};
use crate::transfer::{self, TransferError};

/// How often a segment that is missing from the middle is asked for again, and the pause before each time: together longer
/// than a segment takes that is pushed beside the next one.
const GAP_TRIES: u32 = 3;
const GAP_PAUSE: Duration = Duration::from_secs(1);

/// What to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalFetchOptions {
    /// The file's name, as PostgreSQL's `%f` gives it.
    pub file_name: String,
    /// Where to put it, as PostgreSQL's `%p` gives it.
    pub destination: PathBuf,
    /// The data directory of the cluster whose WAL it has to be, where that is known.
    pub data_directory: Option<DataDirectory>,
    /// Whether "not there" would end recovery for good, so that a segment missing from the middle of the archive has to stop
    /// it instead.
    pub refuse_gap: bool,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetched {
    /// The file is at its destination, whole and checked.
    Restored,
    /// The store said, just now, that the archive does not hold it.
    Absent,
}

/// Fetches one file. Everything but [`Fetched::Absent`] and success is an error: it says nothing about what the archive holds.
pub async fn wal_fetch(archive: &Archive, options: &WalFetchOptions) -> Result<Fetched> {
    if options.file_name.is_empty() || options.file_name.contains('/') {
        return Err(CommandError::refused(format!("\"{}\" is not the name of a WAL file", options.file_name))
            .with_hint("Use restore_command = 'wal-eve wal-fetch %f %p'."));
    }
    let system_identifier = options.data_directory.as_ref().and_then(|directory| directory.system_identifier().ok());
    let expected = Expected { name: options.file_name.parse().ok(), system_identifier };
    let fetched = fetch(archive, options, &expected).await?;
    match expected.name {
        Some(WalName::Segment(segment)) if fetched == Fetched::Absent && options.refuse_gap => {
            let Some(next) = next_after_gap(archive, options, &expected, segment).await? else { return Ok(fetched) };
            // segments that are pushed at once do not appear in order
            for _ in 0..GAP_TRIES {
                sleep(GAP_PAUSE).await;
                if fetch(archive, options, &expected).await? == Fetched::Restored {
                    return Ok(Fetched::Restored);
                }
            }
            Err(CommandError::refused(format!("segment {segment} is missing from the archive, although {next} is there"))
                .with_detail("Recovery would end here, and everything after this segment would be lost.")
                .with_hint("Put the segment back, or recover to a point before it; to accept the loss, use wal-fetch --on-outage retry."))
        }
        _ => Ok(fetched),
    }
}

async fn fetch(archive: &Archive, options: &WalFetchOptions, expected: &Expected) -> Result<Fetched> {
    let key = archive.layout.wal(&options.file_name);
    match download_wal(&*archive.store, &key, expected, &options.destination, &Lane::alone()).await {
        Ok(()) => Ok(Fetched::Restored),
        Err(failed @ TransferError::Storage(_)) if failed.kind() == transfer::Kind::NotFound => Ok(Fetched::Absent),
        Err(TransferError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            let destination = options.destination.display();
            Err(CommandError::refused(format!("could not create a file beside \"{destination}\": {source}"))
                .with_hint("PostgreSQL's restore_command runs in the data directory, which %p is relative to; there use wal-eve wal-fetch %f %p."))
        }
        Err(failed) => Err(failed.into()),
    }
}

/// A later segment that the archive holds and recovery would not reach without the absent `segment`; none where it may go on,
/// or comes to the archive's end.
async fn next_after_gap(
    archive: &Archive,
    options: &WalFetchOptions,
    expected: &Expected,
    segment: SegmentName,
) -> Result<Option<SegmentName>> {
    let local = options.destination.with_file_name(&options.file_name);
    if is_segment(&local, segment, expected.system_identifier) {
        // the server looks there next
        return Ok(None);
    }
    let followed = options.data_directory.as_ref().and_then(|directory| {
        let size = directory.control_file().ok()?.wal_segment_size;
        Some((followed_history(directory)?, size))
    });
    let first = followed.as_ref().and_then(|(history, size)| history.first_segment(segment.timeline(), *size));
    if first.is_some_and(|first| segment < first) {
        // older minor releases look there all the same before they try the timeline that has it
        return Ok(None);
    }
    match next_after(&*archive.store, &archive.layout, segment).await {
        Err(failed) if failed.kind() == storage::Kind::Denied => {
            tracing::warn!("could not list the archive to see whether {segment} is its end: {}", failed.cause());
            return Ok(None);
        }
        Ok(None) => {}
        next => return Ok(next?),
    }
    let Some((history, size)) = followed else { return Ok(None) };
    Ok(next_on_later_timelines(&*archive.store, &archive.layout, segment, &history, size).await?)
}

/// Whether the file at `path` is `segment`, and none that waits to be reused.
fn is_segment(path: &Path, segment: SegmentName, system_identifier: Option<u64>) -> bool {
    let page = File::open(path).and_then(|file| segment_file::first_page(&file, segment));
    page.is_ok_and(|page| wal_page::check_cluster(&page, system_identifier).is_ok())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use super::*;
    use crate::formats::key::Layout;
    use crate::formats::lzo1x::Level;
    use crate::formats::lzop::{BLOCK_SIZE, BlockEncoder, TERMINATOR, encode_header};
    use crate::formats::wal_name::SegmentSize;
    use crate::storage::MemoryStore;

    const SYSTEM_IDENTIFIER: u64 = 7;
    const NAME: &str = "000000010000000000000005";

    /// A segment of 1 MiB.
    fn segment(name: &str, system_identifier: u64) -> Vec<u8> {
        let size = SegmentSize::new(1 << 20).unwrap();
        let start = name.parse::<SegmentName>().unwrap().start(size).unwrap();
        let mut bytes = [0xD110_u16.to_le_bytes(), 2_u16.to_le_bytes()].concat();
        bytes.extend(1_u32.to_le_bytes());
        bytes.extend([start.0, 0, system_identifier].map(u64::to_le_bytes).as_flattened());
        bytes.extend((1_u32 << 20).to_le_bytes());
        bytes.resize(1 << 20, 0);
        bytes
    }

    /// An archive that lacks the segment and holds the next one, and a `pg_wal`.
    fn gap() -> (MemoryStore, Archive, tempfile::TempDir, WalFetchOptions) {
        let store = MemoryStore::new();
        let archive = Archive { store: Arc::new(store.clone()), layout: Layout::new("p/") };
        store.overwrite(&archive.layout.wal("000000010000000000000006"), "x");
        let wal = tempfile::tempdir().unwrap();
        let options = WalFetchOptions {
            file_name: NAME.into(),
            destination: wal.path().join("RECOVERYXLOG"),
            data_directory: None,
            refuse_gap: true,
        };
        (store, archive, wal, options)
    }

    #[tokio::test(start_paused = true)]
    async fn a_gap_is_refused_unless_it_ends_within_seconds() {
        let (store, archive, _wal, options) = gap();
        let refused = wal_fetch(&archive, &options).await.unwrap_err().to_string();
        assert!(refused.starts_with("segment 000000010000000000000005 is missing"), "{refused}");
        // the next one was published before this one
        let publish = async {
            sleep(GAP_PAUSE * 3 / 2).await;
            let mut object = encode_header(0, 0).to_vec();
            let plain = segment(NAME, SYSTEM_IDENTIFIER);
            plain.chunks(BLOCK_SIZE).for_each(|block| BlockEncoder::new(Level::Fast).encode(block, &mut object));
            object.extend(TERMINATOR);
            store.overwrite(&archive.layout.wal(NAME), object);
        };
        let (fetched, ()) = tokio::join!(wal_fetch(&archive, &options), publish);
        assert_eq!(fetched.unwrap(), Fetched::Restored);
        assert_eq!(fs::read(&options.destination).unwrap(), segment(NAME, SYSTEM_IDENTIFIER));
    }

    #[tokio::test(start_paused = true)]
    async fn what_lies_in_pg_wal_is_no_gap() {
        let (_, archive, wal, options) = gap();
        fs::write(wal.path().join(NAME), segment("000000010000000000000002", SYSTEM_IDENTIFIER)).unwrap();
        assert!(wal_fetch(&archive, &options).await.is_err(), "it waits to be reused");
        fs::write(wal.path().join(NAME), segment(NAME, SYSTEM_IDENTIFIER)).unwrap();
        assert_eq!(wal_fetch(&archive, &options).await.unwrap(), Fetched::Absent);
    }

    #[test]
    fn only_the_segment_itself_counts_as_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        let is = |system_identifier| is_segment(&path, NAME.parse().unwrap(), system_identifier);
        assert!(!is(None), "there is none");
        let good = segment(NAME, SYSTEM_IDENTIFIER);
        for (bytes, expected) in [
            (good.clone(), true),
            (good[..good.len() - 1].to_vec(), false),
            (good[..10].to_vec(), false),
            (vec![0; good.len()], false),
            // renamed for its next use
            (segment("000000010000000000000002", SYSTEM_IDENTIFIER), false),
            (segment(NAME, 8), false),
        ] {
            fs::write(&path, bytes).unwrap();
            assert_eq!(is(Some(SYSTEM_IDENTIFIER)), expected);
        }
    }
}
