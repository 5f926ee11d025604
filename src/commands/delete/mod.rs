//! `delete`: what is no longer needed (`spec/wal-e-format.md` §8.6).
//!
//! Sentinels go first, so that a backup is gone from every listing before anything of it is; then the rest of the backups; then
//! WAL, oldest first. An interrupted deletion leaves incomplete backups and WAL, which the next one takes; a failed phase is the
//! last one. Nothing is deleted before all that can refuse has been asked.

mod clusters;
mod inventory;
mod phase;
mod plan;

use std::num::NonZeroUsize;

pub use phase::Tally;

use super::archive::Archive;
use super::{CommandError, Result};
use crate::formats::backup_name::BackupName;
use crate::formats::key::{self, BaseBackupKey, OldVersion};
use crate::formats::wal_name::{SegmentName, WalName};
use crate::formats::wal_position::{PositionRange, WalPosition};
use crate::storage::Listed;
use inventory::{ArchivedBackup, Inventory};
use phase::Phase;
use plan::Plan;

/// How many keys of WAL that are none of PostgreSQL's are named in the log.
const SKIPPED_EXAMPLES: u64 = 20;

/// Where what is kept begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OldestKept {
    /// With this backup, which need not exist.
    Backup(BackupName),
    /// With this segment, on whatever timeline.
    Segment(SegmentName),
}

/// What is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// All that is older.
    Before(OldestKept),
    /// All that the newest complete backups, this many, do not need.
    Retain(NonZeroUsize),
    /// What WAL-E before 0.5 has written.
    OldVersions,
    /// The whole archive.
    Everything,
}

/// What to delete, and whether really.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeleteOptions {
    /// What is to go.
    pub scope: Scope,
    /// Without it nothing is deleted, and the report says what would be.
    pub confirmed: bool,
}

/// A base backup that went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeletedBackup {
    /// Its name.
    pub name: BackupName,
    /// Whether it had a sentinel.
    pub complete: bool,
    /// Its objects, the sentinel included.
    pub tally: Tally,
}

/// WAL segments that went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeletedWal {
    /// How many, and how large in the archive.
    pub tally: Tally,
    /// The first and the last of them by their position.
    pub span: Option<(SegmentName, SegmentName)>,
}

impl DeletedWal {
    fn add(&mut self, name: SegmentName, row: &Listed) {
        self.tally.add(row);
        let by_position = |name: &SegmentName| (WalPosition::from(*name), *name);
        let (first, last) = self.span.unwrap_or((name, name));
        self.span = Some((
            if by_position(&name) < by_position(&first) { name } else { first },
            if by_position(&name) > by_position(&last) { name } else { last },
        ));
    }
}

/// What stays, where that was a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The complete backups, oldest first. Empty: the archive has none, and nothing was deleted.
    pub backups: Vec<BackupName>,
    /// WAL from here on.
    pub wal_from: Option<WalPosition>,
}

/// What was deleted, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeleteReport {
    /// Base backups, oldest first.
    pub backups: Vec<DeletedBackup>,
    /// WAL segments.
    pub wal: DeletedWal,
    /// Everything else.
    pub other: Tally,
    /// What stays; none when everything or old versions were to go.
    pub kept: Option<Kept>,
}

/// Deletes what `options` say, or finds out what that would be.
pub async fn delete(archive: &Archive, options: &DeleteOptions) -> Result<DeleteReport> {
    let run = Run { archive, confirmed: options.confirmed };
    match &options.scope {
        Scope::Everything => run.everything().await,
        Scope::OldVersions => run.old_versions().await,
        Scope::Before(oldest) => {
            let inventory = Inventory::take(archive).await?;
            run.planned(&inventory, &Plan::before(&inventory, horizon(&inventory, oldest))?).await
        }
        Scope::Retain(count) => {
            let inventory = Inventory::take(archive).await?;
            match Plan::retain(&inventory, *count)? {
                Some(plan) => run.planned(&inventory, &plan).await,
                None => {
                    let kept = Kept { backups: Vec::new(), wal_from: None };
                    Ok(DeleteReport { kept: Some(kept), ..DeleteReport::default() })
                }
            }
        }
    }
}

