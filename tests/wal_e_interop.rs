//! Archives go both ways between wal-eve and the real WAL-E 1.1.1: each restores and lists what the other wrote, the same.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use support::dir_tree::EntryType;
use support::s3::S3Server;
use support::{Archive, Mode, Output, PgCluster, Program, Tool, TreeEntry, WalE, dir_tree, temp_dir};

const LIMIT: Duration = Duration::from_secs(120);

/// More than fit into one partition of WAL-E's, which holds 6144 members.
const SMALL_FILES: usize = 6300;

/// A cluster that archives to `archive` by `program`, with a tablespace beside it: its OID's name comes with it.
fn archiving_cluster(major: u32, archive: &Archive, program: Program) -> (PgCluster, String) {
    let options = PgCluster::options().configure("archive_mode = on").configure(archive.archive_command(program));
    // WAL-E asks for a checkpoint that is spread over this part of its interval.
    let cluster = options.configure("checkpoint_completion_target = 0.0").init(major);
    let space = cluster.root().join("ts");
    fs::create_dir(&space).unwrap();
    cluster.start();
    cluster.psql(&format!("create tablespace ts location '{}'", space.display()));
    cluster.psql("create table t as select n, repeat('wal-e ', 20) as text from generate_series(1, 20000) n");
    cluster.psql("create table in_ts tablespace ts as select generate_series(1, 5000) as n");
    let oid = cluster.psql("select oid from pg_tablespace where spcname = 'ts'");
    (cluster, oid)
}

const ROWS: &str = "select (select count(*) from t), (select sum(n) from t), (select count(*) from in_ts)";

