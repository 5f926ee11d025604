//! A connection string of libpq's, as `key=value` pairs or as a URI, and who logs in with it.
//!
//! Our own sessions go through the driver, which knows fewer keywords than libpq: [`Conninfo::settings`] refuses what it could
//! not honour. A string that goes to a server, for a subscription, is libpq's business there and keeps every keyword.

use std::fmt;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::connection_settings::{
    ConnectionSettings, DEFAULT_CONNECT_TIMEOUT, UNSUPPORTED, escaped, with_root_certificate,
};
use super::{Kind, PgError, Result};

/// A password; never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    /// The password itself, for the one who sends it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Password {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("********")
    }
}

/// What stands in place of a password wherever a person may read it.
pub const MASK: &str = "********";

/// Where a server is, and as whom to go there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conninfo {
    keywords: Vec<(String, String)>,
    password: Option<Password>,
}

/// Keywords that say nothing about where to go and how safely: accepted and left to libpq.
const HARMLESS: [&str; 8] = [
    "application_name",
    "fallback_application_name",
    "client_encoding",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
];

impl Conninfo {
    /// Reads either form. A password in it is taken out and kept apart.
    ///
    /// # Errors
    ///
    /// [`Kind::Settings`] when it is neither form. The text is not repeated: it may hold a password.
    pub fn parse(text: &str) -> Result<Self> {
        let text = text.trim();
        let mut keywords = if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            from_uri(text)
        } else {
            from_pairs(text)
        }
        .map_err(|why| PgError::new(Kind::Settings, format!("the connection string makes no sense: {why}")))?;
        let password = keywords.iter().rposition(|(name, _)| name == "password").map(|at| keywords.remove(at).1);
        keywords.retain(|(name, _)| name != "password");
        Ok(Self { keywords, password: password.map(Password) })
    }

    /// The value of a keyword; the last one counts, as in libpq.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.keywords.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The password that was in the string, if one was.
    pub fn password(&self) -> Option<&Password> {
        self.password.as_ref()
    }

    /// The same with a keyword set.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.keywords.retain(|(key, _)| key != name);
        self.keywords.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The same without a password.
    #[must_use]
    pub fn without_password(mut self) -> Self {
        self.password = None;
        self
    }

    /// The same with a password; none leaves the one it has.
    #[must_use]
    pub fn with_password(mut self, password: Option<Password>) -> Self {
        self.password = password.or(self.password);
        self
    }

    /// The database's name.
    pub fn database(&self) -> &str {
        self.get("dbname").unwrap_or_default()
    }

    /// The user's name.
    pub fn user(&self) -> &str {
        self.get("user").unwrap_or_default()
    }

    /// Checks that host, database and user are named: what is left out would be filled in from the environment, and with
    /// several servers in play the environment cannot be right for all.
    ///
    /// # Errors
    ///
    /// [`Kind::Settings`] naming what is missing.
    pub fn require_address(&self) -> Result<()> {
        let missing = |name: &&str| self.get(name).is_none_or(str::is_empty);
        if self.get("hostaddr").is_none()
            && let Some(name) = ["host"].iter().find(|name| missing(name))
        {
            return Err(lacks(name));
        }
        ["dbname", "user"].iter().find(|name| missing(name)).map_or(Ok(()), |name| Err(lacks(name)))
    }

    /// For the driver. A password that is not in the string is looked up in `PGPASSWORD`, `PGPASSFILE` and `~/.pgpass`.
    ///
    /// # Errors
    ///
    /// [`Kind::Settings`] when a keyword makes no sense or could not be honoured.
    pub fn settings(&self) -> Result<ConnectionSettings> {
        self.require_address()?;
        const KNOWN: [&str; 10] = [
            "host",
            "hostaddr",
            "port",
            "dbname",
            "user",
            "sslmode",
            "sslrootcert",
            "sslcert",
            "sslkey",
            "connect_timeout",
        ];
        for (name, value) in &self.keywords {
            let asks_for_nothing =
                || UNSUPPORTED.iter().any(|(_, known, harmless)| known == name && harmless.contains(&value.as_str()));
            if !KNOWN.contains(&name.as_str()) && !HARMLESS.contains(&name.as_str()) && !asks_for_nothing() {
                // without the value, which may be a secret: sslpassword
                return Err(PgError::new(Kind::Settings, format!("\"{name}\" cannot be honoured as it is set"))
                    .with_hint(format!("Leave it out: these can be given: {}.", KNOWN.join(", "))));
            }
        }
        let host = self.get("hostaddr").or(self.get("host")).unwrap_or_default();
        let port: u16 = number(self.get("port").unwrap_or("5432"), "port")?;
        // The driver looks for a password in ~/.pgpass while it reads a URL, under the names it has by then.
        let url = format!(
            "postgres://{}@{}:{port}/{}",
            escaped(self.user()),
            if host.starts_with('/') { "localhost".to_owned() } else { bracketed(host) },
            escaped(self.database())
        );
        let url = if host.starts_with('/') { format!("{url}?host={}", escaped(host)) } else { url };
        let mut options: PgConnectOptions = url.parse().map_err(|e: sqlx::Error| {
            PgError::new(Kind::Settings, "could not make sense of the connection string").with_source(e)
        })?;
        if let Some(password) = &self.password {
            options = options.password(password.reveal());
        }
        let mode: PgSslMode = self
            .get("sslmode")
            .unwrap_or("prefer")
            .parse()
            .map_err(|_| PgError::new(Kind::Settings, "sslmode makes no sense in the connection string"))?;
        options = with_root_certificate(options, mode, self.get("sslrootcert").map(PathBuf::from), "sslrootcert")?;
        match (self.get("sslcert"), self.get("sslkey")) {
            (Some(certificate), Some(key)) => options = options.ssl_client_cert(certificate).ssl_client_key(key),
            (None, None) => {}
            _ => {
                let message = "the connection string has one of sslcert and sslkey, and the driver needs both";
                return Err(PgError::new(Kind::Settings, message));
            }
        }
        let seconds: u64 = self.get("connect_timeout").map_or(Ok(0), |text| number(text, "connect_timeout"))?;
        let timeout = if seconds == 0 { DEFAULT_CONNECT_TIMEOUT } else { Duration::from_secs(seconds) };
        Ok(ConnectionSettings::new(options, timeout))
    }

    /// As libpq reads it, without the password.
    pub fn masked(&self) -> String {
        self.pairs(self.password.as_ref().map(|_| MASK))
    }

    /// As libpq reads it, with the password if there is one: for a server, never for a person.
    pub fn revealed(&self) -> String {
        self.pairs(self.password.as_ref().map(Password::reveal))
    }

    fn pairs(&self, password: Option<&str>) -> String {
        let mut text = String::new();
        let pairs = self.keywords.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in pairs.chain(password.map(|password| ("password", password))) {
            let separator = if text.is_empty() { "" } else { " " };
            let plain = !value.is_empty() && !value.contains(|c: char| c.is_whitespace() || c == '\'' || c == '\\');
            let value = value.replace('\\', "\\\\").replace('\'', "\\'");
            let _ = match plain {
                true => write!(text, "{separator}{name}={value}"),
                false => write!(text, "{separator}{name}='{value}'"),
            };
        }
        text
    }
}

