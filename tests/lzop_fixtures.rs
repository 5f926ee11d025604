//! What the real lzop wrote once is read for ever, whatever its level, name and checksum; see `fixtures/README.md`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use sha2::{Digest, Sha256};
use wal_eve::formats::hex::hex;
use wal_eve::formats::lzop::{Deframer, LzopError};

mod support;

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
