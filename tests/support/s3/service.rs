//! The S3 operations over the store.

use std::sync::Arc;
use std::time::SystemTime;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use s3s::checksum::ChecksumHasher;
use s3s::crypto::{Checksum as _, Crc32, Crc32c, Crc64Nvme, Md5, Sha1, Sha256};
use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, Checksum, CommonPrefix, CompleteMultipartUploadInput,
    CompleteMultipartUploadOutput, CompletedPart, CreateBucketInput, CreateBucketOutput, CreateMultipartUploadInput,
    CreateMultipartUploadOutput, DeleteObjectInput, DeleteObjectOutput, DeleteObjectsInput, DeleteObjectsOutput,
    DeletedObject, ETag, ETagCondition, GetBucketLocationInput, GetBucketLocationOutput, GetObjectInput,
    GetObjectOutput, HeadBucketInput, HeadBucketOutput, HeadObjectInput, HeadObjectOutput, ListMultipartUploadsInput,
    ListMultipartUploadsOutput, ListObjectsInput, ListObjectsOutput, ListObjectsV2Input, ListObjectsV2Output,
    ListPartsInput, ListPartsOutput, MultipartUpload, Object, PutObjectInput, PutObjectOutput, StreamingBlob,
    UploadPartInput, UploadPartOutput,
};
use s3s::{Body, S3, S3Request, S3Response, S3Result, TrailingHeaders, s3_error};

use super::Shared;
use super::store::{self, Page, Part, Store, StoredObject, Upload};

/// Put in a request's extensions to have its conditions ignored.
#[derive(Debug, Clone, Copy)]
pub(super) struct ConditionIgnored;

/// Put in a request's extensions to have its first page empty.
#[derive(Debug, Clone, Copy)]
pub(super) struct FirstPageEmpty {
    pub(super) with_token: bool,
}

pub(super) struct Service(pub(super) Arc<Shared>);

/// What is stored of a body that has been read and checked.
struct Received {
    body: Bytes,
    md5: [u8; 16],
    checksum: Checksum,
}

/// What the client claims of its body, from the input's fields of the same names.
macro_rules! claims {
    ($input:expr) => {
        (
            $input.content_md5.take(),
            Checksum {
                checksum_crc32: $input.checksum_crc32.take(),
                checksum_crc32c: $input.checksum_crc32c.take(),
                checksum_crc64nvme: $input.checksum_crc64nvme.take(),
                checksum_sha1: $input.checksum_sha1.take(),
                checksum_sha256: $input.checksum_sha256.take(),
                checksum_type: None,
            },
        )
    };
}

impl Service {
    async fn receive(
        &self,
        body: Option<StreamingBlob>,
        length: Option<i64>,
        (content_md5, mut claimed): (Option<String>, Checksum),
        trailers: Option<TrailingHeaders>,
    ) -> S3Result<Received> {
        let mut md5 = self.0.etag_is_md5.then(Md5::new);
        let announced = trailers.is_some();
        let mut hasher = ChecksumHasher {
            crc32: (announced || claimed.checksum_crc32.is_some()).then(Crc32::new),
            crc32c: claimed.checksum_crc32c.is_some().then(Crc32c::new),
            sha1: claimed.checksum_sha1.is_some().then(Sha1::new),
            sha256: claimed.checksum_sha256.is_some().then(Sha256::new),
            crc64nvme: claimed.checksum_crc64nvme.is_some().then(Crc64Nvme::new),
        };
        let mut collected = BytesMut::with_capacity(usize::try_from(length.unwrap_or(0)).unwrap_or(0));
        if let Some(mut stream) = body {
            while let Some(chunk) = stream.next().await {
                let chunk = chunk.map_err(|_| s3_error!(IncompleteBody))?;
                if let Some(md5) = &mut md5 {
                    md5.update(&chunk);
                }
                hasher.update(&chunk);
                collected.extend_from_slice(&chunk);
            }
        }
        if length.is_some_and(|length| length != collected.len() as i64) {
            return Err(s3_error!(IncompleteBody));
        }
        if let Some(sum) = trailers.and_then(|trailers| {
            trailers.read(|headers| {
                headers.get("x-amz-checksum-crc32").and_then(|sum| sum.to_str().ok().map(str::to_owned))
            })
        }) {
            claimed.checksum_crc32 = sum;
        }
        let computed = hasher.finalize();
        let wrong = |claimed: &Option<String>, computed: &Option<String>| claimed.is_some() && claimed != computed;
        if wrong(&claimed.checksum_crc32, &computed.checksum_crc32)
            || wrong(&claimed.checksum_crc32c, &computed.checksum_crc32c)
            || wrong(&claimed.checksum_sha1, &computed.checksum_sha1)
            || wrong(&claimed.checksum_sha256, &computed.checksum_sha256)
            || wrong(&claimed.checksum_crc64nvme, &computed.checksum_crc64nvme)
        {
            return Err(s3_error!(BadDigest, "The checksum you specified did not match what we received."));
        }
        let body = collected.freeze();
        let md5 = match md5 {
            Some(md5) => md5.finalize(),
            // who claims one compares it with the ETag
            None => content_md5.as_deref().and_then(md5_of_base64).unwrap_or_else(|| self.0.stand_in_for_md5()),
        };
        if self.0.etag_is_md5 && content_md5.is_some_and(|claimed| claimed != base64(&md5)) {
            return Err(s3_error!(BadDigest, "The Content-MD5 you specified did not match what we received."));
        }
        Ok(Received { body, md5, checksum: claimed })
    }

