//! How far a long transfer is: a bar on a terminal, elsewhere a line every so often.

use std::fmt::Write as _;
use std::future::Future;
use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::transfer::progress::{Progress, Stage};

/// How often a log gets a line: often enough to see a stall, rarely enough for a log that is kept.
const LOG_INTERVAL: Duration = Duration::from_secs(30);

/// How often the bar moves.
const BAR_INTERVAL: Duration = Duration::from_millis(200);

/// Runs `work` and shows `progress` meanwhile. `what` is the verb of the line: "restoring".
pub(super) async fn watched<T>(what: &'static str, progress: Arc<Progress>, work: impl Future<Output = T>) -> T {
    let terminal = std::io::stderr().is_terminal();
    let began = Instant::now();
    let show = async {
        let bar = terminal.then(bar);
        loop {
            tokio::time::sleep(if terminal { BAR_INTERVAL } else { LOG_INTERVAL }).await;
            let snapshot = Snapshot::of(&progress, began.elapsed());
            match &bar {
                Some(bar) => {
                    bar.set_length(snapshot.total.max(snapshot.plain));
                    bar.set_position(snapshot.plain);
                    bar.set_message(format!("{what} {snapshot}"));
                }
                None => tracing::info!("{what}: {snapshot}"),
            }
        }
    };
    futures::pin_mut!(work, show);
    match futures::future::select(work, show).await {
        futures::future::Either::Left((done, _)) => done,
        futures::future::Either::Right((never, _)) => never,
    }
}

/// The closing line: how much, how long, how fast.
pub(super) fn summary(progress: &Progress, took: Duration) -> String {
    let snapshot = Snapshot::of(progress, took);
    let mut text = format!("{} in {}, {}/s", bytes(snapshot.plain), duration(took), bytes(snapshot.rate()));
    if let Some(bottleneck) = snapshot.bottleneck {
        write!(text, "; waited longest for {bottleneck}").expect("a String takes every write");
    }
    text
}

fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:16} {percent:>3}% {wide_msg}").expect("the template is well-formed");
    ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr()).with_style(style)
}

struct Snapshot {
    plain: u64,
    total: u64,
    stored: u64,
    parts: (u64, u64),
    took: Duration,
    bottleneck: Option<&'static str>,
}

impl Snapshot {
    fn of(progress: &Progress, took: Duration) -> Self {
        let bottleneck = progress.bottleneck().map(|stage| match stage {
            Stage::Store => "the store or the network",
            Stage::Codec => "the processor",
            Stage::Disk => "the local disk",
        });
        Self {
            plain: progress.plain_bytes(),
            total: progress.total_bytes(),
            stored: progress.stored_bytes(),
            parts: progress.parts(),
            took,
            bottleneck,
        }
    }

    /// Plain bytes per second since the beginning.
    fn rate(&self) -> u64 {
        (self.plain as f64 / self.took.as_secs_f64().max(0.001)) as u64
    }

    fn time_left(&self) -> Option<Duration> {
        let left = self.total.checked_sub(self.plain).filter(|left| *left > 0)?;
        (self.rate() > 0).then(|| Duration::from_secs(left / self.rate()))
    }
}

impl std::fmt::Display for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", bytes(self.plain))?;
        if self.total > 0 {
            write!(f, " of {}", bytes(self.total))?;
        }
        write!(f, ", {} stored", bytes(self.stored))?;
        match self.parts {
            (done, 0) => write!(f, ", {done} partitions")?,
            (done, all) => write!(f, ", {done} of {all} partitions")?,
        }
        write!(f, ", {}/s", bytes(self.rate()))?;
        match self.time_left() {
            Some(left) => write!(f, ", about {} left", duration(left)),
            None => Ok(()),
        }
    }
}

pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

fn duration(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds @ 60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        seconds => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_for_people() {
        assert_eq!(
            (bytes(0).as_str(), bytes(1023).as_str(), bytes(1536).as_str(), bytes(3 << 40).as_str()),
            ("0 B", "1023 B", "1.5 KiB", "3.0 TiB")
        );
        let of = |seconds| duration(Duration::from_secs(seconds));
        assert_eq!((of(59).as_str(), of(61).as_str(), of(7260).as_str()), ("59 s", "1 min 1 s", "2 h 1 min"));
    }

    #[test]
    fn what_is_left_is_told_by_the_rate_so_far() {
        let progress = Progress::default();
        progress.set_total(300 << 20);
        progress.add_plain(100 << 20);
        progress.set_parts_total(3);
        progress.part_done();
        let text = Snapshot::of(&progress, Duration::from_secs(10)).to_string();
        assert_eq!(text, "100.0 MiB of 300.0 MiB, 0 B stored, 1 of 3 partitions, 10.0 MiB/s, about 20 s left");
    }
}
