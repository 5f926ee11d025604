//! Objects as files under a root directory: `file://`. A key is the path below the root.
//!
//! * Writes go to a temporary file in [`TEMP_DIRECTORY`] next to the final name, are fsynced and published without
//!   replacing, and the directory is fsynced ([`durable`]). What killed processes left there is removed by a later write
//!   to the same directory once it is a day old.
//! * An absent file means "not there" only while the root directory is there, before and after the look: a file system
//!   that is not mounted is an outage, not an empty archive. For the same reason reading never creates the root, and
//!   writing creates it only if its parent directory exists and `/etc/fstab` names no unmounted file system on the way.
//!   A root that *is* a mount point cannot be told from an empty one: a directory inside the mounted file system can.
//! * Calls run on blocking threads and cannot be taken back: an operation whose future was dropped still ends, and a write
//!   may still publish its file, whole.
//! * User metadata is not written. A store remembers that of its own objects while it lives, so that a caller whose answer
//!   came too late knows its object again when it asks for the head.
//! * A deleted file's directory is not fsynced: a file that returns after a crash does no harm. Directories below the root
//!   that became empty by it go too. One in which a write is under way holds its temporary file and so cannot go; a write
//!   that has not come so far makes its directory anew.

mod mount;
mod walk;

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};

use super::parts::{self, Parts, Span};
use super::{Body, Kind, Object, ObjectHead, Page, Payload, Put, PutOptions, Result, StorageError, Store, Upload};
use crate::fs::durable::{self, FsError, Published, Staged};

/// Where temporary files live in each directory of the store; listings leave it out, and keys cannot name it.
pub const TEMP_DIRECTORY: &str = ".tmp-wal-eve";

/// How old a temporary file is when it counts as left by a killed process.
const STALE_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// How often a write makes its directory anew when somebody keeps removing it: each deletion can do so once.
const DIRECTORY_TRIES: u32 = 20;

/// How much is read from the disk at a time: a blocking thread's round trip is some 10 µs, reading this much some 100 µs.
const READ_SIZE_BYTES: u64 = 512 << 10;

/// Rows a page of a listing. A page costs one reading of each directory it touches, whatever its own size.
const PAGE_ROWS: usize = 50_000;

/// A store in a directory.
#[derive(Debug, Clone)]
pub struct FileStore {
    root: Arc<Root>,
}

/// Names and values.
type UserMetadata = Vec<(String, String)>;

#[derive(Debug)]
struct Root {
    path: PathBuf,
    page_rows: usize,
    /// The user metadata of what this store has written, by key and version; one entry an object that has any.
    own: Mutex<HashMap<(String, String), UserMetadata>>,
    /// Directories whose names this process has made durable, up to the root.
    durable: Mutex<HashSet<PathBuf>>,
}

impl FileStore {
    /// A store whose keys are paths below `root`. Nothing is looked at yet.
    pub fn new(root: PathBuf) -> Self {
        Self::with_page_rows(root, PAGE_ROWS)
    }

    /// As [`FileStore::new`], with another page size for listings; at least 1.
    pub fn with_page_rows(root: PathBuf, page_rows: usize) -> Self {
        let page_rows = page_rows.max(1);
        Self { root: Arc::new(Root { path: root, page_rows, own: Mutex::default(), durable: Mutex::default() }) }
    }

    /// Runs file system calls on a thread that may block.
    async fn blocking<T: Send + 'static>(
        &self,
        verb: &'static str,
        key: &str,
        work: impl FnOnce(&Root, &str) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (root, name) = (Arc::clone(&self.root), key.to_owned());
        match tokio::task::spawn_blocking(move || work(&root, &name)).await {
            Ok(result) => result,
            Err(error) => Err(StorageError::new(verb, self.url(key), Kind::Other, error)),
        }
    }
}

#[async_trait]
impl Store for FileStore {
    fn url(&self, key: &str) -> String {
        self.root.url(key)
    }

