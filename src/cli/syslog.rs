//! The local syslog, spoken to as syslog(3) does: a datagram for each line, with priority, name and process.
//!
//! Logging may neither delay nor fail a command, nor cost the one that has nothing to say: the socket is opened by the first
//! line, never waited for, and what it does not take at once is lost.

use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// Where systems have it: Linux, the BSDs and macOS (`spec/wal-e-format.md` §9.2).
const PLACES: [&str; 3] = ["/dev/log", "/var/run/log", "/var/run/syslog"];

/// The longest datagram: what syslog daemons take by default.
const MAX_BYTES: usize = 8 << 10;

/// Who speaks, as to the daemon's rules: syslog(3)'s `LOG_USER` and the like, already in the place it has in a priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Facility(u8);

impl Facility {
    pub(super) const USER: Self = Self(1 << 3);

    /// A facility by its name, in any case.
    pub(super) fn named(name: &str) -> Option<Self> {
        const NAMES: [(&str, u8); 23] = [
            ("kern", 0),
            ("user", 1),
            ("mail", 2),
            ("daemon", 3),
            ("auth", 4),
            ("security", 4),
            ("syslog", 5),
            ("lpr", 6),
            ("news", 7),
            ("uucp", 8),
            ("cron", 9),
            ("authpriv", 10),
            ("ftp", 11),
            ("ntp", 12),
            ("console", 14),
            ("local0", 16),
            ("local1", 17),
            ("local2", 18),
            ("local3", 19),
            ("local4", 20),
            ("local5", 21),
            ("local6", 22),
            ("local7", 23),
        ];
        let found = NAMES.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, number)| Self(number << 3))
    }
}

/// A connection to the daemon, made when it is first needed.
#[derive(Debug)]
pub(super) struct Syslog {
    facility: Facility,
    places: Vec<PathBuf>,
    socket: Mutex<Option<UnixDatagram>>,
}

impl Syslog {
    pub(super) fn new(facility: Facility) -> Self {
        Self::at(facility, PLACES.map(PathBuf::from).into())
    }

    /// With a daemon at the first of `places` that has one.
    pub(super) fn at(facility: Facility, places: Vec<PathBuf>) -> Self {
        Self { facility, places, socket: Mutex::new(None) }
    }

    /// Sends each line of `text`.
    pub(super) fn send(&self, level: Level, text: &str) {
        let priority = self.facility.0 | severity(level);
        let process = std::process::id();
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        for line in text.lines().filter(|line| !line.is_empty()) {
            let mut datagram = format!("<{priority}>wal-eve[{process}]: {line}");
            datagram.truncate(datagram.floor_char_boundary(MAX_BYTES));
            // a daemon that was started anew has another socket
            for _ in 0..2 {
                let Some(open) = socket.take().or_else(|| self.connect()) else { return };
                match open.send(datagram.as_bytes()) {
                    Err(gone) if gone.kind() != io::ErrorKind::WouldBlock => {}
                    _ => {
                        *socket = Some(open);
                        break;
                    }
                }
            }
        }
    }

    fn connect(&self) -> Option<UnixDatagram> {
        let socket = UnixDatagram::unbound().ok()?;
        socket.set_nonblocking(true).ok()?;
        self.places.iter().any(|place| socket.connect(place).is_ok()).then_some(socket)
    }
}

/// syslog(3)'s numbers.
fn severity(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

impl<'a> MakeWriter<'a> for &'static Syslog {
    type Writer = Event;

    fn make_writer(&'a self) -> Event {
        Event { syslog: self, level: Level::INFO }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Event {
        Event { syslog: self, level: *metadata.level() }
    }
}

/// Takes an event, which the formatter writes whole.
pub(super) struct Event {
    syslog: &'static Syslog,
    level: Level,
}

impl Write for Event {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.syslog.send(self.level, &String::from_utf8_lossy(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn daemon(at: &Path) -> UnixDatagram {
        let socket = UnixDatagram::bind(at).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    }

    fn received(daemon: &UnixDatagram) -> Vec<String> {
        let mut buffer = vec![0; 2 * MAX_BYTES];
        std::iter::from_fn(|| daemon.recv(&mut buffer).ok().map(|length| buffer[..length].to_vec()))
            .map(|bytes| String::from_utf8(bytes).unwrap())
            .collect()
    }

    #[test]
    fn a_facility_has_its_number_in_any_case_and_nothing_else_has_one() {
        for (name, number) in
            [("user", 1), ("USER", 1), ("daemon", 3), ("Local0", 16), ("local7", 23), ("authpriv", 10)]
        {
            assert_eq!(Facility::named(name), Some(Facility(number * 8)), "{name}");
        }
        assert_eq!(Facility::named("user"), Some(Facility::USER));
        for name in ["", "local8", "user ", "1", "LOG_USER"] {
            assert_eq!(Facility::named(name), None, "{name}");
        }
    }

    #[test]
    fn each_line_is_a_datagram_at_the_first_place_with_a_daemon() {
        let place = tempfile::tempdir().unwrap();
        let [first, second, third] = ["a directory", "b", "c"].map(|name| place.path().join(name));
        std::fs::create_dir(&first).unwrap();
        let (daemon, not_asked) = (daemon(&second), daemon(&third));
        let syslog = Syslog::at(Facility::named("local3").unwrap(), vec![first, second, third]);
        for level in [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE] {
            syslog.send(level, "one\n\nanother\n");
        }
        let process = std::process::id();
        let expected: Vec<_> = [155, 156, 158, 159, 159]
            .iter()
            .flat_map(|priority| ["one", "another"].map(|line| format!("<{priority}>wal-eve[{process}]: {line}")))
            .collect();
        assert_eq!(received(&daemon), expected);
        assert_eq!(received(&not_asked), [""; 0]);
        syslog.send(Level::INFO, &"ü".repeat(MAX_BYTES));
        let cut = received(&daemon).remove(0);
        assert!((MAX_BYTES - 1..=MAX_BYTES).contains(&cut.len()), "{}", cut.len());
    }

    #[test]
    fn nothing_is_opened_before_the_first_line_and_a_new_daemon_is_found() {
        let place = tempfile::tempdir().unwrap();
        let at = place.path().join("log");
        let syslog = Syslog::at(Facility::USER, vec![at.clone()]);
        syslog.send(Level::INFO, "nobody listens");
        let first = daemon(&at);
        assert!(syslog.socket.lock().unwrap().is_none());
        syslog.send(Level::INFO, "to the first");
        assert_eq!(received(&first).len(), 1);
        drop(first);
        syslog.send(Level::INFO, "lost");
        std::fs::remove_file(&at).unwrap();
        let second = daemon(&at);
        syslog.send(Level::INFO, "to the second");
        assert_eq!(received(&second).len(), 1);
    }

    #[test]
    fn a_daemon_that_reads_nothing_holds_nobody_up() {
        let place = tempfile::tempdir().unwrap();
        let at = place.path().join("log");
        let daemon = daemon(&at);
        let syslog = Syslog::at(Facility::USER, vec![at]);
        // Linux queues 10 to 512 datagrams
        for number in 0..2_000 {
            syslog.send(Level::INFO, &format!("{number}"));
        }
        let before = received(&daemon).len();
        assert!((1..2_000).contains(&before), "{before}");
        syslog.send(Level::INFO, "and then it reads again");
        assert_eq!(received(&daemon).len(), 1);
    }
}
