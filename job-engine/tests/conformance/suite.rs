//! The tests of streams that hold for every store, and what all tests of stores are made of. Each gets an empty store.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use job_engine::store::{Commit, CommitOutcome, Entry, Expect, Head, IndexChange, Snapshot, Store};

use super::Subject;

pub(crate) const HOUR: Duration = Duration::from_secs(3600);
/// How long a condition may take to come true.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn head(seq: u64, epoch: &str) -> Head {
    Head { seq, epoch: epoch.into() }
}

pub(crate) fn absent(epoch: &str) -> Expect {
    Expect::Absent { epoch: epoch.into(), fixed: Bytes::new() }
}

/// A commit without trimming or index changes.
pub(crate) fn commit(stream: &str, expect: Expect, state: &str, events: &[&str]) -> Commit {
    Commit {
        stream: stream.into(),
        expect,
        state: Bytes::copy_from_slice(state.as_bytes()),
        events: events.iter().map(|e| Bytes::copy_from_slice(e.as_bytes())).collect(),
        first_seq: 0,
        index: Vec::new(),
    }
}

pub(crate) fn put(index: &str, member: &str, after: Duration) -> IndexChange {
    IndexChange::Put { index: index.into(), member: member.into(), after }
}

pub(crate) fn remove(index: &str, member: &str) -> IndexChange {
    IndexChange::Remove { index: index.into(), member: member.into() }
}

/// Commits what must succeed.
pub(crate) async fn must(store: &dyn Store, commit: Commit) -> Head {
    match store.commit(commit).await.expect("the store answers") {
        CommitOutcome::Committed(head) => head,
        CommitOutcome::Conflict(now) => panic!("conflict with {now:?}"),
    }
}

/// Changes indexes by way of a stream made for it.
pub(crate) async fn must_index(store: &dyn Store, stream: &str, index: Vec<IndexChange>) {
    let expect = match load(store, stream).await {
        Some(now) => Expect::At(now.head),
        None => absent("e"),
    };
    must(store, Commit { index, ..commit(stream, expect, "", &["."]) }).await;
}

pub(crate) async fn load(store: &dyn Store, stream: &str) -> Option<Snapshot> {
    store.load(vec![stream.into()]).await.expect("the store answers").remove(0)
}

/// Every event of a stream.
async fn events(store: &dyn Store, stream: &str) -> Vec<(u64, String)> {
    let page = store.read(stream, 0, 10_000, usize::MAX).await.expect("the store answers");
    texts(&page.expect("the stream exists").entries)
}

fn texts(entries: &[Entry]) -> Vec<(u64, String)> {
    entries.iter().map(|e| (e.seq, String::from_utf8_lossy(&e.data).into_owned())).collect()
}

fn numbered(from: u64, texts: &[&str]) -> Vec<(u64, String)> {
    (from..).zip(texts.iter().map(|t| (*t).to_owned())).collect()
}

pub(crate) async fn members(store: &dyn Store, index: &str) -> Vec<String> {
    let listed = store.list(index, None, 10_000).await.expect("the store answers");
    listed.into_iter().map(|(_, member)| member).collect()
}

