//! The prefetcher as a process, and a `wal-fetch` that asks it, with segments made by hand and a server that is only
//! pretended: quick, and every moment in the test's hand.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use support::hand_made_backup::control_file;
use support::postgres::{is_alive, wait_until};
use support::s3::{Operation, S3Server, What, When};
use support::wal_segment::{SEGMENT_BYTES, SYSTEM_IDENTIFIER, segment, segment_name, segment_of};
use support::{Output, Running, WalDirectory, WalEve, temp_dir};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(30);

/// The first segment in the archive, and the first that is not.
const FIRST: u32 = 10;
const END: u32 = 30;

/// An archive of segments, and a data directory whose server is a process of this test's.
struct Site {
    server: S3Server,
    wal: WalDirectory,
    root: TempDir,
    postmaster: Child,
}

impl Site {
    fn new() -> Self {
        let server = S3Server::start();
        server.create_bucket("b");
        let root = temp_dir();
        let wal = WalDirectory::create(&root.path().join("d"));
        let site = Self { server, wal, root, postmaster: process() };
        for number in FIRST..END {
            site.push(number);
        }
        let data = site.wal.data_directory();
        let _ = fs::remove_dir_all(data.join("pg_wal/.wal-e"));
        fs::create_dir(data.join("global")).unwrap();
        fs::write(data.join("global/pg_control"), control_file()).unwrap();
        fs::write(data.join("standby.signal"), "").unwrap();
        site.name_postmaster(site.postmaster.id());
        site.server.clear_requests();
        site
    }

    fn name_postmaster(&self, pid: u32) {
        fs::write(self.wal.data_directory().join("postmaster.pid"), format!("{pid}\n")).unwrap();
    }

    fn push(&self, number: u32) {
        let path = self.wal.add(number);
        self.wal_eve().run(["wal-push", "-p", "1", &path]).assert_success();
        fs::remove_file(self.wal.file(&segment_name(number))).unwrap();
    }

    fn wal_eve(&self) -> WalEve {
        WalEve::new(self.server.environment("s3://b/p")).current_dir(self.wal.data_directory())
    }

    fn fetch(&self, number: u32) -> Output {
        self.wal_eve().run(["wal-fetch", &segment_name(number), "pg_wal/RECOVERYXLOG"])
    }

    /// Fetches a segment that has to be right, and takes it away as the server would.
    fn fetch_well(&self, number: u32) -> Output {
        let output = self.fetch(number).assert_success();
        let file = self.wal.file("RECOVERYXLOG");
        assert!(fs::read(&file).unwrap() == segment(number), "other bytes for segment {number}");
        fs::remove_file(file).unwrap();
        output
    }

    fn spool(&self) -> PathBuf {
        self.wal.file(".wal-e/prefetch")
    }

    fn is_ready(&self, number: u32) -> bool {
        self.spool().join(segment_name(number)).exists()
    }

    fn wait_until_ready(&self, number: u32) {
        wait_until("the segment is in the spool", SOON, || self.is_ready(number));
    }

    /// Starts a prefetcher by fetching the first segment, and waits until it works.
    fn prefetcher(&self) -> Pid {
        self.fetch_well(FIRST);
        self.wait_until_ready(FIRST + 1);
        wait_until("the prefetcher shows itself", SOON, || self.status().is_some());
        self.pid()
    }

    fn status(&self) -> Option<serde_json::Value> {
        serde_json::from_slice(&fs::read(self.spool().join("status.json")).ok()?).ok()
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.status().unwrap()["pid"].as_i64().unwrap() as i32).unwrap()
    }

    fn wait_for_end(&self, pid: Pid) {
        wait_until("the prefetcher has ended", SOON, || !is_alive(pid));
        assert_eq!(names(&self.spool()), ["lock", "log", "status.json"], "what tells people what happened");
    }

    /// A prefetcher in the foreground, whose end has a status.
    fn spawn(&self, more: &[&str]) -> Running {
        let spool = self.spool().display().to_string();
        let (position, size) = (segment_name(FIRST), SEGMENT_BYTES.to_string());
        let sysid = SYSTEM_IDENTIFIER.to_string();
        let usual = [
            "prefetch",
            "--spool",
            &spool,
            "--position",
            &position,
            "--segment-size",
            &size,
            "--system-identifier",
            &sysid,
            "--max-bytes",
            "1073741824",
        ];
        self.wal_eve().spawn(usual.iter().chain(more))
    }

    fn gets(&self, number: u32) -> usize {
        self.server.count(Operation::GetObject, &segment_name(number))
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.postmaster.kill();
        let _ = self.postmaster.wait();
    }
}

