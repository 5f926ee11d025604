//! A bucket and the requests that the store and its uploads make of it, with the second question S3 needs to be asked where
//! its answer says too little.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use aws_sdk_s3::Client;
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::ServerSideEncryption;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures::{StreamExt, stream};

use super::super::{Kind, Object, ObjectHead, Payload, Put, PutOptions, Result, StorageError};
use super::client::{self, LazyClient};
use super::error::Failure;
use super::pace::Pace;
use super::{ConditionalPut, S3Options, Sse};

/// What the store and its uploads share.
#[derive(Debug)]
pub(super) struct Bucket {
    pub(super) options: S3Options,
    client: LazyClient,
    /// The server said that it does not know conditional writes.
    unconditional: AtomicBool,
}

/// What was answered to an attempt to publish an object.
pub(super) enum Published<T> {
    Stored(T),
    Exists,
    Failed(Failure),
}

impl Bucket {
    /// Nothing is asked or read yet.
    pub(super) fn new(options: S3Options) -> Self {
        Self { options, client: LazyClient::new(), unconditional: AtomicBool::new(false) }
    }

    pub(super) async fn renew_credentials(&self) {
        self.client.renew().await;
    }

    pub(super) fn url(&self, key: &str) -> String {
        format!("s3://{}/{key}", self.options.bucket)
    }

    pub(super) fn error(&self, verb: &'static str, key: &str, kind: Kind, source: &str) -> StorageError {
        StorageError::new(verb, self.url(key), kind, source)
    }

    pub(super) fn explain(&self, verb: &'static str, key: &str, failure: Failure) -> StorageError {
        failure.into_error(verb, self.url(key), &self.options)
    }

    pub(super) async fn client(&self, verb: &'static str, key: &str) -> Result<Client> {
        self.client.get(&self.options).await.map_err(|error| {
            StorageError::new(verb, self.url(key), Kind::Misconfigured, error).with_hint("Set AWS_REGION to it.")
        })
    }

    /// The outer error is of the client, the inner one of the server.
    pub(super) async fn get_object(
        &self,
        verb: &'static str,
        key: &str,
        range: Option<String>,
        etag: Option<&str>,
    ) -> Result<std::result::Result<GetObjectOutput, Failure>> {
        let get = self.client(verb, key).await?.get_object().bucket(&self.options.bucket).key(key);
        let get = get.set_range(range).set_if_match(etag.map(str::to_owned));
        Ok(get.send().await.map_err(Failure::from))
    }

    /// After a 416: reading from an object's very end gives nothing, from beyond it an error.
    pub(super) async fn empty_tail(
        &self,
        key: &str,
        from: u64,
        etag: Option<&str>,
        failure: Failure,
    ) -> Result<Object> {
        let head = self.head("get", key).await?;
        if etag.is_some() && etag != head.etag.as_deref() {
            return Err(self.error("get", key, Kind::Changed, "the object is another one by now"));
        }
        match head.size == from {
            true => Ok(Object { head, body: stream::empty().boxed() }),
            false => Err(self.explain("get", key, failure)),
        }
    }

    /// The head, by HEAD. An error answer to HEAD has no body and so no code; GET says what it is.
    pub(super) async fn head(&self, verb: &'static str, key: &str) -> Result<ObjectHead> {
        let head = self.client(verb, key).await?.head_object().bucket(&self.options.bucket).key(key);
        match head.send().await {
            Ok(output) => Ok(ObjectHead {
                size: size(output.content_length())
                    .ok_or_else(|| self.error(verb, key, Kind::Other, "the server did not say how large it is"))?,
                last_modified: system_time(output.last_modified()),
                etag: output.e_tag().map(str::to_owned),
                metadata: metadata(output.metadata()),
            }),
            Err(error) => match Failure::from(error) {
                failure if failure.status().is_some_and(|status| status < 500) => self.head_by_get(verb, key).await,
                failure => Err(self.explain(verb, key, failure)),
            },
        }
    }

    async fn head_by_get(&self, verb: &'static str, key: &str) -> Result<ObjectHead> {
        match self.get_object(verb, key, Some("bytes=0-0".to_owned()), None).await? {
            Ok(output) => self.head_of_get(verb, key, &output),
            Err(failure) => Err(self.explain_absence(verb, key, failure).await),
        }
    }

