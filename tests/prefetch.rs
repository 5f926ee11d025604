//! The prefetcher with real standbys: what it saves, what it costs, and that nothing of it survives its server.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

mod support;

use std::fs;
use std::time::Duration;

use support::Mode;
use support::postgres::{is_alive, wait_until};
use support::replica::{Source, prefetcher, segments_in, spool, status};
use support::s3::Operation;

fn replay(major: u32) {
    let source = Source::new(major);
    source.write(60);
    let standby = source.standby();
    source.server().clear_requests();
    standby.start();
    source.wait_for_rows(&standby);
    let segments = source.server().keys("b", "p/wal_005/").len();
    let gets = source.server().count(Operation::GetObject, "wal_005/000000010000");
    let status = status(&source, &standby);
    eprintln!(
        "{gets} GETs, {segments} segments, {status:#}\n{}",
        fs::read_to_string(spool(&standby).join("log")).unwrap()
    );
    let pid = prefetcher(&source, &standby);
    assert!(is_alive(pid));
    standby.stop(Mode::Fast);
    wait_until("the prefetcher has ended", Duration::from_secs(5), || !is_alive(pid));
    assert_eq!(segments_in(&spool(&standby)), Vec::<String>::new());
}

#[test]
fn a_standby_replays_from_the_spool_and_takes_the_prefetcher_with_it() {
    replay(17);
}
