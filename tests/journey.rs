//! The whole way with a real PostgreSQL: archive, back up, lose the server, restore, replay, and have the same rows.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use support::postgres::PgOptions;
use support::replica::wait_for_listener;
use support::{Archive, Mode, Output, PgCluster, Program, Tool, dir_tree, temp_dir};
use wal_eve::formats::wal_name::SegmentName;
use wal_eve::pg::control_file::ClusterState;
use wal_eve::pg::data_directory::DataDirectory;

/// For whatever a loaded machine may take.
const LIMIT: Duration = Duration::from_secs(180);

const ROWS: &str = "select count(*), sum(n), md5(string_agg(text, ',' order by n)) from t";

fn archiving(archive: &Archive) -> PgOptions {
    PgCluster::options().configure("archive_mode = on").configure(archive.archive_command(Program::WalEve))
}

/// A running cluster that archives, with rows in it.
fn primary(options: PgOptions, major: u32) -> PgCluster {
    let cluster = options.init(major);
    cluster.start();
    cluster.psql("create table t (n int, text text)");
    insert(&cluster, 1, 10_000);
    cluster
}

fn insert(cluster: &PgCluster, first: u32, last: u32) {
    cluster.psql(&format!("insert into t select n, 'row ' || n from generate_series({first}, {last}) n"));
}

fn push_backup(archive: &Archive, cluster: &PgCluster, more: &[&str]) -> Output {
    let wal_eve = archive.wal_eve_with(cluster).timeout(LIMIT);
    let arguments = ["backup-push", cluster.data_dir().to_str().unwrap(), "--fast"];
    wal_eve.run(arguments.iter().chain(more)).assert_success()
}

fn fetch_backup(archive: &Archive, target: &Path, more: &[&str]) -> Output {
    let arguments = ["backup-fetch", target.to_str().unwrap(), "LATEST"];
    archive.wal_eve().timeout(LIMIT).run(arguments.iter().chain(more)).assert_success()
}

/// A restored cluster that is not started, set to fetch its WAL from `archive`.
fn restored(archive: &Archive, major: u32, more: &[&str]) -> PgCluster {
    let mut cluster = PgCluster::without_data(major);
    fetch_backup(archive, cluster.data_dir(), more);
    configure_restored(archive, &mut cluster);
    cluster
}

fn configure_restored(archive: &Archive, cluster: &mut PgCluster) {
    cluster.configure_connections();
    cluster.configure("fsync = off");
    cluster.configure("hot_standby = on");
    cluster.configure("archive_mode = off");
    cluster.configure_recovery(&archive.restore_command(Program::WalEve));
}

/// Recovers to the end of the archive and opens for writes.
fn recovered(archive: &Archive, major: u32, more: &[&str]) -> PgCluster {
    let mut cluster = restored(archive, major, more);
    cluster.set_recovery();
    start_to_the_end(cluster)
}

fn start_to_the_end(cluster: PgCluster) -> PgCluster {
    cluster.start();
    cluster.wait_until_sql("select not pg_is_in_recovery()", LIMIT);
    cluster
}

/// How many segments replay has taken from the prefetcher.
fn prefetched(archive: &Archive, standby: &PgCluster) -> u64 {
    let shown = archive.wal_eve().run(["prefetch-status", standby.data_dir().to_str().unwrap(), "--json"]);
    let status: serde_json::Value = serde_json::from_slice(&shown.assert_success().stdout).unwrap();
    status["hits"].as_u64().unwrap()
}

/// Where recovery is to end, and how to bring it to the end of a pause.
enum Target {
    Time,
    Lsn,
    Name,
}

