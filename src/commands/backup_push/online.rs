//! The backup of a running server, over one connection that holds it from start to stop.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::partitions::Partitions;
use super::{Archive, BackupPushOptions, BackupPushReport, CommandError, Result, Unfinished, files, sentinel};
use crate::commands::wal_continuity::{self, SegmentRange};
use crate::formats::backup_manifest::WalRange;
use crate::formats::backup_name::BackupName;
use crate::pg::backup_session::{BackupSession, BackupStop};
use crate::pg::connection_settings::ConnectionSettings;
use crate::pg::data_directory::DataDirectory;
use crate::pg::finding::{Finding, Severity};
use crate::pg::quote::identifier;
use crate::pg::server::Server;
use crate::pg::tablespace::Tablespace;
use crate::pg::version::Major;
use crate::pg::walk::{Walk, WalkOptions};
use crate::transfer::off_async;
use crate::transfer::progress::Progress;

/// How soon to ask whether the WAL has arrived, the first time and, after doubling, at most: an archiver that keeps up needs
/// a fraction of a second, but S3 bills requests.
const WAL_POLL: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(2)];

/// The least that the server is given to stop the backup. It has nothing to wait for then but its own disk, and giving up
/// would throw a whole copy away.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// How often to say what is waited for.
const WAL_REPORT: Duration = Duration::from_secs(60);

pub(super) async fn backup_push(
    archive: &Archive,
    options: &BackupPushOptions,
    settings: &ConnectionSettings,
    progress: Arc<Progress>,
) -> Result<BackupPushReport> {
    let directory = DataDirectory::open(&options.directory)?;
    let mut server = Server::connect(settings).await?;
    let mut findings = server.archiving().await?.findings();
    findings.extend(server.check_directory(&directory)?);
    heed(findings)?;
    let size_before = size_before(&mut server, settings.user()).await?;
    let segment_size = server.wal_segment_size();
    let version_text = server.version_text().to_owned();

    tracing::info!(fast = options.fast_checkpoint, "starting the backup: the server makes a checkpoint first");
    let session = BackupSession::start(server, &label(), options.fast_checkpoint).await?;
    let start = session.started();
    let name = BackupName::at(start.timeline, start.lsn, segment_size);
    tracing::info!(backup = %name, "the backup has started");
    let backup = Unfinished::claim(archive, name, &version_text).await?;

    let lost = session.lost();
    let taken = {
        let taken = async {
            let (stop, archived, tablespaces) = copy(&backup, session, &directory, options, progress).await?;
            if let Some(before) = size_before {
                files::check_size(archived.bytes, before.min(size_now(settings).await), &tablespaces)?;
            }
            let needed = SegmentRange { first: start.segment, last: stop.segment, size: segment_size };
            wait_for_wal(archive, needed, options.wal_timeout).await?;
            Ok((sentinel((stop.segment, stop.offset), archived.bytes, &directory, &tablespaces), archived))
        };
        futures::pin_mut!(taken, lost);
        match futures::future::select(taken, lost).await {
            futures::future::Either::Left((taken, _)) => taken,
            futures::future::Either::Right((lost, _)) => Err(lost.into()),
        }
    };
    match taken {
        Ok((sentinel, archived)) => {
            let name = backup.complete(&sentinel).await?;
            Ok(BackupPushReport { name, partitions: archived.partitions, expanded_size_bytes: archived.bytes })
        }
        Err(failed) => {
            backup.discard().await;
            Err(failed)
        }
    }
}

type Copied = (BackupStop, files::ArchivedFiles, Vec<Tablespace>);

/// Everything between the start and the stop, and the last partition.
async fn copy(
    backup: &Unfinished<'_>,
    session: BackupSession,
    directory: &DataDirectory,
    options: &BackupPushOptions,
    progress: Arc<Progress>,
) -> Result<Copied> {
    let start = session.started();
    let walk_options = WalkOptions { include_config: options.include_config, offline: false };
    let walk = {
        let directory = directory.clone();
        off_async(move || Walk::new(&directory, walk_options)).await?
    };
    let tablespaces = walk.tablespaces().to_vec();
    let partitions = Partitions::new(backup, options, progress.clone())?;
    let archived = {
        let counting = files::expect(progress, directory.clone(), walk_options);
        let archiving = partitions.store_files(walk);
        futures::pin_mut!(counting, archiving);
        // the count is for show only, so the archiving does not wait for it
        match futures::future::select(archiving, counting).await {
            futures::future::Either::Left((archived, _)) => archived?,
            futures::future::Either::Right(((), archiving)) => archiving.await?,
        }
    };
    check_tablespaces(&tablespaces, &Tablespace::list(directory.path())?)?;
    let control = {
        let directory = directory.clone();
        off_async(move || directory.copy_control_file()).await?
    };
    tracing::info!("every file is archived: stopping the backup");
    let stop = session.stop(false, stop_limit(directory.major(), options.wal_timeout)).await?;

    let mut last = vec![("backup_label".to_owned(), Bytes::from(stop.backup_label.clone()))];
    if !stop.tablespace_map.is_empty() {
        last.push(("tablespace_map".to_owned(), Bytes::from(stop.tablespace_map.clone())));
    }
    last.push(("global/pg_control".to_owned(), Bytes::from(control)));
    let wal = WalRange { timeline: start.timeline, start: start.lsn, end: stop.lsn };
    let archived = partitions.store_last(archived, directory, last, wal).await?;
    Ok((stop, archived, tablespaces))
}

