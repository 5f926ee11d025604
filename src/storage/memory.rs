//! Objects in memory, for tests: everything the contract asks for, nothing durable.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};

use super::parts::{self, Span};
use super::{Kind, Listed, Object, ObjectHead, Page, Payload, Put, PutOptions, Result, StorageError, Store, Upload};

/// A store that forgets. Clones share their objects.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    objects: Arc<Mutex<BTreeMap<String, Entry>>>,
}

#[derive(Debug, Clone)]
struct Entry {
    head: ObjectHead,
    body: Bytes,
}

/// Rows a page of a listing: S3's.
const PAGE_ROWS: usize = 1000;

/// Bytes a chunk of a body.
const CHUNK_SIZE_BYTES: usize = 256 << 10;

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts bytes under a key whatever is there: how tests damage an object.
    pub fn overwrite(&self, key: &str, body: impl Into<Bytes>) {
        self.lock().insert(key.to_owned(), Entry::new(body.into(), &PutOptions::default()));
    }

    /// The bytes under a key.
    pub fn bytes(&self, key: &str) -> Option<Bytes> {
        self.lock().get(key).map(|entry| entry.body.clone())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(&self, verb: &'static str, key: &str) -> Result<Entry> {
        let entry = self.lock().get(key).cloned();
        entry.ok_or_else(|| StorageError::new(verb, self.url(key), Kind::NotFound, "no such object"))
    }

    fn insert(&self, key: &str, body: Bytes, options: &PutOptions) -> Put {
        let mut objects = self.lock();
        if objects.contains_key(key) {
            return Put::Exists;
        }
        objects.insert(key.to_owned(), Entry::new(body, options));
        Put::Stored
    }
}

impl Entry {
    fn new(body: Bytes, options: &PutOptions) -> Self {
        let head = ObjectHead {
            size: body.len() as u64,
            last_modified: SystemTime::now(),
            etag: Some(format!("{:016x}", rand::random::<u64>())),
            metadata: options.metadata.clone(),
        };
        Self { head, body }
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn url(&self, key: &str) -> String {
        format!("memory://{key}")
    }

    async fn get(&self, key: &str, from: u64, etag: Option<&str>) -> Result<Object> {
        let Entry { head, body } = self.entry("get", key)?;
        if etag.is_some() && etag != head.etag.as_deref() {
            return Err(StorageError::new("get", self.url(key), Kind::Changed, "the object is another one by now"));
        }
        if from > head.size {
            let source = format!("byte {from} is beyond the end of {} bytes", head.size);
            return Err(StorageError::new("get", self.url(key), Kind::Other, source));
        }
        let rest = body.slice(from as usize..);
        let chunks = (0..rest.len()).step_by(CHUNK_SIZE_BYTES).map(move |start| {
            let end = rest.len().min(start + CHUNK_SIZE_BYTES);
            Ok(rest.slice(start..end))
        });
        Ok(Object { head, body: stream::iter(chunks).boxed() })
    }

    async fn head(&self, key: &str) -> Result<ObjectHead> {
        Ok(self.entry("look up", key)?.head)
    }

    async fn put(&self, key: &str, body: Payload, options: &PutOptions) -> Result<Put> {
        Ok(self.insert(key, body.bytes, options))
    }

    async fn begin_upload(&self, key: &str, options: &PutOptions) -> Result<Box<dyn Upload>> {
        let (key, options) = (key.to_owned(), options.clone());
        Ok(Box::new(MemoryUpload { store: self.clone(), key, options, state: Mutex::default() }))
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page> {
        let objects = self.lock();
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let mut rows = objects
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, Entry { head, .. })| Listed {
                key: key.clone(),
                size: head.size,
                last_modified: head.last_modified,
            });
        let page = rows.by_ref().take(PAGE_ROWS).collect();
        Ok(Page { objects: page, more: rows.next().is_some() })
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.lock().remove(key);
        Ok(())
    }
}

struct MemoryUpload {
    store: MemoryStore,
    key: String,
    options: PutOptions,
    state: Mutex<UploadState>,
}

#[derive(Default)]
struct UploadState {
    parts: BTreeMap<u32, (u64, Bytes)>,
    finished: Option<Put>,
}

#[async_trait]
impl Upload for MemoryUpload {
    async fn part(&self, number: u32, offset: u64, body: Payload) -> Result<()> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).parts.insert(number, (offset, body.bytes));
        Ok(())
    }

    async fn finish(&self) -> Result<Put> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(put) = state.finished {
            return Ok(put);
        }
        let span = |offset, body: &Bytes| Span { offset, length: body.len() as u64 };
        let spans = state.parts.iter().map(|(number, (offset, body))| (*number, span(*offset, body)));
        parts::total_size(&spans.collect())
            .map_err(|gap| StorageError::new("finish upload of", self.store.url(&self.key), Kind::Other, gap))?;
        let bodies: Vec<_> = state.parts.values().map(|(_, body)| body.as_ref()).collect();
        let put = self.store.insert(&self.key, bodies.concat().into(), &self.options);
        state.finished = Some(put);
        Ok(put)
    }

    async fn abort(&self) -> Result<()> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).parts.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::contract;
    use super::*;

    #[tokio::test]
    async fn the_contract_holds() {
        contract::check(&MemoryStore::new(), "p/").await;
    }
}
