//! Buffers: vectors whose memory is used again, since fresh memory costs a page fault for every 4 KiB, a tenth of what it
//! costs to compress them.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use crate::formats::lzop::BLOCK_SIZE;

/// The plain bytes that one task compresses: four blocks, so that a task costs little beside its work.
pub(super) const CHUNK_SIZE: usize = 4 * BLOCK_SIZE;

/// The pieces that plain bytes are read and compressed in: plain bytes, or what they are compressed to while the last block
/// is at its longest. Kept are as many as two files have under way on a machine with several cores.
pub(super) static CHUNKS: Buffers = Buffers::new(CHUNK_SIZE + CHUNK_SIZE / 8, 32);

/// Buffers of one capacity.
pub(super) struct Buffers {
    capacity: usize,
    max_unused: usize,
    unused: Mutex<Vec<Vec<u8>>>,
}

impl Buffers {
    /// Buffers with room for `capacity` bytes, of which at most `max_unused` are kept when they are not in use.
    pub(super) const fn new(capacity: usize, max_unused: usize) -> Self {
        Self { capacity, max_unused, unused: Mutex::new(Vec::new()) }
    }

    /// An empty buffer.
    pub(super) fn empty(&self) -> Vec<u8> {
        let used_before = self.unused.lock().unwrap_or_else(PoisonError::into_inner).pop();
        used_before.unwrap_or_else(|| Vec::with_capacity(self.capacity))
    }

    /// The buffer as shared bytes, whose memory is used again when the last of them is dropped.
    pub(super) fn share(&'static self, buffer: Vec<u8>) -> Bytes {
        Bytes::from_owner(Shared { buffer, of: self })
    }
}

struct Shared {
    buffer: Vec<u8>,
    of: &'static Buffers,
}

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut unused = self.of.unused.lock().unwrap_or_else(PoisonError::into_inner);
        // one that had to grow is another's size
        if buffer.capacity() == self.of.capacity && unused.len() < self.of.max_unused {
            buffer.clear();
            unused.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffers_memory_comes_back_empty_and_shared_bytes_keep_it() {
        static BUFFERS: Buffers = Buffers::new(100, 1);
        let mut buffer = BUFFERS.empty();
        buffer.extend_from_slice(b"one");
        let memory = buffer.as_ptr();
        let shared = BUFFERS.share(buffer);
        let part = shared.slice(1..);
        drop(shared);
        let mut other = BUFFERS.empty();
        assert_ne!(other.as_ptr(), memory);
        other.extend_from_slice(b"two");
        assert_eq!(&part[..], b"ne");
        drop(part);
        drop(BUFFERS.share(other));
        let again = BUFFERS.empty();
        assert_eq!((again.as_ptr(), again.len(), again.capacity()), (memory, 0, 100));
        assert!(BUFFERS.unused.lock().unwrap().is_empty());
    }

    #[test]
    fn one_that_grew_is_not_kept() {
        static BUFFERS: Buffers = Buffers::new(100, 1);
        drop(BUFFERS.share(vec![0; 101]));
        assert!(BUFFERS.unused.lock().unwrap().is_empty());
    }
}
