//! What a restored backup has to hold before a server may start on it.
//!
//! The list of partitions shows gaps, but not that the last ones are lost.

use std::path::Path;

use crate::commands::{CommandError, Result};

/// One part in so many of the bytes may be missing: files that were dropped while the backup was taken.
const TOLERATED: u64 = 20;

/// What is known of a backup beforehand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Completeness {
    /// Whether the server ran.
    pub(super) is_online: bool,
    /// The sum of the files' sizes in bytes, by the sentinel.
    pub(super) expanded_size_bytes: u64,
    /// Whether to go on all the same when much is missing.
    pub(super) allow_missing_files: bool,
}

impl Completeness {
    /// Every backup of a running server holds `backup_label` (`spec/wal-e-format.md` §4.1). Without it the server would
    /// recover from a checkpoint that is too late, and end up with damaged data and no error.
    pub(super) fn check_label(&self, root: &Path) -> Result<()> {
        if !self.is_online || root.join("backup_label").is_file() {
            return Ok(());
        }
        Err(CommandError::refused("the backup holds no backup_label")
            .with_detail("It is of a running server, so a partition is lost. Without this file a server would start, from the wrong checkpoint, and its data would be damaged.")
            .with_hint("Choose another backup with backup-list."))
    }

    /// Compares what all partitions held with what the sentinel says. Fewer bytes are those of lost partitions, or, in WAL-E's
    /// backups, whose sentinel counts the files as they were planned, of files that were gone before they were read (§4.7).
    pub(super) fn check_bytes(&self, restored: u64) -> Result<()> {
        let expected = self.expanded_size_bytes;
        let missing = expected.saturating_sub(restored);
        if missing == 0 {
            return Ok(());
        }
        let message =
            format!("the backup's partitions held {restored} bytes of files, but its sentinel says {expected}");
        if missing <= expected / TOLERATED || self.allow_missing_files {
            tracing::warn!("{message}: files were dropped while it was taken, or its last partition is lost");
            return Ok(());
        }
        Err(CommandError::refused(message)
            .with_detail("Its last partitions are lost, or many files were dropped while it was taken.")
            .with_hint("Choose another backup with backup-list. If it is known to be complete, the same command with --allow-missing-files goes on from here."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(expanded_size_bytes: u64) -> Completeness {
        Completeness { is_online: true, expanded_size_bytes, allow_missing_files: false }
    }

    #[test]
    fn more_than_a_twentieth_of_the_bytes_may_not_be_missing_unless_that_is_allowed() {
        for restored in [950, 999, 1000, 1001, u64::MAX] {
            of(1000).check_bytes(restored).unwrap();
        }
        for restored in [0, 949] {
            let refused = of(1000).check_bytes(restored).unwrap_err();
            assert!(refused.to_string().contains(&restored.to_string()) && refused.to_string().contains("1000"));
            assert!(refused.hint().unwrap().contains("--allow-missing-files"));
            Completeness { allow_missing_files: true, ..of(1000) }.check_bytes(restored).unwrap();
        }
        of(0).check_bytes(0).unwrap();
        assert!(of(u64::MAX).check_bytes(0).is_err());
    }

    #[test]
    fn only_a_backup_of_a_stopped_cluster_does_without_a_label() {
        let root = tempfile::tempdir().unwrap();
        Completeness { is_online: false, ..of(0) }.check_label(root.path()).unwrap();
        assert!(of(0).check_label(root.path()).is_err());
        std::fs::write(root.path().join("backup_label"), "x").unwrap();
        of(0).check_label(root.path()).unwrap();
    }
}
