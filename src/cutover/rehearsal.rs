//! What a dry run would do: every statement and command, in order, without a password.

use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};

/// The lines of a dry run; none when it is none.
#[derive(Debug, Clone, Default)]
pub struct Rehearsal(Option<Arc<Mutex<Vec<String>>>>);

impl Rehearsal {
    /// For a dry run.
    pub fn dry() -> Self {
        Self(Some(Arc::default()))
    }

    /// Whether nothing may be changed.
    pub fn is_dry(&self) -> bool {
        self.0.is_some()
    }

    /// Whether to go on and do it. In a dry run it is written down instead: `place` is where, `what` a statement or command.
    #[must_use]
    pub fn permits(&self, place: impl Display, what: impl Display) -> bool {
        let Some(lines) = &self.0 else { return true };
        lines.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{place}: {what}"));
        false
    }

    /// What was written down.
    pub fn lines(&self) -> Vec<String> {
        let lines = self.0.as_ref().map(|lines| lines.lock().unwrap_or_else(PoisonError::into_inner).clone());
        lines.unwrap_or_default()
    }
}
