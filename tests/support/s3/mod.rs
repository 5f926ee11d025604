//! An S3 server in this process: objects in memory, real HTTP on a loopback port, and faults on demand.
//!
//! It runs on a runtime of its own, so that synchronous tests and tests with a paused clock can use it alike. Signatures
//! are verified (version 4, and version 2 as WAL-E sends it to an endpoint of its own). Addressing is path style.
//!
//! ```ignore
//! let server = S3Server::start();
//! server.create_bucket("b");
//! let fault = server.faults().add(When::operation(Operation::GetObject).key("wal_005/").once(), What::slow_down());
//! // … run the client against server.endpoint_url() …
//! assert_eq!(server.faults().hits(fault), 1);
//! assert_eq!(server.count(Operation::GetObject, "wal_005/"), 2);
//! ```

#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    clippy::unwrap_used,
    reason = "compiled into many test programs, each of which uses a part; a test may panic"
)]

mod credentials;
mod faults;
mod request_log;
mod service;
mod shaped_body;
mod store;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use bytes::Bytes;
use futures::StreamExt;
use hyper::body::Incoming;
use hyper::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::TokioIo;
use s3s::Body;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::validation::NameValidation;

pub use credentials::Credentials;
pub use faults::{Fault, FaultId, Faults, What, When};
pub use request_log::{Operation, Request};
pub use store::{Part, StoredObject, Upload};

use credentials::{Anonymous, CredentialTable, Verifier};
use request_log::RequestLog;
use service::{ConditionIgnored, FirstPageEmpty, Service};
use shaped_body::{BoxError, InFlight, Shape, ShapedBody};
use store::Store;

/// What the server accepts unless it is told otherwise.
pub const ACCESS_KEY: &str = "AKIAWALEVETEST000001";
pub const SECRET_KEY: &str = "wal-eve/test+secret/key+0000000000000001";
pub const REGION: &str = "us-east-1";

/// The smallest part S3 takes, save the last one.
const MINIMUM_PART_SIZE_BYTES: usize = 5 * 1024 * 1024;

pub(crate) struct Shared {
    store: Mutex<Store>,
    faults: Faults,
    log: RequestLog,
    credentials: Arc<Mutex<CredentialTable>>,
    deny_list: AtomicBool,
    /// The prefix that alone may be read, with nothing else allowed.
    read_only_below: Mutex<Option<String>>,
    in_flight: Arc<AtomicUsize>,
    peak_in_flight: AtomicUsize,
    connections: AtomicUsize,
    etag_is_md5: bool,
    logs_requests: bool,
    minimum_part_size_bytes: usize,
    next_etag: AtomicU64,
}

impl Shared {
    fn allows(&self, request: &Request) -> bool {
        let reads_below = |prefix: &String| request.operation.is_read() && request.key.starts_with(prefix);
        let denied_list = request.operation.is_list() && self.deny_list.load(Ordering::SeqCst);
        !denied_list && self.read_only_below.lock().unwrap().as_ref().is_none_or(reads_below)
    }

    /// Whether an absent key is told from a forbidden one.
    fn tells_absent_keys(&self) -> bool {
        !self.deny_list.load(Ordering::SeqCst) && self.read_only_below.lock().unwrap().is_none()
    }

    /// A different value each time, where computing an MD5 would cost too much.
    fn stand_in_for_md5(&self) -> [u8; 16] {
        let number = self.next_etag.fetch_add(1, Ordering::Relaxed);
        let mut value = [0xee; 16];
        value[8..].copy_from_slice(&number.to_be_bytes());
        value
    }
}

/// Options of a server; [`S3Server::start`] takes the defaults.
#[derive(Debug, Clone)]
pub struct S3ServerBuilder {
    credentials: Credentials,
    port: u16,
    anonymous: bool,
    etag_is_md5: bool,
    logs_requests: bool,
    minimum_part_size_bytes: usize,
    receive_buffer_bytes: Option<usize>,
    threads: usize,
}

