//! Waiting for the initial copy: for hours, over lost connections, but not for what fails again and again.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::cutover::context::Cutover;
use crate::cutover::error::{CutoverError, Kind, Result};
use crate::cutover::node::{Node, Place};
use crate::cutover::quantity::time_text;
use crate::cutover::replicate::preconditions::filled;
use crate::cutover::replication::link::Link;
use crate::cutover::replication::slot;
use crate::cutover::replication::subscription::{self, CopyState, TableState};
use crate::cutover::replication::workers::{self, Workers};
use crate::cutover::tables::Table;
use crate::pg::session::Access;

/// How often the subscriber is looked at.
const POLL: Duration = Duration::from_millis(500);

/// How often a wait says how it goes.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

/// How long a table may be without the worker that was copying it until its rows are looked at.
const COPY_PATIENCE: Duration = Duration::from_secs(3);

/// How often workers may fail meanwhile: the server starts them anew every five seconds or so.
const FAILURES: i64 = 3;

/// How long no worker may follow.
const FOLLOW_PATIENCE: Duration = Duration::from_secs(60);

/// How long a server may be away.
const AWAY_PATIENCE: Duration = Duration::from_secs(300);

/// How many names a line repeats.
const SHOWN: usize = 5;

/// Waits until every table of the subscription follows the publisher.
///
/// # Errors
///
/// When the slot or the subscription is gone, when a table's copy or the following fails again and again, when a server is
/// away for five minutes, or when the user asks for the end. What is under way goes on; waiting again goes on as well.
pub(super) async fn wait(cutover: &Cutover, link: &Link, tables: &[Table]) -> Result<()> {
    if !cutover.rehearsal.permits("wait", "until all tables are copied and followed") {
        return Ok(());
    }
    let mut wait = Wait { link, tables, trouble: Trouble::default(), away_since: None };
    let mut told = Instant::now();
    let mut nodes = None;
    loop {
        let so_far = match wait.look(cutover, &mut nodes).await {
            Ok(None) => return Ok(()),
            Ok(Some(so_far)) => so_far,
            Err(failed) => wait.bear(failed, &mut nodes)?,
        };
        if told.elapsed() >= PROGRESS_INTERVAL {
            told = Instant::now();
            tracing::info!("{so_far}");
        }
        cutover.pause(POLL).await?;
    }
}

struct Wait<'a> {
    link: &'a Link,
    tables: &'a [Table],
    trouble: Trouble,
    away_since: Option<Instant>,
}

/// What looks wrong, and since when.
#[derive(Debug, Default)]
struct Trouble {
    not_following_since: Option<Instant>,
    without_worker_since: HashMap<String, Instant>,
    first_errors: Option<(i64, i64)>,
}

impl Wait<'_> {
    /// How it goes; none when it is done.
    async fn look(&mut self, cutover: &Cutover, nodes: &mut Option<(Node, Node)>) -> Result<Option<String>> {
        if nodes.is_none() {
            let publisher = connect(cutover, self.link.publisher).await?;
            *nodes = Some((publisher, connect(cutover, self.link.subscriber).await?));
        }
        let (publisher, subscriber) = nodes.as_mut().expect("it was just connected");
        let states = subscription::table_states(subscriber, self.link).await?;
        if states.is_empty() && subscription::find(subscriber, self.link).await?.is_none() {
            return Err(gone(self.link));
        }
        check_slot(publisher, self.link).await?;
        let workers = workers::look(subscriber, self.link).await?;
        self.away_since = None;
        if states.iter().all(|table| table.state == CopyState::Ready) {
            return Ok(None);
        }
        self.judge(subscriber, &states, &workers).await?;
        Ok(Some(told(&states, &workers)))
    }

    /// A server that is away is waited for.
    fn bear(&mut self, failed: CutoverError, nodes: &mut Option<(Node, Node)>) -> Result<String> {
        if failed.kind() != Kind::Unexpected && !failed.is_unreachable() {
            return Err(failed);
        }
        *nodes = None;
        self.trouble = Trouble::default();
        let since = *self.away_since.get_or_insert_with(Instant::now);
        if since.elapsed() > AWAY_PATIENCE {
            return Err(failed.with_hint("The copy goes on where it can; run this again to wait on."));
        }
        Ok(format!("a server is away since {}: {failed}", time_text(since.elapsed())))
    }

    async fn judge(&mut self, subscriber: &mut Node, states: &[TableState], workers: &Workers) -> Result<()> {
        let place = subscriber.place();
        let log = format!("The log of the {place}'s server says why.");
        let idle = idle(states, workers);
        self.trouble.without_worker_since.retain(|label, _| idle.contains(label));
        for label in &idle {
            self.trouble.without_worker_since.entry(label.clone()).or_insert_with(Instant::now);
        }
        let failures = self.trouble.failures(workers);
        let is_suspect = |table: &&Table| {
            let since = self.trouble.without_worker_since.get(&table.label());
            since.is_some_and(|since| since.elapsed() > COPY_PATIENCE || failures.copy >= FAILURES)
        };
        let suspects: Vec<&Table> = self.tables.iter().filter(is_suspect).collect();
        if let Some(table) = self.with_rows_of_its_own(subscriber, &suspects).await? {
            return Err(conflict(place, table, &log));
        }
        if failures.copy >= FAILURES {
            let which = if idle.is_empty() { "a table".to_owned() } else { shortened(&idle) };
            return Err(CutoverError::refused(format!("copying fails again and again on the {place}: {which}"))
                .with_detail(format!("{} tries failed since this waits. {log}", failures.copy))
                .with_hint("Mend what it says and run this again; the copy begins anew by itself."));
        }
        if failures.apply >= FAILURES {
            return Err(CutoverError::refused(format!("following the publisher fails again and again on the {place}"))
                .with_detail(format!("{} tries failed since this waits. {log}", failures.apply))
                .with_hint(format!("Most often somebody writes to the {place}, or a table or a column is missing there: mend it, and run this again.")));
        }
        if workers.is_following {
            self.trouble.not_following_since = None;
        } else {
            let since = *self.trouble.not_following_since.get_or_insert_with(Instant::now);
            if since.elapsed() > FOLLOW_PATIENCE {
                return Err(CutoverError::refused(format!("no worker of the {place} follows the {}", self.link.publisher))
                    .with_detail(format!("None was seen for {}. {log}", time_text(since.elapsed())))
                    .with_hint("See whether it can still reach the publisher and log in there, whether the subscription is enabled, and max_logical_replication_workers and max_worker_processes; then run this again."));
            }
        }
        Ok(())
    }
}

