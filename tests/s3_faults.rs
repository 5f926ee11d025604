//! What the S3 store makes of a server that fails: which requests it makes then, and what it says.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/s3/mod.rs"]
mod s3;

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::TryStreamExt;
use s3::{ACCESS_KEY, Credentials as ServerCredentials, Operation, REGION, S3Server, SECRET_KEY, What, When};
use wal_eve::storage::s3::{ConditionalPut, Credentials, Endpoint, S3Options, Sse};
use wal_eve::storage::{self, Kind, Put, PutOptions, Result, RetryPolicy, S3Store, StorageError, Store};

const KEY: &str = "p/wal_005/000000010000000000000001.lzo";

fn server() -> S3Server {
    let server = S3Server::start();
    server.create_bucket("b");
    server
}

fn given(access_key_id: &str, secret_access_key: &str) -> Credentials {
    let (access_key_id, secret_access_key) = (access_key_id.into(), secret_access_key.into());
    Credentials::Static { access_key_id, secret_access_key, session_token: None }
}

/// As AWS is spoken to.
fn aws(server: &S3Server) -> S3Options {
    S3Options { conditional_put: ConditionalPut::Enforced, upload_checksums: true, ..custom(server) }
}

/// As another server is spoken to.
fn custom(server: &S3Server) -> S3Options {
    let endpoint: Endpoint = server.wale_s3_endpoint().parse().unwrap();
    S3Options {
        region: Some(REGION.into()),
        credentials: given(ACCESS_KEY, SECRET_KEY),
        ..S3Options::new("b", Some(endpoint))
    }
}

/// Short waits: these tests count requests. Only a stall is waited for longer, since a request that a busy machine holds up
/// would be made again and counted.
fn quick() -> RetryPolicy {
    RetryPolicy {
        attempts: NonZeroU32::new(4).unwrap(),
        first_delay: Duration::from_millis(10),
        max_delay: Duration::from_millis(20),
        stall_timeout: Duration::from_secs(5),
        ..RetryPolicy::default()
    }
}

fn wrapped(options: S3Options) -> Arc<dyn Store> {
    storage::wrap(S3Store::new(options), quick(), NonZeroUsize::new(4).unwrap())
}

async fn read(store: &Arc<dyn Store>, key: &str) -> Result<Vec<u8>> {
    let chunks: Vec<Bytes> = store.get(key, 0, None).await?.body.try_collect().await?;
    Ok(chunks.concat())
}

async fn put(store: &Arc<dyn Store>, key: &str, body: &'static [u8]) -> Result<Put> {
    store.put(key, Bytes::from_static(body).into(), &PutOptions::default()).await
}

