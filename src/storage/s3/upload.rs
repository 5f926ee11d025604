//! Uploads in parts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;

use super::super::parts::{self, Span};
use super::super::{Kind, ObjectHead, Payload, Put, PutOptions, Result, Upload};
use super::bucket::{Bucket, Published, content_type, user_metadata};
use super::error::Failure;
use super::pace::Pace;

/// The most parts S3 takes (S3's documentation, "multipart upload limits").
const MAX_PARTS: u32 = 10_000;

/// An upload under way. The server keeps its parts until it is finished or aborted; a lifecycle rule of the bucket
/// (`AbortIncompleteMultipartUpload`) removes those of killed processes.
#[derive(Debug)]
pub(super) struct S3Upload {
    bucket: Arc<Bucket>,
    key: String,
    options: PutOptions,
    id: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    parts: BTreeMap<u32, Part>,
    /// A completion was sent whose answer is not known.
    completion_lost: bool,
    finished: Option<Put>,
}

/// A part that S3 has confirmed.
#[derive(Debug, Clone)]
struct Part {
    span: Span,
    etag: Option<String>,
    crc32c: Option<String>,
}

impl S3Upload {
    pub(super) async fn begin(bucket: Arc<Bucket>, key: &str, options: &PutOptions) -> Result<Self> {
        const VERB: &str = "begin upload of";
        let create = bucket.client(VERB, key).await?.create_multipart_upload().bucket(&bucket.options.bucket).key(key);
        let (encryption, key_id) = bucket.encryption();
        let create = create
            .set_server_side_encryption(encryption)
            .set_ssekms_key_id(key_id)
            .set_storage_class(bucket.options.storage_class.as_deref().map(Into::into))
            .set_content_type(content_type(options))
            .set_metadata(user_metadata(options))
            .set_checksum_algorithm(bucket.options.upload_checksums.then_some(ChecksumAlgorithm::Crc32C));
        let output = create.send().await.map_err(|error| bucket.explain(VERB, key, Failure::from(error)))?;
        let Some(id) = output.upload_id().map(str::to_owned) else {
            return Err(bucket.error(VERB, key, Kind::Other, "the server gave the upload no id"));
        };
        let (key, options) = (key.to_owned(), options.clone());
        Ok(Self { bucket, key, options, id, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for the object to be made of the parts.
    async fn complete(&self, parts: &BTreeMap<u32, Part>, conditional: bool) -> Result<Published<()>> {
        let client = self.bucket.client(FINISH, &self.key).await?;
        let completed = parts.iter().map(|(number, part)| {
            let completed = CompletedPart::builder().part_number(part_number(*number));
            completed.set_e_tag(part.etag.clone()).set_checksum_crc32_c(part.crc32c.clone()).build()
        });
        let completed = CompletedMultipartUpload::builder().set_parts(Some(completed.collect())).build();
        let complete = client.complete_multipart_upload().bucket(&self.bucket.options.bucket).key(&self.key);
        let complete = complete
            .upload_id(&self.id)
            .set_if_none_match(conditional.then(|| "*".to_owned()))
            .multipart_upload(completed);
        Ok(match complete.send().await.map_err(Failure::from) {
            Ok(_) => Published::Stored(()),
            Err(failure) if conditional && failure.status() == Some(412) => Published::Exists,
            Err(failure) => Published::Failed(failure),
        })
    }

    /// Publishes the object and says how that ended, as far as it is known.
    async fn publish(&self, parts: &BTreeMap<u32, Part>, size: u64) -> Result<Put> {
        let bucket = &self.bucket;
        let lost = self.state().completion_lost;
        if bucket.verifies() {
            match bucket.head(FINISH, &self.key).await {
                // It may be this very upload: then the server no longer knows it, and says so below.
                Ok(head) if lost && is_ours(&head, size, parts.len()) => {}
                Ok(_) => return Ok(Put::Exists),
                Err(error) if error.kind() == Kind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        // Whatever happens to this future from here on, the completion may have been carried out.
        self.state().completion_lost = true;
        let published = match self.complete(parts, bucket.conditional()).await? {
            Published::Failed(failure) if bucket.refuses_condition(&failure) => {
                let published = self.complete(parts, false).await?;
                bucket.remember_unconditional(&published);
                published
            }
            published => published,
        };
        match published {
            Published::Exists => Ok(Put::Exists),
            Published::Stored(()) => {
                let head = bucket.head(FINISH, &self.key).await?;
                if head.size == size {
                    return Ok(Put::Stored);
                }
                let source = format!("the server made an object of {} bytes from parts of {size}", head.size);
                Err(bucket.error(FINISH, &self.key, Kind::Other, &source))
            }
            Published::Failed(failure) if lost && failure.has_code("NoSuchUpload") => {
                let head = bucket.head(FINISH, &self.key).await;
                match head {
                    Ok(head) if is_ours(&head, size, parts.len()) => Ok(Put::Stored),
                    Ok(_) => Ok(Put::Exists),
                    Err(error) if error.kind() == Kind::NotFound => Err(bucket.explain(FINISH, &self.key, failure)),
                    Err(error) => Err(error),
                }
            }
            Published::Failed(failure) => Err(bucket.explain(FINISH, &self.key, failure)),
        }
    }
}

const FINISH: &str = "finish upload of";

/// Whether an object is the one an upload made whose completion got no answer and which is gone since. It went because it
/// was completed: had another writer's object been there before, the condition would have kept the upload.
fn is_ours(head: &ObjectHead, size: u64, parts: usize) -> bool {
    let of_as_many_parts = |etag: &str| etag.trim_matches('"').ends_with(&format!("-{parts}"));
    head.size == size && head.etag.as_deref().is_some_and(of_as_many_parts)
}

fn part_number(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

#[async_trait]
impl Upload for S3Upload {
    async fn part(&self, number: u32, offset: u64, body: Payload) -> Result<()> {
        const VERB: &str = "write part of";
        let bucket = &self.bucket;
        if !(1..=MAX_PARTS).contains(&number) {
            let source = format!("part {number} is not one of 1 to {MAX_PARTS}");
            return Err(bucket.error(VERB, &self.key, Kind::Other, &source));
        }
        let span = Span { offset, length: body.bytes.len() as u64 };
        let crc32c = bucket.checksum(&body.bytes);
        let upload = bucket.client(VERB, &self.key).await?.upload_part().bucket(&bucket.options.bucket).key(&self.key);
        let upload = upload
            .upload_id(&self.id)
            .part_number(part_number(number))
            .set_checksum_crc32_c(crc32c.clone())
            .body(ByteStream::from(body.bytes.clone()))
            .customize();
        let pace = Pace::new(body);
        let upload = if bucket.signs_payload() { upload } else { upload.disable_payload_signing() };
        let timeout = bucket.options.stall_timeout;
        let Some(sent) = pace.watch(timeout, upload.interceptor(pace.clone()).send()).await else {
            return Err(bucket.explain(VERB, &self.key, Failure::stalled(timeout)));
        };
        let output = sent.map_err(|error| bucket.explain(VERB, &self.key, Failure::from(error)))?;
        let part = Part { span, etag: output.e_tag().map(str::to_owned), crc32c };
        self.state().parts.insert(number, part);
        Ok(())
    }

    async fn finish(&self) -> Result<Put> {
        let (parts, finished) = {
            let state = self.state();
            (state.parts.clone(), state.finished)
        };
        if let Some(put) = finished {
            return Ok(put);
        }
        let spans = parts.iter().map(|(number, part)| (*number, part.span)).collect();
        let size = parts::total_size(&spans).map_err(|gap| self.bucket.error(FINISH, &self.key, Kind::Other, &gap))?;
        let put = match parts.is_empty() {
            // S3 makes no object of no parts.
            true => {
                let put = self.bucket.put(&self.key, &Bytes::new().into(), &self.options).await?;
                self.abort().await?;
                put
            }
            false => self.publish(&parts, size).await?,
        };
        self.state().finished = Some(put);
        if put == Put::Exists && !parts.is_empty() {
            // The parts would be paid for until a lifecycle rule removes them; that they stay is no failure.
            let _ = self.abort().await;
        }
        Ok(put)
    }

    async fn abort(&self) -> Result<()> {
        const VERB: &str = "abort upload of";
        let bucket = &self.bucket;
        let abort = bucket.client(VERB, &self.key).await?.abort_multipart_upload().bucket(&bucket.options.bucket);
        match abort.key(&self.key).upload_id(&self.id).send().await.map_err(Failure::from) {
            Ok(_) => Ok(()),
            Err(failure) if failure.has_code("NoSuchUpload") => Ok(()),
            Err(failure) => Err(bucket.explain(VERB, &self.key, failure)),
        }
    }
}
