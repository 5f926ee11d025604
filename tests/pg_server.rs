//! What only real servers can show of the `pg` floor: that the control file is read as the server means it, and that a
//! backup's session, walk and label make a copy that starts.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use support::postgres::MAJORS;
use support::{Mode, PgCluster};
use wal_eve::formats::wal_name::SegmentSize;
use wal_eve::fs::account::user_name;
use wal_eve::pg::Kind;
use wal_eve::pg::backup_label::BackupLabel;
use wal_eve::pg::backup_session::BackupSession;
use wal_eve::pg::connection_settings::ConnectionSettings;
use wal_eve::pg::control_file::ClusterState;
use wal_eve::pg::data_directory::{DataDirectory, Postmaster};
use wal_eve::pg::finding::Severity;
use wal_eve::pg::recovery_mode::RecoveryMode;
use wal_eve::pg::server::Server;
use wal_eve::pg::tablespace_map::TablespaceMap;
use wal_eve::pg::walk::{EntryKind, Found, Walk, WalkOptions};

const LIMIT: Duration = Duration::from_secs(120);

fn settings(cluster: &PgCluster, user: &str) -> ConnectionSettings {
    let options = PgConnectOptions::new_without_pgpass();
    let options = options.socket(cluster.socket_dir()).port(5432).username(user).database("postgres");
    ConnectionSettings::new(options, Duration::from_secs(10))
}

async fn connect(cluster: &PgCluster) -> Server {
    Server::connect(&settings(cluster, "postgres")).await.unwrap()
}

fn directory(cluster: &PgCluster) -> DataDirectory {
    DataDirectory::open(cluster.data_dir()).unwrap()
}

/// A cluster that archives by `cp` into the directory `archive` beside its data.
fn archiving_cluster(major: u32) -> PgCluster {
    let mut cluster = PgCluster::init(major);
    let archive = cluster.root().join("archive");
    fs::create_dir(&archive).unwrap();
    cluster.configure("archive_mode = on");
    cluster.configure(&format!("archive_command = 'cp %p {}/%f'", archive.display()));
    cluster
}

#[test]
fn the_control_file_says_what_the_server_says() {
    for major in MAJORS {
        let options = PgCluster::options().initdb("--data-checksums");
        // 10 has one size, compiled in
        let (options, mebibytes) = if major < 11 { (options, 16) } else { (options.initdb("--wal-segsize=4"), 4) };
        let mut cluster = options.configure("wal_level = logical").configure("max_connections = 37").init(major);
        cluster.configure("max_worker_processes = 11");
        cluster.configure("max_wal_senders = 7");
        cluster.configure("max_prepared_transactions = 5");
        cluster.configure("max_locks_per_transaction = 77");
        assert_eq!(directory(&cluster).control_file().unwrap().state, ClusterState::ShutDown);
        cluster.start();
        cluster.psql("checkpoint");
        let data = directory(&cluster);
        assert_eq!(data.major().to_string(), major.to_string());
        let control = data.control_file().unwrap();
        let system = cluster.psql(
            "select system_identifier, pg_control_version, catalog_version_no, \
             extract(epoch from pg_control_last_modified)::bigint from pg_control_system()",
        );
        let expected = [
            control.system_identifier.cast_signed().to_string(),
            control.control_version.to_string(),
            control.catalog_version.to_string(),
            control.time.to_string(),
        ];
        assert_eq!(system, expected.join("|"), "PostgreSQL {major}");
        let checkpoint = cluster.psql("select checkpoint_lsn, redo_lsn, timeline_id from pg_control_checkpoint()");
        assert_eq!(checkpoint, format!("{}|{}|{}", control.checkpoint, control.redo, control.timeline));
        let recovery = cluster.psql(
            "select min_recovery_end_lsn, min_recovery_end_timeline, backup_start_lsn from pg_control_recovery()",
        );
        let points = (control.min_recovery_point, control.min_recovery_timeline, control.backup_start_point);
        assert_eq!(recovery, format!("{}|{}|{}", points.0, points.1, points.2));
        let init = cluster
            .psql("select database_block_size, wal_block_size, bytes_per_wal_segment, data_page_checksum_version from pg_control_init()");
        let segment = control.wal_segment_size.bytes();
        assert_eq!(init, format!("{}|{}|{segment}|1", control.block_size, control.wal_block_size));
        assert_eq!(segment, mebibytes << 20);
        assert!(control.data_checksums);
        assert_eq!(control.state, ClusterState::InProduction);
        assert_eq!(control.wal_level.to_string(), "logical");
        assert_eq!((control.max_connections, control.max_worker_processes), (37, 11));
        assert_eq!(control.max_wal_senders, (major >= 12).then_some(7));
        assert_eq!((control.max_prepared_xacts, control.max_locks_per_xact), (5, 77));
        assert!(matches!(data.postmaster().unwrap(), Postmaster::Present { pid: Some(_), started: Some(_) }));
        cluster.stop(Mode::Fast);
        assert_eq!(data.control_file().unwrap().state, ClusterState::ShutDown);
        assert_eq!(data.postmaster().unwrap(), Postmaster::None);
    }
}

