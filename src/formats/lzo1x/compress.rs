//! Compression of one block to an LZO1X stream.
//!
//! The fast level asks a table for the last place with the same four bytes, takes what it finds, and steps faster the
//! longer it finds nothing. Its table counts from the start of a window that moves on before a distance could exceed the
//! format's, so that no probe has to ask how far back a place is.
//!
//! Invariant: a stream depends on its block alone, never on what the compressor did before. The same segment pushed twice
//! must give the same object.

use std::fmt;
use std::hint::select_unpredictable;
use std::num::NonZero;

use super::decompress::decompress;
use super::instruction::{
    END, FAR_BASE, FAR_MAX_DISTANCE, FAR_MAX_LENGTH, FIRST_RUN_BASE, FIRST_RUN_MAX_LENGTH, MATCH_MIN,
    MIDDLE_MAX_DISTANCE, MIDDLE_MAX_LENGTH, MIDDLE_MIN, NEAR_MAX_DISTANCE, NEAR_MAX_LENGTH, RUN_MAX_LENGTH,
};
use super::unaligned::{common16, copy16, load32, load64, store32};

/// How hard to search.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Level {
    /// As fast as the data allows, at the ratio of the reference library's fast level, or at most a hundredth below it.
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

/// Number of places the fast level remembers, as a power of two. They take 16 KiB, half of the smallest first-level cache that
/// is common. Half as many lose 1 to 3 % of ratio and gain 2 % of speed there, and lose as much with a cache of 48 KiB; twice
/// as many gain 1 to 4 % of ratio and lose 1 %.
const PLACES_BITS: u32 = 13;

/// Where in the window each of some four bytes stood last, by their hash.
///
/// An entry is a hint: it may be another hash's, or the window's start for want of anything. The bytes are compared anyway.
type Places = [u16; 1 << PLACES_BITS];

/// The window moves on by at least so many bytes at a time. Meanwhile matches reach up to as many less than the format's
/// longest distance.
const SLIDE: usize = 0x8000;

/// The search stops this far from the block's end: it reads 16 bytes at its position, and literals are copied by 16.
const READ_ROOM: usize = 20;

/// The step of the search grows by one with every so many bytes without a match, as a power of two.
const SKIP_SHIFT: u32 = 5;

/// Room for the stream of so many bytes at its worst, and for a wide copy's overshoot.
///
/// A match is at least four long, and takes at most as many bytes as it covers, even together with the one-byte opcode of a
/// run of up to 18 literals before it. The opcode of a longer run takes `1 + (count - 19) / 255` more than that, at most a
/// nineteenth of it. So up to any match the instructions exceed what they cover by at most a sixteenth. The constant is for
/// the last run's opcode, the end marker and the overshoot.
fn room(src_len: usize) -> usize {
    src_len + src_len / 16 + 64
}

