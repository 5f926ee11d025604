//! Which base backups go and from where on WAL is kept (`spec/wal-e-format.md` §8.6). Pure: an inventory in, a plan or a refusal
//! out.
//!
//! Whatever the horizon, these hold: a backup goes only if it certainly starts before the horizon; no WAL goes that a kept
//! backup may need; and a complete backup is left.

use std::num::NonZeroUsize;
use std::time::SystemTime;

use super::super::{CommandError, Result};
use super::inventory::{ArchivedBackup, Inventory};
use crate::formats::wal_position::WalPosition;

/// What goes and what stays.
#[derive(Debug)]
pub(super) struct Plan {
    /// The backups that go, oldest first.
    pub(super) going: Vec<ArchivedBackup>,
    /// The complete backups that stay, oldest first; at least one.
    pub(super) kept: Vec<ArchivedBackup>,
    /// WAL that is older than this goes.
    pub(super) wal_before: WalPosition,
}

impl Plan {
    /// Everything strictly older than `horizon`.
    pub(super) fn before(inventory: &Inventory, horizon: WalPosition) -> Result<Self> {
        let goes = |backup: &&ArchivedBackup| backup.start.latest < horizon;
        let (older, stays): (Vec<_>, Vec<_>) = inventory.backups.iter().partition(goes);
        let (mut kept, unfinished): (Vec<_>, Vec<_>) = stays.into_iter().partition(|backup| backup.completed.is_some());
        let Some(first_completed) = kept.iter().filter_map(|backup| backup.completed).min() else {
            return Err(nothing_remains(inventory, horizon));
        };
        // Deleting parts of a backup that is still being made would let it end as one that looks complete and is not. A backup
        // that failed long ago has nothing newer than the first one that succeeded since.
        let in_progress = |backup: &&ArchivedBackup| backup.completed.is_none() && backup.last_stored > first_completed;
        let (in_progress, mut going): (Vec<_>, Vec<_>) = older.into_iter().partition(in_progress);
        for backup in &in_progress {
            tracing::warn!(
                backup = %backup.name,
                "skipping an incomplete base backup, and the WAL that it needs: it has objects newer than the oldest kept backup, so that it may still be in progress"
            );
        }
        let by_start = |backup: &&ArchivedBackup| (backup.start.earliest, backup.name.clone());
        going.sort_by_key(by_start);
        kept.sort_by_key(by_start);
        let starts = kept.iter().chain(&unfinished).chain(&in_progress).map(|backup| backup.start.earliest);
        let wal_before = starts.chain(inventory.foreign_start).fold(horizon, WalPosition::min);
        let owned = |backups: Vec<&ArchivedBackup>| backups.into_iter().cloned().collect();
        Ok(Self { going: owned(going), kept: owned(kept), wal_before })
    }

    /// Everything older than the `count` newest complete backups; none when there is no complete backup.
    pub(super) fn retain(inventory: &Inventory, count: NonZeroUsize) -> Result<Option<Self>> {
        let mut complete: Vec<&ArchivedBackup> =
            inventory.backups.iter().filter(|backup| backup.completed.is_some()).collect();
        // by time: after an upgrade the newest backup may start at a lower position than old ones
        complete.sort_by_key(|backup| std::cmp::Reverse((backup.completed, backup.start.earliest)));
        let (newest, older) = complete.split_at(complete.len().min(count.get()));
        let contradiction = newest.iter().find_map(|kept| {
            let behind = older.iter().find(|old| old.start.earliest > kept.start.latest)?;
            Some((*kept, *behind))
        });
        if let Some((kept, old)) = contradiction {
            return Err(out_of_order(kept, old));
        }
        // where one lies is not known, time alone decides over the older ones; WAL is kept from its earliest start on anyway
        let Some(horizon) = newest.iter().map(|backup| backup.start.latest).min() else { return Ok(None) };
        Self::before(inventory, horizon).map(Some)
    }

    /// The kept backup that starts first, of those whose start is known if there are any.
    pub(super) fn oldest_kept(&self) -> &ArchivedBackup {
        self.kept
            .iter()
            .min_by_key(|backup| (!backup.start.is_exact(), backup.start.earliest))
            .expect("a plan keeps a complete backup")
    }

    /// The kept backup that was completed last.
    pub(super) fn newest_kept(&self) -> &ArchivedBackup {
        self.kept.iter().max_by_key(|backup| backup.completed).expect("a plan keeps a complete backup")
    }

    /// A kept backup that was completed before `going`, although it starts after it.
    pub(super) fn kept_but_older(&self, going: &ArchivedBackup) -> Option<&ArchivedBackup> {
        let completed = going.completed?;
        self.kept.iter().find(|kept| kept.completed < Some(completed))
    }
}

