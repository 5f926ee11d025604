//! The directory where fetched segments wait for replay.
//!
//! It lies beside the WAL files, where WAL-E has its own (`spec/wal-e-format.md` §7.2), so that taking a segment is a
//! rename; or wherever the user wants it. It may be deleted at any time. Files are all that it holds: pg_rewind stops half way
//! at a socket below `pg_wal`, on either side.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, sleep};

use super::stamp::Stamp;
use crate::formats::hex::hex;
use crate::formats::wal_name::SegmentName;
use crate::fs::staged::{StagedFile, is_at};
use crate::pg::segment_file;

/// How long a new prefetcher waits for the one before it to end, and how often it looks.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
const LOCK_INTERVAL: Duration = Duration::from_millis(20);

/// How much may wait for a caller before the older part of it is dropped.
const MAX_NEWS_BYTES: usize = 4096;

/// How long a log may become before it is emptied: a prefetcher works for months, and an outage has much to say.
const MAX_LOG_BYTES: u64 = 1 << 20;

/// A spool's place. Nothing has to be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spool {
    directory: PathBuf,
}

impl Spool {
    /// The spool of the cluster at `data_directory`: below its `wal_directory`, or in a directory of its own below
    /// `elsewhere`, which several clusters may share.
    pub fn of(data_directory: &Path, wal_directory: &Path, elsewhere: Option<&Path>) -> Self {
        let directory = elsewhere.map_or_else(
            || wal_directory.join(".wal-e/prefetch"),
            |parent| {
                let whole = fs::canonicalize(data_directory).unwrap_or_else(|_| data_directory.to_owned());
                let mut digest = Sha256::new();
                digest.update(whole.as_os_str().as_bytes());
                // containers that share the place may call their data directories the same
                if let Ok(found) = fs::metadata(&whole) {
                    digest.update(found.dev().to_le_bytes());
                    digest.update(found.ino().to_le_bytes());
                }
                let digest = digest.finalize();
                parent.join(format!("wal-eve-{}", hex(&digest[..8])))
            },
        );
        Self { directory }
    }

