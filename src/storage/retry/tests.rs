//! The retry layer over a store that fails as told, with a paused clock: what counts is the requests made.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::Mutex;

use futures::TryStreamExt;

use super::super::{MemoryStore, wrap};
use super::upload::SETTLE_TIMEOUT;
use super::*;

/// What the next request does instead of being answered.
#[derive(Clone, Copy)]
enum Fault {
    Fail(Kind),
    Expired,
    /// Fails for want of credentials after having looked for them for seconds.
    SlowlyMissing,
    /// Refuses the credentials after seconds.
    SlowlyRefused,
    /// Takes so many bytes of a write, a thousand every ten seconds, and nothing after them.
    TakeSlowly(usize),
    Stall,
    /// The body ends silently after this many bytes.
    Cut(usize),
    /// The body fails after this many bytes.
    Reset(usize),
    /// The body stalls after this many bytes.
    StallAfter(usize),
    /// Another object is there from now on, and the body is cut.
    Replace(usize),
    /// The object is removed, and the body is cut.
    Remove(usize),
    /// The body goes on past the announced end.
    Overlong,
}

#[derive(Clone, Default)]
struct Scripted {
    inner: MemoryStore,
    script: Arc<Mutex<VecDeque<Fault>>>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Scripted {
    fn new(faults: impl IntoIterator<Item = Fault>) -> Self {
        let store = Self { script: Arc::new(Mutex::new(faults.into_iter().collect())), ..Self::default() };
        store.inner.overwrite("a", object());
        store
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    fn count(&self, request: &str) -> usize {
        self.requests().iter().filter(|made| made.starts_with(request)).count()
    }

    /// Logs a request and does what the script says of it.
    async fn next(&self, request: String) -> Result<Option<Fault>> {
        self.requests.lock().unwrap().push(request);
        let fault = self.script.lock().unwrap().pop_front();
        match fault {
            Some(Fault::Fail(kind)) => Err(StorageError::new("try", "x", kind, "as scripted")),
            Some(Fault::Expired) => {
                Err(StorageError::new("try", "x", Kind::Credentials, "expired").with_expired_credentials())
            }
            Some(fault @ (Fault::SlowlyMissing | Fault::SlowlyRefused)) => {
                tokio::time::sleep(Duration::from_secs(5)).await;
                let error = StorageError::new("try", "x", Kind::Credentials, "as scripted");
                Err(if matches!(fault, Fault::SlowlyMissing) { error.with_missing_credentials() } else { error })
            }
            Some(Fault::Stall) => std::future::pending().await,
            fault => Ok(fault),
        }
    }
}

/// 1 MiB that differs from byte to byte.
fn object() -> Bytes {
    (0..1 << 20).map(|i: u32| (i ^ (i >> 8)) as u8).collect()
}

#[async_trait]
impl Store for Scripted {
    fn url(&self, key: &str) -> String {
        format!("scripted://{key}")
    }

    async fn get(&self, key: &str, from: u64, etag: Option<&str>) -> Result<Object> {
        let fault = self.next(format!("get {from}{}", if etag.is_some() { " if-match" } else { "" })).await?;
        let Object { head, body } = self.inner.get(key, from, etag).await?;
        let take = |bytes: usize| {
            let rest = self.inner.bytes(key).expect("it is there").slice(from as usize..);
            stream::iter([Ok(rest.slice(..bytes))])
        };
        let body: Body = match fault {
            None => body,
            Some(Fault::Cut(bytes)) => take(bytes).boxed(),
            Some(Fault::StallAfter(bytes)) => take(bytes).chain(stream::pending()).boxed(),
            Some(Fault::Overlong) => body.chain(take(1)).boxed(),
            Some(Fault::Reset(bytes)) => {
                let reset = Err(StorageError::new("get", "x", Kind::Unavailable, "connection reset"));
                take(bytes).chain(stream::iter([reset])).boxed()
            }
            Some(Fault::Replace(bytes)) => {
                let body = take(bytes).boxed();
                self.inner.overwrite(key, object());
                body
            }
            Some(Fault::Remove(bytes)) => {
                let body = take(bytes).boxed();
                self.inner.delete(key).await?;
                body
            }
            Some(_) => unreachable!("done with before, or of a write"),
        };
        Ok(Object { head, body })
    }

    async fn head(&self, key: &str) -> Result<ObjectHead> {
        self.next("head".into()).await?;
        self.inner.head(key).await
    }

    async fn put(&self, key: &str, body: Payload, options: &PutOptions) -> Result<Put> {
        if let Some(Fault::TakeSlowly(bytes)) = self.next("put".into()).await? {
            for taken in (1000..=bytes).step_by(1000) {
                tokio::time::sleep(Duration::from_secs(10)).await;
                body.note_taken(taken);
            }
            if bytes < body.bytes.len() {
                std::future::pending().await
            }
        }
        self.inner.put(key, body, options).await
    }

    async fn begin_upload(&self, key: &str, options: &PutOptions) -> Result<Box<dyn Upload>> {
        self.next("begin".into()).await?;
        let upload = self.inner.begin_upload(key, options).await?;
        Ok(Box::new(ScriptedUpload { store: self.clone(), upload }))
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page> {
        self.next("list".into()).await?;
        self.inner.list(prefix, after).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.next("delete".into()).await?;
        self.inner.delete(key).await
    }

    async fn renew_credentials(&self) {
        self.requests.lock().unwrap().push("renew".into());
    }
}

struct ScriptedUpload {
    store: Scripted,
    upload: Box<dyn Upload>,
}

#[async_trait]
impl Upload for ScriptedUpload {
    async fn part(&self, number: u32, offset: u64, body: Payload) -> Result<()> {
        self.store.next(format!("part {number}")).await?;
        self.upload.part(number, offset, body).await
    }

    async fn finish(&self) -> Result<Put> {
        self.store.next("finish".into()).await?;
        self.upload.finish().await
    }

    async fn abort(&self) -> Result<()> {
        self.store.next("abort".into()).await?;
        self.upload.abort().await
    }
}

fn wrapped(store: &Scripted, policy: RetryPolicy) -> Arc<dyn Store> {
    wrap(store.clone(), policy, NonZeroUsize::MIN)
}

fn standard(store: &Scripted) -> Arc<dyn Store> {
    wrapped(store, RetryPolicy::default())
}

async fn read(store: &Arc<dyn Store>) -> Result<Bytes> {
    let object = store.get("a", 0, None).await?;
    let chunks: Vec<Bytes> = object.body.try_collect().await?;
    Ok(chunks.concat().into())
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_waited_out() {
    let faults = [Fault::Fail(Kind::Unavailable); 9];
    let scripted = Scripted::new(faults);
    assert_eq!(read(&standard(&scripted)).await.unwrap(), object());
    assert_eq!(scripted.count("get"), 10);
}

#[tokio::test(start_paused = true)]
async fn an_outage_that_lasts_is_given_up_after_the_tries_of_the_policy() {
    let scripted = Scripted::new([Fault::Fail(Kind::Unavailable); 99]);
    let begun = Instant::now();
    let error = read(&standard(&scripted)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.cause().starts_with("gave up after 10 tries in "), "{}", error.cause());
    assert_eq!(scripted.count("get"), 10);
    assert!(begun.elapsed() > Duration::from_secs(30) && begun.elapsed() < Duration::from_secs(70));
}

#[tokio::test(start_paused = true)]
async fn what_another_try_cannot_cure_fails_at_once() {
    for kind in [Kind::NotFound, Kind::Denied, Kind::Misconfigured, Kind::Changed, Kind::Other] {
        let scripted = Scripted::new([Fault::Fail(kind); 99]);
        let store = standard(&scripted);
        let options = PutOptions::default();
        assert_eq!(store.get("a", 0, None).await.map(drop).unwrap_err().kind(), kind);
        assert_eq!(store.head("a").await.map(drop).unwrap_err().kind(), kind);
        assert_eq!(store.put("b", Bytes::new().into(), &options).await.map(drop).unwrap_err().kind(), kind);
        assert_eq!(store.begin_upload("b", &options).await.map(drop).unwrap_err().kind(), kind);
        assert_eq!(store.list("", None).await.map(drop).unwrap_err().kind(), kind);
        assert_eq!(store.delete("b").await.unwrap_err().kind(), kind);
        assert_eq!(scripted.requests(), ["get 0", "head", "put", "begin", "list", "delete"]);
    }
}

#[tokio::test(start_paused = true)]
async fn every_operation_is_tried_again() {
    let scripted = Scripted::new([]);
    let store = standard(&scripted);
    let fail = || scripted.script.lock().unwrap().push_back(Fault::Fail(Kind::Unavailable));
    let options = PutOptions::default();
    fail();
    store.head("a").await.unwrap();
    fail();
    assert_eq!(store.put("b", Bytes::new().into(), &options).await.unwrap(), Put::Stored);
    fail();
    let upload = store.begin_upload("c", &options).await.unwrap();
    fail();
    upload.part(1, 0, Bytes::from_static(b"x").into()).await.unwrap();
    fail();
    assert_eq!(upload.finish().await.unwrap(), Put::Stored);
    fail();
    upload.abort().await.unwrap();
    fail();
    store.list("", None).await.unwrap();
    fail();
    store.delete("a").await.unwrap();
    for request in ["head", "put", "begin", "part 1", "finish", "abort", "list", "delete"] {
        assert_eq!(scripted.count(request), 2, "{request}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_broken_body_goes_on_from_its_last_good_byte() {
    for fault in [Fault::Cut(1000), Fault::Reset(1000), Fault::StallAfter(1000)] {
        let scripted = Scripted::new([fault]);
        assert_eq!(read(&standard(&scripted)).await.unwrap(), object());
        assert_eq!(scripted.requests(), ["get 0", "get 1000 if-match"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_moves_on_is_never_given_up() {
    let scripted = Scripted::new([Fault::Cut(1000); 100]);
    assert_eq!(read(&standard(&scripted)).await.unwrap(), object());
    assert_eq!(scripted.count("get"), 101);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_move_is_given_up() {
    let scripted = Scripted::new([Fault::Cut(1000)].into_iter().chain([Fault::Cut(0); 99]));
    assert_eq!(read(&standard(&scripted)).await.unwrap_err().kind(), Kind::Unavailable);
    // The break itself is the first failure of ten.
    assert_eq!(scripted.count("get 1000"), 9);
}

#[tokio::test(start_paused = true)]
async fn a_break_after_the_last_byte_is_none() {
    let scripted = Scripted::new([Fault::Reset(1 << 20)]);
    assert_eq!(read(&standard(&scripted)).await.unwrap(), object());
    assert_eq!(scripted.requests(), ["get 0"]);
}

#[tokio::test(start_paused = true)]
async fn another_version_is_never_joined_to_the_first() {
    let scripted = Scripted::new([Fault::Replace(1000)]);
    assert_eq!(read(&standard(&scripted)).await.unwrap_err().kind(), Kind::Changed);
    let scripted = Scripted::new([Fault::Remove(1000)]);
    assert_eq!(read(&standard(&scripted)).await.unwrap_err().kind(), Kind::Changed);
    assert_eq!(scripted.requests(), ["get 0", "get 1000 if-match"]);
}

#[tokio::test(start_paused = true)]
async fn more_bytes_than_announced_are_never_passed_on() {
    let scripted = Scripted::new([Fault::Overlong]);
    let bytes = read(&standard(&scripted)).await.unwrap();
    assert_eq!(bytes, object());
}

#[tokio::test(start_paused = true)]
async fn a_request_without_an_answer_is_made_again() {
    let scripted = Scripted::new([Fault::Stall, Fault::Stall]);
    let store = standard(&scripted);
    assert_eq!(store.head("a").await.unwrap().size, 1 << 20);
    assert_eq!(scripted.count("head"), 3);
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_permit_is_no_stall() {
    let scripted = Scripted::new([]);
    let store = standard(&scripted);
    let object = store.get("a", 0, None).await.unwrap();
    let (head, ()) = tokio::join!(store.head("a"), async {
        tokio::time::sleep(Duration::from_secs(600)).await;
        drop(object);
    });
    head.unwrap();
    assert_eq!(scripted.requests(), ["get 0", "head"]);
}

#[tokio::test(start_paused = true)]
async fn a_slow_consumer_is_not_the_stores_fault() {
    let scripted = Scripted::new([]);
    let store = standard(&scripted);
    let mut object = store.get("a", 0, None).await.unwrap();
    let mut size = 0;
    while let Some(chunk) = object.body.try_next().await.unwrap() {
        size += chunk.len();
        tokio::time::sleep(Duration::from_secs(2 * 60 * 60)).await;
    }
    assert_eq!((size, scripted.count("get")), (1 << 20, 1));
}

#[tokio::test(start_paused = true)]
async fn rejected_credentials_are_read_again_twice_and_given_up_within_ten_seconds() {
    let scripted = Scripted::new([Fault::Fail(Kind::Credentials); 99]);
    let begun = Instant::now();
    assert_eq!(standard(&scripted).head("a").await.unwrap_err().kind(), Kind::Credentials);
    assert_eq!(scripted.requests(), ["head", "renew", "head", "renew", "head"]);
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[tokio::test(start_paused = true)]
async fn credentials_that_are_refused_late_are_read_again_all_the_same() {
    let scripted = Scripted::new([Fault::SlowlyRefused]);
    assert!(standard(&scripted).head("a").await.is_ok());
    assert_eq!(scripted.requests(), ["head", "renew", "head"]);
    let scripted = Scripted::new([Fault::SlowlyRefused; 99]);
    assert_eq!(standard(&scripted).head("a").await.unwrap_err().kind(), Kind::Credentials);
    assert_eq!(scripted.requests(), ["head", "renew", "head"]);
}

#[tokio::test(start_paused = true)]
async fn credentials_that_are_slow_to_be_missing_are_given_up_within_ten_seconds() {
    let scripted = Scripted::new([Fault::SlowlyMissing; 99]);
    let begun = Instant::now();
    assert_eq!(standard(&scripted).head("a").await.unwrap_err().kind(), Kind::Credentials);
    assert_eq!(scripted.requests(), ["head"]);
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[tokio::test(start_paused = true)]
async fn expired_credentials_are_read_again_until_newer_ones_come() {
    let scripted = Scripted::new([Fault::Expired; 30]);
    assert_eq!(read(&standard(&scripted)).await.unwrap(), object());
    assert_eq!((scripted.count("get"), scripted.count("renew")), (31, 30));
}

#[tokio::test(start_paused = true)]
async fn expired_credentials_that_nobody_renews_are_given_up() {
    let scripted = Scripted::new([Fault::Expired; 999]);
    let begun = Instant::now();
    assert_eq!(standard(&scripted).head("a").await.unwrap_err().kind(), Kind::Credentials);
    let patience = RetryPolicy::default().expired_patience;
    assert!(begun.elapsed() >= patience && begun.elapsed() < patience + Duration::from_secs(10));
}

#[tokio::test(start_paused = true)]
async fn credentials_that_expire_within_a_body_do_not_break_it() {
    let scripted = Scripted::new([Fault::Reset(1000), Fault::Expired, Fault::Expired]);
    assert_eq!(read(&standard(&scripted)).await.unwrap(), object());
    assert_eq!(
        scripted.requests(),
        ["get 0", "get 1000 if-match", "renew", "get 1000 if-match", "renew", "get 1000 if-match"]
    );
}

#[tokio::test(start_paused = true)]
async fn an_operation_ends_with_its_deadline() {
    let policy =
        RetryPolicy { attempts: NonZeroU32::MAX, object_deadline: Duration::from_secs(100), ..RetryPolicy::default() };
    let scripted = Scripted::new([Fault::Stall; 99]);
    let begun = Instant::now();
    assert_eq!(wrapped(&scripted, policy).head("a").await.unwrap_err().kind(), Kind::Unavailable);
    assert!(begun.elapsed() <= Duration::from_secs(100));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_trickles_ends_with_its_deadline() {
    let policy = RetryPolicy { object_deadline: Duration::from_secs(100), ..RetryPolicy::default() };
    let scripted = Scripted::new([Fault::StallAfter(1); 99]);
    let begun = Instant::now();
    assert_eq!(read(&wrapped(&scripted, policy)).await.unwrap_err().kind(), Kind::Unavailable);
    assert!(begun.elapsed() <= Duration::from_secs(120));
}

#[tokio::test(start_paused = true)]
async fn patience_bounds_an_outage_and_not_the_work() {
    let patience = Some(Duration::from_secs(30));
    let policy =
        RetryPolicy { attempts: NonZeroU32::MAX, patience, patience_once_reached: patience, ..RetryPolicy::default() };
    // each of the stalls is cured by a byte after 20 s, so that the body takes longer than patience would last
    let scripted = Scripted::new([Fault::StallAfter(1); 4]);
    let begun = Instant::now();
    assert!(read(&wrapped(&scripted, policy.clone())).await.is_ok());
    assert!(begun.elapsed() > Duration::from_secs(60));
    let scripted = Scripted::new([Fault::Stall; 99]);
    let begun = Instant::now();
    assert!(read(&wrapped(&scripted, policy)).await.is_err());
    assert!(begun.elapsed() <= Duration::from_secs(30));
}

#[tokio::test(start_paused = true)]
async fn a_write_that_the_server_takes_slowly_outlasts_patience() {
    let patience = Some(Duration::from_secs(15));
    let policy =
        RetryPolicy { attempts: NonZeroU32::MAX, patience, patience_once_reached: patience, ..RetryPolicy::default() };
    let body = || Bytes::from(vec![7; 10_000]);
    let scripted = Scripted::new([Fault::TakeSlowly(10_000)]);
    // longer than the write, so that only patience counts
    let patient = RetryPolicy { stall_timeout: Duration::from_secs(1000), ..policy.clone() };
    let begun = Instant::now();
    assert!(wrapped(&scripted, patient.clone()).put("b", body().into(), &PutOptions::default()).await.is_ok());
    assert_eq!((begun.elapsed(), scripted.count("put")), (Duration::from_secs(100), 1));
    // and ends with the last byte that was taken; whoever takes bytes need not be the store
    let scripted = Scripted::new([Fault::TakeSlowly(5000)]);
    let begun = Instant::now();
    let patient = RetryPolicy { patience_once_reached: Some(Duration::from_secs(900)), ..patient };
    assert!(wrapped(&scripted, patient).put("b", body().into(), &PutOptions::default()).await.is_err());
    assert!((50 + 15..=50 + 17).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    // what a dead connection takes in each try is taken once
    let scripted = Scripted::new([Fault::TakeSlowly(1000); 99]);
    let begun = Instant::now();
    assert!(wrapped(&scripted, policy).put("b", body().into(), &PutOptions::default()).await.is_err());
    assert!(begun.elapsed() <= Duration::from_secs(10 + 17), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_is_dropped_half_way_is_aborted_and_no_other() {
    let scripted = Scripted::new([]);
    let store = standard(&scripted);
    let options = PutOptions::default();
    let begin = || store.begin_upload("b", &options);
    drop(begin().await.unwrap());
    store.settle().await;
    assert_eq!(scripted.requests(), ["begin", "abort"]);
    let upload = begin().await.unwrap();
    upload.part(1, 0, object().into()).await.unwrap();
    assert_eq!(upload.finish().await.unwrap(), Put::Stored);
    drop(upload);
    let upload = begin().await.unwrap();
    upload.abort().await.unwrap();
    drop(upload);
    store.settle().await;
    assert_eq!(scripted.requests()[2..], ["begin", "part 1", "finish", "begin", "abort"]);
}

#[tokio::test(start_paused = true)]
async fn an_abort_that_hangs_does_not_hold_up_the_end() {
    let scripted = Scripted::new([]);
    let store = standard(&scripted);
    let upload = store.begin_upload("b", &PutOptions::default()).await.unwrap();
    scripted.script.lock().unwrap().extend([Fault::Stall; 99]);
    drop(upload);
    let begun = Instant::now();
    store.settle().await;
    assert_eq!(begun.elapsed(), SETTLE_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn patience_may_be_longer_than_any_clock_counts() {
    let endless = Some(Duration::from_secs(u64::MAX));
    let policy = RetryPolicy { patience: endless, patience_once_reached: endless, ..RetryPolicy::default() };
    let scripted = Scripted::new([]);
    let store = wrapped(&scripted, policy);
    assert!(store.head("a").await.is_ok());
    assert!(store.head("a").await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn patience_ends_every_operation() {
    let policy = RetryPolicy { patience: Some(Duration::from_secs(30)), ..RetryPolicy::default() };
    let scripted = Scripted::new([Fault::Stall; 99]);
    let store = wrapped(&scripted, policy);
    let begun = Instant::now();
    assert_eq!(store.head("a").await.unwrap_err().kind(), Kind::Unavailable);
    assert_eq!(store.head("a").await.unwrap_err().kind(), Kind::Unavailable);
    assert!(begun.elapsed() <= Duration::from_secs(30));
}

#[tokio::test(start_paused = true)]
async fn a_try_cut_short_by_time_does_not_hide_what_went_wrong() {
    let policy = RetryPolicy { patience: Some(Duration::from_secs(10)), ..RetryPolicy::default() };
    let scripted = Scripted::new([Fault::Fail(Kind::Unavailable), Fault::Stall]);
    let failed = wrapped(&scripted, policy).head("a").await.unwrap_err();
    assert_eq!(scripted.count("head"), 2);
    assert!(failed.cause().contains("2 tries") && failed.cause().contains("as scripted"), "{}", failed.cause());
}

#[tokio::test(start_paused = true)]
async fn neither_idleness_nor_an_earlier_outage_takes_patience_away() {
    let seconds = Duration::from_secs;
    for patience in [None, Some(seconds(30))] {
        let policy = RetryPolicy {
            attempts: NonZeroU32::MAX,
            patience,
            patience_once_reached: Some(seconds(30)),
            ..RetryPolicy::default()
        };
        // an answer takes a moment, as it does from every store but this one
        let scripted = Scripted::new([Fault::Stall]);
        let store = wrapped(&scripted, policy);
        assert!(store.head("a").await.is_ok());
        tokio::time::advance(seconds(600)).await;
        scripted.script.lock().unwrap().push_back(Fault::Stall);
        assert!(store.head("a").await.is_ok(), "idle for long");
        scripted.script.lock().unwrap().extend([Fault::Stall; 2]);
        let begun = Instant::now();
        assert!(store.head("a").await.is_err());
        assert!(begun.elapsed() <= seconds(30));
        tokio::time::advance(seconds(600)).await;
        scripted.script.lock().unwrap().extend([Fault::Stall]);
        assert!(store.head("a").await.is_ok(), "after an outage");
        let mut body = store.get("a", 0, None).await.unwrap().body;
        scripted.script.lock().unwrap().extend([Fault::StallAfter(1)]);
        tokio::time::advance(seconds(600)).await;
        assert!(body.try_next().await.unwrap().is_some(), "a reader that was slow itself");
    }
    // a store that was out when it was made
    let policy = RetryPolicy { patience_once_reached: Some(seconds(30)), ..RetryPolicy::default() };
    let scripted = Scripted::new([Fault::Stall; 3]);
    let store = wrapped(&scripted, policy);
    assert!(store.head("a").await.is_err());
    tokio::time::advance(seconds(600)).await;
    assert!(store.head("a").await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_stalled_write_is_made_again() {
    let scripted = Scripted::new([Fault::Stall]);
    let store = standard(&scripted);
    assert_eq!(store.put("b", object().into(), &PutOptions::default()).await.unwrap(), Put::Stored);
    assert_eq!(scripted.count("put"), 2);
}

#[test]
fn waits_double_up_to_the_longest_and_vary_by_half() {
    let policy = RetryPolicy::default();
    for (failed, full) in [(1, 200), (2, 400), (7, 12_800), (8, 20_000), (40, 20_000), (u32::MAX, 20_000)] {
        for _ in 0..100 {
            let wait = backoff(&policy, failed).as_millis();
            assert!((full / 2..=full).contains(&wait), "{wait} ms after {failed}");
        }
    }
}
