//! Buckets and objects in memory.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::SystemTime;

use bytes::Bytes;
use s3s::dto::Checksum;

/// An object as it lies in the store.
#[derive(Debug, Clone)]
pub struct StoredObject {
    pub body: Bytes,
    /// Without quotes; the MD5 in hex, for a multipart upload that of the parts' MD5s and their number.
    pub etag: String,
    pub content_type: Option<String>,
    pub metadata: BTreeMap<String, String>,
    /// `x-amz-server-side-encryption`.
    pub sse: Option<String>,
    pub storage_class: Option<String>,
    pub last_modified: SystemTime,
    /// The checksums the client sent with the object.
    pub checksum: Checksum,
}

/// A multipart upload that is neither completed nor aborted.
#[derive(Debug, Clone)]
pub struct Upload {
    pub bucket: String,
    pub key: String,
    pub initiated: SystemTime,
    pub parts: BTreeMap<i32, Part>,
    /// What the object will be; its body is empty until then.
    pub(super) template: StoredObject,
}

#[derive(Debug, Clone)]
pub struct Part {
    pub body: Bytes,
    pub etag: String,
    pub(super) md5: [u8; 16],
}

#[derive(Debug, Default)]
pub(super) struct Store {
    pub(super) buckets: BTreeMap<String, BTreeMap<String, StoredObject>>,
    pub(super) uploads: BTreeMap<String, Upload>,
    pub(super) next_upload: u64,
}

/// One page of a listing.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) objects: Vec<(String, StoredObject)>,
    pub(super) common_prefixes: Vec<String>,
    pub(super) truncated: bool,
    /// The key or common prefix the next page starts after.
    pub(super) last: Option<String>,
}

/// Lists the keys that begin with `prefix` and come after `after`, at most `limit` keys and common prefixes.
pub(super) fn list(
    objects: &BTreeMap<String, StoredObject>,
    prefix: &str,
    delimiter: &str,
    after: &str,
    limit: usize,
) -> Page {
    let mut page = Page::default();
    let start = if after > prefix { Bound::Excluded(after) } else { Bound::Included(prefix) };
    for (key, object) in objects.range::<str, _>((start, Bound::Unbounded)) {
        let Some(rest) = key.strip_prefix(prefix) else { break };
        if key == after {
            continue;
        }
        let common = (!delimiter.is_empty())
            .then(|| rest.find(delimiter))
            .flatten()
            .map(|at| &key[..prefix.len() + at + delimiter.len()]);
        if common.is_some_and(|common| after.starts_with(common) || page.last.as_deref() == Some(common)) {
            continue;
        }
        if page.objects.len() + page.common_prefixes.len() == limit {
            page.truncated = limit > 0;
            break;
        }
        match common {
            Some(common) => page.common_prefixes.push(common.to_owned()),
            None => page.objects.push((key.clone(), object.clone())),
        }
        page.last = Some(common.unwrap_or(key).to_owned());
    }
    page
}
