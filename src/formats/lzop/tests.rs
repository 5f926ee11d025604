//! `spec/wal-e-format.md` §12, vectors 8 to 14, and §2.3's table.

use super::*;
use crate::formats::body_kind::BodyKind;
use crate::formats::lzo1x::Level;

fn decode(stream: &[u8], piece_len: usize) -> Result<Vec<u8>, LzopError> {
    let mut deframer = Deframer::default();
    let mut plain = Vec::new();
    for piece in stream.chunks(piece_len) {
        deframer.push(piece);
        while let Some(block) = deframer.next_block()? {
            let begin = plain.len();
            plain.resize(begin + block.plain_len(), 0);
            block.decode(&mut plain[begin..])?;
        }
    }
    deframer.finish()?;
    Ok(plain)
}

fn encode(plain: &[u8]) -> Vec<u8> {
    let mut encoder = BlockEncoder::new(Level::Fast);
    let mut out = encode_header(0, 0).to_vec();
    plain.chunks(BLOCK_SIZE).for_each(|block| encoder.encode(block, &mut out));
    out.extend(TERMINATOR);
    out
}

fn hex(text: &str) -> Vec<u8> {
    text.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

fn with_header(blocks: &str) -> Vec<u8> {
    [encode_header(0, 0).to_vec(), hex(blocks), TERMINATOR.to_vec()].concat()
}

#[test]
fn the_header_is_byte_for_byte_lzops() {
    let expected = "89 4c 5a 4f 00 0d 0a 1a 0a 10 40 20 a0 09 40 01 05 03 00 00 0d 00 00 00 00 00 00 00 00 00 00 00 00 00 1f 5c 01 70";
    assert_eq!(encode_header(0, 0).to_vec(), hex(expected));
    assert_eq!(encode(b"").len(), 42);
    assert_eq!(decode(&encode(b""), 7).unwrap(), b"");
}

#[test]
fn observed_blocks_decode() {
    let stored = "00 00 00 0c 00 00 00 0c 1e 72 04 67 68 65 6c 6c 6f 20 77 6f 72 6c 64 0a";
    assert_eq!(decode(&with_header(stored), 1).unwrap(), b"hello world\n");
    let zeros = "00 00 03 e8 00 00 00 20 03 e8 00 01 02 00 00 00 00 00 20 00 00 00 b6 10 00 0c 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 11 00 00";
    assert_eq!(with_header(zeros).len(), 86);
    assert_eq!(decode(&with_header(zeros), 1000).unwrap(), vec![0; 1000]);
    let text = "00 00 01 b8 00 00 00 2f 87 84 95 61 00 04 57 41 4c 2d 45 20 69 6e 74 65 72 6f 70 20 76 65 63 74 6f 72 2e 20 20 00 74 54 00 0b 74 65 72 6f 70 20 76 65 63 74 6f 72 2e 20 11 00 00";
    assert_eq!(decode(&with_header(text), 5).unwrap(), b"WAL-E interop vector. ".repeat(20));
}

#[test]
fn a_name_in_the_header_is_read_over() {
    let mut stream = MAGIC.to_vec();
    stream.extend(hex("10 40 20 a0 09 40 01 05 03 00 00 09 00 00 81 80 3b 9a ca 00 00 00 00 00 18"));
    stream.extend(b"000000010000000000000001");
    stream
        .extend(hex("d1 e2 08 a6 00 00 00 0c 00 00 00 0c 1e 72 04 67 68 65 6c 6c 6f 20 77 6f 72 6c 64 0a 00 00 00 00"));
    for piece_len in 1..stream.len() {
        assert_eq!(decode(&stream, piece_len).unwrap(), b"hello world\n");
    }
}

#[test]
fn long_input_becomes_blocks_of_256_kib() {
    let plain: Vec<u8> = (0..300_000_u32).map(|i| (i % 251) as u8).collect();
    let stream = encode(&plain);
    let u32_at = |at: usize| u32::from_be_bytes(stream[at..at + 4].try_into().unwrap());
    assert_eq!((u32_at(38), u32_at(46)), (262_144, 0x9B33_FFC0));
    let second = 38 + 12 + u32_at(42) as usize;
    assert_eq!((u32_at(second), u32_at(second + 8)), (37_856, 0xE2A3_4109));
    assert_eq!(decode(&stream, 4096).unwrap(), plain);
}

#[test]
fn incompressible_bytes_are_stored() {
    let mut state = 1_u64;
    let plain: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    })
    .take(100_000)
    .collect();
    let stream = encode(&plain);
    assert_eq!(stream.len(), 38 + 12 + plain.len() + 4);
    assert_eq!(decode(&stream, 1 << 20).unwrap(), plain);
}

#[test]
fn every_truncation_is_refused() {
    let stream = encode(&b"0123456789".repeat(50));
    for end in 0..stream.len() {
        let expected = if end == 0 { LzopError::NotLzop(BodyKind::Empty) } else { LzopError::Truncated(end as u64) };
        assert_eq!(decode(&stream[..end], 1 << 20).unwrap_err(), expected);
    }
}

