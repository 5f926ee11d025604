//! A file larger than WAL-E's partitions may be, such as a server log that nobody rotates, is archived and restored.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

mod support;

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use support::{Archive, PgCluster, Program, Running};

const LIMIT: Duration = Duration::from_secs(180);

/// A little more than the 1 610 612 736 bytes at which WAL-E gives up.
const SIZE: u64 = 1_700_000_001;

/// Where the file, sparse otherwise, has something.
const MARKS: [u64; 4] = [0, 900_000_000, 1_610_612_736, SIZE - 4];
const MARK: &[u8; 4] = b"mark";

const NAME: &str = "log/postgresql.log";

fn make(path: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let file = File::create(path).unwrap();
    file.set_len(SIZE).unwrap();
    for at in MARKS {
        file.write_all_at(MARK, at).unwrap();
    }
}

/// That the file is as it was made, byte for byte.
fn check(path: &Path) {
    let mut file = File::open(path).unwrap();
    let (mut at, mut buffer, zeros) = (0, vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let length = file.read(&mut buffer).unwrap();
        if length == 0 {
            break;
        }
        for (index, byte) in MARKS.iter().flat_map(|mark| (*mark..).zip(MARK)) {
            if (at..at + length as u64).contains(&index) {
                let index = usize::try_from(index - at).unwrap();
                assert_eq!(buffer[index], *byte);
                buffer[index] = 0;
            }
        }
        assert!(buffer[..length] == zeros[..length], "between {at} and {}", at + length as u64);
        at += length as u64;
    }
    assert_eq!(at, SIZE);
}

/// Waits for the end of a program; the most memory that it has had, in KiB, and what it said.
fn watch(mut running: Running) -> (u64, String) {
    let mut peak = 0;
    while running.is_running() {
        let status = fs::read_to_string(format!("/proc/{}/status", running.pid())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0");
        peak = peak.max(line.trim().trim_end_matches(" kB").parse().unwrap());
        std::thread::sleep(Duration::from_millis(20));
    }
    (peak, running.wait().assert_success().stderr_text())
}

#[test]
fn a_file_above_one_and_a_half_gibibytes_is_a_partition_by_itself_that_wal_e_restores_too() {
    let archive = Archive::file();
    let options = PgCluster::options().configure("archive_mode = on");
    let source = options.configure(archive.archive_command(Program::WalEve)).init(15);
    source.start();
    make(&source.data_dir().join(NAME));

    let push = ["backup-push", source.data_dir().to_str().unwrap(), "--fast"];
    let (peak, told) = watch(archive.wal_eve_with(&source).timeout(LIMIT).spawn(push));
    assert!((1..200 << 10).contains(&peak), "{peak} KiB");
    assert!(told.contains(&format!("members=1 bytes={SIZE}")), "{told}");
    let partitions = archive.keys_ending(".tar.lzo");
    // what the walk finds before the file and after it, and what the backup's end gives
    assert!((3..=4).contains(&partitions.len()), "{partitions:?}");
    drop(source);

    let copy = PgCluster::without_data(15);
    let fetch = ["backup-fetch", copy.data_dir().to_str().unwrap(), "LATEST"];
    let (peak, _) = watch(archive.wal_eve().timeout(LIMIT).spawn(fetch));
    assert!((1..200 << 10).contains(&peak), "{peak} KiB");
    check(&copy.data_dir().join(NAME));
    drop(copy);

    let by_wal_e = PgCluster::without_data(15);
    let fetch = ["backup-fetch", by_wal_e.data_dir().to_str().unwrap(), "LATEST"];
    archive.wal_e().timeout(LIMIT).run(fetch).assert_success();
    check(&by_wal_e.data_dir().join(NAME));
}
