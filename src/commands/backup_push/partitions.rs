//! A backup's partitions: those of the files, and the last one, which only the backup's end can fill.

use std::sync::Arc;

use bytes::Bytes;

use super::files::{self, ArchivedFiles};
use super::manifest_spool::ManifestSpool;
use super::{BackupPushOptions, CommandError, Result, Unfinished, last_partition};
use crate::formats::backup_manifest::WalRange;
use crate::pg;
use crate::pg::data_directory::DataDirectory;
use crate::pg::walk::Found;
use crate::transfer::partition_upload::PartitionContext;
use crate::transfer::progress::Progress;
use crate::transfer::rate_limit::RateLimit;

/// Stores partitions, and remembers their files for the manifest.
pub(super) struct Partitions<'a> {
    backup: &'a Unfinished<'a>,
    options: &'a BackupPushOptions,
    context: PartitionContext,
    spool: Arc<ManifestSpool>,
}

impl<'a> Partitions<'a> {
    pub(super) fn new(
        backup: &'a Unfinished<'a>,
        options: &'a BackupPushOptions,
        progress: Arc<Progress>,
    ) -> Result<Self> {
        let spool = ManifestSpool::create().map_err(CommandError::file("create a file in", std::env::temp_dir()))?;
        let spool = Arc::new(spool);
        let context = PartitionContext {
            level: options.level,
            rate_limit: options.read_rate_limit.map(|limit| Arc::new(RateLimit::new(limit.get()))),
            progress,
            on_file: Arc::new({
                let spool = spool.clone();
                move |file| spool.add(&file)
            }),
        };
        Ok(Self { backup, options, context, spool })
    }

    /// Stores everything that `found` tells of.
    pub(super) async fn store_files(
        &self,
        found: impl Iterator<Item = pg::Result<Found>> + Send + 'static,
    ) -> Result<ArchivedFiles> {
        files::archive(self.backup, found, &self.context, self.options.pool_size).await
    }

    /// Stores `last`, by name and contents, in order, and after them the manifest of all.
    pub(super) async fn store_last(
        self,
        archived: ArchivedFiles,
        directory: &DataDirectory,
        last: Vec<(String, Bytes)>,
        wal: WalRange,
    ) -> Result<ArchivedFiles> {
        let Self { backup, spool, context: PartitionContext { level, rate_limit, progress, on_file }, .. } = self;
        drop(on_file);
        let spool = Arc::into_inner(spool).expect("every partition has been read and dropped its share");
        let members = last_partition::members(directory, last, spool, wal)?;
        // the manifest is finished before it is stored, so the last partition's files are not told to it again
        let context = PartitionContext { level, rate_limit, progress, on_file: Arc::new(|_| Ok(())) };
        let bytes = files::store(backup, archived.partitions, members, &context).await?;
        Ok(ArchivedFiles { partitions: archived.partitions + 1, bytes: archived.bytes + bytes })
    }
}
