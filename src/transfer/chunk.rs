//! Chunks: the pieces that plain bytes are read and compressed in. Their memory is used again, since fresh memory costs a page
//! fault for every 4 KiB, a tenth of what it costs to compress them.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use crate::formats::lzop::BLOCK_SIZE;

/// The plain bytes that one task compresses: four blocks, so that a task costs little beside its work.
pub(super) const CHUNK_SIZE: usize = 4 * BLOCK_SIZE;

/// What a chunk's memory holds: its plain bytes, or what they are compressed to while the last block is at its longest.
const CAPACITY: usize = CHUNK_SIZE + CHUNK_SIZE / 8;

/// How many unused ones are kept: as many as two files have under way on a machine with several cores.
const MAX_UNUSED: usize = 32;

static UNUSED: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// An empty vector with room for a chunk.
pub(super) fn empty() -> Vec<u8> {
    let used_before = UNUSED.lock().unwrap_or_else(PoisonError::into_inner).pop();
    used_before.unwrap_or_else(|| Vec::with_capacity(CAPACITY))
}

/// The chunk as shared bytes, whose memory is used again when the last of them is dropped.
pub(super) fn share(chunk: Vec<u8>) -> Bytes {
    Bytes::from_owner(Chunk(chunk))
}

struct Chunk(Vec<u8>);

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let mut chunk = std::mem::take(&mut self.0);
        let mut unused = UNUSED.lock().unwrap_or_else(PoisonError::into_inner);
        if chunk.capacity() == CAPACITY && unused.len() < MAX_UNUSED {
            chunk.clear();
            unused.push(chunk);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunks_memory_comes_back_empty_and_shared_bytes_keep_it() {
        let mut chunk = empty();
        chunk.extend_from_slice(b"one");
        let shared = share(chunk);
        let part = shared.slice(1..);
        drop(shared);
        let mut other = empty();
        other.extend_from_slice(b"two");
        assert_eq!((&part[..], other.capacity()), (&b"ne"[..], CAPACITY));
        drop((part, share(other)));
        assert!(empty().is_empty());
    }
}