fn noise(size: usize) -> Vec<u8> {
    (0..size as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

async fn failed_get(options: S3Options) -> StorageError {
    read(&wrapped(options), KEY).await.unwrap_err()
}

fn hint(error: &StorageError) -> &str {
    error.hint().unwrap_or("")
}

// Reading.

#[tokio::test]
async fn throttling_is_waited_out() {
    let server = server();
    server.put_object("b", KEY, "bytes");
    for what in [What::slow_down(), What::internal_error(), What::LoseResponse] {
        server.clear_requests();
        server.faults().add(When::operation(Operation::GetObject).times(2), what);
        assert_eq!(read(&wrapped(aws(&server)), KEY).await.unwrap(), b"bytes");
        assert_eq!(server.count(Operation::GetObject, KEY), 3);
    }
}

#[tokio::test]
async fn an_outage_that_lasts_ends_after_the_tries_of_the_policy() {
    let server = server();
    server.faults().add(When::any(), What::slow_down());
    let error = failed_get(aws(&server)).await;
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.cause().contains("503 SlowDown"), "{}", error.cause());
    assert_eq!(server.requests().len(), 4);
}

#[tokio::test]
async fn a_cut_or_stalled_body_goes_on_with_a_range_of_the_same_version() {
    let body = noise(3_000_000);
    let long = Duration::from_secs(60);
    for what in [What::CutBody { after_bytes: 1_000_000 }, What::StallBody { after_bytes: 1_000_000, pause: long }] {
        let server = server();
        server.put_object("b", KEY, body.clone());
        server.faults().add(When::operation(Operation::GetObject).once(), what);
        assert_eq!(read(&wrapped(aws(&server)), KEY).await.unwrap(), body);
        let requests = server.requests();
        let ranges: Vec<_> = requests.iter().map(s3::Request::range).collect();
        assert_eq!(ranges, [None, Some("bytes=1000000-")]);
        assert!(requests[1].header("if-match").is_some());
    }
}

#[tokio::test]
async fn a_stall_before_the_answer_is_tried_again() {
    let server = server();
    server.put_object("b", KEY, "bytes");
    server.faults().add(When::any().once(), What::Delay(Duration::from_secs(60)));
    assert_eq!(read(&wrapped(aws(&server)), KEY).await.unwrap(), b"bytes");
    assert_eq!(server.count(Operation::GetObject, KEY), 2);
}

#[tokio::test]
async fn an_object_replaced_while_it_is_read_is_never_joined() {
    let server = server();
    server.put_object("b", KEY, noise(3_000_000));
    server.faults().add(When::any().once(), What::CutBody { after_bytes: 1_000_000 });
    let store = wrapped(aws(&server));
    let object = store.get(KEY, 0, None).await.unwrap();
    server.put_object("b", KEY, vec![0; 3_000_000]);
    let read: Result<Vec<Bytes>> = object.body.try_collect().await;
    assert_eq!(read.unwrap_err().kind(), Kind::Changed);
}

// "Not there".

#[tokio::test]
async fn an_absent_key_takes_one_request() {
    let server = server();
    assert_eq!(failed_get(aws(&server)).await.kind(), Kind::NotFound);
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn a_denied_get_asks_a_listing_whether_the_key_is_there() {
    let server = server();
    let id = server.faults().add(When::operation(Operation::GetObject), What::access_denied());
    // Keys that only begin like it do not count.
    server.put_object("b", &format!("{KEY}.more"), "bytes");
    assert_eq!(failed_get(aws(&server)).await.kind(), Kind::NotFound);
    assert_eq!((server.requests().len(), server.count(Operation::ListObjectsV2, KEY)), (2, 1));

    server.put_object("b", KEY, "bytes");
    let error = failed_get(aws(&server)).await;
    assert_eq!(error.kind(), Kind::Denied);
    assert!(hint(&error).contains("s3:GetObject"), "{}", hint(&error));
    assert_eq!(server.faults().hits(id), 2);
}

#[tokio::test]
async fn without_the_right_to_list_a_denied_get_is_no_absence() {
    let server = server();
    server.deny_list(true);
    for _ in 0..2 {
        server.clear_requests();
        let error = failed_get(aws(&server)).await;
        assert_eq!(error.kind(), Kind::Denied);
        assert_eq!(
            hint(&error),
            "S3 answers 403, not 404, for an absent key when the credentials lack s3:ListBucket: grant s3:ListBucket on \
             the bucket (limited to the prefix), else wal-eve cannot tell an absent file from a forbidden one."
        );
        assert_eq!(server.requests().len(), 2);
    }
    let error = wrapped(aws(&server)).head(KEY).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Denied);
}

#[tokio::test]
async fn a_listing_that_fails_is_no_absence_either() {
    let server = server();
    server.faults().add(When::operation(Operation::GetObject), What::access_denied());
    server.faults().add(When::list(), What::slow_down());
    assert_eq!(failed_get(aws(&server)).await.kind(), Kind::Unavailable);
}

#[tokio::test]
async fn a_page_without_rows_is_not_the_end_of_a_listing() {
    let server = server();
    server.put_object("b", KEY, "bytes");
    let with_token = server.faults().add(When::list(), What::EmptyPage { with_token: true });
    let page = wrapped(aws(&server)).list("", None).await.unwrap();
    assert_eq!((page.objects.len(), page.objects[0].key.as_str(), page.more), (1, KEY, false));
    assert_eq!(server.faults().hits(with_token), 2);
    server.faults().clear();
    server.faults().add(When::list(), What::EmptyPage { with_token: false });
    assert_eq!(wrapped(aws(&server)).list("", None).await.unwrap_err().kind(), Kind::Unavailable);
    // nor does it say that a key is absent
    server.faults().add(When::operation(Operation::GetObject), What::access_denied());
    assert_eq!(failed_get(aws(&server)).await.kind(), Kind::Unavailable);
}

#[tokio::test]
async fn a_missing_bucket_is_no_missing_key() {
    let server = server();
    let options = || S3Options { bucket: "typo".into(), ..aws(&server) };
    let error = failed_get(options()).await;
    assert_eq!(error.kind(), Kind::Misconfigured);
    assert!(hint(&error).contains("no bucket \"typo\""), "{}", hint(&error));
    assert_eq!(server.requests().len(), 1);
    // HEAD alone could not tell.
    assert_eq!(wrapped(options()).head(KEY).await.unwrap_err().kind(), Kind::Misconfigured);
}

#[tokio::test]
async fn a_404_that_s3_did_not_write_is_no_absence() {
    let server = server();
    server.faults().add(When::any(), What::Error { status: 404, code: "", message: "" });
    assert_eq!(failed_get(aws(&server)).await.kind(), Kind::Misconfigured);
    server.faults().clear();
    server.faults().add(When::any(), What::Error { status: 404, code: "NotFound", message: "page not found" });
    let kind = failed_get(aws(&server)).await.kind();
    assert!(!matches!(kind, Kind::NotFound | Kind::Unavailable), "{kind:?}");
}

/// A server that answers everything with the same bytes, as proxies and portals do.
async fn answering(status_line: &'static str) -> (String, tokio::task::JoinHandle<()>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http+path://{}", listener.local_addr().unwrap());
    let page = "<!DOCTYPE html><html><head><title>Sorry</title></head><body><p>Sorry<br></body></html>";
    let answer = format!(
        "HTTP/1.1 {status_line}\r\nContent-Type: text/html\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{page}",
        page.len()
    );
    let serve = async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let mut request = [0; 16 << 10];
            let _ = connection.read(&mut request).await;
            let _ = connection.write_all(answer.as_bytes()).await;
        }
    };
    (endpoint, tokio::spawn(serve))
}

