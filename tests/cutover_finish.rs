//! The second move of a cutover: dies anywhere and ends well, and until the subscription is dropped every failure leaves the
//! publisher as it was.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helpers")]

mod support;

use std::collections::HashSet;
use std::fs;
use std::time::Duration;

use rustix::process::Signal;
use support::cutover::{LIMIT, Migration, MigrationOptions};
use support::postgres::wait_until;
use support::{Mode, PgCluster};

const INSERT: &str = "insert into t (text) values (md5(random()::text)) returning id::text";

const SCHEMA: &str = "create table t (id bigserial primary key, text text); create sequence lonely; \
    insert into t (text) select 'row ' || n from generate_series(1, 200) n";

/// The application is on the replica, and the target follows it.
fn replicated(from: u32, to: u32) -> Migration {
    let migration = MigrationOptions::from(from).to(to).schema(SCHEMA).make();
    migration.cutover("promote").assert_success();
    migration.cutover("replicate").assert_success();
    fs::remove_file(migration.file("hooks")).unwrap();
    migration
}

fn lost(server: &PgCluster, committed: &[String]) -> Vec<String> {
    let there = server.psql_as("app", "select id from t").assert_success();
    let there: HashSet<_> = there.stdout_text().lines().map(str::to_owned).collect();
    committed.iter().filter(|id| !there.contains(*id)).cloned().collect()
}

fn address(migration: &Migration) -> String {
    fs::read_to_string(migration.file("address")).unwrap()
}

/// Nobody was switched, the publisher takes writes, and they arrive at the target.
fn assert_undone(migration: &Migration) {
    assert!(migration.is_writable(&migration.replica), "the publisher is still fenced");
    assert!(!migration.file("maintenance").exists(), "maintenance is still on");
    assert_eq!(address(migration), migration.replica.socket_dir().to_str().unwrap());
}

/// A setting that has a hook run SQL on a server, in a session that a fence does not bind.
fn sql_hook(migration: &Migration, hook: &str, server: &PgCluster, sql: &str) -> String {
    let (script, statements) = (migration.file(&format!("{hook}.sh")), migration.file(&format!("{hook}.sql")));
    fs::write(&statements, sql).unwrap();
    let lines = format!(
        "PGOPTIONS='-c default_transaction_read_only=off' {} -X -v ON_ERROR_STOP=1 -h {} -U postgres -f {} app && echo {hook} >> {}",
        server.bin().program("psql").display(),
        server.socket_dir().display(),
        statements.display(),
        migration.file("hooks").display(),
    );
    fs::write(&script, lines).unwrap();
    format!("hooks.{hook}=sh {}", script.display())
}

/// The journal since the last move began.
fn marks_of_the_move(migration: &Migration) -> String {
    let journal = migration.journal();
    journal.rsplit_once("\"finish-begun\"").map(|(_, since)| since.to_owned()).unwrap_or_default()
}

#[test]
fn a_move_killed_anywhere_ends_well_when_run_again_there_and_back() {
    let migration = replicated(15, 18);
    let application = migration.application(&[INSERT]);
    let marks = [
        "finish-begun",
        "prepared",
        "finish-maintenance",
        "publisher-fence",
        "final-point",
        "confirmed",
        "compared",
        "sequences-set",
        "parting",
        "subscription-dropped",
        "reverse-ready",
        "switched-to-subscriber",
    ];
    for (leg, mark) in marks.into_iter().enumerate() {
        let (step, home) = match leg % 2 {
            0 => ("finish --reverse", migration.target()),
            _ => ("finish --back --reverse", &migration.replica),
        };
        let legs_before = migration.journal().matches("\"finish-begun\"").count();
        let mut running = migration.spawn(step);
        wait_until(mark, LIMIT, || {
            let has_begun = migration.journal().matches("\"finish-begun\"").count() > legs_before;
            has_begun && (mark == "finish-begun" || marks_of_the_move(&migration).contains(&format!("\"{mark}\"")))
                || !running.is_running()
        });
        running.signal(Signal::KILL);
        running.wait();
        migration.cutover(step).assert_success();
        assert_eq!(address(&migration), home.socket_dir().to_str().unwrap(), "killed at {mark}");
        assert!(migration.is_writable(home), "killed at {mark}");
        std::thread::sleep(Duration::from_millis(300));
    }
    let work = application.stop_and_tell();
    assert_eq!(work.collisions, Vec::<String>::new());
    assert_eq!(lost(&migration.replica, &work.committed), Vec::<String>::new());
    assert!(work.committed.len() > 100);
}

