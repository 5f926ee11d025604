//! `delete` takes what WAL-E's takes, never what a kept backup needs, and whatever stops it in the middle leaves nothing that
//! looks complete and is not.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, SystemTime};

use support::hand_made_backup::{BACKUP, control_file, lzop};
use support::s3::{Operation, What, When};
use support::wal_segment::{SYSTEM_IDENTIFIER, segment, segment_name, segment_of};
use support::{Archive, HandMadeBackup, Output, Running, S3Server, WalEve, temp_dir};

/// Seconds after some moment in the past.
fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)
}

fn backup_name(number: u32) -> String {
    format!("base_{}_00000040", segment_name(number))
}

fn sentinel_key(number: u32) -> String {
    format!("basebackups_005/{}_backup_stop_sentinel.json", backup_name(number))
}

fn wal_key(number: u32) -> String {
    format!("wal_005/{}.lzo", segment_name(number))
}

fn partition_key(number: u32, partition: u32) -> String {
    format!("basebackups_005/{}/tar_partitions/part_{partition:08}.tar.lzo", backup_name(number))
}

fn write_at(archive: &Archive, key: &str, body: impl Into<Vec<u8>>, seconds: u64) {
    archive.write(key, body);
    archive.set_time(key, at(seconds));
}

/// A backup without a sentinel that starts in segment `number`, with the WAL that it starts with.
fn add_incomplete(archive: &Archive, number: u32, seconds: u64) {
    write_at(
        archive,
        &format!("basebackups_005/{}/extended_version.txt", backup_name(number)),
        "PostgreSQL 15",
        seconds,
    );
    for partition in 0..3 {
        write_at(archive, &partition_key(number, partition), "partition", seconds);
    }
    archive.write(&wal_key(number), lzop(&segment(number)));
}

fn add_backup(archive: &Archive, number: u32, seconds: u64) {
    add_incomplete(archive, number, seconds);
    let sentinel = format!(
        "{{\"wal_segment_backup_stop\": \"{}\", \"wal_segment_offset_backup_stop\": \"00000312\", \"expanded_size_bytes\": 1}}",
        segment_name(number)
    );
    write_at(archive, &sentinel_key(number), sentinel, seconds);
}

const HISTORY: &str = "wal_005/00000002.history.lzo";
const PARTIAL: &str = "wal_005/000000010000000000000003.partial.lzo";
const LATE_PARTIAL: &str = "wal_005/00000001000000000000000B.partial.lzo";
const BACKUP_HISTORY: &str = "wal_005/000000010000000000000002.00000028.backup.lzo";
const ODD_WAL: &str = "wal_005/notes.lzo";
const ODD_BASE: &str = "basebackups_005/base_000000010000000000000002_00000040/odd";

/// Complete backups 2, 5 and 9, incomplete ones 1, 4 and 10, WAL 1 to 12 on timelines 1 and 2, and some more.
fn fill(archive: &Archive) {
    for number in 1..=12 {
        archive.write(&wal_key(number), "WAL");
        archive.write(&wal_key(number).replace("wal_005/00000001", "wal_005/00000002"), "WAL");
    }
    for (number, seconds) in [(1, 10), (4, 40), (10, 120)] {
        add_incomplete(archive, number, seconds);
    }
    for (number, seconds) in [(2, 20), (5, 50), (9, 100)] {
        add_backup(archive, number, seconds);
    }
    for key in [HISTORY, PARTIAL, LATE_PARTIAL, BACKUP_HISTORY, ODD_WAL, ODD_BASE] {
        archive.write(key, "odd");
    }
}

fn filled(archive: Archive) -> Archive {
    fill(&archive);
    archive
}

fn both_filled() -> [Archive; 2] {
    Archive::both().map(filled)
}

fn delete(archive: &Archive, arguments: &str) -> Output {
    archive.wal_eve().run(["delete"].into_iter().chain(arguments.split(' ')))
}

#[track_caller]
fn says(text: &str, fragments: &[&str]) {
    for fragment in fragments {
        assert!(text.contains(fragment), "\"{fragment}\" is not in:\n{text}");
    }
}

