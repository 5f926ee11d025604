//! How to reach the server: libpq's environment variables, as far as the driver and this file honour them.
//!
//! The driver reads `PGHOST`, `PGHOSTADDR`, `PGPORT`, `PGPASSWORD`, `PGPASSFILE`, `~/.pgpass`, `PGOPTIONS`,
//! `PGSSLMODE`, `PGSSLROOTCERT`, `PGSSLCERT` and `PGSSLKEY` from the process's environment by itself. This file adds
//! `PGUSER` with libpq's default, the account's name, `PGCONNECT_TIMEOUT` and libpq's default certificate files, and
//! refuses what neither would honour: a setting that is dropped in silence reaches another server, or the right one with
//! less security than was asked for.
//! One thing is left: a named root certificate is trusted beside the system's, where libpq trusts it alone.
//! The database is `postgres`, as it is in WAL-E, whatever `PGDATABASE` says.

use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::{Kind, PgError, Result};
use crate::fs::account::user_name;

/// How long a connection may take to come up when `PGCONNECT_TIMEOUT` does not say.
pub(super) const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The database that is connected to: every cluster has it, and nothing in it is touched.
const DATABASE: &str = "postgres";

/// Where servers put their socket by default: PostgreSQL's own place and that of most packages.
const SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// Where the server is, as whom to go there, and how long that may take.
#[derive(Clone)]
pub struct ConnectionSettings {
    pub(super) options: PgConnectOptions,
    pub(super) connect_timeout: Duration,
}

impl fmt::Debug for ConnectionSettings {
    /// Leaves the password out, which the driver's own would show.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionSettings")
            .field("address", &self.address())
            .field("user", &self.options.get_username())
            .field("connect_timeout", &self.connect_timeout)
            .finish_non_exhaustive()
    }
}

/// A variable that cannot be honoured, its keyword in a connection string, and the values of it that ask for nothing.
pub(super) const UNSUPPORTED: [(&str, &str, &[&str]); 12] = [
    ("PGSERVICE", "service", &[]),
    ("PGREQUIREPEER", "requirepeer", &[]),
    ("PGREQUIREAUTH", "require_auth", &[]),
    ("PGSSLCRL", "sslcrl", &[]),
    ("PGSSLCRLDIR", "sslcrldir", &[]),
    ("PGCHANNELBINDING", "channel_binding", &["disable", "prefer"]),
    ("PGGSSENCMODE", "gssencmode", &["disable", "prefer"]),
    ("PGSSLNEGOTIATION", "sslnegotiation", &["postgres"]),
    ("PGSSLCERTMODE", "sslcertmode", &["allow"]),
    // the driver's TLS is 1.2 or 1.3
    ("PGSSLMINPROTOCOLVERSION", "ssl_min_protocol_version", &["TLSv1", "TLSv1.1", "TLSv1.2"]),
    ("PGSSLMAXPROTOCOLVERSION", "ssl_max_protocol_version", &["TLSv1.3"]),
    ("PGTARGETSESSIONATTRS", "target_session_attrs", &["any"]),
];

impl ConnectionSettings {
    /// Takes the settings from libpq's variables. `variable` looks one up; the driver reads the process's environment
    /// besides, so `variable` should be that.
    ///
    /// # Errors
    ///
    /// [`Kind::Settings`] when a variable makes no sense or asks for what cannot be honoured.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        refuse_unsupported(&variable)?;
        let connect_timeout = connect_timeout(variable("PGCONNECT_TIMEOUT").as_deref())?;
        let port = variable("PGPORT").map_or(Ok(5432), |text| {
            text.trim().parse::<u16>().map_err(|e| unusable("PGPORT", &text).with_source(e))
        })?;

