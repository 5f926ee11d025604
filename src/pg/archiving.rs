//! Whether the server's archiving works: without the log from its start to its stop a base backup is worth nothing.

use super::finding::Finding;

/// What the server says of its archiving.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveState {
    /// `off`, `on` or `always`.
    pub archive_mode: String,
    /// `minimal`, `replica` or `logical`.
    pub wal_level: String,
    /// The command, if one is set.
    pub archive_command: Option<String>,
    /// The library, if one is set; from 15 on.
    pub archive_library: Option<String>,
    /// What was archived last.
    pub last_archived: Option<ArchiverEvent>,
    /// What failed last.
    pub last_failed: Option<ArchiverEvent>,
    /// Whether the last try failed: nothing has been archived since.
    pub is_failing: bool,
    /// Whether the server is a standby.
    pub in_recovery: bool,
}

/// One try of the archiver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiverEvent {
    /// The file's name, as the server gave it to the command.
    pub wal: String,
    /// When, as the server writes it, in UTC.
    pub time: String,
}

/// Commands that succeed and archive nothing.
const DISCARDING: [&str; 6] = ["true", "/bin/true", "/usr/bin/true", ":", "exit 0", "/bin/sh -c true"];

impl ArchiveState {
    /// Finds what would make a backup that starts now worthless, or doubtful.
    pub fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        // A standby's own setting means nothing: its log is its primary's.
        if self.wal_level == "minimal" && !self.in_recovery {
            findings.push(
                Finding::refusal("wal_level is \"minimal\"")
                    .with_detail("At this level the log cannot bring a base backup to a consistent state.")
                    .with_hint("Set wal_level to \"replica\" or \"logical\" and restart the server."),
            );
        }
        if self.in_recovery {
            findings.extend(self.standby_findings());
        } else {
            findings.extend(self.primary_findings());
        }
        findings
    }

    fn standby_findings(&self) -> Option<Finding> {
        (self.archive_mode != "always").then(|| {
            Finding::warning("the server is a standby that does not archive")
                .with_detail(format!("Its archive_mode is \"{}\".", self.archive_mode))
                .with_hint("Make sure that its primary archives to the same place.")
        })
    }

    fn primary_findings(&self) -> Option<Finding> {
        if self.archive_mode == "off" {
            return Some(
                Finding::refusal("archive_mode is off")
                    .with_detail("The log that the backup needs would not be archived.")
                    .with_hint("Set archive_mode to \"on\" and archive_command to wal-push, and restart the server."),
            );
        }
        match (&self.archive_command, &self.archive_library) {
            (None, None) => {
                return Some(
                    Finding::refusal("archive_command is not set")
                        .with_detail("The server keeps all of its log and archives nothing.")
                        .with_hint("Set archive_command to wal-push and reload the server."),
                );
            }
            (Some(command), None) if DISCARDING.contains(&command.trim()) => {
                return Some(
                    Finding::warning(format!("archive_command is \"{command}\", which archives nothing"))
                        .with_hint("Make sure that the log reaches the archive by another way."),
                );
            }
            _ => {}
        }
        let failed = self.last_failed.as_ref().filter(|_| self.is_failing)?;
        let since = match &self.last_archived {
            Some(last) => format!("The last success was {} at {}.", last.wal, last.time),
            None => "Nothing was archived so far.".to_owned(),
        };
        Some(
            Finding::refusal("the server's archiving fails")
                .with_detail(format!("It failed on {} at {}. {since}", failed.wal, failed.time))
                .with_hint("See the server's log for the reason. The server tries again every minute; start the backup once it \
                     succeeds."),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Severity::{self, Refusal, Warning};
    use super::*;

    fn working() -> ArchiveState {
        let event = |wal: &str| ArchiverEvent { wal: wal.into(), time: "2026-01-01 00:00:00+00".into() };
        ArchiveState {
            archive_mode: "on".into(),
            wal_level: "replica".into(),
            archive_command: Some("wal-eve wal-push %p".into()),
            archive_library: None,
            last_archived: Some(event("000000010000000000000002")),
            last_failed: Some(event("000000010000000000000001")),
            is_failing: false,
            in_recovery: false,
        }
    }

    fn severities(change: impl FnOnce(&mut ArchiveState)) -> Vec<Severity> {
        let mut state = working();
        change(&mut state);
        state.findings().iter().map(|finding| finding.severity).collect()
    }

    #[test]
    fn what_works_is_not_talked_about() {
        assert_eq!(severities(|_| {}), []);
        assert_eq!(severities(|s| s.last_failed = None), []);
        assert_eq!(severities(|s| (s.archive_command, s.archive_library) = (None, Some("basic_archive".into()))), []);
    }

    #[test]
    fn what_would_lose_the_log_is_refused() {
        assert_eq!(severities(|s| s.archive_mode = "off".into()), [Refusal]);
        assert_eq!(severities(|s| s.archive_command = None), [Refusal]);
        assert_eq!(severities(|s| s.is_failing = true), [Refusal]);
        assert_eq!(severities(|s| (s.is_failing, s.last_archived) = (true, None)), [Refusal]);
        let library = || Some("basic_archive".into());
        let by_library = severities(|s| (s.is_failing, s.archive_command, s.archive_library) = (true, None, library()));
        assert_eq!(by_library, [Refusal]);
        assert_eq!(
            severities(|s| (s.wal_level, s.archive_mode) = ("minimal".into(), "off".into())),
            [Refusal, Refusal]
        );
        assert_eq!(severities(|s| s.archive_command = Some(" /bin/true ".into())), [Warning]);
    }

    #[test]
    fn a_standby_leaves_archiving_to_its_primary() {
        assert_eq!(severities(|s| s.in_recovery = true), [Warning]);
        assert_eq!(severities(|s| (s.in_recovery, s.archive_mode) = (true, "off".into())), [Warning]);
        assert_eq!(severities(|s| (s.in_recovery, s.archive_mode) = (true, "always".into())), []);
        assert_eq!(severities(|s| (s.in_recovery, s.wal_level) = (true, "minimal".into())), [Warning]);
    }
}
