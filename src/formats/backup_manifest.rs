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
        let mut text = String::from(if self.files == 0 { "\n" } else { ",\n" });
        self.files += 1;
        match std::str::from_utf8(path) {
            Ok(path) => write!(text, "{{ \"Path\": {}", serde_json::Value::from(path)),
            Err(_) => write!(text, "{{ \"Encoded-Path\": \"{}\"", hex(path)),
        }
        .expect("a String takes every write");
        write!(
            text,
            ", \"Size\": {size}, \"Last-Modified\": \"{}\", \"Checksum-Algorithm\": \"SHA256\", \"Checksum\": \"{}\" }}",
            gmt(mtime),
            hex(sha256)
        )
        .expect("a String takes every write");
        self.hashed(text)
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

    #[test]
    fn a_manifest_without_files_is_json_too() {
        let mut writer = ManifestWriter::default();
        let text = writer.begin() + &writer.finish(WalRange { timeline: 1, start: Lsn(0), end: Lsn(1) });
        assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok());
    }
}
