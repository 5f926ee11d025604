//! LZO1X: the block format inside lzop files, and so inside every WAL-E object.
//!
//! Owns both directions of one block: [`decompress`] and [`Compressor`]. Files, headers and checksums are lzop's and live
//! elsewhere. The format is the one the Linux kernel documents as "LZO stream format", bitstream version 0.
//!
//! Invariant: any bytes whatever give exactly the right output or an error; every stream written here is one that every
//! LZO1X decoder reads.

mod compress;
mod decompress;
mod instruction;
mod unaligned;

pub use compress::{Compressed, Compressor, Level};
pub use decompress::{DecompressError, decompress};

#[cfg(test)]
mod samples;
