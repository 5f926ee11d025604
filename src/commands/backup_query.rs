//! Which backup a user means: `LATEST` or a whole name (`spec/wal-e-format.md` §5.1).

use std::time::SystemTime;

use futures::TryStreamExt as _;

use super::archive::Archive;
use super::{CommandError, Result};
use crate::formats::backup_name::BackupName;
use crate::formats::error_line::joined;
use crate::formats::sentinel::Sentinel;

/// The query for the newest backup.
pub(super) const LATEST: &str = "LATEST";

/// A complete backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompleteBackup {
    /// Its name.
    pub name: BackupName,
    /// When its sentinel was stored.
    pub last_modified: SystemTime,
    /// What its sentinel says, where that was asked for.
    pub sentinel: Option<Sentinel>,
}

/// Lists the complete backups in the order of their names.
pub(super) async fn complete_backups(archive: &Archive) -> Result<Vec<CompleteBackup>> {
    let prefix = archive.layout.base_backups();
    let mut backups = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = archive.store.list(&prefix, after.as_deref()).await?;
        let last = page.objects.last().map(|row| row.key.clone());
        backups.extend(page.objects.into_iter().filter_map(|row| {
            let name = archive.layout.sentinel_backup(&row.key)?;
            Some(CompleteBackup { name, last_modified: row.last_modified, sentinel: None })
        }));
        match last {
            Some(last) if page.more => after = Some(past_directory(&prefix, &last)),
            _ => return Ok(backups),
        }
    }
}

/// Where to list on after `key`: past the rest of the partitions of the same backup, of which there may be thousands. What
/// sorts right after everything below `base_X/` is `base_X0`, and the sentinel `base_X_…` comes after that.
fn past_directory(prefix: &str, key: &str) -> String {
    match key.strip_prefix(prefix).and_then(|rest| rest.split_once('/')) {
        Some((directory, _)) => format!("{prefix}{directory}0"),
        None => key.to_owned(),
    }
}

/// The backup that `query` names, if it exists.
pub(super) async fn find(archive: &Archive, query: &str) -> Result<Option<CompleteBackup>> {
    if query == LATEST {
        // of equally old ones the last; the store's clock decides, as names need not ascend after a failover
        return Ok(complete_backups(archive).await?.into_iter().max_by_key(|backup| backup.last_modified));
    }
    let Ok(name) = query.parse::<BackupName>() else {
        let shape_is_right = query.get(..BackupName::LEN).is_some_and(|start| start.parse::<BackupName>().is_ok());
        if shape_is_right {
            return Ok(None);
        }
        return Err(CommandError::refused("invalid backup query submitted")
            .with_detail(format!("The submitted query operator was \"{query}.\""))
            .with_hint(
                "Give LATEST or a whole name from backup-list, such as base_000000010000000000000002_00000040.",
            ));
    };
    Ok(complete_backups(archive).await?.into_iter().find(|backup| backup.name == name))
}

/// The one backup that `query` names.
pub(super) async fn resolve(archive: &Archive, query: &str) -> Result<CompleteBackup> {
    find(archive, query).await?.ok_or_else(|| not_found(archive, query))
}

fn not_found(archive: &Archive, query: &str) -> CommandError {
    let backups = archive.store.url(&archive.layout.base_backups());
    match query {
        LATEST => CommandError::refused("no backups found for fetching")
            .with_detail(format!("No complete backup exists under \"{backups}\"."))
            .with_hint(
                "Is the prefix right? backup-push makes a backup; one that is being made shows when it is complete.",
            ),
        _ => CommandError::refused(format!("there is no complete backup \"{query}\""))
            .with_detail(format!("No such sentinel exists under \"{backups}\"."))
            .with_hint("Use backup-list to see the names of the complete backups."),
    }
}

/// Reads a backup's sentinel.
pub(super) async fn sentinel(archive: &Archive, name: &BackupName) -> Result<Sentinel> {
    let key = archive.layout.sentinel(name);
    let body = archive.store.get(&key, 0, None).await?.body;
    let bytes = body
        .try_fold(Vec::new(), |mut bytes, piece| {
            bytes.extend_from_slice(&piece);
            futures::future::ready(Ok(bytes))
        })
        .await?;
    Sentinel::from_json(&bytes).map_err(|failed| {
        CommandError::refused(format!("\"{}\" cannot be read", archive.store.url(&key)))
            .with_detail(format!("{}.", joined(&failed)))
            .with_hint("The sentinel is damaged or was written by something else. Choose another backup with backup-list, or restore the object from another copy of the archive.")
    })
}
