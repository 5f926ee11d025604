//! What a cutover is to do: the servers, the names, the limits and the user's own commands.

use std::fmt::Display;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::error::{CutoverError, Result};
use super::quantity::{Bytes, Time};
use crate::pg::conninfo::{Conninfo, Password};

/// An annotated plan to begin with.
pub const SAMPLE: &str = include_str!("plan_sample.toml");

/// The whole plan. Sections that a step needs and that are not there are refused by that step.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The server that is left.
    pub source: Option<Conninfo>,
    /// The log-shipped replica; after promotion the publisher.
    pub replica: Option<Conninfo>,
    /// The application's role on the replica.
    pub application: Option<Conninfo>,
    /// The new home.
    pub target: Option<Conninfo>,
    /// How the pieces of logical replication are called, and how the target reaches the publisher.
    pub replication: Replication,
    /// Whether and how the schema is copied.
    pub schema: SchemaPlan,
    /// The user's own commands.
    pub hooks: Hooks,
    /// Limits of the first move.
    pub promote: PromotePlan,
    /// Limits of the second move.
    pub finish: FinishPlan,
    /// How the replica reaches the target, for the way back.
    pub reverse: Option<Conninfo>,
    /// The command that promotes a replica which has no `pg_promote()`.
    pub promote_command: Option<String>,
}

/// `[replication]`
#[derive(Debug, Clone)]
pub struct Replication {
    /// The publisher as the target sees it, with the replication role and its password.
    pub publisher_for_target: Option<Conninfo>,
    /// The role that the target logs in as.
    pub role: String,
    /// The publication's name.
    pub publication: String,
    /// The subscription's name.
    pub subscription: String,
    /// The slot's name.
    pub slot: String,
    /// None for all tables.
    pub tables: Option<Vec<String>>,
    /// What to do with tables that cannot be updated once published.
    pub missing_identity: MissingIdentity,
    /// When to warn of WAL that piles up.
    pub retained_wal_limit: u64,
}

/// What to do with a table that has no usable replica identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MissingIdentity {
    /// Stop: its updates and deletes would fail.
    Refuse,
    /// Identify rows by all columns until the cutover is over.
    Full,
    /// Go on: the user says that it is only inserted into.
    InsertOnly,
}

/// `[schema]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SchemaPlan {
    /// Whether to copy it.
    pub copy: bool,
    /// The program.
    pub pg_dump: String,
    /// The program.
    pub pg_restore: String,
    /// Whether what is copied keeps its owners; else it is the target's user's.
    pub keep_owners: bool,
    /// Whether what is copied keeps its grants.
    pub keep_privileges: bool,
}

impl Default for SchemaPlan {
    fn default() -> Self {
        Self {
            copy: false,
            pg_dump: "pg_dump".into(),
            pg_restore: "pg_restore".into(),
            keep_owners: false,
            keep_privileges: false,
        }
    }
}

/// `[hooks]`
#[derive(Debug, Clone, Default)]
pub struct Hooks {
    /// Keeps the application's users out.
    pub maintenance_on: Option<String>,
    /// Points the application at the replica.
    pub switch_to_replica: Option<String>,
    /// Points the application at the target.
    pub switch_to_target: Option<String>,
    /// Lets the application's users in.
    pub maintenance_off: Option<String>,
    /// How long each may take.
    pub timeout: Duration,
}

/// `[promote]`
#[derive(Debug, Clone)]
pub struct PromotePlan {
    /// Whether the source is made read-only first.
    pub fence: bool,
    /// From maintenance on until the replica has the last write.
    pub budget: Duration,
}

/// `[finish]`
#[derive(Debug, Clone)]
pub struct FinishPlan {
    /// How many bytes the target may be behind before maintenance is switched on.
    pub lag_limit: u64,
    /// For how long it must have kept to that.
    pub lag_stretch: Duration,
    /// From maintenance on until the target has the last write.
    pub budget: Duration,
    /// How much of the downtime the comparison may take.
    pub compare_budget: Duration,
    /// By how many steps sequences are set ahead.
    pub sequence_margin: u64,
    /// Whether the publisher stays read-only at the end.
    pub leave_publisher_read_only: bool,
}

