//! A store that does what it is asked, and answers too late: the next try finds the name taken, by the very object that it
//! is about to store, and must know it for its own.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

mod support;

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use support::{Archive, PgCluster, temp_dir};
use wal_eve::commands::archive::Archive as OpenArchive;
use wal_eve::commands::backup_push::{BackupPushOptions, backup_push};
use wal_eve::formats::key::Layout;
use wal_eve::formats::lzo1x::Level;
use wal_eve::storage::{
    self, FileStore, Kind, Object, ObjectHead, Page, Payload, Put, PutOptions, Result, RetryPolicy, StorageError,
    Store, Upload,
};

/// Loses the answer to the first write of every key.
struct Late {
    store: FileStore,
    answered: Mutex<HashSet<String>>,
}

#[async_trait]
impl Store for Late {
    fn url(&self, key: &str) -> String {
        self.store.url(key)
    }

    async fn get(&self, key: &str, from: u64, etag: Option<&str>) -> Result<Object> {
        self.store.get(key, from, etag).await
    }

    async fn head(&self, key: &str) -> Result<ObjectHead> {
        self.store.head(key).await
    }

    async fn put(&self, key: &str, body: Payload, options: &PutOptions) -> Result<Put> {
        let put = self.store.put(key, body, options).await;
        if self.answered.lock().unwrap().insert(key.to_owned()) {
            return Err(StorageError::new("put", self.url(key), Kind::Unavailable, "it took too long"));
        }
        put
    }

    async fn begin_upload(&self, key: &str, options: &PutOptions) -> Result<Box<dyn Upload>> {
        self.store.begin_upload(key, options).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page> {
        self.store.list(prefix, after).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.store.delete(key).await
    }
}

#[tokio::test]
async fn a_backup_to_a_directory_knows_its_own_objects_again() {
    let place = temp_dir();
    let store = Late { store: FileStore::new(place.path().to_owned()), answered: Mutex::default() };
    let policy = RetryPolicy { first_delay: Duration::from_millis(1), ..RetryPolicy::default() };
    let width = NonZeroUsize::new(8).unwrap();
    let archive = OpenArchive { store: storage::wrap(store, policy, width), layout: Layout::new("") };
    let cluster = PgCluster::init(15);
    let options = BackupPushOptions {
        directory: cluster.data_dir().to_owned(),
        server: None,
        pool_size: width,
        read_rate_limit: None,
        fast_checkpoint: true,
        include_config: true,
        wal_timeout: Duration::from_secs(1),
        level: Level::Fast,
    };
    let report = backup_push(&archive, &options, Arc::default()).await.unwrap();
    let archive = Archive::File(place);
    assert_eq!(archive.backups(), [report.name.to_string()]);

    let mut copy = PgCluster::without_data(15);
    let fetch = ["backup-fetch", copy.data_dir().to_str().unwrap(), "LATEST"];
    archive.wal_eve().run(fetch).assert_success();
    copy.configure_connections();
    copy.start();
}
