//! Bytes to values and back: pure functions and types, no I/O, no async.

pub mod lsn;
pub mod wal_name;

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
