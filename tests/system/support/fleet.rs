//! Several engines on one Redis, several gateways, several workers; each part is told which engines it may know.

use std::{fs, time::Duration};

use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tidegate::{api::Client, follow::Follower};
use tokio::time::Instant;

use super::{DEADLINE, Process, binary, eventually, free_port, redis};

/// Who is there, and who knows which engines.
pub(crate) struct Plan {
    pub(crate) engines: usize,
    /// For each gateway, the URLs of its engines.
    pub(crate) gateways: Vec<Vec<String>>,
    /// Likewise for each worker.
    pub(crate) workers: Vec<Vec<String>>,
    pub(crate) lease_seconds: u32,
}

/// Where the engines will be: free addresses, known before anything is started.
pub(crate) fn addresses(count: usize) -> Vec<String> {
    (0..count).map(|_| format!("127.0.0.1:{}", free_port())).collect()
}

/// `http://…` for each address.
pub(crate) fn urls(addrs: &[String]) -> Vec<String> {
    addrs.iter().map(|addr| format!("http://{addr}")).collect()
}

/// The processes, killed in this order when dropped.
pub(crate) struct Fleet {
    pub(crate) gateways: Vec<Process>,
    pub(crate) workers: Vec<Process>,
    pub(crate) engines: Vec<Process>,
    _redis: Process,
    /// Where the engines are, as `host:port`.
    pub(crate) addrs: Vec<String>,
    /// One client a gateway.
    pub(crate) clients: Vec<Client>,
    _scratch: TempDir,
}

impl Fleet {
    /// Engines at `addrs`; every part knows all of them.
    pub(crate) async fn start(engines: usize, gateways: usize, workers: usize) -> Self {
        let addrs = addresses(engines);
        let all = urls(&addrs);
        let plan = Plan {
            engines,
            gateways: vec![all.clone(); gateways],
            workers: vec![all; workers],
            lease_seconds: 15,
        };
        Self::with(addrs, plan).await
    }

    /// As planned; waits until the workers' kinds are on offer through every gateway.
    pub(crate) async fn with(addrs: Vec<String>, plan: Plan) -> Self {
        let scratch = tempfile::Builder::new().prefix("tidegate-fleet-").tempdir().unwrap();
        let dir = scratch.path();
        fs::create_dir_all(dir.join("data")).unwrap();
        let (redis, redis_url) = redis::start(dir).await;
        let engine = |n: usize| {
            let flags = vec![
                format!("--grpc-listen={}", addrs[n]),
                format!("--admin-listen=127.0.0.1:{}", free_port()),
                format!("--redis={redis_url}"),
                format!("--lease-seconds={}", plan.lease_seconds),
            ];
            Process::start(&format!("engine-{n}"), &binary("job-engine"), flags, dir)
        };
        let engines = (0..plan.engines).map(engine).collect();
        let mut clients = Vec::new();
        let mut gateways = Vec::new();
        for (n, engines) in plan.gateways.iter().enumerate() {
            let http = format!("127.0.0.1:{}", free_port());
            let mut flags =
                vec![format!("--listen={http}"), format!("--admin-listen=127.0.0.1:{}", free_port())];
            flags.extend(engines.iter().map(|url| format!("--engine={url}")));
            clients.push(Client::new(&format!("http://{http}")).unwrap());
            gateways.push(Process::start(&format!("gateway-{n}"), &binary("edge-gateway"), flags, dir));
        }
        let worker = |(n, engines): (usize, &Vec<String>)| {
            let data = dir.join("data").display().to_string();
            let flags = vec![format!("--engine={}", engines.join(",")), format!("--data-dir={data}")];
            Process::start(&format!("worker-{n}"), &binary("tidegate-worker"), flags, dir)
        };
        let workers = plan.workers.iter().enumerate().map(worker).collect();
        let mut fleet = Self { gateways, workers, engines, _redis: redis, addrs, clients, _scratch: scratch };
        fleet.ready().await;
        fleet
    }

    async fn ready(&mut self) {
        for n in 0..self.workers.len() {
            eventually("the worker is connected", async || {
                self.workers[n].output().contains(" connected ").then_some(())
            })
            .await;
        }
        for client in &self.clients {
            let (engines, gateways, workers) = (&mut self.engines, &mut self.gateways, &mut self.workers);
            eventually("demo is on offer", async || {
                engines
                    .iter_mut()
                    .chain(gateways.iter_mut())
                    .chain(workers.iter_mut())
                    .for_each(Process::assert_running);
                let kinds = client.call(client.request(Method::GET, &["api", "kinds"])).await.ok()?;
                kinds["kinds"]
                    .as_array()?
                    .iter()
                    .any(|k| k["kind"] == "demo" && k["live"] == true)
                    .then_some(())
            })
            .await;
        }
    }

    /// The number of the engine to which a worker connected last; none while it has no connection.
    pub(crate) fn engine_of_worker(&self, worker: usize) -> Option<usize> {
        let output = self.workers[worker].output();
        let line = output.lines().rev().find(|line| line.contains("connected"))?;
        if line.contains("disconnected") {
            return None;
        }
        self.addrs.iter().position(|addr| line.contains(addr.as_str()))
    }

    /// Submits a simulated job through a gateway and returns its id.
    pub(crate) async fn submit(&self, gateway: usize, steps: u32, seconds: f64) -> String {
        let body = json!({ "kind": "demo", "input": { "steps": steps, "seconds": seconds } });
        let client = &self.clients[gateway];
        let job = client.call(client.request(Method::POST, &["api", "jobs"]).json(&body)).await.unwrap();
        job["jobId"].as_str().unwrap().to_owned()
    }

    /// One job, as a gateway sees it now.
    pub(crate) async fn job(&self, gateway: usize, id: &str) -> Value {
        self.clients[gateway].job(id).await.unwrap()
    }

    /// A follower from the beginning, through a gateway.
    pub(crate) fn follower(&self, gateway: usize, id: &str) -> Follower {
        Follower::new(self.clients[gateway].clone(), id, "", DEADLINE)
    }

    /// Asks for a job through every gateway again and again until `stop`; none may fail. Returns the longest time.
    pub(crate) fn keep_asking(
        &self,
        id: &str,
        stop: tokio::sync::watch::Receiver<bool>,
    ) -> tokio::task::JoinHandle<Duration> {
        let (clients, id) = (self.clients.clone(), id.to_owned());
        tokio::spawn(async move {
            let mut longest = Duration::ZERO;
            while !*stop.borrow() {
                for client in &clients {
                    let began = Instant::now();
                    client.job(&id).await.expect("a gateway has an engine to ask");
                    longest = longest.max(began.elapsed());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            longest
        })
    }

    /// SIGTERM to an engine, and its next life when it has left.
    pub(crate) async fn restart_engine(&mut self, engine: usize) {
        let status = self.engines[engine].stop().await;
        assert_eq!(status.code(), Some(0), "the engine did not drain:\n{}", self.engines[engine].output());
        self.engines[engine].start_again();
    }

    /// Sends an engine a signal.
    pub(crate) fn signal(&mut self, engine: usize, signal: Signal) {
        self.engines[engine].signal(signal);
    }
}
