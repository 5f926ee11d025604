//! The prefetcher with real standbys: what it saves, what it costs, and that nothing of it survives its server.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

mod support;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Pid;
use support::postgres::{is_alive, wait_until};
use support::s3::Operation;
use support::{Archive, Mode, PgCluster, Program, S3Server};

/// For whatever a loaded machine may take.
const LIMIT: Duration = Duration::from_secs(120);

const ROWS: &str = "select count(*), sum(n), md5(string_agg(text, ',' order by n)) from t";

/// A primary with segments of 1 MiB, its archive, and a base backup made before most of the WAL.
struct Source {
    archive: Archive,
    primary: PgCluster,
    major: u32,
}

impl Source {
    fn new(major: u32) -> Self {
        let archive = Archive::s3();
        // before 11, segments always have 16 MiB
        let primary = PgCluster::options()
            .initdb("--wal-segsize=1")
            .configure("archive_mode = on")
            .configure(archive.archive_command(Program::WalEve))
            .init(major);
        primary.start();
        primary.psql("create table t (n int, text text)");
        let data = primary.data_dir().to_str().unwrap().to_owned();
        archive.wal_eve_with(&primary).timeout(LIMIT).run(["backup-push", &data, "--fast"]).assert_success();
        Self { archive, primary, major }
    }

    fn server(&self) -> &S3Server {
        match &self.archive {
            Archive::S3(server) => server,
            Archive::File(_) => unreachable!("it was made on S3"),
        }
    }

    /// Writes some `megabytes` of WAL and waits until it is archived; the last segment's name.
    fn write(&self, megabytes: u32) -> String {
        let first = self.primary.psql("select coalesce(max(n), 0) + 1 from t");
        self.primary.psql(&format!(
            "insert into t select n, repeat(md5(n::text), 29) from generate_series({first}, {first} + {megabytes} * 1000) n"
        ));
        let last = self.primary.switch_wal();
        self.archive.wait_for_wal(&self.primary, &last);
        last
    }

    fn restored(&self) -> PgCluster {
        let mut cluster = PgCluster::without_data(self.major);
        let data = cluster.data_dir().to_str().unwrap().to_owned();
        self.archive.wal_eve().timeout(LIMIT).run(["backup-fetch", &data, "LATEST"]).assert_success();
        cluster.configure_connections();
        cluster.configure("fsync = off");
        cluster.configure("hot_standby = on");
        cluster.configure("archive_mode = off");
        cluster.configure("wal_retrieve_retry_interval = '200ms'");
        cluster.configure_recovery("recovery_target_timeline = 'latest'");
        cluster.configure_recovery(&self.archive.restore_command(Program::WalEve));
        cluster
    }

    fn standby(&self) -> PgCluster {
        let mut cluster = self.restored();
        cluster.set_standby();
        cluster
    }

    fn wait_for_rows(&self, standby: &PgCluster) {
        let rows = self.primary.psql(ROWS);
        standby.wait_until("the standby has the primary's rows", LIMIT, || {
            let answer = standby.try_psql(ROWS);
            answer.code() == Some(0) && answer.stdout_text().trim() == rows
        });
    }
}

fn spool(cluster: &PgCluster) -> PathBuf {
    let wal = if cluster.major() < 10 { "pg_xlog" } else { "pg_wal" };
    cluster.data_dir().join(wal).join(".wal-e/prefetch")
}

fn status(source: &Source, cluster: &PgCluster) -> serde_json::Value {
    let data = cluster.data_dir().to_str().unwrap();
    let output = source.archive.wal_eve().run(["prefetch-status", data, "--json"]).assert_success();
    serde_json::from_str(&output.stdout_text()).unwrap()
}

fn prefetcher(source: &Source, cluster: &PgCluster) -> Pid {
    Pid::from_raw(status(source, cluster)["pid"].as_i64().unwrap() as i32).unwrap()
}

fn segments_in(spool: &PathBuf) -> Vec<String> {
    let names =
        fs::read_dir(spool).into_iter().flatten().flatten().map(|entry| entry.file_name().into_string().unwrap());
    names.filter(|name| name.contains("00000000")).collect()
}

fn replay(major: u32) {
    let source = Source::new(major);
    source.write(60);
    let standby = source.standby();
    source.server().clear_requests();
    standby.start();
    source.wait_for_rows(&standby);
    let segments = source.server().keys("b", "p/wal_005/").len();
    let gets = source.server().count(Operation::GetObject, "wal_005/000000010000");
    let status = status(&source, &standby);
    eprintln!(
        "{gets} GETs, {segments} segments, {status:#}\n{}",
        fs::read_to_string(spool(&standby).join("log")).unwrap()
    );
    let pid = prefetcher(&source, &standby);
    assert!(is_alive(pid));
    standby.stop(Mode::Fast);
    wait_until("the prefetcher has ended", Duration::from_secs(5), || !is_alive(pid));
    assert_eq!(segments_in(&spool(&standby)), Vec::<String>::new());
}

#[test]
fn a_standby_replays_from_the_spool_and_takes_the_prefetcher_with_it() {
    replay(17);
}
