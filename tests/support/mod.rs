//! What the integration tests stand on: real servers, real tools and the program under test.
//!
//! Each test file says `mod support;`. Everything here works the same whether the tests run from the checkout or, as
//! `tests/run` does it for root, from a copy that the user postgres can read: the environment variables `WAL_EVE_BIN`,
//! `WAL_EVE_FIXTURES` and `WAL_EVE_TEST_DEPS` go before the places known at compile time. What is missing is a panic that
//! names `tests/setup`, never a skipped test.

#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    clippy::unwrap_used,
    reason = "compiled into many test programs, each of which uses a part; a test may panic"
)]

pub mod archive;
pub mod check_report;
pub mod cutover;
pub mod dir_tree;
pub mod hand_made_backup;
pub mod places;
pub mod postgres;
pub mod replica;
pub mod s3;
pub mod tool;
pub mod wal_e;
pub mod wal_eve;
pub mod wal_segment;
pub mod wal_site;

pub use archive::{Archive, Program};
pub use dir_tree::{TreeEntry, dir_tree};
pub use hand_made_backup::{HandMadeBackup, RawMember};
pub use places::{deps_dir, fixtures_dir, temp_dir, wal_eve_bin};
pub use postgres::{Mode, PgBin, PgCluster, Postgres};
pub use s3::S3Server;
pub use tool::{Output, Running, Tool};
pub use wal_e::WalE;
pub use wal_eve::WalEve;
pub use wal_segment::WalDirectory;
pub use wal_site::WalSite;
