//! Which files a base backup holds: the selection of `spec/wal-e-format.md` §4.2 to §4.4, over a real directory.
//!
//! The walk is lazy. It keeps the names of one directory for each level of depth, and looks at a file only when its
//! turn comes, so that a database of millions of files needs no list of them. Files and directories that vanish
//! meanwhile, as they do below a running server, are left out.
//!
//! Where it differs from WAL-E, all of it restorable by WAL-E:
//!
//! * `global/pg_control` is held back; the caller reads it last, after everything else, and adds it as the last file.
//! * A link in the place of `pg_wal` or another directory whose content is left out becomes an empty directory: a copy
//!   restored on the same host would otherwise write its log into the running server's.
//! * `backup_label` and `tablespace_map` are left out unless the server is down, and `backup_manifest` always: a
//!   non-exclusive backup brings its own, and a stale one in the directory would take its place.
//! * A link to a directory outside WAL-E's lists is kept as a link and told of; WAL-E loses it without a word.
//! * Sockets, FIFOs and devices are told of and left out; WAL-E fails on the first and archives the others.
//! * `lost+found` is left out of tablespaces too: it belongs to root, and reading it would fail every backup of a
//!   tablespace that is a mount point.
//! * A tablespace made during the backup has no link in it: replay makes it.
//! * Hard links are ordinary files. PostgreSQL makes none, and a member that only names another would have to be in
//!   the same or an earlier partition.
//!
//! As in WAL-E, unlogged and temporary relations are kept.

use std::ffi::{OsStr, OsString};
use std::fs::{self, FileType, Metadata};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::vec;

use super::data_directory::DataDirectory;
use super::tablespace::{self, Tablespace};
use super::{PgError, Result};

/// Directories of the root whose entry is kept and whose content is not.
const EMPTIED_IN_ROOT: [&str; 4] = ["pg_xlog", "pg_log", "pg_replslot", "pg_wal"];

/// Directories at any depth whose entry is kept and whose content is not.
const EMPTIED_ANYWHERE: [&str; 3] = ["pgsql_tmp", "pg_stat_tmp", ".wal-e"];

/// Directories at any depth that are left out.
const DROPPED_ANYWHERE: &str = "lost+found";

/// Files of the root that are the host's and not the cluster's.
const DROPPED_FILES: [&str; 5] = ["postmaster.pid", "postmaster.opts", "recovery.conf", "recovery.done", "promote"];

/// Files of the root that are left out because a provisioning tool owns them, unless asked for.
const CONFIG_FILES: [&str; 3] = ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"];

/// Files of the root that only the server that wrote them may use, and only while it is down.
const LABEL_FILES: [&str; 2] = ["backup_label", "tablespace_map"];

/// The beginning of the names of what is in the directory of the tablespaces' links.
const LINKS_PREFIX: &str = "pg_tblspc/";

/// What to select beyond the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WalkOptions {
    /// Keeps `postgresql.conf`, `pg_hba.conf` and `pg_ident.conf` of the root.
    pub include_config: bool,
    /// The server is down: keeps `backup_label` and `tablespace_map` of the root, which then belong to these files.
    pub offline: bool,
}

/// One member of the backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it is; below the data directory also for what is in a tablespace.
    pub path: PathBuf,
    /// The member's name: relative to the data directory, with a trailing slash for a directory; `/` for the root.
    pub name: OsString,
    /// What it is.
    pub kind: EntryKind,
    /// The low twelve bits of its mode.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// When its content last changed.
    pub mtime: SystemTime,
}

impl Entry {
    /// A regular file that no walk tells of: a segment that a stopped server needs.
    ///
    /// # Errors
    ///
    /// Those of `stat`.
    pub fn file(path: PathBuf, name: OsString) -> io::Result<Self> {
        let metadata = fs::metadata(&path)?;
        let kind = EntryKind::File { size: metadata.len() };
        Ok(entry(path, name, kind, &metadata))
    }
}

/// What a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File {
        /// Its size in bytes when its turn came.
        size: u64,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink {
        /// Its text, verbatim.
        target: PathBuf,
    },
}

