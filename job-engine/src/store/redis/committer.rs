//! Group commit: one task owns the sending of commits, and one run of the script carries many of them.
//!
//! While fewer than [`IN_FLIGHT`] batches are unanswered, a commit goes out at once with what else is waiting; else
//! commits gather for the next batch. So a lone commit waits for nobody, and under load the cost of a script's run
//! is shared.
//! Invariant: a batch is not a transaction. The script checks, applies and answers each change by itself, so that
//! neither a conflict nor an error of one concerns another; a batch whose answer was lost is sent again whole, and
//! each change recognises its own work.
//! Does not: put deletions into batches (see `commit.lua`), or keep the order of commits of one stream that do not
//! wait for each other: one of them conflicts.

use std::{fmt::Write as _, sync::Arc};

use bytes::Bytes;
use redis::{Cmd, RedisWrite as _, Value};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::Instant,
};

use super::{
    Keys,
    connection::{Connection, Script, typed},
    millis, parse, snapshot,
};
use crate::store::{CommitOutcome, Head, IndexChange, StoreError};

/// Commits that wait for the task; more wait in their callers.
pub(super) const QUEUE: usize = 1024;
/// Unanswered batches.
const IN_FLIGHT: usize = 2;
/// One batch holds at most this many commits …
const BATCH_COMMITS: usize = 64;
/// … and ends with the one that makes it this many bytes of states and events …
const BATCH_BYTES: usize = 1 << 20;
/// … or this many bytes of names, which go into one message of hints.
const BATCH_NAMES: usize = 16 << 10;

/// A commit, or a deletion when it has no events.
pub(super) struct Change {
    pub(super) stream: String,
    /// `None`: no such stream.
    pub(super) expected: Option<Head>,
    /// The head afterwards.
    pub(super) done: Head,
    pub(super) state: Bytes,
    /// Of a new stream; empty is none.
    pub(super) fixed: Bytes,
    pub(super) events: Vec<Bytes>,
    pub(super) first_seq: u64,
    pub(super) index: Vec<IndexChange>,
}

type Outcome = Result<CommitOutcome, StoreError>;

/// A commit on its way.
pub(super) struct Request {
    pub(super) change: Change,
    /// When trying again is no longer worth it.
    pub(super) give_up: Instant,
    pub(super) reply: oneshot::Sender<Outcome>,
}

/// What it takes to send changes.
pub(super) struct Committer {
    pub(super) connection: Connection,
    pub(super) keys: Keys,
    pub(super) commit: Script,
    pub(super) delete: Script,
}

impl Committer {
    /// Sends what is requested until every requester is gone.
    pub(super) async fn run(self: Arc<Self>, mut requests: mpsc::Receiver<Request>) {
        let flights = Arc::new(Semaphore::new(IN_FLIGHT));
        while let Some(first) = requests.recv().await {
            // The semaphore is never closed.
            let Ok(flight) = flights.clone().acquire_owned().await else { return };
            let (mut batch, mut bytes, mut names) = (Vec::new(), 0, 0);
            let mut next = Some(first);
            while let Some(request) = next {
                bytes += request.change.bytes();
                names += request.change.names();
                batch.push(request);
                let full = batch.len() >= BATCH_COMMITS || bytes >= BATCH_BYTES || names >= BATCH_NAMES;
                next = if full { None } else { requests.try_recv().ok() };
            }
            let committer = self.clone();
            tokio::spawn(async move {
                committer.fly(batch).await;
                drop(flight);
            });
        }
    }

    /// Sends one batch and answers it.
    async fn fly(&self, mut batch: Vec<Request>) {
        // Who waited in vain for a server that is away is told so without another try.
        let now = Instant::now();
        for late in batch.extract_if(.., |request| request.give_up <= now) {
            let away = StoreError::Unavailable("the server has not answered for too long".into());
            let _ = late.reply.send(Err(away));
        }
        let Some(give_up) = batch.iter().map(|request| request.give_up).min() else { return };
        let (changes, replies): (Vec<_>, Vec<_>) = batch.into_iter().map(|r| (r.change, r.reply)).unzip();
        match self.send(&self.commit, changes, give_up).await {
            // A caller that stopped waiting needs no answer.
            Ok(outcomes) => replies.into_iter().zip(outcomes).for_each(|(r, o)| drop(r.send(o))),
            Err(error) => replies.into_iter().for_each(|r| drop(r.send(Err(error.clone())))),
        }
    }

    /// Deletes a stream.
    pub(super) async fn delete(&self, change: Change, give_up: Instant) -> Outcome {
        let outcomes = self.send(&self.delete, vec![change], give_up).await?;
        outcomes.into_iter().next().unwrap_or_else(|| Err(unanswered()))
    }

    async fn send(
        &self,
        script: &Script,
        changes: Vec<Change>,
        give_up: Instant,
    ) -> Result<Vec<Outcome>, StoreError> {
        let cmd = self.command(script, &changes);
        let (reply, repeated) = self.connection.evaluate(script, &cmd, give_up).await?;
        let replies: Vec<Value> = parse(reply)?;
        if replies.len() != changes.len() {
            return Err(unanswered());
        }
        Ok(changes.into_iter().zip(replies).map(|(change, reply)| change.outcome(reply, repeated)).collect())
    }

