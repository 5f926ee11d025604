//! A file that appears under its name whole or not at all.
//!
//! Nothing is fsynced here: the caller knows whether anyone relies on the file after a power loss.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};

/// A file being written beside its destination.
///
/// Where the kernel and the filesystem can, it has no name until it is published, so that a process killed meanwhile
/// leaves nothing behind. Elsewhere it is a hidden file, removed when this value is dropped.
#[derive(Debug)]
pub struct StagedFile {
    file: File,
    destination: PathBuf,
    named: Option<PathBuf>,
}

impl StagedFile {
    /// Begins a file that will appear at `destination`, readable by its owner only.
    pub fn create(destination: &Path) -> io::Result<Self> {
        let directory = match destination.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let mode = Mode::RUSR | Mode::WUSR;
        let unnamed = rustix::fs::open(directory, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, mode);
        if let Ok(descriptor) = unnamed {
            let file = File::from(descriptor);
            if proc_path(&file).exists() {
                return Ok(Self { file, destination: destination.to_owned(), named: None });
            }
        }
        let hidden = hidden_beside(destination)?;
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&hidden)?;
        Ok(Self { file, destination: destination.to_owned(), named: Some(hidden) })
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

fn proc_path(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn hidden_beside(destination: &Path) -> io::Result<PathBuf> {
    let name = destination.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut hidden = OsString::from(".");
    hidden.push(name);
    // one process may write the same file twice at a time, and each has to keep its own
    static FILES: AtomicU64 = AtomicU64::new(0);
    hidden.push(format!(".wal-eve.{}.{}", std::process::id(), FILES.fetch_add(1, Ordering::Relaxed)));
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
        StagedFile::create(&directory.path().join("x")).unwrap().file().write_all(b"x").unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
