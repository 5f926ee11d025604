//! Why a store operation failed, by what the caller can do about it.

use std::error::Error;
use std::time::Duration;

use crate::formats::error_line::joined;

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

/// What is wrong with credentials, where they are the failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Credentials {
    Refused,
    Expired,
    Missing,
}

/// A store operation that failed: what was tried on which object, and why not.
#[derive(Debug, thiserror::Error)]
#[error("could not {verb} \"{url}\"")]
pub struct StorageError {
    verb: &'static str,
    url: String,
    kind: Kind,
    hint: Option<String>,
    credentials: Credentials,
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
        Self { verb, url: url.into(), kind, hint: None, credentials: Credentials::Refused, source: source.into() }
    }

    /// Adds what the user can do about it: whole sentences.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Marks credentials as good once but expired: whoever provides them is expected to provide newer ones.
    #[must_use]
    pub fn with_expired_credentials(mut self) -> Self {
        self.credentials = Credentials::Expired;
        self
    }

    /// Marks credentials as looked for and not found.
    #[must_use]
    pub fn with_missing_credentials(mut self) -> Self {
        self.credentials = Credentials::Missing;
        self
    }

    /// Says that this was the last of several tries, over how long.
    #[must_use]
    pub fn after_tries(mut self, tries: u32, elapsed: Duration) -> Self {
        let unsaid: Box<dyn Error + Send + Sync> = "".into();
        let source = std::mem::replace(&mut self.source, unsaid);
        self.source = Box::new(GaveUp { tries, elapsed, source });
        self
    }

    /// Whether newer credentials than the ones used are to be expected.
    pub fn has_expired_credentials(&self) -> bool {
        self.credentials == Credentials::Expired
    }

    /// Whether no credentials were found, rather than the server having refused some.
    pub fn lacks_credentials(&self) -> bool {
        self.credentials == Credentials::Missing
    }

    /// The object's whole address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Why it failed: this error's causes, outermost first, in one line.
    pub fn cause(&self) -> String {
        joined(&*self.source)
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

/// The cause of an error after which no further try was made.
#[derive(Debug, thiserror::Error)]
#[error("gave up after {tries} tries in {:.1} s", elapsed.as_secs_f64())]
struct GaveUp {
    tries: u32,
    elapsed: Duration,
    source: Box<dyn Error + Send + Sync>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_the_whole_chain_in_one_line() {
        let error =
            StorageError::new("get", "s3://b/k", Kind::Unavailable, "reset").after_tries(3, Duration::from_secs(2));
        assert_eq!(error.to_string(), "could not get \"s3://b/k\"");
        assert_eq!(error.cause(), "gave up after 3 tries in 2.0 s: reset");
    }
}
