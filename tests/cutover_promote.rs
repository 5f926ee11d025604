//! The first move of a cutover: nothing that was committed on the source is lost, and until the promotion every failure
//! leaves the source as it was.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

mod support;

use std::time::Duration;

use rustix::process::Signal;
use support::check_report::check;
use support::cutover::{LIMIT, Migration, MigrationOptions, conninfo};
use support::postgres::wait_until;
use support::replica::restored;
use support::{Mode, PgCluster, Program};

const INSERT: &str = "insert into t (text) values (md5(random()::text)) returning id::text";

/// What the application was told is committed, and which of it a server lacks.
fn lost(server: &PgCluster, committed: &[String]) -> Vec<String> {
    let there = server.psql_as("app", "select id from t").assert_success();
    let there: std::collections::HashSet<_> = there.stdout_text().lines().map(str::to_owned).collect();
    committed.iter().filter(|id| !there.contains(*id)).cloned().collect()
}

/// Everything is as it was before the promotion was tried.
fn assert_undone(migration: &Migration) {
    assert!(migration.is_writable(&migration.source), "the source is still fenced");
    assert_eq!(migration.replica.psql("select pg_is_in_recovery()"), "t");
    assert!(!migration.file("maintenance").exists(), "maintenance is still on");
    let hurried = "select count(*) from pg_file_settings where name = 'wal_retrieve_retry_interval'";
    assert_eq!(migration.replica.psql(hurried), "0");
}

fn assert_promoted(migration: &Migration, committed: &[String]) {
    assert_eq!(migration.replica.psql("select pg_is_in_recovery()"), "f");
    assert_eq!(lost(&migration.replica, committed), Vec::<String>::new());
    assert!(migration.is_writable(&migration.replica), "the application cannot write to the new primary");
    assert!(!migration.is_writable(&migration.source), "the source can still be written to");
    assert!(!migration.file("maintenance").exists(), "maintenance is still on");
    let hurried = "select count(*) from pg_file_settings where name = 'wal_retrieve_retry_interval'";
    assert_eq!(migration.replica.psql(hurried), "0");
    let address = std::fs::read_to_string(migration.file("address")).unwrap();
    assert_eq!(address, migration.replica.socket_dir().to_str().unwrap());
}

fn promotes_with_the_last_write(major: u32, archiver: Program) {
    let migration = MigrationOptions::from(major).archived_by(archiver).make();
    let application = migration.application(&[INSERT]);
    std::thread::sleep(Duration::from_secs(1));
    let promoted = migration.cutover("promote").assert_success();
    let count = |server: &PgCluster| -> usize {
        server.psql_as("app", "select count(*) from t").stdout_text().trim().parse().unwrap_or_default()
    };
    let rows_on_source = count(&migration.source);
    // one row of the source may have been committed without an answer
    migration.replica.wait_until("the application goes on, on the replica", LIMIT, || {
        count(&migration.replica) > rows_on_source + 1
    });
    let committed = application.stop();
    println!("{major}: {}", promoted.stdout_text());
    assert_promoted(&migration, &committed);
    assert_eq!(migration.hooks(), ["maintenance_on", "switch_to_replica", "maintenance_off"]);
    assert!(committed.len() > rows_on_source, "the application went on, on the replica");

    // once more does nothing
    let before = migration.journal();
    migration.cutover("promote").assert_success();
    assert_eq!((migration.journal(), migration.hooks().len()), (before, 3));
    let report = migration.cutover("report").assert_success().stdout_text().to_owned();
    assert!(report.contains("the replica has replayed the source's last write"), "{report}");
    let json: serde_json::Value = serde_json::from_str(&migration.cutover("report --json").stdout_text()).unwrap();
    assert!(json["promote"]["downtime_milliseconds"].as_u64().unwrap() < 60_000, "{json}");
}

#[test]
fn a_source_of_11_is_left_with_its_last_write() {
    promotes_with_the_last_write(11, Program::WalE);
}

#[test]
fn a_source_of_15_is_left_with_its_last_write() {
    promotes_with_the_last_write(15, Program::WalEve);
}

#[test]
fn a_source_of_18_is_left_with_its_last_write() {
    promotes_with_the_last_write(18, Program::WalEve);
}