/// Of the keys of [`fill`], those that have to be there when everything before `horizon` has gone.
fn remain_from(horizon: u32, all: &[String]) -> Vec<String> {
    let kept = |key: &&String| {
        let digits = match key.split_once("base_") {
            Some((_, name)) => name.get(..24),
            None => key.strip_prefix("wal_005/").and_then(|name| name.get(..24)),
        };
        let position = digits.and_then(|digits| u32::from_str_radix(digits.get(16..)?, 16).ok());
        [HISTORY, ODD_WAL, ODD_BASE].contains(&key.as_str()) || position.unwrap() >= horizon
    };
    all.iter().filter(kept).cloned().collect()
}

// What goes.

#[test]
fn what_is_strictly_older_goes() {
    for (arguments, horizon) in [
        (format!("--confirm before {}", backup_name(5)), 5),
        (format!("--confirm before {}", segment_name(5)), 5),
        ("--confirm before 000000030000000000000005".to_owned(), 5),
        // it need not exist
        (format!("--confirm before {}", backup_name(6)), 6),
        (format!("--confirm before {}", backup_name(1)), 1),
        ("--confirm retain 1".to_owned(), 9),
        ("--confirm retain 2".to_owned(), 5),
        ("--confirm retain 3".to_owned(), 2),
        ("--confirm retain 99".to_owned(), 2),
    ] {
        for archive in both_filled() {
            let before = archive.keys();
            let output = delete(&archive, &arguments).assert_success();
            let expected = remain_from(horizon, &before);
            assert_eq!(archive.keys(), expected, "{arguments} over {}", archive.kind());
            says(&output.stderr_text(), &["notes.lzo", "/odd"]);
            let report = output.stdout_text();
            assert!(!report.contains("would") && !report.contains("HINT"), "{report}");
            let gone: BTreeSet<_> = before.iter().filter(|key| !expected.contains(key)).collect();
            match gone.len() {
                0 => says(&report, &["there is nothing to delete"]),
                gone => says(&report, &[&format!("deleted {gone} objects, "), "kept "]),
            }
            // done is done
            let again = delete(&archive, &arguments).assert_success();
            says(&again.stdout_text(), &["there is nothing to delete"]);
            assert_eq!(archive.keys(), expected);
        }
    }
}

#[test]
fn without_confirm_nothing_goes_and_the_same_is_said() {
    for archive in both_filled() {
        let before = archive.keys();
        let operators = ["before base_000000010000000000000005_00000040", "retain 1", "everything", "old-versions"];
        for flags in ["", "-n ", "--dry-run ", "--confirm --dry-run ", "-n --confirm "] {
            for operator in operators {
                delete(&archive, &format!("{flags}{operator}")).assert_success();
                assert_eq!(archive.keys(), before, "{flags}{operator}");
            }
        }
        if let Archive::S3(server) = &archive {
            assert_eq!(server.count(Operation::DeleteObject, ""), 0);
        }
        for operator in operators {
            let would = delete(&archive, operator).assert_success();
            let (text, log) = (would.stdout_text(), would.stderr_text());
            if operator != "old-versions" {
                says(&text, &["HINT:  This was a dry run", "--confirm", "would delete"]);
                says(&log, &["would delete complete base backup base_000000010000000000000002_00000040"]);
            }
            let copy = filled(if archive.is_s3() { Archive::s3() } else { Archive::file() });
            let did = delete(&copy, &format!("--confirm {operator}")).assert_success();
            let dry_text = text.replace("would delete", "deleted").replace("would keep", "kept");
            let dry_text = dry_text.split("HINT").next().unwrap();
            assert_eq!(dry_text, did.stdout_text());
            assert_eq!(log.replace("would delete", "deleting").lines().count(), did.stderr_text().lines().count());
        }
    }
}

#[test]
fn the_report_names_backups_and_the_first_and_last_segment() {
    let archive = filled(Archive::s3());
    let text = delete(&archive, "retain 1").assert_success().stdout_text();
    let expected = "would delete 4 base backups:
  base_000000010000000000000001_00000040  incomplete, 4 objects, 40 B
  base_000000010000000000000002_00000040  complete, 5 objects, ";
    assert!(text.starts_with(expected), "{text}");
    says(
        &text,
        &[
            "would delete 16 WAL segments, 000000010000000000000001 to 000000020000000000000008, ",
            "would delete 2 other objects, 6 B",
            "would keep 1 complete base backup, base_000000010000000000000009_00000040 and later, and WAL from 0000000000000009 on",
        ],
    );
}

