//! The prefetcher with real standbys: what it saves, what it costs, and that nothing of it survives its server.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use support::postgres::{is_alive, wait_until};
use support::replica::{LIMIT, Source, prefetcher, segments_in, spool, status, wait_for_listener};
use support::s3::Operation;
use support::{Mode, PgCluster, Program, Tool};

/// In KiB, while the process lives.
fn peak_of_memory(pid: rustix::process::Pid) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// How often each segment was asked for.
fn gets(source: &Source) -> BTreeMap<String, usize> {
    let mut gets = BTreeMap::new();
    for request in source.server().requests() {
        if request.operation == Operation::GetObject && !request.key.ends_with(".history.lzo") {
            *gets.entry(request.key).or_default() += 1;
        }
    }
    gets
}

/// Waits until the prefetcher shows so many hits, and says how many hits and misses it has had.
fn wait_for_hits(source: &Source, standby: &PgCluster, hits: u64) -> (u64, u64) {
    let shown = || {
        let status = status(source, standby);
        assert_eq!(status["running"], true);
        (status["hits"].as_u64().unwrap(), status["misses"].as_u64().unwrap())
    };
    wait_until("replay was given its segments from the spool", LIMIT, || shown().0 >= hits);
    shown()
}

fn replay(major: u32) {
    let source = Source::new(major);
    source.write(60);
    let keys = source.server().keys("b", "p/wal_005/");
    source.server().clear_requests();
    let standby = source.standby();
    wait_for_listener(&standby);
    standby.start();
    source.wait_for_rows(&standby);
    let pid = prefetcher(&source, &standby);
    let (hits, misses) = wait_for_hits(&source, &standby, 50);
    assert!(misses <= 2, "{hits} hits, {misses} misses");
    assert!(is_alive(pid));
    assert!(peak_of_memory(pid) < 200 << 10, "{} KiB", peak_of_memory(pid));

    let gets = gets(&source);
    let twice: Vec<_> = gets.iter().filter(|(key, count)| keys.contains(key) && **count > 1).collect();
    // backup-fetch looked at the first page of the first one
    assert!(gets.len() > 60 && twice.len() <= 1, "one request a segment, but {twice:?}\n{}", standby.log());

    standby.stop(Mode::Fast);
    wait_until("the prefetcher has ended", Duration::from_secs(20), || !is_alive(pid));
    assert_eq!(segments_in(&spool(&standby)), Vec::<String>::new());
}

#[test]
fn a_standby_of_11_replays_from_the_spool() {
    replay(11);
}

#[test]
fn a_standby_of_17_replays_from_the_spool() {
    replay(17);
}

#[test]
fn a_standby_of_18_replays_from_the_spool() {
    replay(18);
}

#[test]
fn the_first_segments_wait_when_a_restored_server_starts() {
    let source = Source::new(15);
    source.write(20);
    source.server().clear_requests();
    let standby = source.standby();
    wait_until("the prefetcher has come to the archive's end", LIMIT, || {
        fs::read(spool(&standby).join("status.json")).is_ok()
            && status(&source, &standby)["state"] == "waiting for replay"
    });
    let waiting = segments_in(&spool(&standby));
    assert!(!waiting.is_empty());
    let first = waiting.iter().min().unwrap().clone();
    let pid = prefetcher(&source, &standby);
    standby.start();
    source.wait_for_rows(&standby);
    assert_eq!(prefetcher(&source, &standby), pid, "the same one serves the server");
    assert_eq!(
        gets(&source)[&format!("p/wal_005/{first}.lzo")],
        2,
        "backup-fetch looked at its first page, the prefetcher fetched it"
    );
    standby.stop(Mode::Immediate);
    wait_until("the prefetcher has ended", Duration::from_secs(20), || !is_alive(pid));
}

#[test]
fn a_restore_without_prefetching_starts_no_process() {
    let source = Source::new(15);
    let target = PgCluster::without_data(15);
    let data = target.data_dir().to_str().unwrap();
    source.archive.wal_eve().timeout(LIMIT).run(["backup-fetch", data, "LATEST", "--no-prefetch"]).assert_success();
    assert!(!spool(&target).exists());
}

#[test]
fn segments_of_64_mib_are_replayed_from_the_spool() {
    let source = Source::with_segments_of(64, 17);
    for _ in 0..3 {
        source.write(1);
    }
    let standby = source.standby();
    wait_for_listener(&standby);
    standby.start();
    source.wait_for_rows(&standby);
    wait_for_hits(&source, &standby, 3);
}

#[test]
fn each_minute_of_catching_up_is_summed_up_in_the_servers_log() {
    let source = Source::new(15);
    source.write(20);
    let standby = source.standby();
    standby.start();
    let said = || standby.log().contains("segments in the last minute (");
    // replay goes on for more than a minute, since there is always a little more
    standby.wait_until("a minute was summed up", LIMIT, || {
        source.write(1);
        said()
    });
    let log = standby.log();
    let line = log.lines().find(|line| line.contains("in the last minute (")).unwrap();
    assert!(line.contains("replay took ") && line.contains("MB/s) and needs 0000000100000000"), "{line}");
}

