//! Group commit: one task owns the sending of commits, and one run of the script carries many of them.
//!
//! While fewer than [`IN_FLIGHT`] batches are unanswered, a commit goes out at once with what else is waiting; else
//! commits gather for the next batch. So a lone commit waits for nobody, and under load the cost of a script's run
//! is shared.
//! Invariant: a batch is not a transaction. The script checks, applies and answers each change by itself, so that
//! neither a conflict nor an error of one concerns another; a batch whose answer was lost is sent again whole, and
//! each change recognises its own work.
//! A commit that meets a head that went back (or none, after a loss) first has the server given again what was
//! committed before ([`super::tail`]), and is then tried once more; its caller sees nothing of it.
//! Does not: put deletions into batches (see `commit.lua`), or keep the order of commits of one stream that do not
//! wait for each other: one of them conflicts.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use redis::Value;
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::Instant,
};

use super::{
    change::{Change, Outcome, command},
    connection::{Connection, Script},
    keys::Keys,
    origin::Origin,
    parse,
    partition::Scripts,
    snapshot,
    tail::Tail,
};
use crate::{
    store::{CommitOutcome, Head, Snapshot, StoreError},
    vitals::Pulse,
};

/// Commits that wait for the task; more wait in their callers.
pub(super) const QUEUE: usize = 1024;
/// Unanswered batches.
const IN_FLIGHT: usize = 4;
/// One batch holds at most this many commits …
const BATCH_COMMITS: usize = 64;
/// … and ends with the one that makes it this many bytes of states and events …
const BATCH_BYTES: usize = 1 << 20;
/// … or this many bytes of names, which go into one message of hints.
const BATCH_NAMES: usize = 16 << 10;
/// How long one batch may take: longer than any caller's patience and the last answer waited for.
pub(super) const STUCK: Duration = Duration::from_secs(30);
/// When, after a loss, the tail is looked at again: other processes give theirs at the same time, and a change can
/// only follow the one that it followed then.
const LOOKS: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(200), Duration::from_millis(800), Duration::from_secs(2)];

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
    pub(super) scripts: Arc<Scripts>,
    pub(super) origin: Arc<Origin>,
    pub(super) tail: Mutex<Tail>,
}

