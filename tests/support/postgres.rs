//! Real PostgreSQL servers of several majors.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tempfile::TempDir;

use super::places::{deps_dir, missing, temp_dir};
use super::tool::{Output, Tool};

/// The majors that `tests/setup` installs, oldest first.
pub const MAJORS: [u32; 9] = [10, 11, 12, 13, 14, 15, 16, 17, 18];

/// The major that Debian packages, complete with psql, pg_verifybackup, pg_waldump and the rest; the others have the
/// server, initdb and pg_ctl.
pub const DEBIAN_MAJOR: u32 = 15;

const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Finds installed servers.
#[derive(Debug)]
pub struct Postgres;

impl Postgres {
    /// The programs of a major; panics when it is not installed.
    pub fn installed(major: u32) -> PgBin {
        let packaged = PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"));
        let unpacked = deps_dir().join(format!("postgres-{major}/bin"));
        let directory = [&packaged, &unpacked].into_iter().find(|directory| directory.join("initdb").exists());
        match directory {
            Some(directory) => PgBin { major, directory: directory.clone() },
            None => missing(&format!("PostgreSQL {major}"), &unpacked),
        }
    }
}

/// The programs of one major.
#[derive(Debug, Clone)]
pub struct PgBin {
    pub major: u32,
    directory: PathBuf,
}

impl PgBin {
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A program of this major; where it has none of its own, Debian's, which suits for psql and most others.
    pub fn program(&self, name: &str) -> PathBuf {
        let debian = PathBuf::from(format!("/usr/lib/postgresql/{DEBIAN_MAJOR}/bin"));
        let found = [&self.directory, &debian].map(|directory| directory.join(name));
        found.iter().find(|path| path.exists()).unwrap_or_else(|| missing(name, &found[1])).clone()
    }

    fn tool(&self, name: &str) -> Tool {
        Tool::new(self.program(name), [("PGUSER", "postgres"), ("PGDATABASE", "postgres")])
    }
}

/// How to stop a server: `pg_ctl stop -m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Smart,
    Fast,
    Immediate,
}

/// How to make a cluster; [`PgCluster::init`] takes the defaults.
#[derive(Debug, Clone, Default)]
pub struct PgOptions {
    fsync: bool,
    initdb: Vec<String>,
    configuration: Vec<String>,
}

impl PgOptions {
    /// Keeps fsync on, for tests of crashes of more than the server. `kill9` alone does not need it.
    pub fn fsync(mut self) -> Self {
        self.fsync = true;
        self
    }

    /// Another argument of initdb, such as `--wal-segsize=1` or `--data-checksums`.
    pub fn initdb(mut self, argument: impl Into<String>) -> Self {
        self.initdb.push(argument.into());
        self
    }

    /// A line of postgresql.conf.
    pub fn configure(mut self, line: impl Into<String>) -> Self {
        self.configuration.push(line.into());
        self
    }

    pub fn init(self, major: u32) -> PgCluster {
        let mut cluster = PgCluster::without_data(major);
        let data_dir = cluster.data_dir.clone();
        cluster
            .bin
            .tool("initdb")
            .run(
                ["--no-sync", "-E", "UTF8", "--locale=C", "-A", "trust", "-U", "postgres", "-D"]
                    .map(str::to_owned)
                    .into_iter()
                    .chain([data_dir.display().to_string()])
                    .chain(self.initdb),
            )
            .assert_success();
        cluster.configure_connections();
        if !self.fsync {
            cluster.configure("fsync = off");
        }
        for line in &self.configuration {
            cluster.configure(line);
        }
        cluster
    }
}

/// A data directory and the server over it. Dropping it stops the server at once and removes the directory.
#[derive(Debug)]
pub struct PgCluster {
    bin: PgBin,
    root: TempDir,
    data_dir: PathBuf,
    environment: Vec<(String, String)>,
}

impl PgCluster {
    /// A new cluster that is not started: fsync off, no TCP port, superuser postgres, trust.
    pub fn init(major: u32) -> Self {
        PgOptions::default().init(major)
    }

    pub fn options() -> PgOptions {
        PgOptions::default()
    }

    /// A cluster whose data directory does not exist yet: [`Self::data_dir`] is where a backup is to be restored. Call
    /// [`Self::configure_connections`] after that.
    pub fn without_data(major: u32) -> Self {
        let root = temp_dir();
        let data_dir = root.path().join("d");
        fs::create_dir(root.path().join("s")).unwrap();
        Self { bin: Postgres::installed(major), root, data_dir, environment: Vec::new() }
    }

