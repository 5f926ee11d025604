//! Fetching ahead of replay, so that a `wal-fetch` finds its segment in the next directory and only renames it.
//!
//! * [`spool`]: the directory where segments wait, and [`stamp`]: whose they are
//! * [`prefetcher`]: the long-lived process that fills it, and [`window`]: with what, in which order
//! * [`client`]: how a `wal-fetch` asks it, in the words of [`message`]; it starts one where there is none ([`start`])
//! * [`status`]: what it shows of itself
//!
//! Nothing here is ever the last word: whatever is odd about the spool or the prefetcher, the caller fetches the segment
//! itself, and only the archive says that a segment does not exist.

pub mod client;
mod inquiry;
mod lines;
pub mod message;
mod missed;
mod pace;
pub mod prefetcher;
pub mod spool;
pub mod stamp;
pub mod start;
pub mod status;
mod tally;
mod watch;
mod window;
