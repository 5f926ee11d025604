//! Callers' lines as they come in, and the answers to those that wait: the prefetcher's side of its socket.

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

/// Reads one line of every process of the user `owner` that connects; whoever shares the network namespace could.
pub(super) fn listen(listener: UnixListener, owner: u32) -> mpsc::Receiver<(Ask, Answering)> {
    let (sender, receiver) = mpsc::channel(LINES_WAITING);
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                sleep(ACCEPT_PAUSE).await;
                continue;
            };
            if !stream.peer_cred().is_ok_and(|peer| peer.uid() == owner) {
                continue;
            }
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

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[tokio::test]
    async fn only_the_owners_processes_are_heard() {
        let directory = tempfile::tempdir().unwrap();
        let own = rustix::process::geteuid().as_raw();
        for (owner, is_heard) in [(own, true), (own + 1, false)] {
            let path = directory.path().join(owner.to_string());
            let mut lines = listen(UnixListener::bind(&path).unwrap(), owner);
            let asking = tokio::task::spawn_blocking(move || {
                let mut stream = StdUnixStream::connect(path).unwrap();
                // a stranger may be hung up on before it has said anything
                let _ = stream.write_all(b"1 - retire\n");
                let _ = stream.read(&mut [0]);
            });
            if is_heard {
                assert!(lines.recv().await.is_some());
            } else {
                asking.await.unwrap();
                assert!(lines.is_empty());
            }
        }
    }
}