#[tokio::test]
async fn a_page_that_no_s3_server_wrote_is_no_absence() {
    for (status_line, kind) in [
        ("404 Not Found", Kind::Misconfigured),
        ("403 Forbidden", Kind::Denied),
        ("407 Proxy Authentication Required", Kind::Other),
        ("301 Moved Permanently", Kind::Misconfigured),
        ("503 Service Unavailable", Kind::Unavailable),
    ] {
        let (endpoint, served) = answering(status_line).await;
        let endpoint = Some(endpoint.parse().unwrap());
        let options = S3Options { credentials: given("k", "s"), ..S3Options::new("b", endpoint) };
        let store = wrapped(options);
        let error = read(&store, KEY).await.unwrap_err();
        assert_eq!(error.kind(), kind, "get, {status_line}");
        assert!(!hint(&error).contains("s3:"), "{status_line}: {}", hint(&error));
        assert_eq!(store.head(KEY).await.unwrap_err().kind(), kind, "head, {status_line}");
        assert_eq!(store.list("p/", None).await.unwrap_err().kind(), kind, "list, {status_line}");
        assert_eq!(put(&store, KEY, b"x").await.unwrap_err().kind(), kind, "put, {status_line}");
        assert_eq!(store.delete(KEY).await.unwrap_err().kind(), kind, "delete, {status_line}");
        served.abort();
    }
    // A listing that is none is not an empty one.
    let (endpoint, served) = answering("200 OK").await;
    let endpoint = Some(endpoint.parse().unwrap());
    let store = wrapped(S3Options { credentials: given("k", "s"), ..S3Options::new("b", endpoint) });
    assert!(store.list("p/", None).await.is_err());
    served.abort();
}

