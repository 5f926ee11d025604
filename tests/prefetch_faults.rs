//! Whatever happens to the prefetcher, its spool, the store or the server: a standby loses nothing, ends with the primary's
//! rows, and leaves no process behind.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

mod support;

use std::collections::VecDeque;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::Rng as _;
use rustix::process::{Pid, Signal, kill_process};
use support::postgres::{is_alive, wait_until};
use support::replica::{
    LIMIT, ROWS, Recording, Source, prefetchers, restore_commands, restored, segments_in, spool, status, status_of,
};
use support::s3::{Credentials, Operation, What, When};
use support::{Archive, Mode, PgCluster, Program, S3Server, temp_dir, wal_eve_bin};
use tempfile::TempDir;

/// In the key of every segment, and of nothing else.
const SEGMENTS: &str = "wal_005/0000000100000000";

/// How long a prefetcher may take to end after its server. More than a moment, since the machine may be busy.
const SOON: Duration = Duration::from_secs(20);

fn millis(number: u64) -> Duration {
    Duration::from_millis(number)
}

/// A recorded archive on a server of its own.
struct Site {
    archive: Archive,
    recording: &'static Recording,
}

impl Site {
    fn new(major: u32) -> Self {
        let recording = Recording::of(major);
        Self { archive: recording.archive(), recording }
    }

    fn server(&self) -> &S3Server {
        match &self.archive {
            Archive::S3(server) => server,
            Archive::File(_) => unreachable!("recordings are played on S3"),
        }
    }

    /// The keys of the segments, in order.
    fn segments(&self) -> Vec<String> {
        let keys = self.server().keys("b", &format!("p/{SEGMENTS}"));
        keys.into_iter().filter(|key| key.len() == format!("p/{SEGMENTS}00000000.lzo").len()).collect()
    }

    /// Takes a segment out of the archive.
    fn withhold(&self, key: &str) -> Bytes {
        let body = self.server().object("b", key).unwrap().body;
        assert!(self.server().delete("b", key));
        body
    }

    /// Takes all segments but the first so many out of the archive: what has not been written yet.
    fn withhold_from(&self, first: usize) -> Withheld<'_> {
        let keys = self.segments().split_off(first);
        Withheld { site: self, segments: keys.into_iter().map(|key| (self.withhold(&key), key)).collect() }
    }

    /// What restore_command is, with this before `wal-eve` and these options of wal-fetch.
    fn restored_by(&self, command: &str) -> PgCluster {
        let line = format!("restore_command = '{command}'");
        restored(&self.archive, self.recording.major(), &["--no-prefetch"], &line)
    }

    fn command(&self, options: &str) -> String {
        self.archive.shell_command(Program::WalEve, &format!("wal-fetch {options} %f %p"))
    }

    fn standby_by(&self, command: &str) -> PgCluster {
        let mut standby = self.restored_by(command);
        standby.set_standby();
        standby
    }

    /// A standby that is not started, and whose wal-fetch has these options.
    fn standby(&self, options: &str) -> PgCluster {
        self.standby_by(&self.command(options))
    }

    /// Lets every segment take its time, so that there is some to do harm in.
    fn slow_down(&self, latency: Duration) {
        self.server().faults().add(When::operation(Operation::GetObject).key(SEGMENTS), What::Delay(latency));
    }

    fn wait_for_rows(&self, standby: &PgCluster) {
        self.recording.wait_for_rows(standby);
    }

    /// The spool's status, null when there is none.
    fn status(&self, standby: &PgCluster) -> serde_json::Value {
        status_of(&self.archive, standby).unwrap_or_default()
    }
}

/// The segments at the archive's end that are yet to come, so that a test has replay's work in its hand, however fast the
/// machine is.
struct Withheld<'a> {
    site: &'a Site,
    segments: VecDeque<(Bytes, String)>,
}

impl Withheld<'_> {
    /// Archives the next so many segments.
    fn release(&mut self, number: usize) {
        assert!(self.segments.len() >= number, "there is no more to replay");
        for (body, key) in self.segments.drain(..number) {
            self.site.server().put_object("b", &key, body);
        }
    }

    fn release_all(mut self) {
        self.release(self.segments.len());
    }
}

/// A segment's name by its key.
fn name(key: &str) -> &str {
    key.strip_prefix("p/wal_005/").unwrap().strip_suffix(".lzo").unwrap()
}

/// Keeps what a restore_command ended with, which PostgreSQL does not say.
struct Statuses(TempDir);

impl Statuses {
    fn new() -> Self {
        Self(temp_dir())
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("statuses")
    }

