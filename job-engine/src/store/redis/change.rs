//! A change of a stream as `commit.lua` reads it, and what it answers.
//!
//! Invariant: what [`command`] writes and what the script's head comment says are the same; the conformance suite runs
//! one against the other. No I/O.

use std::fmt::Write as _;

use bytes::Bytes;
use redis::{Cmd, RedisWrite as _, Value};

use super::{connection::Script, errors::typed, keys::Keys, millis, snapshot};
use crate::store::{CommitOutcome, Head, IndexChange, StoreError};

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

/// What became of a change.
pub(super) type Outcome = Result<CommitOutcome, StoreError>;

impl Change {
    /// Index changes, and the one that sets what never changes.
    fn moves(&self) -> usize {
        self.index.len() + usize::from(!self.fixed.is_empty())
    }

    /// How `commit.lua` is to read its arguments.
    fn shape(&self) -> [u8; 13] {
        let fixed = if self.fixed.is_empty() { 0 } else { 2 };
        let words = self.index.iter().map(words).sum::<usize>() + fixed;
        let mut shape = [0; 13];
        for (bytes, count) in shape.chunks_exact_mut(4).zip([self.events.len(), self.moves(), words]) {
            // As many arguments as do not fit into 32 bits do not fit into a command, either.
            bytes.copy_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_be_bytes());
        }
        shape[12] = u8::from(self.first_seq > 0);
        shape
    }

    /// Bytes of state and events.
    pub(super) fn bytes(&self) -> usize {
        self.state.len() + self.fixed.len() + self.events.iter().map(Bytes::len).sum::<usize>()
    }

    /// Bytes of names in its hint.
    pub(super) fn names(&self) -> usize {
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

    /// What a reply of `commit.lua` means; `repeated`: the change may have happened when it was sent before.
    pub(super) fn outcome(&self, reply: Value, repeated: bool) -> Outcome {
        let current = match reply {
            Value::Int(1) => return Ok(CommitOutcome::Committed(self.done.clone())),
            Value::ServerError(error) => return Err(typed(&error.into())),
            other => snapshot(other)?,
        };
        let own_work = repeated
            && match &current {
                Some(now) => !self.events.is_empty() && now.head == self.done && now.state == self.state,
                None => self.events.is_empty(),
            };
        Ok(if own_work {
            CommitOutcome::Committed(self.done.clone())
        } else {
            CommitOutcome::Conflict(current)
        })
    }
}

/// The keys and arguments of `commit.lua`.
pub(super) fn command(keys: &Keys, script: &Script, changes: &[Change]) -> Cmd {
    let number = 1 + changes.iter().map(|c| 2 + c.moves()).sum::<usize>();
    let mut cmd = script.command(number);
    cmd.arg(keys.channel());
    for c in changes {
        cmd.arg(keys.state(&c.stream)).arg(keys.log(&c.stream));
        for change in &c.index {
            cmd.arg(keys.of(change));
        }
        if !c.fixed.is_empty() {
            cmd.arg(keys.state(&c.stream));
        }
    }
    let hints = changes.iter().map(Change::hint).collect::<Vec<_>>().join("\n");
    let shapes: Vec<u8> = changes.iter().flat_map(Change::shape).collect();
    cmd.arg(hints).arg(shapes);
    for c in changes {
        match &c.expected {
            Some(head) => cmd.write_arg_fmt(format_args!("{} {}", head.seq, head.epoch)),
            None => cmd.write_arg(b""),
        }
        cmd.write_arg_fmt(format_args!("{} {}", c.done.seq, c.done.epoch));
        cmd.arg(&c.state[..]);
        if c.first_seq > 0 {
            cmd.arg(c.first_seq);
        }
        let before = c.done.seq - c.events.len() as u64;
        for (seq, event) in (before + 1..).zip(&c.events) {
            cmd.write_arg_fmt(format_args!("{seq}-0"));
            cmd.arg(&event[..]);
        }
        for change in &c.index {
            write(&mut cmd, change);
        }
        if !c.fixed.is_empty() {
            cmd.arg("b").arg(&c.fixed[..]);
        }
    }
    cmd
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