// Credentials and addresses.

#[tokio::test]
async fn a_wrong_key_or_secret_is_given_up_within_ten_seconds() {
    let server = server();
    for (credentials, name) in
        [(given("AKIAWRONG", SECRET_KEY), "AWS_ACCESS_KEY_ID"), (given(ACCESS_KEY, "wrong"), "AWS_SECRET_ACCESS_KEY")]
    {
        server.clear_requests();
        let begun = Instant::now();
        let error = failed_get(S3Options { credentials: credentials.clone(), ..aws(&server) }).await;
        assert_eq!(error.kind(), Kind::Credentials);
        assert!(hint(&error).contains(name), "{}", hint(&error));
        assert_eq!(server.requests().len(), 3);
        assert!(begun.elapsed() < Duration::from_secs(10));
        // The answer to a HEAD has no code; it is found out.
        let head = S3Store::new(S3Options { credentials, ..aws(&server) }).head(KEY).await;
        assert_eq!(head.unwrap_err().kind(), Kind::Credentials);
    }
}

fn write_envdir(directory: &Path, credentials: &ServerCredentials) {
    std::fs::write(directory.join("AWS_ACCESS_KEY_ID"), &credentials.access_key).unwrap();
    std::fs::write(directory.join("AWS_SECRET_ACCESS_KEY"), &credentials.secret_key).unwrap();
    std::fs::write(directory.join("AWS_SECURITY_TOKEN"), credentials.session_token.as_deref().unwrap_or("")).unwrap();
}

#[tokio::test]
async fn a_command_goes_on_with_the_newer_credentials_of_its_envdir() {
    let (server, directory) = (server(), tempfile::tempdir().unwrap());
    let body = noise(3_000_000);
    server.put_object("b", KEY, body.clone());
    let old = ServerCredentials::new("ASIAOLD", "old secret").with_session_token("old");
    let new = ServerCredentials::new("ASIANEW", "new secret").with_session_token("new");
    server.accept(old.clone());
    server.accept(new.clone());
    write_envdir(directory.path(), &old);
    // The body breaks, and by then the credentials have expired.
    server.faults().add(When::any().once(), What::CutBody { after_bytes: 1_000_000 });
    let store = wrapped(S3Options { credentials: Credentials::EnvDir(directory.path().into()), ..aws(&server) });
    let object = store.get(KEY, 0, None).await.unwrap();
    server.expire("ASIAOLD");
    let rotation = async {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        write_envdir(directory.path(), &new);
    };
    let (read, ()) = tokio::join!(object.body.try_collect::<Vec<Bytes>>(), rotation);
    assert_eq!(read.unwrap().concat(), body);
    let requests = server.requests();
    let last = requests.last().unwrap();
    assert_eq!((last.access_key.as_deref(), last.range()), (Some("ASIANEW"), Some("bytes=1000000-")));
}

#[tokio::test]
async fn expired_credentials_that_cannot_be_renewed_are_given_up() {
    let server = server();
    server.expire(ACCESS_KEY);
    let error = failed_get(aws(&server)).await;
    assert_eq!(error.kind(), Kind::Credentials);
    assert!(hint(&error).contains("--envdir"), "{}", hint(&error));
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn an_envdir_without_keys_says_which_file() {
    let (server, directory) = (server(), tempfile::tempdir().unwrap());
    let error =
        failed_get(S3Options { credentials: Credentials::EnvDir(directory.path().into()), ..aws(&server) }).await;
    assert_eq!(error.kind(), Kind::Credentials);
    assert!(error.cause().contains("AWS_ACCESS_KEY_ID"), "{}", error.cause());
    assert_eq!(server.requests().len(), 0);
}

#[tokio::test]
async fn an_unreachable_endpoint_fails_in_bounded_time() {
    // a port that another test's server cannot be given
    let options = S3Options { endpoint: Some("http+path://127.0.0.1:1".parse().unwrap()), ..aws(&server()) };
    let begun = Instant::now();
    let error = failed_get(options.clone()).await;
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.cause().to_lowercase().contains("refused"), "{}", error.cause());
    // Names under .invalid never exist.
    let endpoint = Some("http+path://s3.invalid:1".parse().unwrap());
    let error = failed_get(S3Options { endpoint, ..options }).await;
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(hint(&error).contains("s3.invalid"), "{}: {}", error.cause(), hint(&error));
    assert!(begun.elapsed() < Duration::from_secs(60));
}

