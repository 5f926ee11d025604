//! From arguments to a command and back.

use std::ffi::OsString;
use std::future::Future;
use std::io::{self, Write as _};
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use clap::error::ErrorKind;

use super::args::{
    BackupFetchArgs, BackupListArgs, BackupPushArgs, Cli, Command, CompressionArgs, DeleteArgs, GlobalArgs,
    PrefetchArgs, WalFetchArgs, WalPushArgs,
};
use super::environment::Environment;
use super::exit::{Caller, ExitStatus, Failure};
use super::recovery::{Doubt, data_directory, usage_status};
use super::store::ArchiveConfig;
use super::{backup_table, connection, cutover, delete_text, log, next_steps, prefetch, progress_line};
use crate::commands::backup_fetch::{BackupFetchOptions, FirstWal, TablespaceChoice, backup_fetch};
use crate::commands::backup_list::{BackupListOptions, backup_list};
use crate::commands::backup_push::{BackupPushOptions, backup_push};
use crate::commands::delete::{DeleteOptions, delete};
use crate::commands::wal_fetch::{Fetched, WalFetchOptions, wal_fetch};
use crate::commands::wal_push::{Pushed, WalPushOptions, already_pushed, wal_push};
use crate::formats::lzo1x::Level;
use crate::prefetch::client::Answer;
use crate::prefetch::prefetcher;
use crate::prefetch::start;
use crate::storage::retry::RetryPolicy;
use crate::transfer::progress::Progress;

type Result = std::result::Result<ExitStatus, Failure>;

/// How long `wal-push` and `wal-fetch` keep trying before they hand back to PostgreSQL, which asks again: long enough for a
/// store's hiccup, short enough that the server's log shows the outage.
const WAL_PATIENCE: Duration = Duration::from_secs(60);

/// How long `wal-fetch` keeps trying outside of standby mode, where giving up stops recovery: 15 min.
const RECOVERY_PATIENCE: Duration = Duration::from_secs(15 * 60);

/// The same for a file that a promotion goes on without: 10 s, for which it is held up.
const PROMOTION_PATIENCE: Duration = Duration::from_secs(10);

/// Requests under way at once that a backup command may make for each partition of its pool: two parts, and the next one.
const REQUESTS_PER_PARTITION: usize = 3;

/// How long a prefetcher keeps trying before it lets its callers try themselves.
const PREFETCH_PATIENCE: Duration = Duration::from_secs(10);

/// Requests under way at once that a prefetcher may make.
const PREFETCH_REQUESTS: usize = 20;

/// Requests under way at once that `delete` may make: its deletions.
const DELETE_REQUESTS: usize = 32;

/// Runs the command that `args` name, the program's own name first.
pub fn run(args: &[OsString]) -> ExitStatus {
    let environment = Environment::of_process();
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(refused) => return parse_failure(&refused, args),
    };
    let Cli { global, command } = cli;
    let quiet = matches!(command, Command::WalPush(_) | Command::WalFetch(_));
    if let Command::Prefetch(args) = command {
        return prefetch_in_background(&args, &global, &environment);
    }
    log::start(&environment, global.terse, quiet);
    panic_if_asked(&environment, args);
    if matches!(command, Command::BackupPush(_) | Command::BackupFetch(_) | Command::Delete(_)) {
        name_what_has_no_effect(&environment);
    }
    let caller = match &command {
        Command::WalPush(_) => Caller::WalPush,
        Command::WalFetch(fetch) => {
            let name = fetch.segment.parse().ok();
            Caller::WalFetch(Doubt::of(fetch.on_outage, name.as_ref(), &fetch.destination))
        }
        _ => Caller::Other,
    };
    let config = || ArchiveConfig::new(&global, &environment);
    let done = match command {
        Command::Version => print(&format!("{}\n", env!("CARGO_PKG_VERSION"))).map(|()| ExitStatus::DONE),
        Command::WalPush(args) => config().and_then(|config| push(args, config, &environment)),
        Command::WalFetch(args) => config().and_then(|config| fetch(args, &global, config, &environment, caller)),
        Command::Prefetch(_) => unreachable!("it has its own way out above"),
        Command::PrefetchStatus(args) => prefetch::status_text(&args.directory, args.json, &environment)
            .and_then(|text| print(&text))
            .map(|()| ExitStatus::DONE),
        Command::Cutover(args) => cutover::run(args, &global, &environment, full_runtime(), print),
        Command::BackupList(args) => config().and_then(|config| list(args, config)),
        Command::Delete(args) => config().and_then(|config| remove(args, config)),
        Command::BackupFetch(args) => config().and_then(|config| restore(args, &global, config, &environment)),
        Command::BackupPush(args) => config().and_then(|config| back_up(args, config, &environment)),
    };
    done.unwrap_or_else(|failure| {
        failure.report();
        if let Caller::WalFetch(doubt) = caller
            && let Some(hint) = doubt.hint()
        {
            note(&format!("HINT:  {hint}"));
        }
        failure.status(caller)
    })
}

