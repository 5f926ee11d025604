//! What a check before a backup found: reasons to refuse it, or to go on and say so.

use std::fmt;

/// Whether to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The backup could not be restored: do not take it.
    Refusal,
    /// The backup may be good: take it, and tell the user.
    Warning,
}

/// One thing that a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Whether to go on.
    pub severity: Severity,
    /// In PostgreSQL's wording: lower case, no full stop.
    pub message: String,
    /// What is known of the circumstances: whole sentences.
    pub detail: Option<String>,
    /// What the user can do about it: whole sentences.
    pub hint: Option<String>,
}

impl Finding {
    /// A reason not to take the backup.
    pub(super) fn refusal(message: impl Into<String>) -> Self {
        Self { severity: Severity::Refusal, message: message.into(), detail: None, hint: None }
    }

    /// Something to tell the user.
    pub(super) fn warning(message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::refusal(message) }
    }

    #[must_use]
    pub(super) fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    #[must_use]
    pub(super) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
