//! What a look-ahead push leaves behind, so that the call in which PostgreSQL hands the segment over is answered without
//! asking the archive.
//!
//! A marker is believed only when the object's address, the cluster's identity, the name and the very file (device, inode,
//! size and both times of change) still match: a marker alone may have come along in a copy or been left by another
//! configuration. Nobody can set a file's second time, so a file that has all of these still holds what was archived, unless it
//! was changed twice within one tick of the clock; of a file that had only just been written when it was read, a checksum of
//! its contents has to match as well. It is one that costs no more than reading the file: whoever could make another file
//! with the same CRC-32C could as well write the marker. A marker is not fsynced: a lost one costs a push, a torn one does
//! not parse.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{CommandError, Result};
use crate::formats::wal_name::SegmentName;
use crate::formats::wal_page::{LONG_HEADER_LEN, LongPageHeader};
use crate::fs::staged::StagedFile;
use crate::transfer::fingerprint::{self, FileState, Fingerprint};

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

    /// Whether `file` at this address is still what was archived as `name`.
    pub(super) fn answers_for(&self, url: &str, name: SegmentName, file: &File) -> io::Result<bool> {
        Ok(self.name == name.to_string()
            && self.may_match(url, &FileState::of(file)?)
            && system_identifier(file) == Some(self.system_identifier)
            && (self.file.settled || fingerprint::crc32c_of(file)? == self.file.crc32c))
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

/// The identity of the cluster that wrote the segment.
pub(super) fn system_identifier(segment: &File) -> Option<u64> {
    let mut start = [0; LONG_HEADER_LEN];
    segment.read_exact_at(&mut start, 0).ok()?;
    LongPageHeader::parse(&start).ok().map(|page| page.system_identifier)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_compared_only_where_the_times_cannot_tell() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("segment");
        fs::write(&path, page_of(7)).unwrap();
        let file = File::open(&path).unwrap();
        let name: SegmentName = "000000010000000000000002".parse().unwrap();
        let state = FileState::of(&file).unwrap();
        let answers = |identifier, settled, crc32c| {
            let marker = PushMarker::new("s3://b/x".into(), identifier, name, Fingerprint { state, settled, crc32c });
            marker.answers_for("s3://b/x", name, &file).unwrap()
        };
        let crc32c = crc32c::crc32c(&page_of(7));
        assert!(answers(7, false, crc32c));
        assert!(!answers(7, false, !crc32c));
        assert!(answers(7, true, !crc32c));
        assert!(!answers(8, true, crc32c));
        // other contents, but in another state
        fs::write(&path, page_of(9)).unwrap();
        assert!(!answers(9, true, crc32c));
    }

    /// A long page header, for segments of 16 MiB, and nothing else.
    fn page_of(system_identifier: u64) -> Vec<u8> {
        let mut page = vec![0; LONG_HEADER_LEN];
        page[..4].copy_from_slice(&[0x13, 0xD1, 0x02, 0]);
        page[24..32].copy_from_slice(&system_identifier.to_le_bytes());
        page[32..36].copy_from_slice(&(16_u32 << 20).to_le_bytes());
        page
    }
}
