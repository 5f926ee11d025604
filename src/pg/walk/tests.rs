use std::collections::BTreeSet;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

use super::*;

struct Tree(tempfile::TempDir);

impl Tree {
    /// A data directory with these files, each with its own name as content; a trailing slash makes a directory.
    fn new(names: &[&str]) -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        tree.add("PG_VERSION");
        fs::write(tree.path().join("PG_VERSION"), "17\n").unwrap();
        for name in names {
            tree.add(name);
        }
        tree
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn add(&self, name: &str) {
        add(self.path(), name);
    }

    fn walk(&self, options: WalkOptions) -> Walk {
        Walk::new(&DataDirectory::open(self.path()).unwrap(), options).unwrap()
    }

    fn names(&self, options: WalkOptions) -> Vec<String> {
        self.walk(options).filter_map(|found| name_of(&found.unwrap())).collect()
    }

    fn default_names(&self) -> Vec<String> {
        self.names(WalkOptions::default())
    }
}

fn add(root: &Path, name: &str) {
    let path = root.join(name);
    if name.ends_with('/') {
        fs::create_dir_all(path).unwrap();
    } else {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, name).unwrap();
    }
}

fn name_of(found: &Found) -> Option<String> {
    match found {
        Found::Entry(entry) => Some(entry.name.to_str().unwrap().to_owned()),
        Found::Trap(_) => None,
    }
}

#[test]
fn selection_follows_vector_19() {
    // spec/wal-e-format.md §12
    let tree = Tree::new(&[
        "base/pgsql_tmp/t1",
        "pg_log/a",
        "lost+found/q",
        "pg_replslot/x/state",
        "base/1/postgresql.conf",
        "postgresql.conf",
        "directory/",
    ]);
    symlink(tree.path().join("directory"), tree.path().join("linkdir")).unwrap();
    symlink("nowhere", tree.path().join("dangling")).unwrap();
    let expected = [
        "/",
        "PG_VERSION",
        "dangling",
        // WAL-E loses this link; here it is kept as one.
        "linkdir",
        "base/",
        "base/1/",
        "base/1/postgresql.conf",
        "base/pgsql_tmp/",
        "directory/",
        "pg_log/",
        "pg_replslot/",
    ];
    assert_eq!(tree.default_names(), expected);
}

#[test]
fn tablespaces_follow_vector_20() {
    // spec/wal-e-format.md §12
    let tree = Tree::new(&["pg_tblspc/16385/PG_17_x/1/2"]);
    let place = tempfile::tempdir().unwrap();
    for name in ["PG_9.6_x/1/2", "PG_9.6_x/pgsql_tmp/z", "PG_9.6_x/9/", "lost+found/"] {
        add(place.path(), name);
    }
    symlink(place.path(), tree.path().join("pg_tblspc/16384")).unwrap();
    let expected = [
        "/",
        "PG_VERSION",
        "pg_tblspc/",
        // A real directory is an in-place tablespace, and the rules of the data directory hold.
        "pg_tblspc/16385/",
        "pg_tblspc/16385/PG_17_x/",
        "pg_tblspc/16385/PG_17_x/1/",
        "pg_tblspc/16385/PG_17_x/1/2",
        "pg_tblspc/16384/PG_9.6_x/",
        "pg_tblspc/16384/PG_9.6_x/1/2",
        "pg_tblspc/16384/PG_9.6_x/9/",
        "pg_tblspc/16384/PG_9.6_x/pgsql_tmp/",
    ];
    assert_eq!(tree.default_names(), expected);
    let tablespace = Tablespace { oid_name: "16384".into(), location: place.path().to_owned() };
    assert_eq!(tree.walk(WalkOptions::default()).tablespaces(), [tablespace]);
}

