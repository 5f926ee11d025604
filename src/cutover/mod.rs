//! From log-shipped replica to the new home: the steps of a cutover, each of which can be run again.
//!
//! * [`plan`]: what is to be done; [`journal`]: what was done
//! * [`context`]: what every step stands on; [`node`]: a session with one of the three servers; [`hook`]: the user's commands
//! * [`lineage`]: whether a replica replays the right WAL; [`fence`]: no more writes to a server, and its last write; [`marker`]: rows that prove; [`retreat`]: the way back
//! * [`replication`]: who publishes and who subscribes, with all the pieces between them
//! * [`tables`] and [`sequences`]: what is carried over; [`comparison`]: whether it was
//! * the steps: [`check`], [`promote`], [`replicate`], [`status`], [`finish`], [`abort`], [`report`]

pub mod abort;
pub mod check;
pub mod comparison;
pub mod context;
mod error;
pub mod fence;
pub mod finish;
pub mod hook;
pub mod journal;
pub mod lineage;
pub mod marker;
pub mod node;
pub mod plan;
pub mod promote;
pub mod quantity;
pub mod rehearsal;
pub mod replicate;
pub mod replication;
pub mod report;
pub mod retreat;
pub mod sequences;
pub mod status;
pub mod tables;

pub use error::{CutoverError, Kind, Result};
