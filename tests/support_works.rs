//! The test infrastructure itself: each server and tool does what the other tests take for granted.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod support;

use std::time::{Duration, Instant};

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region, retry::RetryConfig};
use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart, Delete, ObjectIdentifier};
use support::s3::{ACCESS_KEY, Operation, REGION, S3Server, SECRET_KEY, What, When};
use support::{Mode, PgCluster, WalE, WalEve, dir_tree, temp_dir};

const MIB: usize = 1024 * 1024;

fn client(server: &S3Server) -> Client {
    client_with(server, Credentials::new(ACCESS_KEY, SECRET_KEY, None, None, "test"))
}

fn client_with(server: &S3Server, credentials: Credentials) -> Client {
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .credentials_provider(credentials)
        .endpoint_url(server.endpoint_url())
        .force_path_style(true)
        .retry_config(RetryConfig::disabled())
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .build();
    Client::from_conf(config)
}

fn server() -> S3Server {
    let server = S3Server::start();
    server.create_bucket("b");
    server
}

fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(length)
    .collect()
}

/// The status and the S3 code of a failed request.
fn refusal<T: std::fmt::Debug, E: ProvideErrorMetadata + std::fmt::Debug>(
    result: Result<T, aws_sdk_s3::error::SdkError<E, aws_sdk_s3::config::http::HttpResponse>>,
) -> (u16, String) {
    let error = result.unwrap_err();
    let status = error.raw_response().map_or(0, |response| response.status().as_u16());
    (status, error.code().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn objects_round_trip_whole_and_in_ranges() {
    let server = server();
    let client = client(&server);
    let body = noise(3 * MIB + 7);
    let put = client.put_object().bucket("b").key("p/k 1+%").body(ByteStream::from(body.clone()));
    put.metadata("name", "value").content_type("text/x-test").send().await.unwrap();

    let stored = server.object("b", "p/k 1+%").unwrap();
    assert_eq!(stored.body, body);
    assert_eq!(stored.metadata["name"], "value");
    assert_eq!(stored.content_type.as_deref(), Some("text/x-test"));

    let whole = client.get_object().bucket("b").key("p/k 1+%").send().await.unwrap();
    let etag = whole.e_tag().unwrap().to_owned();
    assert_eq!(etag.len(), 34);
    assert_eq!(whole.body.collect().await.unwrap().into_bytes(), body);

    let get = client.get_object().bucket("b").key("p/k 1+%").if_match(etag).range("bytes=100-");
    let tail = get.send().await.unwrap();
    assert_eq!(tail.content_range(), Some(format!("bytes 100-{}/{}", body.len() - 1, body.len()).as_str()));
    assert_eq!(tail.body.collect().await.unwrap().into_bytes(), body[100..]);

    let get = client.get_object().bucket("b").key("p/k 1+%");
    assert_eq!(refusal(get.clone().if_match("\"other\"").send().await), (412, "PreconditionFailed".to_owned()));
    assert_eq!(refusal(get.range("bytes=99999999-").send().await), (416, "InvalidRange".to_owned()));

    let requests = server.requests();
    assert_eq!(requests.len(), 5);
    assert_eq!((requests[0].operation, requests[0].status), (Operation::PutObject, Some(200)));
    assert_eq!((requests[2].range(), requests[2].status), (Some("bytes=100-"), Some(206)));
    assert_eq!(server.count(Operation::GetObject, "k 1+%"), 4);
}

#[tokio::test]
async fn an_absent_key_an_absent_bucket_and_a_denied_listing_are_told_apart() {
    let server = server();
    let client = client(&server);
    let get = |bucket: &str| client.get_object().bucket(bucket).key("absent").send();
    assert_eq!(refusal(get("b").await), (404, "NoSuchKey".to_owned()));
    assert_eq!(refusal(get("other").await), (404, "NoSuchBucket".to_owned()));
    assert_eq!(refusal(client.head_object().bucket("b").key("absent").send().await).0, 404);

    server.deny_list(true);
    assert_eq!(refusal(get("b").await), (403, "AccessDenied".to_owned()));
    assert_eq!(refusal(client.list_objects_v2().bucket("b").send().await), (403, "AccessDenied".to_owned()));
    server.deny_list(false);
    client.list_objects_v2().bucket("b").send().await.unwrap();
}

#[tokio::test]
async fn listings_are_paged_in_both_versions() {
    let server = server();
    let client = client(&server);
    for index in 0..25 {
        server.put_object("b", &format!("p/{}/{index:02}", index % 3), vec![1]);
    }
    server.put_object("b", "q", vec![1]);
    let expected = server.keys("b", "p/");

    let mut pages = client.list_objects_v2().bucket("b").prefix("p/").max_keys(10).into_paginator().send();
    let mut keys = Vec::new();
    let mut lengths = Vec::new();
    while let Some(page) = pages.next().await {
        let page = page.unwrap();
        lengths.push(page.contents().len());
        keys.extend(page.contents().iter().map(|object| object.key().unwrap().to_owned()));
    }
    assert_eq!((keys, lengths), (expected.clone(), vec![10, 10, 5]));

    let mut keys = Vec::new();
    loop {
        let list = client.list_objects().bucket("b").prefix("p/").max_keys(10);
        let page = list.set_marker(keys.last().cloned()).send().await.unwrap();
        keys.extend(page.contents().iter().map(|object| object.key().unwrap().to_owned()));
        if page.is_truncated() != Some(true) {
            break;
        }
    }
    assert_eq!(keys, expected);

    let mut common = Vec::new();
    let mut pages =
        client.list_objects_v2().bucket("b").prefix("p/").delimiter("/").max_keys(1).into_paginator().send();
    while let Some(page) = pages.next().await {
        let page = page.unwrap();
        assert!(page.contents().is_empty());
        common.extend(page.common_prefixes().iter().map(|common| common.prefix().unwrap().to_owned()));
    }
    assert_eq!(common, ["p/0/", "p/1/", "p/2/"]);

    let after = client.list_objects_v2().bucket("b").start_after("p/2/22").send().await.unwrap();
    assert_eq!(after.contents().iter().map(|object| object.key().unwrap()).collect::<Vec<_>>(), ["p/2/23", "q"]);
}

#[tokio::test]
async fn deletes_remove_one_or_many() {
    let server = server();
    let client = client(&server);
    for key in ["a", "b", "c"] {
        server.put_object("b", key, vec![1]);
    }
    client.delete_object().bucket("b").key("a").send().await.unwrap();
    let named = |key: &str| ObjectIdentifier::builder().key(key).build().unwrap();
    let delete = Delete::builder().objects(named("b")).objects(named("absent")).build().unwrap();
    let answer = client.delete_objects().bucket("b").delete(delete).send().await.unwrap();
    assert_eq!(answer.deleted().len(), 2);
    assert_eq!(server.keys("b", ""), ["c"]);
}

#[tokio::test]
async fn a_conditional_put_is_obeyed_refused_or_ignored() {
    let server = server();
    let client = client(&server);
    let put = |body: &'static str| {
        let put = client.put_object().bucket("b").key("k").if_none_match("*");
        put.body(ByteStream::from_static(body.as_bytes())).send()
    };
    put("first").await.unwrap();
    assert_eq!(refusal(put("second").await), (412, "PreconditionFailed".to_owned()));
    server.faults().add(When::any().once(), What::conditional_conflict());
    assert_eq!(refusal(put("third").await), (409, "ConditionalRequestConflict".to_owned()));
    server.faults().add(When::any().once(), What::condition_not_implemented());
    assert_eq!(refusal(put("fourth").await), (501, "NotImplemented".to_owned()));
    assert_eq!(server.object("b", "k").unwrap().body, "first");
    server.faults().add(When::any(), What::IgnoreCondition);
    put("fifth").await.unwrap();
    assert_eq!(server.object("b", "k").unwrap().body, "fifth");
}

#[tokio::test]
async fn a_multipart_upload_is_completed_once_and_only_whole() {
    let server = server();
    let client = client(&server);
    let body = noise(5 * MIB + 100);
    let begin = || client.create_multipart_upload().bucket("b").key("k").send();
    let id = begin().await.unwrap().upload_id().unwrap().to_owned();
    let mut parts = Vec::new();
    for (number, piece) in (1..).zip([&body[..5 * MIB], &body[5 * MIB..]]) {
        let upload = client.upload_part().bucket("b").key("k").upload_id(&id).part_number(number);
        let part = upload.body(ByteStream::from(piece.to_vec())).send().await.unwrap();
        parts.push(CompletedPart::builder().part_number(number).e_tag(part.e_tag().unwrap()).build());
    }
    let complete = |id: String, parts: Vec<CompletedPart>| {
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let complete = client.complete_multipart_upload().bucket("b").key("k").upload_id(id).if_none_match("*");
        complete.multipart_upload(parts).send()
    };

    let message = "We encountered an internal error. Please try again.";
    let when = When::operation(Operation::CompleteMultipartUpload).once();
    server.faults().add(when, What::ErrorInside200 { code: "InternalError", message });
    assert_eq!(refusal(complete(id.clone(), parts.clone()).await), (200, "InternalError".to_owned()));
    assert!(server.object("b", "k").is_none());

    complete(id.clone(), parts.clone()).await.unwrap();
    let stored = server.object("b", "k").unwrap();
    assert!(stored.body == body && stored.etag.ends_with("-2"));
    assert_eq!(refusal(complete(id, parts.clone()).await), (404, "NoSuchUpload".to_owned()));

    let id = begin().await.unwrap().upload_id().unwrap().to_owned();
    assert_eq!(refusal(complete(id.clone(), parts[1..].to_vec()).await), (400, "InvalidPart".to_owned()));
    assert_eq!(client.list_multipart_uploads().bucket("b").send().await.unwrap().uploads().len(), 1);
    let upload = client.upload_part().bucket("b").key("k").upload_id(&id).part_number(1);
    let part = upload.body(ByteStream::from_static(b"last")).send().await.unwrap();
    let part = CompletedPart::builder().part_number(1).e_tag(part.e_tag().unwrap()).build();
    assert_eq!(refusal(complete(id.clone(), vec![part]).await), (412, "PreconditionFailed".to_owned()));
    client.abort_multipart_upload().bucket("b").key("k").upload_id(id).send().await.unwrap();
    assert!(server.unfinished_uploads().is_empty());
}

#[tokio::test]
async fn faults_of_the_answer_strike_the_chosen_requests() {
    let server = server();
    let client = client(&server);
    server.put_object("b", "wal/1", vec![7; 1000]);
    let get = || client.get_object().bucket("b").key("wal/1").send();

    let fault =
        server.faults().add(When::operation(Operation::GetObject).key("wal/").skip(1).once(), What::slow_down());
    get().await.unwrap();
    assert_eq!(refusal(get().await), (503, "SlowDown".to_owned()));
    get().await.unwrap();
    assert_eq!(server.faults().hits(fault), 1);

    for (what, expected) in [
        (What::internal_error(), (500, "InternalError")),
        (What::access_denied(), (403, "AccessDenied")),
        (What::expired_token(), (400, "ExpiredToken")),
    ] {
        server.faults().add(When::any().once(), what);
        assert_eq!(refusal(get().await), (expected.0, expected.1.to_owned()));
    }

    server.faults().add(When::any().once(), What::Delay(Duration::from_millis(300)));
    let started = Instant::now();
    get().await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(300));

    server.faults().add(When::operation(Operation::PutObject).once(), What::LoseResponse);
    let put = client.put_object().bucket("b").key("lost").body(ByteStream::from_static(b"kept"));
    assert_eq!(refusal(put.send().await).0, 0);
    assert_eq!(server.object("b", "lost").unwrap().body, "kept");
    assert_eq!(server.requests().last().unwrap().status, None);
}

