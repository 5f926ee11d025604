//! LZO1X side by side: ours, lzokay-native, the `lzop` program, a stored block's copy and Adler-32, and with
//! `--features bench-liblzo2` the reference library.
//!
//! ```text
//! cargo bench --bench lzo1x -- [compress|decompress|stored|KIND …]
//! LZO1X_BENCH_FILES=/path/a:/path/b cargo bench --bench lzo1x --features bench-liblzo2
//! LZO1X_BENCH_ROUNDS=25 LZO1X_BENCH_QUICK=1 …   (quick: ours and the reference library alone)
//! ```
//!
//! Contenders alternate within every round, so that a noisy machine hurts them alike, and are measured in processor time
//! (processes: on the wall); figures are medians over the rounds, and ratios are medians of the ratios within a round.
//!
//! # What holds it back
//!
//! How much the reference gains by its jumps depends on how far back a processor remembers them. On one of Intel's of 2024
//! (AVX-512, 2.6 GHz, in a virtual machine) decompression is 2.3 times the reference's on heap pages and WAL, 1.3 to 1.4 on
//! an index and 0.9 on a dense one, where the reference comes to 3.5 GB/s. Jumps in place of choices between the two common
//! forms of a match make that 2.0, 1.3 and 1.0: so foreseen jumps alone do not explain it. What is left is probably loads that
//! wait for the stores just before them, since an index repeats what it has just said; no counters were there to prove it.
//! Compression is 1.12 or 1.13 times `lzo1x_1` at a ratio 1.2 % (WAL) to 5 % (index) above it, and 0.99 on a dense index at
//! 2.4 % above; a search that steps four times as fast through literals makes it 1.14 on heap pages and WAL and gives that
//! ratio back. What follows is another's.
//!
//! Measured on a Zen 3 core at 3 GHz that shares its units with a neighbour, over 17 compressible kinds of block of a real
//! cluster and of this file.
//!
//! * Decompression is 1.3 to 2.5 times the reference's: here 2.0 on heap pages and WAL, 1.4 on an index, 1.3 on a dense one; and at
//!   least 1.5 times on 13 of the 17. Below that are dense indexes and random keys: their few instructions repeat, so the
//!   reference's jumps are all foreseen, and it comes to one instruction in
//!   14 cycles where text costs it 35. Ours takes 13: 60 machine instructions, at more than four a cycle, to the reference's
//!   73. To take the next opcode from a register and not from memory, or all of a match's fields from one table, was slower.
//! * Compression is 0.95 to 1.33 times `lzo1x_1`, in the middle 1.07, at a ratio 0.8 % below to 3.6 % above; the goal of 1.2
//!   is reached on random keys alone. A match costs 42 cycles for 90 machine instructions, so it is not work that bounds it:
//!   position, four bytes, place, bytes there, length and next position wait for each other, 25 cycles in all; the other 17
//!   fit two mispredicted jumps in three matches (no counters were there to prove it). Tried, and no faster or up to 20 % slower: two
//!   halves of a block interleaved, in three ways; up to four positions asked at once without jumps; tags beside the places;
//!   absolute places in place of a window. Hashing five bytes costs a quarter of an index's ratio.

#![allow(clippy::unwrap_used)]

use std::hint::black_box;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Instant;

use wal_eve::formats::lzo1x::{Compressed, Compressor, Level, decompress};
use wal_eve::formats::lzop::{Block, BlockEncoder, Deframer, TERMINATOR, encode_header};

/// What lzop and WAL-E cut files into.
const BLOCK_BYTES: usize = 256 * 1024;
/// Bytes made or read for a kind of data.
const KIND_BYTES: usize = 8 * 1024 * 1024;
/// What an object arrives in.
const PIECE_BYTES: usize = 64 * 1024;
/// The slow contenders see one block in so many.
const SLOW_SHARE: usize = 8;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let rounds = std::env::var("LZO1X_BENCH_ROUNDS").map_or(9, |rounds| rounds.parse().unwrap());
    let wanted = |word: &str| {
        let ways = ["compress", "decompress", "stored"];
        let group = ways.contains(&word);
        let mut same = words.iter().filter(|other| ways.contains(&other.as_str()) == group).peekable();
        same.peek().is_none() || same.any(|other| word.contains(other.as_str()) && (!group || word == other))
    };
    for kind in kinds().iter().filter(|kind| wanted(&kind.name)) {
        println!("\n{} ({} blocks)", kind.name, kind.blocks.len());
        if wanted("decompress") {
            bench_decompress(kind, rounds);
        }
        if wanted("compress") {
            bench_compress(kind, rounds);
        }
        if wanted("stored") {
            bench_stored(kind, rounds);
        }
    }
}

