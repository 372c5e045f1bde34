//! The one writer: a thread that takes what is pending, checks it, writes it as one batch and answers.
//!
//! Invariant: nothing is answered as done, shown in an index or hinted at before the batch that holds it is as
//! durable as the store promises (holds and renewals alone may be seen earlier: losing them changes nothing). A
//! request sees every request before it in the batch, except that claims, takes and renewals go first.
//! After the first failed write everything is refused: what the disk holds is only known after a restart.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use fjall::PersistMode;
use tokio::sync::mpsc;

use super::{
    Durability, Shared,
    disk::{Changes, MAX_NAME},
    millis,
    record::{EventKey, Record},
    request::{Checked, Request, check_names},
};
use crate::store::{Commit, CommitOutcome, Expect, Head, Hint, IndexChange, Snapshot, StoreError};

/// One batch holds at most this many requests …
const BATCH_REQUESTS: usize = 1024;
/// … and ends with the one that makes it this many bytes.
const BATCH_BYTES: usize = 8 << 20;
/// Old events removed with a commit, and with a batch; the rest is removed with later batches.
const DROP_AT_ONCE: u64 = 256;

/// What the thread owns.
pub(super) struct Committer {
    pub(super) shared: Arc<Shared>,
    pub(super) durability: Durability,
    pub(super) next_log: u64,
    /// Events still to be removed: log id and first seq, to the seq behind the last.
    pub(super) drops: BTreeMap<EventKey, u64>,
}

/// One batch in the making.
struct Batch {
    now: u64,
    full: Option<StoreError>,
    changes: Changes,
    /// Indexes in which something became due at once.
    woken: HashSet<String>,
    checked: Vec<Checked>,
}

