//! The publisher's schema as pg_dump writes it, in two parts: what must be there before the rows are copied, and the rest.
//!
//! pg_dump puts primary keys after the data. Here they go with the tables: without them the apply worker cannot find the row of
//! the first UPDATE. Secondary indexes, foreign keys and triggers wait until the rows are there.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tempfile::TempDir;
use tokio::process::Command;

use crate::cutover::context::Cutover;
use crate::cutover::error::{CutoverError, Result};
use crate::cutover::node::Node;
use crate::cutover::tables::OWN_SCHEMA;
use crate::pg::conninfo::Conninfo;
use crate::pg::version::Major;

/// How long either program may take.
const TIMEOUT: Duration = Duration::from_secs(3600);

/// How long pg_dump waits for a table that somebody has locked, in milliseconds.
const LOCK_TIMEOUT_MILLISECONDS: u32 = 60_000;

/// How many of its last lines an error repeats.
const LINES_SHOWN: usize = 5;

/// Which part of a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Everything but what is in the rest: types, functions, tables, primary keys.
    Tables,
    /// Secondary indexes, foreign keys, triggers, rules, policies, statistics.
    Rest,
}

/// An object of the schema and the statements that make it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SchemaEntry {
    /// Its type and name, for a person: "FK CONSTRAINT public.orders orders_customer_fkey". No two of a part have the same.
    pub label: String,
    /// The statements, each with its semicolon.
    pub sql: String,
}

/// The statements of one part of a schema.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct SchemaScript {
    /// What the session has to be set to first.
    pub settings: String,
    /// The objects in the order in which they can be made.
    pub entries: Vec<SchemaEntry>,
}

/// An archive that pg_dump has written; its file goes away with the value.
#[derive(Debug)]
pub(super) struct SchemaDump {
    directory: TempDir,
    /// "schema name" of the indexes that tables are identified by.
    identity_indexes: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct IdentityIndex {
    label: String,
}

impl SchemaDump {
    /// Lets pg_dump write the schema of `publisher`, which `connection` leads to.
    ///
    /// # Errors
    ///
    /// When a program is missing, older than the publisher, or fails.
    pub(super) async fn take(cutover: &Cutover, publisher: &mut Node, connection: &Conninfo) -> Result<Self> {
        let pg_dump = &cutover.plan.schema.pg_dump;
        let found = major(cutover, pg_dump).await?;
        if found < publisher.major() {
            return Err(CutoverError::refused(format!(
                "\"{pg_dump}\" is of PostgreSQL {found}, and the {} of {}",
                publisher.place(),
                publisher.version()
            ))
            .with_hint(
                "Set schema.pg_dump and schema.pg_restore to programs of the same major version or a newer one.",
            ));
        }
        let identity_indexes: Vec<IdentityIndex> = publisher
            .rows(
                "select n.nspname || ' ' || c.relname as label from pg_index i join pg_class c on c.oid = i.indexrelid \
                 join pg_namespace n on n.oid = c.relnamespace where i.indisreplident",
            )
            .await?;
        let directory = tempfile::Builder::new()
            .prefix("wal-eve-schema-")
            .tempdir()
            .map_err(|e| CutoverError::failed("could not make a temporary directory").with_source(e))?;
        let dump =
            Self { directory, identity_indexes: identity_indexes.into_iter().map(|index| index.label).collect() };
        let mut arguments = dump_arguments(connection);
        arguments.push(format!("--file={}", dump.archive().display()));
        run(cutover, pg_dump, &arguments, Some(connection)).await?;
        Ok(dump)
    }

    /// The statements of one part.
    ///
    /// # Errors
    ///
    /// When pg_restore is missing or fails.
    pub(super) async fn script(&self, cutover: &Cutover, part: Part) -> Result<SchemaScript> {
        let archive = self.archive().display().to_string();
        let pg_restore = &cutover.plan.schema.pg_restore;
        let mut chosen = String::new();
        for section in ["pre-data", "post-data"] {
            let list =
                run(cutover, pg_restore, &[format!("--section={section}"), "--list".into(), archive.clone()], None)
                    .await?;
            for line in list.lines() {
                if part_of(line, section == "post-data", &self.identity_indexes) == Some(part) {
                    chosen.push_str(line);
                    chosen.push('\n');
                }
            }
        }
        if chosen.is_empty() {
            return Ok(SchemaScript::default());
        }
        let list = self.directory.path().join("list");
        std::fs::write(&list, chosen).map_err(|e| CutoverError::file("write", &list, e))?;
        let mut arguments =
            vec![format!("--use-list={}", list.display()), "--file=-".into(), "--no-tablespaces".into()];
        if !cutover.plan.schema.keep_owners {
            arguments.push("--no-owner".into());
        }
        if !cutover.plan.schema.keep_privileges {
            arguments.push("--no-privileges".into());
        }
        arguments.push(archive);
        Ok(split(&run(cutover, pg_restore, &arguments, None).await?))
    }

