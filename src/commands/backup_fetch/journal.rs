//! Which partitions of which backup are restored already, so that an interrupted restore goes on where it stopped.
//!
//! What was written survives the death of the process but, not being fsynced before the end, not that of the machine. So
//! the journal carries the boot's identity and counts for nothing after another boot.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::commands::{CommandError, Result};
use crate::formats::backup_name::BackupName;
use crate::fs::staged::StagedFile;

/// The journal's file in its directory.
const FILE: &str = "journal.json";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    backup: String,
    prefix: String,
    boot_id: String,
    /// The sentinel's text: a backup that was removed and taken again under the same name is another one.
    #[serde(default)]
    sentinel: String,
    /// The tablespaces' links and where they lead.
    #[serde(default)]
    links: BTreeMap<PathBuf, PathBuf>,
    /// The partitions that are done, and how many bytes of files each of them held.
    #[serde(default)]
    partition_bytes: BTreeMap<u32, u64>,
}

/// An open journal.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    record: Mutex<Record>,
    lock: fs::File,
}

impl Journal {
    /// The backup from `prefix` whose restore was interrupted, by the journal in `directory`, if one is there.
    pub(super) fn interrupted(directory: &Path, prefix: &str) -> Option<String> {
        let record: Record = serde_json::from_slice(&fs::read(directory.join(FILE)).ok()?).ok()?;
        Some(record.backup).filter(|_| record.prefix == prefix)
    }

    /// Opens the journal in `directory`, which is made if it is not there. A journal of another backup is refused.
    pub(super) fn open(
        directory: PathBuf,
        name: &BackupName,
        prefix: &str,
        sentinel: &str,
        links: BTreeMap<PathBuf, PathBuf>,
    ) -> Result<Self> {
        match fs::create_dir(&directory) {
            Err(exists) if exists.kind() == io::ErrorKind::AlreadyExists => {}
            made => made.map_err(CommandError::file("create directory", &directory))?,
        }
        let lock = lock(&directory)?;
        let path = directory.join(FILE);
        let boot_id = boot_id();
        let fresh = Record {
            backup: name.to_string(),
            prefix: prefix.to_owned(),
            boot_id,
            sentinel: sentinel.to_owned(),
            links,
            partition_bytes: BTreeMap::new(),
        };
        let found = match fs::read(&path) {
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => None,
            read => serde_json::from_slice::<Record>(&read.map_err(CommandError::file("read", &path))?).ok(),
        };
        let record = match found {
            Some(found) if (&found.backup, &found.prefix) != (&fresh.backup, &fresh.prefix) => {
                return Err(CommandError::refused(format!(
                    "\"{}\" holds an interrupted restore of another backup",
                    directory.display()
                ))
                .with_detail(format!("It is of {} from \"{}\".", found.backup, found.prefix))
                .with_hint(format!(
                    "Ask for {} from that prefix to finish that restore, or empty the data directory.",
                    found.backup
                )));
            }
            Some(found) if found.sentinel != fresh.sentinel => {
                tracing::warn!("the backup was taken anew since this restore was interrupted: starting it over");
                fresh
            }
            Some(found) if found.links != fresh.links => {
                return Err(CommandError::refused("the tablespaces' links have changed since this restore was interrupted")
                    .with_detail(format!("They were {}, and are {}.", listed(&found.links), listed(&fresh.links)))
                    .with_hint("What was restored already went to the old places. Make the links as they were, or empty the data directory and start over."));
            }
            Some(found) if found.boot_id == fresh.boot_id && !found.boot_id.is_empty() => {
                tracing::info!(partitions = found.partition_bytes.len(), "taking up an interrupted restore");
                found
            }
            Some(_) => {
                tracing::warn!("the machine was restarted since this restore was interrupted: starting it over");
                fresh
            }
            None => fresh,
        };
        let journal = Self { path, record: Mutex::new(record), lock };
        journal.write(&journal.record())?;
        Ok(journal)
    }

    pub(super) fn is_done(&self, partition: u32) -> bool {
        self.record().partition_bytes.contains_key(&partition)
    }

    /// How many bytes of files the partitions held that are done.
    pub(super) fn restored_bytes(&self) -> u64 {
        self.record().partition_bytes.values().sum()
    }

    /// Notes that `partition` is extracted, and held so many bytes of files.
    pub(super) fn note(&self, partition: u32, bytes: u64) -> Result<()> {
        let mut record = self.record();
        record.partition_bytes.insert(partition, bytes);
        self.write(&record)
    }