impl Committer {
    /// Sends what is requested until every requester is gone.
    pub(super) async fn run(self: Arc<Self>, mut requests: mpsc::Receiver<Request>, pulse: Pulse) {
        let flights = Arc::new(Semaphore::new(IN_FLIGHT));
        loop {
            pulse.rest();
            let Some(first) = requests.recv().await else { return };
            pulse.beat();
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
        match self.send(&self.scripts.commit, changes, give_up).await {
            // A caller that stopped waiting needs no answer.
            Ok(outcomes) => replies.into_iter().zip(outcomes).for_each(|(r, o)| drop(r.send(o))),
            Err(error) => replies.into_iter().for_each(|r| drop(r.send(Err(error.clone())))),
        }
    }

    /// Deletes a stream.
    pub(super) async fn delete(&self, change: Change, give_up: Instant) -> Outcome {
        let outcomes = self.send(&self.scripts.delete, vec![change], give_up).await?;
        outcomes.into_iter().next().unwrap_or_else(|| Err(unanswered()))
    }

    /// Sends changes in one run of a script; once more those whose stream had lost its tail, when it is there again.
    async fn send(
        &self,
        script: &Script,
        changes: Vec<Change>,
        give_up: Instant,
    ) -> Result<Vec<Outcome>, StoreError> {
        let mut outcomes = Vec::with_capacity(changes.len());
        for (change, outcome) in self.send_as_is(script, changes, give_up).await? {
            outcomes.push(match (change, outcome) {
                (Some(change), Ok(CommitOutcome::Conflict(now)))
                    if self.has_lost(&change, now.as_ref()).await =>
                {
                    let (stream, expected) = (change.stream.clone(), change.expected.clone());
                    if self.restore(&stream, now, give_up).await? == expected {
                        let again = self.send_as_is(script, vec![change], give_up).await?;
                        again.into_iter().next().map_or_else(|| Err(unanswered()), |(_, outcome)| outcome)
                    } else {
                        let now = self.load(&[stream]).await?.pop().flatten();
                        Ok(CommitOutcome::Conflict(now))
                    }
                }
                (_, outcome) => outcome,
            });
        }
        Ok(outcomes)
    }

    /// Sends changes in one run of a script. What was committed is kept; what was not is handed back.
    async fn send_as_is(
        &self,
        script: &Script,
        changes: Vec<Change>,
        give_up: Instant,
    ) -> Result<Vec<(Option<Change>, Outcome)>, StoreError> {
        let cmd = command(&self.keys, script, &changes);
        let generation = self.origin.generation();
        let (reply, repeated) = self.connection.evaluate(script, &cmd, give_up).await?;
        let replies: Vec<Value> = parse(reply)?;
        if replies.len() != changes.len() {
            return Err(unanswered());
        }
        let mut tail = self.tail.lock();
        let answered = changes.into_iter().zip(replies).map(|(change, reply)| {
            let outcome = change.outcome(reply, repeated);
            match outcome {
                Ok(CommitOutcome::Committed(_)) => {
                    tail.keep(change, generation);
                    (None, outcome)
                }
                _ => (Some(change), outcome),
            }
        });
        Ok(answered.collect())
    }

    /// Whether what a change met can only be explained by a loss that may be made good here.
    async fn has_lost(&self, change: &Change, now: Option<&Snapshot>) -> bool {
        let Some(expected) = &change.expected else { return false };
        match now {
            // A head never goes back.
            Some(now) => now.head.epoch == expected.epoch && now.head.seq < expected.seq,
            // Deleted, or lost: the log's origin tells, if it is looked at now. Its owner asks it, too.
            None => {
                self.connection.check_origin().await.is_ok()
                    && self.tail.lock().missing(&change.stream, None, self.origin.generation()).is_some()
            }
        }
    }

    /// Commits again what is kept of a stream and missing behind `now`. Answers the head afterwards.
    async fn restore(
        &self,
        stream: &str,
        now: Option<Snapshot>,
        give_up: Instant,
    ) -> Result<Option<Head>, StoreError> {
        let mut head = now.map(|now| now.head);
        loop {
            let missing = self.tail.lock().missing(stream, head.as_ref(), self.origin.generation());
            let Some(change) = missing else { return Ok(head) };
            let (from, to) = (head.map_or(0, |h| h.seq), change.done.seq);
            let deletes = change.events.is_empty();
            let script = if deletes { &self.scripts.delete } else { &self.scripts.commit };
            // Not kept once more: it is in the tail already.
            let cmd = command(&self.keys, script, std::slice::from_ref(&change));
            let (reply, _) = self.connection.evaluate(script, &cmd, give_up).await?;
            let reply = parse::<Vec<Value>>(reply)?.pop().ok_or_else(unanswered)?;
            // When two do this at once, one of them finds the work done: as if it had been sent twice.
            match change.outcome(reply, true)? {
                CommitOutcome::Committed(done) => {
                    tracing::warn!(stream, from, to, "events that Redis had lost were written again");
                    if deletes {
                        return Ok(None);
                    }
                    head = Some(done);
                }
                CommitOutcome::Conflict(now) => return Ok(now.map(|now| now.head)),
            }
        }
    }

    /// Looks after every loss whether something that is kept here is missing, for ever.
    pub(super) async fn make_good(self: Arc<Self>, pulse: Pulse) {
        let mut generations = self.origin.watch();
        loop {
            pulse.rest();
            // The sender lives as long as this.
            if generations.changed().await.is_err() {
                return;
            }
            for pause in LOOKS {
                tokio::time::sleep(pause).await;
                pulse.beat();
                let streams = self.tail.lock().streams();
                for streams in streams.chunks(BATCH_COMMITS) {
                    if let Err(error) = self.make_good_some(streams).await {
                        tracing::warn!(%error, "cannot look whether Redis lost events");
                    }
                    pulse.beat();
                }
            }
        }
    }

    async fn make_good_some(&self, streams: &[Arc<str>]) -> Result<(), StoreError> {
        for (stream, now) in streams.iter().zip(self.load(streams).await?) {
            self.restore(stream, now, self.connection.give_up()).await?;
        }
        Ok(())
    }

    /// The streams' states, in the order asked for.
    pub(super) async fn load<S: AsRef<str>>(
        &self,
        streams: &[S],
    ) -> Result<Vec<Option<Snapshot>>, StoreError> {
        let mut pipe = redis::pipe();
        for stream in streams {
            pipe.cmd("HMGET").arg(self.keys.state(stream.as_ref())).arg(&["h", "f", "v", "b"]);
        }
        let replies: Vec<Value> = parse(self.connection.pipeline(&pipe).await?)?;
        replies.into_iter().map(snapshot).collect()
    }
}

fn unanswered() -> StoreError {
    StoreError::Damaged("the server answered fewer changes than it was sent".into())
}