    fn archive(&self) -> PathBuf {
        self.directory.path().join("schema")
    }
}

/// pg_dump's arguments; the password is none of them.
pub(super) fn dump_arguments(connection: &Conninfo) -> Vec<String> {
    vec![
        "--format=custom".into(),
        "--schema-only".into(),
        "--encoding=UTF8".into(),
        format!("--exclude-schema={OWN_SCHEMA}"),
        "--no-publications".into(),
        "--no-subscriptions".into(),
        format!("--lock-wait-timeout={LOCK_TIMEOUT_MILLISECONDS}"),
        format!("--dbname={}", connection.clone().without_password().masked()),
    ]
}

async fn major(cutover: &Cutover, program: &str) -> Result<Major> {
    let text = run(cutover, program, &["--version".to_owned()], None).await?;
    parse_major(&text).ok_or_else(|| {
        CutoverError::refused(format!("\"{program}\" does not tell its version"))
            .with_detail(format!("It said: {}.", text.trim()))
    })
}

/// `pg_dump (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)`
fn parse_major(text: &str) -> Option<Major> {
    let (_, version) = text.split_once("(PostgreSQL) ")?;
    let digits = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    version[..digits].parse().ok().map(Major::new)
}

/// Runs a program to its end; what it wrote to its standard output. A signal ends it.
async fn run(cutover: &Cutover, program: &str, arguments: &[String], connection: Option<&Conninfo>) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    if let Some(password) = connection.and_then(Conninfo::password) {
        command.env("PGPASSWORD", password.reveal());
    }
    let output = tokio::select! {
        output = command.output() => output.map_err(|e| {
            CutoverError::refused(format!("could not run \"{program}\""))
                .with_source(e)
                .with_hint("Set schema.pg_dump and schema.pg_restore in the plan to where PostgreSQL's client programs are.")
        })?,
        waited = cutover.pause(TIMEOUT) => {
            waited?;
            return Err(CutoverError::failed(format!("\"{program}\" did not end within an hour")));
        }
    };
    if output.status.success() {
        return String::from_utf8(output.stdout)
            .map_err(|e| CutoverError::failed(format!("what \"{program}\" wrote is not UTF-8")).with_source(e));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<_> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    Err(CutoverError::refused(format!("\"{program}\" failed with {}", output.status))
        .with_detail(format!("It said: {}.", lines[lines.len().saturating_sub(LINES_SHOWN)..].join(" | "))))
}

/// To which part a line of an archive's table of contents belongs; none also for what is not to be copied.
fn part_of(line: &str, is_post_data: bool, identity_indexes: &[String]) -> Option<Part> {
    // "3378; 2606 16393 CONSTRAINT public orders orders_pkey postgres"
    let (number, rest) = line.split_once("; ")?;
    number.parse::<u32>().ok()?;
    let entry = rest.splitn(3, ' ').nth(2)?;
    let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| entry.starts_with(prefix));
    if begins(&[
        "COMMENT - EXTENSION ",
        "SCHEMA - public ",
        "COMMENT - SCHEMA public ",
        "ACL - SCHEMA public ",
        "PUBLICATION",
        "SUBSCRIPTION",
    ]) {
        return None;
    }
    let identifies =
        |index: &String| entry.strip_prefix("INDEX ").is_some_and(|rest| rest.starts_with(&format!("{index} ")));
    if !is_post_data || begins(&["CONSTRAINT "]) || identity_indexes.iter().any(identifies) {
        Some(Part::Tables)
    } else {
        Some(Part::Rest)
    }
}

/// Takes pg_restore's script apart at the comments above each object.
fn split(script: &str) -> SchemaScript {
    let mut parts = SchemaScript::default();
    let mut seen: HashMap<String, u32> = HashMap::new();
    let mut restriction = None;
    let lines: Vec<&str> = script.split_inclusive('\n').collect();
    for (at, line) in lines.iter().enumerate() {
        // newer versions wrap the script in commands of psql's
        if restriction.is_none() && parts.entries.is_empty() {
            restriction = line.strip_prefix("\\restrict ").map(str::trim_end);
        }
        let meta = line.strip_prefix("\\restrict ").or_else(|| line.strip_prefix("\\unrestrict "));
        if meta.is_some_and(|token| Some(token.trim_end()) == restriction) {
            continue;
        }
        let is_comment = |at: usize| lines.get(at).is_some_and(|line| line.trim_end() == "--");
        let title = (at > 0 && is_comment(at - 1) && is_comment(at + 1)).then(|| title(line)).flatten();
        if let Some(mut label) = title {
            let times = seen.entry(label.clone()).or_default();
            *times += 1;
            if *times > 1 {
                label = format!("{label} #{times}");
            }
            parts.entries.push(SchemaEntry { label, sql: String::new() });
        }
        match parts.entries.last_mut() {
            Some(entry) => entry.sql.push_str(line),
            // our session keeps its own limits
            None if line.contains("_timeout = ") || line.starts_with("SET client_min_messages") => {}
            None => parts.settings.push_str(line),
        }
    }
    parts
}

