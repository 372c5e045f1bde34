//! The processes, and the proxies between them.

use std::{fs, path::Path, time::Duration};

use nix::sys::signal::Signal;
use tempfile::TempDir;
use tidegate::api::Client;

use crate::{
    proxy::Proxy,
    support::{Process, binary, eventually, free_port, redis},
};

/// How long a worker may be silent here.
pub const LEASE: Duration = Duration::from_secs(4);

pub struct Fleet {
    pub workers: Vec<Process>,
    pub gateways: Vec<Process>,
    pub engines: Vec<Process>,
    pub redis: Process,
    /// In front of each engine: for gateways and workers.
    pub engine_proxies: Vec<Proxy>,
    /// In front of both gateways, as a load balancer is: for viewers and submitters.
    pub front: Proxy,
    pub client: Client,
    redis_port: u16,
    pub scratch: TempDir,
}

impl Fleet {
    /// Starts everything and waits until all kinds are on offer.
    pub async fn start() -> Self {
        let scratch = tempfile::Builder::new().prefix("tidegate-chaos-").tempdir().unwrap();
        let dir = scratch.path();
        for name in ["import", "data"] {
            fs::create_dir_all(dir.join(name)).unwrap();
        }
        let redis_port = free_port();
        // What is acknowledged survives a SIGKILL of Redis: that is what is proved here.
        let redis = redis::start_durable(dir, redis_port).await;
        let engine_addresses: Vec<_> = (0..2).map(|_| format!("127.0.0.1:{}", free_port())).collect();
        let gateway_addresses: Vec<_> = (0..2).map(|_| format!("127.0.0.1:{}", free_port())).collect();
        let mut engine_proxies = Vec::new();
        for address in &engine_addresses {
            engine_proxies.push(Proxy::start(vec![address.clone()]).await);
        }
        let front = Proxy::start(gateway_addresses.clone()).await;
        let urls: Vec<_> = engine_proxies.iter().map(Proxy::url).collect();
        let start =
            |name: &str, program: &str, args: Vec<String>| Process::start(name, &binary(program), args, dir);
        let engine = |(at, address): (usize, &String)| {
            let args = vec![
                format!("--grpc-listen={address}"),
                format!("--admin-listen=127.0.0.1:{}", free_port()),
                format!("--redis=redis://127.0.0.1:{redis_port}"),
                format!("--lease-seconds={}", LEASE.as_secs()),
            ];
            start(&format!("engine-{at}"), "job-engine", args)
        };
        let engines = engine_addresses.iter().enumerate().map(engine).collect();
        let gateway = |(at, address): (usize, &String)| {
            let mut args =
                vec![format!("--listen={address}"), format!("--admin-listen=127.0.0.1:{}", free_port())];
            args.extend(urls.iter().map(|url| format!("--engine={url}")));
            start(&format!("gateway-{at}"), "edge-gateway", args)
        };
        let gateways = gateway_addresses.iter().enumerate().map(gateway).collect();
        let mut workers: Vec<_> =
            (0..2).map(|at| start(&format!("worker-{at}"), "tidegate-worker", rust(dir, &urls))).collect();
        workers.push(python(dir, &urls));
        let client = Client::new(&front.url()).unwrap();
        let mut fleet =
            Self { workers, gateways, engines, redis, engine_proxies, front, client, redis_port, scratch };
        fleet.ready().await;
        fleet
    }

    pub fn engine_urls(&self) -> Vec<String> {
        self.engine_proxies.iter().map(Proxy::url).collect()
    }

    /// Waits until every kind is on offer through the front.
    async fn ready(&mut self) {
        let Self { client, workers, gateways, engines, .. } = self;
        eventually("every kind is on offer", async || {
            let processes = workers.iter_mut().chain(gateways.iter_mut()).chain(engines.iter_mut());
            processes.for_each(Process::assert_running);
            let kinds = client.call(client.request(reqwest::Method::GET, &["api", "kinds"])).await.ok()?;
            let offered = |kind: &str| {
                kinds["kinds"].as_array().is_some_and(|all| all.iter().any(|k| k["kind"] == kind))
            };
            ["demo", "csv-import", "csv-import-python"].into_iter().all(offered).then_some(())
        })
        .await;
    }

    /// Everything runs again and nothing is frozen.
    pub async fn heal(&mut self) {
        let all = self.engines.iter_mut().chain(&mut self.gateways).chain(&mut self.workers);
        for process in all.chain([&mut self.redis]) {
            process.signal(Signal::SIGCONT);
            if process.ended() {
                process.start_again();
            }
        }
        redis::answering(self.redis_port).await;
        self.ready().await;
    }

    /// Redis again, after it was killed; its log is read from the disk.
    pub async fn restart_redis(&mut self) {
        self.redis.start_again();
        redis::answering(self.redis_port).await;
    }
}

fn rust(dir: &Path, engines: &[String]) -> Vec<String> {
    let mut args = vec![
        format!("--data-dir={}", dir.join("data").display()),
        format!("--import-dir={}", dir.join("import").display()),
        "--capacity=6".to_owned(),
    ];
    args.extend(engines.iter().map(|url| format!("--engine={url}")));
    args
}

/// The example of the Python library, in the environment that the tests made for it.
fn python(dir: &Path, engines: &[String]) -> Process {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let interpreter = std::env::var("TIDEGATE_TEST_PYTHON")
        .map_or_else(|_| root.join("target/tests/venv/bin/python"), Into::into);
    assert!(
        interpreter.exists(),
        "{} is missing: run `tests/run chaos`, which makes it, or name a Python with the tidegate package in \
         TIDEGATE_TEST_PYTHON",
        interpreter.display()
    );
    let args = [
        root.join("clients/python/examples/csv_import.py").display().to_string(),
        format!("--engine={}", engines.join(",")),
        format!("--dir={}", dir.join("import").display()),
        format!("--database={}", dir.join("python.db").display()),
    ];
    Process::start("worker-python", &interpreter, args.into(), dir)
}
