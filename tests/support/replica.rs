//! A primary, its archive on S3, and standbys that follow it.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use bytes::Bytes;
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
            .configure(wal_sizes(mebibytes))
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
        let first: u32 = self.primary.psql("select coalesce(max(n), 0) + 1 from t").parse().unwrap();
        // in transactions of their own, so that some rows are there wherever replay stops
        let insert = |megabyte: u32| {
            let first = first + megabyte * 1000;
            format!(
                "insert into t select n, repeat(md5(n::text), 29) from generate_series({first}, {first} + 999) n;\n"
            )
        };
        self.primary.psql(&(0..megabytes).map(insert).collect::<String>());
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
        let mut cluster = restored(&self.archive, self.major, &[], &self.archive.restore_command(Program::WalEve));
        cluster.configure(&wal_sizes(self.segment_mebibytes));
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

/// Segments that a [`Recording`] holds at least after its base backup.
pub const RECORDED_SEGMENTS: u32 = 40;

/// An archive as a primary left it, made once for all tests of a program, each of which plays it from a server of its own.
pub struct Recording {
    major: u32,
    objects: Vec<(String, Bytes)>,
    /// What [`ROWS`] answers at the archive's end.
    pub rows: String,
}

impl Recording {
    /// The one of PostgreSQL 11, 15 or 18.
    pub fn of(major: u32) -> &'static Self {
        static ELEVEN: LazyLock<Recording> = LazyLock::new(|| Recording::make(11));
        static FIFTEEN: LazyLock<Recording> = LazyLock::new(|| Recording::make(15));
        static EIGHTEEN: LazyLock<Recording> = LazyLock::new(|| Recording::make(18));
        match major {
            11 => &ELEVEN,
            15 => &FIFTEEN,
            18 => &EIGHTEEN,
            _ => panic!("there is no recording of PostgreSQL {major}"),
        }
    }

    fn make(major: u32) -> Self {
        let source = Source::new(major);
        source.write(RECORDED_SEGMENTS);
        let rows = source.primary.psql(ROWS);
        let server = source.server();
        let object = |key: String| {
            let body = server.object("b", &key).unwrap().body;
            (key, body)
        };
        Self { major, objects: server.keys("b", "").into_iter().map(object).collect(), rows }
    }

    /// A server with all of it.
    pub fn archive(&self) -> Archive {
        let archive = Archive::s3();
        if let Archive::S3(server) = &archive {
            for (key, body) in &self.objects {
                server.put_object("b", key, body.clone());
            }
        }
        archive
    }

    /// Waits until the standby has replayed everything, and compares its rows. Asking for the rows themselves again and
    /// again would take the processor from what is tested.
    pub fn wait_for_rows(&self, standby: &PgCluster) {
        let begun = Instant::now();
        // the last thing that was written before the last segment was closed
        while standby.try_psql("select count(*) from switched").stdout_text().trim() != "1" {
            assert!(begun.elapsed() < LIMIT, "the standby has not caught up\n{}", standby.log());
            sleep(Duration::from_millis(100));
        }
        assert_eq!(standby.psql(ROWS), self.rows);
    }

    pub fn major(&self) -> u32 {
        self.major
    }
}

/// The newest backup in `archive`, fetched with these options and set up with this line for its restore_command, but in no
/// recovery mode yet.
pub fn restored(archive: &Archive, major: u32, options: &[&str], restore_command: &str) -> PgCluster {
    let mut cluster = PgCluster::without_data(major);
    let data = cluster.data_dir().to_str().unwrap().to_owned();
    let arguments = [&["backup-fetch"], options, &[&data, "LATEST"]].concat();
    archive.wal_eve().timeout(LIMIT).run(arguments).assert_success();
    cluster.configure_connections();
    cluster.configure("fsync = off");
    cluster.configure("hot_standby = on");
    cluster.configure("archive_mode = off");
    cluster.configure("wal_retrieve_retry_interval = '200ms'");
    cluster.configure_recovery("recovery_target_timeline = 'latest'");
    cluster.configure_recovery(restore_command);
    cluster
}

/// Lines of postgresql.conf: the server takes no less than twice a segment for either.
fn wal_sizes(segment_mebibytes: u32) -> String {
    let segments = if segment_mebibytes > 64 { 2 } else { 5 };
    let min = segments * segment_mebibytes;
    format!("min_wal_size = {min}MB\nmax_wal_size = {}MB", min.max(1024))
}

/// Waits until the prefetcher that `backup-fetch` has started for `cluster` can be asked: a server that is started before may
/// have fetched its segments itself by then.
pub fn wait_for_listener(cluster: &PgCluster) {
    cluster.wait_until("the restore's prefetcher listens", LIMIT, || spool(cluster).join("stamp").exists());
}

/// Where segments wait for `cluster`.
pub fn spool(cluster: &PgCluster) -> PathBuf {
    let wal = if cluster.major() < 10 { "pg_xlog" } else { "pg_wal" };
    cluster.data_dir().join(wal).join(".wal-e/prefetch")
}

/// What `prefetch-status` says.
pub fn status(source: &Source, cluster: &PgCluster) -> serde_json::Value {
    status_of(&source.archive, cluster).expect("a prefetcher has worked there")
}

/// The same; none when no prefetcher has shown itself yet.
pub fn status_of(archive: &Archive, cluster: &PgCluster) -> Option<serde_json::Value> {
    let data = cluster.data_dir().to_str().unwrap();
    let output = archive.wal_eve().run(["prefetch-status", data, "--json"]);
    (output.code() == Some(0)).then(|| serde_json::from_str(&output.stdout_text()).unwrap())
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

/// The prefetchers that run for a spool, whoever started them, and whatever their namespace.
pub fn prefetchers(spool: &Path) -> Vec<Pid> {
    let mark = spool.as_os_str().as_bytes();
    processes(|process| {
        fs::read(process.join("cmdline")).is_ok_and(|line| {
            let mut words = line.split(|byte| *byte == 0);
            words.any(|word| word == b"prefetch") && words.any(|word| word == mark)
        })
    })
}

/// The processes other than a server's that stand in a data directory: its restore_command's, while there are any.
pub fn restore_commands(cluster: &PgCluster) -> Vec<Pid> {
    processes(|process| {
        fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == cluster.data_dir())
            && fs::read_link(process.join("exe")).is_ok_and(|exe| !exe.ends_with("postgres"))
    })
}

fn processes(is_meant: impl Fn(&Path) -> bool) -> Vec<Pid> {
    let process = |entry: fs::DirEntry| {
        let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
        is_meant(&entry.path()).then_some(pid)
    };
    fs::read_dir("/proc").unwrap().flatten().filter_map(process).collect()
}
