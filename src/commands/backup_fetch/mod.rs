//! `backup-fetch`: a base backup to a data directory that PostgreSQL can start on.
//!
//! The order is what makes it safe. `global/pg_control` is held back beside the journal until every part is extracted,
//! checked and durable, so a directory that is half restored can never be started; an interrupted restore is taken up again
//! where its journal ends.

mod completeness;
mod journal;
mod manifest;
mod next_steps;
mod partitions;
mod tablespaces;
mod target;

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::Value;

use self::completeness::Completeness;
use self::journal::Journal;
pub use self::next_steps::NextSteps;
use self::target::Target;
use super::archive::Archive;
use super::wal_continuity::{self, SegmentRange};
use super::{CommandError, Result, backup_query};
use crate::formats::backup_name::BackupName;
use crate::formats::restore_spec::{RestoreSpec, RestoreSpecError};
use crate::formats::sentinel::Sentinel;
use crate::formats::wal_name::SegmentName;
use crate::formats::wal_page::LongPageHeader;
use crate::fs::filesystem_sync::FilesystemSync;
use crate::pg::data_directory::{self, DataDirectory};
use crate::transfer::off_async;
use crate::transfer::partition_download::download_partition;
use crate::transfer::progress::Progress;
use crate::transfer::wal_download;

/// Where tablespaces go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TablespaceChoice {
    /// To the links that are in `pg_tblspc` already: every tablespace of the backup must have one.
    ExistingLinks,
    /// `--blind-restore`: to the links that are there, and to real directories where there are none.
    Blind,
    /// `--restore-spec SOURCE`: to links that are made, to where they led on the source.
    AsOnSource,
    /// `--restore-spec FILE`: to links that are made as the file says; its keys replace those of the backup.
    Spec(Value),
}

/// What to restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupFetchOptions {
    /// The data directory to make.
    pub directory: PathBuf,
    /// `LATEST` or a backup's name.
    pub query: String,
    /// How many partitions to fetch at once.
    pub pool_size: NonZeroUsize,
    /// Where tablespaces go.
    pub tablespaces: TablespaceChoice,
    /// Whether to go on when the archive lacks WAL that the backup needs.
    pub allow_missing_wal: bool,
    /// Whether to go on when the partitions held far fewer bytes than the backup has.
    pub allow_missing_files: bool,
}

/// What was restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupFetchReport {
    /// Which backup.
    pub name: BackupName,
    /// The data directory.
    pub directory: PathBuf,
    /// The sum of the files' sizes in bytes, without what an earlier, interrupted run had restored.
    pub bytes: u64,
    /// Partitions that an earlier, interrupted run had restored already.
    pub resumed_partitions: usize,
    /// What the user has to do before the server can start.
    pub next_steps: NextSteps,
}

/// Where the restored server will begin to read WAL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirstWal {
    /// The data directory, in which the WAL's directory is now.
    pub directory: DataDirectory,
    /// The first segment.
    pub name: SegmentName,
    /// Its first page.
    pub page: LongPageHeader,
}

