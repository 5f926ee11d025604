//! A prefetcher's beginning: a process of its own, that nothing of its caller's keeps and that keeps nothing of its
//! caller's.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

/// How much this process stands back: enough that replay does not wait for a core, little enough that it gets a quarter of one
/// in any case.
const NICENESS: i32 = 5;

/// Starts this program again with `args`, in the background. Its environment is the caller's.
///
/// PostgreSQL waits for whoever keeps a descriptor that its command inherited: the three standard ones are replaced here, and
/// [`detach`] closes the others.
pub fn start(args: impl IntoIterator<Item = OsString>) -> io::Result<()> {
    let this = std::env::current_exe()?;
    let mut command = Command::new(this);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
    // not waited for: it outlives this process, and whoever adopts it reaps it
    command.spawn().map(drop)
}

/// Leaves the caller's session and closes every descriptor but the standard ones. To be called before anything is opened.
pub fn detach() -> io::Result<()> {
    // fails where the process leads a group already, as when a person starts it from a shell; nothing is lost then
    let _ = rustix::process::setsid();
    let descriptors: Vec<i32> = fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|descriptor| *descriptor > 2)
        .collect();
    for descriptor in descriptors {
        // the listing's own is closed already
        let _ = nix::unistd::close(descriptor);
    }
    // replay goes first where there is not enough for both
    let _ = rustix::process::nice(NICENESS);
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    Ok(())
}

/// A hint for a server whose prefetcher would be adopted by the server itself; none where there is a proper init.
///
/// A postgres that is process 1 takes an adopted child's end by a signal for one of its own backends' crash.
pub fn init_hint() -> Option<String> {
    let name = fs::read_to_string(Path::new("/proc/1/comm")).ok()?;
    (name.trim() == "postgres").then(|| {
        "PostgreSQL is process 1 here, and would restart if this prefetcher were killed; run the container with an init (docker run --init)".into()
    })
}
