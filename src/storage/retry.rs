//! When a failed operation is tried again.
//!
//! One policy, and the only one: the S3 client below makes each request once. [`Kind`] decides: `Unavailable` is tried
//! again with growing, jittered waits; `Credentials` after reading them again; everything else fails at once. A broken
//! body goes on from its last good byte, of the same version of the object, and every byte that arrives sets its count of
//! failures back to zero. While the server takes bytes of a write, the write may go on. Each further try leaves one line in
//! the log.

mod upload;

use std::future::Future;
use std::num::NonZeroU32;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio::time::Instant;

use self::upload::{Dropped, RetryingUpload};
use super::{Body, Kind, Object, ObjectHead, Page, Payload, Put, PutOptions, Result, StorageError, Store, Upload};

/// How often, how fast and how long. The defaults of [`RetryPolicy::default`] are given with each field.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// Tries in a row without progress, the first one included. 10: with the waits below, about a minute. The largest
    /// number leaves the end to the times below.
    pub attempts: NonZeroU32,
    /// The wait before the second try; doubled each time. 200 ms.
    pub first_delay: Duration,
    /// The longest wait. 20 s.
    pub max_delay: Duration,
    /// How long a request may stay without an answer, and a body without a byte. 20 s: S3 itself closes idle connections
    /// about then, and a stalled stream is cheap to take up again.
    pub stall_timeout: Duration,
    /// How long an operation may take with all its tries; for a body, the time spent waiting for the store. 1 h: the
    /// largest WAL-E object, 1.5 GiB, at less than half a MiB/s. Parts of an upload have it each.
    pub object_deadline: Duration,
    /// How long expired credentials are read again in the hope of newer ones. 5 min: whoever rotates them may be late.
    pub expired_patience: Duration,
    /// How long to go on without any success, counted from the making of the store, or from the last byte that was taken. None.
    pub patience: Option<Duration>,
    /// The same after that, or without it from the first: counted from the last success, which is an answer or bytes of a
    /// body, in either direction, and never from before an operation began, so that neither idleness nor an earlier outage
    /// takes away from it. None.
    pub patience_once_reached: Option<Duration>,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: NonZeroU32::new(10).expect("10 is not 0"),
            first_delay: Duration::from_millis(200),
            max_delay: Duration::from_secs(20),
            stall_timeout: Duration::from_secs(20),
            object_deadline: Duration::from_secs(60 * 60),
            expired_patience: Duration::from_secs(5 * 60),
            patience: None,
            patience_once_reached: None,
        }
    }
}

/// How often rejected credentials are read again: somebody may be writing them just now. A third rejection is final, which
/// leaves a wrong key some three seconds.
const REJECTED_RENEWALS: u32 = 2;

/// Rejected credentials are not read again later than this after the first rejection, and none are looked for later than this
/// after the first try: asking the metadata service of a machine that has none takes some seconds each time, and a hopeless
/// command is to end within ten.
const REJECTED_PATIENCE: Duration = Duration::from_secs(4);

/// How often to see whether the server takes bytes of a write.
const LOOK: Duration = Duration::from_secs(1);

/// The wait before credentials are read again: this long, then twice, … up to five times.
const RENEWAL_DELAY: Duration = Duration::from_secs(1);

/// A store that tries again.
#[derive(Debug)]
pub struct Retrying<S> {
    store: Arc<S>,
    policy: Arc<RetryPolicy>,
    clock: Arc<Clock>,
    dropped: Arc<Dropped>,
}

/// Since when patience with a store counts. Every success sets it anew, so that it bounds an outage and not the work.
#[derive(Debug)]
struct Clock(Mutex<Since>);

#[derive(Debug, Clone, Copy)]
enum Since {
    Making(Instant),
    Success(Instant),
}

impl Clock {
    /// When an operation that began at `begun` has to end; none when patience is endless.
    fn end(&self, policy: &RetryPolicy, begun: Instant) -> Option<Instant> {
        let since = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Since::Making(made), Some(patience)) = (since, policy.patience) {
            return made.checked_add(patience);
        }
        let (Since::Making(since) | Since::Success(since)) = since;
        since.max(begun).checked_add(policy.patience_once_reached?)
    }

    fn set_anew(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Since::Success(Instant::now());
    }

    /// The server has taken bytes: whoever accepts a connection does, so that only an answer tells that it is the store.
    fn move_on(&self) {
        let mut since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (Since::Making(instant) | Since::Success(instant)) = &mut *since;
        *instant = Instant::now();
    }
}

