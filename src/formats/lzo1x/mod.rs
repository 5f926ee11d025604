//! LZO1X blocks.

/// A block that is no LZO1X stream of the expected length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an LZO1X stream of the expected length")]
pub struct DecompressError;

/// How hard to search for matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Level {
    /// Fast.
    #[default]
    Fast,
    /// Best.
    Best,
}

/// How compressing a block ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compressed {
    /// So many bytes were appended.
    Len(usize),
    /// It would not get smaller.
    Incompressible,
}

/// Compressor.
pub struct Compressor {
    inner: lzokay_native::Dict,
}

impl Compressor {
    /// A compressor.
    pub fn with_level(_level: Level) -> Self {
        Self { inner: lzokay_native::Dict::new() }
    }

    /// Compress.
    pub fn compress(&mut self, src: &[u8], dst: &mut Vec<u8>) -> Compressed {
        match lzokay_native::compress_with_dict(src, &mut self.inner) {
            Ok(out) if out.len() < src.len() => {
                dst.extend_from_slice(&out);
                Compressed::Len(out.len())
            }
            _ => Compressed::Incompressible,
        }
    }
}

/// Decompress.
pub fn decompress(src: &[u8], dst: &mut [u8]) -> Result<(), DecompressError> {
    let mut cursor = std::io::Cursor::new(src);
    let out = lzokay_native::decompress(&mut cursor, Some(dst.len())).map_err(|_| DecompressError)?;
    if out.len() != dst.len() {
        return Err(DecompressError);
    }
    dst.copy_from_slice(&out);
    Ok(())
}
