//! Files that appear whole and stay: staging, publishing, fsync.

pub mod filesystem_sync;
pub mod staged;
