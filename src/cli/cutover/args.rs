//! The grammar of `wal-eve cutover`. The comments are the help texts.

use std::path::PathBuf;

use clap::{Args, Subcommand};

pub(super) const DEFAULT_PLAN: &str = "cutover.toml";

/// Carry a log-shipped replica to its new home: promote it, replicate it, and switch over
///
/// Two moves, each with seconds of downtime: from the source to the replica that wal-fetch feeds, then by logical replication
/// from there to the target, such as a managed PostgreSQL. Each step can be run again after any interruption and does nothing
/// twice; a journal beside the plan holds what was done. Begin with: wal-eve cutover init > cutover.toml
#[derive(Debug, Args)]
pub(in crate::cli) struct CutoverArgs {
    #[command(flatten)]
    pub(super) common: CommonArgs,
    #[command(subcommand)]
    pub(super) step: Step,
}

#[derive(Debug, Args)]
pub(super) struct CommonArgs {
    /// The plan
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PLAN, global = true)]
    pub(super) plan: PathBuf,
    /// Replace a line of the plan, such as promote.budget="5 min"; can be given several times
    #[arg(long, value_name = "KEY=VALUE", global = true)]
    pub(super) set: Vec<String>,
    /// The journal [default: the plan's name with .journal.json]
    #[arg(long, value_name = "FILE", global = true)]
    pub(super) journal: Option<PathBuf>,
    /// Print every statement and command that would be run, and change nothing
    #[arg(long, global = true)]
    pub(super) dry_run: bool,
    /// Print a JSON object
    #[arg(long, global = true)]
    pub(super) json: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Step {
    /// Print an annotated plan to begin with
    Init,
    /// Look at everything that can be known before a move, on whatever can be reached, and change nothing
    ///
    /// Can be run as often as wanted, from the first day on. Each finding says what is so, why it matters, and the statement or
    /// setting that mends it. WALE_S3_PREFIX or WALE_FILE_PREFIX, set as for wal-fetch, lets it look for the archive's end. The
    /// exit status is 1 while anything would fail or be lost, else 0.
    Check,
    Promote(PromoteArgs),
    Replicate(ReplicateArgs),
    Status(StatusArgs),
    Finish(FinishArgs),
    Run(RunArgs),
    Abort(AbortArgs),
    /// Print what happened when
    Report,
}

/// The second move: switch the application over to the target, with proof that it has the publisher's last write
///
/// While the application works, statistics are gathered, materialized views refreshed and all rows compared. Then maintenance
/// is switched on, the publisher made read-only, its last write seen at the target, what fits finish.compare_budget compared
/// once more, every sequence set, the subscription dropped, and the application pointed at the target. Until the subscription
/// is dropped every failure undoes everything.
#[derive(Debug, Args)]
pub(super) struct FinishArgs {
    /// Let the replica follow the target from the moment of the switch, so that going back loses nothing
    #[arg(long)]
    pub(super) reverse: bool,
    /// Go back to the replica, after a finish --reverse
    #[arg(long)]
    pub(super) back: bool,
}

/// The first move: make the replica the primary, with proof that it has the source's last write
///
/// Switches maintenance on, makes the source read-only and waits until the replica has replayed the source's last write; only
/// then is it promoted, written to as the application's role, and the application pointed at it. When the replica does not get
/// there within promote.budget, everything is undone and the source can be written to as before.
#[derive(Debug, Args)]
pub(super) struct PromoteArgs {
    /// Promote without proof: you have stopped all writes to the source and seen its last segment archived
    #[arg(long)]
    pub(super) without_fence: bool,
}

/// Set up logical replication from the promoted replica to the target, and copy all rows
///
/// Makes the role, the publication, the slot and the subscription, copies the schema where the plan says so, and waits until
/// every table is copied and followed. The application goes on writing meanwhile. It can be interrupted at any time: the copy
/// goes on, and running it again goes on with what is left. Tables that were made on both sides since are taken in as well.
#[derive(Debug, Args)]
pub(super) struct ReplicateArgs {
    /// Return once the copy has begun; run replicate again later to complete it
    #[arg(long)]
    pub(super) no_wait: bool,
}

/// Print how far everything is: tables, lag, WAL that is kept, and what goes wrong
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Print it anew every two seconds until interrupted; with --json one object a line
    #[arg(long)]
    pub(super) watch: bool,
}

/// All steps in their order, with a stop for confirmation at the two that cannot be undone
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// Confirm beforehand
    #[arg(long)]
    pub(super) yes: bool,
    /// Promote without proof, as promote --without-fence
    #[arg(long)]
    pub(super) without_fence: bool,
    /// Prepare the way back, as finish --reverse
    #[arg(long)]
    pub(super) reverse: bool,
}

/// Go back to a safe state from any step, and say what was undone and what is left
///
/// A step that is under way is undone; with none under way, the replication is taken away.
#[derive(Debug, Args)]
pub(super) struct AbortArgs {
    /// The application still points at the source, although the command switch_to_replica was begun
    #[arg(long)]
    pub(super) not_switched: bool,
}