impl<S: Store> Retrying<S> {
    /// The clock of [`RetryPolicy::patience`] starts here.
    pub fn new(store: S, policy: RetryPolicy) -> Self {
        let clock = Clock(Mutex::new(Since::Making(Instant::now())));
        Self { store: Arc::new(store), policy: Arc::new(policy), clock: Arc::new(clock), dropped: Arc::default() }
    }

    fn tries(&self) -> Tries {
        Tries::new(Arc::clone(&self.policy), Arc::clone(&self.clock))
    }
}

/// What one operation, or one body since its last progress, has been through.
#[derive(Debug)]
struct Tries {
    policy: Arc<RetryPolicy>,
    /// When all of them end.
    clock: Arc<Clock>,
    /// When this operation ends.
    deadline: Instant,
    begun: Instant,
    failed: u32,
    unavailable: u32,
    rejected: u32,
    rejected_since: Option<Instant>,
    expired: u32,
    expired_since: Option<Instant>,
    /// What the try before failed with.
    before: Option<StorageError>,
}

impl Tries {
    fn new(policy: Arc<RetryPolicy>, clock: Arc<Clock>) -> Self {
        let begun = Instant::now();
        let deadline = begun + policy.object_deadline;
        let (failed, unavailable, rejected, expired) = (0, 0, 0, 0);
        Self {
            policy,
            clock,
            deadline,
            begun,
            failed,
            unavailable,
            rejected,
            rejected_since: None,
            expired,
            expired_since: None,
            before: None,
        }
    }

    /// For another operation.
    fn anew(&self) -> Self {
        Self::new(Arc::clone(&self.policy), Arc::clone(&self.clock))
    }

    /// Forgets what failed before.
    fn progressed(&mut self) {
        self.clock.set_anew();
        if self.failed > 0 {
            let deadline = self.deadline;
            *self = self.anew();
            self.deadline = deadline;
        }
    }

    fn limit(&self) -> Instant {
        self.clock.end(&self.policy, self.begun).map_or(self.deadline, |end| end.min(self.deadline))
    }

    /// Makes one try, within what time is left. Bytes of `sent` that the server takes give it more.
    async fn attempt<T>(
        &self,
        verb: &'static str,
        url: impl FnOnce() -> String,
        sent: Option<&Payload>,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let mut work = pin!(work);
        let taken = || sent.map_or(0, Payload::taken);
        let mut before = taken();
        loop {
            let look = self.limit().min(Instant::now() + LOOK);
            if let Ok(result) = tokio::time::timeout_at(look, &mut work).await {
                return result;
            }
            let now = taken();
            if now > before {
                before = now;
                self.clock.move_on();
            }
            // another operation's success counts too
            if Instant::now() >= self.limit() {
                return Err(StorageError::new(verb, url(), Kind::Unavailable, "the time allowed for it is over"));
            }
        }
    }

    /// Decides on another try after a failure and waits for its time, or gives up with the failure.
    async fn again(&mut self, store: &impl Store, error: StorageError, place: &str) -> Result<()> {
        self.failed += 1;
        // time has cut this try short, so that the one before tells more
        if Instant::now() >= self.limit()
            && let Some(before) = self.before.take()
        {
            return Err(self.give_up(before));
        }
        let renew = error.kind() == Kind::Credentials;
        let Some(delay) = self.delay(&error) else { return Err(self.give_up(error)) };
        if Instant::now() + delay >= self.limit() {
            return Err(self.give_up(error));
        }
        let (cause, seconds) = (error.cause(), delay.as_secs_f64());
        if renew {
            tracing::warn!("{error}{place}: {cause}; reading the credentials again in {seconds:.1} s");
        } else {
            let next = self.unavailable + 1;
            // without a last try it is the time that ends them
            let of = Some(self.policy.attempts).filter(|of| *of < NonZeroU32::MAX);
            let of = of.map_or_else(String::new, |of| format!(" of {of}"));
            tracing::warn!("{error}{place}: {cause}; try {next}{of} in {seconds:.1} s");
        }
        self.before = Some(error);
        tokio::time::sleep(delay).await;
        if renew {
            store.renew_credentials().await;
        }
        Ok(())
    }

