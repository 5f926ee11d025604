//! Objects in S3, or in what speaks its protocol: `s3://`.
//!
//! Each request is made once; [`super::retry`] decides on more. The client is made with the first request, cheaply: no
//! TLS roots for a plain `http` endpoint, no profile files or metadata service when the credentials were given.
//!
//! **Integrity in transit.** Over `https` TLS guards every byte, so the payload is left unsigned: signing it is a second
//! SHA-256 pass over each upload. Over `http` the payload is signed, and the server refuses what does not fit. To AWS
//! each upload carries a CRC-32C besides, which is next to free and which buckets with Object Lock ask for; other servers
//! get no `x-amz-checksum-*` header, since older ones refuse them. Downloads are checked by the formats inside.
//!
//! **Never replaced.** Uploads are conditional (`If-None-Match: *`, also when completing one in parts); see
//! [`ConditionalPut`].

mod bucket;
mod bucket_name;
mod client;
mod credentials;
mod endpoint;
mod error;
mod pace;
mod service_client;
mod store;
mod upload;

use std::time::Duration;

pub use bucket_name::is_compatible as is_compatible_bucket;
pub use credentials::Credentials;
pub use endpoint::{Addressing, Endpoint, EndpointError};
pub use store::S3Store;

/// Where a bucket is and how to talk to it: plain data, whoever read it.
#[derive(Debug, Clone)]
pub struct S3Options {
    /// The bucket's name.
    pub bucket: String,
    /// The region requests are signed for. None: of the endpoint's name, of the profile, or `us-east-1` for an endpoint
    /// that is not AWS's.
    pub region: Option<String>,
    /// None means AWS's own for the region.
    pub endpoint: Option<Endpoint>,
    /// Sent as `x-amz-storage-class` with each new object; None leaves it to the bucket.
    pub storage_class: Option<String>,
    /// How the server encrypts new objects.
    pub sse: Sse,
    /// How objects are kept from being replaced.
    pub conditional_put: ConditionalPut,
    /// Whether uploads carry a CRC-32C.
    pub upload_checksums: bool,
    /// How long the server may take no byte of an upload. 20 s, as for downloads in
    /// [`RetryPolicy`](super::RetryPolicy).
    pub stall_timeout: Duration,
    /// Who signs.
    pub credentials: Credentials,
}

impl S3Options {
    /// What suits a bucket at an endpoint, with WAL-E's server-side encryption and the SDK's chain of credentials.
    pub fn new(bucket: impl Into<String>, endpoint: Option<Endpoint>) -> Self {
        let aws = endpoint.as_ref().is_none_or(Endpoint::is_aws);
        Self {
            bucket: bucket.into(),
            region: None,
            endpoint,
            storage_class: None,
            sse: Sse::default(),
            conditional_put: if aws { ConditionalPut::Enforced } else { ConditionalPut::Verify },
            upload_checksums: aws,
            stall_timeout: Duration::from_secs(20),
            credentials: Credentials::Chain,
        }
    }
}

/// Server-side encryption of new objects.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Sse {
    /// `AES256`, which WAL-E sends with every object (`spec/wal-e-format.md §1.7`).
    #[default]
    Aes256,
    /// `aws:kms` with this key, or the account's default one.
    Kms {
        /// A key's id or ARN.
        key_id: Option<String>,
    },
    /// Nothing is asked for: the bucket's own setting, and servers that have no encryption.
    Off,
}

/// What keeps an object from being replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConditionalPut {
    /// The server honours `If-None-Match: *`, as AWS does: the conditional request says it all.
    Enforced,
    /// The server may ignore the condition or refuse to have heard of it: ask before each upload whether the key is taken,
    /// and go without the condition once it was answered `501 NotImplemented`. Two writers at the same instant can then
    /// still overwrite each other.
    Verify,
}
