//! The timeline that a recovering server follows, as far as its `pg_wal` tells.

use std::fs;
use std::time::{Duration, SystemTime};

use super::data_directory::{DataDirectory, Postmaster};
use crate::formats::timeline_history::TimelineHistory;
use crate::formats::wal_name::WalName;

/// The history of the timeline that the server in `directory` is to reach; none when that cannot be told, as on timeline 1.
///
/// At its start the server restores its target's history, and those between the backup's timeline and the target's, and keeps
/// them in `pg_wal`. So the target's is the latest of those that are younger than the server. Older ones lay there before: of
/// an earlier start with another target, or of a directory that was saved.
pub fn followed_history(directory: &DataDirectory) -> Option<TimelineHistory> {
    let Ok(Postmaster::Present { started: Some(started), .. }) = directory.postmaster() else { return None };
    let started = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(started).ok()?);
    let wal = directory.wal_directory();
    let timelines = fs::read_dir(&wal).ok()?.flatten().filter_map(|entry| match entry.file_name().to_str()?.parse() {
        Ok(WalName::History { timeline }) => (entry.metadata().ok()?.modified().ok()? >= started).then_some(timeline),
        _ => None,
    });
    let timeline = timelines.max()?;
    let text = fs::read_to_string(wal.join(WalName::History { timeline }.to_string())).ok()?;
    TimelineHistory::parse(timeline, &text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_latest_that_the_server_has_restored_since_it_was_started() {
        let data = tempfile::tempdir().unwrap();
        fs::create_dir(data.path().join("pg_wal")).unwrap();
        fs::write(data.path().join("PG_VERSION"), "15\n").unwrap();
        let directory = DataDirectory::open(data.path()).unwrap();
        let started = 1_700_000_000;
        let restored = |timeline: u32, at: u64| {
            let file = fs::File::create(data.path().join(format!("pg_wal/{timeline:08X}.history"))).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(at)).unwrap();
        };
        let history = |timeline| Some(TimelineHistory::parse(timeline, "").unwrap());

        restored(2, started);
        assert_eq!(followed_history(&directory), None, "no server runs there");
        fs::write(data.path().join("postmaster.pid"), format!("4711\n/data\n{started}\n")).unwrap();
        assert_eq!(followed_history(&directory), history(2));
        restored(0xA, started + 1);
        assert_eq!(followed_history(&directory), history(0xA));
        // of an earlier start
        restored(0xB, started - 1);
        assert_eq!(followed_history(&directory), history(0xA));
        restored(2, started - 1);
        restored(0xA, started - 1);
        assert_eq!(followed_history(&directory), None);
        // half-written, or nothing that the server would accept
        fs::write(data.path().join("pg_wal/xlogtemp.1"), "").unwrap();
        fs::write(data.path().join("pg_wal/0000000C.history"), "x").unwrap();
        assert_eq!(followed_history(&directory), None);
    }
}
