//! PostgreSQL's `backup_manifest`, version 1, which `pg_verifybackup` of every major from 13 reads
//! (PostgreSQL's documentation, "Backup Manifest Format").

use std::fmt::Write as _;

use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::macros::format_description;

use super::lsn::Lsn;

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
    pub fn file(&mut self, path: &[u8], size: u64, mtime: u64, sha256: &[u8; 32]) -> String {
        let separator = if self.files == 0 { "\n" } else { ",\n" };
        self.files += 1;
        self.hashed(format!("{separator}{}{}", entry_start(path), entry_end(size, mtime, sha256)))
    }

    /// The manifest's end.
    pub fn finish(mut self, wal: WalRange) -> String {
        let ranges = format!(
            "\n],\n\"WAL-Ranges\": [\n{{ \"Timeline\": {}, \"Start-LSN\": \"{}\", \"End-LSN\": \"{}\" }}\n],\n",
            wal.timeline, wal.start, wal.end
        );
        let text = self.hashed(ranges);
        format!("{text}\"Manifest-Checksum\": \"{}\"}}\n", hex(&self.hash.finalize()))
    }

    fn hashed(&mut self, text: String) -> String {
        self.hash.update(&text);
        text
    }
}

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
    pub fn replacing(path: &[u8], size: u64, mtime: u64, sha256: &[u8; 32]) -> Self {
        let start = entry_start(path);
        let entry = Some(format!("{start}{}", entry_end(size, mtime, sha256)));
        Self { start, entry, hash: Sha256::default(), held: String::new() }
    }

    /// For a file that is not there any more.
    pub fn removing(path: &[u8]) -> Self {
        Self { start: entry_start(path), entry: None, hash: Sha256::default(), held: String::new() }
    }

    /// Takes a line with its end; gives the lines that are final. After the checksum's, the last, none is held back.
    pub fn line(&mut self, line: &str) -> String {
        if line.starts_with("\"Manifest-Checksum\"") {
            let held = std::mem::take(&mut self.held);
            self.hash.update(&held);
            let checksum = hex(&std::mem::take(&mut self.hash).finalize());
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

fn entry_start(path: &[u8]) -> String {
    match std::str::from_utf8(path) {
        Ok(path) => format!("{{ \"Path\": {},", serde_json::Value::from(path)),
        Err(_) => format!("{{ \"Encoded-Path\": \"{}\",", hex(path)),
    }
}

fn entry_end(size: u64, mtime: u64, sha256: &[u8; 32]) -> String {
    let (mtime, checksum) = (gmt(mtime), hex(sha256));
    format!(
        " \"Size\": {size}, \"Last-Modified\": \"{mtime}\", \"Checksum-Algorithm\": \"SHA256\", \"Checksum\": \"{checksum}\" }}"
    )
}

fn gmt(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    time.unwrap_or(OffsetDateTime::UNIX_EPOCH)
        .format(format_description!("[year]-[month]-[day] [hour]:[minute]:[second] GMT"))
        .expect("every field of the format exists in a date with time")
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes every write");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_json_with_its_own_checksum() {
        let mut writer = ManifestWriter::default();
        let mut text = writer.begin();
        text += &writer.file(b"base/1/\"2\"", 3, 1_700_000_000, &[0xAB; 32]);
        text += &writer.file(b"\xff", 0, 0, &[0; 32]);
        text += &writer.finish(WalRange { timeline: 1, start: Lsn(0x200_0028), end: Lsn(0x200_0138) });
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["Files"][0]["Path"], "base/1/\"2\"");
        assert_eq!(json["Files"][0]["Last-Modified"], "2023-11-14 22:13:20 GMT");
        assert_eq!(json["Files"][1]["Encoded-Path"], "ff");
        assert_eq!(json["WAL-Ranges"][0]["End-LSN"], "0/2000138");
        let (before, _) = text.split_once("\"Manifest-Checksum\"").unwrap();
        assert_eq!(json["Manifest-Checksum"], hex(&Sha256::digest(before)));
    }

    fn edited(text: &str, mut editor: ManifestEditor) -> String {
        text.split_inclusive('\n').map(|line| editor.line(line)).collect()
    }

    #[test]
    fn an_edited_manifest_is_the_one_written_so_in_the_first_place() {
        let written = |files: &[(&str, u64)]| {
            let mut writer = ManifestWriter::default();
            let mut text = writer.begin();
            for (path, size) in files {
                text += &writer.file(path.as_bytes(), *size, 5, &[1; 32]);
            }
            text + &writer.finish(WalRange { timeline: 1, start: Lsn(0), end: Lsn(1) })
        };
        let all = written(&[("a", 1), ("b", 2), ("c", 3)]);
        let replacing = |path: &str| ManifestEditor::replacing(path.as_bytes(), 9, 5, &[1; 32]);
        assert_eq!(edited(&all, replacing("b")), written(&[("a", 1), ("b", 9), ("c", 3)]));
        assert_eq!(edited(&all, replacing("c")), written(&[("a", 1), ("b", 2), ("c", 9)]));
        assert_eq!(edited(&all, replacing("d")), all);
        for (path, left) in [("a", [("b", 2), ("c", 3)]), ("b", [("a", 1), ("c", 3)]), ("c", [("a", 1), ("b", 2)])] {
            assert_eq!(edited(&all, ManifestEditor::removing(path.as_bytes())), written(&left));
        }
        assert_eq!(edited(&written(&[("a", 1)]), ManifestEditor::removing(b"a")).lines().count(), 7);
    }

    #[test]
    fn a_manifest_without_files_is_json_too() {
        let mut writer = ManifestWriter::default();
        let text = writer.begin() + &writer.finish(WalRange { timeline: 1, start: Lsn(0), end: Lsn(1) });
        assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok());
    }
}
