//! The end of the log as this process wrote it, so that a server that lost it can be given it again.
//!
//! Redis answers before its replicas or its disk have what it answered, so a failover or a restart may lose the last
//! moments. Every change that was committed here is kept for a while; [`Tail::missing`] says what has to be committed
//! once more behind a head that went back. It is committed like everything else, at exactly the head it followed then,
//! under the same numbers and the same epoch: what somebody else has written meanwhile is never overwritten, and
//! readers notice nothing. Does not: keep what other processes wrote (they do), for longer than [`KEEP`],
//! or more than it may; what is missing then is lost, and whoever owns the stream has to say so.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use super::change::Change;
use crate::store::{Head, IndexChange};

/// How much older than the newest change a kept one may be. While nothing can be committed nothing is forgotten.
const KEEP: Duration = Duration::from_secs(10);
/// What a change costs besides its events and state, roughly.
const OVERHEAD: usize = 256;

/// The changes that were committed last.
pub(super) struct Tail {
    max_bytes: usize,
    streams: HashMap<Arc<str>, VecDeque<Kept>>,
    /// Oldest first: when, and of which stream the first change kept is to be forgotten.
    order: VecDeque<(Instant, Arc<str>)>,
    bytes: usize,
}

struct Kept {
    expected: Option<Head>,
    done: Head,
    /// Empty when the next kept change follows this one: then both are given again together.
    state: Bytes,
    fixed: Bytes,
    events: Vec<Bytes>,
    first_seq: u64,
    index: Vec<IndexChange>,
    /// Of the log's origin, when it was committed.
    generation: u64,
}

impl Kept {
    fn bytes(&self) -> usize {
        OVERHEAD + self.state.len() + self.fixed.len() + self.events.iter().map(Bytes::len).sum::<usize>()
    }

    fn deletes(&self) -> bool {
        self.events.is_empty()
    }
}

impl Tail {
    /// Nothing yet; later up to `max_bytes` of events and states.
    pub(super) fn new(max_bytes: usize) -> Self {
        Self { max_bytes, streams: HashMap::new(), order: VecDeque::new(), bytes: 0 }
    }

    /// Keeps a change that was committed in this generation of the log, and forgets what is too old or too much.
    pub(super) fn keep(&mut self, change: Change, generation: u64) {
        self.keep_at(Instant::now(), change, generation);
    }

    fn keep_at(&mut self, now: Instant, change: Change, generation: u64) {
        let Change { stream, expected, done, state, fixed, events, first_seq, index } = change;
        let kept = Kept { expected, done, state, fixed, events, first_seq, index, generation };
        self.bytes += kept.bytes();
        let stream = match self.streams.get_key_value(stream.as_str()) {
            Some((stream, _)) => stream.clone(),
            None => Arc::from(stream),
        };
        let changes = self.streams.entry(stream.clone()).or_default();
        if let Some(last) = changes.back_mut()
            && !last.deletes()
            && !kept.deletes()
            && kept.expected.as_ref() == Some(&last.done)
        {
            self.bytes -= last.state.len();
            last.state = Bytes::new();
        }
        changes.push_back(kept);
        self.order.push_back((now, stream));
        while self.bytes > self.max_bytes || self.order.front().is_some_and(|(then, _)| now - *then > KEEP) {
            let Some((_, stream)) = self.order.pop_front() else { break };
            if let Some(changes) = self.streams.get_mut(&stream) {
                self.bytes -= changes.pop_front().map_or(0, |kept| kept.bytes());
                if changes.is_empty() {
                    self.streams.remove(&stream);
                }
            }
        }
    }

    /// Every stream of which something is kept.
    pub(super) fn streams(&self) -> Vec<Arc<str>> {
        self.streams.keys().cloned().collect()
    }

