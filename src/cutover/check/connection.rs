//! Whether the target will reach the publisher, and whether the names of the replication are free.

use serde::Deserialize;

use super::finding::Finding;
use super::room::is_this_host;
use super::settings::{Settings, mended};
use crate::cutover::error::Result;
use crate::cutover::journal::{Journal, Mark};
use crate::cutover::node::{Node, Place};
use crate::cutover::plan::Plan;
use crate::cutover::replication::link::Link;
use crate::pg::conninfo::Conninfo;
use crate::pg::quote::{identifier, literal};
use crate::pg::version::Major;

/// How long the target may take to reach the publisher, in seconds.
const CONNECT_SECONDS: &str = "5";

/// What the target would need to know of the publisher, as the plan has it.
pub(super) fn planned(plan: &Plan) -> Option<Finding> {
    plan.replication.publisher_for_target.is_none().then(|| {
        Finding::error_if(plan.target.is_some(), "the plan does not say how the target reaches the publisher")
            .because("The subscription needs an address that holds for the target's network, which may be another than yours.")
            .mend("replication.publisher_for_target = \"host=replica.example port=5432 dbname=app sslmode=require\"")
    })
}

#[derive(Deserialize)]
struct Rule {
    line: i64,
    error: Option<String>,
    fits: bool,
}

/// Whether the replica lets the replication role in from elsewhere: its addresses, TLS and pg_hba.conf.
pub(super) async fn publisher(replica: &mut Node, conninfo: &Conninfo, role: &str) -> Result<Vec<Finding>> {
    let host = conninfo.get("hostaddr").or(conninfo.get("host")).unwrap_or_default();
    let is_socket = host.starts_with('/');
    let settings = Settings::of(replica).await?;
    let mut found = Vec::new();
    let addresses = settings.text("listen_addresses").unwrap_or_default().to_owned();
    let hears_all = addresses.split(',').any(|address| !is_this_host(address.trim()) && !address.trim().is_empty());
    if !is_socket && !hears_all && (addresses.is_empty() || !is_this_host(host)) {
        let finding =
            Finding::error(format!("listen_addresses is \"{addresses}\", and the target is to come to \"{host}\""))
                .because("It hears nobody from another host.");
        found.push(mended(finding, &settings, "listen_addresses", "*"));
    }
    let wants_tls = conninfo.get("sslmode").is_some_and(|mode| matches!(mode, "require" | "verify-ca" | "verify-full"));
    if !is_socket && wants_tls && !settings.is_on("ssl") {
        found.push(
            Finding::error("ssl is off, and replication.publisher_for_target asks for it")
                .because("The subscription could not connect.")
                .mend("Put server.crt and server.key into the data directory; alter system set ssl = on; select pg_reload_conf();"),
        );
    }
    let rules: Vec<Rule> = replica
        .rows(&format!(
            "select line_number as line, error, type like 'host%' and ('all' = any (database) or {} = any (database)) \
                and ('all' = any (user_name) or {} = any (user_name)) and auth_method <> 'reject' as fits \
             from pg_hba_file_rules",
            literal(conninfo.database()),
            literal(role)
        ))
        .await?;
    if let Some(broken) = rules.iter().find_map(|rule| rule.error.as_ref().map(|error| (rule.line, error))) {
        found.push(
            Finding::warning(format!("pg_hba.conf has an error in line {}: {}", broken.0, broken.1))
                .because("The server goes on with what it read before, and would not start with it."),
        );
    }
    if !is_socket && !rules.iter().any(|rule| rule.fits) {
        found.push(
            Finding::warning(format!("pg_hba.conf lets \"{role}\" in from nowhere"))
                .because("The target logs in as this role, to the database itself: a rule for \"replication\" does not count.")
                .mend(format!("hostssl {} {role} ADDRESS_OF_THE_TARGET/32 scram-sha-256", conninfo.database())),
        );
    }
    Ok(found.into_iter().map(|finding| finding.at(Place::Replica)).collect())
}

