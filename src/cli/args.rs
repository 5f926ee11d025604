//! WAL-E's command grammar (`spec/wal-e-format.md` §8.1, §8.2) and what wal-eve adds to it. The comments are the help texts.

use std::ffi::OsString;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

use super::cutover::args::CutoverArgs;
use crate::commands::delete::{DeleteOptions, OldestKept, Scope};
use crate::formats::lzo1x;
use crate::formats::wal_name::SegmentName;

/// Archive and restore PostgreSQL in WAL-E's own layout.
///
/// wal-eve is a drop-in replacement for WAL-E: the same command line, the same environment, the same objects. Global options
/// go before the subcommand. The archive is chosen by WALE_S3_PREFIX (s3://bucket/path) or WALE_FILE_PREFIX
/// (file://localhost/path); credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or from wherever the AWS SDK
/// finds them.
///
/// In postgresql.conf:
///
///   archive_command = 'wal-eve wal-push %p'
///   restore_command = 'wal-eve wal-fetch %f %p'
#[derive(Debug, Parser)]
#[command(
    name = "wal-eve",
    version,
    infer_long_args = true,
    disable_help_subcommand = true,
    subcommand_required = true,
    max_term_width = 100
)]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) global: GlobalArgs,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Args)]
pub(super) struct GlobalArgs {
    /// Read environment variables from the files of a directory, as envdir does: each file is a variable, its first line the value
    ///
    /// Credentials that are rewritten there while a command runs are read again when the old ones expire.
    #[arg(long, value_name = "DIR")]
    pub(super) envdir: Option<PathBuf>,
    /// The AWS access key's identity; the secret key has no option, since others can see a process's arguments [env: AWS_ACCESS_KEY_ID]
    #[arg(short = 'k', long, value_name = "KEY", conflicts_with = "aws_instance_profile")]
    pub(super) aws_access_key_id: Option<String>,
    /// Use the credentials of the machine's instance profile [env: AWS_INSTANCE_PROFILE]
    #[arg(long)]
    pub(super) aws_instance_profile: bool,
    /// Where the archive lies: s3://bucket/path [env: WALE_S3_PREFIX]
    #[arg(long, value_name = "URL")]
    pub(super) s3_prefix: Option<String>,
    /// Where the archive lies, on a local or mounted filesystem: file://localhost/path [env: WALE_FILE_PREFIX]
    #[arg(long, value_name = "URL")]
    pub(super) file_prefix: Option<String>,
    #[arg(long, value_name = "URL", hide = true)]
    pub(super) wabs_prefix: Option<String>,
    #[arg(long, value_name = "URL", hide = true)]
    pub(super) gs_prefix: Option<String>,
    #[arg(short = 'a', long, value_name = "NAME", hide = true)]
    pub(super) wabs_account_name: Option<String>,
    #[arg(long, value_name = "KEY", hide = true)]
    pub(super) gs_access_key_id: Option<String>,
    #[arg(long, value_name = "ID", hide = true)]
    pub(super) gpg_key_id: Option<String>,
    /// Log warnings and errors only
    #[arg(long)]
    pub(super) terse: bool,
}

