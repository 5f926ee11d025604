//! An S3 server with the bucket b, and a data directory whose WAL commands use it.

use tempfile::TempDir;

use super::places::temp_dir;
use super::s3::S3Server;
use super::wal_eve::WalEve;
use super::wal_segment::WalDirectory;

pub struct WalSite {
    pub server: S3Server,
    pub wal: WalDirectory,
    /// Holds the data directory, and whatever else a test needs beside it.
    pub root: TempDir,
}

impl WalSite {
    pub fn new() -> Self {
        let server = S3Server::start();
        server.create_bucket("b");
        let root = temp_dir();
        Self { server, wal: WalDirectory::create(&root.path().join("d")), root }
    }

    /// In the data directory, with the prefix p; a server that is not known to honour conditions.
    pub fn wal_eve(&self) -> WalEve {
        WalEve::new(self.server.environment("s3://b/p")).current_dir(self.wal.data_directory())
    }
}