#[test]
fn a_backup_in_progress_survives_also_when_it_began_before_the_horizon() {
    for archive in both_filled() {
        add_incomplete(&archive, 7, 101);
        delete(&archive, "--confirm retain 1").assert_success();
        for number in [7, 10] {
            assert!(archive.holds(&partition_key(number, 2)) && archive.holds(&wal_key(number)), "{number}");
        }
        assert!(!archive.holds(&wal_key(6)) && !archive.holds(&partition_key(5, 0)));
    }
}

#[test]
fn everything_is_the_archive_and_nothing_beside_it() {
    for archive in both_filled() {
        let beside = ["basebackups_004/x", "wal_0055/x", "basebackups_005x", "notes"];
        beside.iter().for_each(|key| archive.write(key, "x"));
        if let Archive::S3(server) = &archive {
            server.put_object("b", "pp/wal_005/x", "x");
            server.put_object("b", "wal_005/x", "x");
        }
        let output = delete(&archive, "--confirm everything").assert_success();
        let expected: BTreeSet<_> = beside.iter().map(|key| (*key).to_owned()).collect();
        assert_eq!(archive.keys().into_iter().collect::<BTreeSet<_>>(), expected);
        if let Archive::S3(server) = &archive {
            assert_eq!(server.keys("b", "").len(), beside.len() + 2);
        }
        says(&output.stdout_text(), &["deleted 6 base backups", "deleted 24 WAL segments", "deleted 6 other objects"]);
    }
}

#[test]
fn old_versions_are_what_wal_e_wrote_before_0_5() {
    let old = [
        "basebackups/base_000000010000000000000002_64_0/pgcluster/x.lzo",
        "basebackups/base_000000010000000000000002_00000064_001/x",
        "basebackups_000/x",
        "basebackups_002/base_000000010000000000000002_00000064/pgcluster/x.lzo",
        "basebackups_002/base_000000010000000000000002_00000064_backup_stop_sentinel.txt",
        "basebackups_003/y",
        "basebackups_004/base_000000010000000000000002_00000064_backup_stop_sentinel.json",
        "wal_0/000000010000000000000002.lzo",
        "wal_001/x",
        "wal_004/00000002.history.lzo",
    ];
    for archive in both_filled() {
        archive.write("basebackups/of-another-program/x", "x");
        let current = archive.keys();
        old.iter().for_each(|key| archive.write(key, "x"));
        let output = delete(&archive, "--confirm old-versions").assert_success();
        assert_eq!(archive.keys(), current);
        says(&output.stdout_text(), &["deleted 10 objects, 10 B"]);
        if let Archive::S3(server) = &archive {
            let first_two: Vec<_> = deletions(server).into_iter().take(2).collect();
            assert!(first_two.iter().all(|key| key.contains("_backup_stop_sentinel.")), "{first_two:?}");
        }
    }
}

#[test]
fn an_archive_without_complete_backups_keeps_all() {
    for archive in Archive::both() {
        archive.write(&wal_key(1), "x");
        add_incomplete(&archive, 2, 10);
        let before = archive.keys();
        let output = delete(&archive, "--confirm retain 1").assert_success();
        says(&output.stdout_text(), &["no complete base backup: nothing is deleted"]);
        let refused = delete(&archive, &format!("--confirm before {}", segment_name(3))).assert_code(1);
        says(&refused.stderr_text(), &["no complete base backup would remain", "HINT:  ", "delete everything"]);
        assert_eq!(archive.keys(), before);
    }
}

