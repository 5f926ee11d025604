//! Tar partitions: which members share one ([`Planner`]) and the bytes around their contents ([`header`])
//! (`spec/wal-e-format.md` §4.4–4.6).

pub mod header;
mod member_name;
mod planner;

pub use member_name::{MemberPath, MemberPathError};
pub use planner::{MAX_FILE_BYTES, MAX_PARTITION_BYTES, MAX_PARTITION_MEMBERS, Placement, Planner, TooLarge};
