//! The command line: arguments and environment in, options out; values and errors back to text and an exit status.

mod args;
mod backup_table;
mod connection;
mod cutover;
mod delete_text;
mod envdir;
mod environment;
mod exit;
mod log;
mod next_steps;
mod prefetch;
mod progress_line;
mod recovery;
mod run;
mod store;
mod syslog;

pub use envdir::re_execution;
pub use exit::ExitStatus;
pub use recovery::{panic_status, usage_status};
pub use run::run;