    pub(super) fn head_of_get(&self, verb: &'static str, key: &str, output: &GetObjectOutput) -> Result<ObjectHead> {
        let total = |range: &str| range.rsplit_once('/')?.1.parse().ok();
        let size = match output.content_range() {
            Some(range) => total(range),
            None => size(output.content_length()),
        };
        Ok(ObjectHead {
            size: size.ok_or_else(|| self.error(verb, key, Kind::Other, "the server did not say how large it is"))?,
            last_modified: system_time(output.last_modified()),
            etag: output.e_tag().map(str::to_owned),
            metadata: metadata(output.metadata()),
        })
    }

    /// The error of a GET. Without s3:ListBucket, S3 answers AccessDenied for an absent key, too: then a listing of exactly
    /// that key decides, and if that is denied as well, nothing does.
    pub(super) async fn explain_absence(&self, verb: &'static str, key: &str, failure: Failure) -> StorageError {
        if failure.status() != Some(403) || !failure.has_code("AccessDenied") {
            return self.explain(verb, key, failure);
        }
        let client = match self.client(verb, key).await {
            Ok(client) => client,
            Err(error) => return error,
        };
        // The key itself sorts before all others that begin with it.
        let list = client.list_objects_v2().bucket(&self.options.bucket).prefix(key).max_keys(1);
        match list.send().await.map_err(Failure::from) {
            Ok(output) if output.contents().iter().any(|object| object.key() == Some(key)) => self
                .explain(verb, key, failure)
                .with_hint("The object is there, but the credentials may not read it: grant s3:GetObject."),
            Ok(output) if output.is_truncated() == Some(true) && output.contents().is_empty() => {
                self.error(verb, key, Kind::Unavailable, "a listing was empty and says that there is more")
            }
            Ok(_) => StorageError::new(verb, self.url(key), Kind::NotFound, "a listing does not show the key"),
            Err(listing) if listing.kind() == Kind::Denied => {
                failure.into_ambiguous(verb, self.url(key), &self.options)
            }
            Err(listing) => self.explain(verb, key, listing),
        }
    }

    /// Whether something is stored under a key, by HEAD. A 404 is "no" even if it is the bucket that is missing: the
    /// upload that follows says so.
    pub(super) async fn is_taken(&self, verb: &'static str, key: &str) -> Result<bool> {
        let head = self.client(verb, key).await?.head_object().bucket(&self.options.bucket).key(key);
        match head.send().await.map_err(Failure::from) {
            Ok(_) => Ok(true),
            Err(failure) if failure.status() == Some(404) => Ok(false),
            Err(failure) if failure.status().is_some_and(|status| status < 500) => {
                match self.head_by_get(verb, key).await {
                    Ok(_) => Ok(true),
                    Err(error) if error.kind() == Kind::NotFound => Ok(false),
                    Err(error) => Err(error),
                }
            }
            Err(failure) => Err(self.explain(verb, key, failure)),
        }
    }

    pub(super) fn verifies(&self) -> bool {
        self.options.conditional_put == ConditionalPut::Verify
    }

    /// Whether uploads carry the condition.
    pub(super) fn conditional(&self) -> bool {
        !self.unconditional.load(Ordering::Relaxed)
    }

    /// Whether to go without the condition: the key was looked up before, and the server does not know conditions.
    pub(super) fn refuses_condition(&self, failure: &Failure) -> bool {
        self.verifies() && self.conditional() && failure.status() == Some(501)
    }

    /// That it was the condition the server did not know shows when the upload passes without.
    pub(super) fn remember_unconditional<T>(&self, published: &Published<T>) {
        if matches!(published, Published::Stored(_)) {
            tracing::warn!(
                "the S3 server does not know conditional writes; two writers at the same instant may overwrite each other"
            );
            self.unconditional.store(true, Ordering::Relaxed);
        }
    }

    /// The payload's signature guards it where TLS does not.
    pub(super) fn signs_payload(&self) -> bool {
        !client::secure(&self.options)
    }

    /// The CRC-32C to send with a body.
    pub(super) fn checksum(&self, body: &[u8]) -> Option<String> {
        self.options.upload_checksums.then(|| BASE64_STANDARD.encode(crc32c::crc32c(body).to_be_bytes()))
    }