#[test]
fn files_of_the_root_are_chosen_by_name_and_deeper_ones_are_kept() {
    let chosen = [
        "backup_label",
        "backup_manifest",
        "pg_hba.conf",
        "pg_ident.conf",
        "postgresql.conf",
        "postmaster.opts",
        "postmaster.pid",
        "promote",
        "recovery.conf",
        "recovery.done",
        "tablespace_map",
    ];
    let kept = ["backup_label.old", "core.1", "current_logfiles", "postgresql.auto.conf", "standby.signal"];
    let tree = Tree::new(&[chosen.as_slice(), &kept].concat());
    let deeper: BTreeSet<String> = chosen.iter().map(|name| format!("base/{name}")).collect();
    deeper.iter().for_each(|name| tree.add(name));
    let in_root = |options| -> BTreeSet<String> {
        let names: BTreeSet<String> = tree.names(options).into_iter().collect();
        assert!(deeper.is_subset(&names));
        names.into_iter().filter(|name| !name.contains('/') && name != "PG_VERSION").collect()
    };
    let set = |names: &[&str]| -> BTreeSet<String> { kept.iter().chain(names).map(|name| name.to_string()).collect() };
    assert_eq!(in_root(WalkOptions::default()), set(&[]));
    let with_config = WalkOptions { include_config: true, ..Default::default() };
    assert_eq!(in_root(with_config), set(&["pg_hba.conf", "pg_ident.conf", "postgresql.conf"]));
    let offline = WalkOptions { offline: true, ..Default::default() };
    assert_eq!(in_root(offline), set(&["backup_label", "tablespace_map"]));
}

#[test]
fn pg_control_is_left_to_the_caller() {
    let tree = Tree::new(&["global/pg_control", "global/1262", "base/1/pg_control"]);
    let names = tree.default_names();
    assert_eq!(names, ["/", "PG_VERSION", "base/", "base/1/", "base/1/pg_control", "global/", "global/1262"]);
}

#[test]
fn emptied_directories_may_be_links_and_then_become_directories() {
    let tree = Tree::new(&["base/pg_wal/kept", "pg_stat_tmp/x", "base/.wal-e/x", "pg_log"]);
    let place = tempfile::tempdir().unwrap();
    symlink(place.path(), tree.path().join("pg_wal")).unwrap();
    let found: Vec<Found> = tree.walk(WalkOptions::default()).map(|found| found.unwrap()).collect();
    assert!(found.iter().all(|found| matches!(found, Found::Entry(_))), "pg_wal as a link is no trap");
    let names: Vec<String> = found.iter().filter_map(name_of).collect();
    let expected = [
        "/",
        "PG_VERSION",
        "pg_log",
        "pg_wal/",
        "base/",
        "base/.wal-e/",
        "base/pg_wal/",
        "base/pg_wal/kept",
        "pg_stat_tmp/",
    ];
    assert_eq!(names, expected);
}