impl Plan {
    /// Reads a plan. `replacements` are `KEY=VALUE` with a dotted key, and go before what the text says; a value that is no
    /// TOML counts as text. `variable` looks up an environment variable; password files are read here.
    ///
    /// # Errors
    ///
    /// What is unknown, missing or makes no sense, by its name.
    pub fn read(text: &str, replacements: &[String], variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let mut table: Table =
            text.parse().map_err(|e: toml::de::Error| CutoverError::plan("it is no TOML").with_source(e))?;
        for replacement in replacements {
            replace(&mut table, replacement)?;
        }
        let mut section = |name: &str| match table.remove(name) {
            None => Ok(None),
            Some(Value::Table(section)) => Ok(Some(section)),
            Some(_) => Err(CutoverError::plan(format!("{name} should be a section"))),
        };
        let server = |name: &str, found: Option<Table>| {
            found.map(|found| decoded::<ServerText>(name, found)?.conninfo(name, &variable)).transpose()
        };
        // once it is left behind, nobody needs to keep its address for the later steps
        let source_section = section("source")?.filter(|section| match section.get("connection_env") {
            Some(Value::String(name)) if variable(name).is_none() => {
                tracing::warn!("{name} is not set: going on without a source");
                false
            }
            _ => true,
        });
        let source = server("source", source_section)?;
        let mut replica_section = section("replica")?;
        let promote_command = replica_section.as_mut().and_then(|section| section.remove("promote_command"));
        let promote_command = match promote_command {
            None => None,
            Some(Value::String(command)) => Some(command),
            Some(_) => return Err(CutoverError::plan("replica.promote_command should be a text")),
        };
        let replica = server("replica", replica_section)?;
        let target = server("target", section("target")?)?;
        let application = section("application")?.map(|found| decoded::<ApplicationText>("application", found));
        let application = match (application.transpose()?, &replica) {
            (Some(application), Some(replica)) => Some(application.conninfo(replica, &variable)?),
            _ => None,
        };
        let replication: ReplicationText = decoded("replication", section("replication")?.unwrap_or_default())?;
        let reverse = section("reverse")?.map(|found| decoded::<ReverseText>("reverse", found)).transpose()?;
        let plan = Self {
            source,
            replica,
            application,
            target,
            replication: replication.resolve(&variable)?,
            schema: decoded("schema", section("schema")?.unwrap_or_default())?,
            hooks: decoded::<HooksText>("hooks", section("hooks")?.unwrap_or_default())?.into(),
            promote: decoded::<PromoteText>("promote", section("promote")?.unwrap_or_default())?.into(),
            finish: decoded::<FinishText>("finish", section("finish")?.unwrap_or_default())?.into(),
            reverse: reverse.map(|reverse| reverse.conninfo(&variable)).transpose()?,
            promote_command,
        };
        match table.keys().next() {
            Some(unknown) => Err(CutoverError::plan(format!("there is no section \"{unknown}\""))),
            None => Ok(plan),
        }
    }

    /// The replica, which every step needs.
    ///
    /// # Errors
    ///
    /// When the plan has none.
    pub fn replica(&self) -> Result<&Conninfo> {
        self.replica.as_ref().ok_or_else(|| lacks("[replica]"))
    }

    /// The target.
    ///
    /// # Errors
    ///
    /// When the plan has none.
    pub fn target(&self) -> Result<&Conninfo> {
        self.target.as_ref().ok_or_else(|| lacks("[target]"))
    }

    /// Every password of the plan, for whoever has to keep them out of a text.
    pub fn secrets(&self) -> Vec<&str> {
        let servers = [
            &self.source,
            &self.replica,
            &self.application,
            &self.target,
            &self.replication.publisher_for_target,
            &self.reverse,
        ];
        servers.into_iter().flatten().filter_map(Conninfo::password).map(Password::reveal).collect()
    }

