//! Any bytes as a stream: same verdict and same bytes as lzokay-native.
//!
//! ```text
//! RUSTC_BOOTSTRAP=1 cargo fuzz run lzo1x_decompress fuzz/corpus/lzo1x_decompress fuzz/seeds/lzo1x_decompress -- -max_total_time=30
//! ```
//!
//! lzokay panics where a match reaches back too far, which is its refusal and is caught; libFuzzer's own panic hook, which
//! would abort first, is replaced. It accepts bytes behind the end marker; we do not.

#![no_main]

use std::io::Cursor;
use std::panic::{catch_unwind, set_hook};

#[path = "../../src/formats/lzo1x/mod.rs"]
#[allow(dead_code, unreachable_pub, unused_imports, reason = "a target uses one direction")]
mod lzo1x;

use libfuzzer_sys::{Corpus, fuzz_target};
use lzo1x::{DecompressError, decompress};

/// Zero bytes of a length multiply by 255; more plain bytes than this teach nothing and cost time.
const MAX_PLAIN_BYTES: usize = 1 << 20;

fn lzokay(stream: &[u8]) -> Option<(Vec<u8>, usize)> {
    catch_unwind(|| {
        let mut reader = Cursor::new(stream);
        let plain = lzokay_native::decompress(&mut reader, None).ok()?;
        Some((plain, reader.position() as usize))
    })
    .unwrap_or(None)
}

fuzz_target!(
    init: set_hook(Box::new(|_| ())),
    |stream: &[u8]| -> Corpus {
        match lzokay(stream) {
            Some((plain, _)) if plain.len() > MAX_PLAIN_BYTES => return Corpus::Reject,
            Some((plain, read)) => {
                let mut ours = vec![0xa5; plain.len()];
                let outcome = decompress(stream, &mut ours);
                if read == stream.len() {
                    check(outcome == Ok(()), "refused what lzokay accepts");
                    check(ours == plain, "other bytes than lzokay");
                    for wrong in [plain.len() + 1, plain.len().saturating_sub(1)] {
                        let mut ours = vec![0xa5; wrong];
                        let accepted = decompress(stream, &mut ours).is_ok();
                        check(!accepted || wrong == plain.len(), "accepted at another size");
                    }
                } else {
                    check(outcome == Err(DecompressError::NotConsumed { at: read }), "took bytes behind the end");
                }
            }
            None => {
                for size in [0, 1, 300, 70_000] {
                    let mut ours = vec![0xa5; size];
                    check(decompress(stream, &mut ours).is_err(), "accepted what lzokay refuses");
                }
            }
        }
        Corpus::Keep
    }
);

/// Aborts where an assertion's panic would be swallowed by the hook.
fn check(holds: bool, what: &str) {
    if !holds {
        eprintln!("{what}");
        std::process::abort();
    }
}