/// A process that lasts as long as it is let.
fn process() -> Child {
    Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = entries.collect();
    names.sort();
    names
}

#[test]
fn segments_ahead_are_fetched_once_and_renamed() {
    let site = Site::new();
    let pid = site.prefetcher();
    for number in FIRST + 1..END {
        site.wait_until_ready(number);
        let inode = fs::metadata(site.spool().join(segment_name(number))).unwrap().ino();
        site.fetch(number).assert_success();
        let file = site.wal.file("RECOVERYXLOG");
        assert_eq!(fs::metadata(&file).unwrap().ino(), inode, "a rename and no copy");
        assert!(fs::read(&file).unwrap() == segment(number));
        assert_eq!(site.gets(number), 1, "segment {number}");
    }
    assert_eq!(site.pid(), pid);
    // the first one was fetched before there was a prefetcher
    assert_eq!(site.gets(FIRST), 1);
    // past the end, once, as many as are on their way at a time
    let beyond = (END..END + 64).map(|number| site.gets(number)).sum::<usize>();
    let all = site.server.requests().len();
    assert!(beyond <= 16 && all == (END - FIRST) as usize + beyond, "{all} requests, {beyond} of them past the end");
}

#[test]
fn nothing_of_its_callers_stays_with_it() {
    let site = Site::new();
    // as PostgreSQL does it: a shell, with files open that are not closed on exec
    let data = site.wal.data_directory();
    let keep = data.join("keep");
    fs::write(&keep, "").unwrap();
    let script = format!(
        "exec 7<{} 8>>{}; {} wal-fetch {} pg_wal/RECOVERYXLOG",
        keep.display(),
        keep.display(),
        support::wal_eve_bin().display(),
        segment_name(FIRST)
    );
    let shell = support::Tool::new("/bin/sh", site.server.environment("s3://b/p")).current_dir(data);
    shell.run(["-c", &script]).assert_success();
    site.wait_until_ready(FIRST + 1);
    wait_until("the prefetcher shows itself", SOON, || site.status().is_some());
    let pid = site.pid().as_raw_nonzero();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        // what it closes just then is its own
        let Ok(target) = fs::read_link(entry.unwrap().path()) else { continue };
        let text = target.display().to_string();
        let own = text.starts_with("socket:") || text.starts_with("anon_inode:") || text == "/dev/null";
        let pipe_of_its_own = text.starts_with("pipe:");
        assert!(own || pipe_of_its_own || target.starts_with(site.spool()), "{text}");
    }
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let session = stat.rsplit_once(") ").unwrap().1.split(' ').nth(3).unwrap();
    assert_eq!(session, pid.to_string(), "a session of its own");
    assert_eq!(fs::read_link(format!("/proc/{pid}/cwd")).unwrap(), Path::new("/"));
}

#[test]
fn a_segment_on_its_way_is_waited_for() {
    let site = Site::new();
    let slow = site.server.faults().add(
        When::operation(Operation::GetObject).key(&segment_name(FIRST + 1)),
        // slow enough that it is still on its way when the next call comes, whatever holds that up
        What::Bandwidth { bytes_per_second: 64 << 10 },
    );
    site.fetch_well(FIRST);
    wait_until("it is asked for", SOON, || site.gets(FIRST + 1) == 1);
    assert!(!site.is_ready(FIRST + 1));
    site.fetch_well(FIRST + 1);
    assert_eq!((site.gets(FIRST + 1), site.server.faults().hits(slow)), (1, 1));
    wait_until("the wait is counted", SOON, || site.status().is_some_and(|status| status["waits"] == 1));
}

