//! Which segments to fetch ahead, and in which order: strictly as replay will need them.
//!
//! The window begins at the segment that replay needs next. It grows with every segment taken from it, since replay then
//! follows the archive, and shrinks to one at the archive's end, where everything further is a request for nothing.

use std::collections::BTreeMap;

use crate::formats::wal_name::{SegmentName, SegmentSize};

/// How far a segment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Held {
    /// On its way.
    Fetching,
    /// In the spool.
    Ready,
    /// Not to be fetched before replay asks for it: it is damaged, or something here is.
    Bad,
}

/// What is held, and what should be.
#[derive(Debug)]
pub(super) struct Window {
    size: SegmentSize,
    position: SegmentName,
    look_ahead: usize,
    limit: usize,
    end: Option<SegmentName>,
    held: BTreeMap<SegmentName, Held>,
    /// What follows the segment that replay took last.
    following: Option<SegmentName>,
    /// Whether replay goes from each segment to the next. At its beginning it does not: it reads the checkpoint's segment
    /// first and goes back to where redo starts.
    is_steady: bool,
}

impl Window {
    /// Begins at `position`, so many segments wide. Nothing is wanted before [`Self::set_limit`] has said how many may be.
    pub(super) fn new(position: SegmentName, size: SegmentSize, look_ahead: usize) -> Self {
        let (end, held, following, is_steady) = (None, BTreeMap::new(), None, false);
        Self { size, position, look_ahead, limit: 0, end, held, following, is_steady }
    }

    /// The segment that replay needs next.
    pub(super) fn position(&self) -> SegmentName {
        self.position
    }

    /// How many segments it reaches to, the position included.
    pub(super) fn look_ahead(&self) -> usize {
        self.look_ahead.min(self.limit)
    }

    /// The first segment that the archive did not hold when it was last asked.
    pub(super) fn end(&self) -> Option<SegmentName> {
        self.end
    }

    /// The most it may reach to.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Sets the most it may reach to.
    pub(super) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// How far `name` is, if it is held at all.
    pub(super) fn held(&self, name: SegmentName) -> Option<Held> {
        self.held.get(&name).copied()
    }

    /// How many are in the spool and how many on their way.
    pub(super) fn counts(&self) -> (usize, usize) {
        let count = |of| self.held.values().filter(|held| **held == of).count();
        (count(Held::Ready), count(Held::Fetching))
    }

    /// The segment to fetch next, if there is one.
    pub(super) fn next(&self) -> Option<SegmentName> {
        self.wanted().find(|name| !self.held.contains_key(name))
    }

    /// What it covers, in need order. What is kept behind the position takes its share of the limit.
    fn wanted(&self) -> impl Iterator<Item = SegmentName> {
        let (size, end) = (self.size, self.end);
        let behind = self.held.keys().filter(|name| **name < self.position && self.is_near(**name)).count();
        std::iter::successors(Some(self.position), move |name| name.next(size))
            .take_while(move |name| Some(*name) != end)
            .take(self.look_ahead().min(self.limit.saturating_sub(behind)))
    }

    /// Replay needs `name` now, which it did not find in the spool.
    pub(super) fn asked(&mut self, name: SegmentName) {
        self.move_to(name);
        if self.held(name) == Some(Held::Bad) {
            self.held.remove(&name);
        }
        if self.end == Some(name) {
            self.look_ahead = 1;
        }
    }

    /// Replay took `name` from the spool.
    pub(super) fn took(&mut self, name: SegmentName) {
        self.held.remove(&name);
        self.look_ahead = self.look_ahead.saturating_mul(2).min(self.limit.max(1));
        self.move_past(name);
    }

    /// Replay's caller fetched `name` itself.
    pub(super) fn found(&mut self, name: SegmentName) {
        if self.end == Some(name) {
            self.end = None;
        }
        self.move_past(name);
    }

    /// `name` is being fetched.
    pub(super) fn began(&mut self, name: SegmentName) {
        self.held.insert(name, Held::Fetching);
    }

    /// `name` lies in the spool.
    pub(super) fn arrived(&mut self, name: SegmentName) {
        self.held.insert(name, Held::Ready);
    }

    /// `name` could not be fetched, and may be soon.
    pub(super) fn failed(&mut self, name: SegmentName) {
        self.held.remove(&name);
    }

