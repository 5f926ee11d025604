//! Listing a directory tree as a flat space of keys, in byte order.
//!
//! Siblings are ordered with a directory's name ending in `/`, which makes a depth-first walk yield whole keys in byte
//! order (`a-b` < `a/b` < `a0`). Subtrees that cannot hold a wanted key are not entered. Links are followed, as reading
//! follows them. Names that are not UTF-8 are no keys, and temporary names are no objects: both are left out.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::super::{Listed, Page};
use crate::fs::durable::{FsError, TEMP_PREFIX};

/// The first `rows` keys below `root` that begin with `prefix` and sort after `after`.
pub(super) fn page(root: &Path, prefix: &str, after: Option<&str>, rows: usize) -> Result<Page, FsError> {
    let mut walk = Walk { root, prefix, after: after.unwrap_or(""), rows, page: Page::default() };
    // Everything that begins with "a/b/c" is in directory "a/b".
    let start = prefix.rfind('/').map_or("", |slash| &prefix[..=slash]);
    walk.directory(start)?;
    Ok(walk.page)
}

struct Walk<'a> {
    root: &'a Path,
    prefix: &'a str,
    after: &'a str,
    rows: usize,
    page: Page,
}

impl Walk<'_> {
    /// Walks a directory, given as the beginning of its keys: empty or ending in `/`.
    fn directory(&mut self, start: &str) -> Result<(), FsError> {
        for (key, path) in self.entries(start)? {
            if self.page.more {
                return Ok(());
            }
            if key.ends_with('/') {
                self.directory(&key)?;
                continue;
            }
            let metadata = match fs::metadata(&path) {
                Ok(metadata) => metadata,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(FsError::new("look at file", path, error)),
            };
            if self.page.objects.len() == self.rows {
                self.page.more = true;
                return Ok(());
            }
            let modified = metadata.modified().map_err(|error| FsError::new("look at file", path, error))?;
            self.page.objects.push(Listed { key, size: metadata.len(), last_modified: modified });
        }
        Ok(())
    }

    /// A directory's wanted entries in key order; directories end in `/`.
    fn entries(&self, start: &str) -> Result<Vec<(String, PathBuf)>, FsError> {
        let directory = self.root.join(start);
        let fail = |error| FsError::new("read directory", &directory, error);
        let read = match fs::read_dir(&directory) {
            Ok(read) => read,
            // Removed in the meantime, or the prefix names none.
            Err(error) if super::absent(&error) => return Ok(Vec::new()),
            Err(error) => return Err(fail(error)),
        };
        let mut entries = Vec::new();
        for entry in read {
            let entry = entry.map_err(fail)?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if name.starts_with(TEMP_PREFIX) {
                continue;
            }
            let mut key = format!("{start}{name}");
            let kind = entry.file_type().map_err(fail)?;
            let is_directory = if kind.is_symlink() { entry.path().is_dir() } else { kind.is_dir() };
            if is_directory {
                key.push('/');
            } else if !kind.is_file() && !kind.is_symlink() {
                continue;
            }
            if self.wanted(&key) {
                entries.push((key, entry.path()));
            }
        }
        entries.sort_unstable();
        Ok(entries)
    }

    /// Whether a file is asked for, or a directory may hold what is.
    fn wanted(&self, key: &str) -> bool {
        if key.ends_with('/') {
            let holds_prefix = key.starts_with(self.prefix) || self.prefix.starts_with(key);
            holds_prefix && (key > self.after || self.after.starts_with(key))
        } else {
            key.starts_with(self.prefix) && key > self.after
        }
    }
}
