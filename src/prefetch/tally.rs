//! What the prefetcher counts: what replay took, what it waited for, what went wrong, and what is left.

use std::time::Duration;

use super::pace::Pace;
use super::status::{self, Status};
use crate::formats::wal_name::{SegmentName, SegmentSize};
use crate::transfer::progress::Stage;

/// All counts since the prefetcher started.
#[derive(Debug)]
pub(super) struct Tally {
    pace: Pace,
    hits: u64,
    waits: u64,
    misses: u64,
    archive_end: Option<SegmentName>,
    last_error: Option<(String, u64)>,
    /// Whether no caller has heard of that yet.
    untold: bool,
}

impl Tally {
    pub(super) fn new() -> Self {
        Self { pace: Pace::new(), hits: 0, waits: 0, misses: 0, archive_end: None, last_error: None, untold: false }
    }

    /// Replay was given a segment from the spool.
    pub(super) fn hit(&mut self) {
        self.hits += 1;
        self.pace.took(true);
    }

    /// Replay's caller fetched a segment itself.
    pub(super) fn miss(&mut self) {
        self.misses += 1;
        self.pace.took(false);
    }

    /// Replay waited for a segment, whose fetch was held up most by `stage`.
    pub(super) fn waited(&mut self, time: Duration, stage: Option<Stage>) {
        self.waits += 1;
        self.pace.waited(time, stage);
    }

    /// Something went wrong.
    pub(super) fn failed(&mut self, why: String) {
        self.last_error = Some((why, status::now()));
        self.untold = true;
    }

    /// What went wrong last, for a caller to tell; empty when nothing did, or when another caller has told.
    pub(super) fn untold_error(&mut self) -> String {
        match &self.last_error {
            Some((why, _)) if std::mem::take(&mut self.untold) => why.clone(),
            _ => String::new(),
        }
    }

    /// How far the archive reaches, as far as it has just said.
    pub(super) fn set_archive_end(&mut self, end: Option<SegmentName>) {
        self.archive_end = end;
    }

    /// Segments that replay took in the last minute.
    pub(super) fn taken(&mut self) -> usize {
        self.pace.taken()
    }

    /// The part of a status that is counted here.
    pub(super) fn status(&mut self, position: SegmentName, size: SegmentSize) -> Status {
        let end = self.archive_end.filter(|end| end.timeline() == position.timeline());
        let segments_left = end.and_then(|end| Some((end.number(size)? + 1).saturating_sub(position.number(size)?)));
        let rate = self.pace.segments_per_second();
        Status {
            position: position.to_string(),
            hits: self.hits,
            waits: self.waits,
            misses: self.misses,
            segments_per_second: rate,
            megabytes_per_second: rate * size.bytes() as f64 / 1e6,
            archive_end: end.map(|end| end.to_string()),
            segments_left,
            seconds_left: segments_left.filter(|_| rate > 0.0).map(|left| (left as f64 / rate).ceil() as u64),
            bottleneck: self.pace.bottleneck().map(str::to_owned),
            last_error: self.last_error.as_ref().map(|(why, _)| why.clone()),
            last_error_time: self.last_error.as_ref().map(|(_, time)| *time),
            ..Status::default()
        }
    }
}
