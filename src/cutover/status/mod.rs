//! How far a cutover is, as values: what [`crate::cutover::status::observer`] sees, and what of it a person has to look at.

pub mod observer;
mod retained_wal;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::cutover::quantity::bytes_text;
use crate::cutover::replication::link::Direction;
use crate::cutover::replication::subscription::CopyState;
use crate::cutover::replication::workers::Workers;

/// Below this share of the WAL that a slot may keep at all, what is left is little.
const LITTLE_ROOM: f64 = 0.2;

/// Below this many bytes the publisher's disk is nearly full: 64 segments.
const LITTLE_DISK_BYTES: u64 = 1 << 30;

/// How many slots that nobody uses are named.
const SLOTS_SHOWN: usize = 3;

/// Where in its course a cutover is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The replica is a standby and replays the source's WAL.
    Replaying,
    /// The replica is a primary; nothing is replicated from it.
    Promoted,
    /// Tables are being copied.
    Copying,
    /// All tables are copied and followed.
    Following,
    /// The server that would tell is away.
    Unknown,
}

/// Everything there is to know at one time.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Where it is.
    pub phase: Phase,
    /// Which way is replicated.
    pub direction: Direction,
    /// The standby's replay, before the promotion.
    pub replay: Option<Replay>,
    /// All tables together.
    pub total: Total,
    /// Every table of the subscription, what is under way first.
    pub tables: Vec<TableProgress>,
    /// How far the subscriber is behind.
    pub lag: Option<Lag>,
    /// What the publisher keeps for it.
    pub retained: Option<Retained>,
    /// Slots that nobody uses, and that keep WAL all the same.
    pub idle_slots: Vec<IdleSlot>,
    /// The subscriber's workers.
    pub workers: Option<Workers>,
    /// What a person has to look at, as whole sentences.
    pub warnings: Vec<String>,
    /// Servers that could not be asked, and why.
    pub away: Vec<String>,
}

/// A standby's replay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Replay {
    /// Up to where.
    pub lsn: Option<String>,
    /// How old the last transaction is that was replayed, in seconds.
    pub seconds_behind: Option<f64>,
    /// Whether it was told to stand still.
    pub is_paused: bool,
    /// Its timeline.
    pub timeline: u32,
}

/// A table of the subscription.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TableProgress {
    /// `schema.name`.
    pub name: String,
    /// How far it is.
    pub state: CopyState,
    /// Rows that were copied, where the server counts them (from 14).
    pub rows: Option<u64>,
    /// The publisher's rows as far as its last ANALYZE knows.
    pub rows_total: Option<u64>,
    /// Bytes that were copied, in terms of the publisher's.
    pub bytes: u64,
    /// The publisher's bytes without indexes.
    pub bytes_total: u64,
    /// How fast, between the last two looks.
    pub bytes_per_second: Option<u64>,
    /// How long it takes at that rate.
    pub seconds_left: Option<u64>,
}

impl IdleSlot {
    /// Whether a subscription made it to copy this table of the subscriber: `pg_SUBSCRIPTION_sync_TABLE_SYSTEM`.
    pub fn is_of_copy_of(&self, table: u32) -> bool {
        self.is_of_copy && self.name.split('_').nth(3) == Some(&table.to_string())
    }
}

impl TableProgress {
    /// Whether its rows are there.
    pub fn is_copied(&self) -> bool {
        matches!(self.state, CopyState::Copied | CopyState::CaughtUp | CopyState::Ready)
    }

    /// What is under way comes first, then what waits, the largest first; what is ready comes last.
    pub fn rank(&self) -> (u8, std::cmp::Reverse<u64>) {
        let rank = match self.state {
            CopyState::Copying => 0,
            CopyState::Copied => 1,
            CopyState::CaughtUp => 2,
            CopyState::Waiting => 3,
            CopyState::Ready => 4,
        };
        (rank, std::cmp::Reverse(self.bytes_total))
    }
}

/// All tables together.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Total {
    /// How many there are.
    pub tables: usize,
    /// How many wait.
    pub waiting: usize,
    /// How many are being copied.
    pub copying: usize,
    /// How many are copied and catch up.
    pub catching_up: usize,
    /// How many follow the publisher.
    pub ready: usize,
    /// Bytes that were copied, in terms of the publisher's.
    pub bytes: u64,
    /// The publisher's bytes without indexes.
    pub bytes_total: u64,
    /// How fast, over the last looks.
    pub bytes_per_second: Option<u64>,
    /// How long the rest takes at that rate.
    pub seconds_left: Option<u64>,
}

