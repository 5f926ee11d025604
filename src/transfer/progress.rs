//! Counters that a long transfer moves and its watcher reads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What a transfer has done so far. Each number only grows, but for [`Self::set_total`].
#[derive(Debug, Default)]
pub struct Progress {
    total_bytes: AtomicU64,
    plain_bytes: AtomicU64,
    stored_bytes: AtomicU64,
    parts_done: AtomicU64,
    parts_total: AtomicU64,
    waited_for_store: AtomicU64,
    waited_for_codec: AtomicU64,
    waited_for_disk: AtomicU64,
}

/// Which stage of a pipeline was waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The store and the network to it.
    Store,
    /// Compression or decompression.
    Codec,
    /// The local disk.
    Disk,
}

impl Progress {
    /// Says how many plain bytes there will be.
    pub fn set_total(&self, bytes: u64) {
        self.total_bytes.store(bytes, Ordering::Relaxed);
    }

    /// How many plain bytes there will be; 0 when that is not known.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes.load(Ordering::Relaxed)
    }

    /// Says how many partitions there will be.
    pub fn set_parts_total(&self, parts: u64) {
        self.parts_total.store(parts, Ordering::Relaxed);
    }

    /// Partitions done and in all; 0 in all when that is not known.
    pub fn parts(&self) -> (u64, u64) {
        (self.parts_done.load(Ordering::Relaxed), self.parts_total.load(Ordering::Relaxed))
    }

    /// Counts one partition as done.
    pub fn part_done(&self) {
        self.parts_done.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts bytes of file contents read or written.
    pub fn add_plain(&self, bytes: u64) {
        self.plain_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes of file contents so far.
    pub fn plain_bytes(&self) -> u64 {
        self.plain_bytes.load(Ordering::Relaxed)
    }

    /// Counts bytes that went to or came from the store.
    pub fn add_stored(&self, bytes: u64) {
        self.stored_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes to or from the store so far.
    pub fn stored_bytes(&self) -> u64 {
        self.stored_bytes.load(Ordering::Relaxed)
    }

    /// Counts time in which the pipeline had nothing to do but wait for `stage`.
    pub fn waited(&self, stage: Stage, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.counter(stage).fetch_add(micros, Ordering::Relaxed);
    }

    /// The stage that was waited for the longest: the bottleneck.
    pub fn bottleneck(&self) -> Option<Stage> {
        [Stage::Store, Stage::Codec, Stage::Disk]
            .into_iter()
            .map(|stage| (self.counter(stage).load(Ordering::Relaxed), stage))
            .filter(|(micros, _)| *micros > 0)
            .max_by_key(|(micros, _)| *micros)
            .map(|(_, stage)| stage)
    }

    fn counter(&self, stage: Stage) -> &AtomicU64 {
        match stage {
            Stage::Store => &self.waited_for_store,
            Stage::Codec => &self.waited_for_codec,
            Stage::Disk => &self.waited_for_disk,
        }
    }
}
