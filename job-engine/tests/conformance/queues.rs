//! What must hold for the queues and gates of every store. Each test gets an empty one.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use job_engine::store::{Commit, CommitOutcome, Expect, Extent, Gate, Hint, IndexChange, Place, Store};

use super::{
    Subject,
    suite::{absent, commit, eventually, head, load, must, must_index},
};

const HOUR: Duration = Duration::from_secs(3600);

fn place(lane: &str, member: &str, priority: i8) -> Place {
    Place { queue: "q".into(), lane: lane.into(), member: member.into(), priority }
}

pub(crate) fn enqueue(lane: &str, member: &str, priority: i8) -> IndexChange {
    IndexChange::Enqueue { place: place(lane, member, priority), gate: None }
}

pub(crate) fn enter(gate: &str, limit: u32, lane: &str, member: &str, priority: i8) -> IndexChange {
    let gate = Gate { name: gate.into(), limit };
    IndexChange::Enqueue { place: place(lane, member, priority), gate: Some(gate) }
}

pub(crate) fn dequeue(lane: &str, member: &str, priority: i8) -> IndexChange {
    IndexChange::Dequeue { place: place(lane, member, priority) }
}

pub(crate) fn leave(gate: &str, lane: &str, member: &str) -> IndexChange {
    IndexChange::Leave { gate: gate.into(), lane: lane.into(), member: member.into() }
}

async fn take(store: &dyn Store, n: usize) -> Vec<String> {
    store.take("q", n, HOUR).await.expect("an answer")
}

async fn count(store: &dyn Store, lane: &str) -> [u64; 2] {
    let extents = vec![
        Extent::Lane { queue: "q".into(), lane: lane.into() },
        Extent::Waiting { gate: "g".into(), lane: lane.into() },
    ];
    store.count(extents).await.expect("an answer").try_into().expect("two numbers")
}

/// Enqueues `n` members `<lane><number>`.
async fn fill(store: &dyn Store, lane: &str, n: usize) {
    let members: Vec<_> = (0..n).map(|i| enqueue(lane, &format!("{lane}{i}"), 0)).collect();
    for some in members.chunks(1000) {
        must_index(store, "fill", some.to_vec()).await;
    }
}

pub(crate) async fn lanes_take_turns(s: &Subject) {
    let store = &*s.store;
    assert!(take(store, 5).await.is_empty());
    fill(store, "a", 5).await;
    assert_eq!(take(store, 1).await, ["a0"]);
    fill(store, "b", 2).await;
    fill(store, "c", 1).await;
    assert_eq!(take(&*s.other, 3).await, ["a1", "b0", "c0"]);
    // A lane that was empty begins behind the others.
    must_index(store, "s", vec![enqueue("c", "c1", 0), enqueue("d", "d0", 0)]).await;
    assert_eq!(take(store, 9).await, ["a2", "b1", "c1", "d0", "a3", "a4"]);
    assert!(take(store, 9).await.is_empty());
}

pub(crate) async fn j32_a_long_lane_delays_another_by_one_member_at_most(s: &Subject) {
    let store = &*s.store;
    fill(store, "greedy", 100_000).await;
    assert_eq!(take(store, 3).await, ["greedy0", "greedy1", "greedy2"]);
    fill(store, "modest", 1).await;
    assert!(take(store, 2).await.contains(&"modest0".to_owned()));
    assert_eq!(count(store, "greedy").await, [100_000 - 4, 0]);
}

pub(crate) async fn higher_priority_goes_first_within_its_lane(s: &Subject) {
    let store = &*s.store;
    let low = ["m1", "m2"].map(|m| enqueue("a", m, -100));
    let high = ["x1", "x2"].map(|m| enqueue("a", m, 100));
    let middle = [enqueue("a", "b", 0), enqueue("a", "a", 0), enqueue("a", "c", 1), enqueue("a", "d", -1)];
    must_index(store, "s", [&low[..], &middle[..], &high[..]].concat()).await;
    // Another lane's turn comes whatever the priorities.
    must_index(store, "s", vec![enqueue("b", "b1", -128), enqueue("b", "b2", 127)]).await;
    let taken = take(store, 10).await;
    assert_eq!(taken, ["x1", "b2", "x2", "b1", "c", "b", "a", "d", "m1", "m2"]);
}