    /// What a GET or HEAD of an absent key answers: without the permission to list, S3 does not tell.
    fn absent<T>(&self) -> S3Result<T> {
        if !self.0.tells_absent_keys() {
            return Err(s3_error!(AccessDenied, "Access Denied"));
        }
        Err(s3_error!(NoSuchKey, "The specified key does not exist."))
    }

    fn find(&self, bucket: &str, key: &str) -> S3Result<StoredObject> {
        let store = self.0.store.lock().unwrap();
        match bucket_of(&store, bucket)?.get(key) {
            Some(object) => Ok(object.clone()),
            None => self.absent(),
        }
    }

    fn list(
        &self,
        bucket: &str,
        prefix: Option<&String>,
        delimiter: Option<&String>,
        after: Option<&String>,
        limit: i32,
    ) -> S3Result<Page> {
        let store = self.0.store.lock().unwrap();
        let text = |value: Option<&String>| value.cloned().unwrap_or_default();
        Ok(store::list(
            bucket_of(&store, bucket)?,
            &text(prefix),
            &text(delimiter),
            &text(after),
            usize::try_from(limit).unwrap_or(0),
        ))
    }
}

fn bucket_of<'a>(store: &'a Store, bucket: &str) -> S3Result<&'a std::collections::BTreeMap<String, StoredObject>> {
    store.buckets.get(bucket).ok_or_else(|| s3_error!(NoSuchBucket, "The specified bucket does not exist"))
}

/// Puts an object in its place if the conditions hold; the one point where an object can appear.
fn publish(
    store: &mut Store,
    bucket: &str,
    key: &str,
    object: StoredObject,
    if_none_match: Option<&ETagCondition>,
    if_match: Option<&ETagCondition>,
) -> S3Result<()> {
    let objects =
        store.buckets.get_mut(bucket).ok_or_else(|| s3_error!(NoSuchBucket, "The specified bucket does not exist"))?;
    let present = objects.get(key);
    match if_none_match {
        Some(ETagCondition::Any) if present.is_some() => return Err(failed_condition()),
        Some(ETagCondition::ETag(_)) => {
            return Err(s3_error!(
                NotImplemented,
                "A header you provided implies functionality that is not implemented"
            ));
        }
        _ => {}
    }
    match (if_match, present) {
        (Some(_), None) => return Err(s3_error!(NoSuchKey, "The specified key does not exist.")),
        (Some(ETagCondition::ETag(wanted)), Some(present)) if wanted.value() != present.etag => {
            return Err(failed_condition());
        }
        _ => {}
    }
    objects.insert(key.to_owned(), object);
    Ok(())
}

fn failed_condition() -> s3s::S3Error {
    s3_error!(PreconditionFailed, "At least one of the pre-conditions you specified did not hold")
}

