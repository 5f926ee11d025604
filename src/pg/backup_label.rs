//! `backup_label`: where recovery of a base backup starts, in the server's own text.

use super::{Kind, PgError, Result};
use crate::formats::lsn::Lsn;
use crate::formats::wal_name::SegmentName;

/// What a `backup_label` tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupLabel {
    /// Where replay starts.
    pub start: Lsn,
    /// The segment that holds it.
    pub segment: SegmentName,
    /// The record of the backup's checkpoint.
    pub checkpoint: Lsn,
    /// `streamed` for what non-exclusive functions took, `pg_start_backup` for an exclusive backup; none if not told.
    pub method: Option<String>,
    /// `primary`, `master` or `standby`; none if not told.
    pub from: Option<String>,
    /// When the backup started, in the server's time zone; none if not told.
    pub start_time: Option<String>,
    /// The label given at the start; none if not told.
    pub label: Option<String>,
    /// The timeline on which it started: told from 11 on, and by the segment's name before.
    pub timeline: u32,
}

impl BackupLabel {
    /// Reads the file's text. Lines that are not known are ignored, as those of incremental backups are.
    ///
    /// # Errors
    ///
    /// [`Kind::Damaged`] when the start or the checkpoint is missing, or one of the positions cannot be read.
    pub fn parse(text: &str) -> Result<Self> {
        let value = |key: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix(": "))
                .map(|value| value.trim_end_matches('\r'))
        };
        let damaged = |key: &str| PgError::new(Kind::Damaged, format!("the backup label has no usable \"{key}\""));

        const START: &str = "START WAL LOCATION";
        let (start, file) = value(START).and_then(|value| value.split_once(' ')).ok_or_else(|| damaged(START))?;
        let file = file.strip_prefix("(file ").and_then(|file| file.strip_suffix(')')).ok_or_else(|| damaged(START))?;
        let segment: SegmentName = file.parse().map_err(|e| damaged(START).with_source(e))?;

        const CHECKPOINT: &str = "CHECKPOINT LOCATION";
        let checkpoint = value(CHECKPOINT).ok_or_else(|| damaged(CHECKPOINT))?;

        const TIMELINE: &str = "START TIMELINE";
        let timeline = match value(TIMELINE) {
            None => segment.timeline(),
            Some(digits) => digits.parse().map_err(|e| damaged(TIMELINE).with_source(e))?,
        };
        if timeline != segment.timeline() {
            return Err(damaged(TIMELINE).with_detail(format!("It says {timeline}, and the segment is {segment}.")));
        }
        Ok(Self {
            start: start.parse().map_err(|e| damaged(START).with_source(e))?,
            segment,
            checkpoint: checkpoint.parse().map_err(|e| damaged(CHECKPOINT).with_source(e))?,
            method: value("BACKUP METHOD").map(str::to_owned),
            from: value("BACKUP FROM").map(str::to_owned),
            start_time: value("START TIME").map(str::to_owned),
            label: value("LABEL").map(str::to_owned),
            timeline,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n\
        CHECKPOINT LOCATION: 0/2000060\n\
        BACKUP METHOD: streamed\n\
        BACKUP FROM: primary\n\
        START TIME: 2016-05-03 10:20:30 UTC\n\
        LABEL: freeze_start_2016-05-03T10:20:30.123456+00:00\n\
        START TIMELINE: 1\n";

    #[test]
    fn every_line_is_read() {
        let expected = BackupLabel {
            start: Lsn(0x200_0028),
            segment: "000000010000000000000002".parse().unwrap(),
            checkpoint: Lsn(0x200_0060),
            method: Some("streamed".into()),
            from: Some("primary".into()),
            start_time: Some("2016-05-03 10:20:30 UTC".into()),
            label: Some("freeze_start_2016-05-03T10:20:30.123456+00:00".into()),
            timeline: 1,
        };
        assert_eq!(BackupLabel::parse(TEXT).unwrap(), expected);
        // 9.6 and 10 do not tell the timeline.
        let older = TEXT.replace("START TIMELINE: 1\n", "");
        assert_eq!(BackupLabel::parse(&older).unwrap(), expected);
    }

    #[test]
    fn a_label_without_its_positions_is_damaged() {
        for (good, bad) in [
            ("START WAL", "STOP WAL"),
            ("0/2000028", "0-2000028"),
            ("(file ", "(line "),
            ("0002)", "0002"),
            ("000000010000000000000002", "00000001000000000000002"),
            ("CHECKPOINT LOCATION", "CHECKPOINT"),
            ("0/2000060", ""),
            ("TIMELINE: 1", "TIMELINE: x"),
            ("TIMELINE: 1", "TIMELINE: 2"),
        ] {
            assert_eq!(BackupLabel::parse(&TEXT.replace(good, bad)).unwrap_err().kind(), Kind::Damaged, "{bad:?}");
        }
        for end in 0..TEXT.find("0/2000060").unwrap() {
            assert!(BackupLabel::parse(&TEXT[..end]).is_err(), "accepted {end} bytes");
        }
    }
}
