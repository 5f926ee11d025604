//! What an object's first bytes say it is, so that a wrong one is named instead of being "not a lzop file".

use std::fmt;

/// The kinds of body that turn up where a lzop stream should be (`spec/wal-e-format.md` §3, RULE).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyKind {
    /// A lzop stream.
    Lzop,
    /// An OpenPGP message: WAL-E encrypted it.
    OpenPgp,
    /// gzip.
    Gzip,
    /// A Zstandard frame.
    Zstd,
    /// An LZ4 frame.
    Lz4,
    /// xz.
    Xz,
    /// Not a single byte.
    Empty,
    /// None of these.
    Unknown,
}

impl BodyKind {
    /// How many leading bytes [`Self::of`] wants to see, where there are so many.
    pub const SNIFF_LEN: usize = 6;

    /// Tells the kind from the leading bytes.
    pub fn of(start: &[u8]) -> Self {
        match start {
            [] => Self::Empty,
            [0x89, b'L', b'Z', b'O', ..] => Self::Lzop,
            [0x1F, 0x8B, ..] => Self::Gzip,
            [0x28, 0xB5, 0x2F, 0xFD, ..] => Self::Zstd,
            [0x04, 0x22, 0x4D, 0x18, ..] => Self::Lz4,
            [0xFD, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [0x84..=0x87 | 0xC1, ..] => Self::OpenPgp,
            _ => Self::Unknown,
        }
    }
}

impl fmt::Display for BodyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lzop => "a lzop stream",
            Self::OpenPgp => "an OpenPGP (GPG) message",
            Self::Gzip => "a gzip stream",
            Self::Zstd => "a Zstandard stream",
            Self::Lz4 => "an LZ4 stream",
            Self::Xz => "an xz stream",
            Self::Empty => "empty",
            Self::Unknown => "of no known format",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_told_apart_by_their_first_bytes() {
        for (bytes, kind) in [
            (&b"\x89LZO\x00\x0d"[..], BodyKind::Lzop),
            (b"\x1f\x8b\x08", BodyKind::Gzip),
            (b"\x85\x01\x0c", BodyKind::OpenPgp),
            (b"\xc1\xc0", BodyKind::OpenPgp),
            (b"\x28\xb5\x2f\xfd", BodyKind::Zstd),
            (b"", BodyKind::Empty),
            (b"\x89LZ", BodyKind::Unknown),
            (b"<?xml", BodyKind::Unknown),
        ] {
            assert_eq!(BodyKind::of(bytes), kind, "{bytes:?}");
        }
    }
}
