//! A file of `pg_wal` to its object in the archive.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;
use crc32c::crc32c_append;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _, TryStreamExt as _, future, stream};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::buffer::{Buffers, CHUNK_SIZE, CHUNKS};
use super::compress::lzop_stream;
use super::fingerprint::{FileState, Fingerprint};
use super::{Result, TransferError, identity, off_async, upload};
use crate::formats::lzo1x::Level;
use crate::storage::{Put, Store};

/// A file up to this size is read, hashed and compressed in memory in one pass; a larger one is hashed first and then read
/// again, since its hash has to be known when a multipart upload begins.
pub const IN_MEMORY_LIMIT_BYTES: u64 = 32 << 20;

/// The memory of compressed segments of the usual 16 MiB at their longest, as many as a look-ahead has under way.
static BODIES: Buffers = Buffers::new(17 << 20, 5);

type ChunkStream = BoxStream<'static, Result<Bytes>>;

/// How archiving a file ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Its object is new.
    Stored,
    /// The archive held the same bytes already.
    AlreadyIdentical,
}

/// Archives the file at `path` under `key`. When it returns well, the object is durable and holds the file's bytes; an
/// object that was there already is never replaced.
pub async fn upload_wal(store: &dyn Store, key: &str, path: &Path, level: Level) -> Result<(Fingerprint, Outcome)> {
    let opened = path.to_owned();
    let (file, state, settled, mode) = off_async(move || {
        let failed = TransferError::file("open", &opened);
        let open = || {
            let (now, file) = (SystemTime::now(), File::open(&opened)?);
            let (state, mode) = (FileState::of(&file)?, file.metadata()?.mode());
            Ok((file, state, state.is_settled_at(now), mode))
        };
        open().map_err(failed)
    })
    .await?;
    let mtime_seconds = u64::try_from(state.mtime_ns / 1_000_000_000).unwrap_or_default();
    let (digest, put) = if state.size <= IN_MEMORY_LIMIT_BYTES {
        let (digest, body) =
            read_once(file, state.size, path, |plain| lzop_stream(level, mode, mtime_seconds, plain)).await?;
        (digest, store.put(key, body.into(), &identity::put_options(&digest.sha256)).await?)
    } else {
        let hashed = path.to_owned();
        let digest = off_async(move || digest(&hashed)).await?;
        let pieces = lzop_stream(level, mode, mtime_seconds, read_again(file, path.to_owned(), digest.sha256));
        (digest, upload::upload(store, key, &identity::put_options(&digest.sha256), pieces, None).await?)
    };
    let outcome = match put {
        Put::Stored => Outcome::Stored,
        Put::Exists => {
            identity::require(store, key, &digest.sha256).await?;
            Outcome::AlreadyIdentical
        }
    };
    Ok((Fingerprint { state, settled, crc32c: digest.crc32c }, outcome))
}

/// The digest of the file at `path`, read now.
fn digest(path: &Path) -> Result<PlainDigest> {
    let read = || {
        let mut file = File::open(path)?;
        let mut digester = PlainDigester::default();
        let mut buffer = vec![0; CHUNK_SIZE];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(digester.finish()),
                len => digester.update(&buffer[..len]),
            }
        }
    };
    read().map_err(TransferError::file("read", path))
}

/// What a file's plain bytes are known by.
#[derive(Debug, Clone, Copy)]
struct PlainDigest {
    /// In the archive, where nothing but the bytes counts.
    sha256: [u8; 32],
    /// Beside the file itself.
    crc32c: u32,
}

/// A [`PlainDigest`] of bytes that come one after another.
#[derive(Default)]
struct PlainDigester {
    sha256: Sha256,
    crc32c: u32,
}

impl PlainDigester {
    fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        self.crc32c = crc32c_append(self.crc32c, bytes);
    }

    fn finish(self) -> PlainDigest {
        PlainDigest { sha256: self.sha256.finalize().into(), crc32c: self.crc32c }
    }
}

/// The file's hash and what `compress` makes of it. A few chunks of the file are in memory at a time: its whole would take
/// longer to be given fresh memory for than to be read.
async fn read_once<S>(
    mut file: File,
    size: u64,
    path: &Path,
    compress: impl FnOnce(ChunkStream) -> S,
) -> Result<(PlainDigest, Bytes)>
where
    S: Stream<Item = Result<Bytes>> + Send,
{
    let (sender, receiver) = mpsc::channel(1);
    let path = path.to_owned();
    let reading = off_async(move || {
        let mut digester = PlainDigester::default();
        let mut left = size;
        loop {
            let mut chunk = CHUNKS.empty();
            (&mut file).take(CHUNK_SIZE as u64).read_to_end(&mut chunk).map_err(TransferError::file("read", &path))?;
            let is_last = chunk.len() < CHUNK_SIZE;
            left = match left.checked_sub(chunk.len() as u64) {
                Some(left) if left == 0 || !is_last => left,
                _ => return Err(TransferError::FileChanged(path)),
            };
            let chunk = CHUNKS.share(chunk);
            // refused when compressing has ended, which it does not before the last chunk
            if !chunk.is_empty() && sender.blocking_send(Ok(chunk.clone())).is_err() {
                return Err(TransferError::FileChanged(path));
            }
            digester.update(&chunk);
            if is_last {
                return Ok(digester.finish());
            }
        }
    });
    let plain = stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) });
    let (digest, body) = future::join(reading, gather(compress(plain.boxed()))).await;
    Ok((digest?, body?))
}

/// The pieces as one.
async fn gather(pieces: impl Stream<Item = Result<Bytes>> + Send) -> Result<Bytes> {
    let whole = pieces.try_fold(BODIES.empty(), |mut whole, piece| {
        whole.extend_from_slice(&piece);
        future::ready(Ok(whole))
    });
    Ok(BODIES.share(whole.await?))
}

/// The file's chunks, ending in an error when they are not the bytes that were hashed.
fn read_again(file: File, path: PathBuf, expected: [u8; 32]) -> impl Stream<Item = Result<Bytes>> + Send {
    stream::try_unfold(Some((file, path, Sha256::new())), move |state| async move {
        let Some((mut file, path, mut hash)) = state else { return Ok(None) };
        off_async(move || {
            let mut chunk = CHUNKS.empty();
            (&mut file).take(CHUNK_SIZE as u64).read_to_end(&mut chunk).map_err(TransferError::file("read", &path))?;
            hash.update(&chunk);
            if chunk.len() == CHUNK_SIZE {
                return Ok(Some((CHUNKS.share(chunk), Some((file, path, hash)))));
            }
            if <[u8; 32]>::from(hash.finalize()) != expected {
                return Err(TransferError::FileChanged(path));
            }
            Ok((!chunk.is_empty()).then(|| (CHUNKS.share(chunk), None)))
        })
        .await
    })
}
