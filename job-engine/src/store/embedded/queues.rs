//! Queues and gates in memory, mirroring what is on the disk: see `store` for what they promise.
//!
//! Pure: every change is made here first and noted as a record to write ([`Records`]). Only the writer changes them,
//! in the order of its batches, and a batch's takes go before its commits: so nothing is taken that is not written.
//! That something is taken is not written: it is all there again when the log is opened, as its takers are gone then.
//! Invariant: every member has exactly one record, and the lanes in a ring are those that have members.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use bytes::{Buf as _, BufMut as _};

use crate::store::{Extent, Gate, Place};

/// Records to write, by key; `None` removes.
pub(super) type Records = HashMap<Vec<u8>, Option<Vec<u8>>>;

/// What a record's key begins with.
const QUEUED: u8 = b'q';
const WAITING: u8 = b'w';
const INSIDE: u8 = b'i';

/// A member's place among those of its lane: its priority, negated, then its order of entry.
type Rank = (i16, u64);

/// All queues and gates.
#[derive(Default)]
pub(super) struct Queues {
    queues: HashMap<String, Queue>,
    gates: HashMap<String, AtGate>,
    /// The next order of entry.
    next: u64,
}

#[derive(Default)]
struct Queue {
    ring: Ring,
    taken: HashMap<(Arc<str>, Arc<str>), Taken>,
}

struct Taken {
    /// When it comes back, in ms.
    due: u64,
    rank: Rank,
}

#[derive(Default)]
struct AtGate {
    inside: HashSet<String>,
    waiting: Ring,
    /// What a waiting member asks for: the limit, and the queue.
    wanted: HashMap<Arc<str>, (u32, String)>,
}

/// Lanes that take turns.
#[derive(Default)]
struct Ring {
    turns: BTreeMap<u64, Arc<str>>,
    lanes: HashMap<Arc<str>, Lane>,
}

#[derive(Default)]
struct Lane {
    turn: u64,
    members: BTreeMap<Rank, Arc<str>>,
    ranks: HashMap<Arc<str>, Rank>,
}

impl Ring {
    fn insert(&mut self, lane: &Arc<str>, member: &Arc<str>, rank: Rank) {
        let last = self.turns.last_key_value().map_or(0, |(turn, _)| turn + 1);
        let entry = self.lanes.entry(lane.clone()).or_insert_with(|| {
            self.turns.insert(last, lane.clone());
            Lane { turn: last, ..Lane::default() }
        });
        if let Some(before) = entry.ranks.insert(member.clone(), rank) {
            entry.members.remove(&before);
        }
        entry.members.insert(rank, member.clone());
    }

    fn remove(&mut self, lane: &str, member: &str) -> Option<Rank> {
        let entry = self.lanes.get_mut(lane)?;
        let rank = entry.ranks.remove(member)?;
        entry.members.remove(&rank);
        if entry.members.is_empty() {
            let turn = entry.turn;
            self.lanes.remove(lane);
            self.turns.remove(&turn);
        }
        Some(rank)
    }

    /// The lane whose turn it is, and its first member.
    fn first(&self) -> Option<(Arc<str>, Arc<str>)> {
        let lane = self.turns.first_key_value()?.1;
        let member = self.lanes.get(lane)?.members.first_key_value()?.1;
        Some((lane.clone(), member.clone()))
    }

    /// Takes the first member out; its lane's next turn is the last.
    fn pop(&mut self) -> Option<(Arc<str>, Arc<str>, Rank)> {
        let (lane, member) = self.first()?;
        let rank = self.remove(&lane, &member)?;
        if let Some(entry) = self.lanes.get_mut(&lane) {
            self.turns.remove(&entry.turn);
            entry.turn = self.turns.last_key_value().map_or(0, |(turn, _)| turn + 1);
            self.turns.insert(entry.turn, lane.clone());
        }
        Some((lane, member, rank))
    }

    fn len(&self, lane: &str) -> usize {
        self.lanes.get(lane).map_or(0, |l| l.members.len())
    }
}

