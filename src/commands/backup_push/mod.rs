//! `backup-push`: a running or stopped cluster to a base backup in the archive.
//!
//! The order is what makes it safe: the backup's start, every file but the control file, the control file, the stop, the
//! files that only the stop can give, the WAL from start to stop seen in the archive, and only then the sentinel, without
//! which no reader takes the backup for complete.

mod files;
mod last_partition;
mod manifest_spool;
mod offline;
mod online;
mod partitions;

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt as _;
use serde_json::Value;

use super::archive::Archive;
use super::{CommandError, Result};
use crate::formats::backup_name::{BackupName, offset_text};
use crate::formats::lzo1x::Level;
use crate::formats::restore_spec::{RestoreSpec, SpecTablespace};
use crate::formats::sentinel::Sentinel;
use crate::formats::wal_name::SegmentName;
use crate::pg::connection_settings::ConnectionSettings;
use crate::pg::data_directory::DataDirectory;
use crate::pg::tablespace::Tablespace;
use crate::storage::{self, Put, PutOptions};
use crate::transfer::progress::Progress;

/// What to back up.
#[derive(Debug, Clone)]
pub struct BackupPushOptions {
    /// The data directory.
    pub directory: PathBuf,
    /// The server that runs in it; none when it is shut down.
    pub server: Option<ConnectionSettings>,
    /// How many partitions to upload at once.
    pub pool_size: NonZeroUsize,
    /// How many bytes to read per second, over all partitions.
    pub read_rate_limit: Option<NonZeroU64>,
    /// Whether to begin with an immediate checkpoint.
    pub fast_checkpoint: bool,
    /// Whether to archive the configuration files too.
    pub include_config: bool,
    /// How long to wait for the WAL that the backup needs.
    pub wal_timeout: Duration,
    /// How hard to compress.
    pub level: Level,
}

/// A backup that is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupPushReport {
    /// Its name.
    pub name: BackupName,
    /// How many partitions it has.
    pub partitions: u32,
    /// The sum of the files' sizes in bytes.
    pub expanded_size_bytes: u64,
}

/// Takes a base backup.
pub async fn backup_push(
    archive: &Archive,
    options: &BackupPushOptions,
    progress: Arc<Progress>,
) -> Result<BackupPushReport> {
    match &options.server {
        Some(settings) => online::backup_push(archive, options, settings, progress).await,
        None => offline::backup_push(archive, options, progress).await,
    }
}

/// The metadata that tells a backup's own objects from others of the same name.
const BACKUP_ID_METADATA: &str = "wal-eve-backup-id";

/// A backup that has a name and is not complete.
struct Unfinished<'a> {
    archive: &'a Archive,
    name: BackupName,
    id: String,
}

impl<'a> Unfinished<'a> {
    /// Takes the name: refused when anything of that name is in the archive, which on a standby is so until the next
    /// restartpoint. The version file is the claim: of two that try at once, one fails here. It comes before the look at what
    /// is there, since the directory of a new archive is made by the first write.
    async fn claim(archive: &'a Archive, name: BackupName, version_text: &str) -> Result<Self> {
        let key = archive.layout.extended_version(&name);
        let backup = Self { archive, name, id: format!("{:032x}", rand::random::<u128>()) };
        let version_text = Bytes::copy_from_slice(version_text.as_bytes());
        if !backup.put(&key, version_text, "text/plain").await? {
            return Err(backup.name_is_taken().await);
        }
        let refused = match archive.store.list(&backup.prefix(), None).await {
            Ok(there) if there.objects.iter().all(|row| row.key == key) => return Ok(backup),
            Ok(_) => backup.name_is_taken().await,
            Err(failed) => failed.into(),
        };
        if let Err(failed) = archive.store.delete(&key).await {
            tracing::warn!(error = %failed, "could not take back the claim of the backup's name");
        }
        Err(refused)
    }

    /// What the keys of this name begin with.
    fn prefix(&self) -> String {
        format!("{}{}", self.archive.layout.base_backups(), self.name)
    }

    async fn name_is_taken(&self) -> CommandError {
        let (archive, name) = (self.archive, &self.name);
        // a page of a listing need not reach as far as the sentinel, which comes after every partition
        let what = match archive.store.head(&archive.layout.sentinel(name)).await {
            Ok(_) => "a complete backup",
            Err(absent) if absent.kind() == storage::Kind::NotFound => "an unfinished backup",
            Err(failed) => return failed.into(),
        };
        CommandError::refused(format!("{what} called {name} exists already"))
            .with_detail(format!("Its objects are under \"{}\".", archive.store.url(&self.prefix())))
            .with_hint("The backups of a standby start at its last restartpoint, those of a stopped cluster at its last checkpoint: until the next one (CHECKPOINT on the primary, then on the standby) they have the same name. An unfinished backup may also be another one that is running now; if none is, remove its objects.")
    }

    /// What marks an object as this backup's own.
    fn put_options(&self, content_type: &'static str) -> PutOptions {
        PutOptions { content_type, metadata: vec![(BACKUP_ID_METADATA.to_owned(), self.id.clone())] }
    }

