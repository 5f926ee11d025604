//! What `wal-push` puts into the archive and what it never does: overwrite, claim what is not there, touch PostgreSQL's
//! `archive_status`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use support::WalSite as Site;
use support::hand_made_backup::lzop;
use support::s3::{Operation, S3Server, What, When};
use support::wal_segment::{SEGMENT_BYTES, noise, segment, segment_name, segment_of};
use support::{Output, Running, WalDirectory, WalEve};

impl Site {
    /// A server that is.
    fn trusting(&self) -> WalEve {
        self.wal_eve().env("WALE_S3_TRUST_CONDITIONAL_PUT", "1")
    }

    fn push(&self, path: &str) -> Output {
        self.trusting().run(["wal-push", "--patience", "5", path])
    }

    fn operations(&self) -> Vec<Operation> {
        self.server.requests().iter().map(|request| request.operation).collect()
    }

    fn holds(&self, number: u32) -> bool {
        self.server.object("b", &key(number)).is_some_and(|object| object.body == lzop_as_pushed(&object.body, number))
    }

    /// Segments of which there is a marker.
    fn markers(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.wal.file(".wal-e/pushed")) else { return Vec::new() };
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn archive_status(&self) -> BTreeMap<String, support::TreeEntry> {
        support::dir_tree(&self.wal.path().join("archive_status"))
    }
}

/// The object's own bytes when they decode to the segment; the header differs by mode and time.
fn lzop_as_pushed(body: &[u8], number: u32) -> Vec<u8> {
    let expected = lzop(&segment(number));
    if body.get(38..) == expected.get(38..) { body.to_vec() } else { expected }
}

fn key(number: u32) -> String {
    format!("p/wal_005/{}.lzo", segment_name(number))
}

fn keys_of(numbers: impl IntoIterator<Item = u32>) -> Vec<String> {
    numbers.into_iter().map(key).collect()
}

// One file.

#[test]
fn a_link_that_is_slow_but_works_takes_longer_than_patience() {
    // small buffers, so that what was taken was sent
    let server = S3Server::builder().receive_buffer_bytes(64 << 10).start();
    server.create_bucket("b");
    let site = Site { server, ..Site::new() };
    site.server.faults().add(When::operation(Operation::PutObject), What::Bandwidth { bytes_per_second: 2 << 20 });
    fs::write(site.wal.file("large"), noise(1, 16 << 20)).unwrap();
    let output = site.trusting().run(["wal-push", "--patience", "4", "pg_wal/large"]).assert_success();
    assert!(output.elapsed > Duration::from_secs(6), "{:?}", output.elapsed);
    assert_eq!(site.operations(), [Operation::PutObject]);
}

#[test]
fn a_trusted_server_is_asked_once_and_with_the_condition() {
    let site = Site::new();
    let path = site.wal.add(1);
    site.push(&path).assert_success();
    let requests = site.server.requests();
    assert_eq!(site.operations(), [Operation::PutObject]);
    assert_eq!(requests[0].header("if-none-match"), Some("*"));
    assert!(site.holds(1));
    let object = site.server.object("b", &key(1)).unwrap();
    assert_eq!(object.metadata["wal-eve-sha256"].len(), 64);
}

#[test]
fn another_server_is_asked_with_a_head_first() {
    let site = Site::new();
    let path = site.wal.add(1);
    site.wal_eve().run(["wal-push", &path]).assert_success();
    assert_eq!(site.operations(), [Operation::HeadObject, Operation::PutObject]);
    assert_eq!(site.server.requests()[1].header("if-none-match"), Some("*"));
    assert!(site.holds(1));
}

#[test]
fn the_same_bytes_again_succeed_by_their_hash_and_nothing_is_written() {
    let site = Site::new();
    let path = site.wal.add(1);
    site.push(&path).assert_success();
    let before = site.server.object("b", &key(1)).unwrap();
    for wal_eve in [site.trusting(), site.wal_eve()] {
        site.server.clear_requests();
        wal_eve.run(["wal-push", &path]).assert_success();
        assert_eq!(site.server.count(Operation::GetObject, ""), 0, "the metadata tells");
        let now = site.server.object("b", &key(1)).unwrap();
        assert_eq!((now.body, now.last_modified), (before.body.clone(), before.last_modified));
    }
}

