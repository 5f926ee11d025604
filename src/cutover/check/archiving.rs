//! Where the replica archives to once it is a primary: not to where the source does. And whether the source archives at all.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;

use super::finding::Finding;
use super::settings::Settings;
use crate::cutover::error::Result;
use crate::cutover::node::{Node, Place};

/// Commands that succeed and archive nothing.
const DISCARDING: [&str; 6] = ["true", "/bin/true", "/usr/bin/true", ":", "exit 0", "(disabled)"];

/// The variables that name a prefix, which `--envdir` and `envdir` give as files.
const PREFIX_VARIABLES: [&str; 3] = ["WALE_S3_PREFIX", "WALE_FILE_PREFIX", "WALE_GS_PREFIX"];

/// The replica's own archiving. `archive` is the address of the archive that feeds it, where that is known.
pub(super) async fn replica(node: &mut Node, archive: Option<&str>) -> Result<Vec<Finding>> {
    let settings = Settings::of(node).await?;
    let text = |name: &str| settings.text(name).filter(|text| !text.is_empty());
    let found = match (text("archive_mode"), text("archive_library"), text("archive_command")) {
        (None | Some("off"), ..) => Finding::warning("archive_mode is off")
            .because("After the promotion nothing archives the new primary's WAL, and to switch it on then takes a restart.")
            .mend("alter system set archive_mode = 'on';")
            .mend("alter system set archive_command = 'wal-eve --envdir /etc/wal-eve/new-primary wal-push %p';")
            .mend("Restart the replica; the environment names a prefix of its own, not the source's."),
        (_, Some(library), _) => Finding::note(format!("it archives by the library \"{library}\""))
            .because("Make sure that this does not write to the source's archive."),
        (_, None, None) => Finding::warning("archive_mode is on, and archive_command is not set")
            .because("After the promotion WAL piles up in pg_wal.")
            .mend("alter system set archive_command = 'wal-eve --envdir /etc/wal-eve/new-primary wal-push %p'; select pg_reload_conf();"),
        (_, None, Some(command)) if DISCARDING.contains(&command.trim()) => {
            Finding::note(format!("archive_command is \"{command}\", which archives nothing"))
                .because("After the promotion there is no archive of the new primary's WAL.")
        }
        (_, None, Some(command)) => compared(command, text("restore_command"), archive),
    };
    Ok(vec![found.at(Place::Replica)])
}

fn compared(command: &str, restore_command: Option<&str>, archive: Option<&str>) -> Finding {
    let own = destination(command);
    let is_archive = archive.is_some_and(|archive| own.urls.contains(&normal(archive)));
    let shares = restore_command.filter(|restore| own.is_same(&destination(restore)));
    if !is_archive && shares.is_none() {
        let shown = own.urls.iter().next().map_or_else(|| "an unknown place".to_owned(), |url| format!("\"{url}\""));
        return Finding::note(format!("archive_command writes to {shown}"))
            .because(format!("It is: {command}. Make sure that this is not the source's archive."));
    }
    let why = match shares {
        Some(restore) => format!("It is: {command}. The replica is fed from there, by: {restore}."),
        None => format!("It is: {command}. That is the archive that this command's own environment names."),
    };
    Finding::error("archive_command writes to the source's archive")
        .because(why + " After the promotion two primaries would write there.")
        .mend("alter system set archive_command = '…'; select pg_reload_conf();")
        .mend("Let it name a prefix of its own, such as another WALE_S3_PREFIX in an environment directory of its own.")
}

/// Where a command of wal-e's or wal-eve's goes, as far as its text tells.
#[derive(Debug, PartialEq, Eq)]
struct Destination {
    urls: BTreeSet<String>,
    directories: BTreeSet<String>,
    is_wal_e: bool,
}

impl Destination {
    /// Whether both go to one place: a common address or environment directory, or the server's own environment for both.
    fn is_same(&self, other: &Self) -> bool {
        let is_inherited = |it: &Self| it.is_wal_e && it.urls.is_empty() && it.directories.is_empty();
        !self.urls.is_disjoint(&other.urls)
            || self.urls.is_empty() && other.urls.is_empty() && !self.directories.is_disjoint(&other.directories)
            || is_inherited(self) && is_inherited(other)
    }
}

fn destination(command: &str) -> Destination {
    let words: Vec<_> = command.split_whitespace().map(|word| word.trim_matches(['\'', '"'])).collect();
    let is_program = |word: &str, names: &[&str]| names.contains(&word.rsplit('/').next().unwrap_or(word));
    let address = |word: &&str| {
        let value = word.rsplit_once('=').map_or(*word, |(_, value)| value);
        let value = value.trim_matches(['\'', '"']);
        (value.starts_with("s3://") || value.starts_with("file://") || value.starts_with("gs://"))
            .then(|| normal(value))
    };
    let mut urls: BTreeSet<String> = words.iter().filter_map(address).collect();
    let mut directories = BTreeSet::new();
    for pair in words.windows(2) {
        if is_program(pair[0], &["envdir"]) || pair[0] == "--envdir" {
            directories.insert(pair[1].to_owned());
        }
    }
    directories.extend(words.iter().filter_map(|word| word.strip_prefix("--envdir=")).map(str::to_owned));
    if urls.is_empty() {
        urls.extend(directories.iter().filter_map(|directory| prefix_in(Path::new(directory))));
    }
    Destination { urls, directories, is_wal_e: words.iter().any(|word| is_program(word, &["wal-e", "wal-eve"])) }
}

