//! A migration to be: a source that a plain user owns a database of, its archive, a replica fed from it, perhaps a target, and
//! an application that never stops writing wherever it is pointed at.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use sqlx::Connection;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use tempfile::TempDir;

use super::archive::{Archive, Program};
use super::places::temp_dir;
use super::postgres::PgCluster;
use super::tool::{Output, Running};
use super::wal_eve::WalEve;

/// For whatever a loaded machine may take.
pub const LIMIT: Duration = Duration::from_secs(120);

/// The database, and the plain role that owns it.
pub const APP: &str = "app";

/// How to make a migration.
pub struct MigrationOptions {
    major: u32,
    target: Option<u32>,
    archiver: Program,
    schema: String,
}

impl MigrationOptions {
    /// From a source of this major.
    pub fn from(major: u32) -> Self {
        let schema = "create table t (id bigserial primary key, text text)".to_owned();
        Self { major, target: None, archiver: Program::WalEve, schema }
    }

    /// With a target of this major, in which the role `app` is no superuser.
    pub fn to(mut self, major: u32) -> Self {
        self.target = Some(major);
        self
    }

    /// Who archives the source.
    pub fn archived_by(mut self, archiver: Program) -> Self {
        self.archiver = archiver;
        self
    }

    /// What the application makes before the base backup.
    pub fn schema(mut self, sql: &str) -> Self {
        self.schema = sql.to_owned();
        self
    }

    /// Makes the servers, and waits until the replica can be asked.
    pub fn make(self) -> Migration {
        let archive = Archive::s3();
        let segments = |options: super::postgres::PgOptions| {
            options.initdb("--wal-segsize=1").configure("min_wal_size = 2MB").configure("max_wal_size = 64MB")
        };
        let source = segments(PgCluster::options())
            .configure("archive_mode = on")
            .configure(archive.archive_command(self.archiver))
            .init(self.major);
        source.start();
        for sql in [
            "create role app login",
            "create database app owner app",
            "create role replication_of_another login replication",
        ] {
            source.psql(sql);
        }
        source.psql_as(APP, &self.schema).assert_success();
        let data = source.data_dir().to_str().unwrap().to_owned();
        // WAL-E's own backups end with 14: their functions are gone from 15
        if self.archiver == Program::WalE && self.major < 15 {
            archive.wal_e_with(&source).timeout(LIMIT).run(["backup-push", &data]).assert_success();
        } else {
            archive.wal_eve_with(&source).timeout(LIMIT).run(["backup-push", &data, "--fast"]).assert_success();
        }
        let mut replica = PgCluster::without_data(self.major);
        let target = replica.data_dir().to_str().unwrap().to_owned();
        archive.wal_eve().timeout(LIMIT).run(["backup-fetch", &target, "LATEST"]).assert_success();
        replica.configure_connections();
        for line in [
            "fsync = off",
            "hot_standby = on",
            "archive_mode = off",
            "wal_level = logical",
            "max_wal_senders = 10",
            "max_replication_slots = 20",
            "min_wal_size = 2MB",
            "max_wal_size = 64MB",
        ] {
            replica.configure(line);
        }
        // a subscription of a user who is no superuser has to be asked for a password
        let hba = replica.data_dir().join("pg_hba.conf");
        let trusting = fs::read_to_string(&hba).unwrap();
        fs::write(&hba, format!("local all wal_eve_replication scram-sha-256\n{trusting}")).unwrap();
        replica.configure_recovery(&archive.restore_command(Program::WalEve));
        replica.set_standby();
        replica.start();
        let target = self.target.map(|major| {
            let target = PgCluster::options()
                .configure("wal_level = logical")
                .configure("max_logical_replication_workers = 8")
                .configure("max_worker_processes = 16")
                .init(major);
            target.start();
            target.psql("create role app login replication");
            target.psql("create database app owner app");
            if major >= 16 {
                target.psql("grant pg_create_subscription to app");
            } else {
                target.psql("alter role app superuser");
            }
            target
        });
        let migration = Migration { archive, source, replica, target, place: temp_dir() };
        migration.write_plan();
        migration
    }
}

pub struct Migration {
    pub archive: Archive,
    pub source: PgCluster,
    pub replica: PgCluster,
    pub target: Option<PgCluster>,
    /// Holds the plan, the journal, what the hooks leave, and where the application is pointed at.
    pub place: TempDir,
}

