//! Decompression of one LZO1X block into a buffer of exactly its size.
//!
//! Two decoders share one position. The *careful* one is safe code, takes one instruction at a time and alone decides what
//! is an error. The *fast* one copies in wide steps that overshoot, and therefore runs only while both buffers have room
//! for the worst short instruction pair; whatever it does not like (an extension, a distance it cannot prove, little room
//! left) it leaves untouched for the careful one. So the fast decoder can only be slow or right, never wrong in its own way.

use std::hint::select_unpredictable;
use std::ptr;

use super::instruction::{
    FAR_BASE, FAR_MAX_LENGTH, FIRST_RUN_BASE, MATCH_MIN, MATCHES, MIDDLE_MAX_LENGTH, MIDDLE_MIN, NEAR_MAX_DISTANCE,
    NEAR_MIN, RUN_MAX_LENGTH,
};
use super::unaligned::{copy9to16, copy16, copy32, load32, load64, store32, store64};

/// Why bytes are not an LZO1X stream of the expected size. `at` is the offset, in the compressed bytes, of the instruction
/// that shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecompressError {
    /// The compressed bytes end before the end marker.
    #[error("compressed data ends inside the instruction at byte {at}")]
    InputOverrun {
        /// Offset of the instruction.
        at: usize,
    },
    /// The stream holds more than the block's size.
    #[error("compressed data exceeds the expected size with the instruction at byte {at}")]
    OutputOverrun {
        /// Offset of the instruction.
        at: usize,
    },
    /// A match reaches back before the start of the block.
    #[error("match at byte {at} of the compressed data refers to {distance} bytes back, where only {available} exist")]
    LookbehindOverrun {
        /// Offset of the instruction.
        at: usize,
        /// How far back it reaches.
        distance: usize,
        /// How many bytes were decompressed before it.
        available: usize,
    },
    /// The end marker carries a length other than 3, which no compressor writes. lzokay refuses it, too; the reference
    /// library does not look.
    #[error("malformed end marker at byte {at} of the compressed data")]
    BadEndMarker {
        /// Offset of the end marker.
        at: usize,
    },
    /// The stream is complete, and bytes follow it.
    #[error("compressed data ends at byte {at}, and more bytes follow")]
    NotConsumed {
        /// Offset of the first byte after the end marker.
        at: usize,
    },
    /// The stream is complete and holds less than the block's size.
    #[error("compressed data ends at byte {at} after {produced} decompressed bytes, short of the expected size")]
    OutputShort {
        /// Offset of the end marker.
        at: usize,
        /// Bytes decompressed.
        produced: usize,
    },
}

/// Decompresses the block `src` into `dst`, whose length is the block's size.
///
/// Succeeds only if the stream is well-formed, ends exactly where `src` ends, and fills `dst` exactly. After an error the
/// contents of `dst` are unspecified (though never unwritten memory: it was initialised by the caller).
///
/// # Errors
///
/// [`DecompressError`] says what is wrong and where. Time is bounded by the lengths of `src` and `dst`, whatever they hold.
pub fn decompress(src: &[u8], dst: &mut [u8]) -> Result<(), DecompressError> {
    let mut block = Block { src, dst, read: 0, written: 0, literals: Literals::None };
    block.first_run()?;
    loop {
        block.run_fast();
        if let Step::End = block.step()? {
            return Ok(());
        }
    }
}

/// How many literals the last instruction copied, as far as the next one's meaning depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Literals {
    /// None: an opcode below 16 is a literal run.
    None,
    /// One to three after a match: an opcode below 16 is a match of two bytes.
    Few,
    /// A literal run: an opcode below 16 is a match of three bytes.
    Run,
}

impl Literals {
    fn trailing(count: usize) -> Self {
        if count == 0 { Self::None } else { Self::Few }
    }
}

/// Whether the stream goes on.
enum Step {
    More,
    End,
}

/// A block under way. Invariant: `read <= src.len()`, `written <= dst.len()`, and both stand between two instructions.
struct Block<'a> {
    src: &'a [u8],
    dst: &'a mut [u8],
    read: usize,
    written: usize,
    literals: Literals,
}