#[test]
fn a_row_that_differs_is_named_and_nobody_waits() {
    let migration = replicated(15, 18);
    migration
        .target()
        .psql_as("app", "update t set text = 'other' where id = 77; delete from t where id = 78")
        .assert_success();
    let said = migration.cutover("finish").assert_code(1).stderr_text().to_owned();
    for expected in ["public.t", "77", "78"] {
        assert!(said.contains(expected), "{expected} is not in\n{said}");
    }
    assert_undone(&migration);
    assert_eq!(migration.hooks(), Vec::<String>::new());
}

#[test]
fn a_subscriber_that_stops_following_under_the_fence_gives_the_publisher_back() {
    let migration = replicated(15, 18);
    let disable =
        sql_hook(&migration, "maintenance_on", migration.target(), "alter subscription wal_eve_cutover disable");
    let arguments = ["cutover", "finish", "--set", &disable, "--set", "finish.budget=10 s"];
    let said = migration.wal_eve().run(arguments).assert_code(1).stderr_text().to_owned();
    for expected in ["gave up waiting until the target has the publisher's last write", "All was undone"] {
        assert!(said.contains(expected), "{expected} is not in\n{said}");
    }
    assert_undone(&migration);
    assert_eq!(migration.hooks(), ["maintenance_on", "maintenance_off"]);
    migration.target().psql_as("postgres", "select 1").code();
    migration.target().try_psql("\\c app\nalter subscription wal_eve_cutover enable").assert_success();
    migration.cutover("finish").assert_success();
    assert_eq!(address(&migration), migration.target().socket_dir().to_str().unwrap());
}

/// A move that got as far as giving the subscription up, which the target refused.
fn stopped_at_the_parting() -> Migration {
    let migration = replicated(15, 18);
    let refuse = "create function refuse() returns event_trigger language plpgsql \
         as $$ begin raise exception 'the subscription stays'; end $$; \
         create event trigger refuse on ddl_command_start when tag in ('ALTER SUBSCRIPTION') \
         execute function refuse()";
    on_target(&migration, refuse);
    let said = migration.cutover("finish").assert_code(1).stderr_text().to_owned();
    assert!(said.contains("the subscription stays") && migration.has_mark("parting"), "{said}");
    assert!(!migration.is_writable(&migration.replica));
    on_target(&migration, "drop event trigger refuse");
    migration
}

/// Runs SQL as the superuser, in the application's database.
fn on_target(migration: &Migration, sql: &str) {
    migration.target().try_psql(&format!("\\c app\n{sql}")).assert_success();
}

#[test]
fn a_subscription_that_was_not_given_up_is_no_reason_to_switch_later() {
    let migration = stopped_at_the_parting();
    migration.target().psql_as("app", "update t set text = 'other' where id = 77").assert_success();
    let said = migration.cutover("finish").assert_code(1).stderr_text().to_owned();
    assert!(said.contains("All was undone"), "{said}");
    assert_undone(&migration);
    migration.target().psql_as("app", "update t set text = 'row 77' where id = 77").assert_success();
    // as disable_on_error does it, or a person
    on_target(&migration, "alter subscription wal_eve_cutover disable");
    migration.cutover("finish --set finish.budget=3s").assert_code(1);
    assert_undone(&migration);
    let said = migration.cutover("abort").assert_success().stdout_text().to_owned();
    assert!(said.contains("The replication goes on"), "{said}");
}

