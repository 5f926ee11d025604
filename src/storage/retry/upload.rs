//! An upload whose requests are tried again, and whose parts do not outlive it.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::super::{Payload, Put, Result, Store, Upload};
use super::{Tries, run};

/// How long a command that has ended waits for parts to be removed.
pub(super) const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);

/// The removal of the parts of uploads that were dropped half-way.
#[derive(Debug, Default)]
pub(super) struct Dropped(Mutex<JoinSet<()>>);

impl Dropped {
    /// Waits until they are removed.
    pub(super) async fn wait(&self) {
        let mut aborts = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let all = async { while aborts.join_next().await.is_some() {} };
        if tokio::time::timeout(SETTLE_TIMEOUT, all).await.is_err() {
            tracing::warn!(
                "parts of uploads that were given up remain, until the bucket's lifecycle rule removes them"
            );
        }
    }
}

pub(super) struct RetryingUpload<S: Store + 'static> {
    upload: Arc<dyn Upload>,
    url: String,
    store: Arc<S>,
    /// Of the operation that began it; the others have as many.
    tries: Tries,
    /// Whether it was published or aborted.
    ended: AtomicBool,
    dropped: Arc<Dropped>,
}

impl<S: Store> RetryingUpload<S> {
    pub(super) fn new(
        upload: Box<dyn Upload>,
        url: String,
        store: Arc<S>,
        tries: Tries,
        dropped: Arc<Dropped>,
    ) -> Self {
        Self { upload: Arc::from(upload), url, store, tries, ended: AtomicBool::new(false), dropped }
    }

    async fn run<T, F>(&self, verb: &'static str, sent: Option<&Payload>, operation: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        run(self.tries.anew(), &*self.store, verb, || self.url.clone(), sent, operation).await
    }
}

#[async_trait]
impl<S: Store> Upload for RetryingUpload<S> {
    async fn part(&self, number: u32, offset: u64, body: Payload) -> Result<()> {
        self.run("write part of", Some(&body), || self.upload.part(number, offset, body.clone())).await
    }

    async fn finish(&self) -> Result<Put> {
        let put = self.run("finish upload of", None, || self.upload.finish()).await?;
        self.ended.store(true, Ordering::Relaxed);
        Ok(put)
    }

    async fn abort(&self) -> Result<()> {
        self.ended.store(true, Ordering::Relaxed);
        self.run("abort upload of", None, || self.upload.abort()).await
    }
}

impl<S: Store> Drop for RetryingUpload<S> {
    fn drop(&mut self) {
        let (false, Ok(runtime)) = (self.ended.load(Ordering::Relaxed), Handle::try_current()) else { return };
        let (upload, store, url, tries) =
            (self.upload.clone(), self.store.clone(), self.url.clone(), self.tries.anew());
        let abort = async move {
            let aborted = run(tries, &*store, "abort upload of", || url.clone(), None, || upload.abort()).await;
            if let Err(failed) = aborted {
                tracing::warn!(error = %failed, "could not remove the parts of an upload that was given up");
            }
        };
        self.dropped.0.lock().unwrap_or_else(PoisonError::into_inner).spawn_on(abort, &runtime);
    }
}
