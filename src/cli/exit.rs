//! The one place that turns an error into text and an exit status (`README.md`, "Exit status").

use std::fmt;
use std::io::{self, Write as _};

use super::log;
use super::recovery::Doubt;
use crate::commands::{CommandError, Kind};
use crate::cutover::{self, CutoverError};
use crate::formats::error_line::joined;

/// What the process ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitStatus(pub u8);

impl ExitStatus {
    /// Done, durable.
    pub(super) const DONE: Self = Self(0);
    /// `wal-fetch`: the archive does not hold the file. Other commands: the user has to change something.
    pub(super) const USER: Self = Self(1);
    /// `wal-fetch` never: it is `ABSENT` by another name.
    pub(super) const ABSENT: Self = Self(1);
    /// Something went wrong that should not.
    pub(super) const UNEXPECTED: Self = Self(2);
    /// Try again later (`EX_TEMPFAIL` of sysexits).
    pub(super) const LATER: Self = Self(75);
    /// Above 125, so that PostgreSQL stops recovery instead of taking it for the end of WAL.
    pub(super) const STOP_RECOVERY: Self = Self(250);
}

/// Which command an error belongs to, as far as its exit status goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Caller {
    /// `archive_command`, whose status must not exceed 125.
    WalPush,
    /// `restore_command`: the same status whatever went wrong.
    WalFetch(Doubt),
    /// A person or a script.
    Other,
}

/// A failure on its way to the user.
#[derive(Debug)]
pub(super) enum Failure {
    Command(CommandError),
    Cutover(CutoverError),
    /// Arguments or environment that cannot be used: message and hint.
    Usage(String, Option<String>),
    /// A result that stdout did not take.
    Unwritten(io::Error),
}

impl From<CommandError> for Failure {
    fn from(failed: CommandError) -> Self {
        Self::Command(failed)
    }
}

impl From<CutoverError> for Failure {
    fn from(failed: CutoverError) -> Self {
        Self::Cutover(failed)
    }
}

impl Failure {
    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self::Usage(message.into(), None)
    }

    pub(super) fn status(&self, caller: Caller) -> ExitStatus {
        if let Caller::WalFetch(doubt) = caller {
            return doubt.status();
        }
        match self {
            Self::Usage(..) => ExitStatus::USER,
            Self::Cutover(failed) => match failed.kind() {
                cutover::Kind::User => ExitStatus::USER,
                cutover::Kind::Unexpected | cutover::Kind::Interrupted => ExitStatus::UNEXPECTED,
            },
            Self::Command(failed) => match failed.kind() {
                Kind::User => ExitStatus::USER,
                Kind::Unavailable if caller == Caller::WalPush => ExitStatus::LATER,
                Kind::Unavailable | Kind::Unexpected => ExitStatus::UNEXPECTED,
            },
            Self::Unwritten(_) => ExitStatus::UNEXPECTED,
        }
    }

    /// What happened, in one line.
    pub(super) fn message(&self) -> String {
        match self {
            Self::Usage(message, _) => message.clone(),
            Self::Cutover(failed) => joined(failed),
            Self::Command(failed) => joined(failed),
            Self::Unwritten(failed) => format!("could not write the result to the standard output: {failed}"),
        }
    }

    /// Prints message, detail and hint, and logs them. A closed stderr is no reason to fail anew.
    pub(super) fn report(&self) {
        let text = self.to_string();
        let _ = std::io::stderr().lock().write_all(text.as_bytes());
        log::report(tracing::Level::ERROR, &text);
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message = self.message();
        match self {
            Self::Usage(_, hint) => block(f, &message, None, hint.as_deref()),
            Self::Cutover(failed) => block(f, &message, failed.detail(), failed.hint()),
            Self::Command(failed) => block(f, &message, failed.detail(), failed.hint().as_deref()),
            Self::Unwritten(_) => block(f, &message, None, None),
        }
    }
}

fn block(f: &mut fmt::Formatter<'_>, message: &str, detail: Option<&str>, hint: Option<&str>) -> fmt::Result {
    writeln!(f, "wal-eve: ERROR:  {message}")?;
    detail.map_or(Ok(()), |detail| writeln!(f, "wal-eve: DETAIL:  {detail}"))?;
    hint.map_or(Ok(()), |hint| writeln!(f, "wal-eve: HINT:  {hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{self, StorageError};

    fn storage(kind: storage::Kind) -> Failure {
        let failed = StorageError::new("read", "s3://b/k", kind, "connection refused").with_hint("Wait.");
        Failure::Command(failed.into())
    }

    #[test]
    fn every_kind_has_its_status() {
        use storage::Kind;
        let statuses = |failure: Failure| {
            let fetch = Caller::WalFetch(Doubt::Stop);
            [Caller::Other, Caller::WalPush, fetch].map(|caller| failure.status(caller).0)
        };
        assert_eq!(statuses(storage(Kind::Unavailable)), [2, 75, 250]);
        assert_eq!(statuses(storage(Kind::Denied)), [1, 1, 250]);
        assert_eq!(statuses(storage(Kind::Credentials)), [1, 1, 250]);
        assert_eq!(statuses(storage(Kind::Misconfigured)), [1, 1, 250]);
        assert_eq!(statuses(storage(Kind::Other)), [2, 2, 250]);
        assert_eq!(statuses(Failure::usage("x")), [1, 1, 250]);
        assert_eq!(statuses(Failure::Unwritten(io::ErrorKind::StorageFull.into())), [2, 2, 250]);
    }

    #[test]
    fn the_chain_is_joined_once() {
        let text = storage(storage::Kind::Unavailable).to_string();
        assert_eq!(text, "wal-eve: ERROR:  could not read \"s3://b/k\": connection refused\nwal-eve: HINT:  Wait.\n");
    }
}
