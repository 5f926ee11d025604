//! A tar stream to files, safely: nothing is written outside of the destination, nor through a link that is no tablespace
//! of the backup (`spec/wal-e-format.md` §5.4, RULE).

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashSet};
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, FileTimes, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tar::{Archive, Entry, EntryType};

use super::error::UnsafeMember;
use super::progress::Progress;
use super::{Result, TransferError};
use crate::formats::tar_partition::MemberPath;

/// Where a backup is extracted to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// The data directory. It exists.
    pub root: PathBuf,
    /// The links, relative to `root`, that members may be written through: the tablespaces'.
    pub tablespace_links: BTreeSet<PathBuf>,
    /// Members, relative to `root`, that go to another path: those that are published last.
    pub held_back: Vec<(PathBuf, PathBuf)>,
    /// Members, relative to `root`, that become directories where the backup has links: the server's log, above all.
    pub never_links: Vec<PathBuf>,
    /// Members, relative to `root`, that are not extracted at all, nor is what lies below them.
    pub left_out: Vec<PathBuf>,
    /// Whether to give files to the owner that the tar names; only root can.
    pub restore_owner: bool,
}

/// What a partition held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extracted {
    /// Members of every kind.
    pub members: u64,
    /// The sum of the files' sizes.
    pub bytes: u64,
}

/// Extracts the tar stream of the object at `url`. Files are not fsynced.
pub fn extract(tar: impl Read, url: &str, destination: &Destination, progress: &Progress) -> Result<Extracted> {
    let mut archive = Archive::new(Counted { inner: tar, bytes: 0 });
    let mut extraction = Extraction {
        url,
        destination,
        progress,
        directories: HashSet::new(),
        owners_refused: Cell::new(false),
        done: Extracted::default(),
        buffer: RefCell::new(vec![0; 256 << 10]),
    };
    // `entries` borrows the archive, and with it the counter, so damage is placed by what was extracted
    let damaged = |done: &Extracted, source| TransferError::Tar { url: url.to_owned(), offset: done.bytes, source };
    let entries = archive.entries().map_err(|failed| damaged(&Extracted::default(), failed))?;
    for entry in entries {
        let entry = entry.map_err(|failed| damaged(&extraction.done, failed))?;
        extraction.member(entry)?;
    }
    let Extraction { done, .. } = extraction;
    let read = archive.into_inner().bytes;
    // every tar stream ends in at least two blocks of zeros
    if read < 1024 {
        let short = io::Error::new(io::ErrorKind::UnexpectedEof, "the stream is shorter than any tar");
        return Err(damaged(&done, short));
    }
    Ok(done)
}

struct Extraction<'a> {
    url: &'a str,
    destination: &'a Destination,
    progress: &'a Progress,
    /// Directories below the root that are known to be real, relative to it.
    directories: HashSet<PathBuf>,
    /// Whether it was said already that owners cannot be set.
    owners_refused: Cell<bool>,
    done: Extracted,
    /// For file contents on their way; kept, since most files are smaller than it.
    buffer: RefCell<Vec<u8>>,
}