/// Copies what the walk tells, `pg_control` last, and adds the label and the map.
fn copy(data: &DataDirectory, to: &Path) {
    for found in Walk::new(data, WalkOptions { include_config: true, offline: false }).unwrap() {
        let Found::Entry(entry) = found.unwrap() else { continue };
        let name = entry.name.to_str().unwrap();
        let target = if name == "/" { to.to_owned() } else { to.join(name) };
        match entry.kind {
            EntryKind::Directory => {
                fs::create_dir_all(&target).unwrap();
                fs::set_permissions(&target, fs::Permissions::from_mode(entry.mode)).unwrap();
            }
            EntryKind::File { .. } => {
                fs::create_dir_all(target.parent().unwrap()).unwrap();
                match fs::copy(&entry.path, &target) {
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                    done => drop(done.unwrap()),
                }
            }
            EntryKind::Symlink { target: text } => symlink(text, target).unwrap(),
        }
    }
    let control = data.copy_control_file().unwrap();
    fs::write(to.join("global/pg_control"), control).unwrap();
}

#[tokio::test]
async fn a_copy_made_between_start_and_stop_starts() {
    for major in MAJORS {
        let cluster = archiving_cluster(major);
        cluster.start();
        let (place, new_place) = (cluster.root().join("ts"), cluster.root().join("new ts"));
        fs::create_dir(&place).unwrap();
        fs::create_dir(&new_place).unwrap();
        fs::set_permissions(&new_place, fs::Permissions::from_mode(0o700)).unwrap();
        cluster.psql(&format!("create tablespace ts location '{}'", place.display()));
        cluster.psql("create table before tablespace ts as select generate_series(1, 10000) as i");
        cluster.switch_wal();
        cluster.wait_until_sql("select archived_count > 0 from pg_stat_archiver", LIMIT);

        let mut server = connect(&cluster).await;
        let data = directory(&cluster);
        assert_eq!(server.version().major(), data.major());
        assert!(server.version_text().starts_with(&format!("PostgreSQL {major}.")));
        assert!(!server.in_recovery());
        assert_eq!(server.wal_segment_size(), SegmentSize::DEFAULT);
        assert_eq!(server.data_directory(), cluster.data_dir().to_str());
        assert_eq!(server.archiving().await.unwrap().findings(), []);
        assert_eq!(server.check_directory(&data).unwrap(), []);

        let session = BackupSession::start(server, "a label: with a colon", true).await.unwrap();
        let start = session.started();
        let name = cluster
            .psql(&format!("select file_name || '|' || file_offset from pg_walfile_name_offset('{}')", start.lsn));
        assert_eq!(name, format!("{}|{}", start.segment, start.offset));
        cluster.psql("create table during as select generate_series(1, 1000) as i");
        session.ping().await.unwrap();

        let mut restored = PgCluster::without_data(major);
        let link = restored.data_dir().join("pg_tblspc");
        fs::create_dir_all(&link).unwrap();
        let oid = cluster.psql("select oid from pg_tablespace where spcname = 'ts'");
        symlink(&new_place, link.join(&oid)).unwrap();
        copy(&data, restored.data_dir());
        cluster.psql("insert into during values (0)");

        let lost = session.lost();
        let stop = session.stop(true, LIMIT).await.unwrap();
        assert!(tokio::time::timeout(Duration::ZERO, lost).await.is_err(), "a stopped session is not lost");
        assert!(stop.lsn > start.lsn);
        let name = cluster
            .psql(&format!("select file_name || '|' || file_offset from pg_walfile_name_offset('{}')", stop.lsn));
        assert_eq!(name, format!("{}|{}", stop.segment, stop.offset));
        let archive = cluster.root().join("archive");
        for segment in [start.segment, stop.segment] {
            assert!(archive.join(segment.to_string()).exists(), "the server waited for {segment}");
        }
        let label = BackupLabel::parse(&stop.backup_label).unwrap();
        assert_eq!((label.start, label.segment, label.timeline), (start.lsn, start.segment, stop.timeline));
        assert_eq!(label.label.as_deref(), Some("a label: with a colon"));
        assert_eq!(label.method.as_deref(), Some("streamed"));
        let map = TablespaceMap::parse(stop.tablespace_map.as_bytes()).unwrap();
        assert_eq!(
            (map.tablespaces[0].oid_name.as_str(), map.tablespaces[0].location.as_path()),
            (oid.as_str(), &*place)
        );

        let map = map.relocated(|_| Some(new_place.clone()));
        fs::write(restored.data_dir().join("backup_label"), &stop.backup_label).unwrap();
        fs::write(restored.data_dir().join("tablespace_map"), map.to_bytes()).unwrap();
        cluster.stop(Mode::Fast);
        fs::rename(&place, cluster.root().join("gone")).unwrap();
        restored.configure_connections();
        restored.configure("archive_mode = off");
        restored.set_recovery();
        restored.configure_recovery(&format!("restore_command = 'cp {}/%f %p'", archive.display()));
        let expected = RecoveryMode::Recovery;
        assert_eq!(RecoveryMode::of(&directory(&restored)), expected);
        restored.start();
        restored.wait_until_sql("select not pg_is_in_recovery()", LIMIT);
        assert_eq!(restored.psql("select (select count(*) from before), (select count(*) from during)"), "10000|1001");
    }
}

