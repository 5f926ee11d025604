//! `wal-fetch`: one file of the archive for PostgreSQL's recovery.

use std::io;
use std::path::PathBuf;

use super::archive::Archive;
use super::{CommandError, Result};
use crate::formats::wal_name::{SegmentName, WalName};
use crate::storage;
use crate::transfer::archive_end::next_after;
use crate::transfer::wal_download::{Expected, Lane, download_wal};
use crate::transfer::{self, TransferError};

/// What to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalFetchOptions {
    /// The file's name, as PostgreSQL's `%f` gives it.
    pub file_name: String,
    /// Where to put it, as PostgreSQL's `%p` gives it.
    pub destination: PathBuf,
    /// The cluster whose WAL it has to be, where that is known.
    pub system_identifier: Option<u64>,
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
    let name: Option<WalName> = options.file_name.parse().ok();
    let expected = Expected { name: name.clone(), system_identifier: options.system_identifier };
    let key = archive.layout.wal(&options.file_name);
    match download_wal(&*archive.store, &key, &expected, &options.destination, &Lane::alone()).await {
        Ok(()) => Ok(Fetched::Restored),
        Err(failed @ TransferError::Storage(_)) if failed.kind() == transfer::Kind::NotFound => match name {
            Some(WalName::Segment(segment)) if options.refuse_gap => absent_unless_in_a_gap(archive, segment).await,
            _ => Ok(Fetched::Absent),
        },
        Err(TransferError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            let destination = options.destination.display();
            Err(CommandError::refused(format!("could not create a file beside \"{destination}\": {source}"))
                .with_hint("PostgreSQL's restore_command runs in the data directory, which %p is relative to; there use wal-eve wal-fetch %f %p."))
        }
        Err(failed) => Err(failed.into()),
    }
}

/// At the archive's end, "not there" is the right answer. In its middle it would end recovery before all that follows.
async fn absent_unless_in_a_gap(archive: &Archive, segment: SegmentName) -> Result<Fetched> {
    match next_after(&*archive.store, &archive.layout, segment).await {
        Ok(None) => Ok(Fetched::Absent),
        Ok(Some(next)) => Err(CommandError::refused(format!("segment {segment} is missing from the archive, although {next} is there"))
            .with_detail("Recovery would end here, and everything after this segment would be lost.")
            .with_hint("Put the segment back, or recover to a point before it; to accept the loss, use wal-fetch --on-outage retry.")),
        Err(failed) if failed.kind() == storage::Kind::Denied => {
            tracing::warn!("could not list the archive to see whether {segment} is its end: {}", failed.cause());
            Ok(Fetched::Absent)
        }
        Err(failed) => Err(failed.into()),
    }
}
