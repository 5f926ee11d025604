//! What a user has to do between a restore and the server's start.

use std::path::Path;

use super::tablespaces;
use crate::pg::control_file::ControlFile;
use crate::pg::data_directory::DataDirectory;
use crate::pg::version::Major;

/// The configuration files that WAL-E leaves to the user.
const CONFIG_FILES: [&str; 3] = ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"];

/// Signal files that a backup of a standby brings along.
const SIGNAL_FILES: [&str; 2] = ["standby.signal", "recovery.signal"];

/// What the restored directory still needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NextSteps {
    /// The cluster's major version, if `PG_VERSION` tells.
    pub major: Option<Major>,
    /// Configuration files that are not there.
    pub missing_config: Vec<&'static str>,
    /// Signal files that are.
    pub signal_files: Vec<&'static str>,
    /// Tablespaces, by OID, that are directories in `pg_tblspc` and not links to elsewhere.
    pub in_place_tablespaces: Vec<String>,
    /// Settings that a standby may not have lower than the source had, with their values there, and `min_wal_size` in MB
    /// where its default is too low for the segments' size.
    pub minimum_settings: Vec<(&'static str, u32)>,
}

impl NextSteps {
    pub(super) fn of(root: &Path, control: &Option<ControlFile>) -> Self {
        let settings = control.as_ref().map(|control| {
            let of_old = [
                ("max_connections", Some(control.max_connections)),
                ("max_worker_processes", Some(control.max_worker_processes)),
                ("max_wal_senders", control.max_wal_senders),
                ("max_prepared_transactions", Some(control.max_prepared_xacts)),
                ("max_locks_per_transaction", Some(control.max_locks_per_xact)),
                ("min_wal_size", minimum_wal_size(control)),
            ];
            of_old.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
        });
        Self {
            major: DataDirectory::open(root).ok().map(|directory| directory.major()),
            missing_config: CONFIG_FILES.into_iter().filter(|name| !root.join(name).exists()).collect(),
            signal_files: SIGNAL_FILES.into_iter().filter(|name| root.join(name).exists()).collect(),
            in_place_tablespaces: tablespaces::in_place(root),
            minimum_settings: settings.unwrap_or_default(),
        }
    }
}

/// A server does not start with less than two segments, which initdb had seen to in the source's postgresql.conf.
fn minimum_wal_size(control: &ControlFile) -> Option<u32> {
    const DEFAULT_MB: u64 = 80;
    let needed = control.wal_segment_size.bytes() / (1 << 20) * 2;
    u32::try_from(needed).ok().filter(|_| needed > DEFAULT_MB)
}
