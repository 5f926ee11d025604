//! What a cutover's check said, and whether it said what it should.

use serde_json::Value;

use super::cutover::Migration;

/// What a check said, and how it ended.
pub struct Report {
    pub json: Value,
    pub code: Option<i32>,
}

/// Runs a check with lines of the plan replaced.
pub fn check(migration: &Migration, replacements: &[&str]) -> Report {
    check_plan(migration, "cutover.toml", replacements)
}

/// The same with another plan beside the migration's own.
pub fn check_plan(migration: &Migration, plan: &str, replacements: &[&str]) -> Report {
    let environment = migration.archive.environment().into_iter();
    let wal_eve = environment.fold(migration.wal_eve(), |tool, (name, value)| tool.env(name, value));
    let sets = replacements.iter().flat_map(|replacement| ["--set", replacement]);
    let output = wal_eve.run(["cutover", "check", "--json", "--plan", plan].into_iter().chain(sets));
    let json = serde_json::from_str(&output.stdout_text())
        .unwrap_or_else(|e| panic!("{e}\n{}\n{}", output.stdout_text(), output.stderr_text()));
    Report { json, code: output.code() }
}

impl Report {
    pub fn findings(&self) -> impl Iterator<Item = &Value> {
        self.json["findings"].as_array().unwrap().iter()
    }

    pub fn find(&self, severity: &str, subject: &str, text: &str) -> Option<&Value> {
        self.findings().find(|finding| {
            finding["severity"] == severity
                && finding["subject"] == subject
                && finding["what"].as_str().unwrap().contains(text)
        })
    }

    #[track_caller]
    pub fn assert_found(&self, severity: &str, subject: &str, text: &str) -> &Value {
        self.find(severity, subject, text)
            .unwrap_or_else(|| panic!("no {severity} of {subject} says {text:?}:\n{:#}", self.json))
    }

    /// An error, which decides on the exit status.
    #[track_caller]
    pub fn assert_error(&self, subject: &str, text: &str) -> &Value {
        assert_eq!(self.code, Some(1), "{:#}", self.json);
        self.assert_found("error", subject, text)
    }

    #[track_caller]
    pub fn assert_none(&self, subject: &str, text: &str) {
        for severity in ["error", "warning", "note"] {
            let found = self.find(severity, subject, text);
            assert!(found.is_none(), "{found:#?}");
        }
    }

    /// Nothing is an error, and nothing could not be looked at.
    #[track_caller]
    pub fn assert_clean(&self) {
        let errors: Vec<_> = self.findings().filter(|finding| finding["severity"] == "error").collect();
        assert!(errors.is_empty(), "{errors:#?}");
        self.assert_complete();
        assert_eq!(self.code, Some(0));
    }

    #[track_caller]
    pub fn assert_complete(&self) {
        let is_unseen = |finding: &&Value| finding["what"].as_str().unwrap().contains("could not be looked at");
        let unseen: Vec<_> = self.findings().filter(is_unseen).collect();
        assert!(unseen.is_empty(), "{unseen:#?}");
    }
}

/// The items of a finding's list, joined.
pub fn listed(finding: &Value, list: &str) -> String {
    let items = finding[list].as_array().unwrap().iter();
    items.map(|item| item.as_str().unwrap()).collect::<Vec<_>>().join(" | ")
}
