//! Cutting a lzop stream, as it arrives, into blocks that can be decompressed in parallel.

use bytes::{Buf, Bytes, BytesMut};

use super::header::{Header, LzopError};
use super::{MAGIC, MAX_READ_BLOCK_SIZE, adler32, flag};
use crate::formats::body_kind::BodyKind;
use crate::formats::lzo1x;

/// One block of a stream, not yet decompressed.
#[derive(Debug, Clone)]
pub struct Block {
    offset: u64,
    plain_len: usize,
    adler32_plain: Option<u32>,
    crc32_plain: Option<u32>,
    adler32_stored: Option<u32>,
    crc32_stored: Option<u32>,
    stored: Bytes,
}

impl Block {
    /// How many bytes it decompresses to; at most [`MAX_READ_BLOCK_SIZE`].
    pub fn plain_len(&self) -> usize {
        self.plain_len
    }

    /// Decompresses into `plain`, which has exactly [`Self::plain_len`] bytes, and verifies every checksum there is.
    pub fn decode(&self, plain: &mut [u8]) -> Result<(), LzopError> {
        assert_eq!(plain.len(), self.plain_len, "the caller sized the buffer by plain_len");
        let fails = |checksum| Err(LzopError::Checksum { offset: self.offset, checksum });
        if self.adler32_stored.is_some_and(|sum| sum != adler32(&self.stored)) {
            return fails("compressed Adler-32");
        }
        if self.crc32_stored.is_some_and(|sum| sum != crc32fast::hash(&self.stored)) {
            return fails("compressed CRC-32");
        }
        if self.stored.len() == self.plain_len {
            plain.copy_from_slice(&self.stored);
        } else {
            let failed = |source| LzopError::Block { offset: self.offset, source };
            lzo1x::decompress(&self.stored, plain).map_err(failed)?;
        }
        if self.adler32_plain.is_some_and(|sum| sum != adler32(plain)) {
            return fails("Adler-32");
        }
        if self.crc32_plain.is_some_and(|sum| sum != crc32fast::hash(plain)) {
            return fails("CRC-32");
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the first stream.
    Start,
    /// Inside a stream.
    Blocks(Header),
    /// After a terminator: zeros, another stream, or the end.
    Between,
}

/// Takes a stream in pieces of any size and gives its blocks. Holds at most one block's bytes and one piece.
#[derive(Debug)]
pub struct Deframer {
    state: State,
    pending: BytesMut,
    offset: u64,
}

impl Default for Deframer {
    fn default() -> Self {
        Self { state: State::Start, pending: BytesMut::new(), offset: 0 }
    }
}

impl Deframer {
    /// Adds the next piece of the object.
    pub fn push(&mut self, piece: &[u8]) {
        self.pending.extend_from_slice(piece);
    }

    /// The next block, or none until more is pushed.
    pub fn next_block(&mut self) -> Result<Option<Block>, LzopError> {
        loop {
            match self.state {
                State::Start => match self.header()? {
                    Some(header) => self.state = State::Blocks(header),
                    None => return Ok(None),
                },
                State::Blocks(header) => {
                    if self.pending.len() < 4 {
                        return Ok(None);
                    }
                    if self.pending[..4] != [0; 4] {
                        return self.block(header);
                    }
                    self.consume(4);
                    self.state = State::Between;
                }
                State::Between => {
                    let zeros = self.pending.iter().take_while(|byte| **byte == 0).count();
                    self.consume(zeros);
                    if self.pending.is_empty() {
                        return Ok(None);
                    }
                    if self.pending[0] != MAGIC[0] {
                        return Err(LzopError::Trailing(self.offset));
                    }
                    match self.header().map_err(|_| LzopError::Trailing(self.offset))? {
                        Some(header) => self.state = State::Blocks(header),
                        None => return Ok(None),
                    }
                }
            }
        }
    }

    /// To be called when the object has ended and [`Self::next_block`] has nothing more: whether the stream was whole.
    pub fn finish(&self) -> Result<(), LzopError> {
        let end = self.offset + self.pending.len() as u64;
        match self.state {
            State::Between if self.pending.is_empty() => Ok(()),
            State::Between => Err(LzopError::Trailing(self.offset)),
            State::Start => {
                let kind = BodyKind::of(&self.pending[..self.pending.len().min(BodyKind::SNIFF_LEN)]);
                let lzop_so_far = MAGIC.starts_with(&self.pending[..self.pending.len().min(MAGIC.len())]);
                if lzop_so_far && end > 0 { Err(LzopError::Truncated(end)) } else { Err(LzopError::NotLzop(kind)) }
            }
            State::Blocks(_) => Err(LzopError::Truncated(end)),
        }
    }

    fn consume(&mut self, len: usize) {
        self.pending.advance(len);
        self.offset += len as u64;
    }

    fn header(&mut self) -> Result<Option<Header>, LzopError> {
        let parsed = Header::parse(&self.pending, self.offset)?;
        Ok(parsed.map(|(header, len)| {
            self.consume(len);
            header
        }))
    }

    fn block(&mut self, header: Header) -> Result<Option<Block>, LzopError> {
        let mut at = 0;
        let mut next = || {
            let bytes = self.pending.get(at..at + 4)?;
            at += 4;
            Some(u32::from_be_bytes(bytes.try_into().expect("four bytes")))
        };
        let (Some(plain), Some(stored)) = (next(), next()) else { return Ok(None) };
        if plain as usize > MAX_READ_BLOCK_SIZE || stored == 0 || stored > plain {
            return Err(LzopError::BlockLengths { offset: self.offset, stored, plain });
        }
        let compressed = stored < plain;
        let mut checksums = [None; 4];
        for (checksum, wanted) in checksums.iter_mut().zip([
            header.has(flag::ADLER32_D),
            header.has(flag::CRC32_D),
            compressed && header.has(flag::ADLER32_C),
            compressed && header.has(flag::CRC32_C),
        ]) {
            if wanted {
                let Some(value) = next() else { return Ok(None) };
                *checksum = Some(value);
            }
        }
        if self.pending.len() < at + stored as usize {
            self.pending.reserve(at + stored as usize - self.pending.len());
            return Ok(None);
        }
        let offset = self.offset;
        self.consume(at);
        self.offset += u64::from(stored);
        let [adler32_plain, crc32_plain, adler32_stored, crc32_stored] = checksums;
        let stored = self.pending.split_to(stored as usize).freeze();
        let plain_len = plain as usize;
        Ok(Some(Block { offset, plain_len, adler32_plain, crc32_plain, adler32_stored, crc32_stored, stored }))
    }
}