impl Total {
    /// Adds the tables up.
    pub fn of(tables: &[TableProgress]) -> Self {
        let count = |states: &[CopyState]| tables.iter().filter(|table| states.contains(&table.state)).count();
        Self {
            tables: tables.len(),
            waiting: count(&[CopyState::Waiting]),
            copying: count(&[CopyState::Copying]),
            catching_up: count(&[CopyState::Copied, CopyState::CaughtUp]),
            ready: count(&[CopyState::Ready]),
            bytes: tables.iter().map(|table| table.bytes).sum(),
            bytes_total: tables.iter().map(|table| table.bytes_total).sum(),
            bytes_per_second: None,
            seconds_left: None,
        }
    }
}

/// How far the subscriber is behind, as its walsender knows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lag {
    /// The walsender's state: "catchup" or "streaming".
    pub state: String,
    /// Bytes that were not sent yet.
    pub sent_bytes: i64,
    /// Bytes that were not written yet.
    pub write_bytes: i64,
    /// Bytes that were not flushed yet.
    pub flush_bytes: i64,
    /// Bytes that were not applied yet.
    pub replay_bytes: i64,
    /// The time until they are written; none while there is nothing to write. So for the next ones.
    pub write_seconds: Option<f64>,
    /// The time until they are flushed.
    pub flush_seconds: Option<f64>,
    /// The time until they are applied.
    pub replay_seconds: Option<f64>,
}

/// What the publisher keeps for the subscriber.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Retained {
    /// Bytes of WAL.
    pub bytes: u64,
    /// The plan's limit, in bytes.
    pub limit_bytes: u64,
    /// How many bytes may still be written until the server gives the slot up; none without such a limit, and before 13.
    pub safe_bytes: Option<i64>,
    /// How many bytes are free where the WAL is; none where this program does not run on the publisher's host.
    pub disk_bytes: Option<u64>,
    /// Whether the slot is in use.
    pub is_active: bool,
    /// Why the slot is of no use any more.
    pub lost: Option<String>,
}

/// A slot that nobody uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdleSlot {
    /// Its name.
    pub name: String,
    /// Bytes of WAL that it keeps.
    pub bytes: u64,
    /// Whether a subscription made it to copy a table.
    pub is_of_copy: bool,
}

/// What else the warnings depend on.
#[derive(Debug, Clone, Default)]
pub struct Circumstances {
    /// Whether there is a subscription, and whether it is enabled.
    pub subscription: Option<bool>,
    /// The slot's name.
    pub slot: String,
    /// Whether the slot could be looked for.
    pub slot_was_asked_for: bool,
    /// The tables whose copy has begun and has no worker.
    pub without_worker: Vec<String>,
}

/// What a person has to look at, the worst first.
pub fn warnings(status: &Status, circumstances: &Circumstances) -> Vec<String> {
    let mut warnings = Vec::new();
    let Circumstances { subscription, slot, slot_was_asked_for, without_worker } = circumstances;
    if status.replay.as_ref().is_some_and(|replay| replay.is_paused) {
        warnings.push("The replica's replay is paused: run \"select pg_wal_replay_resume()\" there.".to_owned());
    }
    match &status.retained {
        None if subscription.is_some() && *slot_was_asked_for => warnings.push(format!(
            "The slot \"{slot}\" is gone: the subscriber cannot catch up. Run cutover abort and begin cutover replicate again."
        )),
        None => {}
        Some(retained) => of_retained(retained, slot, &mut warnings),
    }
    if let (Some(enabled), Some(workers)) = (subscription, &status.workers) {
        if !enabled {
            warnings.push("The subscription is disabled: the publisher keeps WAL for it meanwhile.".to_owned());
        } else if !workers.is_following {
            warnings.push("No worker of the subscriber follows the publisher; its log says why.".to_owned());
        }
        if workers.copy_errors.is_some_and(|errors| errors > 0) && status.phase == Phase::Copying {
            let errors = workers.copy_errors.unwrap_or_default();
            warnings.push(format!("Copying has failed {errors} times on the subscriber; its log says why."));
        }
        if workers.apply_errors.is_some_and(|errors| errors > 0) {
            let errors = workers.apply_errors.unwrap_or_default();
            warnings.push(format!("Following has failed {errors} times on the subscriber; its log says why."));
        }
    }
    if !without_worker.is_empty() {
        let more =
            if without_worker.len() > 1 { format!(" and {} more", without_worker.len() - 1) } else { String::new() };
        warnings.push(format!(
            "No worker copies {}{more} although its copy has begun: it failed or waits for a free worker.",
            without_worker[0]
        ));
    }
    let idle = status.idle_slots.iter().filter(|idle| idle.name != *slot || subscription.is_none());
    let idle: Vec<_> = idle.collect();
    for idle in idle.iter().take(SLOTS_SHOWN) {
        let kind = if idle.is_of_copy { "The slot of a copy" } else { "The slot" };
        warnings.push(format!(
            "{kind} \"{}\" is not in use and keeps {} of WAL: drop it with pg_drop_replication_slot if it stays so.",
            idle.name,
            bytes_text(idle.bytes)
        ));
    }
    if idle.len() > SLOTS_SHOWN {
        warnings.push(format!("{} more slots are not in use.", idle.len() - SLOTS_SHOWN));
    }
    warnings
}

