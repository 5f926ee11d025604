//! A manifest being written.

use sha2::{Digest, Sha256};

use super::entry;
use crate::formats::hex;
use crate::formats::lsn::Lsn;

/// Makes the manifest's text piece by piece; the caller stores the pieces, since a cluster may have millions of files.
#[derive(Default)]
pub struct ManifestWriter {
    hash: Sha256,
    files: u64,
}

/// The WAL that a backup needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalRange {
    /// The timeline it lies on.
    pub timeline: u32,
    /// Its first byte.
    pub start: Lsn,
    /// The first byte not needed.
    pub end: Lsn,
}

impl ManifestWriter {
    /// The manifest's beginning.
    pub fn begin(&mut self) -> String {
        self.hashed("{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [".to_owned())
    }

    /// One file. `path` is relative to the data directory; `mtime` in seconds since 1970.
    pub fn file(&mut self, path: &[u8], size: u64, mtime: u64, crc32c: u32) -> String {
        let separator = if self.files == 0 { "\n" } else { ",\n" };
        self.files += 1;
        self.hashed(format!("{separator}{}{}", entry::start(path), entry::end(size, mtime, crc32c)))
    }

    /// The manifest's end.
    pub fn finish(mut self, wal: WalRange) -> String {
        let ranges = format!(
            "\n],\n\"WAL-Ranges\": [\n{{ \"Timeline\": {}, \"Start-LSN\": \"{}\", \"End-LSN\": \"{}\" }}\n],\n",
            wal.timeline, wal.start, wal.end
        );
        let text = self.hashed(ranges);
        format!("{text}\"Manifest-Checksum\": \"{}\"}}\n", hex::hex(&self.hash.finalize()))
    }

    fn hashed(&mut self, text: String) -> String {
        self.hash.update(&text);
        text
    }
}