/// Blocks of one sort.
struct Kind {
    name: String,
    blocks: Vec<Vec<u8>>,
}

/// One block as stored in an archive.
struct Stored {
    plain_bytes: usize,
    /// `None` where the block does not compress.
    stream: Option<Vec<u8>>,
}

/// One way to do the work of a round: how many plain bytes it covers, and the work.
struct Contender<'a> {
    name: String,
    plain_bytes: usize,
    /// Its time is the wall's, not this thread's.
    a_process: bool,
    work: Box<dyn FnMut() + 'a>,
}

impl<'a> Contender<'a> {
    fn new(name: &str, plain_bytes: usize, work: impl FnMut() + 'a) -> Self {
        Self { name: name.to_owned(), plain_bytes, a_process: name.contains("process"), work: Box::new(work) }
    }
}

/// Runs the contenders in turn and prints medians; ratios are to `base`.
fn compare(title: &str, mut contenders: Vec<Contender<'_>>, base: usize, rounds: usize) {
    if std::env::var_os("LZO1X_BENCH_QUICK").is_some() {
        contenders.truncate(base + 1);
    }
    let mut speeds = vec![Vec::with_capacity(rounds); contenders.len()];
    for contender in &mut contenders {
        (contender.work)();
    }
    for _ in 0..rounds {
        for (contender, speeds) in contenders.iter_mut().zip(&mut speeds) {
            let (start, start_cpu) = (Instant::now(), cpu_seconds());
            (contender.work)();
            let seconds = if contender.a_process { start.elapsed().as_secs_f64() } else { cpu_seconds() - start_cpu };
            speeds.push(contender.plain_bytes as f64 / 1e6 / seconds);
        }
    }
    println!("  {title}");
    for (index, contender) in contenders.iter().enumerate() {
        let ratios = speeds[index].iter().zip(&speeds[base]).map(|(own, base)| own / base).collect();
        let name = &contender.name;
        let base = &contenders[base].name;
        let (speed, ratio) = (median(speeds[index].clone()), median(ratios));
        let best = best(&speeds[index]);
        println!("    {name:<36} {speed:>7.0} MB/s, at best {best:>7.0}  {ratio:>6.2} x {base}");
    }
}