#[test]
fn an_object_of_wal_e_is_compared_by_reading_it() {
    let site = Site::new();
    let path = site.wal.add(1);
    site.server.put_object("b", &key(1), lzop(&segment(1)));
    site.push(&path).assert_success();
    assert_eq!(site.server.count(Operation::GetObject, &key(1)), 1);
    assert!(site.server.object("b", &key(1)).unwrap().metadata.is_empty(), "it was left as it was");
}

#[test]
fn other_bytes_under_the_same_name_are_an_error_and_the_object_stays() {
    for (name, archived, offered) in [
        (segment_name(1), segment(1), segment_of(1, 1)),
        ("00000002.history".into(), b"1\t0/3000000\tno reason\n".to_vec(), b"1\t0/4000000\tno reason\n".to_vec()),
        (format!("{}.00000028.backup", segment_name(1)), b"START WAL LOCATION: 0/1\n".to_vec(), Vec::new()),
        (format!("{}.partial", segment_name(1)), segment(1), segment(1)[..SEGMENT_BYTES / 2].to_vec()),
    ] {
        let site = Site::new();
        let (key, path) = (format!("p/wal_005/{name}.lzo"), format!("pg_wal/{name}"));
        for by_wal_e in [true, false] {
            site.server.delete("b", &key);
            fs::write(site.wal.file(&name), &archived).unwrap();
            match by_wal_e {
                true => site.server.put_object("b", &key, lzop(&archived)),
                false => drop(site.push(&path).assert_success()),
            }
            let before = site.server.object("b", &key).unwrap();
            fs::write(site.wal.file(&name), &offered).unwrap();
            for wal_eve in [site.trusting(), site.wal_eve()] {
                let output = wal_eve.run(["wal-push", &path]).assert_code(1);
                let text = output.stderr_text();
                assert!(text.contains(&format!("\"s3://b/{key}\" already exists with different contents")), "{text}");
                assert!(text.contains("HINT:  "), "{text}");
            }
            let now = site.server.object("b", &key).unwrap();
            assert_eq!((now.body, now.last_modified), (before.body, before.last_modified), "{name}");
        }
    }
}

#[test]
fn a_damaged_object_in_the_way_is_named_and_left_alone() {
    let site = Site::new();
    let path = site.wal.add(1);
    let whole = lzop(&segment(1));
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    for (damaged, says) in [
        (whole[..whole.len() - 100].to_vec(), "damaged"),
        (flipped, "damaged"),
        (Vec::new(), "empty"),
        (b"\x1f\x8b\x08 some gzip".to_vec(), "gzip"),
        (b"\x85\x01\x0c some gpg".to_vec(), "GPG"),
    ] {
        site.server.put_object("b", &key(1), damaged.clone());
        let text = site.push(&path).assert_code(1).stderr_text();
        assert!(text.contains(&format!("\"s3://b/{}\"", key(1))) && text.contains(says), "{text}");
        assert!(text.contains("HINT:  "), "{text}");
        assert_eq!(site.server.object("b", &key(1)).unwrap().body, damaged);
    }
}

