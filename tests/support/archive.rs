//! An archive of either kind, to run the same test over both.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use super::places::{temp_dir, wal_eve_bin};
use super::postgres::PgCluster;
use super::s3::S3Server;
use super::wal_e::WalE;
use super::wal_eve::WalEve;

const BUCKET: &str = "b";
const PREFIX: &str = "p/";

/// An empty archive that WAL-E and wal-eve can use alike. Keys are relative to its prefix.
pub enum Archive {
    S3(S3Server),
    File(TempDir),
}

/// Who archives, or restores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    WalE,
    WalEve,
}

impl Archive {
    pub fn s3() -> Self {
        let server = S3Server::start();
        server.create_bucket(BUCKET);
        Self::S3(server)
    }

    pub fn file() -> Self {
        Self::File(temp_dir())
    }

    pub fn both() -> [Self; 2] {
        [Self::s3(), Self::file()]
    }

    /// For messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::S3(_) => "s3",
            Self::File(_) => "file",
        }
    }

    pub fn is_s3(&self) -> bool {
        matches!(self, Self::S3(_))
    }

    pub fn environment(&self) -> Vec<(String, String)> {
        match self {
            Self::S3(server) => server.environment("s3://b/p"),
            Self::File(directory) => {
                vec![("WALE_FILE_PREFIX".to_owned(), format!("file://localhost{}", directory.path().display()))]
            }
        }
    }

    pub fn wal_e(&self) -> WalE {
        WalE::new(self.environment())
    }

    pub fn wal_eve(&self) -> WalEve {
        WalEve::new(self.environment())
    }

    /// For commands that ask the server of `cluster`.
    pub fn wal_e_with(&self, cluster: &PgCluster) -> WalE {
        cluster.environment().into_iter().fold(self.wal_e(), |tool, (name, value)| tool.env(name, value))
    }

    /// For commands that ask the server of `cluster`.
    pub fn wal_eve_with(&self, cluster: &PgCluster) -> WalEve {
        cluster.environment().into_iter().fold(self.wal_eve(), |tool, (name, value)| tool.env(name, value))
    }

    /// A shell command with its environment, for archive_command and restore_command, which then do not depend on the
    /// server's.
    pub fn shell_command(&self, program: Program, arguments: &str) -> String {
        let path = match program {
            Program::WalE => WalE::program(),
            Program::WalEve => wal_eve_bin(),
        };
        let mut variables = self.environment();
        variables.push(("WALE_LOG_DESTINATION".to_owned(), "stderr".to_owned()));
        let variables: Vec<_> = variables.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        format!("env {} {} {arguments}", variables.join(" "), path.display())
    }

    /// The line of postgresql.conf.
    pub fn archive_command(&self, program: Program) -> String {
        format!("archive_command = '{}'", self.shell_command(program, "wal-push %p"))
    }

    /// The line of postgresql.conf, or of recovery.conf up to 11.
    pub fn restore_command(&self, program: Program) -> String {
        let arguments = match program {
            // Its prefetching fails under Pythons from 3.7 unless its standard input is a socket.
            Program::WalE => "wal-fetch -p 0 %f %p",
            Program::WalEve => "wal-fetch %f %p",
        };
        format!("restore_command = '{}'", self.shell_command(program, arguments))
    }

    /// All keys, in order.
    pub fn keys(&self) -> Vec<String> {
        match self {
            Self::S3(server) => {
                let keys = server.keys(BUCKET, PREFIX).into_iter();
                keys.map(|key| key.strip_prefix(PREFIX).expect("it was listed by this").to_owned()).collect()
            }
            Self::File(directory) => {
                let mut keys = Vec::new();
                let mut pending = vec![directory.path().to_owned()];
                while let Some(at) = pending.pop() {
                    for entry in fs::read_dir(at).unwrap() {
                        let path = entry.unwrap().path();
                        match path.is_dir() {
                            true => pending.push(path),
                            false => keys.push(relative(&path, directory.path())),
                        }
                    }
                }
                keys.sort();
                keys
            }
        }
    }

    /// Those that end in `suffix`.
    pub fn keys_ending(&self, suffix: &str) -> Vec<String> {
        self.keys().into_iter().filter(|key| key.ends_with(suffix)).collect()
    }

    pub fn holds(&self, key: &str) -> bool {
        match self {
            Self::S3(server) => server.object(BUCKET, &format!("{PREFIX}{key}")).is_some(),
            Self::File(directory) => directory.path().join(key).exists(),
        }
    }

    pub fn read(&self, key: &str) -> Vec<u8> {
        match self {
            Self::S3(server) => {
                let object = server.object(BUCKET, &format!("{PREFIX}{key}"));
                object.unwrap_or_else(|| panic!("{key} is in the archive")).body.to_vec()
            }
            Self::File(directory) => fs::read(directory.path().join(key)).unwrap(),
        }
    }

    pub fn write(&self, key: &str, body: impl Into<Vec<u8>>) {
        match self {
            Self::S3(server) => server.put_object(BUCKET, &format!("{PREFIX}{key}"), body.into()),
            Self::File(directory) => {
                let path = directory.path().join(key);
                fs::create_dir_all(path.parent().expect("a key names a file")).unwrap();
                fs::write(path, body.into()).unwrap();
            }
        }
    }

    /// Makes an object one that was stored at another time.
    pub fn set_time(&self, key: &str, time: SystemTime) {
        match self {
            Self::S3(server) => server.set_last_modified(BUCKET, &format!("{PREFIX}{key}"), time),
            Self::File(directory) => {
                let file = fs::File::options().append(true).open(directory.path().join(key)).unwrap();
                file.set_modified(time).unwrap();
            }
        }
    }

    /// Waits until the archive holds a WAL file of a server that archives to it.
    pub fn wait_for_wal(&self, cluster: &PgCluster, name: &str) {
        let key = format!("wal_005/{name}.lzo");
        cluster.wait_until(&format!("{key} is archived"), Duration::from_secs(120), || self.holds(&key));
    }

    /// The names of the complete backups, in order.
    pub fn backups(&self) -> Vec<String> {
        let name = |key: String| {
            let file = key.strip_prefix("basebackups_005/")?.strip_suffix("_backup_stop_sentinel.json")?;
            Some(file.to_owned())
        };
        self.keys().into_iter().filter_map(name).collect()
    }
}

fn relative(path: &Path, root: &Path) -> String {
    let relative: PathBuf = path.strip_prefix(root).expect("the walk stays below its root").to_owned();
    relative.to_string_lossy().into_owned()
}