#[test]
fn a_subscription_is_not_given_up_without_the_fence() {
    let migration = stopped_at_the_parting();
    migration.replica.psql("alter database app reset default_transaction_read_only");
    migration.replica.psql_as("app", INSERT).assert_success();
    on_target(&migration, "alter subscription wal_eve_cutover disable");
    migration.replica.psql_as("app", INSERT).assert_success();
    let said = migration.cutover("finish --set finish.budget=3s").assert_code(1).stderr_text().to_owned();
    assert!(said.contains("gave up waiting until the target has the publisher's last write"), "{said}");
    assert_undone(&migration);
    on_target(&migration, "alter subscription wal_eve_cutover enable");
    migration.cutover("finish").assert_success();
    assert_eq!(migration.target().psql_as("app", "select count(*) from t").stdout_text().trim(), "202");
}

#[test]
fn an_abort_gives_the_publisher_back_while_the_subscription_still_follows() {
    let migration = stopped_at_the_parting();
    let said = migration.cutover("abort").assert_success().stdout_text().to_owned();
    assert!(said.contains("The publisher can be written to as before"), "{said}");
    assert_undone(&migration);
    migration.cutover("finish").assert_success();
}

#[test]
fn a_sequence_that_the_target_lacks_is_named_and_nobody_waits() {
    let migration = replicated(15, 18);
    migration.target().psql_as("app", "drop sequence lonely").assert_success();
    let said = migration.cutover("finish").assert_code(1).stderr_text().to_owned();
    assert!(said.contains("create sequence \"public\".\"lonely\""), "{said}");
    assert_undone(&migration);
    assert_eq!(migration.hooks(), Vec::<String>::new());
    migration.target().psql_as("app", "create sequence lonely").assert_success();
    migration.cutover("finish").assert_success();
}

#[test]
fn a_slot_that_is_gone_is_said_before_anybody_waits() {
    let migration = replicated(15, 18);
    migration.target().try_psql("\\c app\nalter subscription wal_eve_cutover disable").assert_success();
    migration
        .replica
        .wait_until_sql("select not active from pg_replication_slots where slot_name = 'wal_eve_cutover'", LIMIT);
    migration.replica.psql("select pg_drop_replication_slot('wal_eve_cutover')");
    let said = migration.cutover("finish").assert_code(1).stderr_text().to_owned();
    assert!(said.contains("no usable slot") && said.contains("cutover abort"), "{said}");
    assert_undone(&migration);
    assert_eq!(migration.hooks(), Vec::<String>::new());
}

#[test]
fn without_a_way_back_there_is_none() {
    let migration = replicated(15, 18);
    let said = migration.cutover("finish --back").assert_code(1).stderr_text().to_owned();
    assert!(said.contains("nothing to go back from"), "{said}");
    migration.cutover("finish").assert_success();
    let said = migration.cutover("finish --back").assert_code(1).stderr_text().to_owned();
    assert!(said.contains("left no way back"), "{said}");
    // what could not be dropped at the time goes with an abort
    migration.replica.psql_as("app", "create publication wal_eve_cutover for table t").assert_success();
    migration.target().psql_as("app", "create publication wal_eve_cutover_back for table t").assert_success();
    migration.replica.psql("\\c app\nselect pg_create_logical_replication_slot('wal_eve_cutover', 'pgoutput')");
    migration.target().psql("\\c app\nselect pg_create_logical_replication_slot('wal_eve_cutover_back', 'pgoutput')");
    let said = migration.cutover("abort").assert_success().stdout_text().to_owned();
    assert!(said.contains("no subscription, slot or publication of it is left"), "{said}");
    for server in [&migration.replica, migration.target()] {
        assert_eq!(server.psql("\\c app\nselect count(*) from pg_publication"), "0");
    }
    for (server, question) in [
        (migration.target(), "select count(*) from pg_replication_slots"),
        (&migration.replica, "select count(*) from pg_replication_slots"),
        (&migration.replica, "select count(*) from pg_roles where rolname = 'wal_eve_replication'"),
        (migration.target(), "select count(*) from pg_subscription"),
    ] {
        assert_eq!(server.psql(question), "0", "{question}");
    }
    for server in [&migration.replica, migration.target()] {
        let left = "select count(*) from pg_namespace where nspname = 'wal_eve_cutover'";
        assert_eq!(server.psql_as("app", left).stdout_text().trim(), "0");
    }
}

