//! What was done, when, and what is to be undone: one JSON file, replaced whole and flushed at every entry.
//!
//! An entry may carry a mark. A step asks for marks to know where it stopped; what has to be undone after a failure is
//! written down *before* it is done, so that no death in between leaves it behind unknown. No entry holds a password.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::error::{CutoverError, Result};
use crate::fs::durable;

/// The journal's format.
const FORMAT: u32 = 1;

/// Something that is done, or begun and to be undone on failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mark {
    /// The first move: maintenance was asked for. Its time is when the downtime began.
    PromoteMaintenance,
    /// The source is being made read-only, or is; holds what was set before.
    SourceFence,
    /// The source's last write; holds timeline and LSN.
    FencePoint,
    /// The replica retries more often; holds what was set before.
    RetryInterval,
    /// The replica has replayed the fence point.
    FenceReached,
    /// The replica is being promoted by this cutover.
    Promoting,
    /// The replica is a primary.
    Promoted,
    /// The application's role has written a row there.
    WritesProved,
    /// The application is being pointed at the replica.
    SwitchingToReplica,
    /// The application was pointed at the replica.
    SwitchedToReplica,
    /// A promotion was given up that may have taken place, or may yet: no standby of the source any more.
    Forked,
    /// The first move is over; holds the downtime.
    PromoteDone,
    /// Tables of the replica that got REPLICA IDENTITY FULL; holds them.
    ReplicaIdentity,
    /// Tables of the target that got it, with their schema or for the way back; holds them.
    TargetIdentity,
    /// The replication role was made here.
    ReplicationRole,
    /// The schema's first part is on the target.
    SchemaTables,
    /// The publication was made here.
    Publication,
    /// The slot was made here.
    Slot,
    /// The subscription was made here.
    Subscription,
    /// Copies make slots on the publisher; holds what their names are like.
    CopySlots,
    /// All tables are copied and followed.
    Copied,
    /// The schema's second part is on the target.
    SchemaRest,
    /// Replication is set up.
    ReplicateDone,
    /// A move from publisher to subscriber begins; holds its direction. The marks below count from the last of these.
    FinishBegun,
    /// What takes long is done: statistics, materialized views, the full comparison.
    Prepared,
    /// The second move: maintenance was asked for.
    FinishMaintenance,
    /// The publisher is being made read-only, or is; holds what was set before.
    PublisherFence,
    /// The publisher's last write; holds timeline and LSN.
    FinalPoint,
    /// The subscriber has the publisher's last write.
    Confirmed,
    /// What fitted the budget was compared.
    Compared,
    /// The sequences are set.
    SequencesSet,
    /// The way is one way from here: the subscription is being dropped.
    Parting,
    /// The subscription and its slot are gone.
    SubscriptionDropped,
    /// The way back is set up.
    ReverseReady,
    /// The application was pointed at the subscriber.
    SwitchedToSubscriber,
    /// The second move is over; holds the downtime.
    FinishDone,
}

impl Mark {
    /// Whether it counts from the last [`Mark::FinishBegun`] only.
    fn is_of_finish(self) -> bool {
        use Mark::{
            Compared, Confirmed, FinalPoint, FinishDone, FinishMaintenance, Parting, Prepared, PublisherFence,
            ReverseReady, SequencesSet, SubscriptionDropped, SwitchedToSubscriber,
        };
        matches!(
            self,
            Prepared
                | FinishMaintenance
                | PublisherFence
                | FinalPoint
                | Confirmed
                | Compared
                | SequencesSet
                | Parting
                | SubscriptionDropped
                | ReverseReady
                | SwitchedToSubscriber
                | FinishDone
        )
    }
}

/// One line of the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// The step, as on the command line.
    pub step: String,
    /// What happened, for a person.
    pub what: String,
    /// What it marks as done or begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<Mark>,
    /// Whether the mark no longer holds.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub undone: bool,
    /// What the mark remembers.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub data: Value,
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    format: u32,
    plan: String,
    entries: Vec<Entry>,
}

/// A cutover's journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    record: Record,
    step: &'static str,
    /// None where nothing may be written: in a dry run, and for steps that only look.
    lock: Option<File>,
}