/// Asks again until the answer is there.
pub(crate) async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(tokio::time::Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub(crate) async fn commit_creates_and_appends(s: &Subject) {
    let store = &*s.store;
    assert_eq!(load(store, "a").await, None);
    assert_eq!(must(store, commit("a", absent("e1"), "s1", &["x"])).await, head(1, "e1"));
    let made = Snapshot { head: head(1, "e1"), first_seq: 1, state: "s1".into(), fixed: Bytes::new() };
    assert_eq!(load(store, "a").await, Some(made));
    let at = Expect::At(head(1, "e1"));
    assert_eq!(must(store, commit("a", at, "s2", &["y", "z"])).await, head(3, "e1"));
    let grown = Snapshot { head: head(3, "e1"), first_seq: 1, state: "s2".into(), fixed: Bytes::new() };
    assert_eq!(load(&*s.other, "a").await, Some(grown));
    assert_eq!(events(store, "a").await, numbered(1, &["x", "y", "z"]));
    assert_eq!(load(store, "b").await, None);
}

pub(crate) async fn commit_conflicts_with_what_is_there(s: &Subject) {
    let store = &*s.store;
    let nothing = store.commit(commit("a", Expect::At(head(1, "e")), "", &["x"])).await;
    assert_eq!(nothing.expect("an answer"), CommitOutcome::Conflict(None));
    assert_eq!(load(store, "a").await, None);
    must(store, commit("a", absent("e"), "s1", &["x", "y"])).await;
    let there = Snapshot { head: head(2, "e"), first_seq: 1, state: "s1".into(), fixed: Bytes::new() };
    for expect in [
        absent("e"),
        absent("f"),
        Expect::At(head(1, "e")),
        Expect::At(head(3, "e")),
        Expect::At(head(0, "e")),
        Expect::At(head(2, "f")),
    ] {
        let outcome = store.commit(commit("a", expect.clone(), "s2", &["z"])).await.expect("an answer");
        assert_eq!(outcome, CommitOutcome::Conflict(Some(there.clone())), "{expect:?}");
    }
    assert_eq!(events(store, "a").await, numbered(1, &["x", "y"]));
}

pub(crate) async fn refused_commit_changes_nothing(s: &Subject) {
    let store = &*s.store;
    must(store, commit("a", absent("e"), "s1", &["x", "y"])).await;
    must_index(store, "setup", vec![put("i", "kept", HOUR), put("i", "stays", HOUR)]).await;
    let before = (load(store, "a").await, members(store, "i").await);
    let mut refused = commit("a", Expect::At(head(1, "e")), "s2", &["z"]);
    refused.first_seq = 2;
    refused.index = vec![put("i", "new", Duration::ZERO), remove("i", "kept"), put("j", "new", HOUR)];
    let outcome = store.commit(refused).await.expect("an answer");
    assert!(matches!(outcome, CommitOutcome::Conflict(Some(_))));
    let stale = store.delete("a", head(1, "e"), vec![remove("i", "stays")]).await.expect("an answer");
    assert!(matches!(stale, CommitOutcome::Conflict(Some(_))));
    assert_eq!((load(store, "a").await, members(store, "i").await), before);
    assert!(members(store, "j").await.is_empty());
    assert_eq!(events(store, "a").await, numbered(1, &["x", "y"]));
}

pub(crate) async fn commit_without_events_is_refused(s: &Subject) {
    let store = &*s.store;
    store.commit(commit("a", absent("e"), "s", &[])).await.expect_err("no stream without an event");
    assert_eq!(load(store, "a").await, None);
    let at = must(store, commit("a", absent("e"), "s", &["x"])).await;
    store
        .commit(commit("a", Expect::At(at.clone()), "t", &[]))
        .await
        .expect_err("no change without an event");
    assert_eq!(load(store, "a").await.map(|now| (now.head, now.state)), Some((at, "s".into())));
    store.ping().await.expect("a bad request is no outage");
}

pub(crate) async fn hundred_writers_make_one_dense_log(s: &Subject) {
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..100 {
        let store = if writer % 2 == 0 { s.store.clone() } else { s.other.clone() };
        writers.spawn(async move {
            let mut expect = absent(&format!("by{writer}"));
            let mut event = format!("{writer}");
            event.push_str(&"x".repeat(writer));
            loop {
                let outcome = store.commit(commit("a", expect, &event, &[&event])).await.expect("an answer");
                match outcome {
                    CommitOutcome::Committed(head) => return (head, event),
                    CommitOutcome::Conflict(now) => expect = Expect::At(now.expect("somebody won").head),
                }
            }
        });
    }
    let mut won = writers.join_all().await;
    won.sort_by_key(|(head, _)| head.seq);
    let log = events(&*s.store, "a").await;
    assert_eq!(log.len(), 100);
    for (i, ((head, event), (seq, stored))) in won.iter().zip(&log).enumerate() {
        assert_eq!((head.seq, *seq), (i as u64 + 1, i as u64 + 1), "exactly one writer wins each number");
        assert_eq!(event, stored);
        assert_eq!(head.epoch, won[0].0.epoch);
    }
    let last = load(&*s.store, "a").await.expect("the stream exists");
    assert_eq!((last.head.seq, &last.state[..]), (100, won[99].1.as_bytes()));
}

pub(crate) async fn delete_removes_everything(s: &Subject) {
    let store = &*s.store;
    let mut made = commit("a", absent("e"), "s", &["x", "y"]);
    made.index = vec![put("i", "a", HOUR)];
    let at = must(store, made).await;
    must(store, commit("b", absent("e"), "s", &["b"])).await;
    let outcome = store.delete("a", at.clone(), vec![remove("i", "a"), put("gone", "a", HOUR)]).await;
    assert!(matches!(outcome.expect("an answer"), CommitOutcome::Committed(_)));
    assert_eq!(load(&*s.other, "a").await, None);
    assert_eq!(store.read("a", 0, 10, 1000).await.expect("an answer"), None);
    assert!(members(store, "i").await.is_empty());
    assert_eq!(members(store, "gone").await, ["a"]);
    assert_eq!(store.delete("a", at, vec![]).await.expect("an answer"), CommitOutcome::Conflict(None));
    assert_eq!(events(store, "b").await, numbered(1, &["b"]));
}

pub(crate) async fn delete_conflicts_with_what_is_there(s: &Subject) {
    let store = &*s.store;
    must(store, commit("a", absent("e"), "s", &["x", "y"])).await;
    let there = load(store, "a").await;
    for wrong in [head(1, "e"), head(3, "e"), head(2, "f"), head(0, "")] {
        let outcome = store.delete("a", wrong, vec![]).await.expect("an answer");
        assert_eq!(outcome, CommitOutcome::Conflict(there.clone()));
    }
    assert_eq!(load(store, "a").await, there);
}

pub(crate) async fn recreated_stream_is_another(s: &Subject) {
    let store = &*s.store;
    let old = must(store, commit("a", absent("old"), "s", &["1", "2", "3"])).await;
    store.delete("a", old.clone(), vec![]).await.expect("an answer");
    must(store, commit("a", absent("new"), "t", &["4"])).await;
    let there = Snapshot { head: head(1, "new"), first_seq: 1, state: "t".into(), fixed: Bytes::new() };
    assert_eq!(load(store, "a").await, Some(there.clone()));
    assert_eq!(events(store, "a").await, numbered(1, &["4"]));
    for stale in [old, head(1, "old")] {
        let outcome = store.commit(commit("a", Expect::At(stale), "u", &["x"])).await.expect("an answer");
        assert_eq!(outcome, CommitOutcome::Conflict(Some(there.clone())));
    }
}

pub(crate) async fn load_answers_in_order(s: &Subject) {
    let store = &*s.store;
    for name in ["b", "a"] {
        must(store, commit(name, absent(name), name, &["x"])).await;
    }
    let loaded = store.load(["a", "none", "b", "a"].map(String::from).to_vec()).await.expect("an answer");
    let states: Vec<_> = loaded.iter().map(|l| l.as_ref().map(|l| &l.state[..])).collect();
    assert_eq!(states, [Some(&b"a"[..]), None, Some(b"b"), Some(b"a")]);
    assert_eq!(store.load(vec![]).await.expect("an answer"), []);
}

/// A stream of `n` events that are their own numbers in ten digits.
async fn stream_of(store: &dyn Store, stream: &str, n: u64) {
    let (mut expect, mut from) = (absent("e"), 1);
    while from <= n {
        let end = n.min(from + 499);
        let batch: Vec<String> = (from..=end).map(|i| format!("{i:010}")).collect();
        let batch: Vec<&str> = batch.iter().map(String::as_str).collect();
        expect = Expect::At(must(store, commit(stream, expect, "s", &batch)).await);
        from = end + 1;
    }
}

pub(crate) async fn read_pages_by_count(s: &Subject) {
    let store = &*s.store;
    stream_of(store, "a", 1000).await;
    stream_of(store, "a2", 3).await;
    for limit in [1, 7, 128, 129, 999, 1000, 5000] {
        let (mut after, mut seen) = (0, Vec::new());
        loop {
            let page =
                store.read("a", after, limit, usize::MAX).await.expect("an answer").expect("the stream");
            assert_eq!((page.head, page.first_seq), (head(1000, "e"), 1));
            assert_eq!(page.entries.len(), limit.min(1000 - seen.len()), "limit {limit} after {after}");
            let Some(last) = page.entries.last() else { break };
            after = last.seq;
            seen.extend(texts(&page.entries));
        }
        assert!(seen.iter().zip(1..).all(|((seq, text), i)| *seq == i && *text == format!("{i:010}")));
    }
}

pub(crate) async fn read_pages_by_bytes(s: &Subject) {
    let store = &*s.store;
    stream_of(store, "a", 300).await;
    for max_bytes in [0, 1, 9, 10, 25, 1000, 1500] {
        let (mut after, mut pages) = (0, 0);
        while after < 300 {
            let page = store.read("a", after, 1000, max_bytes).await.expect("an answer").expect("the stream");
            assert_eq!(page.entries[0].seq, after + 1, "at least one event, however small the bound");
            assert!(page.entries.len() <= max_bytes.div_ceil(10).max(1), "about {max_bytes} bytes");
            assert!(page.entries.windows(2).all(|w| w[0].seq + 1 == w[1].seq));
            after += page.entries.len() as u64;
            pages += 1;
        }
        assert!(pages <= 300 / (max_bytes / 10).max(1) + 1, "pages of {max_bytes} bytes are filled");
    }
}

pub(crate) async fn read_outside_the_log(s: &Subject) {
    let store = &*s.store;
    assert_eq!(store.read("a", 0, 10, 1000).await.expect("an answer"), None);
    stream_of(store, "a", 3).await;
    for after in [3, 4, 1000, u64::MAX - 1, u64::MAX] {
        let page = store.read("a", after, 10, 1000).await.expect("an answer").expect("the stream");
        assert_eq!((page.head, page.entries), (head(3, "e"), vec![]), "after {after}");
    }
}

pub(crate) async fn trimmed_events_are_gone(s: &Subject) {
    let store = &*s.store;
    stream_of(store, "a", 10).await;
    let trim = Commit { first_seq: 9, ..commit("a", Expect::At(head(10, "e")), "t", &["11"]) };
    must(store, trim).await;
    let there = Snapshot { head: head(11, "e"), first_seq: 9, state: "t".into(), fixed: Bytes::new() };
    assert_eq!(load(store, "a").await, Some(there));
    for after in [0, 5, 8] {
        let page = store.read("a", after, 10, 1000).await.expect("an answer").expect("the stream");
        assert_eq!(page.first_seq, 9);
        assert_eq!(texts(&page.entries), numbered(9, &["0000000009", "0000000010", "11"]), "after {after}");
    }
    // Up to the event that is being committed.
    must(store, Commit { first_seq: 12, ..commit("a", Expect::At(head(11, "e")), "u", &["12"]) }).await;
    assert_eq!(events(store, "a").await, numbered(12, &["12"]));
}

pub(crate) async fn trimming_in_one_sweep_of_thousands(s: &Subject) {
    let store = &*s.store;
    stream_of(store, "a", 5000).await;
    must(store, Commit { first_seq: 4999, ..commit("a", Expect::At(head(5000, "e")), "t", &["x"]) }).await;
    assert_eq!(events(store, "a").await, numbered(4999, &["0000004999", "0000005000", "x"]));
    store.delete("a", head(5001, "e"), vec![]).await.expect("an answer");
    stream_of(store, "a", 2).await;
    assert_eq!(events(store, "a").await, numbered(1, &["0000000001", "0000000002"]));
}

pub(crate) async fn first_seq_never_goes_back(s: &Subject) {
    let store = &*s.store;
    stream_of(store, "a", 10).await;
    must(store, Commit { first_seq: 8, ..commit("a", Expect::At(head(10, "e")), "t", &["11"]) }).await;
    must(store, Commit { first_seq: 3, ..commit("a", Expect::At(head(11, "e")), "t", &["12"]) }).await;
    assert_eq!(load(store, "a").await.map(|now| now.first_seq), Some(8));
    let page = store.read("a", 0, 2, 1000).await.expect("an answer").expect("the stream");
    assert_eq!((page.first_seq, page.entries[0].seq), (8, 8));
}

pub(crate) async fn values_may_be_large(s: &Subject) {
    let store = &*s.store;
    // Not compressible, so that nothing hides its size.
    let mut x = 1u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (x >> 56).to_le_bytes()[0]
    })
    .take(4 << 20)
    .collect();
    let noise = Bytes::from(noise);
    let large = Commit {
        state: noise.clone(),
        events: vec![noise.slice(..1 << 20), noise.slice(1 << 20..)],
        ..commit("a", absent("e"), "", &[])
    };
    must(store, large).await;
    assert!(load(store, "a").await.expect("the stream").state == noise);
    let page = store.read("a", 0, 10, usize::MAX).await.expect("an answer").expect("the stream");
    assert_eq!(page.entries.len(), 2);
    assert!(page.entries[0].data == noise.slice(..1 << 20) && page.entries[1].data == noise.slice(1 << 20..));
}