#[test]
fn a_dry_run_shows_everything_and_changes_nothing() {
    let migration = replicated(15, 18);
    let before = migration.journal();
    let shown = migration.cutover("finish --dry-run --reverse").assert_success().stdout_text().to_owned();
    for expected in [
        "command maintenance_on",
        "replica: alter database \"app\" set default_transaction_read_only = on;",
        "target: ",
        "setval",
        "drop subscription",
        "pg_drop_replication_slot",
        "create subscription \"wal_eve_cutover_back\"",
        "command switch_to_target",
    ] {
        assert!(shown.contains(expected), "{expected} is not in\n{shown}");
    }
    assert!(!shown.contains("r3plication-s3cret"));
    assert_undone(&migration);
    assert_eq!((migration.journal(), migration.hooks()), (before, Vec::new()));
}

#[test]
fn a_publisher_may_stay_read_only() {
    let migration = replicated(15, 18);
    // unless the way back could not write there
    let trigger = "create function f() returns trigger language plpgsql as 'begin return new; end'; \
        create trigger audit after insert on t for each row execute function f(); alter table t enable always trigger audit";
    migration.replica.psql_as("app", trigger).assert_success();
    let said = migration.cutover("finish --reverse --set finish.leave_publisher_read_only=true").assert_code(1);
    let said = said.stderr_text();
    assert!(said.contains("audit of public.t") && said.contains("finish.leave_publisher_read_only = false"), "{said}");
    assert_eq!(migration.hooks(), Vec::<String>::new());
    migration.cutover("finish --set finish.leave_publisher_read_only=true").assert_success();
    assert!(!migration.is_writable(&migration.replica));
    assert!(migration.is_writable(migration.target()));
}

#[test]
fn an_abort_takes_the_replication_away_and_leaves_the_publisher_as_it_was() {
    let migration = replicated(15, 18);
    let said = migration.cutover("abort").assert_success().stdout_text().to_owned();
    assert!(said.contains("The subscription, its slot and the publication are gone."), "{said}");
    assert_undone(&migration);
    assert_eq!(migration.replica.psql("select count(*) from pg_replication_slots"), "0");
    assert_eq!(migration.target().psql("select count(*) from pg_subscription"), "0");
    // emptied, it can be replicated again
    migration.target().psql_as("app", "truncate t").assert_success();
    migration.cutover("replicate").assert_success();
    migration.cutover("finish").assert_success();
    assert_eq!(migration.target().psql_as("app", "select count(*) from t").stdout_text().trim(), "200");
}

#[test]
fn an_abort_killed_half_way_goes_on_where_it_stopped() {
    let migration = replicated(15, 18);
    for pause in [0, 100, 200, 300] {
        let mut running = migration.spawn("abort");
        std::thread::sleep(Duration::from_millis(pause));
        running.signal(Signal::KILL);
        running.wait();
    }
    migration.cutover("abort").assert_success();
    assert_undone(&migration);
    for (server, question) in [
        (&migration.replica, "select count(*) from pg_replication_slots"),
        (&migration.replica, "select count(*) from pg_publication"),
        (&migration.replica, "select count(*) from pg_roles where rolname = 'wal_eve_replication'"),
        (migration.target(), "select count(*) from pg_subscription"),
    ] {
        assert_eq!(server.try_psql(&format!("\\c app\n{question}")).stdout_text().trim(), "0", "{question}");
    }
    // and once more there is nothing to do
    let before = migration.journal();
    migration.cutover("abort").assert_success();
    assert_eq!(migration.journal(), before);
}