impl Wait<'_> {
    /// A table whose copy is not over although it has rows: a copy is one transaction, so they are not its own.
    async fn with_rows_of_its_own<'t>(
        &self,
        subscriber: &mut Node,
        suspects: &[&'t Table],
    ) -> Result<Option<&'t Table>> {
        if suspects.is_empty() {
            return Ok(None);
        }
        let filled = filled(subscriber, suspects).await?;
        // the copy may have ended between the looks
        let states = subscription::table_states(subscriber, self.link).await?;
        let is_copying =
            |label: &String| states.iter().any(|it| it.state == CopyState::Copying && it.label() == *label);
        Ok(suspects
            .iter()
            .find(|table| {
                let label = table.label();
                filled.contains(&label) && is_copying(&label)
            })
            .copied())
    }
}

/// How often workers failed since this waits; 0 where the server does not count.
#[derive(Debug, Clone, Copy)]
struct Failures {
    apply: i64,
    copy: i64,
}

impl Trouble {
    fn failures(&mut self, workers: &Workers) -> Failures {
        let (Some(apply), Some(copy)) = (workers.apply_errors, workers.copy_errors) else {
            return Failures { apply: 0, copy: 0 };
        };
        let (first_apply, first_copy) = *self.first_errors.get_or_insert((apply, copy));
        Failures { apply: apply - first_apply, copy: copy - first_copy }
    }
}

async fn connect(cutover: &Cutover, place: Place) -> Result<Node> {
    cutover.connect(place, Access::ReadOnly).await
}

/// Checks that the slot of a subscription is there and of use.
///
/// # Errors
///
/// When it is not: then the copy has to begin anew.
pub(super) async fn check_slot(publisher: &mut Node, link: &Link) -> Result<()> {
    let why = match slot::find(publisher, link).await? {
        None => "was dropped".to_owned(),
        Some(slot) => match slot.lost {
            None => return Ok(()),
            Some(why) => format!("was taken away by the server ({why})"),
        },
    };
    Err(CutoverError::refused(format!("the slot \"{}\" on the {} {why}", link.slot, link.publisher))
        .with_detail(format!(
            "What was written since is not kept for the {}: it cannot catch up. The {} can be written to as before.",
            link.subscriber, link.publisher
        ))
        .with_hint(format!(
            "Run cutover abort, TRUNCATE the tables on the {}, and run cutover replicate again, which copies anew.",
            link.subscriber
        )))
}

pub(super) fn gone(link: &Link) -> CutoverError {
    CutoverError::refused(format!("the subscription \"{}\" is gone from the {}", link.subscription, link.subscriber))
        .with_hint(format!(
            "Run cutover abort, TRUNCATE the tables on the {}, and run cutover replicate again, which copies anew.",
            link.subscriber
        ))
}

fn conflict(place: Place, table: &Table, log: &str) -> CutoverError {
    CutoverError::refused(format!("the copy of {} cannot be finished: it has rows of its own on the {place}", table.label()))
        .with_detail(format!("They were not copied from the publisher, and most likely a key is there twice. {log}"))
        .with_hint(format!(
            "Keep others from writing to the {place}, run there: truncate {}; and run this again: the copy begins anew by itself.",
            table.quoted()
        ))
}

/// Tables whose copy has begun and has no worker.
pub(in crate::cutover) fn idle(states: &[TableState], workers: &Workers) -> Vec<String> {
    let idle = states.iter().filter(|table| table.state == CopyState::Copying).map(TableState::label);
    idle.filter(|label| !workers.copying.contains(label)).collect()
}

fn told(states: &[TableState], workers: &Workers) -> String {
    let ready = states.iter().filter(|table| table.state == CopyState::Ready).count();
    let copying = match workers.copying.is_empty() {
        true => String::new(),
        false => format!("; under way: {}", shortened(&workers.copying)),
    };
    format!("{ready} of {} tables are copied and followed{copying}", states.len())
}

fn shortened(names: &[String]) -> String {
    let mut text = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}
