//! How far an archive reaches beyond a segment, by a few listings: for estimates and for gaps, never for "not there".

use crate::formats::key::Layout;
use crate::formats::wal_name::{SegmentName, SegmentSize};
use crate::storage::{self, Store, list_all};

/// The last segment on `from`'s timeline at or after `from`; none when there is none.
///
/// A segment's name begins with its timeline and its log file of 4 GiB, so one listing answers for a log file. Doubling
/// steps find one that is not there, halving ones the last that is: some twenty requests for a petabyte. A gap of a whole
/// log file may pass for the end.
pub async fn archive_end(
    store: &dyn Store,
    layout: &Layout,
    from: SegmentName,
    size: SegmentSize,
) -> storage::Result<Option<SegmentName>> {
    let first = from.log();
    let Some(mut last) = last_of(store, layout, from.timeline(), first, size).await?.filter(|last| *last >= from)
    else {
        // the log file may be at its very end
        return match first.checked_add(1) {
            Some(next) => last_of(store, layout, from.timeline(), next, size).await,
            None => Ok(None),
        };
    };
    let mut step = 1_u32;
    let mut there = first;
    let mut not_there = loop {
        let Some(log) = there.checked_add(step) else { break u32::MAX };
        match last_of(store, layout, from.timeline(), log, size).await? {
            Some(found) => (last, there, step) = (found, log, step.saturating_mul(2)),
            None => break log,
        }
    };
    while not_there - there > 1 {
        let log = there + (not_there - there) / 2;
        match last_of(store, layout, from.timeline(), log, size).await? {
            Some(found) => (last, there) = (found, log),
            None => not_there = log,
        }
    }
    Ok(Some(last))
}

/// The first segment on `absent`'s timeline that the archive holds after it, if a single listing shows one.
pub async fn next_after(
    store: &dyn Store,
    layout: &Layout,
    absent: SegmentName,
) -> storage::Result<Option<SegmentName>> {
    let prefix = layout.wal_timeline(absent.timeline());
    let page = store.list(&prefix, Some(&layout.wal(&absent.to_string()))).await?;
    Ok(page.objects.iter().find_map(|row| segment_of(layout, &row.key)))
}

async fn last_of(
    store: &dyn Store,
    layout: &Layout,
    timeline: u32,
    log: u32,
    size: SegmentSize,
) -> storage::Result<Option<SegmentName>> {
    let prefix = format!("{}{log:08X}", layout.wal_timeline(timeline));
    let rows = list_all(store, &prefix).await?;
    let segments = rows.iter().rev().filter_map(|row| segment_of(layout, &row.key));
    Ok(segments.filter(|name| name.number(size).is_some()).max())
}

fn segment_of(layout: &Layout, key: &str) -> Option<SegmentName> {
    layout.wal_file_name(key)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryStore;

    const SIZE: SegmentSize = SegmentSize::DEFAULT;

    fn archive(numbers: impl IntoIterator<Item = u32>) -> (MemoryStore, Layout) {
        let (store, layout) = (MemoryStore::new(), Layout::new("p/"));
        for number in numbers {
            store.overwrite(&layout.wal(&name(1, number).to_string()), "x");
        }
        store.overwrite(&layout.wal("00000002.history"), "x");
        store.overwrite(&layout.wal("000000010000000000000003.00000028.backup"), "x");
        (store, layout)
    }

    fn name(timeline: u32, number: u32) -> SegmentName {
        format!("{timeline:08X}{:08X}{:08X}", number / 256, number % 256).parse().unwrap()
    }

    #[tokio::test]
    async fn the_end_is_found_wherever_it_lies() {
        for last in [3, 255, 256, 257, 511, 512, 1023, 1024, 3000] {
            let (store, layout) = archive(3..=last);
            for from in [3, last / 2 + 2, last] {
                let found = archive_end(&store, &layout, name(1, from), SIZE).await.unwrap();
                assert_eq!(found, Some(name(1, last)), "from {from} to {last}");
            }
            assert_eq!(archive_end(&store, &layout, name(1, last + 1), SIZE).await.unwrap(), None);
            assert_eq!(archive_end(&store, &layout, name(2, 1), SIZE).await.unwrap(), None);
        }
    }

    #[tokio::test]
    async fn a_gap_shows_what_comes_after_it() {
        let (store, layout) = archive((3..10).chain(12..400));
        let after = async |number| next_after(&store, &layout, name(1, number)).await.unwrap();
        assert_eq!(after(10).await, Some(name(1, 12)));
        assert_eq!(after(400).await, None);
        assert_eq!(next_after(&store, &layout, name(2, 10)).await.unwrap(), None);
    }
}