/// Warns of the one variable of WAL-E's that is not honoured: its tries are up to two minutes apart and ours some seconds, so
/// that the same number would give up far sooner. Not in the server's log, where it would stand once a segment.
fn name_what_has_no_effect(environment: &Environment) {
    if environment.is_set("WALE_RETRIES") {
        tracing::warn!(
            "WALE_RETRIES has no effect: how long to keep trying goes by time and not by the number of tries"
        );
    }
}

/// Lets a test see what a panic ends the process with; release builds have no such switch.
fn panic_if_asked(environment: &Environment, args: &[OsString]) {
    if cfg!(debug_assertions) && environment.path("WAL_EVE_PANIC").is_some_and(|command| args.contains(&command.into()))
    {
        panic!("asked for by WAL_EVE_PANIC");
    }
}

/// Help and version are results and go to stdout; what cannot be parsed must not look like the end of WAL.
fn parse_failure(refused: &clap::Error, args: &[OsString]) -> ExitStatus {
    let printed = refused.print();
    match refused.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => match written(printed) {
            Ok(()) => ExitStatus::DONE,
            Err(failure) => {
                failure.report();
                failure.status(Caller::Other)
            }
        },
        _ => usage_status(args),
    }
}

fn push(args: WalPushArgs, config: ArchiveConfig, environment: &Environment) -> Result {
    prefetch::clean_up(&args.segment, environment);
    let options = WalPushOptions {
        file: args.segment,
        // WAL-E takes 0 for 1
        pool_size: NonZeroUsize::new(args.pool_size).unwrap_or(NonZeroUsize::MIN),
        level: level(&args.compression, environment)?,
        endpoint: config.endpoint(),
    };
    if let Some(report) = already_pushed(|name| config.wal_url(name), &options) {
        tracing::debug!(?report, "answered from an earlier look-ahead");
        return Ok(ExitStatus::DONE);
    }
    let patience = args.patience.map_or(WAL_PATIENCE, Duration::from_secs);
    let archive = config.open(patient_for(patience), options.pool_size.saturating_mul(nonzero(REQUESTS_PER_PARTITION)));
    let report = run_to_end(light_runtime(), wal_push(&archive, &options))?;
    if report.pushed == Pushed::AlreadyIdentical {
        tracing::debug!("the archive held the same bytes already");
    }
    Ok(ExitStatus::DONE)
}