#[tokio::test]
async fn a_standby_can_be_backed_up_and_is_not_taken_for_its_primary() {
    for major in MAJORS {
        let mut primary = archiving_cluster(major);
        primary.configure("max_wal_senders = 3");
        primary.start();
        let session = BackupSession::start(connect(&primary).await, "base", true).await.unwrap();
        let mut standby = PgCluster::without_data(major);
        copy(&directory(&primary), standby.data_dir());
        let stop = session.stop(false, LIMIT).await.unwrap();
        assert_eq!(stop.tablespace_map, "");
        fs::write(standby.data_dir().join("backup_label"), stop.backup_label).unwrap();
        standby.configure_connections();
        standby.set_standby();
        let host = primary.socket_dir();
        standby.configure_recovery(&format!("primary_conninfo = 'host={} user=postgres'", host.display()));
        assert!(RecoveryMode::of(&directory(&standby)).is_standby());
        standby.start();

        let mut server = connect(&standby).await;
        assert!(server.in_recovery());
        assert_eq!(server.system_identifier(), directory(&primary).control_file().unwrap().system_identifier);
        let findings = server.archiving().await.unwrap().findings();
        assert_eq!(findings.iter().map(|f| f.severity).collect::<Vec<_>>(), [Severity::Warning]);
        assert_eq!(server.check_directory(&directory(&standby)).unwrap(), []);
        let wrong = server.check_directory(&directory(&primary)).unwrap();
        assert_eq!(wrong.iter().map(|f| f.severity).collect::<Vec<_>>(), [Severity::Refusal]);

        let session = BackupSession::start(server, "of a standby", true).await.unwrap();
        primary.psql("create table during as select generate_series(1, 1000) as i");
        primary.psql("checkpoint");
        standby.wait_until_sql("select count(*) = 1 from pg_class where relname = 'during'", LIMIT);
        let start = session.started();
        let stop = session.stop(false, LIMIT).await.unwrap();
        assert!(stop.lsn >= start.lsn, "{stop:?}");
        let label = BackupLabel::parse(&stop.backup_label).unwrap();
        assert_eq!((label.start, label.segment), (start.lsn, start.segment));
        assert_eq!(label.from.as_deref(), Some("standby"));

        // Promotion voids a backup: the server says so, and so does the session.
        let session = BackupSession::start(connect(&standby).await, "across a promotion", true).await.unwrap();
        standby.promote();
        assert_eq!(session.stop(false, LIMIT).await.unwrap_err().kind(), Kind::Server, "PostgreSQL {major}");
    }
}