    /// What tells this plan from another one's: the servers and the names, without passwords. The source is not among them:
    /// it is left behind, and its address with it.
    pub fn identity(&self) -> String {
        let place = |conninfo: &Option<Conninfo>| conninfo.as_ref().map_or_else(|| "-".to_owned(), Conninfo::to_string);
        let replication = &self.replication;
        format!(
            "{} > {} as {}/{}/{}",
            place(&self.replica),
            place(&self.target),
            replication.publication,
            replication.subscription,
            replication.slot
        )
    }
}

pub(super) fn lacks(what: &str) -> CutoverError {
    CutoverError::plan(format!("it lacks {what}"))
        .with_hint("Write it into the plan, or give it with --set; \"wal-eve cutover init\" prints an annotated one.")
}

fn replace(table: &mut Table, replacement: &str) -> Result<()> {
    let malformed = || {
        CutoverError::plan(format!("\"{}\" is not KEY=VALUE", replacement.split('=').next().unwrap_or_default()))
            .with_hint("The key names a section and a line of it, such as promote.budget=\"5 min\".")
    };
    let (key, value) = replacement.split_once('=').ok_or_else(malformed)?;
    let (section, line) = key.trim().split_once('.').ok_or_else(malformed)?;
    let value = match format!("value = {value}").parse::<Table>() {
        Ok(mut parsed) => parsed.remove("value").ok_or_else(malformed)?,
        Err(_) => Value::String(value.to_owned()),
    };
    let section = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
    section.as_table_mut().ok_or_else(malformed)?.insert(line.to_owned(), value);
    Ok(())
}

fn decoded<T: DeserializeOwned>(section: &str, table: Table) -> Result<T> {
    table.try_into().map_err(|e: toml::de::Error| CutoverError::plan(format!("[{section}]: {}", e.message())))
}

/// A password from where the plan says it is.
fn password(
    section: &str,
    env: Option<&str>,
    file: Option<&str>,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Option<Password>> {
    match (env, file) {
        (Some(_), Some(_)) => Err(CutoverError::plan(format!("[{section}] has both password_env and password_file"))),
        (Some(name), None) => {
            let value = variable(name).ok_or_else(|| unset(section, name))?;
            Ok(Some(value.into()))
        }
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path).map_err(|e| {
                CutoverError::plan(format!("could not read the password file \"{path}\"")).with_source(e)
            })?;
            Ok(Some(text.lines().next().unwrap_or_default().to_owned().into()))
        }
        (None, None) => Ok(None),
    }
}

fn unset(section: &str, name: impl Display) -> CutoverError {
    CutoverError::plan(format!("[{section}] names the variable {name}, which is not set"))
}

fn refuse_password(section: &str, conninfo: &Conninfo) -> Result<()> {
    if conninfo.password().is_none() {
        return Ok(());
    }
    Err(CutoverError::plan(format!("[{section}] has a password in its connection string")).with_hint(
        "Keep it out of the plan: set password_env or password_file, or connection_env with the whole string, or write ~/.pgpass.",
    ))
}