#[tokio::test]
async fn faults_of_the_body_strike_at_their_offset() {
    let server = server();
    let client = client(&server);
    let body = noise(MIB);
    server.put_object("b", "k", body.clone());

    server.faults().add(When::any().once(), What::CutBody { after_bytes: 300_000 });
    let mut cut = client.get_object().bucket("b").key("k").send().await.unwrap();
    assert_eq!(cut.content_length(), Some(MIB as i64));
    let mut received = Vec::new();
    let error = loop {
        match cut.body.next().await.expect("the body does not end whole") {
            Ok(chunk) => received.extend_from_slice(&chunk),
            Err(error) => break error,
        }
    };
    assert_eq!(received, body[..300_000], "{error}");

    server.faults().add(When::any().times(2), What::FlipByte { at: 700_000 });
    for (range, first) in [("bytes=0-", 0), ("bytes=500000-", 500_000)] {
        let get = client.get_object().bucket("b").key("k").range(range).send().await.unwrap();
        let got = get.body.collect().await.unwrap().into_bytes();
        let wrong: Vec<usize> = (first..MIB).filter(|at| got[at - first] != body[*at]).collect();
        assert_eq!(wrong, [700_000]);
    }

    // long enough for the bytes before it to arrive on a busy machine
    let pause = Duration::from_secs(3);
    server.faults().add(When::any().once(), What::StallBody { after_bytes: 1000, pause });
    let started = Instant::now();
    let mut stalled = client.get_object().bucket("b").key("k").send().await.unwrap();
    assert_eq!(stalled.body.next().await.unwrap().unwrap().len(), 1000);
    assert!(started.elapsed() < pause);
    assert_eq!(stalled.body.collect().await.unwrap().into_bytes(), body[1000..]);
    assert!(started.elapsed() >= pause);

    let slow = server.faults().add(When::any(), What::Bandwidth { bytes_per_second: 2 * MIB as u64 });
    for transfer in ["get", "put"] {
        let started = Instant::now();
        match transfer {
            "get" => {
                let get = client.get_object().bucket("b").key("k").send().await.unwrap();
                get.body.collect().await.unwrap();
            }
            _ => {
                let put = client.put_object().bucket("b").key("put").body(ByteStream::from(body.clone()));
                put.send().await.unwrap();
            }
        }
        let elapsed = started.elapsed();
        assert!(elapsed > Duration::from_millis(400) && elapsed < Duration::from_secs(5), "{transfer}: {elapsed:?}");
    }
    server.faults().remove(slow);

    server.faults().add(When::any().once(), What::CutBody { after_bytes: 500_000 });
    let put = client.put_object().bucket("b").key("cut").body(ByteStream::from(body.clone()));
    assert_eq!(refusal(put.send().await).0, 0);
    assert!(server.object("b", "cut").is_none());

    server.mutate("b", "k", |bytes| bytes[5] ^= 1);
    assert_ne!(server.object("b", "k").unwrap().body, body);
}