    async fn get(&self, key: &str, from: u64, etag: Option<&str>) -> Result<Object> {
        let etag = etag.map(str::to_owned);
        self.blocking("get", key, move |root, key| root.get(key, from, etag.as_deref())).await
    }

    async fn head(&self, key: &str) -> Result<ObjectHead> {
        self.blocking("look up", key, |root, key| Ok(root.head(key, &root.open("look up", key)?.1))).await
    }

    async fn put(&self, key: &str, body: Payload, options: &PutOptions) -> Result<Put> {
        let metadata = options.metadata.clone();
        self.blocking("put", key, move |root, key| {
            let target = root.path_of("put", key)?;
            if target.exists() {
                return root.existing("put", key, &target);
            }
            let mut staged = root.stage("put", key, &target)?;
            staged.write_all(&body.bytes).map_err(|error| root.error("put", key, error))?;
            root.publish("put", key, staged, &target, metadata)
        })
        .await
    }

    async fn begin_upload(&self, key: &str, options: &PutOptions) -> Result<Box<dyn Upload>> {
        let (target, staged) = self
            .blocking("begin upload of", key, |root, key| {
                let target = root.path_of("begin upload of", key)?;
                let staged = root.stage("begin upload of", key, &target)?;
                Ok((target, staged))
            })
            .await?;
        let state = Arc::new(RwLock::new(State::Open { staged, parts: Mutex::default() }));
        let metadata = options.metadata.clone();
        Ok(Box::new(FileUpload { store: self.clone(), key: key.to_owned(), target, metadata, state }))
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page> {
        let after = after.map(str::to_owned);
        self.blocking("list", prefix, move |root, prefix| {
            // Nothing found says nothing unless the root is there, before and after.
            let before = root.identity("list", prefix)?;
            let page = walk::page(&root.path, prefix, after.as_deref(), root.page_rows)
                .map_err(|error| root.error("list", prefix, error))?;
            if root.identity("list", prefix)? != before {
                let source = "another file system was mounted meanwhile";
                return Err(StorageError::new("list", root.url(prefix), Kind::Unavailable, source));
            }
            Ok(page)
        })
        .await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.blocking("delete", key, |root, key| {
            let path = root.path_of("delete", key)?;
            match fs::remove_file(&path) {
                Ok(()) => {
                    root.prune(&path);
                    Ok(())
                }
                Err(error) if absent(&error) => root.identity("delete", key).map(drop),
                Err(_) if path.is_dir() => Ok(()),
                Err(error) => Err(root.error("delete", key, FsError::new("remove file", path, error))),
            }
        })
        .await
    }
}

impl Root {
    fn url(&self, key: &str) -> String {
        format!("file://localhost{}/{key}", self.path.display().to_string().trim_end_matches('/'))
    }

    /// The file of a key. Keys that would leave the root, or that two spellings would share, are refused.
    fn path_of(&self, verb: &'static str, key: &str) -> Result<PathBuf> {
        let plain = |name: &str| !matches!(name, "" | "." | "..") && !name.starts_with(durable::TEMP_PREFIX);
        if !key.split('/').all(plain) || key.contains('\0') {
            return Err(StorageError::new(verb, self.url(key), Kind::Other, "key cannot be a path below the root"));
        }
        Ok(self.path.join(key))
    }

    fn error(&self, verb: &'static str, key: &str, error: FsError) -> StorageError {
        let (kind, hint) = explain(error.io());
        let error = StorageError::new(verb, self.url(key), kind, error);
        match hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }

