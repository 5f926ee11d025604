//! The bytes of a write, and how far a store has taken them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

/// What a write sends. Clones share how much of it was taken, so that whoever waits for the write sees it move.
#[derive(Debug, Clone)]
pub struct Payload {
    /// All of it.
    pub bytes: Bytes,
    taken: Arc<AtomicUsize>,
}

impl Payload {
    /// The most bytes that any try has sent. A try that only repeats what an earlier one had sent does not move it: a dead
    /// connection takes what the kernel buffers, each time anew.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Notes that a try has sent this many bytes.
    pub fn note_taken(&self, bytes: usize) {
        self.taken.fetch_max(bytes, Ordering::Relaxed);
    }
}

impl<B: Into<Bytes>> From<B> for Payload {
    fn from(bytes: B) -> Self {
        Self { bytes: bytes.into(), taken: Arc::default() }
    }
}
