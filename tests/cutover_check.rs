//! What a cutover's check says of the servers and of the first move, provoked on real servers; and migrations as they should
//! be, in which nothing stands in the way.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

mod support;

use std::fs;

use support::check_report::{check, check_plan, listed};
use support::cutover::{LIMIT, Migration, MigrationOptions, conninfo};
use support::{Mode, PgCluster, Program};

fn restart(server: &PgCluster) {
    server.stop(Mode::Fast);
    server.start();
}

const PLAIN: &str = "create table t (id bigserial primary key, text text);
    create index t_text on t (text);
    create table part (id int primary key) partition by range (id);
    create table part_1 partition of part for values from (0) to (1000);
    insert into t (text) select 'row ' || n from generate_series(1, 1000) n;";

fn nothing_stands_in_the_way(major: u32, target: u32) -> Migration {
    let migration = MigrationOptions::from(major).to(target).schema(PLAIN).make();
    migration.replica.psql("select pg_sleep(0.1)");
    let report = check(&migration, &["replication.retained_wal_limit=10 MB"]);
    println!("{major} to {target}: {:#}", report.json);
    report.assert_clean();
    report.assert_found("note", "progress", "behind the source");
    report.assert_found("note", "schema", "there yet");
    report.assert_found("note", "sequences", "1 sequence: 1 of serial columns");
    report.assert_found("note", "tables", "1 table is partitioned");
    report.assert_found("warning", "settings", "fsync is off");
    report.assert_found("warning", "archiving", "archive_mode is off");
    assert!(!migration.file("cutover.journal.json").exists(), "a check writes nothing");

    // the same for a person
    let text = migration.cutover("check --set replication.retained_wal_limit=10MB").assert_success().stdout_text();
    assert!(text.contains("Nothing stands in the way. 0 errors,") && text.contains("NOTES"), "{text}");
    migration
}

#[test]
fn nothing_stands_in_the_way_from_15_to_18_also_after_the_promotion() {
    let migration = nothing_stands_in_the_way(15, 18);
    migration.cutover("promote").assert_success();
    let report = check(&migration, &["replication.retained_wal_limit=10 MB"]);
    report.assert_clean();
    report.assert_found("note", "progress", "this cutover has promoted it");

    // once the source is gone, nobody misses it
    migration.source.stop(Mode::Fast);
    let report = check(&migration, &["replication.retained_wal_limit=10 MB"]);
    report.assert_clean();
    report.assert_found("note", "servers", "could not be reached");
}

#[test]
fn nothing_stands_in_the_way_from_11_to_17() {
    nothing_stands_in_the_way(11, 17);
}

#[test]
fn what_cannot_be_reached_is_told_and_the_rest_looked_at() {
    let migration = MigrationOptions::from(15).to(17).schema(PLAIN).make();
    let nowhere = |section: &str| format!("{section}.connection=host=/nonexistent dbname=app user=app");

    let report = check(&migration, &[&nowhere("target")]);
    report.assert_complete();
    let found = report.assert_found("warning", "servers", "could not be reached");
    assert_eq!(found["place"], "target");
    report.assert_found("note", "sequences", "1 sequence");

    let report = check(&migration, &[&nowhere("source")]);
    report.assert_complete();
    assert_eq!(report.assert_found("warning", "servers", "could not be reached")["place"], "source");
    report.assert_found("note", "progress", "it has replayed");
    report.assert_found("note", "schema", "there yet");

    // the source's catalogue takes the replica's place
    let report = check(&migration, &[&nowhere("replica")]);
    report.assert_complete();
    assert_eq!(report.assert_error("servers", "could not be reached")["place"], "replica");
    assert_eq!(report.assert_found("note", "sequences", "1 sequence")["place"], "source");

    // a plan of a replica alone is only told what it leaves open
    let alone = format!(
        "[replica]\nconnection = '{}'\n[application]\nuser = 'app'\n",
        conninfo(&migration.replica, "postgres")
    );
    fs::write(migration.file("alone.toml"), alone).unwrap();
    let report = check_plan(&migration, "alone.toml", &["replication.retained_wal_limit=10 MB"]);
    report.assert_clean();
    report.assert_found("note", "servers", "the plan names no source");
    report.assert_found("note", "servers", "the plan names no target");
    let hooks = listed(report.assert_found("warning", "plan", "lacks commands"), "objects");
    assert_eq!(hooks, "hooks.maintenance_on | hooks.maintenance_off");
    report.assert_found("warning", "plan", "how the target reaches the publisher");
}

