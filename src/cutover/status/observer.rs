//! Looks at the servers of a cutover, again and again if asked to, and changes nothing.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use serde::Deserialize;
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::cutover::context::Cutover;
use crate::cutover::error::Result;
use crate::cutover::journal::{Journal, Mark};
use crate::cutover::node::{Node, Place};
use crate::cutover::replicate::copy_wait::idle;
use crate::cutover::replication::link::{Direction, Link};
use crate::cutover::replication::subscription::{self, CopyState, Subscription, TableState};
use crate::cutover::replication::workers::{self, Workers};
use crate::cutover::status::retained_wal::{idle_slots, retained};
use crate::cutover::status::{
    Circumstances, IdleSlot, Lag, Phase, Replay, Retained, Status, TableProgress, Total, warnings,
};
use crate::cutover::tables::{OWN_SCHEMA, tables};
use crate::pg::conninfo::Conninfo;
use crate::pg::session::Access;
use crate::pg::version::Major;

/// How long the publisher's sizes hold good.
const SIZES_AGE: Duration = Duration::from_secs(60);

/// How long an answer may take before a server counts as away.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Over how long rates are told.
const RATE_SPAN: Duration = Duration::from_secs(30);

/// Sees a cutover.
#[derive(Debug)]
pub struct Observer<'a> {
    cutover: &'a Cutover,
    replica: Option<Node>,
    target: Option<Node>,
    sizes: Option<(Instant, HashMap<String, Size>)>,
    samples: VecDeque<(Instant, HashMap<String, u64>)>,
    /// Tables that had no worker at the last look although their copy has begun.
    idle: HashSet<String>,
}

/// A table on the publisher.
#[derive(Debug, Clone, Copy, Default)]
struct Size {
    bytes: u64,
    rows: Option<u64>,
}

/// What the publisher shows.
#[derive(Debug, Default)]
struct Published {
    replay: Option<Replay>,
    lag: Option<Lag>,
    retained: Option<Retained>,
    idle_slots: Vec<IdleSlot>,
}

/// What the subscriber shows.
#[derive(Debug, Default)]
struct Subscribed {
    subscription: Option<Subscription>,
    states: Vec<TableState>,
    workers: Option<Workers>,
    copies: HashMap<String, Copy>,
}

/// A table that is not ready, on the subscriber.
#[derive(Debug, Clone, Deserialize)]
struct Copy {
    label: String,
    bytes: u64,
    rows: Option<u64>,
}

impl<'a> Observer<'a> {
    /// Nobody is asked yet.
    pub fn new(cutover: &'a Cutover) -> Self {
        Self { cutover, replica: None, target: None, sizes: None, samples: VecDeque::new(), idle: HashSet::new() }
    }

    /// Looks once. A server that does not answer is told of in the status, and tried again at the next look.
    pub async fn look(&mut self) -> Status {
        let mut away = Vec::new();
        let link = self.link(&mut away).await;
        // in this order: a copy's slot is then seen as in use for as long as the table is not ready
        let subscribed = match self.subscribed(&link).await {
            Ok(subscribed) => subscribed,
            Err(failed) => {
                *self.node(link.subscriber) = None;
                note(&mut away, link.subscriber, &failed);
                None
            }
        };
        let published = match self.published(&link).await {
            Ok(published) => published,
            Err(failed) => {
                *self.node(link.publisher) = None;
                note(&mut away, link.publisher, &failed);
                None
            }
        };
        self.picture(&link, published, subscribed, away)
    }

    /// The way back, once it is the one that is there.
    async fn link(&mut self, away: &mut Vec<String>) -> Link {
        let forward = Link::new(&self.cutover.plan, Direction::Forward);
        let back = Link::new(&self.cutover.plan, Direction::Back);
        if self.cutover.plan.reverse.is_none() {
            return forward;
        }
        let place = back.subscriber;
        match self.has_subscription(&back).await {
            Ok(true) => back,
            Ok(false) => forward,
            Err(failed) => {
                *self.node(place) = None;
                note(away, place, &failed);
                // the target keeps WAL for the way back all the same
                if has_way_back(&self.cutover.journal) { back } else { forward }
            }
        }
    }

    async fn has_subscription(&mut self, link: &Link) -> Result<bool> {
        let Some(node) = self.connected(link.subscriber).await? else { return Ok(false) };
        Ok(subscription::find(node, link).await?.is_some())
    }

    fn node(&mut self, place: Place) -> &mut Option<Node> {
        if place == Place::Target { &mut self.target } else { &mut self.replica }
    }

    fn conninfo(&self, place: Place) -> Option<&Conninfo> {
        let plan = &self.cutover.plan;
        if place == Place::Target { plan.target.as_ref() } else { plan.replica.as_ref() }
    }

