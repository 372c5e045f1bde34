//! The event log's seam: what a store must do, in terms that know nothing of jobs.
//!
//! A *stream* is a named log of events, numbered 1, 2, 3 … with no hole, and one opaque state that changes with
//! them. [`Store::commit`] is the only way to change anything, and it is all or nothing: it checks that the caller
//! knows the stream's head, then appends the events, replaces the state and moves index members in one step.
//! Invariant: a commit that is answered [`CommitOutcome::Committed`] is visible to every later read, and survives
//! whatever the store's durability promises; one that is answered otherwise has changed nothing.
//!
//! An *index* is a set of members ordered by a due time on the store's own clock, so that no process's clock
//! decides when something is due. [`Store::claim`] hands out due members and hides them for a while: a claim that
//! its taker never finishes becomes due again by itself.
//!
//! A *queue* holds members in *lanes*. [`Store::take`] takes from the lanes in turn, so that a long lane delays the
//! first member of another by one member at most; within a lane the higher priority goes first, then the earlier
//! entry. What is taken comes back by itself, unless a commit dequeues it. A *gate* lets at most so many members
//! into queues at a time; the others wait in lanes of their own, and whoever leaves lets the next one in, in the
//! same commit. There is no counter in either that a crash could leave wrong: what is counted are the members.
//!
//! What a store does not do: interpret states, events or members, retry, or cache. Two stores implement this
//! ([`redis`] and [`embedded`]); `tests/conformance.rs` holds both to it.

pub mod embedded;
pub mod redis;

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::sync::broadcast;

/// A stream's head: what a writer must know to append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The last event's number; 0 before the first.
    pub seq: u64,
    /// The token made with the stream, and made anew if the stream is ever lost.
    pub epoch: String,
}

/// A stream as it is stored, without its events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The head.
    pub head: Head,
    /// The oldest event kept.
    pub first_seq: u64,
    /// The state after the event `head.seq`.
    pub state: Bytes,
    /// What the stream was made with, see [`Expect::Absent`].
    pub fixed: Bytes,
}

/// One stored event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number.
    pub seq: u64,
    /// Its bytes, as they were committed.
    pub data: Bytes,
}

/// A page of a stream's events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The stream's head at the time of reading.
    pub head: Head,
    /// The oldest event kept at the time of reading.
    pub first_seq: u64,
    /// Events in order, dense; the first is `max(after + 1, first_seq)`.
    pub entries: Vec<Entry>,
}

/// What a commit expects to find.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// No such stream; it is made with these.
    Absent {
        /// The new stream's epoch.
        epoch: String,
        /// The part of the state that never changes, and so is written only once; may be empty.
        fixed: Bytes,
    },
    /// The stream at exactly this head.
    At(Head),
    /// The stream at exactly this head, which goes on under another epoch: for a stream that has lost events, so that
    /// nothing that named them is taken to name their successors.
    Lost {
        /// The head, as it is after the loss.
        at: Head,
        /// The epoch from here on.
        epoch: String,
    },
}

/// A change to an index, a queue or a gate.
///
/// A store may keep streams apart ([`crate::store::redis`] on a Cluster does), and what a commit moves lies with its stream.
/// So a member is named for the one stream whose commits move it: `<stream>`, or `<job>/…` for a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IndexChange {
    /// Adds the member, or moves it, to be due `after` from now on the store's clock.
    Put {
        /// The index.
        index: String,
        /// The member.
        member: String,
        /// How long from now the member is due; zero is at once, and wakes those who wait for the index.
        after: Duration,
    },
    /// Removes the member, if it is there.
    Remove {
        /// The index.
        index: String,
        /// The member.
        member: String,
    },
    /// Adds the member, which must not be in the queue, to its lane, and wakes those who wait for the queue.
    Enqueue {
        /// Where to.
        place: Place,
        /// What it must pass first. A member that is inside already is enqueued at once; any other waits at the gate
        /// behind those who wait there.
        gate: Option<Gate>,
    },
    /// Removes the member from the queue, taken or not, if it is there.
    Dequeue {
        /// Where from.
        place: Place,
    },
    /// Takes the member away from the gate, inside or waiting, and lets in whoever may enter now.
    Leave {
        /// The gate.
        gate: String,
        /// The member's lane.
        lane: String,
        /// The member.
        member: String,
    },
}

/// A member's place in a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The queue.
    pub queue: String,
    /// The lane; lanes take turns.
    pub lane: String,
    /// The member.
    pub member: String,
    /// The higher goes first within the lane.
    pub priority: i8,
}

/// A gate before a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gate {
    /// Its name.
    pub name: String,
    /// The member enters only while fewer than this many are inside, at least 1. Members may differ in it: the one
    /// whose turn it is decides.
    pub limit: u32,
}

/// Something that can be counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extent {
    /// The members of an index.
    Index(String),
    /// The members of a queue's lane that are not taken.
    Lane {
        /// The queue.
        queue: String,
        /// The lane.
        lane: String,
    },
    /// The members of a lane that wait at a gate.
    Waiting {
        /// The gate.
        gate: String,
        /// The lane.
        lane: String,
    },
}

/// An atomic change of one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The stream.
    pub stream: String,
    /// What must hold before.
    pub expect: Expect,
    /// The new state.
    pub state: Bytes,
    /// The events to append, at least one: their numbers follow the head's.
    pub events: Vec<Bytes>,
    /// Events before this number are dropped; 0 drops none.
    pub first_seq: u64,
    /// Index changes, in order.
    pub index: Vec<IndexChange>,
}