#[test]
fn a_dry_run_shows_everything_and_changes_nothing() {
    let migration = MigrationOptions::from(15).make();
    let shown = migration.cutover("promote --dry-run").assert_success().stdout_text().to_owned();
    for expected in [
        "command maintenance_on: touch",
        "source: alter database \"app\" set default_transaction_read_only = on;",
        "pg_logical_emit_message",
        "wait: until the replica has replayed",
        "replica: select pg_promote(true, 60);",
        "command switch_to_replica: cp",
        "command maintenance_off: rm",
    ] {
        assert!(shown.contains(expected), "{expected} is not in\n{shown}");
    }
    assert_undone(&migration);
    assert_eq!((migration.journal(), migration.hooks()), (String::new(), Vec::new()));
}

#[test]
fn an_archive_that_stands_still_leaves_the_source_writable() {
    let mut migration = MigrationOptions::from(15).make();
    migration.source.configure("archive_command = 'false'");
    migration.source.reload();
    let application = migration.application(&[INSERT]);
    let failed = migration.cutover("promote --set promote.budget=10s").assert_code(1);
    let committed = application.stop();
    let said = failed.stderr_text();
    for expected in ["gave up waiting until the replica has replayed", "The source needs to archive", "All was undone"]
    {
        assert!(said.contains(expected), "{expected} is not in\n{said}");
    }
    assert_undone(&migration);
    assert_eq!(migration.hooks(), ["maintenance_on", "maintenance_off"]);
    assert_eq!(lost(&migration.source, &committed), Vec::<String>::new());

    // mended, it goes the whole way
    let command = migration.archive.archive_command(Program::WalEve);
    migration.source.configure(&command);
    migration.source.reload();
    let application = migration.application(&[INSERT]);
    migration.cutover("promote").assert_success();
    assert_promoted(&migration, &application.stop());
}

#[test]
fn a_fence_that_cannot_be_set_is_refused_before_anybody_waits() {
    let migration = MigrationOptions::from(15).make();
    let refused = |expected: &str| {
        let said = migration.cutover("promote").assert_code(1).stderr_text().to_owned();
        assert!(said.contains(expected), "{expected} is not in\n{said}");
        assert_eq!(migration.hooks(), Vec::<String>::new());
    };
    migration.source.psql("alter database app owner to postgres");
    refused("\"app\" does not own the database \"app\"");
    migration.source.psql("alter database app owner to app");
    migration.source.psql("alter role app set default_transaction_read_only = off");
    refused("alter role app reset default_transaction_read_only");
    migration.source.psql("alter role app reset default_transaction_read_only");
    assert_undone(&migration);
}

#[test]
fn a_prepared_transaction_is_named() {
    let mut migration = MigrationOptions::from(15).make();
    migration.replica.configure("max_prepared_transactions = 5");
    migration.replica.stop(Mode::Fast);
    migration.replica.start();
    migration.source.configure("max_prepared_transactions = 5");
    migration.source.stop(Mode::Fast);
    migration.source.start();
    migration
        .source
        .psql_as("app", "begin; insert into t (text) values ('x'); prepare transaction 'forgotten'")
        .assert_success();
    let said = migration.cutover("promote").assert_code(1).stderr_text().to_owned();
    assert!(said.contains("\"forgotten\" of app"), "{said}");
    assert_eq!(migration.hooks(), Vec::<String>::new());
}

#[test]
fn what_a_role_writes_behind_the_fence_comes_along() {
    // it asks for a transaction that may write, so that the fence does not bind it
    let migration = MigrationOptions::from(15).make();
    let stubborn = "begin transaction read write; insert into t (text) values ('late'); commit";
    let source = migration.source.socket_dir();
    let psql = migration.source.bin().program("psql");
    // replay waits until the row is there: after the promotion it would be too late
    let script = format!(
        "touch {place}/maintenance; {psql} -h {replica} -U postgres app -c 'select pg_wal_replay_pause()'; \
         (while ! grep -q fence-point {place}/cutover.journal.json; do sleep 0.05; done; \
         {psql} -h {source} -U app app -c \"{stubborn}\"; \
         {psql} -h {replica} -U postgres app -c 'select pg_wal_replay_resume()') >/dev/null 2>&1 &",
        place = migration.place.path().display(),
        psql = psql.display(),
        source = source.display(),
        replica = migration.replica.socket_dir().display(),
    );
    std::fs::write(migration.file("on.sh"), script).unwrap();
    let set = format!("hooks.maintenance_on=sh {}", migration.file("on.sh").display());
    let promoted = migration.wal_eve().run(["cutover", "promote", "--set", &set]).assert_success();
    let late = "select count(*) from t where text = 'late'";
    let [there, here] = [&migration.source, &migration.replica]
        .map(|server| server.psql_as("app", late).stdout_text().trim().to_owned());
    assert_eq!(there, here, "{}", promoted.stderr_text());
}

