//! What is confirmed is where `--acknowledge` says; what cannot be confirmed is said to be accepted only.

use std::{sync::Arc, time::Duration};

use job_engine::store::{
    Expect, Store, StoreError,
    redis::{Acknowledge, RedisOptions, RedisStore},
};

use super::{
    RedisServer,
    pair::Pair,
    suite::{absent, commit, eventually, head, load, must},
};

async fn connect(url: String, acknowledge: Acknowledge) -> Result<Arc<dyn Store>, StoreError> {
    let options = RedisOptions { acknowledge, ..RedisOptions::new(url) };
    Ok(Arc::new(RedisStore::connect(&options).await?))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn j30_without_a_replica_that_has_it_nothing_is_confirmed() {
    let pair = Pair::start().await;
    let store = connect(pair.url(), Acknowledge::Replica).await.expect("redis-server answers");
    let at = must(&*store, commit("a", absent("e"), "1", &["1"])).await;
    store.confirm("a", &at).await.expect("the replica has it");
    pair.hold();
    let held = must(&*store, commit("a", Expect::At(at.clone()), "2", &["2"])).await;
    let refused = store.confirm("a", &held).await;
    let Err(StoreError::Unconfirmed(text)) = refused else { panic!("{refused:?}") };
    assert!(text.contains("no replica has it"), "{text}");
    // It was accepted all the same, and asking again is safe.
    assert_eq!(load(&*store, "a").await.map(|now| now.head), Some(held.clone()));
    pair.release();
    eventually("the replica has it now", async || store.confirm("a", &held).await.ok()).await;
    pair.synced().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn j30_many_confirmations_share_a_wait() {
    let pair = Pair::start().await;
    let store = connect(pair.url(), Acknowledge::Replica).await.expect("redis-server answers");
    let writers: Vec<_> = (0..100)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move {
                let name = format!("s{n}");
                let at = must(&*store, commit(&name, absent("e"), "1", &["1"])).await;
                store.confirm(&name, &at).await.expect("the replica has it");
            })
        })
        .collect();
    for writer in writers {
        writer.await.expect("no panic");
    }
    let stats = pair.primary().ask::<String>(&["INFO", "commandstats"]).expect("an answer");
    let line = stats.lines().find(|line| line.starts_with("cmdstat_wait:")).expect("it was called");
    let calls: u32 = line.split(['=', ',']).nth(1).and_then(|n| n.parse().ok()).expect("a number");
    assert!(calls < 100, "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn j30_a_head_that_was_lost_is_not_confirmed() {
    let mut pair = Pair::start().await;
    let store = connect(pair.url(), Acknowledge::Replica).await.expect("redis-server answers");
    let writer = connect(pair.url(), Acknowledge::Memory).await.expect("redis-server answers");
    let at = must(&*writer, commit("a", absent("e"), "1", &["1"])).await;
    pair.synced().await;
    pair.hold();
    let lost = must(&*writer, commit("a", Expect::At(at), "2", &["2"])).await;
    // Who could write it again is gone, too.
    drop(writer);
    pair.fail_over();
    let again = RedisServer::start_with(&["--replicaof", &format!("127.0.0.1 {}", pair.promoted().port())]);
    let refused = eventually("it answers again", async || match store.confirm("a", &lost).await {
        Err(StoreError::Unconfirmed(text)) if text.contains("not in the log") => Some(text),
        other => {
            assert!(other.is_err(), "what was lost is not confirmed");
            None
        }
    });
    refused.await;
    eventually("what is there is confirmed", async || store.confirm("a", &head(1, "e")).await.ok()).await;
    drop(again);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn j30_fsync_is_what_the_server_can_do_or_refused_at_the_start() {
    let memory = RedisServer::start();
    let refused = connect(memory.url(), Acknowledge::Fsync).await.err().expect("it is refused").to_string();
    assert!(refused.contains("appendonly yes"), "{refused}");
    let always = RedisServer::start_durable();
    let store = connect(always.url(), Acknowledge::Fsync).await.expect("every answer comes after the sync");
    let at = must(&*store, commit("a", absent("e"), "1", &["1"])).await;
    tokio::time::timeout(Duration::from_secs(30), store.confirm("a", &at))
        .await
        .expect("in time")
        .expect("synced");
    let everysec = RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "everysec"]);
    let has_waitaof = !everysec.command("WAITAOF 0 0 1").expect("a reply").contains("unknown command");
    match connect(everysec.url(), Acknowledge::Fsync).await {
        Ok(store) => {
            assert!(has_waitaof);
            let at = must(&*store, commit("a", absent("e"), "1", &["1"])).await;
            store.confirm("a", &at).await.expect("synced within a second or two");
        }
        Err(error) => {
            let text = error.to_string();
            assert!(
                !has_waitaof && text.contains("WAITAOF") && text.contains("appendfsync always"),
                "{text}"
            );
        }
    }
}
