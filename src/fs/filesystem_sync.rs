//! Making everything written to a filesystem durable at once.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// A promise to make durable what is written below a directory from now on.
///
/// One `syncfs(2)` does for a million files what a million `fsync(2)` would. It reports a failed write since Linux 5.8, and
/// then every one since the directory was opened, which is why this begins before the writing. On older kernels every file
/// is fsynced instead.
#[derive(Debug)]
pub struct FilesystemSync {
    directory: File,
    path: PathBuf,
}

impl FilesystemSync {
    /// To be called before the first write.
    pub fn begin(directory: &Path) -> io::Result<Self> {
        Ok(Self { directory: File::open(directory)?, path: directory.to_owned() })
    }

    /// Returns when everything below the directory is durable.
    pub fn finish(self) -> io::Result<()> {
        if syncfs_reports_errors() {
            return Ok(rustix::fs::syncfs(&self.directory)?);
        }
        fsync_tree(&self.path)
    }
}

fn syncfs_reports_errors() -> bool {
    let release = rustix::system::uname();
    kernel_at_least(release.release().to_str().unwrap_or_default(), (5, 8))
}

fn kernel_at_least(release: &str, wanted: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|digits| digits.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= wanted
}

fn fsync_tree(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            fsync_tree(&entry.path())?;
        } else if kind.is_file() {
            File::open(entry.path())?.sync_all()?;
        }
    }
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_told_apart() {
        for (release, new_enough) in [
            ("6.18.44-fc-v657", true),
            ("5.8.0", true),
            ("5.10", true),
            ("5.7.19", false),
            ("4.18.0-553.el8", false),
            ("", false),
        ] {
            assert_eq!(kernel_at_least(release, (5, 8)), new_enough, "{release}");
        }
    }

    #[test]
    fn both_ways_pass_over_a_real_tree() {
        let directory = tempfile::tempdir().unwrap();
        let sync = FilesystemSync::begin(directory.path()).unwrap();
        fs::create_dir(directory.path().join("a")).unwrap();
        fs::write(directory.path().join("a/b"), "c").unwrap();
        std::os::unix::fs::symlink("nowhere", directory.path().join("l")).unwrap();
        fsync_tree(directory.path()).unwrap();
        sync.finish().unwrap();
    }
}