    /// Takes back that these partitions are extracted: what they held turned out to be unusable.
    pub(super) fn forget(&self, unusable: impl Fn(u32) -> bool) -> Result<()> {
        let mut record = self.record();
        record.partition_bytes.retain(|partition, _| !unusable(*partition));
        self.write(&record)
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, record: &Record) -> Result<()> {
        let write = || {
            let staged = StagedFile::create(&self.path)?;
            staged.file().write_all(&serde_json::to_vec(record)?)?;
            staged.publish()
        };
        // held so that the lock lives as long as anything may be written
        let _ = &self.lock;
        write().map_err(CommandError::file("write", &self.path))
    }
}

fn listed(links: &BTreeMap<PathBuf, PathBuf>) -> String {
    let links: Vec<_> =
        links.iter().map(|(link, place)| format!("{} -> {}", link.display(), place.display())).collect();
    if links.is_empty() { "none".into() } else { links.join(", ") }
}

/// Two restores into one directory would each overwrite what the other has checked.
fn lock(directory: &Path) -> Result<fs::File> {
    use rustix::fs::{FlockOperation, flock};
    let opened = fs::File::open(directory).map_err(CommandError::file("open", directory))?;
    flock(&opened, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
        CommandError::refused(format!(
            "another restore into \"{}\" is running",
            directory.parent().unwrap_or(directory).display()
        ))
        .with_hint("Wait for it to end.")
    })?;
    Ok(opened)
}

/// Empty where the system does not tell, and then nothing is ever taken up.
fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> BackupName {
        "base_000000010000000000000002_00000040".parse().unwrap()
    }

    fn open(at: &Path, prefix: &str, sentinel: &str, links: &[(&str, &str)]) -> Result<Journal> {
        let links = links.iter().map(|(link, place)| (PathBuf::from(link), PathBuf::from(place))).collect();
        Journal::open(at.to_owned(), &name(), prefix, sentinel, links)
    }

    #[test]
    fn a_changed_link_is_refused_and_a_changed_backup_started_over() {
        let directory = tempfile::tempdir().unwrap();
        let links = [("pg_tblspc/1", "/a")];
        let first = open(directory.path(), "p", "s", &links).unwrap();
        first.note(0, 10).unwrap();
        drop(first);
        assert!(open(directory.path(), "p", "s", &[("pg_tblspc/1", "/b")]).is_err());
        assert!(open(directory.path(), "p", "s", &[]).is_err());
        assert!(open(directory.path(), "p", "s", &links).unwrap().is_done(0));
        assert!(!open(directory.path(), "p", "another", &links).unwrap().is_done(0));
    }

    #[test]
    fn what_was_done_is_known_to_the_next_run() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().join("j");
        let first = open(&at, "s3://b/p/", "s", &[]).unwrap();
        first.note(3, 10).unwrap();
        assert!(open(&at, "s3://b/p/", "s", &[]).is_err(), "locked");
        drop(first);
        let second = open(&at, "s3://b/p/", "s", &[]).unwrap();
        assert!(second.is_done(3) && !second.is_done(2));
        drop(second);
        assert!(open(&at, "s3://b/other/", "s", &[]).is_err(), "another archive");
    }

    #[test]
    fn the_bytes_of_all_runs_are_known() {
        let directory = tempfile::tempdir().unwrap();
        let first = open(directory.path(), "p", "s", &[]).unwrap();
        first.note(0, 100).unwrap();
        first.note(2, 20).unwrap();
        drop(first);
        let second = open(directory.path(), "p", "s", &[]).unwrap();
        second.note(1, 3).unwrap();
        assert_eq!(second.restored_bytes(), 123);
        second.forget(|partition| partition == 2).unwrap();
        assert_eq!(second.restored_bytes(), 103);
    }

    #[test]
    fn a_journal_without_the_bytes_tells_the_backup_and_that_nothing_is_done() {
        let directory = tempfile::tempdir().unwrap();
        let old = serde_json::json!({
            "backup": name().to_string(), "prefix": "p", "boot_id": boot_id(), "sentinel": "s", "links": {}, "partitions_done": [0, 1],
        });
        fs::write(directory.path().join(FILE), old.to_string()).unwrap();
        assert_eq!(Journal::interrupted(directory.path(), "p"), Some(name().to_string()));
        assert_eq!(Journal::interrupted(directory.path(), "q"), None);
        assert!(open(directory.path(), "q", "s", &[]).is_err(), "another archive");
        let journal = open(directory.path(), "p", "s", &[]).unwrap();
        assert!(!journal.is_done(0) && journal.restored_bytes() == 0);
    }

    #[test]
    fn nothing_is_believed_after_another_boot() {
        let directory = tempfile::tempdir().unwrap();
        let first = open(directory.path(), "p", "s", &[]).unwrap();
        first.note(3, 10).unwrap();
        drop(first);
        let path = directory.path().join(FILE);
        let text = fs::read_to_string(&path).unwrap().replace(&boot_id(), "another");
        fs::write(&path, text).unwrap();
        assert!(!open(directory.path(), "p", "s", &[]).unwrap().is_done(3));
    }
}
