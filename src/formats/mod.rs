//! Bytes to values and back: pure functions and types, no I/O, no async.

pub mod backup_manifest;
pub mod backup_name;
pub mod body_kind;
pub mod error_line;
pub mod hex;
pub mod key;
pub mod lsn;
pub mod lzo1x;
pub mod lzop;
pub mod prefix_url;
pub mod python_json;
pub mod restore_spec;
pub mod sentinel;
pub mod tar_partition;
pub mod timeline_history;
pub mod wal_name;
pub mod wal_page;
pub mod wal_position;

/// Text that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not {expected}")]
pub struct ParseError {
    expected: &'static str,
    text: String,
}

impl ParseError {
    pub(crate) fn new(expected: &'static str, text: impl Into<String>) -> Self {
        Self { expected, text: text.into() }
    }
}
