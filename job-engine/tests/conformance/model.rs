//! Random sequences of calls against both stores and a model in memory: all three must agree.
//!
//! Times are real, so the model keeps for every member the bounds between which it is due. Calls with a zero delay
//! are due now, all others not before the test has ended.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use job_engine::store::{Commit, CommitOutcome, Expect, Extent, Head, IndexChange, Snapshot, Store};
use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, TestRunner},
};

use super::{
    RedisServer,
    calls::{Call, INDEXES, LANES, MEMBERS, Move, STREAMS, Turn, call},
    connect, open, queues, suite,
};

/// How far a store's clock may be from the one it shows, in ms: half the time that the server took to tell it, which on a
/// busy machine is long. Far less than an hour, the shortest delay here.
const SLACK: u64 = 5000;

/// Numbered events.
type Log = Vec<(u64, Bytes)>;

#[derive(Default)]
struct Model {
    streams: BTreeMap<&'static str, (Snapshot, Log)>,
    /// By index and member: due not before, and not after.
    due: BTreeMap<(&'static str, &'static str), (u64, u64)>,
    commits: u64,
    queue: Ring,
    waiting: Ring,
    inside: BTreeSet<usize>,
    /// Taken members; they come back only when the log is opened again, and on Redis not even then.
    taken: BTreeSet<usize>,
    /// Where each member was put last: lane, priority and limit (0: no gate).
    put: BTreeMap<usize, (usize, i8, u32)>,
}

/// Lanes in their turns, each with its members in order of entry.
#[derive(Default)]
struct Ring(Vec<(usize, Vec<(i8, usize)>)>);

impl Ring {
    fn push(&mut self, lane: usize, priority: i8, member: usize) {
        let at = self.0.iter().position(|(name, _)| *name == lane).unwrap_or(self.0.len());
        if at == self.0.len() {
            self.0.push((lane, Vec::new()));
        }
        let members = &mut self.0[at].1;
        let behind = members.iter().position(|(p, _)| *p < priority).unwrap_or(members.len());
        members.insert(behind, (priority, member));
    }

    fn remove(&mut self, member: usize) {
        self.0.iter_mut().for_each(|(_, members)| members.retain(|(_, m)| *m != member));
        self.0.retain(|(_, members)| !members.is_empty());
    }

    fn contains(&self, member: usize) -> bool {
        self.0.iter().any(|(_, members)| members.iter().any(|(_, m)| *m == member))
    }

    fn first(&self) -> Option<usize> {
        self.0.first().map(|(_, members)| members[0].1)
    }

    fn pop(&mut self) -> Option<usize> {
        let member = self.first()?;
        self.0.rotate_left(1);
        self.remove(member);
        Some(member)
    }
}

impl Model {
    /// Makes the moves that are allowed (a member is in the queue at most once), and says what they are to a store.
    fn take_turns(&mut self, turns: &[Turn]) -> Vec<IndexChange> {
        let mut changes = Vec::new();
        for turn in turns {
            match *turn {
                Turn::Enqueue(lane, member, priority) if !self.put.contains_key(&member) => {
                    self.put.insert(member, (lane, priority, 0));
                    self.queue.push(lane, priority, member);
                    changes.push(queues::enqueue(LANES[lane], &format!("{member}"), priority));
                }
                Turn::Enter(lane, member, priority, limit) if !self.put.contains_key(&member) => {
                    self.put.insert(member, (lane, priority, limit));
                    changes.push(queues::enter("g", limit, LANES[lane], &format!("{member}"), priority));
                    if self.inside.contains(&member) {
                        self.queue.push(lane, priority, member);
                    } else {
                        self.waiting.push(lane, priority, member);
                        self.let_in();
                    }
                }
                Turn::Dequeue(member) => {
                    let Some((lane, priority, _)) = self.put.get(&member).copied() else { continue };
                    // One that waits at the gate can only leave. One that left while it was queued is queued still.
                    if !self.waiting.contains(member) {
                        self.put.remove(&member);
                        self.queue.remove(member);
                        self.taken.remove(&member);
                    }
                    changes.push(queues::dequeue(LANES[lane], &format!("{member}"), priority));
                }
                Turn::Leave(member) => {
                    let lane = self.put.get(&member).map_or(0, |(lane, ..)| *lane);
                    changes.push(queues::leave("g", LANES[lane], &format!("{member}")));
                    if self.waiting.contains(member) {
                        self.put.remove(&member);
                    }
                    self.waiting.remove(member);
                    self.inside.remove(&member);
                    self.let_in();
                }
                Turn::Enqueue(..) | Turn::Enter(..) => {}
            }
        }
        changes
    }