/// `-- Name: orders; Type: TABLE; Schema: public; Owner: -`
fn title(line: &str) -> Option<String> {
    let (name, rest) = line.strip_prefix("-- Name: ")?.split_once("; Type: ")?;
    let (kind, rest) = rest.split_once("; Schema: ")?;
    let (schema, _) = rest.split_once("; Owner: ")?;
    Some(match schema {
        "-" => format!("{kind} {name}"),
        _ => format!("{kind} {schema}.{name}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn primary_keys_go_with_the_tables_and_the_rest_waits() {
        let identity = ["public t_unique".to_owned()];
        let part = |entry: &str, post| part_of(&format!("3378; 2606 16393 {entry} owner"), post, &identity);
        for first in
            ["TABLE public t", "EXTENSION - hstore", "COMMENT public TABLE t", "SCHEMA - app", "ACL public TABLE t"]
        {
            assert_eq!(part(first, false), Some(Part::Tables), "{first}");
        }
        for first in ["CONSTRAINT public t t_pkey", "INDEX public t_unique"] {
            assert_eq!(part(first, true), Some(Part::Tables), "{first}");
        }
        let rest = [
            "INDEX public t_unique2",
            "INDEX ATTACH public p_pkey",
            "FK CONSTRAINT public t t_fkey",
            "TRIGGER public t tr",
            "RULE public t r",
            "POLICY public t p",
            "ROW SECURITY public t",
            "STATISTICS public s",
            "EVENT TRIGGER - e",
            "CHECK CONSTRAINT public t c",
            "COMMENT public INDEX t_unique",
        ];
        for rest in rest {
            assert_eq!(part(rest, true), Some(Part::Rest), "{rest}");
        }
        let left_out = [
            "COMMENT - EXTENSION hstore",
            "SCHEMA - public",
            "COMMENT - SCHEMA public",
            "ACL - SCHEMA public",
            "PUBLICATION - p",
        ];
        for none in left_out {
            assert_eq!(part(none, false), None, "{none}");
        }
        for none in ["", ";", "; Archive created at 2026-11-23 01:38:08", ";     dbname: app"] {
            assert_eq!(part_of(none, false, &identity), None, "{none}");
        }
    }

    #[test]
    fn a_script_comes_apart_object_by_object() {
        let script = "--\n-- PostgreSQL database dump\n--\n\n\\restrict x1\n\nSET statement_timeout = 0;\nSET client_encoding = 'UTF8';\n\n\
            --\n-- Name: f(); Type: FUNCTION; Schema: app; Owner: -\n--\n\ncreate function app.f() as $$\n\\restrict x2\n--\n$$;\n\n\
            --\n-- Name: e; Type: EXTENSION; Schema: -; Owner: -\n--\n\ncreate extension e;\n\n\
            --\n-- Name: e; Type: EXTENSION; Schema: -; Owner: -\n--\n\nselect 2;\n\n\
            --\n-- PostgreSQL database dump complete\n--\n\n\\unrestrict x1\n\n";
        let parts = split(script);
        assert!(parts.settings.contains("UTF8") && !parts.settings.contains("timeout"), "{}", parts.settings);
        let labels: Vec<_> = parts.entries.iter().map(|entry| entry.label.as_str()).collect();
        assert_eq!(labels, ["FUNCTION app.f()", "EXTENSION e", "EXTENSION e #2"]);
        assert!(parts.entries[0].sql.contains("$$\n\\restrict x2\n--\n$$;"), "{}", parts.entries[0].sql);
        assert!(!format!("{parts:?}").contains("restrict x1"));
    }

    #[test]
    fn a_program_tells_its_major() {
        assert_eq!(parse_major("pg_dump (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n"), Some(Major::new(15)));
        assert_eq!(parse_major("pg_dump (PostgreSQL) 18beta1\n"), Some(Major::new(18)));
        assert_eq!(parse_major("usage: pg_dump"), None);
    }
}
