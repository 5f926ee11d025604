//! A timeline's history, the content of its `.history` file: which timelines its WAL lies on, each up to where the next one
//! was begun (PostgreSQL's `timeline.c`).

use super::ParseError;
use super::lsn::Lsn;
use super::wal_name::{SegmentName, SegmentSize};

/// How a timeline came about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineHistory {
    timeline: u32,
    /// Oldest first: a timeline, and the position up to which it counts.
    ancestors: Vec<(u32, Lsn)>,
}

impl TimelineHistory {
    /// Reads the history of `timeline`: lines of an ancestor, the position at which the next timeline begins, and a reason.
    /// Empty lines and comments are skipped, as the server does.
    pub fn parse(timeline: u32, text: &str) -> Result<Self, ParseError> {
        let mut ancestors: Vec<(u32, Lsn)> = Vec::new();
        for line in text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let refuse = || ParseError::new("a line of a timeline's history", line);
            let mut fields = line.split_ascii_whitespace();
            let ancestor: u32 = fields.next().and_then(|field| field.parse().ok()).ok_or_else(refuse)?;
            let end: Lsn = fields.next().and_then(|field| field.parse().ok()).ok_or_else(refuse)?;
            if ancestor >= timeline || ancestors.last().is_some_and(|(last, _)| *last >= ancestor) {
                return Err(refuse());
            }
            ancestors.push((ancestor, end));
        }
        Ok(Self { timeline, ancestors })
    }

    /// The segment in which `timeline` begins, if it is this one or one of its ancestors.
    pub fn first_segment(&self, timeline: u32, size: SegmentSize) -> Option<SegmentName> {
        let mut begin = Lsn(0);
        for (ancestor, end) in &self.ancestors {
            if *ancestor == timeline {
                return Some(SegmentName::containing(timeline, begin, size));
            }
            begin = *end;
        }
        (timeline == self.timeline).then(|| SegmentName::containing(timeline, begin, size))
    }

    /// The timelines that come after `segment`'s, if `segment` is one of those from the first of its timeline up to, but not
    /// including, the one in which the next timeline begins: a server that follows this history finds it on no other
    /// timeline. Otherwise none.
    pub fn after(&self, segment: SegmentName, size: SegmentSize) -> impl Iterator<Item = u32> {
        let timeline = segment.timeline();
        let at = self.ancestors.iter().position(|(ancestor, _)| *ancestor == timeline).filter(|at| {
            let first = self.first_segment(timeline, size);
            let of_switch = SegmentName::containing(timeline, self.ancestors[*at].1, size);
            segment.number(size).is_some() && first.is_some_and(|first| (first..of_switch).contains(&segment))
        });
        let later = at.map_or(&[][..], |at| &self.ancestors[at + 1..]);
        later.iter().map(|(ancestor, _)| *ancestor).chain(at.map(|_| self.timeline))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: SegmentSize = SegmentSize::DEFAULT;

    /// Timeline 1 up to the middle of segment 5, timeline 3 up to the end of segment 8, timeline 4 up to within segment 9.
    const TEXT: &str =
        "1\t0/5800000\tno recovery target specified\n\n# 2 was a detour\n3\t0/9000000\t\n  4 0/9000100 x\n";

    fn after(timeline: u32, segment: u32) -> Vec<u32> {
        let segment = format!("{timeline:08X}00000000{segment:08X}").parse().unwrap();
        TimelineHistory::parse(7, TEXT).unwrap().after(segment, SIZE).collect()
    }

    #[test]
    fn a_segment_before_the_one_of_the_switch_is_needed_on_its_timeline() {
        for segment in 0..5 {
            assert_eq!(after(1, segment), [3, 4, 7], "{segment}");
        }
        // the new timeline has a copy of the segment in which it begins
        for segment in 5..8 {
            assert_eq!(after(1, segment), [0; 0], "{segment}");
            assert_eq!(after(3, segment), [4, 7], "{segment}");
        }
        assert_eq!(after(3, 8), [4, 7]);
        for segment in [0, 4, 9, 10] {
            assert_eq!(after(3, segment), [0; 0], "{segment}");
        }
        // a timeline that ends in the segment in which it began
        for segment in 8..11 {
            assert_eq!(after(4, segment), [0; 0], "{segment}");
        }
    }

    #[test]
    fn a_timeline_begins_in_the_segment_of_the_switch() {
        let history = TimelineHistory::parse(7, TEXT).unwrap();
        let first = |timeline| history.first_segment(timeline, SIZE).map(|name| name.to_string());
        for (timeline, segment) in [(1, 0), (3, 5), (4, 9), (7, 9)] {
            assert_eq!(first(timeline), Some(format!("{timeline:08X}00000000{segment:08X}")));
        }
        assert_eq!(first(2), None);
        assert_eq!(first(8), None);
    }

    #[test]
    fn of_other_timelines_nothing_is_known() {
        for timeline in [2, 5, 7, 8] {
            for segment in 0..12 {
                assert_eq!(after(timeline, segment), [0; 0], "{timeline} {segment}");
            }
        }
        let segment = "000000010000000000000001".parse().unwrap();
        assert_eq!(TimelineHistory::parse(2, "").unwrap().after(segment, SIZE).count(), 0);
        // a name that cannot be
        assert_eq!(after(1, 256), [0; 0]);
    }

    #[test]
    fn what_the_server_would_not_accept_is_refused() {
        for text in ["x", "1", "1\t", "1\t0", "1\t000000010000000000000005\treason", "-1\t0/1", "7\t0/1", "8\t0/1"] {
            assert!(TimelineHistory::parse(7, text).is_err(), "accepted {text:?}");
        }
        assert!(TimelineHistory::parse(7, "2\t0/1\n2\t0/2\n").is_err(), "not in increasing sequence");
        assert!(TimelineHistory::parse(7, "2\t0/1\n1\t0/2\n").is_err(), "not in increasing sequence");
    }
}