    /// The spool at a directory that a caller has worked out.
    pub fn at(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where a segment waits.
    pub fn segment(&self, name: SegmentName) -> PathBuf {
        self.directory.join(name.to_string())
    }

    /// The prefetcher's log.
    pub fn log(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// What the prefetcher shows of itself.
    pub fn status(&self) -> PathBuf {
        self.directory.join("status.json")
    }

    /// Makes the directory, for its owner only, and those above it if they are not there.
    ///
    /// # Errors
    /// Also when its path is relative, which means another place in another process, when it is a link, when somebody else owns
    /// it or others may write in it: they could slip a segment in.
    pub fn create(&self) -> io::Result<()> {
        let refuse = |why| Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        if self.directory.is_relative() {
            return refuse("its path has to be absolute");
        }
        if let Some(parent) = self.directory.parent() {
            fs::create_dir_all(parent)?;
        }
        match DirBuilder::new().mode(0o700).create(&self.directory) {
            Err(there) if there.kind() == io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
        if self.is_ours() {
            return Ok(());
        }
        refuse("it is no directory, belongs to another user, or others may write in it")
    }

    /// Whether it is there and only this user can have put anything into it.
    pub fn is_ours(&self) -> bool {
        let ours = rustix::process::geteuid().as_raw();
        fs::symlink_metadata(&self.directory)
            .is_ok_and(|found| found.is_dir() && found.uid() == ours && found.mode() & 0o022 == 0)
    }

    /// Whose segments it holds, if that can be read.
    pub fn stamp(&self) -> Option<Stamp> {
        serde_json::from_slice(&fs::read(self.directory.join("stamp")).ok()?).ok()
    }

    /// Says whose segments it will hold.
    pub fn write_stamp(&self, stamp: &Stamp) -> io::Result<()> {
        self.publish("stamp", &serde_json::to_vec(stamp)?)
    }

    /// Moves a segment to `destination` if it is there and whole, and of the cluster `system_identifier`: a rename, or a copy
    /// where that is another filesystem. Anything odd about it is an error, and nothing has happened then.
    pub fn take(&self, name: SegmentName, system_identifier: u64, destination: &Path) -> io::Result<bool> {
        let path = self.segment(name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(absent) if absent.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(odd) => return Err(odd),
        };
        let page = segment_file::first_page(&file, name)?;
        if page.system_identifier != system_identifier {
            return Err(io::Error::other("it is of another cluster"));
        }
        match fs::rename(&path, destination) {
            Err(failed) if failed.kind() == io::ErrorKind::CrossesDevices => {
                let staged = StagedFile::create(destination)?;
                io::copy(&mut &file, &mut staged.file())?;
                staged.publish()?;
                let _ = fs::remove_file(&path);
                Ok(true)
            }
            renamed => renamed.map(|()| true),
        }
    }

    /// Removes a segment, if it is there.
    pub fn discard(&self, name: SegmentName) {
        let _ = fs::remove_file(self.segment(name));
    }

    /// Removes what a prefetcher makes here, but for the log, the lock and the last status; nothing else, whatever directory
    /// this is.
    ///
    /// # Errors
    /// When something stays that a stamp must not vouch for.
    pub fn empty(&self) -> io::Result<()> {
        let remove = |path| match fs::remove_file(path) {
            Err(failed) if failed.kind() != io::ErrorKind::NotFound => Err(failed),
            _ => Ok(()),
        };
        // first, so that no caller takes it for that of a prefetcher that holds the lock
        remove(self.directory.join("stamp"))?;
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            if is_passing(&entry.file_name()) {
                remove(entry.path())?;
            }
        }
        Ok(())
    }

    /// Empties it where a prefetcher was killed or disowned and no other has come. Costs one look where there is none.
    pub fn clean_up(&self) -> io::Result<()> {
        if self.is_ours()
            && let Some(_lock) = SpoolLock::try_acquire(self)?
        {
            self.empty()?;
        }
        Ok(())
    }

    /// Cuts a log that has become too long.
    pub fn bound_log(&self) {
        let log = File::options().write(true).open(self.log());
        if let Ok(log) = log
            && log.metadata().is_ok_and(|found| found.len() > MAX_LOG_BYTES)
        {
            let _ = log.set_len(0);
        }
    }

    /// Bytes that a file here can still take.
    pub fn free_bytes(&self) -> io::Result<u64> {
        let found = rustix::fs::statvfs(&self.directory)?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    /// The name, in Linux' abstract namespace, of the socket of the prefetcher that wrote `stamp` here. Nobody can guess it
    /// beforehand, and a copy of this directory has another one.
    pub fn socket_name(&self, stamp: &Stamp) -> io::Result<String> {
        let found = fs::symlink_metadata(&self.directory)?;
        Ok(format!("wal-eve-prefetch-{}-{:x}-{:x}", stamp.salt(), found.dev(), found.ino()))
    }

    /// Takes the spool from a prefetcher that cannot be talked to: the next one finds neither its stamp nor its lock, and
    /// begins anew; the first one, if it ever goes on, notices and ends.
    pub fn disown(&self) {
        for name in ["stamp", "lock"] {
            let _ = fs::remove_file(self.directory.join(name));
        }
    }

    /// Leaves a line for the next caller, which repeats it where people look: in the server's log.
    pub fn leave_news(&self, line: &str) {
        let path = self.directory.join("news");
        let mut text = fs::read(&path).unwrap_or_default();
        // nobody has come for long
        if text.len() > MAX_NEWS_BYTES {
            text.clear();
        }
        text.extend_from_slice(line.as_bytes());
        text.push(b'\n');
        let _ = self.publish("news", &text);
    }

    /// Takes what was left for a caller. Costs one system call when there is nothing.
    pub fn take_news(&self) -> Option<String> {
        let mine = self.directory.join(format!("news.{}", std::process::id()));
        fs::rename(self.directory.join("news"), &mine).ok()?;
        let text = fs::read_to_string(&mine).ok();
        let _ = fs::remove_file(&mine);
        text
    }

    /// Writes a small file, not durably.
    pub fn publish(&self, file_name: &str, bytes: &[u8]) -> io::Result<()> {
        let staged = StagedFile::create(&self.directory.join(file_name))?;
        staged.file().write_all_at(bytes, 0)?;
        staged.publish()
    }
}

/// Whether a file of this name is there for a prefetcher's lifetime only.
fn is_passing(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    let half_written = name.starts_with('.') && name.contains(".wal-eve.");
    half_written
        // earlier versions had their socket here
        || ["stamp", "socket", "news"].contains(&name)
        || name.starts_with("news.")
        || name.parse::<SegmentName>().is_ok()
}

/// The right to fill a spool, which one process has at a time.
#[derive(Debug)]
pub struct SpoolLock {
    file: File,
    path: PathBuf,
}

impl SpoolLock {
    /// Takes the lock. None when another process has it.
    pub fn try_acquire(spool: &Spool) -> io::Result<Option<Self>> {
        let path = spool.directory.join("lock");
        loop {
            let file = File::options().create(true).truncate(false).write(true).open(&path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    let lock = Self { file, path: path.clone() };
                    // else somebody has removed it meanwhile
                    if lock.is_in_place() {
                        return Ok(Some(lock));
                    }
                }
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                Err(failed) => return Err(failed.into()),
            }
        }
    }

    /// Takes the lock, and waits a while for a process that is just ending. None when another one keeps it.
    pub async fn acquire(spool: &Spool) -> io::Result<Option<Self>> {
        let began = Instant::now();
        loop {
            match Self::try_acquire(spool)? {
                None if began.elapsed() < LOCK_PATIENCE => sleep(LOCK_INTERVAL).await,
                acquired => return Ok(acquired),
            }
        }
    }

    /// Whether a prefetcher holds it now.
    pub fn is_held(spool: &Spool) -> bool {
        File::open(spool.directory.join("lock"))
            .is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK))
    }