        let user = variable("PGUSER").map_or_else(|| account(rustix::process::geteuid().as_raw()), Ok)?;
        let host = variable("PGHOSTADDR").or_else(|| variable("PGHOST"));
        let socket_directory = match host.as_deref() {
            None => SOCKET_DIRECTORIES.into_iter().find(|d| Path::new(d).join(format!(".s.PGSQL.{port}")).exists()),
            Some(directory) => SOCKET_DIRECTORIES.into_iter().find(|default| *default == directory),
        };
        // The driver looks for a password while it reads a URL, under the host, user and database it has by then. As in
        // libpq, a default socket directory counts as localhost there.
        let user = escaped(&user);
        let url = match socket_directory {
            Some(directory) => format!("postgres://localhost:{port}/{DATABASE}?user={user}&host={directory}"),
            None if host.is_none() => format!("postgres://localhost:{port}/{DATABASE}?user={user}"),
            None => format!("postgres:///{DATABASE}?user={user}&port={port}"),
        };
        let mut options: PgConnectOptions = url.parse().map_err(|e: sqlx::Error| {
            PgError::new(Kind::Settings, "could not make sense of the connection settings").with_source(e)
        })?;
        if let (None, Some(host)) = (socket_directory, &host) {
            options = options.host(host);
        }
        let home = variable("HOME").map(PathBuf::from);
        options = with_certificates(options, &variable, home.as_deref())?;
        Ok(Self::new(options, connect_timeout))
    }

    /// Takes the driver's own options, for a server that the environment does not name.
    pub fn new(options: PgConnectOptions, connect_timeout: Duration) -> Self {
        let options = options.application_name("wal-eve").disable_statement_logging();
        let mut settings = Self { options, connect_timeout };
        // libpq ignores sslmode on a socket; the driver would ask for TLS there, which no server offers.
        if settings.is_socket() {
            settings.options = settings.options.ssl_mode(PgSslMode::Disable);
        }
        settings
    }

    /// Whether the server is reached through a Unix-domain socket.
    pub(super) fn is_socket(&self) -> bool {
        self.options.get_socket().is_some() || self.options.get_host().starts_with('/')
    }

    /// The database that is connected to.
    pub fn database(&self) -> Option<&str> {
        self.options.get_database()
    }

    /// Who logs in.
    pub fn user(&self) -> &str {
        self.options.get_username()
    }

    /// The server's address for messages: `host:port`, or the socket's path.
    pub fn address(&self) -> String {
        let (host, port) = (self.options.get_host(), self.options.get_port());
        match self.options.get_socket() {
            Some(directory) => format!("{}/.s.PGSQL.{port}", directory.display()),
            None if host.starts_with('/') => format!("{host}/.s.PGSQL.{port}"),
            None => format!("{host}:{port}"),
        }
    }
}

/// libpq's default for the user: the account's name.
fn account(uid: u32) -> Result<String> {
    user_name(uid).ok_or_else(|| {
        PgError::new(Kind::Settings, "PGUSER is not set, and there is no name to log in by without it")
            .with_detail(format!("The account with the user id {uid} has no name."))
            .with_hint("Set PGUSER.")
    })
}

/// Every byte that is no letter or digit is escaped, so that nothing in a name can be taken for a part of a URL.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        let _ = match byte.is_ascii_alphanumeric() {
            true => write!(escaped, "{}", char::from(byte)),
            false => write!(escaped, "%{byte:02X}"),
        };
    }
    escaped
}

fn refuse_unsupported(variable: &impl Fn(&str) -> Option<String>) -> Result<()> {
    for (name, _, harmless) in UNSUPPORTED {
        if let Some(value) = variable(name).filter(|value| !harmless.contains(&value.as_str())) {
            return Err(PgError::new(Kind::Settings, format!("{name}=\"{value}\" cannot be honoured")).with_hint(
                "Unset it, and set PGHOST, PGPORT, PGUSER, PGSSLMODE and PGSSLROOTCERT to what it stands for.",
            ));
        }
    }
    for name in ["PGHOST", "PGHOSTADDR", "PGPORT"] {
        if let Some(value) = variable(name).filter(|value| value.contains(',')) {
            return Err(PgError::new(Kind::Settings, format!("{name}=\"{value}\" names several servers"))
                .with_hint("Name one: the server whose data directory is on this host."));
        }
    }
    Ok(())
}