#[tokio::test]
async fn damage_on_the_way_in_fails_the_checksum_and_old_servers_refuse_checksums() {
    let server = server();
    let client = client(&server);
    let put = || client.put_object().bucket("b").key("k").body(ByteStream::from(noise(MIB))).send();
    server.faults().add(When::any().once(), What::FlipByte { at: 12345 });
    assert_ne!(refusal(put().await).0, 200);
    assert!(server.object("b", "k").is_none());
    put().await.unwrap();
    server.faults().add(When::any(), What::RejectChecksums);
    assert_eq!(refusal(put().await), (501, "NotImplemented".to_owned()));
}

#[tokio::test]
async fn credentials_are_checked_rotated_and_expire() {
    use support::s3::Credentials as Known;
    let server = S3Server::builder().credentials(Known::new("K1", "S1").with_session_token("T1")).start();
    server.create_bucket("b");
    let list = async |key: &str, secret: &str, token: Option<&str>| {
        let credentials = Credentials::new(key, secret, token.map(str::to_owned), None, "test");
        client_with(&server, credentials).list_objects_v2().bucket("b").send().await
    };
    list("K1", "S1", Some("T1")).await.unwrap();
    assert_eq!(refusal(list("K1", "S1", None).await), (400, "InvalidToken".to_owned()));
    assert_eq!(refusal(list("K1", "wrong", Some("T1")).await), (403, "SignatureDoesNotMatch".to_owned()));
    assert_eq!(refusal(list("K2", "S2", None).await), (403, "InvalidAccessKeyId".to_owned()));
    server.expire("K1");
    assert_eq!(refusal(list("K1", "S1", Some("T1")).await), (400, "ExpiredToken".to_owned()));
    server.accept_only(Known::new("K2", "S2"));
    list("K2", "S2", None).await.unwrap();
}

