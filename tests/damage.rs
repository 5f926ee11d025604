//! Damage at rest, one row per action, object and place: each is named with the next step, and nothing half-written is ever
//! left under a final name.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use support::hand_made_backup::{BACKUP, NEEDED_SEGMENTS, control_file, lzop, tar};
use support::s3::{Operation, S3Server};
use support::wal_segment::{SEGMENT_BYTES, noise, segment, segment_name};
use support::{HandMadeBackup, Output, RawMember, Tool, WalDirectory, WalEve, dir_tree, temp_dir, wal_eve_bin};
use tempfile::TempDir;

/// An archive in a directory and somewhere to restore to.
struct Site {
    root: TempDir,
}

impl Site {
    fn with(backup: &HandMadeBackup) -> Self {
        let site = Self { root: temp_dir() };
        fs::create_dir(site.archive()).unwrap();
        backup.write_to(&site.archive());
        site
    }

    fn archive(&self) -> PathBuf {
        self.root.path().join("archive")
    }

    fn target(&self) -> PathBuf {
        self.root.path().join("target")
    }

    fn wal_eve(&self) -> WalEve {
        WalEve::for_file_prefix(&self.archive())
    }

    fn restore(&self) -> Output {
        self.restore_with(&[])
    }

    fn restore_with(&self, more: &[&str]) -> Output {
        let target = self.target().display().to_string();
        self.wal_eve().run(["backup-fetch", &target, "LATEST", "-p", "2"].iter().chain(more))
    }
}

#[track_caller]
fn says(output: &Output, fragments: &[&str]) {
    let text = output.stderr_text();
    for fragment in fragments {
        assert!(text.contains(fragment), "\"{fragment}\" is not in:\n{text}");
    }
}

// WAL.

