//! The way back while a move can still be undone: the fence lifted, maintenance off, and the user told how it stands.

use std::time::Duration;

use super::context::Cutover;
use super::error::{CutoverError, Result};
use super::fence;
use super::hook::Hook;
use super::journal::Mark;
use super::node::Place;
use crate::formats::error_line::joined;
use crate::pg::quote::identifier;
use crate::pg::session::Access;

/// How often lifting a fence is tried before a person has to.
const TRIES: u32 = 10;

/// One of the two moves, as far as undoing it goes.
#[derive(Debug, Clone, Copy)]
pub struct Move {
    /// Who is fenced.
    pub fenced: Place,
    /// The fence's mark.
    pub fence: Mark,
    /// The mark of maintenance, and of the downtime's beginning.
    pub maintenance: Mark,
}

impl Move {
    /// Lifts the fence and switches maintenance off, as far as the journal says that this cutover did either.
    ///
    /// # Errors
    ///
    /// What could not be undone. While the fence is up maintenance stays on: the application could not write anyway.
    pub async fn retreat(self, cutover: &mut Cutover) -> Result<()> {
        self.lift_fence(cutover).await?;
        if cutover.journal.has(self.maintenance) {
            cutover.hook(Hook::MaintenanceOff).await?;
            cutover.journal.undo(self.maintenance, format!("the downtime is over, on the {}", self.fenced))?;
        }
        Ok(())
    }

    async fn lift_fence(self, cutover: &mut Cutover) -> Result<()> {
        if !cutover.journal.has(self.fence) {
            return Ok(());
        }
        let mut tries = 0;
        loop {
            tries += 1;
            let lifted = async {
                let mut node = cutover.connect(self.fenced, Access::ReadWrite).await?;
                fence::lift(cutover, &mut node, self.fence).await?;
                node.close().await;
                Ok(())
            };
            match lifted.await {
                Ok(()) => {
                    return cutover.journal.undo(self.fence, format!("the {} can be written to again", self.fenced));
                }
                Err(failed) if tries == TRIES => return Err(failed),
                Err(failed) => {
                    tracing::warn!("could not lift the {}'s fence, trying again: {}", self.fenced, joined(&failed));
                    tokio::time::sleep(Duration::from_secs(u64::from(tries))).await;
                }
            }
        }
    }

    /// Says in the error of a failed move what undoing it came to.
    pub fn explain(self, cutover: &Cutover, failed: CutoverError, undone: Result<()>) -> CutoverError {
        let place = self.fenced;
        match undone {
            Ok(()) => failed.with_detail(format!("All was undone: the {place} can be written to as before.")),
            Err(also) => {
                let conninfo = match place {
                    Place::Source => &cutover.plan.source,
                    Place::Replica => &cutover.plan.replica,
                    Place::Target => &cutover.plan.target,
                };
                let database = conninfo.as_ref().map_or("…".to_owned(), |conninfo| identifier(conninfo.database()));
                failed.with_detail(format!("Not all could be undone: {}.", joined(&also))).with_hint(format!(
                    "Run cutover abort as soon as that is mended, or by hand on the {place}: \
                     alter database {database} reset default_transaction_read_only; and switch maintenance off."
                ))
            }
        }
    }
}
