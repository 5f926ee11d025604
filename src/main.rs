//! Parse, run, exit. Nothing else ends the process.

use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::process::CommandExt;
use std::process::{ExitCode, exit};

use wal_eve::cli;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    // whatever goes wrong, PostgreSQL must not take it for the end of WAL, nor lose its archiver
    let on_panic = cli::panic_status(&args);
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        exit(on_panic.0.into());
    }));
    match cli::re_execution(&args) {
        Ok(None) => ExitCode::from(cli::run(&args).0),
        Ok(Some(mut command)) => {
            let failed = command.exec();
            let _ = writeln!(std::io::stderr(), "wal-eve: ERROR:  could not start with the new environment: {failed}");
            ExitCode::from(on_panic.0)
        }
        Err(message) => {
            let _ = writeln!(std::io::stderr(), "wal-eve: ERROR:  {message}");
            ExitCode::from(cli::usage_status(&args).0)
        }
    }
}