#[test]
fn a_local_archive_keeps_the_same_promises() {
    let site = Site::new();
    let archive = site.root.path().join("archive");
    let wal_eve = WalEve::for_file_prefix(&archive).current_dir(site.wal.data_directory());
    let path = site.wal.add(1);
    let object = archive.join("wal_005").join(format!("{}.lzo", segment_name(1)));
    wal_eve.run(["wal-push", &path]).assert_success();
    wal_eve.run(["wal-push", &path]).assert_success();
    let before = fs::read(&object).unwrap();
    fs::write(site.wal.file(&segment_name(1)), segment_of(1, 1)).unwrap();
    let text = wal_eve.run(["wal-push", &path]).assert_code(1).stderr_text();
    assert!(text.contains("already exists with different contents") && text.contains("file://localhost/"), "{text}");
    assert_eq!(fs::read(&object).unwrap(), before);
    fs::write(&object, "").unwrap();
    let text = wal_eve.run(["wal-push", &path]).assert_code(1).stderr_text();
    assert!(text.contains("empty"), "{text}");
    let left: Vec<_> = fs::read_dir(archive.join("wal_005/.tmp-wal-eve")).unwrap().collect();
    assert_eq!(left.len(), 0, "temporary files are gone");
}

#[test]
fn a_file_over_32_mib_goes_in_parts_and_carries_its_hash() {
    let site = Site::new();
    let path = site.wal.file("00000009.history").display().to_string();
    fs::write(&path, noise(1, 33 << 20)).unwrap();
    site.push(&path).assert_success();
    let created: Vec<_> = site.server.requests();
    let created = created.iter().find(|request| request.operation == Operation::CreateMultipartUpload).unwrap();
    assert!(created.header("x-amz-meta-wal-eve-sha256").is_some_and(|hash| hash.len() == 64));
    assert_eq!(site.server.count(Operation::CompleteMultipartUpload, ""), 1);
    assert!(site.server.unfinished_uploads().is_empty());
    site.server.clear_requests();
    site.push(&path).assert_success();
    assert_eq!(site.server.count(Operation::GetObject, ""), 0);
    assert!(site.server.unfinished_uploads().is_empty(), "the second upload was taken back");
    let fetched = site.root.path().join("fetched");
    site.wal_eve().run(["wal-fetch", "00000009.history", &fetched.display().to_string()]).assert_success();
    assert!(fs::read(&fetched).unwrap() == fs::read(&path).unwrap(), "it comes back as it was");
    fs::write(&path, noise(2, 33 << 20)).unwrap();
    site.push(&path).assert_code(1);
    assert!(site.server.unfinished_uploads().is_empty());
}

#[test]
fn an_empty_file_is_archived_and_comes_back() {
    let site = Site::new();
    fs::write(site.wal.file("00000002.history"), "").unwrap();
    site.push("pg_wal/00000002.history").assert_success();
    assert_eq!(site.server.object("b", "p/wal_005/00000002.history.lzo").unwrap().body.len(), 42);
    site.wal_eve().run(["wal-fetch", "00000002.history", "pg_wal/RECOVERYHISTORY"]).assert_success();
    assert_eq!(fs::read(site.wal.file("RECOVERYHISTORY")).unwrap(), b"");
}

#[test]
fn a_server_that_refuses_or_ignores_conditions_loses_nothing() {
    for what in [What::condition_not_implemented(), What::IgnoreCondition] {
        let site = Site::new();
        site.server.faults().add(When::any(), what.clone());
        let path = site.wal.add(1);
        let first = site.wal_eve().run(["wal-push", &path]);
        first.assert_success();
        assert!(site.holds(1), "{what:?}");
        site.wal_eve().run(["wal-push", &path]).assert_success();
        fs::write(site.wal.file(&segment_name(1)), segment_of(1, 1)).unwrap();
        site.wal_eve().run(["wal-push", &path]).assert_code(1);
        assert!(site.holds(1), "{what:?}: the HEAD keeps it from being overwritten");
    }
}

#[test]
fn a_lost_answer_to_a_put_that_was_carried_out_is_success() {
    let site = Site::new();
    let path = site.wal.add(1);
    site.server.faults().add(When::operation(Operation::PutObject).once(), What::LoseResponse);
    site.push(&path).assert_success();
    assert!(site.holds(1));
    // 409 is another write under way: asked again
    let path = site.wal.add(2);
    site.server.faults().add(When::operation(Operation::PutObject).once(), What::conditional_conflict());
    site.push(&path).assert_success();
    assert!(site.holds(2));
}