fn journey(major: u32, archive: &Archive, target: &Target) {
    let source = primary(archiving(archive), major);
    push_backup(archive, &source, &[]);

    // The point in time, which more rows come after.
    insert(&source, 10_001, 12_000);
    let rows_at_target = source.psql(ROWS);
    let line = match target {
        Target::Time => {
            let time = source.psql("select clock_timestamp()");
            source.psql("select pg_sleep(0.1)");
            format!("recovery_target_time = '{time}'")
        }
        Target::Lsn => format!("recovery_target_lsn = '{}'", source.psql("select pg_current_wal_insert_lsn()")),
        Target::Name => {
            source.psql("select pg_create_restore_point('here')");
            "recovery_target_name = 'here'".to_owned()
        }
    };
    insert(&source, 12_001, 14_000);
    let rows_so_far = source.psql(ROWS);
    archive.wait_for_wal(&source, &source.switch_wal());

    // A standby has the rows, and new ones arrive while the primary goes on.
    let mut standby = restored(archive, major, &[]);
    standby.set_standby();
    standby.configure_recovery("recovery_target_timeline = 'latest'");
    // only the few segments that are there already come from the spool: those at the archive's end do not
    wait_for_listener(&standby);
    standby.start();
    standby.wait_until_sql("select count(*) = 14000 from t", LIMIT);
    assert_eq!(standby.psql(ROWS), rows_so_far);
    insert(&source, 14_001, 16_000);
    source.switch_wal();
    standby.wait_until_sql("select count(*) = 16000 from t", LIMIT);
    assert_eq!(standby.psql("select pg_is_in_recovery()"), "t");
    assert_eq!(standby.psql(ROWS), source.psql(ROWS));
    standby.wait_until("replay was given segments by the prefetcher", LIMIT, || prefetched(archive, &standby) > 0);
    standby.promote();
    standby.wait_until_sql("select not pg_is_in_recovery()", LIMIT);
    insert(&standby, 16_001, 16_002);
    drop(standby);

    let mut past = restored(archive, major, &[]);
    past.set_recovery();
    past.configure_recovery(&line);
    let action = if matches!(target, Target::Time) { "promote" } else { "pause" };
    past.configure_recovery(&format!("recovery_target_action = '{action}'"));
    past.start();
    if action == "pause" {
        let paused = if major < 14 {
            "select pg_is_wal_replay_paused()"
        } else {
            "select pg_get_wal_replay_pause_state() = 'paused'"
        };
        past.wait_until_sql(paused, LIMIT);
        assert_eq!(past.psql(ROWS), rows_at_target);
        past.psql("select pg_wal_replay_resume()");
    }
    past.wait_until_sql("select not pg_is_in_recovery()", LIMIT);
    assert_eq!(past.psql(ROWS), rows_at_target);
    insert(&past, 12_001, 12_002);
}

#[test]
fn the_whole_way_on_10_over_a_directory() {
    journey(10, &Archive::file(), &Target::Time);
}

#[test]
fn the_whole_way_on_11_over_s3() {
    journey(11, &Archive::s3(), &Target::Time);
}

#[test]
fn the_whole_way_on_12_over_s3() {
    journey(12, &Archive::s3(), &Target::Lsn);
}

#[test]
fn the_whole_way_on_13_over_a_directory() {
    journey(13, &Archive::file(), &Target::Name);
}

#[test]
fn the_whole_way_on_14_over_s3() {
    journey(14, &Archive::s3(), &Target::Time);
}

#[test]
fn the_whole_way_on_15_over_a_directory() {
    journey(15, &Archive::file(), &Target::Lsn);
}

#[test]
fn the_whole_way_on_16_over_a_directory() {
    journey(16, &Archive::file(), &Target::Name);
}

#[test]
fn the_whole_way_on_18_over_s3() {
    journey(18, &Archive::s3(), &Target::Name);
}

