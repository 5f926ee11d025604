//! A base backup in progress: the one connection that has to live from its start to its stop.
//!
//! A task owns the connection. It asks the server for a sign of life every few seconds, so that a backup whose
//! connection broke fails at once and not after hours of copying, and it takes the order to stop.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Row};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::backup_label::BackupLabel;
use super::server::{Server, ask, cause, from_sqlx, no_answer, number, odd_answer, text};
use super::version::Major;
use super::{Kind, PgError, Result};
use crate::formats::lsn::Lsn;
use crate::formats::wal_name::{SegmentName, SegmentSize};

/// The pause between two signs of life.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// How long the server may owe a sign of life: longer than the pauses of a busy disk, much shorter than a copy.
const PING_TIMEOUT: Duration = Duration::from_secs(60);

/// How much longer than twice `checkpoint_timeout` the start may take. The checkpoint that it waits for is spread over
/// less than that time, and may have to wait for the end of another.
const START_MARGIN: Duration = Duration::from_secs(3600);

/// The longest label that the server takes, in bytes.
const LABEL_BYTES: usize = 1024;

/// Where a backup started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackupStart {
    /// Where replay will start.
    pub lsn: Lsn,
    /// On which timeline.
    pub timeline: u32,
    /// The segment that holds it.
    pub segment: SegmentName,
    /// Its offset in the segment, in bytes.
    pub offset: u64,
}

/// Where a backup stopped, and what has to be stored with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupStop {
    /// How far replay must get: the first byte not needed.
    pub lsn: Lsn,
    /// On which timeline.
    pub timeline: u32,
    /// The last segment that is needed.
    pub segment: SegmentName,
    /// `lsn`'s offset in its segment, in bytes, as WAL-E's sentinel has it: 0 when `segment` is needed to its end.
    pub offset: u64,
    /// The content of `backup_label`.
    pub backup_label: String,
    /// The content of `tablespace_map`; empty when there are no tablespaces, and then the file should not exist.
    pub tablespace_map: String,
}

/// A base backup between its start and its stop. Dropping it closes the connection, and the server gives the backup up.
#[derive(Debug)]
pub struct BackupSession {
    start: BackupStart,
    orders: mpsc::Sender<Order>,
    end: watch::Receiver<Option<End>>,
}

/// How the task that owns the connection ended. If it ends without saying, it was not told to stop.
#[derive(Debug, Clone)]
enum End {
    Stopped,
    Lost(String),
}

/// What counts as the reason when the task did not say one.
const ENDED_UNTOLD: &str = "the session was given up";

/// What the task that owns the connection is told to do.
#[derive(Debug)]
enum Order {
    Ping(oneshot::Sender<Result<()>>),
    Stop { wait_for_archive: bool, answer: oneshot::Sender<Result<BackupStop>> },
}

impl BackupSession {
    /// Starts a non-exclusive base backup, which holds the server's connection until it stops. With `fast` the server does its
    /// checkpoint at once; else it spreads it, and this takes minutes.
    ///
    /// Dropping the future ends the connection, and with it the backup.
    ///
    /// # Errors
    ///
    /// [`Kind::Settings`] when the label has a line's end or more than 1024 bytes; [`Kind::Server`] when the server
    /// refuses, [`Kind::Lost`] when the connection breaks.
    pub async fn start(mut server: Server, label: &str, fast: bool) -> Result<Self> {
        if label.len() > LABEL_BYTES || label.contains(['\n', '\r', '\0']) {
            return Err(PgError::new(Kind::Settings, "the backup's label cannot be used")
                .with_hint(format!("Give at most {LABEL_BYTES} bytes, and no line's end.")));
        }
        let major = server.version().major();
        let functions = major.functions();
        let arguments = if major.has_exclusive_backups() { "$1, $2, false" } else { "$1, $2" };
        let statement = format!("select {}({arguments})::text", functions.start_backup);
        let limit = start_limit(&mut server.connection).await?;
        let starting = sqlx::query(AssertSqlSafe(statement)).bind(label).bind(fast).fetch_one(&mut server.connection);
        let row = match timeout(limit, starting).await {
            Ok(row) => row.map_err(|e| from_sqlx(Kind::Lost, "could not start the backup", e))?,
            Err(_) => {
                return Err(PgError::new(Kind::Lost, "the server's checkpoint takes too long to start the backup")
                    .with_detail(format!("It was waited for {} s.", limit.as_secs())));
            }
        };
        let lsn = lsn(&row, 0)?;

        // The start's checkpoint (on a standby, the restartpoint that it starts from) is in the control file by now.
        // pg_walfile_name is of no use: it refuses on a standby.
        let row = ask(&mut server.connection, "select timeline_id::text from pg_control_checkpoint()").await?;
        let timeline = number(&row, 0)?;
        let size = server.wal_segment_size();
        let segment = SegmentName::containing(timeline, lsn, size);
        let start = BackupStart { lsn, timeline, segment, offset: lsn.0 % size.bytes() };

        let (orders, inbox) = mpsc::channel(1);
        let (report_end, end) = watch::channel(None);
        let session = Session { connection: server.connection, major, start, size };
        tokio::spawn(session.run(inbox, report_end));
        Ok(Self { start, orders, end })
    }