#[tokio::test]
async fn a_server_without_tls_is_no_outage() {
    let server = server();
    let endpoint = Some(format!("https+path://127.0.0.1:{}", server.port()).parse().unwrap());
    let error = failed_get(S3Options { endpoint, ..aws(&server) }).await;
    assert_eq!(error.kind(), Kind::Misconfigured, "{}", error.cause());
    assert!(hint(&error).contains("TLS"), "{}", hint(&error));
}

#[tokio::test]
async fn a_wrong_region_or_clock_or_an_archived_object_fails_at_once_with_a_hint() {
    for (status, code, message, kind, expected) in [
        (400, "AuthorizationHeaderMalformed", "expecting 'eu-west-1'", Kind::Misconfigured, "eu-west-1"),
        (403, "RequestTimeTooSkewed", "too large", Kind::Misconfigured, "clock"),
        (403, "InvalidObjectState", "not valid", Kind::Denied, "restore"),
    ] {
        let server = server();
        server.faults().add(When::any(), What::Error { status, code, message });
        let error = failed_get(aws(&server)).await;
        assert_eq!(error.kind(), kind, "{code}");
        assert!(hint(&error).contains(expected), "{code}: {}", hint(&error));
        assert_eq!(server.requests().len(), 1, "{code}");
    }
}

// Writing.

#[tokio::test]
async fn aws_takes_one_conditional_request_a_put() {
    let server = server();
    let store = wrapped(aws(&server));
    assert_eq!(put(&store, KEY, b"first").await.unwrap(), Put::Stored);
    assert_eq!(put(&store, KEY, b"second").await.unwrap(), Put::Exists);
    let requests = server.requests();
    assert_eq!(requests.len(), 2);
    for request in &requests {
        assert_eq!(request.header("if-none-match"), Some("*"));
        assert_eq!(request.header("x-amz-server-side-encryption"), Some("AES256"));
        assert!(request.header("x-amz-checksum-crc32c").is_some());
    }
    assert_eq!(server.object("b", KEY).unwrap().body, "first");
}

#[tokio::test]
async fn options_reach_the_server() {
    let server = server();
    let kms = Sse::Kms { key_id: Some("key-1".into()) };
    let options = S3Options { sse: kms, storage_class: Some("STANDARD_IA".into()), ..aws(&server) };
    let metadata = vec![("wal-eve-sha256".to_owned(), "abc".to_owned())];
    let put_options = PutOptions { content_type: "text/plain", metadata };
    let store = wrapped(options);
    store.put(KEY, Bytes::from_static(b"x").into(), &put_options).await.unwrap();
    let upload = store.begin_upload("p/parts", &put_options).await.unwrap();
    upload.part(1, 0, Bytes::from_static(b"x").into()).await.unwrap();
    assert_eq!(upload.finish().await.unwrap(), Put::Stored);
    for operation in [Operation::PutObject, Operation::CreateMultipartUpload] {
        let requests = server.requests();
        let request = requests.iter().find(|request| request.operation == operation).unwrap();
        assert_eq!(request.header("x-amz-server-side-encryption"), Some("aws:kms"));
        assert_eq!(request.header("x-amz-server-side-encryption-aws-kms-key-id"), Some("key-1"));
        assert_eq!(request.header("x-amz-storage-class"), Some("STANDARD_IA"));
        assert_eq!(request.header("content-type"), Some("text/plain"));
        assert_eq!(request.header("x-amz-meta-wal-eve-sha256"), Some("abc"));
    }
    for key in [KEY, "p/parts"] {
        assert_eq!(store.head(key).await.unwrap().metadata("wal-eve-sha256"), Some("abc"));
    }
}