#[test]
fn empty_directories_go_with_what_was_in_them() {
    let archive = filled(Archive::file());
    let Archive::File(root) = &archive else { unreachable!() };
    // as if wal-eve had written there
    fs::create_dir(root.path().join(format!("basebackups_005/{}/tar_partitions/.tmp-wal-eve", backup_name(5))))
        .unwrap();
    delete(&archive, "--confirm retain 1").assert_success();
    assert!(!root.path().join(format!("basebackups_005/{}", backup_name(5))).exists());
    assert!(root.path().join(format!("basebackups_005/{}", backup_name(2))).exists(), "something odd lies in it");
    delete(&archive, "--confirm everything").assert_success();
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
}

#[test]
fn thousands_of_segments_go_a_page_at_a_time() {
    let archive = filled(Archive::s3());
    let Archive::S3(server) = &archive else { unreachable!() };
    for number in 0..2500_u32 {
        archive.write(&format!("wal_005/{:08X}{:08X}{:08X}.lzo", 1, 0xA000, number), "x");
    }
    add_backup(&archive, 0xA000 * 4096 + 2400, 200);
    server.faults().add(When::operation(Operation::DeleteObject), What::Delay(Duration::from_millis(20)));
    let output = delete(&archive, "--confirm retain 1").assert_success();
    assert_eq!(
        archive.keys_ending(".lzo").iter().filter(|key| key.starts_with("wal_005/000000010000A000")).count(),
        2500 - 2400
    );
    says(&output.stdout_text(), &["to 000000010000A0000000095F"]);
    assert!((8..=32).contains(&server.peak_in_flight()), "{} at once", server.peak_in_flight());
}

// What is refused.

#[test]
fn what_makes_no_sense_is_a_usage_error() {
    let archive = filled(Archive::s3());
    let before = archive.keys();
    for arguments in [
        "",
        "--confirm",
        "retain",
        "retain 0",
        "retain -1",
        "retain x",
        "before",
        "before LATEST",
        "before base_1",
        "before x",
        "before 00000001000000000000000g",
        "sideways",
        "everything else",
        "--confirm retain --confirm 1",
    ] {
        let arguments: Vec<_> =
            ["delete"].into_iter().chain(arguments.split(' ').filter(|word| !word.is_empty())).collect();
        let output = archive.wal_eve().run(&arguments).assert_code(1);
        assert!(!output.stderr_text().is_empty(), "{arguments:?}");
    }
    let text = delete(&archive, "before LATEST").stderr_text();
    says(&text, &["LATEST", "backup-list", "WAL segment"]);
    let help = delete(&archive, "--help").assert_success().stdout_text();
    says(&help, &["before", "retain", "old-versions", "everything", "--confirm", "--dry-run"]);
    assert_eq!(archive.keys(), before);
}

#[test]
fn no_complete_backup_left_is_refused() {
    for archive in both_filled() {
        let before = archive.keys();
        let output = delete(&archive, "--confirm before 00000001000000000000000A").assert_code(1);
        says(
            &output.stderr_text(),
            &["no complete base backup would remain", "3 complete", "HINT:  ", "delete everything"],
        );
        assert_eq!(archive.keys(), before);
    }
}

#[test]
fn an_order_of_time_that_contradicts_the_positions_is_refused_by_retain_and_not_by_name() {
    for archive in both_filled() {
        archive.set_time(&sentinel_key(9), at(15));
        let before = archive.keys();
        let output = delete(&archive, "--confirm retain 1").assert_code(1);
        says(
            &output.stderr_text(),
            &[&backup_name(9), &backup_name(5), "two clusters", "copied", "HINT:  ", "delete before NAME"],
        );
        assert_eq!(archive.keys(), before);
        // one cluster by its system identifiers: the user's word is enough
        delete(&archive, &format!("--confirm before {}", backup_name(9))).assert_success();
        assert_eq!(archive.backups(), [backup_name(9)]);
    }
}

