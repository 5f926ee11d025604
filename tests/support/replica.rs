//! A primary, its archive on S3, and standbys that follow it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Pid;

use super::archive::{Archive, Program};
use super::postgres::PgCluster;
use super::s3::S3Server;

/// For whatever a loaded machine may take.
pub const LIMIT: Duration = Duration::from_secs(120);

/// A query whose answer differs when any row does.
pub const ROWS: &str = "select count(*), sum(n), md5(string_agg(text, ',' order by n)) from t";

/// A primary with segments of 1 MiB, its archive, and a base backup made before most of the WAL.
pub struct Source {
    pub archive: Archive,
    pub primary: PgCluster,
    pub major: u32,
    segment_mebibytes: u32,
}

impl Source {
    pub fn new(major: u32) -> Self {
        Self::with_segments_of(1, major)
    }

    /// With segments of so many MiB.
    pub fn with_segments_of(mebibytes: u32, major: u32) -> Self {
        let archive = Archive::s3();
        let primary = PgCluster::options()
            .initdb(format!("--wal-segsize={mebibytes}"))
            .configure(min_wal_size(mebibytes))
            .configure("archive_mode = on")
            .configure(archive.archive_command(Program::WalEve))
            .init(major);
        primary.start();
        primary.psql("create table t (n int, text text)");
        let data = primary.data_dir().to_str().unwrap().to_owned();
        archive.wal_eve_with(&primary).timeout(LIMIT).run(["backup-push", &data, "--fast"]).assert_success();
        Self { archive, primary, major, segment_mebibytes: mebibytes }
    }

    pub fn server(&self) -> &S3Server {
        match &self.archive {
            Archive::S3(server) => server,
            Archive::File(_) => unreachable!("it was made on S3"),
        }
    }

    /// Writes some `megabytes` of WAL and waits until it is archived; the last segment's name.
    pub fn write(&self, megabytes: u32) -> String {
        let first = self.primary.psql("select coalesce(max(n), 0) + 1 from t");
        self.primary.psql(&format!(
            "insert into t select n, repeat(md5(n::text), 29) from generate_series({first}, {first} + {megabytes} * 1000) n"
        ));
        let last = self.primary.switch_wal();
        self.archive.wait_for_wal(&self.primary, &last);
        // those before it may come after it
        let waiting = self.primary.data_dir().join("pg_wal/archive_status");
        self.primary.wait_until("all segments are archived", LIMIT, || {
            let mut names =
                fs::read_dir(&waiting).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            !names.any(|name| name.ends_with(".ready"))
        });
        last
    }

    /// The newest backup, set up to follow the archive, but in no recovery mode yet.
    pub fn restored(&self) -> PgCluster {
        let mut cluster = PgCluster::without_data(self.major);
        let data = cluster.data_dir().to_str().unwrap().to_owned();
        self.archive.wal_eve().timeout(LIMIT).run(["backup-fetch", &data, "LATEST"]).assert_success();
        cluster.configure_connections();
        cluster.configure("fsync = off");
        cluster.configure("hot_standby = on");
        cluster.configure("archive_mode = off");
        cluster.configure(&min_wal_size(self.segment_mebibytes));
        cluster.configure("wal_retrieve_retry_interval = '200ms'");
        cluster.configure_recovery("recovery_target_timeline = 'latest'");
        cluster.configure_recovery(&self.archive.restore_command(Program::WalEve));
        cluster
    }

    /// A standby that follows the archive. It is not started.
    pub fn standby(&self) -> PgCluster {
        let mut cluster = self.restored();
        cluster.set_standby();
        cluster
    }

    /// Waits until the standby has what the primary has now.
    pub fn wait_for_rows(&self, standby: &PgCluster) {
        let rows = self.primary.psql(ROWS);
        standby.wait_until("the standby has the primary's rows", LIMIT, || {
            let answer = standby.try_psql(ROWS);
            answer.code() == Some(0) && answer.stdout_text().trim() == rows
        });
    }
}

/// A server does not start with less than two segments.
fn min_wal_size(segment_mebibytes: u32) -> String {
    format!("min_wal_size = {}MB", 5 * segment_mebibytes)
}

/// Where segments wait for `cluster`.
pub fn spool(cluster: &PgCluster) -> PathBuf {
    let wal = if cluster.major() < 10 { "pg_xlog" } else { "pg_wal" };
    cluster.data_dir().join(wal).join(".wal-e/prefetch")
}

/// What `prefetch-status` says.
pub fn status(source: &Source, cluster: &PgCluster) -> serde_json::Value {
    let data = cluster.data_dir().to_str().unwrap();
    let output = source.archive.wal_eve().run(["prefetch-status", data, "--json"]).assert_success();
    serde_json::from_str(&output.stdout_text()).unwrap()
}

/// The last prefetcher of `cluster`, which may have ended.
pub fn prefetcher(source: &Source, cluster: &PgCluster) -> Pid {
    Pid::from_raw(status(source, cluster)["pid"].as_i64().unwrap() as i32).unwrap()
}

/// The segments, and halves of them, that lie in a spool.
pub fn segments_in(spool: &Path) -> Vec<String> {
    let names =
        fs::read_dir(spool).into_iter().flatten().flatten().map(|entry| entry.file_name().into_string().unwrap());
    names.filter(|name| name.contains("00000000")).collect()
}