    /// None when the plan does not have that server.
    async fn connected(&mut self, place: Place) -> Result<Option<&mut Node>> {
        if self.conninfo(place).is_none() {
            return Ok(None);
        }
        if self.node(place).is_none() {
            let mut node = self.cutover.connect(place, Access::ReadOnly).await?;
            node.limit(ANSWER_TIMEOUT).await?;
            *self.node(place) = Some(node);
        }
        Ok(self.node(place).as_mut())
    }

    async fn published(&mut self, link: &Link) -> Result<Option<Published>> {
        let is_local =
            self.conninfo(link.publisher).and_then(|it| it.get("host")).is_some_and(|it| it.starts_with('/'));
        let limit_bytes = self.cutover.plan.replication.retained_wal_limit;
        let selection = self.cutover.plan.replication.tables.clone();
        let are_fresh = self.sizes.as_ref().is_some_and(|(at, _)| at.elapsed() < SIZES_AGE);
        let Some(node) = self.connected(link.publisher).await? else { return Ok(None) };
        if node.is_in_recovery().await? {
            let replay = node
                .row(
                    "select pg_last_wal_replay_lsn()::text as lsn, pg_is_wal_replay_paused() as is_paused, \
                            extract(epoch from clock_timestamp() - pg_last_xact_replay_timestamp())::float8 as seconds_behind, \
                            (select timeline_id from pg_control_checkpoint()) as timeline",
                )
                .await?;
            return Ok(Some(Published { replay: Some(replay), ..Published::default() }));
        }
        let mut published = Published { idle_slots: idle_slots(node).await?, ..Published::default() };
        if let Some((retained, lag)) = retained(node, link, limit_bytes, is_local).await? {
            (published.retained, published.lag) = (Some(retained), lag);
        }
        if !are_fresh {
            let size = |table: &crate::cutover::tables::Table| {
                let rows = (table.estimated_rows > 0.0).then_some(table.estimated_rows as u64);
                (table.label(), Size { bytes: table.bytes, rows })
            };
            let sizes = tables(node, selection.as_deref()).await?.iter().map(size).collect();
            self.sizes = Some((Instant::now(), sizes));
        }
        Ok(Some(published))
    }

    async fn subscribed(&mut self, link: &Link) -> Result<Option<Subscribed>> {
        let Some(node) = self.connected(link.subscriber).await? else { return Ok(None) };
        let found = subscription::find(node, link).await?;
        if found.is_none() {
            return Ok(Some(Subscribed::default()));
        }
        let mut states = subscription::table_states(node, link).await?;
        states.retain(|table| table.schema != OWN_SCHEMA);
        let copies = match states.iter().all(|table| table.state == CopyState::Ready) {
            true => Vec::new(),
            false => copies(node, link).await?,
        };
        Ok(Some(Subscribed {
            subscription: found,
            states,
            workers: Some(workers::look(node, link).await?),
            copies: copies.into_iter().map(|copy| (copy.label.clone(), copy)).collect(),
        }))
    }

    fn picture(
        &mut self,
        link: &Link,
        published: Option<Published>,
        subscribed: Option<Subscribed>,
        away: Vec<String>,
    ) -> Status {
        let idle: HashSet<String> = subscribed
            .as_ref()
            .and_then(|it| it.workers.as_ref().map(|workers| idle(&it.states, workers).into_iter().collect()))
            .unwrap_or_default();
        // between two of its workers a table has none for a moment
        let mut without_worker: Vec<_> = idle.intersection(&self.idle).cloned().collect();
        without_worker.sort();
        self.idle = idle;
        let circumstances = Circumstances {
            subscription: subscribed.as_ref().and_then(|it| it.subscription.as_ref()).map(|it| it.enabled),
            slot: link.slot.clone(),
            slot_was_asked_for: published.as_ref().is_some_and(|it| it.replay.is_none()),
            without_worker,
        };
        let phase = phase(link.direction, published.as_ref(), subscribed.as_ref());
        let mut published = published.unwrap_or_default();
        let subscribed = subscribed.unwrap_or_default();
        let is_under_way = |slot: &IdleSlot| {
            subscribed.states.iter().any(|table| table.state != CopyState::Ready && slot.is_of_copy_of(table.oid))
        };
        published.idle_slots.retain(|slot| !is_under_way(slot));
        let mut tables = self.progress(&subscribed);
        let mut total = Total::of(&tables);
        self.rate(&mut tables, &mut total);
        tables.sort_by_cached_key(|table| (table.rank(), table.name.clone()));
        let mut status = Status {
            at: OffsetDateTime::now_utc(),
            phase,
            direction: link.direction,
            replay: published.replay,
            total,
            tables,
            lag: published.lag,
            retained: published.retained,
            idle_slots: published.idle_slots,
            workers: subscribed.workers,
            warnings: Vec::new(),
            away,
        };
        status.warnings = warnings(&status, &circumstances);
        status
    }