#[test]
fn backups_of_two_clusters_are_refused() {
    for archive in both_filled() {
        let other = SYSTEM_IDENTIFIER + 1;
        for (number, arguments) in [
            (2, format!("--confirm before {}", backup_name(5))),
            (2, "--confirm retain 1".to_owned()),
            (9, "--confirm retain 2".to_owned()),
            (5, "--confirm retain 2".to_owned()),
            // an incomplete one that goes
            (4, "--confirm retain 1".to_owned()),
        ] {
            archive.write(&wal_key(number), lzop(&segment_of(other, number)));
            let before = archive.keys();
            let output = delete(&archive, &arguments).assert_code(1);
            let ids = [SYSTEM_IDENTIFIER.to_string(), other.to_string()];
            says(&output.stderr_text(), &[&backup_name(number), &ids[0], &ids[1], "different clusters", "HINT:  "]);
            assert_eq!(archive.keys(), before);
            archive.write(&wal_key(number), lzop(&segment(number)));
        }
        if let Archive::S3(server) = &archive {
            server.clear_requests();
        }
        delete(&archive, "--confirm retain 1").assert_success();
        if let Archive::S3(server) = &archive {
            assert_eq!(server.count(Operation::GetObject, "wal_005"), 5, "one segment a backup");
        }
    }
}

#[test]
fn a_start_segment_that_is_missing_or_damaged_is_a_warning() {
    for archive in both_filled() {
        archive.write(&wal_key(2), "damaged");
        match &archive {
            Archive::S3(server) => assert!(server.delete("b", &format!("p/{}", wal_key(5)))),
            Archive::File(root) => fs::remove_file(root.path().join(wal_key(5))).unwrap(),
        }
        let output = delete(&archive, "--confirm retain 1").assert_success();
        says(
            &output.stderr_text(),
            &["was not checked", &backup_name(2), "damaged", &backup_name(5), "lacks the segment"],
        );
        assert_eq!(archive.backups(), [backup_name(9)]);
        // with the times against it the damaged one might be good
        fill(&archive);
        archive.write(&wal_key(2), "damaged");
        archive.set_time(&sentinel_key(2), at(110));
        let before = archive.keys();
        let output = delete(&archive, &format!("--confirm before {}", backup_name(9))).assert_code(1);
        says(&output.stderr_text(), &["cannot be told", &backup_name(2), &backup_name(9), "HINT:  "]);
        assert_eq!(archive.keys(), before);
    }
}

#[test]
fn a_name_of_the_offline_mode_holds_the_wal_of_its_whole_log() {
    for archive in both_filled() {
        // §4.9: REDO at 0/3000028 is written as segment 30; the real start may be segment 3
        let offline = "base_000000010000000000000030_00000030";
        let sentinel = "{\"wal_segment_backup_stop\": \"000000010000000000000030\", \"wal_segment_offset_backup_stop\": \"00000030\", \"expanded_size_bytes\": 1}";
        write_at(&archive, &format!("basebackups_005/{offline}/tar_partitions/part_00000000.tar.lzo"), "x", 60);
        write_at(&archive, &format!("basebackups_005/{offline}_backup_stop_sentinel.json"), sentinel, 60);
        let wal = archive.keys().into_iter().filter(|key| key.starts_with("wal_005/")).collect::<Vec<_>>();
        let output = delete(&archive, &format!("--confirm before {offline}"));
        says(&output.assert_success().stderr_text(), &["offline mode", "0000000000000000"]);
        delete(&archive, "--confirm retain 2").assert_success();
        let left = archive.keys();
        assert!(wal.iter().all(|key| left.contains(key)));
        assert_eq!(archive.backups(), [backup_name(9), offline.to_owned()]);
        // a log file later it is certain
        let later = 4096 + 2;
        add_backup(&archive, later, 200);
        delete(&archive, "--confirm retain 1").assert_success();
        assert_eq!(archive.backups(), [backup_name(later)]);
        assert!(!archive.keys().contains(&wal_key(12)));
    }
}

#[test]
fn a_name_that_only_looks_like_the_offline_modes_is_exact() {
    for archive in both_filled() {
        let number = 0x40;
        add_backup(&archive, number, 200);
        delete(&archive, "--confirm retain 1").assert_success();
        assert_eq!(archive.backups(), [backup_name(number)]);
        assert!(!archive.holds(&wal_key(12)));
    }
}

#[test]
fn the_wal_of_another_programs_backup_stays() {
    for archive in both_filled() {
        archive.write("basebackups_005/base_000000010000000000000003_backup_stop_sentinel.json", "{}");
        let output = delete(&archive, "--confirm retain 1").assert_success();
        says(&output.stderr_text(), &["another program", "0000000000000003"]);
        assert!(archive.holds(&wal_key(3)) && !archive.holds(&wal_key(2)));
    }
}