#[tokio::test]
async fn requests_in_flight_are_counted() {
    let server = server();
    let client = client(&server);
    // long enough for all of them to arrive on a busy machine
    server.faults().add(When::any(), What::Delay(Duration::from_secs(2)));
    let lists = (0..5).map(|_| client.list_objects_v2().bucket("b").send());
    futures::future::join_all(lists).await;
    assert_eq!(server.peak_in_flight(), 5);
}

#[test]
fn postgresql_of_each_major_starts_answers_and_stops() {
    for major in support::postgres::MAJORS {
        let mut cluster = PgCluster::init(major);
        cluster.configure("work_mem = '5MB'");
        cluster.start();
        assert_eq!(cluster.psql("select 1; show work_mem"), "1\n5MB");
        assert!(cluster.psql("show server_version").starts_with(&major.to_string()));
        assert_eq!(cluster.switch_wal().len(), 24);
        cluster.kill9();
        assert!(!cluster.is_running());
        cluster.start();
        cluster.stop(Mode::Fast);
        assert!(!cluster.is_running(), "{}", cluster.log());
        assert!(dir_tree(cluster.data_dir()).contains_key("global/pg_control"));
    }
}

#[test]
fn a_standby_follows_a_restore_command_and_is_promoted() {
    for major in [11, 18] {
        let mut primary = PgCluster::options().initdb("--wal-segsize=1").configure("archive_mode = on").init(major);
        let archive = primary.root().join("archive");
        std::fs::create_dir(&archive).unwrap();
        primary.env("ARCHIVE", archive.to_str().unwrap());
        primary.configure("archive_command = 'cp %p \"$ARCHIVE/%f\"'");
        primary.start();
        primary.stop(Mode::Fast);

        let mut standby = PgCluster::without_data(major);
        let copy = std::process::Command::new("cp").arg("-a").arg(primary.data_dir()).arg(standby.data_dir()).status();
        assert!(copy.unwrap().success());
        standby.configure_connections();
        standby.configure("hot_standby = on");
        standby.configure("archive_mode = off");
        standby.configure_recovery(&format!("restore_command = 'cp \"{}/%f\" %p'", archive.display()));
        standby.set_standby();

        primary.start();
        primary.psql("create table t as select 42 as answer");
        let segment = primary.switch_wal();
        primary.wait_until("the segment is archived", Duration::from_secs(30), || archive.join(&segment).exists());

        standby.start_without_waiting();
        standby.wait_until_sql("select pg_is_in_recovery()", Duration::from_secs(30));
        standby.wait_until_sql("select to_regclass('t') is not null", Duration::from_secs(30));
        standby.promote();
        standby.wait_until_sql("select not pg_is_in_recovery()", Duration::from_secs(30));
        assert_eq!(standby.psql("select answer from t"), "42");
    }
}

