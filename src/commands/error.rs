//! Why a command failed, by what its caller can do about it.

use std::io;
use std::path::{Path, PathBuf};

use crate::pg::{self, PgError};
use crate::storage::StorageError;
use crate::transfer::{self, TransferError};

/// What the caller can do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A person has to change something: arguments, credentials, settings, the archive.
    User,
    /// The store could not be reached or kept failing: the same command may succeed later.
    Unavailable,
    /// The machine failed: disk, memory, a server's fault.
    Unexpected,
}

/// A command that failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// A transfer failed.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// PostgreSQL, or what it owns, failed.
    #[error(transparent)]
    Pg(#[from] PgError),
    /// A file could not be read or written.
    #[error("could not {verb} \"{}\"", path.display())]
    File {
        /// Completes "could not …".
        verb: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Objects that were to be deleted are still there.
    #[error("{failed} {} could not be deleted", if *failed == 1 { "object" } else { "objects" })]
    Undeleted {
        /// How many could not be deleted; there may be more that were not tried.
        failed: u64,
        /// Why the first of them could not.
        source: TransferError,
    },
    /// What was asked for cannot or must not be done.
    #[error("{message}")]
    Refused {
        /// Lower case, no full stop.
        message: String,
        /// What is known of the circumstances: whole sentences.
        detail: Option<String>,
        /// What the user can do about it: whole sentences.
        hint: Option<String>,
    },
}

impl From<StorageError> for CommandError {
    fn from(failed: StorageError) -> Self {
        Self::Transfer(failed.into())
    }
}

impl CommandError {
    /// `message` is in lower case and has no full stop.
    pub(crate) fn refused(message: impl Into<String>) -> Self {
        Self::Refused { message: message.into(), detail: None, hint: None }
    }

    /// Adds what is known of the circumstances to a refusal.
    #[must_use]
    pub(crate) fn with_detail(mut self, text: impl Into<String>) -> Self {
        if let Self::Refused { detail, .. } = &mut self {
            *detail = Some(text.into());
        }
        self
    }

    /// Adds what the user can do about a refusal.
    #[must_use]
    pub(crate) fn with_hint(mut self, text: impl Into<String>) -> Self {
        if let Self::Refused { hint, .. } = &mut self {
            *hint = Some(text.into());
        }
        self
    }

    pub(crate) fn file(verb: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::File { verb, path, source }
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Refused { .. } => Kind::User,
            Self::File { source, .. } => match source.kind() {
                io::ErrorKind::NotFound
                | io::ErrorKind::NotADirectory
                | io::ErrorKind::PermissionDenied
                | io::ErrorKind::AlreadyExists => Kind::User,
                _ => Kind::Unexpected,
            },
            Self::Transfer(failed) | Self::Undeleted { source: failed, .. } => match failed.kind() {
                transfer::Kind::NotFound | transfer::Kind::User => Kind::User,
                transfer::Kind::Unavailable => Kind::Unavailable,
                transfer::Kind::Local => Kind::Unexpected,
            },
            Self::Pg(failed) => match failed.kind() {
                pg::Kind::NotADataDirectory | pg::Kind::Settings | pg::Kind::Refused | pg::Kind::UnknownVersion => {
                    Kind::User
                }
                pg::Kind::Unreachable => Kind::User,
                // a login that the server does not take, or one without a right that it needs
                pg::Kind::Server
                    if failed.is_denied() || failed.sqlstate().is_some_and(|code| code.starts_with("28")) =>
                {
                    Kind::User
                }
                pg::Kind::Io | pg::Kind::Damaged | pg::Kind::Server | pg::Kind::Lost => Kind::Unexpected,
            },
        }
    }

    /// What is known of the circumstances, if anything: whole sentences.
    pub fn detail(&self) -> Option<&str> {
        match self {
            Self::Refused { detail, .. } => detail.as_deref(),
            Self::Pg(failed) => failed.detail(),
            Self::Undeleted { .. } => Some(
                "What comes later in the order of deletion - sentinels, the rest of the base backups, WAL - was not touched. The same command, run again, goes on where this one stopped.",
            ),
            Self::Transfer(_) | Self::File { .. } => None,
        }
    }

    /// What the user can do about it, if anything is known: whole sentences.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Refused { hint, .. } => hint.clone(),
            Self::Pg(failed) => failed.hint().map(str::to_owned),
            Self::Transfer(failed) | Self::Undeleted { source: failed, .. } => failed.hint(),
            Self::File { source, .. } => transfer::file_hint(source),
        }
    }
}