pub(crate) async fn taken_members_come_back_unless_dequeued(s: &Subject) {
    let store = &*s.store;
    fill(store, "a", 4).await;
    must_index(store, "s", vec![enqueue("a", "low", -7), enqueue("b", "other", 3)]).await;
    let hold = Duration::from_millis(200);
    let begun = std::time::Instant::now();
    let taken = store.take("q", 6, hold).await.expect("an answer");
    let answered = std::time::Instant::now();
    assert_eq!(taken, ["a0", "other", "a1", "a2", "a3", "low"]);
    assert_eq!(count(store, "a").await, [0, 0], "what is taken is not counted");
    must_index(store, "s", vec![dequeue("a", "a0", 0), dequeue("b", "other", 3), dequeue("a", "a9", 0)])
        .await;
    // What comes back goes before what was added meanwhile, within its priority.
    must_index(store, "s", vec![enqueue("a", "a4", 0), enqueue("a", "high", 1), enqueue("a", "lower", -8)])
        .await;
    let mut back = Vec::new();
    while back.len() < 7 {
        let some = eventually("members come back", async || {
            // From another connection: whoever took them may be dead.
            Some(s.other.take("q", 1, HOUR).await.expect("an answer")).filter(|t| !t.is_empty())
        })
        .await;
        let early = ["high", "a4", "lower"].contains(&&*some[0]);
        assert!(early || begun.elapsed() > Duration::from_millis(195), "{some:?} is held");
        back.extend(some);
        // Only those that nobody took are there before the hold ends, which was not begun after its answer.
        let over = hold + Duration::from_millis(10);
        eventually("the hold ends", async || (answered.elapsed() > over).then_some(())).await;
    }
    assert_eq!(back, ["high", "a1", "a2", "a3", "a4", "low", "lower"]);
    assert!(take(store, 9).await.is_empty());
}

pub(crate) async fn takes_at_once_share_nothing(s: &Subject) {
    for lane in ["a", "b", "c"] {
        fill(&*s.store, lane, 200).await;
    }
    let mut takers = tokio::task::JoinSet::new();
    for taker in 0..30 {
        let store = if taker % 2 == 0 { s.store.clone() } else { s.other.clone() };
        takers.spawn(async move {
            let mut mine = Vec::new();
            loop {
                let some = store.take("q", 7, HOUR).await.expect("an answer");
                if some.is_empty() {
                    return mine;
                }
                mine.extend(some);
            }
        });
    }
    let all: Vec<String> = takers.join_all().await.concat();
    assert_eq!((all.len(), all.iter().collect::<BTreeSet<_>>().len()), (600, 600));
}

pub(crate) async fn a_gate_lets_in_as_many_as_it_may(s: &Subject) {
    let store = &*s.store;
    let members = (0..5).map(|i| enter("g", 2, "a", &format!("a{i}"), 0)).collect();
    must_index(store, "s", members).await;
    must_index(store, "s", vec![enter("g", 2, "b", "b0", 0), enter("h", 1, "a", "h0", 0)]).await;
    assert_eq!(count(store, "a").await, [3, 3]);
    assert_eq!(take(store, 9).await, ["a0", "a1", "h0"]);
    // To be dequeued is not to leave.
    must_index(store, "s", vec![dequeue("a", "a0", 0)]).await;
    assert!(take(store, 9).await.is_empty());
    // Nor is to be queued again to enter again.
    must_index(store, "s", vec![enter("g", 2, "a", "a0", 0)]).await;
    assert_eq!(take(store, 9).await, ["a0"]);
    assert_eq!(count(store, "a").await, [0, 3]);
    must_index(store, "s", vec![dequeue("a", "a0", 0), leave("g", "a", "a0")]).await;
    assert_eq!(take(&*s.other, 9).await, ["a2"], "the next one enters with the leaving");
    must_index(store, "s", vec![leave("g", "a", "a0"), leave("g", "b", "never there")]).await;
    assert!(take(store, 9).await.is_empty(), "nobody leaves twice");
    // One that waits can leave, and the lanes take turns here, too.
    must_index(store, "s", vec![leave("g", "a", "a3")]).await;
    for (gone, next) in [("a1", "b0"), ("a2", "a4")] {
        must_index(store, "s", vec![dequeue("a", gone, 0), leave("g", "a", gone)]).await;
        assert_eq!(take(store, 9).await, [next]);
    }
    assert_eq!(count(store, "a").await, [0, 0]);
}