    /// How long to wait before another try; `None` if there is to be none.
    fn delay(&mut self, error: &StorageError) -> Option<Duration> {
        match error.kind() {
            Kind::Unavailable => {
                self.unavailable += 1;
                (self.unavailable < self.policy.attempts.get()).then(|| backoff(&self.policy, self.unavailable))
            }
            Kind::Credentials if error.has_expired_credentials() => {
                self.expired += 1;
                let since = *self.expired_since.get_or_insert_with(Instant::now);
                (since.elapsed() < self.policy.expired_patience).then(|| RENEWAL_DELAY * self.expired.min(5))
            }
            Kind::Credentials => {
                self.rejected += 1;
                let since = if error.lacks_credentials() { self.begun } else { Instant::now() };
                let since = *self.rejected_since.get_or_insert(since);
                let early = since.elapsed() < REJECTED_PATIENCE;
                (early && self.rejected <= REJECTED_RENEWALS).then_some(RENEWAL_DELAY)
            }
            Kind::NotFound | Kind::Denied | Kind::Misconfigured | Kind::Changed | Kind::Other => None,
        }
    }

    fn give_up(&self, error: StorageError) -> StorageError {
        match self.failed {
            1 => error,
            tries => error.after_tries(tries, self.begun.elapsed()),
        }
    }
}

/// The wait after the `failed`th failure: doubled each time up to the longest, then a random half taken off, so that many
/// clients of one throttled store do not come back at once.
fn backoff(policy: &RetryPolicy, failed: u32) -> Duration {
    let full = policy.first_delay.saturating_mul(1 << (failed - 1).min(20)).min(policy.max_delay);
    full.mul_f64(1.0 - rand::random::<f64>() / 2.0)
}

/// Repeats an operation as the policy says.
async fn run<T, F: Future<Output = Result<T>>>(
    mut tries: Tries,
    store: &impl Store,
    verb: &'static str,
    url: impl Fn() -> String,
    sent: Option<&Payload>,
    mut operation: impl FnMut() -> F,
) -> Result<T> {
    loop {
        match tries.attempt(verb, &url, sent, operation()).await {
            Ok(value) => {
                tries.progressed();
                return Ok(value);
            }
            Err(error) => tries.again(store, error, "").await?,
        }
    }
}

#[async_trait]
impl<S: Store + 'static> Store for Retrying<S> {
    fn url(&self, key: &str) -> String {
        self.store.url(key)
    }

    async fn get(&self, key: &str, from: u64, etag: Option<&str>) -> Result<Object> {
        let url = || self.url(key);
        let open = || self.store.get(key, from, etag);
        let Object { head, body } = run(self.tries(), &*self.store, "get", url, None, open).await?;
        let reading = Reading {
            store: Arc::clone(&self.store),
            key: key.to_owned(),
            tries: self.tries(),
            waited: Duration::ZERO,
            head: head.clone(),
            position: from,
        };
        let body = stream::unfold(Some((reading, Some(body))), |state| async {
            let (mut reading, mut body) = state?;
            match reading.next(&mut body).await {
                Ok(None) => None,
                Ok(Some(chunk)) => Some((Ok(chunk), Some((reading, body)))),
                Err(error) => Some((Err(error), None)),
            }
        });
        Ok(Object { head, body: body.boxed() })
    }

    async fn head(&self, key: &str) -> Result<ObjectHead> {
        run(self.tries(), &*self.store, "look up", || self.url(key), None, || self.store.head(key)).await
    }

    async fn put(&self, key: &str, body: Payload, options: &PutOptions) -> Result<Put> {
        let put = || self.store.put(key, body.clone(), options);
        run(self.tries(), &*self.store, "put", || self.url(key), Some(&body), put).await
    }

    async fn begin_upload(&self, key: &str, options: &PutOptions) -> Result<Box<dyn Upload>> {
        let begin = || self.store.begin_upload(key, options);
        let upload = run(self.tries(), &*self.store, "begin upload of", || self.url(key), None, begin).await?;
        let (store, dropped) = (Arc::clone(&self.store), Arc::clone(&self.dropped));
        Ok(Box::new(RetryingUpload::new(upload, self.url(key), store, self.tries(), dropped)))
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page> {
        run(self.tries(), &*self.store, "list", || self.url(prefix), None, || self.store.list(prefix, after)).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        run(self.tries(), &*self.store, "delete", || self.url(key), None, || self.store.delete(key)).await
    }

    async fn renew_credentials(&self) {
        self.store.renew_credentials().await;
    }

    async fn settle(&self) {
        self.dropped.wait().await;
    }
}