#[test]
fn a_gap_is_named_in_the_log_of_a_standby_that_waits_for_it() {
    let source = Source::new(15);
    source.write(10);
    let keys = source.server().keys("b", "p/wal_005/");
    let gap = keys.iter().filter(|key| key.ends_with(".lzo") && !key.contains(".backup")).nth_back(3).unwrap();
    let lost = source.server().object("b", gap).unwrap().body;
    source.server().delete("b", gap);
    let standby = source.standby();
    standby.start();
    let name = gap.strip_prefix("p/wal_005/").unwrap().strip_suffix(".lzo").unwrap();
    let line = format!("segment {name} is missing from the archive, although ");
    standby.wait_until("the gap is named", LIMIT * 2, || standby.log().contains(&line));
    assert_eq!(standby.psql("select pg_is_in_recovery()"), "t");
    source.server().put_object("b", gap, lost.to_vec());
    source.wait_for_rows(&standby);
}

#[test]
fn segments_of_1_gib_are_replayed() {
    let source = Source::with_segments_of(1024, 15);
    source.write(1);
    source.write(1);
    let standby = source.standby();
    standby.start();
    source.wait_for_rows(&standby);
    standby.stop(Mode::Fast);
}

/// A primary that went its own way after another was promoted, and is stopped now; and that other one.
fn parted() -> (Source, PgCluster) {
    let mut source = Source::new(15);
    source.primary.configure("wal_log_hints = on");
    source.primary.configure("wal_keep_size = 0");
    source.primary.configure(&source.archive.restore_command(Program::WalEve));
    source.primary.stop(Mode::Fast);
    source.primary.start();
    source.write(2);
    let mut promoted = source.standby();
    promoted.configure("archive_mode = on");
    promoted.configure(&source.archive.archive_command(Program::WalEve));
    promoted.start();
    source.wait_for_rows(&promoted);
    promoted.promote();
    promoted.psql("insert into t values (-1, 'on the new primary'); checkpoint");
    // the old primary goes its own way, until its log holds nothing from before they parted
    source.write(8);
    source.primary.psql("checkpoint");
    source.write(2);
    source.primary.psql("checkpoint");
    source.primary.stop(Mode::Fast);
    (source, promoted)
}

fn pg_rewind(target: &PgCluster, source: &PgCluster) {
    let rewind = Tool::new(target.bin().program("pg_rewind"), [("PGUSER", "postgres")]).timeout(LIMIT);
    let server = format!("host={} port=5432 dbname=postgres", source.socket_dir().display());
    let target = format!("--target-pgdata={}", target.data_dir().display());
    rewind.run([&target, "-c", "--source-server", &server]).assert_success();
}

#[test]
fn pg_rewind_gets_its_segments_and_starts_no_prefetcher() {
    let (source, promoted) = parted();
    source.server().clear_requests();
    pg_rewind(&source.primary, &promoted);
    assert!(source.server().count(Operation::GetObject, "wal_005/") > 0, "it was to need the archive");
    // the directory itself has come along from the new primary's pg_wal
    let own_spool = spool(&source.primary);
    assert!(!own_spool.exists() || segments_in(&own_spool).is_empty());
    let prefetches_here = |process: fs::DirEntry| {
        let arguments = fs::read(process.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&arguments).contains(own_spool.to_str().unwrap())
    };
    assert!(!fs::read_dir("/proc").unwrap().flatten().any(prefetches_here));
}

/// Waits for a row that the new primary has written.
fn wait_for_row(standby: &PgCluster, number: i32) {
    standby.wait_until_sql(&format!("select count(*) = 1 from t where n = {number}"), LIMIT);
}

#[test]
fn pg_rewind_minds_a_prefetcher_on_neither_side() {
    let (mut source, promoted) = parted();
    // the rewind's source is a standby whose prefetcher runs
    let archived = promoted.switch_wal();
    source.archive.wait_for_wal(&promoted, &archived);
    let standby = source.standby();
    standby.start();
    wait_for_row(&standby, -1);
    standby.psql("checkpoint");
    standby.wait_until("its prefetcher runs", LIMIT, || {
        spool(&standby).join("stamp").exists() && status(&source, &standby)["running"] == true
    });
    let pid = prefetcher(&source, &standby);

    // and its target one where a prefetcher was killed
    let target_spool = spool(&source.primary);
    let place = target_spool.display().to_string();
    let system_identifier = promoted.psql("select system_identifier from pg_control_system()");
    let arguments = ["prefetch", "--spool", &place, "--position", &archived, "--segment-size", "1048576"];
    let more = ["--system-identifier", &system_identifier, "--first-ask-seconds", "600", "--max-bytes", "1073741824"];
    let mut killed = source.archive.wal_eve().spawn(arguments.iter().chain(&more));
    let segment = target_spool.join(&archived);
    wait_until("it has fetched a segment", LIMIT, || segment.exists());
    killed.kill9();
    assert_eq!(killed.wait().signal(), Some(9));
    assert!(segment.exists() && target_spool.join("stamp").exists());

    pg_rewind(&source.primary, &standby);
    assert!(!segment.exists() && is_alive(pid));
    // the source's spool has come along, and leads to nobody's prefetcher here
    assert!(target_spool.join("stamp").exists());
    source.primary.configure_connections();
    source.primary.start();
    wait_for_row(&source.primary, -1);
    source.primary.wait_until("it has a prefetcher of its own", LIMIT, || {
        promoted.switch_wal();
        let own = status(&source, &source.primary);
        own["pid"] != pid.as_raw_nonzero().get() && own["hits"].as_u64().unwrap() + own["misses"].as_u64().unwrap() > 0
    });
    assert!(is_alive(pid));
}
