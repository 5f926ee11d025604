//! What tells that a file is still the one that was archived, without asking the archive.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crc32c::crc32c_append;
use serde::{Deserialize, Serialize};

use super::{Result, TransferError};

/// How much of a file is read at a time: small enough to stay in the processor's cache until it is checked.
const CHECKED_AT_ONCE_BYTES: usize = 256 << 10;

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
}

/// A file as it was when it was archived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// The file, before it was read.
    pub state: FileState,
    /// Of its plain bytes: it tells whether they are still the same where `state` is, at the speed of memory.
    pub crc32c: u32,
}

/// The fingerprint of the file at `path`, read now.
pub fn of_file(path: &Path) -> Result<Fingerprint> {
    let failed = TransferError::file("read", path);
    let read = || {
        let mut file = File::open(path)?;
        let state = FileState::of(&file)?;
        let mut crc = 0;
        let mut buffer = vec![0; CHECKED_AT_ONCE_BYTES];
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                len => crc = crc32c_append(crc, &buffer[..len]),
            }
        }
        Ok(Fingerprint { state, crc32c: crc })
    };
    read().map_err(failed)
}