#[tokio::test]
async fn a_connection_that_breaks_is_told_of_at_once() {
    let cluster = archiving_cluster(15);
    cluster.start();
    let session = BackupSession::start(connect(&cluster).await, "lost", true).await.unwrap();
    let lost = session.lost();
    cluster.psql("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'wal-eve'");
    let error = tokio::time::timeout(Duration::from_secs(20), lost).await.expect("a loss is noticed within seconds");
    assert_eq!(error.kind(), Kind::Lost);
    assert!(error.detail().unwrap().contains("the server gave no sign of life"), "{error:?}");
    assert_eq!(session.ping().await.unwrap_err().kind(), Kind::Lost);
    assert_eq!(session.stop(false, LIMIT).await.unwrap_err().kind(), Kind::Lost);
}

#[tokio::test]
async fn a_dropped_session_gives_the_backup_up() {
    let cluster = archiving_cluster(15);
    cluster.start();
    let session = BackupSession::start(connect(&cluster).await, "dropped", true).await.unwrap();
    let lost = session.lost();
    drop(session);
    assert_eq!(lost.await.kind(), Kind::Lost);
    tokio::time::sleep(Duration::from_millis(500)).await;
    cluster.wait_until_sql("select count(*) = 0 from pg_stat_activity where application_name = 'wal-eve'", LIMIT);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_timeouts_of_a_role_do_not_end_the_session_that_holds_a_backup() {
    for major in [13, 18] {
        let mut cluster = PgCluster::init(major);
        let (archive, go) = (cluster.root().join("archive"), cluster.root().join("go"));
        fs::create_dir(&archive).unwrap();
        let (archive, go_path) = (archive.display(), go.display());
        cluster.configure("archive_mode = on");
        // the server waits for the file; and not for ever, should the test fail
        cluster.configure(&format!(
            "archive_command = 'while test -d {archive} && ! test -e {go_path}; do sleep 0.1; done; cp %p {archive}/%f'"
        ));
        cluster.start();
        cluster.psql("create role hurried superuser login");
        let mut timeouts = vec!["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"];
        timeouts.extend((major >= 14).then_some("idle_session_timeout"));
        timeouts.extend((major >= 17).then_some("transaction_timeout"));
        for timeout in timeouts {
            cluster.psql(&format!("alter role hurried set {timeout} = '1s'"));
        }
        let wait_until_for_long = |state: &str| {
            let query = "select count(*) = 1 from pg_stat_activity where application_name = 'wal-eve'";
            let query = format!("{query} and state = '{state}' and clock_timestamp() - state_change > '2s'");
            cluster.wait_until_sql(&query, LIMIT);
        };
        let server = Server::connect(&settings(&cluster, "hurried")).await.unwrap();
        let session = BackupSession::start(server, "of a role in a hurry", true).await.unwrap();
        wait_until_for_long("idle");
        session.ping().await.unwrap();
        let stopping = tokio::spawn(session.stop(true, LIMIT));
        wait_until_for_long("active");
        fs::write(go, "").unwrap();
        stopping.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_stop_that_waits_for_a_dead_archive_ends_in_time() {
    let mut cluster = archiving_cluster(15);
    cluster.configure("archive_command = 'false'");
    cluster.start();
    let session = BackupSession::start(connect(&cluster).await, "no archive", true).await.unwrap();
    let error = session.stop(true, Duration::from_secs(2)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Refused);
    // The archiver's failure is known by now, and the next backup is refused.
    cluster.wait_until_sql("select failed_count > 0 from pg_stat_archiver", LIMIT);
    let findings = connect(&cluster).await.archiving().await.unwrap().findings();
    assert_eq!(findings.len(), 1);
    assert_eq!(findings[0].severity, Severity::Refusal);
    assert!(findings[0].message.contains("archiving fails"), "{findings:?}");
}

#[tokio::test]
async fn refusals_say_why() {
    let cluster = PgCluster::init(15);
    let nobody = Server::connect(&settings(&cluster, "postgres")).await.unwrap_err();
    assert_eq!(nobody.kind(), Kind::Unreachable);
    cluster.start();
    cluster.psql("create role someone login");
    let stranger = Server::connect(&settings(&cluster, "stranger")).await.unwrap_err();
    assert_eq!(stranger.kind(), Kind::Server);
    assert!(stranger.detail().unwrap().contains("\"stranger\" does not exist"), "{stranger:?}");

    let mut someone = Server::connect(&settings(&cluster, "someone")).await.unwrap();
    assert_eq!(someone.data_directory(), None);
    assert_eq!(someone.check_directory(&directory(&cluster)).unwrap(), [], "the start times agree");
    let findings = someone.archiving().await.unwrap().findings();
    assert_eq!(findings.iter().map(|f| f.message.as_str()).collect::<Vec<_>>(), ["archive_mode is off"]);
    let error = BackupSession::start(someone, "not allowed", true).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Server);
    assert!(error.hint().unwrap().contains("superuser"), "{error:?}");

    let error = BackupSession::start(connect(&cluster).await, "two\nlines", true).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Settings);

    let other = PgCluster::init(15);
    let server = connect(&cluster).await;
    let findings = server.check_directory(&directory(&other)).unwrap();
    assert!(findings[0].message.contains("belongs to another cluster"), "{findings:?}");
    server.close().await;
}

/// Says how connecting with the settings of the environment went, in a process of its own: the driver reads the
/// process's environment. A test of its own only when [`connect_with_environment`] starts it.
#[tokio::test]
async fn connects_with_the_environment_when_asked_to() {
    if std::env::var_os("WAL_EVE_TEST_CONNECT").is_none() {
        return;
    }
    let settings = ConnectionSettings::from_environment(|name| std::env::var(name).ok()).unwrap();
    match Server::connect(&settings).await {
        Ok(server) => println!("connected to {} as {}", server.data_directory().unwrap(), settings.user()),
        Err(e) => println!("failed: {e} {:?}", e.detail()),
    }
}

fn connect_with_environment(variables: &[(&str, &str)]) -> String {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "connects_with_the_environment_when_asked_to", "--nocapture"]);
    command.env("WAL_EVE_TEST_CONNECT", "1").env_remove("PGUSER").envs(variables.iter().copied());
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}