impl S3ServerBuilder {
    pub fn credentials(mut self, credentials: Credentials) -> Self {
        self.credentials = credentials;
        self
    }

    /// A fixed port instead of a free one.
    pub fn port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// Whether requests without a signature are served.
    pub fn anonymous(mut self, yes: bool) -> Self {
        self.anonymous = yes;
        self
    }

    /// Whether ETags are MD5s (the default) or cheap stand-ins for benchmarks: what `Content-MD5` claims, unchecked, since
    /// WAL-E compares them, or a number.
    pub fn etag_is_md5(mut self, yes: bool) -> Self {
        self.etag_is_md5 = yes;
        self
    }

    /// Whether requests are kept for [`S3Server::requests`].
    pub fn logs_requests(mut self, yes: bool) -> Self {
        self.logs_requests = yes;
        self
    }

    /// 5 MiB by default, as in S3.
    pub fn minimum_part_size_bytes(mut self, bytes: usize) -> Self {
        self.minimum_part_size_bytes = bytes;
        self
    }

    /// What the kernel takes for a connection before the server reads it; usually some MiB.
    pub fn receive_buffer_bytes(mut self, bytes: usize) -> Self {
        self.receive_buffer_bytes = Some(bytes);
        self
    }

    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    pub fn start(self) -> S3Server {
        let credentials =
            Arc::new(Mutex::new(CredentialTable { accepted: vec![self.credentials], expired: Vec::new() }));
        let shared = Arc::new(Shared {
            store: Mutex::default(),
            faults: Faults::default(),
            log: RequestLog::default(),
            credentials: Arc::clone(&credentials),
            deny_list: AtomicBool::new(false),
            read_only_below: Mutex::default(),
            in_flight: Arc::default(),
            peak_in_flight: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            etag_is_md5: self.etag_is_md5,
            logs_requests: self.logs_requests,
            minimum_part_size_bytes: self.minimum_part_size_bytes,
            next_etag: AtomicU64::new(0),
        });
        let mut builder = S3ServiceBuilder::new(Service(Arc::clone(&shared)));
        builder.set_auth(Verifier(credentials));
        builder.set_access(Anonymous(self.anonymous));
        builder.set_validation(AnyName);
        let service = builder.build();

        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(self.threads)
            .thread_name("s3-server")
            .enable_all()
            .build()
            .unwrap();
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        if let Some(bytes) = self.receive_buffer_bytes {
            // accepted connections inherit it
            rustix::net::sockopt::set_socket_recv_buffer_size(&listener, bytes).unwrap();
        }
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(accept(listener, Arc::clone(&shared), service));
        S3Server { shared, address, runtime: Some(runtime) }
    }
}

/// Takes any bucket name: old archives lie in buckets whose names are no longer allowed for new ones.
struct AnyName;

impl NameValidation for AnyName {
    fn validate_bucket_name(&self, _name: &str) -> bool {
        true
    }
}

