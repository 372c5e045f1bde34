//! What Redis loses although it has answered: by a failover before its replica had it, by a restart without its tail,
//! by FLUSHALL. What this process wrote last is written again; what cannot be is recognised, never reinterpreted.

use std::{sync::Arc, time::Duration};

use job_engine::store::{
    Commit, CommitOutcome, Expect, Head, Hint, Store,
    redis::{RedisOptions, RedisStore},
};

use super::{
    RedisServer, connect,
    pair::Pair,
    suite::{absent, commit, eventually, head, load, must, put},
};

const HOUR: Duration = Duration::from_secs(3600);

async fn next(store: &dyn Store, stream: &str, at: Head, event: &str) -> Head {
    must(store, commit(stream, Expect::At(at), event, &[event])).await
}

async fn store(pair: &Pair) -> Arc<dyn Store> {
    let options = RedisOptions { namespace: "conformance".into(), ..RedisOptions::new(pair.url()) };
    Arc::new(RedisStore::connect(&options).await.expect("redis-server answers"))
}

async fn texts(store: &dyn Store, stream: &str) -> Vec<String> {
    let page = store.read(stream, 0, 100, usize::MAX).await.expect("an answer").expect("the stream");
    page.entries.iter().map(|e| String::from_utf8_lossy(&e.data).into_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn j23_what_a_failover_lost_is_written_again_under_its_numbers() {
    let mut pair = Pair::start().await;
    let store = store(&pair).await;
    let a1 = must(&*store, commit("a", absent("e"), "1", &["1"])).await;
    let b1 = must(&*store, commit("b", absent("e"), "1", &["1"])).await;
    pair.synced().await;
    pair.hold();
    let a2 = next(&*store, "a", a1, "2").await;
    let lost = Commit { index: vec![put("i", "a", HOUR)], ..commit("a", Expect::At(a2), "3", &["3", "4"]) };
    let a4 = must(&*store, lost).await;
    next(&*store, "b", b1, "2").await;
    must(&*store, commit("new", absent("n"), "1", &["1"])).await;
    pair.fail_over();
    // The next commit finds its place, as if nothing had happened.
    assert_eq!(next(&*store, "a", a4, "5").await, head(5, "e"));
    assert_eq!(texts(&*store, "a").await, ["1", "2", "3", "4", "5"]);
    assert_eq!(store.list("i", None, 9).await.expect("an answer").len(), 1, "with what it had moved");
    // So does what nobody asks for.
    for (name, epoch) in [("b", "e"), ("new", "n")] {
        let found = eventually("it is written again", async || load(&*store, name).await).await;
        assert_eq!(found.head.epoch, epoch);
    }
    eventually("all of it", async || (texts(&*store, "b").await == ["1", "2"]).then_some(())).await;
    assert!(store.generation() > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn j23_two_writers_of_one_stream_restore_it_together() {
    let mut pair = Pair::start().await;
    let (one, two) = (store(&pair).await, store(&pair).await);
    let mut at = must(&*one, commit("a", absent("e"), "1", &["1"])).await;
    pair.synced().await;
    pair.hold();
    for (i, store) in [&two, &one, &two, &one, &two].into_iter().enumerate() {
        at = next(&**store, "a", at, &(i + 2).to_string()).await;
    }
    pair.fail_over();
    eventually("both have restored what was theirs", async || {
        one.ping().await.ok()?;
        two.ping().await.ok()?;
        (load(&*one, "a").await?.head.seq == 6).then_some(())
    })
    .await;
    assert_eq!(texts(&*two, "a").await, ["1", "2", "3", "4", "5", "6"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn j23_a_tail_whose_writer_is_gone_is_seen_to_be_missing() {
    let mut pair = Pair::start().await;
    let (store, gone) = (store(&pair).await, store(&pair).await);
    let at = must(&*store, commit("a", absent("e"), "1", &["1"])).await;
    pair.synced().await;
    pair.hold();
    let at = next(&*gone, "a", at, "2").await;
    drop(gone);
    pair.fail_over();
    let CommitOutcome::Conflict(Some(now)) =
        store.commit(commit("a", Expect::At(at), "3", &["3"])).await.expect("an answer")
    else {
        panic!("the head went back");
    };
    assert_eq!(now.head, head(1, "e"));
    // Whoever goes on from there says so by another epoch.
    let on = Expect::Lost { at: now.head, epoch: "f".into() };
    assert_eq!(must(&*store, commit("a", on, "x", &["x"])).await, head(2, "f"));
    assert_eq!(texts(&*store, "a").await, ["1", "x"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn j24_a_flushed_log_is_written_again_as_far_as_it_is_known() {
    let server = RedisServer::start();
    let store = connect(&server).await;
    let other = connect(&server).await;
    let a1 = must(&*store, commit("a", absent("e"), "1", &["1"])).await;
    let a2 = next(&*store, "a", a1, "2").await;
    must(&*store, commit("quiet", absent("q"), "1", &["1"])).await;
    let theirs = must(&*other, commit("theirs", absent("t"), "1", &["1"])).await;
    let theirs = next(&*store, "theirs", theirs, "2").await;
    drop(other);
    let mut hints = store.hints();
    server.command("FLUSHALL").expect("a reply");
    assert_eq!(next(&*store, "a", a2, "3").await, head(3, "e"));
    assert_eq!(texts(&*store, "a").await, ["1", "2", "3"]);
    eventually("what nobody asks for comes back, too", async || load(&*store, "quiet").await).await;
    // What began before this process knew it cannot be written again.
    let outcome = store.commit(commit("theirs", Expect::At(theirs), "3", &["3"])).await.expect("an answer");
    assert_eq!(outcome, CommitOutcome::Conflict(None));
    assert!(store.generation() > 0, "and it is known that it may have been lost");
    let told = tokio::time::timeout(Duration::from_secs(10), async {
        while !matches!(hints.recv().await, Ok(Hint::Lost)) {}
    });
    told.await.expect("everybody is told to look");
}

#[tokio::test]
async fn j24_what_somebody_deleted_does_not_come_back() {
    let server = RedisServer::start();
    let (store, other) = (connect(&server).await, connect(&server).await);
    let at = must(&*store, commit("a", absent("e"), "1", &["1"])).await;
    other.delete("a", at.clone(), vec![]).await.expect("an answer");
    let outcome = store.commit(commit("a", Expect::At(at), "2", &["2"])).await.expect("an answer");
    assert_eq!(outcome, CommitOutcome::Conflict(None));
    assert_eq!((load(&*store, "a").await, store.generation()), (None, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn j24_a_restart_with_everything_loses_and_doubles_nothing() {
    let mut server = RedisServer::start_durable();
    let store = connect(&server).await;
    let mut at = must(&*store, commit("a", absent("e"), "1", &["1"])).await;
    must(&*store, commit("deleted", absent("d"), "1", &["1"])).await;
    store.delete("deleted", head(1, "d"), vec![]).await.expect("an answer");
    for round in 2..5u64 {
        server.kill();
        server.start_again();
        at = next(&*store, "a", at, &round.to_string()).await;
        assert_eq!(at, head(round, "e"));
    }
    eventually("the restarts were noticed", async || (store.generation() >= 3).then_some(())).await;
    assert_eq!(texts(&*store, "a").await, ["1", "2", "3", "4"]);
    assert_eq!(load(&*store, "deleted").await, None);
}
