//! Whether the archive holds every segment that a base backup needs.

use std::collections::BTreeSet;

use super::Result;
use super::archive::Archive;
use crate::formats::wal_name::{SegmentName, SegmentSize};
use crate::storage::list_all;

/// The segments from `first` to `last` on one timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentRange {
    /// The first one needed.
    pub first: SegmentName,
    /// The last one needed.
    pub last: SegmentName,
    /// How large each is.
    pub size: SegmentSize,
}

impl SegmentRange {
    /// The names, each on the first timeline; none when the range is empty or impossible.
    pub(super) fn names(self) -> impl Iterator<Item = SegmentName> {
        let last = self.last.number(self.size);
        let mut next = Some(self.first).filter(|first| first.number(self.size) <= last);
        std::iter::from_fn(move || {
            let name = next?;
            next = name.next(self.size).filter(|name| name.number(self.size) <= last);
            Some(name)
        })
    }

    /// What the names of all segments in the range begin with, as far as it goes: so that a listing need not be of the
    /// whole archive.
    fn common_prefix(self) -> String {
        let (first, last) = (self.first.to_string(), self.last.to_string());
        first.chars().zip(last.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a).collect()
    }
}

/// The segments of `range` that the archive does not hold, in order. Where the cluster went from one timeline to another
/// meanwhile, a segment may be there on any timeline from the first's to the last's.
pub async fn missing(archive: &Archive, range: SegmentRange) -> Result<Vec<SegmentName>> {
    let prefix = format!("{}{}", archive.layout.wal_directory(), range.common_prefix());
    let listed = list_all(&*archive.store, &prefix).await?;
    let timelines = range.first.timeline()..=range.last.timeline();
    let there: BTreeSet<u64> = listed
        .iter()
        .filter_map(|row| archive.layout.wal_file_name(&row.key)?.parse::<SegmentName>().ok())
        .filter(|name| timelines.contains(&name.timeline()))
        .filter_map(|name| name.number(range.size))
        .collect();
    Ok(range.names().filter(|name| name.number(range.size).is_none_or(|number| !there.contains(&number))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_crosses_logs() {
        let range = |first: &str, last: &str| SegmentRange {
            first: first.parse().unwrap(),
            last: last.parse().unwrap(),
            size: SegmentSize::DEFAULT,
        };
        let across = range("0000000100000000000000FE", "000000010000000100000001");
        let names: Vec<_> = across.names().map(|name| name.to_string()).collect();
        assert_eq!(
            names,
            [
                "0000000100000000000000FE",
                "0000000100000000000000FF",
                "000000010000000100000000",
                "000000010000000100000001"
            ]
        );
        assert_eq!(across.common_prefix(), "000000010000000");
        let timelines = range("0000000100000000000000FE", "000000020000000000000100");
        assert_eq!(timelines.names().count(), 0, "no such segment at 16 MiB");
        assert_eq!(
            range("0000000100000000000000FE", "000000020000000100000000").names().count(),
            3,
            "a change of timeline"
        );
        assert_eq!(range("000000010000000000000002", "000000010000000000000001").names().count(), 0);
        assert_eq!(range("000000010000000000000002", "000000010000000000000002").names().count(), 1);
    }
}
