//! Files and directories that survive a crash. A file is written under another name, flushed, given its name and the name
//! is flushed too, so that a reader finds either nothing or the whole file.
//!
//! Every function blocks: callers on async threads wrap them. `fsync(2)` is always the full one, never `fdatasync(2)`: the
//! size of a new file is metadata. A failed fsync is never repeated on the same file, since the kernel may have dropped
//! the dirty pages and would then answer success; the file is given up instead.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;

/// The beginning of every temporary name made here; what lists a directory leaves such names out.
pub const TEMP_PREFIX: &str = ".tmp-";

/// A file operation that failed, by path.
#[derive(Debug, thiserror::Error)]
#[error("could not {verb} \"{}\"", path.display())]
pub struct FsError {
    verb: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl FsError {
    /// `verb` completes "could not … PATH".
    pub fn new(verb: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        Self { verb, path: path.into(), source: source.into() }
    }

    /// What the operating system said.
    pub fn io(&self) -> &io::Error {
        &self.source
    }

    /// The file or directory it was about.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// What the functions here return.
pub type Result<T> = std::result::Result<T, FsError>;

/// How publishing a new file ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// The file has its name, and the name is durable.
    Created,
    /// The name was taken; what is there is untouched.
    Exists,
}

/// A file being written under a temporary name. Dropped unpublished, it is removed.
#[derive(Debug)]
pub struct Staged {
    file: File,
    path: PathBuf,
    published: bool,
}

impl Staged {
    /// Creates an empty file with a random temporary name in `directory`, which must be on the file system it will be
    /// published on. The mode is what the umask leaves of 0666.
    pub fn create_in(directory: &Path) -> Result<Self> {
        loop {
            let path = directory.join(format!("{TEMP_PREFIX}{:016x}", rand::random::<u64>()));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => return Ok(Self { file, path, published: false }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(FsError::new("create file", path, error)),
            }
        }
    }

    /// Creates an empty file with a random temporary name in the directory of `target`.
    pub fn create_beside(target: &Path) -> Result<Self> {
        Self::create_in(parent(target))
    }

    /// The open file, for what `Staged` has no method for.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The temporary name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends bytes.
    pub fn write_all(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|error| FsError::new("write file", &self.path, error))
    }

    /// Writes bytes at an offset; several threads may do so at once.
    pub fn write_all_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file.write_all_at(bytes, offset).map_err(|error| FsError::new("write file", &self.path, error))
    }

    /// Gives the file its name unless that is taken: fsyncs the file, publishes it atomically, fsyncs the directory.
    pub fn publish_new(mut self, target: &Path) -> Result<Published> {
        self.file.sync_all().map_err(|error| FsError::new("fsync file", &self.path, error))?;
        match rename_new(&self.path, target) {
            Ok(()) => self.published = true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(Published::Exists),
            Err(error) => return Err(FsError::new("publish file", target, error)),
        }
        fsync_directory(parent(target))?;
        Ok(Published::Created)
    }

    /// Gives the file its name, whatever had it before: fsyncs the file, renames it, fsyncs the directory.
    pub fn publish_replacing(mut self, target: &Path) -> Result<()> {
        self.file.sync_all().map_err(|error| FsError::new("fsync file", &self.path, error))?;
        fs::rename(&self.path, target).map_err(|error| FsError::new("publish file", target, error))?;
        self.published = true;
        fsync_directory(parent(target))
    }
}

impl Drop for Staged {
    /// Removes the temporary file; one that cannot be removed is harmless, since no reader looks at such names.
    fn drop(&mut self) {
        if !self.published {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Renames a file unless the new name is taken, which is `AlreadyExists`. Atomic; flushes nothing.
///
/// `RENAME_NOREPLACE` first, one call that leaves nothing behind; where the file system does not know it (NFS, many FUSE
/// ones) `link(2)`, then the old name is removed.
pub fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(()),
            // Not known to this file system or kernel, or filtered by a sandbox (EPERM).
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
    }
    link_new(from, to)
}

/// The `link(2)` way of [`rename_new`].
fn link_new(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Ok(()) => {}
        // Over NFS a repeated request may be answered "exists" for a link that its first copy made.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && same_file(from, to) => {}
        Err(error) => return Err(error),
    }
    // The new name stands; an old name that stays is a stale temporary file and no more.
    let _ = fs::remove_file(from);
    Ok(())
}

