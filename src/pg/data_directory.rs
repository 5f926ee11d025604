//! A cluster's data directory: where it is, which major it is of, and what state its control file and
//! `postmaster.pid` tell.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::control_file::{self, ControlFile, ControlHeader};
use super::version::Major;
use super::{Kind, PgError, Result};

/// Where the control file is.
const CONTROL_FILE: &str = "global/pg_control";

/// How often a control file that fails its checksum is read again: a running server rewrites it in place, so that a
/// reader can catch it half done.
const CONTROL_FILE_TRIES: u32 = 10;

/// The pause between two such tries.
const CONTROL_FILE_PAUSE: Duration = Duration::from_millis(10);

/// A directory with a `PG_VERSION` of a supported major.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataDirectory {
    path: PathBuf,
    major: Major,
}

/// What `postmaster.pid` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Postmaster {
    /// There is no `postmaster.pid`: nothing runs here.
    None,
    /// There is one, which counts as running even if it is stale: after a crash only PostgreSQL can tell, and the
    /// directory may be shared with another host or container.
    Present {
        /// The process named in its first line, if that is a number.
        pid: Option<u32>,
        /// When the server started, in seconds since 1970, by its third line.
        started: Option<i64>,
    },
}

impl Postmaster {
    /// Reads the text of a `postmaster.pid`.
    pub(super) fn from_pid_file(text: &str) -> Self {
        let line = |number: usize| text.lines().nth(number).map(str::trim);
        let pid = line(0).and_then(|line| line.parse().ok());
        let started = line(2).and_then(|line| line.parse().ok());
        Self::Present { pid, started }
    }
}

impl DataDirectory {
    /// Opens the data directory at `path`; a relative path counts from the current directory.
    ///
    /// # Errors
    ///
    /// [`Kind::NotADataDirectory`] when there is no `PG_VERSION`, [`Kind::UnknownVersion`] when it tells of a major
    /// before 9.6, [`Kind::Damaged`] when it tells of none, [`Kind::Io`] when it cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let path = std::path::absolute(path).map_err(|e| PgError::io("find", path, e))?;
        let version_file = path.join("PG_VERSION");
        let text = match fs::read_to_string(&version_file) {
            Ok(text) => text,
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                let message = format!("\"{}\" is not a PostgreSQL data directory", path.display());
                return Err(PgError::new(Kind::NotADataDirectory, message)
                    .with_detail("It holds no file PG_VERSION.")
                    .with_hint("Give the directory that the server calls data_directory."));
            }
            Err(e) => return Err(PgError::io("read", &version_file, e)),
        };
        let major: Major = text.parse().map_err(|e: PgError| {
            PgError::new(e.kind(), format!("could not read \"{}\"", version_file.display())).with_source(e)
        })?;
        if !major.is_supported() {
            let message = format!("\"{}\" is of PostgreSQL {major}, which is not supported", path.display());
            return Err(PgError::new(Kind::UnknownVersion, message)
                .with_detail(format!("The oldest supported major is {}.", Major::OLDEST)));
        }
        Ok(Self { path, major })
    }

    /// Finds the data directory that a path handed over as `%p` lies in, such as `pg_wal/RECOVERYXLOG`, when `cwd` is
    /// the command's working directory: the *lexical* parent of the path's directory. `pg_wal` may be a symbolic link,
    /// and then `pg_wal/..` is another place.
    ///
    /// # Errors
    ///
    /// As [`DataDirectory::open`].
    pub fn of_wal_path(cwd: &Path, wal_path: &Path) -> Result<Self> {
        let whole = cwd.join(wal_path);
        let directory = whole.parent().and_then(Path::parent).ok_or_else(|| {
            let message = format!("\"{}\" does not lie in a PostgreSQL data directory", wal_path.display());
            PgError::new(Kind::NotADataDirectory, message)
        })?;
        Self::open(directory)
    }

    /// The directory's absolute path, as it was given: links in it are kept.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The major version in `PG_VERSION`.
    pub fn major(&self) -> Major {
        self.major
    }

    /// The directory of the write-ahead log: `pg_wal`, or `pg_xlog` before 10.
    pub fn wal_directory(&self) -> PathBuf {
        self.path.join(self.major.wal_directory())
    }

    /// Reads the control file. This blocks, for a moment also between tries.
    ///
    /// # Errors
    ///
    /// As [`ControlFile::parse`], and [`Kind::Io`].
    pub fn control_file(&self) -> Result<ControlFile> {
        let bytes = self.control_file_bytes()?;
        ControlFile::parse(&bytes).map_err(|e| self.odd_control_file(e))
    }

    /// The cluster's identity, also when the control file is of a version that is not known.
    ///
    /// # Errors
    ///
    /// As [`ControlHeader::parse`], and [`Kind::Io`].
    pub fn system_identifier(&self) -> Result<u64> {
        let bytes = self.control_file_bytes()?;
        let header = ControlHeader::parse(&bytes).map_err(|e| self.odd_control_file(e))?;
        Ok(header.system_identifier)
    }

    /// The control file's bytes, in one piece if some try gives that; else the last try's, and reading them then tells
    /// what is wrong with them.
    fn control_file_bytes(&self) -> Result<Vec<u8>> {
        let path = self.path.join(CONTROL_FILE);
        first_whole(|| fs::read(&path)).map_err(|e| PgError::io("read", &path, e))
    }

    /// The control file's bytes for a backup: one consistent copy, also while a server rewrites the file, and also of a
    /// version that is not known.
    ///
    /// # Errors
    ///
    /// [`Kind::Damaged`] when no try gives a copy whose checksum is right; [`Kind::Io`].
    pub fn copy_control_file(&self) -> Result<Vec<u8>> {
        let bytes = self.control_file_bytes()?;
        if control_file::is_whole(&bytes) {
            return Ok(bytes);
        }
        Err(match ControlFile::parse(&bytes) {
            Err(e) if e.kind() == Kind::Damaged => self.odd_control_file(e),
            _ => self.odd_control_file(PgError::new(Kind::Damaged, "no checksum in it matches its content")),
        })
    }

    fn odd_control_file(&self, why: PgError) -> PgError {
        let message = format!("could not make sense of \"{}\"", self.path.join(CONTROL_FILE).display());
        PgError::new(why.kind(), message).with_source(why)
    }

    /// Whether a server runs here, as far as `postmaster.pid` tells.
    ///
    /// # Errors
    ///
    /// [`Kind::Io`] when that file is there but cannot be read.
    pub fn postmaster(&self) -> Result<Postmaster> {
        postmaster_in(&self.path)
    }
}