    fn let_in(&mut self) {
        while let Some(member) = self.waiting.first() {
            let (lane, priority, limit) = self.put[&member];
            if self.inside.len() >= limit as usize {
                return;
            }
            self.waiting.pop();
            self.inside.insert(member);
            self.queue.push(lane, priority, member);
        }
    }

    fn move_members(&mut self, index: &[Move], bounds: (u64, u64)) {
        for (index, member, hours) in index {
            let key = (INDEXES[*index], MEMBERS[*member]);
            match hours {
                Some(hours) => drop(self.due.insert(key, later(bounds, *hours))),
                None => drop(self.due.remove(&key)),
            }
        }
    }
}

fn later((from, to): (u64, u64), hours: u64) -> (u64, u64) {
    (from + hours * 3_600_000, to + hours * 3_600_000)
}

fn changes(index: &[Move]) -> Vec<IndexChange> {
    let change = |(index, member, hours): &Move| match hours {
        Some(hours) => suite::put(INDEXES[*index], MEMBERS[*member], Duration::from_secs(hours * 3600)),
        None => suite::remove(INDEXES[*index], MEMBERS[*member]),
    };
    index.iter().map(change).collect()
}

/// Makes the call on the store and on the model, and compares.
async fn step(store: &dyn Store, model: &mut Model, call: &Call) {
    let begun = store.now_ms().saturating_sub(SLACK);
    let bounds = |store: &dyn Store| (begun, store.now_ms() + SLACK);
    match call {
        Call::Commit { stream, expecting, events, keep, index } => {
            let name = STREAMS[*stream];
            let there = model.streams.get(name).map(|(now, _)| now.clone());
            let expect = match (expecting, &there) {
                (0..=4, Some(now)) => Expect::At(now.head.clone()),
                (5, Some(now)) => Expect::At(Head { seq: now.head.seq - 1, epoch: now.head.epoch.clone() }),
                (7, Some(now)) => Expect::At(Head { seq: now.head.seq, epoch: "another".into() }),
                (5 | 7, None) => Expect::At(Head { seq: 0, epoch: "another".into() }),
                _ => suite::absent(&format!("e{}", model.commits)),
            };
            model.commits += 1;
            let seq = there.as_ref().map_or(0, |now| now.head.seq) + events.len() as u64;
            let commit = Commit {
                stream: name.into(),
                expect: expect.clone(),
                state: Bytes::from(format!("state {}", model.commits)),
                events: events.iter().cloned().map(Bytes::from).collect(),
                first_seq: keep.map_or(0, |keep| (seq + 1).saturating_sub(keep.max(1))),
                index: changes(index),
            };
            let outcome = store.commit(commit.clone()).await;
            if events.is_empty() {
                outcome.expect_err("a commit without events is refused");
                return;
            }
            let outcome = outcome.expect("the store answers");
            let epoch = match (&expect, &there) {
                (Expect::Absent { epoch, .. }, None) => epoch.clone(),
                (Expect::At(head), Some(now)) if *head == now.head => head.epoch.clone(),
                _ => {
                    assert_eq!(outcome, CommitOutcome::Conflict(there));
                    return;
                }
            };
            let head = Head { seq, epoch };
            assert_eq!(outcome, CommitOutcome::Committed(head.clone()));
            let first_seq = there.map_or(1, |now| now.first_seq).max(commit.first_seq);
            let mut log = model.streams.remove(name).map(|(_, log)| log).unwrap_or_default();
            log.extend((seq + 1 - events.len() as u64..).zip(commit.events));
            log.retain(|(seq, _)| *seq >= first_seq);
            model
                .streams
                .insert(name, (Snapshot { head, first_seq, state: commit.state, fixed: Bytes::new() }, log));
            model.move_members(index, bounds(store));
        }
        Call::Delete { stream, stale, index } => {
            let name = STREAMS[*stream];
            let there = model.streams.get(name).map(|(now, _)| now.clone());
            let mut expect = there.as_ref().map_or(suite::head(1, "e"), |now| now.head.clone());
            if *stale {
                expect.seq += 1;
            }
            let outcome = store.delete(name, expect, changes(index)).await.expect("the store answers");
            if *stale || there.is_none() {
                assert_eq!(outcome, CommitOutcome::Conflict(there));
            } else {
                assert!(matches!(outcome, CommitOutcome::Committed(_)));
                model.streams.remove(name);
                model.move_members(index, bounds(store));
            }
        }
        Call::Read { stream, after, limit, max_bytes } => {
            let page =
                store.read(STREAMS[*stream], *after, *limit, *max_bytes).await.expect("the store answers");
            let Some((now, log)) = model.streams.get(STREAMS[*stream]) else {
                assert_eq!(page, None);
                return;
            };
            let page = page.expect("the stream exists");
            assert_eq!((&page.head, page.first_seq), (&now.head, now.first_seq));
            let mut bytes = 0;
            let fits = |(_, data): &&(u64, Bytes)| {
                let first = bytes == 0;
                bytes += data.len().max(1);
                first || bytes <= *max_bytes
            };
            let expected: Vec<_> = log.iter().filter(|(seq, _)| seq > after).take(*limit).collect();
            let least = expected.iter().copied().take_while(fits).count();
            assert!(page.entries.len() >= least.min(1) && page.entries.len() <= expected.len());
            assert!(page.entries.len() >= least.saturating_sub(1), "pages are filled");
            for (entry, (seq, data)) in page.entries.iter().zip(expected) {
                assert_eq!((entry.seq, &entry.data), (*seq, data));
            }
        }
        Call::Claim { index, n } => {
            let name = INDEXES[*index];
            let mut due = store.list(name, None, 100).await.expect("the store answers");
            due.reverse();
            due.retain(|(at, _)| *at <= begun + SLACK);
            // What is due in the very ms of the call may or may not be seen.
            let claimed = store.claim(name, *n, Duration::from_secs(3600)).await.expect("the store answers");
            let expected: Vec<_> = due.into_iter().map(|(_, member)| member).take(*n).collect();
            assert_eq!(claimed, expected);
            for member in MEMBERS.into_iter().filter(|m| claimed.iter().any(|c| c == m)) {
                model.due.insert((name, member), later(bounds(store), 1));
            }
        }
        Call::Renew { index, members, hours } => {
            let name = INDEXES[*index];
            let asked = members.iter().map(|m| MEMBERS[*m].to_owned()).collect();
            let after = Duration::from_secs(hours * 3600);
            let there = store.renew(name, asked, after).await.expect("the store answers");
            let known = members.iter().map(|m| model.due.contains_key(&(name, MEMBERS[*m])));
            assert_eq!(there, known.collect::<Vec<_>>());
            for member in members {
                model
                    .due
                    .entry((name, MEMBERS[*member]))
                    .and_modify(|due| *due = later(bounds(store), *hours));
            }
        }
        Call::Queue(turns) => {
            let index = model.take_turns(turns);
            suite::must_index(store, "turns", index).await;
        }
        Call::Take { n } => {
            let taken = store.take("q", *n, Duration::from_secs(3600)).await.expect("the store answers");
            let expected: Vec<usize> = std::iter::from_fn(|| model.queue.pop()).take(*n).collect();
            assert_eq!(taken, expected.iter().map(|m| format!("{m}")).collect::<Vec<_>>());
            model.taken.extend(expected);
        }
        Call::Reopen => {}
    }
}

