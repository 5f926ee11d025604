//! Names of the files in `pg_wal`: segments, timeline histories, backup histories and partial segments.
//!
//! `spec/postgres-rules.md`, "Names". A segment's name does not hold the segment size, so everything that counts
//! segments takes it as a [`SegmentSize`].

use std::fmt;
use std::str::FromStr;

use super::ParseError;
use super::lsn::Lsn;

/// The size of a cluster's WAL segments: a power of two from 1 MiB to 1 GiB; 16 MiB unless `initdb` was told otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SegmentSize(u32);

impl SegmentSize {
    /// 16 MiB, the only size before PostgreSQL 11 (but for custom builds) and the default since.
    pub const DEFAULT: Self = Self(16 << 20);

    /// Takes `bytes` when it is a size that PostgreSQL allows.
    pub fn new(bytes: u64) -> Option<Self> {
        let allowed = bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes);
        u32::try_from(bytes).ok().filter(|_| allowed).map(Self)
    }

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        u64::from(self.0)
    }

    /// How many segments share one value of the name's middle field (4 GiB of WAL).
    pub fn segments_per_log(self) -> u64 {
        (1 << 32) / self.bytes()
    }
}

impl Default for SegmentSize {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// A WAL segment's file name: timeline, log, segment; eight upper-case hex digits each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    timeline: u32,
    log: u32,
    segment: u32,
}

impl SegmentName {
    /// The name of the segment on `timeline` that holds the byte at `lsn`.
    pub fn containing(timeline: u32, lsn: Lsn, size: SegmentSize) -> Self {
        Self::from_number(timeline, lsn.0 / size.bytes(), size)
    }

    /// The segment that holds the last byte before `lsn`: what `pg_walfile_name` means by a backup's stop position, which
    /// is the first byte *not* needed and may be the next segment's first.
    pub fn ending_at(timeline: u32, lsn: Lsn, size: SegmentSize) -> Self {
        Self::containing(timeline, Lsn(lsn.0.saturating_sub(1)), size)
    }

    fn from_number(timeline: u32, number: u64, size: SegmentSize) -> Self {
        let per_log = size.segments_per_log();
        let field = |n: u64| u32::try_from(n).expect("a 64-bit LSN has at most 32 bits above and below 4 GiB");
        Self { timeline, log: field(number / per_log), segment: field(number % per_log) }
    }

    /// The timeline field.
    pub fn timeline(self) -> u32 {
        self.timeline
    }

    /// The segment of the same number on another timeline.
    pub fn on_timeline(self, timeline: u32) -> Self {
        Self { timeline, ..self }
    }

    /// The middle field: which 4 GiB of WAL.
    pub fn log(self) -> u32 {
        self.log
    }

    /// The last field.
    pub fn segment(self) -> u32 {
        self.segment
    }

    /// The segment's number in the whole log: its start divided by the segment size. A name whose last field is too large
    /// for `size` has none.
    pub fn number(self, size: SegmentSize) -> Option<u64> {
        let per_log = size.segments_per_log();
        (u64::from(self.segment) < per_log).then(|| u64::from(self.log) * per_log + u64::from(self.segment))
    }

    /// The position of the segment's first byte, or none when the name does not fit `size`.
    pub fn start(self, size: SegmentSize) -> Option<Lsn> {
        self.number(size).map(|number| Lsn(number * size.bytes()))
    }

    /// The segment after this one on the same timeline; none at the end of the log or when the name does not fit `size`.
    pub fn next(self, size: SegmentSize) -> Option<Self> {
        let number = self.number(size)? + 1;
        (number <= u64::MAX / size.bytes()).then(|| Self::from_number(self.timeline, number, size))
    }

    /// The segment before this one on the same timeline; none for the first.
    pub fn previous(self, size: SegmentSize) -> Option<Self> {
        Some(Self::from_number(self.timeline, self.number(size)?.checked_sub(1)?, size))
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}{:08X}{:08X}", self.timeline, self.log, self.segment)
    }
}

impl FromStr for SegmentName {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let field = |range| text.get(range).and_then(upper_hex8);
        if text.len() == 24
            && let (Some(timeline), Some(log), Some(segment)) = (field(0..8), field(8..16), field(16..24))
        {
            return Ok(Self { timeline, log, segment });
        }
        Err(ParseError::new("a WAL segment's name", text))
    }
}

/// Exactly eight upper-case hexadecimal digits.
pub(crate) fn upper_hex8(text: &str) -> Option<u32> {
    let well_formed = text.len() == 8 && text.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
    well_formed.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

/// A file name that PostgreSQL may hand to `archive_command` or ask of `restore_command`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalName {
    /// `TTTTTTTTLLLLLLLLSSSSSSSS`
    Segment(SegmentName),
    /// `TTTTTTTT.history`
    History {
        /// The timeline whose ancestry the file tells.
        timeline: u32,
    },
    /// `TTTTTTTTLLLLLLLLSSSSSSSS.OOOOOOOO.backup`
    BackupHistory {
        /// The segment in which the backup started.
        segment: SegmentName,
        /// The start's offset in that segment, in bytes.
        offset: u32,
    },
    /// `TTTTTTTTLLLLLLLLSSSSSSSS.partial`
    Partial(SegmentName),
}

