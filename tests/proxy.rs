//! The proxies that the environment names: between here and S3, and nowhere else.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::thread;

use support::WalEve;
use support::s3::{ACCESS_KEY, Credentials, S3Server, SECRET_KEY};

/// A name that nobody can look up: what arrives there has gone through a proxy.
const NOWHERE: &str = "http+path://s3.invalid:9000";

/// The S3 server itself is the proxy: to it, whole addresses in requests are as good as paths.
fn server() -> S3Server {
    let server = S3Server::start();
    server.create_bucket("b");
    server
}

fn listing(server: &S3Server) -> WalEve {
    WalEve::new(server.environment("s3://b/p"))
}

fn is_reached(wal_eve: &WalEve) {
    let listed = wal_eve.run(["backup-list"]).assert_success();
    assert!(listed.stdout_text().starts_with("name\t"));
}

#[test]
fn a_proxy_by_any_of_its_names_is_used() {
    let server = server();
    for name in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
        server.clear_requests();
        is_reached(&listing(&server).env("WALE_S3_ENDPOINT", NOWHERE).env(name, server.endpoint_url()));
        assert_eq!(server.requests()[0].header("host"), Some("s3.invalid:9000"), "{name}");
    }
}

#[test]
fn what_no_proxy_names_is_reached_without() {
    let server = server();
    for name in ["no_proxy", "NO_PROXY"] {
        is_reached(&listing(&server).env("http_proxy", "http://127.0.0.1:1").env(name, "localhost, 127.0.0.0/8"));
    }
}

/// Also through the one proxy that WAL-E knows.
#[test]
fn https_is_tunnelled() {
    for (name, scheme) in [("https_proxy", "http://"), ("http_proxy", "http://"), ("http_proxy", "")] {
        let proxy = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = format!("{scheme}{}", proxy.local_addr().unwrap());
        let asked = thread::spawn(move || {
            let (stream, _) = proxy.accept().unwrap();
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).unwrap();
            line
        });
        let wal_eve = listing(&server()).env("WALE_S3_ENDPOINT", "https+path://s3.invalid").env(name, address);
        let running = wal_eve.spawn(["wal-fetch", "--patience", "1", "00000002.history", "RECOVERYHISTORY"]);
        assert_eq!(asked.join().unwrap(), "CONNECT s3.invalid:443 HTTP/1.1\r\n", "{name}");
        // the proxy has gone away by then
        running.wait().assert_code(250);
    }
}

#[test]
fn the_credentials_of_a_container_are_asked_for_directly() {
    let (server, container) = (server(), S3Server::builder().anonymous(true).start());
    container.create_bucket("role");
    server.accept_only(Credentials::new(ACCESS_KEY, SECRET_KEY).with_session_token("token"));
    let credentials = format!(
        r#"{{"AccessKeyId": "{ACCESS_KEY}", "SecretAccessKey": "{SECRET_KEY}", "Token": "token", "Expiration": "2099-01-01T00:00:00Z"}}"#,
    );
    container.put_object("role", "credentials", credentials);
    let wal_eve = listing(&server)
        .env_remove("AWS_ACCESS_KEY_ID")
        .env_remove("AWS_SECRET_ACCESS_KEY")
        .env("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("{}/role/credentials", container.endpoint_url()))
        .env("WALE_S3_ENDPOINT", NOWHERE)
        .env("http_proxy", server.endpoint_url());
    is_reached(&wal_eve);
    let host = container.endpoint_url().replace("http://", "");
    assert_eq!(container.requests()[0].header("host"), Some(host.as_str()));
    assert!(server.requests().iter().all(|request| request.bucket == "b"), "{:#?}", server.requests());
}
