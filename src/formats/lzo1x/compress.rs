//! Compression of one block to an LZO1X stream.
//!
//! The fast level looks up every position in a table of the last place with the same five bytes, takes what it finds, and
//! steps faster the longer it finds nothing. Streams depend on the block alone, never on what the compressor did before:
//! the same segment pushed twice must give the same object.

use std::fmt;

use super::decompress::decompress;
use super::instruction::{
    END, FAR_BASE, FAR_MAX_DISTANCE, FAR_MAX_LENGTH, FIRST_RUN_BASE, FIRST_RUN_MAX_LENGTH, MATCH_MIN,
    MIDDLE_MAX_DISTANCE, MIDDLE_MAX_LENGTH, MIDDLE_MIN, NEAR_MAX_DISTANCE, NEAR_MAX_LENGTH, RUN_MAX_LENGTH,
};

/// How hard to search.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Level {
    /// As fast as the data allows, at the ratio of lzop's default level or better.
    #[default]
    Fast,
    /// The smallest stream, at some twentieth of the speed: lzokay's exhaustive search.
    Best,
}

/// What came of compressing a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Compressed {
    /// A stream of so many bytes was appended. They are fewer than the block has.
    Stream(usize),
    /// No stream shorter than the block came out, and nothing was appended: store the block as it is.
    Incompressible,
}

/// Compresses blocks. Reusable, so that a block costs no set-up.
pub struct Compressor {
    level: Searcher,
}

enum Searcher {
    Fast(Box<Places>),
    Best { dict: Box<lzokay_native::Dict>, check: Vec<u8> },
}

impl Compressor {
    /// A compressor at [`Level::Fast`].
    pub fn new() -> Self {
        Self::with_level(Level::Fast)
    }

    /// A compressor at `level`.
    pub fn with_level(level: Level) -> Self {
        let level = match level {
            Level::Fast => Searcher::Fast(Box::new([0; 1 << PLACES_BITS])),
            Level::Best => Searcher::Best { dict: Box::default(), check: Vec::new() },
        };
        Self { level }
    }

    /// Appends the stream of block `src` to `dst`, or nothing if that would not be shorter than `src`.
    ///
    /// `dst` grows by up to `src.len()` and a little; give it that much capacity once and reuse it.
    pub fn compress(&mut self, src: &[u8], dst: &mut Vec<u8>) -> Compressed {
        match &mut self.level {
            Searcher::Fast(places) => compress_fast(src, dst, places),
            Searcher::Best { dict, check } => compress_best(src, dst, dict, check),
        }
    }
}

impl Default for Compressor {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Searcher::Fast(_) => Level::Fast,
            Searcher::Best { .. } => Level::Best,
        };
        f.debug_struct("Compressor").field("level", &level).finish_non_exhaustive()
    }
}

/// lzokay's stream, if it is shorter and our decoder agrees with it. At its speed the second opinion is free.
fn compress_best(src: &[u8], dst: &mut Vec<u8>, dict: &mut lzokay_native::Dict, check: &mut Vec<u8>) -> Compressed {
    let Ok(stream) = lzokay_native::compress_with_dict(src, dict) else { return Compressed::Incompressible };
    if stream.is_empty() || stream.len() >= src.len() {
        return Compressed::Incompressible;
    }
    check.resize(src.len(), 0);
    if decompress(&stream, check).is_err() || check != src {
        return Compressed::Incompressible;
    }
    dst.extend_from_slice(&stream);
    Compressed::Stream(stream.len())
}

/// Number of places the fast level remembers, as a power of two.
const PLACES_BITS: u32 = 14;

/// The last position of some five bytes, by their hash; of a position only the low 16 bits, since no match reaches further.
///
/// An entry is a hint: it may be stale, or another hash's, or the zero from the start. The bytes are compared anyway.
type Places = [u16; 1 << PLACES_BITS];

/// The shortest match worth an instruction.
const MIN_MATCH: usize = 4;
/// The search stops this far from the block's end, so that it and the wide copies of literals may read on.
const READ_ROOM: usize = 20;
/// The step of the search grows by one for every so many bytes (as a power of two) without a match.
const SKIP_SHIFT: u32 = 5;
/// Beyond the block's length, what the last instruction may write, and a wide copy overshoot.
const WRITE_ROOM: usize = 64;

