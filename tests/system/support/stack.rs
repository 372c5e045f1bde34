//! A whole Tidegate as three processes, on either store.

use std::{fs, path::PathBuf, process::Output};

use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tidegate::{api::Client, follow::Follower};

use super::{DEADLINE, Process, binary, eventually, free_port, metrics, redis};

/// Where the event log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    Embedded,
    Redis,
}

/// What a test wants different.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) store: Store,
    /// Flags of the engine.
    pub(crate) engine: Vec<String>,
    /// Flags of the gateway.
    pub(crate) gateway: Vec<String>,
    /// Flags of the worker.
    pub(crate) worker: Vec<String>,
    /// Flags of everybody.
    pub(crate) all: Vec<String>,
    /// The commands that `exec` may run, as TOML.
    pub(crate) config: String,
}

impl From<Store> for Options {
    fn from(store: Store) -> Self {
        let none = Vec::new;
        Self { store, engine: none(), gateway: none(), worker: none(), all: none(), config: String::new() }
    }
}

/// Engine, gateway and worker, killed in this order when dropped.
pub(crate) struct Stack {
    pub(crate) gateway: Process,
    pub(crate) worker: Process,
    pub(crate) engine: Process,
    _redis: Option<Process>,
    /// Empty on the embedded store.
    pub(crate) redis_url: String,
    pub(crate) client: Client,
    /// Addresses as `host:port`.
    pub(crate) http: String,
    pub(crate) gateway_admin: String,
    pub(crate) grpc: String,
    /// What the worker offers.
    kinds: Vec<String>,
    pub(crate) engine_admin: String,
    pub(crate) worker_admin: String,
    scratch: TempDir,
}

impl Stack {
    /// Starts everything and waits until the worker's kinds are on offer.
    pub(crate) async fn start(options: impl Into<Options>) -> Self {
        let options = options.into();
        let scratch = tempfile::Builder::new().prefix("tidegate-system-").tempdir().unwrap();
        let dir = scratch.path();
        fs::create_dir_all(dir.join("import")).unwrap();
        fs::create_dir_all(dir.join("data")).unwrap();
        fs::write(dir.join("worker.toml"), &options.config).unwrap();
        let [http, grpc, gateway_admin, engine_admin, worker_admin] =
            [(); 5].map(|()| format!("127.0.0.1:{}", free_port()));

        let mut engine = vec![format!("--grpc-listen={grpc}"), format!("--admin-listen={engine_admin}")];
        let mut redis_url = String::new();
        let redis = match options.store {
            Store::Embedded => {
                engine.push(format!("--data-dir={}", dir.join("data").display()));
                None
            }
            Store::Redis => {
                let (process, url) = redis::start(dir).await;
                engine.push(format!("--redis={url}"));
                redis_url = url;
                Some(process)
            }
        };
        // Short enough for tests that wait for it, long enough for a loaded machine.
        engine.push("--lease-seconds=4".to_owned());
        engine.extend(options.engine.into_iter().chain(options.all.clone()));
        let gateway = [
            format!("--listen={http}"),
            format!("--admin-listen={gateway_admin}"),
            format!("--engine=http://{grpc}"),
        ];
        let worker = [
            format!("--engine=http://{grpc}"),
            format!("--data-dir={}", dir.join("data").display()),
            format!("--import-dir={}", dir.join("import").display()),
            format!("--config={}", dir.join("worker.toml").display()),
            format!("--admin-listen={worker_admin}"),
            "--capacity=4".to_owned(),
        ];
        let worker = worker.into_iter().chain(options.worker).chain(options.all.clone()).collect();
        let client = Client::new(&format!("http://{http}")).unwrap();
        let engine = Process::start("engine", &binary("job-engine"), engine, dir);
        let gateway = gateway.into_iter().chain(options.gateway).chain(options.all).collect();
        let gateway = Process::start("gateway", &binary("edge-gateway"), gateway, dir);
        let worker = Process::start("worker", &binary("tidegate-worker"), worker, dir);
        let configured =
            options.config.lines().filter_map(|l| l.strip_prefix("kind = \"")?.strip_suffix('"'));
        let kinds = ["demo", "csv-import"].into_iter().chain(configured).map(str::to_owned).collect();
        let mut stack = Self {
            gateway,
            worker,
            engine,
            _redis: redis,
            redis_url,
            client,
            http,
            gateway_admin,
            grpc,
            engine_admin,
            worker_admin,
            kinds,
            scratch,
        };
        stack.ready().await;
        stack
    }

    /// Waits until the worker's kinds are on offer through the gateway.
    pub(crate) async fn ready(&mut self) {
        let Self { gateway, worker, engine, client, kinds: expected, .. } = self;
        eventually("the worker's kinds are on offer", async || {
            [&mut *engine, &mut *gateway, &mut *worker].into_iter().for_each(Process::assert_running);
            let kinds = client.call(client.request(Method::GET, &["api", "kinds"])).await.ok()?;
            let offered = kinds["kinds"].as_array()?;
            let live = |kind: &String| offered.iter().any(|k| k["kind"] == **kind && k["live"] == true);
            expected.iter().all(live).then_some(())
        })
        .await;
    }

    /// Writes a file below the directory that csv-import may read and returns its path.
    pub(crate) fn import_file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.scratch.path().join("import").join(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// A path below the scratch directory; `data` is the worker's.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Submits a job and returns its id.
    pub(crate) async fn submit(&self, kind: &str, input: Value) -> String {
        let body = json!({ "kind": kind, "input": input });
        let job = self.post(&["api", "jobs"], &body).await;
        job["jobId"].as_str().unwrap().to_owned()
    }

    /// POSTs JSON and returns the JSON of a successful answer.
    pub(crate) async fn post(&self, path: &[&str], body: &Value) -> Value {
        self.client.call(self.client.request(Method::POST, path).json(body)).await.unwrap()
    }

    /// One job as it is now.
    pub(crate) async fn job(&self, id: &str) -> Value {
        self.client.job(id).await.unwrap()
    }

    /// Waits until the job's status is `status`.
    pub(crate) async fn until(&self, id: &str, status: &str) -> Value {
        eventually(&format!("the job is {status}"), async || {
            let job = self.job(id).await;
            (job["status"] == status).then_some(job)
        })
        .await
    }

    /// A follower from behind `start`.
    pub(crate) fn follower(&self, id: &str, start: &str) -> Follower {
        Follower::new(self.client.clone(), id, start, DEADLINE)
    }

    /// Runs the `tidegate` command against this gateway to its end.
    pub(crate) async fn tidegate(&self, args: &[&str]) -> Output {
        self.tidegate_command(args).output().await.unwrap()
    }

    /// The `tidegate` command against this gateway, not started yet.
    pub(crate) fn tidegate_command(&self, args: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(binary("tidegate"));
        command.args(args).env("TIDEGATE_SERVER", format!("http://{}", self.http)).kill_on_drop(true);
        command
    }

    /// The gateway's metrics, as text.
    pub(crate) async fn gateway_metrics(&self) -> String {
        metrics(&self.gateway_admin).await
    }

    /// The engine's metrics, as text.
    pub(crate) async fn engine_metrics(&self) -> String {
        metrics(&self.engine_admin).await
    }

    /// The worker's metrics, as text.
    pub(crate) async fn worker_metrics(&self) -> String {
        metrics(&self.worker_admin).await
    }
}