    /// Makes this cluster reachable through its own socket, and nothing else. Needed again after the data directory was
    /// replaced by another cluster's, or restored from a backup of WAL-E, which leaves all configuration files out.
    pub fn configure_connections(&mut self) {
        let socket_dir = self.socket_dir();
        self.configure("listen_addresses = ''");
        self.configure(&format!("unix_socket_directories = '{}'", socket_dir.display()));
        self.configure("port = 5432");
        for (file, content) in
            [("pg_hba.conf", "local all all trust\nlocal replication all trust\n"), ("pg_ident.conf", "")]
        {
            let path = self.data_dir.join(file);
            if !path.exists() {
                fs::write(path, content).unwrap();
            }
        }
    }

    pub fn bin(&self) -> &PgBin {
        &self.bin
    }

    pub fn major(&self) -> u32 {
        self.bin.major
    }

    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The directory that holds the data directory, the socket and the log, for whatever else the test needs by its side.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// The value of `PGHOST`.
    pub fn socket_dir(&self) -> PathBuf {
        self.root.path().join("s")
    }

    /// What a client, or `wal-eve backup-push`, needs in its environment.
    pub fn environment(&self) -> Vec<(String, String)> {
        vec![
            ("PGHOST".to_owned(), self.socket_dir().display().to_string()),
            ("PGPORT".to_owned(), "5432".to_owned()),
            ("PGUSER".to_owned(), "postgres".to_owned()),
            ("PGDATABASE".to_owned(), "postgres".to_owned()),
        ]
    }

    /// Appends a line to postgresql.conf; the last one of a setting wins. Takes effect at a start or [`Self::reload`].
    pub fn configure(&mut self, line: &str) {
        append_line(&self.data_dir.join("postgresql.conf"), line);
    }

    /// Appends a line to recovery.conf up to 11, to postgresql.conf from 12.
    pub fn configure_recovery(&mut self, line: &str) {
        let file = if self.major() < 12 { "recovery.conf" } else { "postgresql.conf" };
        append_line(&self.data_dir.join(file), line);
    }

    /// Makes the next start a standby's: `standby.signal`, or `standby_mode` up to 11.
    pub fn set_standby(&mut self) {
        match self.major() < 12 {
            true => self.configure_recovery("standby_mode = 'on'"),
            false => fs::write(self.data_dir.join("standby.signal"), "").unwrap(),
        }
    }

    /// Makes the next start an archive recovery outside standby mode: `recovery.signal`, or `recovery.conf` up to 11.
    pub fn set_recovery(&mut self) {
        let file = if self.major() < 12 { "recovery.conf" } else { "recovery.signal" };
        append_line(&self.data_dir.join(file), "");
    }