    /// Which directory the root is right now; an error if there is none.
    fn identity(&self, verb: &'static str, key: &str) -> Result<(u64, u64)> {
        let misconfigured = |source: io::Error| {
            StorageError::new(verb, self.url(key), Kind::Misconfigured, FsError::new("find", &self.path, source))
                .with_hint(format!(
                    "The archive's root directory \"{}\" must exist. Is its file system mounted, and the prefix right?",
                    self.path.display()
                ))
        };
        match fs::metadata(&self.path) {
            Ok(metadata) if metadata.is_dir() => Ok((metadata.dev(), metadata.ino())),
            Ok(_) => Err(misconfigured(io::ErrorKind::NotADirectory.into())),
            Err(error) if absent(&error) => Err(misconfigured(error)),
            Err(error) => Err(self.error(verb, key, FsError::new("find", &self.path, error))),
        }
    }

    /// Opens a file, or says that it is not there, which takes a root that stays the same around the look.
    fn open(&self, verb: &'static str, key: &str) -> Result<(File, Metadata)> {
        let path = self.path_of(verb, key)?;
        let attempt = || {
            let file = File::open(&path)?;
            let metadata = file.metadata()?;
            match metadata.is_file() {
                true => Ok((file, metadata)),
                // A directory is part of longer keys' names, no object.
                false => Err(io::Error::from(io::ErrorKind::NotFound)),
            }
        };
        let fail = |error| self.error(verb, key, FsError::new("open file", &path, error));
        match attempt() {
            Ok(opened) => return Ok(opened),
            Err(error) if !absent(&error) => return Err(fail(error)),
            Err(_) => {}
        }
        let before = self.identity(verb, key)?;
        let error = match attempt() {
            Ok(opened) => return Ok(opened),
            Err(error) if !absent(&error) => return Err(fail(error)),
            Err(error) => error,
        };
        let kind = if self.identity(verb, key)? == before { Kind::NotFound } else { Kind::Unavailable };
        Err(StorageError::new(verb, self.url(key), kind, FsError::new("open file", &path, error)))
    }

    fn get(&self, key: &str, from: u64, etag: Option<&str>) -> Result<Object> {
        let (mut file, metadata) = self.open("get", key)?;
        let head = self.head(key, &metadata);
        if etag.is_some() && etag != head.etag.as_deref() {
            return Err(StorageError::new("get", self.url(key), Kind::Changed, "the file is another one by now"));
        }
        if from > head.size {
            let source = format!("byte {from} is beyond the end of {} bytes", head.size);
            return Err(StorageError::new("get", self.url(key), Kind::Other, source));
        }
        file.seek(SeekFrom::Start(from))
            .map_err(|error| self.error("get", key, FsError::new("seek in", key, error)))?;
        let body = read(file, self.url(key), from, head.size);
        Ok(Object { head, body })
    }

    /// Makes the target's directory durable and opens a temporary file in it.
    fn stage(&self, verb: &'static str, key: &str, target: &Path) -> Result<Staged> {
        let directory = target.parent().unwrap_or(&self.path);
        for _ in 1..DIRECTORY_TRIES {
            match self.stage_once(verb, key, directory) {
                // Somebody removed the directory since this process made it, or while it did.
                Err(error) if error.kind() != Kind::Misconfigured && is_not_found(&error) => {
                    self.durable.lock().unwrap_or_else(PoisonError::into_inner).remove(directory);
                }
                result => return result,
            }
        }
        self.stage_once(verb, key, directory)
    }

    fn stage_once(&self, verb: &'static str, key: &str, directory: &Path) -> Result<Staged> {
        self.ensure_directory(verb, key, directory)?;
        Staged::create_in(&directory.join(TEMP_DIRECTORY)).map_err(|error| self.error(verb, key, error))
    }

    /// Removes the directories above a deleted file that hold nothing any more, up to the root, which stays. What cannot be
    /// removed stays as well: an empty directory is no object.
    fn prune(&self, deleted: &Path) {
        let below_root = |directory: &&Path| directory.starts_with(&self.path) && *directory != self.path;
        for directory in deleted.ancestors().skip(1).take_while(below_root) {
            let Ok(mut entries) = fs::read_dir(directory) else { return };
            if entries.any(|entry| entry.map_or(true, |entry| entry.file_name() != TEMP_DIRECTORY)) {
                return;
            }
            let temp = directory.join(TEMP_DIRECTORY);
            durable::remove_stale(&temp, STALE_AFTER);
            // fails while a write's temporary file is in it, and so does the next line then
            let _ = fs::remove_dir(temp);
            if fs::remove_dir(directory).is_err() {
                return;
            }
        }
    }