/// A running server; dropping it closes the port and all connections.
pub struct S3Server {
    shared: Arc<Shared>,
    address: SocketAddr,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl S3Server {
    /// Starts a server on a free port that accepts [`ACCESS_KEY`] and [`SECRET_KEY`].
    pub fn start() -> Self {
        Self::builder().start()
    }

    pub fn builder() -> S3ServerBuilder {
        S3ServerBuilder {
            credentials: Credentials::new(ACCESS_KEY, SECRET_KEY),
            port: 0,
            anonymous: false,
            etag_is_md5: true,
            logs_requests: true,
            minimum_part_size_bytes: MINIMUM_PART_SIZE_BYTES,
            receive_buffer_bytes: None,
            threads: 2,
        }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Such as `http://127.0.0.1:34567`.
    pub fn endpoint_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The value of `WALE_S3_ENDPOINT`, such as `http+path://127.0.0.1:34567`.
    pub fn wale_s3_endpoint(&self) -> String {
        format!("http+path://{}", self.address)
    }

    /// What WAL-E and wal-eve need in the environment to use the server under `s3://bucket/prefix`.
    pub fn environment(&self, s3_prefix: &str) -> Vec<(String, String)> {
        let credentials = self.shared.credentials.lock().unwrap().accepted[0].clone();
        let mut environment = vec![
            ("WALE_S3_PREFIX".to_owned(), s3_prefix.to_owned()),
            ("WALE_S3_ENDPOINT".to_owned(), self.wale_s3_endpoint()),
            ("AWS_ACCESS_KEY_ID".to_owned(), credentials.access_key),
            ("AWS_SECRET_ACCESS_KEY".to_owned(), credentials.secret_key),
            ("AWS_REGION".to_owned(), REGION.to_owned()),
        ];
        if let Some(token) = credentials.session_token {
            environment.push(("AWS_SECURITY_TOKEN".to_owned(), token.clone()));
            environment.push(("AWS_SESSION_TOKEN".to_owned(), token));
        }
        environment
    }

    pub fn create_bucket(&self, bucket: &str) {
        let mut store = self.shared.store.lock().unwrap();
        store.buckets.entry(bucket.to_owned()).or_default();
    }

    pub fn delete_bucket(&self, bucket: &str) {
        self.shared.store.lock().unwrap().buckets.remove(bucket);
    }

    pub fn object(&self, bucket: &str, key: &str) -> Option<StoredObject> {
        let store = self.shared.store.lock().unwrap();
        store.buckets.get(bucket)?.get(key).cloned()
    }

    /// Stores an object without a request; panics when the bucket does not exist.
    pub fn put_object(&self, bucket: &str, key: &str, body: impl Into<Bytes>) {
        use s3s::crypto::{Checksum as _, Md5};
        let body = body.into();
        let md5 = match self.shared.etag_is_md5 {
            true => Md5::checksum(&body),
            false => self.shared.stand_in_for_md5(),
        };
        let object = StoredObject {
            etag: service::hex(&md5),
            body,
            content_type: None,
            metadata: Default::default(),
            sse: None,
            storage_class: None,
            last_modified: SystemTime::now(),
            checksum: Default::default(),
        };
        let mut store = self.shared.store.lock().unwrap();
        let objects = store.buckets.get_mut(bucket).expect("the bucket was created");
        objects.insert(key.to_owned(), object);
    }

    pub fn set_last_modified(&self, bucket: &str, key: &str, time: SystemTime) {
        self.edit(bucket, key, |object| object.last_modified = time);
    }

    /// Changes an object's bytes in place: damage at rest. The ETag and the checksums stay as they were.
    pub fn mutate(&self, bucket: &str, key: &str, change: impl FnOnce(&mut Vec<u8>)) {
        self.edit(bucket, key, |object| {
            let mut body = object.body.to_vec();
            change(&mut body);
            object.body = body.into();
        });
    }

    fn edit(&self, bucket: &str, key: &str, change: impl FnOnce(&mut StoredObject)) {
        let mut store = self.shared.store.lock().unwrap();
        let object = store
            .buckets
            .get_mut(bucket)
            .and_then(|objects| objects.get_mut(key))
            .unwrap_or_else(|| panic!("there is no object \"{key}\" in bucket \"{bucket}\""));
        change(object);
    }

    /// Removes an object; whether it was there.
    pub fn delete(&self, bucket: &str, key: &str) -> bool {
        let mut store = self.shared.store.lock().unwrap();
        let objects = store.buckets.get_mut(bucket);
        objects.is_some_and(|objects| objects.remove(key).is_some())
    }

    /// The keys that begin with `prefix`, ascending.
    pub fn keys(&self, bucket: &str, prefix: &str) -> Vec<String> {
        let store = self.shared.store.lock().unwrap();
        let keys = store.buckets.get(bucket).into_iter().flat_map(|objects| objects.keys());
        keys.filter(|key| key.starts_with(prefix)).cloned().collect()
    }

    /// The multipart uploads that are neither completed nor aborted.
    pub fn unfinished_uploads(&self) -> Vec<Upload> {
        self.shared.store.lock().unwrap().uploads.values().cloned().collect()
    }

    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// Takes the permission to list away: a LIST, and a GET or HEAD of an absent key, are answered 403 AccessDenied.
    pub fn deny_list(&self, yes: bool) {
        self.shared.deny_list.store(yes, Ordering::SeqCst);
    }

    /// Takes away all permissions but those to restore from below a prefix: `s3:GetObject` there, and `s3:ListBucket` on the
    /// condition that `s3:prefix` begins with it. Everything else is answered 403 AccessDenied, and so is, as in S3, a GET
    /// or HEAD of an absent key, to which that condition cannot apply.
    pub fn allow_only_reading(&self, prefix: &str) {
        *self.shared.read_only_below.lock().unwrap() = Some(prefix.to_owned());
    }

    /// Accepts these credentials besides those accepted so far.
    pub fn accept(&self, credentials: Credentials) {
        self.shared.credentials.lock().unwrap().accepted.push(credentials);
    }

    /// Accepts these credentials and no others: a rotation.
    pub fn accept_only(&self, credentials: Credentials) {
        self.shared.credentials.lock().unwrap().accepted = vec![credentials];
    }

    /// Answers ExpiredToken to all requests signed with this access key, whatever is accepted.
    pub fn expire(&self, access_key: &str) {
        let mut table = self.shared.credentials.lock().unwrap();
        table.expired.push(access_key.to_owned());
    }

    /// All requests since the start or the last [`Self::clear_requests`], in order of arrival.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.log.requests()
    }

    pub fn clear_requests(&self) {
        self.shared.log.clear();
        let now = self.shared.in_flight.load(Ordering::SeqCst);
        self.shared.peak_in_flight.store(now, Ordering::SeqCst);
    }

    /// How many requests of this operation had the substring in their key (or list prefix).
    pub fn count(&self, operation: Operation, key_contains: &str) -> usize {
        let counted = |request: &&Request| request.operation == operation && request.key.contains(key_contains);
        self.requests().iter().filter(counted).count()
    }

    /// The most requests ever at work at once. A small response leaves with its last byte handed to the kernel, so a
    /// test of concurrency should add a [`What::Delay`] or [`What::Bandwidth`].
    pub fn peak_in_flight(&self) -> usize {
        self.shared.peak_in_flight.load(Ordering::SeqCst)
    }

    /// How many TCP connections were accepted so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }
}

async fn accept(listener: std::net::TcpListener, shared: Arc<Shared>, service: S3Service) {
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::task::yield_now().await;
            continue;
        };
        shared.connections.fetch_add(1, Ordering::SeqCst);
        // Without it, a small response may wait for the acknowledgement of the one before.
        stream.set_nodelay(true).ok();
        let shared = Arc::clone(&shared);
        let service = service.clone();
        tokio::spawn(async move {
            let answer = service_fn(|request| answer(Arc::clone(&shared), service.clone(), request));
            // An error here is a client that went away or a connection cut by a fault.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

type Answer = Response<ShapedBody<Body>>;

/// Answers one request: log, credentials and faults here, all else in s3s. An error closes the connection.
async fn answer(
    shared: Arc<Shared>,
    service: S3Service,
    request: hyper::Request<Incoming>,
) -> Result<Answer, BoxError> {
    let in_flight = InFlight::enter(&shared.in_flight, &shared.peak_in_flight);
    let uri = request.uri();
    let parsed = Request::parse(request.method(), uri.path(), uri.query(), request.headers());
    let entry = shared.logs_requests.then(|| shared.log.arrived(parsed.clone()));
    let answer = decide(&shared, service, request, &parsed, in_flight).await?;
    if let Some(entry) = entry {
        shared.log.answered(entry, answer.status().as_u16());
    }
    Ok(answer)
}

async fn decide(
    shared: &Shared,
    service: S3Service,
    request: hyper::Request<Incoming>,
    parsed: &Request,
    in_flight: InFlight,
) -> Result<Answer, BoxError> {
    let struck = shared.faults.strike(parsed);
    let mut refusal = shared.credentials.lock().unwrap().refusal(parsed);
    if refusal.is_none() && !shared.allows(parsed) {
        refusal = Some((403, "AccessDenied", "Access Denied"));
    }
    let mut shape = Shape::default();
    let mut lose_response = false;
    let mut condition_ignored = false;
    let mut empty_page = None;
    for what in struck {
        match what {
            What::Error { status, code, message } | What::RefuseCondition { status, code, message } => {
                refusal = refusal.or(Some((status, code, message)));
            }
            What::ErrorInside200 { code, message } => refusal = refusal.or(Some((200, code, message))),
            What::RejectChecksums => {
                let message = "A header you provided implies functionality that is not implemented";
                refusal = refusal.or(Some((501, "NotImplemented", message)));
            }
            What::Delay(pause) => tokio::time::sleep(pause).await,
            What::LoseResponse => lose_response = true,
            What::IgnoreCondition => condition_ignored = true,
            What::EmptyPage { with_token } => empty_page = Some(FirstPageEmpty { with_token }),
            What::StallBody { after_bytes, pause } => shape.stall = Some((after_bytes, pause)),
            What::CutBody { after_bytes } => shape.cut = Some(after_bytes),
            What::FlipByte { at } => shape.flips.push(at),
            What::Bandwidth { bytes_per_second } => shape.bytes_per_second = Some(bytes_per_second),
        }
    }
    if let Some((status, code, message)) = refusal {
        drain(request.into_body()).await;
        return Ok(error_response(parsed, status, code, message, in_flight));
    }

    let was_cut = Arc::clone(&shape.was_cut);
    let (request_shape, response_shape) = match parsed.operation.is_upload() {
        true => (shape, Shape::default()),
        false => (Shape::default(), shape),
    };
    let mut request = request.map(|body| match request_shape.is_plain() {
        true => Body::from(body),
        false => Body::http_body_unsync(ShapedBody::new(body, request_shape, None)),
    });
    if condition_ignored {
        request.extensions_mut().insert(ConditionIgnored);
    }
    if let Some(empty) = empty_page {
        request.extensions_mut().insert(empty);
    }
    let response = service.call(request).await?;
    if lose_response || was_cut.load(Ordering::SeqCst) {
        return Err("the connection is closed here by a fault".into());
    }
    Ok(shaped(response, response_shape, in_flight))
}

/// Reads a body to its end, so that the client has written all of it before it is refused.
async fn drain(body: Incoming) {
    let mut body = Body::from(body);
    while let Some(Ok(_)) = body.next().await {}
}

fn shaped(response: Response<Body>, mut shape: Shape, in_flight: InFlight) -> Answer {
    // "bytes FIRST-LAST/TOTAL": offsets in the object become offsets in this body.
    let first = response
        .headers()
        .get(CONTENT_RANGE)
        .and_then(|range| range.to_str().ok()?.strip_prefix("bytes ")?.split('-').next()?.parse::<u64>().ok())
        .unwrap_or(0);
    shape.flips = shape.flips.iter().filter_map(|at| at.checked_sub(first)).collect();
    response.map(|body| ShapedBody::new(body, shape, Some(in_flight)))
}

fn error_response(request: &Request, status: u16, code: &str, message: &str, in_flight: InFlight) -> Answer {
    let document = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <Error><Code>{code}</Code><Message>{message}</Message><RequestId>FAULT</RequestId></Error>"
    );
    let body = match request.method == Method::HEAD {
        true => Body::empty(),
        false => Body::from(Bytes::from(document)),
    };
    let mut response = Response::new(ShapedBody::new(body, Shape::default(), Some(in_flight)));
    *response.status_mut() = StatusCode::from_u16(status).expect("faults name valid statuses");
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    response
}
