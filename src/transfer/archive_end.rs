//! How far an archive reaches beyond a segment, by a few listings: for estimates and for gaps, never for "not there".

use crate::formats::key::Layout;
use crate::formats::timeline_history::TimelineHistory;
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

/// The first segment after `absent` that the archive holds on one of the timelines that come after its own by `history`,
/// if `absent` is needed on its own.
pub async fn next_on_later_timelines(
    store: &dyn Store,
    layout: &Layout,
    absent: SegmentName,
    history: &TimelineHistory,
    size: SegmentSize,
) -> storage::Result<Option<SegmentName>> {
    for timeline in history.after(absent, size) {
        if let Some(next) = next_after(store, layout, absent.on_timeline(timeline)).await? {
            return Ok(Some(next));
        }
    }
    Ok(None)
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

    #[tokio::test]
    async fn before_a_switch_later_timelines_show_what_comes_after_a_gap() {
        let (store, layout) = archive(3..5);
        let history = TimelineHistory::parse(3, "1\t0/6800000\t\n2\t0/8800000\t\n").unwrap();
        let after = async |segment| next_on_later_timelines(&store, &layout, segment, &history, SIZE).await.unwrap();
        assert_eq!(after(name(1, 5)).await, None, "nothing comes after it");
        store.overwrite(&layout.wal(&name(3, 9).to_string()), "x");
        assert_eq!(after(name(1, 5)).await, Some(name(3, 9)));
        store.overwrite(&layout.wal(&name(2, 6).to_string()), "x");
        assert_eq!(after(name(1, 5)).await, Some(name(2, 6)));
        // it may be on timeline 2, and if it is not, that is asked for as well
        assert_eq!(after(name(1, 6)).await, None);
        assert_eq!(after(name(2, 6)).await, Some(name(3, 9)));
        assert_eq!(after(name(3, 8)).await, None);
    }
}