/// What the walk comes across.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A member of the backup.
    Entry(Entry),
    /// Something that a user should know is not in the backup.
    Trap(Trap),
}

/// Something in the directory whose content is not in the backup.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trap {
    /// A link to a directory: the link is in the backup and what it leads to is not.
    #[error("\"{}\" is a symbolic link to a directory: \"{}\" is not backed up", path.display(), target.display())]
    DirectoryLink {
        /// The link.
        path: PathBuf,
        /// Its text.
        target: PathBuf,
    },
    /// A socket, FIFO or device, which is left out.
    #[error("\"{}\" is a {what}: it is not backed up", path.display())]
    Special {
        /// Where it is.
        path: PathBuf,
        /// `socket`, `FIFO` or `device`.
        what: &'static str,
    },
}

/// The rules differ in a tablespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Area {
    DataDirectory,
    Tablespace,
}

/// A directory whose content is being told.
struct Level {
    path: PathBuf,
    /// The beginning of its entries' names: empty for the root, else with a trailing slash.
    prefix: OsString,
    area: Area,
    /// Its own entry, if it is to be told and has not been.
    own_entry: Option<Entry>,
    /// In a tablespace a directory has an entry only if none of its files has.
    files: vec::IntoIter<OsString>,
    subdirectories: vec::IntoIter<OsString>,
}

/// Tells the members of a base backup: the root first, and every directory before what is in it.
pub struct Walk {
    root: PathBuf,
    options: WalkOptions,
    tablespaces: Vec<Tablespace>,
    next_tablespace: usize,
    levels: Vec<Level>,
    /// A link that has been told of as a trap and now comes as an entry.
    pending: Option<Entry>,
}

impl Walk {
    /// Starts a walk: lists the tablespaces, so it has to come after the start of the backup, and opens the root.
    ///
    /// # Errors
    ///
    /// As [`Tablespace::list`]; [`super::Kind::Io`] when the root cannot be read.
    pub fn new(directory: &DataDirectory, options: WalkOptions) -> Result<Self> {
        let root = directory.path().to_owned();
        let tablespaces = Tablespace::list(&root)?;
        let mut walk = Self { root, options, tablespaces, next_tablespace: 0, levels: Vec::new(), pending: None };
        // The root itself may be reached through a link: its entry is the directory's.
        let metadata = fs::metadata(&walk.root).map_err(|e| PgError::io("examine", &walk.root, e))?;
        let own_entry = entry(walk.root.clone(), "/".into(), EntryKind::Directory, &metadata);
        let level = walk.open(walk.root.clone(), OsString::new(), Area::DataDirectory, Some(own_entry));
        walk.levels.push(level.map_err(|e| PgError::io("read directory", &walk.root, e))?);
        Ok(walk)
    }

    /// The tablespaces whose files are in the backup.
    pub fn tablespaces(&self) -> &[Tablespace] {
        &self.tablespaces
    }