/// Lets the target connect to the publisher, where it has dblink. It logs in with a wrong password, so that none shows up in
/// the target's log: the publisher's refusal is proof enough that it was reached.
pub(super) async fn target(node: &mut Node, conninfo: &Conninfo) -> Result<Vec<Finding>> {
    let schema: Option<String> = node
        .value(
            "select quote_ident(n.nspname) from pg_extension e join pg_namespace n on n.oid = e.extnamespace \
             where e.extname = 'dblink' and has_schema_privilege(n.oid, 'usage')",
        )
        .await?;
    let Some(schema) = schema else {
        return Ok(vec![
            Finding::note(format!("whether it reaches the publisher at {conninfo} cannot be tried without dblink"))
                .at(Place::Target)
                .because("CREATE SUBSCRIPTION will be the test, in replicate.")
                .mend("create extension dblink; where the target allows it, and check again."),
        ]);
    };
    let trial =
        conninfo.clone().without_password().with("connect_timeout", CONNECT_SECONDS).with("password", "a wrong one");
    let question =
        format!("select one from {schema}.dblink({}, 'select 1') as answer (one int)", literal(&trial.revealed()));
    let answer: Result<i64> = node.value(&question).await;
    let said = match answer {
        Ok(_) => return Ok(vec![reached(conninfo)]),
        Err(failed) => failed,
    };
    let text = [crate::formats::error_line::joined(&said), said.detail().unwrap_or_default().to_owned()].join(" ");
    Ok(vec![if is_answer(&text) {
        reached(conninfo)
    } else {
        Finding::error(format!("it cannot reach the publisher at {conninfo}"))
            .at(Place::Target)
            .because(format!("It said: {}.", text.trim()))
            .mend("Correct replication.publisher_for_target, or the networks and firewalls between the two.")
    }])
}

fn reached(conninfo: &Conninfo) -> Finding {
    Finding::note(format!("it reaches the publisher at {conninfo}")).at(Place::Target)
}

/// Whether a failed login got as far as a server's own answer, or as far as libpq's check after the login.
fn is_answer(text: &str) -> bool {
    ["FATAL:", "password is required", "password or GSSAPI delegated credentials required"]
        .iter()
        .any(|mark| text.contains(mark))
}

/// Whether the names of the plan stand for something already.
pub(super) async fn names(
    publisher: Option<&mut Node>,
    target: Option<&mut Node>,
    plan: &Plan,
    journal: &Journal,
) -> Result<Vec<Finding>> {
    let link = Link::new(plan, crate::cutover::replication::link::Direction::Forward);
    let mut found = Vec::new();
    let taken = |what: &str, name: &str, statement: String| {
        Finding::warning(format!("there is a {what} \"{name}\" already, and it is not this cutover's"))
            .because("replicate goes on with one that is of its kind, and refuses any other.")
            .mend(format!("{statement}; or give another name in [replication]."))
    };
    if let Some(node) = publisher {
        let (publication, slot) = (literal(&link.publication), literal(&link.slot));
        let here = |question: String| format!("select exists (select from {question})");
        if !journal.has(Mark::Publication)
            && node.value(&here(format!("pg_publication where pubname = {publication}"))).await?
        {
            let statement = format!("drop publication {}", identifier(&link.publication));
            found.push(taken("publication", &link.publication, statement).at(node.place()));
        }
        if !journal.has(Mark::Slot)
            && node.value(&here(format!("pg_replication_slots where slot_name = {slot}"))).await?
        {
            let statement = format!("select pg_drop_replication_slot({slot})");
            found.push(taken("slot", &link.slot, statement).at(node.place()));
        }
    }
    if let Some(node) = target
        && !journal.has(Mark::Subscription)
        && node.major() >= Major::new(10)
    {
        let question = format!(
            "select exists (select from pg_subscription s join pg_database d on d.oid = s.subdbid \
             where s.subname = {} and d.datname = current_database())",
            literal(&link.subscription)
        );
        if node.value(&question).await? {
            let statement = format!("drop subscription {}", identifier(&link.subscription));
            found.push(taken("subscription", &link.subscription, statement).at(node.place()));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_proves_that_somebody_is_there() {
        assert!(is_answer("could not establish connection FATAL:  password authentication failed for user \"r\""));
        assert!(is_answer(
            "password is required Non-superuser cannot connect if the server does not request a password."
        ));
        assert!(!is_answer("could not connect to server: Connection refused"));
        assert!(!is_answer("could not translate host name \"x\" to address"));
    }
}