#[test]
fn servers_that_are_not_what_the_plan_says_are_told() {
    let migration = MigrationOptions::from(15).to(17).make();
    let replica = |server: &PgCluster, user: &str| format!("replica.connection={}", conninfo(server, user));
    let report = check(&migration, &[&replica(migration.target(), "postgres")]);
    report.assert_error("servers", "it is no copy of the source");
    report.assert_error("servers", "the same cluster");
    report.assert_error("progress", "it is no standby");

    let report = check(&migration, &[&replica(&migration.replica, "app"), "application.user=nobody"]);
    report.assert_error("servers", "the user is no superuser");
    report.assert_error("servers", "\"nobody\" does not exist");

    let of_postgres = conninfo(&migration.source, "postgres").replace("dbname=app", "dbname=postgres");
    let report = check(&migration, &[&format!("source.connection={of_postgres}")]);
    report.assert_error("servers", "its database is \"app\", the source's \"postgres\"");

    // no password can be wrong where everybody is trusted
    fs::write(migration.replica.data_dir().join("pg_hba.conf"), "local all app reject\nlocal all all trust\n").unwrap();
    migration.replica.reload();
    migration
        .replica
        .wait_until("app is rejected", LIMIT, || migration.replica.psql_as("app", "select 1").code() != Some(0));
    let target_of_replica = format!("target.connection={}", conninfo(&migration.replica, "postgres"));
    let report = check(
        &migration,
        &[&target_of_replica, &format!("source.connection={}", conninfo(&migration.replica, "postgres"))],
    );
    report.assert_error("servers", "the application's role \"app\" cannot log in");
    let standbys: Vec<_> = report
        .findings()
        .filter(|finding| finding["what"] == "it is a standby")
        .map(|finding| &finding["place"])
        .collect();
    assert_eq!(standbys, ["source", "target"]);
}

#[test]
fn a_replica_that_does_not_follow_is_told() {
    let migration = MigrationOptions::from(15).make();
    migration.replica.psql("select pg_wal_replay_pause()");
    migration.replica.wait_until_sql("select pg_get_wal_replay_pause_state() = 'paused'", LIMIT);
    for _ in 0..4 {
        let last = migration.source.switch_wal();
        migration.archive.wait_for_wal(&migration.source, &last);
    }
    let report = check(&migration, &[]);
    report.assert_error("progress", "its replay is paused");
    report.assert_error("progress", "stands still");
    report.assert_found("note", "progress", "and the archive ends with");
    report.assert_found("note", "progress", "behind the source");

    let mut replica = migration.replica;
    replica.configure("recovery_target_lsn = 'FF/0'");
    replica.configure("restore_command = ''");
    let migration = Migration { replica, ..migration };
    restart(&migration.replica);
    let report = check(&migration, &[]);
    report.assert_error("progress", "recovery_target_lsn is \"FF/0\"");
    report.assert_found("warning", "progress", "neither restore_command nor primary_conninfo");
}

#[test]
fn a_replica_of_11_that_nothing_can_promote_is_told() {
    let migration = MigrationOptions::from(11).make();
    let plan = fs::read_to_string(migration.file("cutover.toml")).unwrap();
    let plan: String =
        plan.lines().filter(|line| !line.starts_with("promote_command")).map(|line| format!("{line}\n")).collect();
    fs::write(migration.file("cutover.toml"), plan).unwrap();
    check(&migration, &[]).assert_error("progress", "cannot be promoted by SQL");
}