fn compress_fast(src: &[u8], dst: &mut Vec<u8>, places: &mut Places) -> Compressed {
    let Some(search_end) = src.len().checked_sub(READ_ROOM) else { return Compressed::Incompressible };
    places.fill(0);
    dst.reserve(src.len() + WRITE_ROOM);
    let start = dst.len();
    // SAFETY: `src.len() + WRITE_ROOM` bytes are reserved from `start` on, which is what a stream may write.
    let mut stream = unsafe { Stream::new(dst.as_mut_ptr().add(start), src) };

    let mut position = 1;
    'block: loop {
        // Find a match.
        let (distance, word) = loop {
            if position >= search_end {
                break 'block;
            }
            // SAFETY: `position < search_end`, READ_ROOM before the end.
            let word = unsafe { load64(src.as_ptr().add(position)) };
            let place = &mut places[hash(word)];
            let distance = usize::from((position as u16).wrapping_sub(*place));
            *place = position as u16;
            if distance.wrapping_sub(1) < position.min(FAR_MAX_DISTANCE) {
                // SAFETY: `1 <= distance <= position`.
                let earlier = unsafe { load32(src.as_ptr().add(position - distance)) };
                if earlier == word as u32 {
                    break (distance, word);
                }
            }
            position += 1 + ((position - stream.anchor) >> SKIP_SHIFT);
        };
        let _ = word;

        // Grow it at both ends.
        let mut length = MIN_MATCH + common_length(src, position + MIN_MATCH, distance);
        while position > stream.anchor && position > distance && src[position - 1] == src[position - distance - 1] {
            position -= 1;
            length += 1;
        }

        if !stream.sequence(position, distance, length) {
            return Compressed::Incompressible;
        }
        position += length;
        if position < search_end {
            // SAFETY: `position - 2` is at least 2, and below `search_end`.
            let word = unsafe { load64(src.as_ptr().add(position - 2)) };
            places[hash(word)] = (position - 2) as u16;
        }
    }

    match stream.finish() {
        Some(length) => {
            // SAFETY: the stream wrote `length` bytes from `start` on, within what was reserved.
            unsafe { dst.set_len(start + length) };
            Compressed::Stream(length)
        }
        None => Compressed::Incompressible,
    }
}

/// The place of the word's five low bytes.
#[inline(always)]
fn hash(word: u64) -> usize {
    ((word << 24).wrapping_mul(0x9e37_79b1_85eb_ca87) >> (64 - PLACES_BITS)) as usize
}

/// How many bytes from `position` on equal those `distance` before them.
#[inline(always)]
fn common_length(src: &[u8], position: usize, distance: usize) -> usize {
    let mut length = 0;
    while position + length + 8 <= src.len() {
        // SAFETY: eight bytes fit before the end of `src`, and `distance <= position`.
        let differing = unsafe {
            let at = src.as_ptr().add(position + length);
            load64(at) ^ load64(at.sub(distance))
        };
        if differing != 0 {
            return length + (differing.trailing_zeros() / 8) as usize;
        }
        length += 8;
    }
    while position + length < src.len() && src[position + length] == src[position + length - distance] {
        length += 1;
    }
    length
}

/// The stream being written, and how much of the block it covers.
///
/// Invariant: the bytes from `begin` to `end` are instructions for the block's first `anchor` bytes. They number at most
/// `src.len() + 8`, WRITE_ROOM less 8 bytes short of what is reserved; and unless there are none, the last is a match
/// without trailing literals.
struct Stream<'a> {
    begin: *mut u8,
    end: *mut u8,
    src: &'a [u8],
    anchor: usize,
}

impl<'a> Stream<'a> {
    /// An empty stream at `begin`.
    ///
    /// # Safety
    ///
    /// `src.len() + WRITE_ROOM` bytes from `begin` on must be writable for as long as the stream lives.
    unsafe fn new(begin: *mut u8, src: &'a [u8]) -> Self {
        Self { begin, end: begin, src, anchor: 0 }
    }

    fn length(&self) -> usize {
        self.end as usize - self.begin as usize
    }

    /// Covers the block up to `position` with literals, then `length` bytes with a match. False once the stream exceeds the
    /// block's length.
    #[inline(always)]
    fn sequence(&mut self, position: usize, distance: usize, length: usize) -> bool {
        debug_assert!(self.anchor <= position && position + READ_ROOM - 16 <= self.src.len());
        debug_assert!(length >= MIN_MATCH && position + length <= self.src.len());
        debug_assert!((1..=FAR_MAX_DISTANCE).contains(&distance) && distance <= position);
        let literals = position - self.anchor;
        // A lower bound of what the stream will be, and short by at most 8 of it.
        if self.length() + literals + (literals + length) / 255 > self.src.len() {
            return false;
        }
        // SAFETY: what the two write, less overshoot, ends within 8 bytes of the bound just checked; a wide copy of
        // literals overshoots by up to 15 more, and reads at most 15 bytes on from `position`, before the block's end.
        unsafe {
            self.put_literals(literals);
            self.put_match(distance, length);
        }
        self.anchor = position + length;
        true
    }

