//! `wal-eve cutover run`: all steps in their order, with a person's word before what cannot be undone.

use serde_json::{Map, Value};
use tokio::sync::watch;

use super::Invocation;
use super::args::{FinishArgs, PromoteArgs, ReplicateArgs, RunArgs};
use super::confirmation::confirm;
use super::outcome::Outcome;
use crate::cutover::context::Mode;
use crate::cutover::journal::Mark;
use crate::cutover::node::Place;
use crate::cutover::{CutoverError, Result};
use crate::pg::session::Access;

impl Invocation<'_> {
    /// What is done already is not asked for again. A step that fails ends the walk, which the next run takes up there.
    pub(super) async fn walk(&self, args: &RunArgs, interrupted: watch::Receiver<bool>) -> Result<Outcome> {
        let mut told = Map::new();
        let mut has = |step: &str, outcome: &Outcome| {
            if !self.common.json
                && let Err(failure) = (self.print)(&outcome.printed(false, self.common.dry_run))
            {
                // no reason to stop half-way
                tracing::warn!("{}", failure.message());
            }
            told.insert(step.to_owned(), outcome.json().clone());
        };
        let (has_left_the_source, is_promoted) = self.first_move_state(&interrupted).await?;
        if !has_left_the_source {
            let checked = self.check(interrupted.clone()).await?;
            has("check", &checked);
            if checked.status != super::ExitStatus::DONE {
                return Err(CutoverError::refused("the check found errors")
                    .with_hint("Mend them, or see cutover check and go on step by step with cutover promote."));
            }
        }
        if !is_promoted {
            self.ask(
                args,
                "The source becomes read-only, and a promoted replica can never follow it again.",
                "promote",
            )?;
            let promoted =
                self.promote(&PromoteArgs { without_fence: args.without_fence }, interrupted.clone()).await?;
            has("promote", &promoted);
        }
        if self.common.dry_run && !is_promoted {
            // the later steps look at what the earlier ones made
            let later = "then: replicate and finish, which can be rehearsed when the replica is a primary\n".to_owned();
            return Ok(Outcome::new(later, Value::Object(told)));
        }
        let replicated = self.replicate(&ReplicateArgs { no_wait: false }, interrupted.clone()).await?;
        has("replicate", &replicated);
        self.ask(args, "The application goes to the target, and the subscription is dropped.", "finish")?;
        let finished = self.finish(&FinishArgs { reverse: args.reverse, back: false }, interrupted).await?;
        has("finish", &finished);
        Ok(if self.common.json { Outcome::new(String::new(), Value::Object(told)) } else { Outcome::printed_already() })
    }

    /// Whether the first move was begun, and whether it is over: also where it was made without this program.
    async fn first_move_state(&self, interrupted: &watch::Receiver<bool>) -> Result<(bool, bool)> {
        let cutover = self.open("run", Mode::Look, interrupted.clone())?;
        let was_begun = cutover.journal.has(Mark::PromoteMaintenance) || cutover.journal.has(Mark::Promoting);
        if was_begun || cutover.journal.has(Mark::PromoteDone) {
            return Ok((was_begun, cutover.journal.has(Mark::PromoteDone)));
        }
        let mut replica = cutover.connect(Place::Replica, Access::ReadOnly).await?;
        let is_primary = !replica.is_in_recovery().await?;
        replica.close().await;
        Ok((is_primary, is_primary))
    }

    fn ask(&self, args: &RunArgs, what: &str, word: &str) -> Result<()> {
        if args.yes || self.common.dry_run { Ok(()) } else { confirm(what, word) }
    }
}
