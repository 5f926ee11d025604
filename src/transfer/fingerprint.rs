//! What tells that a file is still the one that was archived, without asking the archive.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crc32c::crc32c_append;
use serde::{Deserialize, Serialize};

/// How much of a file is read at a time: small enough to stay in the processor's cache until it is checked.
const CHECKED_AT_ONCE_BYTES: usize = 256 << 10;

/// The coarsest clock that a filesystem stamps changes with: FAT's; ext4's and XFS's ticks take 10 ms at most.
const COARSEST_CLOCK: Duration = Duration::from_secs(2);

/// A file as the filesystem knows it: what no copy of it and no other file under its name has in common with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileState {
    device: u64,
    inode: u64,
    /// In bytes.
    pub size: u64,
    /// When its contents were last changed, in nanoseconds since 1970.
    pub mtime_ns: i128,
    /// When anything about it was last changed, which nobody can set.
    ctime_ns: i128,
}

impl FileState {
    /// Of an open file.
    pub fn of(file: &File) -> std::io::Result<Self> {
        let found = file.metadata()?;
        let nanoseconds = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Ok(Self {
            device: found.dev(),
            inode: found.ino(),
            size: found.len(),
            mtime_ns: nanoseconds(found.mtime(), found.mtime_nsec()),
            ctime_ns: nanoseconds(found.ctime(), found.ctime_nsec()),
        })
    }

    /// Whether a file in this state that is changed at `now` or later is in another state then: its last change is so long
    /// past that the next one has another time, however coarse the clock.
    pub fn is_settled_at(&self, now: SystemTime) -> bool {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        i128::try_from(now).is_ok_and(|now| now - self.ctime_ns > COARSEST_CLOCK.as_nanos() as i128)
    }
}

/// A file as it was when it was archived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// The file, before it was read.
    pub state: FileState,
    /// Whether `state` was settled when the file was read: then it alone tells that the contents are still the same.
    #[serde(default)]
    pub settled: bool,
    /// Of the plain bytes: it tells the same for a file that had only just been written.
    pub crc32c: u32,
}

/// The CRC-32C of what the file holds now.
pub fn crc32c_of(mut file: &File) -> std::io::Result<u32> {
    let mut crc = 0;
    let mut buffer = vec![0; CHECKED_AT_ONCE_BYTES];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(crc),
            len => crc = crc32c_append(crc, &buffer[..len]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_settled_once_no_clock_could_hide_another_change() {
        let file = tempfile::tempfile().unwrap();
        let state = FileState::of(&file).unwrap();
        let changed = UNIX_EPOCH + Duration::from_nanos(u64::try_from(state.ctime_ns).unwrap());
        assert!(!state.is_settled_at(changed));
        assert!(!state.is_settled_at(changed + COARSEST_CLOCK));
        assert!(state.is_settled_at(changed + COARSEST_CLOCK + Duration::from_nanos(1)));
        // a clock that was set back says nothing
        assert!(!state.is_settled_at(changed - Duration::from_secs(3600)));
    }
}
