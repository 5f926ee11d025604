//! A stream of bytes to one object: a single request when it is small, parts in a bounded window when it is not.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _, future, stream};

use super::Result;
use super::buffer::Buffers;
use super::progress::{Progress, Stage};
use crate::formats::tar_partition::MAX_FILE_BYTES;
use crate::storage::{MIN_PART_SIZE_BYTES, Put, PutOptions, Store};

/// The size of a part: 8 MiB, so that the 10 000 parts that S3 allows make 78 GiB, above any partition.
pub const PART_SIZE_BYTES: usize = 8 << 20;
const _: () = assert!(PART_SIZE_BYTES >= MIN_PART_SIZE_BYTES);
// with a tenth for headers and for blocks that do not compress
const _: () = assert!(MAX_FILE_BYTES / 10 * 11 < 10_000 * PART_SIZE_BYTES as u64);

/// How many parts of one object are under way at once.
const PARTS_IN_FLIGHT: usize = 3;

/// The memory of parts, of as many as two partitions fill and send.
static PARTS: Buffers = Buffers::new(PART_SIZE_BYTES, 2 * (PARTS_IN_FLIGHT + 1));

/// Stores what `pieces` yields under `key`. Holds at most `PARTS_IN_FLIGHT + 1` parts in memory.
pub async fn upload(
    store: &dyn Store,
    key: &str,
    options: &PutOptions,
    pieces: impl Stream<Item = Result<Bytes>> + Send,
    progress: Option<Arc<Progress>>,
) -> Result<Put> {
    let mut parts = Box::pin(parts(pieces, progress.clone()));
    let first = parts.try_next().await?.unwrap_or_default();
    let Some(second) = parts.try_next().await? else {
        let len = first.len() as u64;
        let put = store.put(key, first.into(), options).await?;
        progress.inspect(|progress| progress.add_stored(len));
        return Ok(put);
    };
    let upload = store.begin_upload(key, options).await?;
    let sent = async {
        let (upload, progress) = (&upload, progress.as_ref());
        let (mut number, mut offset) = (0, 0);
        let sending = stream::iter([Ok(first), Ok(second)]).chain(parts).map_ok(|part| {
            number += 1;
            let (number, len, begin) = (number, part.len() as u64, offset);
            offset += len;
            async move {
                upload.part(number, begin, part.into()).await?;
                progress.inspect(|progress| progress.add_stored(len));
                Result::Ok(())
            }
        });
        // the next part is gathered while those before it are sent
        sending.try_buffer_unordered(PARTS_IN_FLIGHT).try_for_each(|()| future::ready(Ok(()))).await?;
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
fn parts(
    pieces: impl Stream<Item = Result<Bytes>> + Send,
    progress: Option<Arc<Progress>>,
) -> impl Stream<Item = Result<Bytes>> + Send {
    let state = (Box::pin(pieces), Bytes::new(), Instant::now());
    stream::try_unfold(state, move |(mut pieces, mut rest, yielded)| {
        // it is asked again as soon as there is room for one more under way
        progress.as_ref().inspect(|progress| progress.waited(Stage::Store, yielded.elapsed()));
        async move {
            let mut part = PARTS.empty();
            loop {
                let now = rest.split_to(rest.len().min(PART_SIZE_BYTES - part.len()));
                part.extend_from_slice(&now);
                if part.len() == PART_SIZE_BYTES {
                    break;
                }
                match pieces.try_next().await? {
                    Some(piece) => rest = piece,
                    None => break,
                }
            }
            Ok((!part.is_empty()).then(|| (PARTS.share(part), (pieces, rest, Instant::now()))))
        }
    })
}