fn nothing_remains(inventory: &Inventory, horizon: WalPosition) -> CommandError {
    let complete = inventory.backups.iter().filter(|backup| backup.completed.is_some()).count();
    CommandError::refused(format!("no complete base backup would remain: none starts at {horizon} or later"))
        .with_detail(format!(
            "The archive holds {complete} complete base backups. {horizon} stands for log and segment, as in the last sixteen digits of a segment's name. Nothing was deleted."
        ))
        .with_hint("Use backup-list to see what there is. If really all of it has to go, use delete everything.")
}

/// The times are the store's.
fn out_of_order(kept: &ArchivedBackup, old: &ArchivedBackup) -> CommandError {
    let ago = |backup: &ArchivedBackup| backup.completed.unwrap_or(SystemTime::UNIX_EPOCH);
    let apart = ago(kept).duration_since(ago(old)).unwrap_or_default().as_secs();
    CommandError::refused(format!(
        "backup {} would be deleted as older than {}, but it starts later in the WAL",
        old.name, kept.name
    ))
    .with_detail(format!(
        "{} was completed {apart} seconds before {}, by the store's clock. Either two clusters share the prefix, or the archive was copied from elsewhere, which gave its objects new times. Nothing was deleted.",
        old.name, kept.name
    ))
    .with_hint("Compare with backup-list which backups are whose, and name the oldest one to keep with delete before NAME.")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::formats::key::Layout;
    use crate::formats::wal_name::SegmentName;
    use crate::storage::Listed;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// `name: time` is a complete backup, `name? time` one without a sentinel; `name` is what follows `base_00000001`.
    fn inventory(text: &str) -> Inventory {
        let layout = Layout::new("");
        let mut rows = Vec::new();
        for line in text.split(", ").filter(|line| !line.is_empty()) {
            let (name, time) = line.split_once([':', '?']).unwrap();
            let last_modified = at(time.trim().parse().unwrap());
            let mut keys = vec![format!("basebackups_005/base_00000001{name}/extended_version.txt")];
            if line.contains(':') {
                keys.push(format!("basebackups_005/base_00000001{name}_backup_stop_sentinel.json"));
            }
            rows.extend(keys.into_iter().map(|key| Listed { key, size: 1, last_modified }));
        }
        Inventory::of(&layout, rows)
    }

    fn segment(digits: &str) -> WalPosition {
        format!("00000009{digits}").parse::<SegmentName>().unwrap().into()
    }

    /// The last digits of the names of what goes, and from where on WAL is kept.
    fn outcome(plan: &Plan) -> (String, String) {
        let short = |backup: &ArchivedBackup| format!("{:X}", backup.name.segment().segment());
        (plan.going.iter().map(short).collect::<Vec<_>>().join(" "), plan.wal_before.to_string())
    }

    fn before(text: &str, horizon: &str) -> (String, String) {
        outcome(&Plan::before(&inventory(text), segment(horizon)).unwrap())
    }

    fn retain(text: &str, count: usize) -> Result<Option<(String, String)>> {
        let plan = Plan::retain(&inventory(text), NonZeroUsize::new(count).unwrap())?;
        Ok(plan.as_ref().map(outcome))
    }

    const THREE: &str = "0000000000000002_00000040: 20, 0000000000000005_00000040: 50, 0000000100000001_00000040: 90";

    #[test]
    fn before_takes_what_is_strictly_older() {
        let went = |going: &str, wal: &str| (going.to_owned(), wal.to_owned());
        assert_eq!(before(THREE, "0000000000000002"), went("", "0000000000000002"));
        assert_eq!(before(THREE, "0000000000000003"), went("2", "0000000000000003"), "the name need not exist");
        assert_eq!(before(THREE, "0000000000000005"), went("2", "0000000000000005"));
        assert_eq!(before(THREE, "0000000100000001"), went("2 5", "0000000100000001"), "logs compare before segments");
        let incomplete = format!("{THREE}, 0000000000000001_00000040? 10, 0000000000000005_00000060? 45");
        assert_eq!(before(&incomplete, "0000000000000005"), went("1 2", "0000000000000005"));
    }

    #[test]
    fn before_leaves_a_complete_backup() {
        for (text, horizon) in [
            (THREE, "0000000100000002"),
            ("", "0000000000000001"),
            ("0000000000000009_00000040? 1", "0000000000000001"),
        ] {
            let text = Plan::before(&inventory(text), segment(horizon)).unwrap_err();
            assert!(text.to_string().contains("no complete base backup would remain"), "{text}");
            assert!(text.hint().unwrap().contains("delete everything"));
        }
    }

    #[test]
    fn retain_keeps_the_newest() {
        let went = |going: &str, wal: &str| Some((going.to_owned(), wal.to_owned()));
        assert_eq!(retain(THREE, 1).unwrap(), went("2 5", "0000000100000001"));
        assert_eq!(retain(THREE, 2).unwrap(), went("2", "0000000000000005"));
        // with fewer than that, what is older than the oldest still goes
        for count in [3, 4, usize::MAX] {
            let text = format!("{THREE}, 0000000000000001_00000040? 10");
            assert_eq!(retain(&text, count).unwrap(), went("1", "0000000000000002"));
        }
        assert_eq!(retain("", 1).unwrap(), None);
        assert_eq!(retain("0000000000000001_00000040? 10", 1).unwrap(), None);
    }

    #[test]
    fn two_backups_that_start_in_one_segment_stay_together() {
        let twins = "0000000000000002_00000040: 20, 0000000000000002_00000060: 30, 0000000000000001_00000040: 10";
        assert_eq!(retain(twins, 1).unwrap(), Some(("1".to_owned(), "0000000000000002".to_owned())));
    }

    #[test]
    fn equal_times_are_ordered_by_position() {
        let copied = "0000000000000002_00000040: 20, 0000000000000005_00000040: 20, 0000000000000001_00000040: 20";
        assert_eq!(retain(copied, 1).unwrap(), Some(("1 2".to_owned(), "0000000000000005".to_owned())));
    }

    #[test]
    fn retain_refuses_when_time_and_position_contradict_each_other() {
        let upgraded = "0000000500000002_00000040: 20, 0000000500000005_00000040: 50, 0000000000000001_00000040: 90";
        for count in [1, 2] {
            let text = retain(upgraded, count).unwrap_err();
            let message = format!("{text} {} {}", text.detail().unwrap(), text.hint().unwrap());
            for part in [
                "base_000000010000000500000",
                "base_000000010000000000000001_00000040",
                "two clusters",
                "copied",
                "delete before NAME",
            ] {
                assert!(message.contains(part), "{part} is not in {message}");
            }
        }
        assert_eq!(retain(upgraded, 3).unwrap(), Some((String::new(), "0000000000000001".to_owned())), "none goes");
        // by name it is the user's word; which backups are newer than what stays is known
        let plan = Plan::before(&inventory(upgraded), segment("0000000500000002")).unwrap();
        assert_eq!(plan.kept_but_older(&plan.going[0]).unwrap().name, plan.oldest_kept().name);
        let plan = Plan::before(&inventory(THREE), segment("0000000000000005")).unwrap();
        assert_eq!(plan.kept_but_older(&plan.going[0]), None);
        assert_eq!(plan.newest_kept().name.segment().log(), 1);
    }

    #[test]
    fn a_backup_that_may_be_in_progress_stays_with_its_wal() {
        let went = |going: &str, wal: &str| Some((going.to_owned(), wal.to_owned()));
        let slow = format!("{THREE}, 0000000000000004_00000040? 91");
        assert_eq!(retain(&slow, 1).unwrap(), went("2 5", "0000000000000004"));
        let failed = format!("{THREE}, 0000000000000004_00000040? 89");
        assert_eq!(retain(&failed, 1).unwrap(), went("2 4 5", "0000000100000001"));
        let newer = format!("{THREE}, 0000000100000002_00000040? 91");
        assert_eq!(retain(&newer, 1).unwrap(), went("2 5", "0000000100000001"));
    }

    #[test]
    fn what_may_lie_anywhere_in_its_log_holds_the_logs_wal_and_goes_with_the_whole_log() {
        let went = |going: &str, wal: &str| Some((going.to_owned(), wal.to_owned()));
        // its real segment may be 3
        let offline = "0000000000000030_00000030: 30, 0000000000000002_00000040: 20, 0000000000000031_00000040: 40";
        assert_eq!(retain(offline, 2).unwrap(), went("2", "0000000000000000"), "its WAL may begin before segment 2");
        assert_eq!(retain(offline, 1).unwrap(), went("2", "0000000000000000"), "it may be newer than 31");
        let next_log = format!("{offline}, 0000000100000001_00000040: 90");
        assert_eq!(retain(&next_log, 1).unwrap(), went("30 2 31", "0000000100000001"));
    }

    #[test]
    fn wal_of_another_programs_backup_stays() {
        let row = Listed {
            key: "basebackups_005/base_000000010000000000000001_backup_stop_sentinel.json".into(),
            size: 1,
            last_modified: at(1),
        };
        let mut inventory = inventory(THREE);
        inventory.foreign_start = Inventory::of(&Layout::new(""), [row]).foreign_start;
        let plan = Plan::before(&inventory, segment("0000000000000005")).unwrap();
        assert_eq!(outcome(&plan), ("2".to_owned(), "0000000000000001".to_owned()));
    }
}