/// The position that a user's word stands for. A name that WAL-E's offline mode may have written stands for the beginning of
/// its log file: its segment may be up to 255 too high, and the WAL of the very backup that was named would go.
fn horizon(inventory: &Inventory, oldest: &OldestKept) -> WalPosition {
    let name = match oldest {
        OldestKept::Segment(segment) => return (*segment).into(),
        OldestKept::Backup(name) => name,
    };
    let start = inventory.find(name).map_or_else(|| PositionRange::of_backup(name), |backup| backup.start);
    if !start.is_exact() {
        tracing::warn!(
            backup = %name,
            "the name is one of WAL-E's offline mode and may tell the wrong segment: everything from {} on is kept; give a segment's name to say it exactly",
            start.earliest
        );
    }
    start.earliest
}

struct Run<'a> {
    archive: &'a Archive,
    confirmed: bool,
}

impl<'a> Run<'a> {
    fn phase(&self) -> Phase<'a> {
        Phase::new(&*self.archive.store, self.confirmed)
    }

    async fn planned(&self, inventory: &Inventory, plan: &Plan) -> Result<DeleteReport> {
        let layout = &self.archive.layout;
        // before anything goes
        clusters::check(self.archive, plan).await?;
        inventory.warn_of_foreign();
        self.announce(&plan.going);
        self.sentinels(&plan.going).await?;
        let mut data = self.phase();
        for backup in &plan.going {
            self.data(&mut data, backup).await?;
        }
        data.finish()?;

        let mut report = report_of(&plan.going);
        let mut skipped = 0;
        let mut wal = self.phase();
        let is_older = |row: &Listed| match layout.wal_name(&row.key) {
            // small, and a replica of any later timeline asks for it
            Some(WalName::History { .. }) => false,
            Some(name) => {
                let goes = name.segment().is_some_and(|segment| WalPosition::from(segment) < plan.wal_before);
                if goes {
                    report.add_wal(&name, row);
                }
                goes
            }
            None => {
                skipped += 1;
                if skipped <= SKIPPED_EXAMPLES {
                    tracing::warn!("skipping \"{}\", which is no WAL file of PostgreSQL's", row.key);
                }
                false
            }
        };
        wal.below(&layout.wal_directory(), is_older).await?;
        wal.finish()?;
        if skipped > SKIPPED_EXAMPLES {
            tracing::warn!("skipping {} more such objects", skipped - SKIPPED_EXAMPLES);
        }
        let backups = plan.kept.iter().map(|backup| backup.name.clone()).collect();
        report.kept = Some(Kept { backups, wal_from: Some(plan.wal_before) });
        Ok(report)
    }

    /// Takes what is left of a backup. One that was incomplete may have been waiting for its WAL only: nothing may end as a
    /// sentinel without data.
    async fn data(&self, phase: &mut Phase<'_>, backup: &ArchivedBackup) -> Result<()> {
        let layout = &self.archive.layout;
        let sentinel = layout.sentinel(&backup.name);
        let was_incomplete = self.confirmed && backup.completed.is_none();
        if was_incomplete && !self.archive.store.list(&sentinel, None).await?.objects.is_empty() {
            return Err(CommandError::refused(format!("backup {} has been completed meanwhile", backup.name))
                .with_detail("It had no sentinel when this command began, and nothing of it was deleted. No WAL was deleted either.")
                .with_hint("Run the same command again: it then decides anew."));
        }
        let is_its_data =
            |row: &Listed| layout.base_backup_key(&row.key) == Some(BaseBackupKey::Data(backup.name.clone()));
        phase.below(&layout.backup(&backup.name), is_its_data).await?;
        if was_incomplete {
            let completed_without_data = |row: &Listed| {
                tracing::warn!("\"{}\" appeared while the backup was being deleted, and goes too", row.key);
                true
            };
            phase.below(&sentinel, completed_without_data).await?;
        }
        Ok(())
    }

    async fn everything(&self) -> Result<DeleteReport> {
        let layout = &self.archive.layout;
        let inventory = Inventory::take(self.archive).await?;
        self.announce(&inventory.backups);
        self.sentinels(&inventory.backups).await?;
        let mut report = report_of(&inventory.backups);
        let mut rest = self.phase();
        let is_left = |row: &Listed| {
            match layout.base_backup_key(&row.key) {
                Some(BaseBackupKey::Data(_)) => {}
                // in a dry run they are still there; else it is one of a backup that was completed meanwhile
                Some(BaseBackupKey::Sentinel(_)) if !self.confirmed => return false,
                _ => report.other.add(row),
            }
            true
        };
        rest.below(&layout.base_backups(), is_left).await?;
        rest.finish()?;
        let mut wal = self.phase();
        let all = |row: &Listed| {
            match layout.wal_name(&row.key) {
                Some(name) => report.add_wal(&name, row),
                None => report.other.add(row),
            }
            true
        };
        wal.below(&layout.wal_directory(), all).await?;
        wal.finish()?;
        Ok(report)
    }

    async fn old_versions(&self) -> Result<DeleteReport> {
        let layout = &self.archive.layout;
        let pre_release = layout.pre_release();
        let versions: Vec<OldVersion> = layout.old_versions().into_iter().chain([pre_release.clone()]).collect();
        let is_one = |directory: &str, row: &Listed| {
            directory != pre_release.base_backups || layout.is_pre_release_backup(&row.key)
        };
        let mut report = DeleteReport::default();
        for sentinels in [true, false] {
            let mut phase = self.phase();
            for OldVersion { base_backups, .. } in &versions {
                let selects = |row: &Listed| {
                    let selected = is_one(base_backups, row) && key::is_sentinel(&row.key) == sentinels;
                    if selected {
                        report.other.add(row);
                    }
                    selected
                };
                phase.below(base_backups, selects).await?;
            }
            phase.finish()?;
        }
        let mut phase = self.phase();
        for OldVersion { wal, .. } in &versions {
            let all = |row: &Listed| {
                report.other.add(row);
                true
            };
            phase.below(wal, all).await?;
        }
        phase.finish()?;
        Ok(report)
    }

    fn announce(&self, backups: &[ArchivedBackup]) {
        let verb = if self.confirmed { "deleting" } else { "would delete" };
        for backup in backups {
            let kind = if backup.completed.is_some() { "complete" } else { "incomplete" };
            tracing::info!("{verb} {kind} base backup {} of {} bytes", backup.name, backup.bytes);
        }
    }

    async fn sentinels(&self, backups: &[ArchivedBackup]) -> Result<()> {
        let mut phase = self.phase();
        phase.objects(backups.iter().flat_map(|backup| backup.sentinels.iter().cloned())).await?;
        phase.finish().map(drop)
    }
}

fn report_of(backups: &[ArchivedBackup]) -> DeleteReport {
    let backups = backups.iter().map(|backup| DeletedBackup {
        name: backup.name.clone(),
        complete: backup.completed.is_some(),
        tally: Tally { objects: backup.objects, bytes: backup.bytes },
    });
    DeleteReport { backups: backups.collect(), ..DeleteReport::default() }
}

impl DeleteReport {
    fn add_wal(&mut self, name: &WalName, row: &Listed) {
        match name {
            WalName::Segment(segment) => self.wal.add(*segment, row),
            _ => self.other.add(row),
        }
    }

    /// All that went.
    pub fn total(&self) -> Tally {
        let parts = self.backups.iter().map(|backup| backup.tally).chain([self.wal.tally, self.other]);
        parts.fold(Tally::default(), |sum, part| Tally {
            objects: sum.objects + part.objects,
            bytes: sum.bytes + part.bytes,
        })
    }
}