impl Block<'_> {
    /// The literal run that the first byte may be.
    fn first_run(&mut self) -> Result<(), DecompressError> {
        let first = usize::from(*self.src.first().ok_or(DecompressError::InputOverrun { at: 0 })?);
        if first > FIRST_RUN_BASE {
            let count = first - FIRST_RUN_BASE;
            self.copy_literals(0, 1, count)?;
            self.literals = if count < 4 { Literals::Few } else { Literals::Run };
        }
        Ok(())
    }

    /// Decodes one instruction with every check.
    fn step(&mut self) -> Result<Step, DecompressError> {
        let at = self.read;
        let overrun = DecompressError::InputOverrun { at };
        let rest = &self.src[at..];
        let opcode = *rest.first().ok_or(overrun)?;
        let byte = |index: usize| rest.get(index).map(|byte| usize::from(*byte)).ok_or(overrun);
        let code = usize::from(opcode);

        if opcode < MATCH_MIN && self.literals == Literals::None {
            let (length, size) = if code == 0 {
                let (extension, bytes) = extension(&rest[1..]).ok_or(overrun)?;
                (RUN_MAX_LENGTH.saturating_add(extension), 1 + bytes)
            } else {
                (code + 3, 1)
            };
            self.copy_literals(at, at + size, length)?;
            self.literals = Literals::Run;
            return Ok(Step::More);
        }

        let (length, distance, size, trailing) = if opcode >= NEAR_MIN {
            (code / 32 + 1, (byte(1)? << 3) + ((code >> 2) & 7) + 1, 2, code & 3)
        } else if opcode < MATCH_MIN {
            let (length, base) = if self.literals == Literals::Run { (3, 2049) } else { (2, 1) };
            (length, (byte(1)? << 2) + (code >> 2) + base, 2, code & 3)
        } else {
            let (field, longest) =
                if opcode >= MIDDLE_MIN { (code & 31, MIDDLE_MAX_LENGTH) } else { (code & 7, FAR_MAX_LENGTH) };
            let (length, size) = if field == 0 {
                let (extension, bytes) = extension(&rest[1..]).ok_or(overrun)?;
                (longest.saturating_add(extension), 1 + bytes)
            } else {
                (field + 2, 1)
            };
            let operand = byte(size)? | byte(size + 1)? << 8;
            let distance = if opcode >= MIDDLE_MIN {
                (operand >> 2) + 1
            } else {
                let distance = (operand >> 2) + ((code & 8) << 11);
                if distance == 0 {
                    return self.end(at, at + size + 2, length);
                }
                distance + FAR_BASE
            };
            (length, distance, size + 2, operand & 3)
        };

        if distance > self.written {
            return Err(DecompressError::LookbehindOverrun { at, distance, available: self.written });
        }
        if length > self.dst.len() - self.written {
            return Err(DecompressError::OutputOverrun { at });
        }
        repeat(self.dst, self.written, distance, length);
        self.written += length;
        self.copy_literals(at, at + size, trailing)?;
        self.literals = Literals::trailing(trailing);
        Ok(Step::More)
    }

    /// Copies the `count` literals at `from` and moves behind them; `at` is their instruction.
    fn copy_literals(&mut self, at: usize, from: usize, count: usize) -> Result<(), DecompressError> {
        let literals = self.src[from..].get(..count).ok_or(DecompressError::InputOverrun { at })?;
        let space = self.dst[self.written..].get_mut(..count).ok_or(DecompressError::OutputOverrun { at })?;
        space.copy_from_slice(literals);
        self.read = from + count;
        self.written += count;
        Ok(())
    }

    /// The end marker at `at`, which ends at `end` and says `length`.
    fn end(&self, at: usize, end: usize, length: usize) -> Result<Step, DecompressError> {
        if length != 3 {
            Err(DecompressError::BadEndMarker { at })
        } else if end != self.src.len() {
            Err(DecompressError::NotConsumed { at: end })
        } else if self.written != self.dst.len() {
            Err(DecompressError::OutputShort { at, produced: self.written })
        } else {
            Ok(Step::End)
        }
    }
}