    /// Whether the lock's file is still where others look for it; when not, somebody has removed the spool.
    pub fn is_in_place(&self) -> bool {
        is_at(&self.file, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::prefetch::stamp::Origin;

    const SYSTEM_IDENTIFIER: u64 = 7_400_000_000_000_000_001;

    fn segment() -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(0xD110_u16.to_le_bytes());
        bytes.extend(2_u16.to_le_bytes());
        bytes.extend(1_u32.to_le_bytes());
        bytes.extend(0x0010_0000_u64.to_le_bytes());
        bytes.extend([0; 8]);
        bytes.extend(SYSTEM_IDENTIFIER.to_le_bytes());
        bytes.extend((1_u32 << 20).to_le_bytes());
        bytes.extend(8192_u32.to_le_bytes());
        bytes.resize(1 << 20, 0);
        bytes
    }

    fn spool(directory: &Path) -> Spool {
        let spool = Spool::of(directory, &directory.join("pg_wal"), None);
        spool.create().unwrap();
        spool
    }

    #[test]
    fn a_whole_segment_of_the_right_cluster_is_moved() {
        let data = tempfile::tempdir().unwrap();
        let spool = spool(data.path());
        let name: SegmentName = "000000010000000000000001".parse().unwrap();
        let destination = data.path().join("pg_wal/RECOVERYXLOG");
        assert!(!spool.take(name, SYSTEM_IDENTIFIER, &destination).unwrap());
        let place = spool.segment(name);
        let good = segment();
        let other: SegmentName = "000000010000000000000002".parse().unwrap();
        fs::write(spool.segment(other), &good).unwrap();
        assert!(spool.take(other, SYSTEM_IDENTIFIER, &destination).is_err(), "another segment's bytes");
        for bad in [&good[..good.len() - 1], &[0; 1 << 20][..], &[][..]] {
            fs::write(&place, bad).unwrap();
            assert!(spool.take(name, SYSTEM_IDENTIFIER, &destination).is_err());
        }
        fs::write(&place, &good).unwrap();
        assert!(spool.take(name, SYSTEM_IDENTIFIER + 1, &destination).is_err());
        assert!(!destination.exists());
        assert!(spool.take(name, SYSTEM_IDENTIFIER, &destination).unwrap());
        assert_eq!((fs::read(&destination).unwrap(), place.exists()), (good, false));
    }

    #[test]
    fn several_clusters_share_a_place_elsewhere() {
        let [a, b] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let elsewhere = Some(Path::new("/spools"));
        let of = |data: &Path| Spool::of(data, &data.join("pg_wal"), elsewhere);
        assert_ne!(of(a.path()), of(b.path()));
        let link = b.path().join("link");
        std::os::unix::fs::symlink(a.path(), &link).unwrap();
        assert_eq!(of(a.path()), of(&link), "whatever the cluster is called");
    }

    #[test]
    fn a_directory_that_others_may_write_in_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let data = tempfile::tempdir().unwrap();
        let spool = spool(data.path());
        fs::set_permissions(spool.directory(), fs::Permissions::from_mode(0o770)).unwrap();
        assert!(spool.create().is_err());
        let link = data.path().join("link");
        std::os::unix::fs::symlink(data.path(), &link).unwrap();
        assert!(Spool::at(link).create().is_err(), "a link leads to who knows what");
        assert!(Spool::at("relative".into()).create().is_err());
    }