/// The prefix that an environment directory names, where it can be read from here.
fn prefix_in(directory: &Path) -> Option<String> {
    let text = PREFIX_VARIABLES.iter().find_map(|name| std::fs::read_to_string(directory.join(name)).ok())?;
    text.lines().next().map(normal)
}

fn normal(url: &str) -> String {
    url.trim().trim_end_matches('/').replacen("file:///", "file://localhost/", 1)
}

#[derive(Deserialize)]
struct Archiver {
    is_failing: bool,
    last_archived: Option<String>,
    last_failed: Option<String>,
    archived_age: Option<f64>,
}

/// Whether the source archives: the replica lives by it, and so does the fence's last segment.
pub(super) async fn source(node: &mut Node) -> Result<Vec<Finding>> {
    let archiver: Archiver = node
        .row(
            "select coalesce(last_failed_time > coalesce(last_archived_time, '-infinity'), false) as is_failing, \
                    last_archived_wal as last_archived, last_failed_wal as last_failed, \
                    extract(epoch from clock_timestamp() - last_archived_time)::float8 as archived_age from pg_stat_archiver",
        )
        .await?;
    let last = archiver.last_archived.unwrap_or_else(|| "nothing".to_owned());
    if archiver.is_failing {
        return Ok(vec![
            Finding::error("its archiving fails")
                .at(Place::Source)
                .because(format!(
                    "It failed on {} and archived {last} last: the replica cannot get the last write.",
                    archiver.last_failed.unwrap_or_default()
                ))
                .mend("See the source's log for what archive_command says; on a managed server ask the provider."),
        ]);
    }
    let ago = archiver.archived_age.map_or_else(String::new, |age| format!(", {age:.0} s ago"));
    Ok(vec![Finding::note(format!("it archived {last} last{ago}")).at(Place::Source)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cutover::check::finding::Severity;

    fn severity(command: &str, restore: Option<&str>, archive: Option<&str>) -> Severity {
        compared(command, restore, archive).severity
    }

    #[test]
    fn writing_to_where_the_replica_is_fed_from_is_an_error() {
        let restore = "envdir /etc/wal-e/env wal-e wal-fetch %f %p";
        for same in [
            "envdir /etc/wal-e/env wal-e wal-push %p",
            "/usr/bin/envdir /etc/wal-e/env /opt/bin/wal-eve wal-push %p",
            "wal-eve --envdir /etc/wal-e/env wal-push %p",
            "wal-eve --envdir=/etc/wal-e/env wal-push %p",
        ] {
            assert_eq!(severity(same, Some(restore), None), Severity::Error, "{same}");
        }
        assert_eq!(severity("wal-e wal-push %p", Some("wal-eve wal-fetch %f %p"), None), Severity::Error);
        let prefix = "env WALE_S3_PREFIX=s3://b/p wal-eve wal-push %p";
        assert_eq!(severity(prefix, None, Some("s3://b/p/")), Severity::Error);
        assert_eq!(severity(prefix, Some("wal-e --s3-prefix=s3://b/p/ wal-fetch %f %p"), None), Severity::Error);
        assert_eq!(
            severity("wal-e --file-prefix file:///a/b wal-push %p", None, Some("file://localhost/a/b")),
            Severity::Error
        );
    }

    #[test]
    fn a_place_of_its_own_is_only_shown() {
        assert_eq!(
            severity("wal-eve --envdir /etc/new wal-push %p", Some("wal-eve --envdir /etc/old wal-fetch %f %p"), None),
            Severity::Note
        );
        assert_eq!(severity("cp %p /archive/%f", Some("cp /archive/%f %p"), Some("s3://b/p")), Severity::Note);
        let own = compared("env WALE_S3_PREFIX=s3://b/new wal-eve wal-push %p", None, Some("s3://b/p"));
        assert_eq!((own.severity, own.what.as_str()), (Severity::Note, "archive_command writes to \"s3://b/new\""));
        // the environment directory is overruled by an address
        assert_eq!(
            severity(
                "wal-eve --envdir /e --s3-prefix s3://b/new wal-push %p",
                Some("wal-eve --envdir /e wal-fetch %f %p"),
                None
            ),
            Severity::Note
        );
    }

    #[test]
    fn an_environment_directory_is_read() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("WALE_S3_PREFIX"), "s3://b/p\n").unwrap();
        let command = format!("wal-eve --envdir {} wal-push %p", directory.path().display());
        assert_eq!(severity(&command, None, Some("s3://b/p")), Severity::Error);
        assert_eq!(severity(&command, None, Some("s3://b/q")), Severity::Note);
    }
}
