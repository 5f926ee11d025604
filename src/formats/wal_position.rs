//! Places in a cluster's WAL that compare over its timelines (`spec/wal-e-format.md` §8.6).

use std::fmt;

use super::backup_name::BackupName;
use super::wal_name::SegmentName;

/// Which segment of the log, whatever the timeline: log and segment as one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WalPosition(u64);

impl From<SegmentName> for WalPosition {
    fn from(name: SegmentName) -> Self {
        Self((u64::from(name.log()) << 32) | u64::from(name.segment()))
    }
}

impl fmt::Display for WalPosition {
    /// As the last sixteen digits of a segment's name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}", self.0)
    }
}

/// Where something in the WAL lies, as far as its name tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PositionRange {
    /// It lies here or later.
    pub earliest: WalPosition,
    /// It lies here or earlier.
    pub latest: WalPosition,
}

impl PositionRange {
    /// Exactly there.
    pub fn exact(at: WalPosition) -> Self {
        Self { earliest: at, latest: at }
    }

    /// Somewhere in the log file of 4 GiB that a name's middle field tells.
    pub fn log_of(name: SegmentName) -> Self {
        let first = u64::from(name.log()) << 32;
        Self { earliest: WalPosition(first), latest: WalPosition(first | u64::from(u32::MAX)) }
    }

    /// The start of the backup `name`, of which nothing is known but its name. WAL-E's offline mode wrote a wrong segment into
    /// most names and a right log into all (§4.9).
    pub fn of_backup(name: &BackupName) -> Self {
        match name.looks_offline() {
            true => Self::log_of(name.segment()),
            false => Self::exact(name.segment().into()),
        }
    }

    /// Whether a single segment is known.
    pub fn is_exact(self) -> bool {
        self.earliest == self.latest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(name: &str) -> WalPosition {
        name.parse::<SegmentName>().unwrap().into()
    }

    #[test]
    fn positions_compare_over_timelines() {
        assert_eq!(position("000000010000000000000002"), position("000000030000000000000002"));
        assert!(position("000000020000000000000002") < position("000000010000000000000003"));
        assert!(position("0000000200000000000000FF") < position("000000010000000100000000"));
        assert_eq!(position("0000000A0000001B000000F0").to_string(), "0000001B000000F0");
    }

    #[test]
    fn an_offline_name_tells_its_log_only() {
        // §12, vector 6: the segments are 0x16, 3 and 0xF0
        for (name, really) in [
            ("base_000000010000000200000016_00000016", "000000010000000200000016"),
            ("base_000000100000000000000030_00000030", "0000000A0000000000000003"),
            ("base_000000110000001A000000F0_000000F0", "0000000B0000001A000000F0"),
        ] {
            let range = PositionRange::of_backup(&name.parse().unwrap());
            assert!(!range.is_exact(), "{name}");
            assert!(range.earliest <= position(really) && position(really) <= range.latest, "{name}");
        }
        let online = PositionRange::of_backup(&"base_000000010000000000000002_00000040".parse().unwrap());
        assert_eq!(online, PositionRange::exact(position("000000010000000000000002")));
    }
}
