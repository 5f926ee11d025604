//! The long-lived process that keeps the spool filled.
//!
//! One task owns all its state and does nothing but wait for the next event: a caller's line, a segment that arrived, the
//! end of the server, a second gone by. Fetching and decompressing happen elsewhere and report here.

use std::collections::HashMap;
use std::fmt;
use std::future::pending;
use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::inquiry::Finding;
use super::lines::{Answering, listen};
use super::message::{About, Ask, Reply};
use super::missed::Missed;
use super::spool::{Spool, SpoolLock};
use super::stamp::{Origin, Stamp};
use super::start;
use super::status::{self, Status};
use super::tally::Tally;
use super::watch::Watch;
use super::window::{Held, Window};
use crate::formats::error_line::joined;
use crate::formats::key::Layout;
use crate::formats::wal_name::{SegmentName, SegmentSize, WalName};
use crate::storage::Store;
use crate::transfer::progress::Progress;
use crate::transfer::turns::Turns;
use crate::transfer::wal_download::{Expected, Lane, download_wal};
use crate::transfer::{self, TransferError, cores};

/// Segments on their way at once. At 50 MB/s a connection, which is what S3 gives, 800 MB/s of compressed WAL.
const MAX_FETCHES: usize = 16;

/// The most segments ahead unless the caller says otherwise: at the fastest replay, the time of one stalled connection.
const DEFAULT_LOOK_AHEAD: usize = 64;

/// The part of the free space that the spool may take: the WAL that replay itself keeps has to fit beside it.
const SHARE_OF_FREE_SPACE: u64 = 4;

/// How often waiting callers hear that they are not forgotten, and everything else is looked after.
const TICK: Duration = Duration::from_secs(1);

/// The pause after a failure before anything more is fetched ahead; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// How long to stay when no server asks any more: replay of one segment takes minutes at worst, and a replica that was paused
/// for longer may as well begin anew.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10 * 60);

/// How many segments the first window holds: for a server that asks, little, so that one that never asks again costs no more;
/// for one that is still being restored, some seconds of the fastest replay.
const FIRST_LOOK_AHEAD: usize = 2;
const RESTORE_LOOK_AHEAD: usize = 16;

/// The longest part of an error that fits into a line for a caller.
const MAX_WHY_CHARS: usize = 800;

/// How often a catch-up is summed up in a line.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// The signals that end it in order. Their defaults would end it as a signal does, and PostgreSQL would take that for a crash if
/// it has adopted this process.
const SIGNALS: [SignalKind; 6] = [
    SignalKind::terminate(),
    SignalKind::interrupt(),
    SignalKind::hangup(),
    SignalKind::quit(),
    SignalKind::user_defined1(),
    SignalKind::user_defined2(),
];

/// What to fetch, and where to.
#[derive(Debug, Clone)]
pub struct PrefetchOptions {
    /// Where segments wait.
    pub spool: Spool,
    /// What they come from.
    pub origin: Origin,
    /// The first one.
    pub position: SegmentName,
    /// Their size.
    pub segment_size: SegmentSize,
    /// The most of them to keep ahead.
    pub look_ahead: Option<usize>,
    /// The most bytes of them to keep.
    pub max_bytes: u64,
    /// The process whose end ends the need for prefetching, if there is one yet.
    pub recovery: Option<u32>,
    /// How long to stay when nobody has asked yet.
    pub first_ask_timeout: Duration,
}

/// Why a prefetcher ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Another one works for this spool.
    NotNeeded,
    /// The server has finished recovery, or is gone.
    RecoveryOver,
    /// Nobody asked for long.
    Idle,
    /// Its callers have another configuration now.
    Retired,
    /// Its spool was removed.
    SpoolGone,
    /// Somebody told it to.
    Told,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotNeeded => "another prefetcher works here",
            Self::RecoveryOver => "the server has ended its recovery",
            Self::Idle => "nobody has asked for a segment for long",
            Self::Retired => "the configuration has changed",
            Self::SpoolGone => "the spool was removed",
            Self::Told => "it was told to",
        })
    }
}