pub(crate) async fn a_gate_s_first_in_turn_holds_up_the_others(s: &Subject) {
    let store = &*s.store;
    must_index(store, "s", vec![enter("g", 3, "a", "in1", 0), enter("g", 3, "a", "in2", 0)]).await;
    // Alone it wants to be; whoever comes behind would let it wait for ever.
    let waiting = vec![
        enter("g", 1, "a", "alone", 0),
        enter("g", 3, "a", "behind", 0),
        enter("g", 2, "a", "urgent", 9),
    ];
    must_index(store, "s", waiting).await;
    assert_eq!(take(store, 9).await, ["in1", "in2"]);
    must_index(store, "s", vec![dequeue("a", "in1", 0), leave("g", "a", "in1")]).await;
    assert_eq!(take(store, 9).await, ["urgent"], "the priority decides whose turn it is");
    for member in ["in2", "urgent"] {
        assert!(take(store, 9).await.is_empty());
        must_index(store, "s", vec![leave("g", "a", member)]).await;
    }
    assert_eq!(take(store, 9).await, ["alone", "behind"], "each by its own limit");
}

pub(crate) async fn a_refused_commit_moves_nobody(s: &Subject) {
    let store = &*s.store;
    must_index(store, "s", vec![enter("g", 1, "a", "in", 0), enter("g", 1, "a", "waits", 0)]).await;
    must(store, commit("a", absent("e"), "", &["x"])).await;
    let stale = Commit {
        index: vec![leave("g", "a", "in"), dequeue("a", "in", 0), enqueue("a", "new", 0)],
        ..commit("a", Expect::At(head(7, "e")), "", &["y"])
    };
    assert!(matches!(store.commit(stale).await.expect("an answer"), CommitOutcome::Conflict(Some(_))));
    assert_eq!((count(store, "a").await, take(store, 9).await), ([1, 1], vec!["in".to_owned()]));
    // A deletion moves like a commit.
    let gone = store.delete("a", head(1, "e"), vec![dequeue("a", "in", 0), leave("g", "a", "in")]).await;
    assert!(matches!(gone.expect("an answer"), CommitOutcome::Committed(_)));
    assert_eq!(take(store, 9).await, ["waits"]);
}

pub(crate) async fn names_of_lanes_and_members_do_not_run_into_each_other(s: &Subject) {
    let store = &*s.store;
    let names = ["", ":", "a:b", "a", "a\0b", "!", "#", "{x}", "1:2:3", "é \u{1F30A}\n"];
    let mut changes = Vec::new();
    for queue in ["q", "q:a", "q!", "q\0"] {
        for (i, lane) in names.iter().enumerate() {
            let member = format!("{queue}{lane}{i}");
            let place = Place { queue: queue.into(), lane: (*lane).into(), member, priority: -1 };
            let gate = (i % 2 == 0).then(|| Gate { name: format!("{queue}{lane}"), limit: 1 });
            changes.push(IndexChange::Enqueue { place, gate });
        }
    }
    must_index(store, "s", changes).await;
    for queue in ["q", "q:a", "q!", "q\0"] {
        let hold = Duration::from_millis(1);
        let expected: BTreeSet<_> =
            names.iter().enumerate().map(|(i, lane)| format!("{queue}{lane}{i}")).collect();
        let taken = store.take(queue, 99, hold).await.expect("an answer");
        assert_eq!(taken.len(), names.len());
        assert_eq!(taken.into_iter().collect::<BTreeSet<_>>(), expected);
        let mut back = BTreeSet::new();
        while back.len() < names.len() {
            back.extend(s.other.take(queue, 99, HOUR).await.expect("an answer"));
        }
        assert_eq!(back, expected);
        let gone = names.iter().enumerate().map(|(i, lane)| {
            let member = format!("{queue}{lane}{i}");
            let place = Place { queue: queue.into(), lane: (*lane).into(), member, priority: -1 };
            IndexChange::Dequeue { place }
        });
        must_index(store, "s", gone.collect()).await;
        assert!(store.take(queue, 99, HOUR).await.expect("an answer").is_empty());
    }
}