    /// Where the backup started.
    pub fn started(&self) -> BackupStart {
        self.start
    }

    /// Resolves when the connection has broken, which ends the backup: race the copy against it. It does not borrow
    /// the session, and dropping it is safe. It never resolves once the backup has been told to stop.
    pub fn lost(&self) -> impl Future<Output = PgError> + Send + 'static {
        let mut end = self.end.clone();
        async move {
            let end = end.wait_for(Option::is_some).await.map(|end| end.clone());
            match end {
                Ok(Some(End::Stopped)) => std::future::pending().await,
                Ok(Some(End::Lost(reason))) => lost_error(&reason),
                Ok(None) | Err(_) => lost_error(ENDED_UNTOLD),
            }
        }
    }

    /// Asks the server for a sign of life now.
    ///
    /// # Errors
    ///
    /// [`Kind::Lost`] when there is none.
    pub async fn ping(&self) -> Result<()> {
        let (answer, answered) = oneshot::channel();
        // A closed channel means that the task has ended, which only a loss makes it do.
        let _ = self.orders.send(Order::Ping(answer)).await;
        match answered.await {
            Ok(alive) => alive,
            Err(_) => Err(self.why_lost()),
        }
    }

    /// Stops the backup and ends the session. With `wait_for_archive` the server waits until it has archived the last
    /// segment that is needed (a standby only if its `archive_mode` is `always`); 9.6 always does. That can take as
    /// long as the archive is down, hence `limit`. Without it, the caller has to see to it that the segments arrive.
    ///
    /// Dropping the future ends the connection; the backup must then count as failed.
    ///
    /// # Errors
    ///
    /// [`Kind::Lost`] when the connection broke before, [`Kind::Server`] when the server says that the backup is void
    /// (a standby that was promoted meanwhile, or a primary that wrote without full pages), [`Kind::Refused`] when it
    /// did not answer within `limit`, [`Kind::Damaged`] when the label contradicts the start.
    pub async fn stop(self, wait_for_archive: bool, limit: Duration) -> Result<BackupStop> {
        let (answer, answered) = oneshot::channel();
        let stopping = async {
            let _ = self.orders.send(Order::Stop { wait_for_archive, answer }).await;
            match answered.await {
                Ok(stop) => stop,
                Err(_) => Err(self.why_lost()),
            }
        };
        match timeout(limit, stopping).await {
            Ok(stop) => stop,
            Err(_) => Err(PgError::new(Kind::Refused, "the server did not stop the backup in time")
                .with_detail(format!("It was waited for {} s.", limit.as_secs()))
                .with_hint("It may be waiting for the log to be archived: see its log and pg_stat_archiver.")),
        }
    }

    fn why_lost(&self) -> PgError {
        match &*self.end.borrow() {
            Some(End::Lost(reason)) => lost_error(reason),
            Some(End::Stopped) | None => lost_error(ENDED_UNTOLD),
        }
    }
}

fn lost_error(reason: &str) -> PgError {
    PgError::new(Kind::Lost, "the connection that held the backup is lost")
        .with_detail(format!("The reason is: {reason}."))
        .with_hint("The server has given the backup up. Start it again.")
}

/// What the task owns.
struct Session {
    connection: PgConnection,
    major: Major,
    start: BackupStart,
    size: SegmentSize,
}