#[test]
fn two_pushes_of_one_file_at_once_both_succeed_and_one_of_two_files_wins() {
    let site = Site::new();
    let path = site.wal.add(1);
    site.server.faults().add(When::any(), What::Delay(Duration::from_millis(200)));
    let both: Vec<Running> = (0..2).map(|_| site.trusting().spawn(["wal-push", &path])).collect();
    both.into_iter().for_each(|push| drop(push.wait().assert_success()));
    assert!(site.holds(1));

    let other = WalDirectory::create(&site.root.path().join("other"));
    other.add(2);
    site.wal.add(2);
    fs::write(other.file(&segment_name(2)), segment_of(1, 2)).unwrap();
    let path = format!("pg_wal/{}", segment_name(2));
    let directories = [site.wal.data_directory(), other.data_directory()];
    let both: Vec<Running> =
        directories.map(|cwd| site.trusting().current_dir(cwd).spawn(["wal-push", &path])).into_iter().collect();
    let mut codes: Vec<_> = both.into_iter().map(|push| push.wait().code()).collect();
    codes.sort();
    assert_eq!(codes, [Some(0), Some(1)]);
}

// Look-ahead.

#[test]
fn a_backlog_drains_in_parallel_and_the_next_calls_ask_nothing() {
    let site = Site::new();
    (1..=40).for_each(|number| drop(site.wal.add_ready(number)));
    // long enough for several to be under way at once on a busy machine
    site.server.faults().add(When::any(), What::Delay(Duration::from_millis(500)));
    let status = site.archive_status();
    site.trusting().run(["wal-push", "-p", "8", &format!("pg_wal/{}", segment_name(1))]).assert_success();
    assert_eq!(site.server.keys("b", "p/"), keys_of(1..=8), "as many as -p says, in order");
    assert!(site.server.peak_in_flight() >= 4, "{} at once", site.server.peak_in_flight());
    assert_eq!(site.archive_status(), status, "archive_status is PostgreSQL's");
    assert_eq!(site.markers(), (2..=8).map(segment_name).collect::<Vec<_>>());

    site.server.clear_requests();
    for number in 2..=8 {
        let path = format!("pg_wal/{}", segment_name(number));
        site.trusting().run(["wal-push", "-p", "8", &path]).assert_success();
        assert_eq!(site.markers(), (number + 1..=8).map(segment_name).collect::<Vec<_>>(), "each answers once");
    }
    assert_eq!(site.operations(), []);
    // what was answered from a marker and asked again, after a crash, is answered by the archive
    site.trusting().run(["wal-push", "-p", "1", &format!("pg_wal/{}", segment_name(2))]).assert_success();
    assert!(!site.operations().is_empty());

    // the default width is 32: the next call takes all that is left
    (1..=8).for_each(|number| {
        fs::remove_file(site.wal.path().join(format!("archive_status/{}.ready", segment_name(number)))).unwrap();
    });
    site.trusting().run(["wal-push", &format!("pg_wal/{}", segment_name(9))]).assert_success();
    assert_eq!(site.server.keys("b", "p/"), keys_of(1..=40));
    assert!((1..=40).all(|number| site.holds(number)));
}

/// A marker that no longer fits in `what` must not answer for the segment.
fn stale(what: &str, change: impl FnOnce(&Site) -> WalEve) {
    let site = Site::new();
    site.wal.add_ready(1);
    let path = site.wal.add_ready(2);
    site.trusting().run(["wal-push", &format!("pg_wal/{}", segment_name(1))]).assert_success();
    assert_eq!(site.markers(), [segment_name(2)]);
    let wal_eve = change(&site);
    site.server.clear_requests();
    let output = wal_eve.run(["wal-push", "-p", "1", "--patience", "1", &path]);
    assert!(!site.server.requests().is_empty(), "{what}: the marker answered, with {:?}", output.code());
}

