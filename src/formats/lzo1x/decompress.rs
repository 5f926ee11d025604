//! Decompression of one LZO1X block into a buffer of exactly its size.
//!
//! Two decoders share one position. The *careful* one is safe code, takes one instruction at a time and alone decides what
//! is an error. The *fast* one copies in wide steps that overshoot, and therefore runs only while both buffers have room
//! for the worst short instruction pair; whatever it does not like (an extension, a distance it cannot prove, little room
//! left) it leaves untouched for the careful one. So the fast decoder can only be slow or right, never wrong in its own way.

use std::ptr;

use super::instruction::{
    AFTER_RUN, FAR_BASE, FAR_MAX_LENGTH, FIRST_RUN_BASE, MATCH_MIN, MATCHES, MIDDLE_MAX_LENGTH, MIDDLE_MIN, NEAR_MIN,
    RUN_MAX_LENGTH,
};

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
    /// The end marker carries a length no compressor writes.
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

/// Compressed bytes that must remain for the fast decoder to take a short literal run and a short match.
///
/// It reads 32 bytes behind a run's opcode; or, behind a run of at most 19 bytes, a match of 3 and four trailing literals.
const READ_ROOM: usize = 40;
/// Room that must remain in the block for the fast decoder to take a short literal run and a short match.
///
/// A run is at most 18 bytes long. The match behind it is at most 33 long, copied as 48, and followed by four bytes of
/// which at most three count.
const WRITE_ROOM: usize = 18 + 48 + 4;

impl Block<'_> {
    /// Decodes short instructions while there is room, and stops between two instructions.
    #[inline(never)]
    fn run_fast(&mut self) {
        if self.src.len() - self.read < READ_ROOM || self.dst.len() - self.written < WRITE_ROOM {
            return;
        }
        let src = self.src.as_ptr();
        let dst = self.dst.as_mut_ptr();
        let read_last = self.src.len() - READ_ROOM;
        let write_last = self.dst.len() - WRITE_ROOM;
        let mut read = self.read;
        let mut written = self.written;
        let mut literals = self.literals;

        while read <= read_last && written <= write_last {
            // SAFETY: `read <= read_last`, so READ_ROOM bytes are readable.
            let mut word = unsafe { load(src.add(read)) };
            let mut index = (word & 0xff) as usize;
            if index < MATCH_MIN as usize && literals != Literals::Few {
                if literals == Literals::None {
                    let (count, size) = if index != 0 {
                        // SAFETY: 1 + 32 <= READ_ROOM and 32 <= WRITE_ROOM.
                        unsafe {
                            copy16(src.add(read + 1), dst.add(written));
                            copy16(src.add(read + 17), dst.add(written + 16));
                        }
                        (index + 3, 1)
                    } else {
                        let extension = (word >> 8 & 0xff) as usize;
                        let count = RUN_MAX_LENGTH + extension;
                        // The copy below writes at most 31 bytes too many, within WRITE_ROOM and READ_ROOM.
                        if extension == 0 || read + 2 + count > read_last || written + count > write_last {
                            break;
                        }
                        let mut done = 0;
                        while done < count {
                            // SAFETY: `done + 32 <= count + 31`, and the room kept behind `count` is more than that.
                            unsafe {
                                copy16(src.add(read + 2 + done), dst.add(written + done));
                                copy16(src.add(read + 18 + done), dst.add(written + done + 16));
                            }
                            done += 32;
                        }
                        (count, 2)
                    };
                    read += size + count;
                    written += count;
                    literals = Literals::Run;
                    if size == 2 {
                        continue;
                    }
                    // SAFETY: a short run takes at most 19 of the READ_ROOM bytes.
                    word = unsafe { load(src.add(read)) };
                    index = (word & 0xff) as usize;
                    if index < MATCH_MIN as usize {
                        index += AFTER_RUN;
                    }
                } else {
                    index += AFTER_RUN;
                }
            }

            let entry = &MATCHES[index];
            let operand = (word >> 8) as u16 & entry.mask;
            let distance = (u32::from(operand) << 3 >> entry.shift) as usize + usize::from(entry.base);
            let length = usize::from(entry.length);
            if distance > written || distance == FAR_BASE || length == 0 {
                break;
            }
            let trailing = (word >> entry.literals_shift & 3) as usize;
            // SAFETY: `distance <= written`; the room left behind `written` is at least 48 + 4 bytes.
            unsafe { copy_match(dst.add(written), distance, length) };
            read += usize::from(entry.size);
            written += length;
            // SAFETY: at most 19 + 3 bytes were taken of READ_ROOM, and 18 + 33 of WRITE_ROOM.
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

#[inline(always)]
unsafe fn load(from: *const u8) -> u32 {
    // SAFETY: the caller vouches for four readable bytes.
    u32::from_le(unsafe { from.cast::<u32>().read_unaligned() })
}

#[inline(always)]
unsafe fn copy16(from: *const u8, to: *mut u8) {
    // SAFETY: the caller vouches for 16 bytes on either side; the value passes through a register, so they may overlap.
    unsafe { to.cast::<u128>().write_unaligned(from.cast::<u128>().read_unaligned()) }
}

#[inline(always)]
unsafe fn copy8(from: *const u8, to: *mut u8) {
    // SAFETY: the caller vouches for 8 bytes on either side; the value passes through a register, so they may overlap.
    unsafe { to.cast::<u64>().write_unaligned(from.cast::<u64>().read_unaligned()) }
}

/// Writes at least `length <= 33` bytes at `to`, each a copy of the one `distance` before it, and at most 48.
#[inline(always)]
unsafe fn copy_match(to: *mut u8, distance: usize, length: usize) {
    // SAFETY: the caller vouches for `distance` bytes before `to` and 48 writable bytes from `to` on. No load reaches
    // beyond what is then written: with a distance of at least the step, a step reads only bytes before its own.
    unsafe {
        let from = to.sub(distance);
        if distance >= 16 {
            copy16(from, to);
            copy16(from.add(16), to.add(16));
            if length > 32 {
                copy16(from.add(32), to.add(32));
            }
        } else if distance >= 8 {
            copy8(from, to);
            copy8(from.add(8), to.add(8));
            let mut done = 16;
            while done < length {
                copy8(from.add(done), to.add(done));
                done += 8;
            }
        } else {
            let (pattern, step) = pattern(from, distance);
            let mut done = 0;
            while done < length {
                to.add(done).cast::<u64>().write_unaligned(pattern);
                done += step;
            }
        }
    }
}

/// Eight bytes that repeat the `distance < 8` bytes at `from`, and how many of them are whole repetitions.
#[inline(always)]
unsafe fn pattern(from: *const u8, distance: usize) -> (u64, usize) {
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
    // SAFETY: the caller vouches for eight readable bytes: the distance's, and the ones about to be written.
    let bytes = unsafe { u64::from_le(from.cast::<u64>().read_unaligned()) };
    let unit = bytes & ((1 << (8 * distance)) - 1);
    (unit.wrapping_mul(ONES[distance & 7]).to_le(), 8 - 8 % distance)
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
