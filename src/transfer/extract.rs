//! A tar stream to files, safely: nothing is written outside of the destination, nor through a link that is no tablespace
//! of the backup (`spec/wal-e-format.md` §5.4, RULE).

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, FileTimes, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tar::{Archive, Entry, EntryType, Header};

use super::error::UnsafeMember;
use super::progress::Progress;
use super::{Result, TransferError};
use crate::formats::tar_partition::MemberPath;
use crate::fs::account;

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
    extract_owned(tar, url, destination, progress, &|path, uid, gid| std::os::unix::fs::lchown(path, uid, gid))
}

/// Sets the owner and the group of a path, which may be a link itself.
type Chown<'a> = &'a dyn Fn(&Path, Option<u32>, Option<u32>) -> io::Result<()>;

fn extract_owned(
    tar: impl Read,
    url: &str,
    destination: &Destination,
    progress: &Progress,
    chown: Chown<'_>,
) -> Result<Extracted> {
    let mut archive = Archive::new(Counted { inner: tar, bytes: 0 });
    let mut extraction = Extraction {
        url,
        destination,
        progress,
        chown,
        user_ids: HashMap::new(),
        group_ids: HashMap::new(),
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
    chown: Chown<'a>,
    /// The ids behind the users' names so far, where the system knows one.
    user_ids: HashMap<Vec<u8>, Option<u32>>,
    /// The same for groups.
    group_ids: HashMap<Vec<u8>, Option<u32>>,
    /// Directories below the root that are known to be real, relative to it.
    directories: HashSet<PathBuf>,
    /// Whether it was said already that owners cannot be set.
    owners_refused: Cell<bool>,
    done: Extracted,
    /// For file contents on their way; kept, since most files are smaller than it.
    buffer: RefCell<Vec<u8>>,
}

/// Who gets what a member makes.
#[derive(Debug, Clone, Copy)]
struct Owner {
    uid: Option<u32>,
    gid: Option<u32>,
}

impl Extraction<'_> {
    fn member<R: Read>(&mut self, mut entry: Entry<'_, R>) -> Result<()> {
        let name = entry.path_bytes().into_owned();
        let path = MemberPath::from_bytes(&name).map_err(|source| self.refuse(source.into()))?;
        self.done.members += 1;
        let owner = self.owner(entry.header());
        let relative = match path {
            MemberPath::Root => {
                let mode = self.mode(&entry, 0o700)?;
                let root = &self.destination.root;
                set_mode(root, mode).map_err(TransferError::file("set the mode of", root))?;
                return self.own(owner, root);
            }
            MemberPath::Below(relative) => relative,
        };
        if self.destination.left_out.iter().any(|left_out| relative.starts_with(left_out)) {
            tracing::warn!(member = %relative.display(), url = self.url, "member left out: it would keep the server from starting");
            self.done.bytes += entry.size();
            return Ok(());
        }
        self.parents(&relative, owner)?;
        let target = match self.destination.held_back.iter().find(|(member, _)| *member == relative) {
            Some((_, elsewhere)) => elsewhere.clone(),
            None => self.destination.root.join(&relative),
        };
        match entry.header().entry_type() {
            EntryType::Directory => self.directory(&entry, owner, relative, &target),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => self.file(&mut entry, owner, &target),
            EntryType::Symlink => {
                let text = entry.link_name_bytes().unwrap_or_default().into_owned();
                self.symlink(owner, &relative, &target, &text)
            }
            EntryType::Link => {
                let text = entry.link_name_bytes().unwrap_or_default().into_owned();
                self.hard_link(owner, &target, &text)
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

    /// Makes the directories above a member, for its owner, and makes sure that none of them is a link to elsewhere.
    fn parents(&mut self, relative: &Path, owner: Option<Owner>) -> Result<()> {
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
                Err(missing) if missing.kind() == io::ErrorKind::NotFound => {
                    make_directory(&absolute)?;
                    self.own(owner, &absolute)?;
                }
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

    fn directory<R: Read>(
        &mut self,
        entry: &Entry<'_, R>,
        owner: Option<Owner>,
        relative: PathBuf,
        target: &Path,
    ) -> Result<()> {
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
        self.own(owner, target)?;
        self.remember(relative);
        Ok(())
    }

    fn file<R: Read>(&mut self, entry: &mut Entry<'_, R>, owner: Option<Owner>, target: &Path) -> Result<()> {
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
        self.own(owner, target)?;
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

    fn symlink(&mut self, owner: Option<Owner>, relative: &Path, target: &Path, text: &[u8]) -> Result<()> {
        // the link that the restore made itself points where the user wants it
        if self.destination.tablespace_links.contains(relative) {
            return Ok(());
        }
        // on the source's own host the copy would write its log into the running server's
        if self.destination.never_links.iter().any(|never| never == relative) {
            let link = OsStr::from_bytes(text).display();
            tracing::warn!(member = %relative.display(), "made an empty directory instead of a link to \"{link}\"");
            self.remember(relative.to_owned());
            make_directory(target)?;
            return self.own(owner, target);
        }
        let make = || std::os::unix::fs::symlink(OsStr::from_bytes(text), target);
        let made = match make() {
            Err(taken) if taken.kind() == io::ErrorKind::AlreadyExists => fs::remove_file(target).and_then(|()| make()),
            made => made,
        };
        made.map_err(TransferError::file("create symbolic link", target))?;
        self.own(owner, target)
    }

    fn hard_link(&mut self, owner: Option<Owner>, target: &Path, text: &[u8]) -> Result<()> {
        let source = MemberPath::from_bytes(text).map_err(|source| self.refuse(source.into()))?;
        let MemberPath::Below(source) = source else {
            return Err(self.refuse(UnsafeMember::Kind { member: target.to_owned(), kind: '1' }));
        };
        self.parents(&source, owner)?;
        let source = self.destination.root.join(source);
        let _ = fs::remove_file(target);
        fs::hard_link(&source, target).map_err(TransferError::file("create hard link", target))
    }

    /// Who owns a member, if owners are restored at all: by name, since ids differ from machine to machine, else by id
    /// (`spec/wal-e-format.md` §5.4).
    fn owner(&mut self, header: &Header) -> Option<Owner> {
        if !self.destination.restore_owner {
            return None;
        }
        let id = |id: io::Result<u64>| id.ok().and_then(|id| u32::try_from(id).ok());
        let uid = named(&mut self.user_ids, header.username_bytes(), account::user_id);
        let gid = named(&mut self.group_ids, header.groupname_bytes(), account::group_id);
        Some(Owner { uid: uid.or_else(|| id(header.uid())), gid: gid.or_else(|| id(header.gid())) })
    }

    fn own(&self, owner: Option<Owner>, target: &Path) -> Result<()> {
        let Some(Owner { uid, gid }) = owner else { return Ok(()) };
        match (self.chown)(target, uid, gid) {
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

/// The id behind a name, asked for once.
fn named(known: &mut HashMap<Vec<u8>, Option<u32>>, name: Option<&[u8]>, ask: fn(&str) -> Option<u32>) -> Option<u32> {
    let name = name.filter(|name| !name.is_empty())?;
    if let Some(id) = known.get(name) {
        return *id;
    }
    let id = std::str::from_utf8(name).ok().and_then(ask);
    known.insert(name.to_owned(), id);
    id
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A member that names its owner by id and by name.
    fn member(out: &mut Vec<u8>, path: &str, kind: EntryType, owner: (u64, &str)) {
        let mut header = Header::new_gnu();
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o700);
        header.set_uid(owner.0);
        header.set_gid(owner.0 + 1);
        header.set_username(owner.1).unwrap();
        header.set_groupname(owner.1).unwrap();
        header.set_mtime(0);
        header.set_size(0);
        if kind == EntryType::Symlink {
            header.set_link_name("/elsewhere").unwrap();
        }
        header.set_cksum();
        out.extend(header.as_bytes());
    }

    /// Who got what, by the path relative to the root.
    fn owners(restore_owner: bool, members: &[(&str, EntryType, (u64, &str))]) -> Vec<(String, u32, u32)> {
        let work = tempfile::tempdir().unwrap();
        let (root, space) = (work.path().join("d"), work.path().join("space"));
        fs::create_dir_all(root.join("pg_tblspc")).unwrap();
        fs::create_dir(&space).unwrap();
        symlink(&space, root.join("pg_tblspc/1")).unwrap();
        let destination = Destination {
            root: root.clone(),
            tablespace_links: ["pg_tblspc/1".into()].into(),
            held_back: Vec::new(),
            never_links: vec!["pg_wal".into()],
            left_out: Vec::new(),
            restore_owner,
        };
        let mut tar = Vec::new();
        members.iter().for_each(|(path, kind, owner)| member(&mut tar, path, *kind, *owner));
        tar.resize(tar.len() + 1024, 0);
        let set = RefCell::new(Vec::new());
        let chown = |path: &Path, uid: Option<u32>, gid: Option<u32>| {
            let path = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
            set.borrow_mut().push((path, uid.unwrap(), gid.unwrap()));
            Ok(())
        };
        extract_owned(&tar[..], "url", &destination, &Progress::default(), &chown).unwrap();
        set.into_inner()
    }

    #[test]
    fn directories_that_no_member_names_get_the_owner_of_the_member_they_were_made_for() {
        let file = EntryType::Regular;
        let members = [
            ("pg_tblspc/1/PG_15/5/a", file, (70, "")),
            ("pg_tblspc/1/PG_15/5/b", file, (80, "")),
            ("pg_wal", EntryType::Symlink, (70, "")),
        ];
        let expected = ["pg_tblspc/1/PG_15", "pg_tblspc/1/PG_15/5", "pg_tblspc/1/PG_15/5/a"].map(|path| (path, 70));
        let expected = expected.into_iter().chain([("pg_tblspc/1/PG_15/5/b", 80), ("pg_wal", 70)]);
        let expected: Vec<_> = expected.map(|(path, id)| (path.to_owned(), id, id + 1)).collect();
        assert_eq!(owners(true, &members), expected);
        assert_eq!(owners(false, &members), []);
    }

    #[test]
    fn an_owner_goes_by_name_and_only_without_one_by_id() {
        let kinds = [EntryType::Directory, EntryType::Regular, EntryType::Symlink];
        for (name, (uid, gid)) in [("root", (0, 0)), ("no such account", (70, 71)), ("", (70, 71))] {
            for (path, kind) in ["a", "b", "c"].into_iter().zip(kinds) {
                assert_eq!(owners(true, &[(path, kind, (70, name))]), [(path.to_owned(), uid, gid)]);
            }
        }
    }
}
