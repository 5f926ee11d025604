//! Where things are: the program under test, fixtures, installed dependencies, temporary directories.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// The `wal-eve` program under test.
pub fn wal_eve_bin() -> PathBuf {
    let built = option_env!("CARGO_BIN_EXE_wal-eve").map(PathBuf::from);
    from_environment("WAL_EVE_BIN")
        .or(built)
        .expect("WAL_EVE_BIN is set, or this is an integration test, for which cargo builds wal-eve")
}

/// The frozen bytes of the real tools.
pub fn fixtures_dir() -> PathBuf {
    from_environment("WAL_EVE_FIXTURES").unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures"))
}

/// Where `tests/setup` installs what Debian's packages do not have.
pub fn deps_dir() -> PathBuf {
    from_environment("WAL_EVE_TEST_DEPS")
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-deps"))
}

/// A directory that goes away with the value. Its path is short: a Unix socket's may have 107 bytes at most.
pub fn temp_dir() -> TempDir {
    tempfile::Builder::new().prefix("we-").tempdir_in("/tmp").expect("a directory can be made in /tmp")
}

/// Panics with the one sentence that helps.
pub fn missing(what: &str, place: &Path) -> ! {
    panic!("{what} is missing at \"{}\": run tests/setup, which installs it", place.display())
}

fn from_environment(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}