    /// Creates a directory below the root and its [`TEMP_DIRECTORY`], and fsyncs every name up to the root once a process,
    /// also those that were there: the process that made them may not have come to it.
    fn ensure_directory(&self, verb: &'static str, key: &str, directory: &Path) -> Result<()> {
        let mut durable = self.durable.lock().unwrap_or_else(PoisonError::into_inner);
        if durable.contains(directory) {
            return Ok(());
        }
        self.ensure_root(verb, key)?;
        let temp = directory.join(TEMP_DIRECTORY);
        durable::create_directories(&temp).map_err(|error| self.error(verb, key, error))?;
        for ancestor in directory.ancestors().take_while(|ancestor| ancestor.starts_with(&self.path)) {
            durable::fsync_directory(ancestor).map_err(|error| self.error(verb, key, error))?;
        }
        durable::remove_stale(&temp, STALE_AFTER);
        durable.insert(directory.to_owned());
        Ok(())
    }

    /// Creates the root for a first write, if its parent directory exists and no file system is missing on the way.
    fn ensure_root(&self, verb: &'static str, key: &str) -> Result<()> {
        let missing = match self.identity(verb, key) {
            Err(error) if error.kind() == Kind::Misconfigured && !self.path.exists() => error,
            result => return result.map(drop),
        };
        if let Some(mount_point) = mount::unmounted(&self.path) {
            return Err(missing.with_hint(format!(
                "The file system of \"{}\" is in /etc/fstab but not mounted: mount it.",
                mount_point.display()
            )));
        }
        match fs::create_dir(&self.path) {
            Ok(()) => {
                tracing::info!("created the archive's root directory \"{}\"", self.path.display());
                let above = self.path.parent().unwrap_or(&self.path);
                durable::fsync_directory(above).map_err(|error| self.error(verb, key, error))
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) if absent(&error) => Err(missing),
            Err(error) => Err(self.error(verb, key, FsError::new("create directory", &self.path, error))),
        }
    }

    /// What is known of a file: what the file system says, and, of one that this store wrote, its metadata.
    fn head(&self, key: &str, found: &Metadata) -> ObjectHead {
        let mut head = head(found);
        if let Some(etag) = &head.etag {
            let own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
            head.metadata = own.get(&(key.to_owned(), etag.clone())).cloned().unwrap_or_default();
        }
        head
    }

    fn publish(
        &self,
        verb: &'static str,
        key: &str,
        staged: Staged,
        target: &Path,
        metadata: UserMetadata,
    ) -> Result<Put> {
        // before the file can be seen: once it is, another try may find it at any moment
        if !metadata.is_empty()
            && let Ok(staged) = staged.file().metadata()
            && let Some(etag) = head(&staged).etag
        {
            self.own.lock().unwrap_or_else(PoisonError::into_inner).insert((key.to_owned(), etag), metadata);
        }
        match staged.publish_new(target).map_err(|error| self.error(verb, key, error))? {
            Published::Created => Ok(Put::Stored),
            Published::Exists => self.existing(verb, key, target),
        }
    }

