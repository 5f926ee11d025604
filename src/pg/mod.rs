//! What PostgreSQL owns: its data directory, its control file, the state of its archive, and the server itself.
//!
//! Everything here reads; nothing here writes below a data directory. `spec/postgres-rules.md` says what the server
//! promises and demands.

pub mod archive_status;
pub mod archiving;
pub mod backup_label;
pub mod backup_session;
pub mod connection_settings;
pub mod conninfo;
pub mod control_file;
pub mod data_directory;
mod error;
pub mod finding;
pub mod followed_timeline;
pub mod quote;
pub mod recovery_mode;
pub mod recovery_process;
pub mod scram;
pub mod segment_file;
pub mod server;
pub mod session;
pub mod tablespace;
pub mod tablespace_map;
pub mod version;
pub mod walk;

pub use error::{Kind, PgError, Result};
