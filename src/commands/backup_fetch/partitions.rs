//! The partitions of a backup, and whether they are all there.

use crate::commands::archive::Archive;
use crate::commands::{CommandError, Result};
use crate::formats::backup_name::BackupName;
use crate::formats::key::partition_number;
use crate::storage::list_all;

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Partition {
    pub(super) number: u32,
    pub(super) key: String,
}

/// Lists the partitions of `name` by number. They must begin at 0 and have no gap (`spec/wal-e-format.md` §5.2, RULE).
pub(super) async fn list(archive: &Archive, name: &BackupName) -> Result<Vec<Partition>> {
    let prefix = archive.layout.partitions(name);
    let mut partitions = Vec::new();
    for row in list_all(&*archive.store, &prefix).await? {
        match row.key.strip_prefix(&prefix).and_then(partition_number) {
            Some(number) => partitions.push(Partition { number, key: row.key }),
            None => tracing::warn!(key = row.key, "ignoring an object that is no tar partition"),
        }
    }
    // unpadded names do not list in the order of their numbers
    partitions.sort_by_key(|partition| partition.number);
    match gap(&partitions) {
        None => Ok(partitions),
        Some(problem) => Err(CommandError::refused(format!("backup {name} is incomplete: {problem}"))
            .with_detail(format!("Its partitions are under \"{}\".", archive.store.url(&prefix)))
            .with_hint("Its sentinel is left over from an interrupted deletion, or objects were lost. Choose another backup with backup-list.")),
    }
}

fn gap(partitions: &[Partition]) -> Option<String> {
    if partitions.is_empty() {
        return Some("it has no tar partitions".into());
    }
    let at = (0..).zip(partitions).find(|(number, partition)| *number != partition.number);
    at.map(|(number, partition)| match partition.number {
        twice if twice < number => format!("tar partition {twice} exists twice"),
        _ => format!("tar partition {number} of {} is missing", partitions[partitions.len() - 1].number + 1),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(numbers: &[u32]) -> Vec<Partition> {
        numbers.iter().map(|number| Partition { number: *number, key: String::new() }).collect()
    }

    #[test]
    fn only_a_row_from_zero_without_gap_or_double_is_complete() {
        assert_eq!(gap(&numbered(&[0, 1, 2])), None);
        for (numbers, problem) in [
            (&[][..], "it has no tar partitions"),
            (&[1, 2], "tar partition 0 of 3 is missing"),
            (&[0, 2], "tar partition 1 of 3 is missing"),
            (&[0, 1, 1, 2], "tar partition 1 exists twice"),
        ] {
            assert_eq!(gap(&numbered(numbers)).as_deref(), Some(problem));
        }
    }
}