    pub(super) fn encryption(&self) -> (Option<ServerSideEncryption>, Option<String>) {
        match &self.options.sse {
            Sse::Aes256 => (Some(ServerSideEncryption::Aes256), None),
            Sse::Kms { key_id } => (Some(ServerSideEncryption::AwsKms), key_id.clone()),
            Sse::Off => (None, None),
        }
    }

    /// Writes a new object in one request.
    pub(super) async fn put(&self, key: &str, body: &Payload, options: &PutOptions) -> Result<Put> {
        if self.verifies() && self.is_taken("put", key).await? {
            return Ok(Put::Exists);
        }
        let published = match self.put_object(key, body, options, self.conditional()).await? {
            Published::Failed(failure) if self.refuses_condition(&failure) => {
                let published = self.put_object(key, body, options, false).await?;
                self.remember_unconditional(&published);
                published
            }
            published => published,
        };
        match published {
            Published::Stored(()) => Ok(Put::Stored),
            Published::Exists => Ok(Put::Exists),
            // A server that refuses early closes the connection under the body, and its answer may be lost.
            Published::Failed(Failure::Lost(Kind::Unavailable, source)) => match self.is_taken("put", key).await {
                Ok(true) => Ok(Put::Exists),
                Ok(false) => Err(match self.head_by_get("put", key).await {
                    // the bucket that is not there, say, which a HEAD cannot tell from an absent key
                    Err(reason) if matches!(reason.kind(), Kind::Misconfigured | Kind::Credentials) => reason,
                    _ => self.explain("put", key, Failure::Lost(Kind::Unavailable, source)),
                }),
                Err(_) => Err(self.explain("put", key, Failure::Lost(Kind::Unavailable, source))),
            },
            Published::Failed(failure) => Err(self.explain("put", key, failure)),
        }
    }

    async fn put_object(
        &self,
        key: &str,
        body: &Payload,
        options: &PutOptions,
        conditional: bool,
    ) -> Result<Published<()>> {
        let put = self.client("put", key).await?.put_object().bucket(&self.options.bucket).key(key);
        let (encryption, key_id) = self.encryption();
        let put = put
            .set_if_none_match(conditional.then(|| "*".to_owned()))
            .set_server_side_encryption(encryption)
            .set_ssekms_key_id(key_id)
            .set_storage_class(self.options.storage_class.as_deref().map(Into::into))
            .set_content_type(content_type(options))
            .set_metadata(user_metadata(options))
            .set_checksum_crc32_c(self.checksum(&body.bytes))
            .body(ByteStream::from(body.bytes.clone()))
            .customize();
        let pace = Pace::new(body.clone());
        let put = if self.signs_payload() { put } else { put.disable_payload_signing() };
        let Some(sent) = pace.watch(self.options.stall_timeout, put.interceptor(pace.clone()).send()).await else {
            return Ok(Published::Failed(Failure::stalled(self.options.stall_timeout)));
        };
        Ok(match sent.map_err(Failure::from) {
            Ok(_) => Published::Stored(()),
            Err(failure) if conditional && failure.status() == Some(412) => Published::Exists,
            Err(failure) => Published::Failed(failure),
        })
    }
}

/// An empty media type leaves it to S3, which takes `binary/octet-stream`.
pub(super) fn content_type(options: &PutOptions) -> Option<String> {
    (!options.content_type.is_empty()).then(|| options.content_type.to_owned())
}

pub(super) fn user_metadata(options: &PutOptions) -> Option<HashMap<String, String>> {
    (!options.metadata.is_empty()).then(|| options.metadata.iter().cloned().collect())
}

fn metadata(map: Option<&HashMap<String, String>>) -> Vec<(String, String)> {
    let pairs = map.into_iter().flatten().map(|(name, value)| (name.to_lowercase(), value.clone()));
    let mut pairs: Vec<_> = pairs.collect();
    pairs.sort();
    pairs
}

fn size(length: Option<i64>) -> Option<u64> {
    length.and_then(|length| u64::try_from(length).ok())
}

pub(super) fn system_time(time: Option<&DateTime>) -> SystemTime {
    time.and_then(|time| SystemTime::try_from(*time).ok()).unwrap_or(SystemTime::UNIX_EPOCH)
}
