//! `wal-eve cutover status`: once, or anew every two seconds until interrupted.

use std::io::{ErrorKind, IsTerminal as _, Write as _};
use std::time::Duration;

use super::outcome::Outcome;
use super::status_picture::{Picture, picture};
use crate::cli::exit::ExitStatus;
use crate::cutover::context::Cutover;
use crate::cutover::status::observer::Observer;
use crate::cutover::status::{Phase, Status};
use crate::cutover::{CutoverError, Kind, Result};

/// How often the picture is drawn anew.
const REFRESH: Duration = Duration::from_secs(2);

/// Between the two looks that tell a rate.
const RATE_PAUSE: Duration = Duration::from_secs(1);

/// How many tables are named where there is no terminal to fit.
const TABLES_SHOWN: usize = 20;

/// Back to the first line, and everything below it away.
const CLEAR: &str = "\x1b[H\x1b[J";

/// Looks, and says what there is to see.
pub(super) async fn run(cutover: &Cutover, watch: bool, as_json: bool) -> Result<Outcome> {
    let mut observer = Observer::new(cutover);
    if watch {
        return watched(cutover, &mut observer, as_json).await;
    }
    let mut status = observer.look().await;
    if status.phase == Phase::Copying {
        cutover.pause(RATE_PAUSE).await?;
        status = observer.look().await;
    }
    let mut outcome = Outcome::new(picture(&status, &Picture { columns: columns(), tables: TABLES_SHOWN }), &status);
    if !status.away.is_empty() {
        outcome.status = ExitStatus::UNEXPECTED;
    }
    Ok(outcome)
}

async fn watched(cutover: &Cutover, observer: &mut Observer<'_>, as_json: bool) -> Result<Outcome> {
    loop {
        let status = tokio::select! {
            status = observer.look() => status,
            _ = cutover.pause(Duration::MAX) => break,
        };
        match draw(&status, as_json) {
            Ok(()) => {}
            // who closed our output has seen enough
            Err(failed) if failed.kind() == ErrorKind::BrokenPipe => break,
            Err(failed) => {
                return Err(CutoverError::failed("could not write to the standard output").with_source(failed));
            }
        }
        match cutover.pause(REFRESH).await {
            Ok(()) => {}
            Err(failed) if failed.kind() == Kind::Interrupted => break,
            Err(failed) => return Err(failed),
        }
    }
    Ok(Outcome::printed_already())
}

fn draw(status: &Status, as_json: bool) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    if as_json {
        serde_json::to_writer(&mut stdout, status)?;
        writeln!(stdout)?;
    } else if stdout.is_terminal() {
        let size = rustix::termios::tcgetwinsize(&stdout).ok().filter(|size| size.ws_row > 0);
        let rows = size.map_or(24, |size| usize::from(size.ws_row));
        let mut shape = Picture { columns: columns(), tables: rows };
        let mut text = picture(status, &shape);
        // what the rest of the picture leaves of the terminal
        let wrapped = |line: &str| line.chars().count().div_ceil(shape.columns.max(1)).max(1);
        let surplus = (text.lines().map(wrapped).sum::<usize>() + 1).saturating_sub(rows);
        if surplus > 0 {
            shape.tables = shape.tables.min(status.tables.len()).saturating_sub(surplus + 1).max(1);
            text = picture(status, &shape);
        }
        write!(stdout, "{CLEAR}{text}")?;
    } else {
        writeln!(stdout, "{}", picture(status, &Picture { columns: columns(), tables: TABLES_SHOWN }))?;
    }
    stdout.flush()
}

fn columns() -> usize {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok().filter(|size| size.ws_col > 0);
    size.map_or(120, |size| usize::from(size.ws_col))
}
