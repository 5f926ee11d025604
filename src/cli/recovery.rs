//! What to tell PostgreSQL's recovery when it cannot be said whether a file exists.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use super::args::OnOutage;
use super::exit::ExitStatus;
use crate::pg::data_directory::DataDirectory;
use crate::pg::recovery_mode::RecoveryMode;

/// The names that the server gives `%p` during recovery.
const RECOVERY_FILES: [&str; 2] = ["RECOVERYXLOG", "RECOVERYHISTORY"];

/// By the policy, or else by the recovery mode of the data directory that `destination` lies in. What cannot be determined
/// counts as outside of standby mode: there a status up to 125 would promote.
pub(super) fn status(policy: Option<OnOutage>, destination: &Path) -> ExitStatus {
    match policy {
        Some(OnOutage::Retry) => ExitStatus::LATER,
        Some(OnOutage::Stop) => ExitStatus::STOP_RECOVERY,
        None if is_standby(destination) => ExitStatus::LATER,
        None => ExitStatus::STOP_RECOVERY,
    }
}

/// The same by bare arguments that could not be parsed; none when they are no recovery's.
fn cannot_say_status(args: &[OsString]) -> Option<ExitStatus> {
    let is_recovery_file = |arg: &&OsString| {
        Path::new(arg).file_name().is_some_and(|name| RECOVERY_FILES.iter().any(|file| name == *file))
    };
    let destination = args.iter().skip(1).find(is_recovery_file);
    let is_fetch = args.iter().skip(1).any(|arg| arg == OsStr::new("wal-fetch"));
    match destination {
        Some(destination) => Some(status(None, Path::new(destination))),
        None if is_fetch => Some(ExitStatus::STOP_RECOVERY),
        None => None,
    }
}

/// What a panic ends the process with. Goes by the bare arguments, since nothing else can be relied on then.
pub fn panic_status(args: &[OsString]) -> ExitStatus {
    // a server that has adopted a prefetcher takes any status but 0 and 1 for a crash of its own
    let of_others = if args.iter().any(|arg| arg == "prefetch") { ExitStatus::USER } else { ExitStatus::UNEXPECTED };
    cannot_say_status(args).unwrap_or(of_others)
}

/// What arguments that cannot be used end the process with.
pub fn usage_status(args: &[OsString]) -> ExitStatus {
    cannot_say_status(args).unwrap_or(ExitStatus::USER)
}

fn is_standby(destination: &Path) -> bool {
    let directory = std::env::current_dir().ok().and_then(|cwd| DataDirectory::of_wal_path(&cwd, destination).ok());
    directory.is_some_and(|directory| RecoveryMode::of(&directory).is_standby())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_in_a_restore_command_never_looks_like_the_end_of_wal() {
        let status = |line: &str| panic_status(&line.split(' ').map(OsString::from).collect::<Vec<_>>()).0;
        assert_eq!(status("wal-eve wal-push pg_wal/000000010000000000000001"), 2);
        assert_eq!(status("wal-eve wal-fetch 000000010000000000000001 /nowhere/pg_wal/RECOVERYXLOG"), 250);
        assert_eq!(status("wal-eve wal-fecth 000000010000000000000001 /nowhere/pg_wal/RECOVERYXLOG"), 250);
    }
}
