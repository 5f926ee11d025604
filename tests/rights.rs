//! The rights that README.md asks for are enough.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use support::hand_made_backup::{BACKUP, control_file, lzop};
use support::postgres::wait_until;
use support::wal_segment::{segment, segment_name};
use support::{HandMadeBackup, WalSite};

const SOON: Duration = Duration::from_secs(30);

/// The first segment in the archive that the backup does not need, and the first that is not there.
const FIRST: u32 = 5;
const END: u32 = 8;

/// A backup and the WAL after it, and credentials that may only read below their prefix.
fn read_only_site() -> WalSite {
    let site = WalSite::new();
    HandMadeBackup::new().put_into(&site.server, "b", "p/");
    for number in FIRST..END {
        site.server.put_object("b", &format!("p/{}", HandMadeBackup::wal_key(number)), lzop(&segment(number)));
    }
    site.server.allow_only_reading("p/");
    site
}

/// Nothing was asked for that the credentials may not do, not even in vain.
fn assert_only_read_below_the_prefix(site: &WalSite) {
    let mut beyond = site.server.requests();
    beyond.retain(|request| !(request.operation.is_read() && request.key.starts_with("p/")));
    assert!(beyond.is_empty(), "{beyond:#?}");
}

#[test]
fn to_read_below_the_prefix_is_enough_for_a_restore() {
    let site = read_only_site();
    let listed = site.wal_eve().run(["backup-list", "--detail"]).assert_success();
    assert!(listed.stdout_text().contains(BACKUP));
    let target = site.root.path().join("restored");
    site.wal_eve().run(["backup-fetch", target.to_str().unwrap(), "LATEST"]).assert_success();
    assert_eq!(fs::read(target.join("global/pg_control")).unwrap(), control_file());
    assert_only_read_below_the_prefix(&site);
}

#[test]
fn to_read_below_the_prefix_is_enough_for_replay() {
    let site = read_only_site();
    let data = site.wal.data_directory();
    let fetch = |name: &str| site.wal_eve().run(["wal-fetch", name, "pg_wal/RECOVERYXLOG"]);
    let fetch_well = |number: u32| {
        fetch(&segment_name(number)).assert_success();
        assert!(fs::read(site.wal.file("RECOVERYXLOG")).unwrap() == segment(number));
    };
    // without a server there is nobody to fetch ahead for
    fetch_well(FIRST);
    assert_eq!(fetch(&segment_name(END)).assert_code(1).stderr_text(), "", "outside of standby mode");
    assert_eq!(fetch("00000002.history").assert_code(1).stderr_text(), "");

    // this passes for one
    let mut server = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    fs::create_dir(data.join("global")).unwrap();
    fs::write(data.join("global/pg_control"), control_file()).unwrap();
    fs::write(data.join("standby.signal"), "").unwrap();
    fs::write(data.join("postmaster.pid"), format!("{}\n", server.id())).unwrap();
    fetch_well(FIRST);
    for number in FIRST + 1..END {
        let ahead = site.wal.file(".wal-e/prefetch").join(segment_name(number));
        wait_until("the segment is fetched ahead", SOON, || ahead.exists());
        fetch_well(number);
    }
    assert_eq!(fetch(&segment_name(END)).assert_code(1).stderr_text(), "", "in standby mode");
    server.kill().unwrap();
    server.wait().unwrap();
    assert_only_read_below_the_prefix(&site);
}

/// The tests above are about something.
#[test]
fn whatever_else_is_asked_is_denied() {
    let site = read_only_site();
    let path = site.wal.add(9);
    let pushed = site.wal_eve().run(["wal-push", &path]).assert_code(1);
    assert!(pushed.stderr_text().contains("s3:PutObject"), "{}", pushed.stderr_text());
    let elsewhere = site.wal_eve().env("WALE_S3_PREFIX", "s3://b/q").run(["backup-list"]).assert_code(1);
    assert!(elsewhere.stderr_text().contains("s3:ListBucket"), "{}", elsewhere.stderr_text());
}