/// Prefetches until it is not needed any more.
///
/// # Errors
/// When the spool cannot be used at all. Whatever the archive does is no error here: callers hear of it.
pub async fn prefetch(store: Arc<dyn Store>, layout: Layout, options: PrefetchOptions) -> io::Result<Ended> {
    let spool = options.spool.clone();
    let mut signals = SIGNALS.into_iter().map(signal).collect::<io::Result<Vec<Signal>>>()?;
    let watch = options.recovery.map(Watch::new);
    let lock = tokio::select! {
        biased;
        () = any(&mut signals) => return Ok(Ended::Told),
        () = ended(watch.as_ref()) => return Ok(Ended::RecoveryOver),
        lock = SpoolLock::acquire(&spool) => lock?,
    };
    let Some(lock) = lock else { return Ok(Ended::NotNeeded) };
    spool.empty()?;
    let stamp = Stamp::new(&options.origin);
    let listener = UnixListener::bind(format!("\0{}", spool.socket_name(&stamp)?))?;
    let mut lines = listen(listener, rustix::process::geteuid().as_raw());
    // now that it can be found
    spool.write_stamp(&stamp)?;
    if let Some(hint) = start::init_hint() {
        tracing::warn!("{hint}");
        spool.leave_news(&hint);
    }
    let mut prefetcher = Prefetcher::new(store, layout, options, watch);
    tracing::info!(position = %prefetcher.window.position(), archive = prefetcher.origin.archive, "prefetching");
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let ended = loop {
        prefetcher.fetch_more();
        tokio::select! {
            biased;
            () = any(&mut signals) => break Ended::Told,
            () = ended(prefetcher.watch.as_ref()) => break Ended::RecoveryOver,
            Some((ask, line)) = lines.recv() => {
                if ask.about == About::Retire {
                    break Ended::Retired;
                }
                prefetcher.hear(ask, line);
            }
            Some(done) = prefetcher.fetches.join_next() => {
                // an aborted one says nothing
                if let Ok((name, fetched, progress)) = done {
                    prefetcher.fetched(name, fetched, &progress);
                }
            }
            Some(Ok(finding)) = prefetcher.inquiries.join_next() => prefetcher.learned(finding),
            _ = tick.tick() => {
                if !lock.is_in_place() || spool.stamp().as_ref() != Some(&stamp) {
                    break Ended::SpoolGone;
                }
                if prefetcher.last_ask.elapsed() > prefetcher.idle_timeout {
                    break Ended::Idle;
                }
                prefetcher.look_after();
            }
        }
    };
    tracing::info!("ending: {ended}");
    prefetcher.fetches.abort_all();
    // without the lock, what is there now belongs to the one that has made the spool anew
    if lock.is_in_place() {
        spool.empty()?;
        prefetcher.show(&format!("ended: {ended}"));
    }
    Ok(ended)
}

/// Returns when one of the signals comes.
async fn any(signals: &mut [Signal]) {
    futures::future::select_all(signals.iter_mut().map(|signal| Box::pin(signal.recv()))).await;
}

async fn ended(watch: Option<&Watch>) {
    match watch {
        Some(watch) => watch.ended().await,
        None => pending().await,
    }
}

type Fetched = (SegmentName, transfer::Result<()>, Arc<Progress>);

struct Waiting {
    name: SegmentName,
    line: Answering,
    since: Instant,
}

/// Nothing is fetched ahead for a while.
#[derive(Clone, Copy)]
struct Pause {
    until: Instant,
    /// Whether it was the store that failed, so that a caller's success ends the pause.
    of_the_store: bool,
}

struct Prefetcher {
    store: Arc<dyn Store>,
    layout: Layout,
    spool: Spool,
    origin: Origin,
    segment_size: SegmentSize,
    max_bytes: u64,
    look_ahead: Option<usize>,
    idle_timeout: Duration,
    window: Window,
    watch: Option<Watch>,
    fetches: JoinSet<Fetched>,
    aborts: HashMap<SegmentName, AbortHandle>,
    turns: Arc<Turns>,
    waiting: Vec<Waiting>,
    last_ask: Instant,
    paused: Option<Pause>,
    next_pause: Duration,
    inquiries: JoinSet<Finding>,
    reported: Instant,
    missed: Missed,
    tally: Tally,
    shown: Option<Status>,
}

