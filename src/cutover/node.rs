//! A session with one of a cutover's servers.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::error::{CutoverError, Result};
use super::rehearsal::Rehearsal;
use crate::formats::lsn::Lsn;
use crate::pg::conninfo::Conninfo;
use crate::pg::quote::{identifier, literal};
use crate::pg::session::{Access, SECRET, Session};
use crate::pg::version::Major;

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The one that is left.
    Source,
    /// The log-shipped replica; after promotion the publisher.
    Replica,
    /// The new home.
    Target,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Replica => "replica",
            Self::Target => "target",
        })
    }
}

/// A session with one server. Its errors say which.
#[derive(Debug)]
pub struct Node {
    place: Place,
    session: Session,
    rehearsal: Rehearsal,
    database: String,
    user: String,
}

impl Node {
    /// Connects. In a dry run the session cannot change anything, whatever `access` says.
    ///
    /// # Errors
    ///
    /// When the server cannot be reached or refuses the user.
    pub async fn connect(place: Place, conninfo: &Conninfo, access: Access, rehearsal: Rehearsal) -> Result<Self> {
        let access = if rehearsal.is_dry() { Access::ReadOnly } else { access };
        let settings = conninfo.settings().map_err(|e| CutoverError::from(e).during(place))?;
        let session = Session::connect(&settings, access).await.map_err(|e| CutoverError::from(e).during(place))?;
        let (database, user) = (conninfo.database().to_owned(), conninfo.user().to_owned());
        Ok(Self { place, session, rehearsal, database, user })
    }

    /// A session that changes nothing, and keeps to itself what it would have changed.
    #[must_use]
    pub fn without_changes(mut self) -> Self {
        self.rehearsal = Rehearsal::dry();
        self
    }

    /// Which server it is.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Its major version.
    pub fn major(&self) -> Major {
        self.session.major()
    }

    /// Its version for messages.
    pub fn version(&self) -> String {
        self.session.version().to_string()
    }

    /// The database that this session is in.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// Who this session is.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// As [`Session::rows`].
    ///
    /// # Errors
    ///
    /// When the server refuses or is gone.
    pub async fn rows<T: DeserializeOwned>(&mut self, question: &str) -> Result<Vec<T>> {
        let place = self.place;
        self.session.rows(question).await.map_err(|e| CutoverError::from(e).during(place))
    }

    /// As [`Session::row`].
    ///
    /// # Errors
    ///
    /// When the server refuses or is gone.
    pub async fn row<T: DeserializeOwned>(&mut self, question: &str) -> Result<T> {
        let place = self.place;
        self.session.row(question).await.map_err(|e| CutoverError::from(e).during(place))
    }

    /// As [`Session::value`].
    ///
    /// # Errors
    ///
    /// When the server refuses or is gone.
    pub async fn value<T: DeserializeOwned>(&mut self, question: &str) -> Result<T> {
        let place = self.place;
        self.session.value(question).await.map_err(|e| CutoverError::from(e).during(place))
    }

    /// Changes something; a dry run writes the statements down and does not run them.
    ///
    /// # Errors
    ///
    /// When the server refuses or is gone.
    pub async fn change(&mut self, statements: &str) -> Result<()> {
        self.change_secretly(statements, statements).await
    }

    /// As [`Self::change`], for statements with a password: `shown` are those a person may read.
    ///
    /// # Errors
    ///
    /// When the server refuses or is gone.
    pub async fn change_secretly(&mut self, statements: &str, shown: &str) -> Result<()> {
        if !self.rehearsal.permits(self.place, format_args!("{shown};")) {
            return Ok(());
        }
        let place = self.place;
        self.session
            .execute(statements)
            .await
            .map_err(|e| CutoverError::from(e).during(place).with_detail(format!("The statement was: {shown}")))
    }

    /// Runs one statement in which [`SECRET`] stands for a secret, as [`Session::execute_with_secret`]; a person reads
    /// `masked` in its place.
    ///
    /// # Errors
    ///
    /// When the server refuses or is gone.
    pub async fn change_with_secret(&mut self, statement: &str, secret: &str, masked: &str) -> Result<()> {
        let shown = statement.replace(SECRET, &literal(masked));
        if !self.rehearsal.permits(self.place, format_args!("{shown};")) {
            return Ok(());
        }
        let place = self.place;
        self.session
            .execute_with_secret(statement, secret)
            .await
            .map_err(|e| CutoverError::from(e).during(place).with_detail(format!("The statement was: {shown}")))
    }

    /// Whether changes are only written down.
    pub fn is_rehearsed(&self) -> bool {
        self.rehearsal.is_dry()
    }

    /// As [`Session::limit`].
    ///
    /// # Errors
    ///
    /// When the server is gone.
    pub async fn limit(&mut self, timeout: Duration) -> Result<()> {
        let place = self.place;
        self.session.limit(timeout).await.map_err(|e| CutoverError::from(e).during(place))
    }

    /// Whether it is a standby.
    ///
    /// # Errors
    ///
    /// When the server is gone.
    pub async fn is_in_recovery(&mut self) -> Result<bool> {
        self.value("select pg_is_in_recovery()").await
    }

    /// Where its WAL ends, written or not: an asynchronous commit is in it.
    ///
    /// # Errors
    ///
    /// When the server is gone, or is a standby.
    pub async fn insert_lsn(&mut self) -> Result<Lsn> {
        self.lsn("select pg_current_wal_insert_lsn()::text").await
    }

    /// An LSN that the server was asked for.
    ///
    /// # Errors
    ///
    /// When the server refuses, is gone, or answers something else.
    pub async fn lsn(&mut self, question: &str) -> Result<Lsn> {
        let text: String = self.value(question).await?;
        text.parse().map_err(|_| CutoverError::failed(format!("{}: \"{text}\" is no LSN", self.place)))
    }

    /// The value of a setting; none when the server does not know it.
    ///
    /// # Errors
    ///
    /// When the server is gone.
    pub async fn setting(&mut self, name: &str) -> Result<Option<String>> {
        self.value(&format!("select current_setting({}, true)", literal(name))).await
    }

    /// What `ALTER DATABASE … SET` says for this database, or `ALTER ROLE … IN DATABASE … SET` for a role of it.
    ///
    /// # Errors
    ///
    /// When the server is gone.
    pub async fn defaults(&mut self, setting: &str) -> Result<Vec<RoleDefault>> {
        // a role's own settings go before the database's, and those of both before either
        let mut rows: Vec<RoleDefault> = self
            .rows(
                "select nullif(s.setrole, 0)::regrole::text as role, s.setdatabase <> 0 as in_database, \
                        split_part(c, '=', 1) as name, substr(c, strpos(c, '=') + 1) as value \
                 from pg_db_role_setting s left join pg_database d on d.oid = s.setdatabase, unnest(s.setconfig) c \
                 where s.setdatabase = 0 or d.datname = current_database()",
            )
            .await?;
        rows.retain(|row| row.name.eq_ignore_ascii_case(setting));
        Ok(rows)
    }

    /// `ALTER DATABASE …` for the database of this session, up to the setting.
    pub fn alter_database(&self) -> String {
        format!("alter database {}", identifier(&self.database))
    }

    /// Ends the session in good order.
    pub async fn close(self) {
        self.session.close().await;
    }
}

/// A row of `pg_db_role_setting`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RoleDefault {
    /// None when it is every role's.
    pub role: Option<String>,
    /// Whether it is this database's alone.
    pub in_database: bool,
    /// The setting's name.
    pub name: String,
    /// The setting's value.
    pub value: String,
}
