//! What a check found, for a person: the gravest first, each with what mends it.

use std::fmt::Write as _;

use crate::cutover::check::{CheckReport, Finding, Severity};

/// How many objects, and how many statements, of a finding are shown; `--json` has all.
const SHOWN: usize = 10;

pub(super) fn text(report: &CheckReport) -> String {
    let mut text = String::new();
    for (severity, heading) in [
        (Severity::Error, "ERRORS: mend these first, a step would fail or something be lost"),
        (Severity::Warning, "WARNINGS: it can go well, and is better mended"),
        (Severity::Note, "NOTES"),
    ] {
        let mut findings = report.findings.iter().filter(|finding| finding.severity == severity).peekable();
        if findings.peek().is_none() {
            continue;
        }
        let _ = writeln!(text, "{heading}\n");
        for finding in findings {
            write(&mut text, finding);
        }
        text.push('\n');
    }
    let verdict = if report.is_ready() { "Nothing stands in the way." } else { "Not ready." };
    let (errors, warnings, notes) = (report.errors, report.warnings, report.notes);
    let counted = |number: usize, what: &str| format!("{number} {what}{}", if number == 1 { "" } else { "s" });
    let counts = [counted(errors, "error"), counted(warnings, "warning"), counted(notes, "note")];
    let _ = writeln!(text, "{verdict} {}.", counts.join(", "));
    text
}

fn write(text: &mut String, finding: &Finding) {
    let _ = writeln!(text, "  [{}] {finding}", finding.subject);
    if let Some(why) = &finding.why {
        let _ = writeln!(text, "      {why}");
    }
    for (sign, lines) in [("-", &finding.objects), (">", &finding.mend)] {
        for line in lines.iter().take(SHOWN) {
            let _ = writeln!(text, "      {sign} {line}");
        }
        if lines.len() > SHOWN {
            let _ = writeln!(text, "      {sign} … and {} more; --json has all", lines.len() - SHOWN);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gravest_come_first_and_long_lists_are_cut() {
        let finding = |severity, what: &str, objects: usize| Finding {
            severity,
            subject: "identity",
            place: None,
            what: what.into(),
            why: Some("Because.".into()),
            objects: (0..objects).map(|number| format!("t{number}")).collect(),
            mend: vec!["alter table …;".into()],
        };
        let report = CheckReport {
            errors: 1,
            warnings: 0,
            notes: 1,
            findings: vec![finding(Severity::Error, "it is so", 12), finding(Severity::Note, "that is so", 0)],
        };
        let text = text(&report);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[2..5], ["  [identity] it is so", "      Because.", "      - t0"]);
        assert_eq!(lines[14..16], ["      - … and 2 more; --json has all", "      > alter table …;"]);
        assert_eq!(lines.last().unwrap(), &"Not ready. 1 error, 0 warnings, 1 note.");
        assert!(!text.contains("WARNINGS") && text.contains("NOTES"));
    }
}
