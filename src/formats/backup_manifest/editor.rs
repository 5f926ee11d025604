//! A finished manifest that follows a change of one file.

use sha2::{Digest, Sha256};

use super::entry;
use crate::formats::hex;

/// Gives a finished manifest another entry for one of its files, or none, as its lines pass by; the checksum follows.
///
/// It relies on what every writer of the format does: an entry stands on a line of its own, and so does the checksum.
pub struct ManifestEditor {
    start: String,
    entry: Option<String>,
    hash: Sha256,
    /// Known to stay as it is only with the next line: the last entry has no comma.
    held: String,
}

impl ManifestEditor {
    /// For a file that was changed since; `mtime` in seconds since 1970.
    pub fn replacing(path: &[u8], size: u64, mtime: u64, crc32c: u32) -> Self {
        let start = entry::start(path);
        let entry = Some(format!("{start}{}", entry::end(size, mtime, crc32c)));
        Self { start, entry, hash: Sha256::default(), held: String::new() }
    }

    /// For a file that is not there any more.
    pub fn removing(path: &[u8]) -> Self {
        Self { start: entry::start(path), entry: None, hash: Sha256::default(), held: String::new() }
    }

    /// Takes a line with its end; gives the lines that are final. After the checksum's, the last, none is held back.
    pub fn line(&mut self, line: &str) -> String {
        if line.starts_with("\"Manifest-Checksum\"") {
            let held = std::mem::take(&mut self.held);
            self.hash.update(&held);
            let checksum = hex::hex(&std::mem::take(&mut self.hash).finalize());
            return format!("{held}\"Manifest-Checksum\": \"{checksum}\"}}\n");
        }
        let mut line = line.to_owned();
        if line.starts_with(&self.start) {
            let end = if line.trim_end().ends_with(',') { ",\n" } else { "\n" };
            match &self.entry {
                Some(entry) => line = format!("{entry}{end}"),
                None => {
                    if end == "\n" && self.held.ends_with(",\n") {
                        self.held.truncate(self.held.len() - 2);
                        self.held.push('\n');
                    }
                    return String::new();
                }
            }
        }
        let passed = std::mem::replace(&mut self.held, line);
        self.hash.update(&passed);
        passed
    }
}