fn conninfo(section: &str, text: &str) -> Result<Conninfo> {
    Conninfo::parse(text).map_err(|e| CutoverError::plan(format!("[{section}]: {e}")))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServerText {
    connection: Option<String>,
    connection_env: Option<String>,
    password_env: Option<String>,
    password_file: Option<String>,
}

impl ServerText {
    fn conninfo(self, section: &str, variable: &impl Fn(&str) -> Option<String>) -> Result<Conninfo> {
        let found = match (self.connection, self.connection_env) {
            (Some(text), None) => {
                let found = conninfo(section, &text)?;
                refuse_password(section, &found)?;
                found
            }
            (None, Some(name)) => conninfo(section, &variable(&name).ok_or_else(|| unset(section, name))?)?,
            _ => return Err(CutoverError::plan(format!("[{section}] should have connection or connection_env"))),
        };
        found.require_address().map_err(|e| CutoverError::plan(format!("[{section}]: {e}")))?;
        let password = password(section, self.password_env.as_deref(), self.password_file.as_deref(), variable)?;
        Ok(found.with_password(password))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ApplicationText {
    user: String,
    password_env: Option<String>,
    password_file: Option<String>,
}

impl ApplicationText {
    fn conninfo(self, replica: &Conninfo, variable: &impl Fn(&str) -> Option<String>) -> Result<Conninfo> {
        let password = password("application", self.password_env.as_deref(), self.password_file.as_deref(), variable)?;
        Ok(replica.clone().without_password().with("user", &self.user).with_password(password))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReplicationText {
    publisher_for_target: Option<String>,
    password_env: Option<String>,
    password_file: Option<String>,
    role: Option<String>,
    publication: Option<String>,
    subscription: Option<String>,
    slot: Option<String>,
    tables: Option<Vec<String>>,
    missing_identity: Option<MissingIdentity>,
    retained_wal_limit: Option<Bytes>,
}

impl ReplicationText {
    fn resolve(self, variable: &impl Fn(&str) -> Option<String>) -> Result<Replication> {
        const SECTION: &str = "replication";
        let role = self.role.unwrap_or_else(|| "wal_eve_replication".into());
        let password = password(SECTION, self.password_env.as_deref(), self.password_file.as_deref(), variable)?;
        let publisher_for_target = match self.publisher_for_target {
            None => None,
            Some(text) => {
                let found = conninfo(SECTION, &text)?;
                refuse_password(SECTION, &found)?;
                let found = found.with("user", &role).with_password(password);
                found.require_address().map_err(|e| CutoverError::plan(format!("[{SECTION}]: {e}")))?;
                Some(found)
            }
        };
        let name = |given: Option<String>| given.unwrap_or_else(|| "wal_eve_cutover".into());
        let slot = name(self.slot);
        let is_slot_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if slot.is_empty() || slot.len() > 63 || !slot.chars().all(is_slot_name) {
            return Err(CutoverError::plan(format!("\"{slot}\" cannot be a slot's name"))
                .with_hint("It has up to 63 lower-case letters, digits and underscores."));
        }
        Ok(Replication {
            publisher_for_target,
            role,
            publication: name(self.publication),
            subscription: name(self.subscription),
            slot,
            tables: self.tables,
            missing_identity: self.missing_identity.unwrap_or(MissingIdentity::Refuse),
            retained_wal_limit: self.retained_wal_limit.map_or(50 << 30, |bytes| bytes.0),
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReverseText {
    publisher_for_replica: String,
    password_env: Option<String>,
    password_file: Option<String>,
}

impl ReverseText {
    fn conninfo(self, variable: &impl Fn(&str) -> Option<String>) -> Result<Conninfo> {
        let found = conninfo("reverse", &self.publisher_for_replica)?;
        refuse_password("reverse", &found)?;
        found.require_address().map_err(|e| CutoverError::plan(format!("[reverse]: {e}")))?;
        let password = password("reverse", self.password_env.as_deref(), self.password_file.as_deref(), variable)?;
        Ok(found.with_password(password))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HooksText {
    maintenance_on: Option<String>,
    switch_to_replica: Option<String>,
    switch_to_target: Option<String>,
    maintenance_off: Option<String>,
    timeout: Option<Time>,
}

impl From<HooksText> for Hooks {
    fn from(text: HooksText) -> Self {
        Self {
            maintenance_on: text.maintenance_on,
            switch_to_replica: text.switch_to_replica,
            switch_to_target: text.switch_to_target,
            maintenance_off: text.maintenance_off,
            timeout: text.timeout.map_or(Duration::from_secs(120), |time| time.0),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PromoteText {
    fence: Option<bool>,
    budget: Option<Time>,
}

impl From<PromoteText> for PromotePlan {
    fn from(text: PromoteText) -> Self {
        Self { fence: text.fence.unwrap_or(true), budget: text.budget.map_or(Duration::from_secs(180), |time| time.0) }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FinishText {
    lag_limit: Option<Bytes>,
    lag_stretch: Option<Time>,
    budget: Option<Time>,
    compare_budget: Option<Time>,
    sequence_margin: Option<u64>,
    leave_publisher_read_only: Option<bool>,
}

impl From<FinishText> for FinishPlan {
    fn from(text: FinishText) -> Self {
        let seconds = |given: Option<Time>, default| given.map_or(Duration::from_secs(default), |time| time.0);
        Self {
            lag_limit: text.lag_limit.map_or(1 << 20, |bytes| bytes.0),
            lag_stretch: seconds(text.lag_stretch, 10),
            budget: seconds(text.budget, 180),
            compare_budget: seconds(text.compare_budget, 20),
            sequence_margin: text.sequence_margin.unwrap_or(0),
            leave_publisher_read_only: text.leave_publisher_read_only.unwrap_or(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, replacements: &[&str]) -> Result<Plan> {
        let replacements: Vec<_> = replacements.iter().map(|text| text.to_string()).collect();
        Plan::read(text, &replacements, |name| match name {
            "SOURCE_URL" => Some("postgres://app:s3cret@source/app".into()),
            "UNSET" => None,
            _ => Some("w0rd".into()),
        })
    }

    #[test]
    fn the_sample_is_a_plan_and_says_the_defaults() {
        let plan = read(SAMPLE, &[]).unwrap();
        assert_eq!(plan.source.as_ref().unwrap().password().unwrap().reveal(), "s3cret");
        assert_eq!(plan.application.as_ref().unwrap().to_string(), "app@/var/run/postgresql:5432/app");
        // Its commented lines are the defaults: a plan of them alone means the same.
        let uncommented: String = SAMPLE
            .lines()
            .map(|line| line.strip_prefix("# ").filter(|line| is_line(line)).unwrap_or(line).to_owned() + "\n")
            .filter(|line| {
                !["connection = \"host=source", "password_env = \"SOURCE", "tables"]
                    .iter()
                    .any(|known| line.starts_with(known))
            })
            .collect();
        let same = read(&uncommented, &[]).unwrap();
        assert_eq!(
            format!("{:?}", (same.replication, same.schema, same.hooks, same.promote, same.finish)),
            format!("{:?}", (plan.replication, plan.schema, plan.hooks, plan.promote, plan.finish))
        );
    }

    fn is_line(text: &str) -> bool {
        text.starts_with("[reverse]") || text.split_once(" = ").is_some_and(|(name, _)| !name.contains(' '))
    }

    #[test]
    fn a_replacement_goes_before_the_text() {
        let plan = read(
            SAMPLE,
            &["promote.budget=5 s", "finish.sequence_margin=9000", "target.connection=host=t dbname=d user=u"],
        );
        let plan = plan.unwrap();
        assert_eq!((plan.promote.budget, plan.finish.sequence_margin), (Duration::from_secs(5), 9000));
        assert_eq!(plan.target.unwrap().to_string(), "u@t:5432/d");
        assert!(read("", &["replica.connection='host=r dbname=d user=u'"]).unwrap().replica.is_some());
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (text, named) in [
            ("[sauce]", "sauce"),
            ("[source]\nconnection = 'host=h dbname=d user=u'\nport = 1", "port"),
            ("[source]\nconnection = 'host=h dbname=d user=u password=s3cret'", "password"),
            ("[source]\nconnection = 'dbname=d user=u'", "host"),
            ("[target]\nconnection_env = 'UNSET'", "UNSET"),
            ("[source]\nconnection = 'host=h dbname=d user=u'\npassword_file = '/nonexistent'", "/nonexistent"),
            ("[target]", "target"),
            ("[replication]\nslot = 'No-Slot'", "No-Slot"),
            ("[replication]\nmissing_identity = 'maybe'", "maybe"),
            ("[promote]\nbudget = '5'", "5"),
            ("[hooks]\nmaintenance = 'x'", "maintenance"),
            ("source = 1", "source"),
            ("[source", "TOML"),
        ] {
            let refused = read(text, &[]).unwrap_err().to_string();
            assert!(refused.contains(named), "{text}: {refused}");
            assert!(!refused.contains("s3cret"), "{refused}");
        }
        assert!(read("", &["promote.budget"]).is_err() && read("", &["budget=1"]).is_err());
    }
}
