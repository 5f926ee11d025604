//! A connection to a running server: what it is, whether its archive works, and the way into a base backup.

use std::time::Duration;

use sqlx::postgres::{PgConnection, PgDatabaseError, PgRow, PgSslMode};
use sqlx::{AssertSqlSafe, Connection, Row};

use super::archiving::{ArchiveState, ArchiverEvent};
use super::connection_settings::ConnectionSettings;
use super::data_directory::{DataDirectory, Postmaster};
use super::finding::Finding;
use super::version::{Major, ServerVersion};
use super::{Kind, PgError, Result};
use crate::formats::wal_name::SegmentSize;

/// How long the server may take to answer a question about itself.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// How far the start times that a server tells and that its `postmaster.pid` holds may lie apart: the one is taken a
/// moment after the other.
const START_TIME_SLACK_SECONDS: i64 = 10;

/// A session with a running server.
#[derive(Debug)]
pub struct Server {
    pub(super) connection: PgConnection,
    version: ServerVersion,
    version_text: String,
    in_recovery: bool,
    system_identifier: u64,
    wal_segment_size: SegmentSize,
    data_directory: Option<String>,
    started: i64,
    /// What its `postmaster.pid` holds, if this user may read the server's files.
    postmaster: Option<Postmaster>,
}

impl Server {
    /// Connects, and sets the session up so that no timeout of the server's configuration ends it half-way.
    ///
    /// # Errors
    ///
    /// [`Kind::Unreachable`] when no server answers in time, [`Kind::Server`] when it refuses the user,
    /// [`Kind::UnknownVersion`] when it is older than 9.6.
    pub async fn connect(settings: &ConnectionSettings) -> Result<Self> {
        let mut connection = connect(settings).await?;

        let row = ask(&mut connection, "select current_setting('server_version_num'), version()").await?;
        let version = ServerVersion::new(number(&row, 0)?);
        let version_text = text(&row, 1)?;
        if !version.major().is_supported() {
            return Err(PgError::new(Kind::UnknownVersion, format!("PostgreSQL {version} is not supported"))
                .with_detail(format!("The oldest supported major is {}.", Major::OLDEST)));
        }
        set_up(&mut connection, version.major()).await?;

        // pg_settings shows data_directory only to those who may know it. pg_control_system tells the identifier as a
        // signed number.
        let row = ask(
            &mut connection,
            "select pg_is_in_recovery()::text, \
                    (select system_identifier::text from pg_control_system()), \
                    pg_size_bytes(current_setting('wal_segment_size'))::text, \
                    (select setting from pg_settings where name = 'data_directory'), \
                    floor(extract(epoch from pg_postmaster_start_time()))::bigint::text",
        )
        .await?;
        let segment_bytes: u64 = number(&row, 2)?;
        let wal_segment_size = SegmentSize::new(segment_bytes).ok_or_else(|| {
            PgError::new(Kind::Server, format!("the server's wal_segment_size of {segment_bytes} bytes makes no sense"))
        })?;
        Ok(Self {
            in_recovery: text(&row, 0)? == "true",
            system_identifier: number::<i64>(&row, 1)?.cast_unsigned(),
            wal_segment_size,
            data_directory: optional_text(&row, 3)?,
            started: number(&row, 4)?,
            postmaster: read_postmaster(&mut connection).await?,
            connection,
            version,
            version_text,
        })
    }

    /// The server's version.
    pub fn version(&self) -> ServerVersion {
        self.version
    }

    /// What `version()` says: WAL-E's `extended_version.txt`.
    pub fn version_text(&self) -> &str {
        &self.version_text
    }

    /// Whether it is a standby, or recovering.
    pub fn in_recovery(&self) -> bool {
        self.in_recovery
    }

    /// The cluster's identity.
    pub fn system_identifier(&self) -> u64 {
        self.system_identifier
    }

    /// The size of its WAL segments.
    pub fn wal_segment_size(&self) -> SegmentSize {
        self.wal_segment_size
    }

    /// Its data directory as it names it itself, if this user may know.
    pub fn data_directory(&self) -> Option<&str> {
        self.data_directory.as_deref()
    }

    /// Asks how archiving is set up and how it goes; [`ArchiveState::findings`] judges it.
    ///
    /// # Errors
    ///
    /// [`Kind::Lost`] or [`Kind::Server`].
    pub async fn archiving(&mut self) -> Result<ArchiveState> {
        let row = ask(
            &mut self.connection,
            "select current_setting('archive_mode'), \
                    current_setting('wal_level'), \
                    (select nullif(setting, '') from pg_settings where name = 'archive_command'), \
                    nullif(current_setting('archive_library', true), ''), \
                    last_archived_wal, last_archived_time::text, last_failed_wal, last_failed_time::text, \
                    coalesce(last_failed_time > coalesce(last_archived_time, '-infinity'), false)::text \
             from pg_stat_archiver",
        )
        .await?;
        let event = |wal, time| -> Result<Option<ArchiverEvent>> {
            let both = (optional_text(&row, wal)?, optional_text(&row, time)?);
            Ok(if let (Some(wal), Some(time)) = both { Some(ArchiverEvent { wal, time }) } else { None })
        };
        Ok(ArchiveState {
            archive_mode: text(&row, 0)?,
            wal_level: text(&row, 1)?,
            archive_command: optional_text(&row, 2)?.filter(|command| command != "(disabled)"),
            archive_library: optional_text(&row, 3)?,
            last_archived: event(4, 5)?,
            last_failed: event(6, 7)?,
            is_failing: text(&row, 8)? == "true",
            in_recovery: self.in_recovery,
        })
    }

