//! The list of backups as text: WAL-E's own, JSON, and a table for reading (`spec/wal-e-format.md` §8.5).

use std::time::SystemTime;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::macros::format_description;

use crate::commands::backup_query::CompleteBackup;

const COLUMNS: [&str; 7] = [
    "name",
    "last_modified",
    "expanded_size_bytes",
    "wal_segment_backup_start",
    "wal_segment_offset_backup_start",
    "wal_segment_backup_stop",
    "wal_segment_offset_backup_stop",
];

/// WAL-E's header line.
pub(super) fn wal_e_header() -> String {
    COLUMNS.join("\t") + "\r\n"
}

/// WAL-E's lines. For a `file://` store it writes the time in another form and never the details.
pub(super) fn wal_e_rows(backups: &[CompleteBackup], file_store: bool) -> String {
    let row = |backup: &CompleteBackup| {
        let mut fields = fields(backup);
        if file_store {
            fields[1] = file_time(backup.last_modified);
            for unknown in [2, 5, 6] {
                fields[unknown] = String::new();
            }
        }
        fields.join("\t") + "\r\n"
    };
    backups.iter().map(row).collect()
}

/// One JSON array, with numbers as numbers and what is not known left out.
pub(super) fn json(backups: &[CompleteBackup]) -> String {
    let rows: Vec<Value> = backups
        .iter()
        .map(|backup| {
            let mut row = json!({
                "name": backup.name.to_string(),
                "last_modified": s3_time(backup.last_modified),
                "wal_segment_backup_start": backup.name.segment().to_string(),
                "wal_segment_offset_backup_start": backup.name.offset(),
            });
            if let Some(sentinel) = &backup.sentinel {
                row["expanded_size_bytes"] = sentinel.expanded_size_bytes.into();
                row["wal_segment_backup_stop"] = sentinel.stop_segment.clone().into();
                row["wal_segment_offset_backup_stop"] = sentinel.stop_offset.clone().into();
            }
            row
        })
        .collect();
    format!("{:#}\n", Value::from(rows))
}

/// Columns aligned under their names; those that nothing is known of are left out.
pub(super) fn table(backups: &[CompleteBackup]) -> String {
    let rows: Vec<[String; 7]> = backups.iter().map(fields).collect();
    let shown: Vec<usize> =
        (0..7).filter(|column| rows.is_empty() || rows.iter().any(|row| !row[*column].is_empty())).collect();
    let width =
        |column: usize| rows.iter().map(|row| row[column].len()).chain([COLUMNS[column].len()]).max().unwrap_or(0);
    let line = |cells: &dyn Fn(usize) -> String| {
        let cells: Vec<String> =
            shown.iter().map(|column| format!("{:<width$}", cells(*column), width = width(*column))).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    let header = line(&|column| COLUMNS[column].to_owned());
    rows.iter().fold(header, |text, row| text + &line(&|column| row[column].clone()))
}

fn fields(backup: &CompleteBackup) -> [String; 7] {
    let sentinel = backup.sentinel.as_ref();
    [
        backup.name.to_string(),
        s3_time(backup.last_modified),
        sentinel.map(|sentinel| sentinel.expanded_size_bytes.to_string()).unwrap_or_default(),
        backup.name.segment().to_string(),
        backup.name.offset().to_owned(),
        sentinel.map(|sentinel| sentinel.stop_segment.clone()).unwrap_or_default(),
        sentinel.map(|sentinel| sentinel.stop_offset.clone()).unwrap_or_default(),
    ]
}

/// As S3 lists it: `2016-01-01T00:00:00.000Z`.
fn s3_time(at: SystemTime) -> String {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    OffsetDateTime::from(at).format(format).expect("every field of the format exists in a date with time")
}

/// As Python's `isoformat` has it: microseconds only when there are some.
fn file_time(at: SystemTime) -> String {
    let at = OffsetDateTime::from(at);
    let whole = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]");
    let with_fraction = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]");
    let text = if at.microsecond() == 0 { at.format(whole) } else { at.format(with_fraction) };
    text.expect("every field of the format exists in a date with time")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::formats::sentinel::Sentinel;

    fn backup(detail: bool) -> CompleteBackup {
        let sentinel = Sentinel {
            stop_segment: "000000010000000000000002".into(),
            stop_offset: "00000312".into(),
            expanded_size_bytes: 100_173,
            spec: None,
        };
        CompleteBackup {
            name: "base_000000010000000000000002_00000040".parse().unwrap(),
            last_modified: SystemTime::UNIX_EPOCH + Duration::from_micros(1_451_606_400_120_000),
            sentinel: detail.then_some(sentinel),
        }
    }

    #[test]
    fn rows_are_wal_es() {
        let start = "base_000000010000000000000002_00000040\t2016-01-01T00:00:00.120Z\t";
        assert_eq!(wal_e_rows(&[backup(false)], false), format!("{start}\t000000010000000000000002\t00000040\t\t\r\n"));
        assert_eq!(
            wal_e_rows(&[backup(true)], false),
            format!("{start}100173\t000000010000000000000002\t00000040\t000000010000000000000002\t00000312\r\n")
        );
        let file = "base_000000010000000000000002_00000040\t2016-01-01T00:00:00.120000\t\t000000010000000000000002\t00000040\t\t\r\n";
        assert_eq!(wal_e_rows(&[backup(true)], true), file);
    }

    #[test]
    fn json_and_table_hold_the_same() {
        let json: Value = serde_json::from_str(&json(&[backup(true)])).unwrap();
        assert_eq!(json[0]["expanded_size_bytes"], 100_173);
        let table = table(&[backup(false)]);
        assert!(
            table.starts_with("name ")
                && table.contains("base_000000010000000000000002_00000040  2016-01-01T00:00:00.120Z")
        );
        assert!(!table.contains("expanded_size_bytes"));
    }
}