// What goes wrong on the way.

/// The keys below the prefix that were asked to be deleted, in order.
fn deletions(server: &S3Server) -> Vec<String> {
    let requests = server.requests().into_iter();
    let deletions = requests.filter(|request| request.operation == Operation::DeleteObject);
    deletions.map(|request| request.key.strip_prefix("p/").unwrap().to_owned()).collect()
}

fn is_wal(key: &str) -> bool {
    key.starts_with("wal_005/")
}

fn is_sentinel(key: &str) -> bool {
    key.ends_with("_backup_stop_sentinel.json")
}

#[test]
fn sentinels_go_first_and_wal_last_oldest_first() {
    let archive = filled(Archive::s3());
    let Archive::S3(server) = &archive else { unreachable!() };
    delete(&archive, "--confirm retain 1").assert_success();
    let order = deletions(server);
    let (first_data, first_wal) =
        (order.iter().position(|key| !is_sentinel(key)).unwrap(), order.iter().position(|key| is_wal(key)).unwrap());
    assert_eq!(first_data, 2, "{order:?}");
    assert!(order[first_wal..].iter().all(|key| is_wal(key)));
    assert!(!order[first_data..].iter().any(|key| is_sentinel(key)));
}

#[test]
fn what_cannot_be_deleted_is_an_error_and_ends_its_phase() {
    // the key, whether the data of the backups may go, whether WAL may
    for (refused, data_goes, count) in [
        (sentinel_key(2), false, 1),
        (partition_key(2, 1), true, 1),
        ("tar_partitions".to_owned(), true, 12),
        (wal_key(3), true, 2),
    ] {
        let archive = filled(Archive::s3());
        let Archive::S3(server) = &archive else { unreachable!() };
        let clean = filled(Archive::s3());
        delete(&clean, "--confirm retain 1").assert_success();
        let refused = if is_wal(&refused) { segment_name(3) } else { refused };
        server.faults().add(When::operation(Operation::DeleteObject).key(&refused), What::access_denied());
        let output = delete(&archive, "--confirm retain 1").assert_code(1);
        let objects = if count == 1 { "1 object could" } else { &format!("{count} objects could") };
        says(
            &output.stderr_text(),
            &[objects, &refused, "403 AccessDenied", "s3:DeleteObject", "HINT:  ", "DETAIL:  "],
        );
        assert_eq!(output.stdout_text(), "");
        assert_eq!(archive.backups().len(), if refused.contains("sentinel") { 2 } else { 1 }, "{refused}");
        assert_eq!(archive.holds(&partition_key(5, 0)), !data_goes || refused == "tar_partitions", "{refused}");
        assert_eq!(archive.holds(&wal_key(4)), !refused.starts_with("0000"), "{refused}");
        // once it may, the next run ends it
        server.faults().clear();
        delete(&archive, "--confirm retain 1").assert_success();
        assert_eq!(archive.keys(), clean.keys());
    }
}

#[test]
fn a_directory_that_may_not_be_written_to_is_an_error() {
    let archive = filled(Archive::file());
    let Archive::File(root) = &archive else { unreachable!() };
    let wal = root.path().join("wal_005");
    fs::set_permissions(&wal, fs::Permissions::from_mode(0o500)).unwrap();
    let output = delete(&archive, "--confirm retain 1");
    fs::set_permissions(&wal, fs::Permissions::from_mode(0o700)).unwrap();
    let output = output.assert_code(1);
    says(&output.stderr_text(), &["18 objects could not be deleted", "wal_005/0000000", "HINT:  "]);
    assert!(archive.holds(&wal_key(1)));
    delete(&archive, "--confirm retain 1").assert_success();
    assert!(!archive.holds(&wal_key(1)));
}

