//! A `wal-fetch`'s side of prefetching: blocking, and without anything that takes time to start.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{Uid, geteuid};

use super::message::{About, Ask, Reply};
use super::spool::{Spool, SpoolLock};
use super::stamp::{Origin, Stamp};
use crate::formats::wal_name::SegmentName;

/// How long the prefetcher may stay silent: it speaks every second, so this one is stuck.
const SILENCE: Duration = Duration::from_secs(10);

/// The longest that a segment on its way is waited for: one of 1 GiB at a few MB/s.
const MAX_WAIT: Duration = Duration::from_secs(10 * 60);

/// Who asks, and for whom.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Where segments may wait.
    pub spool: Spool,
    /// What they have to come from.
    pub origin: Origin,
    /// The process whose end ends the need for prefetching.
    pub recovery: u32,
    /// The most segments to keep ahead.
    pub look_ahead: Option<usize>,
}

/// What came of asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The segment is at its destination.
    Taken,
    /// The caller has to fetch it itself; the reason, if it is worth telling.
    Direct(Option<String>),
}

impl Caller {
    /// Takes the segment `name` to `destination` from the spool, and waits for it while it is on its way. Any doubt ends in
    /// [`Answer::Direct`], with nothing done.
    pub fn take(&self, name: SegmentName, destination: &Path) -> Answer {
        self.try_take(name, destination)
            .unwrap_or_else(|odd| Answer::Direct(Some(format!("could not use the prefetch spool: {odd}"))))
    }

    fn try_take(&self, name: SegmentName, destination: &Path) -> io::Result<Answer> {
        let Some((mut line, stamp)) = self.connect()? else { return Ok(Answer::Direct(None)) };
        if !stamp.fits(&self.origin) {
            line.say(&self.ask(About::Retire))?;
            return Ok(Answer::Direct(None));
        }
        let take = || self.spool.take(name, self.origin.system_identifier, destination);
        if take()? {
            // the segment is in place, whether or not the prefetcher hears of it
            let _ = line.say(&self.ask(About::Took(name)));
            return Ok(Answer::Taken);
        }
        line.say(&self.ask(About::Want(name)))?;
        let began = Instant::now();
        loop {
            let heard = line.hear();
            if heard.as_ref().is_err_and(|failed| failed.kind() == io::ErrorKind::TimedOut) {
                // no other caller has to wait for it as well
                self.spool.disown();
            }
            if began.elapsed() > MAX_WAIT {
                return Err(io::Error::other("the prefetcher has not come to an end with it"));
            }
            match heard? {
                Reply::Wait => {}
                Reply::Ready if take()? => {
                    // told in a line of its own: this one is for waiting
                    self.tell(About::Took(name));
                    return Ok(Answer::Taken);
                }
                Reply::Ready => return Err(io::Error::other("a segment is gone that was there")),
                Reply::Direct(why) => return Ok(Answer::Direct((!why.is_empty()).then_some(why))),
            }
        }
    }

    /// What the prefetcher has left to be told in the server's log.
    pub fn news(&self) -> Option<String> {
        self.spool.is_ours().then(|| self.spool.take_news()).flatten()
    }

    /// Tells the prefetcher that the caller fetched `name` itself. False when there is none, or one that has to go: it should
    /// be started then.
    pub fn found(&self, name: SegmentName) -> bool {
        self.tell(About::Found(name))
    }

    fn tell(&self, about: About) -> bool {
        match self.connect() {
            Ok(Some((mut line, stamp))) => stamp.fits(&self.origin) && line.say(&self.ask(about)).is_ok(),
            _ => false,
        }
    }

    fn ask(&self, about: About) -> Ask {
        Ask { about, recovery: self.recovery, look_ahead: self.look_ahead }
    }