#[test]
fn an_abort_after_the_promotion_gives_the_source_back() {
    let migration = MigrationOptions::from(15).schema(SCHEMA).make();
    migration.wal_eve().run(["cutover", "promote", "--set", "hooks.switch_to_replica=exit 1"]).assert_code(1);
    assert!(!migration.is_writable(&migration.source));
    // the command may have done its work before it failed
    let said = migration.cutover("abort").assert_code(1).stderr_text().to_owned();
    assert!(said.contains("there could be two primaries") && said.contains("--not-switched"), "{said}");
    assert!(!migration.is_writable(&migration.source));
    let said = migration.cutover("abort --not-switched").assert_success().stdout_text().to_owned();
    assert!(said.contains("restore it anew"), "{said}");
    assert!(migration.is_writable(&migration.source) && !migration.file("maintenance").exists());
    let said = migration.cutover("abort").assert_success().stdout_text().to_owned();
    assert!(said.contains("Nothing was under way"), "{said}");
    // the replica is a fork now, and nothing may be built on it
    for step in ["promote", "replicate"] {
        let said = migration.cutover(step).assert_code(1).stderr_text().to_owned();
        assert!(said.contains("Restore it anew with backup-fetch"), "{said}");
    }
}

#[test]
fn a_way_back_outlives_an_abort_on_it_and_ends_in_a_writable_home() {
    let migration = replicated(15, 18);
    migration.cutover("finish --reverse --set finish.leave_publisher_read_only=true").assert_success();
    assert!(!migration.is_writable(&migration.replica));
    // the way back stops under the fence
    let arguments = ["cutover", "finish", "--back", "--set", "hooks.maintenance_on=exit 1"];
    migration.wal_eve().run(arguments).assert_code(1);
    assert!(migration.is_writable(migration.target()));
    let said = migration.cutover("abort").assert_success().stdout_text().to_owned();
    assert!(said.contains("The way back is still there"), "{said}");
    migration.target().psql_as("app", INSERT).assert_success();
    migration.cutover("finish --back").assert_success();
    assert_eq!(address(&migration), migration.replica.socket_dir().to_str().unwrap());
    assert!(migration.is_writable(&migration.replica));
    assert_eq!(migration.replica.psql_as("app", "select count(*) from t").stdout_text().trim(), "201");
}

#[test]
fn a_way_back_to_a_server_that_is_gone_keeps_no_wal_after_an_abort() {
    let migration = replicated(15, 18);
    migration.cutover("finish --reverse").assert_success();
    migration.replica.stop(Mode::Immediate);
    let shown = migration.cutover("status").assert_code(2).stdout_text().to_owned();
    for expected in ["back, from the target to the replica", "AWAY     replica", "\"wal_eve_cutover_back\""] {
        assert!(shown.contains(expected), "{expected} is not in\n{shown}");
    }
    let said = migration.cutover("abort").assert_code(1).stderr_text().to_owned();
    assert!(said.contains("the target keeps no more WAL back"), "{said}");
    assert_eq!(migration.target().psql("select count(*) from pg_replication_slots"), "0");
    migration.replica.start();
    migration.cutover("abort").assert_success();
    assert_eq!(migration.replica.psql("select count(*) from pg_subscription"), "0");
}

#[test]
fn a_table_that_the_subscription_does_not_follow_is_not_left_behind() {
    let migration = replicated(15, 18);
    for server in [&migration.replica, migration.target()] {
        server.psql_as("app", "create table late (id int primary key)").assert_success();
    }
    migration.replica.psql_as("app", "insert into late values (1)").assert_success();
    let said = migration.cutover("finish").assert_code(1).stderr_text().to_owned();
    assert!(said.contains("public.late") && said.contains("cutover replicate"), "{said}");
    assert_undone(&migration);
    migration.cutover("replicate").assert_success();
    migration.replica.psql_as("app", "insert into late values (2)").assert_success();
    migration.cutover("finish").assert_success();
    assert_eq!(migration.target().psql_as("app", "select count(*) from late").stdout_text().trim(), "2");
    // once the application has moved, replicate leaves all as it is
    let before = migration.journal();
    migration.cutover("replicate").assert_success();
    assert_eq!(migration.journal(), before);
}