/// Restores a base backup. Calls `on_wal_directory` once, as soon as WAL could be put where the server will look for it, unless
/// the backup needs none.
pub async fn backup_fetch(
    archive: &Archive,
    options: &BackupFetchOptions,
    progress: Arc<Progress>,
    on_wal_directory: impl FnOnce(&FirstWal) + Send,
) -> Result<BackupFetchReport> {
    let directory = target_directory(options)?;
    let prefix = archive.store.url(archive.layout.prefix());
    let name = match Journal::interrupted(&target::journal_directory(&directory), &prefix) {
        Some(begun) if options.query == backup_query::LATEST && !data_directory::looks_finished(&directory)? => {
            taken_up(archive, &directory, &begun).await?
        }
        _ => backup_query::resolve(archive, &options.query).await?.name,
    };
    let sentinel = backup_query::sentinel(archive, &name).await?;
    let spec = restore_spec(&sentinel, &options.tablespaces)?;
    tracing::info!(backup = %name, directory = %directory.display(), "restoring a base backup");

    let partitions = partitions::list(archive, &name).await?;
    let first_page = check_wal(archive, &name, &sentinel, options.allow_missing_wal).await?;
    progress.set_total(sentinel.expanded_size_bytes);
    progress.set_parts_total(partitions.len() as u64);

    let prepared = {
        let (directory, name, choice) = (directory.clone(), name.clone(), options.tablespaces.clone());
        let sentinel = sentinel.to_json();
        off_async(move || prepare(directory, &name, &prefix, &sentinel, &choice, spec.as_ref())).await?
    };
    let (target, journal, syncs) = prepared;
    let destination = Arc::new(target.destination());
    let resumed_partitions = partitions.iter().filter(|part| journal.is_done(part.number)).count();
    (0..resumed_partitions).for_each(|_| progress.part_done());

    let journal = Arc::new(journal);
    let mut on_wal_directory = first_page.map(|page| (page, on_wal_directory));
    let bytes = {
        let mut extracted = pin!(
            stream::iter(partitions.iter().filter(|part| !journal.is_done(part.number)))
                .map(|part| {
                    let (destination, progress, journal) = (destination.clone(), progress.clone(), journal.clone());
                    async move {
                        let extracted =
                            download_partition(&*archive.store, &part.key, destination, progress.clone()).await?;
                        let number = part.number;
                        off_async(move || journal.note(number, extracted.bytes)).await?;
                        progress.part_done();
                        tracing::info!(
                            partition = number,
                            members = extracted.members,
                            bytes = extracted.bytes,
                            "partition restored"
                        );
                        Result::Ok(extracted.bytes)
                    }
                })
                .buffer_unordered(options.pool_size.get())
        );
        let mut bytes = 0;
        loop {
            let of_partition = extracted.try_next().await?;
            if let Ok(directory) = DataDirectory::open(&directory)
                && directory.wal_directory().is_dir()
                && let Some((page, call)) = on_wal_directory.take()
            {
                call(&FirstWal { directory, name: name.segment(), page });
            }
            match of_partition {
                Some(of_partition) => bytes += of_partition,
                None => break bytes,
            }
        }
    };

    let last = partitions.last().map(|part| part.number);
    let needed = Completeness {
        is_online: !is_offline(&name, &sentinel),
        expanded_size_bytes: sentinel.expanded_size_bytes,
        allow_missing_files: options.allow_missing_files,
    };
    let next_steps = off_async(move || finish(&target, syncs, &journal, last, &needed)).await?;
    Ok(BackupFetchReport { name, directory, bytes, resumed_partitions, next_steps })
}

/// What `LATEST` means where an interrupted restore is taken up: the backup that it is of, whatever is newer by now.
async fn taken_up(archive: &Archive, directory: &Path, begun: &str) -> Result<BackupName> {
    let latest = backup_query::resolve(archive, backup_query::LATEST).await?.name;
    match backup_query::find(archive, begun).await? {
        Some(found) if found.name == latest => Ok(latest),
        Some(found) => {
            tracing::info!(backup = %found.name, newest = %latest, "going on with the interrupted restore, and not with the newest backup");
            Ok(found.name)
        }
        None => Err(CommandError::refused(format!("the archive does not hold backup {begun} any more"))
            .with_detail(format!("\"{}\" holds an interrupted restore of it.", directory.display()))
            .with_hint(format!("Empty the data directory and the tablespaces' directories, and restore another backup, such as {latest}."))),
    }
}

/// The backup's own specification with the user's over it; none for backups that have none (WAL-E up to 0.6). Where the
/// source lay is no reason to restore there, so its `base_prefix` means nothing.
fn restore_spec(sentinel: &Sentinel, choice: &TablespaceChoice) -> Result<Option<RestoreSpec>> {
    let file = match choice {
        TablespaceChoice::Spec(file) => Some(file),
        _ => None,
    };
    if file.is_none() && sentinel.spec.is_none() {
        return Ok(None);
    }
    let recorded = sentinel.spec.clone().unwrap_or_else(empty_object);
    RestoreSpec::from_json(&recorded, file).map(Some).map_err(unusable_spec)
}

fn empty_object() -> Value {
    Value::Object(serde_json::Map::new())
}

fn unusable_spec(failed: RestoreSpecError) -> CommandError {
    CommandError::refused("the restore specification cannot be used").with_detail(format!("{failed}."))
}

/// Where the command line says, or the specification file.
fn target_directory(options: &BackupFetchOptions) -> Result<PathBuf> {
    let in_file = match &options.tablespaces {
        TablespaceChoice::Spec(file) => RestoreSpec::base_prefix_of(file).map_err(unusable_spec)?,
        _ => None,
    };
    let directory = in_file.map_or_else(|| options.directory.clone(), PathBuf::from);
    std::path::absolute(&directory).map_err(CommandError::file("find", &directory))
}

type Prepared = (Target, Journal, Vec<FilesystemSync>);

