//! `wal-eve cutover`: the plan and the environment in, the steps' results out.

pub(super) mod args;
mod check_text;
mod confirmation;
mod outcome;
mod replicate_text;
mod status_picture;
mod status_watch;
mod whole_way;

use std::path::{Path, PathBuf};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use args::{CommonArgs, CutoverArgs, FinishArgs, PromoteArgs, ReplicateArgs, StatusArgs, Step};
use outcome::Outcome;

use super::args::GlobalArgs;
use super::environment::Environment;
use super::exit::{ExitStatus, Failure};
use super::store::ArchiveConfig;
use crate::commands::archive::Archive;
use crate::cutover::Result;
use crate::cutover::abort::{AbortOptions, abort};
use crate::cutover::check::check;
use crate::cutover::context::{Cutover, Mode};
use crate::cutover::finish::{FinishOptions, finish};
use crate::cutover::plan::{Plan, SAMPLE};
use crate::cutover::promote::{ArchiveEnd, PromoteOptions, promote};
use crate::cutover::replicate::{ReplicateOptions, replicate};
use crate::cutover::report::report;
use crate::storage::retry::RetryPolicy;

/// Requests under way at once while the archive's end is looked for.
const ARCHIVE_REQUESTS: usize = 4;

/// Runs a step; what it prints goes to `print`.
pub(super) fn run(
    args: CutoverArgs,
    global: &GlobalArgs,
    environment: &Environment,
    runtime: tokio::runtime::Runtime,
    print: impl Fn(&str) -> std::result::Result<(), Failure>,
) -> std::result::Result<ExitStatus, Failure> {
    let CutoverArgs { common, step } = args;
    if matches!(step, Step::Init) {
        return print(SAMPLE).map(|()| ExitStatus::DONE);
    }
    let archive = archive(global, environment)?;
    let invocation = Invocation { plan: read_plan(&common, environment)?, common: &common, archive, print: &print };
    let outcome = runtime.block_on(async {
        let interrupted = interrupted();
        invocation.run(step, interrupted).await
    });
    runtime.shutdown_background();
    let outcome = outcome?;
    print(&outcome.printed(common.json, common.dry_run))?;
    Ok(outcome.status)
}

/// What every step of this call has in common.
struct Invocation<'a> {
    plan: Plan,
    common: &'a CommonArgs,
    archive: Option<Archive>,
    print: &'a dyn Fn(&str) -> std::result::Result<(), Failure>,
}

