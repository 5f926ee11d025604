//! A base backup's name: `base_<SEG>_<OFF8>` (`spec/wal-e-format.md` §1.3).

use std::fmt;
use std::str::FromStr;

use super::ParseError;
use super::lsn::Lsn;
use super::wal_name::{SegmentName, SegmentSize};

/// The name of a base backup. To its readers an opaque text: the offset's eight characters are decimal when WAL-E wrote it
/// online and something else when it wrote it offline, where the segment may be wrong too (§4.9).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackupName {
    segment: SegmentName,
    offset: String,
}

impl BackupName {
    /// The length of every backup name in bytes: `base_`, 24 digits, `_`, 8 digits.
    pub const LEN: usize = 38;

    /// The name of a backup that starts at `start`. The offset is decimal and, as PostgreSQL's `lpad` makes it, cut to its
    /// *first* eight digits when a segment is so large that it has more.
    pub fn at(timeline: u32, start: Lsn, size: SegmentSize) -> Self {
        let segment = SegmentName::containing(timeline, start, size);
        Self { segment, offset: offset_text(start.0 % size.bytes()) }
    }

    /// The segment that the name claims the backup starts in.
    pub fn segment(&self) -> SegmentName {
        self.segment
    }

    /// The offset's text.
    pub fn offset(&self) -> &str {
        &self.offset
    }

    /// Whether WAL-E's offline mode may have written the name, which then has the segment's text as its offset and may tell the
    /// wrong segment (§4.9). An online name can look the same: the one that starts 40 bytes into segment 0x40.
    pub fn looks_offline(&self) -> bool {
        self.offset == format!("{:08X}", self.segment.segment())
    }
}

/// An offset in a segment as names and sentinels hold it: decimal, at least and at most eight digits.
pub fn offset_text(offset: u64) -> String {
    let mut text = format!("{offset:08}");
    text.truncate(8);
    text
}

impl fmt::Display for BackupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "base_{}_{}", self.segment, self.offset)
    }
}

impl FromStr for BackupName {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        text.strip_prefix("base_")
            .and_then(|rest| rest.split_once('_'))
            .and_then(|(segment, offset)| {
                super::wal_name::upper_hex8(offset)?;
                Some(Self { segment: segment.parse().ok()?, offset: offset.to_owned() })
            })
            .ok_or_else(|| ParseError::new("a base backup's name", text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_specs_vectors() {
        // §12, vectors 3 and 6; the latter with the values that WAL-E's offline mode should have written
        let name =
            |timeline, lsn: &str| BackupName::at(timeline, lsn.parse().unwrap(), SegmentSize::DEFAULT).to_string();
        assert_eq!(name(1, "0/2000028"), "base_000000010000000000000002_00000040");
        assert_eq!(name(10, "0/3000028"), "base_0000000A0000000000000003_00000040");
        assert_eq!(name(1, "2/16B374D8"), "base_000000010000000200000016_11760856");
    }

    #[test]
    fn a_long_offset_loses_its_last_digits() {
        let size = SegmentSize::new(1 << 30).unwrap();
        assert_eq!(BackupName::at(1, Lsn(1_000_000_007), size).offset(), "10000000");
    }

    #[test]
    fn names_that_wal_e_writes_offline_are_read() {
        for text in ["base_000000010000000200000016_00000016", "base_000000110000001A000000F0_000000F0"] {
            assert_eq!(text.parse::<BackupName>().unwrap().to_string(), text);
            assert!(text.parse::<BackupName>().unwrap().looks_offline());
        }
        assert!(!"base_000000010000000000000002_00000040".parse::<BackupName>().unwrap().looks_offline());
        assert!("base_000000010000000000000040_00000040".parse::<BackupName>().unwrap().looks_offline());
    }

    #[test]
    fn every_prefix_and_extension_of_a_name_is_refused() {
        let good = "base_000000010000000000000002_00000040";
        assert_eq!(good.len(), BackupName::LEN);
        for end in 0..good.len() {
            assert!(good[..end].parse::<BackupName>().is_err(), "accepted {end} bytes");
        }
        for bad in [format!("{good}x"), format!("/{good}"), good.to_lowercase() + "f", good.replace('_', "-")] {
            assert!(bad.parse::<BackupName>().is_err(), "accepted {bad}");
        }
    }
}