    /// What was committed behind `head` (`None`: no such stream) and is not there any more: one change that brings
    /// the stream forward, as far as the changes kept follow each other.
    ///
    /// That a stream does not exist is no proof of a loss, because others delete, too: only a `generation` of the log
    /// later than the change's is.
    pub(super) fn missing(&self, stream: &str, head: Option<&Head>, generation: u64) -> Option<Change> {
        let changes = self.streams.get(stream)?;
        let first = match head {
            Some(_) => changes.iter().position(|kept| kept.expected.as_ref() == head)?,
            None => changes.iter().rposition(|kept| kept.expected.is_none())?,
        };
        // Not there, and that is how it was left.
        if head.is_none() && changes.range(first..).any(Kept::deletes) {
            return None;
        }
        let mut run = changes.range(first..).take_while({
            let mut over = false;
            move |kept| {
                let mine = !over;
                over = kept.deletes() || !kept.state.is_empty();
                mine
            }
        });
        let begin = run.next()?;
        if head.is_none() && begin.generation >= generation {
            return None;
        }
        let mut change = Change {
            stream: stream.to_owned(),
            expected: begin.expected.clone(),
            done: begin.done.clone(),
            state: begin.state.clone(),
            fixed: begin.fixed.clone(),
            events: begin.events.clone(),
            first_seq: begin.first_seq,
            index: begin.index.clone(),
        };
        for kept in run {
            change.done = kept.done.clone();
            change.state = kept.state.clone();
            change.events.extend_from_slice(&kept.events);
            change.first_seq = change.first_seq.max(kept.first_seq);
            change.index.extend_from_slice(&kept.index);
        }
        Some(change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(seq: u64) -> Head {
        Head { seq, epoch: "e".into() }
    }

    fn change(from: u64, to: u64, size: usize) -> Change {
        Change {
            stream: "a".into(),
            expected: (from > 0).then(|| head(from)),
            done: head(to),
            state: Bytes::from(vec![b's'; size]),
            fixed: Bytes::new(),
            events: (from + 1..=to).map(|seq| Bytes::from(seq.to_string())).collect(),
            first_seq: 0,
            index: vec![IndexChange::Remove { index: "i".into(), member: to.to_string() }],
        }
    }

    fn shape(change: Option<Change>) -> Option<(u64, usize, u64, usize)> {
        change.map(|c| (c.expected.map_or(0, |h| h.seq), c.events.len(), c.done.seq, c.index.len()))
    }

    #[test]
    fn j23_what_is_missing_is_one_change_to_the_end() {
        let mut tail = Tail::new(16 << 20);
        for (from, to) in [(0, 1), (1, 3), (3, 4)] {
            tail.keep(change(from, to, 10), 0);
        }
        assert_eq!(shape(tail.missing("a", Some(&head(1)), 0)), Some((1, 3, 4, 2)));
        assert_eq!(shape(tail.missing("a", Some(&head(3)), 0)), Some((3, 1, 4, 1)));
        assert_eq!(shape(tail.missing("a", Some(&head(4)), 0)), None, "nothing is missing");
        assert_eq!(shape(tail.missing("a", Some(&head(2)), 0)), None, "never a part of a change");
        assert_eq!(shape(tail.missing("a", None, 0)), None, "deleted, as far as is known");
        assert_eq!(shape(tail.missing("a", None, 1)), Some((0, 4, 4, 3)), "lost");
        assert_eq!(shape(tail.missing("b", Some(&head(1)), 1)), None);
    }

    #[test]
    fn j23_others_changes_between_are_left_to_them() {
        let mut tail = Tail::new(16 << 20);
        tail.keep(change(1, 2, 10), 0);
        // 3 was written by another process.
        tail.keep(change(3, 4, 10), 0);
        assert_eq!(shape(tail.missing("a", Some(&head(1)), 0)), Some((1, 1, 2, 1)));
        assert_eq!(shape(tail.missing("a", Some(&head(2)), 0)), None);
        assert_eq!(shape(tail.missing("a", Some(&head(3)), 0)), Some((3, 1, 4, 1)));
    }

    #[test]
    fn j23_a_deletion_is_given_again_by_itself() {
        let mut tail = Tail::new(16 << 20);
        tail.keep(change(1, 2, 10), 0);
        tail.keep(Change { events: vec![], state: Bytes::new(), done: head(2), ..change(2, 2, 0) }, 0);
        assert_eq!(shape(tail.missing("a", Some(&head(1)), 0)), Some((1, 1, 2, 1)));
        assert_eq!(shape(tail.missing("a", Some(&head(2)), 0)), Some((2, 0, 2, 1)));
    }

    #[test]
    fn j24_what_was_made_and_deleted_is_not_made_again() {
        let mut tail = Tail::new(16 << 20);
        tail.keep(change(0, 2, 10), 0);
        tail.keep(Change { events: vec![], state: Bytes::new(), done: head(2), ..change(2, 2, 0) }, 0);
        assert_eq!(shape(tail.missing("a", None, 1)), None);
        tail.keep(change(0, 3, 10), 0);
        assert_eq!(shape(tail.missing("a", None, 1)), Some((0, 3, 3, 1)));
    }

    #[test]
    fn the_tail_is_bounded_by_bytes_and_age() {
        let mut tail = Tail::new(16 << 20);
        for seq in 1..=100u64 {
            tail.keep(Change { stream: format!("s{seq}"), ..change(1, 2, 1 << 20) }, 0);
            assert!(tail.bytes <= tail.max_bytes);
        }
        assert_eq!((tail.streams.len(), tail.order.len()), (15, 15));
        // However long nothing can be committed, only the next change makes the others older.
        tail.keep_at(Instant::now() + KEEP * 2, change(1, 2, 10), 0);
        assert_eq!(tail.streams(), [Arc::from("a")]);
        assert_eq!(tail.bytes, tail.streams["a"][0].bytes());
        // A long run costs one state.
        for seq in 2..100 {
            tail.keep(change(seq, seq + 1, 1 << 20), 0);
        }
        assert!(tail.bytes < 2 << 20);
    }
}
