//! Engines on a store that can be refused to them, and whose clock can be set ahead.

use std::{sync::Arc, time::Duration};

use clap::Parser;
use job_engine::{
    config::Config,
    engine::{Bounds, Engine},
    follow::Followers,
    job::machine::{Rules, millis},
    kinds::Kinds,
    registry::Registry,
    schedule::{self, fire},
    server,
    store::{
        Store,
        embedded::{Durability, EmbeddedStore},
        redis::{RedisOptions, RedisStore},
    },
};
use tidegate_proto::v1::{Caller, Job, ListJobsRequest, PutScheduleRequest, Schedule, WorkerKind};
use tokio::{sync::OnceCell, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::Channel;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{faulty::Faulty, redis_cluster::RedisCluster, redis_server::RedisServer};

macro_rules! on_every_store {
    ($($name:ident)*) => {
        /// On a Cluster, where a schedule and its jobs lie apart; in one test, because making a Cluster takes seconds.
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn j26_on_a_cluster() {
            let cluster = crate::redis_cluster::RedisCluster::start(3, 0).await;
            $(
                eprintln!("{}", stringify!($name));
                // A namespace has at most 64 characters.
                let name = stringify!($name);
                $name(World::on_cluster(&cluster, name.get(..64).unwrap_or(name))).await;
            )*
        }
        mod redis {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(super::World::on_redis()).await; })*
        }
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(super::World::on_disk()).await; })*
        }
    };
}
pub(crate) use on_every_store;

pub(crate) fn caller(subject: &str) -> Caller {
    Caller { tenant: "default".into(), subject: subject.into(), ..Caller::default() }
}

/// What a schedule of `demo` jobs is to say.
pub(crate) fn wanted(name: &str, cron: &str) -> Schedule {
    Schedule { name: name.into(), kind: "demo".into(), cron: cron.into(), ..Schedule::default() }
}

/// The instant that a schedule waits for, in ms.
pub(crate) trait Next {
    fn next(&self) -> u64;
}

impl Next for Schedule {
    fn next(&self) -> u64 {
        self.next_at.map(millis).expect("it does not rest")
    }
}

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    config: Config,
}

/// A store, and engines on it.
pub(crate) struct World {
    /// Where Redis is, if it is there, and what is in front of the keys.
    redis: Option<(String, String)>,
    _server: Option<RedisServer>,
    dir: tempfile::TempDir,
    store: OnceCell<Arc<dyn Store>>,
}

impl World {
    pub(crate) fn on_disk() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        Self { redis: None, _server: None, dir, store: OnceCell::new() }
    }

    pub(crate) fn on_redis() -> Self {
        let server = RedisServer::start();
        Self { redis: Some((server.url(), "t".into())), _server: Some(server), ..Self::on_disk() }
    }

    pub(crate) fn on_cluster(cluster: &RedisCluster, namespace: &str) -> Self {
        Self { redis: Some((cluster.url(), namespace.into())), ..Self::on_disk() }
    }

    /// Whether several engines may run on it side by side.
    pub(crate) fn is_shared(&self) -> bool {
        self.redis.is_some()
    }

    async fn open(&self) -> Arc<dyn Store> {
        match &self.redis {
            Some((url, namespace)) => {
                let options = RedisOptions { namespace: namespace.clone(), ..RedisOptions::new(url) };
                Arc::new(RedisStore::connect(&options).await.expect("redis-server answers"))
            }
            None => {
                let dir = self.dir.path().join("direct");
                Arc::new(EmbeddedStore::open(&dir, Durability::Buffer).expect("opens"))
            }
        }
    }

    /// An engine that does nothing by itself.
    pub(crate) async fn engine(&self) -> Still {
        self.engine_with(|_| {}).await
    }

    pub(crate) async fn engine_with(&self, change: impl FnOnce(&mut Engine)) -> Still {
        let inner = self.store.get_or_init(|| self.open()).await.clone();
        let store = Arc::new(Faulty::new(inner));
        let mut engine = Engine {
            store: store.clone(),
            bounds: Bounds { queued_per_owner: 100_000, jobs: 100_000, schedule_distance: Duration::ZERO },
            rules: Rules::default(),
            progress_interval: Duration::ZERO,
            followers: Followers::new(Duration::from_secs(5)),
            registry: Registry::default(),
            kinds: Kinds::default(),
            draining: CancellationToken::new(),
            metrics: Arc::default(),
            tasks: TaskTracker::new(),
        };
        change(&mut engine);
        offer(&engine, "demo").await;
        Still { engine, store }
    }

    /// A whole engine, on real sockets.
    pub(crate) async fn serve(&self) -> Running {
        let mut flags = vec![
            "engine".to_owned(),
            "--grpc-listen=127.0.0.1:0".to_owned(),
            "--engine-admin-listen=127.0.0.1:0".into(),
            "--durability=buffer".into(),
            "--schedule-min-seconds=1".into(),
            format!("--data-dir={}", self.dir.path().join("served").display()),
        ];
        if let Some((url, namespace)) = &self.redis {
            flags.extend([format!("--redis={url}"), format!("--redis-namespace={namespace}")]);
        }
        let bound = server::bind(&Flags::parse_from(flags).config, None).await.expect("an engine");
        let url = format!("http://{}", bound.grpc_addr().expect("an address"));
        let (stop, engine) = (CancellationToken::new(), bound.engine().clone());
        let served = tokio::spawn(bound.serve(stop.clone()));
        Running { url, engine, stop, served }
    }
}

