//! The parts of an upload, as the stores that keep them account for them.

use std::collections::BTreeMap;

/// Part number → where the part lies.
pub(super) type Parts = BTreeMap<u32, Span>;

/// Where a part lies in its object, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// The object's size, if parts 1, 2, … follow each other without a gap; else what is wrong.
pub(super) fn total_size(parts: &Parts) -> Result<u64, String> {
    let mut end = 0;
    for (expected, (&number, span)) in (1..).zip(parts) {
        if number != expected || span.offset != end {
            return Err(format!(
                "part {expected} should begin at byte {end}, but part {number} at byte {} comes next",
                span.offset
            ));
        }
        end += span.length;
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(spans: &[(u32, u64, u64)]) -> Parts {
        spans.iter().map(|&(number, offset, length)| (number, Span { offset, length })).collect()
    }

    #[test]
    fn only_parts_without_a_gap_make_an_object() {
        assert_eq!(total_size(&parts(&[])), Ok(0));
        assert_eq!(total_size(&parts(&[(2, 5, 3), (1, 0, 5)])), Ok(8));
        for gap in
            [&[(2, 0, 5)][..], &[(1, 1, 5)], &[(1, 0, 5), (3, 5, 1)], &[(1, 0, 5), (2, 6, 1)], &[(1, 0, 5), (2, 4, 1)]]
        {
            assert!(total_size(&parts(gap)).is_err(), "accepted {gap:?}");
        }
    }
}
