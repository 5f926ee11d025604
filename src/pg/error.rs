//! Why something that PostgreSQL owns could not be read or asked for, by what the caller can do about it.

use std::error::Error;
use std::io;
use std::path::Path;

/// What every fallible function of this floor returns.
pub type Result<T> = std::result::Result<T, PgError>;

/// What the caller can do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The operating system refused: permissions, a failing disk, no such file.
    Io,
    /// The path is not a PostgreSQL data directory.
    NotADataDirectory,
    /// The bytes are not what PostgreSQL writes: torn, cut or overwritten.
    Damaged,
    /// A version of PostgreSQL, or of one of its files, that this program does not know.
    UnknownVersion,
    /// A setting of the connection cannot be honoured or makes no sense: the user has to change it.
    Settings,
    /// The server could not be reached in time.
    Unreachable,
    /// The server answered, and refused.
    Server,
    /// The connection was there and broke: what the session held is gone.
    Lost,
    /// What was asked for must not be done in this state: archiving off, the wrong cluster, a missing tablespace.
    Refused,
}

/// Something on PostgreSQL's side that failed: a message in PostgreSQL's wording, with detail and hint where they help.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct PgError {
    kind: Kind,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
    sqlstate: Option<String>,
    #[source]
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl PgError {
    /// `message` is in lower case and has no full stop.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), detail: None, hint: None, sqlstate: None, source: None }
    }

    /// `verb` completes "could not … " about the file at `path`.
    pub(super) fn io(verb: &str, path: &Path, source: io::Error) -> Self {
        Self::new(Kind::Io, format!("could not {verb} \"{}\"", path.display())).with_source(source)
    }

    /// Adds what is known of the circumstances: whole sentences.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Adds what the user can do about it: whole sentences.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the failure below this one.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Adds the code of the server's own error.
    #[must_use]
    pub(super) fn with_sqlstate(mut self, code: &str) -> Self {
        self.sqlstate = Some(code.to_owned());
        self
    }

    /// The code of the server's own error, if it was one: five characters ("PostgreSQL Error Codes").
    pub fn sqlstate(&self) -> Option<&str> {
        self.sqlstate.as_deref()
    }

    /// Whether the server says that this user lacks a right (`insufficient_privilege`).
    pub fn is_denied(&self) -> bool {
        self.sqlstate() == Some("42501")
    }

    /// The failure below this one.
    pub fn into_source(self) -> Option<Box<dyn Error + Send + Sync>> {
        self.source
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What is known of the circumstances.
    pub fn detail(&self) -> Option<&str> {
        self.detail.as_deref()
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}