#[tokio::test]
async fn a_server_that_ignores_conditions_is_asked_first() {
    let server = server();
    server.faults().add(When::any(), What::IgnoreCondition);
    server.put_object("b", KEY, "first");
    let store = wrapped(custom(&server));
    assert_eq!(put(&store, KEY, b"second").await.unwrap(), Put::Exists);
    let upload = store.begin_upload(KEY, &PutOptions::default()).await.unwrap();
    upload.part(1, 0, Bytes::from_static(b"third").into()).await.unwrap();
    assert_eq!(upload.finish().await.unwrap(), Put::Exists);
    assert_eq!(server.object("b", KEY).unwrap().body, "first");
    assert_eq!(server.count(Operation::PutObject, KEY), 0);
    assert_eq!(server.count(Operation::CompleteMultipartUpload, KEY), 0);
    assert!(server.unfinished_uploads().is_empty());
}

#[tokio::test]
async fn a_server_that_refuses_conditions_is_asked_first_and_written_without() {
    let server = server();
    server.faults().add(When::any(), What::condition_not_implemented());
    let store = wrapped(custom(&server));
    assert_eq!(put(&store, "p/1", b"first").await.unwrap(), Put::Stored);
    assert_eq!(put(&store, "p/1", b"second").await.unwrap(), Put::Exists);
    assert_eq!(put(&store, "p/2", b"first").await.unwrap(), Put::Stored);
    assert_eq!(server.object("b", "p/1").unwrap().body, "first");
    // One try with the condition is enough.
    assert_eq!((server.count(Operation::PutObject, "p/1"), server.count(Operation::PutObject, "p/2")), (2, 1));
    let upload = store.begin_upload("p/3", &PutOptions::default()).await.unwrap();
    upload.part(1, 0, Bytes::from_static(b"x").into()).await.unwrap();
    assert_eq!(upload.finish().await.unwrap(), Put::Stored);
}

#[tokio::test]
async fn a_server_declared_to_honour_conditions_must() {
    let server = server();
    server.faults().add(When::any(), What::condition_not_implemented());
    assert_eq!(put(&wrapped(aws(&server)), KEY, b"x").await.unwrap_err().kind(), Kind::Misconfigured);
    assert!(server.object("b", KEY).is_none());
}

#[tokio::test]
async fn a_conflicting_put_is_made_again() {
    let server = server();
    server.faults().add(When::operation(Operation::PutObject).times(2), What::conditional_conflict());
    assert_eq!(put(&wrapped(aws(&server)), KEY, b"x").await.unwrap(), Put::Stored);
    assert_eq!(server.count(Operation::PutObject, KEY), 3);
}

#[tokio::test]
async fn a_put_whose_answer_is_lost_finds_the_object() {
    let server = server();
    server.faults().add(When::operation(Operation::PutObject).once(), What::LoseResponse);
    assert_eq!(put(&wrapped(aws(&server)), KEY, b"x").await.unwrap(), Put::Exists);
    assert_eq!((server.count(Operation::PutObject, KEY), server.count(Operation::HeadObject, KEY)), (1, 1));
}

#[tokio::test]
async fn a_put_that_is_cut_is_made_again() {
    let server = server();
    server.faults().add(When::operation(Operation::PutObject).once(), What::CutBody { after_bytes: 100_000 });
    let store = wrapped(aws(&server));
    let body = Bytes::from(noise(1_000_000));
    assert_eq!(store.put(KEY, body.clone().into(), &PutOptions::default()).await.unwrap(), Put::Stored);
    assert_eq!(server.object("b", KEY).unwrap().body, body);
}

