//! What the prefetcher asks the archive besides segments: how far it reaches, and whether its end is a gap.

use crate::formats::key::Layout;
use crate::formats::wal_name::{SegmentName, SegmentSize};
use crate::storage::Store;
use crate::transfer::archive_end::{archive_end, next_after};

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

    /// Whether anything follows `absent`.
    pub(super) async fn gap(store: &dyn Store, layout: &Layout, absent: SegmentName) -> Self {
        match next_after(store, layout, absent).await {
            Ok(Some(next)) => Self::Gap { absent, next },
            _ => Self::Nothing,
        }
    }
}