/// Compares everything.
async fn agree(store: &dyn Store, model: &Model) {
    let loaded = store.load(STREAMS.map(String::from).to_vec()).await.expect("the store answers");
    for (name, loaded) in STREAMS.into_iter().zip(loaded) {
        assert_eq!(loaded.as_ref(), model.streams.get(name).map(|(now, _)| now), "{name}");
        let page = store.read(name, 0, 1000, usize::MAX).await.expect("the store answers");
        let log = page.map(|p| p.entries.into_iter().map(|e| (e.seq, e.data)).collect::<Vec<_>>());
        assert_eq!(log.as_ref(), model.streams.get(name).map(|(_, log)| log), "{name}");
    }
    for (lane, name) in LANES.into_iter().enumerate() {
        let (queue, gate, at) = ("q".to_owned(), "g".to_owned(), name.to_owned());
        let extents = vec![Extent::Lane { queue, lane: at.clone() }, Extent::Waiting { gate, lane: at }];
        let len = |ring: &Ring| ring.0.iter().find(|(l, _)| *l == lane).map_or(0, |(_, m)| m.len() as u64);
        let counted = store.count(extents).await.expect("the store answers");
        assert_eq!(counted, [len(&model.queue), len(&model.waiting)], "lane {name}");
    }
    for index in INDEXES {
        let listed = store.list(index, None, 1000).await.expect("the store answers");
        assert!(listed.windows(2).all(|w| w[0] > w[1]), "{listed:?}");
        let known: Vec<_> = model.due.iter().filter(|((name, _), _)| *name == index).collect();
        assert_eq!(listed.len(), known.len(), "{index}: {listed:?}, {known:?}");
        for ((_, member), (from, to)) in known {
            let found = listed.iter().find(|(_, m)| m == member).expect("the member is listed");
            assert!((*from..=*to).contains(&found.0), "{member} is due {} and not {from}..={to}", found.0);
        }
    }
}

