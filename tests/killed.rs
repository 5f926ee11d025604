//! kill -9 in the middle of each command, and a second run after it: nothing half-written is ever visible under a final
//! name, and the second run ends well.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::Signal;
use support::WalSite as Site;
use support::hand_made_backup::{BACKUP, control_file, lzop};
use support::s3::{Operation, What, When};
use support::wal_segment::{SEGMENT_BYTES, noise, segment, segment_name};
use support::{HandMadeBackup, Mode, PgCluster, RawMember, Running, WalEve, wal_eve_bin};

/// The moments to kill at: before the store is asked, and ever later in the transfer.
const MOMENTS: [u64; 5] = [5, 100, 300, 600, 1000];

/// A segment in half a second or so.
const SLOW: What = What::Bandwidth { bytes_per_second: 1 << 20 };

/// Stops for good in the middle, so that a kill comes in time however long it takes to come.
const STUCK: What = What::StallBody { after_bytes: 100_000, pause: Duration::from_secs(60) };

impl Site {
    fn target(&self) -> PathBuf {
        self.root.path().join("target")
    }

    /// By the journal of an interrupted restore; none where there is no journal.
    fn partitions_done(&self) -> Option<Vec<u32>> {
        let journal = fs::read(self.target().join(".wal-eve-restore/journal.json")).ok()?;
        let journal: serde_json::Value = serde_json::from_slice(&journal).unwrap();
        Some(journal["partition_bytes"].as_object().unwrap().keys().map(|number| number.parse().unwrap()).collect())
    }

    fn spawn_restore(&self) -> Running {
        self.wal_eve().spawn(["backup-fetch", &self.target().display().to_string(), "LATEST", "-p", "1"])
    }
}

fn kill_after(mut running: Running, delay: Duration) {
    sleep(delay);
    running.kill9();
    drop(running);
}

#[test]
fn a_killed_wal_push_leaves_no_half_object_and_the_next_one_succeeds() {
    let site = Site::new();
    let parts = site.wal.file("00000009.history").display().to_string();
    fs::write(&parts, noise(1, 33 << 20)).unwrap();
    for (round, moment) in (1..).zip(MOMENTS) {
        let path = site.wal.add(round);
        for (path, slow) in [(&path, SLOW), (&parts, What::Bandwidth { bytes_per_second: 8 << 20 })] {
            site.server.faults().add(When::any(), slow);
            kill_after(site.wal_eve().spawn(["wal-push", path]), Duration::from_millis(moment));
            site.server.faults().clear();
        }
        for key in site.server.keys("b", "p/") {
            let body = site.server.object("b", &key).unwrap().body;
            assert!(body.ends_with(&[0; 4]) && body.len() > SEGMENT_BYTES / 2, "{key} of {} bytes", body.len());
        }
        site.wal_eve().run(["wal-push", &path]).assert_success();
        let object = site.server.object("b", &format!("p/wal_005/{}.lzo", segment_name(round))).unwrap();
        assert_eq!(object.body[38..], lzop(&segment(round))[38..]);
    }
    site.wal_eve().run(["wal-push", &parts]).assert_success();
    site.wal_eve().run(["wal-push", &parts]).assert_success();
    assert_eq!(site.wal.names().len(), MOMENTS.len() + 1, "nothing was left in pg_wal");
}

#[test]
fn a_killed_wal_push_to_a_directory_leaves_no_half_object_either() {
    let site = Site::new();
    let archive = site.root.path().join("archive");
    let wal_eve = WalEve::for_file_prefix(&archive).current_dir(site.wal.data_directory());
    for (round, moment) in (1..).zip([1, 3, 6, 10, 15, 20, 30]) {
        let path = site.wal.add(round);
        kill_after(wal_eve.spawn(["wal-push", &path]), Duration::from_millis(moment));
        let object = archive.join(format!("wal_005/{}.lzo", segment_name(round)));
        let whole = |bytes: Vec<u8>| bytes[38..] == lzop(&segment(round))[38..];
        assert!(fs::read(&object).map_or(true, whole), "half an object after {moment} ms");
        wal_eve.run(["wal-push", &path]).assert_success();
        assert!(whole(fs::read(&object).unwrap()));
    }
}