fn compress_fast(src: &[u8], dst: &mut Vec<u8>, places: &mut Places) -> Compressed {
    let Some(search_end) = src.len().checked_sub(READ_ROOM) else { return Compressed::Incompressible };
    dst.reserve(room(src.len()));
    let start = dst.len();
    // SAFETY: `room` bytes are reserved from `start` on, and `dst` is left alone while the stream lives.
    let mut stream = unsafe { Stream::new(dst.as_mut_ptr().add(start), src) };

    places.fill(0);
    let mut window = 0;
    let mut position = 1;
    while position < search_end {
        let by = (position - window).saturating_sub(FAR_MAX_DISTANCE - SLIDE);
        if by > 0 {
            slide(places, by);
            window += by;
        }
        let end = search_end.min(window + FAR_MAX_DISTANCE);
        // SAFETY: `window < position < end`, as a slide leaves FAR_MAX_DISTANCE - SLIDE between the two and SLIDE to come;
        // places are of earlier positions, or zero.
        position = unsafe { stream.search(places, window, position, end) };
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

/// Moves the window on: places before its new start become the start.
fn slide(places: &mut Places, by: usize) {
    let by = u16::try_from(by).unwrap_or(u16::MAX);
    for place in places {
        *place = place.saturating_sub(by);
    }
}

/// The place of the word's four low bytes.
#[inline(always)]
fn hash(word: u32) -> usize {
    (word.wrapping_mul(0x9e37_79b1) >> (32 - PLACES_BITS)) as usize
}

/// The stream being written, and how much of the block it covers.
///
/// Invariant: the bytes from `begin` to `end` are instructions for the block's first `anchor` bytes, and number at most
/// `anchor + anchor / 16`; unless there are none, the last is a match without trailing literals.
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
    /// `room(src.len())` bytes from `begin` on must be writable for as long as the stream lives.
    unsafe fn new(begin: *mut u8, src: &'a [u8]) -> Self {
        Self { begin, end: begin, src, anchor: 0 }
    }

    fn length(&self) -> usize {
        self.end as usize - self.begin as usize
    }

    /// Searches from `position` to `search_end` and writes what it finds. Returns the position it came to.
    ///
    /// # Safety
    ///
    /// `window < position < search_end`, and `search_end` is at least READ_ROOM before the block's end and at most
    /// FAR_MAX_DISTANCE behind `window`: so every place is at a distance of the format. Every place in `places` is less than
    /// `position - window`.
    #[inline(never)]
    unsafe fn search(&mut self, places: &mut Places, window: usize, position: usize, search_end: usize) -> usize {
        debug_assert!(window < position && position < search_end && search_end - window <= FAR_MAX_DISTANCE);
        debug_assert!(search_end + READ_ROOM <= self.src.len());
        debug_assert!(places.iter().all(|place| usize::from(*place) < position - window));
        // SAFETY: the window starts within the block.
        let base = unsafe { self.src.as_ptr().add(window) };
        // From here on, positions count from the window's start; the anchor may be before it.
        let base_len = self.src.len() - window;
        let search_end = search_end - window;
        let mut position = position - window;
        let mut anchor = self.anchor.wrapping_sub(window);
        let mut end = self.end;
        'search: loop {
            // The step depends on the literals before it, and stays the same up to `calm_end`.
            let mut step = 1 + (position.wrapping_sub(anchor) >> SKIP_SHIFT);
            let mut calm_end = search_end.min(anchor.wrapping_add(step << SKIP_SHIFT));
            let mut earlier = loop {
                if position >= calm_end {
                    if position >= search_end {
                        break 'search;
                    }
                    step = 1 + (position.wrapping_sub(anchor) >> SKIP_SHIFT);
                    calm_end = search_end.min(anchor.wrapping_add(step << SKIP_SHIFT));
                }
                // SAFETY: `position < search_end`, and every place is less than `position`.
                let (earlier, differing) = unsafe { probe(places, base, position) };
                if differing == 0 {
                    break earlier;
                }
                position += step;
            };
            let literals = position.wrapping_sub(anchor);
            // SAFETY: the literals end at `position`, READ_ROOM before the block's end. By the stream's invariant `room` has
            // space for them and the match they lead to. Unless nothing is written, a match is the last instruction.
            unsafe { end = put_literals(end, base.wrapping_add(anchor), literals, end == self.begin) };
            // Where in a line of the instruction cache the loop begins is worth 6 % and would be the linker's whim.
            // SAFETY: this is padding and nothing else.
            #[cfg(not(miri))]
            unsafe {
                std::arch::asm!(".p2align 6", options(nomem, nostack, preserves_flags));
            }
            loop {
                let distance = position - earlier;
                // SAFETY: `earlier < position <= search_end`.
                let length = unsafe { match_length(base, base_len, position, earlier) };
                // SAFETY: by the stream's invariant `room` has space for the match.
                end = unsafe { put_match(end, distance, length) };
                position += length;
                anchor = position;
                if position >= search_end {
                    break 'search;
                }
                // Mostly another match follows at once, or after one literal. Both places are asked before either answer is
                // needed: to ask for the second only after the first has disappointed would cost its whole way again.
                // SAFETY: `position < search_end`; the second four bytes are among the first eight.
                let word = unsafe { load64(base.add(position)) };
                let (here, next) = (word as u32, (word >> 8) as u32);
                let (here_slot, next_slot) = (hash(here), hash(next));
                let (here_earlier, next_earlier) = (usize::from(places[here_slot]), usize::from(places[next_slot]));
                // SAFETY: every place is less than `position`.
                let (here_differing, next_differing) =
                    unsafe { (here ^ load32(base.add(here_earlier)), next ^ load32(base.add(next_earlier))) };
                places[here_slot] = position as u16;
                earlier = here_earlier;
                if here_differing != 0 {
                    places[next_slot] = (position + 1) as u16;
                    if next_differing != 0 {
                        position += 2;
                        break;
                    }
                    // SAFETY: a match ends at `end`, and by the stream's invariant `room` has space for its literal.
                    unsafe {
                        *end.sub(2) |= 1;
                        end = put(end, word as u8);
                    }
                    position += 1;
                    earlier = next_earlier;
                }
            }
        }
        self.anchor = anchor.wrapping_add(window);
        self.end = end;
        position + window
    }

    /// Covers the rest of the block with literals and ends the stream. Its length, if it is less than the block's.
    fn finish(mut self) -> Option<usize> {
        let literals = self.src.len() - self.anchor;
        if self.length() == 0 || self.length() + literals + END.len() >= self.src.len() {
            return None;
        }
        // SAFETY: by the invariant `room` has space for the literals and the end marker, and a match is the last instruction.
        // The copy is exact: 16 bytes from `anchor` on may not exist.
        unsafe {
            let from = self.src.as_ptr().add(self.anchor);
            self.end = put_run_length(self.end, literals, false);
            self.end.copy_from_nonoverlapping(from, literals);
            self.end = self.end.add(literals);
            self.end.copy_from_nonoverlapping(END.as_ptr(), END.len());
            self.end = self.end.add(END.len());
        }
        Some(self.length()).filter(|length| *length < self.src.len())
    }
}