pub(crate) async fn whoever_enters_a_queue_wakes_those_who_wait_for_it(s: &Subject) {
    let mut listener = s.other.hints();
    eventually("the listener hears", async || {
        must_index(&*s.store, "warm-up", vec![]).await;
        listener.try_recv().ok().filter(|hint| matches!(hint, Hint::Stream(..)))
    })
    .await;
    let mut heard = async || loop {
        let hint =
            tokio::time::timeout(Duration::from_secs(10), listener.recv()).await.expect("a hint in time");
        match hint.expect("no hint is lost here") {
            Hint::Index(name) => return name.to_string(),
            Hint::Stream(name, _) if &*name == "end" => return "nobody".to_owned(),
            _ => {}
        }
    };
    let end = async || must_index(&*s.store, "end", vec![]).await;
    must_index(&*s.store, "s", vec![enqueue("a", "plain", 0)]).await;
    assert_eq!(heard().await, "q");
    must_index(&*s.store, "s", vec![enter("g", 1, "a", "enters", 0)]).await;
    assert_eq!(heard().await, "q");
    must_index(&*s.store, "s", vec![enter("g", 1, "a", "waits", 0)]).await;
    end().await;
    assert_eq!(heard().await, "nobody");
    must_index(&*s.store, "s", vec![leave("g", "a", "enters")]).await;
    assert_eq!(heard().await, "q");
}

pub(crate) async fn counts_are_of_what_is_there(s: &Subject) {
    let store = &*s.store;
    assert!(store.count(vec![]).await.expect("an answer").is_empty());
    let put = |member: &str| IndexChange::Put { index: "i".into(), member: member.into(), after: HOUR };
    must_index(store, "s", vec![put("a"), put("b"), put("a"), enqueue("x", "m", 0)]).await;
    let extents = vec![
        Extent::Index("i".into()),
        Extent::Index("none".into()),
        Extent::Lane { queue: "q".into(), lane: "x".into() },
        Extent::Lane { queue: "none".into(), lane: "x".into() },
        Extent::Waiting { gate: "none".into(), lane: "x".into() },
    ];
    assert_eq!(s.other.count(extents).await.expect("an answer"), [2, 0, 1, 0, 0]);
}

pub(crate) async fn what_a_stream_was_made_with_stays(s: &Subject) {
    let store = &*s.store;
    let fixed = Bytes::from(vec![7u8; 300_000]);
    let made = |fixed: &Bytes| Expect::Absent { epoch: "e".into(), fixed: fixed.clone() };
    let mut at = must(store, commit("a", made(&fixed), "s", &["x"])).await;
    must(store, commit("none", made(&Bytes::new()), "s", &["x"])).await;
    for _ in 0..3 {
        at = must(store, commit("a", Expect::At(at), "t", &["y"])).await;
    }
    assert!(load(store, "a").await.expect("the stream").fixed == fixed);
    assert!(load(&*s.other, "none").await.expect("the stream").fixed.is_empty());
    for expect in [made(&Bytes::new()), Expect::At(head(1, "e"))] {
        let outcome = store.commit(commit("a", expect, "u", &["z"])).await.expect("an answer");
        let CommitOutcome::Conflict(Some(now)) = outcome else { panic!("{outcome:?}") };
        assert!(now.fixed == fixed, "a conflict shows all that is there");
    }
    store.delete("a", at, vec![]).await.expect("an answer");
    must(store, commit("a", made(&Bytes::new()), "s", &["x"])).await;
    assert!(load(store, "a").await.expect("the stream").fixed.is_empty(), "and goes with it");
}
