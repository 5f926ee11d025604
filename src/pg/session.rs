//! A session for statements that are whole texts: questions whose rows become values, and changes.
//!
//! Questions are wrapped so that the server answers in JSON, which is the same for every major and needs no knowledge of
//! PostgreSQL's types here. Nothing is prepared and no parameter is bound: what runs is what a dry run shows.

use std::time::Duration;

use serde::de::DeserializeOwned;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Executor as _, Row};

use super::connection_settings::ConnectionSettings;
use super::quote::literal;
use super::server::{connect, from_sqlx, no_answer};
use super::version::{Major, ServerVersion};
use super::{Kind, PgError, Result};

/// How long a question about the catalogue may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// What waits on this side beyond the server's own timeout, so that the server's clearer error comes first.
const TIMEOUT_SLACK: Duration = Duration::from_secs(5);

/// What stands for the secret in [`Session::execute_with_secret`].
pub const SECRET: &str = "<wal-eve's secret>";

/// Whether a session may change anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The server refuses every change.
    ReadOnly,
    /// Changes are possible, also where the database's default is read-only.
    ReadWrite,
    /// Whatever the server's configuration says for this user and database.
    AsConfigured,
}

/// One session with one server.
#[derive(Debug)]
pub struct Session {
    connection: PgConnection,
    address: String,
    version: ServerVersion,
    timeout: Duration,
}

impl Session {
    /// Connects, and sets the session up so that the server's configuration neither ends it nor changes what values look
    /// like: the same value has the same text on every major.
    ///
    /// # Errors
    ///
    /// [`Kind::Unreachable`] when no server answers in time, [`Kind::Server`] when it refuses the user.
    pub async fn connect(settings: &ConnectionSettings, access: Access) -> Result<Self> {
        let connection = connect(settings).await?;
        let mut session =
            Self { connection, address: settings.address(), version: ServerVersion::new(0), timeout: ANSWER_TIMEOUT };
        let number: String = session.value("select current_setting('server_version_num')").await?;
        session.version = ServerVersion::new(number.parse().map_err(|_| odd_answer())?);
        let mut settings = match access {
            Access::ReadOnly => vec!["default_transaction_read_only = on"],
            Access::ReadWrite => vec!["default_transaction_read_only = off"],
            Access::AsConfigured => Vec::new(),
        };
        settings.extend([
            "lock_timeout = '30s'",
            "idle_in_transaction_session_timeout = 0",
            "client_min_messages = warning",
            "search_path = pg_catalog",
            // an asynchronous commit could be lost after it was journalled as done
            "synchronous_commit = local",
            "extra_float_digits = 0",
            "datestyle = 'ISO, YMD'",
            "intervalstyle = postgres",
            "timezone = 'UTC'",
            "bytea_output = hex",
            "lc_monetary = 'C'",
            "standard_conforming_strings = on",
            // a statement of hours must not lose its way back to a gateway that forgets idle connections
            "tcp_keepalives_idle = 60",
            "tcp_keepalives_interval = 10",
            "tcp_keepalives_count = 6",
        ]);
        if session.major() >= Major::new(14) {
            settings.push("idle_session_timeout = 0");
        }
        if session.major() >= Major::new(17) {
            settings.push("transaction_timeout = 0");
        }
        let statements: String = settings.iter().map(|setting| format!("set {setting};")).collect();
        session.execute(&statements).await?;
        session.limit(ANSWER_TIMEOUT).await?;
        Ok(session)
    }

    /// The server's address for messages.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The server's version.
    pub fn version(&self) -> ServerVersion {
        self.version
    }

    /// The server's major version.
    pub fn major(&self) -> Major {
        self.version.major()
    }

    /// Gives the next statements so much time each.
    ///
    /// # Errors
    ///
    /// [`Kind::Lost`] when the connection breaks.
    pub async fn limit(&mut self, timeout: Duration) -> Result<()> {
        self.timeout = timeout;
        self.execute(&format!("set statement_timeout = {}", timeout.as_millis().clamp(1, i32::MAX as u128))).await
    }

    /// All rows of a question, each an object of its columns. A bigint comes whole; cast what JSON has no word for to text.
    ///
    /// # Errors
    ///
    /// [`Kind::Server`] when the server refuses, [`Kind::Lost`] when the connection breaks or the time is over.
    pub async fn rows<T: DeserializeOwned>(&mut self, question: &str) -> Result<Vec<T>> {
        let text = format!("select coalesce(json_agg(wal_eve_row), '[]')::text from ({question}) wal_eve_row");
        let answer = self.text(&text).await?.ok_or_else(odd_answer)?;
        serde_json::from_str(&answer)
            .map_err(|e| odd_answer().with_detail(format!("It was asked: {question}")).with_source(e))
    }