/// Processor time of this thread, which a busy machine disturbs less than the wall's.
fn cpu_seconds() -> f64 {
    const CLOCK_THREAD_CPUTIME_ID: i32 = 3;
    unsafe extern "C" {
        fn clock_gettime(clock: i32, time: *mut [i64; 2]) -> i32;
    }
    let mut time = [0; 2];
    // SAFETY: on 64-bit Linux, where this runs, a timespec is two 64-bit integers.
    let status = unsafe { clock_gettime(CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(status, 0);
    time[0] as f64 + time[1] as f64 / 1e9
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn best(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}

fn bench_decompress(kind: &Kind, rounds: usize) {
    let plain_bytes = kind.blocks.iter().map(Vec::len).sum();
    #[cfg_attr(not(feature = "bench-liblzo2"), allow(unused_mut))]
    let mut makers = vec![("ours", store(&kind.blocks, Level::Fast))];
    #[cfg(feature = "bench-liblzo2")]
    makers.insert(0, ("lzo1x_1", kind.blocks.iter().map(|block| reference::store(block)).collect()));
    for (maker, stored) in &makers {
        if stored.iter().all(|block| block.stream.is_none()) {
            println!("  decompress, streams by {maker}: all blocks stored");
            continue;
        }
        #[cfg(feature = "bench-liblzo2")]
        for (stored, block) in stored.iter().zip(&kind.blocks) {
            let mut out = vec![0; block.len()];
            if let Some(stream) = &stored.stream {
                reference::decompress(stream, &mut out);
                assert!(out == *block, "the reference library reads {maker}'s stream otherwise");
            }
        }
        let mut out = vec![0; BLOCK_BYTES];
        let mut contenders = vec![Contender::new("ours", plain_bytes, move || {
            for block in stored {
                let Some(stream) = &block.stream else { continue };
                decompress(stream, &mut out[..block.plain_bytes]).unwrap();
                black_box(&out);
            }
        })];
        #[cfg(feature = "bench-liblzo2")]
        {
            let mut out = vec![0; BLOCK_BYTES];
            contenders.push(Contender::new("liblzo2 lzo1x_decompress_safe", plain_bytes, move || {
                for block in stored {
                    let Some(stream) = &block.stream else { continue };
                    reference::decompress(stream, &mut out[..block.plain_bytes]);
                    black_box(&out);
                }
            }));
        }
        let slow: Vec<&Stored> = stored.iter().step_by(SLOW_SHARE).collect();
        let slow_bytes = slow.iter().map(|block| block.plain_bytes).sum();
        contenders.push(Contender::new("lzokay-native", slow_bytes, move || {
            for block in &slow {
                let Some(stream) = &block.stream else { continue };
                black_box(lzokay_native::decompress_all(stream, Some(block.plain_bytes)).unwrap());
            }
        }));
        if let Some(packed) = lzop(&["-c"], &kind.blocks.concat()) {
            contenders.push(Contender::new("lzop -d, a process", plain_bytes, move || {
                black_box(lzop(&["-d", "-c"], &packed));
            }));
        }
        let mut out = vec![0; BLOCK_BYTES];
        contenders.push(Contender::new("memcpy + adler32 (stored block)", plain_bytes, move || {
            for block in &kind.blocks {
                let out = &mut out[..block.len()];
                out.copy_from_slice(block);
                black_box(simd_adler32::adler32(&&*out));
            }
        }));
        let base = usize::from(cfg!(feature = "bench-liblzo2"));
        let title = format!("decompress, streams by {maker} ({}), goal 1.50 x liblzo2", ratio(stored));
        compare(&title, contenders, base, rounds);
    }
}

fn bench_compress(kind: &Kind, rounds: usize) {
    let plain_bytes = kind.blocks.iter().map(Vec::len).sum();
    let fast = store(&kind.blocks, Level::Fast);
    let name = format!("ours, fast ({})", ratio(&fast));
    let mut compressor = Compressor::new();
    let mut out = Vec::with_capacity(2 * BLOCK_BYTES);
    let mut contenders = vec![Contender::new(&name, plain_bytes, move || {
        for block in &kind.blocks {
            out.clear();
            let _ = black_box(compressor.compress(block, &mut out));
        }
    })];
    #[cfg(feature = "bench-liblzo2")]
    {
        let stored: Vec<Stored> = kind.blocks.iter().map(|block| reference::store(block)).collect();
        let name = format!("liblzo2 lzo1x_1 ({})", ratio(&stored));
        let mut state = reference::Compressor::new();
        contenders.push(Contender::new(&name, plain_bytes, move || {
            for block in &kind.blocks {
                black_box(state.compress(block));
            }
        }));
    }
    let few: Vec<Vec<u8>> = kind.blocks.iter().step_by(SLOW_SHARE).cloned().collect();
    let few_bytes = few.iter().map(Vec::len).sum();
    let name = format!("ours, best = lzokay-native ({})", ratio(&store(&few, Level::Best)));
    let mut compressor = Compressor::with_level(Level::Best);
    let mut out = Vec::with_capacity(2 * BLOCK_BYTES);
    contenders.push(Contender::new(&name, few_bytes, move || {
        for block in &few {
            out.clear();
            let _ = black_box(compressor.compress(block, &mut out));
        }
    }));
    let plain = kind.blocks.concat();
    if let Some(packed) = lzop(&["-c"], &plain) {
        let name = format!("lzop, a process ({:.3})", plain.len() as f64 / packed.len() as f64);
        contenders.push(Contender::new(&name, plain_bytes, move || {
            black_box(lzop(&["-c"], &plain));
        }));
    }
    let mut out = vec![0; BLOCK_BYTES];
    contenders.push(Contender::new("memcpy + adler32 (stored block)", plain_bytes, move || {
        for block in &kind.blocks {
            let out = &mut out[..block.len()];
            out.copy_from_slice(block);
            black_box(simd_adler32::adler32(&&*out));
        }
    }));
    compare(
        "compress, goal 1.20 x lzo1x_1 at 0.99 of its ratio",
        contenders,
        usize::from(cfg!(feature = "bench-liblzo2")),
        rounds,
    );
}

/// The container's own cost: blocks that did not compress, from the object's bytes on and from its cut-out blocks on.
fn bench_stored(kind: &Kind, rounds: usize) {
    let plain_bytes = kind.blocks.iter().map(Vec::len).sum();
    if store(&kind.blocks, Level::Fast).iter().any(|block| block.stream.is_some()) {
        return;
    }
    let mut stream = encode_header(0, 0).to_vec();
    let mut encoder = BlockEncoder::new(Level::Fast);
    kind.blocks.iter().for_each(|block| encoder.encode(block, &mut stream));
    stream.extend(TERMINATOR);
    let mut deframer = Deframer::default();
    deframer.push(&stream);
    let blocks: Vec<Block> = std::iter::from_fn(|| deframer.next_block().unwrap()).collect();
    let [mut out, mut out_of_cut, mut out_of_copy] = [(); 3].map(|()| vec![0; BLOCK_BYTES]);
    let contenders = vec![
        Contender::new("lzop container, decode", plain_bytes, || {
            for block in &blocks {
                block.decode(&mut out_of_cut[..block.plain_len()]).unwrap();
                black_box(&out_of_cut);
            }
        }),
        Contender::new("lzop container, deframe and decode", plain_bytes, || {
            let mut deframer = Deframer::default();
            for piece in stream.chunks(PIECE_BYTES) {
                deframer.push(piece);
                while let Some(block) = deframer.next_block().unwrap() {
                    block.decode(&mut out[..block.plain_len()]).unwrap();
                    black_box(&out);
                }
            }
        }),
        Contender::new("memcpy + adler32", plain_bytes, || {
            for block in &kind.blocks {
                let out = &mut out_of_copy[..block.len()];
                out.copy_from_slice(block);
                black_box(simd_adler32::adler32(&&*out));
            }
        }),
    ];
    compare("stored blocks, decode's goal 0.80 x", contenders, 2, rounds);
}

fn store(blocks: &[Vec<u8>], level: Level) -> Vec<Stored> {
    let mut compressor = Compressor::with_level(level);
    blocks
        .iter()
        .map(|block| {
            let mut stream = Vec::new();
            let compressed = compressor.compress(block, &mut stream);
            let stream = matches!(compressed, Compressed::Stream(_)).then_some(stream);
            Stored { plain_bytes: block.len(), stream }
        })
        .collect()
}

fn ratio(stored: &[Stored]) -> String {
    let plain: usize = stored.iter().map(|block| block.plain_bytes).sum();
    let packed: usize = stored.iter().map(|block| block.stream.as_ref().map_or(block.plain_bytes, Vec::len)).sum();
    format!("{:.3}", plain as f64 / packed as f64)
}

/// Pipes `input` through the `lzop` program; `None` where there is none.
fn lzop(args: &[&str], input: &[u8]) -> Option<Vec<u8>> {
    let mut child = Command::new("lzop").args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().ok()?;
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input).unwrap());
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success(), "lzop failed");
    Some(output.stdout)
}