/// Refuses when a tablespace went away meanwhile, which looks like files that were dropped.
fn check_tablespaces(before: &[Tablespace], now: &[Tablespace]) -> Result<()> {
    if before.iter().all(|tablespace| now.contains(tablespace)) {
        return Ok(());
    }
    Err(CommandError::refused("a tablespace was dropped, moved or unmounted while it was backed up")
        .with_hint("Take the backup again."))
}

/// How long the server may take to stop the backup. 9.6 itself waits there until the WAL is archived.
fn stop_limit(major: Major, wal_timeout: Duration) -> Duration {
    if major.can_stop_without_waiting() { wal_timeout.max(STOP_TIMEOUT) } else { wal_timeout }
}

/// How large the databases are; none for a user who may not know, since the size is only a check.
async fn size_before(server: &mut Server, user: &str) -> Result<Option<u64>> {
    match server.databases_size().await {
        Ok(size) => Ok(Some(size)),
        Err(failed) if failed.is_denied() => {
            tracing::warn!(
                "the backup is not checked against the size of the databases, which this user may not see. To let it: \
                 GRANT pg_read_all_stats TO {}",
                identifier(user)
            );
            Ok(None)
        }
        Err(failed) => Err(failed.into()),
    }
}

/// How large the databases are by now; without an answer, no smaller than before.
async fn size_now(settings: &ConnectionSettings) -> u64 {
    let asked = async { Server::connect(settings).await?.databases_size().await };
    asked.await.unwrap_or_else(|failed| {
        tracing::warn!(error = %failed, "could not ask for the databases' size again");
        u64::MAX
    })
}

/// Refuses on a refusal; says the rest.
fn heed(findings: Vec<Finding>) -> Result<()> {
    for finding in findings {
        let Finding { severity, message, detail, hint } = finding;
        match severity {
            Severity::Refusal => return Err(CommandError::Refused { message, detail, hint }),
            Severity::Warning => {
                tracing::warn!("{message}. {} {}", detail.unwrap_or_default(), hint.unwrap_or_default())
            }
        }
    }
    Ok(())
}

/// The label that WAL-E gives: `freeze_start_` and the time.
fn label() -> String {
    let format =
        time::macros::format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]+00:00");
    let now =
        time::OffsetDateTime::now_utc().format(format).expect("every field of the format exists in a date with time");
    format!("freeze_start_{now}")
}

/// Returns when the archive holds every segment of `range`. It is the archive that is asked and not the server, which only
/// knows that its command succeeded, and for a standby not even that.
async fn wait_for_wal(archive: &Archive, range: SegmentRange, limit: Duration) -> Result<()> {
    let began = Instant::now();
    let mut reported = began;
    let [mut pause, longest_pause] = WAL_POLL;
    loop {
        let missing = wal_continuity::missing(archive, range).await?;
        let Some(next) = missing.first() else { return Ok(()) };
        if began.elapsed() >= limit {
            return Err(CommandError::refused(format!("the archive still lacks {} of the WAL segments that the backup needs", missing.len()))
                .with_detail(format!(
                    "The first one missing is {next}; it needs {} to {}, under \"{}\". It was waited for {} s.",
                    range.first, range.last, archive.store.url(&archive.layout.wal_directory()), limit.as_secs()
                ))
                .with_hint("Check that archive_command archives to this very prefix, and see pg_stat_archiver and the server's log. On a standby the primary has to fill or switch the segment. --wal-timeout waits longer."));
        }
        if reported.elapsed() >= WAL_REPORT || (reported == began && pause == longest_pause) {
            reported = Instant::now();
            tracing::info!(segment = %next, missing = missing.len(), "waiting for WAL to be archived");
        }
        tokio::time::sleep(pause).await;
        pause = longest_pause.min(pause * 2);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_tablespace_that_went_away_meanwhile_is_refused_and_a_new_one_is_not() {
        let data = tempfile::tempdir().unwrap();
        let links = data.path().join("pg_tblspc");
        std::fs::create_dir(&links).unwrap();
        let [place, elsewhere] = ["place", "elsewhere"].map(|name| data.path().join(name));
        for place in [&place, &elsewhere] {
            std::fs::create_dir(place).unwrap();
        }
        symlink(&place, links.join("16384")).unwrap();
        let list = || Tablespace::list(data.path()).unwrap();
        let before = list();
        symlink(&elsewhere, links.join("16385")).unwrap();
        check_tablespaces(&before, &list()).unwrap();

        let refused = || check_tablespaces(&before, &list()).unwrap_err().to_string();
        std::fs::remove_file(links.join("16384")).unwrap();
        assert!(refused().contains("a tablespace was dropped"));
        symlink(&elsewhere, links.join("16384")).unwrap();
        assert!(refused().contains("moved"));
    }

    #[test]
    fn a_server_that_need_not_wait_for_wal_has_time_to_stop_whatever_the_limit() {
        let limit = |major: &str, seconds| stop_limit(major.parse().unwrap(), Duration::from_secs(seconds)).as_secs();
        assert_eq!((limit("10", 0), limit("18", 1), limit("18", 3600)), (60, 60, 3600));
        assert_eq!((limit("9.6", 0), limit("9.6", 3600)), (0, 3600));
    }
}
