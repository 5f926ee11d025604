//! One phase of a deletion: many objects, many requests at once, and none of the next phase after a failure.

use std::pin::pin;

use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::super::{CommandError, Result};
use crate::storage::{self, Listed, StorageError, Store};

/// How many objects are deleted at once. Each is a request of its own: S3's request for many at a time has to bear a checksum
/// that S3 servers of other makes and ages disagree about, and 32 at once still delete about a thousand objects a second.
const DELETIONS_IN_FLIGHT: usize = 32;

/// After so many objects that could not be deleted a phase ends: what refuses these will refuse the rest of a million too.
const MOST_FAILURES: u64 = 1000;

/// A line in the log each time so many objects have gone.
const LOG_EVERY: u64 = 10_000;

/// Objects and what they hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// How many.
    pub objects: u64,
    /// The sum of their sizes in bytes.
    pub bytes: u64,
}

impl Tally {
    pub(super) fn add(&mut self, row: &Listed) {
        self.objects += 1;
        self.bytes += row.size;
    }
}

/// Deletes objects, or only counts them. Ends with [`Phase::finish`], which tells of failures.
pub(super) struct Phase<'a> {
    store: &'a dyn Store,
    confirmed: bool,
    tally: Tally,
    failed: u64,
    first: Option<StorageError>,
}

impl<'a> Phase<'a> {
    /// Counts only unless `confirmed`.
    pub(super) fn new(store: &'a dyn Store, confirmed: bool) -> Self {
        Self { store, confirmed, tally: Tally::default(), failed: 0, first: None }
    }

    /// Takes what `selects` of the keys below `prefix`, in their order. No more than a page of keys is in memory.
    pub(super) async fn below(&mut self, prefix: &str, mut selects: impl FnMut(&Listed) -> bool) -> Result<()> {
        let mut pages = pin!(storage::pages(self.store, prefix));
        while let Some(rows) = pages.try_next().await? {
            self.objects(rows.into_iter().filter(&mut selects)).await?;
        }
        Ok(())
    }

    /// Takes these objects, begun in this order. Goes on after a failure that may be one object's own, but not when the store
    /// cannot be reached or its credentials are wrong: each further object would wait as long.
    pub(super) async fn objects(&mut self, rows: impl Iterator<Item = Listed>) -> Result<()> {
        let (store, confirmed) = (self.store, self.confirmed);
        let delete = |row: Listed| async move {
            let deleted = if confirmed { store.delete(&row.key).await } else { Ok(()) };
            (row, deleted)
        };
        let mut deletions = stream::iter(rows).map(delete).buffer_unordered(DELETIONS_IN_FLIGHT);
        while let Some((row, deleted)) = deletions.next().await {
            let Err(failed) = deleted else {
                self.tally.add(&row);
                if confirmed && self.tally.objects.is_multiple_of(LOG_EVERY) {
                    tracing::info!("deleted {} objects, the last of them \"{}\"", self.tally.objects, row.key);
                }
                continue;
            };
            self.failed += 1;
            let is_its_own = matches!(failed.kind(), storage::Kind::Denied | storage::Kind::Other);
            tracing::debug!(error = %failed, "not deleted");
            self.first.get_or_insert(failed);
            if !is_its_own || self.failed >= MOST_FAILURES {
                return Err(self.failure().expect("something failed"));
            }
        }
        Ok(())
    }

    /// What was deleted, or would be; an error if anything was not.
    pub(super) fn finish(mut self) -> Result<Tally> {
        self.failure().map_or(Ok(self.tally), Err)
    }

    fn failure(&mut self) -> Option<CommandError> {
        let failed = self.failed;
        self.first.take().map(|first| CommandError::Undeleted { failed, source: first.into() })
    }
}
