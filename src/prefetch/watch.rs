//! Waiting for another process's end.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::sync::watch;

/// How often to look where the kernel cannot tell (before Linux 5.3).
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// A process whose end is waited for.
#[derive(Debug)]
pub(super) struct Watch {
    pid: u32,
    /// Closed by the waiting thread's end.
    running: watch::Receiver<()>,
}

impl Watch {
    /// Watches `pid`, with a thread that lasts as long as that process. One that does not exist has ended.
    pub(super) fn new(pid: u32) -> Self {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        match raw.map(|raw| pidfd_open(raw, PidfdFlags::empty())) {
            Some(Ok(process)) => Self::waiting(pid, move || wait(&process)),
            Some(Err(Errno::SRCH)) | None => Self::waiting(pid, || {}),
            Some(Err(_)) => Self::waiting(pid, move || wait_polling(pid)),
        }
    }

    fn waiting(pid: u32, wait: impl FnOnce() + Send + 'static) -> Self {
        let (ends, running) = watch::channel(());
        let waiting = thread::Builder::new().name("watch".into()).spawn(move || {
            wait();
            drop(ends);
        });
        if let Err(failed) = waiting {
            // its channel is closed then, so that the process counts as ended: better no prefetcher than one for ever
            tracing::warn!("could not watch process {pid}: {failed}");
        }
        Self { pid, running }
    }

    /// The process.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns when the process has ended.
    pub(super) async fn ended(&self) {
        let mut running = self.running.clone();
        while running.changed().await.is_ok() {}
    }
}

fn wait(process: &OwnedFd) {
    // readable when the process has ended
    while poll(&mut [PollFd::new(process, PollFlags::IN)], None) == Err(Errno::INTR) {}
}

fn wait_polling(pid: u32) {
    let path = PathBuf::from(format!("/proc/{pid}"));
    while path.exists() {
        thread::sleep(POLL_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[tokio::test]
    async fn the_end_is_noticed_and_nothing_else() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let watch = Watch::new(child.id());
        let pid = child.id();
        let polling = Watch::waiting(pid, move || wait_polling(pid));
        let soon = Duration::from_millis(100);
        assert!(tokio::time::timeout(soon, watch.ended()).await.is_err());
        assert!(tokio::time::timeout(soon, polling.ended()).await.is_err());
        drop(child.stdin.take());
        watch.ended().await;
        child.wait().unwrap();
        polling.ended().await;
        Watch::new(child.id()).ended().await;
    }
}