    #[test]
    fn one_process_at_a_time_and_a_deleted_spool_is_noticed() {
        let data = tempfile::tempdir().unwrap();
        let spool = spool(data.path());
        assert!(!SpoolLock::is_held(&spool));
        let lock = SpoolLock::try_acquire(&spool).unwrap().unwrap();
        assert!(SpoolLock::is_held(&spool) && lock.is_in_place());
        fs::remove_dir_all(spool.directory()).unwrap();
        assert!(!lock.is_in_place());
        spool.create().unwrap();
        assert!(!SpoolLock::is_held(&spool), "the new directory's lock is another");
        let lock = SpoolLock::try_acquire(&spool).unwrap().unwrap();
        spool.disown();
        let other = SpoolLock::try_acquire(&spool).unwrap();
        assert!(other.is_some_and(|other| other.is_in_place()) && !lock.is_in_place());
    }

    #[test]
    fn every_prefetcher_and_every_copy_of_a_spool_has_a_socket_of_its_own() {
        let [data, copy] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let [spool, copy] = [&data, &copy].map(|place| spool(place.path()));
        let origin = Origin { archive: "s3://b/p/wal_005/".into(), system_identifier: 7, configuration: [1; 32] };
        let [one, next] = [(); 2].map(|()| Stamp::new(&origin));
        let name = |spool: &Spool, stamp| spool.socket_name(stamp).unwrap();
        assert_eq!(name(&spool, &one), name(&spool, &one));
        assert_ne!(name(&spool, &one), name(&spool, &next));
        assert_ne!(name(&spool, &one), name(&copy, &one));
    }

    #[test]
    fn news_is_told_once() {
        let data = tempfile::tempdir().unwrap();
        let spool = spool(data.path());
        assert_eq!(spool.take_news(), None);
        spool.leave_news("one");
        spool.leave_news("two");
        assert_eq!(spool.take_news().unwrap(), "one\ntwo\n");
        assert_eq!(spool.take_news(), None);
    }

    #[test]
    fn only_what_nobody_works_with_is_cleaned_up() {
        use std::os::unix::fs::PermissionsExt as _;
        let data = tempfile::tempdir().unwrap();
        let nowhere = Spool::at(data.path().join("nowhere"));
        nowhere.clean_up().unwrap();
        assert!(!nowhere.directory().exists());
        let spool = spool(data.path());
        let segment = spool.segment("000000010000000000000001".parse().unwrap());
        fs::write(&segment, "").unwrap();
        let lock = SpoolLock::try_acquire(&spool).unwrap();
        spool.clean_up().unwrap();
        assert!(segment.exists(), "a prefetcher lives");
        drop(lock);
        fs::set_permissions(spool.directory(), fs::Permissions::from_mode(0o770)).unwrap();
        spool.clean_up().unwrap();
        assert!(segment.exists(), "somebody else's");
        fs::set_permissions(spool.directory(), fs::Permissions::from_mode(0o700)).unwrap();
        spool.clean_up().unwrap();
        assert!(!segment.exists());
    }

    #[test]
    fn emptying_leaves_what_tells_people_what_happened() {
        let data = tempfile::tempdir().unwrap();
        let spool = spool(data.path());
        let passing = ["000000010000000000000001", ".000000010000000000000002.wal-eve.7.0", "stamp", "news", "news.9"];
        for name in passing.iter().chain(&["log", "lock", "somebody's"]) {
            fs::write(spool.directory().join(name), "").unwrap();
        }
        UnixListener::bind(spool.directory().join("socket")).unwrap();
        spool.empty().unwrap();
        let mut left: Vec<_> =
            fs::read_dir(spool.directory()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["lock", "log", "somebody's"]);
    }
}