fn same_file(a: &Path, b: &Path) -> bool {
    match (fs::symlink_metadata(a), fs::symlink_metadata(b)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// Writes a small file whole, replacing what had the name: written beside, fsynced, renamed, directory fsynced.
pub fn write_replacing(target: &Path, bytes: &[u8]) -> Result<()> {
    let mut staged = Staged::create_beside(target)?;
    staged.write_all(bytes)?;
    staged.publish_replacing(target)
}

/// Writes a small file whole unless the name is taken: written beside, fsynced, published, directory fsynced.
pub fn write_new(target: &Path, bytes: &[u8]) -> Result<Published> {
    let mut staged = Staged::create_beside(target)?;
    staged.write_all(bytes)?;
    staged.publish_new(target)
}

/// Flushes a file's bytes and size. Its name is another matter: see [`fsync_directory`].
pub fn fsync_file(path: &Path) -> Result<()> {
    let file = File::open(path).map_err(|error| FsError::new("open file", path, error))?;
    file.sync_all().map_err(|error| FsError::new("fsync file", path, error))
}

/// Flushes the names in a directory. File systems that cannot do this for directories say `EBADF` or `EINVAL`; as
/// PostgreSQL does, that is taken for "nothing to flush".
pub fn fsync_directory(path: &Path) -> Result<()> {
    let directory = File::open(path).map_err(|error| FsError::new("open directory", path, error))?;
    match rustix::fs::fsync(&directory) {
        Ok(()) | Err(Errno::BADF | Errno::INVAL) => Ok(()),
        Err(error) => Err(FsError::new("fsync directory", path, error)),
    }
}

/// Creates a directory and its missing ancestors, and fsyncs the directory above each one it found missing.
pub fn create_directories(path: &Path) -> Result<()> {
    match fs::create_dir(path) {
        Ok(()) => fsync_directory(parent(path)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.parent().is_some() => {
            create_directories(parent(path))?;
            match fs::create_dir(path) {
                // Another process may have been faster, but has perhaps not flushed the name yet.
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    Err(FsError::new("create directory", path, error))
                }
                _ => fsync_directory(parent(path)),
            }
        }
        Err(error) => Err(FsError::new("create directory", path, error)),
    }
}

/// Removes temporary files in `directory` that were last written more than `age` ago: what killed processes left. A file
/// that cannot be looked at or removed stays; nobody reads it.
pub fn remove_stale(directory: &Path, age: Duration) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let stale = || entry.metadata().ok()?.modified().ok()?.elapsed().ok().filter(|elapsed| *elapsed > age);
        if is_temp_name(&entry.file_name()) && stale().is_some() {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Whether a file name is one of the temporary ones made here.
pub fn is_temp_name(name: &OsStr) -> bool {
    name.as_bytes().starts_with(TEMP_PREFIX.as_bytes())
}

/// The directory a path is in; `.` for a bare name.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        Some(_) => Path::new("."),
        None => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_new_file_never_replaces_and_leaves_no_temporary_file() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("a");
        assert_eq!(write_new(&target, b"one").unwrap(), Published::Created);
        assert_eq!(write_new(&target, b"two").unwrap(), Published::Exists);
        assert_eq!(fs::read(&target).unwrap(), b"one");
        assert_eq!(names(directory.path()), ["a"]);
    }

    #[test]
    fn linking_never_replaces_either() {
        let directory = tempfile::tempdir().unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|name| directory.path().join(name));
        fs::write(&a, "one").unwrap();
        fs::write(&b, "two").unwrap();
        assert_eq!(link_new(&a, &b).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        link_new(&a, &c).unwrap();
        assert_eq!(names(directory.path()), ["b", "c"]);
        assert_eq!(fs::read(&c).unwrap(), b"one");
    }

    #[test]
    fn a_replacing_write_replaces() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("a");
        write_replacing(&target, b"one").unwrap();
        write_replacing(&target, b"two").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"two");
        assert_eq!(names(directory.path()), ["a"]);
    }

    #[test]
    fn a_dropped_file_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        drop(Staged::create_in(directory.path()).unwrap());
        assert!(names(directory.path()).is_empty());
    }

    #[test]
    fn directories_are_made_once_and_again() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("a/b/c");
        create_directories(&deep).unwrap();
        create_directories(&deep).unwrap();
        assert!(deep.is_dir());
    }

    #[test]
    fn only_old_temporary_files_are_stale() {
        let directory = tempfile::tempdir().unwrap();
        for name in [".tmp-old", ".tmp-new", "old"] {
            let file = File::create(directory.path().join(name)).unwrap();
            if name.ends_with("old") {
                file.set_modified(std::time::SystemTime::now() - Duration::from_secs(7200)).unwrap();
            }
        }
        remove_stale(directory.path(), Duration::from_secs(3600));
        assert_eq!(names(directory.path()), [".tmp-new", "old"]);
    }

    #[test]
    fn an_error_names_the_path() {
        let error = fsync_directory(Path::new("/nonexistent/x")).unwrap_err();
        assert_eq!(error.to_string(), "could not open directory \"/nonexistent/x\"");
    }
}
