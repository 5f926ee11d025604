//! `wal-eve`: PostgreSQL archiving, base backups and restores on WAL-E's own layout.
//!
//! The house has floors, and an import only ever points down:
//!
//! * [`cli`]: arguments and environment in, options out; values and errors back to text and an exit status
//! * [`commands`]: one file or folder a subcommand
//! * [`cutover`]: a replica's way to its new home, step by step
//! * [`prefetch`]: WAL fetched ahead of replay
//! * [`transfer`]: storage and formats joined: files become objects and objects files
//! * [`pg`]: what PostgreSQL owns
//! * [`storage`]: the store trait, its stores, retry and limit
//! * [`fs`]: files that appear whole and stay
//! * [`formats`]: bytes to values and back, pure

pub mod cli;
pub mod commands;
pub mod cutover;
pub mod formats;
pub mod fs;
pub mod pg;
pub mod prefetch;
pub mod storage;
pub mod transfer;
