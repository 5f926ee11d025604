//! A `wal-fetch`'s side of prefetching: blocking, and without anything that takes time to start.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::message::{About, Ask, Reply};
use super::spool::Spool;
use super::stamp::Origin;
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
        if !self.spool.is_ours() {
            // not made yet, or made by somebody else, which whoever starts a prefetcher is told
            return Ok(Answer::Direct(None));
        }
        // connected first: the stamp is then this prefetcher's or a later one's
        let Some(mut line) = self.connect()? else { return Ok(Answer::Direct(None)) };
        if !self.spool.stamp().is_some_and(|stamp| stamp.fits(&self.origin)) {
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
        self.spool.stamp().is_some_and(|stamp| stamp.fits(&self.origin)) && self.tell(About::Found(name))
    }

    fn tell(&self, about: About) -> bool {
        let told = self
            .connect()
            .and_then(|line| line.map_or(Ok(false), |mut line| line.say(&self.ask(about)).map(|()| true)));
        told.unwrap_or(false)
    }

    fn ask(&self, about: About) -> Ask {
        Ask { about, recovery: self.recovery, look_ahead: self.look_ahead }
    }

    /// None when no prefetcher listens.
    fn connect(&self) -> io::Result<Option<Line>> {
        use io::ErrorKind as E;
        let connected = self.spool.socket().and_then(|(directory, path)| {
            let stream = UnixStream::connect(path)?;
            Ok((stream, directory))
        });
        match connected {
            Err(absent) if matches!(absent.kind(), E::NotFound | E::ConnectionRefused) => Ok(None),
            Err(odd) => Err(odd),
            Ok((stream, directory)) => Line::new(stream, directory).map(Some),
        }
    }
}

struct Line {
    stream: BufReader<UnixStream>,
    /// Whose path the connection was made through.
    _directory: File,
}

impl Line {
    fn new(stream: UnixStream, directory: File) -> io::Result<Self> {
        stream.set_read_timeout(Some(SILENCE))?;
        stream.set_write_timeout(Some(SILENCE))?;
        Ok(Self { stream: BufReader::new(stream), _directory: directory })
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
