//! How long a table takes, by what earlier ones took, and what fits into the time that is left.

use std::time::Duration;

use super::digest::Sample;

/// What a sample takes of the rows.
const ONE_IN: u32 = 100;

/// From the most thorough to the quickest.
const DEPTHS: [Sample; 3] = [Sample::All, Sample::OneIn(ONE_IN), Sample::Nothing];

/// How much slower than expected a table may be before it is given up.
const PATIENCE: u32 = 2;

/// What a table may take whatever its size.
const LEAST_PATIENCE: Duration = Duration::from_millis(250);

/// Tables below this tell what a question costs, those above how fast rows are read.
const SMALL_BYTES: u64 = 256 << 10;

/// How fast tables were compared so far.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    per_table: Duration,
    depths: [Speed; 3],
}

/// Bytes and the seconds they took.
#[derive(Debug, Clone, Copy)]
struct Speed {
    bytes: f64,
    seconds: f64,
}

impl Pace {
    /// A careful guess to begin with, which the first megabytes replace.
    pub(super) fn guess() -> Self {
        let speed = |bytes_per_second: f64| Speed { bytes: bytes_per_second * 0.02, seconds: 0.02 };
        Self { per_table: Duration::from_millis(3), depths: [speed(40e6), speed(120e6), speed(250e6)] }
    }

    /// How long a table of so many bytes should take.
    pub(super) fn estimate(&self, bytes: u64, sample: Sample) -> Duration {
        let speed = self.depths[place(sample)];
        self.per_table + Duration::from_secs_f64(bytes as f64 * speed.seconds / speed.bytes)
    }

    /// Takes in how long a table took, or after how long it was given up.
    pub(super) fn learn(&mut self, bytes: u64, sample: Sample, took: Duration) {
        if bytes < SMALL_BYTES {
            self.per_table = (self.per_table * 7 + took) / 8;
            return;
        }
        let speed = &mut self.depths[place(sample)];
        // what was long ago counts less
        speed.bytes = speed.bytes * 0.8 + bytes as f64;
        speed.seconds = speed.seconds * 0.8 + took.saturating_sub(self.per_table).as_secs_f64();
    }

    /// The most thorough way that fits, of those quicker than `tried`, and how long it may take; none when none fits.
    pub(super) fn choose(&self, bytes: u64, left: Duration, tried: Option<Sample>) -> Option<(Sample, Duration)> {
        let from = tried.map_or(0, |tried| place(tried) + 1);
        let fits = |sample: &Sample| self.estimate(bytes, *sample) <= left;
        let sample = DEPTHS.into_iter().skip(from).find(fits)?;
        let patience = self.estimate(bytes, sample) * PATIENCE + LEAST_PATIENCE;
        Some((sample, patience.min(left)))
    }
}

fn place(sample: Sample) -> usize {
    match sample {
        Sample::All => 0,
        Sample::OneIn(_) => 1,
        Sample::Nothing => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIGABYTE: u64 = 1 << 30;
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_less_time_is_left_the_less_is_looked_at() {
        let pace = Pace::guess();
        let sample = |left| pace.choose(GIGABYTE, left, None).map(|(sample, _)| sample);
        assert_eq!(sample(SECOND * 60), Some(Sample::All));
        assert_eq!(sample(SECOND * 15), Some(Sample::OneIn(ONE_IN)));
        assert_eq!(sample(SECOND * 6), Some(Sample::Nothing));
        assert_eq!(sample(SECOND), None);
        assert_eq!(pace.choose(8192, SECOND, Some(Sample::All)).map(|(sample, _)| sample), Some(Sample::OneIn(ONE_IN)));
        assert_eq!(pace.choose(8192, SECOND, Some(Sample::Nothing)), None);
    }

    #[test]
    fn no_table_may_take_more_than_is_left() {
        let pace = Pace::guess();
        for bytes in [0, 8192, GIGABYTE / 100] {
            let (_, patience) = pace.choose(bytes, SECOND / 2, None).unwrap();
            assert!(patience <= SECOND / 2);
        }
    }

    #[test]
    fn what_was_measured_replaces_the_guess() {
        let mut pace = Pace::guess();
        pace.learn(GIGABYTE, Sample::All, SECOND);
        let estimate = pace.estimate(GIGABYTE, Sample::All);
        assert!(estimate > SECOND / 2 && estimate < SECOND * 2, "{estimate:?}");
        for _ in 0..50 {
            pace.learn(8192, Sample::All, Duration::from_millis(1));
        }
        assert!(pace.estimate(0, Sample::All) < Duration::from_millis(2));
    }
}
