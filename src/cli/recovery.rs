//! What to tell PostgreSQL's recovery when it cannot be said whether a file exists.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use super::args::OnOutage;
use super::exit::ExitStatus;
use crate::formats::wal_name::WalName;
use crate::pg::data_directory::DataDirectory;
use crate::pg::recovery_mode::RecoveryMode;

/// The names that the server gives `%p` during recovery.
const RECOVERY_FILES: [&str; 2] = ["RECOVERYXLOG", "RECOVERYHISTORY"];

/// What the server has to do when it cannot be said whether a file exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doubt {
    /// Ask again, as a standby does.
    AskAgain,
    /// The same for a history. A server that is promoted takes its timeline for free.
    AskAgainForHistory,
    /// Finish its promotion without the file, which it does not need.
    GoOn,
    /// Stop recovery: any status up to 125 would end it, and promote.
    Stop,
    /// Stop a promotion that is almost done: without the file the new timeline's history would lack ancestors.
    StopPromotion,
}

impl Doubt {
    /// By the policy, or else by the recovery mode of the data directory that `destination` lies in. What cannot be
    /// determined counts as outside of standby mode.
    pub(super) fn of(policy: Option<OnOutage>, name: Option<&WalName>, destination: &Path) -> Self {
        let directory = data_directory(destination);
        let mode = directory.as_ref().map_or(RecoveryMode::Unknown, RecoveryMode::of);
        let is_history = matches!(name, Some(WalName::History { .. }));
        if let (Some(directory), Some(name), RecoveryMode::Promotion, true) = (&directory, name, mode, is_history) {
            // timeline 1 has no history, and of any other's the server takes the copy in its own pg_wal
            let needed = *name != WalName::History { timeline: 1 }
                && !directory.wal_directory().join(name.to_string()).is_file();
            match (needed, policy) {
                (false, _) => return Self::GoOn,
                (true, None | Some(OnOutage::Stop)) => return Self::StopPromotion,
                (true, Some(OnOutage::Retry)) => {}
            }
        }
        match policy {
            Some(OnOutage::Stop) => Self::Stop,
            None if !mode.is_standby() => Self::Stop,
            _ if is_history => Self::AskAgainForHistory,
            _ => Self::AskAgain,
        }
    }

    pub(super) fn status(self) -> ExitStatus {
        match self {
            Self::AskAgain | Self::AskAgainForHistory | Self::GoOn => ExitStatus::LATER,
            Self::Stop | Self::StopPromotion => ExitStatus::STOP_RECOVERY,
        }
    }

    /// What follows for the server that the error itself does not tell.
    pub(super) fn hint(self) -> Option<&'static str> {
        match self {
            Self::AskAgainForHistory => Some(
                "A server that is promoted while the archive does not answer may take a timeline that another server has already. Promote it when the archive answers.",
            ),
            Self::StopPromotion => Some(
                "The promotion stops half-way, and started again as it is, the server would be a primary on its OLD timeline, beside whatever else has been archived there. Before it starts, make standby.signal or recovery.signal anew (up to PostgreSQL 11 rename recovery.done to recovery.conf), and see to it that the archive answers or that pg_wal holds the history; then promote it again.",
            ),
            Self::AskAgain | Self::GoOn | Self::Stop => None,
        }
    }
}

/// The data directory that `destination` lies in, where that can be told.
pub(super) fn data_directory(destination: &Path) -> Option<DataDirectory> {
    DataDirectory::of_wal_path(&std::env::current_dir().ok()?, destination).ok()
}

/// The status by bare arguments that could not be parsed; none when they are no recovery's.
fn cannot_say_status(args: &[OsString]) -> Option<ExitStatus> {
    let is_recovery_file = |arg: &&OsString| {
        Path::new(arg).file_name().is_some_and(|name| RECOVERY_FILES.iter().any(|file| name == *file))
    };
    let destination = args.iter().skip(1).find(is_recovery_file);
    let name: Option<WalName> = args.iter().skip(1).find_map(|arg| arg.to_str()?.parse().ok());
    let is_fetch = args.iter().skip(1).any(|arg| arg == OsStr::new("wal-fetch"));
    match destination {
        Some(destination) => Some(Doubt::of(None, name.as_ref(), Path::new(destination)).status()),
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_panic_in_a_restore_command_never_looks_like_the_end_of_wal() {
        let status = |line: &str| panic_status(&line.split(' ').map(OsString::from).collect::<Vec<_>>()).0;
        assert_eq!(status("wal-eve wal-push pg_wal/000000010000000000000001"), 2);
        assert_eq!(status("wal-eve wal-fetch 000000010000000000000001 /nowhere/pg_wal/RECOVERYXLOG"), 250);
        assert_eq!(status("wal-eve wal-fecth 000000010000000000000001 /nowhere/pg_wal/RECOVERYXLOG"), 250);
    }

    #[test]
    fn a_promotion_that_is_almost_done_stops_only_for_a_history_that_it_needs() {
        let data = tempfile::tempdir().unwrap();
        let file = |name: &str| data.path().join(name);
        fs::create_dir(file("pg_wal")).unwrap();
        fs::write(file("PG_VERSION"), "15\n").unwrap();
        fs::write(file("postmaster.pid"), format!("{}\n", std::os::unix::process::parent_id())).unwrap();
        fs::write(file("pg_wal/00000003.history"), "").unwrap();
        let (retry, stop) = (Some(OnOutage::Retry), Some(OnOutage::Stop));
        let destination = file("pg_wal/RECOVERYHISTORY");
        let doubt = |policy, name: &str| Doubt::of(policy, Some(&name.parse().unwrap()), &destination);
        for (name, expected) in [
            ("00000001.history", [Doubt::GoOn; 3]),
            ("00000002.history", [Doubt::StopPromotion, Doubt::StopPromotion, Doubt::AskAgainForHistory]),
            ("00000003.history", [Doubt::GoOn; 3]),
            ("000000010000000000000001", [Doubt::Stop, Doubt::Stop, Doubt::AskAgain]),
        ] {
            assert_eq!([None, stop, retry].map(|policy| doubt(policy, name)), expected, "{name}");
        }
        // recovery itself can be started again
        fs::write(file("recovery.signal"), "").unwrap();
        assert_eq!(doubt(None, "00000001.history"), Doubt::Stop);
        fs::write(file("standby.signal"), "").unwrap();
        assert_eq!(doubt(None, "00000001.history"), Doubt::AskAgainForHistory);
        assert_eq!(doubt(None, "000000010000000000000001"), Doubt::AskAgain);
    }
}
