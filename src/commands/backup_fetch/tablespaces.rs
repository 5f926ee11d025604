//! The links of `pg_tblspc`, and the server's map of them.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crc32c::crc32c;

use super::{TablespaceChoice, manifest};
use crate::commands::{CommandError, Result};
use crate::formats::backup_manifest::ManifestEditor;
use crate::formats::restore_spec::{RestoreSpec, SpecTablespace};
use crate::fs::staged::StagedFile;
use crate::pg::data_directory;
use crate::pg::tablespace_map::TablespaceMap;

const LINKS: &str = "pg_tblspc";
const MAP: &str = "tablespace_map";

/// Makes or checks the tablespaces' links; gives those that members may be written through, relative to `root`.
pub(super) fn prepare(
    root: &Path,
    choice: &TablespaceChoice,
    spec: Option<&RestoreSpec>,
    resumed: bool,
) -> Result<BTreeSet<PathBuf>> {
    let tablespaces = spec.map_or(&[][..], |spec| &spec.tablespaces);
    match choice {
        TablespaceChoice::AsOnSource | TablespaceChoice::Spec(_) => {
            if !resumed {
                // all of them before the first is made, so that a refusal leaves nothing behind
                tablespaces.iter().try_for_each(refuse_unless_empty)?;
            }
            tablespaces.iter().try_for_each(|space| make(root, space))?;
        }
        TablespaceChoice::ExistingLinks => {
            let missing: Vec<_> =
                tablespaces.iter().filter(|space| !is_link_to_directory(&root.join(&space.link))).collect();
            if !missing.is_empty() {
                return Err(missing_links(missing.into_iter().map(|space| space.name.clone())));
            }
        }
        TablespaceChoice::Blind => {}
    }
    existing_links(root)
}

/// What to say when tablespaces have no link to go through.
pub(super) fn missing_links(names: impl Iterator<Item = String>) -> CommandError {
    let names = names.collect::<Vec<_>>().join(", ");
    CommandError::refused("the backup has tablespaces that have no link in pg_tblspc")
        .with_detail(format!("No symbolic link to a directory is there for: {names}."))
        .with_hint("Make the directories and links first, or use --restore-spec SOURCE to make them as on the source, --restore-spec FILE to choose other places, or --blind-restore to restore them into the data directory.")
}

fn refuse_unless_empty(space: &SpecTablespace) -> Result<()> {
    let location = Path::new(&space.location);
    if data_directory::is_empty(location)? {
        return Ok(());
    }
    let message = format!("the directory \"{}\" of tablespace {} is not empty", location.display(), space.name);
    Err(CommandError::refused(message)
        .with_detail("A running server beside this restore may be using it.")
        .with_hint("Choose another place with --restore-spec FILE, or empty it if it is not needed any more."))
}

fn make(root: &Path, space: &SpecTablespace) -> Result<()> {
    let location = PathBuf::from(&space.location);
    let directory = |path: &Path| {
        let made = DirBuilder::new().mode(0o700).recursive(true).create(path);
        made.map_err(CommandError::file("create directory", path))
    };
    directory(&root.join(LINKS))?;
    directory(&location)?;
    let link = root.join(&space.link);
    match std::os::unix::fs::symlink(&location, &link) {
        Err(exists)
            if exists.kind() == io::ErrorKind::AlreadyExists
                && fs::read_link(&link).is_ok_and(|text| text == location) =>
        {
            Ok(())
        }
        made => made.map_err(CommandError::file("create symbolic link", &link)),
    }
}

fn existing_links(root: &Path) -> Result<BTreeSet<PathBuf>> {
    let directory = root.join(LINKS);
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(failed) => return Err(CommandError::file("read directory", &directory)(failed)),
    };
    let mut links = BTreeSet::new();
    for entry in entries {
        let entry = entry.map_err(CommandError::file("read directory", &directory))?;
        if is_link_to_directory(&entry.path()) {
            links.insert(Path::new(LINKS).join(entry.file_name()));
        }
    }
    Ok(links)
}

/// The tablespaces that are directories of `pg_tblspc` itself, by OID. A server takes them only with
/// `allow_in_place_tablespaces`.
pub(super) fn in_place(root: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(root.join(LINKS)) else { return Vec::new() };
    let directories = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let names = directories.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<_> = names.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).collect();
    names.sort_unstable();
    names
}

fn is_link_to_directory(path: &Path) -> bool {
    path.is_symlink() && path.is_dir()
}

/// Points `tablespace_map` to the links that are really there, and drops real directories from it: the server would make
/// the *original* links again when it first starts, into the live source's tablespaces if that is on the same host. The
/// backup's manifest follows, so that `pg_verifybackup` finds what is there.
pub(super) fn rewrite_map(root: &Path) -> Result<()> {
    let path = root.join(MAP);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(failed) => return Err(CommandError::file("read", &path)(failed)),
    };
    let relocated =
        TablespaceMap::parse(&bytes)?.relocated(|space| fs::read_link(root.join(LINKS).join(&space.oid_name)).ok());
    let rewritten = relocated.to_bytes();
    if rewritten == bytes {
        return Ok(());
    }
    // the manifest first: an interruption in between is made good by the next run, which finds the map as it was
    if relocated.tablespaces.is_empty() {
        manifest::edit(root, ManifestEditor::removing(MAP.as_bytes()))?;
        return fs::remove_file(&path).map_err(CommandError::file("remove", &path));
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let size = rewritten.len() as u64;
    manifest::edit(root, ManifestEditor::replacing(MAP.as_bytes(), size, now, crc32c(&rewritten)))?;
    let write = || {
        let staged = StagedFile::create(&path)?;
        staged.file().write_all(&rewritten)?;
        staged.publish()
    };
    write().map_err(CommandError::file("write", &path))
}
