//! What a look-ahead push leaves behind, so that the call in which PostgreSQL hands the segment over is answered without
//! asking the archive.
//!
//! A marker is believed only when the object's address, the cluster's identity, the name, the very file (device, inode, size
//! and both times of change) and a checksum of its contents all still match: a marker alone may have come along in a copy
//! or been left by another configuration. The checksum is one that costs no more than reading the file: whoever could make
//! another file of the same inode, times and CRC-32C could as well write the marker. It is not fsynced: a lost one costs a
//! push, a torn one does not parse.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{CommandError, Result};
use crate::formats::wal_name::SegmentName;
use crate::fs::staged::StagedFile;
use crate::transfer::fingerprint::{FileState, Fingerprint};

/// The record that a segment is durable in the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PushMarker {
    /// The object's whole address, and the server's where it is not the usual one.
    url: String,
    system_identifier: u64,
    name: String,
    file: Fingerprint,
}

impl PushMarker {
    pub(super) fn new(url: String, system_identifier: u64, name: SegmentName, file: Fingerprint) -> Self {
        Self { url, system_identifier, name: name.to_string(), file }
    }

    /// Whether it is about this file at this address: what can be told without reading the file.
    pub(super) fn may_match(&self, url: &str, state: &FileState) -> bool {
        self.url == url && self.file.state == *state
    }
}

/// The directory of the markers below a `pg_wal`.
pub(super) struct PushMarkers {
    directory: PathBuf,
}

impl PushMarkers {
    /// `.wal-e` is WAL-E's own name there, which its base backups leave out.
    pub(super) fn of(wal_directory: &Path) -> Self {
        Self { directory: wal_directory.join(".wal-e/pushed") }
    }

    /// The marker for `name`, if there is one that can be read.
    pub(super) fn read(&self, name: SegmentName) -> Option<PushMarker> {
        serde_json::from_slice(&fs::read(self.path(name)).ok()?).ok()
    }

    pub(super) fn write(&self, name: SegmentName, marker: &PushMarker) -> Result<()> {
        use std::io::Write as _;
        let path = self.path(name);
        let write = || {
            fs::create_dir_all(&self.directory)?;
            let staged = StagedFile::create(&path)?;
            staged.file().write_all(&serde_json::to_vec(marker)?)?;
            staged.publish()
        };
        write().map_err(CommandError::file("write", &path))
    }

    /// Removes the marker for `name`, if there is one.
    pub(super) fn remove(&self, name: SegmentName) {
        let _ = fs::remove_file(self.path(name));
    }

    /// Removes the markers of segments that PostgreSQL does not wait for any more.
    pub(super) fn keep_only(&self, wanted: impl Fn(SegmentName) -> bool) -> io::Result<()> {
        let entries = match fs::read_dir(&self.directory) {
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_str().and_then(|text| text.parse::<SegmentName>().ok());
            if !name.is_some_and(&wanted) {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(())
    }

    fn path(&self, name: SegmentName) -> PathBuf {
        self.directory.join(name.to_string())
    }
}