#[test]
fn a_superusers_transaction_from_before_the_fence_is_waited_for() {
    // it is not for a plain user to end, and no snapshot shows it while nothing newer has ended
    let migration = MigrationOptions::from(15).make();
    let script = format!(
        "touch {place}/maintenance; sql='{psql} -h {source} -U postgres app -Atc'
         $sql \"begin; insert into t (text) values ('slow'); select pg_sleep(4); commit\" >/dev/null 2>&1 &
         until $sql \"select 1 from pg_stat_activity where wait_event = 'PgSleep'\" | grep -q 1; do sleep 0.1; done",
        place = migration.place.path().display(),
        psql = migration.source.bin().program("psql").display(),
        source = migration.source.socket_dir().display(),
    );
    std::fs::write(migration.file("on.sh"), script).unwrap();
    let set = format!("hooks.maintenance_on=sh {}", migration.file("on.sh").display());
    migration.wal_eve().run(["cutover", "promote", "--set", &set]).assert_success();
    let slow = "select count(*) from t where text = 'slow'";
    assert_eq!(migration.replica.psql_as("app", slow).stdout_text().trim(), "1");
}

#[test]
fn a_promotion_that_was_only_announced_is_fenced_anew() {
    let migration = MigrationOptions::from(11).make();
    let mut running = migration.wal_eve().spawn([
        "cutover",
        "promote",
        "--set",
        "replica.promote_command=sleep 60",
        "--set",
        "hooks.timeout=2 min",
    ]);
    wait_until("it is about to promote", LIMIT, || migration.has_mark("promoting"));
    running.signal(Signal::KILL);
    running.wait();
    // somebody brings the source back by hand, and the application goes on
    migration.source.psql("alter database app reset default_transaction_read_only");
    migration.source.psql_as("app", "insert into t (text) values ('later')").assert_success();
    migration.cutover("promote").assert_success();
    let later = "select count(*) from t where text = 'later'";
    assert_eq!(migration.replica.psql_as("app", later).stdout_text().trim(), "1");
    assert_promoted(&migration, &[]);
}

/// A promotion that has its proof and was announced, but whose command fails, with the source archiving no more.
fn announced() -> Migration {
    let mut migration = MigrationOptions::from(11).make();
    migration.wal_eve().run(["cutover", "promote", "--set", "replica.promote_command=exit 1"]).assert_code(1);
    assert!(migration.has_mark("fence-reached") && migration.has_mark("promoting"));
    migration.source.stop(Mode::Fast);
    migration.source.configure("archive_command = 'false'");
    migration.source.start();
    migration
}

/// Nothing is promoted while nobody can say what the source wrote meanwhile.
fn assert_not_promoted_without_its_source(migration: &Migration) {
    migration.source.psql_as("app", "insert into t (text) values ('meanwhile')").assert_success();
    let away = "source.connection=host=/nowhere dbname=app user=app";
    let ended = migration.wal_eve().run(["cutover", "promote", "--set", away]);
    assert_ne!(ended.code(), Some(0), "{}", ended.stdout_text());
    assert!(!migration.hooks().contains(&"switch_to_replica".to_owned()));
    assert_undone(migration);
}

#[test]
fn what_an_attempt_that_was_undone_had_proved_counts_no_more() {
    let migration = announced();
    let stubborn = "begin transaction read write; insert into t (text) values ('late'); commit";
    migration.source.psql_as("app", stubborn).assert_success();
    // the new last write is located, but never reaches the replica
    let mut running = migration.spawn("promote");
    let points = || migration.journal().matches("the source's last write is at").count();
    wait_until("it is fenced anew", LIMIT, || points() == 2 || !running.is_running());
    running.signal(Signal::KILL);
    running.wait();
    let said = migration.cutover("promote --set promote.budget=1s").assert_code(1).stderr_text().to_owned();
    assert!(said.contains("All was undone"), "{said}");
    assert_not_promoted_without_its_source(&migration);
}

