//! Prefetching, from the command line's side: who asks for what, how a prefetcher is started, and what it shows.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::args::{GlobalArgs, PrefetchArgs, WalFetchArgs};
use super::environment::Environment;
use super::exit::Failure;
use super::recovery::data_directory;
use super::store::ArchiveConfig;
use crate::commands::backup_fetch::FirstWal;
use crate::formats::wal_name::{SegmentName, SegmentSize};
use crate::pg::data_directory::DataDirectory;
use crate::pg::recovery_process::recovery_process;
use crate::prefetch::client::Caller;
use crate::prefetch::prefetcher::PrefetchOptions;
use crate::prefetch::spool::Spool;
use crate::prefetch::stamp::Origin;
use crate::prefetch::start;
use crate::prefetch::status::{self, Status};

/// The most that a spool holds unless WALE_PREFETCH_BYTES says otherwise.
const DEFAULT_MAX_BYTES: u64 = 1 << 30;

/// How long a prefetcher waits for the first call: its server has just made one, and makes the next when it has replayed that
/// segment.
const FIRST_ASK_TIMEOUT: Duration = Duration::from_secs(10 * 60);

/// The same after a restore, where people still have to configure the server before they start it.
const FIRST_ASK_TIMEOUT_AFTER_RESTORE: Duration = Duration::from_secs(60 * 60);

/// Removes what a killed prefetcher has left for the server whose `%p` this is. For calls that start no prefetcher, which would
/// do it: after them there may never be another one.
pub(super) fn clean_up(wal_path: &Path, environment: &Environment) {
    let Some(directory) = data_directory(wal_path) else { return };
    let spool = spool(&directory, environment);
    if let Err(failed) = spool.clean_up() {
        tracing::warn!("could not empty the prefetch spool \"{}\": {failed}", spool.directory().display());
    }
}

/// What `wal-fetch` asks the spool for.
pub(super) struct Request {
    pub(super) caller: Caller,
    pub(super) name: SegmentName,
    segment_size: SegmentSize,
}

/// What to ask the spool for; none when prefetching is not wanted or makes no sense: for anything but a segment that a
/// running server replays. pg_rewind, for one, asks for what it never needs the next of.
pub(super) fn request(
    args: &WalFetchArgs,
    global: &GlobalArgs,
    config: &ArchiveConfig,
    environment: &Environment,
) -> Option<Request> {
    let name: SegmentName = args.segment.parse().ok()?;
    if args.prefetch == Some(0) || args.destination.file_name()? != "RECOVERYXLOG" {
        return None;
    }
    let directory = data_directory(&args.destination)?;
    let recovery = recovery_process(&directory)?;
    let control = directory.control_file().ok()?;
    let caller = Caller {
        spool: spool(&directory, environment),
        origin: origin(control.system_identifier, global, config, environment),
        recovery,
        look_ahead: args.prefetch,
    };
    Some(Request { caller, name, segment_size: control.wal_segment_size })
}

/// The spool of a data directory.
pub(super) fn spool(directory: &DataDirectory, environment: &Environment) -> Spool {
    let elsewhere = environment.path("WALE_PREFETCH_DIR");
    Spool::of(directory.path(), &directory.wal_directory(), elsewhere.as_deref())
}

impl Request {
    /// Says that the segment was fetched without the spool; with nobody there to hear it, starts a prefetcher.
    pub(super) fn found(&self, global: &GlobalArgs, environment: &Environment) {
        if self.caller.found(self.name) {
            return;
        }
        let Some(position) = self.name.next(self.segment_size) else { return };
        let beginning = Beginning {
            spool: &self.caller.spool,
            position,
            segment_size: self.segment_size,
            system_identifier: self.caller.origin.system_identifier,
            look_ahead: self.caller.look_ahead,
            recovery: Some(self.caller.recovery),
            first_ask_timeout: FIRST_ASK_TIMEOUT,
        };
        beginning.start(global, environment);
    }
}

