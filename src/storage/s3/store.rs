//! The store: one method an operation.

use std::sync::Arc;

use async_trait::async_trait;
use aws_sdk_s3::primitives::ByteStream;
use futures::{StreamExt, stream};

use super::super::{
    Body, Kind, Listed, Object, ObjectHead, Page, Payload, Put, PutOptions, Result, StorageError, Store, Upload,
};
use super::S3Options;
use super::bucket::{Bucket, system_time};
use super::error::Failure;
use super::upload::S3Upload;

/// A bucket. Keys are whole keys in it. Clones share connections and credentials.
#[derive(Debug, Clone)]
pub struct S3Store {
    bucket: Arc<Bucket>,
}

impl S3Store {
    /// Nothing is asked or read yet.
    pub fn new(options: S3Options) -> Self {
        Self { bucket: Arc::new(Bucket::new(options)) }
    }
}

#[async_trait]
impl Store for S3Store {
    fn url(&self, key: &str) -> String {
        self.bucket.url(key)
    }

    async fn get(&self, key: &str, from: u64, etag: Option<&str>) -> Result<Object> {
        let bucket = &self.bucket;
        let range = (from > 0).then(|| format!("bytes={from}-"));
        let output = match bucket.get_object("get", key, range, etag).await? {
            Ok(output) => output,
            Err(failure) if failure.status() == Some(416) => return bucket.empty_tail(key, from, etag, failure).await,
            Err(failure) => return Err(bucket.explain_absence("get", key, failure).await),
        };
        let head = bucket.head_of_get("get", key, &output)?;
        if from > 0 && output.content_range().is_none() {
            return Err(bucket.error("get", key, Kind::Other, "the server does not know ranges"));
        }
        Ok(Object { head, body: body(output.body, bucket.url(key)) })
    }

    async fn head(&self, key: &str) -> Result<ObjectHead> {
        self.bucket.head("look up", key).await
    }

    async fn put(&self, key: &str, body: Payload, options: &PutOptions) -> Result<Put> {
        self.bucket.put(key, &body, options).await
    }

    async fn begin_upload(&self, key: &str, options: &PutOptions) -> Result<Box<dyn Upload>> {
        Ok(Box::new(S3Upload::begin(Arc::clone(&self.bucket), key, options).await?))
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page> {
        let bucket = &self.bucket;
        let list = bucket.client("list", prefix).await?.list_objects_v2().bucket(&bucket.options.bucket);
        let list = list.prefix(prefix).set_start_after(after.map(str::to_owned));
        let mut output = list.clone().send().await.map_err(|error| bucket.explain("list", prefix, error.into()))?;
        // a page may be empty and not the last
        while output.contents().is_empty() && output.is_truncated() == Some(true) {
            let Some(token) = output.next_continuation_token() else {
                let source = "the server sent an empty page and says that there is more";
                return Err(bucket.error("list", prefix, Kind::Unavailable, source));
            };
            let next = list.clone().continuation_token(token);
            output = next.send().await.map_err(|error| bucket.explain("list", prefix, error.into()))?;
        }
        let objects = output.contents().iter().filter_map(|object| {
            Some(Listed {
                key: object.key()?.to_owned(),
                size: u64::try_from(object.size().unwrap_or(0)).unwrap_or(0),
                last_modified: system_time(object.last_modified()),
            })
        });
        Ok(Page { objects: objects.collect(), more: output.is_truncated().unwrap_or(false) })
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let bucket = &self.bucket;
        let delete = bucket.client("delete", key).await?.delete_object().bucket(&bucket.options.bucket).key(key);
        match delete.send().await.map_err(Failure::from) {
            Ok(_) => Ok(()),
            Err(failure) if failure.kind() == Kind::NotFound => Ok(()),
            Err(failure) => Err(bucket.explain("delete", key, failure)),
        }
    }

    async fn renew_credentials(&self) {
        self.bucket.renew_credentials().await;
    }
}

/// The bytes as they arrive; whatever breaks them off may be cured by another request.
fn body(bytes: ByteStream, url: String) -> Body {
    let chunks = stream::unfold(Some((bytes, url)), |state| async {
        let (mut bytes, url) = state?;
        match bytes.next().await? {
            Ok(chunk) => Some((Ok(chunk), Some((bytes, url)))),
            Err(error) => Some((Err(StorageError::new("get", url, Kind::Unavailable, error)), None)),
        }
    });
    chunks.boxed()
}