    fn recorded(&self, command: &str) -> String {
        format!("{command}; status=$?; echo %f $status >>{}; exit $status", self.file().display())
    }

    fn of(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.file()).unwrap_or_default();
        text.lines().filter_map(|line| line.strip_prefix(name)).map(|status| status.trim().to_owned()).collect()
    }
}

/// How many segments the server has replayed, or begun to.
fn restored_segments(standby: &PgCluster) -> usize {
    standby.log().matches("restored log file \"00000001").count()
}

fn wait_for_segments(standby: &PgCluster, number: usize) {
    let what = format!("{number} segments were restored");
    standby.wait_until(&what, LIMIT, || restored_segments(standby) >= number);
}

/// Waits for a prefetcher other than `other`, and until it has shown itself; the only one that runs then.
fn wait_for_prefetcher(standby: &PgCluster, other: Option<Pid>) -> Pid {
    let spool = spool(standby);
    wait_for_prefetcher_in(&spool, standby, other)
}

fn wait_for_prefetcher_in(spool: &Path, standby: &PgCluster, other: Option<Pid>) -> Pid {
    let mut found = None;
    standby.wait_until("a new prefetcher runs", LIMIT, || {
        found = match prefetchers(spool)[..] {
            [one] if Some(one) != other && spool.join("stamp").exists() => Some(one),
            _ => None,
        };
        found.is_some()
    });
    found.unwrap()
}

fn wait_for_its_end(pid: Pid) {
    wait_until("the prefetcher has ended", SOON, || !is_alive(pid));
}

/// A process that does nothing until this is dropped.
struct Stopped(Pid);

