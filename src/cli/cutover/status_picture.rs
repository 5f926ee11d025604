//! A cutover's status as a person reads it: a few lines that hold still, and bars.

use std::fmt::Write as _;
use std::time::Duration;

use crate::cutover::quantity::{bytes_text, time_text};
use crate::cutover::replication::link::Direction;
use crate::cutover::replication::subscription::CopyState;
use crate::cutover::status::{Lag, Phase, Replay, Retained, Status, TableProgress};

/// How wide the bar of all tables is, in columns.
const WIDE_BAR: usize = 40;

/// How wide the bar of a table is.
const BAR: usize = 16;

/// The narrowest column of names.
const NAME: usize = 20;

/// What a line has besides the name.
const BESIDES_NAME: usize = 78;

/// What a picture has to fit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Picture {
    pub(super) columns: usize,
    /// How many tables are named; the others are counted.
    pub(super) tables: usize,
}

pub(super) fn picture(status: &Status, shape: &Picture) -> String {
    let mut text = String::new();
    let at = crate::cutover::journal::time_text(status.at);
    let way = match status.direction {
        Direction::Forward => "",
        Direction::Back => " (back, from the target to the replica)",
    };
    let headline = match status.phase {
        Phase::Replaying => "The replica is a standby and replays the source's WAL",
        Phase::Promoted => "The replica is the primary; nothing is replicated from it",
        Phase::Copying => "Tables are being copied",
        Phase::Following => "All tables are copied and followed",
        Phase::Unknown => "The server that would tell cannot be asked",
    };
    let _ = writeln!(text, "{headline}{way}.  {at}\n");
    for away in &status.away {
        let _ = writeln!(text, "AWAY     {away}");
    }
    if let Some(replay) = &status.replay {
        replay_line(&mut text, replay);
    }
    if status.total.tables > 0 {
        total_lines(&mut text, status);
    }
    if let Some(lag) = &status.lag {
        lag_line(&mut text, lag);
    }
    if let Some(retained) = &status.retained {
        retained_line(&mut text, retained);
    }
    for warning in &status.warnings {
        let _ = writeln!(text, "WARNING  {warning}");
    }
    if status.phase == Phase::Copying {
        table_lines(&mut text, status, shape);
    }
    text
}

fn replay_line(text: &mut String, replay: &Replay) {
    let lsn = replay.lsn.as_deref().unwrap_or("no position yet");
    let behind = replay.seconds_behind.map_or_else(String::new, |seconds| {
        format!("; its last transaction is {} old", time_text(Duration::from_secs_f64(seconds.max(0.0))))
    });
    let _ = writeln!(text, "Replay   {lsn} on timeline {}{behind}", replay.timeline);
}

fn total_lines(text: &mut String, status: &Status) {
    let total = &status.total;
    let share = share(total.bytes, total.bytes_total, total.ready == total.tables);
    let _ = write!(
        text,
        "Copied   [{}] {:>5.1} %  {} of {}",
        bar(share, WIDE_BAR),
        share * 100.0,
        bytes_text(total.bytes),
        bytes_text(total.bytes_total)
    );
    let _ = writeln!(text, "{}", pace(total.bytes_per_second, total.seconds_left));
    let _ = write!(text, "Tables   {} of {} ready", total.ready, total.tables);
    for (count, what) in [(total.copying, "copying"), (total.catching_up, "catching up"), (total.waiting, "waiting")] {
        if count > 0 {
            let _ = write!(text, ", {count} {what}");
        }
    }
    text.push('\n');
}

fn lag_line(text: &mut String, lag: &Lag) {
    let one = |bytes: i64, seconds: Option<f64>| {
        let bytes = bytes_text(u64::try_from(bytes).unwrap_or(0));
        match seconds {
            Some(seconds) => format!("{bytes} ({})", time_text(Duration::from_secs_f64(seconds.max(0.0)))),
            None => bytes,
        }
    };
    let _ = writeln!(
        text,
        "Lag      write {}, flush {}, replay {}; {}",
        one(lag.write_bytes, lag.write_seconds),
        one(lag.flush_bytes, lag.flush_seconds),
        one(lag.replay_bytes, lag.replay_seconds),
        lag.state
    );
}

fn retained_line(text: &mut String, retained: &Retained) {
    let _ = write!(text, "WAL kept {} of the plan's {}", bytes_text(retained.bytes), bytes_text(retained.limit_bytes));
    if let Some(safe) = retained.safe_bytes {
        let _ = write!(text, "; {} until the server gives up", bytes_text(u64::try_from(safe).unwrap_or(0)));
    }
    if let Some(free) = retained.disk_bytes {
        let _ = write!(text, "; {} free on the disk", bytes_text(free));
    }
    if !retained.is_active {
        text.push_str("; the slot is not in use");
    }
    text.push('\n');
}

fn table_lines(text: &mut String, status: &Status, shape: &Picture) {
    text.push('\n');
    let unready: Vec<_> = status.tables.iter().filter(|table| table.state != CopyState::Ready).collect();
    let width = shape.columns.saturating_sub(BESIDES_NAME).max(NAME);
    let longest = unready.iter().map(|table| table.name.chars().count()).max().unwrap_or_default();
    for table in unready.iter().take(shape.tables) {
        table_line(text, table, width.min(longest.max(NAME)));
    }
    if let Some(more) = unready.len().checked_sub(shape.tables).filter(|more| *more > 0) {
        let bytes = unready.iter().skip(shape.tables).map(|table| table.bytes_total).sum();
        let _ = writeln!(text, "… and {more} more, of {}", bytes_text(bytes));
    }
}

