//! The exit status of every command in every situation (`README.md`, "Exit status"), and that its message names the object
//! and the next step. A wrong one promotes a server with WAL missing, or kills its archiver.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, UNIX_EPOCH};

use rustix::process::Signal;
use support::WalSite as Site;
use support::hand_made_backup::lzop;
use support::s3::{Operation, SECRET_KEY, What, When};
use support::wal_segment::{segment, segment_name, segment_of};
use support::{Mode, Output, PgCluster, WalDirectory, WalEve, wal_eve_bin};

const KEY: &str = "p/wal_005/000000010000000000000007.lzo";
const NAME: &str = "000000010000000000000007";
const DESTINATION: &str = "pg_wal/RECOVERYXLOG";

impl Site {
    /// An archive with segment 7, and a data directory to fetch it to.
    fn with_segment() -> Self {
        let site = Self::new();
        site.server.put_object("b", KEY, lzop(&segment(7)));
        site
    }

    fn standby() -> Self {
        let site = Self::with_segment();
        fs::write(site.data().join("standby.signal"), "").unwrap();
        site
    }

    fn data(&self) -> &Path {
        self.wal.data_directory()
    }

    fn fetch(&self) -> Output {
        self.wal_eve().run(fetch_arguments())
    }
}

fn fetch_arguments() -> [&'static str; 5] {
    ["wal-fetch", "--patience", "2", NAME, DESTINATION]
}

#[track_caller]
fn says(output: &Output, fragments: &[&str]) {
    let text = output.stderr_text();
    for fragment in fragments {
        assert!(text.contains(fragment), "\"{fragment}\" is not in:\n{text}");
    }
}

#[track_caller]
fn nothing_appeared(wal: &WalDirectory) {
    assert_eq!(wal.names(), [""; 0], "left in pg_wal");
}

// wal-fetch.

#[test]
fn a_file_in_place_is_0() {
    let site = Site::with_segment();
    let output = site.fetch().assert_success();
    assert_eq!(output.stderr_text(), "");
    assert_eq!(fs::read(site.wal.file("RECOVERYXLOG")).unwrap(), segment(7));
    assert_eq!(site.wal.names(), ["RECOVERYXLOG"]);
}

#[test]
fn a_file_that_the_store_says_is_absent_is_1_quickly_and_quietly_in_every_mode() {
    for (site, in_standby_mode) in [(Site::with_segment(), false), (Site::standby(), true)] {
        for name in ["000000010000000000000008", "00000002.history", "000000010000000000000008.00000028.backup"] {
            site.server.clear_requests();
            let output = site.wal_eve().run(["wal-fetch", name, DESTINATION]).assert_code(1);
            assert_eq!(output.stderr_text(), "");
            // one GET, which said NoSuchKey; where that would end recovery, a listing shows that nothing follows
            let is_the_end = name.len() == 24 && !in_standby_mode;
            assert_eq!(site.server.requests().len(), 1 + usize::from(is_the_end), "{name}");
        }
        nothing_appeared(&site.wal);
    }
}

#[test]
fn a_403_is_absent_only_when_a_listing_of_that_key_does_not_show_it() {
    let site = Site::with_segment();
    site.server.faults().add(When::operation(Operation::GetObject), What::access_denied());
    // the object is listed, so it is forbidden and not absent
    let output = site.fetch().assert_code(250);
    says(&output, &[KEY, "AccessDenied", "HINT:  ", "s3:GetObject"]);
    site.server.delete("b", KEY);
    let output = site.fetch().assert_code(1);
    assert_eq!(output.stderr_text(), "");
}

#[test]
fn in_a_local_archive_a_missing_file_is_absent_while_its_root_is_there() {
    for (site, cannot_say) in [(Site::with_segment(), 250), (Site::standby(), 75)] {
        let archive = site.root.path().join("archive");
        fs::create_dir(&archive).unwrap();
        let wal_eve = WalEve::for_file_prefix(&archive).current_dir(site.data());
        let output = wal_eve.run(fetch_arguments()).assert_code(1);
        assert_eq!(output.stderr_text(), "");
        fs::create_dir(archive.join("wal_005")).unwrap();
        wal_eve.run(fetch_arguments()).assert_code(1);
        fs::remove_dir_all(&archive).unwrap();
        let output = wal_eve.run(fetch_arguments()).assert_code(cannot_say);
        says(&output, &["archive", "must exist", "mounted"]);
        nothing_appeared(&site.wal);
        // a file where the root should be is no root either
        fs::write(&archive, "").unwrap();
        wal_eve.run(fetch_arguments()).assert_code(cannot_say);
    }
}