/// A body that is taken up again where it broke. The open one, if any, is passed to its methods.
struct Reading<S> {
    store: Arc<S>,
    key: String,
    tries: Tries,
    /// How long the store has been waited for; the consumer's own time is not the store's fault.
    waited: Duration,
    /// Of the version that was opened.
    head: ObjectHead,
    /// The next byte to deliver.
    position: u64,
}

impl<S: Store> Reading<S> {
    async fn next(&mut self, body: &mut Option<Body>) -> Result<Option<Bytes>> {
        let begun = Instant::now();
        self.tries.deadline = begun + self.tries.policy.object_deadline.saturating_sub(self.waited);
        // likewise for patience
        self.tries.begun = begun;
        while self.position < self.head.size {
            match self.chunk(body).await {
                Ok(chunk) if chunk.is_empty() => {}
                Ok(chunk) => {
                    self.position += chunk.len() as u64;
                    self.waited += begun.elapsed();
                    self.tries.progressed();
                    return Ok(Some(chunk));
                }
                Err(error) => {
                    *body = None;
                    let place = format!(" at byte {} of {}", self.position, self.head.size);
                    self.tries.again(&*self.store, error, &place).await?;
                }
            }
        }
        Ok(None)
    }

    /// The next bytes of the open body, or of one opened at the current position.
    async fn chunk(&self, body: &mut Option<Body>) -> Result<Bytes> {
        if Instant::now() >= self.tries.limit() {
            return Err(self.error(Kind::Unavailable, "the time allowed for it is over".into()));
        }
        let body = match body {
            Some(body) => body,
            None => body.insert(self.reopen().await?),
        };
        let chunk = match tokio::time::timeout_at(self.tries.limit(), body.next()).await {
            Err(_) => return Err(self.error(Kind::Unavailable, "the time allowed for it is over".into())),
            Ok(Some(chunk)) => chunk?,
            Ok(None) => return Err(self.error(Kind::Unavailable, "the connection was closed early".into())),
        };
        if chunk.len() as u64 > self.head.size - self.position {
            let source = format!("more than the {} bytes announced arrived", self.head.size);
            return Err(self.error(Kind::Other, source));
        }
        Ok(chunk)
    }

    async fn reopen(&self) -> Result<Body> {
        let get = self.store.get(&self.key, self.position, self.head.etag.as_deref());
        match self.tries.attempt("get", || self.store.url(&self.key), None, get).await {
            Ok(Object { head, body }) if self.same_version(&head) => Ok(body),
            Ok(_) => Err(self.error(Kind::Changed, "the object is another one by now".into())),
            // It was there: an answer of "not there" to the whole get would be wrong.
            Err(error) if error.kind() == Kind::NotFound => {
                Err(self.error(Kind::Changed, "the object was removed while it was read".into()))
            }
            Err(error) => Err(error),
        }
    }

    fn same_version(&self, head: &ObjectHead) -> bool {
        match (&self.head.etag, &head.etag) {
            (Some(before), Some(now)) => before == now && self.head.size == head.size,
            _ => (self.head.size, self.head.last_modified) == (head.size, head.last_modified),
        }
    }

    fn error(&self, kind: Kind, source: String) -> StorageError {
        StorageError::new("get", self.store.url(&self.key), kind, source)
    }
}

#[cfg(test)]
mod tests;
