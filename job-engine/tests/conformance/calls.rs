//! Random calls of a store, for the comparison with the model: which ones there are, and how often each comes.

use proptest::{collection::vec, prelude::*};

pub(crate) const STREAMS: [&str; 3] = ["a", "b", "ab"];
pub(crate) const INDEXES: [&str; 2] = ["i", "j"];
pub(crate) const MEMBERS: [&str; 4] = ["m", "n", "o", "p"];
pub(crate) const LANES: [&str; 3] = ["x", "y", "z"];

#[derive(Clone, Debug)]
pub(crate) enum Call {
    /// Expecting: 0..=4 what is there, 5 an older head, 6 no stream, 7 another epoch.
    Commit {
        stream: usize,
        expecting: u8,
        events: Vec<Vec<u8>>,
        keep: Option<u64>,
        index: Vec<Move>,
    },
    Delete {
        stream: usize,
        stale: bool,
        index: Vec<Move>,
    },
    Read {
        stream: usize,
        after: u64,
        limit: usize,
        max_bytes: usize,
    },
    Claim {
        index: usize,
        n: usize,
    },
    Renew {
        index: usize,
        members: Vec<usize>,
        hours: u64,
    },
    /// Moves in the queue and at the gate, with a commit of their own.
    Queue(Vec<Turn>),
    Take {
        n: usize,
    },
    Reopen,
}

/// A move in the queue: lane, member, and priority.
#[derive(Clone, Debug)]
pub(crate) enum Turn {
    Enqueue(usize, usize, i8),
    /// With a limit.
    Enter(usize, usize, i8, u32),
    Dequeue(usize),
    Leave(usize),
}

/// `None` removes, zero hours is due at once.
pub(crate) type Move = (usize, usize, Option<u64>);

pub(crate) fn moves() -> impl Strategy<Value = Vec<Move>> {
    vec((0..INDEXES.len(), 0..MEMBERS.len(), proptest::option::weighted(0.7, 0..3u64)), 0..4)
}

pub(crate) fn call() -> impl Strategy<Value = Call> {
    let stream = || 0..STREAMS.len();
    prop_oneof![
        8 => (stream(), 0..8u8, vec(vec(any::<u8>(), 0..40), 0..4), proptest::option::of(0..6u64), moves())
            .prop_map(|(stream, expecting, events, keep, index)| Call::Commit { stream, expecting, events, keep, index }),
        1 => (stream(), any::<bool>(), moves())
            .prop_map(|(stream, stale, index)| Call::Delete { stream, stale, index }),
        2 => (stream(), 0..12u64, 0..8usize, 0..100usize)
            .prop_map(|(stream, after, limit, max_bytes)| Call::Read { stream, after, limit, max_bytes }),
        2 => (0..INDEXES.len(), 0..5usize).prop_map(|(index, n)| Call::Claim { index, n }),
        1 => (0..INDEXES.len(), vec(0..MEMBERS.len(), 0..4), 0..3u64)
            .prop_map(|(index, members, hours)| Call::Renew { index, members, hours }),
        6 => vec(turn(), 1..5).prop_map(Call::Queue),
        4 => (0..4usize).prop_map(|n| Call::Take { n }),
        1 => Just(Call::Reopen),
    ]
}

fn turn() -> impl Strategy<Value = Turn> {
    let member = 0..12usize;
    prop_oneof![
        3 => (0..LANES.len(), member.clone(), -2..3i8).prop_map(|(l, m, p)| Turn::Enqueue(l, m, p)),
        5 => (0..LANES.len(), member.clone(), -2..3i8, 1..4u32).prop_map(|(l, m, p, n)| Turn::Enter(l, m, p, n)),
        3 => member.clone().prop_map(Turn::Dequeue),
        4 => member.prop_map(Turn::Leave),
    ]
}
