//! `wal-push`: the file that PostgreSQL hands over, and, while its backlog lasts, the segments that it will hand over next.

use std::fs::File;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _, future, stream};
use tokio::sync::oneshot;

use super::archive::Archive;
use super::push_marker::{self, PushMarker, PushMarkers};
use super::{CommandError, Result};
use crate::formats::lzo1x::Level;
use crate::formats::wal_name::{SegmentName, WalName};
use crate::pg::archive_status;
use crate::transfer::fingerprint::FileState;
use crate::transfer::off_async;
use crate::transfer::wal_upload::{Outcome, upload_wal};

/// How many plain bytes the files under way at once may have, at least one file whatever its size: 64 MiB, which with their
/// compressed copies keeps the process below 160 MiB.
const BYTES_IN_FLIGHT: u64 = 64 << 20;

/// How long look-ahead may begin with further segments once the file that was asked for is archived. Those that it has begun
/// with are archived: what was sent of them would be lost.
const LOOK_AHEAD_GRACE: Duration = Duration::from_secs(30);

/// What to push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalPushOptions {
    /// The file, as PostgreSQL's `%p` gives it.
    pub file: PathBuf,
    /// How many files to push at once: one and what waits after it.
    pub pool_size: NonZeroUsize,
    /// How hard to compress.
    pub level: Level,
    /// The server of the store, empty for the usual one: an object's address alone does not tell two servers apart that
    /// have a bucket of the same name.
    pub endpoint: String,
}

impl WalPushOptions {
    /// What a marker calls the object at `url`.
    fn marked_url(&self, url: &str) -> String {
        if self.endpoint.is_empty() { url.to_owned() } else { format!("{url} at {}", self.endpoint) }
    }
}

/// How the file that was asked for came to be in the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// It is new there.
    Stored,
    /// The same bytes were there.
    AlreadyIdentical,
    /// An earlier call's look-ahead had stored it.
    AheadOfTime,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalPushReport {
    /// The file that was asked for.
    pub pushed: Pushed,
    /// The segments pushed beyond it.
    pub ahead: Vec<SegmentName>,
}

/// Answers from a marker when an earlier look-ahead has stored the very file already. Needs no store, hence no network.
pub fn already_pushed(url_of: impl Fn(&str) -> String, options: &WalPushOptions) -> Option<WalPushReport> {
    let name = segment_name(&options.file)?;
    let markers = PushMarkers::of(directory_of(&options.file));
    let url = options.marked_url(&url_of(&name.to_string()));
    let file = File::open(&options.file).ok()?;
    if !markers.read(name)?.answers_for(&url, name, &file).unwrap_or(false) {
        return None;
    }
    // a crash before PostgreSQL's own note is durable asks again, and the archive then answers
    markers.remove(name);
    Some(WalPushReport { pushed: Pushed::AheadOfTime, ahead: Vec::new() })
}

/// Archives the file, and looks ahead. Returns well only when the file is durable in the archive; a failed look-ahead is
/// only logged, since PostgreSQL will hand that segment over itself.
pub async fn wal_push(archive: &Archive, options: &WalPushOptions) -> Result<WalPushReport> {
    let pushed = push_and_look_ahead(archive, options).await;
    // a failure drops what is under way
    archive.store.settle().await;
    pushed
}

async fn push_and_look_ahead(archive: &Archive, options: &WalPushOptions) -> Result<WalPushReport> {
    let file_name = file_name(&options.file)?.to_owned();
    let key = archive.layout.wal(&file_name);
    let pushing = async {
        let pushed = upload_wal(&*archive.store, &key, &options.file, options.level).await;
        pushed.map_err(|failed| explain_missing(failed.into(), &options.file))
    };
    if options.pool_size.get() == 1 {
        let (_, outcome) = pushing.await?;
        return Ok(WalPushReport { pushed: outcome.into(), ahead: Vec::new() });
    }
    let (archived, is_archived) = oneshot::channel();
    let pushing = async {
        let (_, outcome) = pushing.await?;
        let _ = archived.send(());
        Result::Ok(outcome)
    };
    let no_more = async {
        if is_archived.await.is_ok() {
            tokio::time::sleep(LOOK_AHEAD_GRACE).await;
        }
    };
    // a failure ends both, since PostgreSQL will call again
    let (outcome, ahead) = future::try_join(pushing, look_ahead(archive, options, no_more).map(Ok)).await?;
    Ok(WalPushReport { pushed: outcome.into(), ahead })
}

