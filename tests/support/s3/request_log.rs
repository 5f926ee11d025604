//! The requests a server has been asked, in order of arrival.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Instant;

use hyper::HeaderMap;
use hyper::Method;

/// An S3 operation, named as in the S3 API reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    GetObject,
    HeadObject,
    PutObject,
    DeleteObject,
    DeleteObjects,
    ListObjects,
    ListObjectsV2,
    CreateMultipartUpload,
    UploadPart,
    CompleteMultipartUpload,
    AbortMultipartUpload,
    ListParts,
    ListMultipartUploads,
    HeadBucket,
    CreateBucket,
    GetBucketLocation,
    ListBuckets,
    Other,
}

impl Operation {
    /// Whether the operation lists keys, in either version of the API.
    pub fn is_list(self) -> bool {
        matches!(self, Self::ListObjects | Self::ListObjectsV2)
    }

    /// Whether the operation reads an object or lists keys, and changes nothing.
    pub fn is_read(self) -> bool {
        matches!(self, Self::GetObject | Self::HeadObject) || self.is_list()
    }

    /// Whether the request, not the response, carries the object's bytes.
    pub fn is_upload(self) -> bool {
        matches!(self, Self::PutObject | Self::UploadPart)
    }
}

/// One request as it arrived, and the status it was answered with.
#[derive(Debug, Clone)]
pub struct Request {
    pub operation: Operation,
    pub method: Method,
    pub bucket: String,
    /// The object's key; for the list operations the `prefix` parameter.
    pub key: String,
    pub query: BTreeMap<String, String>,
    pub headers: HeaderMap,
    pub access_key: Option<String>,
    pub arrived: Instant,
    /// None while no answer was sent: still at work, stalled, or cut.
    pub status: Option<u16>,
}

impl Request {
    pub(super) fn parse(method: &Method, path: &str, query: Option<&str>, headers: &HeaderMap) -> Self {
        let query: BTreeMap<String, String> = query
            .unwrap_or_default()
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(name, value)| (percent_decoded(name, true), percent_decoded(value, true)))
            .collect();
        let path = percent_decoded(path.strip_prefix('/').unwrap_or(path), false);
        let (bucket, key) = path.split_once('/').unwrap_or((&path, ""));
        let operation = operation_of(method, bucket, key, &query, headers);
        let key = match key {
            "" => query.get("prefix").cloned().unwrap_or_default(),
            key => key.to_owned(),
        };
        Self {
            operation,
            method: method.clone(),
            bucket: bucket.to_owned(),
            key,
            query,
            headers: headers.clone(),
            access_key: access_key_of(headers),
            arrived: Instant::now(),
            status: None,
        }
    }

    /// A header's value; None when it is absent or not text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The `Range` header as it was sent, such as `bytes=100-`.
    pub fn range(&self) -> Option<&str> {
        self.header("range")
    }

    /// Whether the request carries `If-None-Match` or `If-Match`.
    pub fn is_conditional(&self) -> bool {
        self.header("if-none-match").is_some() || self.header("if-match").is_some()
    }
}

fn operation_of(
    method: &Method,
    bucket: &str,
    key: &str,
    query: &BTreeMap<String, String>,
    headers: &HeaderMap,
) -> Operation {
    let has = |name: &str| query.contains_key(name);
    match (method.as_str(), bucket.is_empty(), key.is_empty()) {
        ("GET", true, _) => Operation::ListBuckets,
        ("GET", _, true) if has("location") => Operation::GetBucketLocation,
        ("GET", _, true) if has("uploads") => Operation::ListMultipartUploads,
        ("GET", _, true) if query.get("list-type").is_some_and(|version| version == "2") => Operation::ListObjectsV2,
        ("GET", _, true) => Operation::ListObjects,
        ("HEAD", _, true) => Operation::HeadBucket,
        ("PUT", _, true) => Operation::CreateBucket,
        ("POST", _, true) if has("delete") => Operation::DeleteObjects,
        ("GET", _, false) if has("uploadId") => Operation::ListParts,
        ("GET", _, false) => Operation::GetObject,
        ("HEAD", _, false) => Operation::HeadObject,
        ("PUT", _, false) if headers.contains_key("x-amz-copy-source") => Operation::Other,
        ("PUT", _, false) if has("uploadId") => Operation::UploadPart,
        ("PUT", _, false) => Operation::PutObject,
        ("POST", _, false) if has("uploads") => Operation::CreateMultipartUpload,
        ("POST", _, false) if has("uploadId") => Operation::CompleteMultipartUpload,
        ("DELETE", _, false) if has("uploadId") => Operation::AbortMultipartUpload,
        ("DELETE", _, false) => Operation::DeleteObject,
        _ => Operation::Other,
    }
}

/// The access key of a version 4 (`Credential=KEY/…`) or version 2 (`AWS KEY:…`) signature.
fn access_key_of(headers: &HeaderMap) -> Option<String> {
    let authorization = headers.get("authorization")?.to_str().ok()?;
    if let Some((_, rest)) = authorization.split_once("Credential=") {
        return rest.split('/').next().map(str::to_owned);
    }
    let rest = authorization.strip_prefix("AWS ")?;
    rest.split(':').next().map(str::to_owned)
}

fn percent_decoded(text: &str, plus_is_space: bool) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%')
            .then(|| text.get(at + 1..at + 3))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        decoded.push(match (escaped, bytes[at]) {
            (Some(byte), _) => byte,
            (None, b'+') if plus_is_space => b' ',
            (None, byte) => byte,
        });
        at += if escaped.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// Where in the log a request stands; stale once the log has been cleared.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    epoch: usize,
    index: usize,
}

#[derive(Debug, Default)]
pub(super) struct RequestLog {
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    epoch: usize,
    requests: Vec<Request>,
}

impl RequestLog {
    pub(super) fn arrived(&self, request: Request) -> Entry {
        let mut entries = self.entries.lock().unwrap();
        entries.requests.push(request);
        Entry { epoch: entries.epoch, index: entries.requests.len() - 1 }
    }

    pub(super) fn answered(&self, entry: Entry, status: u16) {
        let mut entries = self.entries.lock().unwrap();
        if entries.epoch == entry.epoch {
            entries.requests[entry.index].status = Some(status);
        }
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        self.entries.lock().unwrap().requests.clone()
    }

    pub(super) fn clear(&self) {
        let mut entries = self.entries.lock().unwrap();
        entries.epoch += 1;
        entries.requests.clear();
    }
}