fn fetch(
    args: WalFetchArgs,
    global: &GlobalArgs,
    config: ArchiveConfig,
    environment: &Environment,
    caller: Caller,
) -> Result {
    let ahead = prefetch::request(&args, global, &config, environment);
    if args.segment.ends_with(".history") {
        prefetch::clean_up(&args.destination, environment);
    }
    if let Some(ahead) = &ahead {
        let answer = ahead.caller.take(ahead.name, &args.destination);
        if let Some(news) = ahead.caller.news() {
            news.lines().for_each(note);
        }
        match answer {
            Answer::Taken => return Ok(ExitStatus::DONE),
            Answer::Direct(why) => why.iter().for_each(|why| tracing::warn!("fetching without the prefetcher: {why}")),
        }
    }
    let archive = config.open(fetch_retries(caller, args.patience), nonzero(REQUESTS_PER_PARTITION));
    let refuse_gap = caller == Caller::WalFetch(Doubt::Stop);
    let data_directory = data_directory(&args.destination);
    let options =
        WalFetchOptions { file_name: args.segment, destination: args.destination, data_directory, refuse_gap };
    match run_to_end(light_runtime(), wal_fetch(&archive, &options))? {
        Fetched::Restored => {
            if let Some(ahead) = ahead {
                ahead.found(global, environment);
            }
            Ok(ExitStatus::DONE)
        }
        Fetched::Absent => {
            prefetch::clean_up(&options.destination, environment);
            Ok(ExitStatus::ABSENT)
        }
    }
}

/// The prefetcher: a process in the background, whose status is 0 or 1 whatever happens, since a server may adopt it.
fn prefetch_in_background(args: &PrefetchArgs, global: &GlobalArgs, environment: &Environment) -> ExitStatus {
    let run = || {
        let failed = |failed: io::Error| {
            Failure::usage(format!("could not use the prefetch spool \"{}\": {failed}", args.spool.display()))
        };
        start::detach().map_err(failed)?;
        let config = ArchiveConfig::new(global, environment)?;
        let options = prefetch::options(args, global, &config, environment)?;
        options.spool.create().map_err(failed)?;
        log::start_file(environment, &options.spool.log()).map_err(failed)?;
        let archive = config.open(for_prefetching(), nonzero(PREFETCH_REQUESTS));
        let work = prefetcher::prefetch(archive.store, archive.layout, options);
        run_to_end(light_runtime(), work).map_err(failed).map(drop)
    };
    match run() {
        Ok(()) => ExitStatus::DONE,
        Err(failure) => {
            tracing::error!("{failure}");
            ExitStatus::USER
        }
    }
}

fn list(args: BackupListArgs, config: ArchiveConfig) -> Result {
    let file_store = config.is_file();
    let archive = config.open(RetryPolicy::default(), nonzero(8));
    let wal_e = !args.json && !args.table;
    // as WAL-E, before anything can fail
    if wal_e {
        print(&backup_table::wal_e_header())?;
    }
    let options = BackupListOptions { query: args.query, detail: args.detail };
    let backups = run_to_end(full_runtime(), backup_list(&archive, &options))?;
    print(&if args.json {
        backup_table::json(&backups)
    } else if args.table {
        backup_table::table(&backups)
    } else {
        backup_table::wal_e_rows(&backups, file_store)
    })?;
    Ok(ExitStatus::DONE)
}

fn remove(args: DeleteArgs, config: ArchiveConfig) -> Result {
    let options = DeleteOptions::from(args);
    let archive = config.open(patient_once_reached(), nonzero(DELETE_REQUESTS));
    let report = run_to_end(full_runtime(), delete(&archive, &options))?;
    print(&delete_text::text(&report, options.confirmed))?;
    Ok(ExitStatus::DONE)
}

fn restore(args: BackupFetchArgs, global: &GlobalArgs, config: ArchiveConfig, environment: &Environment) -> Result {
    let tablespaces = match args.restore_spec {
        _ if args.blind_restore => TablespaceChoice::Blind,
        None => TablespaceChoice::ExistingLinks,
        Some(source) if source == Path::new("SOURCE") => TablespaceChoice::AsOnSource,
        Some(file) => TablespaceChoice::Spec(read_spec(&file)?),
    };
    let archive = config.open(patient_once_reached(), args.pool_size.saturating_mul(nonzero(REQUESTS_PER_PARTITION)));
    let options = BackupFetchOptions {
        directory: args.directory,
        query: args.name,
        pool_size: args.pool_size,
        tablespaces,
        allow_missing_wal: args.allow_missing_wal,
        allow_missing_files: args.allow_missing_files,
    };
    let start = |first: &FirstWal| {
        if !args.no_prefetch {
            prefetch::start_after_restore(first, global, environment);
        }
    };
    let report = long_work("restoring", |progress| {
        let (archive, options) = (&archive, &options);
        async move { backup_fetch(archive, options, progress, start).await }
    })?;
    print_after_work(&next_steps::text(&report));
    Ok(ExitStatus::DONE)
}