impl Prefetcher {
    fn new(store: Arc<dyn Store>, layout: Layout, options: PrefetchOptions, watch: Option<Watch>) -> Self {
        let look_ahead = if watch.is_some() { FIRST_LOOK_AHEAD } else { RESTORE_LOOK_AHEAD };
        let cores = NonZeroUsize::new(cores()).unwrap_or(NonZeroUsize::MIN);
        let mut prefetcher = Self {
            store,
            layout,
            spool: options.spool,
            origin: options.origin,
            segment_size: options.segment_size,
            max_bytes: options.max_bytes,
            look_ahead: options.look_ahead,
            idle_timeout: options.first_ask_timeout,
            window: Window::new(options.position, options.segment_size, look_ahead),
            watch,
            fetches: JoinSet::new(),
            aborts: HashMap::new(),
            turns: Turns::new(cores),
            waiting: Vec::new(),
            last_ask: Instant::now(),
            paused: None,
            next_pause: FIRST_PAUSE,
            inquiries: JoinSet::new(),
            reported: Instant::now(),
            missed: Missed::default(),
            tally: Tally::new(),
            shown: None,
        };
        prefetcher.set_limit();
        prefetcher
    }

    fn hear(&mut self, ask: Ask, line: Answering) {
        self.last_ask = Instant::now();
        self.idle_timeout = IDLE_TIMEOUT;
        if self.watch.as_ref().map(Watch::pid) != Some(ask.recovery) {
            self.watch = Some(Watch::new(ask.recovery));
        }
        if self.look_ahead != ask.look_ahead {
            self.look_ahead = ask.look_ahead;
            self.set_limit();
        }
        match ask.about {
            About::Took(name) => {
                self.window.took(name);
                self.missed.forget();
                self.tally.hit();
            }
            About::Found(name) => {
                self.window.found(name);
                self.missed.forget();
                self.tally.miss();
                if self.paused.is_some_and(|pause| pause.of_the_store) {
                    self.go_on();
                }
            }
            About::Want(name) => {
                self.window.asked(name);
                if self.window.end() == Some(name) {
                    self.missed.add(name);
                }
                self.wanted(Waiting { name, line, since: Instant::now() });
            }
            About::Retire => {}
        }
        self.give_up_strays();
    }

    fn wanted(&mut self, caller: Waiting) {
        match self.window.held(caller.name) {
            Some(Held::Ready) => caller.line.answer(&Reply::Ready),
            Some(Held::Fetching) => self.waiting.push(caller),
            Some(Held::Bad) | None if self.paused.is_some() => {
                caller.line.answer(&Reply::Direct(self.tally.untold_error()));
            }
            // its caller asks the archive itself, whose answer is the one that counts
            _ if self.window.next() != Some(caller.name) => caller.line.answer(&Reply::Direct(String::new())),
            _ => {
                self.fetch(caller.name);
                self.waiting.push(caller);
            }
        }
    }

    fn fetch_more(&mut self) {
        while self.paused.is_none()
            && self.fetches.len() < MAX_FETCHES
            && let Some(name) = self.window.next()
        {
            self.fetch(name);
        }
    }

    fn fetch(&mut self, name: SegmentName) {
        self.window.began(name);
        let (store, key) = (Arc::clone(&self.store), self.layout.wal(&name.to_string()));
        let destination = self.spool.segment(name);
        let lane = Lane {
            turns: Arc::clone(&self.turns),
            rank: name.number(self.segment_size).unwrap_or(u64::MAX),
            progress: Arc::default(),
        };
        let expected =
            Expected { name: Some(WalName::Segment(name)), system_identifier: Some(self.origin.system_identifier) };
        let abort = self.fetches.spawn(async move {
            let fetched = download_wal(&*store, &key, &expected, &destination, &lane).await;
            (name, fetched, lane.progress)
        });
        self.aborts.insert(name, abort);
    }

    fn fetched(&mut self, name: SegmentName, fetched: transfer::Result<()>, progress: &Progress) {
        match self.window.held(name) {
            Some(Held::Fetching) => self.aborts.remove(&name),
            // given up just as it came, and wanted again since
            Some(Held::Ready) => return,
            // given up just as it came
            Some(Held::Bad) | None => return self.spool.discard(name),
        };
        let (waiting, others) = std::mem::take(&mut self.waiting).into_iter().partition(|caller| caller.name == name);
        self.waiting = others;
        let reply = self.judge(name, fetched);
        if !waiting.is_empty() {
            self.tally.untold_error();
        }
        for caller in waiting {
            if reply == Reply::Ready {
                self.tally.waited(caller.since.elapsed(), progress.bottleneck());
            }
            caller.line.answer(&reply);
        }
        self.give_up_strays();
    }

