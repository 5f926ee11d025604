//! From log-shipped replica to the new home: the steps of a cutover, each of which can be run again.
//!
//! * [`plan`]: what is to be done; [`journal`]: what was done
//! * [`context`]: what every step stands on; [`node`]: a session with one of the three servers; [`hook`]: the user's commands
//! * [`fence`]: no more writes to a server, and its last write; [`marker`]: rows that prove; [`retreat`]: the way back
//! * [`link`]: who publishes and who subscribes, with [`publication`], [`slot`], [`subscription`] and [`replication_role`]
//! * [`tables`] and [`sequences`]: what is carried over; [`comparison`]: whether it was
//! * the steps: [`check`], [`promote`], [`replicate`], [`status`], [`finish`], [`abort`], [`report`]

pub mod abort;
pub mod check;
pub mod comparison;
pub mod context;
pub mod copy_wait;
mod error;
pub mod fence;
pub mod finish;
pub mod hook;
pub mod journal;
pub mod link;
pub mod marker;
pub mod node;
pub mod observer;
pub mod plan;
pub mod preconditions;
pub mod promote;
pub mod publication;
pub mod quantity;
pub mod rehearsal;
pub mod replica_identity;
pub mod replicate;
pub mod replication_role;
pub mod report;
pub mod retained_wal;
pub mod retreat;
pub mod schema_copy;
pub mod schema_dump;
pub mod sequences;
pub mod slot;
pub mod status;
pub mod subscription;
pub mod tables;
pub mod workers;

pub use error::{CutoverError, Kind, Result};
