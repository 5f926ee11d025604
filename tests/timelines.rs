//! Where timelines part. An archive that fails must neither stop a promotion half-way, so that the server starts again as a
//! primary on its old timeline, nor let it write a history that lacks ancestors; and one that lacks a segment before the switch
//! must not end recovery there.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::process::Command;
use std::time::Duration;

use rustix::process::{Signal, kill_process};
use support::s3::{Operation, What, When};
use support::{Archive, Mode, PgCluster, Program, S3Server};

const LIMIT: Duration = Duration::from_secs(60);

/// An archive, the server that has filled it, and a copy of that server from the beginning.
struct Site {
    archive: Archive,
    primary: PgCluster,
    copy: PgCluster,
}

impl Site {
    fn new(major: u32) -> Self {
        let archive = Archive::s3();
        let primary = PgCluster::options()
            .configure("archive_mode = on")
            .configure("wal_level = replica")
            .configure(archive.archive_command(Program::WalEve))
            .init(major);
        primary.start();
        primary.psql("create table t (i int)");
        primary.stop(Mode::Fast);
        let mut copy = copy_of(&primary);
        copy.configure("archive_mode = off");
        copy.configure("wal_retrieve_retry_interval = '100ms'");
        let command = archive.shell_command(Program::WalEve, "wal-fetch --patience 1 %f %p");
        copy.configure_recovery(&format!("restore_command = '{command}'"));
        copy.configure_recovery("recovery_target_timeline = 'latest'");
        primary.start();
        let site = Self { archive, primary, copy };
        site.write();
        site
    }

    fn server(&self) -> &S3Server {
        let Archive::S3(server) = &self.archive else { unreachable!("it is made as one") };
        server
    }

    /// Writes a row, and gives the name of the segment that holds it when that is archived.
    fn write(&self) -> String {
        self.primary.psql("insert into t select count(*) from t");
        let segment = self.primary.switch_wal();
        self.archive.wait_for_wal(&self.primary, &segment);
        segment
    }

    /// Takes the primary to timeline 2.
    fn promote_primary(&mut self) {
        self.primary.stop(Mode::Fast);
        self.primary.set_standby();
        self.primary.start();
        self.primary.promote();
        self.archive.wait_for_wal(&self.primary, "00000002.history");
    }

    fn wait_for_rows(&self) {
        let rows = format!("select count(*) = {} from t", self.primary.psql("select count(*) from t"));
        self.copy.wait_until_sql(&rows, LIMIT);
    }
}

/// A copy of a cluster that is not running.
fn copy_of(original: &PgCluster) -> PgCluster {
    let mut copy = PgCluster::without_data(original.major());
    let copied = Command::new("cp").arg("-a").arg(original.data_dir()).arg(copy.data_dir()).status().unwrap();
    assert!(copied.success());
    copy.configure_connections();
    copy
}

fn histories(cluster: &PgCluster) -> Vec<String> {
    let names = fs::read_dir(cluster.data_dir().join("pg_wal")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(".history")).collect();
    names.sort();
    names
}

#[track_caller]
fn is_primary_on_timeline_2(cluster: &PgCluster) {
    assert_eq!(cluster.psql("select pg_is_in_recovery()"), "f");
    assert_eq!(cluster.psql("select substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)"), "00000002");
    assert_eq!(histories(cluster), ["00000002.history"]);
}

#[test]
fn a_standby_is_promoted_although_its_archive_fails() {
    for major in [11, 15, 18] {
        for has_rights in [true, false] {
            let mut site = Site::new(major);
            site.copy.set_standby();
            site.copy.start();
            site.wait_for_rows();
            if has_rights {
                site.server().faults().add(When::any(), What::slow_down());
            } else {
                // S3 answers 403 for what does not exist
                site.server().deny_list(true);
            }
            site.copy.promote();
            is_primary_on_timeline_2(&site.copy);
        }
    }
}