#[test]
fn an_idle_standby_costs_one_request_a_poll() {
    let site = Site::new();
    site.prefetcher();
    for number in FIRST + 1..END {
        site.fetch_well(number);
    }
    site.fetch(END).assert_code(1);
    site.server.clear_requests();
    for _ in 0..5 {
        site.fetch(END).assert_code(1);
        site.fetch(END).assert_code(1);
        assert!(!site.wal.file("RECOVERYXLOG").exists());
    }
    assert_eq!(site.server.requests().len(), 10, "absence is asked anew each time, and nothing else is asked");
    // one more segment: it is fetched, and one request sees whether there is another
    site.push(END);
    site.server.clear_requests();
    site.fetch_well(END);
    wait_until("the next one is asked for", SOON, || site.gets(END + 1) == 1);
    site.fetch(END + 1).assert_code(1);
    assert_eq!((site.gets(END), site.gets(END + 1), site.gets(END + 2)), (1, 2, 0));
}

#[test]
fn absence_is_never_answered_from_what_was_seen_before() {
    let site = Site::new();
    site.prefetcher();
    for number in FIRST + 1..END {
        site.fetch_well(number);
    }
    site.fetch(END).assert_code(1);
    site.push(END);
    site.fetch_well(END);
}

#[test]
fn what_is_odd_in_the_spool_is_not_used() {
    let site = Site::new();
    site.prefetcher();
    let mut other = segment(FIRST + 3);
    other.truncate(SEGMENT_BYTES - 1);
    for (number, bytes) in [
        (FIRST + 1, segment(FIRST + 2)),
        (FIRST + 2, segment_of(SYSTEM_IDENTIFIER + 1, FIRST + 2)),
        (FIRST + 3, other),
        (FIRST + 4, vec![0; SEGMENT_BYTES]),
        (FIRST + 5, Vec::new()),
    ] {
        site.wait_until_ready(number);
        fs::write(site.spool().join(segment_name(number)), bytes).unwrap();
        let said = site.fetch_well(number).stderr_text();
        assert!(said.contains("could not use the prefetch spool"), "{said}");
        assert_eq!(site.gets(number), 2);
    }
}

#[test]
fn a_changed_configuration_replaces_it() {
    let site = Site::new();
    let first = site.prefetcher();
    let changed = site.wal_eve().env("AWS_SESSION_TOKEN", "another");
    // not accepted by this server; the point is who asks it
    changed.run(["wal-fetch", &segment_name(FIRST + 1), "pg_wal/RECOVERYXLOG"]);
    wait_until("the prefetcher has ended", SOON, || !is_alive(first));
    site.fetch_well(FIRST + 2);
    wait_until("another one works", SOON, || {
        site.status().is_some_and(|status| status["running"] == true && site.pid() != first)
    });
}

#[test]
fn it_ends_with_the_server_and_leaves_nothing() {
    let mut site = Site::new();
    let pid = site.prefetcher();
    site.postmaster.kill().unwrap();
    site.postmaster.wait().unwrap();
    site.wait_for_end(pid);
    let data = site.wal.data_directory().display().to_string();
    let said = site.wal_eve().run(["prefetch-status", &data]).assert_success().stdout_text();
    assert!(said.contains("ended: the server has ended its recovery"), "{said}");
    // a server that starts again gets another
    site.postmaster = process();
    site.name_postmaster(site.postmaster.id());
    site.fetch_well(FIRST + 1);
    site.wait_until_ready(FIRST + 2);
    wait_until("it shows itself", SOON, || site.pid() != pid);
}