    /// Says that the key is taken, after flushing what is there: the caller may take it for durable, and its writer may
    /// have been WAL-E, which does not fsync, or a process killed before it did.
    fn existing(&self, verb: &'static str, key: &str, target: &Path) -> Result<Put> {
        if target.is_dir() {
            return Err(StorageError::new(verb, self.url(key), Kind::Other, "a directory has this name"));
        }
        durable::fsync_file(target)
            .and_then(|()| durable::fsync_directory(target.parent().unwrap_or(&self.path)))
            .map_err(|error| self.error(verb, key, error))?;
        Ok(Put::Exists)
    }
}

fn head(metadata: &Metadata) -> ObjectHead {
    let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    let (seconds, nanoseconds) = (metadata.mtime(), metadata.mtime_nsec());
    let etag = format!("{:x}-{seconds:x}.{nanoseconds:x}-{:x}", metadata.ino(), metadata.len());
    ObjectHead { size: metadata.len(), last_modified: modified, etag: Some(etag), metadata: Vec::new() }
}

/// The bytes from the file's position to `end`, read on blocking threads.
fn read(file: File, url: String, from: u64, end: u64) -> Body {
    let chunks = stream::unfold(Some((file, from)), move |state| {
        let url = url.clone();
        async move {
            let (file, position) = state.filter(|(_, position)| *position < end)?;
            let want = READ_SIZE_BYTES.min(end - position);
            let read = tokio::task::spawn_blocking(move || {
                let mut chunk = Vec::with_capacity(want as usize);
                (&file).take(want).read_to_end(&mut chunk).map(|_| (file, chunk))
            });
            let fail = |kind, source: Box<dyn std::error::Error + Send + Sync>| {
                Some((Err(StorageError::new("get", url.as_str(), kind, source)), None))
            };
            match read.await {
                Ok(Ok((file, chunk))) if chunk.len() as u64 == want => {
                    Some((Ok(Bytes::from(chunk)), Some((file, position + want))))
                }
                Ok(Ok(_)) => fail(Kind::Changed, "the file became shorter while it was read".into()),
                Ok(Err(error)) => fail(explain(&error).0, error.into()),
                Err(error) => fail(Kind::Other, error.into()),
            }
        }
    });
    chunks.boxed()
}

/// Whether an operation failed for want of a file or a directory.
fn is_not_found(error: &StorageError) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<FsError>());
    cause.is_some_and(|cause| cause.io().kind() == io::ErrorKind::NotFound)
}

/// Whether a path does not lead to anything.
fn absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// What the caller can do about a file system's error.
fn explain(error: &io::Error) -> (Kind, Option<&'static str>) {
    use io::ErrorKind as E;
    match error.kind() {
        E::PermissionDenied => (
            Kind::Denied,
            Some("The operating system user that runs wal-eve needs access to the archive's files and directories."),
        ),
        E::ReadOnlyFilesystem => (Kind::Denied, Some("The archive's file system is mounted read-only.")),
        E::StorageFull | E::QuotaExceeded => (Kind::Other, Some("The archive's file system is full: make room.")),
        E::StaleNetworkFileHandle | E::TimedOut | E::Interrupted | E::WouldBlock | E::HostUnreachable => {
            (Kind::Unavailable, None)
        }
        _ => (Kind::Other, None),
    }
}

/// A file being written in parts: each at its offset in one temporary file.
struct FileUpload {
    store: FileStore,
    key: String,
    target: PathBuf,
    metadata: UserMetadata,
    /// Parts are written under the read lock; `finish` and `abort` wait for them.
    state: Arc<RwLock<State>>,
}

enum State {
    Open {
        staged: Staged,
        parts: Mutex<Parts>,
    },
    Published(Put),
    /// Aborted, or an fsync failed, which must not be repeated.
    GivenUp,
}

impl FileUpload {
    fn given_up(root: &Root, verb: &'static str, key: &str) -> StorageError {
        StorageError::new(verb, root.url(key), Kind::Other, "the upload was given up before")
    }
}