#[test]
fn what_a_promotion_that_was_given_up_had_proved_counts_no_more() {
    let migration = announced();
    // it ends with the fence lifted
    migration.wal_eve().run(["cutover", "abort", "--set", "hooks.maintenance_off=exit 1"]).assert_code(1);
    std::fs::remove_file(migration.file("maintenance")).unwrap();
    assert_not_promoted_without_its_source(&migration);
}

#[test]
fn a_command_that_fails_or_hangs_leaves_the_source_writable() {
    let migration = MigrationOptions::from(15).make();
    for (command, expected) in [("exit 3", "exit status: 3"), ("sleep 60", "did not end within 1.0 s")] {
        let set = format!("hooks.maintenance_on=echo because; {command}");
        let arguments = ["cutover", "promote", "--set", &set, "--set", "hooks.timeout=1 s"];
        let said = migration.wal_eve().run(arguments).assert_code(1).stderr_text().to_owned();
        assert!(said.contains(expected) && said.contains("because"), "{expected} is not in\n{said}");
        assert_undone(&migration);
    }
    // after the promotion the way is forward, and the error says so
    let arguments = ["cutover", "promote", "--set", "hooks.switch_to_replica=exit 1"];
    let said = migration.wal_eve().run(arguments).assert_code(1).stderr_text().to_owned();
    assert!(said.contains("run cutover promote again") && said.contains("cutover abort"), "{said}");
    migration.cutover("promote").assert_success();
    assert_promoted(&migration, &[]);
}

#[test]
fn a_source_that_is_opened_again_after_the_switch_is_left_behind_all_the_same() {
    let migration = MigrationOptions::from(15).make();
    migration.wal_eve().run(["cutover", "promote", "--set", "hooks.maintenance_off=exit 1"]).assert_code(1);
    assert!(migration.has_mark("switched-to-replica"));
    migration.source.psql("alter database app reset default_transaction_read_only");
    migration.cutover("promote").assert_success();
    assert!(!migration.has_mark("forked") && !migration.file("maintenance").exists());
    assert!(migration.is_writable(&migration.replica));
}

#[test]
fn a_promotion_killed_anywhere_ends_well_when_run_again() {
    for mark in [
        "promote-maintenance",
        "source-fence",
        "fence-point",
        "fence-reached",
        "promoting",
        "promoted",
        "writes-proved",
    ] {
        let migration = MigrationOptions::from(15).make();
        let application = migration.application(&[INSERT]);
        let mut running = migration.spawn("promote");
        wait_until(mark, LIMIT, || migration.has_mark(mark) || !running.is_running());
        running.signal(Signal::KILL);
        running.wait();
        let again = migration.cutover("promote");
        let logs = || format!("source:\n{}\nreplica:\n{}", migration.source.log(), migration.replica.log());
        assert!(again.code() == Some(0), "killed at {mark}\n{}\n{}", again.stderr_text(), logs());
        std::thread::sleep(Duration::from_millis(200));
        assert_promoted(&migration, &application.stop());
    }
}

#[test]
fn a_promotion_told_to_end_undoes_what_it_did() {
    let mut migration = MigrationOptions::from(15).make();
    migration.source.configure("archive_command = 'false'");
    migration.source.reload();
    for signal in [Signal::INT, Signal::TERM] {
        let mut running = migration.spawn("promote");
        wait_until("it waits for the fence", LIMIT, || migration.has_mark("fence-point"));
        running.signal(signal);
        let ended = running.wait().assert_code(2);
        assert!(ended.stderr_text().contains("All was undone"), "{}", ended.stderr_text());
        assert_undone(&migration);
        std::fs::remove_file(migration.file("cutover.journal.json")).unwrap();
    }
}

#[test]
fn without_a_source_the_users_word_is_needed() {
    let migration = MigrationOptions::from(15).make();
    let plan = std::fs::read_to_string(migration.file("cutover.toml")).unwrap();
    let without = plan.split_once("[replica]").unwrap().1;
    std::fs::write(migration.file("cutover.toml"), format!("[replica]{without}")).unwrap();
    let said = migration.cutover("promote").assert_code(1).stderr_text().to_owned();
    assert!(said.contains("--without-fence"), "{said}");
    migration.source.psql_as("app", INSERT).assert_success();
    let last = migration.source.switch_wal();
    migration.archive.wait_for_wal(&migration.source, &last);
    let wal_eve = migration
        .archive
        .environment()
        .into_iter()
        .fold(migration.wal_eve(), |tool, (name, value)| tool.env(name, value));
    wal_eve.run(["cutover", "promote", "--without-fence"]).assert_success();
    assert_eq!(migration.replica.psql_as("app", "select count(*) from t").stdout_text().trim(), "1");
    assert!(migration.is_writable(&migration.replica));
}