#[test]
fn a_killed_wal_fetch_leaves_nothing_and_the_next_one_succeeds() {
    let site = Site::new();
    site.server.put_object("b", "p/wal_005/000000010000000000000007.lzo", lzop(&segment(7)));
    let arguments = ["wal-fetch", "000000010000000000000007", "pg_wal/RECOVERYXLOG"];
    for moment in MOMENTS.iter().map(|moment| moment / 3) {
        site.server.faults().add(When::any(), SLOW);
        kill_after(site.wal_eve().spawn(arguments), Duration::from_millis(moment));
        site.server.faults().clear();
        let names = site.wal.names();
        assert!(names.is_empty() || names == ["RECOVERYXLOG"], "{names:?}");
        if names == ["RECOVERYXLOG"] {
            assert_eq!(fs::read(site.wal.file("RECOVERYXLOG")).unwrap(), segment(7), "published, hence whole");
        }
        site.wal_eve().run(arguments).assert_success();
        assert_eq!(fs::read(site.wal.file("RECOVERYXLOG")).unwrap(), segment(7));
        fs::remove_file(site.wal.file("RECOVERYXLOG")).unwrap();
    }
}

/// The bytes of the files of [`large_backup`].
const EXPANDED_SIZE: u64 = 3 + 620_000 + 4 * 600_000 + 1 + 8192;

/// A backup of six partitions that take a while each.
fn large_backup() -> HandMadeBackup {
    let mut backup = HandMadeBackup::new();
    for number in 1..5 {
        let contents = noise(number.into(), 600_000);
        backup.partition(number, &[RawMember::file(&format!("base/2/{number}"), contents)]);
    }
    backup.partition(5, &[RawMember::file("backup_label", "x"), RawMember::file("global/pg_control", control_file())]);
    backup.sentinel(EXPANDED_SIZE);
    backup
}

#[test]
fn a_killed_restore_goes_on_where_it_stopped() {
    for partitions in [0, 1, 2, 4] {
        let site = Site::new();
        large_backup().put_into(&site.server, "b", "p/");
        let next = When::operation(Operation::GetObject).key("tar_partitions").skip(partitions);
        site.server.faults().add(next, STUCK);
        let mut restore = site.spawn_restore();
        let far_enough = || site.partitions_done().is_some_and(|done| done.len() >= partitions);
        support::postgres::wait_until("it is far enough", Duration::from_secs(30), far_enough);
        restore.kill9();
        drop(restore);
        site.server.faults().clear();
        assert!(
            !site.target().join("global/pg_control").exists(),
            "a server could start after {partitions} partitions"
        );
        let done = site.partitions_done().unwrap();
        site.server.clear_requests();
        let output = site.spawn_restore().wait().assert_success();
        assert!(!output.stderr_text().contains("sentinel says"), "{}", output.stderr_text());
        for number in 0..6 {
            let fetched = site.server.count(Operation::GetObject, &format!("part_{number:08}"));
            assert_eq!(fetched, usize::from(!done.contains(&number)), "partition {number}, {done:?} were done");
        }
        assert_eq!(fs::read(site.target().join("global/pg_control")).unwrap(), control_file());
        for number in 1..5_u32 {
            let path = site.target().join(format!("base/2/{number}"));
            assert_eq!(fs::read(path).unwrap(), noise(number.into(), 600_000));
        }
        assert!(!site.target().join(".wal-eve-restore").exists());
    }
}