    /// Covers the rest of the block with literals and ends the stream. Its length, if it is less than the block's.
    fn finish(mut self) -> Option<usize> {
        let literals = self.src.len() - self.anchor;
        if self.length() == 0 || self.length() + literals + literals / 255 + END.len() >= self.src.len() {
            return None;
        }
        // SAFETY: as the bound just checked is short by at most 3 (a run's own two bytes), both fit; `put_literals` copies
        // exactly, since 16 bytes from `anchor` on may not exist.
        unsafe {
            let from = self.src.as_ptr().add(self.anchor);
            self.put_run_length(literals);
            self.end.copy_from_nonoverlapping(from, literals);
            self.end = self.end.add(literals);
            self.end.copy_from_nonoverlapping(END.as_ptr(), END.len());
            self.end = self.end.add(END.len());
        }
        Some(self.length()).filter(|length| *length < self.src.len())
    }

    #[inline(always)]
    unsafe fn put(&mut self, byte: u8) {
        // SAFETY: the caller vouches for the room.
        unsafe {
            *self.end = byte;
            self.end = self.end.add(1);
        }
    }

    /// `count` literals from the anchor on: up to three in the match before, else as a run.
    #[inline(always)]
    unsafe fn put_literals(&mut self, count: usize) {
        // SAFETY: the caller vouches for the room, and for 15 readable bytes behind the literals.
        unsafe {
            let from = self.src.as_ptr().add(self.anchor);
            self.put_run_length(count);
            if count <= 16 {
                copy16(from, self.end);
            } else {
                let mut done = 0;
                while done < count {
                    copy16(from.add(done), self.end.add(done));
                    done += 16;
                }
            }
            self.end = self.end.add(count);
        }
    }

    #[inline(always)]
    unsafe fn put_run_length(&mut self, count: usize) {
        // SAFETY: the caller vouches for the room; without a first run there is a match, of two bytes or more, before.
        unsafe {
            if self.end == self.begin && count <= FIRST_RUN_MAX_LENGTH {
                self.put((FIRST_RUN_BASE + count) as u8);
            } else if count <= 3 {
                *self.end.sub(2) |= count as u8;
            } else if count <= RUN_MAX_LENGTH {
                self.put((count - 3) as u8);
            } else {
                self.put(0);
                self.put_extension(count - RUN_MAX_LENGTH);
            }
        }
    }

    /// What a length exceeds its field by, at least 1.
    #[inline(always)]
    unsafe fn put_extension(&mut self, mut excess: usize) {
        // SAFETY: the caller vouches for the room.
        unsafe {
            while excess > 255 {
                self.put(0);
                excess -= 255;
            }
            self.put(excess as u8);
        }
    }

    /// A match, in its shortest form, without trailing literals.
    #[inline(always)]
    unsafe fn put_match(&mut self, distance: usize, length: usize) {
        // SAFETY: the caller vouches for the room.
        unsafe {
            if length <= NEAR_MAX_LENGTH && distance <= NEAR_MAX_DISTANCE {
                let distance = distance - 1;
                self.put(((length - 1) << 5 | (distance & 7) << 2) as u8);
                self.put((distance >> 3) as u8);
                return;
            }
            let (marker, longest, distance) = if distance <= MIDDLE_MAX_DISTANCE {
                (MIDDLE_MIN, MIDDLE_MAX_LENGTH, distance - 1)
            } else {
                let distance = distance - FAR_BASE;
                (MATCH_MIN | (distance >> 11 & 8) as u8, FAR_MAX_LENGTH, distance)
            };
            if length <= longest {
                self.put(marker | (length - 2) as u8);
            } else {
                self.put(marker);
                self.put_extension(length - longest);
            }
            self.put((distance << 2) as u8);
            self.put((distance >> 6) as u8);
        }
    }
}

#[inline(always)]
unsafe fn load32(from: *const u8) -> u32 {
    // SAFETY: the caller vouches for four readable bytes.
    u32::from_le(unsafe { from.cast::<u32>().read_unaligned() })
}