    /// The one row of a question; as [`Self::rows`].
    ///
    /// # Errors
    ///
    /// As [`Self::rows`], and [`Kind::Server`] when there is no row or there are several.
    pub async fn row<T: DeserializeOwned>(&mut self, question: &str) -> Result<T> {
        let mut rows = self.rows(question).await?;
        match (rows.pop(), rows.is_empty()) {
            (Some(row), true) => Ok(row),
            _ => Err(odd_answer().with_detail(format!("One row was asked for by: {question}"))),
        }
    }

    /// The one value of a question that answers one row of one column.
    ///
    /// # Errors
    ///
    /// As [`Self::row`].
    pub async fn value<T: DeserializeOwned>(&mut self, question: &str) -> Result<T> {
        let answer = self.text(&format!("select to_json(({question}))::text")).await?;
        serde_json::from_str(answer.as_deref().unwrap_or("null"))
            .map_err(|e| odd_answer().with_detail(format!("It was asked: {question}")).with_source(e))
    }

    /// Runs statements, separated by semicolons; several are one transaction unless they say otherwise.
    ///
    /// # Errors
    ///
    /// As [`Self::rows`].
    pub async fn execute(&mut self, statements: &str) -> Result<()> {
        let running = self.connection.execute(sqlx::raw_sql(AssertSqlSafe(statements.to_owned())));
        match tokio::time::timeout(self.timeout.saturating_add(TIMEOUT_SLACK), running).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(e)) => Err(self.failed("a statement", e)),
            Err(_) => Err(no_answer()),
        }
    }

    /// Runs one statement in which [`SECRET`] stands for a text constant that must not come into the server's log: it goes over
    /// as COPY's data, which no setting logs, and the statement is put together and run on the server, where an error does not
    /// repeat it.
    ///
    /// # Errors
    ///
    /// As [`Self::rows`].
    pub async fn execute_with_secret(&mut self, statement: &str, secret: &str) -> Result<()> {
        self.execute("create temp table wal_eve_secret (secret text)").await?;
        self.copy_in("copy pg_temp.wal_eve_secret from stdin", secret).await?;
        let done = self
            .execute(&format!(
                "do $wal_eve$ declare known text; said text; hinted text; begin \
                 select secret into strict known from pg_temp.wal_eve_secret; \
                 execute replace($statement${statement}$statement$, {}, quote_literal(known)); \
                 exception when others or query_canceled then \
                     get stacked diagnostics said = message_text, hinted = pg_exception_hint; \
                     raise exception using message = said, hint = hinted, errcode = sqlstate; \
                 end $wal_eve$",
                literal(SECRET)
            ))
            .await;
        let forgotten = self.execute("drop table pg_temp.wal_eve_secret").await;
        done.and(forgotten)
    }

    /// Runs a COPY FROM STDIN of one row of one column.
    async fn copy_in(&mut self, statement: &str, value: &str) -> Result<()> {
        let row = value.replace('\\', "\\\\").replace('\t', "\\t").replace('\n', "\\n").replace('\r', "\\r");
        let copying = async {
            let mut copy = self.connection.copy_in_raw(statement).await?;
            copy.send(row.into_bytes()).await?;
            copy.finish().await
        };
        match tokio::time::timeout(self.timeout.saturating_add(TIMEOUT_SLACK), copying).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(e)) => Err(self.failed("a statement", e)),
            Err(_) => Err(no_answer()),
        }
    }

    async fn text(&mut self, question: &str) -> Result<Option<String>> {
        let asking = sqlx::raw_sql(AssertSqlSafe(question.to_owned())).fetch_one(&mut self.connection);
        let row = match tokio::time::timeout(self.timeout.saturating_add(TIMEOUT_SLACK), asking).await {
            Ok(Ok(row)) => row,
            Ok(Err(e)) => return Err(self.failed("a question", e)),
            Err(_) => return Err(no_answer()),
        };
        row.try_get(0).map_err(|e| odd_answer().with_source(e))
    }

    fn failed(&self, what: &str, error: sqlx::Error) -> PgError {
        let failed = from_sqlx(Kind::Lost, format!("{what} failed on the server at \"{}\"", self.address), error);
        match failed.sqlstate() {
            Some("42501") => {
                failed.with_hint("Give the user of this connection that right, or let another user connect.")
            }
            _ => failed,
        }
    }

    /// Ends the session in good order.
    pub async fn close(self) {
        // The server ends the session either way.
        let _ = tokio::time::timeout(TIMEOUT_SLACK, self.connection.close()).await;
    }
}

fn odd_answer() -> PgError {
    PgError::new(Kind::Server, "the server's answer makes no sense")
}
