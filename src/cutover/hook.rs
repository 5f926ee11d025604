//! The user's own commands: run by sh, watched, never waited for without end.

use std::collections::VecDeque;
use std::fmt;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::Command;

use super::error::{CutoverError, Result};
use super::quantity::time_text;
use crate::pg::conninfo::MASK;

/// How long a command that was told to end may take to do so.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// How many of its last lines an error repeats.
const LINES_SHOWN: usize = 5;

/// When a command runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Before anything else.
    MaintenanceOn,
    /// When the replica is a primary that can be written to.
    SwitchToReplica,
    /// When the target has everything.
    SwitchToTarget,
    /// At the end, and when a step is undone.
    MaintenanceOff,
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MaintenanceOn => "maintenance_on",
            Self::SwitchToReplica => "switch_to_replica",
            Self::SwitchToTarget => "switch_to_target",
            Self::MaintenanceOff => "maintenance_off",
        })
    }
}

/// Runs `command` and passes its output on to the log, where `secrets` and passwords in URLs are masked. One that takes longer than `timeout` is ended, with all it started.
/// Dropping the future kills it.
///
/// # Errors
///
/// When it cannot be started, ends with another status than 0, or does not end in time.
pub async fn run(name: impl fmt::Display, command: &str, timeout: Duration, secrets: &[&str]) -> Result<()> {
    let failed = |what: String| {
        CutoverError::refused(format!("the command {name} {what}")).with_detail(format!("It is: {command}"))
    };
    let mut child = Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| failed("could not be started".into()).with_source(e))?;
    let group = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let lines = tokio::sync::Mutex::new(VecDeque::new());
    let work = async {
        // what it leaves in the background may keep its output open: its own end is what counts
        let ended = child.wait().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        ended
    };
    let ended = tokio::select! {
        biased;
        ended = tokio::time::timeout(timeout, work) => ended,
        () = async { tokio::join!(log(&name, stdout, &lines, secrets), log(&name, stderr, &lines, secrets)); std::future::pending().await } => unreachable!("it never ends"),
    };
    let said = |failed: CutoverError, lines: VecDeque<String>| match lines.is_empty() {
        true => failed,
        false => failed.with_detail(format!("It said: {}.", Vec::from(lines).join(" | "))),
    };
    match ended {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(said(failed(format!("failed with {status}")), lines.into_inner())),
        Ok(Err(e)) => Err(failed("was lost".into()).with_source(e)),
        Err(_) => {
            if let Some(group) = group {
                let _ = kill_process_group(group, Signal::TERM);
                if tokio::time::timeout(END_TIMEOUT, child.wait()).await.is_err() {
                    let _ = kill_process_group(group, Signal::KILL);
                }
            }
            Err(said(failed(format!("did not end within {}", time_text(timeout))), lines.into_inner()))
        }
    }
}

async fn log<R: AsyncRead + Unpin>(
    name: &impl fmt::Display,
    output: Option<R>,
    kept: &tokio::sync::Mutex<VecDeque<String>>,
    secrets: &[&str],
) {
    let Some(output) = output else { return };
    let mut lines = BufReader::new(output).split(b'\n');
    while let Ok(Some(line)) = lines.next_segment().await {
        let line = masked(&String::from_utf8_lossy(&line), secrets);
        tracing::info!("{name}: {line}");
        let mut kept = kept.lock().await;
        kept.push_back(line);
        if kept.len() > LINES_SHOWN {
            kept.pop_front();
        }
    }
}

/// A line without the secrets, and without the password of any `scheme://user:password@host`: commands like to repeat what
/// they were given.
fn masked(line: &str, secrets: &[&str]) -> String {
    let secrets = secrets.iter().filter(|secret| !secret.is_empty());
    let mut rest = secrets.fold(line.to_owned(), |line, secret| line.replace(secret, MASK));
    let mut done = String::new();
    while let Some(at) = rest.find("://") {
        let after = rest.split_off(at + 3);
        done.push_str(&rest);
        let end = after.find(|c: char| c.is_whitespace() || "/'\"".contains(c)).unwrap_or(after.len());
        let (authority, more) = after.split_at(end);
        match authority.rsplit_once('@').and_then(|(who, host)| Some((who.split_once(':')?.0, host))) {
            Some((user, host)) => done.push_str(&format!("{user}:{MASK}@{host}")),
            None => done.push_str(authority),
        }
        rest = more.to_owned();
    }
    done + &rest
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(300);

    #[tokio::test]
    async fn success_failure_and_no_end_are_told_apart() {
        run("a", "echo said; exit 0", Duration::from_secs(30), &[]).await.unwrap();
        let failed =
            run("a", "echo on stdout; echo on stderr >&2; exit 3", Duration::from_secs(30), &[]).await.unwrap_err();
        assert!(failed.to_string().contains("exit status: 3"), "{failed}");
        let detail = failed.detail().unwrap();
        assert!(detail.contains("on stdout") && detail.contains("on stderr"), "{detail}");
        // time enough for the shell to begin
        let failed = run("a", "echo begun; sleep 60", Duration::from_secs(3), &[]).await.unwrap_err();
        assert!(failed.to_string().contains("did not end"), "{failed}");
        assert!(failed.detail().unwrap().contains("begun"));
    }

    #[tokio::test]
    async fn what_it_leaves_in_the_background_is_not_waited_for() {
        let began = std::time::Instant::now();
        run("a", "sleep 20 & echo done", Duration::from_secs(15), &[]).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(10));
    }

    #[tokio::test]
    async fn all_it_started_ends_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("late");
        // late enough that what ends it comes before, also on a busy machine
        let command = format!("(sleep 5; touch {}) & wait", file.display());
        run("a", &command, SOON, &[]).await.unwrap_err();
        tokio::time::sleep(Duration::from_millis(5200)).await;
        assert!(!file.exists());
    }

    #[test]
    fn no_line_shows_a_password() {
        for (line, expected) in [
            ("DATABASE_URL: postgres://u:p%40ss@h:5432/d?x=1", "DATABASE_URL: postgres://u:********@h:5432/d?x=1"),
            ("a postgres://u@h/d b https://x.y/z", "a postgres://u@h/d b https://x.y/z"),
            ("'postgres://a:b@c' and 'postgres://d:e@f'", "'postgres://a:********@c' and 'postgres://d:********@f'"),
            ("the word is w0rd.", "the word is ********."),
        ] {
            assert_eq!(masked(line, &["w0rd", ""]), expected);
        }
    }
}