#[test]
fn a_run_that_hangs_or_leaves_its_output_open_fails() {
    let patient = support::Tool::new("/bin/sh", [("A", "b")]);
    let shell = patient.clone().timeout(Duration::from_millis(500));
    assert_eq!(patient.run(["-c", "echo $A; exit 7"]).assert_code(7).stdout_text(), "b\n");
    for script in ["sleep 5", "sleep 5 & exit 0"] {
        let started = Instant::now();
        let run = std::panic::catch_unwind(|| shell.run(["-c", script]));
        assert!(run.is_err() && started.elapsed() < Duration::from_secs(4), "{script}");
    }
    let mut running = patient.spawn(["-c", "exec sleep 5"]);
    assert!(running.is_running());
    running.terminate();
    assert_eq!(running.wait().signal(), Some(15));
}

#[test]
fn a_dropped_cluster_leaves_no_server() {
    let cluster = PgCluster::init(support::postgres::DEBIAN_MAJOR);
    cluster.start();
    let pid = cluster.pid().unwrap();
    let root = cluster.root().to_owned();
    drop(cluster);
    assert!(!support::postgres::is_alive(pid));
    assert!(!root.exists());
}

#[test]
fn wal_e_says_its_version() {
    let output = WalE::new([("PGUSER", "postgres")]).run(["version"]).assert_success();
    assert_eq!(output.stdout_text(), "1.1.1\n");
}

#[test]
fn wal_eve_is_found() {
    let output = WalEve::new([("PGUSER", "postgres")]).run(["--version"]).assert_success();
    assert!(output.stdout_text().starts_with("wal-eve"));
}

/// A directory like a server's, with one segment in it.
fn with_segment(name: &str, content: &[u8]) -> tempfile::TempDir {
    let directory = temp_dir();
    std::fs::create_dir_all(directory.path().join("pg_wal/archive_status")).unwrap();
    std::fs::write(directory.path().join("pg_wal").join(name), content).unwrap();
    directory
}

