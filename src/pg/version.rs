//! PostgreSQL's versions, and what is named differently from one to the next.

use std::fmt;
use std::str::FromStr;

use super::{Kind, PgError};

/// A server's version as `server_version_num` tells it: 90624, 110022, 180004.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerVersion(u32);

impl ServerVersion {
    /// Takes the value of `server_version_num`.
    pub fn new(number: u32) -> Self {
        Self(number)
    }

    /// The value of `server_version_num`.
    pub fn number(self) -> u32 {
        self.0
    }

    /// The major version: what decides on formats and names.
    pub fn major(self) -> Major {
        let per_major = if self.0 >= 100_000 { 10_000 } else { 100 };
        Major(self.0 / per_major * per_major)
    }
}

impl fmt::Display for ServerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 >= 100_000 {
            write!(f, "{}.{}", self.0 / 10_000, self.0 % 10_000)
        } else {
            write!(f, "{}.{}", self.major(), self.0 % 100)
        }
    }
}

/// A major version: `9.6`, `11`, `18`. Ordered by age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Major(u32);

impl Major {
    /// The oldest major that has non-exclusive base backups, and so the oldest that is supported.
    pub const OLDEST: Self = Self(90_600);

    /// Major `first`, 10 or above: since then one number names a major.
    pub const fn new(first: u32) -> Self {
        Self(first * 10_000)
    }

    /// Whether this program knows the server well enough to read its files and take its backups. There is no upper end:
    /// what changes in a new major shows up as an unknown format where it matters.
    pub fn is_supported(self) -> bool {
        self >= Self::OLDEST
    }

    /// The directory of the write-ahead log below the data directory.
    pub fn wal_directory(self) -> &'static str {
        if self < Self::new(10) { "pg_xlog" } else { "pg_wal" }
    }

    /// Whether recovery is configured in `recovery.conf` (up to 11) and not by signal files (from 12).
    pub fn uses_recovery_conf(self) -> bool {
        self < Self::new(12)
    }

    /// The names of the functions that differ between majors.
    pub fn functions(self) -> FunctionNames {
        let (start_backup, stop_backup) = if self < Self::new(15) {
            ("pg_start_backup", "pg_stop_backup")
        } else {
            ("pg_backup_start", "pg_backup_stop")
        };
        let (current_wal_lsn, switch_wal) = if self < Self::new(10) {
            ("pg_current_xlog_location", "pg_switch_xlog")
        } else {
            ("pg_current_wal_lsn", "pg_switch_wal")
        };
        FunctionNames { start_backup, stop_backup, current_wal_lsn, switch_wal }
    }

    /// Whether the functions that start and stop a backup take an `exclusive` argument (up to 14).
    pub fn has_exclusive_backups(self) -> bool {
        self < Self::new(15)
    }

    /// Whether stopping a backup can be told not to wait for the archive (from 10).
    pub fn can_stop_without_waiting(self) -> bool {
        self >= Self::new(10)
    }
}

/// SQL functions whose names differ between majors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FunctionNames {
    /// Starts a base backup.
    pub start_backup: &'static str,
    /// Stops a base backup.
    pub stop_backup: &'static str,
    /// The current write position.
    pub current_wal_lsn: &'static str,
    /// Ends the current segment.
    pub switch_wal: &'static str,
}

impl fmt::Display for Major {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = self.0 / 10_000;
        if first >= 10 { write!(f, "{first}") } else { write!(f, "{first}.{}", self.0 / 100 % 100) }
    }
}

impl FromStr for Major {
    type Err = PgError;

    /// Reads the text of a `PG_VERSION` file: `9.6` or `17`, with or without the line's end.
    fn from_str(text: &str) -> Result<Self, PgError> {
        let refuse = || PgError::new(Kind::Damaged, format!("{text:?} is not a PostgreSQL major version"));
        let digits = |text: &str| {
            let well_formed = (1..=3).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
            well_formed.then(|| text.parse::<u32>().ok()).flatten()
        };
        let line = text.strip_suffix('\n').unwrap_or(text);
        match line.split_once('.') {
            None => digits(line).filter(|first| *first >= 10).map(Self::new),
            Some((first, second)) => match (digits(first), digits(second)) {
                (Some(first @ 1..=9), Some(second @ 0..=99)) => Some(Self(first * 10_000 + second * 100)),
                _ => None,
            },
        }
        .ok_or_else(refuse)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_become_majors_and_text() {
        for (number, major, text) in [
            (90_600, "9.6", "9.6.0"),
            (90_624, "9.6", "9.6.24"),
            (100_001, "10", "10.1"),
            (110_022, "11", "11.22"),
            (180_004, "18", "18.4"),
        ] {
            let version = ServerVersion::new(number);
            assert_eq!(version.to_string(), text);
            assert_eq!(version.major().to_string(), major);
            assert_eq!(format!("{major}\n").parse::<Major>().unwrap(), version.major());
        }
    }

    #[test]
    fn majors_are_ordered_by_age() {
        let majors: Vec<Major> = ["9.5", "9.6", "10", "11", "18"].iter().map(|m| m.parse().unwrap()).collect();
        assert!(majors.is_sorted());
        assert!(!majors[0].is_supported());
        assert!(majors[1].is_supported());
    }

    #[test]
    fn anything_but_a_major_is_refused() {
        for text in
            ["", "\n", "9", "9.", ".6", "9.6.1", "10.1", "x", "+11", " 11", "11 ", "11\n\n", "11\r\n", "1000000", "0.1"]
        {
            assert!(text.parse::<Major>().is_err(), "accepted {text:?}");
        }
    }

    #[test]
    fn names_follow_the_renamings_of_10_12_and_15() {
        let of = |text: &str| text.parse::<Major>().unwrap();
        assert_eq!(of("9.6").wal_directory(), "pg_xlog");
        assert_eq!(of("10").wal_directory(), "pg_wal");
        assert!(of("11").uses_recovery_conf());
        assert!(!of("12").uses_recovery_conf());
        assert_eq!(of("9.6").functions().switch_wal, "pg_switch_xlog");
        assert_eq!(of("14").functions().start_backup, "pg_start_backup");
        assert_eq!(of("15").functions().start_backup, "pg_backup_start");
        assert!(!of("9.6").can_stop_without_waiting());
        assert!(of("10").can_stop_without_waiting());
    }
}