/// A situation in which nobody can say whether the file exists: what it is, how to get there, what the message has to say.
type Doubt = (&'static str, fn(&Site) -> Output, &'static [&'static str]);

const DOUBTS: &[Doubt] = &[
    (
        "an endpoint that nobody answers at",
        |site| fetch_with(site, "WALE_S3_ENDPOINT", "http+path://127.0.0.1:1"),
        &[KEY, "refused"],
    ),
    (
        "an endpoint whose name nobody knows",
        |site| fetch_with(site, "WALE_S3_ENDPOINT", "http+path://no.such.host.invalid:1"),
        &[KEY, "HINT:  "],
    ),
    ("a throttling store", |site| faulty_fetch(site, What::slow_down()), &[KEY, "503 SlowDown"]),
    ("a failing store", |site| faulty_fetch(site, What::internal_error()), &[KEY, "500 InternalError"]),
    (
        "a store that stalls before its answer",
        |site| faulty_fetch(site, What::Delay(Duration::from_secs(30))),
        &[KEY, "time"],
    ),
    (
        "a store that stalls in the body",
        |site| faulty_fetch(site, What::StallBody { after_bytes: 1000, pause: Duration::from_secs(30) }),
        &[KEY, "time"],
    ),
    (
        "an access key that does not exist",
        |site| fetch_with(site, "AWS_ACCESS_KEY_ID", "AKIAOTHER"),
        &[KEY, "AWS_ACCESS_KEY_ID"],
    ),
    ("a wrong secret key", |site| fetch_with(site, "AWS_SECRET_ACCESS_KEY", "wrong"), &[KEY, "AWS_SECRET_ACCESS_KEY"]),
    (
        "no secret key",
        |site| site.wal_eve().env_remove("AWS_SECRET_ACCESS_KEY").run(fetch_arguments()),
        &["Set AWS_SECRET_ACCESS_KEY"],
    ),
    (
        "no credentials at all",
        |site| {
            let wal_eve = site.wal_eve().env_remove("AWS_SECRET_ACCESS_KEY").env_remove("AWS_ACCESS_KEY_ID");
            wal_eve.run(fetch_arguments())
        },
        &["AWS_ACCESS_KEY_ID", "--envdir"],
    ),
    ("expired credentials", |site| faulty_fetch(site, What::expired_token()), &[KEY, "expired", "--envdir"]),
    (
        "a bucket that does not exist",
        |site| fetch_with(site, "WALE_S3_PREFIX", "s3://other/p"),
        &["s3://other/p/wal_005/", "no bucket \"other\""],
    ),
    (
        "no right to list, so that S3 answers 403 for an absent key",
        |site| {
            site.server.deny_list(true);
            site.wal_eve().run(["wal-fetch", "000000010000000000000008", DESTINATION])
        },
        &["000000010000000000000008", "grant s3:ListBucket"],
    ),
    (
        "no prefix",
        |site| site.wal_eve().env_remove("WALE_S3_PREFIX").run(fetch_arguments()),
        &["no storage prefix", "Set WALE_S3_PREFIX"],
    ),
    (
        "a prefix without a bucket",
        |site| fetch_with(site, "WALE_S3_PREFIX", "s3:///p"),
        &["s3:///p", "s3://bucket/path"],
    ),
    ("a prefix of a store that is not known", |site| fetch_with(site, "WALE_S3_PREFIX", "gs://b/p"), &["gs", "s3://"]),
    ("an archive encrypted by GPG", |site| fetch_with(site, "WALE_GPG_KEY_ID", "ABC"), &["GPG", "WALE_GPG_KEY_ID"]),
    (
        "an endpoint that is no endpoint",
        |site| fetch_with(site, "WALE_S3_ENDPOINT", "nope"),
        &["WALE_S3_ENDPOINT", "https+path://"],
    ),
    (
        "a truncated object",
        |site| damaged_fetch(site, |body| body.truncate(body.len() / 2)),
        &[KEY, "damaged", "another copy"],
    ),
    ("an empty object", |site| damaged_fetch(site, Vec::clear), &[KEY, "empty", "another copy"]),
    (
        "another segment's bytes",
        |site| damaged_fetch(site, |body| *body = lzop(&segment(8))),
        &[KEY, "0/700000", "another copy"],
    ),
    (
        "a destination directory that does not exist",
        |site| site.wal_eve().run(["wal-fetch", NAME, "no_such/RECOVERYXLOG", "--on-outage", outage_policy(site)]),
        &["no_such/RECOVERYXLOG", "No such file", "%p"],
    ),
    (
        "a destination directory that cannot be written",
        |site| {
            let pg_wal = site.wal.path();
            set_mode(&pg_wal, 0o500);
            let output = site.fetch();
            set_mode(&pg_wal, 0o700);
            output
        },
        &[DESTINATION, "Permission denied", "as the user that owns"],
    ),
    (
        "a destination that is a directory",
        |site| {
            fs::create_dir(site.wal.file("RECOVERYXLOG")).unwrap();
            let output = site.fetch();
            fs::remove_dir(site.wal.file("RECOVERYXLOG")).unwrap();
            output
        },
        &[DESTINATION, "directory"],
    ),
    ("a full disk", fetch_to_a_full_disk, &["RECOVERYXLOG", "No space left", "disk is full"]),
    ("a name that is a path", |site| site.wal_eve().run(["wal-fetch", "../x", DESTINATION]), &["../x", "%f %p"]),
    (
        "an option that does not exist",
        |site| site.wal_eve().run(["wal-fetch", "--bogus", NAME, DESTINATION]),
        &["--bogus"],
    ),
    ("a number that is none", |site| site.wal_eve().run(["wal-fetch", "-p", "x", NAME, DESTINATION]), &["--prefetch"]),
    ("an argument too many", |site| site.wal_eve().run(["wal-fetch", NAME, DESTINATION, "x"]), &["invalid value 'x'"]),
    ("a mistyped subcommand", |site| site.wal_eve().run(["wal-fecth", NAME, DESTINATION]), &["wal-fecth", "wal-fetch"]),
    (
        "an environment directory that does not exist",
        |site| site.wal_eve().run(["--envdir", "/no/such", "wal-fetch", NAME, DESTINATION]),
        &["/no/such", "No such file"],
    ),
    ("a panic", |site| fetch_with(site, "WAL_EVE_PANIC", "wal-fetch"), &["panicked"]),
];

fn fetch_with(site: &Site, name: &str, value: &str) -> Output {
    site.wal_eve().env(name, value).run(fetch_arguments())
}

fn faulty_fetch(site: &Site, what: What) -> Output {
    site.server.faults().add(When::operation(Operation::GetObject), what);
    let output = site.fetch();
    site.server.faults().clear();
    output
}

fn damaged_fetch(site: &Site, damage: impl FnOnce(&mut Vec<u8>)) -> Output {
    site.server.mutate("b", KEY, damage);
    let output = site.fetch();
    site.server.put_object("b", KEY, lzop(&segment(7)));
    output
}

fn outage_policy(site: &Site) -> &'static str {
    // where there is no pg_wal there is no data directory to tell the mode
    if site.data().join("standby.signal").exists() { "retry" } else { "stop" }
}

fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// `pg_wal` is a link to a file system of 256 KiB, in a mount namespace of the command's own.
fn fetch_to_a_full_disk(site: &Site) -> Output {
    let small = site.root.path().join("small");
    let _ = fs::create_dir(&small);
    let status = site.wal.path().join("archive_status");
    fs::remove_dir(status).unwrap();
    fs::remove_dir(site.wal.path()).unwrap();
    std::os::unix::fs::symlink(&small, site.wal.path()).unwrap();
    let script = format!(
        "mount -t tmpfs -o size=256k small {} && {} {}; status=$?; ls -A pg_wal/; exit $status",
        small.display(),
        wal_eve_bin().display(),
        fetch_arguments().join(" ")
    );
    let environment = site.server.environment("s3://b/p");
    let tool = support::Tool::new("unshare", environment).current_dir(site.data());
    let output = tool.run(["--user", "--map-root-user", "--mount", "sh", "-c", &script]);
    assert_eq!(output.stdout_text(), "", "left on the full disk");
    fs::remove_file(site.wal.path()).unwrap();
    fs::create_dir_all(site.wal.path().join("archive_status")).unwrap();
    output
}

#[test]
fn all_that_cannot_be_said_is_250_outside_of_standby_mode() {
    check_doubts(&Site::with_segment(), 250);
}

#[test]
fn all_that_cannot_be_said_is_75_in_standby_mode() {
    check_doubts(&Site::standby(), 75);
}

fn check_doubts(site: &Site, expected: i32) {
    let mut wrong = Vec::new();
    for (what, provoke, fragments) in DOUBTS {
        let output = provoke(site);
        site.server.deny_list(false);
        let text = output.stderr_text();
        let unsaid: Vec<_> = fragments.iter().filter(|fragment| !text.contains(**fragment)).collect();
        let names = site.wal.names();
        if output.code() != Some(expected) || !unsaid.is_empty() || !names.is_empty() || output.elapsed.as_secs() > 20 {
            wrong.push(format!(
                "{what}: {} after {:?}, unsaid {unsaid:?}, in pg_wal {names:?}\n{text}",
                output.status, output.elapsed
            ));
        }
    }
    assert!(wrong.is_empty(), "expected {expected}\n\n{}", wrong.join("\n"));
    // and the site was sound all along
    site.fetch().assert_success();
}

#[test]
fn bare_arguments_that_name_no_destination_count_as_outside_of_standby_mode() {
    let site = Site::standby();
    site.wal_eve().run(["wal-fetch"]).assert_code(250);
    site.wal_eve().run(["wal-fetch", NAME]).assert_code(250);
    site.wal_eve().run(["wal-fetch", "--help"]).assert_success();
}

#[test]
fn a_stdout_or_stderr_that_takes_nothing_changes_no_status_but_that_of_a_lost_result() {
    let site = Site::with_segment();
    let pushed = site.wal.add(9);
    let none = "--patience 10 --on-outage retry 000000010000000000000008 pg_wal/RECOVERYXLOG";
    // a warning is logged on the way to each of these
    let retried = || site.server.faults().add(When::any().once(), What::slow_down());
    for (arguments, expected, with_a_full_disk) in [
        (format!("wal-fetch {NAME} {DESTINATION}"), 0, 0),
        (format!("wal-fetch {none}"), 1, 1),
        (format!("wal-push {pushed}"), 0, 0),
        ("wal-push pg_wal/none".to_owned(), 1, 1),
        ("--no-such-option wal-fetch".to_owned(), 250, 250),
        ("--envdir /no/such wal-push x".to_owned(), 1, 1),
        ("backup-list".to_owned(), 0, 2),
        ("backup-list --json".to_owned(), 0, 2),
        ("delete retain 1".to_owned(), 0, 2),
        ("cutover init".to_owned(), 0, 2),
        ("version".to_owned(), 0, 2),
        ("--help".to_owned(), 0, 2),
    ] {
        retried();
        assert_eq!(run_with_streams(&site, &arguments, closed_pipe), Some(expected), "{arguments} into a closed pipe");
        retried();
        assert_eq!(run_with_streams(&site, &arguments, full), Some(with_a_full_disk), "{arguments} into /dev/full");
        retried();
        let script = format!("exec {} {arguments} <&- >&- 2>&-", wal_eve_bin().display());
        let tool = support::Tool::new("/bin/sh", site.server.environment("s3://b/p")).current_dir(site.data());
        assert_eq!(tool.run(["-c", &script]).code(), Some(expected), "{arguments} without streams");
        site.server.faults().clear();
    }
}

#[test]
fn a_result_that_cannot_be_written_is_named() {
    let site = Site::with_segment();
    let script = format!("{} backup-list --json >/dev/full", wal_eve_bin().display());
    let tool = support::Tool::new("/bin/sh", site.server.environment("s3://b/p"));
    says(&tool.run(["-c", &script]).assert_code(2), &["could not write the result", "No space left on device"]);
}

/// The backup is restored, whatever becomes of the advice on what to do next.
#[test]
fn a_restore_that_cannot_say_so_is_done_all_the_same() {
    let site = Site::new();
    support::HandMadeBackup::new().put_into(&site.server, "b", "p/");
    let target = site.root.path().join("restored");
    let script = format!("{} backup-fetch {} LATEST >/dev/full", wal_eve_bin().display(), target.display());
    let tool = support::Tool::new("/bin/sh", site.server.environment("s3://b/p"));
    says(&tool.run(["-c", &script]).assert_success(), &["WARN", "could not write the result"]);
    assert!(target.join("global/pg_control").exists());
}

fn full() -> Stdio {
    fs::OpenOptions::new().write(true).open("/dev/full").unwrap().into()
}

fn closed_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

fn run_with_streams(site: &Site, arguments: &str, stream: impl Fn() -> Stdio) -> Option<i32> {
    let mut command = Command::new(wal_eve_bin());
    command.args(arguments.split(' ')).current_dir(site.data()).env_clear();
    command.envs(site.server.environment("s3://b/p")).env("AWS_EC2_METADATA_DISABLED", "true");
    command.stdin(Stdio::null()).stdout(stream()).stderr(stream()).status().unwrap().code()
}

#[test]
fn sigterm_keeps_its_default_action() {
    let site = Site::with_segment();
    let path = site.wal.add(9);
    site.server.faults().add(When::any(), What::Delay(Duration::from_secs(30)));
    for arguments in [vec!["wal-fetch", NAME, DESTINATION], vec!["wal-push", &path]] {
        site.server.clear_requests();
        let mut running = site.wal_eve().spawn(&arguments);
        support::postgres::wait_until("it asks the store", Duration::from_secs(20), || {
            !site.server.requests().is_empty()
        });
        running.terminate();
        assert_eq!(running.wait().signal(), Some(Signal::TERM.as_raw()), "{arguments:?}");
    }
    assert_eq!(site.wal.names(), ["000000010000000000000009"]);
}

// Which mode it is.

#[test]
fn the_recovery_mode_is_the_data_directorys() {
    /// What it is, the contents of `PG_VERSION`, other files by name and contents, and the status in doubt.
    type Case = (&'static str, &'static str, &'static [(&'static str, &'static str)], i32);
    let cases: &[Case] = &[
        ("nothing, and no server that could be promoted", "15", &[], 250),
        ("standby.signal", "15", &[("standby.signal", "")], 75),
        ("recovery.signal", "15", &[("recovery.signal", "")], 250),
        ("both: standby wins", "15", &[("standby.signal", ""), ("recovery.signal", "")], 75),
        ("a recovery.conf is no signal from 12 on", "15", &[("recovery.conf", "standby_mode = on\n")], 250),
        ("standby_mode", "11", &[("recovery.conf", "restore_command = 'x'\nstandby_mode = 'on'\n")], 75),
        ("standby_mode off", "11", &[("recovery.conf", "standby_mode = off\n")], 250),
        ("no standby_mode", "11", &[("recovery.conf", "restore_command = 'x'\n")], 250),
        ("commented out", "11", &[("recovery.conf", "#standby_mode = on\n")], 250),
        ("a signal file means nothing to 11", "11", &[("standby.signal", "")], 250),
        ("9.6", "9.6", &[("recovery.conf", "standby_mode = on\n")], 75),
        ("no data directory", "", &[("standby.signal", "")], 250),
    ];
    for (what, major, files, expected) in cases {
        let site = Site::with_segment();
        match *major {
            "" => fs::remove_file(site.data().join("PG_VERSION")).unwrap(),
            major => fs::write(site.data().join("PG_VERSION"), format!("{major}\n")).unwrap(),
        }
        for (name, text) in *files {
            fs::write(site.data().join(name), text).unwrap();
        }
        let offline = |directory: &Path, destination: &str, more: &[&str]| {
            let wal_eve = site.wal_eve().env_remove("WALE_S3_PREFIX").current_dir(directory);
            wal_eve.run(["wal-fetch", NAME, destination].iter().chain(more)).code().unwrap()
        };
        let absolute = site.wal.file("RECOVERYXLOG").display().to_string();
        assert_eq!(offline(site.data(), DESTINATION, &[]), *expected, "{what}");
        assert_eq!(offline(site.data(), "./pg_wal/RECOVERYHISTORY", &[]), *expected, "{what}, written otherwise");
        assert_eq!(offline(Path::new("/"), &absolute, &[]), *expected, "{what}, absolute");
        assert_eq!(offline(site.data(), DESTINATION, &["--on-outage", "retry"]), 75, "{what}, told to retry");
        assert_eq!(offline(site.data(), DESTINATION, &["--on-outage=stop"]), 250, "{what}, told to stop");

        // pg_wal elsewhere, where "pg_wal/.." is another directory
        let elsewhere = site.root.path().join("disk/wal");
        fs::create_dir(site.root.path().join("disk")).unwrap();
        fs::rename(site.wal.path(), &elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, site.wal.path()).unwrap();
        assert_eq!(offline(site.data(), DESTINATION, &[]), *expected, "{what}, pg_wal a link");
        assert_eq!(offline(Path::new("/"), &absolute, &[]), *expected, "{what}, pg_wal a link, absolute");
    }
}

#[test]
fn what_is_missing_before_a_switch_of_timelines_stops_recovery_on_the_timeline_that_has_it() {
    let site = Site::with_segment();
    fs::create_dir(site.data().join("global")).unwrap();
    fs::write(site.data().join("global/pg_control"), support::hand_made_backup::control_file()).unwrap();
    fs::write(site.data().join("postmaster.pid"), format!("{}\n/data\n1700000000\n", std::process::id())).unwrap();
    fs::write(site.data().join("recovery.signal"), "").unwrap();
    site.server.put_object("b", "p/wal_005/00000002000000000000000B.lzo", "x");
    let fetch = |name| site.wal_eve().run(["wal-fetch", name, DESTINATION]);
    fetch("000000010000000000000008").assert_code(1);
    // timeline 2 begins in segment A
    let history = site.wal.file("00000002.history");
    fs::write(&history, "1\t0/A80000\tno recovery target specified\n").unwrap();
    for name in ["000000010000000000000008", "000000010000000000000009", "00000002000000000000000A"] {
        let said = fetch(name).assert_code(250);
        says(
            &said,
            &[&format!("segment {name} is missing from the archive, although 00000002000000000000000B is there")],
        );
    }
    for name in ["00000001000000000000000A", "00000001000000000000000B", "000000020000000000000009"] {
        assert_eq!(fetch(name).assert_code(1).stderr_text(), "", "{name}");
    }
    // the history of an earlier start
    let before = UNIX_EPOCH + Duration::from_secs(1_699_999_999);
    fs::File::options().append(true).open(&history).unwrap().set_modified(before).unwrap();
    fetch("000000010000000000000008").assert_code(1);
}

/// Stopped then, the server would start again as a primary on its old timeline.
#[test]
fn a_promotion_that_is_almost_done_stops_only_for_a_history_that_it_needs() {
    let site = Site::with_segment();
    fs::write(site.data().join("postmaster.pid"), format!("{}\n", std::process::id())).unwrap();
    let wal_eve = site.wal_eve().env_remove("WALE_S3_PREFIX");
    let fetch = |name: &'static str, more: &[&'static str]| {
        wal_eve.run(["wal-fetch", name, "pg_wal/RECOVERYHISTORY"].iter().chain(more))
    };
    // timeline 1 has no history
    for more in [vec![], vec!["--on-outage=stop"], vec!["--bogus"], vec!["--envdir", "/no/such"]] {
        fetch("00000001.history", &more).assert_code(75);
    }
    let panic = wal_eve.clone().env("WAL_EVE_PANIC", "wal-fetch");
    panic.run(["wal-fetch", "00000001.history", "pg_wal/RECOVERYHISTORY"]).assert_code(75);
    // others' are needed, and it is said what follows
    let output = fetch("00000002.history", &[]).assert_code(250);
    says(&output, &["no storage prefix", "HINT:  The promotion stops half-way", "OLD timeline", "standby.signal"]);
    fetch("00000002.history", &["--bogus"]).assert_code(250);
    // unless the server has a copy
    fs::write(site.wal.file("00000002.history"), "1\t0/700000\tno recovery target specified\n").unwrap();
    fetch("00000002.history", &[]).assert_code(75);
    fetch(NAME, &[]).assert_code(250);
}

#[test]
fn an_outage_while_a_server_looks_for_a_free_timeline_is_told_as_what_it_is() {
    let offline = |site: &Site, name| site.wal_eve().env_remove("WALE_S3_PREFIX").run(["wal-fetch", name, DESTINATION]);
    let hint = "HINT:  A server that is promoted while the archive does not answer";
    says(&offline(&Site::standby(), "00000002.history").assert_code(75), &["no storage prefix", hint]);
    for (site, name) in [(Site::standby(), NAME), (Site::with_segment(), "00000002.history")] {
        assert!(!offline(&site, name).stderr_text().contains(hint));
    }
}

// wal-push.

#[test]
fn wal_push_is_0_only_for_bytes_that_are_in_the_archive() {
    let site = Site::with_segment();
    let path = site.wal.add(9);
    let push = || site.wal_eve().run(["wal-push", "--patience", "2", &path]);
    push().assert_success();
    assert_eq!(push().assert_success().stderr_text(), "", "the same bytes again");
    fs::write(site.wal.file(&segment_name(9)), segment_of(1, 9)).unwrap();
    let output = push().assert_code(1);
    says(
        &output,
        &[
            "p/wal_005/000000010000000000000009.lzo\" already exists with different contents",
            "HINT:  ",
            "Nothing was overwritten",
        ],
    );
}

#[test]
fn wal_push_tells_a_persons_error_from_an_outage_and_never_exceeds_125() {
    let site = Site::with_segment();
    let path = site.wal.add(9);
    let with = |name: &str, value: &str| site.wal_eve().env(name, value).run(["wal-push", "--patience", "2", &path]);
    let faulty = |what: What| {
        site.server.faults().add(When::operation(Operation::PutObject), what);
        let output = with("UNUSED", "");
        site.server.faults().clear();
        output
    };
    let object = "p/wal_005/000000010000000000000009.lzo";
    says(&with("WALE_S3_ENDPOINT", "http+path://127.0.0.1:1").assert_code(75), &[object, "refused"]);
    says(&faulty(What::slow_down()).assert_code(75), &[object, "503 SlowDown"]);
    says(&faulty(What::Delay(Duration::from_secs(30))).assert_code(75), &[object, "time"]);
    says(&with("AWS_ACCESS_KEY_ID", "AKIAOTHER").assert_code(1), &[object, "AWS_ACCESS_KEY_ID"]);
    says(&with("AWS_SECRET_ACCESS_KEY", "wrong").assert_code(1), &[object, "AWS_SECRET_ACCESS_KEY"]);
    says(&faulty(What::access_denied()).assert_code(1), &[object, "s3:PutObject"]);
    says(&with("WALE_S3_PREFIX", "s3://other/p").assert_code(1), &["s3://other/p", "no bucket \"other\""]);
    says(&with("WALE_S3_PREFIX", "s3:///p").assert_code(1), &["s3:///p", "s3://bucket/path"]);
    says(&with("WALE_S3_PREFIX", "").assert_code(1), &["no storage prefix", "WALE_S3_PREFIX"]);
    says(&with("WALE_LZO_LEVEL", "11").assert_code(1), &["WALE_LZO_LEVEL", "fast or best"]);
    says(&with("WAL_EVE_PANIC", "wal-push").assert_code(2), &["panicked"]);
    let odd = What::Error { status: 400, code: "Odd", message: "Never seen." };
    says(&faulty(odd).assert_code(2), &[object, "400 Odd: Never seen."]);

    let run = |arguments: &[&str]| site.wal_eve().run(arguments);
    says(&run(&["wal-push", "pg_wal/none"]).assert_code(1), &["\"pg_wal/none\"", "%p"]);
    says(&run(&["wal-push", "pg_wal"]).assert_code(1), &["\"pg_wal\"", "%p"]);
    says(&run(&["wal-push", ".."]).assert_code(1), &["\"..\"", "%p"]);
    run(&["wal-push"]).assert_code(1);
    run(&["wal-push", "--bogus", &path]).assert_code(1);
    run(&["wal-psuh", &path]).assert_code(1);
    says(&run(&["--envdir", "/no/such", "wal-push", &path]).assert_code(1), &["/no/such"]);
    set_mode(&site.wal.file(&segment_name(9)), 0);
    says(&run(&["wal-push", &path]).assert_code(1), &[&path, "Permission denied", "as the user that owns"]);
    assert_eq!(site.server.keys("b", "p/"), [KEY]);
}

// The other commands.

#[test]
fn backup_commands_are_1_for_what_a_person_has_to_change_and_2_for_the_unexpected() {
    let site = Site::with_segment();
    let target = site.root.path().join("restored").display().to_string();
    let name = "base_000000010000000000000002_00000040";
    let data = site.data().display().to_string();
    let commands: [&[&str]; 5] = [
        &["backup-list"],
        &["delete", "--confirm", "retain", "1"],
        &["backup-fetch", &target, "LATEST"],
        &["backup-fetch", &target, name],
        &["backup-push", "--while-offline", &data],
    ];
    let control = site.data().join("global");
    fs::create_dir(&control).unwrap();
    let mut stopped = support::hand_made_backup::control_file();
    stopped[16] = 1;
    let crc = crc32c::crc32c(&stopped[..288]).to_le_bytes();
    stopped[288..292].copy_from_slice(&crc);
    fs::write(control.join("pg_control"), stopped).unwrap();
    for command in commands {
        let with = |name: &str, value: &str| site.wal_eve().env(name, value).run(command);
        says(&with("WALE_S3_PREFIX", "").assert_code(1), &["no storage prefix", "WALE_S3_PREFIX"]);
        says(&with("WALE_S3_PREFIX", "s3://other/p").assert_code(1), &["s3://other/p", "no bucket \"other\""]);
        says(&with("AWS_SECRET_ACCESS_KEY", "wrong").assert_code(1), &["b/p", "AWS_SECRET_ACCESS_KEY"]);
        says(&with("WAL_EVE_PANIC", command[0]).assert_code(2), &["panicked"]);
        site.server.faults().add(When::any(), What::Error { status: 400, code: "Odd", message: "Never seen." });
        says(&with("UNUSED", "").assert_code(2), &["s3://b/p/", "400 Odd"]);
        site.server.faults().clear();
        site.wal_eve().run(command.iter().chain(&["--bogus"])).assert_code(1);
    }
    let run = |arguments: &[&str]| site.wal_eve().run(arguments);
    let output = run(&["backup-list"]).assert_success();
    assert_eq!(output.stdout_text().lines().count(), 1);
    assert!(output.stdout_text().ends_with("\r\n"));
    says(
        &run(&["backup-fetch", &target, "LATEST"]).assert_code(1),
        &["no backups found", "s3://b/p/basebackups_005/", "HINT:  "],
    );
    says(&run(&["backup-fetch", &target, name]).assert_code(1), &[name, "backup-list"]);
    says(
        &run(&["backup-fetch", &target, "base_1"]).assert_code(1),
        &["invalid backup query", "\"base_1.\"", "backup-list"],
    );
    says(&run(&["backup-list", "base_1"]).assert_code(1), &["invalid backup query", "\"base_1.\""]);
    says(&run(&["backup-push", "/no/such"]).assert_code(1), &["/no/such"]);
    let unreachable = site.wal_eve().env("PGHOST", "/no/such/socket").run(["backup-push", &data]).assert_code(1);
    says(&unreachable, &["/no/such/socket"]);
    run(&[]).assert_code(1);
    run(&["version"]).assert_success();
    assert!(!Path::new(&target).exists());
}

#[test]
fn a_variable_that_has_no_effect_is_named_where_a_person_reads_it() {
    let site = Site::with_segment();
    let wal_eve = site.wal_eve().env("WALE_RETRIES", "5");
    says(&wal_eve.run(["delete", "retain", "1"]).assert_success(), &["WARN", "WALE_RETRIES has no effect"]);
    assert_eq!(wal_eve.run(fetch_arguments()).assert_success().stderr_text(), "", "not once a segment");
}

// With a real server, which is what all of it is for.

/// A primary that archives and has been stopped and copied; then it went on for some segments.
struct Archived {
    site: Site,
    copy: PgCluster,
    rows: String,
    last_key: String,
}

fn archived() -> Archived {
    let site = Site::with_segment();
    let mut primary = PgCluster::options()
        .configure("archive_mode = on")
        .configure("wal_level = replica")
        .configure(format!("archive_command = '{} wal-push %p'", wal_eve_bin().display()))
        .init(15);
    for (name, value) in site.server.environment("s3://b/q") {
        primary.env(&name, &value);
    }
    primary.start();
    primary.psql("create table t (i int)");
    primary.stop(Mode::Fast);
    let mut copy = PgCluster::without_data(15);
    let copied = Command::new("cp").arg("-a").arg(primary.data_dir()).arg(copy.data_dir()).status().unwrap();
    assert!(copied.success());
    copy.configure_connections();
    copy.configure("archive_mode = off");
    copy.configure("wal_retrieve_retry_interval = '100ms'");
    // it panics at the file, if any, that the data directory's "panic" names
    copy.configure(&format!(
        "restore_command = 'WAL_EVE_PANIC=$(cat panic 2>/dev/null) {} wal-fetch --patience 2 %f %p'",
        wal_eve_bin().display()
    ));
    for (name, value) in site.server.environment("s3://b/q") {
        copy.env(&name, &value);
    }
    primary.start();
    let mut last_key = String::new();
    for round in 0..3 {
        primary.psql(&format!("insert into t select {round} from generate_series(1, 1000)"));
        last_key = format!("q/wal_005/{}.lzo", primary.switch_wal());
    }
    let archived = || site.server.object("b", &last_key).is_some();
    primary.wait_until("the last segment is archived", Duration::from_secs(60), archived);
    let rows = primary.psql("select count(*), sum(i) from t");
    primary.stop(Mode::Fast);
    Archived { site, copy, rows, last_key }
}

fn timelines(cluster: &PgCluster) -> usize {
    let names = fs::read_dir(cluster.data_dir().join("pg_wal")).unwrap();
    names.filter(|name| name.as_ref().unwrap().file_name().to_string_lossy().ends_with(".history")).count()
}

#[test]
fn an_outage_outside_of_standby_mode_stops_recovery_and_never_promotes() {
    let Archived { site, mut copy, rows, last_key } = archived();
    copy.set_recovery();
    copy.configure("recovery_target_timeline = 'latest'");
    site.server.faults().add(When::operation(Operation::GetObject).key(&last_key), What::slow_down());
    copy.start_without_waiting();
    copy.wait_until("recovery has stopped", Duration::from_secs(60), || !copy.is_running());
    let log = copy.log();
    assert!(log.contains("FATAL:  could not restore file") && log.contains("503 SlowDown"), "{log}");
    assert_eq!(timelines(&copy), 0, "{log}");
    assert!(!log.contains("ready to accept connections"), "{log}");

    // the store is back: the same start goes to the end of the archive, which was confirmed
    site.server.faults().clear();
    copy.start();
    copy.wait_until_sql("select not pg_is_in_recovery()", Duration::from_secs(60));
    assert_eq!(copy.psql("select count(*), sum(i) from t"), rows);
    assert_eq!(timelines(&copy), 1);
}

#[test]
fn an_outage_in_standby_mode_is_waited_out() {
    let Archived { site, mut copy, rows, last_key } = archived();
    copy.set_standby();
    let fault = site.server.faults().add(When::operation(Operation::GetObject).key(&last_key), What::slow_down());
    copy.start();
    copy.wait_until("it was told of the outage twice", Duration::from_secs(60), || {
        copy.log().matches("ERROR:  could not get").count() >= 2
    });
    assert!(site.server.faults().hits(fault) > 2);
    assert_eq!(copy.psql("select pg_is_in_recovery()"), "t");
    site.server.faults().clear();
    let caught_up = format!("select (select (count(*), sum(i))::text from t) = '({})'", rows.replace('|', ","));
    copy.wait_until_sql(&caught_up, Duration::from_secs(60));
    assert_eq!(copy.psql("select pg_is_in_recovery()"), "t", "a miss at the end keeps a standby waiting");
    copy.promote();
    assert_eq!(copy.psql("select count(*), sum(i) from t"), rows);
}

/// Lets `restore_command` panic at a segment for as long as there is the file that is answered.
fn panic_at(copy: &PgCluster, key: &str) -> PathBuf {
    let panic = copy.data_dir().join("panic");
    fs::write(&panic, Path::new(key).file_stem().unwrap().as_encoded_bytes()).unwrap();
    panic
}

#[test]
fn a_panic_outside_of_standby_mode_stops_recovery_and_never_promotes() {
    let Archived { site: _site, mut copy, rows, last_key } = archived();
    copy.set_recovery();
    copy.configure("recovery_target_timeline = 'latest'");
    let panic = panic_at(&copy, &last_key);
    copy.start_without_waiting();
    copy.wait_until("recovery has stopped", Duration::from_secs(60), || !copy.is_running());
    let log = copy.log();
    assert!(log.contains("panicked") && log.contains("child process exited with exit code 250"), "{log}");
    assert_eq!(timelines(&copy), 0, "{log}");
    assert!(!log.contains("ready to accept connections"), "{log}");

    fs::remove_file(panic).unwrap();
    copy.start();
    copy.wait_until_sql("select not pg_is_in_recovery()", Duration::from_secs(60));
    assert_eq!(copy.psql("select count(*), sum(i) from t"), rows);
}

#[test]
fn a_panic_in_standby_mode_is_asked_again_after() {
    let Archived { site: _site, mut copy, rows, last_key } = archived();
    copy.set_standby();
    let panic = panic_at(&copy, &last_key);
    copy.start();
    copy.wait_until("it has gone on asking", Duration::from_secs(60), || copy.log().matches("panicked").count() >= 3);
    assert_eq!(copy.psql("select pg_is_in_recovery()"), "t");

    fs::remove_file(panic).unwrap();
    let caught_up = format!("select (select (count(*), sum(i))::text from t) = '({})'", rows.replace('|', ","));
    copy.wait_until_sql(&caught_up, Duration::from_secs(60));
    assert_eq!(copy.psql("select pg_is_in_recovery()"), "t");
}

#[test]
fn credentials_are_never_printed() {
    let site = Site::with_segment();
    let path = site.wal.add(9);
    let fetch = vec!["wal-fetch", NAME, DESTINATION];
    for arguments in [vec!["wal-push", &path], fetch, vec!["backup-list"], vec!["delete", "retain", "1"]] {
        for wrong in [("AWS_SECRET_ACCESS_KEY", "a-secret-that-is-wrong"), ("WALE_S3_PREFIX", "s3://other/p")] {
            let output = site.wal_eve().env("WAL_EVE_LOG", "trace").env(wrong.0, wrong.1).run(&arguments);
            let text = output.stdout_text() + &output.stderr_text();
            assert!(!text.contains(SECRET_KEY) && !text.contains("a-secret-that-is-wrong"), "{text}");
        }
    }
}