/// The reference library, through its C interface.
#[cfg(feature = "bench-liblzo2")]
mod reference {
    use std::ffi::{c_int, c_void};

    use super::Stored;

    #[link(name = "lzo2")]
    unsafe extern "C" {
        fn lzo1x_1_compress(src: *const u8, len: usize, dst: *mut u8, out: *mut usize, work: *mut c_void) -> c_int;
        fn lzo1x_decompress_safe(src: *const u8, len: usize, dst: *mut u8, out: *mut usize, work: *mut c_void)
        -> c_int;
    }

    /// `lzo1x_1_compress` with its work memory and a buffer for the worst case.
    pub(super) struct Compressor {
        work: Vec<u64>,
        out: Vec<u8>,
    }

    impl Compressor {
        pub(super) fn new() -> Self {
            Self { work: vec![0; 16384], out: vec![0; super::BLOCK_BYTES / 16 * 17 + 128] }
        }

        pub(super) fn compress(&mut self, block: &[u8]) -> &[u8] {
            assert!(block.len() <= super::BLOCK_BYTES);
            let mut length = self.out.len();
            // SAFETY: the output holds the documented worst case of a block, the work memory 128 KiB as required.
            let status = unsafe {
                let work = self.work.as_mut_ptr().cast();
                lzo1x_1_compress(block.as_ptr(), block.len(), self.out.as_mut_ptr(), &raw mut length, work)
            };
            assert_eq!(status, 0);
            &self.out[..length]
        }
    }

