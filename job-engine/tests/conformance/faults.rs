//! What a connection to Redis can suffer: cut in silence, stalled, demoted, refused, flooded; and a server that must not
//! be used at all.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use job_engine::store::{
    CommitOutcome, Expect, Hint, Store, StoreError,
    redis::{RedisOptions, RedisStore},
};
use nix::sys::signal::{Signal, kill};
use tokio::time::Instant;

use super::{
    RedisServer, connect,
    proxy::Proxy,
    suite::{absent, commit, eventually, head, load, must},
};

async fn impatient(url: String) -> Arc<dyn Store> {
    let options = RedisOptions { patience: Duration::from_millis(1500), ..RedisOptions::new(url) };
    Arc::new(RedisStore::connect(&options).await.expect("redis-server answers"))
}

async fn refusal(url: &str) -> String {
    RedisStore::connect(&RedisOptions::new(url)).await.err().expect("it is refused").to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn j27_a_stall_of_five_seconds_is_survived_by_everybody() {
    let server = RedisServer::start();
    let store = connect(&server).await;
    let at = must(&*store, commit("a", absent("e"), "1", &["1"])).await;
    kill(server.id(), Signal::SIGSTOP).expect("the server stops");
    let begun = Instant::now();
    let awake = tokio::spawn(async move {
        // This is the stall itself: nothing but time makes it.
        tokio::time::sleep(Duration::from_secs(5)).await;
        kill(server.id(), Signal::SIGCONT).expect("the server goes on");
        server
    });
    assert_eq!(must(&*store, commit("a", Expect::At(at), "2", &["2"])).await, head(2, "e"));
    assert!(begun.elapsed() >= Duration::from_secs(5));
    assert_eq!(load(&*store, "a").await.map(|now| now.head), Some(head(2, "e")));
    assert_eq!(store.generation(), 0, "nothing is suspected of being lost");
    // The server is on this machine, and has been asked for the time meanwhile.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis();
    let off = u128::from(store.now_ms()).abs_diff(now);
    assert!(off < 1000, "the clock is off by {off} ms");
    drop(awake.await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn j27_a_connection_cut_in_silence_is_noticed_and_replaced() {
    let server = RedisServer::start();
    let proxy = Proxy::to(server.port()).await;
    let store = impatient(proxy.url()).await;
    let mut at = must(&*store, commit("a", absent("e"), "1", &["1"])).await;
    let mut hints = store.hints();
    proxy.pause(true);
    let refused = store.commit(commit("a", Expect::At(at.clone()), "2", &["2"])).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    assert!(store.ping().await.is_err());
    // Nothing is heard of the old connections any more; what was held up in them must do no harm.
    proxy.cut();
    proxy.pause(false);
    eventually("it is used again", async || store.ping().await.ok()).await;
    if let Some(now) = load(&*store, "a").await.filter(|now| now.head.seq == 2) {
        at = now.head;
    }
    at = must(&*store, commit("a", Expect::At(at), "3", &["3"])).await;
    let heard = tokio::time::timeout(Duration::from_secs(10), async {
        let mut lost = false;
        loop {
            match hints.recv().await {
                Ok(Hint::Lost) => lost = true,
                Ok(Hint::Stream(..)) if lost => return,
                _ => {}
            }
            if lost {
                at = must(&*store, commit("a", Expect::At(at.clone()), "4", &["4"])).await;
            }
        }
    });
    heard
        .await
        .expect("the subscription is replaced: first it says that hints were lost, then it hears new ones");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn j27_a_subscription_that_hears_nothing_turns_health_red_and_says_so() {
    let server = RedisServer::start();
    let store = impatient(server.url()).await;
    store.ping().await.expect("healthy");
    // Subscribing is forbidden from now on, everything else is not: only the subscription is dead.
    server.command("ACL SETUSER default -subscribe").expect("a reply");
    server.command("CLIENT KILL TYPE pubsub").expect("a reply");
    let red = eventually("it is said", async || store.ping().await.err()).await;
    assert!(red.to_string().contains("subscription to hints"), "{red}");
    must(&*store, commit("a", absent("e"), "1", &["1"])).await;
    server.command("ACL SETUSER default +subscribe").expect("a reply");
    eventually("it is green again", async || store.ping().await.ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn j27_a_demoted_master_is_unavailable_until_it_is_master_again() {
    let server = RedisServer::start();
    let store = impatient(server.url()).await;
    let at = must(&*store, commit("a", absent("e"), "1", &["1"])).await;
    server.command("REPLICAOF 127.0.0.1 1").expect("a reply");
    let refused = store.commit(commit("a", Expect::At(at.clone()), "2", &["2"])).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    let red = store.ping().await.expect_err("a replica is not ready").to_string();
    assert!(red.contains("replica"), "{red}");
    server.command("REPLICAOF NO ONE").expect("a reply");
    eventually("it is used again", async || store.ping().await.ok()).await;
    assert_eq!(must(&*store, commit("a", Expect::At(at), "2", &["2"])).await, head(2, "e"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn j27_a_server_that_is_busy_with_a_script_is_waited_for() {
    let server = RedisServer::start_with(&["--busy-reply-threshold", "50"]);
    let proxy = Proxy::to(server.port()).await;
    let store = RedisStore::connect(&RedisOptions::new(proxy.url())).await.expect("redis-server answers");
    let store: Arc<dyn Store> = Arc::new(store);
    let at = must(&*store, commit("a", absent("e"), "1", &["1"])).await;
    let port = server.port();
    let script = std::thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        let mut socket = std::net::TcpStream::connect(("127.0.0.1", port)).expect("a connection");
        socket.write_all(b"EVAL \"while true do end\" 0\r\n").expect("it is sent");
        let _ = socket.read(&mut [0; 100]);
    });
    eventually("it is busy", async || server.command("PING").ok().filter(|r| r.starts_with("-BUSY"))).await;
    let commit = tokio::spawn({
        let store = store.clone();
        async move { must(&*store, commit("a", Expect::At(at), "2", &["2"])).await }
    });
    let before = proxy.refusals();
    eventually("it is refused more than once", async || (proxy.refusals() >= before + 2).then_some(())).await;
    assert!(!commit.is_finished());
    server.command("SCRIPT KILL").expect("a reply");
    assert_eq!(commit.await.expect("no panic"), head(2, "e"));
    script.join().expect("no panic");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn j27_a_server_without_room_for_clients_is_waited_for() {
    let server = RedisServer::start();
    let store = connect(&server).await;
    let at = must(&*store, commit("a", absent("e"), "1", &["1"])).await;
    let limit = server.command("CONFIG SET maxclients 1").expect("a reply");
    assert!(limit.starts_with("+OK"), "{limit}");
    // Whoever is connected now keeps everybody else out.
    let other = std::net::TcpStream::connect(("127.0.0.1", server.port())).expect("a connection");
    let kills = "CLIENT KILL TYPE normal SKIPME no";
    let _ = server.command(kills);
    let commit = tokio::spawn({
        let store = store.clone();
        async move { must(&*store, commit("a", Expect::At(at), "2", &["2"])).await }
    });
    assert_eq!(commit.await.expect("no panic"), head(2, "e"));
    drop(other);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn j25_scripts_are_flushed_and_memory_fills_under_load() {
    let server = RedisServer::start();
    let store = connect(&server).await;
    let writers: Vec<_> = (0..8u64)
        .map(|w| {
            let store = store.clone();
            tokio::spawn(async move {
                let (name, mut expect, mut refused) = (format!("w{w}"), absent("e"), 0u32);
                let mut i = 1u64;
                while i <= 150 {
                    let text = i.to_string();
                    match store.commit(commit(&name, expect.clone(), &text, &[&text, &text])).await {
                        Ok(CommitOutcome::Committed(at)) => (expect, i) = (Expect::At(at), i + 1),
                        Ok(CommitOutcome::Conflict(now)) => panic!("nobody else writes, yet {i} met {now:?}"),
                        // Nothing was changed: the same again.
                        Err(StoreError::Full(_)) => refused += 1,
                        Err(error) => panic!("{error}"),
                    }
                }
                refused
            })
        })
        .collect();
    let mut round = 0;
    while !writers.iter().all(tokio::task::JoinHandle::is_finished) {
        server.command("SCRIPT FLUSH").expect("a reply");
        let limit = if round % 4 == 0 { "1" } else { "0" };
        server.command(&format!("CONFIG SET maxmemory {limit}")).expect("a reply");
        tokio::time::sleep(Duration::from_millis(5)).await;
        round += 1;
        if round > 2000 {
            server.command("CONFIG SET maxmemory 0").expect("a reply");
        }
    }
    server.command("CONFIG SET maxmemory 0").expect("a reply");
    let mut refused = 0;
    for writer in writers {
        refused += writer.await.expect("the writer succeeds");
    }
    assert!(refused > 0, "memory was never full");
    for w in 0..8 {
        let name = format!("w{w}");
        let page = store.read(&name, 0, 1000, usize::MAX).await.expect("an answer").expect("the stream");
        assert_eq!((page.head, page.entries.len()), (head(300, "e"), 300));
        for (entry, seq) in page.entries.iter().zip(1..) {
            assert_eq!(entry.seq, seq);
            assert_eq!(&entry.data[..], seq.div_ceil(2).to_string().as_bytes());
        }
    }
}

#[tokio::test]
async fn j27_a_cluster_a_replica_or_a_wrong_password_is_named_at_the_start() {
    let cluster = RedisServer::start_node();
    let text = refusal(&cluster.url()).await;
    assert!(text.contains("redis+cluster://"), "{text}");
    let locked = RedisServer::start();
    locked.command("CONFIG SET requirepass secret").expect("a reply");
    let text = refusal(&locked.url()).await;
    assert!(text.contains("NOAUTH") || text.contains("password") || text.contains("uthentication"), "{text}");
    let url = format!("redis://:secret@127.0.0.1:{}", locked.port());
    RedisStore::connect(&RedisOptions::new(url)).await.expect("the password is right");
}

#[tokio::test]
async fn j24_a_server_that_says_nothing_of_itself_is_used_all_the_same() {
    let server = RedisServer::start();
    let made = server.command("ACL SETUSER app on >pw ~* &* +@all -info -config").expect("a reply");
    assert!(made.starts_with("+OK"), "{made}");
    let url = format!("redis://app:pw@127.0.0.1:{}", server.port());
    let store = RedisStore::connect(&RedisOptions::new(url)).await.expect("a managed server is usable");
    must(&store, commit("a", absent("e"), "1", &["1"])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn j24_a_server_that_begins_to_evict_is_given_up_at_the_next_reconnect() {
    let server = RedisServer::start();
    let store = impatient(server.url()).await;
    must(&*store, commit("a", absent("e"), "1", &["1"])).await;
    server.command("CONFIG SET maxmemory-policy allkeys-lru").expect("a reply");
    server.command("CLIENT KILL TYPE normal SKIPME yes").expect("a reply");
    let red = eventually("it is refused", async || match store.ping().await {
        Err(StoreError::Unfit(text)) => Some(text),
        _ => None,
    })
    .await;
    assert!(red.contains("CONFIG SET maxmemory-policy noeviction"), "{red}");
    server.command("CONFIG SET maxmemory-policy noeviction").expect("a reply");
    eventually("it is used again", async || store.ping().await.ok()).await;
}