impl Session {
    /// Serves orders and watches the connection until it is told to stop, the session is dropped or the connection
    /// breaks.
    async fn run(mut self, mut inbox: mpsc::Receiver<Order>, report_end: watch::Sender<Option<End>>) {
        let mut pings = interval(PING_INTERVAL);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let order = tokio::select! {
                biased;
                order = inbox.recv() => match order {
                    Some(order) => Some(order),
                    None => return,
                },
                _ = pings.tick() => None,
            };
            let (alive, answer) = match order {
                None => (self.ping().await, None),
                Some(Order::Ping(answer)) => (self.ping().await, Some(answer)),
                Some(Order::Stop { wait_for_archive, mut answer }) => {
                    report_end.send_replace(Some(End::Stopped));
                    let stopped = tokio::select! {
                        stopped = self.stop(wait_for_archive) => stopped,
                        // Nobody waits any more: close the connection.
                        () = answer.closed() => return,
                    };
                    let _ = answer.send(stopped);
                    // The server ends the session either way.
                    let _ = timeout(PING_TIMEOUT, self.connection.close()).await;
                    return;
                }
            };
            if let Err(e) = &alive {
                report_end.send_replace(Some(End::Lost(reason(e))));
            }
            let is_lost = alive.is_err();
            if let Some(answer) = answer {
                let _ = answer.send(alive);
            }
            if is_lost {
                return;
            }
        }
    }

    async fn ping(&mut self) -> Result<()> {
        match timeout(PING_TIMEOUT, sqlx::query("select 1").execute(&mut self.connection)).await {
            Ok(Ok(_)) => Ok(()),
            // Whatever the server says to this, the session is not what it has to be.
            Ok(Err(e)) => Err(PgError::new(Kind::Lost, "the server gave no sign of life").with_source(cause(e))),
            Err(_) => Err(no_answer()),
        }
    }

    async fn stop(&mut self, wait_for_archive: bool) -> Result<BackupStop> {
        let function = self.major.functions().stop_backup;
        let arguments = match (self.major.has_exclusive_backups(), self.major.can_stop_without_waiting()) {
            (true, false) => "false".to_owned(),
            (true, true) => format!("false, {wait_for_archive}"),
            (false, _) => format!("{wait_for_archive}"),
        };
        let statement = format!("select lsn::text, labelfile, coalesce(spcmapfile, '') from {function}({arguments})");
        let row = sqlx::query(AssertSqlSafe(statement)).fetch_one(&mut self.connection).await;
        let row = row.map_err(|e| from_sqlx(Kind::Lost, "could not stop the backup", e))?;
        let (lsn, backup_label, tablespace_map) = (lsn(&row, 0)?, text(&row, 1)?, text(&row, 2)?);
        let label = BackupLabel::parse(&backup_label)?;
        if (label.start, label.segment) != (self.start.lsn, self.start.segment) {
            return Err(PgError::new(Kind::Damaged, "the backup label contradicts the backup's start").with_detail(
                format!(
                    "It says {} in {}; the start was {} in {}.",
                    label.start, label.segment, self.start.lsn, self.start.segment
                ),
            ));
        }
        // A standby may have followed its primary to a new timeline; a promotion would have voided the backup.
        let question = "select case when pg_is_in_recovery() \
                        then (select nullif(min_recovery_end_timeline, 0)::text from pg_control_recovery()) \
                        else (select timeline_id::text from pg_control_checkpoint()) end";
        let row = ask(&mut self.connection, question).await?;
        let timeline: Option<String> = row.try_get(0).map_err(|e| odd_answer(0).with_source(e))?;
        let timeline = match timeline {
            Some(digits) => digits.parse().map_err(|e| odd_answer(0).with_source(e))?,
            None => label.timeline,
        };
        Ok(BackupStop {
            lsn,
            timeline,
            segment: SegmentName::ending_at(timeline, lsn, self.size),
            offset: lsn.0 % self.size.bytes(),
            backup_label,
            tablespace_map,
        })
    }
}

/// How long the start may take with the server's present `checkpoint_timeout`.
async fn start_limit(connection: &mut PgConnection) -> Result<Duration> {
    let question = "select extract(epoch from current_setting('checkpoint_timeout')::interval)::bigint::text";
    let row = ask(connection, question).await?;
    Ok(Duration::from_secs(number::<u64>(&row, 0)?.saturating_mul(2)) + START_MARGIN)
}

fn lsn(row: &sqlx::postgres::PgRow, column: usize) -> Result<Lsn> {
    text(row, column)?.parse().map_err(|e| odd_answer(column).with_source(e))
}

/// The error and its causes in one line.
fn reason(error: &PgError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