    /// How many bytes all its databases have, in every tablespace.
    ///
    /// # Errors
    ///
    /// [`Kind::Lost`] or [`Kind::Server`], the latter when this user may not see every database.
    pub async fn databases_size(&mut self) -> Result<u64> {
        let row = ask(&mut self.connection, "select sum(pg_database_size(oid))::text from pg_database").await?;
        number(&row, 0)
    }

    /// Checks that this server is the one that runs in `directory`: files of one cluster under the label of another
    /// make a backup that restores to nothing. A standby on the same host has its primary's identity, so
    /// `postmaster.pid` is compared too: with what the server itself reads in it, or, for a user who may not read the
    /// server's files, with the time at which it started. This reads files, and blocks for a moment.
    ///
    /// # Errors
    ///
    /// [`Kind::Io`] or [`Kind::Damaged`] when the directory's files cannot be read.
    pub fn check_directory(&self, directory: &DataDirectory) -> Result<Vec<Finding>> {
        let path = directory.path().display();
        let whose = match &self.data_directory {
            Some(named) => format!("The server's data_directory is \"{named}\"."),
            None => "This user may not see the server's data_directory.".to_owned(),
        };
        let refuse = |message: String| {
            let hint = "Give the server's own data directory, or set PGHOST and PGPORT to the server that runs in it.";
            Ok(vec![Finding::refusal(message).with_detail(&whose).with_hint(hint)])
        };
        let found = directory.system_identifier()?;
        if found != self.system_identifier {
            let here = self.system_identifier;
            return refuse(format!(
                "\"{path}\" belongs to another cluster: its system identifier is {found}, and the server's is {here}"
            ));
        }
        let postmaster = directory.postmaster()?;
        let is_another = match postmaster {
            Postmaster::None => return refuse(format!("no server runs in \"{path}\"")),
            Postmaster::Present { started, .. } => match self.postmaster {
                Some(own) => postmaster != own,
                None => started.is_some_and(|started| (started - self.started).abs() > START_TIME_SLACK_SECONDS),
            },
        };
        if is_another {
            return refuse(format!("the server that runs in \"{path}\" is not the one that was connected to"));
        }
        Ok(Vec::new())
    }

    /// Ends the session in good order.
    pub async fn close(self) {
        // The server ends the session either way.
        let _ = tokio::time::timeout(ANSWER_TIMEOUT, self.connection.close()).await;
    }
}

/// Opens a connection in the time that the settings allow.
pub(super) async fn connect(settings: &ConnectionSettings) -> Result<PgConnection> {
    let address = settings.address();
    let connecting = tokio::time::timeout(settings.connect_timeout, PgConnection::connect_with(&settings.options));
    match connecting.await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(e)) => {
            let message = format!("could not connect to the server at \"{address}\"");
            if let Some(hint) = tls_hint(&e) {
                return Err(from_sqlx(Kind::Settings, message, e).with_hint(hint));
            }
            let kind = if refused_the_user(&e) { Kind::Server } else { Kind::Unreachable };
            let failed = from_sqlx(kind, message, e);
            let over_plain_tcp = !settings.is_socket()
                && matches!(settings.options.get_ssl_mode(), PgSslMode::Disable | PgSslMode::Allow);
            // class 28: pg_hba.conf has no line for this connection, which may be because it is not encrypted
            if over_plain_tcp && failed.sqlstate() == Some("28000") {
                let hint = failed.hint().unwrap_or_default();
                let hint =
                    format!("{hint} A line with hostssl wants encryption: sslmode (PGSSLMODE) prefer or stricter.");
                return Err(failed.with_hint(hint));
            }
            Err(failed)
        }
        Err(_) => {
            let waited = settings.connect_timeout.as_secs();
            Err(PgError::new(Kind::Unreachable, format!("the server at \"{address}\" does not answer"))
                .with_detail(format!("It was waited for {waited} s."))
                .with_hint("Set PGCONNECT_TIMEOUT to wait longer."))
        }
    }
}

/// Lifts every limit that would end a session which waits for hours while files are copied.
async fn set_up(connection: &mut PgConnection, major: Major) -> Result<()> {
    let mut settings = vec![
        "statement_timeout = 0",
        "lock_timeout = 0",
        "idle_in_transaction_session_timeout = 0",
        "client_min_messages = warning",
        "search_path = pg_catalog",
    ];
    if major >= Major::new(14) {
        settings.push("idle_session_timeout = 0");
    }
    if major >= Major::new(17) {
        settings.push("transaction_timeout = 0");
    }
    let statements: String = settings.iter().map(|setting| format!("set {setting};")).collect();
    let setting_up = sqlx::raw_sql(AssertSqlSafe(statements)).execute(connection);
    match tokio::time::timeout(ANSWER_TIMEOUT, setting_up).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(e)) => Err(from_sqlx(Kind::Lost, "could not set up the session", e)),
        Err(_) => Err(no_answer()),
    }
}