#[test]
fn wal_segments_of_other_sizes_are_archived_backed_up_and_replayed() {
    for (major, mib, archive) in [(11, 1, Archive::file()), (17, 64, Archive::s3())] {
        let options = archiving(&archive).initdb(format!("--wal-segsize={mib}"));
        let options = options.configure(format!("min_wal_size = {}MB", mib * 2));
        let source = primary(options.configure(format!("max_wal_size = {}MB", mib * 8)), major);
        // With a position that is not in the first segments, where any size gives the same numbers.
        if mib == 1 {
            source.psql("create table bulk as select n, repeat('x', 500) from generate_series(1, 12000) n");
        }
        source.switch_wal();
        push_backup(&archive, &source, &[]);
        insert(&source, 10_001, 11_000);
        let rows = source.psql(ROWS);
        archive.wait_for_wal(&source, &source.switch_wal());
        insert(&source, 11_001, 12_000);
        source.stop(Mode::Fast);
        let name = archive.backups().remove(0);
        let label = archive.keys_ending(".backup.lzo").remove(0);
        let (segment, offset) = label.strip_prefix("wal_005/").unwrap().split_once('.').unwrap();
        let offset = u64::from_str_radix(&offset[..8], 16).unwrap();
        assert_eq!(name, format!("base_{segment}_{offset:08}"));
        let mut copy = PgCluster::without_data(major);
        let told = fetch_backup(&archive, copy.data_dir(), &[]);
        let told = format!("{}{}", told.stdout_text(), told.stderr_text());
        assert_eq!(told.contains("min_wal_size = 128"), mib == 64, "{told}");
        configure_restored(&archive, &mut copy);
        copy.configure(&format!("min_wal_size = {}MB", mib * 2));
        copy.set_recovery();
        let copy = start_to_the_end(copy);
        assert!(copy.psql("select count(*) >= 11000 from t") == "t");
        assert_eq!(copy.psql(&format!("{ROWS} where n <= 11000")), rows);
    }
}

/// A standby of 15 over `archive`, which archives nothing itself.
fn standby_of(archive: &Archive) -> PgCluster {
    let mut standby = restored(archive, 15, &[]);
    standby.set_standby();
    standby.start();
    standby
}

#[test]
fn a_standby_is_backed_up_from_its_restartpoint_once_and_waits_for_its_primary() {
    let archive = Archive::s3();
    let source = primary(archiving(&archive), 15);
    push_backup(&archive, &source, &[]);
    archive.wait_for_wal(&source, &source.switch_wal());
    let standby = standby_of(&archive);
    let wal_eve = archive.wal_eve_with(&standby).timeout(LIMIT);
    let data_dir = standby.data_dir().to_str().unwrap();
    let push = ["backup-push", data_dir, "--fast"];

    // Its restartpoint is still where the primary's backup starts.
    standby.wait_until_sql("select count(*) = 10000 from t", LIMIT);
    let parts = archive.keys_ending(".tar.lzo");
    let refused = wal_eve.run(push).assert_code(1);
    assert!(refused.stderr_text().contains("exists already"), "{}", refused.stderr_text());
    assert_eq!(archive.keys_ending(".tar.lzo"), parts, "refused before anything was copied");

    source.psql("checkpoint");
    insert(&source, 10_001, 11_000);
    archive.wait_for_wal(&source, &source.switch_wal());
    standby.wait_until_sql("select count(*) = 11000 from t", LIMIT);
    standby.psql("checkpoint");
    let position = standby.psql("select redo_lsn, timeline_id from pg_control_checkpoint()");
    let (redo, _) = position.split_once('|').unwrap();
    let expected = source.psql(&format!(
        "select 'base_' || file_name || '_' || lpad(file_offset::text, 8, '0') from pg_walfile_name_offset('{redo}')"
    ));
    let running = wal_eve.spawn(push);
    // The stop position is in a segment that only the primary can end.
    standby.wait_until("the backup waits for WAL or is complete", LIMIT, || {
        insert(&source, 11_001, 11_001);
        source.switch_wal();
        archive.backups().len() == 2
    });
    running.wait().assert_success();
    assert_eq!(archive.backups().last(), Some(&expected));
    source.stop(Mode::Fast);
    let rows = |cluster: &PgCluster| cluster.psql("select count(*) from t where n <= 11000");
    let target = PgCluster::without_data(15);
    let output = fetch_backup(&archive, target.data_dir(), &[]);
    let told = output.stdout_text();
    for said in [
        "the backup brought standby.signal along",
        "postgresql.conf, pg_hba.conf and pg_ident.conf",
        "max_connections = ",
    ] {
        assert!(told.contains(said), "{told}");
    }
    drop(target);
    let mut copy = restored(&archive, 15, &[]);
    fs::remove_file(copy.data_dir().join("standby.signal")).unwrap();
    copy.set_recovery();
    let copy = start_to_the_end(copy);
    assert_eq!(rows(&copy).parse::<u32>().unwrap() / 1000, 11);
}

