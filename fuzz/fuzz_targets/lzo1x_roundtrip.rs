//! Any bytes as a block: what we compress, we and lzokay-native decompress to the same bytes.
//!
//! ```text
//! RUSTC_BOOTSTRAP=1 cargo fuzz run lzo1x_roundtrip fuzz/corpus/lzo1x_roundtrip fuzz/seeds/lzo1x_roundtrip -- -max_total_time=30
//! ```
//!
//! The first byte says how the rest is stretched to a block: fuzzers send short inputs, and the window moves only in long
//! blocks.

#![no_main]

#[path = "../../src/formats/lzo1x/mod.rs"]
#[allow(dead_code, unreachable_pub, unused_imports, reason = "a target uses one direction")]
mod lzo1x;

use libfuzzer_sys::fuzz_target;
use lzo1x::{Compressed, Compressor, Level, decompress};

fuzz_target!(|input: &[u8]| {
    let Some((how, bytes)) = input.split_first() else { return };
    let block = stretch(*how, bytes);
    let level = if how & 0xe0 == 0xe0 && block.len() <= 20_000 { Level::Best } else { Level::Fast };
    let mut stream = Vec::new();
    let Compressed::Stream(length) = Compressor::with_level(level).compress(&block, &mut stream) else {
        assert!(stream.is_empty());
        return;
    };
    assert_eq!(length, stream.len());
    assert!(length < block.len());
    let mut plain = vec![0xa5; block.len()];
    assert_eq!(decompress(&stream, &mut plain), Ok(()));
    assert!(plain == block);
    assert!(lzokay_native::decompress_all(&stream, None).expect("lzokay takes it") == block);
});

/// `bytes`, or for some of the low bits of `how`, copies of them between growing gaps of noise.
fn stretch(how: u8, bytes: &[u8]) -> Vec<u8> {
    let copies = usize::from(how & 7);
    let gap = [0, 1, 50, 5000][usize::from(how >> 3 & 3)];
    let mut block = bytes.to_vec();
    let mut noise = u32::from(how) | 1;
    for copy in 1..=copies {
        block.extend((0..gap * copy).map(|_| {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (noise >> 24) as u8
        }));
        block.extend_from_slice(bytes);
    }
    block
}
