//! The header of a WAL segment's first page: whether a file can be the segment that its name says
//! (`spec/postgres-rules.md`, "WAL segment size").

use super::lsn::Lsn;
use super::wal_name::{SegmentName, SegmentSize};

/// The bytes of a long page header (`XLogLongPageHeaderData`).
pub const LONG_HEADER_LEN: usize = 40;

/// Set in `xlp_info` of every segment's first page (`XLP_LONG_HEADER`).
const LONG_HEADER_FLAG: u16 = 0x0002;

/// `XLOG_PAGE_MAGIC` of the majors 9.6, 10 … 18, in order. A new major has a new one, so an unknown one is no error.
const KNOWN_MAGICS: [u16; 10] = [0xD093, 0xD097, 0xD098, 0xD101, 0xD106, 0xD10D, 0xD110, 0xD113, 0xD116, 0xD118];

/// The header of a segment's first page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LongPageHeader {
    /// `xlp_magic`: tells the major version that wrote the page.
    pub magic: u16,
    /// `xlp_tli`
    pub timeline: u32,
    /// `xlp_pageaddr`: the position of the page's first byte.
    pub address: Lsn,
    /// `xlp_sysid`: the cluster's system identifier.
    pub system_identifier: u64,
    /// `xlp_seg_size`
    pub segment_size: SegmentSize,
}

/// Why a file cannot be the segment that its name says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WalPageError {
    /// Shorter than a page header.
    #[error("it holds {0} bytes, less than a page header")]
    TooShort(u64),
    /// No long header, no sensible segment size: zeros, or something else altogether.
    #[error("it does not begin with a WAL page header")]
    NoHeader,
    /// Cut short, or with something after its end.
    #[error("it holds {actual} bytes instead of the {expected} its first page header says")]
    WrongSize {
        /// The file's size in bytes.
        actual: u64,
        /// `xlp_seg_size`
        expected: u64,
    },
    /// Another segment's bytes, or an old life of a recycled file.
    #[error("its first page says it begins at {actual} instead of {expected}")]
    WrongAddress {
        /// `xlp_pageaddr`
        actual: Lsn,
        /// By the name.
        expected: Lsn,
    },
    /// The name cannot exist with this segment size.
    #[error("its name is impossible with segments of {0} bytes")]
    ImpossibleName(u64),
    /// Another cluster's.
    #[error("it is of the cluster with system identifier {actual}, and this one's is {expected}")]
    OtherCluster {
        /// `xlp_sysid`
        actual: u64,
        /// Of the cluster that it is for.
        expected: u64,
    },
    /// A page of a timeline that the name's timeline cannot have come from.
    #[error("its first page is of timeline {actual}, above the name's {expected}")]
    WrongTimeline {
        /// `xlp_tli`
        actual: u32,
        /// The name's.
        expected: u32,
    },
}

impl LongPageHeader {
    /// Reads the header at the start of a segment. Integers are little-endian, as on every machine that WAL-E served.
    pub fn parse(start: &[u8]) -> Result<Self, WalPageError> {
        let header: &[u8; LONG_HEADER_LEN] =
            start.first_chunk().ok_or(WalPageError::TooShort(u64::try_from(start.len()).unwrap_or(u64::MAX)))?;
        let u16_at = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        let u32_at = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
        // magic 0, info 2, timeline 4, address 8, rem_len 16, padding 20, then the long part: sysid 24, seg_size 32
        if u16_at(2) & LONG_HEADER_FLAG == 0 || u16_at(0) & 0xFF00 == 0 {
            return Err(WalPageError::NoHeader);
        }
        Ok(Self {
            magic: u16_at(0),
            timeline: u32_at(4),
            address: Lsn(u64_at(8)),
            system_identifier: u64_at(24),
            segment_size: SegmentSize::new(u64::from(u32_at(32))).ok_or(WalPageError::NoHeader)?,
        })
    }

    /// Whether this program knows the major version that wrote the page.
    pub fn is_known_version(&self) -> bool {
        KNOWN_MAGICS.contains(&self.magic)
    }
}