#[test]
fn a_full_replica_identity_ends_with_the_cutover_on_both_sides() {
    let schema = format!("{SCHEMA}; create table loose (n int)");
    let migration = MigrationOptions::from(15).to(18).schema(&schema).make();
    let full = |step: &str| migration.cutover(&format!("{step} --set replication.missing_identity=full"));
    let servers = [&migration.replica, migration.target()];
    let assert_identities = |expected: &str| {
        let question = "select string_agg(relname || ' ' || relreplident::text, ', ' order by relname) \
            from pg_class where relname in ('loose', 'late')";
        for server in servers {
            assert_eq!(server.psql_as("app", question).assert_success().stdout_text().trim(), expected);
        }
    };
    migration.cutover("promote").assert_success();
    full("replicate").assert_success();
    assert_identities("loose f");
    for server in servers {
        server.psql_as("app", "create table late (n int)").assert_success();
    }
    full("replicate").assert_success();
    full("finish --reverse").assert_success();
    assert_identities("late f, loose f");
    full("abort").assert_success();
    assert_identities("late d, loose d");
}

#[test]
fn a_table_made_while_maintenance_began_is_not_left_behind() {
    let migration = replicated(15, 18);
    let late = "create table late (id int primary key); insert into late values (1)";
    migration.target().psql_as("app", late).assert_success();
    let set = sql_hook(&migration, "maintenance_on", &migration.replica, late);
    let said = migration.wal_eve().run(["cutover", "finish", "--set", &set]).assert_code(1).stderr_text().to_owned();
    assert!(said.contains("public.late") && said.contains("All was undone"), "{said}");
    assert_undone(&migration);
}

#[test]
fn what_is_written_behind_the_fence_comes_along_until_the_subscription_goes() {
    let migration = replicated(15, 18);
    let target = migration.target();
    migration.replica.psql_as("app", "select nextval('lonely')").assert_success();
    std::thread::scope(|scope| {
        // the move stops where it has read the publisher's sequences and sets the target's
        let hold = "\\c app\nbegin; alter sequence lonely cache 1; select pg_sleep(100)";
        scope.spawn(|| target.try_psql(hold));
        let is_held =
            "select count(*) > 0 from pg_stat_activity where query like '%pg_sleep%' and pid <> pg_backend_pid()";
        target.wait_until_sql(is_held, LIMIT);
        let finishing = migration.spawn("finish");
        target.wait_until_sql("select exists (select from pg_locks where not granted)", LIMIT);
        let stubborn = format!("begin transaction read write; {INSERT}; commit");
        migration.replica.psql_as("app", &stubborn).assert_success();
        target.psql("select pg_terminate_backend(pid) from pg_stat_activity where query like '%pg_sleep%' and pid <> pg_backend_pid()");
        let said = finishing.wait().assert_success().stderr_text().to_owned();
        assert!(said.contains("transactions ran on the replica after the fence"), "{said}");
    });
    assert_eq!(target.psql_as("app", "select count(*) from t").stdout_text().trim(), "201");
    assert_eq!(target.psql_as("app", INSERT).assert_success().stdout_text().trim(), "202");
}

#[test]
fn what_is_written_behind_the_fence_after_that_is_reported() {
    let migration = replicated(15, 18);
    let set = sql_hook(&migration, "switch_to_target", &migration.replica, INSERT);
    migration.wal_eve().run(["cutover", "finish", "--set", &set]).assert_success();
    let said = migration.cutover("report").assert_success().stdout_text().to_owned();
    assert!(said.contains("transactions got a number on the replica after"), "{said}");
    assert!(said.contains("writes behind the fence that the target lacks"), "{said}");
}

#[test]
fn a_table_that_only_the_target_has_is_none_of_the_way_back() {
    let migration = replicated(15, 18);
    let target = migration.target();
    target.psql_as("app", "create table only_here (id int primary key)").assert_success();
    migration.cutover("finish --reverse").assert_success();
    assert_eq!(address(&migration), target.socket_dir().to_str().unwrap());
    // it may have been made since: going back must not lose its rows without a word
    let said = migration.cutover("finish --back").assert_code(1).stderr_text().to_owned();
    assert!(said.contains("public.only_here") && said.contains("replication.tables"), "{said}");
    target.psql_as("app", INSERT).assert_success();
    migration.cutover("finish --back --set replication.tables=[\"public.t\"]").assert_success();
    assert_eq!(migration.replica.psql_as("app", "select count(*) from t").stdout_text().trim(), "201");
}