impl Migration {
    pub fn target(&self) -> &PgCluster {
        self.target.as_ref().expect("it was made with a target")
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn write_plan(&self) {
        let place = self.place.path().display();
        let mut plan = format!(
            "[source]\nconnection = '{}'\n[replica]\nconnection = '{}'\npromote_command = '{} promote -w -s -D {}'\n\
             [application]\nuser = 'app'\n\
             [promote]\nbudget = '60 s'\n[hooks]\ntimeout = '10 s'\n",
            conninfo(&self.source, APP),
            conninfo(&self.replica, "postgres"),
            self.replica.bin().program("pg_ctl").display(),
            self.replica.data_dir().display(),
        );
        for (hook, command) in [
            ("maintenance_on", "touch P/maintenance"),
            ("switch_to_replica", "cp P/replica P/address"),
            ("switch_to_target", "cp P/target P/address"),
            ("maintenance_off", "rm -f P/maintenance"),
        ] {
            let command = command.replace('P', &place.to_string());
            plan += &format!("{hook} = '{command}; echo {hook} >> {place}/hooks'\n");
        }
        if let Some(target) = &self.target {
            plan += &format!(
                "[target]\nconnection = '{}'\n\
                 [replication]\npublisher_for_target = 'host={} port=5432 dbname=app'\npassword_env = 'REPLICATION_PASSWORD'\n\
                 [schema]\ncopy = true\npg_dump = '{}'\npg_restore = '{}'\n\
                 [finish]\nlag_stretch = '1 s'\n\
                 [reverse]\npublisher_for_replica = '{} password=x'\n",
                conninfo(target, APP),
                self.replica.socket_dir().display(),
                target.bin().program("pg_dump").display(),
                target.bin().program("pg_restore").display(),
                conninfo(target, "postgres"),
            )
            .replace(" password=x", "");
            fs::write(self.file("target"), target.socket_dir().to_str().unwrap()).unwrap();
        }
        fs::write(self.file("cutover.toml"), plan).unwrap();
        fs::write(self.file("replica"), self.replica.socket_dir().to_str().unwrap()).unwrap();
        fs::write(self.file("address"), self.source.socket_dir().to_str().unwrap()).unwrap();
    }

    pub fn wal_eve(&self) -> WalEve {
        WalEve::new([("REPLICATION_PASSWORD", "r3plication-s3cret")]).current_dir(self.place.path()).timeout(LIMIT)
    }

    /// Runs a step; words are separated by spaces.
    pub fn cutover(&self, step: &str) -> Output {
        self.wal_eve().run(["cutover"].into_iter().chain(step.split(' ')))
    }

    pub fn spawn(&self, step: &str) -> Running {
        self.wal_eve().spawn(["cutover"].into_iter().chain(step.split(' ')))
    }

    pub fn journal(&self) -> String {
        fs::read_to_string(self.file("cutover.journal.json")).unwrap_or_default()
    }

    /// Whether the journal holds a mark, as it is written there.
    pub fn has_mark(&self, mark: &str) -> bool {
        self.journal().contains(&format!("\"mark\": \"{mark}\""))
    }

    /// The hooks that were run, in order.
    pub fn hooks(&self) -> Vec<String> {
        fs::read_to_string(self.file("hooks")).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// Whether the application's role can write to a server, in a session with all its defaults.
    pub fn is_writable(&self, server: &PgCluster) -> bool {
        server.psql_as(APP, "create table probe (n int); drop table probe").code() == Some(0)
    }

    /// Lets the application write, on and on, with each of these statements in turn, which answer one text.
    pub fn application(&self, statements: &[&str]) -> Application {
        let stop = Arc::new(AtomicBool::new(false));
        let asked = stop.clone();
        let (address, maintenance) = (self.file("address"), self.file("maintenance"));
        let statements: Vec<String> = statements.iter().map(|text| text.to_string()).collect();
        let work = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(write_until(&asked, &address, &maintenance, &statements))
        };
        Application { stop, thread: std::thread::spawn(work) }
    }
}

pub fn conninfo(server: &PgCluster, user: &str) -> String {
    format!("host={} port=5432 dbname={APP} user={user}", server.socket_dir().display())
}

/// The application at work.
pub struct Application {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Work>,
}

/// What an application saw.
#[derive(Debug, Default)]
pub struct Work {
    /// What its statements answered, each committed.
    pub committed: Vec<String>,
    /// Keys that a sequence gave although they were taken, by the server's message.
    pub collisions: Vec<String>,
}

impl Application {
    /// Stops it; what it saw committed.
    pub fn stop(self) -> Vec<String> {
        self.stop_and_tell().committed
    }

    /// Stops it; all it saw.
    pub fn stop_and_tell(self) -> Work {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

async fn write_until(stop: &AtomicBool, address: &Path, maintenance: &Path, statements: &[String]) -> Work {
    let mut work = Work::default();
    let mut session: Option<(String, PgConnection)> = None;
    let mut turns = statements.iter().cycle();
    while !stop.load(Ordering::Relaxed) {
        if maintenance.exists() {
            session = None;
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        }
        let host = fs::read_to_string(address).unwrap();
        if session.as_ref().is_none_or(|(known, _)| *known != host) {
            let options = PgConnectOptions::new_without_pgpass().host(&host).port(5432).username(APP).database(APP);
            session = PgConnection::connect_with(&options).await.ok().map(|connection| (host, connection));
        }
        let Some((_, connection)) = &mut session else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let statement = turns.next().expect("there is one").clone();
        match sqlx::query_scalar::<_, String>(sqlx::AssertSqlSafe(statement)).fetch_one(connection).await {
            Ok(text) => work.committed.push(text),
            Err(error) => {
                let server = error.as_database_error();
                if server.and_then(|error| error.code()).is_some_and(|code| code == "23505") {
                    work.collisions.push(error.to_string());
                }
                session = None;
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    work
}
