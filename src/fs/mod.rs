//! What a file system must be asked for before it keeps a promise: durable directories, files written beside their place
//! and published whole.

pub mod durable;
pub mod filesystem_sync;
pub mod staged;