/// Starts a prefetcher for a server that does not run yet.
pub(super) fn start_after_restore(first: &FirstWal, global: &GlobalArgs, environment: &Environment) {
    // the server's user could neither use root's spool nor replace it
    if rustix::process::geteuid().is_root() {
        tracing::info!("not fetching WAL ahead, since the server will be another user's");
        return;
    }
    let beginning = Beginning {
        spool: &spool(&first.directory, environment),
        position: first.name,
        segment_size: first.page.segment_size,
        system_identifier: first.page.system_identifier,
        look_ahead: None,
        recovery: None,
        first_ask_timeout: FIRST_ASK_TIMEOUT_AFTER_RESTORE,
    };
    beginning.start(global, environment);
}

/// What a new prefetcher is told.
struct Beginning<'a> {
    spool: &'a Spool,
    position: SegmentName,
    segment_size: SegmentSize,
    system_identifier: u64,
    look_ahead: Option<usize>,
    recovery: Option<u32>,
    first_ask_timeout: Duration,
}

impl Beginning<'_> {
    /// Starts a prefetcher. That it cannot be started is worth a warning and nothing more.
    fn start(&self, global: &GlobalArgs, environment: &Environment) {
        let option = |name: &str, value: String| OsString::from(format!("--{name}={value}"));
        let mut args = global.to_args();
        args.extend(["prefetch".into(), "--spool".into(), self.spool.directory().into()]);
        args.extend([
            option("position", self.position.to_string()),
            option("segment-size", self.segment_size.bytes().to_string()),
            option("system-identifier", self.system_identifier.to_string()),
            option("first-ask-seconds", self.first_ask_timeout.as_secs().to_string()),
            option("max-bytes", max_bytes(environment).to_string()),
        ]);
        args.extend(self.look_ahead.map(|number| option("look-ahead", number.to_string())));
        args.extend(self.recovery.map(|pid| option("recovery", pid.to_string())));
        // told here: nobody would see what the new process says before it has its log
        if let Err(failed) = self.spool.create().and_then(|()| start::start(args)) {
            let place = self.spool.directory().display();
            tracing::warn!("could not start a prefetcher with its segments in \"{place}\": {failed}");
        }
    }
}

fn max_bytes(environment: &Environment) -> u64 {
    let Some(text) = environment.text("WALE_PREFETCH_BYTES") else { return DEFAULT_MAX_BYTES };
    text.parse().unwrap_or_else(|_| {
        // no reason to fail a restore_command
        tracing::warn!("WALE_PREFETCH_BYTES is \"{text}\" and not a number of bytes; {DEFAULT_MAX_BYTES} are used");
        DEFAULT_MAX_BYTES
    })
}

fn origin(system_identifier: u64, global: &GlobalArgs, config: &ArchiveConfig, environment: &Environment) -> Origin {
    Origin { archive: config.wal_directory_url(), system_identifier, configuration: configuration(global, environment) }
}