#[test]
fn every_flipped_bit_is_refused_or_changes_nothing() {
    let plain = b"WAL-E interop vector. ".repeat(40);
    let stream = encode(&plain);
    for at in 0..stream.len() {
        for bit in 0..8 {
            let mut damaged = stream.clone();
            damaged[at] ^= 1 << bit;
            // a match may be taken from another repetition of the same text; only plain bytes have a checksum
            let harmless = decode(&damaged, 1 << 20).map_or(true, |decoded| decoded == plain);
            assert!(harmless, "accepted bit {bit} of byte {at}");
        }
    }
}

#[test]
fn concatenated_streams_and_trailing_zeros_are_tolerated_and_nothing_else_is() {
    let stream = encode(b"one");
    let twice = [&stream[..], &encode(b"two")].concat();
    assert_eq!(decode(&twice, 3).unwrap(), b"onetwo");
    let padded = [&stream[..], &[0; 5000]].concat();
    assert_eq!(decode(&padded, 3).unwrap(), b"one");
    for junk in [&b"x"[..], b"\0\0x", &MAGIC[..4], &stream[..20]] {
        let bad = [&stream[..], junk].concat();
        assert!(decode(&bad, 1 << 20).is_err(), "accepted {junk:?}");
    }
}

#[test]
fn impossible_lengths_are_refused() {
    for lengths in
        ["04 00 00 01 00 00 00 01", "00 00 00 01 00 00 00 02", "00 00 00 01 00 00 00 00", "ff ff ff ff 00 00 00 01"]
    {
        let refused = decode(&with_header(lengths), 1 << 20).unwrap_err();
        assert!(matches!(refused, LzopError::BlockLengths { offset: 38, .. }), "{lengths}: {refused}");
    }
}

#[test]
fn other_formats_are_named() {
    for (body, kind) in [
        (&b"\x1f\x8b\x08\0\0\0\0\0\0\0"[..], BodyKind::Gzip),
        (b"\x85\x01\x0c\x03aaaaaaaaaa", BodyKind::OpenPgp),
        (b"\x1f\x8b", BodyKind::Gzip),
    ] {
        assert_eq!(decode(body, 1 << 20).unwrap_err(), LzopError::NotLzop(kind));
    }
}

#[test]
fn every_flag_that_lzop_takes_is_honoured() {
    let plain = b"hello world\n";
    let build = |version: u16, needed: u16, flags: u32, extra: &[u8], sums: &[u32]| {
        let mut head = Vec::new();
        head.extend(version.to_be_bytes());
        head.extend([0x20, 0xA0]);
        head.extend(needed.to_be_bytes());
        head.extend([3, 0]);
        head.extend(flags.to_be_bytes());
        head.extend([0; 13]);
        let sum = if flags & flag::H_CRC32 != 0 { crc32fast::hash(&head) } else { adler32(&head) };
        let mut out = [&MAGIC[..], &head, &sum.to_be_bytes()].concat();
        if flags & flag::H_EXTRA_FIELD != 0 {
            let field = [&(extra.len() as u32).to_be_bytes()[..], extra].concat();
            let sum = if flags & flag::H_CRC32 != 0 { crc32fast::hash(&field) } else { adler32(&field) };
            out.extend([&field[..], &sum.to_be_bytes()].concat());
        }
        out.extend([0, 0, 0, 12, 0, 0, 0, 12]);
        sums.iter().for_each(|sum| out.extend(sum.to_be_bytes()));
        out.extend(plain);
        out.extend(TERMINATOR);
        out
    };
    let (adler, crc) = (adler32(plain), crc32fast::hash(plain));
    let accepted = [
        build(0x1010, 0x0940, 0, &[], &[]),
        build(0x1040, 0x0940, flag::CRC32_D, &[], &[crc]),
        build(0x1040, 0x0940, flag::H_CRC32 | flag::ADLER32_D, &[], &[adler]),
        build(0x1040, 0x0940, flag::H_EXTRA_FIELD | flag::ADLER32_D | flag::CRC32_D, b"extra", &[adler, crc]),
        // a stored block carries no checksum of the compressed bytes
        build(0x1040, 0x0940, flag::ADLER32_C | flag::CRC32_C, &[], &[]),
        build(0x2000, 0x0940, flag::ADLER32_D, &[], &[adler]),
    ];
    for stream in accepted {
        assert_eq!(decode(&stream, 1).unwrap(), plain);
    }
    for refused in [
        build(0x1040, 0x2000, flag::ADLER32_D, &[], &[adler]),
        build(0x1040, 0x0940, flag::CRC32_D, &[], &[crc ^ 1]),
        build(0x1040, 0x0940, flag::MULTIPART, &[], &[]),
        build(0x1040, 0x0940, flag::H_FILTER, &[], &[]),
    ] {
        assert!(decode(&refused, 1).is_err());
    }
}
