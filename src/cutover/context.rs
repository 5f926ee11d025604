//! What every step stands on: the plan, the journal, the servers, the user's commands, and the wish to stop.

use std::fmt::Display;
use std::path::Path;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::error::{CutoverError, Result};
use super::hook::{self, Hook};
use super::journal::Journal;
use super::node::{Node, Place};
use super::plan::{Plan, lacks};
use super::quantity::time_text;
use super::rehearsal::Rehearsal;
use crate::pg::session::Access;

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(200);

/// How often a wait says how it goes.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// Whether a step may write to the journal and to the servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It changes things, alone.
    Change,
    /// It says what it would change.
    DryRun,
    /// It only looks, beside whatever else runs.
    Look,
}

/// One run of a step.
#[derive(Debug)]
pub struct Cutover {
    /// What is to be done.
    pub plan: Plan,
    /// What was done.
    pub journal: Journal,
    /// What a dry run would do.
    pub rehearsal: Rehearsal,
    interrupted: watch::Receiver<bool>,
}

impl Cutover {
    /// Opens the journal for a step. `interrupted` turns true when the user asks for the end; it is heeded where the step
    /// can stop and put things right.
    ///
    /// # Errors
    ///
    /// As [`Journal::open`].
    pub fn open(
        plan: Plan,
        journal: &Path,
        step: &'static str,
        mode: Mode,
        interrupted: watch::Receiver<bool>,
    ) -> Result<Self> {
        let journal = match mode {
            Mode::Change => Journal::open(journal, &plan.identity(), step)?,
            Mode::DryRun | Mode::Look => Journal::look(journal, &plan.identity(), step)?,
        };
        let rehearsal = if mode == Mode::DryRun { Rehearsal::dry() } else { Rehearsal::default() };
        Ok(Self { plan, journal, rehearsal, interrupted })
    }

    /// Connects to one of the plan's servers.
    ///
    /// # Errors
    ///
    /// When the plan lacks it, or it cannot be reached.
    pub async fn connect(&self, place: Place, access: Access) -> Result<Node> {
        let (conninfo, section) = match place {
            Place::Source => (&self.plan.source, "[source]"),
            Place::Replica => (&self.plan.replica, "[replica]"),
            Place::Target => (&self.plan.target, "[target]"),
        };
        let conninfo = conninfo.as_ref().ok_or_else(|| lacks(section))?;
        Node::connect(place, conninfo, access, self.rehearsal.clone()).await
    }

    /// Connects only to look: what would be changed is neither done nor written down.
    ///
    /// # Errors
    ///
    /// As [`Self::connect`].
    pub async fn look(&self, place: Place) -> Result<Node> {
        Ok(self.connect(place, Access::ReadOnly).await?.without_changes())
    }

    /// Runs one of the user's commands, if the plan has it.
    ///
    /// # Errors
    ///
    /// As [`hook::run`].
    pub async fn hook(&mut self, hook: Hook) -> Result<()> {
        let hooks = &self.plan.hooks;
        let command = match hook {
            Hook::MaintenanceOn => &hooks.maintenance_on,
            Hook::SwitchToReplica => &hooks.switch_to_replica,
            Hook::SwitchToTarget => &hooks.switch_to_target,
            Hook::MaintenanceOff => &hooks.maintenance_off,
        };
        let Some(command) = command else {
            tracing::info!("the plan has no command {hook}: nothing is run for it");
            return Ok(());
        };
        if !self.rehearsal.permits(format_args!("command {hook}"), command) {
            return Ok(());
        }
        hook::run(hook, command, hooks.timeout, &self.plan.secrets()).await?;
        self.journal.note(format!("ran the command {hook}"))
    }

    /// Waits a moment.
    ///
    /// # Errors
    ///
    /// When the user asks for the end.
    pub async fn pause(&self, time: Duration) -> Result<()> {
        let mut interrupted = self.interrupted.clone();
        tokio::select! {
            () = tokio::time::sleep(time) => Ok(()),
            Ok(_) = interrupted.wait_for(|asked| *asked) => Err(CutoverError::interrupted()),
        }
    }

    /// Whether the user has asked for the end.
    pub fn is_interrupted(&self) -> bool {
        *self.interrupted.borrow()
    }

    /// Looks again and again until a condition holds, and says every few seconds how it goes. A dry run only writes down
    /// what is waited for.
    ///
    /// # Errors
    ///
    /// When `look` fails, when `deadline` is over (with the last answer for a detail), or when the user asks for the end.
    pub async fn until(
        &self,
        what: impl Display,
        deadline: Option<Instant>,
        mut look: impl AsyncFnMut() -> Result<Look>,
    ) -> Result<()> {
        if !self.rehearsal.permits("wait", format_args!("until {what}")) {
            return Ok(());
        }
        let began = Instant::now();
        let mut told = began;
        loop {
            let so_far = match look().await? {
                Look::Holds => return Ok(()),
                Look::NotYet(so_far) => so_far,
            };
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(CutoverError::refused(format!("gave up waiting until {what}"))
                    .with_detail(format!("After {}: {so_far}.", time_text(began.elapsed()))));
            }
            if told.elapsed() >= PROGRESS_INTERVAL {
                told = Instant::now();
                tracing::info!("waiting until {what}: {so_far}");
            }
            self.pause(POLL).await?;
        }
    }
}

/// What a look at a condition saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// It holds.
    Holds,
    /// Not yet; how far it is, for a person.
    NotYet(String),
}
