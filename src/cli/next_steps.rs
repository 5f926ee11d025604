//! What is left to do after a restore, in words.

use std::fmt::Write as _;

use crate::commands::backup_fetch::BackupFetchReport;

/// The text for the restored directory's major version.
pub(super) fn text(report: &BackupFetchReport) -> String {
    let steps = &report.next_steps;
    let directory = report.directory.display();
    let mut text = format!("restored {} to {directory}\n\nBefore you start the server:\n", report.name);
    let mut item = |line: String| writeln!(text, "  * {line}").expect("a String takes every write");
    if !steps.missing_config.is_empty() {
        item(format!(
            "put {} in place: the backup does not hold {}",
            list(&steps.missing_config),
            if steps.missing_config.len() == 1 { "it" } else { "them" }
        ));
    }
    for signal in &steps.signal_files {
        item(format!("the backup brought {signal} along: remove it unless you want what it asks for"));
    }
    match steps.major {
        Some(major) if major.uses_recovery_conf() => {
            item(format!("write {directory}/recovery.conf with restore_command = 'wal-eve wal-fetch %f %p'"));
            item("add standby_mode = 'on' for a replica, or recovery_target_time and the like to stop at a point in time".into());
            item("recovery_target_timeline = 'latest' follows the primary through failovers; without it recovery stays on the backup's timeline".into());
        }
        Some(_) => {
            item("set restore_command = 'wal-eve wal-fetch %f %p' in postgresql.conf".into());
            item(format!(
                "touch {directory}/standby.signal for a replica, or {directory}/recovery.signal to recover and then open for writes"
            ));
            item("remove a recovery.conf that your tools may have left: the server does not start with one".into());
        }
        None => item("PG_VERSION could not be read: check that this is the cluster you meant".into()),
    }
    if !steps.in_place_tablespaces.is_empty() {
        item(format!(
            "set allow_in_place_tablespaces = on, without which the server takes no directories in pg_tblspc for tablespaces: {}",
            steps.in_place_tablespaces.join(", ")
        ));
    }
    if !steps.minimum_settings.is_empty() {
        let settings: Vec<String> =
            steps.minimum_settings.iter().map(|(name, value)| format!("{name} = {value}")).collect();
        item(format!("a replica needs at least the source's settings: {}", settings.join(", ")));
    }
    item("make sure that its archive_command does not write to the source's prefix before it is promoted".into());
    text
}

fn list(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use crate::commands::backup_fetch::NextSteps;

    use super::*;

    fn text_for(next_steps: NextSteps) -> String {
        text(&BackupFetchReport {
            name: "base_000000010000000000000002_00000040".parse().unwrap(),
            directory: "/d".into(),
            bytes: 0,
            resumed_partitions: 0,
            next_steps,
        })
    }

    fn nothing_left(major: &str) -> NextSteps {
        NextSteps {
            major: Some(major.parse().unwrap()),
            missing_config: Vec::new(),
            signal_files: Vec::new(),
            in_place_tablespaces: Vec::new(),
            minimum_settings: Vec::new(),
        }
    }

    #[test]
    fn recovery_is_asked_for_in_recovery_conf_up_to_11_and_by_signal_files_from_12() {
        let signals = "touch /d/standby.signal for a replica, or /d/recovery.signal";
        for major in ["9.6", "10", "11"] {
            let text = text_for(nothing_left(major));
            let file = "write /d/recovery.conf with restore_command = 'wal-eve wal-fetch %f %p'";
            for said in [file, "standby_mode = 'on'", "recovery_target_timeline = 'latest'"] {
                assert!(text.contains(said), "{major}: {text}");
            }
            assert!(!text.contains(".signal"), "{major}: {text}");
        }
        for major in ["12", "15", "18"] {
            let text = text_for(nothing_left(major));
            for said in [
                signals,
                "set restore_command = 'wal-eve wal-fetch %f %p' in postgresql.conf",
                "remove a recovery.conf",
            ] {
                assert!(text.contains(said), "{major}: {text}");
            }
            assert!(!text.contains("standby_mode"), "{major}: {text}");
        }
    }

    #[test]
    fn what_is_missing_or_came_along_is_named() {
        let nothing = text_for(nothing_left("15"));
        for unsaid in
            ["in place: the backup", "brought", "allow_in_place_tablespaces", "at least the source's settings"]
        {
            assert!(!nothing.contains(unsaid), "{nothing}");
        }
        let text = text_for(NextSteps {
            missing_config: vec!["postgresql.conf", "pg_hba.conf", "pg_ident.conf"],
            signal_files: vec!["standby.signal", "recovery.signal"],
            in_place_tablespaces: vec!["16384".into(), "16385".into()],
            minimum_settings: vec![("max_connections", 200), ("max_wal_senders", 10)],
            ..nothing_left("15")
        });
        for said in [
            "put postgresql.conf, pg_hba.conf and pg_ident.conf in place: the backup does not hold them",
            "the backup brought standby.signal along: remove it",
            "the backup brought recovery.signal along: remove it",
            "allow_in_place_tablespaces = on",
            "16384, 16385",
            "max_connections = 200, max_wal_senders = 10",
        ] {
            assert!(text.contains(said), "{text}");
        }
        let one = text_for(NextSteps { missing_config: vec!["pg_hba.conf"], ..nothing_left("15") });
        assert!(one.contains("put pg_hba.conf in place: the backup does not hold it"), "{one}");
        let unknown = text_for(NextSteps { major: None, ..nothing_left("15") });
        assert!(unknown.contains("PG_VERSION could not be read") && !unknown.contains("restore_command"), "{unknown}");
    }
}