#[test]
fn any_signal_and_any_end_is_a_status_that_no_server_takes_for_a_crash() {
    let site = Site::new();
    let signals = [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2];
    for signal in signals {
        let mut running = site.spawn(&["--first-ask-seconds", "600"]);
        wait_until("it works", SOON, || site.is_ready(FIRST));
        running.signal(signal);
        assert_eq!(running.wait().code(), Some(0), "{signal:?}");
        assert!(!site.is_ready(FIRST));
    }
    assert_eq!(site.spawn(&["--first-ask-seconds", "0"]).wait().code(), Some(0), "idle");
    let gone = process();
    let pid = gone.id().to_string();
    drop(gone.wait_with_output().unwrap());
    assert_eq!(site.spawn(&["--first-ask-seconds", "600", "--recovery", &pid]).wait().code(), Some(0), "server gone");
    assert_eq!(site.spawn(&["--first-ask-seconds", "x"]).wait().code(), Some(1), "arguments");
    let panicking = site.wal_eve().env("WAL_EVE_PANIC", "prefetch");
    assert_eq!(panicking.run(["prefetch", "--spool", "/nowhere"]).code(), Some(1));
    fs::remove_dir_all(site.spool()).unwrap();
    fs::write(site.spool(), "no directory").unwrap();
    assert_eq!(site.spawn(&["--first-ask-seconds", "600"]).wait().code(), Some(1), "no place for a spool");
    site.fetch_well(FIRST + 1);
}

#[test]
fn a_second_one_gives_way() {
    let site = Site::new();
    let pid = site.prefetcher();
    assert_eq!(site.spawn(&["--first-ask-seconds", "600"]).wait().code(), Some(0));
    assert!(is_alive(pid));
    site.wait_until_ready(FIRST + 1);
    site.fetch_well(FIRST + 1);
}

#[test]
fn a_killed_ones_leftovers_are_not_trusted() {
    let site = Site::new();
    let pid = site.prefetcher();
    site.wait_until_ready(FIRST + 1);
    kill_process(pid, Signal::KILL).unwrap();
    wait_until("it is gone", SOON, || !is_alive(pid));
    assert!(site.is_ready(FIRST + 1) && site.spool().join("stamp").exists());
    site.fetch_well(FIRST + 1);
    assert_eq!(site.gets(FIRST + 1), 2);
    wait_until("another one works", SOON, || site.pid() != pid && site.is_ready(FIRST + 2));
}

#[test]
fn calls_that_need_no_prefetcher_remove_what_a_killed_one_left() {
    let history = ["wal-fetch", "00000002.history", "pg_wal/RECOVERYHISTORY"];
    let absent = segment_name(END + 1);
    let absent = ["wal-fetch", &absent, "pg_wal/RECOVERYXLOG"];
    let pushed = format!("pg_wal/{}", segment_name(END + 9));
    let push = ["wal-push", &pushed];
    for call in [&history[..], &absent, &push] {
        let site = Site::new();
        site.wal.add(END + 9);
        let run = || site.wal_eve().run(call);
        let pid = site.prefetcher();
        run();
        assert!(is_alive(pid) && site.spool().join("stamp").exists(), "{call:?} while a prefetcher works");
        site.fetch_well(FIRST + 1);
        site.wait_until_ready(FIRST + 2);
        kill_process(pid, Signal::KILL).unwrap();
        wait_until("it is gone", SOON, || !is_alive(pid));
        run();
        assert_eq!(names(&site.spool()), ["lock", "log", "status.json"], "after {call:?}");
        // nor is anything made where there was no prefetcher
        fs::remove_dir_all(site.wal.file(".wal-e/prefetch")).unwrap();
        run();
        assert!(!site.spool().exists());
    }
}

#[test]
fn prefetching_is_for_segments_that_a_running_server_replays() {
    let site = Site::new();
    let name = segment_name(FIRST);
    let run = |arguments: &[&str]| site.wal_eve().run(arguments);
    run(&["wal-fetch", "-p", "0", &name, "pg_wal/RECOVERYXLOG"]).assert_success();
    // pg_rewind
    run(&["wal-fetch", &name, &format!("pg_wal/{name}")]).assert_success();
    run(&["wal-fetch", "00000002.history", "pg_wal/RECOVERYHISTORY"]).assert_code(1);
    run(&["wal-fetch", &format!("{name}.partial"), "pg_wal/RECOVERYXLOG"]).assert_code(1);
    fs::remove_file(site.wal.data_directory().join("postmaster.pid")).unwrap();
    run(&["wal-fetch", &name, "pg_wal/RECOVERYXLOG"]).assert_success();
    assert!(!site.wal.file(".wal-e").exists());
}