fn table_line(text: &mut String, table: &TableProgress, width: usize) {
    let share = share(table.bytes, table.bytes_total, table.is_copied());
    let name = fitted(&table.name, width);
    let _ = write!(text, "{name:width$}  [{}] {:>3.0} %  ", bar(share, BAR), share * 100.0);
    match table.state {
        CopyState::Copying => {
            let _ = write!(text, "{} of {}", bytes_text(table.bytes), bytes_text(table.bytes_total));
            if let Some(rows) = table.rows {
                let _ = match table.rows_total {
                    Some(total) => write!(text, ", {rows} of about {total} rows"),
                    None => write!(text, ", {rows} rows"),
                };
            }
            text.push_str(&pace(table.bytes_per_second, table.seconds_left));
        }
        state => {
            let _ = write!(text, "{state}, {}", bytes_text(table.bytes_total));
        }
    }
    text.push('\n');
}

fn pace(bytes_per_second: Option<u64>, seconds_left: Option<u64>) -> String {
    let mut text = String::new();
    if let Some(rate) = bytes_per_second.filter(|rate| *rate > 0) {
        let _ = write!(text, ", {}/s", bytes_text(rate));
    }
    if let Some(seconds) = seconds_left {
        let _ = write!(text, ", {} left", time_text(Duration::from_secs(seconds)));
    }
    text
}

/// From 0 to 1; what is not over does not look over.
fn share(done: u64, total: u64, is_over: bool) -> f64 {
    match (is_over, total) {
        (true, _) => 1.0,
        (false, 0) => 0.0,
        (false, total) => (done as f64 / total as f64).clamp(0.0, 0.999),
    }
}

fn bar(share: f64, width: usize) -> String {
    let full = (share * width as f64) as usize;
    let full = full.min(width);
    format!("{}{}", "#".repeat(full), ".".repeat(width - full))
}

/// A name that is too long loses its middle: the schema and the end tell tables apart.
fn fitted(name: &str, width: usize) -> String {
    let letters: Vec<char> = name.chars().collect();
    if letters.len() <= width {
        return name.to_owned();
    }
    let (front, back) = (width / 2, width - width / 2 - 1);
    letters[..front].iter().chain(&['…']).chain(&letters[letters.len() - back..]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cutover::replication::workers::Workers;
    use crate::cutover::status::Total;

    fn table(name: &str, state: CopyState, bytes: u64, bytes_total: u64) -> TableProgress {
        TableProgress {
            name: name.into(),
            state,
            rows: None,
            rows_total: None,
            bytes,
            bytes_total,
            bytes_per_second: None,
            seconds_left: None,
        }
    }

    fn status(tables: Vec<TableProgress>) -> Status {
        Status {
            at: time::OffsetDateTime::UNIX_EPOCH,
            phase: Phase::Copying,
            direction: Direction::Forward,
            replay: None,
            total: Total::of(&tables),
            tables,
            lag: None,
            retained: None,
            idle_slots: Vec::new(),
            workers: Some(Workers::default()),
            warnings: Vec::new(),
            away: Vec::new(),
        }
    }

    #[test]
    fn a_thousand_tables_fit() {
        let mut tables = vec![table("public.big", CopyState::Copying, 300 << 20, 1 << 30)];
        tables.extend((0..600).map(|n| table(&format!("public.t{n}"), CopyState::Waiting, 0, 1 << 20)));
        tables.extend((0..399).map(|n| table(&format!("public.r{n}"), CopyState::Ready, 1 << 20, 1 << 20)));
        let text = picture(&status(tables), &Picture { columns: 80, tables: 10 });
        assert!(text.lines().count() < 20, "{text}");
        assert!(text.contains("399 of 1000 ready, 1 copying, 600 waiting"), "{text}");
        assert!(text.contains("public.big") && text.contains("29 %") && text.contains("and 591 more"), "{text}");
    }

    #[test]
    fn what_is_under_way_says_how_long_it_takes() {
        let mut one = table("public.big", CopyState::Copying, 512 << 20, 1 << 30);
        (one.rows, one.rows_total, one.bytes_per_second, one.seconds_left) =
            (Some(7), Some(14), Some(8 << 20), Some(64));
        let text = picture(&status(vec![one]), &Picture { columns: 120, tables: 10 });
        assert!(text.contains("512 MB of 1.0 GB, 7 of about 14 rows, 8.0 MB/s, 1 min 4 s left"), "{text}");
        assert!(text.contains("[########........]  50 %"), "{text}");
    }

    #[test]
    fn nothing_looks_over_before_it_is() {
        assert!(bar(share(100, 100, false), 10) == "#########.");
        assert_eq!((share(0, 0, true), share(0, 0, false)), (1.0, 0.0));
        assert_eq!(fitted("schema.a_very_long_name", 11), "schem…_name");
    }
}
