//! What the codec's tests share: blocks of every kind, streams of every instruction, and the second opinion.

use std::io::Cursor;
use std::panic::catch_unwind;

/// Xorshift: the same samples in every run.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32
    }

    /// A number below `bound`, often a small one.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        let value = self.next() as usize % bound;
        if self.next().is_multiple_of(4) { value >> (self.next() % 16) } else { value }
    }

    pub(super) fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}

/// Named blocks of every kind the archive sees, and then some.
pub(super) fn blocks() -> Vec<(String, Vec<u8>)> {
    let mut random = Random::new(1);
    let mut blocks = vec![("empty".to_owned(), Vec::new())];
    for length in 1..=300 {
        blocks.push((format!("{length} zeros"), vec![0; length]));
        blocks.push((
            format!("{length} of text"),
            b"the customer ordered the ".iter().copied().cycle().take(length).collect(),
        ));
        blocks.push((format!("{length} random"), random.bytes(length)));
    }
    for period in 1..=64 {
        let unit = random.bytes(period);
        blocks.push((format!("period {period}"), unit.iter().copied().cycle().take(1000 + period).collect()));
    }
    for length in [4095, 65_536, 262_144, 1_000_000] {
        blocks.push((format!("{length} zeros"), vec![0; length]));
        blocks.push((format!("{length} random"), random.bytes(length)));
        blocks.push((format!("{length} of text"), text(&mut random, length)));
        blocks.push((format!("{length} of pages"), pages(&mut random, length)));
        blocks.push((format!("{length} of distant repeats"), repeats(&mut random, length)));
    }
    // Acceptance vector 13 of the WAL-E format: 300000 bytes, cut into two blocks.
    blocks.push(("vector 13, first".to_owned(), (0..262_144).map(|index| (index % 251) as u8).collect()));
    blocks.push(("vector 13, second".to_owned(), (262_144..300_000).map(|index| (index % 251) as u8).collect()));
    blocks
}

fn text(random: &mut Random, length: usize) -> Vec<u8> {
    const WORDS: [&[u8]; 8] = [b"select ", b"order ", b"customer ", b"and ", b"of ", b"payment ", b"{\"id\": ", b"}, "];
    let mut text = Vec::with_capacity(length + 16);
    while text.len() < length {
        text.extend_from_slice(WORDS[random.below(8)]);
        if random.below(9) == 0 {
            text.extend(random.next().to_string().bytes());
        }
    }
    text.truncate(length);
    text
}

/// Pages with a header, line pointers, a gap of zeros and tuples.
fn pages(random: &mut Random, length: usize) -> Vec<u8> {
    let mut pages = Vec::with_capacity(length + 8192);
    while pages.len() < length {
        let mut page = vec![0; 8192];
        let (mut lower, mut upper) = (24, 8192 - 24);
        while upper > lower + 600 {
            let mut tuple = vec![3, 0, 11, 0, 0, 0, 0, 0];
            tuple.extend((pages.len() as u32).to_le_bytes());
            tuple.extend((lower as u64).to_be_bytes());
            let bytes = random.below(200);
            tuple.extend(text(random, bytes));
            upper -= tuple.len();
            page[upper..upper + tuple.len()].copy_from_slice(&tuple);
            page[lower..lower + 4].copy_from_slice(&((upper | tuple.len() << 17) as u32).to_le_bytes());
            lower += 4;
        }
        pages.extend(page);
    }
    pages.truncate(length);
    pages
}

/// Random bytes among copies from up to 60000 bytes back: every form of match, at its limits.
fn repeats(random: &mut Random, length: usize) -> Vec<u8> {
    const EDGES: [usize; 10] = [1, 2, 2047, 2048, 2049, 16_383, 16_384, 16_385, 49_151, 49_152];
    let mut repeats = random.bytes(16);
    while repeats.len() < length {
        let distance = if random.below(2) == 0 { EDGES[random.below(10)] } else { 1 + random.below(60_000) };
        let from = repeats.len() - distance.min(repeats.len());
        for index in 0..random.below(600) {
            repeats.push(repeats[from + index]);
        }
        let literals = random.below(40);
        repeats.extend(random.bytes(literals));
    }
    repeats.truncate(length);
    repeats
}