#[tokio::test]
async fn an_upload_that_stalls_is_made_again() {
    let server = server();
    let stall = What::StallBody { after_bytes: 1_000_000, pause: Duration::from_secs(120) };
    server.faults().add(When::operation(Operation::PutObject).once(), stall.clone());
    server.faults().add(When::operation(Operation::UploadPart).once(), stall);
    let store = wrapped(S3Options { stall_timeout: Duration::from_secs(5), ..aws(&server) });
    // More than the kernel buffers on both sides.
    let body = Bytes::from(noise(32 << 20));
    let begun = Instant::now();
    assert_eq!(store.put(KEY, body.clone().into(), &PutOptions::default()).await.unwrap(), Put::Stored);
    let upload = store.begin_upload("p/parts", &PutOptions::default()).await.unwrap();
    upload.part(1, 0, body.clone().into()).await.unwrap();
    assert_eq!(upload.finish().await.unwrap(), Put::Stored);
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    assert_eq!((server.count(Operation::PutObject, KEY), server.count(Operation::UploadPart, "")), (2, 2));
    assert_eq!(server.object("b", KEY).unwrap().body, body);
}

#[tokio::test]
async fn damage_on_the_way_to_the_server_is_refused_and_sent_again() {
    for options in [aws, custom] {
        let server = server();
        server.faults().add(When::operation(Operation::PutObject).once(), What::FlipByte { at: 500_000 });
        server.faults().add(When::operation(Operation::UploadPart).once(), What::FlipByte { at: 500_000 });
        let store = wrapped(options(&server));
        let body = Bytes::from(noise(1_000_000));
        assert_eq!(store.put(KEY, body.clone().into(), &PutOptions::default()).await.unwrap(), Put::Stored);
        let upload = store.begin_upload("p/parts", &PutOptions::default()).await.unwrap();
        upload.part(1, 0, body.clone().into()).await.unwrap();
        assert_eq!(upload.finish().await.unwrap(), Put::Stored);
        for key in [KEY, "p/parts"] {
            assert_eq!(server.object("b", key).unwrap().body, body);
        }
        assert_eq!((server.count(Operation::PutObject, KEY), server.count(Operation::UploadPart, "")), (2, 2));
    }
}

#[tokio::test]
async fn a_server_that_knows_no_checksums_gets_none() {
    let server = server();
    let id = server.faults().add(When::any(), What::RejectChecksums);
    let store = wrapped(custom(&server));
    assert_eq!(put(&store, KEY, b"x").await.unwrap(), Put::Stored);
    let upload = store.begin_upload("p/parts", &PutOptions::default()).await.unwrap();
    upload.part(1, 0, Bytes::from_static(b"x").into()).await.unwrap();
    assert_eq!(upload.finish().await.unwrap(), Put::Stored);
    assert_eq!(read(&store, KEY).await.unwrap(), b"x");
    store.delete(KEY).await.unwrap();
    assert_eq!(server.faults().hits(id), 0);
}

/// Begins an upload of one part.
async fn uploaded(store: &Arc<dyn Store>, key: &str) -> Box<dyn storage::Upload> {
    let upload = store.begin_upload(key, &PutOptions::default()).await.unwrap();
    upload.part(1, 0, Bytes::from_static(b"part").into()).await.unwrap();
    upload
}

#[tokio::test]
async fn an_error_within_a_200_is_an_error() {
    let server = server();
    let inside = || What::ErrorInside200 { code: "InternalError", message: "We encountered an internal error." };
    let id = server.faults().add(When::operation(Operation::CompleteMultipartUpload).once(), inside());
    let store = wrapped(aws(&server));
    let upload = uploaded(&store, KEY).await;
    assert_eq!(upload.finish().await.unwrap(), Put::Stored);
    assert_eq!((server.faults().hits(id), server.count(Operation::CompleteMultipartUpload, KEY)), (1, 2));

    server.faults().add(When::operation(Operation::CompleteMultipartUpload), inside());
    let upload = uploaded(&store, "p/never").await;
    assert_eq!(upload.finish().await.unwrap_err().kind(), Kind::Unavailable);
    assert!(server.object("b", "p/never").is_none());
}