#[test]
fn a_stopped_cluster_is_backed_up_by_its_right_name_and_starts_without_the_archive() {
    let archive = Archive::file();
    let mut source = primary(archiving(&archive), 15);
    // Far enough that WAL-E's own name would be wrong.
    source.switch_wal();
    source.psql("checkpoint");
    let rows = source.psql(ROWS);
    source.stop(Mode::Fast);
    let control = Tool::new(source.bin().program("pg_controldata"), [("LC_ALL", "C")]);
    let control = control.run(["-D", source.data_dir().to_str().unwrap()]).assert_success().stdout_text();
    let redo = control.lines().find(|line| line.contains("REDO location")).unwrap().split(' ').next_back().unwrap();
    let file = control.lines().find(|line| line.contains("REDO WAL file")).unwrap().split(' ').next_back().unwrap();
    let (_, low) = redo.split_once('/').unwrap();
    let offset = u64::from_str_radix(low, 16).unwrap() % (16 << 20);

    let data_dir = source.data_dir().to_str().unwrap().to_owned();
    let arguments = ["backup-push", "--while-offline", "--include-config", &data_dir];
    archive.wal_eve().timeout(LIMIT).run(arguments).assert_success();
    assert_eq!(archive.backups(), [format!("base_{file}_{offset:08}")]);
    // Again, now that it exists.
    archive.wal_eve().run(arguments).assert_code(1);

    // The archive is of no help: the copy has all that it needs.
    let mut copy = PgCluster::without_data(15);
    let output = fetch_backup(&archive, copy.data_dir(), &[]);
    assert!(!output.stderr_text().contains("sentinel says"), "every byte counts: {}", output.stderr_text());
    copy.configure_connections();
    copy.configure("archive_mode = off");
    copy.start();
    assert_eq!(copy.psql(ROWS), rows);
    assert_eq!(copy.psql("select pg_is_in_recovery()"), "f");

    // A running cluster is not taken for a stopped one.
    source.configure("archive_mode = off");
    source.start();
    let refused = archive.wal_eve().run(arguments).assert_code(1);
    assert!(refused.stderr_text().contains("postmaster.pid"), "{}", refused.stderr_text());
}

#[test]
fn a_stopped_standby_is_backed_up_with_the_segments_to_where_it_is_consistent() {
    let archive = Archive::file();
    let source = primary(archiving(&archive), 15);
    push_backup(&archive, &source, &[]);
    insert(&source, 10_001, 11_000);
    let rows = source.psql(ROWS);
    archive.wait_for_wal(&source, &source.switch_wal());
    let standby = standby_of(&archive);
    // it has replayed the switch, so what it needs ends where no segment follows
    let at_boundary = "pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0') % (16 * 1024 * 1024) = 0";
    standby.wait_until_sql(&format!("select {at_boundary} and count(*) = 11000 from t"), LIMIT);
    standby.stop(Mode::Fast);
    let control = DataDirectory::open(standby.data_dir()).unwrap().control_file().unwrap();
    assert_eq!((control.state, control.min_recovery_point.0 % (16 << 20)), (ClusterState::ShutDownInRecovery, 0));

    // an archive without any WAL: the copy has all that it needs
    let other = Archive::file();
    let push = ["backup-push", "--while-offline", standby.data_dir().to_str().unwrap()];
    other.wal_eve().timeout(LIMIT).run(push).assert_success();
    let mut copy = restored(&other, 15, &[]);
    copy.set_standby();
    copy.start();
    assert_eq!(copy.psql(ROWS), rows);
    copy.promote();
    assert_eq!(copy.psql(ROWS), rows);

    // a segment that is needed is missed before anything is copied
    let needed = SegmentName::ending_at(1, control.min_recovery_point, control.wal_segment_size);
    fs::remove_file(standby.data_dir().join(format!("pg_wal/{needed}"))).unwrap();
    let empty = Archive::file();
    let refused = empty.wal_eve().timeout(LIMIT).run(push).assert_code(1).stderr_text();
    assert!(refused.contains(&format!("segment {needed}, which the server needs to start")), "{refused}");
    assert_eq!(empty.keys(), [""; 0]);
}

