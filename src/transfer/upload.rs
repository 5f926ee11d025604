//! A stream of bytes to one object: a single request when it is small, parts in a bounded ordered window when it is not.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::stream::FuturesOrdered;
use futures::{Stream, StreamExt as _, TryStreamExt as _};

use super::Result;
use super::progress::{Progress, Stage};
use crate::formats::tar_partition::MAX_FILE_BYTES;
use crate::storage::{MIN_PART_SIZE_BYTES, Put, PutOptions, Store};

/// The size of a part: 8 MiB, so that the 10 000 parts that S3 allows make 78 GiB, above any partition.
pub const PART_SIZE_BYTES: usize = 8 << 20;
const _: () = assert!(PART_SIZE_BYTES >= MIN_PART_SIZE_BYTES);
// with a tenth for headers and for blocks that do not compress
const _: () = assert!(MAX_FILE_BYTES / 10 * 11 < 10_000 * PART_SIZE_BYTES as u64);

/// How many parts of one object are under way at once.
const PARTS_IN_FLIGHT: usize = 2;

/// Stores what `pieces` yields under `key`. Holds at most `PARTS_IN_FLIGHT + 1` parts in memory.
pub async fn upload(
    store: &dyn Store,
    key: &str,
    options: &PutOptions,
    pieces: impl Stream<Item = Result<Bytes>> + Send,
    progress: Option<Arc<Progress>>,
) -> Result<Put> {
    let mut parts = Box::pin(parts(pieces));
    let first = parts.try_next().await?.unwrap_or_default();
    let Some(second) = parts.try_next().await? else {
        let len = first.len() as u64;
        let put = store.put(key, first, options).await?;
        progress.inspect(|progress| progress.add_stored(len));
        return Ok(put);
    };
    let upload = store.begin_upload(key, options).await?;
    let sent = async {
        let mut window = FuturesOrdered::new();
        let (mut number, mut offset) = (0, 0);
        let mut next = [Some(first), Some(second)].into_iter().flatten();
        loop {
            let part = match next.next() {
                Some(part) => part,
                None => match parts.try_next().await? {
                    Some(part) => part,
                    None => break,
                },
            };
            if window.len() == PARTS_IN_FLIGHT {
                let waiting = std::time::Instant::now();
                window.next().await.transpose()?;
                progress.as_ref().inspect(|progress| progress.waited(Stage::Store, waiting.elapsed()));
            }
            number += 1;
            let (len, begin) = (part.len() as u64, offset);
            offset += len;
            let (upload, progress) = (&upload, progress.as_ref());
            window.push_back(async move {
                upload.part(number, begin, part).await?;
                progress.inspect(|progress| progress.add_stored(len));
                Result::Ok(())
            });
        }
        while window.next().await.transpose()?.is_some() {}
        Ok(upload.finish().await?)
    }
    .await;
    if sent.is_err()
        && let Err(failed) = upload.abort().await
    {
        // the bucket's lifecycle rule removes what an abort could not; the first failure is what counts
        tracing::warn!(error = %failed, "could not remove the parts of a failed upload");
    }
    sent
}

/// Gathers pieces to parts of exactly [`PART_SIZE_BYTES`], but for the last.
fn parts(pieces: impl Stream<Item = Result<Bytes>> + Send) -> impl Stream<Item = Result<Bytes>> + Send {
    async fn next<S: Stream<Item = Result<Bytes>> + Unpin>(
        mut state: (S, BytesMut),
    ) -> Result<Option<(Bytes, (S, BytesMut))>> {
        let (pieces, gathered) = &mut state;
        while gathered.len() < PART_SIZE_BYTES {
            match pieces.try_next().await? {
                Some(piece) => {
                    gathered.reserve(if gathered.is_empty() {
                        PART_SIZE_BYTES.min(piece.len() * 64)
                    } else {
                        piece.len()
                    });
                    gathered.extend_from_slice(&piece);
                }
                None if gathered.is_empty() => return Ok(None),
                None => return Ok(Some((gathered.split().freeze(), state))),
            }
        }
        let part = gathered.split_to(PART_SIZE_BYTES).freeze();
        Ok(Some((part, state)))
    }
    futures::stream::try_unfold((Box::pin(pieces), BytesMut::new()), next)
}
