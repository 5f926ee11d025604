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
