//! Parse, run, exit. Nothing else ends the process.

use std::ffi::OsString;
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
            eprintln!("wal-eve: ERROR:  could not start with the new environment: {failed}");
            ExitCode::from(on_panic.0)
        }
        Err(message) => {
            eprintln!("wal-eve: ERROR:  {message}");
            ExitCode::from(on_panic.0)
        }
    }
}
