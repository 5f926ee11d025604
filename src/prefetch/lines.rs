//! Callers' lines as they come in, and the answers to those that wait: the prefetcher's side of the spool's socket.

use std::io::Write as _;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::message::{Ask, MAX_LINE_BYTES, Reply};

/// How long a caller may take for its line.
const LINE_PATIENCE: Duration = Duration::from_secs(5);

/// Callers' lines that may wait.
const LINES_WAITING: usize = 64;

/// The pause after a connection that could not be accepted: there are too many open files, for one.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// The way back to a caller.
#[derive(Debug)]
pub(super) struct Answering(StdUnixStream);

impl Answering {
    /// Says it to the caller, who may be gone by now. Never waits: a line fits into any socket's buffer.
    pub(super) fn answer(&self, reply: &Reply) {
        let _ = (&self.0).write_all(format!("{reply}\n").as_bytes());
    }
}

/// Reads one line of everyone who connects.
pub(super) fn listen(listener: UnixListener) -> mpsc::Receiver<(Ask, Answering)> {
    let (sender, receiver) = mpsc::channel(LINES_WAITING);
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let sender = sender.clone();
            tokio::spawn(async move {
                if let Ok(Some(ask)) = timeout(LINE_PATIENCE, read(stream)).await {
                    let _ = sender.send(ask).await;
                }
            });
        }
    });
    receiver
}

async fn read(stream: UnixStream) -> Option<(Ask, Answering)> {
    let mut reader = BufReader::new(stream).take(MAX_LINE_BYTES as u64);
    let mut line = String::new();
    reader.read_line(&mut line).await.ok()?;
    let ask = line.strip_suffix('\n')?.parse().ok()?;
    let stream = reader.into_inner().into_inner().into_std().ok()?;
    Some((ask, Answering(stream)))
}

#[cfg(test)]
impl From<StdUnixStream> for Answering {
    fn from(stream: StdUnixStream) -> Self {
        Self(stream)
    }
}