impl Queues {
    /// Puts everything where the records say. `None`: they cannot be understood.
    pub(super) fn recall(records: Vec<(Vec<u8>, Vec<u8>)>) -> Option<Self> {
        let mut queues = Self::default();
        let mut placed = Vec::new();
        for (key, value) in records {
            let (tag, [name, lane, member]) = split(&key)?;
            if tag == INSIDE {
                queues.gates.entry(name).or_default().inside.insert(member);
                continue;
            }
            let mut value = &value[..];
            let rank = (value.try_get_i16().ok()?, value.try_get_u64().ok()?);
            let wanted = match tag {
                QUEUED => None,
                WAITING => Some((value.try_get_u32().ok()?, String::from_utf8(value.to_vec()).ok()?)),
                _ => return None,
            };
            placed.push((rank, name, lane, member, wanted));
        }
        // The lanes' turns are those of their oldest members.
        placed.sort_by_key(|((_, order), ..)| *order);
        for (rank, name, lane, member, wanted) in placed {
            queues.next = rank.1 + 1;
            let (lane, member) = (lane.into(), Arc::from(member));
            match wanted {
                None => queues.queues.entry(name).or_default().ring.insert(&lane, &member, rank),
                Some(wanted) => {
                    let gate = queues.gates.entry(name).or_default();
                    gate.waiting.insert(&lane, &member, rank);
                    gate.wanted.insert(member, wanted);
                }
            }
        }
        Some(queues)
    }

    /// See `IndexChange::Enqueue`; notes in `woken` which queues have a new member.
    pub(super) fn enqueue(
        &mut self,
        place: Place,
        gate: Option<Gate>,
        out: &mut Records,
        woken: &mut HashSet<String>,
    ) {
        let Place { queue, lane, member, priority } = place;
        let rank = (-i16::from(priority), self.next);
        self.next += 1;
        let at_gate = gate.as_ref().and_then(|g| self.gates.get(&g.name));
        match gate {
            Some(Gate { name, limit }) if !at_gate.is_some_and(|g| g.inside.contains(&member)) => {
                let mut value = ranked(rank);
                value.put_u32(limit);
                value.put_slice(queue.as_bytes());
                out.insert(key(WAITING, &name, &lane, &member), Some(value));
                let gate = self.gates.entry(name.clone()).or_default();
                let member = Arc::from(member);
                gate.waiting.insert(&lane.into(), &member, rank);
                gate.wanted.insert(member, (limit, queue));
                self.let_in(&name, out, woken);
            }
            _ => self.place(queue, &lane.into(), &member.into(), rank, out, woken),
        }
    }

    fn place(
        &mut self,
        queue: String,
        lane: &Arc<str>,
        member: &Arc<str>,
        rank: Rank,
        out: &mut Records,
        woken: &mut HashSet<String>,
    ) {
        out.insert(key(QUEUED, &queue, lane, member), Some(ranked(rank)));
        woken.insert(queue.clone());
        self.queues.entry(queue).or_default().ring.insert(lane, member, rank);
    }

    /// See `IndexChange::Dequeue`.
    pub(super) fn dequeue(&mut self, place: &Place, out: &mut Records) {
        let Place { queue: name, lane, member, .. } = place;
        let Some(queue) = self.queues.get_mut(name) else { return };
        let there = queue.ring.remove(lane, member).is_some()
            || queue.taken.remove(&(lane.as_str().into(), member.as_str().into())).is_some();
        if there {
            out.insert(key(QUEUED, name, lane, member), None);
        }
        if queue.ring.lanes.is_empty() && queue.taken.is_empty() {
            self.queues.remove(name);
        }
    }

    /// See `IndexChange::Leave`.
    pub(super) fn leave(
        &mut self,
        name: &str,
        lane: &str,
        member: &str,
        out: &mut Records,
        woken: &mut HashSet<String>,
    ) {
        let Some(gate) = self.gates.get_mut(name) else { return };
        if gate.inside.remove(member) {
            out.insert(key(INSIDE, name, "", member), None);
        } else if gate.waiting.remove(lane, member).is_some() {
            gate.wanted.remove(member);
            out.insert(key(WAITING, name, lane, member), None);
        }
        self.let_in(name, out, woken);
    }

    /// Lets those in who may enter, in turn: one who may not holds up those behind, or it might never enter.
    fn let_in(&mut self, name: &str, out: &mut Records, woken: &mut HashSet<String>) {
        while let Some(gate) = self.gates.get_mut(name) {
            let first = gate.waiting.first().and_then(|(_, member)| Some(gate.wanted.get(&member)?.0));
            if first.is_none_or(|limit| gate.inside.len() >= limit as usize) {
                if gate.inside.is_empty() && first.is_none() {
                    self.gates.remove(name);
                }
                return;
            }
            let Some((lane, member, (priority, _))) = gate.waiting.pop() else { return };
            let Some((_, queue)) = gate.wanted.remove(&member) else { return };
            gate.inside.insert(member.as_ref().to_owned());
            out.insert(key(WAITING, name, &lane, &member), None);
            out.insert(key(INSIDE, name, "", &member), Some(Vec::new()));
            let rank = (priority, self.next);
            self.next += 1;
            self.place(queue, &lane, &member, rank, out, woken);
        }
    }

