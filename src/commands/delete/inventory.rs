//! What lies under an archive's base backups, a row for each backup: all that decides what goes, in memory that grows with
//! the number of backups and not with that of their partitions.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::SystemTime;

use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::super::archive::Archive;
use super::super::{CommandError, Result, backup_query};
use crate::formats::backup_name::BackupName;
use crate::formats::error_line::joined;
use crate::formats::key::{BaseBackupKey, Layout};
use crate::formats::sentinel::Sentinel;
use crate::formats::wal_position::{PositionRange, WalPosition};
use crate::storage::{self, Listed};

/// How many sentinels are read at once.
const SENTINELS_IN_FLIGHT: usize = 8;

/// How many of the keys that do not qualify are kept for the log; more would only hide what matters there.
const FOREIGN_EXAMPLES: usize = 20;

/// A base backup in the archive, whether complete or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ArchivedBackup {
    pub(super) name: BackupName,
    /// Where it starts.
    pub(super) start: PositionRange,
    /// When its sentinel was stored; none while it has none.
    pub(super) completed: Option<SystemTime>,
    /// The sentinel's objects: one, or several when somebody made copies beside it.
    pub(super) sentinels: Vec<Listed>,
    /// When the last of its objects was stored.
    pub(super) last_stored: SystemTime,
    pub(super) objects: u64,
    pub(super) bytes: u64,
}

impl ArchivedBackup {
    fn new(name: BackupName) -> Self {
        let start = PositionRange::of_backup(&name);
        let last_stored = SystemTime::UNIX_EPOCH;
        Self { name, start, completed: None, sentinels: Vec::new(), last_stored, objects: 0, bytes: 0 }
    }

    fn add(&mut self, row: Listed, is_sentinel: bool) {
        self.objects += 1;
        self.bytes += row.size;
        self.last_stored = self.last_stored.max(row.last_modified);
        if is_sentinel {
            self.completed = self.completed.max(Some(row.last_modified));
            self.sentinels.push(row);
        }
    }
}

/// All backups, and what is none.
#[derive(Debug, Default)]
pub(super) struct Inventory {
    /// In the order of their names.
    pub(super) backups: Vec<ArchivedBackup>,
    /// The earliest start that a backup of another program claims by its name.
    pub(super) foreign_start: Option<WalPosition>,
    /// Keys that are no backup's, the first few of them.
    pub(super) foreign: Vec<String>,
    pub(super) foreign_objects: u64,
}

impl Inventory {
    /// Of a whole listing's rows.
    #[cfg(test)]
    pub(super) fn of(layout: &Layout, rows: impl IntoIterator<Item = Listed>) -> Self {
        let mut builder = Builder::default();
        rows.into_iter().for_each(|row| builder.add(layout, row));
        builder.finish()
    }

    /// Lists the archive's base backups, and finds out where those start whose names do not tell.
    pub(super) async fn take(archive: &Archive) -> Result<Self> {
        let prefix = archive.layout.base_backups();
        let mut builder = Builder::default();
        let mut pages = pin!(storage::pages(&*archive.store, &prefix));
        while let Some(rows) = pages.try_next().await? {
            rows.into_iter().for_each(|row| builder.add(&archive.layout, row));
        }
        let mut inventory = builder.finish();
        inventory.locate(archive).await?;
        Ok(inventory)
    }

    /// An offline backup of WAL-E's stops where it starts, and an online one never does: the sentinel tells which of the two has
    /// such a name. One that cannot be read leaves the backup where it may be.
    async fn locate(&mut self, archive: &Archive) -> Result<()> {
        let doubtful = |backup: &&mut ArchivedBackup| backup.completed.is_some() && !backup.start.is_exact();
        let mut located = stream::iter(self.backups.iter_mut().filter(doubtful))
            .map(|backup| async move {
                match backup_query::sentinel(archive, &backup.name).await {
                    Ok(sentinel) if !stops_where_it_starts(&backup.name, &sentinel) => {
                        backup.start = PositionRange::exact(backup.name.segment().into());
                    }
                    Ok(_) => {}
                    Err(failed @ CommandError::Refused { .. }) => {
                        tracing::warn!(backup = %backup.name, "its start is not known: {}", joined(&failed));
                    }
                    Err(failed) => return Err(failed),
                }
                Ok(())
            })
            .buffer_unordered(SENTINELS_IN_FLIGHT);
        while located.try_next().await?.is_some() {}
        Ok(())
    }

    pub(super) fn find(&self, name: &BackupName) -> Option<&ArchivedBackup> {
        self.backups.iter().find(|backup| backup.name == *name)
    }

