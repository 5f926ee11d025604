//! The segments that replay asks for in vain, and since when: more than one where timelines part, since the server then
//! looks for the next segment on each of them.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::formats::wal_name::SegmentName;

/// The most that are remembered. A server knows fewer timelines that its next segment may be on.
const MAX: usize = 16;

/// What the archive did not hold when replay needed it, since replay last went on.
#[derive(Debug, Default)]
pub(super) struct Missed(BTreeMap<SegmentName, Instant>);

impl Missed {
    /// Replay needs `name`, and the archive does not hold it.
    pub(super) fn add(&mut self, name: SegmentName) {
        if self.0.len() < MAX {
            self.0.entry(name).or_insert_with(Instant::now);
        }
    }

    /// Replay has gone on.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }

    pub(super) fn contains(&self, name: SegmentName) -> bool {
        self.0.contains_key(&name)
    }

    /// Those that have been missed for at least `time`.
    pub(super) fn for_at_least(&self, time: Duration) -> impl Iterator<Item = SegmentName> {
        self.0.iter().filter(move |(_, since)| since.elapsed() >= time).map(|(name, _)| *name)
    }
}