    /// See `Store::take`; `until` is when the taken come back.
    pub(super) fn take(&mut self, name: &str, n: usize, now: u64, until: u64) -> Vec<String> {
        let Some(queue) = self.queues.get_mut(name) else { return Vec::new() };
        for ((lane, member), taken) in queue.taken.extract_if(|_, taken| taken.due <= now) {
            queue.ring.insert(&lane, &member, taken.rank);
        }
        let mut members = Vec::new();
        while members.len() < n
            && let Some((lane, member, rank)) = queue.ring.pop()
        {
            members.push(member.as_ref().to_owned());
            queue.taken.insert((lane, member), Taken { due: until, rank });
        }
        members
    }

    /// Whether a take could find anything.
    pub(super) fn holds(&self, queue: &str) -> bool {
        self.queues.contains_key(queue)
    }

    /// See `Store::count`, without indexes.
    pub(super) fn count(&self, extent: &Extent) -> usize {
        match extent {
            Extent::Lane { queue, lane } => self.queues.get(queue).map_or(0, |q| q.ring.len(lane)),
            Extent::Waiting { gate, lane } => self.gates.get(gate).map_or(0, |g| g.waiting.len(lane)),
            Extent::Index(_) => 0,
        }
    }
}

/// Two lengths before the parts keep them apart.
#[allow(clippy::cast_possible_truncation)] // the committer refuses longer names
fn key(tag: u8, name: &str, lane: &str, member: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(5 + name.len() + lane.len() + member.len());
    key.put_u8(tag);
    key.put_u16(name.len() as u16);
    key.put_u16(lane.len() as u16);
    for part in [name, lane, member] {
        key.put_slice(part.as_bytes());
    }
    key
}

fn split(mut key: &[u8]) -> Option<(u8, [String; 3])> {
    let tag = key.try_get_u8().ok()?;
    let (name, lane) = (key.try_get_u16().ok()?, key.try_get_u16().ok()?);
    let (name, rest) = key.split_at_checked(name.into())?;
    let (lane, member) = rest.split_at_checked(lane.into())?;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    Some((tag, [text(name)?, text(lane)?, text(member)?]))
}

fn ranked((priority, order): Rank) -> Vec<u8> {
    let mut value = Vec::with_capacity(10);
    value.put_i16(priority);
    value.put_u64(order);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(lane: &str, member: &str, priority: i8) -> Place {
        Place { queue: "q".into(), lane: lane.into(), member: member.into(), priority }
    }

    #[test]
    fn what_was_written_is_all_there_again() {
        let (mut queues, mut disk, mut woken) = (Queues::default(), Records::new(), HashSet::new());
        let gate = |limit| Some(Gate { name: "g".into(), limit });
        for (lane, member, priority, gate) in [
            ("a", "a1", 0, None),
            ("a", "a2", 5, None),
            ("b", "b1", -5, None),
            ("b", "in", 0, gate(1)),
            ("b", "w1", 0, gate(1)),
            ("c", "w2", 0, gate(2)),
        ] {
            queues.enqueue(place(lane, member, priority), gate, &mut disk, &mut woken);
        }
        assert_eq!(queues.take("q", 9, 0, 100), ["a2", "in", "a1", "b1"]);
        queues.dequeue(&place("a", "a1", 0), &mut disk);
        let records = disk.iter().filter_map(|(k, v)| Some((k.clone(), v.clone()?))).collect();
        let mut again = Queues::recall(records).expect("its own records");
        assert_eq!(again.take("q", 9, 0, 100), ["a2", "in", "b1"]);
        again.dequeue(&place("b", "in", 0), &mut disk);
        again.leave("g", "b", "in", &mut disk, &mut woken);
        assert_eq!(again.take("q", 9, 0, 100), ["w1", "w2"], "each by its own limit");
        for member in ["w1", "w2"] {
            let lane = if member == "w1" { "b" } else { "c" };
            again.dequeue(&place(lane, member, 0), &mut disk);
            again.leave("g", lane, member, &mut disk, &mut woken);
        }
        for (lane, member) in [("a", "a2"), ("b", "b1"), ("c", "w2")] {
            again.dequeue(&place(lane, member, 0), &mut disk);
        }
        assert!(again.queues.is_empty() && again.gates.is_empty(), "nothing is kept for what is gone");
        assert!(disk.values().all(Option::is_none), "{disk:?}");
    }

    #[test]
    fn what_is_no_record_is_told() {
        assert!(Queues::recall(vec![(b"q\0\x05\0\0ab".to_vec(), vec![0; 10])]).is_none());
        assert!(Queues::recall(vec![(key(QUEUED, "q", "a", "m"), vec![0; 9])]).is_none());
        assert!(Queues::recall(vec![(key(b'x', "q", "a", "m"), vec![0; 10])]).is_none());
    }
}