/// `pg_verifybackup -n`: every file is as the manifest says, WAL aside.
fn verify(cluster: &PgCluster) {
    let tool = Tool::new(cluster.bin().program("pg_verifybackup"), [("LC_ALL", "C")]);
    let output = tool.run(["-n", cluster.data_dir().to_str().unwrap()]).assert_success();
    assert!(output.stdout_text().contains("backup successfully verified"), "{}", output.stdout_text());
}

#[test]
fn a_restore_beside_the_running_source_leaves_its_tablespaces_alone_and_verifies() {
    let archive = Archive::s3();
    let source = primary(archiving(&archive), 15);
    let places = ["one", "two", "three with odd \\name"].map(|name| source.root().join(name));
    for (index, place) in places.iter().enumerate() {
        fs::create_dir(place).unwrap();
        source.psql(&format!("create tablespace ts{index} location '{}'", place.display()));
        source.psql(&format!("create table in_ts{index} tablespace ts{index} as select generate_series(1, 1000) as n"));
    }
    let oids: Vec<String> = source
        .psql("select oid from pg_tablespace where spcname like 'ts%' order by spcname")
        .lines()
        .map(str::to_owned)
        .collect();
    push_backup(&archive, &source, &["--include-config"]);
    archive.wait_for_wal(&source, &source.switch_wal());
    source.psql("checkpoint");
    let before: Vec<_> = places.iter().map(|place| dir_tree(place)).collect();

    // The source's places are in use.
    let refused = temp_dir();
    let refused = refused.path().join("d");
    let arguments = ["backup-fetch", refused.to_str().unwrap(), "LATEST", "--restore-spec", "SOURCE"];
    let output = archive.wal_eve().run(arguments).assert_code(1);
    assert!(output.stderr_text().contains("is not empty"), "{}", output.stderr_text());

    // Each to a place of its own by a specification, and, in a second copy, by links that are there, one left a directory.
    let by_spec = PgCluster::without_data(15);
    let elsewhere = |cluster: &PgCluster, index: usize| cluster.root().join(format!("moved {index}"));
    let mut spec = serde_json::json!({});
    for (index, oid) in oids.iter().enumerate() {
        let place = elsewhere(&by_spec, index);
        spec[oid] = serde_json::json!({ "loc": format!("{}/", place.display()), "link": format!("pg_tblspc/{oid}") });
    }
    let file = by_spec.root().join("spec.json");
    fs::write(&file, spec.to_string()).unwrap();
    let by_links = PgCluster::without_data(15);
    fs::create_dir_all(by_links.data_dir().join("pg_tblspc")).unwrap();
    for (index, oid) in oids.iter().enumerate().take(2) {
        fs::create_dir(elsewhere(&by_links, index)).unwrap();
        symlink(elsewhere(&by_links, index), by_links.data_dir().join("pg_tblspc").join(oid)).unwrap();
    }
    let in_place = PgCluster::without_data(15);
    for (mut copy, more) in [
        (by_spec, vec!["--restore-spec", file.to_str().unwrap()]),
        (by_links, vec!["--blind-restore"]),
        (in_place, vec!["--blind-restore"]),
    ] {
        let output = fetch_backup(&archive, copy.data_dir(), &more);
        verify(&copy);
        for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
            let read = |directory: &Path| fs::read(directory.join(name)).unwrap();
            assert_eq!(read(copy.data_dir()), read(source.data_dir()), "--include-config");
        }
        let has_directories = oids.iter().any(|oid| !copy.data_dir().join("pg_tblspc").join(oid).is_symlink());
        let told = format!("{}{}", output.stdout_text(), output.stderr_text()).contains("allow_in_place_tablespaces");
        assert_eq!(told, has_directories);
        copy.configure_connections();
        copy.configure("archive_mode = off");
        if has_directories {
            copy.configure("allow_in_place_tablespaces = on");
        }
        copy.configure_recovery(&archive.restore_command(Program::WalEve));
        copy.set_recovery();
        let copy = start_to_the_end(copy);
        for index in 0..oids.len() {
            assert_eq!(copy.psql(&format!("select count(*) from in_ts{index}")), "1000");
            copy.psql(&format!("insert into in_ts{index} select generate_series(1, 5000)"));
            copy.psql(&format!("create table new{index} tablespace ts{index} as select 1 as n"));
        }
        copy.psql("checkpoint");
        copy.stop(Mode::Fast);
    }
    let after: Vec<_> = places.iter().map(|place| dir_tree(place)).collect();
    assert_eq!(before, after, "nothing was written to the source's tablespaces");
    assert_eq!(source.psql("select count(*) from in_ts2"), "1000");
}