/// The last place with the hash of the four bytes at `position`, which takes its stead; and in what the four bytes there
/// and here differ.
///
/// # Safety
///
/// Four bytes are readable at `base + position`, and so at every place, as each is at most `position`.
#[inline(always)]
unsafe fn probe(places: &mut Places, base: *const u8, position: usize) -> (usize, u32) {
    // SAFETY: as the caller vouches.
    unsafe {
        let word = load32(base.add(position));
        let place = &mut places[hash(word)];
        let earlier = usize::from(*place);
        *place = position as u16;
        (earlier, word ^ load32(base.add(earlier)))
    }
}

/// How many bytes at `position` equal those at `earlier`.
///
/// # Safety
///
/// `base` has `len` readable bytes, `position` is READ_ROOM or more before their end, and `earlier < position`.
#[inline(always)]
unsafe fn match_length(base: *const u8, len: usize, position: usize, earlier: usize) -> usize {
    // SAFETY: every load ends within `len`, and those at `earlier` end before those at `position`. The choice is not zero: if
    // the first is, the second is not.
    unsafe {
        let few = load64(base.add(position)) ^ load64(base.add(earlier));
        let more = load64(base.add(position + 8)) ^ load64(base.add(earlier + 8));
        if few | more != 0 {
            // Which of the two is hard to predict, and the next position waits for it.
            let differing = NonZero::new_unchecked(select_unpredictable(few != 0, few, more));
            return select_unpredictable(few != 0, 0, 8) + (differing.trailing_zeros() / 8) as usize;
        }
        let mut length = 16;
        while position + length + 16 <= len {
            let common = common16(base.add(position + length), base.add(earlier + length));
            if common < 16 {
                return length + common;
            }
            length += 16;
        }
        while position + length < len && *base.add(position + length) == *base.add(earlier + length) {
            length += 1;
        }
        length
    }
}

/// Writes `count` literals: up to three into the match before, more as a run. `first` if nothing is written yet.
///
/// # Safety
///
/// There is room at `end` for them and their opcode, and 16 bytes of overshoot. 16 bytes at `from`, and 15 behind the
/// literals, are readable. Unless `first`, a match ends at `end`.
#[inline(always)]
unsafe fn put_literals(end: *mut u8, from: *const u8, count: usize, first: bool) -> *mut u8 {
    // SAFETY: as the caller vouches; the second last byte of a match holds the count of its trailing literals.
    unsafe {
        if count <= 16 && !first {
            // How many is hard to predict, so both ways are taken: a count goes into the match, or an opcode before the run.
            let run = count > 3;
            *end.sub(2) |= select_unpredictable(run, 0, count as u8);
            *end = (count as u8).wrapping_sub(3);
            let to = end.add(usize::from(run));
            copy16(from, to);
            to.add(count)
        } else {
            let to = put_run_length(end, count, first);
            for done in (0..count).step_by(16) {
                copy16(from.add(done), to.add(done));
            }
            to.add(count)
        }
    }
}

