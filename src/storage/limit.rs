//! How many operations a store has in hand at once.

use std::num::NonZeroUsize;
use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Object, ObjectHead, Page, Payload, Put, PutOptions, Result, Store, Upload};

/// A store that lets a number of operations pass at a time and makes others wait in order. A body keeps its permit until
/// it ended or was dropped, so an idle reader counts as much as a busy one.
#[derive(Debug)]
pub struct Limited<S> {
    store: S,
    permits: Permits,
}

#[derive(Debug, Clone)]
struct Permits(Arc<Semaphore>);

impl Permits {
    async fn acquire(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.0).acquire_owned().await.expect("the semaphore is never closed")
    }
}

impl<S: Store> Limited<S> {
    /// Lets `concurrency` operations pass at a time.
    pub fn new(store: S, concurrency: NonZeroUsize) -> Self {
        Self { store, permits: Permits(Arc::new(Semaphore::new(concurrency.get().min(Semaphore::MAX_PERMITS)))) }
    }
}

#[async_trait]
impl<S: Store> Store for Limited<S> {
    fn url(&self, key: &str) -> String {
        self.store.url(key)
    }

    async fn get(&self, key: &str, from: u64, etag: Option<&str>) -> Result<Object> {
        let permit = self.permits.acquire().await;
        let Object { head, body } = self.store.get(key, from, etag).await?;
        // The permit goes with the last chunk polled for, or with the stream.
        let body = futures::stream::unfold(Some((body, permit)), |state| async {
            let (mut body, permit) = state?;
            let chunk = body.next().await?;
            Some((chunk, Some((body, permit))))
        });
        Ok(Object { head, body: body.boxed() })
    }

    async fn head(&self, key: &str) -> Result<ObjectHead> {
        let _permit = self.permits.acquire().await;
        self.store.head(key).await
    }

    async fn put(&self, key: &str, body: Payload, options: &PutOptions) -> Result<Put> {
        let _permit = self.permits.acquire().await;
        self.store.put(key, body, options).await
    }

    async fn begin_upload(&self, key: &str, options: &PutOptions) -> Result<Box<dyn Upload>> {
        let _permit = self.permits.acquire().await;
        let upload = self.store.begin_upload(key, options).await?;
        Ok(Box::new(LimitedUpload { upload, permits: self.permits.clone() }))
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page> {
        let _permit = self.permits.acquire().await;
        self.store.list(prefix, after).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let _permit = self.permits.acquire().await;
        self.store.delete(key).await
    }

    async fn renew_credentials(&self) {
        self.store.renew_credentials().await;
    }
}

/// An upload takes a permit for each of its requests, none between them.
struct LimitedUpload {
    upload: Box<dyn Upload>,
    permits: Permits,
}

#[async_trait]
impl Upload for LimitedUpload {
    async fn part(&self, number: u32, offset: u64, body: Payload) -> Result<()> {
        let _permit = self.permits.acquire().await;
        self.upload.part(number, offset, body).await
    }

    async fn finish(&self) -> Result<Put> {
        let _permit = self.permits.acquire().await;
        self.upload.finish().await
    }

    async fn abort(&self) -> Result<()> {
        let _permit = self.permits.acquire().await;
        self.upload.abort().await
    }
}

#[cfg(test)]
mod tests {
    use super::super::MemoryStore;
    use super::*;

    async fn one_permit() -> Limited<MemoryStore> {
        let store = MemoryStore::new();
        store.overwrite("a", "bytes");
        Limited::new(store, NonZeroUsize::MIN)
    }

    /// Whether an operation gets its permit without anything else happening.
    async fn passes(store: &Limited<MemoryStore>) -> bool {
        tokio::time::timeout(std::time::Duration::from_secs(60), store.head("a")).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_keeps_its_permit_until_it_is_dropped() {
        let store = one_permit().await;
        let object = store.get("a", 0, None).await.unwrap();
        assert!(!passes(&store).await);
        drop(object);
        assert!(passes(&store).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_gives_its_permit_back_at_its_end() {
        let store = one_permit().await;
        let mut object = store.get("a", 0, None).await.unwrap();
        assert_eq!(object.body.next().await.unwrap().unwrap(), "bytes");
        assert!(object.body.next().await.is_none());
        assert!(passes(&store).await);
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_holds_no_permit_between_its_requests() {
        let store = one_permit().await;
        let upload = store.begin_upload("b", &PutOptions::default()).await.unwrap();
        upload.part(1, 0, bytes::Bytes::from_static(b"x").into()).await.unwrap();
        assert!(passes(&store).await);
        assert_eq!(upload.finish().await.unwrap(), Put::Stored);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_operation_gives_its_permit_back() {
        let store = one_permit().await;
        assert!(store.get("absent", 0, None).await.is_err());
        assert!(passes(&store).await);
    }
}