#[test]
fn settings_unfit_for_a_publisher_and_a_primary_are_told() {
    let mut migration = MigrationOptions::from(15).to(18).make();
    for line in [
        "wal_level = replica",
        "max_replication_slots = 1",
        "max_wal_senders = 11",
        "synchronous_standby_names = 'elsewhere'",
        "default_transaction_read_only = on",
        "autovacuum = off",
        "full_page_writes = off",
        "archive_mode = on",
        "archive_command = ''",
        "max_slot_wal_keep_size = 5MB",
    ] {
        migration.replica.configure(line);
    }
    restart(&migration.replica);
    migration.replica.psql("select pg_create_physical_replication_slot('leaked', true)");
    for line in ["max_connections = 150", "max_prepared_transactions = 3", "max_locks_per_transaction = 99"] {
        migration.source.configure(line);
    }
    restart(&migration.source);
    migration
        .source
        .psql_as("app", "begin; create table prepared (n int); prepare transaction 'left over'")
        .assert_success();
    migration.source.psql("alter role app in database app set default_transaction_read_only = off");

    let report = check(&migration, &["replication.retained_wal_limit=9000 TB"]);
    report.assert_complete();
    let wal_level = report.assert_error("settings", "wal_level is \"replica\"");
    assert!(listed(wal_level, "mend").starts_with("alter system set wal_level = 'logical';"), "{wal_level:#}");
    report.assert_error("settings", "max_replication_slots is 1, and 1 are in use");
    for short in ["max_connections is 100", "max_prepared_transactions is 0", "max_locks_per_transaction is 64"] {
        report.assert_error("settings", short);
    }
    report.assert_error("settings", "default_transaction_read_only is on");
    for name in ["synchronous_standby_names", "autovacuum", "full_page_writes", "fsync"] {
        report.assert_found("warning", "settings", &format!("{name} is"));
    }
    report.assert_found("warning", "archiving", "archive_command is not set");
    report.assert_found("warning", "room", "max_slot_wal_keep_size is 5.0 MB");
    assert!(listed(report.assert_found("warning", "room", "slots that nobody uses"), "objects").starts_with("leaked"));
    report.assert_found("warning", "room", "are free where its WAL lies");

    // one obstacle after the other
    report.assert_error("fence", "roles have a default_transaction_read_only of their own");
    migration.source.psql("alter role app in database app reset default_transaction_read_only");
    check(&migration, &[]).assert_error("fence", "it has prepared transactions");
    let report = check(&migration, &["promote.fence=false"]);
    report.assert_found("warning", "fence", "it has 1 prepared transaction");
    report.assert_found("warning", "fence", "promote.fence is false");

    // set in the file already, it only waits for the restart
    migration.replica.configure("wal_level = logical");
    migration.replica.reload();
    migration.replica.wait_until_sql("select pending_restart from pg_settings where name = 'wal_level'", LIMIT);
    let report = check(&migration, &[]);
    assert!(listed(report.assert_error("settings", "wal_level"), "mend").starts_with("Restart"));
}

#[test]
fn sessions_that_hold_up_the_fence_are_told() {
    let migration = MigrationOptions::from(15).make();
    migration.source.psql("create role stranger login");
    migration.source.psql("create role other_owner login; alter database app owner to other_owner");
    check(&migration, &[]).assert_error("fence", "does not own the database");
    migration.source.psql("alter database app owner to app");
    std::thread::scope(|scope| {
        scope.spawn(|| migration.source.try_psql("\\connect app stranger\nselect pg_sleep(20)"));
        migration.source.wait_until_sql("select count(*) = 1 from pg_stat_activity where usename = 'stranger'", LIMIT);
        let report = check(&migration, &["promote.budget=1 ms"]);
        migration.source.psql("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'stranger'");
        assert!(
            listed(report.assert_found("warning", "fence", "1 session cannot be ended by \"app\""), "objects")
                .contains("pid")
        );
    });
}

#[test]
fn an_archive_of_its_own_is_demanded_of_the_replica() {
    let mut migration = MigrationOptions::from(15).make();
    migration.replica.configure("archive_mode = on");
    let command = migration.archive.archive_command(Program::WalEve);
    migration.replica.configure(&command);
    restart(&migration.replica);
    let found = check(&migration, &[]);
    let found = found.assert_error("archiving", "archive_command writes to the source's archive");
    assert!(found["why"].as_str().unwrap().contains("fed from there"), "{found:#}");

    migration.replica.configure(&command.replace("s3://b/p", "s3://b/own"));
    migration.replica.reload();
    migration.replica.wait_until_sql("select current_setting('archive_command') like '%s3://b/own%'", LIMIT);
    check(&migration, &[]).assert_found("note", "archiving", "archive_command writes to \"s3://b/own\"");

    migration.source.configure("archive_command = 'false'");
    migration.source.reload();
    migration.source.switch_wal();
    migration.source.wait_until_sql("select failed_count > 0 from pg_stat_archiver", LIMIT);
    check(&migration, &[]).assert_error("archiving", "its archiving fails");
}