#[async_trait]
impl Upload for FileUpload {
    async fn part(&self, number: u32, offset: u64, body: Payload) -> Result<()> {
        let state = Arc::clone(&self.state);
        self.store
            .blocking("write part of", &self.key, move |root, key| {
                let state = state.read().unwrap_or_else(PoisonError::into_inner);
                let State::Open { staged, parts } = &*state else {
                    return Err(Self::given_up(root, "write part of", key));
                };
                staged.write_all_at(&body.bytes, offset).map_err(|error| root.error("write part of", key, error))?;
                let span = Span { offset, length: body.bytes.len() as u64 };
                parts.lock().unwrap_or_else(PoisonError::into_inner).insert(number, span);
                Ok(())
            })
            .await
    }

    async fn finish(&self) -> Result<Put> {
        let (state, target, metadata) = (Arc::clone(&self.state), self.target.clone(), self.metadata.clone());
        self.store
            .blocking("finish upload of", &self.key, move |root, key| {
                let mut state = state.write().unwrap_or_else(PoisonError::into_inner);
                match std::mem::replace(&mut *state, State::GivenUp) {
                    State::Open { staged, parts } => {
                        let parts = parts.into_inner().unwrap_or_else(PoisonError::into_inner);
                        parts::total_size(&parts)
                            .map_err(|gap| StorageError::new("finish upload of", root.url(key), Kind::Other, gap))?;
                        let put = root.publish("finish upload of", key, staged, &target, metadata)?;
                        *state = State::Published(put);
                        Ok(put)
                    }
                    State::Published(put) => {
                        *state = State::Published(put);
                        Ok(put)
                    }
                    State::GivenUp => Err(Self::given_up(root, "finish upload of", key)),
                }
            })
            .await
    }