impl Stopped {
    fn new(pid: Pid) -> Self {
        kill_process(pid, Signal::STOP).unwrap();
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

/// All that may be left of a spool is what tells people how it went.
#[track_caller]
fn only_its_story_is_left(spool: &Path) {
    let names = fs::read_dir(spool).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    assert_eq!(names, ["lock", "log", "status.json"]);
}

// The prefetcher.

#[test]
fn a_prefetcher_killed_again_and_again_is_replaced_each_time() {
    for major in [15, 18] {
        let site = Site::new(major);
        site.slow_down(millis(150));
        let mut to_come = site.withhold_from(9);
        let standby = site.standby("-p 3");
        standby.start();
        let mut killed = Vec::new();
        while killed.len() < 5 {
            let pid = wait_for_prefetcher(&standby, killed.last().copied());
            sleep(millis(rand::rng().random_range(0..500)));
            kill_process(pid, Signal::KILL).unwrap();
            wait_for_its_end(pid);
            killed.push(pid);
            to_come.release(6);
        }
        wait_for_prefetcher(&standby, killed.last().copied());
        to_come.release_all();
        site.wait_for_rows(&standby);
        // one that was started as well waits some seconds for the lock before it gives way
        wait_until("one prefetcher is left", LIMIT, || prefetchers(&spool(&standby)).len() == 1);
    }
}

#[test]
fn what_a_killed_prefetcher_left_is_not_trusted() {
    let site = Site::new(15);
    site.slow_down(millis(100));
    let standby = site.standby("-p 8");
    standby.start();
    let spool = spool(&standby);
    let pid = wait_for_prefetcher(&standby, None);
    let whole = || segments_in(&spool).iter().filter(|name| name.len() == 24).count();
    standby.wait_until("segments wait in the spool", LIMIT, || whole() >= 4);
    // a stopped one does not clean up when its server ends; replay goes on taking segments from it, so that the server is
    // told to end at once, as an immediate stop would
    let stopped = Stopped::new(pid);
    kill_process(standby.pid().unwrap(), Signal::QUIT).unwrap();
    standby.wait_until("the server has ended", LIMIT, || !standby.is_running());
    kill_process(pid, Signal::KILL).unwrap();
    drop(stopped);
    wait_for_its_end(pid);
    let left = segments_in(&spool);
    assert!(left.len() >= 2, "{left:?}");
    for name in ["stamp", "lock"] {
        assert!(spool.join(name).exists(), "{name}");
    }
    // what a power loss leaves: the right size, a good first page, zeros after it
    let whole: Vec<&String> = left.iter().filter(|name| name.len() == 24).collect();
    let mut withheld = Vec::new();
    for name in &whole {
        let path = spool.join(name);
        let mut bytes = fs::read(&path).unwrap();
        bytes[8192..].fill(0);
        fs::write(&path, bytes).unwrap();
        let key = format!("p/wal_005/{name}.lzo");
        withheld.push((site.withhold(&key), key));
    }
    fs::write(spool.join(".000000010000000000000009.wal-eve.1"), "half").unwrap();
    let log_before = standby.log().len();
    site.server().clear_requests();
    standby.start_without_waiting();
    // the archive does not hold them now, so that nothing but the spool could give them
    let first = whole.iter().min().unwrap();
    standby
        .wait_until("replay needs the first of them", LIMIT, || site.server().count(Operation::GetObject, first) > 3);
    for name in &whole {
        let restored = format!("restored log file \"{name}\"");
        assert!(!standby.log()[log_before..].contains(&restored), "{}", standby.log());
    }
    for (body, key) in withheld {
        site.server().put_object("b", &key, body);
    }
    site.wait_for_rows(&standby);
    let other = wait_for_prefetcher(&standby, Some(pid));
    standby.stop(Mode::Fast);
    wait_for_its_end(other);
    only_its_story_is_left(&spool);
}

#[test]
fn a_prefetcher_that_hangs_does_not_hold_replay_up_for_long() {
    let site = Site::new(15);
    site.slow_down(millis(100));
    let to_come = site.withhold_from(20);
    let standby = site.standby("-p 4");
    standby.start();
    let pid = wait_for_prefetcher(&standby, None);
    wait_for_segments(&standby, 8);
    let begun = Instant::now();
    let stopped = Stopped::new(pid);
    to_come.release_all();
    site.wait_for_rows(&standby);
    let took = begun.elapsed();
    assert!(standby.log().contains("the prefetcher does not answer"), "{}", standby.log());
    assert!(took > Duration::from_secs(8), "nobody waited for the hanging prefetcher: {took:?}");
    assert!(took < Duration::from_secs(80), "every segment waited for the hanging prefetcher: {took:?}");
    // it finds that it was given up, and leaves the spool to the one that works there
    let other = prefetchers(&spool(&standby)).into_iter().find(|other| *other != pid).unwrap();
    drop(stopped);
    wait_for_its_end(pid);
    assert!(is_alive(other) && spool(&standby).join("stamp").exists());
}

#[test]
fn of_two_prefetchers_one_works_and_the_other_ends_with_status_0() {
    let site = Site::new(15);
    let to_come = site.withhold_from(30);
    let standby = site.standby("-p 4");
    standby.start();
    let spool = spool(&standby);
    wait_for_segments(&standby, 30);
    let first = wait_for_prefetcher(&standby, None);
    let words = |file: &str| -> Vec<String> {
        let text = fs::read_to_string(format!("/proc/{}/{file}", first.as_raw_nonzero())).unwrap();
        text.split_terminator('\0').map(str::to_owned).collect()
    };
    let (arguments, environment) = (words("cmdline"), words("environ"));
    let again = || {
        let mut command = Command::new(wal_eve_bin());
        command.args(&arguments[1..]).env_clear();
        command.envs(environment.iter().filter_map(|variable| variable.split_once('=')));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    // against one that works
    let mut late = again();
    assert_eq!(late.wait().unwrap().code(), Some(0));
    assert_eq!(prefetchers(&spool), [first]);
    // against each other
    kill_process(first, Signal::TERM).unwrap();
    wait_for_its_end(first);
    let mut racers = [again(), again()];
    let loser = {
        let begun = Instant::now();
        loop {
            if let Some(loser) = racers.iter_mut().position(|racer| racer.try_wait().unwrap().is_some()) {
                break loser;
            }
            assert!(begun.elapsed() < LIMIT, "both stay");
            sleep(millis(50));
        }
    };
    assert_eq!(racers[loser].wait().unwrap().code(), Some(0));
    let winner = Pid::from_child(&racers[1 - loser]);
    to_come.release_all();
    site.wait_for_rows(&standby);
    assert_eq!(prefetchers(&spool), [winner], "the other one works on");
    standby.wait_until("it shows what it did", LIMIT, || {
        let status = site.status(&standby);
        status["pid"] == winner.as_raw_nonzero().get() && status["hits"].as_u64().unwrap() > 2
    });
    standby.stop(Mode::Fast);
    assert_eq!(racers[1 - loser].wait().unwrap().code(), Some(0));
}

#[test]
fn two_standbys_share_a_place_on_another_filesystem() {
    let site = Site::new(15);
    site.slow_down(millis(50));
    let to_come = site.withhold_from(9);
    let place = tempfile::Builder::new().prefix("we-").tempdir_in("/dev/shm").unwrap();
    let command = format!("env WALE_PREFETCH_DIR={} {}", place.path().display(), site.command("-p 4"));
    let standbys = [(); 2].map(|()| site.standby_by(&command));
    assert_ne!(fs::metadata(place.path()).unwrap().dev(), fs::metadata(standbys[0].data_dir()).unwrap().dev());
    standbys.iter().for_each(PgCluster::start_without_waiting);
    standbys.iter().for_each(|standby| wait_for_segments(standby, 5));
    let spools: Vec<PathBuf> = fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(spools.len(), 2, "{spools:?}");
    let pids: Vec<Pid> = spools.iter().map(|spool| wait_for_prefetcher_in(spool, &standbys[0], None)).collect();
    to_come.release_all();
    for standby in &standbys {
        site.wait_for_rows(standby);
        assert!(!spool(standby).exists());
    }
    standbys.iter().for_each(|standby| standby.stop(Mode::Fast));
    pids.into_iter().for_each(wait_for_its_end);
    for spool in spools {
        only_its_story_is_left(&spool);
        let status: serde_json::Value = serde_json::from_slice(&fs::read(spool.join("status.json")).unwrap()).unwrap();
        assert!(status["hits"].as_u64().unwrap() > 20, "{status:#}");
    }
}

// The store.

#[test]
fn a_store_in_trouble_only_takes_longer() {
    let site = Site::new(15);
    site.slow_down(millis(50));
    let gets = || When::operation(Operation::GetObject).key(SEGMENTS);
    let damaged = site.segments()[35].clone();
    let faults = site.server().faults();
    let hit = [
        faults.add(gets().skip(5).times(8), What::slow_down()),
        faults.add(gets().skip(20).times(3), What::StallBody { after_bytes: 5000, pause: Duration::from_secs(2) }),
        faults.add(gets().skip(25).times(6), What::CutBody { after_bytes: 5000 }),
        faults.add(When::operation(Operation::GetObject).key(&damaged).once(), What::FlipByte { at: 9000 }),
    ];
    // longer than the prefetcher keeps its callers waiting; it begins by count, while there is more to fetch in any case
    let outage = faults.add(gets().skip(31), What::internal_error());
    let standby = site.standby("-p 6");
    standby.start();
    let pid = wait_for_prefetcher(&standby, None);
    standby.wait_until("the outage is in the log", LIMIT, || {
        let log = standby.log();
        let mut told = log.lines().filter(|line| line.contains("fetching without the prefetcher: "));
        faults.hits(outage) > 2 && told.any(|line| line.contains("InternalError"))
    });
    sleep(Duration::from_secs(1));
    faults.remove(outage);
    let hits = site.status(&standby)["hits"].as_u64().unwrap();
    site.wait_for_rows(&standby);
    for (fault, times) in hit.into_iter().zip([8, 3, 6, 1]) {
        assert_eq!(faults.hits(fault), times);
    }
    assert!(faults.hits(outage) > 2, "{} requests", faults.hits(outage));
    assert_eq!(prefetchers(&spool(&standby)), [pid], "it went through all of it");
    standby.wait_until("it shows that it was of use again", LIMIT, || {
        site.status(&standby)["hits"].as_u64().is_some_and(|now| now > hits + 5)
    });
    let log = fs::read_to_string(spool(&standby).join("log")).unwrap();
    for fragment in ["503 SlowDown", "500 InternalError", "fetching a damaged object once more"] {
        assert!(log.contains(fragment), "{fragment}\n{log}");
    }
}

#[test]
fn bodies_that_stall_for_ever_are_taken_up_again() {
    let site = Site::new(15);
    let key = site.segments()[15].clone();
    let stall = What::StallBody { after_bytes: 5000, pause: Duration::from_secs(300) };
    let fault = site.server().faults().add(When::operation(Operation::GetObject).key(&key).times(2), stall);
    let standby = site.standby("-p 6");
    standby.start();
    site.wait_for_rows(&standby);
    assert_eq!(site.server().faults().hits(fault), 2);
}

#[test]
fn a_damaged_segment_is_named_and_replay_goes_on_once_it_is_mended() {
    let site = Site::new(15);
    let key = site.segments()[15].clone();
    let good = site.server().object("b", &key).unwrap().body;
    site.server().mutate("b", &key, |body| body[9000] ^= 1);
    let standby = site.standby("-p 6");
    standby.start();
    standby.wait_until("it is named", LIMIT, || {
        standby.log().lines().any(|line| line.contains("ERROR:  ") && line.contains(&key))
    });
    // a prefetcher that began late hears of the segment at the next try only
    standby
        .wait_until("the prefetcher told of it", LIMIT, || standby.log().contains("fetching without the prefetcher: "));
    let stopped_at = restored_segments(&standby);
    assert!(stopped_at < 20, "{stopped_at} segments");
    site.server().put_object("b", &key, good);
    site.wait_for_rows(&standby);
}

/// How a prefetcher gets its environment.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Envdir {
    Ours,
    Daemontools,
}

fn write_envdir(directory: &Path, environment: &[(String, String)]) {
    for (name, value) in environment {
        fs::write(directory.join(name), format!("{value}\n")).unwrap();
    }
}

fn credentials_expire(envdir: Envdir) {
    const NEW_KEY: &str = "AKIAWALEVETEST000002";
    let site = Site::new(15);
    let server = site.server();
    site.slow_down(millis(200));
    let to_come = site.withhold_from(25);
    let directory = temp_dir();
    let mut environment = site.archive.environment();
    let old_key = environment.iter().find(|(name, _)| name == "AWS_ACCESS_KEY_ID").unwrap().1.clone();
    write_envdir(directory.path(), &environment);
    let (path, wal_eve) = (directory.path().display(), wal_eve_bin().display().to_string());
    let standby = site.standby_by(&match envdir {
        Envdir::Ours => format!("{wal_eve} --envdir {path} wal-fetch -p 4 %f %p"),
        Envdir::Daemontools => {
            assert!(
                Path::new("/usr/bin/envdir").exists(),
                "daemontools is missing: run tests/setup, which installs it"
            );
            format!("/usr/bin/envdir {path} {wal_eve} wal-fetch -p 4 %f %p")
        }
    });
    standby.start();
    let pid = wait_for_prefetcher(&standby, None);
    wait_for_segments(&standby, 12);
    server.expire(&old_key);
    let refused = || server.requests().iter().filter(|request| request.status == Some(400)).count();
    standby.wait_until("requests are refused", LIMIT, || refused() > 1);
    server.accept(Credentials::new(NEW_KEY, "another/secret"));
    for (name, value) in &mut environment {
        match name.as_str() {
            "AWS_ACCESS_KEY_ID" => NEW_KEY.clone_into(value),
            "AWS_SECRET_ACCESS_KEY" => "another/secret".clone_into(value),
            _ => {}
        }
    }
    write_envdir(directory.path(), &environment);
    to_come.release_all();
    let other = wait_for_prefetcher(&standby, Some(pid));
    site.wait_for_rows(&standby);
    assert!(!is_alive(pid));
    let variables = fs::read(format!("/proc/{}/environ", other.as_raw_nonzero())).unwrap();
    assert!(String::from_utf8_lossy(&variables).contains(NEW_KEY));
    let log = fs::read_to_string(spool(&standby).join("log")).unwrap();
    assert!(log.contains("the configuration has changed"), "{log}");
}

#[test]
fn credentials_that_expire_are_replaced_through_envdir_of_our_own() {
    credentials_expire(Envdir::Ours);
}

#[test]
fn credentials_that_expire_are_replaced_through_daemontools_envdir() {
    credentials_expire(Envdir::Daemontools);
}

// The spool.

#[test]
fn a_full_disk_under_the_spool_leaves_direct_fetching() {
    let site = Site::new(15);
    site.slow_down(millis(400));
    let disk = temp_dir();
    let command = format!("env WALE_PREFETCH_DIR={} {}", disk.path().display(), site.command("-p 3"));
    let standby = site.standby_by(&command);
    let script = format!("mount -t tmpfs -o size=20m,mode=700 small {} || exit 99; exec", disk.path().display());
    let _server = start_inside(&standby, &["unshare", "-Ucm", "--keep-caps", "sh", "-c"], &script);
    standby.wait_until("the server has written its pid", LIMIT, || standby.pid().is_some());
    let root = format!("/proc/{}/root{}", standby.pid().unwrap().as_raw_nonzero(), disk.path().display());
    let root = Path::new(&root);
    wait_for_segments(&standby, 8);
    let spool = fs::read_dir(root).unwrap().next().unwrap().unwrap().path();
    let status = || -> serde_json::Value {
        serde_json::from_slice(&fs::read(spool.join("status.json")).unwrap_or_default()).unwrap_or_default()
    };
    standby
        .wait_until("segments come from the spool", LIMIT, || status()["hits"].as_u64().is_some_and(|hits| hits > 1));
    let filler = root.join("filler");
    let full = fs::write(&filler, vec![1; 64 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    let (since, hits) = (restored_segments(&standby), status()["hits"].clone());
    assert!(since + 15 < site.segments().len(), "{since} segments");
    wait_for_segments(&standby, since + 12);
    assert!(standby.log().contains("No space left on device"), "{}", standby.log());
    eprintln!("{hits} then {:#}", status());
    fs::remove_file(&filler).unwrap();
    site.wait_for_rows(&standby);
}

/// A server that another program starts, such as `unshare`.
struct Inside(Child);

impl Drop for Inside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the server of `cluster` by the program and arguments in `wrapper`; after them comes the command line, as words, or
/// behind `script` as one.
fn start_inside(cluster: &PgCluster, wrapper: &[&str], script: &str) -> Inside {
    let log = fs::OpenOptions::new().create(true).append(true).open(cluster.root().join("log")).unwrap();
    let postgres = cluster.bin().program("postgres").display().to_string();
    let data = cluster.data_dir().display().to_string();
    let mut command = Command::new(wrapper[0]);
    command.args(&wrapper[1..]);
    match script {
        "" => command.args([&postgres, "-D", &data]),
        script => command.arg(format!("{script} {postgres} -D {data}")),
    };
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
    Inside(command.spawn().unwrap())
}

#[test]
fn a_deleted_spool_is_made_anew() {
    let site = Site::new(15);
    site.slow_down(millis(150));
    let mut to_come = site.withhold_from(9);
    let standby = site.standby("-p 2");
    standby.start();
    let place = standby.data_dir().join("pg_wal/.wal-e");
    let mut pid = wait_for_prefetcher(&standby, None);
    for _ in 0..4 {
        sleep(millis(rand::rng().random_range(0..700)));
        let _ = fs::remove_dir_all(&place);
        to_come.release(7);
        let deleted = pid;
        // the one before has noticed by then, and must not have cleaned up after itself here
        pid = wait_for_prefetcher(&standby, Some(deleted));
        wait_until("the one before has ended", LIMIT, || !is_alive(deleted));
        assert!(spool(&standby).join("stamp").exists());
    }
    to_come.release_all();
    site.wait_for_rows(&standby);
    assert_eq!(prefetchers(&spool(&standby)), [pid]);
    standby.wait_until("it shows what it did", LIMIT, || {
        site.status(&standby)["hits"].as_u64().is_some_and(|hits| hits > 2)
    });
}

// The server.

fn stopped_while_fetching(major: u32, stop: impl FnOnce(&PgCluster), pause: Duration) {
    let site = Site::new(major);
    let hang = What::StallBody { after_bytes: 1000, pause };
    let fault = site.server().faults().add(When::operation(Operation::GetObject).key(SEGMENTS).skip(8), hang);
    let standby = site.standby("-p 6");
    standby.start();
    let spool = spool(&standby);
    let pid = wait_for_prefetcher(&standby, None);
    // what is shown is a second old: by now replay may be between two segments
    standby.wait_until("replay waits for a segment", LIMIT, || {
        site.status(&standby)["state"] == "fetching a segment that replay waits for"
            && !restore_commands(&standby).is_empty()
    });
    stop(&standby);
    wait_for_its_end(pid);
    wait_until("no process is left", SOON, || restore_commands(&standby).is_empty() && prefetchers(&spool).is_empty());
    only_its_story_is_left(&spool);
    assert!(site.status(&standby)["state"].as_str().unwrap().contains("the server has ended its recovery"));
    assert!(site.server().faults().hits(fault) > 1);
    site.server().faults().clear();
    standby.start();
    site.wait_for_rows(&standby);
}

fn stop_quickly(standby: &PgCluster, mode: Mode) {
    let begun = Instant::now();
    standby.stop(mode);
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
}

#[test]
fn a_fast_stop_takes_the_prefetcher_with_it() {
    stopped_while_fetching(15, |standby| stop_quickly(standby, Mode::Fast), Duration::from_secs(300));
}

#[test]
fn an_immediate_stop_takes_the_prefetcher_with_it() {
    stopped_while_fetching(18, |standby| stop_quickly(standby, Mode::Immediate), Duration::from_secs(300));
}

#[test]
fn a_crash_of_the_server_takes_the_prefetcher_with_it() {
    // the startup process notices when its command has ended
    stopped_while_fetching(15, PgCluster::kill9, Duration::from_secs(3));
}

#[test]
fn promotion_ends_prefetching() {
    for major in [11, 15] {
        let site = Site::new(major);
        site.slow_down(millis(100));
        let to_come = site.withhold_from(20);
        let standby = site.standby("-p 4");
        standby.start();
        let pid = wait_for_prefetcher(&standby, None);
        wait_for_segments(&standby, 10);
        to_come.release_all();
        // one that has just been told of the archive's end would not look again
        wait_for_segments(&standby, 25);
        // PostgreSQL replays all that the archive has first
        standby.promote();
        wait_for_its_end(pid);
        wait_until("no other one runs", SOON, || prefetchers(&spool(&standby)).is_empty());
        only_its_story_is_left(&spool(&standby));
        assert_eq!(standby.psql(ROWS), site.recording.rows);
        standby.psql("insert into t values (0, 'promoted')");
        assert_eq!(standby.psql("select text from t where n = 0"), "promoted");
    }
}

#[test]
fn a_timeline_switch_in_the_middle_is_followed() {
    let source = Source::new(15);
    source.write(12);
    let mut second = source.standby();
    second.configure("archive_mode = on");
    second.configure(&source.archive.archive_command(Program::WalEve));
    second.start();
    source.wait_for_rows(&second);
    source.primary.stop(Mode::Fast);
    second.promote();
    second.psql("insert into t select n, repeat(md5(n::text), 29) from generate_series(100000, 112000) n");
    let last = second.switch_wal();
    assert!(last.starts_with("00000002"), "{last}");
    source.archive.wait_for_wal(&second, &last);
    let rows = second.psql(ROWS);

    source.server().clear_requests();
    let fresh = source.standby();
    fresh.start();
    fresh.wait_until("the standby has the second primary's rows", LIMIT, || {
        fresh.try_psql("select count(*) from switched").stdout_text().trim()
            == second.psql("select count(*) from switched")
    });
    assert_eq!(fresh.psql(ROWS), rows);
    assert_eq!(fresh.psql("select pg_is_in_recovery()"), "t");
    // the prefetcher shows itself once a second
    fresh.wait_until("most segments came from the spool, on both sides of the switch", LIMIT, || {
        let status = status(&source, &fresh);
        status["position"].as_str().unwrap().starts_with("00000002") && status["hits"].as_u64().unwrap() > 10
    });
    let log = fresh.log();
    assert!(
        log.contains("restored log file \"000000010000") && log.contains("restored log file \"000000020000"),
        "{log}"
    );
}

#[test]
fn a_standby_waits_for_a_segment_missing_from_the_middle() {
    let site = Site::new(15);
    let key = site.segments()[15].clone();
    let body = site.withhold(&key);
    let standby = site.standby("-p 6");
    standby.start();
    let name = name(&key);
    standby.wait_until("replay waits for it", LIMIT, || {
        let status = site.status(&standby);
        status["position"] == name && status["state"] == "waiting at the archive's end"
    });
    site.server().clear_requests();
    wait_until("it is asked for again and again", LIMIT, || site.server().count(Operation::GetObject, &key) > 1);
    let stopped_at = restored_segments(&standby);
    sleep(millis(1500));
    assert_eq!(restored_segments(&standby), stopped_at);
    site.server().put_object("b", &key, body);
    site.wait_for_rows(&standby);
}

#[test]
fn recovery_outside_standby_mode_stops_at_a_missing_segment_unless_told_otherwise() {
    let site = Site::new(15);
    let segments = site.segments();
    site.withhold(&segments[15]);
    let statuses = Statuses::new();
    let mut cluster = site.restored_by(&statuses.recorded(&site.command("-p 6")));
    cluster.set_recovery();
    cluster.start_without_waiting();
    cluster.wait_until("recovery has stopped", LIMIT, || !cluster.is_running());
    let log = cluster.log();
    assert!(
        log.contains(&format!(
            "segment {} is missing from the archive, although {} is there",
            name(&segments[15]),
            name(&segments[16])
        )),
        "{log}"
    );
    assert!(log.contains("FATAL:  could not restore file"), "{log}");
    assert!(!log.contains("ready to accept connections") && !log.contains("selected new timeline"), "{log}");
    assert_eq!(statuses.of(name(&segments[15])), ["250"]);
    wait_until("no prefetcher is left", SOON, || prefetchers(&spool(&cluster)).is_empty());

    cluster.configure(&format!("restore_command = '{}'", site.command("-p 6 --on-outage retry")));
    cluster.start();
    cluster.wait_until_sql("select not pg_is_in_recovery()", LIMIT);
    let rows: u64 = cluster.psql("select count(*) from t").parse().unwrap();
    assert!(rows > 0 && rows < site.recording.rows.split('|').next().unwrap().parse().unwrap(), "{rows}");
}

#[test]
fn an_outage_is_75_in_standby_mode_and_250_outside_also_when_a_prefetcher_told_of_it() {
    for (is_standby, expected) in [(true, "75"), (false, "250")] {
        let site = Site::new(15);
        // the prefetcher, which the first segment starts, has to be there before the outage
        site.slow_down(millis(200));
        let outage = site
            .server()
            .faults()
            .add(When::operation(Operation::GetObject).key(SEGMENTS).skip(15), What::internal_error());
        let statuses = Statuses::new();
        let mut cluster = site.restored_by(&statuses.recorded(&site.command("-p 3 --patience 1")));
        if is_standby {
            cluster.set_standby();
        } else {
            cluster.set_recovery();
        }
        cluster.start_without_waiting();
        let failed = || fs::read_to_string(statuses.file()).unwrap_or_default().contains(&format!(" {expected}\n"));
        cluster.wait_until("the outage has been told", LIMIT, failed);
        assert!(site.server().faults().hits(outage) > 3);
        let log = cluster.log();
        assert!(log.contains("fetching without the prefetcher: ") && log.contains("500 InternalError"), "{log}");
        if !is_standby {
            cluster.wait_until("recovery has stopped", LIMIT, || !cluster.is_running());
            assert!(!cluster.log().contains("selected new timeline"), "{}", cluster.log());
        }
        let at = restored_segments(&cluster);
        assert!(at > 5 && at < 20, "{at} segments");
        site.server().faults().clear();
        if is_standby {
            site.wait_for_rows(&cluster);
            assert_eq!(cluster.psql("select pg_is_in_recovery()"), "t");
        } else {
            cluster.start();
            cluster.wait_until_sql("select not pg_is_in_recovery()", LIMIT);
            assert_eq!(cluster.psql(ROWS), site.recording.rows);
        }
    }
}

#[test]
fn a_call_as_pg_rewind_makes_it_starts_nothing() {
    let site = Site::new(15);
    let segments = site.segments();
    // a server has to run there, or nothing would be prefetched in any case
    let mut cluster = site.restored_by("false");
    cluster.set_standby();
    cluster.start_without_waiting();
    let fetch = |key: &str, destination: &str| {
        let wal_eve = site.archive.wal_eve().current_dir(cluster.data_dir());
        wal_eve.run(["wal-fetch", name(key), destination]).assert_success();
    };
    let spool = spool(&cluster);
    fetch(&segments[9], &format!("pg_wal/{}", name(&segments[9])));
    fetch(&segments[8], &format!("pg_wal/{}", name(&segments[8])));
    sleep(millis(500));
    assert!(!cluster.data_dir().join("pg_wal/.wal-e").exists());
    assert_eq!(prefetchers(&spool), []);
    fetch(&segments[9], "pg_wal/RECOVERYXLOG");
    wait_until("the same for replay starts a prefetcher", LIMIT, || !prefetchers(&spool).is_empty());
    let pid = prefetchers(&spool)[0];
    cluster.stop(Mode::Immediate);
    wait_for_its_end(pid);
}

// Containers.

/// Where postgres is process 1 it adopts the prefetcher, and restarts everything if that does not end in order.
#[test]
fn a_server_that_is_process_1_survives_its_prefetcher() {
    const RESTART: &str = "terminating any other active server processes";
    let site = Site::new(15);
    site.slow_down(millis(200));
    let directory = temp_dir();
    write_envdir(directory.path(), &site.archive.environment());
    let (path, wal_eve) = (directory.path().display(), wal_eve_bin().display().to_string());
    let mut to_come = site.withhold_from(9);
    let mut standby = site.standby_by(&format!("{wal_eve} --envdir {path} wal-fetch -p 2 %f %p"));
    standby.configure("log_min_messages = debug1");
    let _server = start_inside(&standby, &["unshare", "-Ucpf", "--mount-proc", "--kill-child"], "");
    let told = wait_for_prefetcher(&standby, None);
    wait_for_segments(&standby, 3);
    // the prefetcher leaves it to the next call to say so
    standby.wait_until("the hint is in the log", LIMIT, || standby.log().contains("docker run --init"));
    kill_process(told, Signal::TERM).unwrap();
    wait_for_its_end(told);
    to_come.release(10);
    let retired = wait_for_prefetcher(&standby, Some(told));
    // any variable of ours counts
    fs::write(directory.path().join("WALE_S3_STORAGE_CLASS"), "STANDARD").unwrap();
    to_come.release(10);
    let last = wait_for_prefetcher(&standby, Some(retired));
    wait_for_its_end(retired);
    standby.wait_until("it accepts connections", LIMIT, || standby.try_psql("select 1").code() == Some(0));
    let started = standby.psql("select pg_postmaster_start_time()");
    to_come.release_all();
    site.wait_for_rows(&standby);
    assert!(!standby.log().contains(RESTART), "{}", standby.log());
    assert_eq!(standby.psql("select pg_postmaster_start_time()"), started);
    // and this is what the hint is about
    kill_process(last, Signal::KILL).unwrap();
    standby.wait_until("the server restarts", LIMIT, || standby.log().contains(RESTART));
    standby.wait_until("it is back", LIMIT, || standby.try_psql("select 1").code() == Some(0));
    site.wait_for_rows(&standby);
}
