//! One way of logical replication: who publishes, who subscribes, and under which names.

use crate::cutover::error::Result;
use crate::cutover::node::Place;
use crate::cutover::plan::{Plan, lacks};
use crate::pg::conninfo::Conninfo;

/// From which server to which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// From the promoted replica to the target.
    Forward,
    /// From the target back to the replica, after a finish that prepared it.
    Back,
}

/// A publication, the subscription to it, and the slot between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Which way it goes.
    pub direction: Direction,
    /// Who publishes.
    pub publisher: Place,
    /// Who subscribes.
    pub subscriber: Place,
    /// The publication's name.
    pub publication: String,
    /// The subscription's name, which its walsender has as application_name.
    pub subscription: String,
    /// The slot's name.
    pub slot: String,
}

impl Link {
    /// The link of a plan that goes in this direction.
    pub fn new(plan: &Plan, direction: Direction) -> Self {
        let names = &plan.replication;
        let (publisher, subscriber, suffix) = match direction {
            Direction::Forward => (Place::Replica, Place::Target, ""),
            Direction::Back => (Place::Target, Place::Replica, "_back"),
        };
        let named = |name: &str| format!("{name}{suffix}");
        Self {
            direction,
            publisher,
            subscriber,
            publication: named(&names.publication),
            subscription: named(&names.subscription),
            slot: named(&names.slot),
        }
    }

    /// How the subscriber reaches the publisher.
    ///
    /// # Errors
    ///
    /// When the plan does not say.
    pub fn connection<'a>(&self, plan: &'a Plan) -> Result<&'a Conninfo> {
        let (found, line) = match self.direction {
            Direction::Forward => (&plan.replication.publisher_for_target, "replication.publisher_for_target"),
            Direction::Back => (&plan.reverse, "[reverse]"),
        };
        found.as_ref().ok_or_else(|| lacks(line))
    }
}
