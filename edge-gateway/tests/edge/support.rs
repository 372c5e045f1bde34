//! A gateway, a scripted engine, and a client that reads bytes.

pub(crate) mod accounts;
pub(crate) mod client;
pub(crate) mod engine;
pub(crate) mod process;

use std::{net::SocketAddr, time::Duration};

use edge_gateway::{Config, Gateway, Timing};
use tidegate_proto::pool::Targets;
use tokio::{sync::oneshot, task::JoinHandle};

pub(crate) use self::{
    accounts::Accounts,
    client::{Answer, Event},
    engine::{JOB, ScriptedEngine},
};

/// The longest wait of any test.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// A running gateway.
pub(crate) struct Edge {
    pub(crate) addr: SocketAddr,
    pub(crate) admin: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    served: JoinHandle<()>,
}

/// Short times for tests.
pub(crate) fn timing() -> Timing {
    Timing {
        heartbeat: Duration::from_secs(15),
        linger: Duration::from_millis(100),
        open: Duration::from_secs(2),
        max_backoff: Duration::from_millis(200),
        head: Duration::from_secs(10),
    }
}

impl Edge {
    pub(crate) fn start(engine: &ScriptedEngine) -> Self {
        Self::with(engine, |_| {})
    }

    pub(crate) fn with(engine: &ScriptedEngine, change: impl FnOnce(&mut Config)) -> Self {
        Self::before(&[engine], change)
    }

    /// A gateway that knows several engines.
    pub(crate) fn before(engines: &[&ScriptedEngine], change: impl FnOnce(&mut Config)) -> Self {
        let engines =
            Targets::parse(engines.iter().map(|engine| format!("http://{}", engine.addr()))).unwrap();
        let mut config = Config { timing: timing(), ..Config::local(engines) };
        change(&mut config);
        let bound = Gateway::bind(config).unwrap();
        let (addr, admin) = (bound.addr(), bound.admin_addr().unwrap());
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(bound.serve(async {
            let _ = stopped.await;
        }));
        Self { addr, admin, stop: Some(stop), served }
    }

    /// Opens the stream of [`JOB`], with more header lines.
    pub(crate) async fn watch(&self, headers: &str) -> Answer {
        self.get(&format!("/api/progress/{JOB}"), headers).await
    }

    pub(crate) async fn get(&self, path: &str, headers: &str) -> Answer {
        client::request(self.addr, "GET", path, headers, "").await
    }

    pub(crate) async fn post(&self, path: &str, body: &str) -> Answer {
        client::request(self.addr, "POST", path, "content-type: application/json\r\n", body).await
    }

    /// The value of a metric, labels included in its name.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        Self::metric_of(self.admin, name).await
    }

    /// The same of any gateway.
    pub(crate) async fn metric_of(admin: SocketAddr, name: &str) -> f64 {
        let text = client::request(admin, "GET", "/metrics", "", "").await.text().await;
        // The sum over all labels, unless `name` has some.
        let of = |line: &&str| {
            line.split(' ').next() == Some(name)
                || line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{'))
        };
        let values =
            text.lines().filter(of).map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap());
        values.reduce(|a, b| a + b).unwrap_or_else(|| panic!("no metric {name} in\n{text}"))
    }

    /// Begins the drain.
    pub(crate) fn stop(&mut self) {
        let _ = self.stop.take().expect("stopped once").send(());
    }

    /// Waits for the end of the drain.
    pub(crate) async fn ended(self) {
        tokio::time::timeout(DEADLINE, self.served).await.expect("the drain ends").unwrap();
    }
}

/// Waits until `condition` holds.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let began = std::time::Instant::now();
    while !condition().await {
        assert!(began.elapsed() < DEADLINE, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The numbers in the ids of `events`.
pub(crate) fn numbers(events: &[Event]) -> Vec<u64> {
    let number = |id: &String| id.split_once('-').unwrap().0.parse().unwrap();
    events.iter().filter_map(|event| event.id.as_ref()).map(number).collect()
}