    /// A variable of the server's environment, which its archive_command and restore_command inherit.
    pub fn env(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Starts the server and waits until it accepts connections; panics with its log when it does not.
    pub fn start(&self) {
        let output = self.try_start();
        assert!(output.code() == Some(0), "{}\n{}\n{}", output.stdout_text(), output.stderr_text(), self.log());
    }

    /// Starts the server as `pg_ctl start -w` does. A server still in recovery counts as started once it can be connected
    /// to, which a standby can when it is consistent.
    pub fn try_start(&self) -> Output {
        let seconds = START_TIMEOUT.as_secs().to_string();
        let log = self.root.path().join("log").display().to_string();
        let data_dir = self.data_dir.display().to_string();
        let tool = self.environment.iter().fold(self.bin.tool("pg_ctl"), |tool, (name, value)| tool.env(name, value));
        tool.timeout(START_TIMEOUT * 2).run(["start", "-w", "-s", "-t", &seconds, "-D", &data_dir, "-l", &log])
    }

    /// Starts the server and does not wait for it; the test waits for what it is about.
    pub fn start_without_waiting(&self) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.root.path().join("log")).unwrap();
        let mut command = Command::new(self.bin.program("postgres"));
        command.arg("-D").arg(&self.data_dir).envs(self.environment.iter().cloned());
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        let mut child = command.spawn().unwrap();
        // Its end is looked for by pid; this only keeps it from staying a zombie.
        std::thread::spawn(move || child.wait());
        self.wait_until("the server has written its pid", START_TIMEOUT, || self.pid().is_some());
    }

    pub fn stop(&self, mode: Mode) {
        let mode = match mode {
            Mode::Smart => "smart",
            Mode::Fast => "fast",
            Mode::Immediate => "immediate",
        };
        let data_dir = self.data_dir.display().to_string();
        self.bin.tool("pg_ctl").run(["stop", "-w", "-s", "-m", mode, "-D", &data_dir]).assert_success();
    }

    /// Kills the server as a crash would, and waits until it is gone. Its children notice by themselves.
    pub fn kill9(&self) {
        let Some(pid) = self.pid() else { return };
        kill_process(pid, Signal::KILL).unwrap();
        wait_until("the server is gone", Duration::from_secs(10), || !is_alive(pid));
        // The next server also minds a zombie. An init that does not reap it soon will not do it later either.
        if !came_true(Duration::from_secs(5), || test_kill_process(pid).is_err()) {
            fs::remove_file(self.data_dir.join("postmaster.pid")).unwrap();
        }
        // The next server refuses to start while a backend of the last one still lives.
        wait_until("its backends are gone", Duration::from_secs(30), || !self.has_backends());
    }

    fn has_backends(&self) -> bool {
        let mark = self.data_dir.as_os_str();
        let Ok(processes) = fs::read_dir("/proc") else { return false };
        processes.flatten().any(|process| {
            fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd.as_os_str() == mark)
                && fs::read_link(process.path().join("exe")).is_ok_and(|exe| exe.ends_with("postgres"))
        })
    }

    pub fn reload(&self) {
        kill_process(self.pid().expect("the server runs"), Signal::HUP).unwrap();
    }

    pub fn promote(&self) {
        let data_dir = self.data_dir.display().to_string();
        self.bin.tool("pg_ctl").run(["promote", "-w", "-s", "-D", &data_dir]).assert_success();
    }

    /// The postmaster's pid while it runs.
    pub fn pid(&self) -> Option<Pid> {
        let text = fs::read_to_string(self.data_dir.join("postmaster.pid")).ok()?;
        let pid = Pid::from_raw(text.lines().next()?.trim().parse().ok()?)?;
        // A pid file outlives a crash, and the pid may be another process's by now: a server stands in its data directory.
        (working_directory(pid)? == self.data_dir.canonicalize().ok()?).then_some(pid)
    }

    pub fn is_running(&self) -> bool {
        self.pid().is_some()
    }

    /// Runs SQL, each statement on its own; the rows without headers or padding, columns joined by `|`, without the last
    /// line end. Panics on an error.
    pub fn psql(&self, sql: &str) -> String {
        self.try_psql(sql).assert_success().stdout_text().trim_end_matches('\n').to_owned()
    }

    pub fn try_psql(&self, sql: &str) -> Output {
        self.psql_with(&[], sql)
    }

    fn psql_with(&self, variables: &[(&str, &str)], sql: &str) -> Output {
        let environment = self.environment();
        let variables =
            environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).chain(variables.iter().copied());
        let tool = variables.fold(self.bin.tool("psql"), |tool, (name, value)| tool.env(name, value));
        tool.stdin(sql).run(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-f", "-"])
    }

    /// As [`Self::try_psql`], as another role and in the database of its name.
    pub fn psql_as(&self, role: &str, sql: &str) -> Output {
        self.psql_with(&[("PGUSER", role), ("PGDATABASE", role)], sql)
    }

    /// All the server has logged since the cluster was made.
    pub fn log(&self) -> String {
        fs::read(self.root.path().join("log"))
            .map_or_else(|_| String::new(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Waits for a condition; panics with the server's log when it does not come true in time.
    pub fn wait_until(&self, what: &str, timeout: Duration, condition: impl FnMut() -> bool) {
        if !came_true(timeout, condition) {
            panic!("after {timeout:?} it is still not true that {what}\n{}", self.log());
        }
    }

    /// Waits until a query answers `t`; a server that does not answer yet counts as false.
    pub fn wait_until_sql(&self, sql: &str, timeout: Duration) {
        self.wait_until(sql, timeout, || {
            let output = self.try_psql(sql);
            output.code() == Some(0) && output.stdout_text().trim() == "t"
        });
    }

    /// Closes the current WAL segment and answers its file name.
    pub fn switch_wal(&self) -> String {
        let (name, switch) = match self.major() < 10 {
            true => ("pg_xlogfile_name", "pg_switch_xlog"),
            false => ("pg_walfile_name", "pg_switch_wal"),
        };
        self.psql("create table if not exists switched (at int); insert into switched values (1)");
        self.psql(&format!("select {name}({switch}())"))
    }
}

impl Drop for PgCluster {
    fn drop(&mut self) {
        let Some(pid) = self.pid() else { return };
        // What `pg_ctl stop -m immediate` sends; nothing may panic here.
        let _ = kill_process(pid, Signal::QUIT);
        if !came_true(Duration::from_secs(10), || !is_alive(pid)) {
            let _ = kill_process(pid, Signal::KILL);
            came_true(Duration::from_secs(5), || !is_alive(pid));
        }
    }
}

/// Whether a process of ours still lives. A zombie does not: who should reap it may be an init that never does.
pub fn is_alive(pid: Pid) -> bool {
    working_directory(pid).is_some()
}

/// None also for a zombie.
fn working_directory(pid: Pid) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{}/cwd", pid.as_raw_nonzero())).ok()
}

/// Waits for a condition; panics when it does not come true in time.
pub fn wait_until(what: &str, timeout: Duration, condition: impl FnMut() -> bool) {
    assert!(came_true(timeout, condition), "after {timeout:?} it is still not true that {what}");
}

fn came_true(timeout: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + timeout;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        sleep(Duration::from_millis(20));
    }
}

fn append_line(path: &Path, line: &str) {
    use std::io::Write;
    let mut file = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    writeln!(file, "{line}").unwrap();
}