    fn progress(&self, subscribed: &Subscribed) -> Vec<TableProgress> {
        let no_sizes = HashMap::new();
        let sizes = self.sizes.as_ref().map_or(&no_sizes, |(_, sizes)| sizes);
        let table = |state: &TableState| {
            let name = state.label();
            let size = sizes.get(&name).copied().unwrap_or_default();
            let copy = subscribed.copies.get(&name);
            let mut table = TableProgress {
                name,
                state: state.state,
                rows: None,
                rows_total: size.rows,
                bytes: 0,
                bytes_total: size.bytes,
                bytes_per_second: None,
                seconds_left: None,
            };
            if table.is_copied() {
                table.bytes = size.bytes;
            } else if let Some(copy) = copy.filter(|_| state.state == CopyState::Copying) {
                table.rows = copy.rows;
                table.bytes = copied_bytes(size, copy);
            }
            table
        };
        subscribed.states.iter().map(table).collect()
    }

    /// Compares with the looks before this one.
    fn rate(&mut self, tables: &mut [TableProgress], total: &mut Total) {
        let now = Instant::now();
        while self.samples.len() > 1 && self.samples.front().is_some_and(|(at, _)| at.elapsed() > RATE_SPAN) {
            self.samples.pop_front();
        }
        if let Some((at, before)) = self.samples.front() {
            let seconds = (now - *at).as_secs_f64().max(0.001);
            let rate = |now: u64, before: u64| (now.saturating_sub(before) as f64 / seconds) as u64;
            let left = |bytes: u64, rate: u64| bytes.checked_div(rate);
            for table in tables.iter_mut().filter(|table| table.state == CopyState::Copying) {
                let Some(before) = before.get(&table.name) else { continue };
                let rate = rate(table.bytes, *before);
                table.bytes_per_second = Some(rate);
                table.seconds_left = left(table.bytes_total.saturating_sub(table.bytes), rate);
            }
            if total.ready < total.tables {
                let rate = rate(total.bytes, before.values().sum());
                total.bytes_per_second = Some(rate);
                total.seconds_left = left(total.bytes_total.saturating_sub(total.bytes), rate);
            }
        }
        if !tables.is_empty() {
            let sample = tables.iter().map(|table| (table.name.clone(), table.bytes)).collect();
            self.samples.push_back((now, sample));
        }
    }
}

/// Whether a finish has left a way back that no later one has gone.
fn has_way_back(journal: &Journal) -> bool {
    match journal.data(Mark::FinishBegun) {
        Some(Direction::Forward) => journal.has(Mark::ReverseReady),
        Some(Direction::Back) => !journal.has(Mark::SubscriptionDropped),
        None => false,
    }
}

fn note(away: &mut Vec<String>, place: Place, failed: &crate::cutover::error::CutoverError) {
    let mut text = crate::formats::error_line::joined(failed);
    if !text.starts_with(&place.to_string()) {
        text = format!("{place}: {text}");
    }
    if let Some(detail) = failed.detail() {
        text = format!("{text}. {detail}");
    }
    if !away.contains(&text) {
        away.push(text);
    }
}

fn phase(direction: Direction, published: Option<&Published>, subscribed: Option<&Subscribed>) -> Phase {
    let states = subscribed.filter(|it| it.subscription.is_some()).map(|it| &it.states);
    match (published, states) {
        (_, None) if direction == Direction::Back => Phase::Unknown,
        (_, Some(states)) if states.iter().all(|table| table.state == CopyState::Ready) => Phase::Following,
        (_, Some(_)) => Phase::Copying,
        (Some(published), None) if published.replay.is_some() => Phase::Replaying,
        (Some(_), None) => Phase::Promoted,
        (None, None) => Phase::Unknown,
    }
}

/// In terms of the publisher's bytes, by rows where both sides know them.
fn copied_bytes(size: Size, copy: &Copy) -> u64 {
    match (copy.rows, size.rows) {
        (Some(rows), Some(total)) => (size.bytes as f64 * (rows as f64 / total as f64).min(1.0)) as u64,
        _ => copy.bytes.min(size.bytes),
    }
}

/// Tables that are being copied: their bytes on disk, and their rows where the server counts them.
async fn copies(node: &mut Node, link: &Link) -> Result<Vec<Copy>> {
    let rows = match node.major() >= Major::new(14) {
        true => "(select max(p.tuples_processed) from pg_stat_progress_copy p where p.relid = c.oid)",
        false => "null::bigint",
    };
    node.rows(&format!(
        "select n.nspname || '.' || c.relname as label, pg_table_size(c.oid) as bytes, {rows} as rows \
         from pg_subscription_rel r join pg_class c on c.oid = r.srrelid join pg_namespace n on n.oid = c.relnamespace \
         where r.srsubid = {} and r.srsubstate = 'd'",
        subscription::oid(node.major(), link)
    ))
    .await
}
