//! What happened when, for the record.

use serde::Serialize;

use super::finish::FinishReport;
use super::journal::{Entry, Journal, Mark};
use super::promote::PromoteReport;

/// The whole record of a cutover.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Every entry of the journal.
    pub entries: Vec<Entry>,
    /// The first move, once it is over.
    pub promote: Option<PromoteReport>,
    /// The moves from publisher to subscriber that are over, in their order.
    pub finish: Vec<FinishReport>,
}

/// Reads a journal as a report.
pub fn report(journal: &Journal) -> Report {
    let entries = journal.entries().to_vec();
    let finished = entries.iter().filter(|entry| entry.mark == Some(Mark::FinishDone) && !entry.undone);
    Report {
        promote: journal.data(Mark::PromoteDone),
        finish: finished.filter_map(|entry| serde_json::from_value(entry.data.clone()).ok()).collect(),
        entries,
    }
}
