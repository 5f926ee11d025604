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

/// Refuses links and places that a restore must not write through. Changes nothing.
///
/// What lies behind the links has to be empty, unless an interrupted restore is taken up, which has filled it: a server
/// beside this one keeps its files there.
pub(super) fn check(root: &Path, choice: &TablespaceChoice, spec: Option<&RestoreSpec>, resumed: bool) -> Result<()> {
    let tablespaces = of(spec);
    if *choice == TablespaceChoice::ExistingLinks {
        let missing: Vec<_> =
            tablespaces.iter().filter(|space| !is_link_to_directory(&root.join(&space.link))).collect();
        if !missing.is_empty() {
            return Err(missing_links(missing.into_iter().map(|space| space.name.clone())));
        }
    }
    if resumed {
        return Ok(());
    }
    for path in entries(root)? {
        let may_be_here = is_link_to_directory(&path)
            || (*choice == TablespaceChoice::Blind && path.is_dir() && data_directory::is_empty(&path)?);
        if !may_be_here {
            return Err(CommandError::refused(format!("\"{}\" is no link to a directory", path.display()))
                .with_detail("Before a restore pg_tblspc may hold only the links of the tablespaces, or empty directories with --blind-restore.")
                .with_hint("Remove what is not needed any more, and make the links that are."));
        }
        refuse_unless_empty(&path, &format!("\"{}\"", path.display()))?;
    }
    if makes_links(choice) {
        let place = |space: &SpecTablespace| {
            refuse_unless_empty(Path::new(&space.location), &format!("tablespace {}", space.name))
        };
        tablespaces.iter().try_for_each(place)?;
    }
    Ok(())
}

/// Makes the links that `choice` asks for.
pub(super) fn make_links(root: &Path, choice: &TablespaceChoice, spec: Option<&RestoreSpec>) -> Result<()> {
    if makes_links(choice) { of(spec).iter().try_for_each(|space| make(root, space)) } else { Ok(()) }
}

fn of(spec: Option<&RestoreSpec>) -> &[SpecTablespace] {
    spec.map_or(&[], |spec| &spec.tablespaces)
}

fn makes_links(choice: &TablespaceChoice) -> bool {
    matches!(choice, TablespaceChoice::AsOnSource | TablespaceChoice::Spec(_))
}

/// What to say when tablespaces have no link to go through.
fn missing_links(names: impl Iterator<Item = String>) -> CommandError {
    let names = names.collect::<Vec<_>>().join(", ");
    CommandError::refused("the backup has tablespaces that have no link in pg_tblspc")
        .with_detail(format!("No symbolic link to a directory is there for: {names}."))
        .with_hint("Make the directories and links first, or use --restore-spec SOURCE to make them as on the source, --restore-spec FILE to choose other places, or --blind-restore to restore them into the data directory.")
}

fn refuse_unless_empty(place: &Path, whose: &str) -> Result<()> {
    if data_directory::is_empty(place)? {
        return Ok(());
    }
    let place = fs::canonicalize(place).unwrap_or_else(|_| place.to_owned());
    Err(CommandError::refused(format!("the directory \"{}\" of {whose} is not empty", place.display()))
        .with_detail("A running server beside this restore may be using it.")
        .with_hint(
            "Choose another place, by the link or by --restore-spec FILE, or empty it if it is not needed any more.",
        ))
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

/// The links that members may be written through, relative to `root`.
pub(super) fn existing_links(root: &Path) -> Result<BTreeSet<PathBuf>> {
    let links = entries(root)?.into_iter().filter(|path| is_link_to_directory(path));
    Ok(links.filter_map(|path| Some(Path::new(LINKS).join(path.file_name()?))).collect())
}

/// What `pg_tblspc` holds.
fn entries(root: &Path) -> Result<Vec<PathBuf>> {
    let directory = root.join(LINKS);
    let unreadable = |failed| CommandError::file("read directory", &directory)(failed);
    match fs::read_dir(&directory) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path()).map_err(unreadable)).collect(),
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(failed) => Err(unreadable(failed)),
    }
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use serde_json::json;
    use tempfile::TempDir;

    use super::*;

    const NAME: &str = "16384";

    /// A target with `pg_tblspc`, and a tablespace's place beside it.
    fn places() -> (TempDir, PathBuf, PathBuf) {
        let work = tempfile::tempdir().unwrap();
        let (root, space) = (work.path().join("d"), work.path().join("space"));
        fs::create_dir_all(root.join(LINKS)).unwrap();
        fs::create_dir(&space).unwrap();
        (work, root, space)
    }

    fn spec(space: &Path) -> RestoreSpec {
        let location = format!("{}/", space.display());
        let tablespaces = vec![SpecTablespace { name: NAME.into(), location, link: format!("{LINKS}/{NAME}") }];
        RestoreSpec { base_prefix: None, tablespaces }
    }

    #[test]
    fn a_place_in_use_is_refused_by_whatever_way_the_restore_would_get_there() {
        let (_work, root, space) = places();
        symlink(&space, root.join(LINKS).join(NAME)).unwrap();
        let choices = [
            TablespaceChoice::ExistingLinks,
            TablespaceChoice::Blind,
            TablespaceChoice::AsOnSource,
            TablespaceChoice::Spec(json!({})),
        ];
        for (spec, choice) in choices.iter().flat_map(|choice| [(Some(spec(&space)), choice), (None, choice)]) {
            check(&root, choice, spec.as_ref(), false).unwrap();
            fs::create_dir(space.join("PG_15_202209061")).unwrap();
            let refused = check(&root, choice, spec.as_ref(), false).unwrap_err().to_string();
            assert!(refused.contains(space.to_str().unwrap()) && refused.contains("is not empty"), "{refused}");
            // the restore itself has filled it
            check(&root, choice, spec.as_ref(), true).unwrap();
            fs::remove_dir(space.join("PG_15_202209061")).unwrap();
        }
    }

    #[test]
    fn before_a_restore_pg_tblspc_holds_only_links_to_directories() {
        type Make = fn(&Path);
        let others: [(Make, bool); 5] = [
            (|at| fs::write(at, "x").unwrap(), false),
            (|at| symlink("nowhere", at).unwrap(), false),
            (|at| symlink("/etc/passwd", at).unwrap(), false),
            (|at| fs::create_dir(at).unwrap(), true),
            (|at| fs::create_dir_all(at.join("PG_15_202209061")).unwrap(), false),
        ];
        for (make, is_good_for_blind) in others {
            let (_work, root, _space) = places();
            make(&root.join(LINKS).join(NAME));
            assert!(check(&root, &TablespaceChoice::ExistingLinks, None, false).is_err());
            assert_eq!(check(&root, &TablespaceChoice::Blind, None, false).is_ok(), is_good_for_blind);
        }
    }
}
