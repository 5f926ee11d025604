//! `backup-list`: the complete base backups of an archive.

use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::Result;
use super::archive::Archive;
use super::backup_query::{self, CompleteBackup};

/// What to list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BackupListOptions {
    /// `LATEST` or a name; none lists all.
    pub query: Option<String>,
    /// Whether to read each backup's sentinel.
    pub detail: bool,
}

/// How many sentinels are read at once.
const SENTINELS_IN_FLIGHT: usize = 8;

/// Lists complete backups, in the store's order, which is that of their names. A name that does not exist lists none, as in
/// WAL-E, and is no error.
pub async fn backup_list(archive: &Archive, options: &BackupListOptions) -> Result<Vec<CompleteBackup>> {
    let backups = match &options.query {
        None => backup_query::complete_backups(archive).await?,
        Some(query) => backup_query::find(archive, query).await?.into_iter().collect(),
    };
    if !options.detail {
        return Ok(backups);
    }
    stream::iter(backups)
        .map(|backup| async move {
            let sentinel = Some(backup_query::sentinel(archive, &backup.name).await?);
            Ok(CompleteBackup { sentinel, ..backup })
        })
        .buffered(SENTINELS_IN_FLIGHT)
        .try_collect()
        .await
}
