//! Why a step of a cutover failed, by what its caller can do about it.

use std::error::Error;
use std::path::Path;

use crate::fs::durable::FsError;
use crate::pg::{self, PgError};

/// What every fallible function of this floor returns.
pub type Result<T> = std::result::Result<T, CutoverError>;

/// What the caller can do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A person has to change something: the plan, a server's settings, a right.
    User,
    /// A server, a command or this machine failed: the same step may succeed later.
    Unexpected,
    /// A signal asked for the end.
    Interrupted,
}

/// A step that failed: a message in PostgreSQL's wording, with detail and hint where they help.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct CutoverError {
    kind: Kind,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
    sqlstate: Option<String>,
    is_unreachable: bool,
    #[source]
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl CutoverError {
    fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            detail: None,
            hint: None,
            sqlstate: None,
            is_unreachable: false,
            source: None,
        }
    }

    /// What must not or cannot be done in this state. The message is in lower case and has no full stop.
    pub(crate) fn refused(message: impl Into<String>) -> Self {
        Self::new(Kind::User, message)
    }

    /// What failed although it should not.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(Kind::Unexpected, message)
    }

    /// A plan that cannot be followed; `why` completes "the plan cannot be followed: …".
    pub(crate) fn plan(why: impl std::fmt::Display) -> Self {
        Self::refused(format!("the plan cannot be followed: {why}"))
    }

    /// A signal came.
    pub(crate) fn interrupted() -> Self {
        Self::new(Kind::Interrupted, "interrupted")
    }

    /// `verb` completes "could not … " about the file at `path`.
    pub(crate) fn file(verb: &str, path: &Path, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::failed(format!("could not {verb} \"{}\"", path.display())).with_source(source)
    }

    /// Adds what is known of the circumstances: whole sentences. What was there before comes first.
    #[must_use]
    pub(crate) fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(joined(self.detail, detail.into()));
        self
    }

    /// Adds what the user can do about it: whole sentences. What was there before comes first.
    #[must_use]
    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(joined(self.hint, hint.into()));
        self
    }

    /// Adds the failure below this one.
    #[must_use]
    pub(crate) fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Says what was being done: `what: message`.
    #[must_use]
    pub(crate) fn during(mut self, what: impl std::fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether a server did not answer at all: it may later.
    pub fn is_unreachable(&self) -> bool {
        self.is_unreachable
    }

    /// The code of the server's own error, if it was one: five characters ("PostgreSQL Error Codes").
    pub fn sqlstate(&self) -> Option<&str> {
        self.sqlstate.as_deref()
    }

    /// What is known of the circumstances, if anything: whole sentences.
    pub fn detail(&self) -> Option<&str> {
        self.detail.as_deref()
    }

    /// What the user can do about it, if anything is known: whole sentences.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

fn joined(before: Option<String>, text: String) -> String {
    before.map_or(text.clone(), |before| format!("{before} {text}"))
}

impl From<PgError> for CutoverError {
    fn from(failed: PgError) -> Self {
        let kind = match failed.kind() {
            pg::Kind::Io | pg::Kind::Damaged | pg::Kind::Lost => Kind::Unexpected,
            _ => Kind::User,
        };
        let (detail, hint) = (failed.detail().map(str::to_owned), failed.hint().map(str::to_owned));
        let (message, sqlstate) = (failed.to_string(), failed.sqlstate().map(str::to_owned));
        let is_unreachable = failed.kind() == pg::Kind::Unreachable;
        let source = failed.into_source();
        Self { kind, message, detail, hint, sqlstate, is_unreachable, source }
    }
}

impl From<FsError> for CutoverError {
    fn from(failed: FsError) -> Self {
        Self::failed("could not keep the journal").with_source(failed)
    }
}
