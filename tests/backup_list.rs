//! What `backup-list` shows for people and for programs; WAL-E's own form is held to WAL-E's output elsewhere.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

mod support;

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use support::Archive;

const OLDER: &str = "base_000000010000000000000002_00000040";
const NEWER: &str = "base_0000000100000000000000A5_00000104";

/// With two complete backups and one without a sentinel.
fn fill(archive: &Archive) {
    for (name, seconds) in [(OLDER, 1_451_606_400), (NEWER, 1_451_692_805)] {
        let sentinel = json!({
            "wal_segment_backup_stop": &name[5..29],
            "wal_segment_offset_backup_stop": "00000312",
            "expanded_size_bytes": 100_173,
            "spec": null,
        });
        let key = format!("basebackups_005/{name}_backup_stop_sentinel.json");
        archive.write(&key, sentinel.to_string());
        archive.set_time(&key, SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
    }
    let unfinished = "base_0000000100000000000000A6_00000040";
    archive.write(&format!("basebackups_005/{unfinished}/extended_version.txt"), "PostgreSQL 15.4");
}

fn list(archive: &Archive, options: &[&str]) -> String {
    archive.wal_eve().run(["backup-list"].iter().chain(options)).assert_success().stdout_text()
}

#[test]
fn json_has_each_complete_backup_and_with_detail_what_its_sentinel_says() {
    for archive in Archive::both() {
        fill(&archive);
        let listed = |options: &[&str]| serde_json::from_str::<Value>(&list(&archive, options)).unwrap();
        let row = |name: &str, time| {
            json!({
                "name": name,
                "last_modified": time,
                "wal_segment_backup_start": &name[5..29],
                "wal_segment_offset_backup_start": &name[30..],
            })
        };
        let mut rows = [row(OLDER, "2016-01-01T00:00:00.000Z"), row(NEWER, "2016-01-02T00:00:05.000Z")];
        assert_eq!(listed(&["--json"]), json!(rows), "{}", archive.kind());
        assert_eq!(listed(&["--json", "LATEST"]), json!(rows[1..]));
        assert_eq!(listed(&["--json", "base_000000010000000000000009_00000040"]), json!([]));
        for row in &mut rows {
            row["wal_segment_backup_stop"] = row["wal_segment_backup_start"].clone();
            row["wal_segment_offset_backup_stop"] = "00000312".into();
            row["expanded_size_bytes"] = 100_173.into();
        }
        assert_eq!(listed(&["--json", "--detail"]), json!(rows));
        assert_eq!(listed(&["--json", "--detail", OLDER]), json!(rows[..1]));
    }
}

#[test]
fn a_table_has_its_columns_aligned_under_their_names() {
    let archive = Archive::file();
    fill(&archive);
    let start = ["name", "last_modified", "wal_segment_backup_start", "wal_segment_offset_backup_start"];
    let older = [OLDER, "2016-01-01T00:00:00.000Z", &OLDER[5..29], "00000040"];
    let newer = [NEWER, "2016-01-02T00:00:05.000Z", &NEWER[5..29], "00000104"];
    let check = |options: &[&str], rows: &[&[&str]]| {
        let table = list(&archive, options);
        assert_eq!(table.lines().count(), rows.len(), "{table}");
        for (line, row) in table.lines().zip(rows) {
            assert_eq!(line.split_whitespace().collect::<Vec<_>>(), *row, "{table}");
            for (name, cell) in rows[0].iter().zip(*row) {
                let column = table.find(name).unwrap();
                assert!(line[column..].starts_with(cell), "{name}\n{table}");
            }
        }
    };
    check(&["--table"], &[&start, &older, &newer]);
    check(&["--table", "LATEST"], &[&start, &newer]);
    let table = list(&archive, &["--table", "--detail", "LATEST"]);
    for words in ["expanded_size_bytes", "100173", "wal_segment_offset_backup_stop", "00000312"] {
        assert!(table.contains(words), "{table}");
    }
}