#[test]
fn the_window_is_as_wide_as_it_is_told() {
    let site = Site::new();
    let fetch =
        |arguments: &[&str]| site.wal_eve().env("WALE_PREFETCH_BYTES", (5 * SEGMENT_BYTES).to_string()).run(arguments);
    for number in FIRST..FIRST + 6 {
        fetch(&["wal-fetch", "-p", "3", &segment_name(number), "pg_wal/RECOVERYXLOG"]).assert_success();
        site.wait_until_ready(number + 1);
    }
    let limit = |expected: u64| {
        wait_until("the limit is followed", SOON, || {
            site.status().is_some_and(|status| status["look_ahead_limit"] == expected)
        });
    };
    limit(3);
    assert_eq!(site.gets(FIRST + 9), 0);
    fetch(&["wal-fetch", &segment_name(FIRST + 6), "pg_wal/RECOVERYXLOG"]).assert_success();
    limit(5);
}

#[test]
fn a_spool_elsewhere_may_be_on_another_filesystem_and_is_shared() {
    let [a, b] = [Site::new(), Site::new()];
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    let other_filesystem = fs::metadata(elsewhere.path()).unwrap().dev() != fs::metadata(a.root.path()).unwrap().dev();
    assert!(other_filesystem, "this test needs /dev/shm and the temporary directory on two filesystems");
    let count = |suffix: &str| {
        let spools = fs::read_dir(elsewhere.path()).unwrap().map(|entry| entry.unwrap().path());
        spools.filter(|spool| spool.join(suffix).exists()).count()
    };
    for number in FIRST..FIRST + 5 {
        for site in [&a, &b] {
            let wal_eve = site.wal_eve().env("WALE_PREFETCH_DIR", elsewhere.path());
            wal_eve.run(["wal-fetch", &segment_name(number), "pg_wal/RECOVERYXLOG"]).assert_success();
            assert!(fs::read(site.wal.file("RECOVERYXLOG")).unwrap() == segment(number));
            assert_eq!(site.gets(number), 1, "segment {number}");
        }
        wait_until("both have the next one", SOON, || count(&segment_name(number + 1)) == 2);
        assert_eq!(count(&segment_name(number)), 0, "taken");
    }
    assert_eq!(names(elsewhere.path()).len(), 2);
    assert!(!a.wal.file(".wal-e").exists());
}

#[test]
fn status_says_when_there_is_nothing_to_say() {
    let site = Site::new();
    let data = site.wal.data_directory().display().to_string();
    let said = site.wal_eve().run(["prefetch-status", &data]).assert_code(1).stderr_text();
    assert!(said.contains("no prefetcher has worked in") && said.contains("HINT"), "{said}");
    let said = site.wal_eve().run(["prefetch-status", "/nowhere"]).assert_code(1).stderr_text();
    assert!(said.contains("is not a PostgreSQL data directory"), "{said}");
    let pid = site.prefetcher();
    let said = site.wal_eve().run(["prefetch-status", &data]).assert_success().stdout_text();
    for part in [
        "state",
        "position",
        &segment_name(FIRST + 1),
        "hits",
        "bottleneck",
        &format!("(process {})", pid.as_raw_nonzero()),
    ] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
}

#[test]
fn a_gap_in_the_archive_stops_recovery_and_not_a_standby() {
    let site = Site::new();
    let key = format!("p/wal_005/{}.lzo", segment_name(FIRST + 4));
    assert!(site.server.delete("b", &key));
    site.fetch(FIRST + 4).assert_code(1);
    let data = site.wal.data_directory();
    fs::remove_file(data.join("standby.signal")).unwrap();
    fs::write(data.join("recovery.signal"), "").unwrap();
    let said = site.fetch(FIRST + 4).assert_code(250).stderr_text();
    let (gap, next) = (segment_name(FIRST + 4), segment_name(FIRST + 5));
    assert!(said.contains(&format!("segment {gap} is missing from the archive, although {next} is there")), "{said}");
    let arguments = ["wal-fetch", "--on-outage", "retry", &gap, "pg_wal/RECOVERYXLOG"];
    site.wal_eve().run(arguments).assert_code(1);
    site.fetch(END).assert_code(1);
}