/// A length's extension at the start of `bytes`: its value and how many bytes it takes. `None` if it does not end.
fn extension(bytes: &[u8]) -> Option<(usize, usize)> {
    let zeros = bytes.iter().position(|byte| *byte != 0)?;
    Some((zeros.saturating_mul(255).saturating_add(usize::from(bytes[zeros])), zeros + 1))
}

/// Writes `length` bytes at `to`, each a copy of the one `distance` before it.
///
/// What is there doubles with each round, so that a short distance costs few copies.
fn repeat(dst: &mut [u8], to: usize, distance: usize, length: usize) {
    let from = to - distance;
    if distance == 1 {
        let byte = dst[from];
        dst[to..to + length].fill(byte);
        return;
    }
    let mut done = 0;
    while done < length {
        let count = (distance + done).min(length - done);
        dst.copy_within(from..from + count, to + done);
        done += count;
    }
}

/// Compressed bytes that must remain for the fast decoder to take an instruction.
///
/// A short run is copied as the 32 bytes behind its opcode. A match takes at most four bytes, and four more are copied as its
/// trailing literals.
const READ_ROOM: usize = 33;
/// Room that must remain in the block for the fast decoder to take an instruction.
///
/// A short run is copied as 32 bytes. A short match is at most 33 long and copied as at most 48, and its trailing literals
/// are copied as four. What is longer is measured first; it then ends this far from the end, and overshoots by at most 31.
const WRITE_ROOM: usize = 64;

impl Block<'_> {
    /// Decodes common instructions while there is room, and stops between two instructions.
    #[inline(never)]
    fn run_fast(&mut self) {
        let (Some(read_last), Some(write_last)) =
            (self.src.len().checked_sub(READ_ROOM), self.dst.len().checked_sub(WRITE_ROOM))
        else {
            return;
        };
        let src = self.src.as_ptr();
        let dst = self.dst.as_mut_ptr();
        let mut read = self.read;
        let mut written = self.written;
        let mut literals = self.literals;

        // All below rests on this: READ_ROOM bytes can be read at `read`, and WRITE_ROOM bytes written at `written`.
        while read <= read_last && written <= write_last {
            // SAFETY: 4 <= READ_ROOM.
            let word = unsafe { load32(src.add(read)) } as usize;
            let code = word & 0xff;
            let trailing;
            if code >= usize::from(MATCH_MIN) {
                let entry = &MATCHES[code];
                let mut length = usize::from(entry.length);
                if length != 0 {
                    let operand = (word >> 8) as u16 & entry.mask;
                    let distance = (u32::from(operand) << 3 >> entry.shift) as usize + usize::from(entry.base);
                    if distance > written || distance == FAR_BASE {
                        break;
                    }
                    // SAFETY: `1 <= distance <= written`, and 48 <= WRITE_ROOM.
                    unsafe { copy_short_match(dst.add(written), distance, length) };
                    // The next instruction waits for these two: choices, since jumps here are hard to predict.
                    let near = code >= usize::from(NEAR_MIN);
                    trailing = select_unpredictable(near, word, word >> 8) & 3;
                    read += select_unpredictable(near, 2, 3);
                } else {
                    let middle = code >= usize::from(MIDDLE_MIN);
                    let extension = word >> 8 & 0xff;
                    let operand = word >> 16;
                    let distance = (operand >> 2) + usize::from(entry.base);
                    length = extension + if middle { MIDDLE_MAX_LENGTH } else { FAR_MAX_LENGTH };
                    if extension == 0 || distance > written || distance == FAR_BASE || length > write_last - written {
                        break;
                    }
                    // SAFETY: `1 <= distance <= written`; the match ends at `write_last`, 31 <= WRITE_ROOM before the end.
                    unsafe { copy_long_match(dst.add(written), distance, length) };
                    trailing = operand & 3;
                    read += 4;
                }
                written += length;
            } else if literals == Literals::None {
                let extension = word >> 8 & 0xff;
                if code != 0 {
                    // SAFETY: 1 + 32 <= READ_ROOM and 32 <= WRITE_ROOM.
                    unsafe { copy32(src.add(read + 1), dst.add(written)) };
                    read += 1 + code + 3;
                    written += code + 3;
                } else {
                    let count = RUN_MAX_LENGTH + extension;
                    if extension == 0 || 2 + count > read_last - read || count > write_last - written {
                        break;
                    }
                    for done in (0..count).step_by(32) {
                        // SAFETY: the run ends at `read_last` and `write_last` at most, and the last step overshoots by at
                        // most 31, which is less than READ_ROOM and WRITE_ROOM.
                        unsafe { copy32(src.add(read + 2 + done), dst.add(written + done)) };
                    }
                    read += 2 + count;
                    written += count;
                }
                literals = Literals::Run;
                continue;
            } else {
                let (length, base) = if literals == Literals::Run { (3, NEAR_MAX_DISTANCE + 1) } else { (2, 1) };
                let distance = (word >> 6 & 0x3fc) + (code >> 2) + base;
                if distance > written {
                    break;
                }
                // SAFETY: `1 <= distance <= written`, and 3 <= WRITE_ROOM. Byte by byte: the distance may be 1.
                unsafe {
                    let to = dst.add(written);
                    for index in 0..3 {
                        *to.add(index) = *to.add(index).sub(distance);
                    }
                }
                trailing = code & 3;
                read += 2;
                written += length;
            }
            // SAFETY: at most four bytes were read, and 4 + 4 <= READ_ROOM; at most 33 were written behind the check, or
            // `written <= write_last` holds still, and 33 + 4 <= WRITE_ROOM.
            unsafe { ptr::copy_nonoverlapping(src.add(read), dst.add(written), 4) };
            read += trailing;
            written += trailing;
            literals = Literals::trailing(trailing);
        }

        self.read = read;
        self.written = written;
        self.literals = literals;
    }
}

