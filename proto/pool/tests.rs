//! The pool against real sockets: engines that come, go, drain, or fall silent, on addresses of the loopback network.

use std::{
    collections::HashSet,
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener as StdListener},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    runtime::Runtime,
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic_health::{ServingStatus, server::HealthReporter};

use super::*;

/// Far beyond what anything here takes.
const DEADLINE: Duration = Duration::from_secs(20);
/// How soon an engine must be left that died or fell silent: within a second on an idle machine, and long before
/// HTTP/2's PINGs find out on a busy one.
const FAILOVER: Duration = Duration::from_secs(5);
/// How long is waited for what must not happen.
const SILENT: Duration = Duration::from_secs(1);

/// An engine as far as the pool is concerned. On a runtime of its own: dropping it cuts every connection.
struct Engine {
    addr: SocketAddr,
    reporter: HealthReporter,
    runtime: Option<Runtime>,
}

impl Engine {
    fn start(addr: SocketAddr) -> Self {
        let listener = StdListener::bind(addr).unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        let (reporter, health) = tonic_health::server::health_reporter();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.spawn(async move {
            let incoming = TcpListenerStream::new(TcpListener::from_std(listener).unwrap());
            Server::builder().add_service(health).serve_with_incoming(incoming).await
        });
        Self { addr, reporter, runtime: Some(runtime) }
    }

