//! What the prefetcher asks the archive besides segments: how far it reaches, and whether its end is a gap.

use crate::formats::key::Layout;
use crate::formats::wal_name::{SegmentName, SegmentSize};
use crate::storage::Store;
use crate::transfer::archive_end::{archive_end, next_after, next_on_later_timelines};
use crate::transfer::wal_download::archived_history;

/// What the archive said. That it could not be asked says nothing, and whoever fetches hears of it anyway.
pub(super) enum Finding {
    /// Its last segment on a timeline; none when it would not say.
    End(Option<SegmentName>),
    /// It lacks one and holds a later one.
    Gap { absent: SegmentName, next: SegmentName },
    /// Nothing worth telling.
    Nothing,
}

impl Finding {
    /// The last segment from `position` on.
    pub(super) async fn end(store: &dyn Store, layout: &Layout, position: SegmentName, size: SegmentSize) -> Self {
        Self::End(archive_end(store, layout, position, size).await.unwrap_or_default())
    }

    /// Whether anything follows `absent`, on its own timeline or on those that come after it.
    pub(super) async fn gap(store: &dyn Store, layout: &Layout, absent: SegmentName, size: SegmentSize) -> Self {
        let next = match next_after(store, layout, absent).await {
            Ok(None) => next_after_a_switch(store, layout, absent, size).await,
            found => found.unwrap_or_default(),
        };
        next.map_or(Self::Nothing, |next| Self::Gap { absent, next })
    }
}

/// By the history of the latest timeline, which is found as the server finds it: the last of those without a gap.
async fn next_after_a_switch(
    store: &dyn Store,
    layout: &Layout,
    absent: SegmentName,
    size: SegmentSize,
) -> Option<SegmentName> {
    let mut latest = None;
    for timeline in absent.timeline().saturating_add(1)..=u32::MAX {
        match archived_history(store, layout, timeline).await.ok()? {
            Some(history) => latest = Some(history),
            None => break,
        }
    }
    next_on_later_timelines(store, layout, absent, &latest?, size).await.ok()?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::lzo1x::Level;
    use crate::formats::lzop::{BlockEncoder, TERMINATOR, encode_header};
    use crate::storage::MemoryStore;

    #[tokio::test]
    async fn a_gap_before_a_switch_is_one_by_the_latest_timelines_history() {
        let (store, layout) = (MemoryStore::new(), Layout::new("p/"));
        let name = |timeline: u32, number: u32| format!("{timeline:08X}00000000{number:08X}").parse().unwrap();
        let history = |timeline: u32, text: &str| {
            let mut object = encode_header(0, 0).to_vec();
            BlockEncoder::new(Level::Fast).encode(text.as_bytes(), &mut object);
            object.extend(TERMINATOR);
            store.overwrite(&layout.wal(&format!("{timeline:08X}.history")), object);
        };
        let next = async |absent| match Finding::gap(&store, &layout, absent, SegmentSize::DEFAULT).await {
            Finding::Gap { next, .. } => Some(next),
            _ => None,
        };
        store.overwrite(&layout.wal("000000020000000000000008"), "x");
        assert_eq!(next(name(1, 5)).await, None, "nothing tells that timeline 2 comes after 1");
        history(2, "1\t0/7800000\t\n");
        assert_eq!(next(name(1, 5)).await, Some(name(2, 8)));
        assert_eq!(next(name(1, 7)).await, None);
        assert_eq!(next(name(2, 7)).await, Some(name(2, 8)));
        // a detour: the latest timeline left 1 earlier
        history(3, "1\t0/5800000\t\n");
        assert_eq!(next(name(1, 5)).await, None);
    }
}
