//! What a test can make go wrong, and on which requests.

use std::sync::Mutex;
use std::time::Duration;

use super::request_log::{Operation, Request};

/// A fault: what happens, and to which requests.
#[derive(Debug, Clone)]
pub struct Fault {
    pub when: When,
    pub what: What,
}

/// Selects requests. The default selects every one, for as long as the fault stands.
#[derive(Debug, Clone, Default)]
pub struct When {
    /// Empty means any operation.
    pub operations: Vec<Operation>,
    /// Matches within the key, or within the prefix of a list request; empty matches all.
    pub key_contains: String,
    /// How many matching requests pass unharmed first.
    pub skip: usize,
    /// How many matching requests are hit after that; None means all.
    pub times: Option<usize>,
}

impl When {
    pub fn any() -> Self {
        Self::default()
    }

    pub fn operation(operation: Operation) -> Self {
        Self::any().or(operation)
    }

    /// Both versions of the list request.
    pub fn list() -> Self {
        Self::operation(Operation::ListObjects).or(Operation::ListObjectsV2)
    }

    pub fn or(mut self, operation: Operation) -> Self {
        self.operations.push(operation);
        self
    }

    pub fn key(mut self, substring: &str) -> Self {
        substring.clone_into(&mut self.key_contains);
        self
    }

    pub fn skip(mut self, requests: usize) -> Self {
        self.skip = requests;
        self
    }

    pub fn times(mut self, requests: usize) -> Self {
        self.times = Some(requests);
        self
    }

    pub fn once(self) -> Self {
        self.times(1)
    }

    fn selects(&self, request: &Request) -> bool {
        (self.operations.is_empty() || self.operations.contains(&request.operation))
            && request.key.contains(&self.key_contains)
    }
}

/// What happens to a request.
///
/// The faults of a body apply to the body that carries the object: the response of a GET, the request of a PUT or of an
/// uploaded part. Offsets count that body's bytes from 0, except in [`What::FlipByte`].
#[derive(Debug, Clone)]
pub enum What {
    /// Answers with this status and S3 error, without doing anything.
    Error { status: u16, code: &'static str, message: &'static str },
    /// Waits before anything is done or sent. Long, it is a stall before the headers; short, a latency.
    Delay(Duration),
    /// Does what was asked, then closes the connection without an answer.
    LoseResponse,
    /// Stops for a while in the middle of the body, then goes on.
    StallBody { after_bytes: u64, pause: Duration },
    /// Closes the connection once this many bytes of the body were transferred.
    CutBody { after_bytes: u64 },
    /// Changes one byte of the body, at this offset of the object (also under a `Range`).
    FlipByte { at: u64 },
    /// Transfers each body at this rate.
    Bandwidth { bytes_per_second: u64 },
    /// Answers the first page of a listing without rows, and that there is more: how to go on as well, or not even that.
    EmptyPage { with_token: bool },
    /// Carries out a conditional request as if it had no condition, as older servers do.
    IgnoreCondition,
    /// Refuses a request that has a condition (`If-None-Match`, `If-Match`); others pass.
    RefuseCondition { status: u16, code: &'static str, message: &'static str },
    /// Answers 200 with an `<Error>` document as the body, as S3 does when CompleteMultipartUpload fails late.
    ErrorInside200 { code: &'static str, message: &'static str },
    /// Refuses requests bearing `x-amz-checksum-*`, trailers or `aws-chunked`, as older servers do.
    RejectChecksums,
}

impl What {
    pub fn slow_down() -> Self {
        Self::Error { status: 503, code: "SlowDown", message: "Please reduce your request rate." }
    }

    pub fn internal_error() -> Self {
        Self::Error {
            status: 500,
            code: "InternalError",
            message: "We encountered an internal error. Please try again.",
        }
    }

    pub fn access_denied() -> Self {
        Self::Error { status: 403, code: "AccessDenied", message: "Access Denied" }
    }

    /// ExpiredToken for all credentials; [`super::S3Server::expire`] is the one that ends when they change.
    pub fn expired_token() -> Self {
        Self::Error { status: 400, code: "ExpiredToken", message: "The provided token has expired." }
    }

    /// S3's answer when another conditional write of the same key is under way.
    pub fn conditional_conflict() -> Self {
        Self::RefuseCondition {
            status: 409,
            code: "ConditionalRequestConflict",
            message: "The conditional request cannot succeed due to a conflicting operation against this resource.",
        }
    }

    /// The answer of servers that do not know conditional writes.
    pub fn condition_not_implemented() -> Self {
        Self::RefuseCondition {
            status: 501,
            code: "NotImplemented",
            message: "A header you provided implies functionality that is not implemented",
        }
    }

    /// Whether the fault has anything to bite on in this request; one that has not is not used up by it.
    fn bites(&self, request: &Request) -> bool {
        match self {
            Self::IgnoreCondition | Self::RefuseCondition { .. } => request.is_conditional(),
            Self::RejectChecksums => bears_checksums(request),
            _ => true,
        }
    }
}

fn bears_checksums(request: &Request) -> bool {
    request.headers.keys().any(|name| {
        let name = name.as_str();
        name == "x-amz-trailer"
            || name == "x-amz-sdk-checksum-algorithm"
            || (name.starts_with("x-amz-checksum-") && name != "x-amz-checksum-mode")
    }) || request.header("content-encoding").is_some_and(|value| value.contains("aws-chunked"))
        || request.header("x-amz-content-sha256").is_some_and(|value| value.starts_with("STREAMING-"))
}

/// Names a fault for [`Faults::remove`] and [`Faults::hits`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultId(usize);

/// The faults of a running server; they can be changed at any time.
#[derive(Debug, Default)]
pub struct Faults {
    standing: Mutex<Vec<Standing>>,
}

#[derive(Debug)]
struct Standing {
    fault: Fault,
    seen: usize,
    hits: usize,
    removed: bool,
}

impl Faults {
    pub fn push(&self, fault: Fault) -> FaultId {
        let mut standing = self.standing.lock().unwrap();
        standing.push(Standing { fault, seen: 0, hits: 0, removed: false });
        FaultId(standing.len() - 1)
    }

    pub fn add(&self, when: When, what: What) -> FaultId {
        self.push(Fault { when, what })
    }

    pub fn remove(&self, id: FaultId) {
        self.standing.lock().unwrap()[id.0].removed = true;
    }

    /// Ends all faults; their counts stay.
    pub fn clear(&self) {
        for standing in self.standing.lock().unwrap().iter_mut() {
            standing.removed = true;
        }
    }

    /// How many requests a fault has hit so far.
    pub fn hits(&self, id: FaultId) -> usize {
        self.standing.lock().unwrap()[id.0].hits
    }

    /// The faults that hit this request, each counted.
    pub(super) fn strike(&self, request: &Request) -> Vec<What> {
        let mut struck = Vec::new();
        for standing in self.standing.lock().unwrap().iter_mut() {
            let Fault { when, what } = &standing.fault;
            if standing.removed || !when.selects(request) || !what.bites(request) {
                continue;
            }
            standing.seen += 1;
            if standing.seen > when.skip && when.times.is_none_or(|times| standing.hits < times) {
                standing.hits += 1;
                struck.push(what.clone());
            }
        }
        struck
    }
}