/// libpq's rule: whole seconds; zero or less is no limit.
fn connect_timeout(text: Option<&str>) -> Result<Duration> {
    let Some(text) = text else { return Ok(DEFAULT_CONNECT_TIMEOUT) };
    let seconds: i32 = text.trim().parse().map_err(|e| unusable("PGCONNECT_TIMEOUT", text).with_source(e))?;
    Ok(u64::try_from(seconds).ok().filter(|seconds| *seconds > 0).map_or(Duration::MAX, Duration::from_secs))
}

/// libpq's rules for certificates that the driver does not have: files in `~/.postgresql`, and those for the root.
fn with_certificates(
    mut options: PgConnectOptions,
    variable: &impl Fn(&str) -> Option<String>,
    home: Option<&Path>,
) -> Result<PgConnectOptions> {
    let mode: PgSslMode = match variable("PGSSLMODE") {
        None => PgSslMode::Prefer,
        Some(text) => text.parse().map_err(|_| unusable("PGSSLMODE", &text))?,
    };
    let in_home = |name: &str| home.map(|home| home.join(".postgresql").join(name)).filter(|path| path.exists());
    let root = variable("PGSSLROOTCERT").map(PathBuf::from).or_else(|| in_home("root.crt"));
    if variable("PGSSLCERT").is_none()
        && variable("PGSSLKEY").is_none()
        && let (Some(certificate), Some(key)) = (in_home("postgresql.crt"), in_home("postgresql.key"))
    {
        options = options.ssl_client_cert(certificate).ssl_client_key(key);
    }
    with_root_certificate(options, mode, root, "PGSSLROOTCERT")
}

/// libpq's rules for the root certificate that the setting `name` names: a file that is there makes `require` check the
/// server's certificate, and a check is not left out because there is none.
pub(super) fn with_root_certificate(
    options: PgConnectOptions,
    mode: PgSslMode,
    root: Option<PathBuf>,
    name: &str,
) -> Result<PgConnectOptions> {
    let Some(root) = root else { return Ok(options.ssl_mode(mode)) };
    if root == Path::new("system") {
        return Err(PgError::new(Kind::Settings, format!("{name}=\"system\" cannot be honoured"))
            .with_hint("Leave it out: the system's certificates are used unless a file is named."));
    }
    match (root.exists(), mode) {
        (true, PgSslMode::Require) => Ok(options.ssl_root_cert(root).ssl_mode(PgSslMode::VerifyCa)),
        (true, _) => Ok(options.ssl_root_cert(root).ssl_mode(mode)),
        (false, PgSslMode::VerifyCa | PgSslMode::VerifyFull) => Err(PgError::new(
            Kind::Settings,
            format!("the root certificate file \"{}\" does not exist", root.display()),
        )
        .with_hint(format!("Correct {name}, or leave it out to use the system's certificates."))),
        (false, _) => Ok(options.ssl_mode(mode)),
    }
}