#[inline(always)]
unsafe fn load64(from: *const u8) -> u64 {
    // SAFETY: the caller vouches for eight readable bytes.
    u64::from_le(unsafe { from.cast::<u64>().read_unaligned() })
}

#[inline(always)]
unsafe fn copy16(from: *const u8, to: *mut u8) {
    // SAFETY: the caller vouches for 16 readable and 16 writable bytes.
    unsafe { to.cast::<u128>().write_unaligned(from.cast::<u128>().read_unaligned()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, any, prop, proptest};

    use super::super::samples::{self, lzokay};
    use super::super::{Compressed, Compressor, Level, decompress};

    /// Compresses behind a prefix, then decodes with both decoders.
    fn round_trip(compressor: &mut Compressor, name: &str, block: &[u8]) -> Compressed {
        let prefix = b"what is there already";
        let mut out = prefix.to_vec();
        // An exact copy of the block, so that a sanitizer sees reads beyond it.
        let block = block.to_vec().into_boxed_slice();
        let compressed = compressor.compress(&block, &mut out);
        assert_eq!(&out[..prefix.len()], prefix);
        let stream = &out[prefix.len()..];
        match compressed {
            Compressed::Stream(length) => {
                assert_eq!(length, stream.len(), "{name}");
                assert!(length < block.len(), "{name}");
                let mut plain = vec![0; block.len()];
                assert_eq!(decompress(stream, &mut plain), Ok(()), "{name}");
                assert!(plain[..] == block[..], "{name}");
                let (plain, read) = lzokay(stream).expect(name);
                assert_eq!(read, length, "{name}");
                assert!(plain[..] == block[..], "{name}");
            }
            Compressed::Incompressible => assert!(stream.is_empty(), "{name}"),
        }
        compressed
    }

    #[test]
    fn every_kind_of_block_comes_back() {
        for level in [Level::Fast, Level::Best] {
            let mut compressor = Compressor::with_level(level);
            for (name, block) in samples::blocks() {
                if level == Level::Fast || block.len() <= 70_000 {
                    let _ = round_trip(&mut compressor, &name, &block);
                }
            }
        }
    }

    #[test]
    fn compresses_what_repeats_and_nothing_else() {
        for level in [Level::Fast, Level::Best] {
            let mut compressor = Compressor::with_level(level);
            for (name, block) in samples::blocks() {
                if block.len() > 70_000 {
                    continue;
                }
                let compressed = compressor.compress(&block, &mut Vec::new());
                if name.ends_with("random") || block.len() < 5 {
                    assert_eq!(compressed, Compressed::Incompressible, "{level:?} {name}");
                } else if block.len() > 100 {
                    assert!(matches!(compressed, Compressed::Stream(_)), "{level:?} {name}");
                }
            }
        }
    }

    /// Two pushes of one segment must give one object, whatever the compressor did in between.
    #[test]
    fn a_stream_depends_on_its_block_alone() {
        for level in [Level::Fast, Level::Best] {
            let mut used = Compressor::with_level(level);
            for (name, block) in samples::blocks().into_iter().filter(|(_, block)| block.len() <= 70_000) {
                let (mut first, mut second) = (Vec::new(), Vec::new());
                assert_eq!(
                    used.compress(&block, &mut first),
                    Compressor::with_level(level).compress(&block, &mut second),
                    "{level:?} {name}"
                );
                assert!(first == second, "{level:?} {name}");
            }
        }
    }

    #[test]
    fn a_block_may_have_64_mib() {
        let text = b"sixty-four mebibytes of it, and ";
        let block = text.repeat((64 << 20) / text.len());
        let mut stream = Vec::new();
        assert!(matches!(Compressor::new().compress(&block, &mut stream), Compressed::Stream(_)));
        let mut plain = vec![0; block.len()];
        assert_eq!(decompress(&stream, &mut plain), Ok(()));
        assert!(plain == block);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

        #[test]
        fn any_block_comes_back(
            parts in prop::collection::vec((prop::collection::vec(any::<u8>(), 1..40), 1..30usize, 0..70usize), 0..60),
            best in prop::bool::weighted(0.1),
        ) {
            let mut block = Vec::new();
            for (unit, times, back) in parts {
                block.extend(unit.repeat(times));
                let from = block.len() - back.min(block.len());
                block.extend_from_within(from..);
            }
            let level = if best { Level::Best } else { Level::Fast };
            let _ = round_trip(&mut Compressor::with_level(level), "any", &block);
        }
    }
}