fn check_read_conditions(
    object: &StoredObject,
    if_match: Option<&ETagCondition>,
    if_none_match: Option<&ETagCondition>,
) -> S3Result<()> {
    let matches = |condition: &ETagCondition| match condition {
        ETagCondition::Any => true,
        ETagCondition::ETag(etag) => etag.value() == object.etag,
    };
    if if_match.is_some_and(|condition| !matches(condition)) {
        return Err(failed_condition());
    }
    if if_none_match.is_some_and(matches) {
        return Err(s3_error!(NotModified));
    }
    Ok(())
}

fn base64(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

fn md5_of_base64(text: &str) -> Option<[u8; 16]> {
    BASE64_STANDARD.decode(text).ok()?.try_into().ok()
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn etag(value: &str) -> Option<ETag> {
    Some(ETag::Strong(value.to_owned()))
}

fn listed((key, object): (String, StoredObject)) -> Object {
    Object {
        e_tag: etag(&object.etag),
        size: Some(object.body.len() as i64),
        last_modified: Some(object.last_modified.into()),
        storage_class: Some(object.storage_class.unwrap_or_else(|| "STANDARD".to_owned()).into()),
        key: Some(key),
        ..Object::default()
    }
}

fn common(prefixes: Vec<String>) -> Option<Vec<CommonPrefix>> {
    let wrap = |prefix| CommonPrefix { prefix: Some(prefix) };
    Some(prefixes.into_iter().map(wrap).collect())
}

#[async_trait::async_trait]
impl S3 for Service {
    async fn create_bucket(&self, request: S3Request<CreateBucketInput>) -> S3Result<S3Response<CreateBucketOutput>> {
        let mut store = self.0.store.lock().unwrap();
        store.buckets.entry(request.input.bucket).or_default();
        Ok(S3Response::new(CreateBucketOutput::default()))
    }

    async fn head_bucket(&self, request: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        bucket_of(&self.0.store.lock().unwrap(), &request.input.bucket)?;
        Ok(S3Response::new(HeadBucketOutput::default()))
    }

    async fn get_bucket_location(
        &self,
        request: S3Request<GetBucketLocationInput>,
    ) -> S3Result<S3Response<GetBucketLocationOutput>> {
        bucket_of(&self.0.store.lock().unwrap(), &request.input.bucket)?;
        Ok(S3Response::new(GetBucketLocationOutput::default()))
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = request.input;
        let object = self.find(&input.bucket, &input.key)?;
        check_read_conditions(&object, input.if_match.as_ref(), input.if_none_match.as_ref())?;
        let full = object.body.len();
        let span = match input.range {
            None => None,
            Some(range) => Some(
                range
                    .check(full as u64)
                    .map_err(|_| s3_error!(InvalidRange, "The requested range is not satisfiable"))?,
            ),
        };
        let body = match &span {
            None => object.body,
            Some(span) => object.body.slice(span.start as usize..span.end as usize),
        };
        let checksum = match (&span, &input.checksum_mode) {
            (None, Some(_)) => object.checksum,
            _ => Checksum::default(),
        };
        Ok(S3Response::new(GetObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            content_length: Some(body.len() as i64),
            content_range: span.map(|span| format!("bytes {}-{}/{full}", span.start, span.end - 1)),
            content_type: object.content_type,
            e_tag: etag(&object.etag),
            last_modified: Some(object.last_modified.into()),
            metadata: (!object.metadata.is_empty()).then(|| object.metadata.into_iter().collect()),
            server_side_encryption: object.sse.map(Into::into),
            storage_class: object.storage_class.map(Into::into),
            checksum_crc32: checksum.checksum_crc32,
            checksum_crc32c: checksum.checksum_crc32c,
            checksum_crc64nvme: checksum.checksum_crc64nvme,
            checksum_sha1: checksum.checksum_sha1,
            checksum_sha256: checksum.checksum_sha256,
            body: Some(StreamingBlob::from(Body::from(body))),
            ..GetObjectOutput::default()
        }))
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let input = request.input;
        let object = self.find(&input.bucket, &input.key)?;
        check_read_conditions(&object, input.if_match.as_ref(), input.if_none_match.as_ref())?;
        Ok(S3Response::new(HeadObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            content_length: Some(object.body.len() as i64),
            content_type: object.content_type,
            e_tag: etag(&object.etag),
            last_modified: Some(object.last_modified.into()),
            metadata: (!object.metadata.is_empty()).then(|| object.metadata.into_iter().collect()),
            server_side_encryption: object.sse.map(Into::into),
            storage_class: object.storage_class.map(Into::into),
            ..HeadObjectOutput::default()
        }))
    }

    async fn put_object(&self, request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let conditions_count = request.extensions.get::<ConditionIgnored>().is_none();
        let mut input = request.input;
        bucket_of(&self.0.store.lock().unwrap(), &input.bucket)?;
        let claims = claims!(input);
        let received = self.receive(input.body, input.content_length, claims, request.trailing_headers).await?;
        let tag = hex(&received.md5);
        let object = StoredObject {
            body: received.body,
            etag: tag.clone(),
            content_type: input.content_type,
            metadata: input.metadata.unwrap_or_default().into_iter().collect(),
            sse: input.server_side_encryption.as_ref().map(|sse| sse.as_str().to_owned()),
            storage_class: input.storage_class.map(|class| class.as_str().to_owned()),
            last_modified: SystemTime::now(),
            checksum: received.checksum,
        };
        publish(
            &mut self.0.store.lock().unwrap(),
            &input.bucket,
            &input.key,
            object,
            input.if_none_match.as_ref().filter(|_| conditions_count),
            input.if_match.as_ref().filter(|_| conditions_count),
        )?;
        Ok(S3Response::new(PutObjectOutput {
            e_tag: etag(&tag),
            server_side_encryption: input.server_side_encryption,
            ..PutObjectOutput::default()
        }))
    }

    async fn list_objects(&self, request: S3Request<ListObjectsInput>) -> S3Result<S3Response<ListObjectsOutput>> {
        let input = request.input;
        let limit = input.max_keys.unwrap_or(1000).clamp(0, 1000);
        let page =
            self.list(&input.bucket, input.prefix.as_ref(), input.delimiter.as_ref(), input.marker.as_ref(), limit)?;
        Ok(S3Response::new(ListObjectsOutput {
            name: Some(input.bucket),
            prefix: Some(input.prefix.unwrap_or_default()),
            marker: Some(input.marker.unwrap_or_default()),
            max_keys: Some(limit),
            is_truncated: Some(page.truncated),
            next_marker: page.last.filter(|_| page.truncated && input.delimiter.is_some()),
            delimiter: input.delimiter,
            contents: Some(page.objects.into_iter().map(listed).collect()),
            common_prefixes: common(page.common_prefixes),
            ..ListObjectsOutput::default()
        }))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let empty = request.extensions.get::<FirstPageEmpty>().copied();
        let input = request.input;
        if let (Some(FirstPageEmpty { with_token }), None) = (empty, &input.continuation_token) {
            let start = input.start_after.unwrap_or_default();
            return Ok(S3Response::new(ListObjectsV2Output {
                name: Some(input.bucket),
                key_count: Some(0),
                is_truncated: Some(true),
                next_continuation_token: with_token.then(|| token_of_key(&start)),
                ..ListObjectsV2Output::default()
            }));
        }
        let limit = input.max_keys.unwrap_or(1000).clamp(0, 1000);
        let resumed = match &input.continuation_token {
            None => None,
            Some(token) => Some(
                key_of_token(token)
                    .ok_or_else(|| s3_error!(InvalidArgument, "The continuation token provided is incorrect"))?,
            ),
        };
        let after = resumed.as_ref().or(input.start_after.as_ref());
        let page = self.list(&input.bucket, input.prefix.as_ref(), input.delimiter.as_ref(), after, limit)?;
        let next = page.last.as_deref().filter(|_| page.truncated).map(token_of_key);
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: Some(input.prefix.unwrap_or_default()),
            max_keys: Some(limit),
            key_count: Some((page.objects.len() + page.common_prefixes.len()) as i32),
            continuation_token: input.continuation_token,
            start_after: input.start_after,
            is_truncated: Some(page.truncated),
            next_continuation_token: next,
            delimiter: input.delimiter,
            contents: Some(page.objects.into_iter().map(listed).collect()),
            common_prefixes: common(page.common_prefixes),
            ..ListObjectsV2Output::default()
        }))
    }

    async fn delete_object(&self, request: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        let mut store = self.0.store.lock().unwrap();
        bucket_of(&store, &request.input.bucket)?;
        if let Some(objects) = store.buckets.get_mut(&request.input.bucket) {
            objects.remove(&request.input.key);
        }
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(
        &self,
        request: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let mut store = self.0.store.lock().unwrap();
        bucket_of(&store, &request.input.bucket)?;
        let quiet = request.input.delete.quiet.unwrap_or(false);
        if request.input.delete.objects.len() > 1000 {
            return Err(s3_error!(MalformedXML, "At most 1000 keys can be deleted in one request"));
        }
        let mut deleted = Vec::new();
        for object in request.input.delete.objects {
            if let Some(objects) = store.buckets.get_mut(&request.input.bucket) {
                objects.remove(&object.key);
            }
            deleted.push(DeletedObject { key: Some(object.key), ..DeletedObject::default() });
        }
        Ok(S3Response::new(DeleteObjectsOutput {
            deleted: (!quiet).then_some(deleted),
            ..DeleteObjectsOutput::default()
        }))
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let input = request.input;
        let mut store = self.0.store.lock().unwrap();
        bucket_of(&store, &input.bucket)?;
        store.next_upload += 1;
        let id = format!("upload-{}", store.next_upload);
        let now = SystemTime::now();
        let template = StoredObject {
            body: Bytes::new(),
            etag: String::new(),
            content_type: input.content_type,
            metadata: input.metadata.unwrap_or_default().into_iter().collect(),
            sse: input.server_side_encryption.as_ref().map(|sse| sse.as_str().to_owned()),
            storage_class: input.storage_class.map(|class| class.as_str().to_owned()),
            last_modified: now,
            checksum: Checksum::default(),
        };
        let upload = Upload {
            bucket: input.bucket.clone(),
            key: input.key.clone(),
            initiated: now,
            parts: Default::default(),
            template,
        };
        store.uploads.insert(id.clone(), upload);
        Ok(S3Response::new(CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(id),
            server_side_encryption: input.server_side_encryption,
            ..CreateMultipartUploadOutput::default()
        }))
    }

    async fn upload_part(&self, request: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        let mut input = request.input;
        let claims = claims!(input);
        upload_of(&self.0.store.lock().unwrap(), &input.upload_id, &input.bucket, &input.key)?;
        let received = self.receive(input.body, input.content_length, claims, request.trailing_headers).await?;
        let tag = hex(&received.md5);
        let part = Part { body: received.body, etag: tag.clone(), md5: received.md5 };
        let mut store = self.0.store.lock().unwrap();
        upload_of(&store, &input.upload_id, &input.bucket, &input.key)?;
        if let Some(upload) = store.uploads.get_mut(&input.upload_id) {
            upload.parts.insert(input.part_number, part);
        }
        Ok(S3Response::new(UploadPartOutput {
            e_tag: etag(&tag),
            checksum_crc32: received.checksum.checksum_crc32,
            checksum_crc32c: received.checksum.checksum_crc32c,
            checksum_sha256: received.checksum.checksum_sha256,
            ..UploadPartOutput::default()
        }))
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let conditions_count = request.extensions.get::<ConditionIgnored>().is_none();
        let input = request.input;
        let mut store = self.0.store.lock().unwrap();
        let upload = upload_of(&store, &input.upload_id, &input.bucket, &input.key)?;
        let wanted = input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
        let parts = chosen_parts(upload, &wanted, self.0.minimum_part_size_bytes)?;
        let mut body = BytesMut::with_capacity(parts.iter().map(|part| part.body.len()).sum());
        let mut md5 = Md5::new();
        for part in &parts {
            body.extend_from_slice(&part.body);
            md5.update(&part.md5);
        }
        let tag = format!("{}-{}", hex(&md5.finalize()), parts.len());
        let object = StoredObject {
            body: body.freeze(),
            etag: tag.clone(),
            last_modified: SystemTime::now(),
            ..upload.template.clone()
        };
        publish(
            &mut store,
            &input.bucket,
            &input.key,
            object,
            input.if_none_match.as_ref().filter(|_| conditions_count),
            input.if_match.as_ref().filter(|_| conditions_count),
        )?;
        store.uploads.remove(&input.upload_id);
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            location: Some(format!("/{}/{}", input.bucket, input.key)),
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: etag(&tag),
            ..CompleteMultipartUploadOutput::default()
        }))
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let input = request.input;
        let mut store = self.0.store.lock().unwrap();
        upload_of(&store, &input.upload_id, &input.bucket, &input.key)?;
        store.uploads.remove(&input.upload_id);
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }

    async fn list_parts(&self, request: S3Request<ListPartsInput>) -> S3Result<S3Response<ListPartsOutput>> {
        let input = request.input;
        let store = self.0.store.lock().unwrap();
        let upload = upload_of(&store, &input.upload_id, &input.bucket, &input.key)?;
        let parts = upload.parts.iter().map(|(number, part)| s3s::dto::Part {
            part_number: Some(*number),
            e_tag: etag(&part.etag),
            size: Some(part.body.len() as i64),
            ..s3s::dto::Part::default()
        });
        Ok(S3Response::new(ListPartsOutput {
            parts: Some(parts.collect()),
            is_truncated: Some(false),
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(input.upload_id),
            ..ListPartsOutput::default()
        }))
    }

    async fn list_multipart_uploads(
        &self,
        request: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let input = request.input;
        let prefix = input.prefix.clone().unwrap_or_default();
        let store = self.0.store.lock().unwrap();
        bucket_of(&store, &input.bucket)?;
        let uploads = store
            .uploads
            .iter()
            .filter(|(_, upload)| upload.bucket == input.bucket && upload.key.starts_with(&prefix))
            .map(|(id, upload)| MultipartUpload {
                key: Some(upload.key.clone()),
                upload_id: Some(id.clone()),
                initiated: Some(upload.initiated.into()),
                ..MultipartUpload::default()
            });
        Ok(S3Response::new(ListMultipartUploadsOutput {
            uploads: Some(uploads.collect()),
            is_truncated: Some(false),
            prefix: input.prefix,
            bucket: Some(input.bucket),
            ..ListMultipartUploadsOutput::default()
        }))
    }
}