    /// Logs what does not qualify and is kept.
    pub(super) fn warn_of_foreign(&self) {
        for key in &self.foreign {
            tracing::warn!("skipping \"{key}\", which is no object of a base backup of WAL-E's");
        }
        let unnamed = self.foreign_objects - self.foreign.len() as u64;
        if unnamed > 0 {
            tracing::warn!("skipping {unnamed} more such objects");
        }
        if let Some(start) = self.foreign_start {
            tracing::warn!("among them is a base backup of another program: WAL from {start} on is kept for it");
        }
    }
}

fn stops_where_it_starts(name: &BackupName, sentinel: &Sentinel) -> bool {
    sentinel.stop_segment == name.segment().to_string() && sentinel.stop_offset == name.offset()
}

#[derive(Default)]
struct Builder {
    backups: BTreeMap<BackupName, ArchivedBackup>,
    rest: Inventory,
}

impl Builder {
    fn add(&mut self, layout: &Layout, row: Listed) {
        let (name, is_sentinel) = match layout.base_backup_key(&row.key) {
            Some(BaseBackupKey::Sentinel(name)) => (name, true),
            Some(BaseBackupKey::Data(name)) => (name, false),
            Some(BaseBackupKey::Foreign(start)) => return self.add_foreign(row.key, start.map(WalPosition::from)),
            None => return self.add_foreign(row.key, None),
        };
        self.backups.entry(name.clone()).or_insert_with(|| ArchivedBackup::new(name)).add(row, is_sentinel);
    }

    fn add_foreign(&mut self, key: String, start: Option<WalPosition>) {
        let rest = &mut self.rest;
        rest.foreign_objects += 1;
        rest.foreign_start = rest.foreign_start.into_iter().chain(start).min();
        if rest.foreign.len() < FOREIGN_EXAMPLES {
            rest.foreign.push(key);
        }
    }

    fn finish(self) -> Inventory {
        Inventory { backups: self.backups.into_values().collect(), ..self.rest }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::storage::MemoryStore;

    fn take(objects: &[(&str, &str)]) -> Inventory {
        let store = MemoryStore::new();
        for (key, body) in objects {
            store.overwrite(&format!("p/basebackups_005/{key}"), (*body).to_owned());
        }
        let archive = Archive { store: Arc::new(store), layout: Layout::new("p/") };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(Inventory::take(&archive)).unwrap()
    }

    #[test]
    fn objects_become_backups() {
        let inventory = take(&[
            ("base_000000010000000000000002_00000040/extended_version.txt", "version"),
            ("base_000000010000000000000002_00000040/tar_partitions/part_00000000.tar.lzo", "0123456789"),
            ("base_000000010000000000000002_00000040_backup_stop_sentinel.json", "{}"),
            ("base_000000010000000000000003_00000040/tar_partitions/part_00000000.tar.lzo", "x"),
            ("base_000000010000000000000001_backup_stop_sentinel.json", "of WAL-G"),
            ("notes.txt", "x"),
        ]);
        let summary = |backup: &ArchivedBackup| {
            (backup.name.to_string(), backup.completed.is_some(), backup.sentinels.len(), backup.objects, backup.bytes)
        };
        assert_eq!(
            inventory.backups.iter().map(summary).collect::<Vec<_>>(),
            [
                ("base_000000010000000000000002_00000040".into(), true, 1, 3, 19),
                ("base_000000010000000000000003_00000040".into(), false, 0, 1, 1)
            ]
        );
        assert_eq!((inventory.foreign_objects, inventory.foreign.len()), (2, 2));
        assert_eq!(inventory.foreign_start.unwrap().to_string(), "0000000000000001");
    }

    #[test]
    fn the_sentinel_tells_whether_a_name_is_an_offline_one() {
        let name = "base_000000010000000000000040_00000040";
        let sentinel = |segment: &str, offset: &str| {
            format!(
                "{{\"wal_segment_backup_stop\": \"{segment}\", \"wal_segment_offset_backup_stop\": \"{offset}\", \"expanded_size_bytes\": 1}}"
            )
        };
        let is_exact = |text: &str| {
            let key = format!("{name}_backup_stop_sentinel.json");
            take(&[(&key, text)]).backups[0].start.is_exact()
        };
        assert!(is_exact(&sentinel("000000010000000000000040", "00000312")), "online: it stops later");
        assert!(is_exact(&sentinel("000000010000000000000041", "00000040")));
        assert!(!is_exact(&sentinel("000000010000000000000040", "00000040")), "offline");
        assert!(!is_exact("not JSON"));
        let incomplete = format!("{name}/extended_version.txt");
        assert!(!take(&[(&incomplete, "x")]).backups[0].start.is_exact());
    }
}
