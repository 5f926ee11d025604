//! The instructions of an LZO1X stream: their numbers, and the table that decodes the short ones.
//!
//! An instruction is one opcode byte, operands, and up to three *trailing literals* whose count sits in its two lowest
//! operand bits. What an opcode below 16 means depends on how many literals the instruction before it copied:
//!
//! | opcode | after | meaning | length | distance |
//! |---|---|---|---|---|
//! | `0000LLLL` | none | literal run | 3 + L, or 18 + extension | |
//! | `0000DDSS H` | 1 to 3 | match | 2 | (H << 2) + D + 1 |
//! | `0000DDSS H` | a literal run | match | 3 | (H << 2) + D + 2049 |
//! | `0001HLLL (DS)₁₆` | any | match | 2 + L, or 9 + extension | 16384 + (H << 14) + D |
//! | `001LLLLL (DS)₁₆` | any | match | 2 + L, or 33 + extension | D + 1 |
//! | `01LDDDSS H`, `1LLDDDSS H` | any | match | opcode / 32 + 1 | (H << 3) + D + 1 |
//!
//! A length field of zero announces an extension: 255 for every zero byte, then a last byte that is not zero. A distance
//! of exactly 16384 in the `0001` form is the end of the stream. The first byte of a stream, above 17, is a literal run of
//! that many bytes less 17.

/// Distances the two-byte match of length 3 to 8 can reach.
pub(super) const NEAR_MAX_DISTANCE: usize = 0x800;
/// Distances the `001` form can reach.
pub(super) const MIDDLE_MAX_DISTANCE: usize = 0x4000;
/// What the `0001` form adds to its distance field; the end of the stream is this distance in that form.
pub(super) const FAR_BASE: usize = 0x4000;
/// The longest distance of the format.
pub(super) const FAR_MAX_DISTANCE: usize = 0xbfff;

/// Longest match of the two-byte form.
pub(super) const NEAR_MAX_LENGTH: usize = 8;
/// Longest `001` match without an extension; with one, the extension counts from here.
pub(super) const MIDDLE_MAX_LENGTH: usize = 33;
/// Longest `0001` match without an extension; with one, the extension counts from here.
pub(super) const FAR_MAX_LENGTH: usize = 9;
/// Longest literal run without an extension; with one, the extension counts from here.
pub(super) const RUN_MAX_LENGTH: usize = 18;
/// Longest literal run that fits the first byte of a stream.
pub(super) const FIRST_RUN_MAX_LENGTH: usize = 255 - FIRST_RUN_BASE;
/// The first byte of a stream is a literal run when it exceeds this, and its length is what exceeds.
pub(super) const FIRST_RUN_BASE: usize = 17;

/// Opcodes from here on are matches whatever came before them.
pub(super) const MATCH_MIN: u8 = 0x10;
/// The lowest opcode of the `001` form.
pub(super) const MIDDLE_MIN: u8 = 0x20;
/// The lowest opcode of the two-byte match of length 3 to 8.
pub(super) const NEAR_MIN: u8 = 0x40;

/// The last instruction of every stream.
pub(super) const END: [u8; 3] = [MATCH_MIN | 1, 0, 0];

/// How a match with an opcode of at least [`MATCH_MIN`] and without an extension decodes.
///
/// With `operand` the two bytes after the opcode, little-endian, the distance is `((operand & mask) << 3 >> shift) + base`.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct Match {
    /// Distance with all operand bits zero.
    pub(super) base: u16,
    /// The distance's bits in the operand.
    pub(super) mask: u16,
    /// Right shift that brings the operand to the distance's scale.
    pub(super) shift: u8,
    /// Bytes to copy; 0 where an extension gives the length.
    pub(super) length: u8,
}

/// [`Match`] by opcode; nothing for those below [`MATCH_MIN`].
pub(super) static MATCHES: [Match; 256] = {
    let mut table = [Match { base: 0, mask: 0, shift: 0, length: 0 }; 256];
    let mut code = MATCH_MIN;
    loop {
        table[code as usize] = if code < MIDDLE_MIN {
            wide(FAR_BASE as u16 + ((code as u16 & 8) << 11), code & 7)
        } else if code < NEAR_MIN {
            wide(1, code & 31)
        } else {
            Match { base: 1 + ((code >> 2) & 7) as u16, mask: 0xff, shift: 0, length: (code >> 5) + 1 }
        };
        if code == u8::MAX {
            break table;
        }
        code += 1;
    }
};

/// The matches with a sixteen-bit operand, whose length field is `field`.
const fn wide(base: u16, field: u8) -> Match {
    Match { base, mask: 0xfffc, shift: 5, length: if field == 0 { 0 } else { field + 2 } }
}
