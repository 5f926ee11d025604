//! When a store that says nothing counts as broken.
//!
//! One clock a request: a dead TCP connection delivers neither bytes nor errors, and would otherwise be waited for without
//! end. Reading is timed from byte to byte, so a slow object of any size passes. Writing shows no progress from outside, so
//! its allowance grows with its size, by a rate no usable link falls below; the S3 store watches its uploads more closely.

use std::future::Future;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};

use super::{Kind, Object, ObjectHead, Page, Put, PutOptions, Result, StorageError, Store, Upload};

/// The slowest link a write still has time on: 256 KiB/s, a 16 MiB part in 64 s. A base backup of 1 TiB would take 48
/// days at this rate.
pub const LEAST_RATE_BYTES_PER_SECOND: u64 = 256 << 10;

/// How long publishing an upload may take: "processing of a CompleteMultipartUpload request could take several minutes"
/// (S3's documentation); a file store fsyncs all of the object.
pub const FINISH_TIMEOUT: Duration = Duration::from_secs(10 * 60);

/// A store whose requests fail as [`Kind::Unavailable`] when they stall. The time a consumer leaves a body unread does not
/// count.
#[derive(Debug)]
pub struct Stalling<S> {
    store: S,
    timeout: Duration,
}

impl<S: Store> Stalling<S> {
    /// Allows `timeout` without an answer or a byte.
    pub fn new(store: S, timeout: Duration) -> Self {
        Self { store, timeout }
    }
}

/// Waits for an answer.
async fn within<T>(
    timeout: Duration,
    verb: &'static str,
    url: impl FnOnce() -> String,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    match tokio::time::timeout(timeout, work).await {
        Ok(result) => result,
        Err(_) => Err(StorageError::new(verb, url(), Kind::Unavailable, format!("no answer in {timeout:?}"))),
    }
}

fn write_timeout(timeout: Duration, size: usize) -> Duration {
    timeout + Duration::from_secs(size as u64 / LEAST_RATE_BYTES_PER_SECOND)
}

#[async_trait]
impl<S: Store> Store for Stalling<S> {
    fn url(&self, key: &str) -> String {
        self.store.url(key)
    }

    async fn get(&self, key: &str, from: u64, etag: Option<&str>) -> Result<Object> {
        let url = || self.store.url(key);
        let Object { head, body } = within(self.timeout, "get", url, self.store.get(key, from, etag)).await?;
        let timeout = self.timeout;
        let body = stream::unfold(Some((body, url())), move |state| async move {
            let (mut body, url) = state?;
            match tokio::time::timeout(timeout, body.next()).await {
                Ok(chunk) => chunk.map(|chunk| (chunk, Some((body, url)))),
                Err(_) => {
                    let source = format!("no byte in {timeout:?}");
                    Some((Err(StorageError::new("get", url, Kind::Unavailable, source)), None))
                }
            }
        });
        Ok(Object { head, body: body.boxed() })
    }

    async fn head(&self, key: &str) -> Result<ObjectHead> {
        within(self.timeout, "look up", || self.url(key), self.store.head(key)).await
    }

    async fn put(&self, key: &str, body: Bytes, options: &PutOptions) -> Result<Put> {
        let timeout = write_timeout(self.timeout, body.len());
        within(timeout, "put", || self.url(key), self.store.put(key, body, options)).await
    }

    async fn begin_upload(&self, key: &str, options: &PutOptions) -> Result<Box<dyn Upload>> {
        let begun = self.store.begin_upload(key, options);
        let upload = within(self.timeout, "begin upload of", || self.url(key), begun).await?;
        Ok(Box::new(StallingUpload { upload, timeout: self.timeout, url: self.url(key) }))
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page> {
        within(self.timeout, "list", || self.url(prefix), self.store.list(prefix, after)).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        within(self.timeout, "delete", || self.url(key), self.store.delete(key)).await
    }

    async fn renew_credentials(&self) {
        self.store.renew_credentials().await;
    }
}

struct StallingUpload {
    upload: Box<dyn Upload>,
    timeout: Duration,
    url: String,
}

#[async_trait]
impl Upload for StallingUpload {
    async fn part(&self, number: u32, offset: u64, body: Bytes) -> Result<()> {
        let timeout = write_timeout(self.timeout, body.len());
        within(timeout, "write part of", || self.url.clone(), self.upload.part(number, offset, body)).await
    }

    async fn finish(&self) -> Result<Put> {
        within(FINISH_TIMEOUT.max(self.timeout), "finish upload of", || self.url.clone(), self.upload.finish()).await
    }

    async fn abort(&self) -> Result<()> {
        within(self.timeout, "abort upload of", || self.url.clone(), self.upload.abort()).await
    }
}