fn back_up(args: BackupPushArgs, config: ArchiveConfig, environment: &Environment) -> Result {
    let server = if args.while_offline { None } else { Some(connection::settings(environment)?) };
    let options = BackupPushOptions {
        directory: args.directory,
        server,
        pool_size: args.pool_size,
        read_rate_limit: args.cluster_read_rate_limit,
        fast_checkpoint: args.fast,
        include_config: args.include_config,
        wal_timeout: Duration::from_secs(args.wal_timeout),
        level: level(&args.compression, environment)?,
    };
    let archive = config.open(patient_once_reached(), args.pool_size.saturating_mul(nonzero(REQUESTS_PER_PARTITION)));
    let report = long_work("archiving", |progress| {
        let (archive, options) = (&archive, &options);
        async move { backup_push(archive, options, progress).await }
    })?;
    print_after_work(&format!("{}\n", report.name));
    Ok(ExitStatus::DONE)
}

/// Runs a command that shows its progress, and logs how it went.
fn long_work<T, F>(what: &'static str, work: impl FnOnce(Arc<Progress>) -> F) -> std::result::Result<T, Failure>
where
    F: Future<Output = crate::commands::Result<T>>,
{
    let progress = Arc::new(Progress::default());
    let began = Instant::now();
    let watched = progress_line::watched(what, progress.clone(), work(progress.clone()));
    let done = run_to_end(full_runtime(), watched)?;
    tracing::info!("done {what}: {}", progress_line::summary(&progress, began.elapsed()));
    Ok(done)
}

fn read_spec(file: &Path) -> std::result::Result<serde_json::Value, Failure> {
    let failed = |why: String| {
        let hint =
            "Give SOURCE, or a file such as {\"16384\": {\"loc\": \"/new/place/\", \"link\": \"pg_tblspc/16384\"}}.";
        Failure::Usage(
            format!("could not read the restore specification \"{}\": {why}", file.display()),
            Some(hint.into()),
        )
    };
    let bytes = std::fs::read(file).map_err(|failure| failed(failure.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|failure| failed(failure.to_string()))
}

fn level(args: &CompressionArgs, environment: &Environment) -> std::result::Result<Level, Failure> {
    match (args.lzo_level, environment.text("WALE_LZO_LEVEL").as_deref()) {
        (Some(level), _) => Ok(level.into()),
        (None, None | Some("fast")) => Ok(Level::Fast),
        (None, Some("best")) => Ok(Level::Best),
        (None, Some(other)) => {
            Err(Failure::Usage(format!("WALE_LZO_LEVEL is \"{other}\""), Some("It should be fast or best.".into())))
        }
    }
}

/// For the server's own commands. Time alone decides: a refused connection fails at once, so that any number of tries may be
/// over long before it.
fn patient_for(patience: Duration) -> RetryPolicy {
    RetryPolicy {
        attempts: NonZeroU32::MAX,
        patience: Some(patience),
        patience_once_reached: Some(patience),
        ..RetryPolicy::default()
    }
}

/// For `wal-fetch`, by what its giving up means for the server.
fn fetch_retries(caller: Caller, wish: Option<u64>) -> RetryPolicy {
    let patience = |usual| wish.map_or(usual, Duration::from_secs);
    match caller {
        Caller::WalFetch(Doubt::GoOn) => {
            let patience = patience(PROMOTION_PATIENCE).min(PROMOTION_PATIENCE);
            RetryPolicy { expired_patience: patience, ..patient_for(patience) }
        }
        Caller::WalFetch(Doubt::AskAgain | Doubt::AskAgainForHistory) => patient_for(patience(WAL_PATIENCE)),
        _ => patient_for(patience(RECOVERY_PATIENCE)),
    }
}

/// For what takes hours: a wrong address is found out within a minute, and once the work is under way an outage may last a
/// quarter of an hour before it is all given up.
fn patient_once_reached() -> RetryPolicy {
    RetryPolicy {
        patience: Some(WAL_PATIENCE),
        patience_once_reached: Some(RECOVERY_PATIENCE),
        ..patient_for(WAL_PATIENCE)
    }
}

/// For a prefetcher: its caller waits, and tries itself with all its patience when this one gives up.
fn for_prefetching() -> RetryPolicy {
    // it outlives outages: what it was refused at first tells nothing about later
    RetryPolicy { patience: None, expired_patience: PREFETCH_PATIENCE, ..patient_for(PREFETCH_PATIENCE) }
}

fn nonzero(number: usize) -> NonZeroUsize {
    NonZeroUsize::new(number).unwrap_or(NonZeroUsize::MIN)
}

/// For commands that are over in milliseconds: no worker threads; CPU work still goes to threads of its own.
fn light_runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("the system gives a process an event queue")
}

fn full_runtime() -> tokio::runtime::Runtime {
    // a partition keeps a thread for as long as it lasts, and its blocks need others
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(8192)
        .build()
        .expect("the system gives a process threads")
}

/// Runs `work` and leaves behind what it gave up: a read that hangs in a dead network filesystem must not hold the end up.
fn run_to_end<T>(runtime: tokio::runtime::Runtime, work: impl Future<Output = T>) -> T {
    let done = runtime.block_on(work);
    runtime.shutdown_background();
    done
}

/// A line for the server's log, whatever the level of logging.
fn note(line: &str) {
    let _ = writeln!(io::stderr().lock(), "wal-eve: {line}");
    log::report(tracing::Level::INFO, line);
}

/// Prints a result.
fn print(text: &str) -> std::result::Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    written(stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()))
}

