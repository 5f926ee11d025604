//! Who may talk to the server, and whose credentials have run out.

use std::sync::{Arc, Mutex};

use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
use s3s::{S3Result, s3_error};

use super::request_log::Request;

/// An access key with its secret, and the session token it is only valid with, if any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    pub access_key: String,
    pub secret_key: String,
    pub session_token: Option<String>,
}

impl Credentials {
    pub fn new(access_key: &str, secret_key: &str) -> Self {
        Self { access_key: access_key.to_owned(), secret_key: secret_key.to_owned(), session_token: None }
    }

    pub fn with_session_token(mut self, token: &str) -> Self {
        self.session_token = Some(token.to_owned());
        self
    }
}

#[derive(Debug, Default)]
pub(super) struct CredentialTable {
    pub(super) accepted: Vec<Credentials>,
    pub(super) expired: Vec<String>,
}

impl CredentialTable {
    /// The status, code and message to refuse a request with, by its access key and session token alone.
    pub(super) fn refusal(&self, request: &Request) -> Option<(u16, &'static str, &'static str)> {
        let access_key = request.access_key.as_ref()?;
        if self.expired.contains(access_key) {
            return Some((400, "ExpiredToken", "The provided token has expired."));
        }
        let credentials = self.accepted.iter().find(|known| known.access_key == *access_key)?;
        (credentials.session_token.as_deref() != request.header("x-amz-security-token")).then_some((
            400,
            "InvalidToken",
            "The provided token is malformed or otherwise not valid.",
        ))
    }
}

/// Looks secrets up for the verification of signatures.
pub(super) struct Verifier(pub(super) Arc<Mutex<CredentialTable>>);

#[async_trait::async_trait]
impl S3Auth for Verifier {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        let table = self.0.lock().unwrap();
        let known = table.accepted.iter().find(|known| known.access_key == access_key);
        known.map(|credentials| SecretKey::from(credentials.secret_key.as_str())).ok_or_else(|| {
            s3_error!(InvalidAccessKeyId, "The AWS Access Key Id you provided does not exist in our records.")
        })
    }
}

/// Lets requests without a signature through, or not.
pub(super) struct Anonymous(pub(super) bool);

#[async_trait::async_trait]
impl S3Access for Anonymous {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        if self.0 || context.credentials().is_some() {
            return Ok(());
        }
        Err(s3_error!(AccessDenied, "Signature is required"))
    }
}