/// A digest of all that decides how the archive is reached: what a process was started with stays with it, so that a
/// prefetcher of yesterday's credentials has to be told from today's. The program is part of it, so that an upgrade
/// replaces it.
fn configuration(global: &GlobalArgs, environment: &Environment) -> [u8; 32] {
    const PREFIXES: [&str; 3] = ["WALE_", "WAL_EVE_", "AWS_"];
    const NAMES: [&str; 6] = ["SSL_CERT_FILE", "SSL_CERT_DIR", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"];
    // where the files of ~/.aws are, in case the credentials come from there
    let home = environment.text("AWS_ACCESS_KEY_ID").is_none();
    let applies = |name: &str| match name {
        "WALE_LOG_DESTINATION" | "WALE_SYSLOG_FACILITY" => false,
        "HOME" => home,
        _ => {
            PREFIXES.iter().any(|prefix| name.starts_with(prefix))
                || NAMES.contains(&name.to_ascii_uppercase().as_str())
        }
    };
    let mut digest = Sha256::new();
    let mut add = |bytes: &[u8]| {
        digest.update((bytes.len() as u64).to_le_bytes());
        digest.update(bytes);
    };
    for (name, value) in environment.select(applies) {
        add(name.as_bytes());
        add(value.as_bytes());
    }
    global.to_args().iter().for_each(|arg| add(arg.as_bytes()));
    if let Ok(program) = std::fs::metadata("/proc/self/exe") {
        add(&program.ino().to_le_bytes());
        add(&program.mtime_nsec().to_le_bytes());
        add(&program.mtime().to_le_bytes());
    }
    digest.finalize().into()
}

/// The options of a started prefetcher.
pub(super) fn options(
    args: &PrefetchArgs,
    global: &GlobalArgs,
    config: &ArchiveConfig,
    environment: &Environment,
) -> Result<PrefetchOptions, Failure> {
    let segment_size = SegmentSize::new(args.segment_size)
        .ok_or_else(|| Failure::usage(format!("{} bytes is no segment size", args.segment_size)))?;
    Ok(PrefetchOptions {
        spool: Spool::at(args.spool.clone()),
        origin: origin(args.system_identifier, global, config, environment),
        position: args.position,
        segment_size,
        look_ahead: args.look_ahead,
        max_bytes: args.max_bytes,
        recovery: args.recovery,
        first_ask_timeout: Duration::from_secs(args.first_ask_seconds),
    })
}

/// The status in `directory`'s spool as a person reads it, or as JSON.
pub(super) fn status_text(directory: &Path, json: bool, environment: &Environment) -> Result<String, Failure> {
    let directory = DataDirectory::open(directory).map_err(|failed| Failure::Command(failed.into()))?;
    let spool = spool(&directory, environment);
    let read = Status::read(&spool).map_err(|failed| {
        Failure::usage(format!("could not read the status in \"{}\": {failed}", spool.directory().display()))
    })?;
    let Some(status) = read else {
        let hint = "The first wal-fetch of a server in recovery starts one. With WALE_PREFETCH_DIR set there, set it here too.";
        let message = format!("no prefetcher has worked in \"{}\" yet", spool.directory().display());
        return Err(Failure::Usage(message, Some(hint.into())));
    };
    Ok(if json {
        format!("{}\n", serde_json::to_string_pretty(&status).expect("plain numbers and text"))
    } else {
        table(&status)
    })
}

fn table(status: &Status) -> String {
    let state = match status.running {
        true => format!("{} (process {})", status.state, status.pid),
        false if status.state.starts_with("ended") => status.state.clone(),
        false => format!("not running; it was {}", status.state),
    };
    let ago = |time: u64| format!("{} s ago", status::now().saturating_sub(time));
    let asked = status.hits + status.misses;
    let hit_rate = if asked == 0 { "-".into() } else { format!("{:.1} %", 100.0 * status.hits as f64 / asked as f64) };
    let left = match (&status.archive_end, status.segments_left, status.seconds_left) {
        (Some(end), Some(left), Some(seconds)) => {
            format!("{left} segments to {end}, about {} min", seconds.div_ceil(60))
        }
        (Some(end), Some(left), None) => format!("{left} segments to {end}"),
        _ => "not known yet".into(),
    };
    let mut text = String::new();
    let mut row = |name: &str, value: String| writeln!(text, "{name:<16}{value}").expect("a String takes every write");
    row("state", state);
    row("as of", ago(status.time));
    row("archive", status.archive.clone());
    row("position", status.position.clone());
    row(
        "window",
        format!(
            "{} of at most {} segments: {} ready, {} on their way",
            status.look_ahead, status.look_ahead_limit, status.ready, status.fetching
        ),
    );
    row("hits", format!("{hit_rate} ({} of {asked}, {} of them waited for)", status.hits, status.waits));
    row("replay", format!("{:.1} segments/s, {:.0} MB/s", status.segments_per_second, status.megabytes_per_second));
    row("left", left);
    row("bottleneck", status.bottleneck.clone().unwrap_or_else(|| "-".into()));
    if let (Some(error), Some(time)) = (&status.last_error, status.last_error_time) {
        row("last error", format!("{error} ({})", ago(time)));
    }
    text
}