impl Invocation<'_> {
    async fn run(&self, step: Step, interrupted: watch::Receiver<bool>) -> Result<Outcome> {
        match step {
            Step::Init => unreachable!("it needs no plan, and was printed above"),
            Step::Check => self.check(interrupted).await,
            Step::Promote(args) => self.promote(&args, interrupted).await,
            Step::Finish(args) => self.finish(&args, interrupted).await,
            Step::Run(args) => self.walk(&args, interrupted).await,
            Step::Abort(args) => {
                let mut cutover = self.open("abort", self.changing(), interrupted)?;
                let report = abort(&mut cutover, AbortOptions { not_switched: args.not_switched }).await?;
                Ok(Outcome::new(outcome::abort_text(&report), &report).rehearsed(&cutover.rehearsal))
            }
            Step::Replicate(args) => self.replicate(&args, interrupted).await,
            Step::Status(args) => self.status(&args, interrupted).await,
            Step::Report => {
                let cutover = self.open("report", Mode::Look, interrupted)?;
                let report = report(&cutover.journal);
                Ok(Outcome::new(outcome::report_text(&report), &report))
            }
        }
    }

    async fn check(&self, interrupted: watch::Receiver<bool>) -> Result<Outcome> {
        let cutover = self.open("check", Mode::Look, interrupted)?;
        let report = check(&cutover, self.archive_end()).await?;
        let status = if report.is_ready() { ExitStatus::DONE } else { ExitStatus::USER };
        Ok(Outcome::new(check_text::text(&report), &report).with_status(status))
    }

    async fn promote(&self, args: &PromoteArgs, interrupted: watch::Receiver<bool>) -> Result<Outcome> {
        let mut cutover = self.open("promote", self.changing(), interrupted)?;
        let options = PromoteOptions { without_fence: args.without_fence, archive: self.archive_end() };
        let report = promote(&mut cutover, &options).await?;
        Ok(Outcome::new(outcome::promote_text(&report), &report).rehearsed(&cutover.rehearsal))
    }

    async fn replicate(&self, args: &ReplicateArgs, interrupted: watch::Receiver<bool>) -> Result<Outcome> {
        let mut cutover = self.open("replicate", self.changing(), interrupted)?;
        let report = replicate(&mut cutover, &ReplicateOptions { wait: !args.no_wait }).await?;
        Ok(Outcome::new(replicate_text::replicate_text(&report), &report).rehearsed(&cutover.rehearsal))
    }

    async fn finish(&self, args: &FinishArgs, interrupted: watch::Receiver<bool>) -> Result<Outcome> {
        let mut cutover = self.open("finish", self.changing(), interrupted)?;
        let options = FinishOptions { reverse: args.reverse, back: args.back };
        let report = finish(&mut cutover, options).await?;
        Ok(Outcome::new(outcome::finish_text(&report), &report).rehearsed(&cutover.rehearsal))
    }

    async fn status(&self, args: &StatusArgs, interrupted: watch::Receiver<bool>) -> Result<Outcome> {
        let cutover = self.open("status", Mode::Look, interrupted)?;
        status_watch::run(&cutover, args.watch, self.common.json).await
    }

    fn archive_end(&self) -> Option<ArchiveEnd<'_>> {
        self.archive.as_ref().map(|archive| ArchiveEnd { store: &*archive.store, layout: &archive.layout })
    }

    fn open(&self, step: &'static str, mode: Mode, interrupted: watch::Receiver<bool>) -> Result<Cutover> {
        Cutover::open(self.plan.clone(), &self.journal(), step, mode, interrupted)
    }

    fn changing(&self) -> Mode {
        if self.common.dry_run { Mode::DryRun } else { Mode::Change }
    }

    /// Beside the plan unless the user says otherwise.
    fn journal(&self) -> PathBuf {
        self.common.journal.clone().unwrap_or_else(|| self.common.plan.with_extension("journal.json"))
    }
}

/// A plan that was not asked for by name need not be there: `--set` can say it all.
fn read_plan(common: &CommonArgs, environment: &Environment) -> std::result::Result<Plan, Failure> {
    let text = match std::fs::read_to_string(&common.plan) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && !common.set.is_empty() && is_default(&common.plan) => {
            String::new()
        }
        Err(e) => {
            return Err(Failure::Usage(
                format!("could not read the plan \"{}\": {e}", common.plan.display()),
                Some("Begin with: wal-eve cutover init > cutover.toml".into()),
            ));
        }
    };
    Ok(Plan::read(&text, &common.set, |name| environment.text(name))?)
}

fn is_default(plan: &Path) -> bool {
    plan == Path::new(args::DEFAULT_PLAN)
}

/// The archive, if the environment names one: only a promotion without a source needs it.
fn archive(global: &GlobalArgs, environment: &Environment) -> std::result::Result<Option<Archive>, Failure> {
    let is_named = global.s3_prefix.is_some()
        || global.file_prefix.is_some()
        || environment.is_set("WALE_S3_PREFIX")
        || environment.is_set("WALE_FILE_PREFIX");
    if !is_named {
        return Ok(None);
    }
    let concurrency = std::num::NonZeroUsize::new(ARCHIVE_REQUESTS).expect("it is not zero");
    Ok(Some(ArchiveConfig::new(global, environment)?.open(RetryPolicy::default(), concurrency)))
}

/// Turns true at the first signal that asks for the end; the steps stop where they can put things right.
fn interrupted() -> watch::Receiver<bool> {
    let (sender, receiver) = watch::channel(false);
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        let sender = sender.clone();
        // where a signal cannot be caught it ends the process as it would any other, and the next run goes on from there
        if let Ok(mut signals) = signal(kind) {
            tokio::spawn(async move {
                while signals.recv().await.is_some() {
                    tracing::warn!("asked to end: stopping where things can be put right");
                    sender.send_replace(true);
                }
            });
        }
    }
    receiver
}
