//! A bound on bytes per second that several readers share.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lets through so many bytes a second over all threads that ask.
#[derive(Debug)]
pub struct RateLimit {
    bytes_per_second: u64,
    free_at: Mutex<Instant>,
}

impl RateLimit {
    /// A limit of `bytes_per_second`, at least 1.
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), free_at: Mutex::new(Instant::now()) }
    }

    /// Blocks this thread until `bytes` more may pass.
    pub fn wait(&self, bytes: usize) {
        let now = Instant::now();
        let pause = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let begin = (*free_at).max(now);
            *free_at = begin + self.time_for(bytes);
            begin - now
        };
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }

    fn time_for(&self, bytes: usize) -> Duration {
        Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_book_time_in_proportion() {
        let limit = RateLimit::new(1 << 20);
        assert_eq!(limit.time_for(1 << 19), Duration::from_millis(500));
        let before = *limit.free_at.lock().unwrap();
        limit.wait(1 << 10);
        limit.wait(1 << 10);
        let booked = *limit.free_at.lock().unwrap() - before;
        assert!(booked >= limit.time_for(1 << 11), "{booked:?}");
    }
}
