//! A file that appears under its name whole or not at all.
//!
//! Nothing is fsynced here: the caller knows whether anyone relies on the file after a power loss.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;

/// Between a hidden file's destination and its process's numbers.
const MARK: &[u8] = b".wal-eve.";

/// How many names to try for a hidden file. One that is taken is a killed process's, or is swept away just then.
const MAX_NAMES: usize = 100;

/// A file being written beside its destination.
///
/// Where the kernel and the filesystem can, it has no name until it is published, so that a process killed meanwhile
/// leaves nothing behind. Elsewhere, as on NFS, it is a hidden file, removed when this value is dropped, or else when the next
/// one for the same destination is begun: it is locked as long as its process lives, whatever host that runs on.
#[derive(Debug)]
pub struct StagedFile {
    file: File,
    destination: PathBuf,
    named: Option<PathBuf>,
}

impl StagedFile {
    /// Begins a file that will appear at `destination`, readable by its owner only.
    pub fn create(destination: &Path) -> io::Result<Self> {
        let mode = Mode::RUSR | Mode::WUSR;
        let unnamed =
            rustix::fs::open(directory_of(destination), OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, mode);
        if let Ok(descriptor) = unnamed {
            let file = File::from(descriptor);
            if proc_path(&file).exists() {
                // it gets a name for a moment when it is published
                let _ = flock(&file, FlockOperation::NonBlockingLockExclusive);
                return Ok(Self { file, destination: destination.to_owned(), named: None });
            }
        }
        Self::create_named(destination)
    }

    fn create_named(destination: &Path) -> io::Result<Self> {
        sweep(destination);
        for _ in 0..MAX_NAMES {
            let hidden = hidden_beside(destination)?;
            let file = match File::options().read(true).write(true).create_new(true).mode(0o600).open(&hidden) {
                Err(taken) if taken.kind() == io::ErrorKind::AlreadyExists => continue,
                opened => opened?,
            };
            // where there are no locks, nothing is swept either
            let locked = flock(&file, FlockOperation::NonBlockingLockExclusive);
            if locked != Err(Errno::WOULDBLOCK) && is_at(&file, &hidden) {
                return Ok(Self { file, destination: destination.to_owned(), named: Some(hidden) });
            }
        }
        Err(io::Error::new(io::ErrorKind::AlreadyExists, "all names for a temporary file are taken"))
    }

    /// The file, to be written.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Makes the file appear under its name, replacing what may be there, by rename.
    pub fn publish(mut self) -> io::Result<()> {
        let hidden = match self.named.take() {
            Some(hidden) => hidden,
            None => {
                let hidden = hidden_beside(&self.destination)?;
                // left by a process of the same number that was killed between the two calls below
                let _ = fs::remove_file(&hidden);
                rustix::fs::linkat(CWD, proc_path(&self.file), CWD, &hidden, AtFlags::SYMLINK_FOLLOW)?;
                hidden
            }
        };
        let renamed = fs::rename(&hidden, &self.destination);
        if renamed.is_err() {
            let _ = fs::remove_file(&hidden);
        }
        renamed
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        if let Some(hidden) = &self.named {
            let _ = fs::remove_file(hidden);
        }
    }
}

/// Whether `path` leads to this very file.
pub fn is_at(file: &File, path: &Path) -> bool {
    let identity = |found: fs::Metadata| (found.dev(), found.ino());
    let (Ok(held), Ok(found)) = (file.metadata(), fs::metadata(path)) else { return false };
    identity(held) == identity(found)
}

/// Removes the hidden files for `destination` that nobody writes any more.
fn sweep(destination: &Path) {
    let Some(name) = destination.file_name() else { return };
    for entry in fs::read_dir(directory_of(destination)).into_iter().flatten().flatten() {
        if !is_hidden_for(name, &entry.file_name()) || !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        let flags = OFlags::NOFOLLOW.bits().cast_signed();
        // NFS locks only what may be written
        let Ok(file) = File::options().read(true).write(true).custom_flags(flags).open(entry.path()) else { continue };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() && is_at(&file, &entry.path()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Whether a file called `found` is what [`hidden_beside`] makes for a destination called `name`.
fn is_hidden_for(name: &OsStr, found: &OsStr) -> bool {
    let rest = found.as_bytes().strip_prefix(b".").and_then(|rest| rest.strip_prefix(name.as_bytes()));
    let Some(numbers) = rest.and_then(|rest| rest.strip_prefix(MARK)) else { return false };
    let mut numbers = numbers.split(|byte| *byte == b'.');
    let mut is_number = || numbers.next().is_some_and(|part| !part.is_empty() && part.iter().all(u8::is_ascii_digit));
    is_number() && is_number() && numbers.next().is_none()
}

fn directory_of(destination: &Path) -> &Path {
    destination.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn proc_path(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn hidden_beside(destination: &Path) -> io::Result<PathBuf> {
    let name = destination.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut hidden = OsString::from(".");
    hidden.push(name);
    // one process may write the same file twice at a time, and each has to keep its own
    static FILES: AtomicU64 = AtomicU64::new(0);
    hidden.push(OsStr::from_bytes(MARK));
    hidden.push(format!("{}.{}", std::process::id(), FILES.fetch_add(1, Ordering::Relaxed)));
    Ok(destination.with_file_name(hidden))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn nothing_is_visible_before_it_is_published() {
        let directory = tempfile::tempdir().unwrap();
        let destination = directory.path().join("RECOVERYXLOG");
        fs::write(&destination, "old").unwrap();
        let staged = StagedFile::create(&destination).unwrap();
        staged.file().write_all(b"new").unwrap();
        assert_eq!(fs::read(&destination).unwrap(), b"old");
        staged.publish().unwrap();
        assert_eq!(fs::read(&destination).unwrap(), b"new");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_dropped_file_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        for create in [StagedFile::create, StagedFile::create_named] {
            create(&directory.path().join("x")).unwrap().file().write_all(b"x").unwrap();
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn what_killed_processes_left_is_swept_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let destination = path("RECOVERYXLOG");
        // two that are being written, and one whose process is gone
        let living = StagedFile::create_named(&destination).unwrap();
        let unnamed = StagedFile::create(&destination).unwrap();
        let left = path(".RECOVERYXLOG.wal-eve.4194999.0");
        fs::write(&left, "left").unwrap();
        let others = [
            "RECOVERYXLOG",
            "RECOVERYXLOG.wal-eve.1.0",
            ".RECOVERYXLOG.wal-eve.1",
            ".RECOVERYXLOG.wal-eve.1.0.0",
            ".RECOVERYXLOG.wal-eve.1.x",
            ".RECOVERYXLOG.wal-eve..0",
            ".RECOVERYXLOG.wal-eve.1.",
            ".RECOVERYHISTORY.wal-eve.1.0",
        ];
        others.iter().for_each(|name| fs::write(path(name), "another's").unwrap());
        fs::create_dir(path(".RECOVERYXLOG.wal-eve.2.0")).unwrap();
        std::os::unix::fs::symlink(path("RECOVERYXLOG"), path(".RECOVERYXLOG.wal-eve.3.0")).unwrap();

        StagedFile::create_named(&destination).unwrap().publish().unwrap();
        assert!(!left.exists());
        assert!(others.iter().all(|name| path(name).exists()));
        assert!(path(".RECOVERYXLOG.wal-eve.2.0").exists() && path(".RECOVERYXLOG.wal-eve.3.0").is_symlink());
        living.file().write_all(b"living").unwrap();
        living.publish().unwrap();
        assert_eq!(fs::read(&destination).unwrap(), b"living");
        unnamed.publish().unwrap();
    }
}