/// Makes the directories and links, or takes up an interrupted restore.
fn prepare(
    directory: PathBuf,
    name: &BackupName,
    prefix: &str,
    sentinel: &str,
    choice: &TablespaceChoice,
    spec: Option<&RestoreSpec>,
) -> Result<Prepared> {
    let target = Target::open(directory)?;
    tablespaces::check(target.root(), choice, spec, target.is_resumed())?;
    // nothing was changed before here, so that a refusal leaves everything as it was
    target.create()?;
    if !target.is_resumed() {
        tablespaces::make_links(target.root(), choice, spec)?;
    }
    let links = tablespaces::existing_links(target.root())?;
    let places = links.iter().map(|link| (link.clone(), fs::read_link(target.root().join(link)).unwrap_or_default()));
    let journal = Journal::open(target.journal_directory(), name, prefix, sentinel, places.collect())?;
    // opened before the first write, so that a failed write is reported at the end
    let places = std::iter::once(target.root().to_owned()).chain(links.iter().map(|link| target.root().join(link)));
    let syncs = places
        .map(|place| FilesystemSync::begin(&place).map_err(CommandError::file("open directory", &place)))
        .collect::<Result<_>>()?;
    Ok((target.with_links(links), journal, syncs))
}

/// Makes everything durable, then, last of all, the control file appear.
fn finish(
    target: &Target,
    syncs: Vec<FilesystemSync>,
    journal: &Journal,
    last: Option<u32>,
    needed: &Completeness,
) -> Result<NextSteps> {
    let checked = target.held_back_control_file().and_then(|control| {
        needed.check_label(target.root())?;
        tablespaces::rewrite_map(target.root())?;
        Ok(control)
    });
    let control = match (checked, last) {
        (Err(failed), Some(last)) => {
            // the one with these files: once the archive is mended, the same command has to fetch it again
            journal.forget(|partition| partition == last)?;
            return Err(failed);
        }
        (checked, _) => checked?,
    };
    needed.check_bytes(journal.restored_bytes())?;
    target.give_to_owner()?;
    for sync in syncs {
        if let Err(failed) = sync.finish() {
            // the kernel tells of a failed write once: any of the files may be bad, and no later sync would say so
            journal.forget(|_| true)?;
            return Err(CommandError::file("make durable what lies under", target.root())(failed));
        }
    }
    target.publish_control_file()?;
    let next_steps = NextSteps::of(target.root(), &control);
    fs::remove_dir_all(target.journal_directory()).map_err(CommandError::file("remove", target.journal_directory()))?;
    Ok(next_steps)
}

/// Whether the backup is of a stopped cluster: it stops where it starts.
fn is_offline(name: &BackupName, sentinel: &Sentinel) -> bool {
    sentinel.stop_segment == name.segment().to_string() && sentinel.stop_offset == name.offset()
}

/// Refuses to spend hours on a backup that cannot become consistent. The first page of the WAL that it needs, if it needs any.
async fn check_wal(
    archive: &Archive,
    name: &BackupName,
    sentinel: &Sentinel,
    allow_missing: bool,
) -> Result<Option<LongPageHeader>> {
    let Ok(last) = sentinel.stop_segment.parse::<SegmentName>() else { return Ok(None) };
    // it needs no WAL to be consistent, and its name may be wrong (§4.9)
    if is_offline(name, sentinel) {
        return Ok(None);
    }
    let first = name.segment();
    let key = archive.layout.wal(&first.to_string());
    let page = match wal_download::first_page(&*archive.store, &key, first).await {
        Err(failed) if allow_missing => {
            tracing::warn!(segment = %first, error = %failed, "the first segment that the backup needs cannot be read");
            return Ok(None);
        }
        page => page?,
    };
    let missing = match page {
        Some(page) => wal_continuity::missing(archive, SegmentRange { first, last, size: page.segment_size }).await?,
        None => vec![first],
    };
    let Some(example) = missing.first() else { return Ok(page) };
    let message = format!("the archive lacks {} of the WAL segments that backup {name} needs", missing.len());
    let detail = format!(
        "The first one missing is {example}; it needs {first} to {last}, under \"{}\".",
        archive.store.url(&archive.layout.wal_directory())
    );
    if allow_missing {
        tracing::warn!("{message}: {detail}");
        return Ok(page);
    }
    Err(CommandError::refused(message)
        .with_detail(detail)
        .with_hint("Without them the server stops with \"WAL ends before end of online backup\". Choose another backup, or use --allow-missing-wal if they are elsewhere."))
}
