//! The program under test.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use super::places::wal_eve_bin;
use super::tool::{Output, Running, Tool};

/// `wal-eve` with an environment.
///
/// ```ignore
/// let wal_eve = WalEve::new(server.environment("s3://b/prefix")).current_dir(cluster.data_dir());
/// wal_eve.run(["wal-fetch", name, "pg_wal/RECOVERYXLOG"]).assert_code(1);
/// ```
#[derive(Debug, Clone)]
pub struct WalEve(Tool);

impl WalEve {
    pub fn new<K: Into<OsString>, V: Into<OsString>>(environment: impl IntoIterator<Item = (K, V)>) -> Self {
        Self(Tool::new(wal_eve_bin(), environment))
    }

    /// With `file://localhost/DIRECTORY` as the store.
    pub fn for_file_prefix(directory: &std::path::Path) -> Self {
        Self::new([("WALE_FILE_PREFIX", format!("file://localhost{}", directory.display()))])
    }

    pub fn env(self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        Self(self.0.env(name, value))
    }

    pub fn env_remove(self, name: &str) -> Self {
        Self(self.0.env_remove(name))
    }

    pub fn current_dir(self, directory: impl Into<PathBuf>) -> Self {
        Self(self.0.current_dir(directory))
    }

    pub fn stdin(self, bytes: impl Into<Vec<u8>>) -> Self {
        Self(self.0.stdin(bytes))
    }

    pub fn timeout(self, timeout: Duration) -> Self {
        Self(self.0.timeout(timeout))
    }

    pub fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Output {
        self.0.run(arguments)
    }

    pub fn spawn<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Running {
        self.0.spawn(arguments)
    }
}
