//! The real WAL-E 1.1.1, to compare with and to exchange archives with.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::places::{deps_dir, missing};
use super::tool::{Output, Running, Tool};

/// `wal-e` with an environment; it logs to stderr only.
#[derive(Debug, Clone)]
pub struct WalE(Tool);

impl WalE {
    /// Panics when WAL-E is not installed.
    pub fn new<K: Into<OsString>, V: Into<OsString>>(environment: impl IntoIterator<Item = (K, V)>) -> Self {
        let program = Self::program();
        let bin = program.parent().expect("the program lies in a directory").to_owned();
        let inherited = std::env::var("PATH").unwrap_or_default();
        let tool = Tool::new(program, [("PATH", format!("{}:{inherited}", bin.display()))])
            .env("WALE_LOG_DESTINATION", "stderr")
            .env("PYTHONWARNINGS", "ignore");
        Self(environment.into_iter().fold(tool, |tool, (name, value)| tool.env(name, value)))
    }

    /// Where the program is, for an archive_command; panics when WAL-E is not installed.
    pub fn program() -> PathBuf {
        let program = deps_dir().join("wal-e/bin/wal-e");
        if !program.exists() {
            missing("WAL-E 1.1.1", &program);
        }
        program
    }

    /// With `file://localhost/DIRECTORY` as the store.
    pub fn for_file_prefix(directory: &Path) -> Self {
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