/// Writes `length <= 33` bytes at `to`, each a copy of the one `distance` before it, and overshoots up to 48.
///
/// A load that spans several recent stores waits for all of them to reach the cache. Far enough back there are none, and one
/// wide copy for every length spares a jump that is hard to predict; near by, loads are no wider than need be.
///
/// # Safety
///
/// `distance` is at least 1 and as many bytes before `to` are readable; 48 from `to` on are writable.
#[inline(always)]
unsafe fn copy_short_match(to: *mut u8, distance: usize, length: usize) {
    // SAFETY: nothing is loaded from beyond what its step has reached, as a step is never longer than the distance, and
    // nothing stored from 48 on: the loops overshoot by at most 7.
    unsafe {
        let from = to.sub(distance);
        if distance >= 32 {
            copy16(from, to);
            if length > 16 {
                copy16(from.add(16), to.add(16));
                if length > 32 {
                    copy16(from.add(32), to.add(32));
                }
            }
        } else if length <= 8 && distance >= 8 {
            let tail = length.max(4) - 4;
            let (first, second) = (load32(from), load32(from.add(tail)));
            store32(first, to);
            store32(second, to.add(tail));
        } else if distance >= 16 && length <= 16 {
            // Index entries: each repeats part of the one just written, behind which other stores followed.
            copy9to16(from, to, length);
        } else if distance >= 16 {
            copy16(from, to);
            copy16(from.add(16), to.add(16));
            copy16(from.add(32), to.add(32));
        } else {
            copy_close(to, distance, length);
        }
    }
}

/// Writes `length` bytes at `to`, each a copy of the one `distance` before it, and overshoots by up to 31.
///
/// # Safety
///
/// `distance` is at least 1 and as many bytes before `to` are readable; `length + 31` from `to` on are writable.
#[inline(always)]
unsafe fn copy_long_match(to: *mut u8, distance: usize, length: usize) {
    // SAFETY: a step is never longer than the distance, and overshoots by at most 31. Its two halves are copied one after
    // the other, as the second may begin with what the first wrote.
    unsafe {
        if distance >= 16 {
            let from = to.sub(distance);
            for done in (0..length).step_by(32) {
                copy16(from.add(done), to.add(done));
                copy16(from.add(done + 16), to.add(done + 16));
            }
        } else {
            copy_close(to, distance, length);
        }
    }
}