#[test]
fn a_standby_of_another_cluster_is_refused() {
    let migration = MigrationOptions::from(15).make();
    let mut stranger = PgCluster::init(15);
    stranger.start();
    for sql in ["create role app login", "create database app owner app"] {
        stranger.psql(sql);
    }
    // its LSN is past whatever the source's will be
    for _ in 0..3 {
        stranger.switch_wal();
    }
    stranger.stop(Mode::Fast);
    stranger.set_standby();
    stranger.start();
    let set = format!("replica.connection={}", conninfo(&stranger, "postgres"));
    let said = migration.wal_eve().run(["cutover", "promote", "--set", &set]).assert_code(1).stderr_text().to_owned();
    assert!(said.contains("the replica is no copy of the source"), "{said}");
    assert_eq!(stranger.psql("select pg_is_in_recovery()"), "t");
    assert_eq!(migration.hooks(), Vec::<String>::new());
    assert_undone(&migration);
}

#[test]
fn a_replica_that_a_failover_left_behind_is_refused() {
    let mut migration = MigrationOptions::from(15).make();
    migration.replica.configure("recovery_target_timeline = 'current'");
    migration.replica.stop(Mode::Fast);
    migration.replica.start();
    // the source's last segments, which the failover will lose
    for _ in 0..3 {
        migration.source.switch_wal();
    }
    migration.replica.wait_until_sql("select count(*) = 3 from switched", LIMIT);
    migration.source.stop(Mode::Fast);
    let archive = &migration.archive;
    let mut successor = restored(archive, 15, &[], &archive.restore_command(Program::WalEve));
    for line in
        ["recovery_target = 'immediate'", "recovery_target_action = 'promote'", "archive_mode = on", "fsync = off"]
    {
        successor.configure(line);
    }
    successor.configure(&archive.archive_command(Program::WalEve));
    successor.set_recovery();
    successor.start();
    successor.wait_until_sql("select not pg_is_in_recovery()", LIMIT);
    successor.psql_as("app", INSERT).assert_success();
    let history = "wal_005/00000002.history.lzo";
    successor.wait_until("its history is archived", LIMIT, || archive.holds(history));

    let source = format!("source.connection={}", conninfo(&successor, "app"));
    let wal_eve =
        archive.environment().into_iter().fold(migration.wal_eve(), |tool, (name, value)| tool.env(name, value));
    for (arguments, expected) in [
        (vec!["--set", &source], "replays timeline 1, but the source writes 2"),
        (vec!["--set", &source, "--set", "promote.fence=false", "--without-fence"], "but the archive holds timeline 2"),
    ] {
        let arguments = ["cutover", "promote"].into_iter().chain(arguments);
        let said = wal_eve.run(arguments).assert_code(1).stderr_text().to_owned();
        assert!(said.contains(expected), "{expected} is not in\n{said}");
        assert_eq!(migration.replica.psql("select pg_is_in_recovery()"), "t");
        assert_eq!(migration.hooks(), Vec::<String>::new());
        assert!(migration.is_writable(&successor));
    }
    let report = check(&migration, &[&source]);
    report.assert_error("progress", "the source writes 2");
    report.assert_found("warning", "progress", "the archive holds timeline 2");
    report.assert_found("warning", "progress", "recovery_target_timeline is \"current\"");
    check(&migration, &["promote.fence=false"]).assert_error("progress", "the archive holds timeline 2");
}

#[test]
fn two_at_once_are_refused() {
    let mut migration = MigrationOptions::from(15).make();
    migration.source.configure("archive_command = 'false'");
    migration.source.reload();
    let mut running = migration.spawn("promote");
    wait_until("it waits for the fence", LIMIT, || migration.has_mark("fence-point"));
    let said = migration.cutover("promote").assert_code(1).stderr_text().to_owned();
    assert!(said.contains("another step of this cutover is running"), "{said}");
    running.signal(Signal::TERM);
    running.wait();
    assert_undone(&migration);
}