    /// Reads a directory's names and sorts them into files and subdirectories.
    fn open(&self, path: PathBuf, prefix: OsString, area: Area, own_entry: Option<Entry>) -> io::Result<Level> {
        let (mut files, mut subdirectories) = (Vec::new(), Vec::new());
        let in_root = prefix.is_empty();
        for entry in fs::read_dir(&path)? {
            let entry = entry?;
            let name = entry.file_name();
            let file_type = match entry.file_type() {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            if file_type.is_dir() {
                if name != DROPPED_ANYWHERE {
                    subdirectories.push(name);
                }
            } else if !self.drops_file(&prefix, in_root, &name) {
                files.push(name);
            }
        }
        files.sort_unstable();
        subdirectories.sort_unstable();
        let (files, subdirectories) = (files.into_iter(), subdirectories.into_iter());
        Ok(Level { path, prefix, area, own_entry, files, subdirectories })
    }

    fn drops_file(&self, prefix: &OsStr, in_root: bool, name: &OsStr) -> bool {
        if in_root {
            return is_one_of(name, &DROPPED_FILES)
                || name == "backup_manifest"
                || (!self.options.include_config && is_one_of(name, &CONFIG_FILES))
                || (!self.options.offline && is_one_of(name, &LABEL_FILES));
        }
        prefix == "global/" && name == "pg_control"
    }

    /// Whether `name` in the directory of `prefix` keeps its entry and loses its content.
    fn is_emptied(area: Area, prefix: &OsStr, name: &OsStr) -> bool {
        match area {
            Area::Tablespace => name == "pgsql_tmp",
            Area::DataDirectory => {
                is_one_of(name, &EMPTIED_ANYWHERE) || (prefix.is_empty() && is_one_of(name, &EMPTIED_IN_ROOT))
            }
        }
    }

    /// Goes one step: something to tell, or nothing yet.
    fn step(&mut self) -> Result<Step> {
        let Some(level) = self.levels.last_mut() else { return self.enter_tablespace() };
        if level.area == Area::DataDirectory
            && let Some(own) = level.own_entry.take()
        {
            return Ok(Step::Tell(Found::Entry(own)));
        }
        if let Some(name) = level.files.next() {
            let (path, member, area) = (level.path.join(&name), joined(&level.prefix, &name), level.area);
            let is_listed = Self::is_emptied(area, &level.prefix, &name);
            if level.prefix == LINKS_PREFIX && fs::metadata(&path).is_ok_and(|metadata| metadata.is_dir()) {
                // Told by its own walk; or made since the start, and then replay makes it again. The bare link would
                // lead a restored copy into the live server's files.
                return Ok(Step::Nothing);
            }
            let found = self.look_at(path, member, is_listed)?;
            let is_member = matches!(found, Step::Tell(Found::Entry(_))) || self.pending.is_some();
            if let (true, Some(level)) = (is_member, self.levels.last_mut()) {
                level.own_entry = None;
            }
            return Ok(found);
        }
        if let Some(own) = level.own_entry.take() {
            return Ok(Step::Tell(Found::Entry(own)));
        }
        match level.subdirectories.next() {
            Some(name) => {
                let (path, member, area) = (level.path.join(&name), joined(&level.prefix, &name), level.area);
                let is_emptied = Self::is_emptied(area, &level.prefix, &name);
                self.enter(path, member, area, is_emptied)
            }
            None => {
                self.levels.pop();
                Ok(Step::Nothing)
            }
        }
    }

    /// Looks at what was no directory when its directory was read.
    fn look_at(&mut self, path: PathBuf, name: OsString, is_listed: bool) -> Result<Step> {
        let metadata = match fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            Err(e) => return vanished_or("examine", &path, e),
        };
        let file_type = metadata.file_type();
        if file_type.is_file() {
            let kind = EntryKind::File { size: metadata.len() };
            return Ok(Step::Tell(Found::Entry(entry(path, name, kind, &metadata))));
        }
        if file_type.is_symlink() {
            let target = match fs::read_link(&path) {
                Ok(target) => target,
                Err(e) => return vanished_or("read symbolic link", &path, e),
            };
            // A link that dangles or leads where we may not look is archived as it is.
            let directory = fs::metadata(&path).ok().filter(Metadata::is_dir);
            if let Some(directory) = directory.as_ref().filter(|_| is_listed) {
                // Nothing of it is archived, and a copy restored on this host would write its log into the running
                // server's.
                let mut name = name;
                name.push("/");
                return Ok(Step::Tell(Found::Entry(entry(path, name, EntryKind::Directory, directory))));
            }
            let link = entry(path.clone(), name, EntryKind::Symlink { target: target.clone() }, &metadata);
            if directory.is_some() {
                self.pending = Some(link);
                return Ok(Step::Tell(Found::Trap(Trap::DirectoryLink { path, target })));
            }
            return Ok(Step::Tell(Found::Entry(link)));
        }
        match special(file_type) {
            Some(what) => Ok(Step::Tell(Found::Trap(Trap::Special { path, what }))),
            // It has become a directory since; what is in it is younger than the backup's start.
            None => Ok(Step::Nothing),
        }
    }

