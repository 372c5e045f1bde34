//! Two engines on one Redis, two gateways, and what viewers and jobs notice when an engine dies, freezes, or leaves.

use std::time::Duration;

use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::json;
use tokio::{sync::watch, task::JoinHandle, time::Instant};

use crate::support::{
    Process, Seen, binary, data, eventually, fleet::*, follow, free_port, proxy::IdleCutter,
};

/// How long a viewer may wait for the next event when an engine is gone, the worker's way to another one included. It
/// is about one second on an idle machine; whoever waits for a heartbeat, a PING or a lease to run out waits far longer.
const FAILOVER: Duration = Duration::from_secs(5);
const STEPS: u32 = 150;
const SECONDS: f64 = 15.0;

/// A viewer in the background: what it saw, and when.
struct Viewer {
    seen: JoinHandle<(Seen, Vec<Instant>)>,
    count: watch::Receiver<usize>,
}

impl Viewer {
    fn start(fleet: &Fleet, gateway: usize, job: &str) -> Self {
        let follower = fleet.follower(gateway, job);
        let (counted, count) = watch::channel(0);
        let seen = tokio::spawn(async move {
            let mut times = Vec::new();
            let seen = follow(follower, |_| {
                times.push(Instant::now());
                counted.send_replace(times.len());
            });
            (seen.await, times)
        });
        Self { seen, count }
    }

    /// Waits for events beyond those there are now.
    async fn more(&mut self, events: usize) {
        let enough = *self.count.borrow() + events;
        self.count.wait_for(|count| *count >= enough).await.expect("the job ended too early");
    }

    /// Waits for the end; asserts that nothing is missing or doubled, and that no connection was lost. Returns the
    /// longest wait for an event that came after `since`.
    async fn longest_wait(self, since: Instant) -> Duration {
        let (seen, times) = self.seen.await.unwrap();
        seen.assert_whole(0);
        assert_eq!(seen.losses, 0, "the viewer lost its connection");
        let steps: Vec<_> =
            seen.events.iter().filter(|e| e.name == "checkpoint").map(|e| data(e)["name"].clone()).collect();
        let expected: Vec<_> = (1..=STEPS).map(|n| json!(format!("step {n}"))).collect();
        assert_eq!(steps, expected, "a step is missing or was done twice");
        let waits = times.windows(2).filter(|w| w[1] > since).map(|w| w[1] - w[0]);
        waits.max().unwrap_or_default()
    }
}