enum Subject<'a> {
    Redis(&'a RedisServer),
    Embedded(PathBuf),
}

impl Subject<'_> {
    async fn open(&self) -> Arc<dyn Store> {
        match self {
            Self::Redis(server) => connect(server).await,
            Self::Embedded(dir) => open(dir),
        }
    }
}

async fn run(subject: Subject<'_>, calls: &[Call]) {
    let mut model = Model::default();
    let mut store = subject.open().await;
    for call in calls {
        if matches!(call, Call::Reopen) {
            // What is taken is there again in a directory that is opened anew, and the turns begin anew: not this test.
            if matches!(subject, Subject::Embedded(_)) && !model.put.is_empty() {
                continue;
            }
            drop(store);
            store = subject.open().await;
        }
        step(&*store, &mut model, call).await;
        agree(&*store, &model).await;
    }
}

#[test]
fn both_stores_agree_with_the_model() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let server = RedisServer::start();
    let config = Config { cases: 48, max_shrink_iters: 200, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&vec(call(), 1..40), |calls| {
        let dir = tempfile::tempdir().expect("a scratch directory");
        server.command("FLUSHALL").expect("redis-server answers");
        let both = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            runtime.block_on(run(Subject::Embedded(dir.path().to_owned()), &calls));
            runtime.block_on(run(Subject::Redis(&server), &calls));
        }));
        both.map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            TestCaseError::fail(text.unwrap_or_else(|| "a call failed".into()))
        })
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}
