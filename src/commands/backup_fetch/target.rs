//! The data directory that a restore makes.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use crate::commands::{CommandError, Result};
use crate::pg::control_file::ControlFile;
use crate::pg::data_directory::{self, Postmaster};
use crate::transfer::extract::Destination;

/// Holds the journal and what is published last; there only while a restore is unfinished.
const JOURNAL_DIRECTORY: &str = ".wal-eve-restore";

/// The control file while it is held back.
const HELD_BACK: &str = "pg_control";

/// Where the journal of a restore into `root` is.
pub(super) fn journal_directory(root: &Path) -> PathBuf {
    root.join(JOURNAL_DIRECTORY)
}

/// A directory that may be restored into.
#[derive(Debug)]
pub(super) struct Target {
    root: PathBuf,
    links: BTreeSet<PathBuf>,
    is_resumed: bool,
}

impl Target {
    /// Refuses a directory that a server uses or that holds something else than an interrupted restore. Changes nothing.
    pub(super) fn open(root: PathBuf) -> Result<Self> {
        if let Postmaster::Present { pid, .. } = data_directory::postmaster_in(&root)? {
            let pid = pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string());
            return Err(CommandError::refused("attempting to overwrite a live data directory")
                .with_detail(format!("\"{}\" has a postmaster.pid, of process {pid}.", root.display()))
                .with_hint("Stop the server and restore into an empty directory. If no server runs there, remove postmaster.pid."));
        }
        let is_resumed = journal_directory(&root).is_dir();
        if !is_resumed {
            refuse_unless_free(&root)?;
        } else if data_directory::looks_finished(&root)? {
            // killed after the last step: a server may have run here since
            return Err(CommandError::refused(format!("\"{}\" holds a data directory already", root.display()))
                .with_detail(format!(
                    "An earlier restore into it is complete; it only could not remove \"{JOURNAL_DIRECTORY}\"."
                ))
                .with_hint(
                    "Remove that directory and go on with what was restored, or restore into an empty directory.",
                ));
        }
        Ok(Self { root, links: BTreeSet::new(), is_resumed })
    }

    /// Makes the directory if it is not there, and closes it to all but its owner: not every backup says its mode, and a
    /// server does not start in one that others can read.
    pub(super) fn create(&self) -> Result<()> {
        let root = &self.root;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(root)
            .map_err(CommandError::file("create directory", root))?;
        // the mode of one that is taken up is the backup's
        let is_open = |root: &Path| Ok(fs::metadata(root)?.mode() & 0o077 != 0);
        if !self.is_resumed && is_open(root).map_err(CommandError::file("examine", root))? {
            let closed = fs::set_permissions(root, fs::Permissions::from_mode(0o700));
            closed.map_err(CommandError::file("set the mode of", root))?;
        }
        Ok(())
    }

    pub(super) fn with_links(self, links: BTreeSet<PathBuf>) -> Self {
        Self { links, ..self }
    }

    /// Whether an earlier run had begun this restore.
    pub(super) fn is_resumed(&self) -> bool {
        self.is_resumed
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn journal_directory(&self) -> PathBuf {
        journal_directory(&self.root)
    }

    pub(super) fn destination(&self) -> Destination {
        Destination {
            root: self.root.clone(),
            tablespace_links: self.links.clone(),
            held_back: vec![("global/pg_control".into(), self.journal_directory().join(HELD_BACK))],
            never_links: ["pg_wal", "pg_xlog", "pg_log", "pg_replslot"].map(PathBuf::from).into(),
            // backups of WAL-E before 0.7 may have it, and a server would believe that another one runs
            left_out: vec!["postmaster.pid".into(), JOURNAL_DIRECTORY.into()],
            restore_owner: rustix::process::geteuid().is_root(),
        }
    }

    /// The control file that the backup held, if it is a good one.
    pub(super) fn held_back_control_file(&self) -> Result<Option<ControlFile>> {
        let path = self.journal_directory().join(HELD_BACK);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => {
                return Err(CommandError::refused("the backup holds no global/pg_control")
                    .with_hint("No server can start on it. Choose another backup with backup-list."));
            }
            Err(failed) => return Err(CommandError::file("read", &path)(failed)),
        };
        match ControlFile::parse(&bytes) {
            Ok(control) => Ok(Some(control)),
            Err(unknown) if unknown.kind() == crate::pg::Kind::UnknownVersion => {
                tracing::warn!(error = %unknown, "the control file is of a version that cannot be checked");
                Ok(None)
            }
            Err(damaged) => Err(CommandError::refused("the backup's global/pg_control is damaged")
                .with_detail(format!("The reason: {damaged}. {}", damaged.detail().unwrap_or_default()).trim_end())
                .with_hint(
                    "It was torn when it was read, or the archive is damaged. Choose another backup with backup-list.",
                )),
        }
    }

    /// Root gives what it made itself, and no member of the backup names, to the owner of the backup's files.
    pub(super) fn give_to_owner(&self) -> Result<()> {
        if !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        let (uid, gid) = self.owner_of_files()?;
        for path in self.without_a_member() {
            if let Err(failed) = chown(&path, Some(uid), Some(gid)) {
                tracing::warn!(path = %path.display(), error = %failed, "could not set the owner");
            }
        }
        Ok(())
    }

    /// The data directory's own owner may be root, who has made it: not every backup has a member for it.
    fn owner_of_files(&self) -> Result<(u32, u32)> {
        let file = fs::metadata(self.root.join("PG_VERSION")).or_else(|_| fs::metadata(&self.root));
        let file = file.map_err(CommandError::file("examine", &self.root))?;
        Ok((file.uid(), file.gid()))
    }

    fn without_a_member(&self) -> Vec<PathBuf> {
        let made = ["", "tablespace_map", "backup_manifest", "pg_tblspc"].map(PathBuf::from);
        let made = made.iter().chain(&self.links).map(|path| self.root.join(path));
        made.filter(|path| path.exists()).collect()
    }

    /// The restore's last step: from here on a server can start.
    pub(super) fn publish_control_file(&self) -> Result<()> {
        let (held_back, published) = (self.journal_directory().join(HELD_BACK), self.root.join("global/pg_control"));
        let publish = || {
            fs::create_dir_all(self.root.join("global"))?;
            fs::rename(&held_back, &published)?;
            File::open(&published)?.sync_all()?;
            File::open(self.root.join("global"))?.sync_all()?;
            File::open(&self.root)?.sync_all()
        };
        publish().map_err(CommandError::file("publish", &published))
    }
}

