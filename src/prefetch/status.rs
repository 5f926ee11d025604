//! What a prefetcher shows of itself: a file in the spool, for a person or a monitor in another shell.

use std::fs;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::spool::{Spool, SpoolLock};

/// A prefetcher's state at one moment. Rates are of the last minute, or of what there is of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Whether a prefetcher runs now; what follows is its last word if not.
    #[serde(default)]
    pub running: bool,
    /// Its process.
    pub pid: u32,
    /// When it wrote this, in seconds since 1970.
    pub time: u64,
    /// What it is doing, in words.
    pub state: String,
    /// The archive's WAL directory.
    pub archive: String,
    /// The segment that replay needs next.
    pub position: String,
    /// How many segments it reaches ahead, and the most that it may now.
    pub look_ahead: usize,
    /// See `look_ahead`.
    pub look_ahead_limit: usize,
    /// Segments that wait in the spool.
    pub ready: usize,
    /// Segments on their way.
    pub fetching: usize,
    /// Segments that replay was given from the spool, since the prefetcher started.
    pub hits: u64,
    /// Segments among them that it had to wait for.
    pub waits: u64,
    /// Segments that replay's caller had to look for itself.
    pub misses: u64,
    /// Segments that replay took, per second.
    pub segments_per_second: f64,
    /// The same in MB (10⁶ bytes) of WAL.
    pub megabytes_per_second: f64,
    /// The archive's last segment on this timeline, when it was last listed.
    pub archive_end: Option<String>,
    /// Segments from the position to the archive's end.
    pub segments_left: Option<u64>,
    /// At this rate.
    pub seconds_left: Option<u64>,
    /// What holds replay up: `replay` itself, `network`, `codec` or `disk`.
    pub bottleneck: Option<String>,
    /// The last thing that went wrong, and when, in seconds since 1970.
    pub last_error: Option<String>,
    /// See `last_error`.
    pub last_error_time: Option<u64>,
}

impl Status {
    /// The last status left in `spool`; none when no prefetcher ever worked there.
    ///
    /// # Errors
    /// When it is there but cannot be read.
    pub fn read(spool: &Spool) -> io::Result<Option<Self>> {
        let bytes = match fs::read(spool.status()) {
            Err(absent) if absent.kind() == io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes?,
        };
        let mut status: Self = serde_json::from_slice(&bytes)?;
        status.running = SpoolLock::is_held(spool);
        Ok(Some(status))
    }

    /// A minute of catch-up, in which replay took `taken` segments, in a line.
    pub fn summary(&self, taken: usize) -> String {
        let mut line = format!(
            "replay took {taken} segments in the last minute ({:.1}/s, {:.0} MB/s) and needs {} next",
            self.segments_per_second, self.megabytes_per_second, self.position
        );
        if let (Some(end), Some(left)) = (&self.archive_end, self.segments_left) {
            line += &format!("; {left} segments to the archive's end at {end}");
        }
        if let Some(seconds) = self.seconds_left {
            line += &format!(", about {} min", seconds.div_ceil(60));
        }
        if let Some(bottleneck) = &self.bottleneck {
            line += &format!("; bottleneck: {bottleneck}");
        }
        line
    }

    /// Replaces the status in `spool`.
    pub fn write(&self, spool: &Spool) -> io::Result<()> {
        spool.publish("status.json", &serde_json::to_vec_pretty(self)?)
    }
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
