//! `backup-list`: the complete base backups of an archive.

use std::time::SystemTime;

use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::Result;
use super::archive::Archive;
use super::backup_query;
use crate::formats::backup_name::BackupName;
use crate::formats::sentinel::Sentinel;

/// What to list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BackupListOptions {
    /// `LATEST` or a name; none lists all.
    pub query: Option<String>,
    /// Whether to read each backup's sentinel.
    pub detail: bool,
}

/// A complete backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedBackup {
    /// Its name.
    pub name: BackupName,
    /// When its sentinel was stored.
    pub last_modified: SystemTime,
    /// What its sentinel says, where that was asked for.
    pub sentinel: Option<Sentinel>,
}

/// How many sentinels are read at once.
const SENTINELS_IN_FLIGHT: usize = 8;

/// Lists complete backups, in the store's order, which is that of their names. A name that does not exist lists none, as in
/// WAL-E, and is no error.
pub async fn backup_list(archive: &Archive, options: &BackupListOptions) -> Result<Vec<ListedBackup>> {
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
            Ok(ListedBackup { sentinel, ..backup })
        })
        .buffered(SENTINELS_IN_FLIGHT)
        .try_collect()
        .await
}
