//! The header of a lzop stream, and what can be wrong with a stream.

use super::{MAGIC, adler32, flag};
use crate::formats::body_kind::BodyKind;
use crate::formats::lzo1x;

/// A stream that cannot be decoded. Offsets are bytes of the object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LzopError {
    /// Another format, told by its first bytes.
    #[error("it is {0}, not a lzop stream")]
    NotLzop(BodyKind),
    /// A header that no decoder of this generation can read.
    #[error("the lzop header at byte {offset} {problem}")]
    Header {
        /// Where the header begins.
        offset: u64,
        /// Completes "the lzop header …".
        problem: &'static str,
    },
    /// A block whose lengths are impossible.
    #[error("the block at byte {offset} claims {stored} stored bytes for {plain} plain ones")]
    BlockLengths {
        /// Where the block begins.
        offset: u64,
        /// The length stored.
        stored: u32,
        /// The length of the plain bytes.
        plain: u32,
    },
    /// A checksum that does not match.
    #[error("the block at byte {offset} fails its {checksum} checksum")]
    Checksum {
        /// Where the block begins.
        offset: u64,
        /// Which checksum.
        checksum: &'static str,
    },
    /// A block that is no LZO1X stream.
    #[error("the block at byte {offset} cannot be decompressed: {source}")]
    Block {
        /// Where the block begins.
        offset: u64,
        /// Why not.
        source: lzo1x::DecompressError,
    },
    /// The object ends before the stream's terminator.
    #[error("it ends at byte {0}, before the end of the lzop stream")]
    Truncated(u64),
    /// Something other than zeros or another stream after the terminator.
    #[error("unknown bytes follow the lzop stream at byte {0}")]
    Trailing(u64),
}

/// What the blocks of a stream carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) flags: u32,
}

/// The newest format that is understood: 0x1040 is lzop 1.04's own, and what needs more than that to extract cannot be read.
const NEWEST_NEEDED: u16 = 0x1040;

impl Header {
    /// Reads a header at the start of `bytes`: the header and its length, or none when there are too few bytes yet.
    pub(super) fn parse(bytes: &[u8], offset: u64) -> Result<Option<(Self, usize)>, LzopError> {
        let mut at = Cursor { bytes, at: MAGIC.len() };
        let Some(magic) = bytes.get(..MAGIC.len()) else { return Ok(None) };
        if magic != MAGIC {
            return Err(LzopError::NotLzop(BodyKind::of(&bytes[..BodyKind::SNIFF_LEN])));
        }
        let refuse = |problem| Err(LzopError::Header { offset, problem });
        let Some(version) = at.u16() else { return Ok(None) };
        if version < 0x0900 {
            return refuse("is of an unknown, ancient version");
        }
        let new = version >= 0x0940;
        let Some(_library) = at.u16() else { return Ok(None) };
        if new {
            let Some(needed) = at.u16() else { return Ok(None) };
            if !(0x0900..=NEWEST_NEEDED).contains(&needed) {
                return refuse("needs a newer decoder");
            }
        }
        let Some(method) = at.u8() else { return Ok(None) };
        if !(1..=3).contains(&method) {
            return refuse("names an unknown compression method");
        }
        if new && at.u8().is_none() {
            return Ok(None);
        }
        let Some(flags) = at.u32() else { return Ok(None) };
        if flags & flag::MULTIPART != 0 {
            return refuse("says that the stream is split over several files");
        }
        // a filter changes the plain bytes; nothing has ever written an archive with one
        if flags & flag::H_FILTER != 0 {
            return refuse("asks for a filter");
        }
        let times = if new { 12 } else { 8 };
        if at.skip(times).is_none() {
            return Ok(None);
        }
        let Some(name_len) = at.u8() else { return Ok(None) };
        if at.skip(usize::from(name_len)).is_none() {
            return Ok(None);
        }
        let checked = at.since(MAGIC.len());
        let Some(checksum) = at.u32() else { return Ok(None) };
        if header_checksum(flags, checked) != checksum {
            return refuse("fails its checksum");
        }
        if flags & flag::H_EXTRA_FIELD != 0 {
            let begin = at.at;
            let Some(len) = at.u32() else { return Ok(None) };
            if len > 1 << 20 {
                return refuse("has an extra field of impossible length");
            }
            if at.skip(len as usize).is_none() {
                return Ok(None);
            }
            let checked = at.since(begin);
            let Some(checksum) = at.u32() else { return Ok(None) };
            if header_checksum(flags, checked) != checksum {
                return refuse("has an extra field that fails its checksum");
            }
        }
        Ok(Some((Self { flags }, at.at)))
    }

    pub(super) fn has(self, flag: u32) -> bool {
        self.flags & flag != 0
    }
}

fn header_checksum(flags: u32, bytes: &[u8]) -> u32 {
    if flags & flag::H_CRC32 != 0 { crc32fast::hash(bytes) } else { adler32(bytes) }
}

/// Reads big-endian integers; none at the end of the bytes.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let taken = *self.bytes.get(self.at..)?.first_chunk::<N>()?;
        self.at += N;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }

    fn skip(&mut self, len: usize) -> Option<()> {
        self.bytes.get(self.at..self.at + len)?;
        self.at += len;
        Some(())
    }

    fn since(&self, begin: usize) -> &'a [u8] {
        &self.bytes[begin..self.at]
    }
}