/// Holds a segment's first bytes and its file's size against its name.
pub fn check_segment(name: SegmentName, start: &[u8], file_size: u64) -> Result<LongPageHeader, WalPageError> {
    if start.len() < LONG_HEADER_LEN {
        return Err(WalPageError::TooShort(file_size));
    }
    let header = LongPageHeader::parse(start)?;
    let expected = header.segment_size.bytes();
    if file_size != expected {
        return Err(WalPageError::WrongSize { actual: file_size, expected });
    }
    let expected = name.start(header.segment_size).ok_or(WalPageError::ImpossibleName(expected))?;
    if header.address != expected {
        return Err(WalPageError::WrongAddress { actual: header.address, expected });
    }
    // the first segment of a new timeline is a copy of the old one's, up to the switch
    if header.timeline > name.timeline() {
        return Err(WalPageError::WrongTimeline { actual: header.timeline, expected: name.timeline() });
    }
    Ok(header)
}

/// Holds a segment's first page against the cluster that the segment is for, where that is known.
pub fn check_cluster(page: &LongPageHeader, system_identifier: Option<u64>) -> Result<(), WalPageError> {
    match system_identifier {
        Some(expected) if expected != page.system_identifier => {
            Err(WalPageError::OtherCluster { actual: page.system_identifier, expected })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 16 << 20;

    fn page(magic: u16, info: u16, timeline: u32, address: u64, segment_size: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(magic.to_le_bytes());
        bytes.extend(info.to_le_bytes());
        bytes.extend(timeline.to_le_bytes());
        bytes.extend(address.to_le_bytes());
        bytes.extend([0; 8]);
        bytes.extend(7_000_000_000_000_000_001_u64.to_le_bytes());
        bytes.extend(segment_size.to_le_bytes());
        bytes.extend(8192_u32.to_le_bytes());
        bytes
    }

    fn name(text: &str) -> SegmentName {
        text.parse().unwrap()
    }

    #[test]
    fn a_good_segment_passes_and_tells_its_cluster() {
        let good = page(0xD110, 2, 1, 0x0300_0000, 16 << 20);
        let header = check_segment(name("000000010000000000000003"), &good, SIZE).unwrap();
        assert_eq!(header.system_identifier, 7_000_000_000_000_000_001);
        assert!(header.is_known_version());
        assert!(
            check_segment(name("000000020000000000000003"), &good, SIZE).is_ok(),
            "first segment of a new timeline"
        );
        assert_eq!(check_cluster(&header, None), Ok(()));
        assert_eq!(check_cluster(&header, Some(7_000_000_000_000_000_001)), Ok(()));
        assert!(matches!(check_cluster(&header, Some(7)), Err(WalPageError::OtherCluster { .. })));
        let future = page(0xD1FF, 6, 1, 0x0300_0000, 16 << 20);
        assert!(!check_segment(name("000000010000000000000003"), &future, SIZE).unwrap().is_known_version());
    }

    #[test]
    fn a_wrong_segment_is_refused() {
        let three = name("000000010000000000000003");
        let good = page(0xD110, 2, 1, 0x0300_0000, 16 << 20);
        let refuse = |start: &[u8], size| check_segment(three, start, size).unwrap_err();
        for end in 0..good.len() {
            assert_eq!(refuse(&good[..end], end as u64), WalPageError::TooShort(end as u64));
        }
        assert_eq!(refuse(&[0; 64], SIZE), WalPageError::NoHeader);
        assert_eq!(refuse(&page(0xD110, 0, 1, 0x0300_0000, 16 << 20), SIZE), WalPageError::NoHeader);
        assert_eq!(refuse(&page(0xD110, 2, 1, 0x0300_0000, 3 << 20), SIZE), WalPageError::NoHeader);
        assert!(matches!(refuse(&good, SIZE - 1), WalPageError::WrongSize { .. }));
        assert!(matches!(refuse(&good, 0), WalPageError::WrongSize { .. }));
        assert!(matches!(refuse(&page(0xD110, 2, 1, 0x0200_0000, 16 << 20), SIZE), WalPageError::WrongAddress { .. }));
        assert!(matches!(refuse(&page(0xD110, 2, 2, 0x0300_0000, 16 << 20), SIZE), WalPageError::WrongTimeline { .. }));
        let far = name("0000000100000000000000FF");
        let large = page(0xD110, 2, 1, 0x0300_0000, 1 << 30);
        assert!(matches!(check_segment(far, &large, 1 << 30).unwrap_err(), WalPageError::ImpossibleName(_)));
    }
}