#[test]
fn a_marker_answers_only_for_what_it_was_written_for() {
    let file = |site: &Site| site.wal.file(&segment_name(2));
    stale("another prefix", |site| site.trusting().env("WALE_S3_PREFIX", "s3://b/other"));
    stale("another cluster", |site| {
        fs::write(file(site), segment_of(1, 2)).unwrap();
        site.trusting()
    });
    stale("another size", |site| {
        let times = fs::metadata(file(site)).unwrap().modified().unwrap();
        let opened = fs::OpenOptions::new().append(true).open(file(site)).unwrap();
        std::io::Write::write_all(&mut &opened, b"more").unwrap();
        opened.set_modified(times).unwrap();
        site.trusting()
    });
    stale("another time", |site| {
        let opened = fs::OpenOptions::new().append(true).open(file(site)).unwrap();
        opened.set_modified(std::time::SystemTime::now() + Duration::from_secs(1)).unwrap();
        site.trusting()
    });
    stale("other contents of the same size and time", |site| {
        let times = fs::metadata(file(site)).unwrap().modified().unwrap();
        let mut bytes = segment(2);
        bytes[SEGMENT_BYTES - 1] ^= 1;
        fs::write(file(site), bytes).unwrap();
        fs::OpenOptions::new().append(true).open(file(site)).unwrap().set_modified(times).unwrap();
        site.trusting()
    });
    stale("a copy of the file in its place, times and all", |site| {
        let (path, copy) = (file(site), site.wal.file("copy"));
        let times = fs::metadata(&path).unwrap().modified().unwrap();
        fs::copy(&path, &copy).unwrap();
        fs::OpenOptions::new().append(true).open(&copy).unwrap().set_modified(times).unwrap();
        fs::rename(&copy, &path).unwrap();
        site.trusting()
    });
    stale("a torn marker", |site| {
        let marker = site.wal.file(".wal-e/pushed").join(segment_name(2));
        let text = fs::read(&marker).unwrap();
        fs::write(&marker, &text[..text.len() / 2]).unwrap();
        site.trusting()
    });
    stale("another bucket of the same endpoint", |site| {
        site.server.create_bucket("c");
        site.trusting().env("WALE_S3_PREFIX", "s3://c/p")
    });
}

#[test]
fn a_marker_does_not_answer_for_the_same_bucket_at_another_endpoint() {
    let other = S3Server::start();
    other.create_bucket("b");
    let site = Site::new();
    site.wal.add_ready(1);
    let path = site.wal.add_ready(2);
    site.trusting().run(["wal-push", &format!("pg_wal/{}", segment_name(1))]).assert_success();
    let elsewhere = WalEve::new(other.environment("s3://b/p")).current_dir(site.wal.data_directory());
    elsewhere.run(["wal-push", "-p", "1", &path]).assert_success();
    assert!(other.object("b", &key(2)).is_some(), "it was acknowledged and is not in this archive");
}

#[test]
fn markers_of_what_waits_no_more_are_removed() {
    let site = Site::new();
    (1..=4).for_each(|number| drop(site.wal.add_ready(number)));
    site.push(&format!("pg_wal/{}", segment_name(1))).assert_success();
    assert_eq!(site.markers().len(), 3);
    for number in 1..=3 {
        fs::remove_file(site.wal.path().join(format!("archive_status/{}.ready", segment_name(number)))).unwrap();
    }
    site.wal.add_ready(5);
    site.push(&format!("pg_wal/{}", segment_name(5))).assert_success();
    assert_eq!(site.markers(), [segment_name(4)]);
}

#[test]
fn a_waiting_segment_that_is_not_there_is_not_claimed() {
    // spec/wal-e-format.md §12, vector 27, but for archive_status, which stays
    let site = Site::new();
    (1..=3).for_each(|number| drop(site.wal.add_ready(number)));
    site.wal.mark_ready(&segment_name(4));
    for name in ["00000002.history".to_owned(), format!("{}.partial", segment_name(3))] {
        fs::write(site.wal.file(&name), "x").unwrap();
        site.wal.mark_ready(&name);
    }
    let status = site.archive_status();
    site.push(&format!("pg_wal/{}", segment_name(2))).assert_success();
    assert_eq!(site.server.keys("b", "p/"), keys_of(1..=3));
    assert_eq!(site.archive_status(), status);
    assert_eq!(site.markers(), [segment_name(1), segment_name(3)]);
    let text = site.push(&format!("pg_wal/{}", segment_name(4))).assert_code(1).stderr_text();
    assert!(text.contains(&segment_name(4)), "{text}");
}

