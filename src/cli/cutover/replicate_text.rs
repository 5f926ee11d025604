//! What `wal-eve cutover replicate` says at its end.

use std::time::Duration;

use crate::cutover::quantity::time_text;
use crate::cutover::replicate::ReplicateReport;

pub(super) fn replicate_text(report: &ReplicateReport) -> String {
    let ReplicateReport { tables, ready, done, milliseconds } = report;
    if *done {
        let took = time_text(Duration::from_millis(*milliseconds));
        return format!(
            "All {tables} tables are on the target and follow the replica, after {took}.\n\
             See wal-eve cutover status; when its lag is small, go on with wal-eve cutover finish.\n"
        );
    }
    format!(
        "The copy is under way: {ready} of {tables} tables are there.\n\
         See wal-eve cutover status --watch, and run wal-eve cutover replicate again to complete it.\n"
    )
}
