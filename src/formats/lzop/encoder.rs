//! Writing a lzop stream, block by block, so that blocks can be compressed in parallel.

use super::{BLOCK_SIZE, MAGIC, adler32, flag};
use crate::formats::lzo1x::{Compressed, Compressor, Level};

/// What follows the last block.
pub const TERMINATOR: [u8; 4] = [0; 4];

/// The header of a stream, as lzop 1.04 writes it when it reads standard input: `mode` with the file type's bits, or 0, and
/// `mtime` in seconds since 1970, or 0.
pub fn encode_header(mode: u32, mtime: u64) -> [u8; 38] {
    let mut out = [0; 38];
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        out[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    put(&MAGIC);
    put(&0x1040_u16.to_be_bytes());
    put(&0x20A0_u16.to_be_bytes());
    put(&0x0940_u16.to_be_bytes());
    put(&[1, 5]);
    put(&(flag::OS_UNIX | flag::ADLER32_D | flag::STDIN | flag::STDOUT).to_be_bytes());
    put(&mode.to_be_bytes());
    // low half first: the format grew a second word later
    put(&((mtime & 0xFFFF_FFFF) as u32).to_be_bytes());
    put(&((mtime >> 32) as u32).to_be_bytes());
    put(&[0]);
    let checksum = adler32(&out[MAGIC.len()..34]);
    out[34..].copy_from_slice(&checksum.to_be_bytes());
    out
}

/// Turns plain blocks into stored ones. Holds the compressor's tables, so keep it for many blocks.
pub struct BlockEncoder {
    compressor: Compressor,
}

impl BlockEncoder {
    /// An encoder at `level`.
    pub fn new(level: Level) -> Self {
        Self { compressor: Compressor::with_level(level) }
    }

    /// Appends one block that holds `plain`.
    ///
    /// # Panics
    /// When `plain` is empty, which would be the terminator, or larger than [`BLOCK_SIZE`], which lzop refuses to read.
    pub fn encode(&mut self, plain: &[u8], out: &mut Vec<u8>) {
        assert!((1..=BLOCK_SIZE).contains(&plain.len()), "a block of {} bytes", plain.len());
        let plain_len = (plain.len() as u32).to_be_bytes();
        out.extend(plain_len);
        let stored_len_at = out.len();
        out.extend(plain_len);
        out.extend(adler32(plain).to_be_bytes());
        match self.compressor.compress(plain, out) {
            Compressed::Stream(len) => {
                out[stored_len_at..stored_len_at + 4].copy_from_slice(&(len as u32).to_be_bytes());
            }
            Compressed::Incompressible => out.extend_from_slice(plain),
        }
    }
}
