//! What a backup may cost the server: as much reading as it is allowed, and a checkpoint as hurried as it is asked for.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

mod support;

use std::fs;
use std::time::Duration;

use support::{Archive, Mode, PgCluster, Program};

const LIMIT: Duration = Duration::from_secs(180);

#[test]
fn all_partitions_together_read_no_faster_than_the_limit() {
    let archive = Archive::file();
    let source = PgCluster::init(15);
    source.start();
    source.stop(Mode::Fast);
    // three partitions of 6144 members at most, which are read at once
    let many = source.data_dir().join("many");
    fs::create_dir(&many).unwrap();
    for number in 0..13_000 {
        fs::write(many.join(number.to_string()), [b'x'; 2000]).unwrap();
    }
    let limit = 12_000_000;
    let push = ["backup-push", "--while-offline", "--pool-size", "4", "--cluster-read-rate-limit", &limit.to_string()]
        .map(str::to_owned)
        .into_iter()
        .chain([source.data_dir().display().to_string()]);
    let took = archive.wal_eve().timeout(LIMIT).run(push).assert_success().elapsed;
    assert!(archive.keys_ending(".tar.lzo").len() > 3);
    let sentinel = archive.keys_ending("_backup_stop_sentinel.json").remove(0);
    let sentinel: serde_json::Value = serde_json::from_slice(&archive.read(&sentinel)).unwrap();
    let bytes = sentinel["expanded_size_bytes"].as_u64().unwrap();
    assert!(bytes > 3 * limit, "{bytes} bytes are enough to tell");
    assert!(took.as_secs_f64() >= 0.8 * bytes as f64 / limit as f64, "{bytes} bytes took {took:?}");
}

#[test]
fn the_checkpoint_is_spread_unless_a_fast_one_is_asked_for() {
    for major in [10, 15, 18] {
        let archive = Archive::file();
        let options = PgCluster::options().configure("archive_mode = on").configure("log_checkpoints = on");
        // spread over no time, so that the test does not wait for what it only has to see asked for
        let options = options.configure("checkpoint_completion_target = 0.0");
        let source = options.configure(archive.archive_command(Program::WalEve)).init(major);
        source.start();
        for (more, expected) in [(None, "force wait"), (Some("--fast"), "immediate force wait")] {
            let before = source.log().len();
            let push = ["backup-push", source.data_dir().to_str().unwrap()];
            archive.wal_eve_with(&source).timeout(LIMIT).run(push.into_iter().chain(more)).assert_success();
            let log = source.log().split_off(before);
            let started: Vec<_> = log.lines().filter_map(|line| line.split_once("checkpoint starting: ")).collect();
            let words: Vec<_> = started.iter().map(|(_, words)| *words).collect();
            assert_eq!(words, [expected], "PostgreSQL {major}, {more:?}");
        }
    }
}