/// A reader that has gone away has seen enough; whatever else keeps a result from being written is a failure, or half a
/// list would pass for the whole. The standard library lets a stdout that was closed from the start take everything.
fn written(printed: io::Result<()>) -> std::result::Result<(), Failure> {
    printed.or_else(|failed| match failed.kind() {
        io::ErrorKind::BrokenPipe => Ok(()),
        _ => Err(Failure::Unwritten(failed)),
    })
}

/// Prints what there is to say after hours of work, which is done whether or not that can be written.
fn print_after_work(text: &str) {
    if let Err(failure) = print(text) {
        tracing::warn!("{}", failure.message());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promotion_is_not_held_up_for_what_it_goes_on_without() {
        let patience = |doubt, wish| {
            let policy = fetch_retries(Caller::WalFetch(doubt), wish);
            (policy.patience_once_reached.unwrap().as_secs(), policy.expired_patience.as_secs())
        };
        for (wish, expected) in [(None, 10), (Some(900), 10), (Some(2), 2)] {
            assert_eq!(patience(Doubt::GoOn, wish), (expected, expected), "{wish:?}");
        }
        assert_eq!(patience(Doubt::StopPromotion, None).0, 900);
        assert_eq!(patience(Doubt::AskAgain, Some(5)).0, 5);
    }

    #[test]
    fn patience_is_never_cut_short_by_a_number_of_tries() {
        for patience in [WAL_PATIENCE, RECOVERY_PATIENCE] {
            let policy = patient_for(patience);
            assert_eq!((policy.patience, policy.patience_once_reached), (Some(patience), Some(patience)));
            // a refused connection takes no time, so the waits alone would have to fill it
            let waits = policy.max_delay * policy.attempts.get().min(1000);
            assert!(waits > 2 * patience);
        }
    }
}