#[test]
fn hiccups_are_tried_again_and_others_failures_end_it() {
    let archive = filled(Archive::s3());
    let Archive::S3(server) = &archive else { unreachable!() };
    server.faults().add(When::operation(Operation::DeleteObject).times(3), What::slow_down());
    server.faults().add(When::operation(Operation::DeleteObject).skip(20).once(), What::LoseResponse);
    delete(&archive, "--confirm retain 2").assert_success();
    assert_eq!(archive.backups(), [backup_name(5), backup_name(9)]);
    server.faults().clear();

    server.faults().add(When::list(), What::access_denied());
    let before = archive.keys();
    for operator in ["retain 1", "everything", "old-versions", "before base_000000010000000000000009_00000040"] {
        let output = delete(&archive, &format!("--confirm {operator}")).assert_code(1);
        says(&output.stderr_text(), &["403 AccessDenied", "s3:ListBucket"]);
    }
    server.faults().clear();
    server.faults().add(
        When::operation(Operation::DeleteObject),
        What::Error { status: 400, code: "Odd", message: "Never seen." },
    );
    let output = delete(&archive, "--confirm retain 1").assert_code(2);
    says(&output.stderr_text(), &["400 Odd", "_backup_stop_sentinel.json"]);
    server.faults().clear();
    assert_eq!(archive.keys(), before);
}

#[test]
fn a_place_or_credentials_that_are_wrong_are_a_user_error() {
    let archive = filled(Archive::s3());
    let with = |name: &str, value: &str| archive.wal_eve().env(name, value).run(["delete", "--confirm", "everything"]);
    says(&with("WALE_S3_PREFIX", "").assert_code(1).stderr_text(), &["no storage prefix"]);
    says(&with("WALE_S3_PREFIX", "s3://other/p").assert_code(1).stderr_text(), &["no bucket \"other\""]);
    says(&with("AWS_SECRET_ACCESS_KEY", "wrong").assert_code(1).stderr_text(), &["AWS_SECRET_ACCESS_KEY"]);
    with("AWS_SECRET_ACCESS_KEY", "").assert_code(1);
    let root = temp_dir();
    let nowhere = WalEve::for_file_prefix(&root.path().join("no/such"));
    for operator in [["retain", "1"].as_slice(), &["everything"]] {
        let output = nowhere.run(["delete", "--confirm"].iter().chain(operator)).assert_code(1);
        says(&output.stderr_text(), &["no/such", "must exist"]);
    }
    // an archive that is empty is none of this
    let output = with("WALE_S3_PREFIX", "s3://b/elsewhere").assert_success();
    says(&output.stdout_text(), &["there is nothing to delete"]);
    assert_eq!(archive.backups().len(), 3);
}

fn spawn(archive: &Archive) -> Running {
    archive.wal_eve().spawn(["delete", "--confirm", "retain", "1"])
}

#[test]
fn killed_anywhere_it_leaves_nothing_that_looks_complete_and_the_next_run_ends_it() {
    let clean = filled(Archive::s3());
    delete(&clean, "--confirm retain 1").assert_success();
    for moment in [1, 3, 10, 20, 30] {
        let archive = filled(Archive::s3());
        let Archive::S3(server) = &archive else { unreachable!() };
        // so that it can be caught at each
        server
            .faults()
            .add(When::operation(Operation::DeleteObject).skip(moment), What::Delay(Duration::from_secs(60)));
        let mut running = spawn(&archive);
        let far_enough = || deletions(server).len() > moment;
        support::postgres::wait_until("it is far enough", Duration::from_secs(30), far_enough);
        running.kill9();
        drop(running);
        server.faults().clear();
        let left = archive.keys();
        for number in [2, 5, 9] {
            let whole = (0..3).all(|partition| left.contains(&partition_key(number, partition)));
            assert!(
                whole && left.contains(&wal_key(number)) || !left.contains(&sentinel_key(number)),
                "{moment}: {left:?}"
            );
        }
        if left.iter().any(|key| is_sentinel(key) && !key.contains(&backup_name(9))) {
            assert!(left.contains(&partition_key(5, 0)) && left.contains(&wal_key(1)), "{moment}: {left:?}");
        }
        delete(&archive, "--confirm retain 1").assert_success();
        assert_eq!(archive.keys(), clean.keys());
    }
}

