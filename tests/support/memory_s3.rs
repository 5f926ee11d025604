//! The tests' S3 server as a program of its own, for scripts, benchmarks and trying things by hand.
//!
//! `cargo run --example memory-s3 -- --bucket b [--port N] [--seconds N] [--access-key K --secret-key S] [--anonymous]
//! [--latency-ms N] [--bandwidth BYTES_PER_SECOND] [--no-md5] [--threads N]`
//!
//! Prints the port as its only line on stdout, and serves until it is killed or the seconds are over.

use std::io::Write;
use std::str::FromStr;
use std::time::Duration;

#[path = "s3/mod.rs"]
mod s3;

fn main() {
    let mut builder = s3::S3Server::builder().logs_requests(false);
    let mut access_key = s3::ACCESS_KEY.to_owned();
    let mut secret_key = s3::SECRET_KEY.to_owned();
    let mut buckets = Vec::new();
    let mut latency = None;
    let mut bandwidth = None;
    let mut seconds = None;

    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().unwrap_or_else(|| fail(&format!("option \"{argument}\" needs a value")));
        match argument.as_str() {
            "--bucket" => buckets.push(value()),
            "--access-key" => access_key = value(),
            "--secret-key" => secret_key = value(),
            "--port" => builder = builder.port(number(&argument, &value())),
            "--threads" => builder = builder.threads(number(&argument, &value())),
            "--seconds" => seconds = Some(Duration::from_secs(number(&argument, &value()))),
            "--latency-ms" => latency = Some(Duration::from_millis(number(&argument, &value()))),
            "--bandwidth" => bandwidth = Some(number(&argument, &value())),
            "--anonymous" => builder = builder.anonymous(true),
            "--no-md5" => builder = builder.etag_is_md5(false),
            _ => fail(&format!("unrecognized argument \"{argument}\"")),
        }
    }

    let server = builder.credentials(s3::Credentials::new(&access_key, &secret_key)).start();
    for bucket in &buckets {
        server.create_bucket(bucket);
    }
    if let Some(latency) = latency {
        server.faults().add(s3::When::any(), s3::What::Delay(latency));
    }
    if let Some(bytes_per_second) = bandwidth {
        server.faults().add(s3::When::any(), s3::What::Bandwidth { bytes_per_second });
    }

    println!("{}", server.port());
    // A reader that has gone away is no reason to stop serving.
    let _ = std::io::stdout().flush();
    match seconds {
        Some(seconds) => std::thread::sleep(seconds),
        None => loop {
            std::thread::park();
        },
    }
}

fn number<T: FromStr>(option: &str, text: &str) -> T {
    text.parse().unwrap_or_else(|_| fail(&format!("option \"{option}\" needs a number, not \"{text}\"")))
}

fn fail(message: &str) -> ! {
    eprintln!("memory-s3: {message}");
    std::process::exit(2);
}