    /// Stores a small object; whether it, and no other, is there now.
    async fn put(&self, key: &str, body: Bytes, content_type: &'static str) -> Result<bool> {
        let put = self.archive.store.put(key, body.clone().into(), &self.put_options(content_type)).await?;
        if self.is_own(key, put).await? {
            return Ok(true);
        }
        // a store without metadata cannot tell, but the bytes can: a sentinel or a claim of another backup differs
        let there = self.archive.store.get(key, 0, None).await?;
        if !there.head.metadata.is_empty() {
            return Ok(false);
        }
        let there: Vec<Bytes> = there.body.try_collect().await?;
        let there = there.concat();
        Ok(content_type == "application/json" && there == body)
    }

    /// Whether what is at `key` after `put` is this backup's own. An upload whose answer got lost finds itself there when it
    /// is tried again.
    async fn is_own(&self, key: &str, put: Put) -> Result<bool> {
        match put {
            Put::Stored => Ok(true),
            Put::Exists => {
                let head = self.archive.store.head(key).await?;
                Ok(head.metadata(BACKUP_ID_METADATA) == Some(&self.id))
            }
        }
    }

    /// Removes what a failed backup has stored, so that its name is free again; what cannot be removed is only logged.
    async fn discard(self) {
        // a partition that was dropped while it was published would appear after all
        self.archive.store.settle().await;
        let remove = async {
            for row in storage::list_all(&*self.archive.store, &self.archive.layout.backup(&self.name)).await? {
                // on a server without conditional writes another backup of the same name may have stored its own
                let head = self.archive.store.head(&row.key).await?;
                if head.metadata(BACKUP_ID_METADATA).is_none_or(|id| id == self.id) {
                    self.archive.store.delete(&row.key).await?;
                }
            }
            storage::Result::Ok(())
        };
        match tokio::time::timeout(Duration::from_secs(60), remove).await {
            Ok(Ok(())) => tracing::info!(backup = %self.name, "removed the objects of the failed backup"),
            Ok(Err(failed)) => {
                tracing::warn!(backup = %self.name, error = %failed, "objects of the failed backup remain")
            }
            Err(_) => tracing::warn!(backup = %self.name, "objects of the failed backup remain"),
        }
    }

    /// Makes the backup complete.
    async fn complete(self, sentinel: &Sentinel) -> Result<BackupName> {
        let key = self.archive.layout.sentinel(&self.name);
        if self.put(&key, Bytes::from(sentinel.to_json()), "application/json").await? {
            return Ok(self.name);
        }
        let url = self.archive.store.url(&key);
        Err(CommandError::refused(format!("\"{url}\" appeared while the backup was taken")).with_hint(
            "Another backup of the same name was taken at the same time. Check it with backup-fetch before you rely on it.",
        ))
    }
}

fn sentinel(
    stop: (SegmentName, u64),
    expanded_size_bytes: u64,
    directory: &DataDirectory,
    tablespaces: &[Tablespace],
) -> Sentinel {
    let (segment, offset) = stop;
    Sentinel {
        stop_segment: segment.to_string(),
        stop_offset: offset_text(offset),
        expanded_size_bytes,
        spec: Some(spec(directory, tablespaces)),
    }
}

fn spec(directory: &DataDirectory, tablespaces: &[Tablespace]) -> Value {
    let tablespaces = tablespaces.iter().map(|space| SpecTablespace {
        name: space.oid_name.clone(),
        location: space.location.to_string_lossy().into_owned(),
        link: format!("pg_tblspc/{}", space.oid_name),
    });
    let base_prefix = Some(directory.path().to_string_lossy().into_owned());
    RestoreSpec { base_prefix, tablespaces: tablespaces.collect() }.to_json()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::key::Layout;
    use crate::storage::MemoryStore;

    fn name() -> BackupName {
        "base_000000010000000000000002_00000040".parse().unwrap()
    }

    async fn refusal(archive: &Archive) -> String {
        Unfinished::claim(archive, name(), "").await.err().unwrap().to_string()
    }

    #[tokio::test]
    async fn a_taken_name_is_complete_when_its_sentinel_is_there_behind_however_many_partitions() {
        let store = MemoryStore::new();
        let archive = Archive { store: Arc::new(store.clone()), layout: Layout::new("") };
        // one more than a page of a listing has
        (0..=1000).for_each(|number| store.overwrite(&archive.layout.partition(&name(), number), ""));
        assert_eq!(refusal(&archive).await, format!("an unfinished backup called {} exists already", name()));
        assert!(store.bytes(&archive.layout.extended_version(&name())).is_none(), "the claim is taken back");
        store.overwrite(&archive.layout.sentinel(&name()), "{}");
        assert_eq!(refusal(&archive).await, format!("a complete backup called {} exists already", name()));
    }

    #[tokio::test]
    async fn the_first_backup_of_a_new_archive_makes_its_directory_and_the_second_of_a_name_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let store = storage::FileStore::new(directory.path().join("archive"));
        let archive = Archive { store: Arc::new(store), layout: Layout::new("") };
        assert!(Unfinished::claim(&archive, name(), "PostgreSQL 15").await.is_ok());
        assert_eq!(refusal(&archive).await, format!("an unfinished backup called {} exists already", name()));
    }
}