    fn judge(&mut self, name: SegmentName, fetched: transfer::Result<()>) -> Reply {
        match fetched {
            Ok(_) => {
                self.window.arrived(name);
                self.go_on();
                Reply::Ready
            }
            Err(absent @ TransferError::Storage(_)) if absent.kind() == transfer::Kind::NotFound => {
                self.window.absent(name);
                if name == self.window.position() {
                    self.missed.add(name);
                }
                tracing::debug!(%name, "not in the archive");
                Reply::Direct(String::new())
            }
            Err(failed) => {
                let of_the_store = matches!(failed, TransferError::Storage(_));
                self.failed(name, of_the_store, joined(&failed).chars().take(MAX_WHY_CHARS).collect())
            }
        }
    }

    fn failed(&mut self, name: SegmentName, of_the_store: bool, why: String) -> Reply {
        if of_the_store {
            self.window.failed(name);
        } else {
            self.window.is_bad(name);
        }
        self.tally.failed(why.clone());
        // what was under way together fails together, and counts once
        if self.paused.is_none() {
            self.paused = Some(Pause { until: Instant::now() + self.next_pause, of_the_store });
            self.next_pause = (self.next_pause * 2).min(MAX_PAUSE);
        }
        tracing::warn!(%name, "{why}");
        Reply::Direct(why)
    }

    /// Ends a pause: fetching works again.
    fn go_on(&mut self) {
        (self.paused, self.next_pause) = (None, FIRST_PAUSE);
    }

    fn give_up_strays(&mut self) {
        for stray in self.window.strays() {
            self.give_up(stray);
        }
    }

    /// Stops fetching `name`, or drops it from the spool.
    fn give_up(&mut self, name: SegmentName) {
        match self.aborts.remove(&name) {
            Some(abort) => abort.abort(),
            None => self.spool.discard(name),
        }
        let (waiting, others) = std::mem::take(&mut self.waiting).into_iter().partition(|caller| caller.name == name);
        self.waiting = others;
        for caller in waiting {
            caller.line.answer(&Reply::Direct(String::new()));
        }
    }

    fn look_after(&mut self) {
        for caller in &self.waiting {
            caller.line.answer(&Reply::Wait);
        }
        if self.paused.is_some_and(|pause| pause.until <= Instant::now()) {
            self.paused = None;
        }
        self.set_limit();
        self.give_up_strays();
        if self.reported.elapsed() >= REPORT_INTERVAL {
            self.reported = Instant::now();
            self.spool.bound_log();
            self.inquire();
        }
        self.show(self.state());
    }

    /// As wide as the space that is free now allows.
    fn set_limit(&mut self) {
        let (ready, _) = self.window.counts();
        let held = ready as u64 * self.segment_size.bytes();
        let free = self.spool.free_bytes().unwrap_or(0);
        let room = self.max_bytes.min(free.saturating_add(held) / SHARE_OF_FREE_SPACE) / self.segment_size.bytes();
        let wish = self.look_ahead.unwrap_or(DEFAULT_LOOK_AHEAD);
        self.window.set_limit(wish.min(usize::try_from(room).unwrap_or(usize::MAX)));
    }

    fn inquire(&mut self) {
        let (store, layout, size) = (Arc::clone(&self.store), self.layout.clone(), self.segment_size);
        if self.tally.taken() > 0 {
            let position = self.window.position();
            self.inquiries.spawn(async move { Finding::end(&*store, &layout, position, size).await });
        } else if self.last_ask.elapsed() < REPORT_INTERVAL {
            for absent in self.missed.for_at_least(REPORT_INTERVAL) {
                let (store, layout) = (Arc::clone(&self.store), self.layout.clone());
                self.inquiries.spawn(async move { Finding::gap(&*store, &layout, absent, size).await });
            }
        }
    }

    fn learned(&mut self, finding: Finding) {
        match finding {
            Finding::End(end) => {
                self.tally.set_archive_end(end);
                let line = self.status("").summary(self.tally.taken());
                tracing::info!("{line}");
                self.spool.leave_news(&line);
            }
            Finding::Gap { absent, next } if self.missed.contains(absent) => {
                let line = format!(
                    "segment {absent} is missing from the archive, although {next} is there: replay cannot go on without it"
                );
                tracing::error!("{line}");
                self.tally.failed(line.clone());
                self.spool.leave_news(&line);
            }
            Finding::Gap { .. } | Finding::Nothing => {}
        }
    }