fn of_retained(retained: &Retained, slot: &str, warnings: &mut Vec<String>) {
    if let Some(why) = &retained.lost {
        warnings.push(format!(
            "The server has given the slot \"{slot}\" up ({why}): the subscriber cannot catch up. Run cutover abort and begin \
             cutover replicate again."
        ));
    }
    if let Some(safe) = retained.safe_bytes
        && (safe as f64) < LITTLE_ROOM * (safe as f64 + retained.bytes as f64)
    {
        let safe = bytes_text(u64::try_from(safe).unwrap_or(0));
        warnings.push(format!("After {safe} more of WAL the server gives the slot up: raise max_slot_wal_keep_size."));
    }
    if retained.bytes > retained.limit_bytes {
        warnings.push(format!(
            "The publisher keeps {} of WAL, above the plan's {}: see that the subscriber follows, and that the disk holds it.",
            bytes_text(retained.bytes),
            bytes_text(retained.limit_bytes)
        ));
    }
    if let Some(free) = retained.disk_bytes
        && free < LITTLE_DISK_BYTES.max(retained.bytes / 10)
    {
        warnings.push(format!(
            "Only {} are free on the publisher's disk, and a full disk stops it: make room, or give up with cutover abort, which \
             drops the slot.",
            bytes_text(free)
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Status {
        Status {
            at: OffsetDateTime::UNIX_EPOCH,
            phase: Phase::Copying,
            direction: Direction::Forward,
            replay: None,
            total: Total::default(),
            tables: Vec::new(),
            lag: None,
            retained: Some(Retained {
                bytes: 1 << 20,
                limit_bytes: 50 << 30,
                safe_bytes: None,
                disk_bytes: Some(100 << 30),
                is_active: true,
                lost: None,
            }),
            idle_slots: Vec::new(),
            workers: Some(Workers { is_following: true, ..Workers::default() }),
            warnings: Vec::new(),
            away: Vec::new(),
        }
    }

    fn warned(change: impl FnOnce(&mut Status, &mut Circumstances)) -> String {
        let mut status = status();
        let mut circumstances = Circumstances {
            subscription: Some(true),
            slot: "s".into(),
            slot_was_asked_for: true,
            without_worker: Vec::new(),
        };
        change(&mut status, &mut circumstances);
        warnings(&status, &circumstances).join("\n")
    }

    #[test]
    fn what_is_well_is_not_warned_of() {
        assert_eq!(warned(|_, _| ()), "");
    }

    #[test]
    fn the_slot_of_a_copy_names_its_table() {
        let slot = |name: &str, is_of_copy| IdleSlot { name: name.into(), bytes: 0, is_of_copy };
        let of_copy = slot("pg_24406_sync_20912_7711294078116475613", true);
        assert!(of_copy.is_of_copy_of(20912) && !of_copy.is_of_copy_of(24406));
        assert!(!slot("a_b_c_20912", false).is_of_copy_of(20912));
    }

    #[test]
    fn many_idle_slots_are_counted() {
        let slots = (0..9).map(|n| IdleSlot { name: format!("s{n}"), bytes: 0, is_of_copy: false });
        let text = warned(|status, _| status.idle_slots = slots.skip(1).collect());
        assert!(text.lines().count() == 4 && text.contains("5 more slots"), "{text}");
    }

    #[test]
    fn each_trouble_is_named() {
        type Change = fn(&mut Status, &mut Circumstances);
        fn retained(status: &mut Status) -> &mut Retained {
            status.retained.as_mut().unwrap()
        }
        let troubles: [(Change, &str); 11] = [
            (|status, _| status.retained = None, "is gone"),
            (|status, _| retained(status).lost = Some("wal_removed".into()), "wal_removed"),
            (|status, _| retained(status).bytes = 51 << 30, "above the plan's"),
            (|status, _| retained(status).safe_bytes = Some(1000), "max_slot_wal_keep_size"),
            (|status, _| retained(status).disk_bytes = Some(1000), "disk"),
            (|status, _| status.workers.as_mut().unwrap().is_following = false, "No worker"),
            (|status, _| status.workers.as_mut().unwrap().copy_errors = Some(2), "failed 2 times"),
            (|status, _| status.workers.as_mut().unwrap().apply_errors = Some(3), "failed 3 times"),
            (|_, circumstances| circumstances.subscription = Some(false), "disabled"),
            (|_, circumstances| circumstances.without_worker = vec!["a.b".into()], "a.b"),
            (
                |status, _| status.idle_slots = vec![IdleSlot { name: "old".into(), bytes: 7, is_of_copy: false }],
                "\"old\" is not in use",
            ),
        ];
        for (change, named) in troubles {
            let text = warned(change);
            assert!(text.contains(named) && text.lines().count() == 1, "{named}: {text}");
        }
    }
}
