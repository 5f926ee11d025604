//! What a step hands to the user: text for a person, JSON for a program, and the exit status.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use crate::cli::exit::ExitStatus;
use crate::cutover::abort::AbortReport;
use crate::cutover::finish::FinishReport;
use crate::cutover::journal::time_text as at_text;
use crate::cutover::promote::PromoteReport;
use crate::cutover::quantity::time_text;
use crate::cutover::rehearsal::Rehearsal;
use crate::cutover::replication::link::Direction;
use crate::cutover::report::Report;

pub(super) struct Outcome {
    text: String,
    json: Value,
    /// None for a step that only looks: in a dry run it does what it always does.
    rehearsal: Option<Vec<String>>,
    pub(super) status: ExitStatus,
}

impl Outcome {
    pub(super) fn json(&self) -> &Value {
        &self.json
    }

    pub(super) fn new(text: String, json: impl Serialize) -> Self {
        let json = serde_json::to_value(json).expect("results have text for keys");
        Self { text, json, rehearsal: None, status: ExitStatus::DONE }
    }

    /// Of a step that has said everything by itself.
    pub(super) fn printed_already() -> Self {
        Self { text: String::new(), json: Value::Null, rehearsal: None, status: ExitStatus::DONE }
    }

    /// With what a dry run would do.
    pub(super) fn rehearsed(mut self, rehearsal: &Rehearsal) -> Self {
        self.rehearsal = Some(rehearsal.lines());
        self
    }

    /// With another exit status than that of success.
    pub(super) fn with_status(mut self, status: ExitStatus) -> Self {
        self.status = status;
        self
    }

    pub(super) fn printed(&self, as_json: bool, is_dry: bool) -> String {
        if self.json.is_null() && self.text.is_empty() {
            return String::new();
        }
        match (as_json, self.rehearsal.as_ref().filter(|_| is_dry)) {
            (true, Some(lines)) => format!("{:#}\n", json!({"dry_run": lines})),
            (true, None) => format!("{:#}\n", self.json),
            (false, Some(lines)) => lines.iter().fold(String::new(), |text, line| text + line + "\n"),
            (false, None) => self.text.clone(),
        }
    }
}

pub(super) fn promote_text(report: &PromoteReport) -> String {
    let proof = match &report.fence_lsn {
        Some(lsn) => format!("with the source's last write, at {lsn}"),
        None => "without proof of the source's last write".to_owned(),
    };
    format!(
        "The replica is the primary, on timeline {}, {proof}.\nDowntime: {}.\n",
        report.timeline,
        time_text(Duration::from_millis(report.downtime_milliseconds))
    )
}

pub(super) fn finish_text(report: &FinishReport) -> String {
    let (home, from) = match report.direction {
        Direction::Forward => ("target", "replica"),
        Direction::Back => ("replica", "target"),
    };
    let mut text = format!(
        "The application uses the {home}, which has the {from}'s last write, at {}.\n\
         {} sequences set; {} tables compared under the fence.\n",
        report.final_lsn, report.sequences, report.compared_tables
    );
    if !report.not_compared.is_empty() {
        let _ = writeln!(text, "Not compared within finish.compare_budget: {}.", report.not_compared.join(", "));
    }
    if report.is_reversible {
        let _ = writeln!(
            text,
            "The {from} follows the {home}: cutover finish{} goes back, cutover abort gives that up.",
            if report.direction == Direction::Forward { " --back" } else { "" }
        );
    }
    let _ = writeln!(text, "Downtime: {}.", time_text(Duration::from_millis(report.downtime_milliseconds)));
    text
}

pub(super) fn abort_text(report: &AbortReport) -> String {
    report.undone.iter().chain(&report.left).fold(String::new(), |text, line| text + line + "\n")
}

pub(super) fn report_text(report: &Report) -> String {
    let mut text = String::new();
    for entry in &report.entries {
        let _ = writeln!(text, "{}  {:<9}  {}", at_text(entry.at), entry.step, entry.what);
    }
    if text.is_empty() {
        text.push_str("Nothing has happened yet.\n");
    }
    text
}
