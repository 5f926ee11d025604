//! How fast replay takes segments, and what it waits for, over the last minute.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::transfer::progress::Stage;

/// What rates are taken over.
const SPAN: Duration = Duration::from_secs(60);

/// Replay that waits less than this share of the time is held up by itself.
const NEGLIGIBLE_WAIT: f64 = 0.05;

/// A minute's events.
#[derive(Debug)]
pub(super) struct Pace {
    began: Instant,
    /// When, and whether from the spool.
    taken: VecDeque<(Instant, bool)>,
    waits: VecDeque<(Instant, Duration, Option<Stage>)>,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self { began: Instant::now(), taken: VecDeque::new(), waits: VecDeque::new() }
    }

    /// Replay took a segment from the spool, or its caller fetched one.
    pub(super) fn took(&mut self, from_the_spool: bool) {
        self.taken.push_back((Instant::now(), from_the_spool));
        self.forget();
    }

    /// Replay waited this long for a segment, whose fetch was held up most by `stage`.
    pub(super) fn waited(&mut self, time: Duration, stage: Option<Stage>) {
        self.waits.push_back((Instant::now(), time, stage));
    }

    /// Segments taken in the last minute.
    pub(super) fn taken(&mut self) -> usize {
        self.forget();
        self.taken.len()
    }

    /// Segments a second.
    pub(super) fn segments_per_second(&mut self) -> f64 {
        self.forget();
        self.taken.len() as f64 / self.elapsed().max(Duration::from_secs(1)).as_secs_f64()
    }

    /// What holds replay up, in a word; none when that cannot be told, since little was taken from the spool.
    pub(super) fn bottleneck(&mut self) -> Option<&'static str> {
        self.forget();
        let hits = self.taken.iter().filter(|(_, from_the_spool)| *from_the_spool).count();
        if hits * 2 <= self.taken.len() {
            return None;
        }
        let waited: Duration = self.waits.iter().map(|(_, time, _)| *time).sum();
        if waited.as_secs_f64() < NEGLIGIBLE_WAIT * self.elapsed().as_secs_f64() {
            return Some("replay");
        }
        let of = |stage| -> Duration {
            self.waits.iter().filter(|(.., of)| *of == Some(stage)).map(|(_, time, _)| *time).sum()
        };
        [(Stage::Store, "network"), (Stage::Codec, "codec"), (Stage::Disk, "disk")]
            .into_iter()
            .max_by_key(|(stage, _)| of(*stage))
            .map(|(_, word)| word)
    }

    fn elapsed(&self) -> Duration {
        self.began.elapsed().min(SPAN)
    }

    fn forget(&mut self) {
        while self.taken.front().is_some_and(|(at, _)| at.elapsed() > SPAN) {
            self.taken.pop_front();
        }
        while self.waits.front().is_some_and(|(at, ..)| at.elapsed() > SPAN) {
            self.waits.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_says_who_holds_replay_up() {
        let mut pace = Pace::new();
        assert_eq!((pace.bottleneck(), pace.taken()), (None, 0));
        for _ in 0..120 {
            tokio::time::advance(Duration::from_millis(500)).await;
            pace.took(true);
        }
        assert_eq!(pace.bottleneck(), Some("replay"));
        assert!((pace.segments_per_second() - 2.0).abs() < 0.1);
        pace.waited(Duration::from_secs(5), Some(Stage::Codec));
        pace.waited(Duration::from_secs(3), Some(Stage::Store));
        assert_eq!(pace.bottleneck(), Some("codec"));
        tokio::time::advance(Duration::from_secs(61)).await;
        assert_eq!((pace.taken(), pace.segments_per_second()), (0, 0.0));
        pace.took(false);
        assert_eq!(pace.bottleneck(), None, "nothing is known of what was fetched elsewhere");
    }
}