impl fmt::Display for Conninfo {
    /// `user@host:port/database`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.get("host").or(self.get("hostaddr")).unwrap_or_default();
        write!(f, "{}@{host}:{}/{}", self.user(), self.get("port").unwrap_or("5432"), self.database())
    }
}

fn lacks(name: &str) -> PgError {
    PgError::new(Kind::Settings, format!("the connection string lacks \"{name}\""))
        .with_hint("Write it as \"host=db.example port=5432 dbname=app user=someone\" or as a postgres:// URI.")
}

fn number<N: std::str::FromStr>(text: &str, name: &str) -> Result<N> {
    text.parse().map_err(|_| PgError::new(Kind::Settings, format!("{name} makes no sense in the connection string")))
}

/// `key=value`, `key = 'quoted value'`, with `\` before a quote or a backslash.
fn from_pairs(text: &str) -> std::result::Result<Vec<(String, String)>, &'static str> {
    let mut pairs = Vec::new();
    let mut rest = text.chars().peekable();
    loop {
        while rest.next_if(|c| c.is_whitespace()).is_some() {}
        if rest.peek().is_none() {
            return Ok(pairs);
        }
        let mut name = String::new();
        while let Some(c) = rest.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
            name.push(c);
        }
        while rest.next_if(|c| c.is_whitespace()).is_some() {}
        if name.is_empty() || rest.next() != Some('=') {
            return Err("it should be pairs of key=value");
        }
        while rest.next_if(|c| c.is_whitespace()).is_some() {}
        let quoted = rest.next_if_eq(&'\'').is_some();
        let mut value = String::new();
        loop {
            match rest.next() {
                Some('\\') => value.push(rest.next().ok_or("it ends in a backslash")?),
                Some('\'') if quoted => break,
                Some(c) if !quoted && c.is_whitespace() => break,
                Some(c) => value.push(c),
                None if quoted => return Err("a quote is not closed"),
                None => break,
            }
        }
        pairs.push((name, value));
    }
}

/// `postgres://user:password@host:port/database?key=value&…`, each part optional and percent-encoded.
fn from_uri(text: &str) -> std::result::Result<Vec<(String, String)>, &'static str> {
    let rest = text.split_once("://").ok_or("it is no URI")?.1;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    let (who, place) = authority.rsplit_once('@').map_or(("", authority), |(who, place)| (who, place));
    let (user, password) = who.split_once(':').map_or((who, ""), |(user, password)| (user, password));
    if place.contains(',') {
        return Err("it names several servers");
    }
    let (host, port) = match place.strip_prefix('[').and_then(|place| place.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':').unwrap_or_default()),
        None => place.rsplit_once(':').unwrap_or((place, "")),
    };
    let parts = [("user", user), ("password", password), ("host", host), ("port", port), ("dbname", database)];
    let query = query.split('&').filter(|pair| !pair.is_empty());
    let query = query.map(|pair| pair.split_once('=').ok_or("a parameter has no value"));
    let parts = parts.into_iter().filter(|(_, value)| !value.is_empty()).map(Ok).chain(query);
    parts.map(|pair| pair.and_then(|(name, value)| Ok((name.to_owned(), unescaped(value)?)))).collect()
}

