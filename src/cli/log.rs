//! Where log lines go: stderr, which PostgreSQL adds to its own log.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use tracing::Level;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::environment::Environment;

/// Starts logging to stderr. `terse` leaves warnings and errors; `quiet` is for commands that succeed many times a minute,
/// whose routine is nobody's news.
pub(super) fn start(environment: &Environment, terse: bool, quiet: bool) {
    let destinations = environment.text("WALE_LOG_DESTINATION").unwrap_or_else(|| "stderr".into());
    let to_stderr = destinations.split(',').any(|word| word == "stderr");
    let level = match environment.text("WAL_EVE_LOG").as_deref() {
        Some("debug") => Level::DEBUG,
        Some("trace") => Level::TRACE,
        _ if terse || quiet => Level::WARN,
        _ => Level::INFO,
    };
    // syslog alone would hide everything where there is none, so warnings go to stderr in any case
    let level = if to_stderr { level } else { level.min(Level::WARN) };
    write_to(std::io::stderr, level);
}

/// Starts logging to the end of a file.
pub(super) fn start_file(environment: &Environment, path: &Path) -> io::Result<()> {
    let file = File::options().create(true).append(true).open(path)?;
    let level = match environment.text("WAL_EVE_LOG").as_deref() {
        Some("debug") => Level::DEBUG,
        Some("trace") => Level::TRACE,
        _ => Level::INFO,
    };
    write_to(Arc::new(file), level);
    Ok(())
}

fn write_to<W>(writer: W, level: Level)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // libraries have much to say that a DBA cannot use, until he asks for it
    let of_libraries = if level >= Level::DEBUG { level } else { Level::ERROR };
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_ansi(false)
        // it would report a line that stderr did not take on stderr, with a macro that panics then
        .log_internal_errors(false)
        .with_target(false)
        .with_timer(Utc)
        .with_filter(Targets::new().with_target("wal_eve", level).with_default(of_libraries));
    let started = tracing_subscriber::registry().with(lines).try_init();
    // a second start, as in tests, keeps the first
    drop(started);
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