impl GlobalArgs {
    /// The same on another command line of this program. `--envdir` is left out: its variables are in the environment.
    pub(super) fn to_args(&self) -> Vec<OsString> {
        let options = [
            ("--aws-access-key-id", &self.aws_access_key_id),
            ("--s3-prefix", &self.s3_prefix),
            ("--file-prefix", &self.file_prefix),
            ("--wabs-prefix", &self.wabs_prefix),
            ("--gs-prefix", &self.gs_prefix),
        ];
        let flags = [("--aws-instance-profile", self.aws_instance_profile), ("--terse", self.terse)];
        let options = options.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", value.as_ref()?)));
        let flags = flags.into_iter().filter(|(_, given)| *given).map(|(name, _)| name.to_owned());
        options.chain(flags).map(OsString::from).collect()
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print the version
    Version,
    BackupPush(BackupPushArgs),
    BackupFetch(BackupFetchArgs),
    BackupList(BackupListArgs),
    Delete(DeleteArgs),
    WalPush(WalPushArgs),
    WalFetch(WalFetchArgs),
    #[command(hide = true)]
    Prefetch(PrefetchArgs),
    PrefetchStatus(PrefetchStatusArgs),
    Cutover(CutoverArgs),
}

/// Archive a base backup of a running cluster
///
/// Connects to the server that PGHOST, PGPORT, PGUSER and the other variables of libpq name (without PGUSER as the role that is
/// called like the account), starts a non-exclusive backup, archives the data directory and every tablespace, and waits for the
/// WAL it needs to be in the archive before it stores the sentinel that makes the backup complete. Works on a standby too. postgresql.conf, pg_hba.conf and pg_ident.conf are left
/// out, as WAL-E leaves them out, unless --include-config is given.
#[derive(Debug, Args)]
pub(super) struct BackupPushArgs {
    /// The cluster's data directory
    #[arg(value_name = "PG_CLUSTER_DIRECTORY")]
    pub(super) directory: PathBuf,
    /// How many partitions to upload at once
    #[arg(short = 'p', long, value_name = "N", default_value = "4")]
    pub(super) pool_size: NonZeroUsize,
    /// Read no more than this many bytes per second from the data directory
    #[arg(long, value_name = "BYTES_PER_SECOND")]
    pub(super) cluster_read_rate_limit: Option<NonZeroU64>,
    /// Back up a cluster that is shut down, without connecting to it
    #[arg(long)]
    pub(super) while_offline: bool,
    /// Begin with an immediate checkpoint instead of one spread over checkpoint_completion_target
    #[arg(long, conflicts_with = "while_offline")]
    pub(super) fast: bool,
    /// Archive postgresql.conf, pg_hba.conf and pg_ident.conf as well
    #[arg(long)]
    pub(super) include_config: bool,
    /// How long to wait, once the files are archived, until the archive holds the WAL that the backup needs; 0 looks once
    #[arg(long, value_name = "SECONDS", default_value = "3600")]
    pub(super) wal_timeout: u64,
    #[command(flatten)]
    pub(super) compression: CompressionArgs,
}

/// Restore a base backup
///
/// PG_CLUSTER_DIRECTORY has to be empty or not there, but for links to empty directories in pg_tblspc. The control file is put
/// in place last, so that a server cannot start on a half-restored directory; run again after an interruption, the same
/// command goes on where it stopped, with the same backup also where LATEST is another one by now. Afterwards it says what is
/// left to do before the server starts.
#[derive(Debug, Args)]
pub(super) struct BackupFetchArgs {
    /// The data directory to restore to
    #[arg(value_name = "PG_CLUSTER_DIRECTORY")]
    pub(super) directory: PathBuf,
    /// The backup's name from backup-list, or LATEST
    #[arg(value_name = "BACKUP_NAME")]
    pub(super) name: String,
    /// How many partitions to fetch at once
    #[arg(short = 'p', long, value_name = "N", default_value = "4")]
    pub(super) pool_size: NonZeroUsize,
    /// Restore without checking the tablespaces' links: those without a link become real directories in pg_tblspc
    #[arg(long, conflicts_with = "restore_spec")]
    pub(super) blind_restore: bool,
    /// Make the tablespaces' links, as on the source (SOURCE) or as a JSON file says
    ///
    /// The file's keys replace those of the backup's own specification: {"16384": {"loc": "/new/place/", "link":
    /// "pg_tblspc/16384"}}. Unlike WAL-E, SOURCE restores the data directory to PG_CLUSTER_DIRECTORY and not to where it lay on
    /// the source; a "base_prefix" in the file is followed.
    #[arg(long, value_name = "FILE|SOURCE")]
    pub(super) restore_spec: Option<PathBuf>,
    /// Go on when the archive lacks WAL that the backup needs to become consistent
    #[arg(long)]
    pub(super) allow_missing_wal: bool,
    /// Go on when more than a twentieth of the backup's bytes are missing from its partitions
    #[arg(long)]
    pub(super) allow_missing_files: bool,
    /// Do not fetch the first segments of WAL while the backup still loads
    #[arg(long)]
    pub(super) no_prefetch: bool,
}

/// List the complete base backups
///
/// Prints what WAL-E prints: tab-separated columns under a header.
#[derive(Debug, Args)]
pub(super) struct BackupListArgs {
    /// A backup's name, or LATEST; lists all if left out
    #[arg(value_name = "QUERY")]
    pub(super) query: Option<String>,
    /// Fill in the expanded size and the stop position, with one request per backup
    #[arg(long)]
    pub(super) detail: bool,
    /// Print a JSON array instead
    #[arg(long, conflicts_with = "table")]
    pub(super) json: bool,
    /// Print an aligned table for reading instead
    #[arg(long)]
    pub(super) table: bool,
}

/// Delete base backups and WAL that are no longer needed
///
/// Only says what would go, unless --confirm is given: try it without, read what it says, then add --confirm. Both options
/// stand between delete and what is to go, as in wal-eve delete --confirm retain 7.
///
/// "Older" goes by the place in the WAL where a backup starts, whatever its timeline. WAL from the start of the oldest kept
/// backup on is always kept, and so are .history files. Sentinels go first: an interrupted delete leaves nothing that looks
/// complete, and the same command goes on with it. It deletes nothing and says why when that order cannot be relied on:
/// because it contradicts that of time, or because the backups are of different clusters.
///
/// A name that WAL-E's --while-offline may have written, such as base_000000010000000200000016_00000016, often tells the wrong
/// segment. Such a backup goes only when its whole log file of 4 GiB of WAL is older, and while it stays, that log file's WAL
/// stays.
#[derive(Debug, Args)]
#[command(subcommand_value_name = "WHAT", subcommand_help_heading = "What is to go")]
pub(super) struct DeleteArgs {
    /// Only say what would be deleted, even with --confirm
    #[arg(short = 'n', long)]
    pub(super) dry_run: bool,
    /// Really delete
    #[arg(long)]
    pub(super) confirm: bool,
    #[command(subcommand)]
    pub(super) operator: DeleteOperator,
}

#[derive(Debug, Subcommand)]
pub(super) enum DeleteOperator {
    /// Delete what is older than a backup or a segment
    ///
    /// Base backups that start before it, complete or not, and WAL before it. Refuses when no complete backup would be left;
    /// for that there is delete everything. An incomplete backup stays while it may be in progress: when it has objects that
    /// are newer than the oldest kept backup's sentinel.
    Before {
        /// A whole name from backup-list, which need not exist, or the name of a WAL segment
        #[arg(value_name = "NAME", value_parser = parse_oldest_kept)]
        name: OldestKept,
    },
    /// Delete what the newest complete backups do not need
    ///
    /// Keeps the N complete base backups that were finished last and all WAL from the start of the oldest of them on, and
    /// deletes older backups, complete or not, and older WAL. With N or fewer complete backups they all stay, and older WAL
    /// and incomplete backups go. Without any, nothing is deleted.
    Retain {
        /// How many complete backups to keep; at least 1
        #[arg(value_name = "N", value_parser = parse_retained)]
        count: NonZeroUsize,
    },
    /// Delete what versions of WAL-E before 0.5 have stored: objects that no newer version reads
    OldVersions,
    /// Delete all base backups and all WAL below the prefix
    Everything,
}

fn parse_retained(text: &str) -> Result<NonZeroUsize, String> {
    text.parse().map_err(|_| "it has to be the number of backups to keep, 1 or more".to_owned())
}

fn parse_oldest_kept(text: &str) -> Result<OldestKept, String> {
    let backup = text.parse().map(OldestKept::Backup);
    backup.or_else(|_| text.parse().map(OldestKept::Segment)).map_err(|_| {
        "it is neither a whole name from backup-list, such as base_000000010000000000000002_00000040, nor that of a WAL segment, such as 000000010000000000000002".to_owned()
    })
}

impl From<DeleteArgs> for DeleteOptions {
    fn from(args: DeleteArgs) -> Self {
        let scope = match args.operator {
            DeleteOperator::Before { name } => Scope::Before(name),
            DeleteOperator::Retain { count } => Scope::Retain(count),
            DeleteOperator::OldVersions => Scope::OldVersions,
            DeleteOperator::Everything => Scope::Everything,
        };
        Self { scope, confirmed: args.confirm && !args.dry_run }
    }
}

/// Archive a WAL file: PostgreSQL's archive_command
///
/// Exits with 0 only when the file is durable in the archive. An object that is there already is never overwritten: the same
/// contents are success, different ones an error. While PostgreSQL has a backlog, the segments that wait next in
/// archive_status are pushed in the same call.
#[derive(Debug, Args)]
pub(super) struct WalPushArgs {
    /// The file, as %p gives it
    #[arg(value_name = "WAL_SEGMENT")]
    pub(super) segment: PathBuf,
    /// How many files to push at once: this one and those that wait after it
    #[arg(short = 'p', long, value_name = "N", default_value = "32")]
    pub(super) pool_size: usize,
    /// How long to keep trying while the store cannot be reached, counted from its last answer, or the last byte that it took
    /// [default: 60]
    #[arg(long, value_name = "SECONDS")]
    pub(super) patience: Option<u64>,
    #[command(flatten)]
    pub(super) compression: CompressionArgs,
}

/// Fetch a WAL file: PostgreSQL's restore_command
///
/// Exits with 0 when the file is in place, whole and checked, and with 1 only when the archive has just said that it does not
/// hold it. Every other outcome - an outage, wrong credentials, a damaged object, a full disk - is 75 in standby mode, where
/// PostgreSQL asks again, and 250 otherwise, where a lower status would end recovery and promote with WAL missing. The one
/// exception is a history that a server asks for at the end of its promotion without needing it, which is 75: stopped then, it
/// would start again as a primary on its old timeline.
///
/// While a server replays segment after segment, a process in the background fetches the next ones into
/// pg_wal/.wal-e/prefetch, or below WALE_PREFETCH_DIR, and a call only has to rename what is there. It takes a quarter of the
/// free space at most, and at most WALE_PREFETCH_BYTES (1 GiB), and ends with the server's recovery. prefetch-status shows it.
#[derive(Debug, Args)]
pub(super) struct WalFetchArgs {
    /// The file's name, as %f gives it
    #[arg(value_name = "WAL_SEGMENT")]
    pub(super) segment: String,
    /// Where to put it, as %p gives it
    #[arg(value_name = "WAL_DESTINATION")]
    pub(super) destination: PathBuf,
    /// The oldest file still needed, as %r gives it; accepted, though nothing older than the segment asked for is kept anyway
    #[arg(value_name = "OLDEST_NEEDED")]
    pub(super) oldest_needed: Option<SegmentName>,
    /// How many segments to fetch ahead of replay at most; 0 fetches the one asked for and nothing else [default: 64, or as many as there is room for]
    #[arg(short = 'p', long, value_name = "N")]
    pub(super) prefetch: Option<usize>,
    /// What to tell PostgreSQL when it cannot be said whether the file exists, instead of going by the recovery mode
    #[arg(long, value_name = "POLICY")]
    pub(super) on_outage: Option<OnOutage>,
    /// How long to keep trying while the store cannot be reached [default: 60 in standby mode, where PostgreSQL asks again, 900 otherwise; at most 10 for what a promotion goes on without]
    #[arg(long, value_name = "SECONDS")]
    pub(super) patience: Option<u64>,
}

/// Fetch segments ahead of replay; started by wal-fetch and backup-fetch
#[derive(Debug, Args)]
pub(super) struct PrefetchArgs {
    /// Where the segments wait
    #[arg(long)]
    pub(super) spool: PathBuf,
    /// The first segment
    #[arg(long)]
    pub(super) position: SegmentName,
    /// The segments' size in bytes
    #[arg(long)]
    pub(super) segment_size: u64,
    /// The cluster they have to be of
    #[arg(long)]
    pub(super) system_identifier: u64,
    /// The most of them to keep ahead
    #[arg(long)]
    pub(super) look_ahead: Option<usize>,
    /// The most bytes to keep
    #[arg(long)]
    pub(super) max_bytes: u64,
    /// The process whose end ends it all
    #[arg(long)]
    pub(super) recovery: Option<u32>,
    /// How long to wait for the first wal-fetch
    #[arg(long)]
    pub(super) first_ask_seconds: u64,
}

/// Show how the prefetching for a replica goes
///
/// Where replay stands, how many segments wait for it, how fast it takes them, how far the archive goes on, what the
/// bottleneck is, and what went wrong last. Asks nothing but the files that the prefetcher leaves in its spool.
#[derive(Debug, Args)]
pub(super) struct PrefetchStatusArgs {
    /// The replica's data directory
    #[arg(value_name = "PG_CLUSTER_DIRECTORY")]
    pub(super) directory: PathBuf,
    /// Print a JSON object instead
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum OnOutage {
    /// Exit with 75: a standby asks again, a recovery ends. A segment missing from the archive's middle is an end like any other
    Retry,
    /// Exit with 250: recovery stops with an error and can be started again. Not for what a promotion goes on without
    Stop,
}

#[derive(Debug, Args)]
pub(super) struct CompressionArgs {
    /// How hard to compress: fast keeps up with any disk, best takes twenty times the CPU for objects about a quarter smaller [env: WALE_LZO_LEVEL]
    #[arg(long, value_name = "LEVEL", action = ArgAction::Set)]
    pub(super) lzo_level: Option<LzoLevel>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum LzoLevel {
    Fast,
    Best,
}

impl From<LzoLevel> for lzo1x::Level {
    fn from(level: LzoLevel) -> Self {
        match level {
            LzoLevel::Fast => Self::Fast,
            LzoLevel::Best => Self::Best,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn wal_es_command_lines_are_accepted() {
        for line in [
            "wal-e version",
            "wal-e --terse backup-push /data",
            "wal-e -k K --s3-prefix=s3://b/p backup-push --pool-size 8 --cluster-read-rate-limit 1000000 /data",
            "wal-e --s3-prefix s3://b/p backup-push /data -p 8 --while-offline",
            "wal-e --aws-instance-profile backup-fetch /data LATEST --blind-restore",
            "wal-e backup-fetch --restore-spec SOURCE -p2 /data base_000000010000000000000002_00000040",
            "wal-e backup-list",
            "wal-e backup-list --detail LATEST",
            "wal-e delete before base_000000010000000000000002_00000040",
            "wal-e delete --dry-run before 000000010000000000000002",
            "wal-e delete -n retain 7",
            "wal-e delete --confirm old-versions",
            "wal-e delete --confirm --dry-run everything",
            "wal-e wal-push pg_wal/000000010000000000000001 -p 0",
            "wal-e wal-push -p1 pg_wal/000000010000000000000001",
            "wal-e wal-fetch -p 0 000000010000000000000001 pg_wal/RECOVERYXLOG",
            "wal-e wal-fetch --prefetch=16 000000010000000000000001 pg_wal/RECOVERYXLOG",
            "wal-e --s3-pre s3://b/p wal-fetch 00000002.history pg_wal/RECOVERYHISTORY",
            "wal-e --envdir /etc/wal-e/env wal-fetch 00000002.history pg_wal/RECOVERYHISTORY",
            "wal-e wal-fetch --patience 5 --on-outage stop 00000002.history pg_wal/RECOVERYHISTORY",
            "wal-e wal-push --patience 0 pg_wal/000000010000000000000001",
            "wal-e wal-fetch 000000010000000000000002 pg_wal/RECOVERYXLOG 000000010000000000000001",
            "wal-e prefetch-status --json /data",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "refused {line}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in [
            "wal-e",
            "wal-e wal-psuh x",
            "wal-e wal-fetch 000000010000000000000001",
            "wal-e wal-push",
            "wal-e -k K --aws-instance-profile version",
            "wal-e backup-push -p 0 /data",
            "wal-e backup-fetch -p 0 /data LATEST",
            "wal-e backup-fetch /data LATEST --blind-restore --restore-spec SOURCE",
            "wal-e backup-push --cluster-read-rate-limit 0 /data",
            "wal-e wal-fetch --on-outage promote 00000002.history x",
            "wal-e backup-list --json --table",
            "wal-e delete",
            "wal-e delete --confirm",
            "wal-e delete before",
            "wal-e delete before LATEST",
            "wal-e delete before base_000000010000000000000002",
            "wal-e delete before base_000000010000000000000002_00000040x",
            "wal-e delete retain",
            "wal-e delete retain 0",
            "wal-e delete retain -1",
            "wal-e delete retain all",
            "wal-e delete all",
            "wal-e delete everything now",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "accepted {line}");
        }
    }

    #[test]
    fn only_confirm_without_dry_run_deletes() {
        for (flags, confirmed) in [
            ("", false),
            ("--confirm ", true),
            ("--dry-run ", false),
            ("-n --confirm ", false),
            ("--confirm -n ", false),
        ] {
            let line = format!("wal-e delete {flags}everything");
            let Command::Delete(args) = Cli::try_parse_from(line.split(' ')).unwrap().command else { unreachable!() };
            assert_eq!(DeleteOptions::from(args), DeleteOptions { scope: Scope::Everything, confirmed }, "{line}");
        }
    }
}
