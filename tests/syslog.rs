//! Where `WALE_LOG_DESTINATION` names syslog, what a command has to say goes there, and nothing that syslog does or lacks
//! changes what the command does.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

mod support;

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

use support::{Archive, PgCluster, Program, WalEve, temp_dir};

/// A daemon that keeps what it receives.
struct Daemon {
    place: tempfile::TempDir,
    socket: UnixDatagram,
}

impl Daemon {
    fn start() -> Self {
        let place = temp_dir();
        let socket = UnixDatagram::bind(place.path().join("log")).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self { place, socket }
    }

    fn path(&self) -> PathBuf {
        self.place.path().join("log")
    }

    fn received(&self) -> Vec<String> {
        let mut buffer = vec![0; 1 << 16];
        std::iter::from_fn(|| self.socket.recv(&mut buffer).ok().map(|length| buffer[..length].to_vec()))
            .map(|bytes| String::from_utf8(bytes).unwrap())
            .collect()
    }

    fn hears(&self, wal_eve: WalEve, destination: &str) -> WalEve {
        wal_eve.env("WALE_LOG_DESTINATION", destination).env("WAL_EVE_SYSLOG_SOCKET", self.path())
    }
}

/// The message of a datagram, and whether it has this priority.
fn message(datagram: &str, priority: u8) -> &str {
    let rest = datagram.strip_prefix(&format!("<{priority}>wal-eve[")).unwrap_or_else(|| panic!("{datagram}"));
    rest.split_once("]: ").unwrap().1
}

#[test]
fn events_and_the_error_at_the_end_go_where_the_destination_says() {
    let daemon = Daemon::start();
    let archive = Archive::file();
    let cluster = PgCluster::init(15);
    let push = ["backup-push", "--while-offline", cluster.data_dir().to_str().unwrap()];

    let told = daemon.hears(archive.wal_eve(), "stderr,syslog").run(push).assert_success().stderr_text();
    let events = daemon.received();
    let done = events.iter().find(|event| event.contains("partition archived")).unwrap();
    assert!(message(done, 8 + 6).contains("members="), "{done}");
    assert!(told.contains("partition archived"), "{told}");

    // the same backup again: refused, by an error with detail and hint
    let again = daemon.hears(archive.wal_eve(), "syslog").env("WALE_SYSLOG_FACILITY", "Local3");
    let told = again.run(push).assert_code(1).stderr_text();
    let events = daemon.received();
    for word in ["ERROR: ", "DETAIL: ", "HINT: "] {
        let event = events.iter().find(|event| event.contains(&format!("]: {word}"))).unwrap();
        message(event, 19 * 8 + 3);
        assert!(told.contains(&format!("wal-eve: {word}")), "errors are on stderr in any case: {told}");
    }
    assert!(!told.contains("INFO"), "{told}");

    // nobody asked for it
    for destination in ["stderr", "stderr, syslog", "SYSLOG"] {
        daemon.hears(archive.wal_eve(), destination).run(push).assert_code(1);
        assert_eq!(daemon.received(), [""; 0], "{destination}");
    }
    archive.wal_eve().env("WAL_EVE_SYSLOG_SOCKET", daemon.path()).run(push).assert_code(1);
    assert_eq!(daemon.received(), [""; 0], "not by default");

    let odd = daemon.hears(archive.wal_eve(), "syslog").env("WALE_SYSLOG_FACILITY", "nonsense");
    let told = odd.run(push).assert_code(1).stderr_text();
    assert!(told.contains("WALE_SYSLOG_FACILITY is \"nonsense\""), "{told}");
    assert!(daemon.received().iter().any(|event| event.starts_with("<11>")), "as the facility user");
}

#[test]
fn a_syslog_that_is_absent_or_full_changes_nothing() {
    let daemon = Daemon::start();
    let archive = Archive::file();
    let nothing = ["wal-fetch", "000000010000000000000001", "x"];
    archive.write("wal_005/000000010000000000000002.lzo", "damaged");
    let damaged = ["wal-fetch", "000000010000000000000002", "x"];
    let directory = temp_dir();
    let run = |wal_eve: WalEve, arguments: [&str; 3]| {
        let wal_eve = wal_eve.current_dir(directory.path()).timeout(Duration::from_secs(20));
        wal_eve.run(arguments)
    };
    let full = UnixDatagram::unbound().unwrap();
    full.connect(daemon.path()).unwrap();
    full.set_nonblocking(true).unwrap();
    while full.send(b"x").is_ok() {}
    // the log's lines begin with the time
    let said = |wal_eve: WalEve| {
        let text = run(wal_eve, damaged).assert_code(250).stderr_text();
        text.lines().map(|line| line.split_once(" UTC ").map_or(line, |(_, rest)| rest).to_owned()).collect::<Vec<_>>()
    };
    let expected = said(archive.wal_eve());
    for socket in [daemon.path(), directory.path().join("absent"), directory.path().to_owned()] {
        let wal_eve = archive.wal_eve().env("WALE_LOG_DESTINATION", "stderr,syslog");
        let wal_eve = wal_eve.env("WAL_EVE_SYSLOG_SOCKET", socket);
        assert_eq!(said(wal_eve.clone()), expected);
        run(wal_eve, nothing);
    }
}

#[test]
fn a_prefetcher_speaks_to_syslog_too() {
    let daemon = Daemon::start();
    let archive = Archive::file();
    let options = PgCluster::options().configure("archive_mode = on");
    let source = options.configure(archive.archive_command(Program::WalEve)).init(15);
    source.start();
    let push = ["backup-push", source.data_dir().to_str().unwrap(), "--fast"];
    archive.wal_eve_with(&source).run(push).assert_success();
    archive.wait_for_wal(&source, &source.switch_wal());
    let copy = PgCluster::without_data(15);
    let fetch = ["backup-fetch", copy.data_dir().to_str().unwrap(), "LATEST"];
    let own = daemon.hears(archive.wal_eve(), "syslog").spawn(fetch);
    let pid = format!("wal-eve[{}]", own.pid());
    let mut events = Vec::new();
    // read while both speak: what a full socket does not take is lost
    source.wait_until("another process than backup-fetch has said something", Duration::from_secs(30), || {
        events.extend(daemon.received());
        events.iter().any(|event| !event.contains(&pid))
    });
    own.wait().assert_success();
    fs::remove_file(daemon.path()).unwrap();
}