    /// The keys and arguments of `commit.lua`.
    fn command(&self, script: &Script, changes: &[Change]) -> Cmd {
        let keys = 1 + changes.iter().map(|c| 2 + c.moves()).sum::<usize>();
        let mut cmd = script.command(keys);
        cmd.arg(self.keys.channel());
        for c in changes {
            cmd.arg(self.keys.state(&c.stream)).arg(self.keys.log(&c.stream));
            for change in &c.index {
                cmd.arg(self.keys.of(change));
            }
            if !c.fixed.is_empty() {
                cmd.arg(self.keys.state(&c.stream));
            }
        }
        for c in changes {
            match &c.expected {
                Some(head) => cmd.write_arg_fmt(format_args!("{} {}", head.seq, head.epoch)),
                None => cmd.write_arg(b""),
            }
            cmd.write_arg_fmt(format_args!("{} {}", c.done.seq, c.done.epoch));
            cmd.arg(c.first_seq).arg(&c.state[..]).arg(c.hint());
            let fixed = if c.fixed.is_empty() { 0 } else { 2 };
            cmd.arg(c.events.len()).arg(c.moves());
            cmd.arg(c.index.iter().map(words).sum::<usize>() + fixed);
            let before = c.done.seq - c.events.len() as u64;
            for (seq, event) in (before + 1..).zip(&c.events) {
                cmd.write_arg_fmt(format_args!("{seq}-0"));
                cmd.arg(&event[..]);
            }
            for change in &c.index {
                write(&mut cmd, change);
            }
            if fixed > 0 {
                cmd.arg("b").arg(&c.fixed[..]);
            }
        }
        cmd
    }
}

impl Change {
    /// Index changes, and the one that sets what never changes.
    fn moves(&self) -> usize {
        self.index.len() + usize::from(!self.fixed.is_empty())
    }

    fn bytes(&self) -> usize {
        self.state.len() + self.fixed.len() + self.events.iter().map(Bytes::len).sum::<usize>()
    }

    fn names(&self) -> usize {
        let woken = |change: &IndexChange| match change {
            IndexChange::Put { index, .. } => index.len(),
            IndexChange::Enqueue { place, .. } => place.queue.len(),
            IndexChange::Remove { .. } | IndexChange::Dequeue { .. } | IndexChange::Leave { .. } => 0,
        };
        self.stream.len() + self.index.iter().map(woken).sum::<usize>()
    }

    /// What everybody is told when it has happened, see [`super::hints`].
    fn hint(&self) -> String {
        let mut hint = match self.events.len() {
            0 => format!("d {}", self.stream),
            _ => format!("s {} {}", self.done.seq, self.stream),
        };
        for change in &self.index {
            let woken = match change {
                IndexChange::Put { index, after, .. } if millis(*after) == 0 => index,
                // Who passes a gate, and when, the script knows.
                IndexChange::Enqueue { place, gate: None } => &place.queue,
                _ => continue,
            };
            // Writing to a string cannot fail.
            let _ = write!(hint, "\ni {woken}");
        }
        hint
    }

    fn outcome(self, reply: Value, repeated: bool) -> Outcome {
        let current = match reply {
            Value::Int(1) => return Ok(CommitOutcome::Committed(self.done)),
            Value::ServerError(error) => return Err(typed(&error.into())),
            other => snapshot(other)?,
        };
        let own_work = repeated
            && match &current {
                Some(now) => !self.events.is_empty() && now.head == self.done && now.state == self.state,
                None => self.events.is_empty(),
            };
        Ok(if own_work { CommitOutcome::Committed(self.done) } else { CommitOutcome::Conflict(current) })
    }
}

/// How many arguments an index change has, see `commit.lua`.
fn words(change: &IndexChange) -> usize {
    match change {
        IndexChange::Put { .. } | IndexChange::Remove { .. } => 2,
        IndexChange::Leave { .. } => 3,
        IndexChange::Enqueue { gate: None, .. } | IndexChange::Dequeue { .. } => 4,
        IndexChange::Enqueue { gate: Some(_), .. } => 6,
    }
}

fn write(cmd: &mut Cmd, change: &IndexChange) {
    match change {
        IndexChange::Put { member, after, .. } => cmd.arg(millis(*after)).arg(member),
        IndexChange::Remove { member, .. } => cmd.arg("").arg(member),
        IndexChange::Enqueue { place: p, gate: None } => {
            cmd.arg("q").arg(&p.member).arg(&p.lane).arg(p.priority)
        }
        IndexChange::Enqueue { place: p, gate: Some(gate) } => {
            cmd.arg("e").arg(&p.member).arg(&p.lane).arg(p.priority).arg(gate.limit).arg(&p.queue)
        }
        IndexChange::Dequeue { place: p } => cmd.arg("d").arg(&p.member).arg(&p.lane).arg(p.priority),
        IndexChange::Leave { lane, member, .. } => cmd.arg("l").arg(member).arg(lane),
    };
}

fn unanswered() -> StoreError {
    StoreError::Damaged("the server answered fewer changes than it was sent".into())
}