/// Four jobs of one worker, each watched through both gateways: the hubs hang on both engines. The engine that the
/// worker hangs on gets `signal`; a frozen one wakes up again while the jobs still run.
async fn an_engine_goes_away(signal: Signal) {
    let mut fleet = Fleet::start(2, 2, 1).await;
    let mut jobs = Vec::new();
    for n in 0..4 {
        jobs.push(fleet.submit(n % 2, STEPS, SECONDS).await);
    }
    let mut viewers = Vec::new();
    for job in &jobs {
        viewers.extend([0, 1].map(|gateway| Viewer::start(&fleet, gateway, job)));
    }
    for viewer in &mut viewers {
        viewer.more(10).await;
    }
    let (stop, stopped) = watch::channel(false);
    let asking = fleet.keep_asking(&jobs[0], stopped);
    let victim = fleet.engine_of_worker(0).expect("the worker is connected");
    let gone = Instant::now();
    fleet.signal(victim, signal);
    for viewer in &mut viewers {
        viewer.more(10).await;
    }
    assert_eq!(fleet.engine_of_worker(0), Some(1 - victim), "the worker went to the other engine");
    if signal == Signal::SIGSTOP {
        fleet.signal(victim, Signal::SIGCONT);
        for viewer in &mut viewers {
            viewer.more(10).await;
        }
    }
    stop.send_replace(true);
    let longest_call = asking.await.unwrap();
    let mut longest = Duration::ZERO;
    for viewer in viewers {
        longest = longest.max(viewer.longest_wait(gone).await);
    }
    println!("{signal}: next event after {longest:?}, slowest call {longest_call:?}");
    assert!(longest < FAILOVER, "a viewer waited {longest:?}");
    assert!(longest_call < FAILOVER, "a call took {longest_call:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn e56_j4_an_engine_is_killed_and_nobody_waits_long() {
    an_engine_goes_away(Signal::SIGKILL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e56_j36_an_engine_drains_and_nobody_waits_long() {
    an_engine_goes_away(Signal::SIGTERM).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e56_j5_an_engine_freezes_and_nobody_waits_long() {
    an_engine_goes_away(Signal::SIGSTOP).await;
}

/// e56, j36: every engine is restarted in turn, as an update does, twice.
#[tokio::test(flavor = "multi_thread")]
async fn e56_a_rolling_restart_is_invisible() {
    let mut fleet = Fleet::start(2, 2, 2).await;
    let began = Instant::now();
    let mut viewers = Vec::new();
    for n in 0..4 {
        let job = fleet.submit(n % 2, STEPS, SECONDS).await;
        viewers.push(Viewer::start(&fleet, n % 2, &job));
    }
    for round in 0..4 {
        for viewer in &mut viewers {
            viewer.more(10).await;
        }
        fleet.restart_engine(round % 2).await;
    }
    for viewer in viewers {
        let longest = viewer.longest_wait(began).await;
        assert!(longest < FAILOVER, "a viewer waited {longest:?}");
    }
}

/// j12: gateway and worker share no engine; what one says reaches the other through the log.
#[tokio::test(flavor = "multi_thread")]
async fn j12_events_and_a_cancellation_cross_from_one_engine_to_the_other() {
    let addrs = addresses(2);
    let [one, two] = [&addrs[..1], &addrs[1..]].map(urls);
    let plan = Plan { engines: 2, gateways: vec![one], workers: vec![two], lease_seconds: 15 };
    let fleet = Fleet::with(addrs, plan).await;
    let job = fleet.submit(0, 1000, 100.0).await;
    let mut viewer = Viewer::start(&fleet, 0, &job);
    viewer.more(10).await;
    let client = &fleet.clients[0];
    let cancelled = Instant::now();
    let request = client.request(Method::POST, &["api", "jobs", &job, "cancel"]);
    client.call(request.json(&json!({ "reason": "enough" }))).await.unwrap();
    let (seen, _) = viewer.seen.await.unwrap();
    seen.assert_whole(0);
    let end = seen.events.last().unwrap();
    assert_eq!((end.name.as_str(), &data(end)["reason"]), ("cancelled", &json!("enough")));
    // The worker obeyed: sooner than the ten seconds after which it would be cut off.
    assert!(cancelled.elapsed() < Duration::from_secs(8), "{:?}", cancelled.elapsed());
    assert_eq!(fleet.job(0, &job).await["status"], "CANCELLED");
}

/// j35: proxies cut what is idle, whatever PINGs pass. The worker's own pings keep its stream; a log that says nothing
/// is followed again, unseen.
#[tokio::test(flavor = "multi_thread")]
async fn j35_a_proxy_that_cuts_idle_connections_harms_nobody() {
    const PATIENCE: Duration = Duration::from_secs(2);
    let addrs = addresses(1);
    let to_worker = IdleCutter::start(addrs[0].clone(), PATIENCE).await;
    let to_gateway = IdleCutter::start(addrs[0].clone(), PATIENCE).await;
    // Pings follow a third of the lease.
    let plan = Plan {
        engines: 1,
        gateways: vec![vec![to_gateway.url.clone()]],
        workers: vec![vec![to_worker.url.clone()]],
        lease_seconds: 2,
    };
    let fleet = Fleet::with(addrs, plan).await;
    let job = fleet.submit(0, 3, 9.0).await;
    let seen = follow(fleet.follower(0, &job), |_| {}).await;
    seen.assert_whole(0);
    assert_eq!((seen.losses, seen.events.last().unwrap().name.as_str()), (0, "complete"));
    assert!(to_gateway.cuts() >= 2, "the upstream was never idle");
    assert_eq!(to_worker.cuts(), 0, "a worker's stream is never idle");
    let attempts =
        seen.events.iter().filter(|e| e.name == "state" && data(e)["status"] == "PROCESSING").count();
    assert_eq!(attempts, 1, "{seen:?}");
}

/// j37: an engine's address that is a gateway's, or any HTTP server's, is recognised as such.
#[tokio::test(flavor = "multi_thread")]
async fn j37_a_wrong_port_is_named_as_such() {
    let scratch = tempfile::tempdir().unwrap();
    let http = format!("127.0.0.1:{}", free_port());
    let flags = vec![
        format!("--listen={http}"),
        format!("--admin-listen=127.0.0.1:{}", free_port()),
        format!("--engine=http://127.0.0.1:{}", free_port()),
    ];
    let _gateway = Process::start("gateway", &binary("edge-gateway"), flags, scratch.path());
    let flags = vec![format!("--engine=http://{http}"), format!("--data-dir={}", scratch.path().display())];
    let worker = Process::start("worker", &binary("tidegate-worker"), flags, scratch.path());
    eventually("the worker says what is wrong", async || {
        worker.output().contains("does not speak gRPC").then_some(())
    })
    .await;
}