    pub(super) fn store(block: &[u8]) -> Stored {
        let stream = Compressor::new().compress(block).to_vec();
        Stored { plain_bytes: block.len(), stream: (stream.len() < block.len()).then_some(stream) }
    }

    pub(super) fn decompress(stream: &[u8], out: &mut [u8]) {
        let mut length = out.len();
        // SAFETY: the safe variant stays within the two lengths given.
        let status = unsafe {
            let work = std::ptr::null_mut();
            lzo1x_decompress_safe(stream.as_ptr(), stream.len(), out.as_mut_ptr(), &raw mut length, work)
        };
        assert_eq!((status, length), (0, out.len()));
    }
}

fn kinds() -> Vec<Kind> {
    let mut kinds = Vec::new();
    let mut add = |name: &str, bytes: Vec<u8>| {
        let blocks = bytes.chunks(BLOCK_BYTES).map(<[u8]>::to_vec).collect();
        kinds.push(Kind { name: name.to_owned(), blocks });
    };
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    add("heap", pages(&mut random, heap_page));
    add("index", pages(&mut random, index_page));
    add("wal", wal(&mut random));
    // Ascending integers alone: what a branch predictor learns by heart.
    add("dense index", pages(&mut random, |random, number| index_page(random, 2 * number)));
    add("incompressible", std::iter::repeat_with(|| random.next() as u8).take(KIND_BYTES).collect());
    let files = std::env::var("LZO1X_BENCH_FILES").unwrap_or_default();
    for file in files.split(':').filter(|file| !file.is_empty()) {
        let mut bytes = std::fs::read(file).unwrap();
        bytes.truncate(2 * KIND_BYTES);
        add(file.rsplit('/').next().unwrap(), bytes);
    }
    kinds
}

/// Xorshift: the same blocks in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

fn pages(random: &mut Random, page: fn(&mut Random, u64) -> Vec<u8>) -> Vec<u8> {
    (0..KIND_BYTES as u64 / 8192).flat_map(|number| page(random, number)).collect()
}

/// A page of 8192 bytes: header, line pointers growing up, tuples growing down, the gap zero.
fn lay_out(number: u64, fill_bytes: usize, mut tuple: impl FnMut(u16) -> Vec<u8>) -> Vec<u8> {
    let mut page = vec![0; 8192];
    let (mut lower, mut upper) = (24, 8192);
    for item in 1.. {
        let tuple = tuple(item);
        let length = tuple.len();
        if lower + 4 + length.next_multiple_of(8) > upper || 8192 - upper + lower > fill_bytes {
            break;
        }
        upper -= length.next_multiple_of(8);
        page[upper..upper + length].copy_from_slice(&tuple);
        let pointer = upper as u32 | 1 << 15 | (length as u32) << 17;
        page[lower..lower + 4].copy_from_slice(&pointer.to_le_bytes());
        lower += 4;
    }
    page[..8].copy_from_slice(&(0x1_6b37_4000 + number * 8232).to_le_bytes());
    page[8..12].copy_from_slice(&[0, 0, 4, 0]);
    page[12..14].copy_from_slice(&(lower as u16).to_le_bytes());
    page[14..16].copy_from_slice(&(upper as u16).to_le_bytes());
    page[16..20].copy_from_slice(&[0, 32, 4, 32]);
    page
}

const WORDS: [&str; 24] = [
    "the", "customer", "ordered", "delivery", "of", "payment", "invoice", "has", "been", "shipped", "to", "address",
    "street", "pending", "review", "and", "returned", "with", "status", "account", "number", "please", "contact",
    "support",
];