#[test]
fn a_recovery_ends_although_its_archive_fails_in_the_last_moment() {
    for major in [11, 15, 18] {
        for what in [What::slow_down(), What::access_denied()] {
            let mut site = Site::new(major);
            site.copy.set_recovery();
            for when in [When::operation(Operation::GetObject), When::list()] {
                site.server().faults().add(when.key("00000001.history"), what.clone());
            }
            site.copy.start();
            site.copy.wait_until_sql("select not pg_is_in_recovery()", LIMIT);
            is_primary_on_timeline_2(&site.copy);
            site.wait_for_rows();
        }
    }
}

#[test]
fn a_promotion_that_lacks_its_timelines_history_stops_and_says_what_to_do() {
    for major in [11, 15, 18] {
        let mut site = Site::new(major);
        site.promote_primary();
        site.write();
        site.copy.set_standby();
        site.copy.start();
        site.wait_for_rows();
        let copy = site.copy.data_dir().to_owned();
        fs::remove_file(copy.join("pg_wal/00000002.history")).unwrap();
        site.server().faults().add(When::any(), What::slow_down());
        // what pg_ctl promote does before it waits
        fs::write(copy.join("promote"), "").unwrap();
        kill_process(site.copy.pid().unwrap(), Signal::USR1).unwrap();
        site.copy.wait_until("it has stopped", LIMIT, || !site.copy.is_running());
        let log = site.copy.log();
        for part in ["exit code 250", "HINT:  The promotion stops half-way", "OLD timeline", "make standby.signal"] {
            assert!(log.contains(part), "{part} is not in {log}");
        }

        // what the hint says
        site.server().faults().clear();
        if major < 12 {
            fs::rename(copy.join("recovery.done"), copy.join("recovery.conf")).unwrap();
        } else {
            assert!(!copy.join("standby.signal").exists());
            site.copy.set_standby();
        }
        site.copy.start();
        site.wait_for_rows();
        assert_eq!(site.copy.psql("select pg_is_in_recovery()"), "t");
        site.copy.promote();
        let history = fs::read_to_string(copy.join("pg_wal/00000003.history")).unwrap();
        let ancestors: Vec<_> = history.lines().filter_map(|line| line.split_once('\t')).map(|line| line.0).collect();
        assert_eq!(ancestors, ["1", "2"], "{history}");
    }
}

#[test]
fn a_segment_missing_before_a_switch_stops_recovery_unless_its_timeline_is_the_target() {
    for major in [11, 15, 18] {
        let mut site = Site::new(major);
        let rows_before = site.primary.psql("select count(*) from t");
        let gap = site.write();
        site.promote_primary();
        let next = site.write();
        assert!(gap.starts_with("00000001") && next.starts_with("00000002"));
        // the old primary died before it could archive the end of its timeline
        let key = |name: &str| format!("p/wal_005/{name}.lzo");
        let lost = site.server().keys("b", "p/wal_005/00000001").into_iter().filter(|lost| *lost >= key(&gap));
        let lost: Vec<_> = lost.map(|key| (key.clone(), site.server().object("b", &key).unwrap().body)).collect();
        lost.iter().for_each(|(key, _)| assert!(site.server().delete("b", key)));

        site.copy.set_recovery();
        site.copy.start_without_waiting();
        site.copy.wait_until("recovery has stopped", LIMIT, || !site.copy.is_running());
        let log = site.copy.log();
        assert!(log.contains(&format!("segment {gap} is missing from the archive, although 00000002")), "{log}");
        assert!(log.contains("FATAL:  could not restore file") && !log.contains("selected new timeline"), "{log}");

        // the history of the first try is still there
        assert_eq!(histories(&site.copy), ["00000002.history"]);
        let first_try = copy_of(&site.copy);
        site.copy.configure_recovery("recovery_target_timeline = '1'");
        site.copy.start();
        site.copy.wait_until_sql("select not pg_is_in_recovery()", LIMIT);
        assert_eq!(site.copy.psql("select count(*) from t"), rows_before);

        site.copy = first_try;
        lost.into_iter().for_each(|(key, body)| site.server().put_object("b", &key, body));
        site.copy.start();
        site.copy.wait_until_sql("select not pg_is_in_recovery()", LIMIT);
        site.wait_for_rows();
    }
}