    /// A line to the prefetcher and the stamp that led to it, so that what lies in the spool is this prefetcher's or a later
    /// one's. None when there is none, or one that is out of reach.
    fn connect(&self) -> io::Result<Option<(Line, Stamp)>> {
        if !self.spool.is_ours() {
            // not made yet, or made by somebody else, which whoever starts a prefetcher is told
            return Ok(None);
        }
        let Some(stamp) = self.spool.stamp() else { return Ok(None) };
        match Line::connect(&self.spool.socket_name(&stamp)?, geteuid()) {
            Ok(line) => Ok(Some((line, stamp))),
            Err(failed) => {
                // in another network namespace, or of an earlier version: while it keeps the lock, no other can take its place
                if SpoolLock::is_held(&self.spool) && self.spool.stamp() == Some(stamp) {
                    self.spool.disown();
                }
                if failed.kind() == io::ErrorKind::ConnectionRefused { Ok(None) } else { Err(failed) }
            }
        }
    }
}

#[derive(Debug)]
struct Line {
    stream: BufReader<UnixStream>,
}

impl Line {
    /// Connects to a process of the user `owner`; whoever shares the network namespace can listen under any name.
    fn connect(socket_name: &str, owner: Uid) -> io::Result<Self> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        // of which the first goes for connecting as well
        set_socket_timeout(&socket, Timeout::Send, Some(SILENCE))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(SILENCE))?;
        connect(&socket, &SocketAddrUnix::new_abstract_name(socket_name.as_bytes())?)?;
        if socket_peercred(&socket)?.uid != owner {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "another user listens at the prefetcher's socket",
            ));
        }
        Ok(Self { stream: BufReader::new(socket.into()) })
    }

    fn say(&mut self, ask: &Ask) -> io::Result<()> {
        self.stream.get_mut().write_all(format!("{ask}\n").as_bytes())
    }

    fn hear(&mut self) -> io::Result<Reply> {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => Err(io::Error::other("the prefetcher ended")),
            Ok(_) => line.trim_end_matches('\n').parse().map_err(io::Error::other),
            Err(silent) if matches!(silent.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                Err(io::Error::new(io::ErrorKind::TimedOut, "the prefetcher does not answer"))
            }
            Err(failed) => Err(failed),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixListener};

    use super::*;

    const NAME: &str = "000000010000000000000007";

    fn caller(data: &Path) -> Caller {
        let spool = Spool::of(data, &data.join("pg_wal"), None);
        spool.create().unwrap();
        let origin = Origin { archive: "memory".into(), system_identifier: 7, configuration: [0; 32] };
        Caller { spool, origin, recovery: std::process::id(), look_ahead: None }
    }

    /// Leaves what a prefetcher writes before it is of use.
    fn stamp(caller: &Caller) -> Stamp {
        let stamp = Stamp::new(&caller.origin);
        caller.spool.write_stamp(&stamp).unwrap();
        stamp
    }

    #[test]
    fn a_prefetcher_out_of_reach_gives_way_to_another() {
        let data = tempfile::tempdir().unwrap();
        let caller = caller(data.path());
        let take = || caller.take(NAME.parse().unwrap(), &data.path().join("RECOVERYXLOG"));
        let lock = SpoolLock::try_acquire(&caller.spool).unwrap().unwrap();
        assert_eq!(take(), Answer::Direct(None));
        assert!(lock.is_in_place(), "one that is just starting");
        stamp(&caller);
        assert_eq!(take(), Answer::Direct(None));
        assert!(!lock.is_in_place() && SpoolLock::try_acquire(&caller.spool).unwrap().is_some());
    }

    #[test]
    fn a_stranger_at_the_socket_is_not_talked_to() {
        let data = tempfile::tempdir().unwrap();
        let caller = caller(data.path());
        let socket_name = caller.spool.socket_name(&stamp(&caller)).unwrap();
        let _listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&socket_name).unwrap()).unwrap();
        assert!(Line::connect(&socket_name, geteuid()).is_ok());
        let stranger = Uid::from_raw(geteuid().as_raw() + 1);
        let refused = Line::connect(&socket_name, stranger).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
    }
}