impl Extraction<'_> {
    fn member<R: Read>(&mut self, mut entry: Entry<'_, R>) -> Result<()> {
        let name = entry.path_bytes().into_owned();
        let path = MemberPath::from_bytes(&name).map_err(|source| self.refuse(source.into()))?;
        self.done.members += 1;
        let relative = match path {
            MemberPath::Root => {
                let mode = self.mode(&entry, 0o700)?;
                let root = &self.destination.root;
                set_mode(root, mode).map_err(TransferError::file("set the mode of", root))?;
                return self.own(&entry, root);
            }
            MemberPath::Below(relative) => relative,
        };
        if self.destination.left_out.iter().any(|left_out| relative.starts_with(left_out)) {
            tracing::warn!(member = %relative.display(), url = self.url, "member left out: it would keep the server from starting");
            return Ok(());
        }
        self.parents(&relative)?;
        let target = match self.destination.held_back.iter().find(|(member, _)| *member == relative) {
            Some((_, elsewhere)) => elsewhere.clone(),
            None => self.destination.root.join(&relative),
        };
        match entry.header().entry_type() {
            EntryType::Directory => self.directory(&entry, relative, &target),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => self.file(&mut entry, &target),
            EntryType::Symlink => {
                let text = entry.link_name_bytes().unwrap_or_default().into_owned();
                self.symlink(&relative, &target, &text)
            }
            EntryType::Link => {
                let text = entry.link_name_bytes().unwrap_or_default().into_owned();
                self.hard_link(&target, &text)
            }
            kind => Err(self.refuse(UnsafeMember::Kind { member: relative, kind: char::from(kind.as_byte()) })),
        }
    }

    fn refuse(&self, source: UnsafeMember) -> TransferError {
        TransferError::UnsafeMember { url: self.url.to_owned(), source }
    }

    fn damaged(&self, source: io::Error) -> TransferError {
        TransferError::Tar { url: self.url.to_owned(), offset: self.done.bytes, source }
    }

    fn mode<R: Read>(&self, entry: &Entry<'_, R>, default: u32) -> Result<u32> {
        let mode = entry.header().mode().map_err(|failed| self.damaged(failed))? & 0o7777;
        Ok(if mode == 0 { default } else { mode })
    }

    /// Makes the directories above a member, and makes sure that none of them is a link to elsewhere.
    fn parents(&mut self, relative: &Path) -> Result<()> {
        let Some(parent) = relative.parent().filter(|parent| !parent.as_os_str().is_empty()) else { return Ok(()) };
        if self.directories.contains(parent) {
            return Ok(());
        }
        let mut path = PathBuf::new();
        for component in parent.components() {
            path.push(component);
            if self.directories.contains(&path) {
                continue;
            }
            let absolute = self.destination.root.join(&path);
            match fs::symlink_metadata(&absolute) {
                Ok(found) if found.is_dir() => {}
                Ok(found) if found.is_symlink() && self.destination.tablespace_links.contains(&path) => {}
                Ok(found) if found.is_symlink() => {
                    return Err(self.refuse(UnsafeMember::ThroughLink { member: relative.to_owned(), link: path }));
                }
                Ok(_) => {
                    let not_a_directory = io::Error::from(io::ErrorKind::NotADirectory);
                    return Err(TransferError::file("create directory", absolute)(not_a_directory));
                }
                Err(missing) if missing.kind() == io::ErrorKind::NotFound => make_directory(&absolute)?,
                Err(failed) => return Err(TransferError::file("examine", absolute)(failed)),
            }
            self.remember(path.clone());
        }
        Ok(())
    }

    /// Memory stays bounded however many directories there are.
    fn remember(&mut self, directory: PathBuf) {
        if self.directories.len() >= 65_536 {
            self.directories.clear();
        }
        self.directories.insert(directory);
    }

    fn directory<R: Read>(&mut self, entry: &Entry<'_, R>, relative: PathBuf, target: &Path) -> Result<()> {
        match fs::symlink_metadata(target) {
            Ok(found) if found.is_dir() => {}
            // WAL-E archives no entry for a tablespace's link, but tar of other hands may
            Ok(found) if found.is_symlink() && self.destination.tablespace_links.contains(&relative) => return Ok(()),
            Ok(_) => {
                let taken = io::Error::from(io::ErrorKind::AlreadyExists);
                return Err(TransferError::file("create directory", target)(taken));
            }
            Err(_) => make_directory(target)?,
        }
        let mode = self.mode(entry, 0o700)?;
        set_mode(target, mode).map_err(TransferError::file("set the mode of", target))?;
        self.own(entry, target)?;
        self.remember(relative);
        Ok(())
    }

    fn file<R: Read>(&mut self, entry: &mut Entry<'_, R>, target: &Path) -> Result<()> {
        let size = entry.size();
        let mode = self.mode(entry, 0o600)?;
        let written = |failed| TransferError::file("write", target)(failed);
        let open = || {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32).open(target)
        };
        let file = match open() {
            // a link or a read-only file of an earlier try
            Err(_) if fs::symlink_metadata(target).is_ok_and(|found| !found.is_dir()) => {
                fs::remove_file(target).and_then(|()| open()).map_err(written)?
            }
            opened => opened.map_err(written)?,
        };
        let copied = self.copy(entry, &file, target)?;
        if copied != size {
            let short = io::Error::new(io::ErrorKind::UnexpectedEof, "the stream ends inside of a member");
            return Err(self.damaged(short));
        }
        if mode != 0o600 {
            file.set_permissions(fs::Permissions::from_mode(mode))
                .map_err(TransferError::file("set the mode of", target))?;
        }
        let mtime = entry.header().mtime().map_err(|failed| self.damaged(failed))?;
        if let Some(mtime) = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(mtime)) {
            let _ = file.set_times(FileTimes::new().set_modified(mtime));
        }
        self.own(entry, target)?;
        self.done.bytes += size;
        Ok(())
    }

    /// Tells a stream that breaks from a disk that fails, which `io::copy` cannot.
    fn copy<R: Read>(&self, entry: &mut Entry<'_, R>, mut file: &File, target: &Path) -> Result<u64> {
        use std::io::Write as _;
        let mut buffer = self.buffer.borrow_mut();
        let mut copied = 0;
        loop {
            let len = match entry.read(&mut buffer[..]) {
                Ok(0) => return Ok(copied),
                Ok(len) => len,
                Err(again) if again.kind() == io::ErrorKind::Interrupted => continue,
                Err(failed) => return Err(self.damaged(failed)),
            };
            file.write_all(&buffer[..len]).map_err(TransferError::file("write", target))?;
            copied += len as u64;
            self.progress.add_plain(len as u64);
        }
    }

    fn symlink(&mut self, relative: &Path, target: &Path, text: &[u8]) -> Result<()> {
        // the link that the restore made itself points where the user wants it
        if self.destination.tablespace_links.contains(relative) {
            return Ok(());
        }
        // on the source's own host the copy would write its log into the running server's
        if self.destination.never_links.iter().any(|never| never == relative) {
            let link = OsStr::from_bytes(text).display();
            tracing::warn!(member = %relative.display(), "made an empty directory instead of a link to \"{link}\"");
            self.remember(relative.to_owned());
            return make_directory(target);
        }
        let make = || std::os::unix::fs::symlink(OsStr::from_bytes(text), target);
        let made = match make() {
            Err(taken) if taken.kind() == io::ErrorKind::AlreadyExists => fs::remove_file(target).and_then(|()| make()),
            made => made,
        };
        made.map_err(TransferError::file("create symbolic link", target))
    }

    fn hard_link(&mut self, target: &Path, text: &[u8]) -> Result<()> {
        let source = MemberPath::from_bytes(text).map_err(|source| self.refuse(source.into()))?;
        let MemberPath::Below(source) = source else {
            return Err(self.refuse(UnsafeMember::Kind { member: target.to_owned(), kind: '1' }));
        };
        self.parents(&source)?;
        let source = self.destination.root.join(source);
        let _ = fs::remove_file(target);
        fs::hard_link(&source, target).map_err(TransferError::file("create hard link", target))
    }

    fn own<R: Read>(&self, entry: &Entry<'_, R>, target: &Path) -> Result<()> {
        if !self.destination.restore_owner {
            return Ok(());
        }
        let id = |id: io::Result<u64>| id.ok().and_then(|id| u32::try_from(id).ok());
        let header = entry.header();
        match std::os::unix::fs::lchown(target, id(header.uid()), id(header.gid())) {
            // root of a container that has no such user, or of a client that the file server does not take for root
            Err(refused) if matches!(refused.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::PermissionDenied) => {
                if !self.owners_refused.replace(true) {
                    tracing::warn!(path = %target.display(), error = %refused, "files keep the owner that restores them");
                }
                Ok(())
            }
            set => set.map_err(TransferError::file("set the owner of", target)),
        }
    }
}

fn make_directory(path: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        // another partition was first
        Err(exists) if exists.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        made => made.map_err(TransferError::file("create directory", path)),
    }
}

fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

struct Counted<R> {
    inner: R,
    bytes: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(out)?;
        self.bytes += len as u64;
        Ok(len)
    }
}
