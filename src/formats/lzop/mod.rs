//! The lzop container: a header, checksummed blocks, a terminator (`spec/wal-e-format.md` §2).
//!
//! Writing is exact: one stream, method 1, blocks of at most [`BLOCK_SIZE`] bytes, nothing after the terminator. Reading is
//! liberal: any flags, names, extra fields, several streams in a row and trailing zeros; checksums are always verified.

mod deframer;
mod encoder;
mod header;

pub use deframer::{Block, Deframer};
pub use encoder::{BlockEncoder, TERMINATOR, encode_header};
pub use header::LzopError;

/// The most plain bytes that lzop's decoder takes in one block: 256 KiB (§2.3).
pub const BLOCK_SIZE: usize = 256 << 10;

/// The most plain bytes of a block that this reader takes: 64 MiB (§2.3, RULE).
pub const MAX_READ_BLOCK_SIZE: usize = 64 << 20;

/// The first nine bytes of a stream.
pub(crate) const MAGIC: [u8; 9] = [0x89, b'L', b'Z', b'O', 0x00, 0x0D, 0x0A, 0x1A, 0x0A];

/// Flags of the header (§2.2).
pub(crate) mod flag {
    pub(crate) const ADLER32_D: u32 = 0x1;
    pub(crate) const ADLER32_C: u32 = 0x2;
    pub(crate) const STDIN: u32 = 0x4;
    pub(crate) const STDOUT: u32 = 0x8;
    pub(crate) const H_EXTRA_FIELD: u32 = 0x40;
    pub(crate) const CRC32_D: u32 = 0x100;
    pub(crate) const CRC32_C: u32 = 0x200;
    pub(crate) const MULTIPART: u32 = 0x400;
    pub(crate) const H_FILTER: u32 = 0x800;
    pub(crate) const H_CRC32: u32 = 0x1000;
    pub(crate) const OS_UNIX: u32 = 0x0300_0000;
}

pub(crate) fn adler32(bytes: &[u8]) -> u32 {
    simd_adler32::adler32(&bytes)
}

#[cfg(test)]
mod tests;