pub(crate) async fn values_and_names_may_be_any_bytes(s: &Subject) {
    let store = &*s.store;
    let all: Bytes = (0..=255u8).cycle().take(1024).collect();
    for name in ["a\0b", "a", "{a}b c", "é\u{1F30A}", "a\0"] {
        let made = Commit {
            state: all.clone(),
            events: vec![all.clone(), Bytes::new()],
            index: vec![put("\0i{}", name, HOUR)],
            ..commit(name, absent(name), "", &[])
        };
        must(store, made).await;
    }
    for name in ["a\0b", "a", "{a}b c", "é\u{1F30A}", "a\0"] {
        let there = load(store, name).await.expect("the stream");
        assert_eq!((there.head.epoch.as_str(), &there.state), (name, &all));
        let page = store.read(name, 0, 10, 10_000).await.expect("an answer").expect("the stream");
        assert_eq!(page.entries.iter().map(|e| &e.data[..]).collect::<Vec<_>>(), [&all[..], b""]);
    }
    let listed: BTreeSet<_> = members(store, "\0i{}").await.into_iter().collect();
    assert_eq!(listed, ["a\0b", "a", "{a}b c", "é\u{1F30A}", "a\0"].map(String::from).into());
    assert!(members(store, "").await.is_empty() && members(store, "\0").await.is_empty());
}
