//! Whether an archive goes on on a timeline that began later: its source has failed over.

use crate::formats::key::Layout;
use crate::formats::wal_name::WalName;
use crate::storage::{self, Store};

/// A timeline above `timeline` that the archive has a history or WAL of; none when there is none. One listing tells, since
/// names begin with their timeline.
///
/// # Errors
///
/// When the store fails.
pub async fn later_timeline(store: &dyn Store, layout: &Layout, timeline: u32) -> storage::Result<Option<u32>> {
    let Some(next) = timeline.checked_add(1) else { return Ok(None) };
    let mut after = layout.wal_timeline(next);
    loop {
        let page = store.list(&layout.wal_directory(), Some(&after)).await?;
        let found = page.objects.iter().find_map(|row| layout.wal_name(&row.key)).map(|name| timeline_of(&name));
        match page.objects.last().filter(|_| page.more && found.is_none()) {
            // only what is no WAL so far
            Some(last) => after.clone_from(&last.key),
            None => return Ok(found),
        }
    }
}

fn timeline_of(name: &WalName) -> u32 {
    match name {
        WalName::History { timeline } => *timeline,
        WalName::Segment(segment) | WalName::Partial(segment) | WalName::BackupHistory { segment, .. } => {
            segment.timeline()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryStore;

    #[tokio::test]
    async fn a_history_or_a_segment_shows_a_later_timeline() {
        for (names, expected) in [
            (&["000000010000000000000003", "00000002.history", "000000020000000000000004"][..], [Some(2), None]),
            (&["000000010000000000000003", "00000003.history"], [Some(3), Some(3)]),
            (&["000000020000000000000004.partial", "0000000A0000000000000005"], [Some(2), Some(10)]),
            (&["000000010000000000000003", "00000001.history", "0000000100000000000000FF"], [None, None]),
        ] {
            let (store, layout) = (MemoryStore::new(), Layout::new("p/"));
            for name in names {
                store.overwrite(&layout.wal(name), "x");
            }
            store.overwrite("p/wal_005/00000001.of-another", "x");
            store.overwrite("p/wal_005/00000002.of-another", "x");
            store.overwrite("p/wal_006/00000002.history.lzo", "x");
            for (timeline, expected) in [1, 2].into_iter().zip(expected) {
                let found = later_timeline(&store, &layout, timeline).await.unwrap();
                assert_eq!(found, expected, "above {timeline} in {names:?}");
            }
            assert_eq!(later_timeline(&store, &layout, u32::MAX).await.unwrap(), None);
        }
    }
}
