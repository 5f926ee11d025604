//! Whether an object that is already there holds the same plain bytes.

use futures::StreamExt as _;
use sha2::{Digest, Sha256};

use super::decompress;
use super::{Result, TransferError};
use crate::formats::hex::hex;
use crate::storage::{PutOptions, Store};

/// The metadata under which the plain bytes' SHA-256 is kept, in lower-case hexadecimal.
const SHA256_METADATA: &str = "wal-eve-sha256";

/// What marks an object as holding plain bytes of this hash.
pub fn put_options(plain_sha256: &[u8; 32]) -> PutOptions {
    PutOptions {
        content_type: "application/octet-stream",
        metadata: vec![(SHA256_METADATA.to_owned(), hex(plain_sha256))],
    }
}

/// Whether the object at `key` decompresses to bytes with this hash: by the metadata that wal-eve stores, or, for an object
/// that WAL-E wrote or a store that keeps none, by reading it.
///
/// An object that cannot be decompressed does not hold them, and its damage is the error.
pub async fn holds(store: &dyn Store, key: &str, plain_sha256: &[u8; 32]) -> Result<bool> {
    let head = store.head(key).await?;
    if let Some(stored) = head.metadata(SHA256_METADATA) {
        return Ok(stored == hex(plain_sha256));
    }
    let url = store.url(key);
    let object = store.get(key, 0, None).await?;
    let mut plain = Box::pin(decompress::plain_blocks(url, object.body, None));
    let mut hash = Sha256::new();
    while let Some(block) = plain.next().await.transpose()? {
        hash.update(&block);
    }
    Ok(hash.finalize().as_slice() == plain_sha256)
}

/// Fails unless [`holds`].
pub async fn require(store: &dyn Store, key: &str, plain_sha256: &[u8; 32]) -> Result<()> {
    if holds(store, key, plain_sha256).await? { Ok(()) } else { Err(TransferError::Conflict { url: store.url(key) }) }
}