/// What became of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommitOutcome {
    /// It happened; the head is now this.
    Committed(Head),
    /// The expectation did not hold; this is what is there (`None`: no such stream). Nothing was changed.
    Conflict(Option<Snapshot>),
}

/// Something may have changed. Hints can be lost, and tell of changes that did not happen; the log is the truth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hint {
    /// The stream may have reached this number, or have been deleted (`None`).
    Stream(Arc<str>, Option<u64>),
    /// The index has a member that is due at once, or the queue has a new one.
    Index(Arc<str>),
    /// Hints were lost: look at everything.
    Lost,
}

/// Why a store could not answer. In every case nothing is known about the call's effect unless said otherwise.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The store cannot be reached, or is overloaded; the call may be repeated.
    #[error("the event log is unavailable: {0}")]
    Unavailable(String),
    /// The store refused for want of space; nothing was changed.
    #[error("the event log is full: {0}")]
    Full(String),
    /// It was accepted, but is not known to be as durable as was asked for; repeating the call is safe.
    #[error("accepted, but not confirmed: {0}")]
    Unconfirmed(String),
    /// The store must not be used as it is set up; the text says what to change.
    #[error("the event log cannot be used: {0}")]
    Unfit(String),
    /// What is stored cannot be understood.
    #[error("the event log is damaged: {0}")]
    Damaged(String),
}

/// A boxed future, so that the trait can be used as an object.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// An event log. See the module's documentation for the invariants.
pub trait Store: Send + Sync + 'static {
    /// Changes one stream, whole or not at all.
    ///
    /// A repeated commit whose first answer was lost ends in [`CommitOutcome::Conflict`] with the caller's own
    /// state in it: the caller decides by looking at it.
    fn commit(&self, commit: Commit) -> Answer<'_, CommitOutcome>;

    /// Removes a stream with its events, and applies the index changes, if its head is as expected.
    fn delete(&self, stream: &str, expect: Head, index: Vec<IndexChange>) -> Answer<'_, CommitOutcome>;

    /// The streams' states, in the order asked for; `None` for one that does not exist.
    fn load(&self, streams: Vec<String>) -> Answer<'_, Vec<Option<Snapshot>>>;

    /// Up to `limit` events after `after`, ending early after about `max_bytes` (but at least one event);
    /// `None` when the stream does not exist.
    fn read(&self, stream: &str, after: u64, limit: usize, max_bytes: usize) -> Answer<'_, Option<Page>>;

    /// Up to `n` members of the index that are due, soonest first; each is hidden for `hold` from now on.
    fn claim(&self, index: &str, n: usize, hold: Duration) -> Answer<'_, Vec<String>>;

    /// Up to `n` members of the queue, by the lanes' turns. Each comes back to the front of those of its priority in
    /// its lane after `hold`, unless it is dequeued before.
    fn take(&self, queue: &str, n: usize, hold: Duration) -> Answer<'_, Vec<String>>;

    /// How many members each has.
    fn count(&self, extents: Vec<Extent>) -> Answer<'_, Vec<u64>>;

    /// Moves those of the members that are still in the index to be due `after` from now.
    /// Answers which of them were there.
    fn renew(&self, index: &str, members: Vec<String>, after: Duration) -> Answer<'_, Vec<bool>>;

    /// Up to `limit` members in descending order of (due time in ms, member), below `before` if given.
    fn list(
        &self,
        index: &str,
        before: Option<(u64, String)>,
        limit: usize,
    ) -> Answer<'_, Vec<(u64, String)>>;

    /// The store's clock, in milliseconds since the Unix epoch: its server's, as far as it is known here.
    fn now_ms(&self) -> u64;

    /// Hints from now on, of every stream and index, including those of other processes.
    fn hints(&self) -> broadcast::Receiver<Hint>;

    /// Whether the store answers, and everything it needs is alive; asked once, for readiness.
    fn ping(&self) -> Answer<'_, ()>;

    /// Answers once the stream, with at least this head, survives what the store is set up to survive. A commit that
    /// was answered is visible to everybody; only what is confirmed may be promised to anybody. By default both are
    /// the same.
    ///
    /// # Errors
    /// `Unconfirmed` when that cannot be had in time, or the stream has lost that head meanwhile.
    fn confirm(&self, stream: &str, at: &Head) -> Answer<'_, ()> {
        let _ = (stream, at);
        Box::pin(std::future::ready(Ok(())))
    }

    /// Grows whenever the log may have lost something that was committed: its server was replaced, restarted or
    /// emptied. A stream that is gone although nobody may have deleted it was lost if this has grown meanwhile.
    fn generation(&self) -> u64 {
        0
    }

    /// How many connections to the log's server were made after the first; none where there is no server.
    fn reconnects(&self) -> u64 {
        0
    }

    /// Whether every part of the log answered when it was last asked. Where there are several parts, [`claim`](Self::claim)
    /// and [`take`](Self::take) go on without one that is away, so that their answers do not say.
    fn is_whole(&self) -> bool {
        true
    }
}

/// How many hints may wait for a slow listener before it is told [`Hint::Lost`] by way of a lagging receiver.
pub(crate) const HINT_BUFFER: usize = 8192;