    /// `name` could not be fetched, and will not be before something has changed.
    pub(super) fn is_bad(&mut self, name: SegmentName) {
        self.held.insert(name, Held::Bad);
    }

    /// The archive does not hold `name`.
    pub(super) fn absent(&mut self, name: SegmentName) {
        self.held.remove(&name);
        if name.timeline() == self.position.timeline() && name >= self.position {
            self.end = Some(self.end.map_or(name, |end| end.min(name)));
            self.look_ahead = 1;
        }
    }

    /// Gives up what replay does not need any more, or not soon: the segments to remove or to stop fetching.
    pub(super) fn strays(&mut self) -> Vec<SegmentName> {
        let strays: Vec<SegmentName> = self.held.keys().copied().filter(|name| !self.is_near(*name)).collect();
        for name in &strays {
            self.held.remove(name);
        }
        strays
    }

    fn is_near(&self, name: SegmentName) -> bool {
        let (Some(number), Some(position)) = (name.number(self.size), self.position.number(self.size)) else {
            return false;
        };
        let limit = self.limit as u64;
        name.timeline() == self.position.timeline()
            && self.end.is_none_or(|end| name < end)
            && if number < position { !self.is_steady && position - number < limit } else { number - position < limit }
    }

    fn move_past(&mut self, name: SegmentName) {
        self.is_steady = self.following == Some(name);
        self.following = name.next(self.size);
        if let Some(next) = name.next(self.size) {
            self.move_to(next);
        }
    }