async fn offer(engine: &Engine, kind: &str) {
    let kind = WorkerKind { kind: kind.into(), ..WorkerKind::default() };
    engine.kinds.offer(&*engine.store, &kind).await.expect("the log answers");
}

async fn get(engine: &Engine, name: &str) -> Schedule {
    engine.get_schedule(Some(caller("me")), "", name).await.expect("the schedule is there")
}

/// The jobs that a schedule made, oldest first.
async fn jobs_of(engine: &Engine, name: &str) -> Vec<Job> {
    let (mut jobs, mut page_token) = (Vec::new(), String::new());
    loop {
        let request =
            ListJobsRequest { caller: Some(caller("me")), page_size: 200, page_token, ..Default::default() };
        let page = engine.list(&request).await.expect("a page");
        jobs.extend(page.jobs.into_iter().filter(|job| job.schedule == name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            jobs.sort_by_key(|job| job.scheduled_for.map(millis));
            return jobs;
        }
    }
}

/// An engine that does what it is told.
pub(crate) struct Still {
    pub(crate) engine: Engine,
    pub(crate) store: Arc<Faulty>,
}

impl Still {
    pub(crate) fn stream(&self, name: &str) -> String {
        schedule::stream("default", "me", name)
    }

    pub(crate) async fn put(&self, schedule: Schedule) -> Schedule {
        let request = PutScheduleRequest { caller: Some(caller("me")), schedule: Some(schedule) };
        self.engine.put_schedule(request).await.expect("accepted").0
    }

    pub(crate) async fn get(&self, name: &str) -> Schedule {
        get(&self.engine, name).await
    }

    pub(crate) async fn jobs_of(&self, name: &str) -> Vec<Job> {
        jobs_of(&self.engine, name).await
    }

    /// Does what is to be done about a schedule now.
    pub(crate) async fn look(&self, name: &str) {
        fire::due(&self.engine, &self.stream(name)).await.expect("the log answers");
    }

    /// How far ahead the clock must be for it to be past this instant.
    pub(crate) fn until(&self, at_ms: u64) -> u64 {
        (at_ms + 20).saturating_sub(self.store.own_ms())
    }
}

/// An engine that runs.
pub(crate) struct Running {
    pub(crate) url: String,
    engine: Arc<Engine>,
    stop: CancellationToken,
    served: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    pub(crate) async fn offer(&self, kind: &str) {
        offer(&self.engine, kind).await;
    }

    pub(crate) async fn get(&self, name: &str) -> Schedule {
        get(&self.engine, name).await
    }

    pub(crate) async fn jobs_of(&self, name: &str) -> Vec<Job> {
        jobs_of(&self.engine, name).await
    }

    /// Waits until so many firings made a job.
    pub(crate) async fn fired(&self, name: &str, times: u64) {
        let enough = async {
            while self.get(name).await.fired < times {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), enough).await.expect("it fires");
    }

    /// Waits until the service says that it serves.
    pub(crate) async fn serves(&self) {
        let channel = Channel::from_shared(self.url.clone()).expect("a url").connect().await;
        let mut health = HealthClient::new(channel.expect("the engine answers"));
        let enough = async {
            loop {
                let request = HealthCheckRequest { service: "tidegate.v1.ScheduleService".into() };
                if health.check(request).await.expect("it is known").into_inner().status == 1 {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), enough).await.expect("it serves");
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.served.await.expect("no panic").expect("a clean end");
    }
}
