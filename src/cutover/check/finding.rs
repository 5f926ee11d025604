//! What a check found: what it is, why it matters, and what mends it.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::cutover::error::{CutoverError, Result};
use crate::cutover::node::Place;
use crate::formats::error_line::joined;

/// Whether the cutover can go on with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// A step would fail, or something would be lost: mend it first.
    Error,
    /// It can go well, and is better mended.
    Warning,
    /// Good to know.
    Note,
}

/// One thing that a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Whether the cutover can go on with it.
    pub severity: Severity,
    /// What was being looked at, one word, the same in every version.
    pub subject: &'static str,
    /// On which server; none where it is the plan.
    #[serde(serialize_with = "as_text")]
    pub place: Option<Place>,
    /// What is so, in PostgreSQL's wording: lower case, no full stop.
    pub what: String,
    /// Why it matters: whole sentences.
    pub why: Option<String>,
    /// What it is about, where it is about several: tables, indexes, roles.
    pub objects: Vec<String>,
    /// Each a statement, a setting, or a sentence that says what to do.
    pub mend: Vec<String>,
}

impl Finding {
    fn new(severity: Severity, what: impl Into<String>) -> Self {
        Self { severity, subject: "", place: None, what: what.into(), why: None, objects: Vec::new(), mend: Vec::new() }
    }

    pub(super) fn error(what: impl Into<String>) -> Self {
        Self::new(Severity::Error, what)
    }

    pub(super) fn warning(what: impl Into<String>) -> Self {
        Self::new(Severity::Warning, what)
    }

    pub(super) fn note(what: impl Into<String>) -> Self {
        Self::new(Severity::Note, what)
    }

    /// An error where `is_error`, else a warning.
    pub(super) fn error_if(is_error: bool, what: impl Into<String>) -> Self {
        Self::new(if is_error { Severity::Error } else { Severity::Warning }, what)
    }

    /// A failure that was met on the way: its detail is why, its hint what mends it.
    pub(super) fn failure(severity: Severity, failed: &CutoverError) -> Self {
        let mut found = Self::new(severity, joined(failed));
        found.why = failed.detail().map(str::to_owned);
        found.mend.extend(failed.hint().map(str::to_owned));
        found
    }

    #[must_use]
    pub(super) fn at(mut self, place: Place) -> Self {
        self.place = Some(place);
        self
    }

    #[must_use]
    pub(super) fn because(mut self, why: impl Into<String>) -> Self {
        self.why = Some(why.into());
        self
    }

    #[must_use]
    pub(super) fn about(mut self, objects: impl IntoIterator<Item = String>) -> Self {
        self.objects.extend(objects);
        self
    }

    #[must_use]
    pub(super) fn mend(mut self, mend: impl Into<String>) -> Self {
        self.mend.push(mend.into());
        self
    }

    #[must_use]
    pub(super) fn mends(mut self, mends: impl IntoIterator<Item = String>) -> Self {
        self.mend.extend(mends);
        self
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Some(place) => write!(f, "{place}: {}", self.what),
            None => f.write_str(&self.what),
        }
    }
}

fn as_text<S: Serializer>(place: &Option<Place>, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    match place {
        Some(place) => serializer.collect_str(place),
        None => serializer.serialize_none(),
    }
}

/// What was found so far.
#[derive(Debug)]
pub(super) struct Findings {
    found: Vec<Finding>,
    /// Whether the plan has no second move yet: what only that one needs keeps nobody from the first.
    is_first_move_only: bool,
}

impl Findings {
    pub(super) fn new(is_first_move_only: bool) -> Self {
        Self { found: Vec::new(), is_first_move_only }
    }

    /// Takes what a subject found. A subject that could not be looked at is a finding itself.
    pub(super) fn take(&mut self, subject: &'static str, found: Result<Vec<Finding>>) {
        let found = found.unwrap_or_else(|failed| vec![unseen(&failed)]);
        self.found.extend(found.into_iter().map(|finding| Finding { subject, ..finding }));
    }

    /// As [`Self::take`], for what only the second move needs.
    pub(super) fn take_for_second_move(&mut self, subject: &'static str, found: Result<Vec<Finding>>) {
        let cap = if self.is_first_move_only { Severity::Warning } else { Severity::Error };
        let capped = |finding: Finding| Finding { severity: finding.severity.max(cap), ..finding };
        self.take(subject, found.map(|found| found.into_iter().map(capped).collect()));
    }

    /// The gravest first, each kind in the order of its finding.
    pub(super) fn sorted(mut self) -> Vec<Finding> {
        self.found.sort_by_key(|finding| finding.severity);
        self.found
    }
}

fn unseen(failed: &CutoverError) -> Finding {
    let mut found = Finding::failure(Severity::Warning, failed);
    found.what = format!("could not be looked at: {}", found.what);
    found
}

/// "1 table", "3 tables".
pub(super) fn counted(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gravest_comes_first_and_the_second_move_keeps_nobody_from_the_first() {
        let mut findings = Findings::new(true);
        findings.take("a", Ok(vec![Finding::note("n"), Finding::error("e").at(Place::Source)]));
        findings.take_for_second_move("b", Ok(vec![Finding::error("capped"), Finding::note("m")]));
        findings.take("c", Err(CutoverError::refused("no").with_hint("Do.")));
        let sorted = findings.sorted();
        let told: Vec<_> = sorted.iter().map(|finding| (finding.severity, finding.to_string())).collect();
        let told: Vec<_> = told.iter().map(|(severity, text)| (*severity, text.as_str())).collect();
        assert_eq!(
            told,
            [
                (Severity::Error, "source: e"),
                (Severity::Warning, "capped"),
                (Severity::Warning, "could not be looked at: no"),
                (Severity::Note, "n"),
                (Severity::Note, "m"),
            ]
        );
        assert_eq!(sorted[2].mend, ["Do."]);
        let json = serde_json::to_value(&sorted[0]).unwrap();
        assert_eq!(
            (&json["severity"], &json["place"], &json["subject"]),
            (&"error".into(), &"source".into(), &"a".into())
        );
    }
}