#[test]
fn a_backup_that_is_completed_meanwhile_is_left_alone() {
    let archive = filled(Archive::s3());
    let Archive::S3(server) = &archive else { unreachable!() };
    let slow = When::operation(Operation::DeleteObject).key("sentinel");
    // the other one is completed before they are gone, also on a busy machine
    server.faults().add(slow, What::Delay(Duration::from_secs(5)));
    let running = spawn(&archive);
    support::postgres::wait_until("it deletes", Duration::from_secs(30), || !deletions(server).is_empty());
    archive.write(&sentinel_key(4), "{}");
    let output = running.wait().assert_code(1);
    says(&output.stderr_text(), &[&backup_name(4), "completed meanwhile", "HINT:  ", "again"]);
    assert!((0..3).all(|partition| archive.holds(&partition_key(4, partition))) && archive.holds(&wal_key(1)));
}

#[test]
fn two_at_once_do_not_fail_each_other() {
    for archive in both_filled() {
        if let Archive::S3(server) = &archive {
            server.faults().add(When::operation(Operation::DeleteObject), What::Delay(Duration::from_millis(50)));
        }
        let both = [spawn(&archive), spawn(&archive)];
        for running in both {
            running.wait().assert_success();
        }
        let clean = filled(if archive.is_s3() { Archive::s3() } else { Archive::file() });
        delete(&clean, "--confirm retain 1").assert_success();
        assert_eq!(archive.keys(), clean.keys());
    }
}

// Beside the real WAL-E.

#[test]
fn it_deletes_what_wal_e_deletes_and_both_list_the_same_afterwards() {
    for (arguments, exact) in [
        (format!("before {}", backup_name(5)), true),
        (format!("before {}", backup_name(6)), true),
        ("retain 1".to_owned(), true),
        ("retain 2".to_owned(), true),
        ("retain 7".to_owned(), true),
        ("everything".to_owned(), false),
    ] {
        for (by_wal_e, ours) in both_filled().into_iter().zip(both_filled()) {
            let confirmed: Vec<_> = ["delete", "--confirm"].into_iter().chain(arguments.split(' ')).collect();
            by_wal_e.wal_e().run(&confirmed).assert_success();
            ours.wal_eve().run(&confirmed).assert_success();
            // WAL-E keeps partial segments for ever
            let partials: BTreeSet<_> = by_wal_e.keys_ending(".partial.lzo").into_iter().collect();
            let but_partials =
                |keys: Vec<String>| keys.into_iter().filter(|key| !partials.contains(key)).collect::<Vec<_>>();
            assert_eq!(but_partials(by_wal_e.keys()), but_partials(ours.keys()), "{arguments} over {}", ours.kind());
            if exact {
                assert_eq!(ours.backups(), by_wal_e.backups());
            }
            for archive in [&by_wal_e, &ours] {
                let names = |output: Output| {
                    let text = output.assert_success().stdout_text();
                    text.lines()
                        .skip(1)
                        .map(|line| line.split('\t').next().unwrap().to_owned())
                        .collect::<BTreeSet<_>>()
                };
                let listed = names(archive.wal_e().run(["backup-list"]));
                assert_eq!(listed, names(archive.wal_eve().run(["backup-list"])));
                assert_eq!(listed, archive.backups().into_iter().collect());
            }
        }
    }
}

#[test]
fn the_kept_backup_still_restores() {
    for archive in Archive::both() {
        for (key, body) in &HandMadeBackup::new().objects {
            archive.write(key, body.clone());
        }
        add_backup(&archive, 1, 20);
        delete(&archive, "--confirm retain 1").assert_success();
        assert_eq!(archive.backups(), [BACKUP]);
        assert!(!archive.holds(&wal_key(1)) && archive.holds(&wal_key(2)));
        let root = temp_dir();
        for (program, target) in [("wal-eve", root.path().join("ours")), ("wal-e", root.path().join("wal-e"))] {
            let arguments = ["backup-fetch", target.to_str().unwrap(), "LATEST"];
            let output = match program {
                "wal-eve" => archive.wal_eve().run(arguments),
                _ => archive.wal_e().run(arguments.into_iter().chain(["--blind-restore"])),
            };
            output.assert_success();
            assert_eq!(fs::read(target.join("global/pg_control")).unwrap(), control_file(), "{program}");
        }
    }
}