#[test]
fn traps_are_told_of_and_a_link_to_a_directory_is_kept() {
    let tree = Tree::new(&["base/1/file"]);
    let _listener = UnixListener::bind(tree.path().join("base/.s.PGSQL.5432")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, tree.path().join("base/fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .unwrap();
    symlink("1", tree.path().join("base/2")).unwrap();
    let base = tree.path().join("base");
    let found: Vec<Found> = tree.walk(WalkOptions::default()).map(|found| found.unwrap()).collect();
    let traps: Vec<&Found> = found.iter().filter(|found| matches!(found, Found::Trap(_))).collect();
    let expected = [
        Found::Trap(Trap::Special { path: base.join(".s.PGSQL.5432"), what: "socket" }),
        Found::Trap(Trap::DirectoryLink { path: base.join("2"), target: "1".into() }),
        Found::Trap(Trap::Special { path: base.join("fifo"), what: "FIFO" }),
    ];
    assert_eq!(traps, expected.iter().collect::<Vec<_>>());
    let link = found.iter().find(|found| name_of(found).as_deref() == Some("base/2")).unwrap();
    assert!(
        matches!(link, Found::Entry(Entry { kind: EntryKind::Symlink { target }, .. }) if target == Path::new("1"))
    );
}

#[test]
fn metadata_comes_from_the_file_itself() {
    let tree = Tree::new(&["base/1/2"]);
    let file = tree.path().join("base/1/2");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    fs::set_permissions(tree.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let entries: Vec<Entry> = tree
        .walk(WalkOptions::default())
        .filter_map(|found| match found.unwrap() {
            Found::Entry(entry) => Some(entry),
            Found::Trap(_) => None,
        })
        .collect();
    let (root, last) = (entries.first().unwrap(), entries.last().unwrap());
    assert_eq!((root.path.as_path(), root.name.as_os_str(), root.mode), (tree.path(), OsStr::new("/"), 0o700));
    let metadata = fs::metadata(&file).unwrap();
    let expected = Entry {
        path: file,
        name: "base/1/2".into(),
        kind: EntryKind::File { size: 8 },
        mode: 0o640,
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime: metadata.modified().unwrap(),
    };
    assert_eq!(*last, expected);
}

#[test]
fn what_vanishes_meanwhile_is_left_out() {
    let tree = Tree::new(&["a/1", "a/2", "b/1", "c/1", "c/d/1"]);
    let mut names = Vec::new();
    for found in tree.walk(WalkOptions::default()) {
        let name = name_of(&found.unwrap()).unwrap();
        match name.as_str() {
            "a/1" => fs::remove_file(tree.path().join("a/2")).unwrap(),
            "a/" => fs::remove_dir_all(tree.path().join("b")).unwrap(),
            "c/1" => fs::remove_dir_all(tree.path().join("c")).unwrap(),
            _ => {}
        }
        names.push(name);
    }
    assert_eq!(names, ["/", "PG_VERSION", "a/", "a/1", "c/", "c/1"]);
}

#[test]
fn a_tablespace_directory_whose_files_all_vanish_gets_an_entry_after_all() {
    let tree = Tree::new(&["pg_tblspc/"]);
    let place = tempfile::tempdir().unwrap();
    add(place.path(), "PG_17/1/x");
    symlink(place.path(), tree.path().join("pg_tblspc/1")).unwrap();
    let mut walk = tree.walk(WalkOptions::default());
    let mut names = Vec::new();
    while walk.levels.last().is_none_or(|level| level.prefix != "pg_tblspc/1/PG_17/1/") {
        match walk.step().unwrap() {
            Step::Tell(found) => names.extend(name_of(&found)),
            Step::Nothing => {}
            Step::End => panic!("the directory was never entered"),
        }
    }
    fs::remove_file(place.path().join("PG_17/1/x")).unwrap();
    names.extend(walk.filter_map(|found| name_of(&found.unwrap())));
    assert_eq!(names, ["/", "PG_VERSION", "pg_tblspc/", "pg_tblspc/1/PG_17/", "pg_tblspc/1/PG_17/1/"]);
}

#[test]
fn a_dropped_tablespace_is_left_out_and_an_unmounted_one_is_an_error() {
    let tree = Tree::new(&["pg_tblspc/"]);
    let place = tempfile::tempdir().unwrap();
    let (kept, dropped) = (place.path().join("kept"), place.path().join("dropped"));
    for (oid, location) in [("1", &dropped), ("2", &kept)] {
        fs::create_dir(location).unwrap();
        fs::write(location.join("file"), "").unwrap();
        symlink(location, tree.path().join("pg_tblspc").join(oid)).unwrap();
    }
    let walk = tree.walk(WalkOptions::default());
    fs::remove_file(tree.path().join("pg_tblspc/1")).unwrap();
    let names: Vec<String> = walk.filter_map(|found| name_of(&found.unwrap())).collect();
    assert_eq!(names, ["/", "PG_VERSION", "pg_tblspc/", "pg_tblspc/2/file"]);

    let mut walk = tree.walk(WalkOptions::default());
    fs::remove_dir_all(&kept).unwrap();
    assert!(walk.any(|found| found.is_err()));
}

#[test]
fn names_that_are_no_text_are_kept_as_bytes() {
    let tree = Tree::new(&[]);
    let name = OsStr::from_bytes(b"\xFF\xFE");
    fs::write(tree.path().join(name), "").unwrap();
    let found = tree.walk(WalkOptions::default()).any(|found| match found.unwrap() {
        Found::Entry(entry) => entry.name == name,
        Found::Trap(_) => false,
    });
    assert!(found);
}

#[test]
fn the_extent_counts_regular_files_only() {
    let tree = Tree::new(&["base/1/2", "pg_wal/000000010000000000000001"]);
    symlink("base/1/2", tree.path().join("link")).unwrap();
    let directory = DataDirectory::open(tree.path()).unwrap();
    let extent = Extent::of(&directory, WalkOptions::default()).unwrap();
    assert_eq!(extent, Extent { files: 2, bytes: 3 + 8 });
}

#[test]
fn a_tablespace_made_during_the_backup_leaves_no_link() {
    let tree = Tree::new(&["pg_tblspc/", "base/1/2"]);
    let place = tempfile::tempdir().unwrap();
    let walk = tree.walk(WalkOptions::default());
    symlink(place.path(), tree.path().join("pg_tblspc/16384")).unwrap();
    let names: Vec<String> = walk.map(|found| name_of(&found.unwrap()).unwrap()).collect();
    assert_eq!(names, ["/", "PG_VERSION", "base/", "base/1/", "base/1/2", "pg_tblspc/"]);
}