impl Journal {
    /// Opens the journal at `path` for `step`, alone.
    ///
    /// # Errors
    ///
    /// When another step runs, when the journal is another plan's, or when the file cannot be read or made.
    pub fn open(path: &Path, plan: &str, step: &'static str) -> Result<Self> {
        let lock_path = beside(path, "lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(|e| CutoverError::file("open the lock file", &lock_path, e))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(CutoverError::refused("another step of this cutover is running")
                    .with_detail(format!("It holds \"{}\".", lock_path.display()))
                    .with_hint("Wait for its end; cutover status and cutover report can be asked meanwhile."));
            }
            Err(std::fs::TryLockError::Error(e)) => return Err(CutoverError::file("lock", &lock_path, e)),
        }
        let mut journal = Self::look(path, plan, step)?;
        journal.lock = Some(lock);
        Ok(journal)
    }

    /// Reads the journal at `path`; what is recorded from here on is forgotten at the end.
    ///
    /// # Errors
    ///
    /// When the journal is another plan's, or cannot be read.
    pub fn look(path: &Path, plan: &str, step: &'static str) -> Result<Self> {
        let record = match std::fs::read(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Record { format: FORMAT, plan: plan.to_owned(), entries: Vec::new() }
            }
            Err(e) => return Err(CutoverError::file("read the journal", path, e)),
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| {
                CutoverError::file("make sense of the journal", path, e)
                    .with_hint("Restore it, or see what is done by hand.")
            })?,
        };
        if record.format != FORMAT {
            return Err(CutoverError::refused(format!(
                "the journal \"{}\" has format {}",
                path.display(),
                record.format
            ))
            .with_hint("It was written by another version of wal-eve: use that one to the end."));
        }
        if record.plan != plan {
            return Err(CutoverError::refused(format!("the journal \"{}\" is of another plan", path.display()))
                .with_detail(format!("It is of {}; the plan says {plan}.", record.plan))
                .with_hint("Give the journal of this plan with --journal, or put the old one away."));
        }
        Ok(Self { path: path.to_owned(), record, step, lock: None })
    }

    /// Everything so far.
    pub fn entries(&self) -> &[Entry] {
        &self.record.entries
    }

    /// The entry of a mark that holds.
    pub fn find(&self, mark: Mark) -> Option<&Entry> {
        let entries: Vec<&Entry> = if mark.is_of_finish() || mark == Mark::FinishBegun {
            self.current_move()
        } else {
            self.record.entries.iter().collect()
        };
        entries.into_iter().rfind(|entry| entry.mark == Some(mark)).filter(|entry| !entry.undone)
    }

    /// The entries since the last move began that was not given up.
    fn current_move(&self) -> Vec<&Entry> {
        let mut moves: Vec<Vec<&Entry>> = Vec::new();
        for entry in &self.record.entries {
            match (entry.mark, entry.undone) {
                (Some(Mark::FinishBegun), false) => moves.push(vec![entry]),
                (Some(Mark::FinishBegun), true) => drop(moves.pop()),
                _ => moves.last_mut().into_iter().for_each(|last| last.push(entry)),
            }
        }
        moves.pop().unwrap_or_default()
    }

    /// Whether a mark holds.
    pub fn has(&self, mark: Mark) -> bool {
        self.find(mark).is_some()
    }

    /// What a mark that holds remembers; none also when it is nothing of the kind.
    pub fn data<T: DeserializeOwned>(&self, mark: Mark) -> Option<T> {
        serde_json::from_value(self.find(mark)?.data.clone()).ok()
    }

    /// Records a mark, and what it is to remember.
    ///
    /// # Errors
    ///
    /// When the file cannot be replaced: then nothing that rests on the record may be done.
    pub fn record(&mut self, mark: Mark, what: impl Into<String>, data: impl Serialize) -> Result<()> {
        let data = serde_json::to_value(data).expect("what marks remember has text for keys");
        self.push(Some(mark), false, what.into(), data)
    }

    /// Records that a mark no longer holds.
    ///
    /// # Errors
    ///
    /// As [`Self::record`].
    pub fn undo(&mut self, mark: Mark, what: impl Into<String>) -> Result<()> {
        self.push(Some(mark), true, what.into(), Value::Null)
    }

    /// Records something for the report.
    ///
    /// # Errors
    ///
    /// As [`Self::record`].
    pub fn note(&mut self, what: impl Into<String>) -> Result<()> {
        self.push(None, false, what.into(), Value::Null)
    }

    fn push(&mut self, mark: Option<Mark>, undone: bool, what: String, data: Value) -> Result<()> {
        let at = OffsetDateTime::now_utc();
        tracing::info!("{what}");
        self.record.entries.push(Entry { at, step: self.step.to_owned(), what, mark, undone, data });
        if self.lock.is_none() {
            return Ok(());
        }
        let text = serde_json::to_vec_pretty(&self.record).expect("a record has text for keys");
        Ok(durable::write_replacing(&self.path, &text)?)
    }
}

/// `2026-11-23T01:38:08Z`
pub fn time_text(at: OffsetDateTime) -> String {
    at.replace_nanosecond(0).unwrap_or(at).format(&Rfc3339).unwrap_or_default()
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_recorded_is_there_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("j.json");
        let mut journal = Journal::open(&path, "p", "promote").unwrap();
        journal.record(Mark::SourceFence, "fencing", 7).unwrap();
        journal.record(Mark::FencePoint, "fenced", "0/1").unwrap();
        journal.undo(Mark::FencePoint, "unfenced").unwrap();
        assert!(Journal::open(&path, "p", "promote").is_err(), "two at once");
        drop(journal);
        let journal = Journal::open(&path, "p", "abort").unwrap();
        assert_eq!(journal.data::<u32>(Mark::SourceFence), Some(7));
        assert!(!journal.has(Mark::FencePoint) && !journal.has(Mark::Promoted));
        assert_eq!(journal.entries().len(), 3);
    }

    #[test]
    fn marks_of_a_move_count_from_its_beginning() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Journal::look(&directory.path().join("j.json"), "p", "finish").unwrap();
        for mark in [Mark::Promoted, Mark::FinishBegun, Mark::FinishDone, Mark::FinishBegun] {
            journal.record(mark, "x", ()).unwrap();
        }
        assert!(journal.has(Mark::Promoted) && journal.has(Mark::FinishBegun) && !journal.has(Mark::FinishDone));
        journal.record(Mark::PublisherFence, "x", ()).unwrap();
        journal.undo(Mark::FinishBegun, "given up").unwrap();
        assert!(journal.has(Mark::FinishBegun) && journal.has(Mark::FinishDone) && !journal.has(Mark::PublisherFence));
    }

    #[test]
    fn looking_writes_nothing_and_another_plans_journal_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("j.json");
        Journal::look(&path, "p", "status").unwrap().note("x").unwrap();
        assert!(!path.exists());
        Journal::open(&path, "p", "promote").unwrap().note("x").unwrap();
        assert!(Journal::look(&path, "q", "status").unwrap_err().to_string().contains("another plan"));
        std::fs::write(&path, "{").unwrap();
        assert!(Journal::look(&path, "p", "status").is_err());
    }
}
