//! A tablespace outside the data directory: a symbolic link in `pg_tblspc`.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::{Kind, PgError, Result};

/// The directory of the links below a data directory.
pub(super) const LINKS: &str = "pg_tblspc";

/// A tablespace that lives outside the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tablespace {
    /// The link's name, which is the tablespace's OID in decimal.
    pub oid_name: String,
    /// Where the link points, verbatim.
    pub location: PathBuf,
}

impl Tablespace {
    /// Lists the tablespaces of the data directory at `root` by name: the entries of `pg_tblspc` that are links to
    /// directories. Real directories there (in-place tablespaces) are part of the data directory itself.
    ///
    /// # Errors
    ///
    /// [`Kind::Refused`] when a link leads nowhere: a tablespace that is not mounted must not be missing from a backup
    /// unnoticed. [`Kind::Io`] when something cannot be read.
    pub fn list(root: &Path) -> Result<Vec<Self>> {
        let links = root.join(LINKS);
        let entries = match fs::read_dir(&links) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(PgError::io("read directory", &links, e)),
        };
        let mut tablespaces = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| PgError::io("read directory", &links, e))?;
            tablespaces.extend(Self::from_entry(&entry.path(), &entry.file_name())?);
        }
        tablespaces.sort_by(|a, b| a.oid_name.cmp(&b.oid_name));
        Ok(tablespaces)
    }

    /// The tablespace behind `path`; none when it is no link to a directory or has just been dropped.
    fn from_entry(path: &Path, name: &OsStr) -> Result<Option<Self>> {
        let location = match fs::read_link(path) {
            Ok(location) => location,
            // EINVAL: no link at all.
            Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::NotFound) => return Ok(None),
            Err(e) => return Err(PgError::io("read symbolic link", path, e)),
        };
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Ok(None),
            Err(e) if e.kind() == io::ErrorKind::NotFound && !is_link(path) => return Ok(None),
            Err(e) => {
                let message = format!("the tablespace at \"{}\" cannot be reached", location.display());
                return Err(PgError::new(Kind::Refused, message)
                    .with_detail(format!("\"{}\" points there.", path.display()))
                    .with_hint("Mount it, or drop the tablespace, and start the backup again.")
                    .with_source(e));
            }
        }
        let oid_name = name.to_str().map(str::to_owned).ok_or_else(|| {
            PgError::new(Kind::Refused, format!("\"{}\" has a name that is no text", path.display()))
                .with_detail(format!("Its bytes are {:02X?}.", name.as_bytes()))
        })?;
        Ok(Some(Self { oid_name, location }))
    }
}

fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_to_directories_are_tablespaces_and_nothing_else_is() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Tablespace::list(root.path()).unwrap(), []);
        let links = root.path().join(LINKS);
        fs::create_dir_all(links.join("16390")).unwrap();
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join("file"), "").unwrap();
        symlink(place.path(), links.join("16400")).unwrap();
        symlink(place.path(), links.join("16385")).unwrap();
        symlink(place.path().join("file"), links.join("16386")).unwrap();
        let location = place.path().to_owned();
        let expected = ["16385", "16400"].map(|oid| Tablespace { oid_name: oid.into(), location: location.clone() });
        assert_eq!(Tablespace::list(root.path()).unwrap(), expected);
    }

    #[test]
    fn a_link_that_leads_nowhere_is_refused() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join(LINKS)).unwrap();
        symlink("/nonexistent/mount", root.path().join("pg_tblspc/16384")).unwrap();
        let error = Tablespace::list(root.path()).unwrap_err();
        assert_eq!(error.kind(), Kind::Refused);
        assert!(error.to_string().contains("/nonexistent/mount"));
    }
}
