//! A file of `pg_wal` to its object in the archive.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::{Stream, future, stream};
use sha2::{Digest, Sha256};

use super::compress::{CHUNK_SIZE, lzop_stream};
use super::{Result, TransferError, identity, off_async, upload};
use crate::formats::lzo1x::Level;
use crate::storage::{Put, Store};

/// A file up to this size is read, hashed and compressed in memory in one pass; a larger one is hashed first and then read
/// again, since its hash has to be known when a multipart upload begins.
pub const IN_MEMORY_LIMIT_BYTES: u64 = 32 << 20;

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
        let plain = read_whole(file, size, path).await?;
        let hashing = off_async({
            let plain = plain.clone();
            move || <[u8; 32]>::from(Sha256::digest(&plain))
        });
        let compressing = gather(lzop_stream(level, mode, mtime_seconds, chunks(plain)));
        let (sha256, body) = future::join(hashing, compressing).await;
        (sha256, store.put(key, body?, &identity::put_options(&sha256)).await?)
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

async fn read_whole(mut file: File, size: u64, path: &Path) -> Result<Bytes> {
    let path = path.to_owned();
    off_async(move || {
        let mut plain = Vec::with_capacity(size as usize + 1);
        let limit = IN_MEMORY_LIMIT_BYTES + 1;
        (&mut file).take(limit).read_to_end(&mut plain).map_err(TransferError::file("read", &path))?;
        if plain.len() as u64 != size {
            return Err(TransferError::FileChanged(path));
        }
        Ok(Bytes::from(plain))
    })
    .await
}

fn chunks(plain: Bytes) -> impl Stream<Item = Result<Bytes>> + Send {
    let begins = (0..plain.len()).step_by(CHUNK_SIZE);
    stream::iter(begins.map(move |begin| Ok(plain.slice(begin..plain.len().min(begin + CHUNK_SIZE)))))
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
