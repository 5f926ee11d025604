//! The server's process that a `restore_command` works for. When it ends, recovery is over: promoted, shut down or broken.

use std::fs;

use super::data_directory::{DataDirectory, Postmaster};

/// How far up to look for the postmaster: a shell, envdir, sudo and the like lie between.
const MAX_ANCESTORS: usize = 32;

/// The pid of the process that replays WAL in `directory` and has called this one: the startup process, which is the
/// ancestor whose parent is the postmaster. The postmaster's own where that cannot be told; none when no server runs there.
pub fn recovery_process(directory: &DataDirectory) -> Option<u32> {
    let Ok(Postmaster::Present { pid: Some(postmaster), .. }) = directory.postmaster() else { return None };
    let this = std::process::id();
    let mut process = this;
    for _ in 0..MAX_ANCESTORS {
        let Some(parent) = parent(process) else { break };
        if parent == postmaster {
            return Some(if process == this { postmaster } else { process });
        }
        process = parent;
    }
    parent(postmaster).is_some().then_some(postmaster)
}

/// The parent's pid; none when there is no such process.
fn parent(process: u32) -> Option<u32> {
    parent_in_stat(&fs::read_to_string(format!("/proc/{process}/stat")).ok()?)
}

/// The fourth field; the second is the program's name in parentheses, which may hold anything.
fn parent_in_stat(stat: &str) -> Option<u32> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_programs_name_may_hold_anything() {
        assert_eq!(parent_in_stat("12 (a) S 99 (b)) S 7 12 12 0"), Some(7));
        assert_eq!(parent_in_stat("12"), None);
        assert_eq!(parent(std::process::id()), Some(std::os::unix::process::parent_id()));
    }

    #[test]
    fn without_a_server_there_is_nobody_to_work_for() {
        let data = tempfile::tempdir().unwrap();
        fs::write(data.path().join("PG_VERSION"), "15\n").unwrap();
        let directory = DataDirectory::open(data.path()).unwrap();
        assert_eq!(recovery_process(&directory), None);
        // no process has this number: the largest that Linux gives is 2^22
        fs::write(data.path().join("postmaster.pid"), "4194999\n").unwrap();
        assert_eq!(recovery_process(&directory), None);
        let parent = std::os::unix::process::parent_id();
        fs::write(data.path().join("postmaster.pid"), format!("{parent}\n")).unwrap();
        assert_eq!(recovery_process(&directory), Some(parent));
    }
}