/// The first try's bytes that are a control file in one piece, or the last try's.
fn first_whole(mut read: impl FnMut() -> io::Result<Vec<u8>>) -> io::Result<Vec<u8>> {
    let mut bytes = read()?;
    for _ in 1..CONTROL_FILE_TRIES {
        if control_file::is_whole(&bytes) {
            break;
        }
        thread::sleep(CONTROL_FILE_PAUSE);
        bytes = read()?;
    }
    Ok(bytes)
}

/// Whether a server runs in `directory`, which need not be a data directory yet, as far as `postmaster.pid` tells.
///
/// # Errors
///
/// [`Kind::Io`] when that file is there but cannot be read.
pub fn postmaster_in(directory: &Path) -> Result<Postmaster> {
    let path = directory.join("postmaster.pid");
    match fs::read(&path) {
        Ok(text) => Ok(Postmaster::from_pid_file(&String::from_utf8_lossy(&text))),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(Postmaster::None),
        Err(e) => Err(PgError::io("read", &path, e)),
    }
}

/// Whether `directory` holds nothing, or does not exist. The `lost+found` of a fresh filesystem counts for nothing: a
/// tablespace may be a mount point itself.
///
/// # Errors
///
/// [`Kind::Io`] when it is no directory or cannot be read.
pub fn is_empty(directory: &Path) -> Result<bool> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(e) => return Err(PgError::io("read directory", directory, e)),
    };
    for entry in entries {
        let entry = entry.map_err(|e| PgError::io("read directory", directory, e))?;
        if entry.file_name() != "lost+found" {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether `directory` holds what a server needs to start: `PG_VERSION` and `global/pg_control`, which a restore
/// publishes last.
///
/// # Errors
///
/// [`Kind::Io`] when that cannot be told.
pub fn looks_finished(directory: &Path) -> Result<bool> {
    for name in ["PG_VERSION", "global/pg_control"] {
        let path = directory.join(name);
        if !path.try_exists().map_err(|e| PgError::io("examine", &path, e))? {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn cluster(version: &str) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("PG_VERSION"), version).unwrap();
        directory
    }

    #[test]
    fn the_wal_path_tells_the_directory_lexically() {
        let data = cluster("11\n");
        let elsewhere = tempfile::tempdir().unwrap();
        let wal = elsewhere.path().join("wal");
        fs::create_dir(&wal).unwrap();
        symlink(&wal, data.path().join("pg_wal")).unwrap();
        for path in [Path::new("pg_wal/RECOVERYXLOG"), &data.path().join("pg_wal/00000002.history")] {
            let found = DataDirectory::of_wal_path(data.path(), path).unwrap();
            assert_eq!(found.path(), data.path());
            assert_eq!(found.wal_directory(), data.path().join("pg_wal"));
        }
    }

    #[test]
    fn a_place_without_pg_version_is_no_data_directory() {
        let directory = tempfile::tempdir().unwrap();
        for path in ["pg_wal/RECOVERYXLOG", "RECOVERYXLOG", "/F", "/tmp/F", "pg_wal/missing/F"] {
            let error = DataDirectory::of_wal_path(directory.path(), Path::new(path)).unwrap_err();
            assert_eq!(error.kind(), Kind::NotADataDirectory, "{path}");
        }
    }

    #[test]
    fn only_supported_majors_open() {
        assert_eq!(DataDirectory::open(cluster("9.6\n").path()).unwrap().major().to_string(), "9.6");
        assert_eq!(DataDirectory::open(cluster("9.5\n").path()).unwrap_err().kind(), Kind::UnknownVersion);
        assert_eq!(DataDirectory::open(cluster("").path()).unwrap_err().kind(), Kind::Damaged);
    }

    #[test]
    fn a_pid_file_counts_as_running_whatever_it_holds() {
        let data = cluster("17\n");
        let directory = DataDirectory::open(data.path()).unwrap();
        assert_eq!(directory.postmaster().unwrap(), Postmaster::None);
        for (text, pid, started) in [
            ("4711\n/data\n1700000000\n5432\n", Some(4711), Some(1_700_000_000)),
            ("4711\n/data", Some(4711), None),
            ("", None, None),
            ("x\ny\nz\n", None, None),
        ] {
            fs::write(data.path().join("postmaster.pid"), text).unwrap();
            assert_eq!(directory.postmaster().unwrap(), Postmaster::Present { pid, started });
        }
    }

    #[test]
    fn an_unfinished_restore_does_not_look_finished() {
        let data = tempfile::tempdir().unwrap();
        assert!(is_empty(data.path()).unwrap());
        assert!(is_empty(&data.path().join("missing")).unwrap());
        let mounted = tempfile::tempdir().unwrap();
        fs::create_dir(mounted.path().join("lost+found")).unwrap();
        assert!(is_empty(mounted.path()).unwrap());
        assert!(!looks_finished(data.path()).unwrap());
        fs::write(data.path().join("PG_VERSION"), "17\n").unwrap();
        assert!(!is_empty(data.path()).unwrap());
        assert!(is_empty(&data.path().join("PG_VERSION")).is_err());
        assert!(!looks_finished(data.path()).unwrap());
        fs::create_dir(data.path().join("global")).unwrap();
        fs::write(data.path().join("global/pg_control"), "").unwrap();
        assert!(looks_finished(data.path()).unwrap());
    }

    #[test]
    fn a_torn_control_file_is_read_again_until_it_is_whole() {
        let mut whole = vec![7; control_file::CONTROL_FILE_SIZE];
        let crc = crc32c::crc32c(&whole[..128]);
        whole[128..132].copy_from_slice(&crc.to_le_bytes());
        let mut torn = whole.clone();
        torn[64..128].fill(8);
        let mut tries = [torn.clone(), torn.clone(), whole.clone(), torn.clone()].into_iter();
        assert_eq!(first_whole(|| Ok(tries.next().unwrap())).unwrap(), whole);
        assert_eq!(tries.len(), 1);

        let mut tries = 0;
        let always_torn = first_whole(|| {
            tries += 1;
            Ok(torn.clone())
        });
        assert_eq!((always_torn.unwrap(), tries), (torn, CONTROL_FILE_TRIES));
    }

    #[test]
    fn a_damaged_control_file_is_named_with_its_path() {
        let data = cluster("17\n");
        let directory = DataDirectory::open(data.path()).unwrap();
        assert_eq!(directory.control_file().unwrap_err().kind(), Kind::Io);
        fs::create_dir(data.path().join("global")).unwrap();
        fs::write(data.path().join("global/pg_control"), [1; 100]).unwrap();
        let error = directory.control_file().unwrap_err();
        assert_eq!(error.kind(), Kind::Damaged);
        assert!(error.to_string().contains("global/pg_control"), "{error}");
        assert_eq!(directory.copy_control_file().unwrap_err().kind(), Kind::Damaged);
        assert_eq!(directory.system_identifier().unwrap_err().kind(), Kind::Damaged);
    }
}