/// Writes what says that `count` literals follow.
///
/// # Safety
///
/// There is room at `end` for `2 + count / 255` bytes. Unless `first`, a match ends at `end`.
#[inline(never)]
unsafe fn put_run_length(end: *mut u8, count: usize, first: bool) -> *mut u8 {
    // SAFETY: as the caller vouches; the second last byte of a match holds the count of its trailing literals.
    unsafe {
        if first && count <= FIRST_RUN_MAX_LENGTH {
            put(end, (FIRST_RUN_BASE + count) as u8)
        } else if count <= 3 {
            *end.sub(2) |= count as u8;
            end
        } else if count <= RUN_MAX_LENGTH {
            put(end, (count - 3) as u8)
        } else {
            put_extension(put(end, 0), count - RUN_MAX_LENGTH)
        }
    }
}

/// Writes a match, in its shortest form, without trailing literals.
///
/// # Safety
///
/// There is room at `end` for `4 + length / 255` bytes.
#[inline(always)]
unsafe fn put_match(end: *mut u8, distance: usize, length: usize) -> *mut u8 {
    debug_assert!((1..=FAR_MAX_DISTANCE).contains(&distance) && length >= 4);
    if distance > MIDDLE_MAX_DISTANCE || length > MIDDLE_MAX_LENGTH + 255 {
        // SAFETY: as the caller vouches.
        return unsafe { put_long_match(end, distance, length) };
    }
    let operand = distance - 1;
    let (code, size) = if length <= MIDDLE_MAX_LENGTH {
        // Which of the two is hard to predict.
        let near = length <= NEAR_MAX_LENGTH && distance <= NEAR_MAX_DISTANCE;
        let near_code = (length - 1) << 5 | (operand & 7) << 2 | (operand >> 3) << 8;
        let middle_code = (usize::from(MIDDLE_MIN) + length - 2) | operand << 10;
        (select_unpredictable(near, near_code, middle_code), 3 - usize::from(near))
    } else {
        (usize::from(MIDDLE_MIN) | (length - MIDDLE_MAX_LENGTH) << 8 | operand << 18, 4)
    };
    // SAFETY: as the caller vouches.
    unsafe {
        store32(code as u32, end);
        end.add(size)
    }
}

/// [`put_match`] for what does not fit four bytes, or is far.
///
/// # Safety
///
/// There is room at `end` for `4 + length / 255` bytes.
#[inline(never)]
unsafe fn put_long_match(end: *mut u8, distance: usize, length: usize) -> *mut u8 {
    let (marker, longest, operand) = if distance <= MIDDLE_MAX_DISTANCE {
        (MIDDLE_MIN, MIDDLE_MAX_LENGTH, distance - 1)
    } else {
        let operand = distance - FAR_BASE;
        (MATCH_MIN | (operand >> 11 & 8) as u8, FAR_MAX_LENGTH, operand)
    };
    // SAFETY: as the caller vouches.
    unsafe {
        let end = if length <= longest {
            put(end, marker | (length - 2) as u8)
        } else {
            put_extension(put(end, marker), length - longest)
        };
        put(put(end, (operand << 2) as u8), (operand >> 6) as u8)
    }
}

/// Writes what a length exceeds its field by, at least 1.
///
/// # Safety
///
/// There is room at `end` for `1 + excess / 255` bytes.
#[inline(always)]
unsafe fn put_extension(mut end: *mut u8, mut excess: usize) -> *mut u8 {
    // SAFETY: as the caller vouches.
    unsafe {
        while excess > 255 {
            end = put(end, 0);
            excess -= 255;
        }
        put(end, excess as u8)
    }
}

/// # Safety
///
/// There is room at `end` for a byte.
#[inline(always)]
unsafe fn put(end: *mut u8, byte: u8) -> *mut u8 {
    // SAFETY: as the caller vouches.
    unsafe {
        *end = byte;
        end.add(1)
    }
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