/// Writes `length` bytes at `to`, each a copy of the one `distance < 16` before it, and overshoots by up to 7.
///
/// # Safety
///
/// `distance` is at least 1 and as many bytes before `to` are readable; `length + 7`, and 8, from `to` on are writable.
#[inline(always)]
unsafe fn copy_close(to: *mut u8, distance: usize, length: usize) {
    // SAFETY: the steps begin before `length` and store eight bytes. From a distance of 8, a step loads only what was there
    // before it; below 8, the one load may reach up to seven bytes on from `to`, which are the block's, and ignores them.
    unsafe {
        let from = to.sub(distance);
        if distance >= 8 {
            for done in (0..length).step_by(8) {
                store64(load64(from.add(done)), to.add(done));
            }
        } else {
            let (pattern, step) = repeat_in_word(load64(from), distance);
            for done in (0..length).step_by(step) {
                store64(pattern, to.add(done));
            }
        }
    }
}

/// The word's low `distance` bytes, 1 to 7, repeated; and how many of the eight are whole repetitions.
#[inline(always)]
fn repeat_in_word(word: u64, distance: usize) -> (u64, usize) {
    /// A one wherever a repetition begins.
    const ONES: [u64; 8] = {
        let mut ones = [0; 8];
        let mut distance = 1;
        while distance < 8 {
            let mut at = 0;
            while at < 8 {
                ones[distance] |= 1 << (8 * at);
                at += distance;
            }
            distance += 1;
        }
        ones
    };
    let unit = word & ((1 << (8 * distance)) - 1);
    (unit.wrapping_mul(ONES[distance]), 8 - 8 % distance)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, any, prop, prop_assert, prop_assert_eq, proptest};

    use super::super::samples::{self, Random, lzokay};
    use super::super::{Compressed, Compressor, Level};
    use super::{DecompressError, decompress};

    /// Decompresses into `size` bytes with a guard on either side, whatever comes of it.
    fn guarded(stream: &[u8], size: usize) -> Result<Vec<u8>, DecompressError> {
        const GUARD: usize = 64;
        let mut buffer = vec![0xa5; GUARD + size + GUARD];
        // An exact copy of the stream, so that a sanitizer sees reads beyond it.
        let stream = stream.to_vec().into_boxed_slice();
        let outcome = decompress(&stream, &mut buffer[GUARD..GUARD + size]);
        assert!(buffer[..GUARD].iter().chain(&buffer[GUARD + size..]).all(|byte| *byte == 0xa5), "wrote outside");
        buffer.truncate(GUARD + size);
        buffer.drain(..GUARD);
        outcome.map(|()| buffer)
    }

    fn streams() -> Vec<(String, Vec<u8>, Vec<u8>)> {
        let mut streams = Vec::new();
        for level in [Level::Fast, Level::Best] {
            let mut compressor = Compressor::with_level(level);
            for (name, block) in samples::blocks() {
                if level == Level::Best && block.len() > 70_000 {
                    continue;
                }
                let mut stream = Vec::new();
                if let Compressed::Stream(_) = compressor.compress(&block, &mut stream) {
                    streams.push((name, stream, block));
                }
            }
        }
        streams
    }

    /// Acceptance vector 10 of the WAL-E format: lzop's own block of 1000 zero bytes.
    #[test]
    fn decodes_the_zeros_of_lzop() {
        let stream = b"\x02\0\0\0\0\0\x20\0\0\0\xb6\x10\0\x0c\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x11\0\0";
        assert_eq!(guarded(stream, 1000), Ok(vec![0; 1000]));
    }

    /// Acceptance vector 11 of the WAL-E format: lzop's own block of text.
    #[test]
    fn decodes_the_text_of_lzop() {
        let stream = b"\0\x04WAL-E interop vector.  \0\x74\x54\0\x0bterop vector. \x11\0\0";
        assert_eq!(guarded(stream, 440), Ok(b"WAL-E interop vector. ".repeat(20)));
    }

    #[test]
    fn decodes_the_empty_stream() {
        assert_eq!(guarded(&[0x11, 0, 0], 0), Ok(Vec::new()));
    }

    #[test]
    fn decodes_every_form_of_instruction() {
        for seed in 0..400 {
            let (stream, plain) = samples::instructions(&mut Random::new(seed), 1 + seed as usize * 3);
            assert_eq!(lzokay(&stream).expect("lzokay takes it").0, plain, "seed {seed}");
            assert!(guarded(&stream, plain.len()).as_ref() == Ok(&plain), "seed {seed}");
        }
    }

    #[test]
    fn repeats_every_distance_for_every_length() {
        for distance in 1..=80 {
            for length in 3..=400 {
                // Enough on either side of the match for the wide copies.
                let literals: Vec<u8> = (0..238).map(|index| index as u8).collect();
                let mut stream = vec![255];
                stream.extend(&literals);
                if length <= 33 {
                    stream.push(0x20 | (length - 2) as u8);
                } else {
                    stream.push(0x20);
                    stream.extend(std::iter::repeat_n(0, (length - 34) / 255));
                    stream.push(((length - 34) % 255 + 1) as u8);
                }
                stream.extend((((distance - 1) << 2) as u16).to_le_bytes());
                stream.push(238 - 18);
                stream.splice(stream.len() - 1.., [0, 238 - 18]);
                stream.extend(&literals);
                stream.extend([0x11, 0, 0]);
                let mut plain = literals.clone();
                (0..length).for_each(|_| plain.push(plain[plain.len() - distance]));
                plain.extend(&literals);
                assert!(guarded(&stream, plain.len()).as_ref() == Ok(&plain), "distance {distance} length {length}");
            }
        }
    }

    #[test]
    fn refuses_every_truncation() {
        for (name, stream, plain) in streams().iter().filter(|(_, stream, _)| stream.len() < 3000) {
            for end in 0..stream.len() {
                assert!(guarded(&stream[..end], plain.len()).is_err(), "{name} accepted at {end} of {}", stream.len());
            }
        }
    }

    #[test]
    fn refuses_every_other_size() {
        for (name, stream, plain) in streams().iter().filter(|(_, _, plain)| plain.len() < 3000) {
            for size in (0..plain.len()).chain(plain.len() + 1..plain.len() + 200) {
                let error = guarded(stream, size).expect_err(name);
                let expected = if size < plain.len() {
                    matches!(error, DecompressError::OutputOverrun { .. })
                } else {
                    let at = stream.len() - 3;
                    error == DecompressError::OutputShort { at, produced: plain.len() }
                };
                assert!(expected, "{name} into {size} of {}: {error}", plain.len());
            }
        }
    }

    #[test]
    fn refuses_bytes_after_the_end() {
        for (name, mut stream, plain) in streams().into_iter().filter(|(_, stream, _)| stream.len() < 3000) {
            let at = stream.len();
            for _ in 0..100 {
                stream.push(0);
                assert_eq!(guarded(&stream, plain.len()), Err(DecompressError::NotConsumed { at }), "{name}");
            }
        }
    }

    #[test]
    fn says_what_is_wrong_and_where() {
        let cases: [(&[u8], usize, DecompressError); 12] = [
            (&[], 0, DecompressError::InputOverrun { at: 0 }),
            (&[21, 1, 2, 3], 4, DecompressError::InputOverrun { at: 0 }),
            (&[21, 1, 2, 3, 4], 4, DecompressError::InputOverrun { at: 5 }),
            (&[21, 1, 2, 3, 4, 0x11, 0], 4, DecompressError::InputOverrun { at: 5 }),
            (&[21, 1, 2, 3, 4, 0x20, 0, 0], 9, DecompressError::InputOverrun { at: 5 }),
            (&[0, 0, 0, 0], 9, DecompressError::InputOverrun { at: 0 }),
            (&[21, 1, 2, 3, 4, 0x11, 0, 0], 3, DecompressError::OutputOverrun { at: 0 }),
            (&[21, 1, 2, 3, 4, 0x40, 0, 0x11, 0, 0], 6, DecompressError::OutputOverrun { at: 5 }),
            (
                &[21, 1, 2, 3, 4, 0x50, 0, 0x11, 0, 0],
                7,
                DecompressError::LookbehindOverrun { at: 5, distance: 5, available: 4 },
            ),
            (&[0x12, 0, 0], 1, DecompressError::InputOverrun { at: 2 }),
            (&[21, 1, 2, 3, 4, 0x12, 0, 0], 4, DecompressError::BadEndMarker { at: 5 }),
            (&[21, 1, 2, 3, 4, 0x11, 0, 0, 0], 4, DecompressError::NotConsumed { at: 8 }),
        ];
        for (stream, size, error) in cases {
            assert_eq!(guarded(stream, size), Err(error), "{stream:x?} into {size}");
        }
    }

    /// A length of nothing but zero bytes ends with the input, at any input size, and never overflows.
    #[test]
    fn survives_endless_extensions() {
        for opcode in [0, 0x10, 0x18, 0x20] {
            for zeros in [0, 1, 2, 64, 1000, 1 << 20] {
                let mut stream = vec![21, 1, 2, 3, 4];
                if opcode == 0 {
                    stream = vec![0];
                } else {
                    stream.push(opcode);
                }
                stream.extend(std::iter::repeat_n(0, zeros));
                assert!(guarded(&stream, 100).is_err());
                stream.extend([255, 0, 0]);
                assert!(guarded(&stream, 100).is_err());
            }
        }
    }

    /// Same verdict as lzokay, and the same bytes; the one difference, bytes behind the end marker, is lzokay's leniency.
    fn agrees_with_lzokay(stream: &[u8], sizes: &[usize]) {
        match lzokay(stream) {
            Some((plain, read)) => {
                if read == stream.len() {
                    assert!(guarded(stream, plain.len()).as_ref() == Ok(&plain), "differs: {stream:x?}");
                } else {
                    assert_eq!(guarded(stream, plain.len()), Err(DecompressError::NotConsumed { at: read }));
                }
            }
            None => {
                for size in sizes {
                    assert!(guarded(stream, *size).is_err(), "accepted: {stream:x?}");
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1500) })]

        #[test]
        fn any_bytes_agree_with_lzokay(stream in prop::collection::vec(any::<u8>(), 0..400)) {
            agrees_with_lzokay(&stream, &[0, 1, 100, 5000]);
        }

        #[test]
        fn damaged_streams_agree_with_lzokay(
            seed in any::<u64>(),
            count in 1..60usize,
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4u8), 0..4),
        ) {
            let (mut stream, plain) = samples::instructions(&mut Random::new(seed), count);
            for (index, byte, kind) in damage {
                let at = index.index(stream.len());
                match kind {
                    0 => stream[at] = byte,
                    1 => stream[at] ^= 1 << (byte & 7),
                    2 => stream.insert(at, byte),
                    _ => { stream.remove(at); }
                }
                if stream.is_empty() {
                    break;
                }
            }
            agrees_with_lzokay(&stream, &[plain.len(), plain.len() + 1, plain.len() * 2 + 100]);
        }

        #[test]
        fn damaged_blocks_agree_with_lzokay(
            words in prop::collection::vec(0..200u8, 1..2000),
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        ) {
            let block: Vec<u8> = words.iter().flat_map(|word| [b'w', word / 20, *word, 0]).collect();
            let mut stream = Vec::new();
            let compressed = Compressor::new().compress(&block, &mut stream);
            if let Compressed::Stream(length) = compressed {
                prop_assert_eq!(length, stream.len());
                prop_assert!(guarded(&stream, block.len()).as_ref() == Ok(&block));
                for (index, byte) in flips {
                    let at = index.index(stream.len());
                    stream[at] = byte;
                }
                agrees_with_lzokay(&stream, &[block.len(), block.len() + 300]);
            }
        }
    }
}