/// A site whose restore of [`large_backup`] was killed after its first partition.
fn interrupted_restore() -> Site {
    let site = Site::new();
    large_backup().put_into(&site.server, "b", "p/");
    site.server.faults().add(When::operation(Operation::GetObject).key("tar_partitions").skip(1), STUCK);
    let mut restore = site.spawn_restore();
    let begun = || site.partitions_done().is_some_and(|done| !done.is_empty());
    support::postgres::wait_until("a partition is done", Duration::from_secs(30), begun);
    restore.kill9();
    drop(restore);
    site.server.faults().clear();
    site
}

#[test]
fn a_killed_restore_is_not_taken_up_with_another_archive() {
    let site = interrupted_restore();
    large_backup().put_into(&site.server, "b", "q/");
    let target = site.target().display().to_string();
    let other = site.wal_eve().env("WALE_S3_PREFIX", "s3://b/q").run(["backup-fetch", &target, "LATEST"]);
    let text = other.assert_code(1).stderr_text();
    assert!(text.contains("interrupted restore of another backup") && text.contains("s3://b/p"), "{text}");
    site.spawn_restore().wait().assert_success();
}

#[test]
fn a_killed_restore_of_the_latest_backup_goes_on_with_the_same_one_when_there_is_a_newer() {
    let site = interrupted_restore();
    let newer = BACKUP.replace("0002_", "0003_");
    let sentinel = format!("p/{}", HandMadeBackup::sentinel_key());
    for key in site.server.keys("b", &format!("p/basebackups_005/{BACKUP}")) {
        let body = site.server.object("b", &key).unwrap().body;
        site.server.put_object("b", &key.replace(BACKUP, &newer), body);
    }
    site.server.set_last_modified("b", &sentinel, SystemTime::UNIX_EPOCH);
    let done = site.partitions_done().unwrap();

    let target = site.target().display().to_string();
    let text = site.wal_eve().run(["backup-fetch", &target, &newer]).assert_code(1).stderr_text();
    assert!(
        text.contains("interrupted restore of another backup") && text.contains(&format!("Ask for {BACKUP}")),
        "{text}"
    );

    let body = site.server.object("b", &sentinel).unwrap().body;
    assert!(site.server.delete("b", &sentinel));
    let text = site.spawn_restore().wait().assert_code(1).stderr_text();
    assert!(text.contains(&format!("does not hold backup {BACKUP}")) && text.contains(&newer), "{text}");
    assert_eq!(site.partitions_done().unwrap(), done);
    site.server.put_object("b", &sentinel, body);
    site.server.set_last_modified("b", &sentinel, SystemTime::UNIX_EPOCH);

    site.server.clear_requests();
    let output = site.spawn_restore().wait().assert_success();
    let text = output.stderr_text();
    let told = text.lines().find(|line| line.contains("going on with the interrupted restore"));
    assert!(told.is_some_and(|line| line.contains(BACKUP) && line.contains(&newer)), "{text}");
    assert!(output.stdout_text().contains(BACKUP));
    assert_eq!(site.server.count(Operation::GetObject, &format!("{newer}/tar_partitions")), 0);
    assert_eq!(site.server.count(Operation::GetObject, "tar_partitions"), 6 - done.len());
}

#[test]
fn of_two_restores_into_one_directory_at_once_one_refuses() {
    let site = Site::new();
    large_backup().put_into(&site.server, "b", "p/");
    site.server.faults().add(When::any().key("tar_partitions"), What::Delay(Duration::from_millis(400)));
    let mut first = site.spawn_restore();
    let begun = || site.target().join(".wal-eve-restore/journal.json").exists();
    support::postgres::wait_until("the first has begun", Duration::from_secs(20), begun);
    // it must not end before the second has begun
    first.signal(Signal::STOP);
    let text = site.spawn_restore().wait().assert_code(1).stderr_text();
    first.signal(Signal::CONT);
    assert!(text.contains("another restore into") && text.contains("is running") && text.contains("HINT:  "), "{text}");
    first.wait().assert_success();
    assert_eq!(fs::read(site.target().join("global/pg_control")).unwrap(), control_file());

    // begun at the very same time: one ends well, and the other has changed nothing
    fs::remove_dir_all(site.target()).unwrap();
    let both = [site.spawn_restore(), site.spawn_restore()];
    let mut codes: Vec<_> = both.into_iter().map(|restore| restore.wait().code()).collect();
    codes.sort();
    assert_eq!(codes, [Some(0), Some(1)]);
    assert_eq!(fs::read(site.target().join("global/pg_control")).unwrap(), control_file());
    assert!(!site.target().join(".wal-eve-restore").exists());
}