/// Lets the server read its own `postmaster.pid`; none if this user may not do that.
async fn read_postmaster(connection: &mut PgConnection) -> Result<Option<Postmaster>> {
    match ask(connection, "select pg_read_file('postmaster.pid')").await {
        Ok(row) => Ok(Some(Postmaster::from_pid_file(&text(&row, 0)?))),
        Err(e) if e.kind() == Kind::Server => Ok(None),
        Err(e) => Err(e),
    }
}

/// Asks for one row.
pub(super) async fn ask(connection: &mut PgConnection, question: &'static str) -> Result<PgRow> {
    match tokio::time::timeout(ANSWER_TIMEOUT, sqlx::query(question).fetch_one(connection)).await {
        Ok(Ok(row)) => Ok(row),
        Ok(Err(e)) => Err(from_sqlx(Kind::Lost, "the server did not answer a question about itself", e)),
        Err(_) => Err(no_answer()),
    }
}

pub(super) fn no_answer() -> PgError {
    PgError::new(Kind::Lost, "the server stopped answering")
        .with_detail(format!("It was waited for {} s.", ANSWER_TIMEOUT.as_secs()))
}

pub(super) fn text(row: &PgRow, column: usize) -> Result<String> {
    optional_text(row, column)?.ok_or_else(|| odd_answer(column).with_detail("It is null."))
}

pub(super) fn optional_text(row: &PgRow, column: usize) -> Result<Option<String>> {
    row.try_get(column).map_err(|e| odd_answer(column).with_source(e))
}

pub(super) fn number<N: std::str::FromStr>(row: &PgRow, column: usize) -> Result<N>
where
    N::Err: std::error::Error + Send + Sync + 'static,
{
    text(row, column)?.parse().map_err(|e: N::Err| odd_answer(column).with_source(e))
}

pub(super) fn odd_answer(column: usize) -> PgError {
    PgError::new(Kind::Server, format!("column {} of the server's answer makes no sense", column + 1))
}

/// What to do when it is encryption that failed. The driver passes a handshake's failure on as invalid data.
fn tls_hint(error: &sqlx::Error) -> Option<&'static str> {
    match error {
        sqlx::Error::Io(e) if e.kind() == std::io::ErrorKind::InvalidData => Some(
            "The server's certificate has to lead to one in the file that sslrootcert (PGSSLROOTCERT) names or to one of the \
             system's, and for sslmode (PGSSLMODE) verify-full it has to name the host that is connected to.",
        ),
        sqlx::Error::Tls(_) => Some(
            "sslmode (PGSSLMODE) asks for encryption: the server needs ssl = on, and certificate files that can be read.",
        ),
        _ => None,
    }
}

/// Whether the server was there and did not want this user. Class 57P (starting up, shutting down) and 53 (too many
/// connections) pass with time.
fn refused_the_user(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|e| e.code());
    code.is_some_and(|code| !code.starts_with("57P") && !code.starts_with("53"))
}

/// Wraps the driver's error: `when_cut_off` is the kind unless the server itself sent an error.
pub(super) fn from_sqlx(when_cut_off: Kind, message: impl Into<String>, error: sqlx::Error) -> PgError {
    let Some(from_server) = error.as_database_error().and_then(|e| e.try_downcast_ref::<PgDatabaseError>()) else {
        return PgError::new(when_cut_off, message).with_source(cause(error));
    };
    // 57P01 to 57P05: the server ended the session.
    let cut_off = from_server.code().starts_with("57P") || when_cut_off == Kind::Unreachable;
    let mut wrapped = PgError::new(if cut_off { when_cut_off } else { Kind::Server }, message);
    wrapped = wrapped.with_sqlstate(from_server.code());
    let detail = [Some(from_server.message()), from_server.detail()];
    wrapped = wrapped.with_detail(detail.into_iter().flatten().map(sentence).collect::<Vec<_>>().join(" "));
    let hint = match from_server.code() {
        "42501" => Some("Connect as a superuser, or grant this user the execution of the backup functions."),
        code if code.starts_with("28") => Some(
            "Set PGUSER, and PGPASSWORD or a line of ~/.pgpass (mode 0600), to what the server's pg_hba.conf accepts.",
        ),
        _ => from_server.hint(),
    };
    match hint {
        Some(hint) => wrapped.with_hint(hint),
        None => wrapped,
    }
}

/// What lies below the driver's error, whose own text would only repeat it.
pub(super) fn cause(error: sqlx::Error) -> Box<dyn std::error::Error + Send + Sync> {
    match error {
        sqlx::Error::Io(e) => e.into(),
        sqlx::Error::Tls(e) | sqlx::Error::Configuration(e) => e,
        other => other.into(),
    }
}

/// The server's message as a detail: `The server said "…".`
fn sentence(message: &str) -> String {
    format!("The server said \"{message}\".")
}