/// What is done to the object of segment 7, and what the message has to say.
type WalDamage = (&'static str, fn(Vec<u8>) -> Vec<u8>, &'static [&'static str]);

const WAL_DAMAGE: &[WalDamage] = &[
    ("empty", |_| Vec::new(), &["it is empty", "another copy"]),
    ("one byte", |body| body[..1].to_vec(), &["damaged"]),
    ("cut in the header", |body| body[..20].to_vec(), &["damaged", "ends"]),
    ("cut after the header", |body| body[..38].to_vec(), &["damaged", "ends", "byte 38"]),
    ("cut in a block", |body| body[..body.len() / 2].to_vec(), &["damaged", "ends"]),
    ("cut before the terminator", |body| body[..body.len() - 4].to_vec(), &["damaged", "ends"]),
    ("a byte of the magic flipped", |body| flipped(body, 1), &["damaged"]),
    ("a byte of the header flipped", |body| flipped(body, 26), &["damaged", "header"]),
    ("a byte of a block's length flipped", |body| flipped(body, 39), &["damaged"]),
    ("a byte of a block's checksum flipped", |body| flipped(body, 48), &["damaged", "checksum"]),
    ("a byte of a block flipped", |body| flipped(body, 1000), &["damaged"]),
    ("a byte of a later, compressed block flipped", |body| flipped(body.clone(), body.len() - 40), &["damaged"]),
    ("text after the end", |body| [body, b"<html>".to_vec()].concat(), &["damaged"]),
    ("a GPG message", |_| b"\x85\x01\x0c\x03encrypted".to_vec(), &["OpenPGP (GPG)", "Decrypt"]),
    ("gzip", |_| b"\x1f\x8b\x08\x00\x00\x00".to_vec(), &["gzip"]),
    ("zstd", |_| b"\x28\xb5\x2f\xfd\x00\x00".to_vec(), &["Zstandard"]),
    ("an error page", |_| b"<html>502 Bad Gateway</html>".to_vec(), &["damaged"]),
    ("the plain segment", |_| segment(7), &["damaged"]),
    ("another segment", |_| lzop(&segment(8)), &["0/800000", "0/700000"]),
    ("a short segment", |_| lzop(&segment(7)[..SEGMENT_BYTES / 2]), &["524288 bytes", "1048576"]),
    (
        "a segment and a half",
        |_| lzop(&[segment(7), noise(1, SEGMENT_BYTES / 2)].concat()),
        &["1572864 bytes", "1048576"],
    ),
    ("less than a page header", |_| lzop(b"short"), &["5 bytes"]),
    ("nothing, compressed", |_| lzop(b""), &["0 bytes"]),
    ("zeros", |_| lzop(&vec![0; SEGMENT_BYTES]), &["page header"]),
    ("a page of a later timeline", |_| lzop(&with_timeline(2)), &["timeline 2"]),
];

fn flipped(mut body: Vec<u8>, at: usize) -> Vec<u8> {
    body[at] ^= 0x10;
    body
}

fn with_timeline(timeline: u32) -> Vec<u8> {
    let mut bytes = segment(7);
    bytes[4..8].copy_from_slice(&timeline.to_le_bytes());
    bytes
}

#[test]
fn a_damaged_segment_is_named_and_never_appears() {
    let root = temp_dir();
    let wal = WalDirectory::create(&root.path().join("d"));
    let server = S3Server::start();
    server.create_bucket("b");
    let (key, name) = (format!("wal_005/{}.lzo", segment_name(7)), segment_name(7));
    let archive = root.path().join("archive");
    fs::create_dir_all(archive.join("wal_005")).unwrap();
    let stores = [WalEve::for_file_prefix(&archive), WalEve::new(server.environment("s3://b"))];
    let mut wrong = Vec::new();
    for (what, damage, fragments) in WAL_DAMAGE {
        let body = damage(lzop(&segment(7)));
        fs::write(archive.join(&key), &body).unwrap();
        server.put_object("b", &key, body);
        for (wal_eve, url) in stores.iter().zip([format!("{}/{key}", archive.display()), format!("s3://b/{key}")]) {
            // a file of an earlier recovery must not stand for it either
            let output =
                wal_eve.clone().current_dir(wal.data_directory()).run(["wal-fetch", &name, "pg_wal/RECOVERYXLOG"]);
            let text = output.stderr_text();
            let unsaid: Vec<_> = fragments.iter().filter(|fragment| !text.contains(**fragment)).collect();
            let names = wal.names();
            let good = output.code() == Some(250) && unsaid.is_empty() && names.is_empty();
            if !(good && text.contains(&url) && text.contains("ERROR:  ") && text.contains("HINT:  ")) {
                wrong.push(format!("{what}: {}, unsaid {unsaid:?}, in pg_wal {names:?}\n{text}", output.status));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn damage_leaves_what_was_at_the_destination_as_it_was() {
    let site = Site::with(&HandMadeBackup::new());
    let wal = WalDirectory::create(&site.root.path().join("d"));
    fs::write(wal.file("RECOVERYXLOG"), "before").unwrap();
    fs::write(site.archive().join(HandMadeBackup::wal_key(3)), "damaged").unwrap();
    let wal_eve = site.wal_eve().current_dir(wal.data_directory());
    wal_eve.run(["wal-fetch", &segment_name(3), "pg_wal/RECOVERYXLOG"]).assert_code(250);
    assert_eq!(fs::read(wal.file("RECOVERYXLOG")).unwrap(), b"before");
    wal_eve.run(["wal-fetch", &segment_name(2), "pg_wal/RECOVERYXLOG"]).assert_success();
    assert_eq!(fs::read(wal.file("RECOVERYXLOG")).unwrap(), segment(2));
    assert_eq!(wal.names(), ["RECOVERYXLOG"]);
}

#[test]
fn damage_on_the_way_is_fetched_once_more() {
    use support::s3::{What, When};
    let root = temp_dir();
    let wal = WalDirectory::create(&root.path().join("d"));
    let server = S3Server::start();
    server.create_bucket("b");
    server.put_object("b", &HandMadeBackup::wal_key(7), lzop(&segment(7)));
    server.faults().add(When::operation(Operation::GetObject).once(), What::FlipByte { at: 5000 });
    let wal_eve = WalEve::new(server.environment("s3://b")).current_dir(wal.data_directory());
    let output = wal_eve.run(["wal-fetch", &segment_name(7), "pg_wal/RECOVERYXLOG"]).assert_success();
    says(&output, &["once more"]);
    assert_eq!(fs::read(wal.file("RECOVERYXLOG")).unwrap(), segment(7));
}

// Base backups.

#[test]
fn a_sound_backup_is_restored_and_the_journal_is_gone() {
    let site = Site::with(&HandMadeBackup::new());
    let output = site.restore().assert_success();
    assert!(output.stdout_text().contains("standby.signal"), "{}", output.stdout_text());
    assert_eq!(fs::read(site.target().join("global/pg_control")).unwrap(), control_file());
    assert!(!site.target().join(".wal-eve-restore").exists());
    assert_eq!(site.target().metadata().unwrap().permissions().mode() & 0o7777, 0o700);
}

/// What is done to the backup, and what the message has to say.
type BackupDamage = (&'static str, fn(&mut HandMadeBackup), &'static [&'static str]);

const BACKUP_DAMAGE: &[BackupDamage] = &[
    (
        "a partition that is empty",
        |b| b.change(&part(1), Vec::clear),
        &["part_00000001.tar.lzo", "it is empty", "HINT"],
    ),
    (
        "a partition cut in half",
        |b| b.change(&part(0), |body| body.truncate(body.len() / 2)),
        &["part_00000000", "damaged", "ends"],
    ),
    (
        "a partition without its terminator",
        |b| b.change(&part(1), |body| body.truncate(body.len() - 4)),
        &["part_00000001", "damaged"],
    ),
    ("a flipped byte in a partition's lzop header", |b| flip(b, 0, 26), &["part_00000000", "damaged", "header"]),
    ("a flipped byte in a block's checksum", |b| flip(b, 0, 48), &["part_00000000", "damaged", "checksum"]),
    ("a flipped byte in a block", |b| flip(b, 1, 5000), &["part_00000001", "damaged"]),
    (
        "a partition that is a GPG message",
        |b| b.change(&part(1), |body| *body = b"\x85\x01\x0c".to_vec()),
        &["part_00000001", "GPG"],
    ),
    (
        "a partition that is gzip",
        |b| b.change(&part(1), |body| *body = b"\x1f\x8b\x08".to_vec()),
        &["part_00000001", "gzip"],
    ),
    (
        "a partition of zeros that is no tar",
        |b| b.change(&part(1), |body| *body = lzop(&[0; 100])),
        &["part_00000001", "tar"],
    ),
    (
        "a partition of text that is no tar",
        |b| b.change(&part(1), |body| *body = lzop(&b"text ".repeat(500))),
        &["part_00000001", "tar"],
    ),
    (
        "a flipped byte in a tar header",
        |b| b.change(&part(0), |body| *body = lzop(&flipped(tar(&[RawMember::file("PG_VERSION", "15\n")]), 3))),
        &["part_00000000", "tar", "damaged"],
    ),
    (
        "a tar that ends inside of a member",
        |b| b.change(&part(1), |body| *body = lzop(&tar(&[RawMember::file("base/2/1", noise(3, 9000))])[..4096])),
        &["part_00000001", "tar", "damaged"],
    ),
    (
        "the first partition is missing",
        |b| remove(b, &part(0)),
        &[BACKUP, "partition 0 of 3 is missing", "backup-list"],
    ),
    (
        "a partition between is missing",
        |b| remove(b, &part(1)),
        &[BACKUP, "partition 1 of 3 is missing", "backup-list"],
    ),
    (
        "a partition twice, padded and not",
        |b| drop(b.objects.insert(part(1).replace("part_00000001", "part_1"), lzop(&tar(&[])))),
        &[BACKUP, "partition 1 exists twice"],
    ),
    (
        "a sentinel without partitions",
        |b| (0..3).for_each(|n| remove(b, &part(n))),
        &[BACKUP, "no tar partitions", "backup-list"],
    ),
    (
        "the last partition, with pg_control, is missing",
        |b| remove(b, &part(2)),
        &["no global/pg_control", "backup-list"],
    ),
    (
        "a sentinel that is not JSON",
        |b| sentinel(b, "<html>"),
        &["_backup_stop_sentinel.json", "not JSON", "backup-list"],
    ),
    ("a sentinel that is empty", |b| sentinel(b, ""), &["_backup_stop_sentinel.json", "not JSON", "backup-list"]),
    ("a sentinel that is a list", |b| sentinel(b, "[]"), &["_backup_stop_sentinel.json", "backup-list"]),
    (
        "a sentinel without a stop",
        |b| sentinel(b, "{\"expanded_size_bytes\": 1}"),
        &["_backup_stop_sentinel.json", "wal_segment_backup_stop"],
    ),
    (
        "no pg_control",
        |b| b.partition(2, &[RawMember::file("backup_label", "x")]),
        &["no global/pg_control", "another backup"],
    ),
    (
        "no backup_label",
        |b| b.partition(2, &[RawMember::file("global/pg_control", control_file())]),
        &["no backup_label", "wrong checkpoint", "another backup"],
    ),
    (
        "the last partitions are missing, after pg_control and backup_label",
        lose_the_end,
        &["held 628224 bytes", "sentinel says 1000000", "--allow-missing-files", "another backup"],
    ),
    (
        "a damaged pg_control",
        |b| b.partition(2, &[RawMember::file("global/pg_control", flipped(control_file(), 100))]),
        &["global/pg_control is damaged", "checksum", "another backup"],
    ),
    (
        "a short pg_control",
        |b| b.partition(2, &[RawMember::file("global/pg_control", &control_file()[..4096])]),
        &["global/pg_control is damaged", "4096 bytes", "another backup"],
    ),
    (
        "a pg_control that is a link",
        |b| b.partition(2, &[RawMember::symlink("global/pg_control", "/etc/passwd")]),
        &["global/pg_control"],
    ),
    (
        "the first WAL segment is missing",
        |b| remove(b, &HandMadeBackup::wal_key(2)),
        &["000000010000000000000002", "--allow-missing-wal"],
    ),
    (
        "a WAL segment between is missing",
        |b| remove(b, &HandMadeBackup::wal_key(3)),
        &["000000010000000000000003", "--allow-missing-wal"],
    ),
    (
        "the last WAL segment is missing",
        |b| remove(b, &HandMadeBackup::wal_key(4)),
        &["000000010000000000000004", "--allow-missing-wal"],
    ),
    (
        "the first WAL segment is damaged",
        |b| b.change(&HandMadeBackup::wal_key(2), |body| *body = b"<html>".to_vec()),
        &["000000010000000000000002.lzo", "damaged"],
    ),
    (
        "a member with ..",
        |b| member(b, RawMember::file("base/../../escaped", "x")),
        &["part_00000001", "base/../../escaped", "refusing"],
    ),
    (
        "an absolute member",
        |b| member(b, RawMember::file("/tmp/we-escaped", "x")),
        &["part_00000001", "/tmp/we-escaped", "refusing"],
    ),
    (
        "a directory with ..",
        |b| member(b, RawMember::directory("../escaped/")),
        &["part_00000001", "../escaped", "refusing"],
    ),
    (
        "a member through a link",
        |b| b.partition(1, &[RawMember::symlink("base/5", "/tmp"), RawMember::file("base/5/we-escaped", "x")]),
        &["part_00000001", "base/5/we-escaped", "symbolic link \"base/5\""],
    ),
    (
        "a hard link to elsewhere",
        |b| member(b, RawMember { kind: b'1', ..RawMember::symlink("passwd", "/etc/passwd") }),
        &["part_00000001", "/etc/passwd", "refusing"],
    ),
    ("a device", |b| member(b, RawMember::of_kind("base/null", b'3')), &["part_00000001", "base/null", "type \"3\""]),
    ("a fifo", |b| member(b, RawMember::of_kind("base/fifo", b'6')), &["part_00000001", "base/fifo", "type \"6\""]),
    (
        "a type of nobody's",
        |b| member(b, RawMember::of_kind("base/odd", b'Z')),
        &["part_00000001", "base/odd", "type \"Z\""],
    ),
];

fn part(number: u32) -> String {
    HandMadeBackup::partition_key(number)
}

fn flip(backup: &mut HandMadeBackup, number: u32, at: usize) {
    backup.change(&part(number), |body| body[at] ^= 0x10);
}

fn remove(backup: &mut HandMadeBackup, key: &str) {
    backup.objects.remove(key).unwrap();
}

fn sentinel(backup: &mut HandMadeBackup, text: &str) {
    backup.objects.insert(HandMadeBackup::sentinel_key(), text.into());
}

/// What a server needs to start, and a file of so many bytes.
fn all_in_one(bytes: usize) -> Vec<RawMember> {
    vec![
        RawMember::directory("/"),
        RawMember::file("PG_VERSION", "15\n"),
        RawMember::file("base/1/1259", noise(1, bytes)),
        RawMember::file("backup_label", "START WAL LOCATION: 0/200040\n"),
        RawMember::file("global/pg_control", control_file()),
    ]
}

/// As WAL-E may write it, with files after those that a server needs to start.
fn lose_the_end(backup: &mut HandMadeBackup) {
    backup.partition(0, &all_in_one(620_000));
    remove(backup, &part(1));
    remove(backup, &part(2));
}

fn member(backup: &mut HandMadeBackup, member: RawMember) {
    backup.partition(1, &[RawMember::file("base/2/1259", "before"), member]);
}

#[test]
fn a_damaged_backup_is_named_and_can_never_be_started() {
    let mut wrong = Vec::new();
    for (what, damage, fragments) in BACKUP_DAMAGE {
        let mut backup = HandMadeBackup::new();
        damage(&mut backup);
        let site = Site::with(&backup);
        let output = site.restore();
        let text = output.stderr_text();
        let unsaid: Vec<_> = fragments.iter().filter(|fragment| !text.contains(**fragment)).collect();
        let escaped = [site.root.path().join("escaped"), "/tmp/we-escaped".into()].iter().any(|path| path.exists());
        let published = site.target().join("global/pg_control").symlink_metadata().is_ok();
        let said =
            unsaid.is_empty() && text.contains("ERROR:  ") && text.contains("HINT:  ") && !text.contains("panicked");
        if output.code() != Some(1) || !said || escaped || published {
            let status = output.status;
            wrong
                .push(format!("{what}: {status}, unsaid {unsaid:?}, escaped {escaped}, published {published}\n{text}"));
        }
        // the archive is mended: the same command goes on
        if site.target().exists() {
            HandMadeBackup::new().write_to(&site.archive());
            let _ = fs::remove_file(site.archive().join(part(1).replace("part_00000001", "part_1")));
            let again = site.restore();
            if again.code() != Some(0) {
                wrong.push(format!("{what}, mended: {}\n{}", again.status, again.stderr_text()));
            } else if fs::read(site.target().join("global/pg_control")).unwrap() != control_file() {
                wrong.push(format!("{what}, mended: another pg_control"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_makes_a_restore_hopeless_is_said_before_anything_is_downloaded() {
    let hopeless: [fn(&mut HandMadeBackup); 5] = [
        |b| remove(b, &HandMadeBackup::wal_key(2)),
        |b| remove(b, &HandMadeBackup::wal_key(4)),
        |b| remove(b, &part(1)),
        |b| (0..3).for_each(|number| remove(b, &part(number))),
        |b| sentinel(b, "{}"),
    ];
    for damage in hopeless {
        let mut backup = HandMadeBackup::new();
        damage(&mut backup);
        let server = S3Server::start();
        server.create_bucket("b");
        backup.put_into(&server, "b", "p/");
        let root = temp_dir();
        let target = root.path().join("target").display().to_string();
        let wal_eve = WalEve::new(server.environment("s3://b/p"));
        wal_eve.run(["backup-fetch", &target, BACKUP]).assert_code(1);
        assert_eq!(server.count(Operation::GetObject, "tar_partitions"), 0);
        assert!(!Path::new(&target).exists(), "not even the directory was made");
    }
}

#[test]
fn missing_wal_can_be_allowed() {
    let mut backup = HandMadeBackup::new();
    NEEDED_SEGMENTS.iter().for_each(|number| remove(&mut backup, &HandMadeBackup::wal_key(*number)));
    let site = Site::with(&backup);
    let output = site.restore_with(&["--allow-missing-wal"]).assert_success();
    says(&output, &["lacks", "000000010000000000000002"]);
}

#[test]
fn missing_files_can_be_allowed_afterwards_without_fetching_anything_again() {
    let mut backup = HandMadeBackup::new();
    lose_the_end(&mut backup);
    let server = S3Server::start();
    server.create_bucket("b");
    backup.put_into(&server, "b", "p/");
    let root = temp_dir();
    let target = root.path().join("target");
    let wal_eve = WalEve::new(server.environment("s3://b/p"));
    let arguments = ["backup-fetch", target.to_str().unwrap(), "LATEST"];
    wal_eve.run(arguments).assert_code(1);
    assert_eq!(server.count(Operation::GetObject, "tar_partitions"), 1);
    let output = wal_eve.run(arguments.iter().chain(&["--allow-missing-files"])).assert_success();
    says(&output, &["taking up an interrupted restore", "held 628224 bytes", "sentinel says 1000000"]);
    assert_eq!(server.count(Operation::GetObject, "tar_partitions"), 1);
    assert_eq!(fs::read(target.join("global/pg_control")).unwrap(), control_file());
}

#[test]
fn a_few_missing_bytes_are_said_and_none_are_not() {
    let mut backup = HandMadeBackup::new();
    assert!(!Site::with(&backup).restore().assert_success().stderr_text().contains("sentinel says"));
    backup.partition(1, &[RawMember::file("base/2/1259", noise(2, 350_000))]);
    let output = Site::with(&backup).restore().assert_success();
    says(&output, &["held 978224 bytes", "sentinel says 1000000", "dropped while it was taken"]);
}

#[test]
fn what_would_keep_the_server_from_starting_or_fool_the_restore_is_left_out() {
    let mut backup = HandMadeBackup::new();
    backup.partition(
        1,
        &[
            RawMember::file("postmaster.pid", "1\n"),
            RawMember::directory(".wal-eve-restore/"),
            RawMember::file(".wal-eve-restore/pg_control", "fooled"),
            RawMember::file(".wal-eve-restore/journal.json", "fooled"),
            RawMember::file("base/2/1259", noise(2, 400_000)),
        ],
    );
    let site = Site::with(&backup);
    let output = site.restore().assert_success();
    says(&output, &["postmaster.pid"]);
    assert!(!site.target().join("postmaster.pid").exists() && !site.target().join(".wal-eve-restore").exists());
    assert_eq!(fs::read(site.target().join("global/pg_control")).unwrap(), control_file());
}

// The target.

#[test]
fn a_target_that_is_in_use_is_refused_and_left_alone() {
    type Occupied = (&'static str, fn(&Path), &'static [&'static str]);
    let occupied: [Occupied; 6] = [
        (
            "a restore that was complete when it was killed",
            |target| {
                write(target, "PG_VERSION", "15\n");
                write(target, "global/pg_control", "x");
                write(target, ".wal-eve-restore/journal.json", "{}");
            },
            &["holds a data directory already", "is complete", ".wal-eve-restore"],
        ),
        ("a file", |target| fs::write(target, "x").unwrap(), &["target", "irectory"]),
        ("something else", |target| write(target, "notes.txt", "x"), &["target\" is not empty", "notes.txt"]),
        (
            "a live server",
            |target| write(target, "postmaster.pid", "4711\n"),
            &["live data directory", "4711", "Stop the server"],
        ),
        (
            "a finished cluster",
            |target| {
                write(target, "PG_VERSION", "15\n");
                write(target, "global/pg_control", "x");
            },
            &["holds a data directory already", "empty directory"],
        ),
        (
            "an interrupted restore of another backup",
            |target| {
                let journal = "{\"backup\":\"base_000000010000000000000009_00000040\",\"prefix\":\"s3://b/\",\
                               \"boot_id\":\"x\",\"partitions_done\":[]}";
                write(target, ".wal-eve-restore/journal.json", journal);
            },
            &["interrupted restore of another backup", "base_000000010000000000000009_00000040", "HINT"],
        ),
    ];
    for (what, occupy, fragments) in occupied {
        let site = Site::with(&HandMadeBackup::new());
        occupy(&site.target());
        let before = site.target().is_dir().then(|| dir_tree(&site.target()));
        let output = site.restore().assert_code(1);
        says(&output, fragments);
        assert_eq!(site.target().is_dir().then(|| dir_tree(&site.target())), before, "{what}");
    }
}

fn write(root: &Path, name: &str, text: &str) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

#[test]
fn a_tablespace_in_use_is_refused_and_left_alone() {
    let mut backup = HandMadeBackup::new();
    backup.partition(1, &[RawMember::file("pg_tblspc/16384/PG_15_202209061/1/2", noise(2, 400_000))]);
    let site = Site::with(&backup);
    let in_use = site.root.path().join("in use");
    write(&in_use, "PG_15_202209061/1/2", "a running server's");
    fs::create_dir_all(site.target().join("pg_tblspc")).unwrap();
    std::os::unix::fs::symlink(&in_use, site.target().join("pg_tblspc/16384")).unwrap();
    fs::set_permissions(site.target(), fs::Permissions::from_mode(0o755)).unwrap();
    let before = (dir_tree(&in_use), dir_tree(&site.target()));
    for more in [&[][..], &["--blind-restore"], &["--restore-spec", "SOURCE"]] {
        let output = site.restore_with(more).assert_code(1);
        says(&output, &[in_use.to_str().unwrap(), "pg_tblspc/16384", "is not empty", "running server", "HINT:  "]);
        assert_eq!((dir_tree(&in_use), dir_tree(&site.target())), before);
        assert_eq!(site.target().metadata().unwrap().permissions().mode() & 0o7777, 0o755);
    }
    fs::remove_dir_all(in_use.join("PG_15_202209061")).unwrap();
    site.restore().assert_success();
    assert_eq!(fs::read(in_use.join("PG_15_202209061/1/2")).unwrap(), noise(2, 400_000));
}

#[test]
fn a_directory_that_others_can_read_is_closed_where_the_backup_says_no_mode() {
    let mut backup = HandMadeBackup::new();
    let base = RawMember::file("base/1/1259", noise(1, 620_000));
    backup.partition(0, &[RawMember::file("PG_VERSION", "15\n"), base]);
    let site = Site::with(&backup);
    fs::create_dir(site.target()).unwrap();
    fs::set_permissions(site.target(), fs::Permissions::from_mode(0o755)).unwrap();
    site.restore().assert_success();
    assert_eq!(site.target().metadata().unwrap().permissions().mode() & 0o7777, 0o700);
}

#[test]
fn a_target_that_cannot_be_written_is_named() {
    let site = Site::with(&HandMadeBackup::new());
    let closed = site.root.path().join("closed");
    fs::create_dir(&closed).unwrap();
    let set = |mode| fs::set_permissions(&closed, fs::Permissions::from_mode(mode)).unwrap();
    set(0o500);
    let inside = closed.join("target").display().to_string();
    let itself = closed.display().to_string();
    for target in [&inside, &itself] {
        let output = site.wal_eve().run(["backup-fetch", target, "LATEST"]).assert_code(1);
        says(&output, &[target, "Permission denied", "as the user that owns"]);
    }
    set(0o700);
    assert_eq!(fs::read_dir(&closed).unwrap().count(), 0);
}

#[test]
fn a_restore_specification_that_cannot_be_followed_is_refused() {
    let mut backup = HandMadeBackup::new();
    backup.change(&HandMadeBackup::sentinel_key(), |text| {
        let spec =
            "\"tablespaces\": [\"16384\"], \"16384\": {\"loc\": \"/nowhere/space/\", \"link\": \"pg_tblspc/16384\"}";
        *text = String::from_utf8(text.clone()).unwrap().replace("\"tablespaces\": []", spec).into();
    });
    let in_tablespace = noise(2, 400_000);
    backup.partition(1, &[RawMember::file("pg_tblspc/16384/PG_15_202209061/1/2", in_tablespace.clone())]);
    let site = Site::with(&backup);
    let spec = site.root.path().join("spec.json").display().to_string();
    let space = site.root.path().join("space");
    let with_spec = |text: &str| {
        fs::write(&spec, text).unwrap();
        site.restore_with(&["--restore-spec", &spec])
    };
    says(&site.restore().assert_code(1), &["16384", "pg_tblspc", "--restore-spec SOURCE", "--blind-restore"]);
    says(&with_spec("{").assert_code(1), &[&spec, "pg_tblspc/16384"]);
    says(&with_spec("[]").assert_code(1), &["restore specification"]);
    says(&with_spec("{\"16384\": {\"loc\": 5}}").assert_code(1), &["restore specification", "16384"]);
    let outside = "{\"16384\": {\"loc\": \"/x/\", \"link\": \"../outside\"}}";
    says(&with_spec(outside).assert_code(1), &["restore specification", "../outside"]);
    says(&site.restore_with(&["--restore-spec", "/no/such"]).assert_code(1), &["/no/such", "No such file"]);
    says(&site.restore_with(&["--restore-spec", "SOURCE"]).assert_code(1), &["/nowhere"]);
    fs::create_dir(&space).unwrap();
    fs::write(space.join("of another cluster"), "x").unwrap();
    let _ = fs::remove_dir_all(site.target());
    let good = format!("{{\"16384\": {{\"loc\": \"{}/\", \"link\": \"pg_tblspc/16384\"}}}}", space.display());
    says(&with_spec(&good).assert_code(1), &["tablespace 16384", "not empty", "running server"]);
    assert!(!site.target().exists(), "a refusal leaves nothing behind");
    fs::remove_file(space.join("of another cluster")).unwrap();
    with_spec(&good).assert_success();
    assert_eq!(fs::read(space.join("PG_15_202209061/1/2")).unwrap(), in_tablespace);
}

/// As root of a user namespace in which the test's own user is the only one: the number in the headers is nobody's there.
#[test]
fn root_gives_files_to_the_owner_that_is_named_and_else_to_the_number() {
    for (name, is_refused) in [("root", false), ("no such account", true), ("", true)] {
        let mut backup = HandMadeBackup::new();
        let mut members = all_in_one(1_000_000);
        members.iter_mut().for_each(|member| member.owner = name.into());
        backup.partition(0, &members);
        [1, 2].iter().for_each(|number| remove(&mut backup, &part(*number)));
        let site = Site::with(&backup);
        let prefix = format!("file://localhost{}", site.archive().display());
        let target = site.target().display().to_string();
        let wal_eve = wal_eve_bin().display().to_string();
        let output = Tool::new("unshare", [("WALE_FILE_PREFIX", prefix)])
            .run(["--user", "--map-root-user", &wal_eve, "backup-fetch", &target, "LATEST"])
            .assert_success();
        let text = output.stderr_text();
        assert_eq!(text.contains("files keep the owner"), is_refused, "{name}: {text}");
    }
}

// A full disk, in a mount namespace of the command's own.

/// Runs a script where `DISK` is a file system of so many KiB.
fn on_a_small_disk(site: &Site, kib: u32, script: &str) -> Output {
    let disk = site.root.path().join("disk");
    fs::create_dir_all(&disk).unwrap();
    let script = format!(
        "mount -t tmpfs -o size={kib}k small {0} || exit 99; DISK={0}; WAL_EVE={1}; {script}",
        disk.display(),
        wal_eve_bin().display()
    );
    let prefix = format!("file://localhost{}", site.archive().display());
    Tool::new("unshare", [("WALE_FILE_PREFIX", prefix)]).run([
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        &script,
    ])
}

#[test]
fn a_restore_onto_a_full_disk_says_so_and_goes_on_when_there_is_room() {
    let site = Site::with(&HandMadeBackup::new());
    let script = "
        head -c 3300k /dev/zero >$DISK/filler
        $WAL_EVE backup-fetch $DISK/d LATEST -p 1; first=$?
        test -e $DISK/d/global/pg_control && echo published
        rm $DISK/filler
        $WAL_EVE backup-fetch $DISK/d LATEST -p 1 || exit 98
        test -e $DISK/d/global/pg_control || exit 97
        exit $first";
    let output = on_a_small_disk(&site, 4096, script).assert_code(2);
    says(
        &output,
        &["base/2/1259", "No space left", "The disk is full", "same command again", "taking up an interrupted restore"],
    );
    assert!(!output.stdout_text().contains("published"));
}

#[test]
fn a_disk_too_small_for_the_first_byte_says_so_too() {
    let site = Site::with(&HandMadeBackup::new());
    let script = "head -c 1m /dev/zero >$DISK/full 2>/dev/null; $WAL_EVE backup-fetch $DISK/d LATEST";
    let output = on_a_small_disk(&site, 64, script).assert_code(2);
    says(&output, &["No space left", "The disk is full"]);
}

#[test]
fn a_full_archive_takes_no_segment_and_keeps_no_half_of_one() {
    let site = Site::with(&HandMadeBackup::new());
    let segment_path = site.root.path().join(segment_name(9));
    fs::write(&segment_path, segment(9)).unwrap();
    let script = format!(
        "WALE_FILE_PREFIX=file://localhost$DISK/archive; export WALE_FILE_PREFIX
         head -c 3840k /dev/zero >$DISK/filler
         $WAL_EVE wal-push {path}; status=$?
         find $DISK/archive -type f
         rm $DISK/filler; $WAL_EVE wal-push {path} || exit 98
         exit $status",
        path = segment_path.display()
    );
    let output = on_a_small_disk(&site, 4096, &script).assert_code(2);
    says(&output, &["wal_005/000000010000000000000009.lzo", "No space left", "full"]);
    assert_eq!(output.stdout_text(), "", "left in the archive");
}
