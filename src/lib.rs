//! `wal-eve`: PostgreSQL archiving, base backups and replay on WAL-E's own layout.
pub mod formats;
pub mod fs;
pub mod storage;