#[tokio::test]
async fn a_completion_whose_answer_is_lost_is_found_out() {
    for options in [aws, custom] {
        let server = server();
        server.faults().add(When::operation(Operation::CompleteMultipartUpload).once(), What::LoseResponse);
        let store = wrapped(options(&server));
        let upload = uploaded(&store, KEY).await;
        assert_eq!(upload.finish().await.unwrap(), Put::Stored);
        assert_eq!(server.count(Operation::CompleteMultipartUpload, KEY), 2);
    }
}

#[tokio::test]
async fn another_writer_between_the_tries_of_a_completion_is_noticed() {
    let server = server();
    server.faults().add(When::operation(Operation::CompleteMultipartUpload).once(), What::internal_error());
    let store = S3Store::new(aws(&server));
    let upload = store.begin_upload(KEY, &PutOptions::default()).await.unwrap();
    upload.part(1, 0, Bytes::from_static(b"part").into()).await.unwrap();
    assert_eq!(upload.finish().await.unwrap_err().kind(), Kind::Unavailable);
    server.put_object("b", KEY, "theirs");
    assert_eq!(upload.finish().await.unwrap(), Put::Exists);
    assert_eq!(server.object("b", KEY).unwrap().body, "theirs");
    assert!(server.unfinished_uploads().is_empty());
}

#[tokio::test]
async fn an_upload_that_is_gone_is_an_error() {
    let server = server();
    let store = wrapped(aws(&server));
    let upload = uploaded(&store, KEY).await;
    uploaded(&store, KEY).await; // Another one does not count.
    upload.abort().await.unwrap();
    upload.abort().await.unwrap();
    assert_eq!(upload.finish().await.unwrap_err().kind(), Kind::Other);
    assert!(server.object("b", KEY).is_none());
}

#[tokio::test]
async fn an_upload_without_parts_is_an_empty_object() {
    let server = server();
    let store = wrapped(aws(&server));
    let upload = store.begin_upload(KEY, &PutOptions::default()).await.unwrap();
    assert_eq!(upload.finish().await.unwrap(), Put::Stored);
    assert_eq!(server.object("b", KEY).unwrap().body, "");
    assert!(server.unfinished_uploads().is_empty());
}

#[tokio::test]
async fn a_dotted_or_incompatible_bucket_is_addressed_by_path() {
    for bucket in ["my.dotted.bucket", "My_Old_Bucket"] {
        let server = S3Server::start();
        server.create_bucket(bucket);
        let endpoint = Some(Endpoint::from_url(&server.endpoint_url()).unwrap());
        let store = wrapped(S3Options { bucket: bucket.into(), endpoint, ..aws(&server) });
        assert_eq!(put(&store, KEY, b"x").await.unwrap(), Put::Stored);
        assert_eq!(server.keys(bucket, ""), [KEY]);
    }
}

#[tokio::test]
async fn a_bucket_as_host_name_has_its_keys_at_the_root() {
    let server = server();
    let port = server.port();
    // "localhost" stands for a bucket whose name leads to the server.
    let endpoint: Endpoint = format!("http+virtualhost://ignored:{port}").parse().unwrap();
    let store = S3Store::new(S3Options { bucket: "localhost".into(), endpoint: Some(endpoint), ..aws(&server) });
    let _ = store.get("b/key", 0, None).await;
    let requests = server.requests();
    assert_eq!((requests[0].bucket.as_str(), requests[0].key.as_str()), ("b", "key"));
    assert_eq!(requests[0].header("host"), Some(format!("localhost:{port}").as_str()));
}

#[tokio::test]
async fn no_more_requests_are_under_way_than_the_limit() {
    let server = server();
    server.put_object("b", KEY, noise(100_000));
    server.faults().add(When::any(), What::Delay(Duration::from_millis(50)));
    let store = wrapped(aws(&server));
    let reads = (0..16).map(|_| read(&store, KEY));
    futures::future::try_join_all(reads).await.unwrap();
    assert!(server.peak_in_flight() <= 4, "{} at once", server.peak_in_flight());
}