    fn state(&self) -> &'static str {
        match (self.paused, self.window.end(), self.waiting.is_empty()) {
            (Some(_), ..) => "pausing after an error",
            (None, _, false) => "fetching a segment that replay waits for",
            (None, Some(end), true) if end == self.window.position() => "waiting at the archive's end",
            (None, ..) if self.window.look_ahead() == 0 => "no room to fetch ahead",
            (None, ..) if self.aborts.is_empty() => "waiting for replay",
            (None, ..) => "fetching ahead of replay",
        }
    }

    fn status(&mut self, state: &str) -> Status {
        let (ready, fetching) = self.window.counts();
        Status {
            running: true,
            pid: std::process::id(),
            state: state.into(),
            archive: self.origin.archive.clone(),
            look_ahead: self.window.look_ahead(),
            look_ahead_limit: self.window.limit(),
            ready,
            fetching,
            ..self.tally.status(self.window.position(), self.segment_size)
        }
    }

    /// Writes the status where it can be read, if it has changed.
    fn show(&mut self, state: &str) {
        let status = self.status(state);
        if self.shown.as_ref() != Some(&status) {
            let _ = Status { time: status::now(), ..status.clone() }.write(&self.spool);
            self.shown = Some(status);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::storage::MemoryStore;

    fn prefetcher(store: MemoryStore, layout: Layout, spool: &Spool, position: SegmentName) -> Prefetcher {
        let options = PrefetchOptions {
            spool: spool.clone(),
            origin: Origin { archive: "memory".into(), system_identifier: 7, configuration: [0; 32] },
            position,
            segment_size: SegmentSize::DEFAULT,
            look_ahead: None,
            max_bytes: 1 << 30,
            recovery: None,
            first_ask_timeout: Duration::from_secs(600),
        };
        Prefetcher::new(Arc::new(store), layout, options, Some(Watch::new(std::process::id())))
    }

    /// Asks as a wal-fetch does, and waits for what comes of it.
    async fn ask(prefetcher: &mut Prefetcher, name: SegmentName) {
        let (line, _caller) = UnixStream::pair().unwrap();
        let ask = Ask { about: About::Want(name), recovery: std::process::id(), look_ahead: Some(1) };
        prefetcher.hear(ask, line.into());
        while let Some(done) = prefetcher.fetches.join_next().await {
            if let Ok((name, fetched, progress)) = done {
                prefetcher.fetched(name, fetched, &progress);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_segment_missing_from_the_middle_is_named_after_a_minute() {
        let on = |timeline: u32, number: u32| -> SegmentName {
            format!("{timeline:08X}00000000{number:08X}").parse().unwrap()
        };
        // where timelines part, the server looks for its next segment on each of them in turn
        for asked in [vec![on(1, 5)], vec![on(2, 5), on(1, 5)]] {
            let directory = tempfile::tempdir().unwrap();
            let spool = Spool::at(directory.path().to_owned());
            let (store, layout) = (MemoryStore::new(), Layout::new("p/"));
            let (gap, next) = (asked[0], on(asked[0].timeline(), 8));
            store.overwrite(&layout.wal(&next.to_string()), "x");
            let mut prefetcher = prefetcher(store, layout, &spool, gap);
            let mut said = Vec::new();
            for second in 1..=180 {
                for name in &asked {
                    ask(&mut prefetcher, *name).await;
                }
                tokio::time::advance(Duration::from_secs(1)).await;
                prefetcher.look_after();
                while let Some(answer) = prefetcher.inquiries.join_next().await {
                    prefetcher.learned(answer.unwrap());
                }
                said.extend(spool.take_news().map(|news| (second, news)));
            }
            assert!((2..=3).contains(&said.len()), "once a minute: {said:?}");
            assert!(said[0].0 >= 60, "{said:?}");
            for (_, news) in said {
                let expected = format!("segment {gap} is missing from the archive, although {next} is there");
                assert!(news.starts_with(&expected) && news.lines().count() == 1, "{news}");
            }
        }
    }
}