/// A move with a way back that is refused before anybody waits, with the reason and what to do.
fn assert_no_way_back(migration: &Migration, arguments: &[&str], expected: [&str; 2]) {
    let arguments = ["cutover", "finish", "--reverse"].iter().chain(arguments);
    let said = migration.wal_eve().run(arguments).assert_code(1).stderr_text().to_owned();
    for expected in expected.into_iter().chain(["finish without --reverse"]) {
        assert!(said.contains(expected), "{expected} is not in\n{said}");
    }
    assert_undone(migration);
    assert_eq!(migration.hooks(), Vec::<String>::new());
    let left = "select (select count(*) from pg_publication) + (select count(*) from pg_replication_slots)";
    assert_eq!(migration.target().psql_as("app", left).stdout_text().trim(), "0");
    assert_eq!(migration.replica.psql("select count(*) from pg_subscription"), "0");
}

#[test]
fn a_way_back_that_cannot_be_made_is_refused_before_anybody_waits() {
    let migration = replicated(15, 18);
    let target = migration.target();
    let nowhere =
        format!("reverse.publisher_for_replica=host={} dbname=app user=app", migration.place.path().display());
    assert_no_way_back(&migration, &["--set", &nowhere], ["could not connect", "pg_hba.conf"]);
    std::thread::scope(|scope| {
        scope.spawn(|| target.try_psql("begin; select txid_current(); select pg_sleep(100)"));
        let is_held =
            "select count(*) > 0 from pg_stat_activity where query like '%pg_sleep%' and pid <> pg_backend_pid()";
        target.wait_until_sql(is_held, LIMIT);
        assert_no_way_back(&migration, &["--set", "finish.budget=2s"], ["statement timeout", "pg_stat_activity"]);
        target.psql("select pg_terminate_backend(pid) from pg_stat_activity where query like '%pg_sleep%' and pid <> pg_backend_pid()");
    });
    // rows can be applied as the owner, but the table cannot be published
    on_target(
        &migration,
        "create role other; grant other to app with inherit false, set true; alter table t owner to other; \
         grant select on t to app; grant all on sequence t_id_seq to app",
    );
    assert_no_way_back(&migration, &[], ["must be owner of table t", "nothing was changed"]);
    migration.cutover("finish").assert_success();
}

#[test]
fn all_steps_in_one_walk_stop_for_a_persons_word() {
    let migration = MigrationOptions::from(15).to(18).schema(SCHEMA).make();
    // nobody is there to give it
    let said = migration.cutover("run").assert_code(1).stderr_text().to_owned();
    assert!(said.contains("not confirmed") && said.contains("--yes"), "{said}");
    assert_eq!((migration.hooks(), migration.is_writable(&migration.source)), (Vec::new(), true));
    let shown = migration.cutover("run --dry-run").assert_success().stdout_text().to_owned();
    assert!(shown.contains("pg_promote") && shown.contains("then: replicate and finish"), "{shown}");
    let application = migration.application(&[INSERT]);
    let walked = migration.cutover("run --yes").assert_success().stdout_text().to_owned();
    std::thread::sleep(Duration::from_millis(300));
    let work = application.stop_and_tell();
    for expected in ["Nothing stands in the way", "The replica is the primary", "The application uses the target"] {
        assert!(walked.contains(expected), "{expected} is not in\n{walked}");
    }
    assert_eq!((lost(migration.target(), &work.committed), work.collisions), (Vec::new(), Vec::new()));
    // once more does nothing
    let before = (migration.journal(), migration.hooks());
    migration.cutover("run --yes").assert_success();
    assert_eq!((migration.journal(), migration.hooks()), before);
}