#[test]
fn a_failure_ahead_does_not_fail_the_file_that_was_asked_for() {
    let site = Site::new();
    (1..=4).for_each(|number| drop(site.wal.add_ready(number)));
    site.server.put_object("b", &key(2), lzop(&segment_of(1, 2)));
    site.server.faults().add(When::any().key(&segment_name(3)), What::access_denied());
    let output = site.push(&format!("pg_wal/{}", segment_name(1))).assert_success();
    assert!(output.stderr_text().contains("could not be pushed ahead"), "{}", output.stderr_text());
    assert!(site.holds(1) && site.holds(4) && !site.holds(2));
    assert_eq!(site.markers(), [segment_name(4)], "no claim for what failed");
    site.push(&format!("pg_wal/{}", segment_name(2))).assert_code(1);
}

#[test]
fn an_outage_ahead_does_not_hold_up_the_file_that_was_asked_for() {
    let site = Site::new();
    (1..=2).for_each(|number| drop(site.wal.add_ready(number)));
    site.server.faults().add(When::any().key(&segment_name(2)), What::slow_down());
    let path = format!("pg_wal/{}", segment_name(1));
    let output = site.trusting().run(["wal-push", "--patience", "2", &path]).assert_success();
    assert!(output.elapsed < Duration::from_secs(10), "{:?}", output.elapsed);
    assert_eq!(site.markers(), [""; 0]);
}

#[test]
fn a_failure_of_the_file_that_was_asked_for_is_never_hidden_by_those_ahead() {
    let site = Site::new();
    (1..=4).for_each(|number| drop(site.wal.add_ready(number)));
    site.server.faults().add(When::any().key(&segment_name(1)), What::access_denied());
    site.push(&format!("pg_wal/{}", segment_name(1))).assert_code(1);
    assert!(!site.holds(1));
}

#[test]
fn a_pool_of_one_or_none_looks_at_nothing() {
    for size in ["1", "0"] {
        let site = Site::new();
        (1..=3).for_each(|number| drop(site.wal.add_ready(number)));
        let path = format!("pg_wal/{}", segment_name(1));
        site.trusting().run(["wal-push", "-p", size, &path]).assert_success();
        assert_eq!(site.server.keys("b", "p/"), keys_of([1]));
        assert_eq!(site.wal.names().len(), 3, "no markers either");
    }
}

#[test]
fn a_file_in_a_directory_without_archive_status_is_pushed() {
    // WAL-E ends with 2 there (spec/wal-e-format.md §12, vector 28)
    let site = Site::new();
    let directory = site.root.path().join("plain");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join(segment_name(1)), segment(1)).unwrap();
    let pushed = site.trusting().current_dir(&directory).run(["wal-push", &segment_name(1)]);
    pushed.assert_success();
    let absolute = directory.join(segment_name(1)).display().to_string();
    site.trusting().current_dir(Path::new("/")).run(["wal-push", &absolute]).assert_success();
    assert!(site.holds(1));
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
}

#[test]
fn a_wal_directory_that_takes_no_markers_still_archives() {
    use std::os::unix::fs::PermissionsExt as _;
    let site = Site::new();
    (1..=3).for_each(|number| drop(site.wal.add_ready(number)));
    fs::set_permissions(site.wal.path(), fs::Permissions::from_mode(0o500)).unwrap();
    let output = site.push(&format!("pg_wal/{}", segment_name(1)));
    fs::set_permissions(site.wal.path(), fs::Permissions::from_mode(0o700)).unwrap();
    output.assert_success();
    assert!(site.holds(1));
}
