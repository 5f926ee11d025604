//! PostgreSQL's `backup_manifest`, version 1, which `pg_verifybackup` of every major from 13 reads
//! (PostgreSQL's documentation, "Backup Manifest Format").
//!
//! Files have a CRC-32C there, as PostgreSQL's own manifests do unless they are told otherwise: SHA-256 took a fifth of the
//! processors' time of a whole backup, and would tell of nobody's malice either, since the manifest lies beside its files.

mod editor;
mod entry;
mod writer;

pub use editor::ManifestEditor;
pub use writer::{ManifestWriter, WalRange};

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::formats::hex::hex;
    use crate::formats::lsn::Lsn;

    #[test]
    fn the_text_is_json_with_its_own_checksum() {
        let mut writer = ManifestWriter::default();
        let mut text = writer.begin();
        text += &writer.file(b"base/1/\"2\"", 3, 1_700_000_000, 0xAB00_0001);
        text += &writer.file(b"\xff", 0, 0, 0);
        text += &writer.finish(WalRange { timeline: 1, start: Lsn(0x200_0028), end: Lsn(0x200_0138) });
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["Files"][0]["Path"], "base/1/\"2\"");
        assert_eq!(json["Files"][0]["Last-Modified"], "2023-11-14 22:13:20 GMT");
        assert_eq!(json["Files"][0]["Checksum-Algorithm"], "CRC32C");
        #[cfg(target_endian = "little")]
        assert_eq!(json["Files"][0]["Checksum"], "010000ab");
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
                text += &writer.file(path.as_bytes(), *size, 5, 1);
            }
            text + &writer.finish(WalRange { timeline: 1, start: Lsn(0), end: Lsn(1) })
        };
        let all = written(&[("a", 1), ("b", 2), ("c", 3)]);
        let replacing = |path: &str| ManifestEditor::replacing(path.as_bytes(), 9, 5, 1);
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