fn unescaped(text: &str) -> std::result::Result<String, &'static str> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(if byte == b'%' {
            let digits = [rest.next(), rest.next()].map(|digit| char::from(digit.unwrap_or_default()).to_digit(16));
            let [Some(high), Some(low)] = digits else { return Err("a % is not followed by two hex digits") };
            u8::try_from(high * 16 + low).expect("two hex digits are a byte")
        } else {
            byte
        });
    }
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8")
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Conninfo {
        Conninfo::parse(text).unwrap()
    }

    #[test]
    fn both_forms_say_the_same() {
        let pairs = parsed("host=db.example port = 6432 dbname='my app' user=o\\'neil sslmode=require");
        let uri = parsed("postgres://o%27neil@db.example:6432/my%20app?sslmode=require");
        for name in ["host", "port", "dbname", "user", "sslmode"] {
            assert_eq!(pairs.get(name), uri.get(name), "{name}");
        }
        assert_eq!(pairs.get("user"), Some("o'neil"));
        assert_eq!(pairs.to_string(), "o'neil@db.example:6432/my app");
        assert_eq!(parsed("postgresql://u@[::1]:7/d").get("host"), Some("::1"));
        assert_eq!(parsed("postgresql://u@/d?host=/run/pg").get("host"), Some("/run/pg"));
    }

    #[test]
    fn what_libpq_would_read_comes_back() {
        let quoted = parsed("host=h dbname='a b' application_name=''").masked();
        assert_eq!(parsed(&quoted).masked(), quoted);
        let again = parsed(r"host=h user='a\'b\\c'");
        assert_eq!(parsed(&again.masked()), again);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in
            ["host", "host=", "=x", "host='x", "host=x\\", "db.example", "postgres://h:%zz@x/d", "postgres://a,b/d"]
        {
            let refused = Conninfo::parse(text).and_then(|parsed| parsed.require_address());
            assert!(refused.is_err(), "accepted {text}");
        }
        for lacking in ["dbname=d user=u", "host=h user=u", "host=h dbname=d"] {
            assert!(parsed(lacking).require_address().is_err(), "{lacking}");
        }
        for half in ["sslcert=/c", "sslkey=/k"] {
            assert!(parsed(&format!("host=h dbname=d user=u {half}")).settings().is_err(), "{half}");
        }
    }

    #[test]
    fn the_driver_is_told_where_to_go() {
        let settings = parsed("host=/run/my.pg port=7 dbname='a/b?c' user='x@y' password=z").settings().unwrap();
        assert_eq!(settings.address(), "/run/my.pg/.s.PGSQL.7");
        assert_eq!(settings.database(), Some("a/b?c"));
        assert_eq!(settings.user(), "x@y");
        assert!(parsed("host=h dbname=d user=u target_session_attrs=any channel_binding=prefer").settings().is_ok());
        for refused in ["target_session_attrs=primary", "channel_binding=require", "service=s", "sslpassword=s3cret"] {
            let refused = parsed(&format!("host=h dbname=d user=u {refused}")).settings().unwrap_err();
            assert!(!refused.to_string().contains("s3cret"), "{refused}");
        }
        assert!(parsed("host=h dbname=d user=u port=x").settings().is_err());
        assert!(parsed("host=h dbname=d user=u sslmode=maybe").settings().is_err());
    }

    #[test]
    fn a_root_certificate_is_checked_against_and_never_silently_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mode = |mode: &str, root: &str| {
            let text = format!("host=h dbname=d user=u sslmode={mode} sslrootcert={root}");
            parsed(&text).settings().map(|settings| settings.options.get_ssl_mode())
        };
        let there = file.path().to_str().unwrap();
        assert!(matches!(mode("require", there), Ok(PgSslMode::VerifyCa)));
        assert!(matches!(mode("verify-full", there), Ok(PgSslMode::VerifyFull)));
        assert!(matches!(mode("require", "/not/there"), Ok(PgSslMode::Require)));
        assert!(mode("verify-full", "/not/there").unwrap_err().to_string().contains("\"/not/there\" does not exist"));
        assert!(mode("verify-full", "system").is_err());
    }

    #[test]
    fn a_password_shows_only_where_it_is_sent() {
        for text in ["host=h dbname=d user=u password=s3cret", "postgres://u:s3cret@h/d"] {
            let conninfo = parsed(text);
            assert!(!format!("{conninfo:?} {conninfo} {}", conninfo.masked()).contains("s3cret"));
            assert!(conninfo.masked().contains(MASK));
            assert!(conninfo.revealed().contains("s3cret"));
        }
        let failed = Conninfo::parse("host=h password='s3cret").unwrap_err();
        assert!(!failed.to_string().contains("s3cret"));
    }
}
