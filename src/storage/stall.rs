//! When a store that says nothing counts as broken.
//!
//! One clock a request: a dead TCP connection delivers neither bytes nor errors, and would otherwise be waited for without
//! end. Reading is timed from byte to byte, so a slow object of any size passes. Writing shows nothing from outside once the
//! kernel has taken it, so its allowance grows with its size and that of all that is written beside it, by a rate no usable
//! link falls below; the S3 store watches more closely what the kernel takes.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt, stream};
use tokio::time::Instant;

use super::{Kind, Object, ObjectHead, Page, Payload, Put, PutOptions, Result, StorageError, Store, Upload};

/// The slowest link that writes still have time on, all of them together: 256 KiB/s, a 16 MiB part in 64 s when it is alone.
/// A base backup of 1 TiB would take 48 days at this rate.
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
    sending: Sending,
}

impl<S: Store> Stalling<S> {
    /// Allows `timeout` without an answer or a byte.
    pub fn new(store: S, timeout: Duration) -> Self {
        Self { store, timeout, sending: Sending::default() }
    }
}

/// How many bytes are being written at the moment, over one link.
#[derive(Debug, Clone, Default)]
struct Sending(Arc<AtomicU64>);

impl Sending {
    fn begin(&self, bytes: u64) -> Share<'_> {
        self.0.fetch_add(bytes, Ordering::Relaxed);
        Share { of: self, bytes }
    }
}

/// What one write has of it, until it is dropped.
struct Share<'a> {
    of: &'a Sending,
    bytes: u64,
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.of.0.fetch_sub(self.bytes, Ordering::Relaxed);
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
        Err(_) => Err(no_answer(timeout, verb, url())),
    }
}

fn no_answer(timeout: Duration, verb: &'static str, url: String) -> StorageError {
    StorageError::new(verb, url, Kind::Unavailable, format!("no answer in {timeout:?}"))
}

/// Waits until `size` bytes are written, longer while others share the link.
async fn written<T>(
    timeout: Duration,
    sending: &Sending,
    size: usize,
    verb: &'static str,
    url: impl FnOnce() -> String,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let _share = sending.begin(size as u64);
    let begun = Instant::now();
    let mut work = pin!(work);
    let mut most = 0;
    loop {
        most = sending.0.load(Ordering::Relaxed).max(most);
        let allowed = timeout + Duration::from_secs(most / LEAST_RATE_BYTES_PER_SECOND);
        let (now, end) = (Instant::now(), begun + allowed);
        if now >= end {
            return Err(no_answer(allowed, verb, url()));
        }
        // more may have joined by then
        if let Ok(result) = tokio::time::timeout_at(end.min(now + timeout), &mut work).await {
            return result;
        }
    }
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

    async fn put(&self, key: &str, body: Payload, options: &PutOptions) -> Result<Put> {
        let (size, put) = (body.bytes.len(), self.store.put(key, body, options));
        written(self.timeout, &self.sending, size, "put", || self.url(key), put).await
    }

    async fn begin_upload(&self, key: &str, options: &PutOptions) -> Result<Box<dyn Upload>> {
        let begun = self.store.begin_upload(key, options);
        let upload = within(self.timeout, "begin upload of", || self.url(key), begun).await?;
        Ok(Box::new(StallingUpload {
            upload,
            timeout: self.timeout,
            sending: self.sending.clone(),
            url: self.url(key),
        }))
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
    sending: Sending,
    url: String,
}

#[async_trait]
impl Upload for StallingUpload {
    async fn part(&self, number: u32, offset: u64, body: Payload) -> Result<()> {
        let (size, part) = (body.bytes.len(), self.upload.part(number, offset, body));
        written(self.timeout, &self.sending, size, "write part of", || self.url.clone(), part).await
    }

    async fn finish(&self) -> Result<Put> {
        within(FINISH_TIMEOUT.max(self.timeout), "finish upload of", || self.url.clone(), self.upload.finish()).await
    }

    async fn abort(&self) -> Result<()> {
        within(self.timeout, "abort upload of", || self.url.clone(), self.upload.abort()).await
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(20);
    const PART_SIZE: usize = 8 << 20;

    /// Writes that begin together, all of which take `seconds`: how many get through.
    async fn written_beside_each_other(writes: usize, seconds: u64) -> usize {
        let sending = Sending::default();
        let work = || tokio::time::sleep(Duration::from_secs(seconds)).map(Ok);
        let all = (0..writes).map(|_| written(TIMEOUT, &sending, PART_SIZE, "write", String::new, work()));
        let through = futures::future::join_all(all).await.iter().filter(|written| written.is_ok()).count();
        assert_eq!(sending.0.load(Ordering::Relaxed), 0);
        through
    }

    #[tokio::test(start_paused = true)]
    async fn writes_that_share_a_link_have_its_time_together() {
        // 32 s for each 8 MiB at the least rate, and 20 s for the answer
        assert_eq!(written_beside_each_other(1, 51).await, 1);
        assert_eq!(written_beside_each_other(1, 53).await, 0);
        assert_eq!(written_beside_each_other(12, 12 * 32 + 19).await, 12);
        assert_eq!(written_beside_each_other(12, 12 * 32 + 21).await, 0);
    }
}