#[test]
fn a_backup_whose_connection_is_lost_fails_at_once_and_leaves_nothing() {
    let archive = Archive::s3();
    let source = primary(archiving(&archive), 15);
    source.psql("create table big as select n, repeat('x', 500) from generate_series(1, 20000) n");
    let wal_eve = archive.wal_eve_with(&source).timeout(LIMIT);
    // Slow enough to be cut off in the middle.
    let arguments =
        ["backup-push", source.data_dir().to_str().unwrap(), "--fast", "--cluster-read-rate-limit", "1000000"];
    let running = wal_eve.spawn(arguments);
    source.wait_until("the copying has begun", LIMIT, || !archive.keys_ending("extended_version.txt").is_empty());
    let ended = "select count(pg_terminate_backend(pid)) from pg_stat_activity where pid <> pg_backend_pid() and backend_type = 'client backend'";
    assert_ne!(source.psql(ended), "0");
    let failed = running.wait();
    assert!(!matches!(failed.code(), Some(0) | None), "{}", failed.stderr_text());
    let text = failed.stderr_text();
    assert!(text.contains("connection that held the backup is lost"), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    let left: Vec<_> = archive.keys().into_iter().filter(|key| key.starts_with("basebackups_005/")).collect();
    assert_eq!(left, [""; 0]);
    // Nothing of it is in the way of the next.
    push_backup(&archive, &source, &[]);
    assert_eq!(archive.backups().len(), 1);
}

#[test]
fn a_backup_whose_wal_does_not_arrive_ends_at_the_limit_and_leaves_nothing() {
    let archive = Archive::file();
    // nothing is archived before the backup starts, so that the failure is not known then
    let options = PgCluster::options().configure("archive_mode = on").configure("archive_command = 'false'");
    for (major, limit) in [(10, "0"), (18, "1")] {
        let source = options.clone().init(major);
        source.start();
        let push = ["backup-push", source.data_dir().to_str().unwrap(), "--fast", "--wal-timeout", limit];
        let refused = archive.wal_eve_with(&source).timeout(LIMIT).run(push).assert_code(1).stderr_text();
        for words in ["the archive still lacks", &format!("It was waited for {limit} s."), "--wal-timeout waits longer"]
        {
            assert!(refused.contains(words), "PostgreSQL {major}: {refused}");
        }
        assert_eq!(archive.keys(), [""; 0], "PostgreSQL {major}");
    }
}

#[test]
fn a_role_that_has_only_the_backup_functions_can_back_up() {
    let archive = Archive::file();
    let source = archiving(&archive).init(15);
    source.start();
    source.psql("create role archivist login");
    let push = ["backup-push", source.data_dir().to_str().unwrap(), "--fast"];
    let wal_eve = archive.wal_eve_with(&source).env("PGUSER", "archivist").timeout(LIMIT);
    let refused = wal_eve.run(push).assert_code(1).stderr_text();
    assert!(refused.contains("grant this user the execution of the backup functions"), "{refused}");

    source.psql(
        "grant execute on function pg_backup_start, pg_backup_stop to archivist;
         create database closed;
         revoke connect on database closed from public;",
    );
    let warnings = || {
        let told = wal_eve.run(push).assert_success().stderr_text();
        told.matches("GRANT pg_read_all_stats TO \"archivist\"").count()
    };
    assert_eq!(warnings(), 1);
    source.psql("grant pg_read_all_stats to archivist");
    assert_eq!(warnings(), 0);
    assert_eq!(archive.backups().len(), 2);
}

#[test]
fn a_backup_under_heavy_writes_is_consistent() {
    let archive = Archive::s3();
    let options = archiving(&archive).initdb("--data-checksums").configure("autovacuum_naptime = 1s");
    let source = primary(options.configure("shared_buffers = 2MB"), 15);
    source.psql("create table account (id int primary key, balance int); insert into account select n, 100 from generate_series(1, 5000) n");
    // Rows that move, so that any mixture of old and new pages has another sum; files that grow, shrink and vanish.
    let writer = "do $$ declare i int; begin
        for i in 1..100000 loop
            update account set balance = balance + (case when id % 2 = i % 2 then 1 else -1 end) where id % 100 in (i % 99, i % 99 + 1);
            if i % 5 = 0 then
                execute format('create table w%s as select n, repeat(''w'', 300) from generate_series(1, 3000) n', i);
                execute format('drop table if exists w%s', greatest(i - 50, 0));
            end if;
            if i % 20 = 0 then truncate t; insert into t select n, 'row ' || n from generate_series(1, 10000) n; end if;
            commit;
        end loop; end $$";
    let environment = source.environment();
    let psql = environment
        .into_iter()
        .fold(Tool::new(source.bin().program("psql"), [("LC_ALL", "C")]), |tool, (name, value)| tool.env(name, value));
    let mut writing = psql.timeout(LIMIT * 2).spawn(["-X", "-c", writer]);
    source.wait_until_sql("select count(*) > 3 from pg_class where relname ~ '^w[0-9]+$'", LIMIT);
    let vacuum = source
        .environment()
        .into_iter()
        .fold(Tool::new(source.bin().program("psql"), [("LC_ALL", "C")]), |tool, (name, value)| tool.env(name, value));
    let mut vacuuming =
        vacuum.timeout(LIMIT * 2).spawn(["-X", "-c", "vacuum full account", "-c", "vacuum", "-c", "checkpoint"]);
    push_backup(&archive, &source, &["--cluster-read-rate-limit", "15000000"]);
    assert!(writing.is_running(), "the writer was at work the whole time");
    writing.kill9();
    vacuuming.kill9();
    source.stop(Mode::Fast);

    let copy = recovered(&archive, 15, &[]);
    assert_eq!(copy.psql("select sum(balance), count(*) from account"), "500000|5000");
    assert_eq!(copy.psql("set enable_seqscan = off; select count(*) from account where id > 0"), "5000");
    assert_eq!(copy.psql(ROWS).split('|').next(), Some("10000"));
    let tables =
        copy.psql("select format('select count(*) from %I', relname) from pg_class where relname ~ '^w[0-9]+$'");
    for query in tables.lines() {
        assert_eq!(copy.psql(query), "3000");
    }
    copy.psql("create extension amcheck; select bt_index_check('account_pkey', true)");
    copy.stop(Mode::Fast);
    let checksums = Tool::new(copy.bin().program("pg_checksums"), [("LC_ALL", "C")]);
    checksums.timeout(LIMIT).run(["--check", "-D", copy.data_dir().to_str().unwrap()]).assert_success();
}

#[test]
fn a_server_that_does_not_archive_is_refused_before_the_start() {
    let archive = Archive::file();
    let mut cluster = PgCluster::options().configure("archive_mode = off").init(15);
    cluster.start();
    let arguments = ["backup-push".to_owned(), cluster.data_dir().display().to_string(), "--fast".to_owned()];
    let refused = |cluster: &PgCluster, message: &str| {
        let output = archive.wal_eve_with(cluster).run(&arguments).assert_code(1);
        let text = output.stderr_text();
        assert!(text.contains(message) && text.contains("HINT"), "{text}");
        assert_eq!(archive.keys(), [""; 0]);
        assert!(!cluster.log().contains("checkpoint starting: immediate force wait"), "no backup was started");
    };
    refused(&cluster, "archive_mode is off");
    cluster.stop(Mode::Fast);
    for (line, message) in
        [("archive_command = ''", "archive_command is not set"), ("archive_command = 'false'", "archiving fails")]
    {
        cluster.configure("archive_mode = on");
        cluster.configure(line);
        cluster.start();
        if message == "archiving fails" {
            cluster.switch_wal();
            cluster.wait_until_sql("select failed_count > 0 from pg_stat_archiver", LIMIT);
        }
        refused(&cluster, message);
        cluster.stop(Mode::Immediate);
    }
}
