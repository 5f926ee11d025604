//! What a file system must be asked for before it keeps a promise: durable directories, files written beside their place
//! and published whole; and whose its files are.

pub mod account;
pub mod durable;
pub mod filesystem_sync;
pub mod staged;
