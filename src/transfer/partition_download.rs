//! A tar partition of the archive to files below a destination.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use futures::StreamExt as _;
use tokio::sync::mpsc;

use super::extract::{self, Destination, Extracted};
use super::progress::{Progress, Stage};
use super::{Result, decompress, off_async};
use crate::storage::Store;

/// How many decompressed blocks may wait for the disk.
const BLOCKS_WAITING: usize = 8;

/// Fetches the partition `key` and extracts it.
///
/// A partition that fails half-way leaves its files behind; extracting it again overwrites them.
pub async fn download_partition(
    store: &dyn Store,
    key: &str,
    destination: Arc<Destination>,
    progress: Arc<Progress>,
) -> Result<Extracted> {
    let url = store.url(key);
    let object = store.get(key, 0, None).await?;
    let (sender, receiver) = mpsc::channel(BLOCKS_WAITING);
    let given_up = Arc::new(AtomicBool::new(false));
    let writer = off_async({
        let (url, progress, given_up) = (url.clone(), progress.clone(), given_up.clone());
        move || {
            let blocks = BlockReader { receiver, block: Vec::new(), at: 0 };
            let extracted = extract::extract(blocks, &url, &destination, &progress);
            given_up.store(extracted.is_err(), Ordering::Relaxed);
            extracted
        }
    });
    let reader = async move {
        let mut blocks = Box::pin(decompress::plain_blocks(url, object.body, Some(progress.clone())));
        let mut failure = None;
        // on to the stream's end, also past the tar's: a missing terminator or a later damaged block is damage
        while let Some(block) = blocks.next().await {
            match block {
                Ok(block) => {
                    let waiting = Instant::now();
                    // refused when the extraction has seen the tar's end, or has failed, and then says why
                    let refused = sender.send(block).await.is_err();
                    progress.waited(Stage::Disk, waiting.elapsed());
                    if refused && given_up.load(Ordering::Relaxed) {
                        break;
                    }
                }
                Err(failed) => {
                    failure = Some(failed);
                    break;
                }
            }
        }
        failure.map_or(Ok(()), Err)
    };
    let (read, written) = futures::join!(reader, writer);
    // a stream that broke off also looks like a short tar, so the stream's own error comes first
    read?;
    written
}

/// The plain blocks as one stream of bytes.
struct BlockReader {
    receiver: mpsc::Receiver<Vec<u8>>,
    block: Vec<u8>,
    at: usize,
}

impl Read for BlockReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.at == self.block.len() {
            match self.receiver.blocking_recv() {
                Some(block) => (self.block, self.at) = (block, 0),
                None => return Ok(0),
            }
        }
        let len = out.len().min(self.block.len() - self.at);
        out[..len].copy_from_slice(&self.block[self.at..self.at + len]);
        self.at += len;
        Ok(len)
    }
}