/// What WAL-E's rules treat differently (`spec/wal-e-format.md` vectors 19 and 20), and names that need a long header.
fn litter(data_dir: &Path, tablespace: &Path, small_files: usize) {
    let write = |path: &str, content: &str| {
        let path = data_dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    };
    let long_directory = format!("odd/{}", "d".repeat(120));
    for path in ["base/pgsql_tmp/t1", "pg_log/a", "lost+found/q", "pg_replslot_not/x/state", "base/1/postgresql.conf"] {
        write(path, "odd");
    }
    write(&format!("{long_directory}/{}", "f".repeat(200)), "long name");
    write("odd/ünï", "name that is not ASCII");
    write("odd/empty", "");
    write("odd/read_only", "r");
    fs::set_permissions(data_dir.join("odd/read_only"), fs::Permissions::from_mode(0o400)).unwrap();
    write("odd/executable", "x");
    fs::set_permissions(data_dir.join("odd/executable"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::hard_link(data_dir.join("odd/executable"), data_dir.join("odd/hard_link")).unwrap();
    fs::create_dir_all(data_dir.join("odd/nothing_in_it")).unwrap();
    fs::set_permissions(data_dir.join("odd/nothing_in_it"), fs::Permissions::from_mode(0o750)).unwrap();
    symlink("nowhere", data_dir.join("dangling")).unwrap();
    symlink("../PG_VERSION", data_dir.join("odd/link")).unwrap();
    symlink("n".repeat(150), data_dir.join("odd/long_link")).unwrap();
    for number in 0..small_files {
        write(&format!("odd/many/{number}"), &number.to_string());
    }
    let version_directory = fs::read_dir(tablespace).unwrap().next().unwrap().unwrap().path();
    fs::create_dir(version_directory.join("99999")).unwrap();
    fs::create_dir_all(version_directory.join("pgsql_tmp")).unwrap();
    fs::write(version_directory.join("pgsql_tmp/z"), "odd").unwrap();
    for directory in ["99999", "pgsql_tmp"] {
        fs::set_permissions(version_directory.join(directory), fs::Permissions::from_mode(0o700)).unwrap();
    }
}

/// A directory to restore to, its tablespace's place beside it, and a restore specification for both.
struct Place {
    root: tempfile::TempDir,
    oid: String,
}

impl Place {
    fn new(oid: &str) -> Self {
        let root = temp_dir();
        fs::create_dir(root.path().join("ts")).unwrap();
        Self { root, oid: oid.to_owned() }
    }

    fn data_dir(&self) -> PathBuf {
        self.root.path().join("d")
    }

    fn tablespace(&self) -> PathBuf {
        self.root.path().join("ts")
    }

    fn spec(&self) -> PathBuf {
        let (oid, data_dir, tablespace) = (&self.oid, self.data_dir(), self.tablespace());
        let spec = serde_json::json!({
            "base_prefix": data_dir,
            "tablespaces": [oid],
            oid: { "loc": format!("{}/", tablespace.display()), "link": format!("pg_tblspc/{oid}") },
        });
        let path = self.root.path().join("spec.json");
        fs::write(&path, spec.to_string()).unwrap();
        path
    }

    fn make_links(&self) {
        let links = self.data_dir().join("pg_tblspc");
        fs::create_dir_all(&links).unwrap();
        fs::set_permissions(self.data_dir(), fs::Permissions::from_mode(0o700)).unwrap();
        fs::set_permissions(&links, fs::Permissions::from_mode(0o700)).unwrap();
        symlink(self.tablespace(), links.join(&self.oid)).unwrap();
    }

    /// The arguments after the data directory and the name. WAL-E reads no sentinel from a `file://` store, so it knows
    /// no tablespaces there.
    fn prepare(&self, archive: &Archive) -> Vec<String> {
        match archive.is_s3() {
            true => vec!["--restore-spec".to_owned(), self.spec().display().to_string()],
            false => {
                self.make_links();
                Vec::new()
            }
        }
    }

    fn fetch_arguments(&self, archive: &Archive, name: &str) -> Vec<String> {
        let arguments = ["backup-fetch".to_owned(), self.data_dir().display().to_string(), name.to_owned()];
        arguments.into_iter().chain(self.prepare(archive)).collect()
    }

    /// Everything that was restored, but where the tablespace's link leads and the server's map of it, which wal-eve
    /// rewrites to where the tablespace really is.
    fn tree(&self) -> BTreeMap<String, TreeEntry> {
        let mut tree = dir_tree(&self.data_dir());
        tree.remove("tablespace_map");
        let link = format!("pg_tblspc/{}", self.oid);
        let target = tree.remove(&link).and_then(|entry| entry.link_target).unwrap();
        assert_eq!(target.components().collect::<PathBuf>(), self.tablespace());
        let tablespace = dir_tree(&self.tablespace());
        tree.extend(tablespace.into_iter().map(|(path, entry)| (format!("{link}/{path}"), entry)));
        tree
    }

    fn mode(&self) -> u32 {
        fs::metadata(self.data_dir()).unwrap().permissions().mode() & 0o7777
    }
}

/// Panics with what differs, and not with two whole trees.
fn assert_same_tree(wal_e: &BTreeMap<String, TreeEntry>, ours: &BTreeMap<String, TreeEntry>) {
    let paths: BTreeSet<_> = wal_e.keys().chain(ours.keys()).collect();
    let differing: Vec<String> = paths
        .into_iter()
        .filter(|path| wal_e.get(*path) != ours.get(*path))
        .map(|path| format!("{path}: WAL-E {:?}, wal-eve {:?}", wal_e.get(path), ours.get(path)))
        .collect();
    assert!(differing.is_empty(), "{} of {}:\n{}", differing.len(), wal_e.len(), differing.join("\n"));
}

/// A cluster over a restored directory, which recovers from `archive` by `program` and is then open for writes.
fn recover(mut restored: PgCluster, archive: &Archive, program: Program) -> PgCluster {
    restored.configure_connections();
    restored.configure("fsync = off");
    restored.configure("archive_mode = off");
    restored.configure_recovery(&archive.restore_command(program));
    restored.set_recovery();
    restored.start();
    restored.wait_until_sql("select not pg_is_in_recovery()", LIMIT);
    restored
}

/// Content type, server-side encryption and storage class, by what the object is.
type Headers = BTreeMap<&'static str, BTreeSet<(Option<String>, Option<String>, Option<String>)>>;

/// What each object was stored with.
fn headers(server: &S3Server) -> Headers {
    let mut headers = BTreeMap::<_, BTreeSet<_>>::new();
    for key in server.keys("b", "p/") {
        let what = match key.as_str() {
            key if key.ends_with("_backup_stop_sentinel.json") => "sentinel",
            key if key.ends_with("extended_version.txt") => "version",
            key if key.contains("/tar_partitions/") => "partition",
            key if key.contains("/wal_005/") => "WAL",
            _ => panic!("{key} is none of WAL-E's objects"),
        };
        let object = server.object("b", &key).unwrap();
        headers.entry(what).or_default().insert((object.content_type, object.sse, object.storage_class));
    }
    headers
}

/// WAL-E's (`spec/wal-e-format.md` §1.4 and §1.7).
fn expected_headers() -> Headers {
    let kinds = [
        ("sentinel", "application/json"),
        ("version", "text/plain"),
        ("partition", "application/octet-stream"),
        ("WAL", "application/octet-stream"),
    ];
    let stored =
        |content_type: &str| BTreeSet::from([(Some(content_type.to_owned()), Some("AES256".to_owned()), None)]);
    kinds.into_iter().map(|(what, content_type)| (what, stored(content_type))).collect()
}

/// The bytes of our sentinel and version file, and that WAL-E lists what they say.
fn our_sentinel_is_wal_es(archive: &Archive, source: &PgCluster, oid: &str) {
    let name = archive.backups().remove(0);
    let text = String::from_utf8(archive.read(&format!("basebackups_005/{name}_backup_stop_sentinel.json"))).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let (stop, offset) = (&json["wal_segment_backup_stop"], &json["wal_segment_offset_backup_stop"]);
    let size = &json["expanded_size_bytes"];
    assert!(stop.is_string() && offset.as_str().is_some_and(|offset| offset.len() == 8) && size.is_u64(), "{text}");
    let (data_dir, space) = (source.data_dir().display(), source.root().join("ts"));
    let expected = format!(
        "{{\"wal_segment_backup_stop\": {stop}, \"wal_segment_offset_backup_stop\": {offset}, \"expanded_size_bytes\": {size}, \
         \"spec\": {{\"base_prefix\": \"{data_dir}/\", \"tablespaces\": [\"{oid}\"], \
         \"{oid}\": {{\"loc\": \"{}/\", \"link\": \"pg_tblspc/{oid}\"}}}}}}",
        space.display()
    );
    assert_eq!(text, expected);
    let version = String::from_utf8(archive.read(&format!("basebackups_005/{name}/extended_version.txt"))).unwrap();
    let major = source.major();
    assert!(version.starts_with(&format!("PostgreSQL {major}.")) && version.ends_with("64-bit"), "{version:?}");
    if archive.is_s3() {
        let listed = archive.wal_e().run(["backup-list", "--detail"]).assert_success().stdout_text();
        let row: Vec<_> = listed.lines().nth(1).unwrap().split('\t').collect();
        assert_eq!(row[0], name);
        assert_eq!(
            [row[2], row[5], row[6]],
            [size.to_string().as_str(), stop.as_str().unwrap(), offset.as_str().unwrap()]
        );
    }
}

fn restores_wal_es_backup(archive: &Archive) {
    let (source, oid) = archiving_cluster(11, archive, Program::WalE);
    // WAL-E makes each file durable by itself, so once will do.
    let small_files = if archive.is_s3() { SMALL_FILES } else { 100 };
    litter(source.data_dir(), &source.root().join("ts"), small_files);
    let wal_e = archive.wal_e_with(&source).timeout(LIMIT);
    wal_e.run(["backup-push", source.data_dir().to_str().unwrap()]).assert_success();
    let partitions = archive.keys_ending(".tar.lzo").len();
    assert_eq!(partitions, if archive.is_s3() { 2 } else { 1 });
    let rows = source.psql(ROWS);
    source.psql("insert into t select n, 'after the backup' from generate_series(20001, 20100) n");
    let rows_after = source.psql(ROWS);
    assert_ne!(rows, rows_after);
    archive.wait_for_wal(&source, &source.switch_wal());

    let [by_wal_e, ours] = [Place::new(&oid), Place::new(&oid)];
    wal_e.run(by_wal_e.fetch_arguments(archive, "LATEST")).assert_success();
    let name = archive.backups().remove(0);
    // WAL-E has nothing to compare with the segments that would be fetched ahead
    let arguments = ours.fetch_arguments(archive, &name).into_iter().chain(["--no-prefetch".to_owned()]);
    archive.wal_eve().timeout(LIMIT).run(arguments).assert_success();
    let (mut expected, restored) = (by_wal_e.tree(), ours.tree());
    // The tar has no entry for a tablespace's directory with files in it (§4.3), so WAL-E leaves its mode to the umask;
    // wal-eve makes it the server's own.
    let implied = |path: &str| path.starts_with("pg_tblspc/") && path.matches('/').count() == 3;
    for entry in expected.iter_mut().filter(|(path, _)| implied(path)).map(|(_, entry)| entry) {
        if entry.entry_type == EntryType::Directory {
            entry.mode = 0o700;
        }
    }
    assert_same_tree(&expected, &restored);
    assert_eq!(by_wal_e.mode(), ours.mode());
    if let Archive::S3(server) = archive {
        assert_eq!(headers(server), expected_headers(), "what WAL-E stores");
    }
    let map = fs::read_to_string(ours.data_dir().join("tablespace_map")).unwrap();
    let place = map.trim_end().strip_prefix(&format!("{oid} ")).unwrap();
    assert_eq!(Path::new(place).components().collect::<PathBuf>(), ours.tablespace());

    let restored = PgCluster::without_data(11);
    fs::rename(ours.data_dir(), restored.data_dir()).unwrap();
    let restored = recover(restored, archive, Program::WalEve);
    assert_eq!(restored.psql(ROWS), rows_after);
    restored.psql("insert into in_ts values (0)");
    assert_eq!(source.psql(ROWS), rows_after, "the source's tablespace is its own");
}

#[test]
fn wal_es_backup_in_s3_is_restored_as_wal_e_restores_it_and_starts() {
    restores_wal_es_backup(&Archive::s3());
}

#[test]
fn wal_es_backup_in_a_directory_is_restored_as_wal_e_restores_it_and_starts() {
    restores_wal_es_backup(&Archive::file());
}

/// As the loss of the stopped source would: the server's map, which WAL-E does not rewrite, leads to the original place.
fn lose_tablespace(source: &PgCluster) {
    fs::rename(source.root().join("ts"), source.root().join("lost_ts")).unwrap();
    fs::create_dir(source.root().join("ts")).unwrap();
}

/// By name as well as by number, which WAL-E restores by when it runs as root.
fn our_members_name_their_owner(archive: &Archive) {
    let work = temp_dir();
    for (number, key) in archive.keys_ending(".tar.lzo").iter().enumerate() {
        fs::write(work.path().join(number.to_string()), archive.read(key)).unwrap();
    }
    let script = "import os, subprocess, sys, tarfile
with tarfile.open(os.devnull, 'w') as tar:
    own = tar.gettarinfo(sys.argv[1])
expected = {(own.uid, own.gid, own.uname, own.gname)}
for part in os.listdir(sys.argv[1]):
    with subprocess.Popen(['lzop', '-dc', os.path.join(sys.argv[1], part)], stdout=subprocess.PIPE) as lzop:
        members = list(tarfile.open(fileobj=lzop.stdout, mode='r|'))
    found = {(member.uid, member.gid, member.uname, member.gname) for member in members}
    assert found == expected, (part, found, expected)";
    let python = Tool::new("/usr/bin/python3", [("LC_ALL", "C.UTF-8")]);
    python.run(["-c", script, work.path().to_str().unwrap()]).assert_success();
}

fn wal_e_restores_our_backup(major: u32, archive: &Archive) {
    let (source, oid) = archiving_cluster(major, archive, Program::WalEve);
    let wal_eve = archive.wal_eve_with(&source).timeout(LIMIT);
    let data_dir = source.data_dir().to_str().unwrap();
    wal_eve.run(["backup-push", "--fast", data_dir]).assert_success();
    source.psql("insert into t select n, 'after the backup' from generate_series(20001, 20100) n");
    let rows = source.psql(ROWS);
    source.stop(Mode::Fast);
    let wal_e = archive.wal_e().timeout(LIMIT);
    if let Archive::S3(server) = archive {
        assert_eq!(headers(server), expected_headers(), "what wal-eve stores");
    }
    our_sentinel_is_wal_es(archive, &source, &oid);
    our_members_name_their_owner(archive);

    // Without any links, the tablespace becomes a directory; its map has to go, for the server would follow it.
    let blind = PgCluster::without_data(major);
    fs::create_dir(blind.data_dir()).unwrap();
    wal_e.run(["backup-fetch", "--blind-restore", blind.data_dir().to_str().unwrap(), "LATEST"]).assert_success();
    assert_eq!(mode(blind.data_dir()), 0o700);
    fs::remove_file(blind.data_dir().join("tablespace_map")).unwrap();
    assert!(blind.data_dir().join("pg_tblspc").join(&oid).is_dir());
    fs::write(blind.data_dir().join("postgresql.conf"), "allow_in_place_tablespaces = on\n").unwrap();
    let blind = recover(blind, archive, Program::WalE);
    assert_eq!(blind.psql(ROWS), rows);
    drop(blind);

    let restored = PgCluster::without_data(major);
    lose_tablespace(&source);
    match archive.is_s3() {
        true => {
            let spec = restored.root().join("spec.json");
            fs::write(&spec, serde_json::json!({ "base_prefix": restored.data_dir() }).to_string()).unwrap();
            let arguments = ["backup-fetch", "--restore-spec", spec.to_str().unwrap()];
            wal_e.run(arguments.into_iter().chain([restored.data_dir().to_str().unwrap(), "LATEST"])).assert_success();
        }
        false => {
            fs::create_dir_all(restored.data_dir().join("pg_tblspc")).unwrap();
            symlink(source.root().join("ts"), restored.data_dir().join("pg_tblspc").join(&oid)).unwrap();
            wal_e.run(["backup-fetch", restored.data_dir().to_str().unwrap(), "LATEST"]).assert_success();
        }
    }
    let restored = recover(restored, archive, Program::WalE);
    assert_eq!(restored.psql(ROWS), rows);
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn our_backup_of_11_in_s3_is_restored_by_wal_e_and_starts() {
    wal_e_restores_our_backup(11, &Archive::s3());
}

#[test]
fn our_backup_of_15_in_a_directory_is_restored_by_wal_e_and_starts() {
    wal_e_restores_our_backup(15, &Archive::file());
}

/// The files of a WAL directory, of the kinds that a server archives; two of them segments.
fn wal_files() -> (PgCluster, Vec<String>) {
    let cluster = PgCluster::init(15);
    cluster.start();
    let segments = [cluster.switch_wal(), cluster.switch_wal()];
    // At a clean stop the server would recycle them.
    cluster.stop(Mode::Immediate);
    let wal = cluster.data_dir().join("pg_wal");
    let [first, second] = &segments;
    let history = "1\t0/3000000\tno recovery target specified\n";
    let backup = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n";
    fs::write(wal.join("00000002.history"), history).unwrap();
    fs::write(wal.join(format!("{second}.00000028.backup")), backup).unwrap();
    fs::copy(wal.join(second), wal.join(format!("{second}.partial"))).unwrap();
    let names = [first.clone(), second.clone(), "00000002.history".to_owned()];
    let more = [format!("{second}.00000028.backup"), format!("{second}.partial")];
    (cluster, names.into_iter().chain(more).collect())
}

#[test]
fn wal_that_either_pushes_the_other_fetches_byte_for_byte() {
    let (cluster, names) = wal_files();
    let fetched = cluster.root().join("fetched");
    for round in 0..2 {
        for archive in Archive::both() {
            let (wal_e, wal_eve) = (archive.wal_e(), archive.wal_eve());
            let (wal_e, wal_eve) = (wal_e.current_dir(cluster.data_dir()), wal_eve.current_dir(cluster.data_dir()));
            for name in &names {
                let path = format!("pg_wal/{name}");
                let (pushed, read) = match round {
                    0 => (
                        wal_e.run(["wal-push", "-p", "1", &path]),
                        wal_eve.clone().run(["wal-fetch", "-p", "0", name, fetched.to_str().unwrap()]),
                    ),
                    _ => (
                        wal_eve.run(["wal-push", "-p", "1", &path]),
                        wal_e.clone().run(["wal-fetch", "-p", "0", name, fetched.to_str().unwrap()]),
                    ),
                };
                pushed.assert_success();
                read.assert_success();
                let original = fs::read(cluster.data_dir().join(&path)).unwrap();
                assert!(fs::read(&fetched).unwrap() == original, "{name} over {} in round {round}", archive.kind());
                fs::remove_file(&fetched).unwrap();
            }
            let keys: BTreeSet<_> = names.iter().map(|name| format!("wal_005/{name}.lzo")).collect();
            assert_eq!(archive.keys().into_iter().collect::<BTreeSet<_>>(), keys);
            // What the other has archived is archived already.
            let again = format!("pg_wal/{}", names[0]);
            wal_eve.run(["wal-push", "-p", "1", &again]).assert_success();
        }
    }
}

#[test]
fn wal_e_prefetches_what_we_pushed() {
    let archive = Archive::s3();
    let (cluster, names) = wal_files();
    let wal_eve = archive.wal_eve().current_dir(cluster.data_dir());
    for name in &names[..2] {
        wal_eve.run(["wal-push", "-p", "1", &format!("pg_wal/{name}")]).assert_success();
    }
    let target = temp_dir();
    fs::create_dir(target.path().join("pg_wal")).unwrap();
    // WAL-E's prefetching needs a socket as its standard input under Pythons from 3.7.
    let with_socket = "import os, socket, sys\n\
        ours, theirs = socket.socketpair()\n\
        os.dup2(theirs.fileno(), 0)\n\
        os.execv(sys.argv[1], sys.argv[1:])\n";
    let bin = WalE::program();
    let path = format!("{}:/usr/local/bin:/usr/bin:/bin", bin.parent().unwrap().display());
    let python = archive.environment().into_iter().fold(
        Tool::new("/usr/bin/python3", [("PATH", path)])
            .env("WALE_LOG_DESTINATION", "stderr")
            .current_dir(target.path()),
        |tool, (name, value)| tool.env(name, value),
    );
    let fetch = |name: &str| {
        python
            .run(["-c", with_socket, bin.to_str().unwrap(), "wal-fetch", name, "pg_wal/RECOVERYXLOG"])
            .assert_success()
    };
    fetch(&names[0]);
    let prefetched = target.path().join("pg_wal/.wal-e/prefetch").join(&names[1]);
    support::postgres::wait_until("the next segment is prefetched", LIMIT, || prefetched.exists());
    let output = fetch(&names[1]);
    assert!(output.stderr_text().contains("promoted prefetched wal segment"), "{}", output.stderr_text());
    let original = fs::read(cluster.data_dir().join("pg_wal").join(&names[1])).unwrap();
    assert!(fs::read(target.path().join("pg_wal/RECOVERYXLOG")).unwrap() == original);
}

/// Both list the same; that is what comes back.
fn list(archive: &Archive, arguments: &[&str]) -> Output {
    let arguments: Vec<_> = ["backup-list"].iter().chain(arguments).collect();
    let (wal_e, ours) = (archive.wal_e().run(&arguments), archive.wal_eve().run(&arguments));
    let what = format!("{arguments:?} over {}\n{}\n{}", archive.kind(), wal_e.stderr_text(), ours.stderr_text());
    // Over a directory WAL-E lists in whatever order the filesystem has.
    let lines = |output: &Output| {
        let text = output.stdout_text();
        let mut lines: Vec<_> = text.split_inclusive('\n').map(str::to_owned).collect();
        if !archive.is_s3() {
            lines.sort();
        }
        lines
    };
    assert_eq!(lines(&wal_e), lines(&ours), "{what}");
    assert_eq!(wal_e.code(), ours.code(), "{what}");
    ours
}

#[test]
fn backups_are_listed_as_wal_e_lists_them() {
    let header = "name\tlast_modified\texpanded_size_bytes\twal_segment_backup_start\twal_segment_offset_backup_start\t\
                  wal_segment_backup_stop\twal_segment_offset_backup_stop\r\n";
    for archive in Archive::both() {
        if archive.is_s3() {
            assert_eq!(list(&archive, &[]).assert_code(0).stdout_text(), header);
            assert_eq!(list(&archive, &["LATEST"]).stdout_text(), header);
        }
        let names = [
            "000000010000000000000002_00000040",
            "000000010000000A000000FE_16777000",
            "0000000A0000000000000030_00000030",
        ];
        for (index, name) in names.iter().enumerate() {
            let sentinel = format!("basebackups_005/base_{name}_backup_stop_sentinel.json");
            let segment = &name[..24];
            let mut json = format!(
                "{{\"wal_segment_backup_stop\": \"{segment}\", \"wal_segment_offset_backup_stop\": \"0000031{index}\", \
                 \"expanded_size_bytes\": {}",
                100_173 + index
            );
            // The second is of WAL-E up to 0.6.
            json += if index == 1 { "}" } else { ", \"spec\": {\"base_prefix\": \"/data/\", \"tablespaces\": []}}" };
            archive.write(&sentinel, json);
            archive.write(&format!("basebackups_005/base_{name}/extended_version.txt"), "PostgreSQL 9.6.3");
            // The newest is neither the first nor the last by name; one time has no fraction.
            let seconds = 1_451_606_400 + [10, 500, 20][index];
            let time = SystemTime::UNIX_EPOCH
                + Duration::from_secs(seconds)
                + Duration::from_micros([0, 120_000, 500_000][index]);
            match &archive {
                Archive::S3(server) => server.set_last_modified("b", &format!("p/{sentinel}"), time),
                Archive::File(directory) => {
                    let file = fs::File::options().write(true).open(directory.path().join(&sentinel)).unwrap();
                    file.set_modified(time).unwrap();
                }
            }
        }
        // Backups that are not complete, and what is no backup.
        archive
            .write("basebackups_005/base_000000010000000000000009_00000040/extended_version.txt", "PostgreSQL 9.6.3");
        archive.write("basebackups_005/stray", "x");
        archive.write("wal_005/000000010000000000000002.lzo", "x");

        assert_eq!(list(&archive, &[]).stdout_text().lines().count(), 4, "{}", archive.kind());
        let detailed = list(&archive, &["--detail"]).stdout_text();
        assert_eq!(detailed.contains("100174"), archive.is_s3());
        let latest = list(&archive, &["LATEST"]).stdout_text();
        assert!(latest.contains(names[1]) && latest.lines().count() == 2, "{latest}");
        list(&archive, &["--detail", "LATEST"]);
        list(&archive, &[&format!("base_{}", names[2])]);
        let absent = list(&archive, &["base_000000010000000000000009_00000040"]);
        assert_eq!(absent.stdout_text(), header);
        let invalid = list(&archive, &["base_00000001"]).assert_code(1);
        assert_eq!(invalid.stdout_text(), header);
        assert!(invalid.stderr_text().contains("invalid backup query submitted"), "{}", invalid.stderr_text());
        assert!(
            invalid.stderr_text().contains("\"base_00000001.\"") || invalid.stderr_text().contains("\"base_00000001\"")
        );
    }
}

#[test]
fn latest_of_an_empty_archive_is_refused_by_both() {
    let archive = Archive::s3();
    let target = temp_dir();
    let target = target.path().join("d");
    for output in [
        archive.wal_e().run(["backup-fetch", target.to_str().unwrap(), "LATEST"]),
        archive.wal_eve().run(["backup-fetch", target.to_str().unwrap(), "LATEST"]),
    ] {
        let output = output.assert_code(1);
        assert!(output.stderr_text().contains("no backups found"), "{}", output.stderr_text());
    }
    assert!(!target.exists());
}

/// Makes the partitions of an archive as older WAL-E, and other hands, did; `lzop` of a named file puts its name into the
/// header. Arguments: the directory to archive, the directory for the partitions, the variant.
const MAKE_PARTITIONS: &str = r#"
import io, os, subprocess, sys, tarfile
source, target, variant = sys.argv[1:]
names = sorted(os.path.relpath(os.path.join(at, name), source)
               for at, directories, files in os.walk(source) for name in directories + files)
formats = {"ustar": [tarfile.USTAR_FORMAT], "gnu": [tarfile.GNU_FORMAT], "pax": [tarfile.PAX_FORMAT],
           "mixed": [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]}
kind, _, how = variant.partition("-")
count = 11 if kind == "mixed" else 2
for number in range(count):
    plain = os.path.join(target, "tar")
    with tarfile.open(plain, "w", format=formats[kind][number % len(formats[kind])]) as tar:
        if number == 0 and how != "rootless":
            root = tar.gettarinfo(source)
            root.name = "./" if how == "dotted" else "/"
            root.mode = 0o750
            tar.addfile(root)
        for name in names[number::count]:
            member = tar.gettarinfo(os.path.join(source, name), arcname=name)
            if how == "dotted":
                member.name = "./" + name
            if member.isreg():
                with open(os.path.join(source, name), "rb") as file:
                    tar.addfile(member, file)
            else:
                tar.addfile(member)
    part = {"mixed": "part_%d" % number}.get(kind, "part_%08d" % number)
    if kind == "gnu" and number == 1:
        part = "part_000000000001"
    with open(os.path.join(target, part + ".tar.lzo"), "wb") as out:
        if kind == "ustar":
            subprocess.check_call(["lzop", "-c", plain], stdout=out)
        else:
            subprocess.check_call(["lzop", "-c"], stdin=open(plain, "rb"), stdout=out)
    os.unlink(plain)
"#;

/// A data directory in small, with all kinds of members; directories before their files only by their names.
fn small_data_directory(root: &Path) -> PathBuf {
    let cluster = PgCluster::init(15);
    let source = root.join("source");
    fs::create_dir_all(source.join("global")).unwrap();
    for name in ["PG_VERSION", "global/pg_control"] {
        fs::copy(cluster.data_dir().join(name), source.join(name)).unwrap();
    }
    for directory in ["base/1", "pg_wal/archive_status", "pg_tblspc", "empty", &"deep/".repeat(18)] {
        fs::create_dir_all(source.join(directory)).unwrap();
    }
    let mut pending = vec![source.clone()];
    while let Some(directory) = pending.pop() {
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).unwrap();
        let entries = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path());
        pending.extend(entries.filter(|path| path.is_dir()));
    }
    for number in 0..20 {
        fs::write(source.join(format!("base/1/{number}")), number.to_string().repeat(1000 * number)).unwrap();
    }
    fs::write(source.join("deep/".repeat(18)).join("f".repeat(60)), "a long name that ustar can hold").unwrap();
    fs::write(source.join("base/1/executable"), "x").unwrap();
    fs::set_permissions(source.join("base/1/executable"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("nowhere", source.join("dangling")).unwrap();
    source
}

#[test]
fn archives_of_older_wal_e_are_restored_as_wal_e_restores_them() {
    let work = temp_dir();
    let source = small_data_directory(work.path());
    let name = "base_000000010000000000000001_00000040";
    let sentinel = "{\"wal_segment_backup_stop\": \"000000010000000000000001\", \
                    \"wal_segment_offset_backup_stop\": \"00000040\", \"expanded_size_bytes\": 1}";
    for (archive, variant) in [
        (Archive::s3(), "mixed"),
        (Archive::file(), "ustar-dotted"),
        (Archive::s3(), "gnu-rootless"),
        (Archive::file(), "pax"),
        (Archive::s3(), "pax-dotted"),
    ] {
        let made = temp_dir();
        let python = Tool::new("/usr/bin/python3", [("LC_ALL", "C.UTF-8")]);
        let arguments = ["-c", MAKE_PARTITIONS, source.to_str().unwrap(), made.path().to_str().unwrap(), variant];
        python.run(arguments).assert_success();
        for part in fs::read_dir(made.path()).unwrap().map(|part| part.unwrap()) {
            let part_name = part.file_name().into_string().unwrap();
            let key = format!("basebackups_005/{name}/tar_partitions/{part_name}");
            archive.write(&key, fs::read(part.path()).unwrap());
        }
        archive.write(&format!("basebackups_005/{name}/extended_version.txt"), "PostgreSQL 8.4");
        archive.write(&format!("basebackups_005/{name}_backup_stop_sentinel.json"), sentinel);

        let place = temp_dir();
        let [by_wal_e, ours] = ["w", "o"].map(|name| place.path().join(name));
        // WAL-E leaves the directory to the umask where it has no member; wal-eve does not.
        archive.wal_e().run(["backup-fetch", by_wal_e.to_str().unwrap(), "LATEST"]).assert_success();
        let output = archive.wal_eve().run(["backup-fetch", ours.to_str().unwrap(), name]);
        assert_eq!(output.code(), Some(0), "{variant}: {}", output.stderr_text());
        assert_same_tree(&dir_tree(&by_wal_e), &dir_tree(&ours));
        assert_same_tree(&dir_tree(&source), &dir_tree(&ours));
        assert_eq!(mode(&ours), if variant.ends_with("rootless") { 0o700 } else { 0o750 }, "{variant}");
    }
}

#[test]
fn restore_spec_source_goes_to_the_directory_that_was_asked_for_and_not_to_the_sources() {
    let archive = Archive::s3();
    let work = temp_dir();
    let source = small_data_directory(work.path());
    let made = temp_dir();
    let python = Tool::new("/usr/bin/python3", [("LC_ALL", "C.UTF-8")]);
    python
        .run(["-c", MAKE_PARTITIONS, source.to_str().unwrap(), made.path().to_str().unwrap(), "pax"])
        .assert_success();
    let name = "base_000000010000000000000001_00000040";
    for part in ["part_00000000.tar.lzo", "part_00000001.tar.lzo"] {
        let body = fs::read(made.path().join(part)).unwrap();
        archive.write(&format!("basebackups_005/{name}/tar_partitions/{part}"), body);
    }
    let (old, space) = (work.path().join("old"), work.path().join("space"));
    let sentinel = serde_json::json!({
        "wal_segment_backup_stop": "000000010000000000000001",
        "wal_segment_offset_backup_stop": "00000040",
        "expanded_size_bytes": 1,
        "spec": {
            "base_prefix": old,
            "tablespaces": ["16384"],
            "16384": { "loc": format!("{}/", space.display()), "link": "pg_tblspc/16384" },
        },
    });
    archive.write(&format!("basebackups_005/{name}_backup_stop_sentinel.json"), sentinel.to_string());
    let target = work.path().join("new");
    let arguments = ["backup-fetch", "--restore-spec", "SOURCE", target.to_str().unwrap(), "LATEST"];
    archive.wal_eve().run(arguments).assert_success();
    assert!(target.join("global/pg_control").exists() && !old.exists());
    assert_eq!(fs::read_link(target.join("pg_tblspc/16384")).unwrap().components().collect::<PathBuf>(), space);
    fs::remove_dir_all(&target).unwrap();
    fs::remove_dir_all(&space).unwrap();

    // WAL-E itself goes to where the source lay.
    archive.wal_e().run(arguments).assert_success();
    assert!(old.join("global/pg_control").exists() && !target.exists());
}