impl From<Outcome> for Pushed {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Stored => Self::Stored,
            Outcome::AlreadyIdentical => Self::AlreadyIdentical,
        }
    }
}

/// Pushes the segments that wait in `archive_status`, which is PostgreSQL's own and only read here. Begins with none after
/// `no_more`. Those that were pushed.
async fn look_ahead(
    archive: &Archive,
    options: &WalPushOptions,
    no_more: impl Future<Output = ()>,
) -> Vec<SegmentName> {
    let mut done = Vec::new();
    let directory = directory_of(&options.file).to_owned();
    let asked_for = file_name(&options.file).ok().and_then(|name| name.parse::<WalName>().ok());
    let limit = options.pool_size;
    let listed = {
        let directory = directory.clone();
        off_async(move || archive_status::ready(&directory, asked_for.as_ref(), limit)).await
    };
    let waiting = match listed {
        Ok(waiting) => waiting,
        Err(failed) => {
            tracing::warn!(error = %failed, "not looking ahead");
            return done;
        }
    };
    let waiting: Vec<SegmentName> = waiting
        .into_iter()
        .filter_map(|name| if let WalName::Segment(segment) = name { Some(segment) } else { None })
        .take(options.pool_size.get() - 1)
        .collect();
    let markers = PushMarkers::of(&directory);
    if let Err(failed) = markers.keep_only(|name| waiting.contains(&name)) {
        tracing::warn!(error = %failed, "could not clear old look-ahead markers");
    }
    let sizes = waiting.iter().map(|name| directory.join(name.to_string()).metadata().map_or(0, |file| file.len()));
    // nothing waits, or nothing of it is there
    let Some(largest) = sizes.max().filter(|size| *size > 0) else { return done };
    // the file that was asked for is the first of the window
    let width = usize::try_from(BYTES_IN_FLIGHT / largest).unwrap_or(usize::MAX);
    let width = width.clamp(1, options.pool_size.get());
    // in the server's order, so that what is done is what it asks for next
    let begun = stream::iter(waiting).take_until(Box::pin(no_more));
    let pushes = begun.map(|name| push_ahead(archive, &directory, name, options, &markers)).buffered(width);
    futures::pin_mut!(pushes);
    while let Some(pushed) = pushes.next().await {
        match pushed {
            Ok(Some(name)) => done.push(name),
            Ok(None) => {}
            Err(failed) => tracing::warn!(error = %failed, "a segment could not be pushed ahead of time"),
        }
    }
    done
}

async fn push_ahead(
    archive: &Archive,
    directory: &Path,
    name: SegmentName,
    options: &WalPushOptions,
    markers: &PushMarkers,
) -> Result<Option<SegmentName>> {
    let path = directory.join(name.to_string());
    let key = archive.layout.wal(&name.to_string());
    let url = options.marked_url(&archive.store.url(&key));
    let opened = File::open(&path).and_then(|file| Ok((FileState::of(&file)?, file)));
    let Ok((state, file)) = opened else {
        // PostgreSQL says it is ready but it is gone; without a claim of ours the server itself reports it
        return Ok(None);
    };
    if markers.read(name).is_some_and(|marker| marker.may_match(&url, &state)) {
        return Ok(None);
    }
    let Some(identifier) = push_marker::system_identifier(&file) else { return Ok(None) };
    let (fingerprint, _) = upload_wal(&*archive.store, &key, &path, options.level).await?;
    markers.write(name, &PushMarker::new(url, identifier, name, fingerprint))?;
    Ok(Some(name))
}

fn directory_of(file: &Path) -> &Path {
    file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn segment_name(file: &Path) -> Option<SegmentName> {
    file.file_name()?.to_str()?.parse().ok()
}

fn file_name(file: &Path) -> Result<&str> {
    file.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
        CommandError::refused(format!("\"{}\" does not end in the name of a file", file.display()))
            .with_hint("Use archive_command = 'wal-eve wal-push %p'.")
    })
}

fn explain_missing(failed: CommandError, file: &Path) -> CommandError {
    use crate::transfer::TransferError;
    use std::io::ErrorKind as E;
    match failed {
        CommandError::Transfer(TransferError::File { source, .. })
            if matches!(source.kind(), E::NotFound | E::NotADirectory | E::IsADirectory) =>
        {
            CommandError::refused(format!("could not find file \"{}\" for wal-push", file.display()))
                .with_detail(format!("{source}."))
                .with_hint("PostgreSQL's archive_command runs in the data directory; there use wal-eve wal-push %p.")
        }
        failed => failed,
    }
}