impl Committer {
    /// Runs until every sender is gone and everything they sent is answered.
    pub(super) fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut pending = Vec::with_capacity(BATCH_REQUESTS);
        while self.next(&mut requests, &mut pending) {
            self.round(&mut pending);
        }
        if let Err(error) = self.shared.disk.sync() {
            tracing::error!(%error, "cannot hand the event log to the disk");
        }
    }

    /// Takes what is pending; waits for it unless there is something to tidy. `false`: there is nothing more.
    fn next(&self, requests: &mut mpsc::Receiver<Request>, pending: &mut Vec<Request>) -> bool {
        let idle = self.drops.is_empty() || self.shared.failed.get().is_some();
        let mut bytes = 0;
        let mut first = if idle {
            let Some(first) = requests.blocking_recv() else { return false };
            Some(first)
        } else if requests.is_closed() && requests.is_empty() {
            return false;
        } else {
            None
        };
        while let Some(request) = first.take().or_else(|| requests.try_recv().ok()) {
            if let Request::Commit { commit, .. } = &request {
                bytes += commit.state.len() + commit.events.iter().map(|e| e.len()).sum::<usize>();
            }
            pending.push(request);
            if pending.len() >= BATCH_REQUESTS || bytes >= BATCH_BYTES {
                break;
            }
        }
        true
    }

    /// Checks, writes and answers one batch.
    fn round(&mut self, pending: &mut Vec<Request>) {
        if let Some(error) = self.shared.failed.get() {
            pending.drain(..).for_each(|request| request.refuse(error.clone()));
            return;
        }
        let mut batch = Batch {
            now: self.shared.clock.now_ms(),
            full: self.shared.want_of_space(),
            changes: Changes::default(),
            woken: HashSet::new(),
            checked: Vec::with_capacity(pending.len()),
        };
        self.tidy(&mut batch);
        let mut later = Vec::with_capacity(pending.len());
        for request in pending.drain(..) {
            match request {
                Request::Claim { index, n, hold, reply } => {
                    let claimed = self.claim(&mut batch, &index, n, hold);
                    batch.checked.push(Checked::Claimed(claimed, reply));
                }
                Request::Take { queue, n, hold, reply } => {
                    let until = batch.now.saturating_add(millis(hold));
                    let taken = self.shared.queues.lock().take(&queue, n, batch.now, until);
                    batch.checked.push(Checked::Claimed(taken, reply));
                }
                Request::Renew { index, members, after, reply } => {
                    let renewed = self.renew(&mut batch, &index, members, after);
                    batch.checked.push(Checked::Renewed(renewed, reply));
                }
                Request::Ping { reply } => batch.checked.push(Checked::Seen(reply)),
                Request::Commit { .. } | Request::Delete { .. } => later.push(request),
            }
        }
        for request in later {
            let (outcome, reply) = match request {
                Request::Commit { commit, reply } => (self.commit(&mut batch, commit), reply),
                Request::Delete { stream, expect, index, reply } => {
                    (self.delete(&mut batch, stream, expect, index), reply)
                }
                _ => continue,
            };
            match outcome {
                Ok(outcome) => batch.checked.push(Checked::Changed(outcome, reply)),
                // A caller that stopped waiting needs no answer, here and below.
                Err(error) => drop(reply.send(Err(error))),
            }
        }
        self.write(batch);
    }

    fn write(&self, batch: Batch) {
        let Batch { now, changes, woken, checked, .. } = batch;
        let mode = match self.durability {
            Durability::Sync if !changes.streams.is_empty() => PersistMode::SyncData,
            Durability::Sync | Durability::Buffer => PersistMode::Buffer,
        };
        if !changes.is_empty()
            && let Err(error) = self.shared.disk.write(&changes, now, mode)
        {
            tracing::error!(%error, "the event log accepts nothing more until it is restarted");
            checked.into_iter().for_each(|c| c.answer(Err(&error)));
            let _ = self.shared.failed.set(error);
            return;
        }
        self.shared.publish(&changes.index);
        checked.into_iter().for_each(|c| c.answer(Ok(())));
        if self.shared.hints.receiver_count() > 0 {
            for (stream, record) in &changes.streams {
                let seq = record.as_ref().map(|r| r.snapshot.head.seq);
                // Sending fails only when nobody listens any more.
                let _ = self.shared.hints.send(Hint::Stream(stream.as_str().into(), seq));
            }
            for index in woken {
                let _ = self.shared.hints.send(Hint::Index(index.into()));
            }
        }
    }

    fn commit(&mut self, batch: &mut Batch, commit: Commit) -> Result<CommitOutcome, StoreError> {
        let Commit { stream, expect, state, events, first_seq, index } = commit;
        if events.is_empty() {
            return Err(StoreError::Damaged("a commit needs at least one event".into()));
        }
        let mut fixed = Bytes::new();
        let (expected, epoch) = match expect {
            Expect::Absent { epoch, fixed: given } => {
                fixed = given;
                (None, epoch)
            }
            Expect::At(head) => (Some(head.clone()), head.epoch),
            Expect::Lost { at, epoch } => (Some(at), epoch),
        };
        if stream.len() > MAX_NAME || epoch.len() > usize::from(u8::MAX) {
            return Err(StoreError::Damaged(format!(
                "a stream's name has {MAX_NAME} bytes at most, an epoch 255"
            )));
        }
        check_names(&index)?;
        if let Some(full) = &batch.full {
            return Err(full.clone());
        }
        let (log, has_fixed, seq, oldest) = match (expected, self.current(batch, &stream)?) {
            (None, None) => {
                let (log, has_fixed) = (self.next_log, !fixed.is_empty());
                self.next_log += 1;
                batch.changes.next_log = Some(self.next_log);
                if has_fixed {
                    batch.changes.fixed.insert(log, Some(fixed));
                }
                (log, has_fixed, 0, 1)
            }
            (Some(head), Some(now)) if now.snapshot.head == head => {
                (now.log, now.has_fixed, head.seq, now.snapshot.first_seq)
            }
            (_, now) => return self.conflict(batch, &stream, now),
        };
        let mut last = seq;
        for event in events {
            last += 1;
            batch.changes.events.insert((log, last), Some(event));
        }
        let first_seq = first_seq.clamp(oldest, last + 1);
        self.drop_events(batch, log, oldest, first_seq);
        let head = Head { seq: last, epoch };
        let snapshot = Snapshot { head: head.clone(), first_seq, state, fixed: Bytes::new() };
        batch.changes.streams.insert(stream, Some(Record { log, has_fixed, snapshot }));
        self.move_members(batch, index);
        Ok(CommitOutcome::Committed(head))
    }

    fn delete(
        &mut self,
        batch: &mut Batch,
        stream: String,
        expect: Head,
        index: Vec<IndexChange>,
    ) -> Result<CommitOutcome, StoreError> {
        check_names(&index)?;
        match self.current(batch, &stream)? {
            Some(now) if now.snapshot.head == expect => {
                self.drop_events(batch, now.log, now.snapshot.first_seq, expect.seq + 1);
                if now.has_fixed {
                    batch.changes.fixed.insert(now.log, None);
                }
                batch.changes.streams.insert(stream, None);
                self.move_members(batch, index);
                Ok(CommitOutcome::Committed(expect))
            }
            now => self.conflict(batch, &stream, now),
        }
    }

    fn conflict(
        &self,
        batch: &Batch,
        stream: &str,
        now: Option<Record>,
    ) -> Result<CommitOutcome, StoreError> {
        let Some(Record { log, has_fixed, mut snapshot }) = now else {
            return Ok(CommitOutcome::Conflict(None));
        };
        if has_fixed {
            snapshot.fixed = match batch.changes.fixed.get(&log) {
                Some(Some(fixed)) => fixed.clone(),
                _ => self.shared.disk.fixed(stream, log)?,
            };
        }
        Ok(CommitOutcome::Conflict(Some(snapshot)))
    }

    /// The stream as the batch leaves it so far.
    fn current(&self, batch: &Batch, stream: &str) -> Result<Option<Record>, StoreError> {
        match batch.changes.streams.get(stream) {
            Some(changed) => Ok(changed.clone()),
            None if stream.is_empty() => Err(StoreError::Damaged("a stream needs a name".into())),
            None => self.shared.disk.record(stream),
        }
    }

    /// Removes the events `from..end` of a log, many of them only later.
    fn drop_events(&mut self, batch: &mut Batch, log: u64, from: u64, end: u64) {
        let now = end.min(from.saturating_add(DROP_AT_ONCE));
        for seq in from..now {
            batch.changes.events.insert((log, seq), None);
        }
        if now < end {
            self.drops.insert((log, now), end);
            batch.changes.drops.insert((log, now), Some(end));
        }
    }

    /// Removes some of the events that were left for later.
    fn tidy(&mut self, batch: &mut Batch) {
        if let Some(((log, from), end)) = self.drops.pop_first() {
            batch.changes.drops.insert((log, from), None);
            self.drop_events(batch, log, from, end);
        }
    }

    fn move_members(&self, batch: &mut Batch, index: Vec<IndexChange>) {
        let Batch { now, changes, woken, .. } = batch;
        for change in index {
            match change {
                IndexChange::Put { index, member, after } => {
                    let due = now.saturating_add(millis(after));
                    changes.set_due(&index, member, Some(due));
                    if after.is_zero() {
                        woken.insert(index);
                    }
                }
                IndexChange::Remove { index, member } => changes.set_due(&index, member, None),
                IndexChange::Enqueue { place, gate } => {
                    self.shared.queues.lock().enqueue(place, gate, &mut changes.queues, woken);
                }
                IndexChange::Dequeue { place } => {
                    self.shared.queues.lock().dequeue(&place, &mut changes.queues);
                }
                IndexChange::Leave { gate, lane, member } => {
                    self.shared.queues.lock().leave(&gate, &lane, &member, &mut changes.queues, woken);
                }
            }
        }
    }

    fn claim(&self, batch: &mut Batch, index: &str, n: usize, hold: Duration) -> Vec<String> {
        let mut indexes = self.shared.indexes.write();
        let Some(members) = indexes.get_mut(index) else { return Vec::new() };
        let until = batch.now.saturating_add(millis(hold));
        let due = members.due(batch.now, n);
        for member in &due {
            members.set(member, Some(until));
            batch.changes.set_due(index, member.as_ref().to_owned(), Some(until));
        }
        due.iter().map(|m| m.as_ref().to_owned()).collect()
    }

    fn renew(&self, batch: &mut Batch, index: &str, members: Vec<String>, after: Duration) -> Vec<bool> {
        let mut indexes = self.shared.indexes.write();
        let Some(known) = indexes.get_mut(index) else { return vec![false; members.len()] };
        let due = batch.now.saturating_add(millis(after));
        let renew = |member: String| {
            let there = known.contains(&member);
            if there {
                known.set(&member, Some(due));
                batch.changes.set_due(index, member, Some(due));
            }
            there
        };
        members.into_iter().map(renew).collect()
    }
}

impl Changes {
    fn set_due(&mut self, index: &str, member: String, due: Option<u64>) {
        match self.index.get_mut(index) {
            Some(members) => members.insert(member, due),
            None => self.index.entry(index.to_owned()).or_default().insert(member, due),
        };
    }

    fn is_empty(&self) -> bool {
        self.streams.is_empty()
            && self.index.is_empty()
            && self.queues.is_empty()
            && self.events.is_empty()
            && self.drops.is_empty()
    }
}