fn unusable(name: &str, value: &str) -> PgError {
    PgError::new(Kind::Settings, format!("{name}=\"{value}\" makes no sense"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<ConnectionSettings> {
        ConnectionSettings::from_environment(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string())
        })
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        for (name, value) in [
            ("PGSERVICE", "main"),
            ("PGHOST", "a,b"),
            ("PGHOSTADDR", "10.0.0.1,10.0.0.2"),
            ("PGPORT", "5432,5433"),
            ("PGPORT", "x"),
            ("PGPORT", "65536"),
            ("PGCONNECT_TIMEOUT", "soon"),
            ("PGSSLMODE", "always"),
            ("PGSSLROOTCERT", "system"),
            ("PGCHANNELBINDING", "require"),
            ("PGTARGETSESSIONATTRS", "read-write"),
            ("PGREQUIREPEER", "postgres"),
            ("PGSSLCERTMODE", "require"),
            ("PGSSLMINPROTOCOLVERSION", "TLSv1.3"),
            ("PGSSLMAXPROTOCOLVERSION", "TLSv1.2"),
        ] {
            let error = settings(&[(name, value)]).unwrap_err();
            assert_eq!(error.kind(), Kind::Settings);
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn what_asks_for_nothing_is_accepted() {
        for (name, value) in [
            ("PGSERVICE", ""),
            ("PGSERVICEFILE", "/etc/pg_service.conf"),
            ("PGCHANNELBINDING", "prefer"),
            ("PGTARGETSESSIONATTRS", "any"),
            ("PGSSLMINPROTOCOLVERSION", "TLSv1.2"),
            ("PGHOST", ""),
            ("PGPORT", ""),
        ] {
            assert!(settings(&[(name, value)]).is_ok(), "{name}={value}");
        }
    }

    #[test]
    fn the_database_is_always_postgres() {
        let settings = settings(&[("PGHOST", "db.example"), ("PGPORT", "6543"), ("PGDATABASE", "other")]).unwrap();
        assert_eq!(settings.options.get_database(), Some("postgres"));
        assert_eq!(settings.address(), "db.example:6543");
        assert_eq!(settings.options.get_application_name(), Some("wal-eve"));
    }

    #[test]
    fn the_user_is_the_accounts_unless_named() {
        let own = user_name(rustix::process::geteuid().as_raw()).unwrap();
        assert_eq!(settings(&[]).unwrap().user(), own);
        assert_eq!(settings(&[("PGUSER", "")]).unwrap().user(), own);
        for host in ["/run/elsewhere", "/var/run/postgresql", "db"] {
            assert_eq!(settings(&[("PGHOST", host)]).unwrap().user(), own);
            let named = settings(&[("PGHOST", host), ("PGUSER", "o'neil & sons")]).unwrap();
            assert_eq!(named.user(), "o'neil & sons");
        }
        let nameless = account(3_999_999_999).unwrap_err();
        assert_eq!(nameless.kind(), Kind::Settings);
        assert_eq!(nameless.hint(), Some("Set PGUSER."));
    }

    #[test]
    fn a_socket_needs_no_tls() {
        for directory in ["/run/elsewhere", "/var/run/postgresql"] {
            let settings = settings(&[("PGHOST", directory), ("PGSSLMODE", "require")]).unwrap();
            assert!(matches!(settings.options.get_ssl_mode(), PgSslMode::Disable));
            assert_eq!(settings.address(), format!("{directory}/.s.PGSQL.5432"));
            // What a line of .pgpass has to name.
            let counts_as = if directory.starts_with("/var") { "localhost" } else { directory };
            assert_eq!(settings.options.get_host(), counts_as);
        }
        let over_tcp = settings(&[("PGHOST", "db"), ("PGSSLMODE", "require")]).unwrap();
        assert!(matches!(over_tcp.options.get_ssl_mode(), PgSslMode::Require));
    }

    #[test]
    fn a_root_certificate_in_the_home_directory_is_used_as_libpq_does() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".postgresql")).unwrap();
        std::fs::write(home.path().join(".postgresql/root.crt"), "").unwrap();
        let home = home.path().to_str().unwrap();
        let settings = settings(&[("PGHOST", "db"), ("PGSSLMODE", "require"), ("HOME", home)]).unwrap();
        assert!(matches!(settings.options.get_ssl_mode(), PgSslMode::VerifyCa));
    }

    #[test]
    fn the_password_is_never_shown() {
        let options = PgConnectOptions::new_without_pgpass().username("someone").password("secret-word");
        let shown = format!("{:?}", ConnectionSettings::new(options, DEFAULT_CONNECT_TIMEOUT));
        assert!(shown.contains("someone") && !shown.contains("secret-word"), "{shown}");
    }

    #[test]
    fn the_time_to_connect_is_libpqs() {
        assert_eq!(connect_timeout(None).unwrap(), DEFAULT_CONNECT_TIMEOUT);
        assert_eq!(connect_timeout(Some("3")).unwrap(), Duration::from_secs(3));
        assert_eq!(connect_timeout(Some("0")).unwrap(), Duration::MAX);
        assert_eq!(connect_timeout(Some("-1")).unwrap(), Duration::MAX);
    }
}