    fn move_to(&mut self, name: SegmentName) {
        self.position = name;
        // what is known of one timeline's end, or of what lies behind, tells nothing about here
        if self.end.is_some_and(|end| end.timeline() != name.timeline() || end < name) {
            self.end = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: SegmentSize = SegmentSize::DEFAULT;

    fn name(number: u32) -> SegmentName {
        on(1, number)
    }

    fn on(timeline: u32, number: u32) -> SegmentName {
        format!("{timeline:08X}{:08X}{:08X}", number / 256, number % 256).parse().unwrap()
    }

    fn window(position: SegmentName, limit: usize) -> Window {
        let mut window = Window::new(position, SIZE, 2);
        window.set_limit(limit);
        window
    }

    fn begin_all(window: &mut Window) -> Vec<SegmentName> {
        let begun: Vec<SegmentName> = std::iter::from_fn(|| {
            let next = window.next()?;
            window.began(next);
            Some(next)
        })
        .collect();
        begun
    }

    fn names(numbers: std::ops::Range<u32>) -> Vec<SegmentName> {
        numbers.map(name).collect()
    }

    #[test]
    fn it_goes_in_need_order_and_grows_with_every_segment_taken() {
        let mut window = window(name(254), 16);
        assert_eq!(begin_all(&mut window), names(254..256), "across the end of a log file");
        window.arrived(name(254));
        window.took(name(254));
        assert_eq!(begin_all(&mut window), names(256..259));
        window.took(name(255));
        assert_eq!(window.look_ahead(), 8);
        for number in 256..300 {
            begin_all(&mut window);
            window.took(name(number));
        }
        assert_eq!(window.look_ahead(), 16, "never beyond its limit");
        assert_eq!(window.counts().0 + window.counts().1, 15);
    }

    #[test]
    fn an_idle_standby_at_the_archives_end_costs_nothing_ahead() {
        let mut window = window(name(10), 64);
        for number in 10..20 {
            begin_all(&mut window);
            window.arrived(name(number));
            window.took(name(number));
        }
        begin_all(&mut window);
        for absent in [25, 22, 20, 30] {
            window.absent(name(absent));
        }
        assert_eq!(window.end(), Some(name(20)));
        assert!(!window.strays().is_empty());
        // polled again and again
        for _ in 0..3 {
            window.asked(name(20));
            assert_eq!(window.next(), None);
        }
        // it is there at last, and its caller fetched it: one request to see whether there is more
        window.found(name(20));
        assert_eq!(begin_all(&mut window), names(21..22));
    }

    #[test]
    fn an_end_seen_from_afar_is_remembered_when_replay_gets_there() {
        let mut window = window(name(10), 64);
        begin_all(&mut window);
        window.absent(name(14));
        for number in 10..14 {
            window.took(name(number));
        }
        assert_eq!(window.next(), None);
        window.asked(name(14));
        window.found(name(14));
        assert_eq!(begin_all(&mut window), names(15..16));
    }

    #[test]
    fn after_the_end_it_grows_again() {
        let mut window = window(name(1), 64);
        window.absent(name(1));
        window.found(name(1));
        for number in 2..6 {
            begin_all(&mut window);
            window.arrived(name(number));
            window.took(name(number));
        }
        assert_eq!(window.look_ahead(), 16);
    }

    #[test]
    fn a_jump_drops_what_is_out_of_reach_and_keeps_what_is_not() {
        let mut window = window(name(100), 8);
        for number in 100..110 {
            begin_all(&mut window);
            window.arrived(name(number));
            window.took(name(number));
        }
        let held: Vec<SegmentName> = names(110..118);
        assert_eq!(begin_all(&mut window), [name(117)], "the others were begun before");
        window.asked(name(107));
        assert_eq!(window.strays(), names(115..118));
        assert!(held[..5].iter().all(|name| window.held(*name).is_some()));
        assert_eq!(window.next(), Some(name(107)));
        window.asked(name(4000));
        assert_eq!(window.strays(), names(110..115));
        assert_eq!(window.counts(), (0, 0));
    }

    #[test]
    fn what_lies_behind_is_kept_until_replay_is_steady() {
        let mut window = Window::new(name(10), SIZE, 16);
        window.set_limit(64);
        assert_eq!(begin_all(&mut window), names(10..26));
        // recovery reads its checkpoint first, then goes back to where redo starts
        window.took(name(13));
        assert!(window.strays().is_empty());
        window.took(name(10));
        assert!(window.strays().is_empty());
        window.asked(name(9));
        window.found(name(9));
        window.took(name(10));
        window.took(name(12));
        assert!(window.strays().is_empty());
        window.took(name(13));
        assert_eq!(window.strays(), [name(11)], "steady, so what is behind is not needed any more");
    }

    #[test]
    fn it_never_holds_more_than_its_limit_wherever_replay_goes() {
        for position in [0, 100, 109, 115, 117, 130] {
            let mut window = Window::new(name(100), SIZE, 16);
            window.set_limit(16);
            let mut begun = begin_all(&mut window);
            begun.drain(..).for_each(|name| window.arrived(name));
            window.asked(name(position));
            window.strays();
            assert!(window.held(name(position)).is_some() || window.next() == Some(name(position)), "{position}");
            begin_all(&mut window);
            let (ready, fetching) = window.counts();
            assert_eq!(ready + fetching, 16, "at {position}");
        }
    }

    #[test]
    fn a_bad_segment_is_not_fetched_again_before_replay_asks_for_it() {
        let mut window = window(name(10), 8);
        begin_all(&mut window);
        window.is_bad(name(11));
        assert_eq!((window.counts(), window.next()), ((0, 1), None));
        window.took(name(10));
        assert_eq!(begin_all(&mut window), names(12..15));
        window.asked(name(11));
        assert_eq!(window.next(), Some(name(11)));
    }

    #[test]
    fn another_timeline_begins_anew() {
        let mut window = window(name(10), 8);
        begin_all(&mut window);
        window.absent(name(11));
        window.asked(on(2, 11));
        assert_eq!((window.end(), window.next()), (None, Some(on(2, 11))));
        assert_eq!(window.strays(), [name(10)]);
        window.absent(name(12));
        assert_eq!(window.end(), None, "an answer about the timeline that was left says nothing about this one");
    }

    #[test]
    fn a_failed_segment_is_tried_again_in_its_place() {
        let mut window = window(name(10), 8);
        begin_all(&mut window);
        window.failed(name(10));
        assert_eq!(window.next(), Some(name(10)));
    }

    #[test]
    fn no_room_means_nothing_ahead() {
        let mut window = window(name(10), 0);
        assert_eq!(window.next(), None);
        window.asked(name(10));
        assert_eq!((window.next(), window.look_ahead()), (None, 0));
        window.set_limit(2);
        window.took(name(10));
        window.set_limit(1);
        assert_eq!(begin_all(&mut window), names(11..12));
    }
}
