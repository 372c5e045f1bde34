//! What only a Redis server can suffer: forgotten scripts, a restart, full memory, being away.

use std::{collections::HashSet, sync::Arc, time::Duration};

use bytes::Bytes;
use job_engine::store::{
    Commit, CommitOutcome, Expect, Hint, Store, StoreError,
    redis::{RedisOptions, RedisStore},
};

use super::{
    RedisServer, connect,
    suite::{absent, commit, head, load, must, put, remove},
};

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn j25_forgotten_scripts_are_loaded_again() {
    let server = RedisServer::start();
    let store = connect(&server).await;
    let mut at = must(&*store, commit("a", absent("e"), "s", &["x"])).await;
    for i in 0..20 {
        assert!(server.command("SCRIPT FLUSH").expect("a reply").starts_with("+OK"));
        let next =
            Commit { index: vec![put("i", "a", Duration::ZERO)], ..commit("a", Expect::At(at), "s", &["y"]) };
        at = must(&*store, next).await;
        assert_eq!(at.seq, i + 2);
        assert!(server.command("SCRIPT FLUSH").expect("a reply").starts_with("+OK"));
        assert_eq!(store.claim("i", 1, HOUR).await.expect("an answer"), ["a"]);
        assert!(server.command("SCRIPT FLUSH").expect("a reply").starts_with("+OK"));
        assert_eq!(store.renew("i", vec!["a".into()], HOUR).await.expect("an answer"), [true]);
    }
    assert!(server.command("SCRIPT FLUSH").expect("a reply").starts_with("+OK"));
    assert!(matches!(store.delete("a", at, vec![]).await.expect("an answer"), CommitOutcome::Committed(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn j27_a_restarted_server_is_used_again_and_nothing_is_lost_or_doubled() {
    let mut server = RedisServer::start_durable();
    let store = connect(&server).await;
    let mut hints = store.hints();
    let writers: Vec<_> = (0..8)
        .map(|w| {
            let store = store.clone();
            tokio::spawn(async move {
                let (name, mut expect) = (format!("w{w}"), absent("e"));
                for i in 1..=200u64 {
                    let outcome =
                        store.commit(commit(&name, expect, &i.to_string(), &[&i.to_string()])).await;
                    match outcome.expect("the store is away for less than its patience") {
                        CommitOutcome::Committed(at) => expect = Expect::At(at),
                        CommitOutcome::Conflict(now) => panic!("nobody else writes, yet {i} met {now:?}"),
                    }
                }
            })
        })
        .collect();
    while load(&*store, "w0").await.is_none_or(|now| now.head.seq < 20) {
        tokio::task::yield_now().await;
    }
    server.kill();
    server.start_again();
    for writer in writers {
        writer.await.expect("the writer succeeds");
    }
    for w in 0..8 {
        let name = format!("w{w}");
        let page = store.read(&name, 0, 1000, usize::MAX).await.expect("an answer").expect("the stream");
        assert_eq!(page.head, head(200, "e"));
        let numbers: Vec<_> =
            page.entries.iter().map(|e| String::from_utf8_lossy(&e.data).into_owned()).collect();
        assert_eq!(numbers, (1..=200).map(|i| i.to_string()).collect::<Vec<_>>());
    }
    // Whoever listens learns that hints were lost, and then hears new ones.
    let mut lost = false;
    loop {
        let hint = tokio::time::timeout(Duration::from_secs(10), hints.recv()).await.expect("a hint in time");
        lost |= matches!(hint, Ok(Hint::Lost) | Err(tokio::sync::broadcast::error::RecvError::Lagged(_)));
        match load(&*store, "after").await {
            None if lost => drop(must(&*store, commit("after", absent("e"), "", &["x"])).await),
            _ if matches!(&hint, Ok(Hint::Stream(name, _)) if &**name == "after") => break,
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_server_that_is_away_is_unavailable_and_comes_back() {
    let mut server = RedisServer::start_durable();
    let options = RedisOptions { patience: Duration::from_millis(200), ..RedisOptions::new(server.url()) };
    let store: Arc<dyn Store> = Arc::new(RedisStore::connect(&options).await.expect("redis-server answers"));
    let at = must(&*store, commit("a", absent("e"), "s", &["x"])).await;
    server.kill();
    assert!(matches!(store.ping().await, Err(StoreError::Unavailable(_))));
    let refused = store.commit(commit("a", Expect::At(at.clone()), "t", &["y"])).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    assert!(matches!(store.load(vec!["a".into()]).await, Err(StoreError::Unavailable(_))));
    server.start_again();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while store.ping().await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "the store does not come back");
    }
    assert_eq!(must(&*store, commit("a", Expect::At(at), "t", &["y"])).await, head(2, "e"));
}

#[tokio::test]
async fn j25_full_memory_is_told_and_leaves_nothing_half_done() {
    let server = RedisServer::start();
    let store = connect(&server).await;
    let at = must(
        &*store,
        Commit { index: vec![put("i", "kept", HOUR)], ..commit("a", absent("e"), "s", &["x"]) },
    )
    .await;
    let filling = Bytes::from(vec![b'x'; 1 << 20]);
    let filler =
        |i: usize| Commit { state: filling.clone(), ..commit(&format!("f{i}"), absent("e"), "", &["x"]) };
    server.command("CONFIG SET maxmemory 16mb").expect("a reply");
    let mut stored = 0;
    let refused = loop {
        match store.commit(filler(stored)).await {
            Ok(CommitOutcome::Committed(_)) => stored += 1,
            other => break other,
        }
        assert!(stored < 64, "maxmemory has no effect");
    };
    assert!(matches!(refused, Err(StoreError::Full(_))), "{refused:?}");
    assert_eq!(load(&*store, &format!("f{stored}")).await, None);
    // Now not even the smallest commit fits.
    server.command("CONFIG SET maxmemory 8mb").expect("a reply");
    let before = (load(&*store, "a").await, store.list("i", None, 10).await.expect("an answer"));
    let grow = Commit {
        index: vec![remove("i", "kept"), put("i", "new", Duration::ZERO)],
        ..commit("a", Expect::At(at.clone()), "t", &["y", "z"])
    };
    assert!(matches!(store.commit(grow.clone()).await, Err(StoreError::Full(_))));
    assert_eq!((load(&*store, "a").await, store.list("i", None, 10).await.expect("an answer")), before);
    let page = store.read("a", 0, 10, 1000).await.expect("an answer").expect("the stream");
    assert_eq!(page.entries.len(), 1);
    // What keeps jobs alive and what makes room still works.
    assert_eq!(store.renew("i", vec!["kept".into()], Duration::ZERO).await.expect("an answer"), [true]);
    assert_eq!(store.claim("i", 1, HOUR).await.expect("an answer"), ["kept"]);
    for i in 0..stored {
        let gone =
            store.delete(&format!("f{i}"), head(1, "e"), vec![put("gone", &format!("f{i}"), HOUR)]).await;
        assert!(matches!(gone.expect("an answer"), CommitOutcome::Committed(_)));
    }
    assert_eq!(must(&*store, grow).await, head(3, "e"));
    assert_eq!(store.list("gone", None, 100).await.expect("an answer").len(), stored);
}

#[tokio::test]
async fn j24_a_server_that_evicts_is_refused() {
    let server = RedisServer::start();
    server.command("CONFIG SET maxmemory-policy allkeys-lru").expect("a reply");
    let refused = RedisStore::connect(&RedisOptions::new(server.url())).await;
    let text = refused.err().expect("a server that evicts is refused").to_string();
    assert!(text.contains("allkeys-lru") && text.contains("noeviction"), "{text}");
}

/// Commits in one batch: on a runtime of one thread, all are requested before any is sent.
async fn in_one_batch(
    server: &RedisServer,
    store: &dyn Store,
    commits: Vec<Commit>,
) -> Vec<Result<CommitOutcome, StoreError>> {
    let runs = || {
        let info = server.command("INFO commandstats").expect("a reply");
        let line = info.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
        line.and_then(|line| line.split(',').next()?.parse::<u64>().ok()).expect("a number of calls")
    };
    let before = runs();
    let outcomes = futures_util::future::join_all(commits.into_iter().map(|c| store.commit(c))).await;
    assert_eq!(runs() - before, 1, "one run of the script carries them all");
    outcomes
}

#[tokio::test]
async fn j25_commits_of_one_batch_are_answered_each_by_itself() {
    let server = RedisServer::start();
    let store = connect(&server).await;
    let at = must(&*store, commit("a", absent("e"), "s", &["x"])).await;
    let there = load(&*store, "a").await;
    assert!(there.is_some());
    server.command("SET {conformance}s:broken x").expect("a reply");
    let good = |name: &str| Commit {
        index: vec![put("i", name, HOUR)],
        ..commit(name, absent("e"), name, &["y", "z"])
    };
    let broken_index = Commit { index: vec![put("broken", "m", HOUR)], ..good("b2") };
    server.command("SET {conformance}i:broken x").expect("a reply");
    let batch = vec![
        good("b1"),
        commit("a", absent("e"), "t", &["y"]),
        commit("broken", Expect::At(at.clone()), "t", &["y"]),
        broken_index,
        commit("none", Expect::At(at.clone()), "t", &["y"]),
        commit("a", Expect::At(at.clone()), "t", &["y"]),
        commit("a", Expect::At(at.clone()), "u", &["y"]),
        good("b3"),
    ];

    // Full memory refuses what would be written, and nothing else.
    server.command("CONFIG SET maxmemory 1").expect("a reply");
    let full = in_one_batch(&server, &*store, batch.clone()).await;
    for refused in [0, 3, 5, 6, 7] {
        assert!(matches!(full[refused], Err(StoreError::Full(_))), "{refused}: {:?}", full[refused]);
    }
    assert_eq!(full[1].as_ref().expect("an answer"), &CommitOutcome::Conflict(there.clone()));
    assert!(matches!(full[2], Err(StoreError::Damaged(_))), "{:?}", full[2]);
    assert_eq!(full[4].as_ref().expect("an answer"), &CommitOutcome::Conflict(None));
    assert_eq!(load(&*store, "a").await, there);
    assert_eq!(load(&*store, "b1").await, None);

    server.command("CONFIG SET maxmemory 0").expect("a reply");
    let mut hints = store.hints();
    let done = in_one_batch(&server, &*store, batch).await;
    for (i, head) in [(0, head(2, "e")), (5, head(2, "e")), (7, head(2, "e"))] {
        assert_eq!(done[i].as_ref().expect("an answer"), &CommitOutcome::Committed(head), "{i}");
    }
    let now = load(&*store, "a").await;
    assert_eq!(done[1].as_ref().expect("an answer"), &CommitOutcome::Conflict(there));
    assert!(matches!(done[2], Err(StoreError::Damaged(_))), "{:?}", done[2]);
    assert!(matches!(done[3], Err(StoreError::Damaged(_))), "{:?}", done[3]);
    assert_eq!(done[4].as_ref().expect("an answer"), &CommitOutcome::Conflict(None));
    assert_eq!(done[6].as_ref().expect("an answer"), &CommitOutcome::Conflict(now));
    assert_eq!(store.list("i", None, 10).await.expect("an answer").len(), 2);
    // One message tells of all that happened; what else it tells of is a look for nothing.
    let mut told = HashSet::new();
    while !["b1", "a", "b3"].iter().all(|name| told.contains(*name)) {
        let hint = tokio::time::timeout(Duration::from_secs(10), hints.recv()).await.expect("a hint in time");
        if let Hint::Stream(name, Some(2)) = hint.expect("a hint") {
            told.insert(name.to_string());
        }
    }
}

#[tokio::test]
async fn j28_a_ring_of_ten_events_stays_as_small() {
    let server = RedisServer::start();
    let store = connect(&server).await;
    let line = "x".repeat(100);
    let mut at = must(&*store, commit("a", absent("e"), "s", &[&line])).await;
    for _ in 0..2000 {
        let first_seq = (at.seq + 1).saturating_sub(9);
        let next = Commit { first_seq, ..commit("a", Expect::At(at), "s", &[&line]) };
        at = must(&*store, next).await;
    }
    let page = store.read("a", 0, 100, usize::MAX).await.expect("an answer").expect("the stream");
    assert_eq!((page.first_seq, page.entries.len()), (at.seq - 9, 10));
    // Redis drops whole nodes of a stream, of 4 KiB each.
    let bytes: u64 = server.ask(&["MEMORY", "USAGE", "{conformance}l:a"]).expect("an answer");
    assert!(bytes < 16 << 10, "{bytes} bytes for ten lines of a hundred");
}