#[tokio::test]
async fn a_refusal_on_a_socket_has_nothing_to_do_with_encryption() {
    let cluster = PgCluster::init(15);
    fs::write(cluster.data_dir().join("pg_hba.conf"), "local all all reject\n").unwrap();
    cluster.start();
    let host = cluster.socket_dir().display().to_string();
    // as PGHOST has it
    let options = PgConnectOptions::new_without_pgpass().host(&host).port(5432).username("postgres");
    let refused = Server::connect(&ConnectionSettings::new(options, LIMIT)).await.unwrap_err();
    assert_eq!(refused.sqlstate(), Some("28000"), "{refused:?}");
    let hint = refused.hint().unwrap();
    assert!(hint.contains("pg_hba.conf") && !hint.contains("hostssl"), "{hint}");
}

#[test]
fn a_password_file_is_honoured_whatever_pgdatabase_says_and_without_pguser() {
    let cluster = PgCluster::init(15);
    cluster.start();
    let own = user_name(rustix::process::geteuid().as_raw()).unwrap();
    if own != "postgres" {
        cluster.psql(&format!("create role \"{own}\" superuser login"));
    }
    cluster.psql(&format!("alter role postgres password 'pass:word'; alter role \"{own}\" password 'pass:word'"));
    fs::write(cluster.data_dir().join("pg_hba.conf"), "local all all scram-sha-256\n").unwrap();
    cluster.reload();
    let host = cluster.socket_dir().display().to_string();
    let file = cluster.root().join("pgpass");
    let file_name = file.display().to_string();
    let line = |role| format!("{host}:5432:postgres:{role}:pass\\:word\n");
    fs::write(&file, line("postgres") + &line(&own)).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let mut variables =
        vec![("PGHOST", host.as_str()), ("PGUSER", "postgres"), ("PGDATABASE", "elsewhere"), ("PGSSLMODE", "require")];
    let without = connect_with_environment(&variables);
    assert!(without.contains("failed: could not connect"), "{without}");
    variables.push(("PGPASSFILE", &file_name));
    let connected = format!("connected to {} as ", cluster.data_dir().display());
    let with = connect_with_environment(&variables);
    assert!(with.contains(&format!("{connected}postgres\n")), "{with}");
    variables.retain(|(name, _)| *name != "PGUSER");
    let as_the_account = connect_with_environment(&variables);
    assert!(as_the_account.contains(&format!("{connected}{own}\n")), "{as_the_account}");
}