fn wal_e_round_trip(wal_e: &WalE) {
    let name = "000000010000000000000001";
    let content = noise(16 * MIB);
    let directory = with_segment(name, &content);
    let wal_e = wal_e.clone().current_dir(directory.path());
    wal_e.run(["wal-push", &format!("pg_wal/{name}")]).assert_success();
    wal_e.run(["wal-fetch", "-p", "0", name, "fetched"]).assert_success();
    assert!(std::fs::read(directory.path().join("fetched")).unwrap() == content);
    let listing = wal_e.run(["backup-list"]).assert_success();
    assert!(listing.stdout_text().starts_with("name\tlast_modified\t"));
}

#[test]
fn wal_e_round_trips_a_segment_through_s3() {
    let server = server();
    wal_e_round_trip(&WalE::new(server.environment("s3://b/prefix")));
    let key = "prefix/wal_005/000000010000000000000001.lzo";
    let stored = server.object("b", key).unwrap();
    assert_eq!(stored.sse.as_deref(), Some("AES256"));
    assert_eq!(server.count(Operation::PutObject, key), 1);
    let list = server.requests().into_iter().find(|request| request.operation.is_list()).unwrap();
    assert_eq!(list.operation, Operation::ListObjects);
    assert!(list.header("authorization").unwrap().starts_with("AWS "));
}

#[test]
fn wal_e_round_trips_a_segment_through_a_directory() {
    let store = temp_dir();
    wal_e_round_trip(&WalE::for_file_prefix(store.path()));
}

#[test]
fn wal_e_lists_more_backups_than_fit_on_a_page() {
    let server = server();
    for index in 0..1200_u32 {
        let key = format!("prefix/basebackups_005/base_0000000100000000{index:08X}_00000040_backup_stop_sentinel.json");
        server.put_object("b", &key, "{}");
    }
    let output = WalE::new(server.environment("s3://b/prefix")).run(["backup-list"]).assert_success();
    assert_eq!(output.stdout_text().lines().count(), 1201);
    assert_eq!(server.count(Operation::ListObjects, "prefix/"), 2);
}

#[test]
fn wal_e_takes_restores_and_deletes_a_base_backup_of_11() {
    let server = server();
    let mut cluster = PgCluster::options().configure("archive_mode = on").init(11);
    let program = WalE::program();
    cluster.configure(&format!("archive_command = '{} wal-push %p'", program.display()));
    let mut environment = server.environment("s3://b/prefix");
    environment.push(("WALE_LOG_DESTINATION".to_owned(), "stderr".to_owned()));
    for (name, value) in &environment {
        cluster.env(name, value);
    }
    cluster.start();
    cluster.psql("create table t as select generate_series(1, 100000) as n");
    // WAL-E asks for a spread checkpoint, which takes a minute when there is something to write.
    cluster.psql("checkpoint");

    let wal_e = WalE::new(environment.clone().into_iter().chain(cluster.environment()));
    let data_dir = cluster.data_dir().to_str().unwrap().to_owned();
    wal_e.run(["backup-push", &data_dir]).assert_success();
    assert_eq!(server.keys("b", "prefix/basebackups_005/").len(), 3);

    let mut restored = PgCluster::without_data(11);
    std::fs::create_dir(restored.data_dir()).unwrap();
    wal_e.run(["backup-fetch", restored.data_dir().to_str().unwrap(), "LATEST"]).assert_success();
    std::fs::set_permissions(restored.data_dir(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    for (name, value) in &environment {
        restored.env(name, value);
    }
    restored.configure_connections();
    restored.configure("archive_mode = off");
    restored.configure_recovery(&format!("restore_command = '{} wal-fetch %f %p'", program.display()));
    restored.start();
    restored.wait_until_sql("select not pg_is_in_recovery()", Duration::from_secs(60));
    assert_eq!(restored.psql("select count(*) from t"), "100000");

    wal_e.run(["delete", "--confirm", "everything"]).assert_success();
    assert!(server.count(Operation::DeleteObjects, "") > 0);
    assert_eq!(server.keys("b", "prefix/basebackups_005/"), [""; 0]);
}
