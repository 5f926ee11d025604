//! What the real lzop wrote once is read for ever, whatever its level, name and checksum; see `fixtures/README.md`. And the lzop
//! that is installed reads what we write, and we what it writes.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use sha2::{Digest, Sha256};
use wal_eve::formats::hex::hex;
use wal_eve::formats::lzo1x::Level;
use wal_eve::formats::lzop::{BLOCK_SIZE, BlockEncoder, Deframer, LzopError, TERMINATOR, encode_header};

mod support;

use support::Tool;
use support::wal_segment::noise;

/// Sizes in bytes: around nothing, around one block, and many blocks with a short last one.
const SIZES: [usize; 8] = [0, 1, 40, 1000, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 3 << 20 | 77];

/// What the installed lzop makes of `input`; Debian's package of that name, see `tests/setup`.
fn lzop(option: &str, input: &[u8]) -> Vec<u8> {
    Tool::new::<&str, &str>("lzop", []).stdin(input).run([option, "-c"]).assert_success().stdout
}

fn encode(plain: &[u8], level: Level) -> Vec<u8> {
    let mut encoder = BlockEncoder::new(level);
    let mut stream = encode_header(0o100_644, 1_700_000_000).to_vec();
    plain.chunks(BLOCK_SIZE).for_each(|block| encoder.encode(block, &mut stream));
    stream.extend(TERMINATOR);
    stream
}

/// Data of every kind, each of at least the largest of [`SIZES`].
fn kinds() -> [(&'static str, Vec<u8>); 6] {
    let longest = SIZES[SIZES.len() - 1];
    let mut random = noise(7, 2 * longest).into_iter().map(usize::from).cycle();
    let mut pick = |below: usize| random.next().unwrap() % below;
    let words = ["the ", "customer ", "ordered ", "{\"id\": ", "\"tags\": [", "], ", "payment ", "2024-05-"];
    let (mut text, mut index) = (Vec::new(), Vec::new());
    while text.len() < longest {
        text.extend(words[pick(8)].bytes());
        text.extend(std::iter::repeat_n(b'0' + pick(10) as u8, pick(4)));
    }
    for entry in 0..longest as u64 / 16 + 1 {
        index.extend([0, 0, (entry / 240) as u8, (entry / 61_440) as u8, (entry % 240) as u8, 0, 16, 0]);
        index.extend((entry + entry / 97).to_le_bytes());
    }
    let cluster = decode(&fixture("level-1.lzo")).unwrap();
    let gaps = cluster.chunks(900).flat_map(|piece| [piece, &[0; 500]].concat()).cycle().take(longest).collect();
    [
        ("zeros", vec![0; longest]),
        ("noise", noise(3, longest)),
        ("text", text),
        ("index entries", index),
        ("a cluster's pages and WAL", cluster.iter().copied().cycle().take(longest).collect()),
        ("pages with gaps", gaps),
    ]
}

fn decode(stream: &[u8]) -> Result<Vec<u8>, LzopError> {
    let mut deframer = Deframer::default();
    let mut plain = Vec::new();
    for piece in stream.chunks(64 << 10) {
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

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(support::fixtures_dir().join("lzop").join(name)).unwrap()
}

#[test]
fn every_level_name_and_checksum_of_lzop_is_read() {
    for name in ["level-1.lzo", "level-5.lzo", "level-7.lzo", "level-9.lzo", "crc32.lzo", "named.lzo"] {
        let plain = decode(&fixture(name)).unwrap();
        assert_eq!(plain.len(), 327_680, "{name}");
        let expected = "9a8d71155944d9d9dc9a74d18a7e7a4713384efe9e552541f8751e32ceaec688";
        assert_eq!(hex(&Sha256::digest(&plain)), expected, "{name}");
    }
    assert_eq!(decode(&fixture("empty.lzo")).unwrap(), b"");
}

#[test]
fn a_flipped_bit_anywhere_in_a_real_stream_is_refused_or_makes_no_difference() {
    let stream = fixture("level-9.lzo");
    let plain = decode(&stream).unwrap();
    for at in (0..stream.len()).step_by(487) {
        let mut damaged = stream.clone();
        damaged[at] ^= 0x10;
        // a match may be sent to another copy of the same bytes: the checksum is of the plain ones
        let decoded = decode(&damaged);
        assert!(decoded.as_ref().is_ok_and(|same| *same == plain) || decoded.is_err(), "byte {at}");
    }
}

#[test]
fn lzop_reads_what_we_write_at_every_level() {
    for (kind, plain) in kinds() {
        for size in SIZES {
            for level in [Level::Fast, Level::Best] {
                let stream = encode(&plain[..size], level);
                assert!(lzop("-d", &stream) == plain[..size], "{size} bytes of {kind} at {level:?}");
            }
        }
    }
}

#[test]
fn we_read_what_lzop_writes_at_every_level_and_with_every_checksum() {
    for (kind, plain) in kinds() {
        for size in SIZES {
            for option in ["-1", "-3", "-5", "-7", "-9", "--crc32", "--no-checksum"] {
                let stream = lzop(option, &plain[..size]);
                assert!(decode(&stream).unwrap() == plain[..size], "{size} bytes of {kind} by lzop {option}");
            }
        }
    }
}