    async fn abort(&self) -> Result<()> {
        let state = Arc::clone(&self.state);
        self.store
            .blocking("abort upload of", &self.key, move |_, _| {
                let mut state = state.write().unwrap_or_else(PoisonError::into_inner);
                if matches!(*state, State::Open { .. }) {
                    *state = State::GivenUp;
                }
                Ok(())
            })
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::super::{contract, list_all};
    use super::*;

    fn store() -> (tempfile::TempDir, FileStore) {
        let directory = tempfile::tempdir().unwrap();
        let store = FileStore::new(directory.path().join("root"));
        (directory, store)
    }

    async fn put(store: &FileStore, key: &str) -> Result<Put> {
        store.put(key, Bytes::copy_from_slice(key.as_bytes()).into(), &PutOptions::default()).await
    }

    #[tokio::test]
    async fn the_contract_holds() {
        let (directory, store) = store();
        put(&store, "first").await.unwrap();
        contract::check(&store, "p/").await;
        let paged = FileStore::with_page_rows(directory.path().join("root"), 2);
        contract::check(&paged, "q/").await;
    }

    #[tokio::test]
    async fn a_missing_root_is_an_outage_and_stays_missing() {
        let (directory, _) = store();
        contract::check_missing(&FileStore::new(directory.path().join("not/there"))).await;
        assert!(!directory.path().join("not").exists());
    }

    #[tokio::test]
    async fn only_writing_creates_the_root_and_only_below_what_is_there() {
        let (directory, store) = store();
        assert_eq!(store.get("a", 0, None).await.map(drop).unwrap_err().kind(), Kind::Misconfigured);
        assert!(!directory.path().join("root").exists());
        assert_eq!(put(&store, "a").await.unwrap(), Put::Stored);
        assert_eq!(store.get("b", 0, None).await.map(drop).unwrap_err().kind(), Kind::NotFound);
    }

    #[tokio::test]
    async fn a_root_that_went_away_is_an_outage_for_a_store_that_used_it() {
        let (directory, store) = store();
        put(&store, "d/a").await.unwrap();
        fs::rename(directory.path(), directory.path().with_extension("gone")).unwrap();
        assert_eq!(store.get("d/a", 0, None).await.map(drop).unwrap_err().kind(), Kind::Misconfigured);
        assert_eq!(put(&store, "d/b").await.unwrap_err().kind(), Kind::Misconfigured);
        fs::rename(directory.path().with_extension("gone"), directory.path()).unwrap();
        assert_eq!(put(&store, "d/b").await.unwrap(), Put::Stored);
    }

    #[tokio::test]
    async fn a_directory_removed_under_a_running_store_is_made_again() {
        let (directory, store) = store();
        put(&store, "d/a").await.unwrap();
        fs::remove_dir_all(directory.path().join("root/d")).unwrap();
        assert_eq!(put(&store, "d/a").await.unwrap(), Put::Stored);
    }

    #[tokio::test]
    async fn directories_go_with_their_last_file_unless_something_is_written_there() {
        let (directory, store) = store();
        let root = directory.path().join("root");
        for key in ["a/b/c/x", "a/b/c/y", "a/z", "top"] {
            put(&store, key).await.unwrap();
        }
        store.delete("a/b/c/x").await.unwrap();
        assert!(root.join("a/b/c/y").exists());
        let upload = store.begin_upload("a/b/c/new", &PutOptions::default()).await.unwrap();
        store.delete("a/b/c/y").await.unwrap();
        assert!(root.join("a/b/c").is_dir(), "an upload is under way there");
        upload.part(1, 0, Bytes::from_static(b"x").into()).await.unwrap();
        assert_eq!(upload.finish().await.unwrap(), Put::Stored);
        store.delete("a/b/c/new").await.unwrap();
        assert!(!root.join("a/b").exists() && root.join("a/z").exists());
        store.delete("a/z").await.unwrap();
        store.delete("top").await.unwrap();
        assert!(
            root.is_dir() && fs::read_dir(&root).unwrap().all(|entry| entry.unwrap().file_name() == TEMP_DIRECTORY)
        );
        assert_eq!(put(&store, "a/b/c/x").await.unwrap(), Put::Stored);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn writes_and_deletions_in_one_directory_do_not_fail_each_other() {
        let (directory, store) = store();
        let other = FileStore::new(directory.path().join("root"));
        put(&store, "keep").await.unwrap();
        let write = |store: FileStore, name: &'static str| async move {
            for round in 0..300 {
                let key = format!("d/e/{name}{round}");
                assert_eq!(put(&store, &key).await.unwrap(), Put::Stored);
                store.head(&key).await.unwrap();
                store.delete(&key).await.unwrap();
            }
        };
        let (one, two) = tokio::join!(tokio::spawn(write(store, "a")), tokio::spawn(write(other, "b")));
        one.and(two).unwrap();
    }

    #[tokio::test]
    async fn no_key_leaves_the_root_or_reaches_temporary_files() {
        let (_directory, store) = store();
        put(&store, "a").await.unwrap();
        for key in ["", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", "a\0b", ".tmp-x", "a/.tmp-wal-eve/x"]
        {
            assert_eq!(put(&store, key).await.unwrap_err().kind(), Kind::Other, "{key:?}");
            assert_eq!(store.get(key, 0, None).await.map(drop).unwrap_err().kind(), Kind::Other, "{key:?}");
            assert_eq!(store.delete(key).await.unwrap_err().kind(), Kind::Other, "{key:?}");
        }
    }

    #[tokio::test]
    async fn temporary_files_are_not_listed_and_old_ones_are_removed() {
        let (directory, store) = store();
        let temp = directory.path().join("root/d").join(TEMP_DIRECTORY);
        durable::create_directories(&temp).unwrap();
        for name in [".tmp-old", ".tmp-new"] {
            let file = File::create(temp.join(name)).unwrap();
            if name == ".tmp-old" {
                file.set_modified(SystemTime::now() - 2 * STALE_AFTER).unwrap();
            }
        }
        assert!(list_all(&store, "").await.unwrap().is_empty());
        put(&store, "d/a").await.unwrap();
        assert!(!temp.join(".tmp-old").exists());
        assert!(temp.join(".tmp-new").exists());
        assert_eq!(list_all(&store, "").await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_directory_is_no_object() {
        let (_directory, store) = store();
        put(&store, "a/b").await.unwrap();
        assert_eq!(put(&store, "a").await.unwrap_err().kind(), Kind::Other);
        assert_eq!(store.head("a").await.unwrap_err().kind(), Kind::NotFound);
        store.delete("a").await.unwrap();
        assert_eq!(put(&store, "a/b/c").await.unwrap_err().kind(), Kind::Other);
        assert_eq!(store.head("a/b/c").await.unwrap_err().kind(), Kind::NotFound);
        assert_eq!(store.head("a/b").await.unwrap().size, 3);
    }

    #[tokio::test]
    async fn a_writer_knows_its_own_object_again_and_no_other() {
        let (directory, store) = store();
        let options = |id: &str| PutOptions { content_type: "", metadata: vec![("id".into(), id.into())] };
        // an answer that came too late: the next try finds the name taken
        assert_eq!(store.put("a", Bytes::from_static(b"x").into(), &options("one")).await.unwrap(), Put::Stored);
        assert_eq!(store.put("a", Bytes::from_static(b"x").into(), &options("one")).await.unwrap(), Put::Exists);
        assert_eq!(store.head("a").await.unwrap().metadata("id"), Some("one"));
        // of two that stage the same name at once, the second has lost, whoever asks
        let uploads = [
            store.begin_upload("b", &options("one")).await.unwrap(),
            store.begin_upload("b", &options("two")).await.unwrap(),
        ];
        for upload in &uploads {
            upload.part(1, 0, Bytes::from_static(b"x").into()).await.unwrap();
        }
        assert_eq!(uploads[1].finish().await.unwrap(), Put::Stored);
        assert_eq!(uploads[0].finish().await.unwrap(), Put::Exists);
        assert_eq!(store.head("b").await.unwrap().metadata("id"), Some("two"));
        // another process's, or one that has taken the name since, is nobody's
        let other = FileStore::new(directory.path().join("root"));
        assert_eq!(other.head("a").await.unwrap().metadata, []);
        store.delete("a").await.unwrap();
        assert_eq!(other.put("a", Bytes::from_static(b"x").into(), &options("other")).await.unwrap(), Put::Stored);
        assert_eq!(store.head("a").await.unwrap().metadata, []);
    }

    #[tokio::test]
    async fn parts_with_a_gap_are_not_published() {
        let (_directory, store) = store();
        let upload = store.begin_upload("a", &PutOptions::default()).await.unwrap();
        upload.part(1, 0, Bytes::from_static(b"x").into()).await.unwrap();
        upload.part(2, 2, Bytes::from_static(b"y").into()).await.unwrap();
        assert_eq!(upload.finish().await.unwrap_err().kind(), Kind::Other);
        assert_eq!(store.head("a").await.unwrap_err().kind(), Kind::NotFound);
    }

    #[tokio::test]
    async fn a_file_cut_short_while_it_is_read_is_an_error() {
        let (directory, store) = store();
        store.put("a", vec![1; 2_000_000].into(), &PutOptions::default()).await.unwrap();
        let mut object = store.get("a", 0, None).await.unwrap();
        object.body.next().await.unwrap().unwrap();
        File::options().write(true).open(directory.path().join("root/a")).unwrap().set_len(600_000).unwrap();
        assert_eq!(object.body.next().await.unwrap().unwrap_err().kind(), Kind::Changed);
        assert!(object.body.next().await.is_none());
    }

    #[tokio::test]
    async fn links_are_listed_as_what_they_lead_to() {
        let (directory, store) = store();
        put(&store, "real/a").await.unwrap();
        std::os::unix::fs::symlink("real", directory.path().join("root/linked")).unwrap();
        std::os::unix::fs::symlink("nowhere", directory.path().join("root/dangling")).unwrap();
        let keys: Vec<_> = list_all(&store, "").await.unwrap().into_iter().map(|row| row.key).collect();
        assert_eq!(keys, ["linked/a", "real/a"]);
    }
}