/// A well-formed stream of `count` instructions of every form, and what it decodes to.
pub(super) fn instructions(random: &mut Random, count: usize) -> (Vec<u8>, Vec<u8>) {
    let (mut stream, mut plain) = (Vec::new(), Vec::new());
    // Literals copied by the last instruction: 0 to 3, or 4 for a run.
    let mut literals = 0;
    if random.below(2) == 0 {
        let run = 1 + random.below(238);
        stream.push(17 + run as u8);
        put_literals(random, run, &mut stream, &mut plain);
        literals = run.min(4);
    }
    for _ in 0..count {
        let available = plain.len();
        let trailing = random.below(4);
        let (length, distance) = match random.below(6) {
            0 | 1 if literals == 0 => {
                let run = 4 + random.below(700);
                put_length(run - 3, 15, 0, &mut stream);
                put_literals(random, run, &mut stream, &mut plain);
                literals = 4;
                continue;
            }
            0 if literals < 4 && available > 0 => {
                let distance = random.below(available.min(0x400));
                stream.extend([(distance << 2 & 12 | trailing) as u8, (distance >> 2) as u8]);
                (2, distance + 1)
            }
            1 if literals == 4 && available > 2048 => {
                let distance = random.below((available - 2048).min(0x400));
                stream.extend([(distance << 2 & 12 | trailing) as u8, (distance >> 2) as u8]);
                (3, distance + 2049)
            }
            2 | 3 if available > 0 => {
                let (length, distance) = (3 + random.below(6), random.below(available.min(0x800)));
                stream.extend([((length - 1) << 5 | distance << 2 & 28 | trailing) as u8, (distance >> 3) as u8]);
                (length, distance + 1)
            }
            4 if available > 0 => {
                let (length, distance) = (3 + random.below(900), random.below(available.min(0x4000)));
                put_length(length - 2, 31, 0x20, &mut stream);
                stream.extend(((distance << 2 | trailing) as u16).to_le_bytes());
                (length, distance + 1)
            }
            5 if available > 0x4000 => {
                let (length, distance) = (3 + random.below(900), 1 + random.below((available - 0x4000).min(0x7fff)));
                put_length(length - 2, 7, 0x10 | (distance >> 11 & 8) as u8, &mut stream);
                stream.extend(((distance << 2 | trailing) as u16).to_le_bytes());
                (length, distance + 0x4000)
            }
            _ => continue,
        };
        for _ in 0..length {
            plain.push(plain[plain.len() - distance]);
        }
        put_literals(random, trailing, &mut stream, &mut plain);
        literals = trailing;
    }
    stream.extend([0x11, 0, 0]);
    (stream, plain)
}

fn put_literals(random: &mut Random, count: usize, stream: &mut Vec<u8>, plain: &mut Vec<u8>) {
    let literals = random.bytes(count);
    stream.extend_from_slice(&literals);
    plain.extend_from_slice(&literals);
}

fn put_length(field: usize, longest: usize, marker: u8, stream: &mut Vec<u8>) {
    if field <= longest {
        stream.push(marker | field as u8);
        return;
    }
    stream.push(marker);
    let excess = field - longest - 1;
    stream.extend(std::iter::repeat_n(0, excess / 255));
    stream.push((excess % 255 + 1) as u8);
}

/// What lzokay makes of a stream: what it decodes to and how many bytes that took.
///
/// lzokay panics where a match reaches back too far; that is its refusal. It accepts bytes behind the end marker, so the
/// caller looks at the count.
pub(super) fn lzokay(stream: &[u8]) -> Option<(Vec<u8>, usize)> {
    catch_unwind(|| {
        let mut reader = Cursor::new(stream);
        let plain = lzokay_native::decompress(&mut reader, None).ok()?;
        Some((plain, reader.position() as usize))
    })
    .unwrap_or(None)
}