// backup-push, which needs a server.

fn archiving_cluster(site: &Site) -> PgCluster {
    let mut cluster = PgCluster::options()
        .configure("archive_mode = on")
        .configure("wal_level = replica")
        .configure(format!("archive_command = '{} wal-push %p'", wal_eve_bin().display()))
        .init(15);
    for (name, value) in site.server.environment("s3://b/p") {
        cluster.env(&name, &value);
    }
    cluster.start();
    cluster.psql("create table t as select i, md5(i::text) as m from generate_series(1, 20000) i");
    cluster
}

fn spawn_backup(site: &Site, cluster: &PgCluster) -> Running {
    let environment = site.server.environment("s3://b/p").into_iter().chain(cluster.environment());
    let data = cluster.data_dir().display().to_string();
    WalEve::new(environment).timeout(Duration::from_secs(120)).spawn(["backup-push", "--fast", &data])
}

fn sentinels(site: &Site) -> Vec<String> {
    let keys = site.server.keys("b", "p/basebackups_005/");
    keys.into_iter().filter(|key| key.ends_with("_backup_stop_sentinel.json")).collect()
}

#[test]
fn a_killed_backup_is_never_listed_and_the_next_one_restores() {
    let site = Site::new();
    let cluster = archiving_cluster(&site);
    for moment in [300, 1500, 3000] {
        // so slow that it is never complete by then
        site.server.faults().add(When::any().key("basebackups_005"), What::Bandwidth { bytes_per_second: 200 << 10 });
        kill_after(spawn_backup(&site, &cluster), Duration::from_millis(moment));
        site.server.faults().clear();
        assert_eq!(sentinels(&site), [""; 0]);
        let output = site.wal_eve().run(["backup-list"]).assert_success();
        assert_eq!(output.stdout_text().lines().count(), 1, "{}", output.stdout_text());
    }
    // the server has noticed: no backup is held
    let sessions =
        "select count(*) = 0 from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()";
    cluster.wait_until_sql(sessions, Duration::from_secs(20));
    let name = spawn_backup(&site, &cluster).wait().assert_success().stdout_text();
    assert_eq!(sentinels(&site).len(), 1);
    let rows = cluster.psql("select count(*), sum(i), min(m) from t");
    cluster.stop(Mode::Fast);

    let mut restored = PgCluster::without_data(15);
    let target = restored.data_dir().display().to_string();
    site.wal_eve().run(["backup-fetch", &target, name.trim()]).assert_success();
    restored.configure_connections();
    restored.configure(&format!("restore_command = '{} wal-fetch %f %p'", wal_eve_bin().display()));
    restored.set_recovery();
    for (name, value) in site.server.environment("s3://b/p") {
        restored.env(&name, &value);
    }
    restored.start();
    restored.wait_until_sql("select not pg_is_in_recovery()", Duration::from_secs(60));
    assert_eq!(restored.psql("select count(*), sum(i), min(m) from t"), rows);
}

