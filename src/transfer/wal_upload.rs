//! A file of `pg_wal` to its object in the archive.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _, future, stream};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::compress::{CHUNK_SIZE, lzop_stream};
use super::{Result, TransferError, identity, off_async, upload};
use crate::formats::lzo1x::Level;
use crate::storage::{Put, Store};

/// A file up to this size is read, hashed and compressed in memory in one pass; a larger one is hashed first and then read
/// again, since its hash has to be known when a multipart upload begins.
pub const IN_MEMORY_LIMIT_BYTES: u64 = 32 << 20;

type ChunkStream = BoxStream<'static, Result<Bytes>>;

/// A file as it was when it was archived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint {
    /// Its size in bytes.
    pub size: u64,
    /// When it was last changed, in nanoseconds since 1970.
    pub mtime_ns: i128,
    /// Of its plain bytes.
    pub sha256: [u8; 32],
}

/// How archiving a file ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Its object is new.
    Stored,
    /// The archive held the same bytes already.
    AlreadyIdentical,
}

/// The size and change time of an open file.
pub fn size_and_mtime(file: &File) -> std::io::Result<(u64, i128)> {
    let metadata = file.metadata()?;
    Ok((metadata.len(), i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec())))
}

/// The fingerprint of the file at `path`, read now.
pub fn fingerprint(path: &Path) -> Result<Fingerprint> {
    let failed = TransferError::file("read", path);
    let read = || {
        let mut file = File::open(path)?;
        let (size, mtime_ns) = size_and_mtime(&file)?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; CHUNK_SIZE];
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                len => hash.update(&buffer[..len]),
            }
        }
        Ok(Fingerprint { size, mtime_ns, sha256: hash.finalize().into() })
    };
    read().map_err(failed)
}

/// Archives the file at `path` under `key`. When it returns well, the object is durable and holds the file's bytes; an
/// object that was there already is never replaced.
pub async fn upload_wal(store: &dyn Store, key: &str, path: &Path, level: Level) -> Result<(Fingerprint, Outcome)> {
    let opened = path.to_owned();
    let (file, size, mtime_ns, mode) = off_async(move || {
        let failed = TransferError::file("open", &opened);
        let open = || {
            let file = File::open(&opened)?;
            let (size, mtime_ns) = size_and_mtime(&file)?;
            let mode = file.metadata()?.mode();
            Ok((file, size, mtime_ns, mode))
        };
        open().map_err(failed)
    })
    .await?;
    let mtime_seconds = u64::try_from(mtime_ns / 1_000_000_000).unwrap_or_default();
    let (sha256, put) = if size <= IN_MEMORY_LIMIT_BYTES {
        let (sha256, body) =
            read_once(file, size, path, |plain| lzop_stream(level, mode, mtime_seconds, plain)).await?;
        (sha256, store.put(key, body, &identity::put_options(&sha256)).await?)
    } else {
        let hashed = path.to_owned();
        let sha256 = off_async(move || fingerprint(&hashed)).await?.sha256;
        let pieces = lzop_stream(level, mode, mtime_seconds, read_again(file, path.to_owned(), sha256));
        (sha256, upload::upload(store, key, &identity::put_options(&sha256), pieces, None).await?)
    };
    let outcome = match put {
        Put::Stored => Outcome::Stored,
        Put::Exists => {
            identity::require(store, key, &sha256).await?;
            Outcome::AlreadyIdentical
        }
    };
    Ok((Fingerprint { size, mtime_ns, sha256 }, outcome))
}

/// The file's hash and what `compress` makes of it. A few chunks of the file are in memory at a time: its whole would take
/// longer to be given fresh memory for than to be read.
async fn read_once<S>(
    mut file: File,
    size: u64,
    path: &Path,
    compress: impl FnOnce(ChunkStream) -> S,
) -> Result<([u8; 32], Bytes)>
where
    S: Stream<Item = Result<Bytes>> + Send,
{
    let (sender, receiver) = mpsc::channel(1);
    let path = path.to_owned();
    let reading = off_async(move || {
        let mut hash = Sha256::new();
        let mut left = size;
        loop {
            let mut chunk = Vec::with_capacity(CHUNK_SIZE);
            (&mut file).take(CHUNK_SIZE as u64).read_to_end(&mut chunk).map_err(TransferError::file("read", &path))?;
            let is_last = chunk.len() < CHUNK_SIZE;
            left = match left.checked_sub(chunk.len() as u64) {
                Some(left) if left == 0 || !is_last => left,
                _ => return Err(TransferError::FileChanged(path)),
            };
            let chunk = Bytes::from(chunk);
            // refused when compressing has ended, which it does not before the last chunk
            if !chunk.is_empty() && sender.blocking_send(Ok(chunk.clone())).is_err() {
                return Err(TransferError::FileChanged(path));
            }
            hash.update(&chunk);
            if is_last {
                return Ok(hash.finalize().into());
            }
        }
    });
    let plain = stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) });
    let (sha256, body) = future::join(reading, gather(compress(plain.boxed()))).await;
    Ok((sha256?, body?))
}

async fn gather(pieces: impl Stream<Item = Result<Bytes>> + Send) -> Result<Bytes> {
    use futures::TryStreamExt as _;
    let whole = pieces.try_fold(Vec::new(), |mut whole, piece| {
        whole.extend_from_slice(&piece);
        future::ready(Ok(whole))
    });
    Ok(Bytes::from(whole.await?))
}

/// The file's chunks, ending in an error when they are not the bytes that were hashed.
fn read_again(file: File, path: PathBuf, expected: [u8; 32]) -> impl Stream<Item = Result<Bytes>> + Send {
    stream::try_unfold(Some((file, path, Sha256::new())), move |state| async move {
        let Some((mut file, path, mut hash)) = state else { return Ok(None) };
        off_async(move || {
            let mut chunk = Vec::with_capacity(CHUNK_SIZE);
            (&mut file).take(CHUNK_SIZE as u64).read_to_end(&mut chunk).map_err(TransferError::file("read", &path))?;
            hash.update(&chunk);
            if chunk.len() == CHUNK_SIZE {
                return Ok(Some((Bytes::from(chunk), Some((file, path, hash)))));
            }
            if <[u8; 32]>::from(hash.finalize()) != expected {
                return Err(TransferError::FileChanged(path));
            }
            Ok((!chunk.is_empty()).then(|| (Bytes::from(chunk), None)))
        })
        .await
    })
}