/// A tuple: header, id, timestamp, text, JSON with a random token.
fn heap_tuple(random: &mut Random, page: u64, item: u16) -> Vec<u8> {
    let mut tuple = Vec::new();
    tuple.extend((700_000 + (page / 16) as u32).to_le_bytes());
    tuple.extend([0; 8]);
    tuple.extend((page as u32).to_le_bytes()[..2].iter().rev());
    tuple.extend(item.to_le_bytes());
    tuple.extend([5, 0, 2, 9, 24, 0]);
    tuple.extend((page * 16 + u64::from(item)).to_le_bytes());
    tuple.extend((0x2_9a3f_1122_0000 + page * 90_000 + random.below(5000)).to_le_bytes());
    for _ in 0..8 + random.below(30) {
        tuple.extend(WORDS[random.below(24) as usize].as_bytes());
        tuple.push(b' ');
    }
    let (customer, cents, token) = (random.below(10_007), random.below(1_000_000), random.next() << 32 | random.next());
    let status = ["open", "closed", "pending"][random.below(3) as usize];
    write!(
        tuple,
        r#"{{"tags": ["a{}", "b{}"], "email": "user{customer}@example.com", "token": "{token:016x}", "amount": {}.{:02}, "status": "{status}", "customer_id": {customer}}}"#,
        customer % 10,
        customer % 7,
        cents / 100,
        cents % 100
    )
    .unwrap();
    tuple
}

fn heap_page(random: &mut Random, number: u64) -> Vec<u8> {
    let fill_bytes = if number.is_multiple_of(5) { 5000 } else { 8192 };
    lay_out(number, fill_bytes, |item| heap_tuple(random, number, item))
}

/// A B-tree leaf: half of them over ascending integers, half over random UUIDs.
fn index_page(random: &mut Random, number: u64) -> Vec<u8> {
    let mut page = lay_out(number, 7400, |item| {
        let mut tuple = Vec::new();
        let row = if number.is_multiple_of(2) { number * 366 + u64::from(item) } else { random.below(400_000) };
        tuple.extend([0, 0]);
        tuple.extend(((row / 60) as u16).to_le_bytes());
        tuple.extend((1 + (row % 60) as u16).to_le_bytes());
        if number.is_multiple_of(2) {
            tuple.extend(16u16.to_le_bytes());
            tuple.extend(row.to_le_bytes());
        } else {
            tuple.extend(24u16.to_le_bytes());
            tuple.extend(random.next().to_le_bytes());
            tuple.extend(random.next().to_le_bytes());
        }
        tuple
    });
    page[8176..8184].copy_from_slice(&[
        (number as u8).wrapping_sub(1),
        (number >> 8) as u8,
        0,
        0,
        number as u8,
        0,
        0,
        0,
    ]);
    page
}

/// Segments' worth of records: full-page images, holes removed, between small updates and commits.
fn wal(random: &mut Random) -> Vec<u8> {
    let mut wal: Vec<u8> = Vec::with_capacity(KIND_BYTES + 16384);
    let mut transaction = 700_000u32;
    let mut previous = 0u64;
    while wal.len() < KIND_BYTES {
        let start = wal.len() as u64;
        let block = random.below(40_000);
        let mut body = vec![0, 0x20, 0, 0, 0x7f, 6, 0, 0, 5, 0, 0, 0, 0, 0x40, 0, 0];
        body.extend((block as u32).to_le_bytes());
        match random.below(10) {
            0 => {
                let page = heap_page(random, block);
                let lower = usize::from(u16::from_le_bytes([page[12], page[13]]));
                let upper = usize::from(u16::from_le_bytes([page[14], page[15]]));
                body.extend_from_slice(&page[..lower]);
                body.extend_from_slice(&page[upper..]);
            }
            1..=5 => body.extend(heap_tuple(random, block, 7)),
            6 | 7 => body.extend(index_page(random, block)[8100..8160].iter()),
            _ => body.extend((0x2_9a3f_1122_0000u64 + start * 11).to_le_bytes()),
        }
        transaction += u32::from(random.below(4) == 0);
        wal.extend((24 + body.len() as u32).to_le_bytes());
        wal.extend(transaction.to_le_bytes());
        wal.extend((0x1_6b37_4000 + previous).to_le_bytes());
        wal.extend([0x20, 10, 0, 0]);
        wal.extend((random.next() as u32).to_le_bytes());
        wal.extend(body);
        wal.resize(wal.len().next_multiple_of(8), 0);
        previous = start;
    }
    wal.truncate(KIND_BYTES);
    wal
}