#[test]
fn two_backups_of_one_cluster_at_once_are_two_good_backups() {
    let site = Site::new();
    let cluster = archiving_cluster(&site);
    let both = [spawn_backup(&site, &cluster), spawn_backup(&site, &cluster)];
    let outputs = both.map(Running::wait);
    let succeeded = outputs.iter().filter(|output| output.code() == Some(0)).count();
    assert!(succeeded >= 1);
    for refused in outputs.iter().filter(|output| output.code() != Some(0)) {
        assert_eq!(refused.code(), Some(1));
        assert!(refused.stderr_text().contains("exists already"), "{}", refused.stderr_text());
    }
    assert_eq!(sentinels(&site).len(), succeeded);
    for output in outputs.iter().filter(|output| output.code() == Some(0)) {
        let target = site.root.path().join(output.stdout_text().trim()).display().to_string();
        site.wal_eve().run(["backup-fetch", &target, output.stdout_text().trim()]).assert_success();
    }
}

#[test]
fn a_backup_whose_server_dies_fails_soon_and_removes_what_it_stored() {
    let site = Site::new();
    let cluster = archiving_cluster(&site);
    // more than one part once it is compressed
    cluster.psql("create table large as select md5(i::text) || md5((-i)::text) from generate_series(1, 400000) i");
    site.server.faults().add(When::any().key("tar_partitions"), What::Bandwidth { bytes_per_second: 200 << 10 });
    let backup = spawn_backup(&site, &cluster);
    let storing = || site.server.count(Operation::UploadPart, "tar_partitions") > 0;
    support::postgres::wait_until("it stores a partition in parts", Duration::from_secs(60), storing);
    cluster.kill9();
    let killed = Instant::now();
    let output = backup.wait();
    assert!(killed.elapsed() < Duration::from_secs(30), "{:?}", killed.elapsed());
    output.assert_code(2);
    assert_eq!(site.server.keys("b", "p/basebackups_005/"), [""; 0]);
    assert!(site.server.unfinished_uploads().is_empty());
}

#[test]
fn a_killed_backup_of_a_stopped_cluster_is_named_by_the_next_one() {
    let site = Site::new();
    let data = site.root.path().join("stopped");
    fs::create_dir_all(data.join("global")).unwrap();
    fs::create_dir_all(data.join("pg_wal")).unwrap();
    fs::write(data.join("PG_VERSION"), "15\n").unwrap();
    fs::write(data.join("pg_wal").join(segment_name(2)), segment(2)).unwrap();
    let mut stopped = control_file();
    stopped[16] = 1;
    let crc = crc32c::crc32c(&stopped[..288]).to_le_bytes();
    stopped[288..292].copy_from_slice(&crc);
    fs::write(data.join("global/pg_control"), stopped).unwrap();
    fs::write(data.join("filler"), noise(1, 3 << 20)).unwrap();
    let data = data.display().to_string();
    let arguments = ["backup-push", "--while-offline", &data];
    site.server.faults().add(When::any(), SLOW);
    // a look that fails takes the name for nobody
    let unlisted = site.server.faults().add(When::list(), What::access_denied());
    let text = site.wal_eve().run(arguments).assert_code(1).stderr_text();
    assert!(text.contains("s3:ListBucket"), "{text}");
    assert_eq!(site.server.keys("b", "p/basebackups_005/"), [""; 0]);
    site.server.faults().remove(unlisted);
    let mut backup = site.wal_eve().spawn(arguments);
    let begun = || !site.server.keys("b", "p/basebackups_005/").is_empty();
    support::postgres::wait_until("something is stored", Duration::from_secs(30), begun);
    backup.kill9();
    drop(backup);
    site.server.faults().clear();
    assert_eq!(sentinels(&site), [""; 0]);
    // it always has the same name, and another one might be at work on it
    let text = site.wal_eve().run(arguments).assert_code(1).stderr_text();
    assert!(text.contains("unfinished backup called base_000000010000000000000002_00000064"), "{text}");
    assert!(text.contains("stopped cluster") && text.contains("remove its objects"), "{text}");
    for key in site.server.keys("b", "p/basebackups_005/") {
        site.server.delete("b", &key);
    }
    site.wal_eve().run(arguments).assert_success();
    assert_eq!(sentinels(&site).len(), 1);
}
