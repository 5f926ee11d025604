//! Both servers, asked the same question at the same time, each within its time.

use std::collections::HashSet;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::digest::{Digest, Sample, digest_question, own_rows};
use crate::cutover::context::Cutover;
use crate::cutover::error::{CutoverError, Kind, Result};
use crate::cutover::node::{Node, Place};
use crate::cutover::tables::Table;
use crate::pg::session::Access;

/// The code of a statement that was cancelled, by its time limit or by a user.
const CANCELLED: &str = "57014";

/// What every other step gives a question.
const USUAL_LIMIT: Duration = Duration::from_secs(60);

/// How long it may take to cancel what runs.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);

/// What both servers said.
#[derive(Debug)]
pub(super) enum Answer<T> {
    /// The publisher's answer and the subscriber's.
    Given(T, T),
    /// One did not answer in time.
    OutOfTime,
    /// One did not want to; why.
    Refused(String),
}

/// Both servers.
pub(super) struct Sides<'a> {
    cutover: &'a Cutover,
    publisher: Side<'a>,
    subscriber: Side<'a>,
    /// Whether the same text is the same bytes on both.
    pub(super) have_same_encoding: bool,
}

/// One server.
struct Side<'a> {
    node: &'a mut Node,
    limit: Duration,
    backend: i32,
    /// Tables whose rows are those of their partitions.
    partitioned: HashSet<String>,
}

impl<'a> Side<'a> {
    async fn new(node: &'a mut Node) -> Result<(Self, String)> {
        // a policy that hides rows is to be an error, not a difference
        let _: String = node.value("select set_config('row_security', 'off', false)").await?;
        let backend = node.value("select pg_backend_pid()").await?;
        let encoding = node.value("select current_setting('server_encoding')").await?;
        let partitioned: Vec<String> = node
            .value(
                "select coalesce(json_agg(n.nspname || '.' || c.relname), '[]') \
                 from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.relkind = 'p'",
            )
            .await?;
        let partitioned = partitioned.into_iter().collect();
        Ok((Self { node, limit: Duration::ZERO, backend, partitioned }, encoding))
    }

    /// Where the table's rows are, for a FROM clause.
    fn rows_of(&self, table: &Table) -> String {
        if self.partitioned.contains(&table.label()) { table.quoted() } else { own_rows(table) }
    }

    async fn ask<T: DeserializeOwned>(&mut self, question: &str, limit: Duration) -> Result<Vec<T>> {
        // a limit that is somewhat shorter will do, and saves a round trip at most tables
        if self.limit > limit || self.limit < limit / 2 {
            self.node.limit(limit).await?;
            self.limit = limit;
        }
        self.node.rows(question).await
    }
}

impl<'a> Sides<'a> {
    pub(super) async fn new(cutover: &'a Cutover, publisher: &'a mut Node, subscriber: &'a mut Node) -> Result<Self> {
        let (publisher, subscriber) = tokio::join!(Side::new(publisher), Side::new(subscriber));
        let ((publisher, one), (subscriber, other)) = (publisher?, subscriber?);
        Ok(Self { cutover, publisher, subscriber, have_same_encoding: one == other })
    }

    /// Which server the publisher is.
    pub(super) fn publisher(&self) -> Place {
        self.publisher.node.place()
    }

    /// The publisher's session, for what only it is asked.
    pub(super) fn publisher_node(&mut self) -> &mut Node {
        self.publisher.node
    }

    /// What this run stands on.
    pub(super) fn cutover(&self) -> &'a Cutover {
        self.cutover
    }

    /// Gives later questions their usual time again.
    pub(super) async fn restore_limits(&mut self) -> Result<()> {
        for side in [&mut self.publisher, &mut self.subscriber] {
            side.limit = USUAL_LIMIT;
            side.node.limit(USUAL_LIMIT).await?;
        }
        Ok(())
    }

    /// A table's digests.
    pub(super) async fn digests(&mut self, table: &Table, sample: Sample, limit: Duration) -> Result<Answer<Digest>> {
        let answer = self.ask(table, limit, |from| digest_question(table, from, sample)).await?;
        Ok(match answer {
            Answer::Given(one, other) => match (<[Digest; 1]>::try_from(one), <[Digest; 1]>::try_from(other)) {
                (Ok([one]), Ok([other])) => Answer::Given(one, other),
                _ => return Err(CutoverError::failed(format!("counting {} gave no answer", table.label()))),
            },
            Answer::OutOfTime => Answer::OutOfTime,
            Answer::Refused(why) => Answer::Refused(why),
        })
    }

    /// Asks both sides about a table at the same time; `question` is told where its rows are.
    pub(super) async fn ask<T: DeserializeOwned>(
        &mut self,
        table: &Table,
        limit: Duration,
        question: impl Fn(&str) -> String,
    ) -> Result<Answer<Vec<T>>> {
        let (cutover, began) = (self.cutover, Instant::now());
        let backends = [&self.publisher, &self.subscriber].map(|side| (side.node.place(), side.backend));
        let questions = [&self.publisher, &self.subscriber].map(|side| question(&side.rows_of(table)));
        let asking =
            async { tokio::join!(self.publisher.ask(&questions[0], limit), self.subscriber.ask(&questions[1], limit)) };
        let mut asking = std::pin::pin!(asking);
        let (one, other) = tokio::select! {
            biased;
            answers = &mut asking => answers,
            Err(interrupted) = cutover.pause(Duration::MAX) => {
                cancel(cutover, backends).await;
                // the sessions can be used again once both questions have ended
                let _ = tokio::time::timeout(CANCEL_TIMEOUT, asking).await;
                return Err(interrupted);
            }
        };
        tracing::debug!("asked both sides about {} in {:?}", table.label(), began.elapsed());
        Ok(match (judged(one)?, judged(other)?) {
            (Ok(one), Ok(other)) => Answer::Given(one, other),
            (Err(Some(why)), _) | (_, Err(Some(why))) => Answer::Refused(why),
            _ => Answer::OutOfTime,
        })
    }
}

/// Tells what ends the comparison from what only spoils it for one table: why, or none for lack of time.
fn judged<T>(answer: Result<T>) -> Result<std::result::Result<T, Option<String>>> {
    match answer {
        Ok(answer) => Ok(Ok(answer)),
        Err(failed) if failed.sqlstate() == Some(CANCELLED) => Ok(Err(None)),
        Err(failed) if failed.kind() == Kind::User => {
            let detail = failed.detail().map_or(String::new(), |detail| format!(". {detail}"));
            Ok(Err(Some(format!("{failed}{detail}"))))
        }
        Err(failed) => Err(failed),
    }
}

/// Ends what runs on both servers, each from a session of its own.
async fn cancel(cutover: &Cutover, backends: [(Place, i32); 2]) {
    let one = async |(place, backend): (Place, i32)| {
        let mut node = cutover.connect(place, Access::ReadOnly).await?;
        let _: bool = node.value(&format!("select pg_cancel_backend({backend})")).await?;
        node.close().await;
        Ok::<_, CutoverError>(())
    };
    let [publisher, subscriber] = backends;
    let both = async { tokio::join!(one(publisher), one(subscriber)) };
    if !matches!(tokio::time::timeout(CANCEL_TIMEOUT, both).await, Ok((Ok(()), Ok(())))) {
        tracing::warn!("the comparison's questions may go on on the servers for a while");
    }
}