    /// Begins a subdirectory, or tells only its entry.
    fn enter(&mut self, path: PathBuf, name: OsString, area: Area, is_emptied: bool) -> Result<Step> {
        let metadata = match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => metadata,
            Ok(_) => return Ok(Step::Nothing),
            Err(e) => return vanished_or("examine", &path, e),
        };
        let prefix = joined(&name, OsStr::new("/"));
        let own_entry = entry(path.clone(), prefix.clone(), EntryKind::Directory, &metadata);
        if is_emptied {
            return Ok(Step::Tell(Found::Entry(own_entry)));
        }
        match self.open(path.clone(), prefix, area, Some(own_entry)) {
            Ok(level) => {
                self.levels.push(level);
                Ok(Step::Nothing)
            }
            Err(e) => vanished_or("read directory", &path, e),
        }
    }

    /// Begins the next tablespace; its own directory has no entry, since its link is made before a restore.
    fn enter_tablespace(&mut self) -> Result<Step> {
        let Some(tablespace) = self.tablespaces.get(self.next_tablespace) else { return Ok(Step::End) };
        self.next_tablespace += 1;
        let link = self.root.join(tablespace::LINKS).join(&tablespace.oid_name);
        let prefix = OsString::from(format!("{}/{}/", tablespace::LINKS, tablespace.oid_name));
        match self.open(link.clone(), prefix, Area::Tablespace, None) {
            Ok(level) => {
                self.levels.push(level);
                Ok(Step::Nothing)
            }
            // DROP TABLESPACE takes the link away; a link that is still there must lead somewhere.
            Err(e) if e.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(&link).is_err() => {
                vanished_or("read directory", &link, e)
            }
            Err(e) => Err(PgError::io("read directory", &link, e)),
        }
    }
}

/// What one step of the walk gave.
enum Step {
    Tell(Found),
    Nothing,
    End,
}

impl Iterator for Walk {
    type Item = Result<Found>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(link) = self.pending.take() {
            return Some(Ok(Found::Entry(link)));
        }
        loop {
            match self.step() {
                Ok(Step::Tell(found)) => return Some(Ok(found)),
                Ok(Step::Nothing) => {}
                Ok(Step::End) => return None,
                Err(e) => return Some(Err(e)),
            }
        }
    }
}

/// How much a backup holds, for a progress display.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Extent {
    /// How many regular files.
    pub files: u64,
    /// Their sizes' sum in bytes.
    pub bytes: u64,
}

impl Extent {
    /// Walks the whole directory to add it up: one `lstat` a file, so a pass of its own that takes a while.
    ///
    /// # Errors
    ///
    /// As [`Walk`]'s.
    pub fn of(directory: &DataDirectory, options: WalkOptions) -> Result<Self> {
        let mut extent = Self::default();
        for found in Walk::new(directory, options)? {
            if let Found::Entry(Entry { kind: EntryKind::File { size }, .. }) = found? {
                extent.files += 1;
                extent.bytes += size;
            }
        }
        Ok(extent)
    }
}

fn entry(path: PathBuf, name: OsString, kind: EntryKind, metadata: &Metadata) -> Entry {
    // Every Unix filesystem tells mtime.
    let mtime = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    Entry { path, name, kind, mode: metadata.mode() & 0o7777, uid: metadata.uid(), gid: metadata.gid(), mtime }
}

fn vanished_or(verb: &str, path: &Path, error: io::Error) -> Result<Step> {
    if error.kind() == io::ErrorKind::NotFound {
        tracing::debug!(path = %path.display(), "vanished during the backup");
        return Ok(Step::Nothing);
    }
    Err(PgError::io(verb, path, error))
}

fn special(file_type: FileType) -> Option<&'static str> {
    if file_type.is_socket() {
        Some("socket")
    } else if file_type.is_fifo() {
        Some("FIFO")
    } else {
        (file_type.is_block_device() || file_type.is_char_device()).then_some("device")
    }
}

fn is_one_of(name: &OsStr, list: &[&str]) -> bool {
    list.iter().any(|listed| name == *listed)
}

fn joined(prefix: &OsStr, name: &OsStr) -> OsString {
    OsString::from_vec([prefix.as_bytes(), name.as_bytes()].concat())
}

#[cfg(test)]
mod tests;
