//! Where objects live: the [`Store`] trait and the stores behind it. Keys are opaque and bytes are bytes; nothing here
//! knows what a segment or a backup is.
//!
//! A program talks to one [`Store`] that [`wrap`] has put together: [`retry::Retrying`] outside, [`limit::Limited`] inside,
//! one of each, and [`stall::Stalling`] innermost, so that waiting for a permit is no stall.

#[cfg(test)]
mod contract;
mod error;
pub mod file;
pub mod limit;
pub mod memory;
mod parts;
pub mod payload;
pub mod retry;
pub mod s3;
pub mod stall;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, TryStreamExt as _, stream};

pub use error::{Kind, StorageError};
pub use file::FileStore;
pub use memory::MemoryStore;
pub use payload::Payload;
pub use retry::RetryPolicy;
pub use s3::S3Store;

/// What every store operation returns.
pub type Result<T> = std::result::Result<T, StorageError>;

/// The bytes of an object, in order. An error ends the stream.
pub type Body = BoxStream<'static, Result<Bytes>>;

/// What a store knows of an object besides its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectHead {
    /// The whole object's size in bytes, also when only a range of it was asked for.
    pub size: u64,
    /// When the store last wrote it.
    pub last_modified: SystemTime,
    /// The store's own mark of this version, if it has one; a resumed download insists on it.
    pub etag: Option<String>,
    /// The user metadata it was stored with: lower-case names. Empty for stores that keep none.
    pub metadata: Vec<(String, String)>,
}

impl ObjectHead {
    /// The value kept under `name`, which is lower-case.
    pub fn metadata(&self, name: &str) -> Option<&str> {
        self.metadata.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// An object being read.
pub struct Object {
    /// What the store says of it.
    pub head: ObjectHead,
    /// Its bytes from the offset that was asked for to its end.
    pub body: Body,
}

/// One row of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The whole key.
    pub key: String,
    /// Its size in bytes.
    pub size: u64,
    /// When the store last wrote it.
    pub last_modified: SystemTime,
}

/// What goes with an object's bytes when it is written.
#[derive(Debug, Clone, Default)]
pub struct PutOptions {
    /// The media type; empty leaves it to the store.
    pub content_type: &'static str,
    /// User metadata, lower-case names; a store without metadata drops it.
    pub metadata: Vec<(String, String)>,
}

/// How a write ended. A store never replaces an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// The object is durable under its key.
    Stored,
    /// The key is taken; what was there is untouched. Whether by the same bytes is the caller's question: they may even be
    /// this call's own, stored by an earlier try whose answer was lost.
    Exists,
}

/// A flat space of keys and bytes. Safe to share; every method may be called concurrently.
///
/// Contract, which one test suite holds every store to:
/// * a key is either absent or whole: no half-written object is ever visible under its key;
/// * `put` and `Upload::finish` return only when the object is durable, and never replace one;
/// * `get` and `head` answer [`Kind::NotFound`] only when the store itself said that this key is not there; an
///   unreachable store, a missing bucket or a missing root is another kind;
/// * each call asks the store anew; nothing is answered from memory.
#[async_trait]
pub trait Store: Send + Sync {
    /// The object's whole address, for messages.
    fn url(&self, key: &str) -> String;

    /// Opens the object for reading from byte `from` on. With `etag`, insists on that version.
    async fn get(&self, key: &str, from: u64, etag: Option<&str>) -> Result<Object>;

    /// Asks for the object's head.
    async fn head(&self, key: &str) -> Result<ObjectHead>;

    /// Writes a new object in one request.
    async fn put(&self, key: &str, body: Payload, options: &PutOptions) -> Result<Put>;

    /// Starts writing a new object in parts.
    async fn begin_upload(&self, key: &str, options: &PutOptions) -> Result<Box<dyn Upload>>;

    /// Lists keys that begin with `prefix` and sort after `after`, in byte order: one page and whether there is more.
    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page>;

    /// Removes the object; one that is not there is removed already.
    async fn delete(&self, key: &str) -> Result<()>;

    /// Drops credentials held in memory so that the next request reads them again.
    async fn renew_credentials(&self) {}

    /// Waits until the parts of uploads that were dropped half-way are removed.
    async fn settle(&self) {}
}

/// One page of a listing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// The rows, by key in byte order.
    pub objects: Vec<Listed>,
    /// Whether a further call, after the last of these, may find more.
    pub more: bool,
}

/// A new object being written in parts. Parts may be sent concurrently and again. Dropping it without `finish` or `abort`
/// leaves parts behind that no reader sees; a store that [`wrap`] made removes them in the background ([`Store::settle`]).
#[async_trait]
pub trait Upload: Send + Sync {
    /// Sends part `number` (from 1) that begins at byte `offset` of the object. Every part but the last has at least
    /// [`MIN_PART_SIZE_BYTES`].
    async fn part(&self, number: u32, offset: u64, body: Payload) -> Result<()>;

    /// Publishes the object. Asked again after a lost answer, says what is there.
    async fn finish(&self) -> Result<Put>;

    /// Removes the parts.
    async fn abort(&self) -> Result<()>;
}

/// The least that S3 takes as a part, but for the last one: 5 MiB (S3's documentation, "multipart upload limits").
pub const MIN_PART_SIZE_BYTES: usize = 5 << 20;

/// Wraps a bare store as a program uses it: with stall timeouts, at most `concurrency` operations at a time, and retries.
pub fn wrap(store: impl Store + 'static, policy: RetryPolicy, concurrency: NonZeroUsize) -> Arc<dyn Store> {
    let stalling = stall::Stalling::new(store, policy.stall_timeout);
    Arc::new(retry::Retrying::new(limit::Limited::new(stalling, concurrency), policy))
}

/// Lists everything under `prefix`, a page after the other.
pub fn pages<'a>(store: &'a dyn Store, prefix: &'a str) -> impl Stream<Item = Result<Vec<Listed>>> + Send + 'a {
    stream::try_unfold(Some(None), move |next: Option<Option<String>>| async move {
        let Some(after) = next else { return Ok(None) };
        let page = store.list(prefix, after.as_deref()).await?;
        let last = page.objects.last().map(|row| row.key.clone());
        Ok(Some((page.objects, last.filter(|_| page.more).map(Some))))
    })
}

/// Lists everything under `prefix`.
pub async fn list_all(store: &dyn Store, prefix: &str) -> Result<Vec<Listed>> {
    pages(store, prefix).try_concat().await
}