impl WalName {
    /// The segment the name is about, if any.
    pub fn segment(&self) -> Option<SegmentName> {
        match self {
            Self::Segment(segment) | Self::BackupHistory { segment, .. } | Self::Partial(segment) => Some(*segment),
            Self::History { .. } => None,
        }
    }
}

impl fmt::Display for WalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(segment) => segment.fmt(f),
            Self::History { timeline } => write!(f, "{timeline:08X}.history"),
            Self::BackupHistory { segment, offset } => write!(f, "{segment}.{offset:08X}.backup"),
            Self::Partial(segment) => write!(f, "{segment}.partial"),
        }
    }
}

impl FromStr for WalName {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let refuse = || ParseError::new("the name of a WAL file", text);
        let Some((stem, suffix)) = text.split_once('.') else {
            return text.parse().map(Self::Segment).map_err(|_| refuse());
        };
        if suffix == "history" {
            return upper_hex8(stem).map(|timeline| Self::History { timeline }).ok_or_else(refuse);
        }
        let segment: SegmentName = stem.parse().map_err(|_| refuse())?;
        if suffix == "partial" {
            return Ok(Self::Partial(segment));
        }
        let offset = suffix.strip_suffix(".backup").and_then(upper_hex8).ok_or_else(refuse)?;
        Ok(Self::BackupHistory { segment, offset })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: SegmentSize = SegmentSize::DEFAULT;

    fn segment(text: &str) -> SegmentName {
        text.parse().unwrap()
    }

    #[test]
    fn every_kind_of_name_round_trips() {
        for text in [
            "00000001000000000000003F",
            "0000000A000000FF000000FF",
            "00000002.history",
            "000000010000000000000001.00000028.backup",
            "000000010000000000000001.partial",
        ] {
            assert_eq!(text.parse::<WalName>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn every_prefix_and_extension_of_a_name_is_refused() {
        for good in ["00000001000000000000003F", "00000002.history", "000000010000000000000001.00000028.backup"] {
            for end in 0..good.len() {
                let stem_is_a_segment = end == 24;
                assert_eq!(good[..end].parse::<WalName>().is_ok(), stem_is_a_segment, "{}", &good[..end]);
            }
            for bad in [format!("{good}0"), format!("{good}."), format!(" {good}"), format!("../{good}")] {
                assert!(bad.parse::<WalName>().is_err(), "accepted {bad}");
            }
        }
        for bad in [
            "00000001000000000000003f",
            "+0000001000000000000003F",
            "0000000g.history",
            "RECOVERYXLOG",
            "000000010000000000000001.0000002.backup",
            "000000010000000000000001.00000028.BACKUP",
            "0000000é0000000000000001",
        ] {
            assert!(bad.parse::<WalName>().is_err(), "accepted {bad}");
        }
    }

    #[test]
    fn next_and_previous_follow_the_specs_vectors() {
        // spec/wal-e-format.md §12, vector 7
        let next = segment("00000001000000000000003F").next(SIZE).unwrap();
        assert_eq!(next.to_string(), "000000010000000000000040");
        assert_eq!(segment("0000000100000000000000FF").next(SIZE).unwrap().to_string(), "000000010000000100000000");
        assert_eq!(segment("000000010000000100000000").previous(SIZE).unwrap().to_string(), "0000000100000000000000FF");
        assert_eq!(segment("000000010000000000000000").previous(SIZE), None);
        assert_eq!("00000002.history".parse::<WalName>().unwrap().segment(), None);
    }

    #[test]
    fn next_wraps_by_the_segment_size() {
        let one_mib = SegmentSize::new(1 << 20).unwrap();
        let one_gib = SegmentSize::new(1 << 30).unwrap();
        assert_eq!(segment("0000000100000000000000FF").next(one_mib).unwrap().to_string(), "000000010000000000000100");
        assert_eq!(segment("000000010000000000000FFF").next(one_mib).unwrap().to_string(), "000000010000000100000000");
        assert_eq!(segment("000000010000000000000003").next(one_gib).unwrap().to_string(), "000000010000000100000000");
        assert_eq!(segment("000000010000000000000004").next(one_gib), None, "no such segment at 1 GiB");
        assert_eq!(segment("00000001FFFFFFFF000000FF").next(SIZE), None, "the end of the log");
    }

    #[test]
    fn positions_become_names() {
        let name = |lsn: &str, timeline| SegmentName::containing(timeline, lsn.parse().unwrap(), SIZE).to_string();
        assert_eq!(name("0/3000028", 10), "0000000A0000000000000003");
        assert_eq!(name("1A/F0000028", 11), "0000000B0000001A000000F0");
        assert_eq!(name("0/3000000", 1), "000000010000000000000003");
        let ending = SegmentName::ending_at(1, "0/3000000".parse().unwrap(), SIZE).to_string();
        assert_eq!(ending, "000000010000000000000002");
    }

    #[test]
    fn only_sizes_that_postgresql_allows_exist() {
        for bytes in [1 << 20, 16 << 20, 64 << 20, 1 << 30] {
            assert_eq!(SegmentSize::new(bytes).unwrap().bytes(), bytes);
        }
        for bytes in [0, 1, 1 << 19, 3 << 20, (1 << 30) + 1, 1 << 31, 1 << 40] {
            assert_eq!(SegmentSize::new(bytes), None, "{bytes}");
        }
    }
}
