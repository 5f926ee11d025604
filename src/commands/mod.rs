//! One file or folder a subcommand: plain options in, values out. No argument parsing, no printing, no environment.

pub mod archive;
pub mod backup_fetch;
pub mod backup_list;
pub mod backup_push;
pub mod backup_query;
pub mod delete;
mod error;
mod push_marker;
pub mod wal_continuity;
pub mod wal_fetch;
pub mod wal_push;

pub use error::{CommandError, Kind};

/// What every command returns.
pub type Result<T> = std::result::Result<T, CommandError>;
