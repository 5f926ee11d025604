//! What waits to be archived: the names with a `.ready` file in `archive_status`. That directory is PostgreSQL's:
//! nothing here renames or writes in it.

use std::collections::BinaryHeap;
use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::path::Path;

use super::{PgError, Result};
use crate::formats::wal_name::WalName;

/// A name by the order in which the server archives: timeline histories first, then by name.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    after_histories: bool,
    text: String,
}

/// Lists the files that wait to be archived in `wal_directory`, in the server's order: timeline histories first, then
/// ascending names; `skip` is left out, and so is everything after the first `limit`. Names that are no WAL file's are
/// ignored, as the server does, and so is a missing `archive_status`.
///
/// Memory grows with `limit` and not with the backlog, which can be millions of files after an outage.
///
/// # Errors
///
/// [`super::Kind::Io`] when the directory is there but cannot be read.
pub fn ready(wal_directory: &Path, skip: Option<&WalName>, limit: NonZeroUsize) -> Result<Vec<WalName>> {
    let directory = wal_directory.join("archive_status");
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(PgError::io("read directory", &directory, e)),
    };
    let mut first = BinaryHeap::new();
    for entry in entries {
        let file_name = entry.map_err(|e| PgError::io("read directory", &directory, e))?.file_name();
        let Some(name) = file_name.to_str().and_then(|text| text.strip_suffix(".ready")) else { continue };
        let Ok(name) = name.parse::<WalName>() else { continue };
        if Some(&name) == skip {
            continue;
        }
        let after_histories = !matches!(name, WalName::History { .. });
        first.push(Turn { after_histories, text: name.to_string() });
        if first.len() > limit.get() {
            first.pop();
        }
    }
    let names = first.into_sorted_vec().into_iter();
    Ok(names.map(|turn| turn.text.parse().expect("the text of a name is a name")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: NonZeroUsize = NonZeroUsize::MAX;

    fn listed(wal: &Path, skip: Option<&str>, limit: usize) -> Vec<String> {
        let skip = skip.map(|text| text.parse().unwrap());
        let names = ready(wal, skip.as_ref(), NonZeroUsize::new(limit).unwrap()).unwrap();
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn histories_come_first_then_names_ascend() {
        let wal = tempfile::tempdir().unwrap();
        let status = wal.path().join("archive_status");
        fs::create_dir(&status).unwrap();
        for name in [
            "000000020000000000000005.ready",
            "000000010000000000000004.ready",
            "000000010000000000000004.partial.ready",
            "000000010000000000000003.done",
            "000000010000000000000002.00000028.backup.ready",
            "000000010000000000000002.ready",
            "00000003.history.ready",
            "00000002.history.ready",
            "RECOVERYXLOG.ready",
            "000000010000000000000009.ready.tmp",
            "00000001000000000000000g.ready",
            ".ready",
        ] {
            fs::write(status.join(name), "").unwrap();
        }
        let order = [
            "00000002.history",
            "00000003.history",
            "000000010000000000000002",
            "000000010000000000000002.00000028.backup",
            "000000010000000000000004",
            "000000010000000000000004.partial",
            "000000020000000000000005",
        ];
        assert_eq!(listed(wal.path(), None, usize::MAX), order);
        assert_eq!(listed(wal.path(), None, 3), order[..3]);
        assert_eq!(listed(wal.path(), Some("00000002.history"), 2), order[1..3]);
        assert_eq!(fs::read_dir(&status).unwrap().count(), 12, "nothing was renamed or removed");
    }

    #[test]
    fn a_missing_directory_is_an_empty_list_and_an_unreadable_one_an_error() {
        let wal = tempfile::tempdir().unwrap();
        assert_eq!(ready(wal.path(), None, ALL).unwrap(), []);
        fs::write(wal.path().join("archive_status"), "").unwrap();
        assert!(ready(wal.path(), None, ALL).is_err());
    }
}
