//! Every store keeps the contract that `src/storage/contract.rs` writes down.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../src/storage/contract.rs"]
mod contract;
#[path = "support/s3/mod.rs"]
mod s3;

use std::num::NonZeroUsize;

use s3::{ACCESS_KEY, REGION, S3Server, SECRET_KEY};
use wal_eve::storage::s3::{ConditionalPut, Credentials, Endpoint, S3Options};
// The suite names the floor as the crate does.
use wal_eve::storage::{self, FileStore, MemoryStore, RetryPolicy, S3Store};

fn options(server: &S3Server, bucket: &str) -> S3Options {
    let endpoint: Endpoint = server.wale_s3_endpoint().parse().unwrap();
    S3Options {
        region: Some(REGION.into()),
        credentials: Credentials::Static {
            access_key_id: ACCESS_KEY.into(),
            secret_access_key: SECRET_KEY.into(),
            session_token: None,
        },
        ..S3Options::new(bucket, Some(endpoint))
    }
}

fn server(bucket: &str) -> S3Server {
    let server = S3Server::start();
    server.create_bucket(bucket);
    server
}

#[tokio::test]
async fn s3_as_aws_is_spoken_to() {
    let server = server("b");
    let options =
        S3Options { conditional_put: ConditionalPut::Enforced, upload_checksums: true, ..options(&server, "b") };
    contract::check(&S3Store::new(options), "p/").await;
}

#[tokio::test]
async fn s3_as_other_servers_are_spoken_to() {
    let server = server("b");
    contract::check(&S3Store::new(options(&server, "b")), "p/").await;
}

#[tokio::test]
async fn s3_with_a_dotted_bucket() {
    let server = server("my.old.bucket");
    contract::check(&S3Store::new(options(&server, "my.old.bucket")), "").await;
}

#[tokio::test]
async fn s3_without_its_bucket() {
    let server = server("another");
    contract::check_missing(&S3Store::new(options(&server, "missing"))).await;
}

#[tokio::test]
async fn every_store_as_programs_use_it() {
    let (server, directory) = (server("b"), tempfile::tempdir().unwrap());
    let eight = NonZeroUsize::new(8).unwrap();
    let s3 = storage::wrap(S3Store::new(options(&server, "b")), RetryPolicy::default(), eight);
    contract::check(&*s3, "p/").await;
    let file = storage::wrap(FileStore::new(directory.path().to_owned()), RetryPolicy::default(), eight);
    contract::check(&*file, "p/").await;
    let memory = storage::wrap(MemoryStore::new(), RetryPolicy::default(), eight);
    contract::check(&*memory, "p/").await;
    let missing = storage::wrap(S3Store::new(options(&server, "missing")), RetryPolicy::default(), eight);
    contract::check_missing(&*missing).await;
    let missing = storage::wrap(FileStore::new(directory.path().join("not/there")), RetryPolicy::default(), eight);
    contract::check_missing(&*missing).await;
}
