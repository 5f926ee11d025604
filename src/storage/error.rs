//! Why a store operation failed, by what the caller can do about it.

use std::error::Error;

/// What the caller can do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The store said that this very object does not exist.
    NotFound,
    /// Credentials are missing, expired or not accepted: read them again, then give up.
    Credentials,
    /// The credentials are good but do not allow this.
    Denied,
    /// The address is wrong: no such bucket, no such root directory, wrong region, unusable endpoint.
    Misconfigured,
    /// Worth another try: throttled, timed out, cut off, unreachable, a server's own error.
    Unavailable,
    /// The object changed while it was read.
    Changed,
    /// A local or unforeseen failure that another try will not cure.
    Other,
}

/// A store operation that failed: what was tried on which object, and why not.
#[derive(Debug, thiserror::Error)]
#[error("could not {verb} \"{url}\"")]
pub struct StorageError {
    verb: &'static str,
    url: String,
    kind: Kind,
    hint: Option<String>,
    #[source]
    source: Box<dyn Error + Send + Sync>,
}

impl StorageError {
    /// `verb` completes "could not … " and `url` is the object's whole address.
    pub fn new(
        verb: &'static str,
        url: impl Into<String>,
        kind: Kind,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self { verb, url: url.into(), kind, hint: None, source: source.into() }
    }

    /// Adds what the user can do about it: whole sentences.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What the user can do about it, if anything is known.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}
