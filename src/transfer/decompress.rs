//! An object's body to plain blocks, decompressed on all cores.

use std::sync::Arc;
use std::time::Instant;

use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};

use super::progress::{Progress, Stage};
use super::{Result, TransferError, cores, off_async};
use crate::formats::lzop::{Block, Deframer, LzopError};
use crate::storage::Body;

/// Cuts `body`, the bytes of the object at `url`, into lzop blocks as it arrives.
pub fn blocks(url: String, body: Body, progress: Option<Arc<Progress>>) -> impl Stream<Item = Result<Block>> + Send {
    struct Source {
        url: String,
        body: Body,
        deframer: Deframer,
        ended: bool,
        progress: Option<Arc<Progress>>,
    }
    let source = Source { url, body, deframer: Deframer::default(), ended: false, progress };
    stream::try_unfold(source, |mut source| async move {
        loop {
            let damaged = |failed: LzopError, url: &str| TransferError::Lzop { url: url.to_owned(), source: failed };
            if let Some(block) = source.deframer.next_block().map_err(|failed| damaged(failed, &source.url))? {
                return Ok(Some((block, source)));
            }
            if source.ended {
                source.deframer.finish().map_err(|failed| damaged(failed, &source.url))?;
                return Ok(None);
            }
            let waiting = Instant::now();
            match source.body.next().await.transpose()? {
                Some(piece) => {
                    if let Some(progress) = &source.progress {
                        progress.add_stored(piece.len() as u64);
                    }
                    source.deframer.push(&piece);
                }
                None => source.ended = true,
            }
            if let Some(progress) = &source.progress {
                progress.waited(Stage::Store, waiting.elapsed());
            }
        }
    })
}

/// The plain bytes of `body`, block by block in order, decompressed on all cores.
pub fn plain_blocks(
    url: String,
    body: Body,
    progress: Option<Arc<Progress>>,
) -> impl Stream<Item = Result<Vec<u8>>> + Send {
    let decoded = url.clone();
    blocks(url, body, progress)
        .map_ok(move |block| {
            let url = decoded.clone();
            off_async(move || {
                let mut plain = vec![0; block.plain_len()];
                decode(&url, &block, &mut plain)?;
                Result::Ok(plain)
            })
        })
        .try_buffered(cores())
}

/// Decompresses `block` of the object at `url`.
pub(crate) fn decode(url: &str, block: &Block, plain: &mut [u8]) -> Result<()> {
    block.decode(plain).map_err(|source| TransferError::Lzop { url: url.to_owned(), source })
}
