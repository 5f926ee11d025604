//! Where log lines go: stderr, which PostgreSQL adds to its own log, and syslog where `WALE_LOG_DESTINATION` says so.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use tracing::Level;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::environment::Environment;
use super::syslog::{Facility, Syslog};

/// The syslog, where it is a destination.
static SYSLOG: OnceLock<Syslog> = OnceLock::new();

/// Starts logging to stderr, syslog or both. `terse` leaves warnings and errors; `quiet` is for commands that succeed many
/// times a minute, whose routine is nobody's news.
pub(super) fn start(environment: &Environment, terse: bool, quiet: bool) {
    let level = match environment.text("WAL_EVE_LOG").as_deref() {
        Some("debug") => Level::DEBUG,
        Some("trace") => Level::TRACE,
        _ if terse || quiet => Level::WARN,
        _ => Level::INFO,
    };
    // syslog alone would hide everything where there is none, so warnings go to stderr in any case
    let on_stderr = if is_destination(environment, "stderr") { level } else { level.min(Level::WARN) };
    write_to(std::io::stderr, on_stderr, syslog(environment), level);
}

/// Starts logging to the end of a file.
pub(super) fn start_file(environment: &Environment, path: &Path) -> io::Result<()> {
    let file = File::options().create(true).append(true).open(path)?;
    let level = match environment.text("WAL_EVE_LOG").as_deref() {
        Some("debug") => Level::DEBUG,
        Some("trace") => Level::TRACE,
        _ => Level::INFO,
    };
    write_to(Arc::new(file), level, syslog(environment), level);
    Ok(())
}

/// Sends the text that a command ends with to syslog too, where that is a destination.
pub(super) fn report(level: Level, text: &str) {
    let Some(syslog) = SYSLOG.get() else { return };
    for line in text.lines() {
        // every line of syslog begins so by itself
        syslog.send(level, line.strip_prefix("wal-eve: ").unwrap_or(line));
    }
}

/// WAL-E's words: exact, and without spaces between. Its default has syslog in it, ours has not, since PostgreSQL's log
/// takes stderr already.
fn is_destination(environment: &Environment, wanted: &str) -> bool {
    let words = environment.text("WALE_LOG_DESTINATION").unwrap_or_else(|| "stderr".into());
    words.split(',').any(|word| word == wanted)
}

/// The syslog, if it is a destination. Nothing is opened yet.
fn syslog(environment: &Environment) -> Option<&'static Syslog> {
    if !is_destination(environment, "syslog") {
        return None;
    }
    let facility = environment.text("WALE_SYSLOG_FACILITY").map_or(Facility::USER, |name| {
        Facility::named(&name).unwrap_or_else(|| {
            let _ = writeln!(
                io::stderr().lock(),
                "wal-eve: WALE_SYSLOG_FACILITY is \"{name}\", which is no facility of syslog; \"user\" is used"
            );
            Facility::USER
        })
    });
    // a test listens elsewhere; release builds have no such switch
    let elsewhere = environment.path("WAL_EVE_SYSLOG_SOCKET").filter(|_| cfg!(debug_assertions));
    Some(SYSLOG.get_or_init(|| match elsewhere {
        Some(socket) => Syslog::at(facility, vec![socket]),
        None => Syslog::new(facility),
    }))
}

fn write_to<W>(writer: W, level: Level, syslog: Option<&'static Syslog>, syslog_level: Level)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_ansi(false)
        // it would report a line that stderr did not take on stderr, with a macro that panics then
        .log_internal_errors(false)
        .with_target(false)
        .with_timer(Utc)
        .with_filter(news(level));
    let to_syslog = syslog.map(|syslog| {
        tracing_subscriber::fmt::layer()
            .with_writer(syslog)
            .with_ansi(false)
            .log_internal_errors(false)
            .with_target(false)
            // the daemon notes the time, and the priority is the level
            .without_time()
            .with_level(false)
            .with_filter(news(syslog_level))
    });
    let started = tracing_subscriber::registry().with(lines).with(to_syslog).try_init();
    // a second start, as in tests, keeps the first
    drop(started);
}

/// What is said at `level`. Libraries have much to say that a DBA cannot use, until he asks for it.
fn news(level: Level) -> Targets {
    let of_libraries = if level >= Level::DEBUG { level } else { Level::ERROR };
    Targets::new().with_target("wal_eve", level).with_default(of_libraries)
}

/// `2026-11-23T01:38:08Z`
struct Utc;

impl tracing_subscriber::fmt::time::FormatTime for Utc {
    fn format_time(&self, w: &mut tracing_subscriber::fmt::format::Writer<'_>) -> std::fmt::Result {
        let now = time::OffsetDateTime::now_utc();
        let (hour, minute, second) = now.to_hms();
        write!(w, "{} {hour:02}:{minute:02}:{second:02} UTC", now.date())
    }
}