fn upload_of<'a>(store: &'a Store, id: &str, bucket: &str, key: &str) -> S3Result<&'a Upload> {
    store
        .uploads
        .get(id)
        .filter(|upload| upload.bucket == bucket && upload.key == key)
        .ok_or_else(|| s3_error!(NoSuchUpload, "The specified upload does not exist."))
}

/// The parts a completion names: ascending, present, with the right ETags and, save the last, large enough.
fn chosen_parts(upload: &Upload, wanted: &[CompletedPart], minimum_size_bytes: usize) -> S3Result<Vec<Part>> {
    if wanted.is_empty() {
        return Err(s3_error!(MalformedXML, "You must specify at least one part"));
    }
    if !wanted.is_sorted_by(|a, b| a.part_number < b.part_number) {
        return Err(s3_error!(InvalidPartOrder, "The list of parts was not in ascending order."));
    }
    let mut parts = Vec::with_capacity(wanted.len());
    for (index, named) in wanted.iter().enumerate() {
        let part = named
            .part_number
            .and_then(|number| upload.parts.get(&number))
            .filter(|part| named.e_tag.as_ref().is_none_or(|etag| etag.value() == part.etag))
            .ok_or_else(|| s3_error!(InvalidPart, "One or more of the specified parts could not be found."))?;
        if index + 1 < wanted.len() && part.body.len() < minimum_size_bytes {
            return Err(s3_error!(EntityTooSmall, "Your proposed upload is smaller than the minimum allowed size"));
        }
        parts.push(part.clone());
    }
    Ok(parts)
}

fn token_of_key(key: &str) -> String {
    format!("after-{}", hex(key.as_bytes()))
}

fn key_of_token(token: &str) -> Option<String> {
    let digits = token.strip_prefix("after-")?;
    let bytes = (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok())
        .collect::<Option<Vec<u8>>>()?;
    String::from_utf8(bytes).ok()
}