/// Only `pg_tblspc` with links in it may be there beforehand.
fn refuse_unless_free(root: &Path) -> Result<()> {
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(failed) => return Err(CommandError::file("read directory", root)(failed)),
    };
    if data_directory::looks_finished(root)? {
        return Err(CommandError::refused(format!("\"{}\" holds a data directory already", root.display()))
            .with_hint("Restore into an empty directory, or remove what is there if it is not needed any more."));
    }
    for entry in entries {
        let entry = entry.map_err(CommandError::file("read directory", root))?;
        if entry.file_name() != "pg_tblspc" {
            return Err(CommandError::refused(format!("directory \"{}\" is not empty", root.display()))
                .with_detail(format!("It holds \"{}\".", entry.file_name().display()))
                .with_hint("Restore into an empty directory. Only pg_tblspc with links for the tablespaces may be there before."));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_no_member_names_goes_to_the_owner_of_the_files_and_not_to_that_of_the_directory() {
        let root = tempfile::tempdir().unwrap();
        let target = Target::open(root.path().to_owned()).unwrap();
        let own = fs::metadata(root.path()).unwrap();
        assert_eq!(target.owner_of_files().unwrap(), (own.uid(), own.gid()));
        // a link, as only root can make a file of another user
        symlink("/etc/passwd", root.path().join("PG_VERSION")).unwrap();
        assert_eq!(target.owner_of_files().unwrap(), (0, 0));

        let target = target.with_links(["pg_tblspc/1".into()].into());
        fs::create_dir(root.path().join("pg_tblspc")).unwrap();
        symlink("/tmp", root.path().join("pg_tblspc/1")).unwrap();
        let expected = ["", "pg_tblspc", "pg_tblspc/1"].map(|path| root.path().join(path));
        assert_eq!(target.without_a_member(), expected);
    }
}