    async fn says(&self, status: ServingStatus) {
        self.reporter.set_service_status("", status).await;
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// One port that is free on the loopback addresses 127.0.0.1 to 127.0.0.`hosts`.
fn addresses(hosts: u8) -> Vec<SocketAddr> {
    loop {
        let port = rand::random_range(10_000..32_000);
        let addrs: Vec<SocketAddr> =
            (1..=hosts).map(|n| (Ipv4Addr::new(127, 0, 0, n), port).into()).collect();
        if addrs.iter().all(|addr| StdListener::bind(addr).is_ok()) {
            return addrs;
        }
    }
}

fn pool(addrs: &[SocketAddr]) -> Pool {
    Pool::new(Targets::parse(addrs.iter().map(|addr| format!("http://{addr}"))).unwrap(), Bearer::default())
}

/// A pool whose only name leads to what the sender says; `None` is a name service that fails.
fn named(port: u16, addrs: &[SocketAddr]) -> (Pool, watch::Sender<Option<Vec<SocketAddr>>>) {
    let (said, hears) = watch::channel(Some(addrs.to_vec()));
    let resolver: Resolver = Arc::new(move |host, _| {
        assert_eq!(host, "engines.test");
        let answer = hears.borrow().clone().ok_or_else(|| io::Error::other("no name service"));
        Box::pin(async { answer })
    });
    (
        Pool::with_resolver(
            format!("http://engines.test:{port}").parse().unwrap(),
            Bearer::default(),
            resolver,
        ),
        said,
    )
}

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !condition().await {
        assert!(began.elapsed() < DEADLINE, "waited in vain: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Where twenty calls at once go.
async fn picked(pool: &Pool) -> HashSet<SocketAddr> {
    let mut picks = Vec::new();
    for _ in 0..20 {
        picks.push(pool.call(None).await.unwrap());
    }
    picks.iter().map(Pick::addr).collect()
}

#[tokio::test]
async fn e56_a_dead_engine_is_left_at_once_and_taken_back() {
    let addrs = addresses(2);
    let (one, two) = (Engine::start(addrs[0]), Engine::start(addrs[1]));
    let pool = pool(&addrs);
    until("both serve", async || pool.size() == (2, 2)).await;
    assert_eq!(picked(&pool).await, addrs.iter().copied().collect());
    let on_one = pool.stream(Some(two.addr)).await.unwrap();
    assert_eq!(on_one.addr(), one.addr);
    drop(one);
    let began = Instant::now();
    timeout(DEADLINE, on_one.lost()).await.expect("a dead engine is noticed");
    assert!(began.elapsed() < FAILOVER, "{:?}", began.elapsed());
    assert_eq!(picked(&pool).await, HashSet::from([two.addr]));
    let one = Engine::start(addrs[0]);
    until("it is taken back", async || picked(&pool).await.contains(&one.addr)).await;
}

#[tokio::test]
async fn a_silent_engine_is_left_but_only_for_another() {
    let addrs = addresses(2);
    // The kernel accepts connections and nobody answers, as with a stopped process.
    let _silent = StdListener::bind(addrs[0]).unwrap();
    let (pool, said) = named(addrs[0].port(), &addrs[..1]);
    let pick = pool.stream(None).await.unwrap();
    until("it is known to be silent", async || pick.backend.health() == Health::Unreachable).await;
    let mut lost = Box::pin(pick.lost());
    assert!(timeout(SILENT, &mut lost).await.is_err(), "there is nowhere to go");
    let two = Engine::start(addrs[1]);
    said.send_replace(Some(addrs.clone()));
    timeout(DEADLINE, lost).await.expect("there is another one now");
    assert_eq!(picked(&pool).await, HashSet::from([two.addr]));
}

#[tokio::test]
async fn an_engine_that_falls_silent_is_soon_lost() {
    let addrs = addresses(2);
    let (one, two) = (Engine::start(addrs[0]), Engine::start(addrs[1]));
    let pool = pool(&addrs);
    until("both serve", async || pool.size() == (2, 2)).await;
    let pick = pool.stream(Some(two.addr)).await.unwrap();
    // Its only thread does nothing else from here on.
    let (stuck, go_on) = std::sync::mpsc::channel::<()>();
    one.runtime.as_ref().unwrap().spawn(async move { go_on.recv() });
    let began = Instant::now();
    timeout(DEADLINE, pick.lost()).await.expect("it is noticed");
    assert!(began.elapsed() < FAILOVER, "{:?}", began.elapsed());
    assert_eq!(picked(&pool).await, HashSet::from([two.addr]));
    drop(stuck);
    until("it is taken back", async || picked(&pool).await.contains(&one.addr)).await;
}

#[tokio::test]
async fn j36_an_engine_that_drains_gets_nothing_new_and_keeps_its_streams() {
    let addrs = addresses(2);
    let (one, two) = (Engine::start(addrs[0]), Engine::start(addrs[1]));
    let pool = pool(&addrs);
    until("both serve", async || pool.size() == (2, 2)).await;
    let pick = pool.stream(Some(two.addr)).await.unwrap();
    one.says(ServingStatus::NotServing).await;
    until("it is known to drain", async || pool.size() == (2, 1)).await;
    assert_eq!(picked(&pool).await, HashSet::from([two.addr]));
    assert!(timeout(SILENT, pick.lost()).await.is_err(), "it still answers: it will end its streams itself");
    // If none serves, any that answers is better than none.
    two.says(ServingStatus::NotServing).await;
    until("none serves", async || pool.size() == (2, 0)).await;
    assert_eq!(picked(&pool).await.len(), 2);
}

#[tokio::test]
async fn names_are_resolved_again_and_an_outage_of_the_name_service_takes_nobody_away() {
    let addrs = addresses(3);
    let _engines: Vec<_> = addrs.iter().copied().map(Engine::start).collect();
    let (pool, said) = named(addrs[0].port(), &addrs[..1]);
    assert_eq!(picked(&pool).await, HashSet::from([addrs[0]]));
    let pick = pool.call(None).await.unwrap();

    said.send_replace(Some(addrs[..2].to_vec()));
    pick.failed(); // asks again at once
    until("the new one is used", async || picked(&pool).await.len() == 2).await;

    said.send_replace(None);
    pick.failed();
    until("the outage was noticed", async || pool.0.unresolved.read().contains("no name service")).await;
    assert_eq!(pool.size().0, 2);

    // Without any failure: by itself, after a while.
    said.send_replace(Some(addrs[1..].to_vec()));
    let now: HashSet<_> = addrs[1..].iter().copied().collect();
    until("the first is gone, the third is used", async || picked(&pool).await == now).await;
    assert_eq!(pick.addr(), addrs[0], "whoever is there may stay");
}

#[tokio::test]
async fn a_name_without_addresses_is_an_error_that_names_it() {
    let (pool, _said) = named(1, &[]);
    let error = pool.call(None).await.unwrap_err();
    assert!(error.message().contains("engines.test: it has no address"), "{error}");
}

#[tokio::test]
async fn e53_no_connection_carries_more_streams_than_any_peer_allows() {
    let engine = Engine::start(addresses(1)[0]);
    let pool = pool(&[engine.addr]);
    let mut picks = Vec::new();
    for _ in 0..250 {
        picks.push(pool.stream(None).await.unwrap());
    }
    let backend = picks[0].backend.clone();
    assert_eq!((backend.load(), backend.connections()), (250, vec![100, 100, 50]));
    picks.drain(100..200);
    assert_eq!((backend.load(), backend.connections()), (150, vec![100, 50]));
    picks.push(pool.stream(None).await.unwrap());
    assert_eq!(backend.connections(), [100, 51], "gaps are filled");
    picks.clear();
    assert_eq!((backend.load(), backend.connections()), (0, vec![0]), "one stays open");
}

#[tokio::test]
async fn new_streams_fill_up_a_newcomer_and_old_ones_move_with_a_fair_chance() {
    const STREAMS: usize = 64;
    let addrs = addresses(2);
    let _one = Engine::start(addrs[0]);
    let pool = pool(&addrs);
    until("one serves", async || pool.size().1 == 1).await;
    let mut moving = tokio::task::JoinSet::new();
    let mut picks = Vec::new();
    for _ in 0..STREAMS {
        let pick = pool.stream(None).await.unwrap();
        assert_eq!(pick.addr(), addrs[0]);
        moving.spawn(pick.rebalanced());
        picks.push(pick);
    }
    until("the other is known to be away", async || {
        pool.0.backends.read()[1].health() == Health::Unreachable
    })
    .await;
    let _two = Engine::start(addrs[1]);
    until("both serve", async || pool.size().1 == 2).await;
    for _ in 0..STREAMS / 2 {
        let pick = pool.stream(None).await.unwrap();
        assert_eq!(pick.addr(), addrs[1], "the less loaded one");
        picks.push(pick);
    }
    // Each moves with one half; 64 coins show fewer than 10 heads, or tails, once in a hundred million times.
    sleep(SETTLE + SPREAD).await;
    let mut moved = Vec::new();
    until("many have moved", async || {
        moved.extend(std::iter::from_fn(|| moving.try_join_next()).map(|moved| moved.unwrap().addr()));
        moved.len() >= 10
    })
    .await;
    assert!(moved.iter().all(|addr| *addr == addrs[1]));
    assert!(moving.len() >= 10, "too many have moved: {}", moved.len());
}

/// An HTTP/1 server that does not understand what it is asked, and hangs up or waits.
async fn web_server(hangs_up: bool) -> SocketAddr {
    const ANSWER: &[u8] =
        b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/html\r\ncontent-length: 13\r\n\r\n<html></html>";
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 1024];
                let _ = socket.read(&mut buffer).await;
                let _ = socket.write_all(ANSWER).await;
                while !hangs_up && socket.read(&mut buffer).await.is_ok_and(|n| n > 0) {}
            });
        }
    });
    addr
}

#[tokio::test]
async fn j37_whoever_does_not_speak_grpc_is_recognised() {
    for hangs_up in [false, true] {
        let pool = pool(&[web_server(hangs_up).await]);
        let backend = pool.call(None).await.unwrap().backend.clone();
        let (health, why) = backend.ask().await;
        assert_eq!(health, Health::Unreachable);
        assert!(why.contains("does not speak gRPC"), "{why}");
    }
    let nobody = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let pool = pool(&[nobody]);
    let (health, why) = pool.call(None).await.unwrap().backend.ask().await;
    assert_eq!(health, Health::Unreachable);
    assert!(why.contains("refused") && !why.contains("gRPC"), "{why}");
}

#[tokio::test]
async fn an_engine_without_a_health_service_serves() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let routes = tonic::service::Routes::default();
    tokio::spawn(Server::builder().add_routes(routes).serve_with_incoming(TcpListenerStream::new(listener)));
    let pool = pool(&[addr]);
    until("it serves", async || pool.size() == (1, 1)).await;
}
