//! Puts an engine together and serves it: bind first, then open the log, then serve until told to stop.

use std::{io, net::SocketAddr, sync::Arc, thread, time::Duration};

use tidegate_auth::Authenticator;
use tidegate_proto::{
    DESCRIPTORS,
    limits::MAX_MESSAGE_BYTES,
    v1::{
        job_service_server::JobServiceServer, schedule_service_server::ScheduleServiceServer,
        worker_service_server::WorkerServiceServer,
    },
};
use tidegate_telemetry::admin::{self, AdminToken, Part};
use tokio::{
    net::TcpListener,
    runtime::{self, Runtime},
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use tokio_stream::{StreamExt as _, wrappers::TcpListenerStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{server::NamedService as _, transport::Server};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    access::Access,
    config::{Config, LogConfig},
    dispatch,
    engine::Engine,
    follow::{self, Followers},
    job::index,
    kinds::Kinds,
    measured::Measured,
    metrics::{COUNTED, Metrics, Now},
    registry::Registry,
    rpc::Services,
    schedule,
    store::{
        Extent, Store,
        embedded::EmbeddedStore,
        redis::{RedisOptions, RedisStore},
    },
    vitals::Vitals,
};

/// How often gRPC health is looked after.
const HEALTH_EVERY: Duration = Duration::from_secs(2);
/// How long the sweeper, the scheduler or the assigner may be busy with one round before the engine counts as not ready: longer
/// than every call of the store in it together.
const STUCK: Duration = Duration::from_secs(120);
/// Streams and calls open on one connection; more wait. Our own clients open another connection long before.
const MAX_STREAMS: u32 = 1000;
/// How long a scrape waits for the number of jobs: a log that is away must not hide the figures that say so.
const COUNT_WITHIN: Duration = Duration::from_millis(500);
/// How long streams have to end after a stop before the process stops waiting for them.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// The runtime of an engine that has a process of its own, of as many threads or of one for every two cores: the log,
/// workers and callers want cores, too, and where threads outnumber idle cores, waking them costs more than they do.
///
/// # Errors
/// When the system gives no threads.
pub fn runtime(threads: Option<u16>) -> io::Result<Runtime> {
    let half = || thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2));
    let threads = threads.map_or_else(half, usize::from);
    runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()
}

/// An engine whose sockets are bound and whose log is open.
pub struct Bound {
    grpc: TcpListener,
    admin: TcpListener,
    engine: Arc<Engine>,
    auth: Option<Authenticator>,
    admin_token: Option<AdminToken>,
}

/// Binds the sockets and opens the event log; `auth` says who may call, without it everybody may.
pub async fn bind(config: &Config, auth: Option<Authenticator>) -> anyhow::Result<Bound> {
    let listen = async |addr: SocketAddr, flag: &str| {
        TcpListener::bind(addr).await.map_err(|e| anyhow::anyhow!("cannot listen on {addr} ({flag}): {e}"))
    };
    let grpc = listen(config.grpc_listen, "--grpc-listen").await?;
    let admin = listen(config.admin_listen, "--engine-admin-listen").await?;
    // Whether it holds one now, was asked where everything else that may be wrong was.
    let admin_token = config.admin_token_file.as_deref().map(AdminToken::later);
    let metrics = Arc::new(Metrics::new(if config.log.in_redis() { "redis" } else { "embedded" }));
    let engine = Arc::new(Engine {
        store: Arc::new(Measured::new(open_log(&config.log).await?, metrics.clone())),
        rules: config.rules(),
        bounds: config.bounds(),
        progress_interval: Duration::from_millis(config.progress_interval_ms),
        followers: Followers::new(follow::LOOK),
        registry: Registry::default(),
        kinds: Kinds::default(),
        draining: CancellationToken::new(),
        metrics,
        tasks: TaskTracker::new(),
    });
    Ok(Bound { grpc, admin, engine, auth, admin_token })
}

/// Serves until SIGTERM or SIGINT, then drains.
pub async fn run(config: &Config, auth: Option<Authenticator>) -> anyhow::Result<()> {
    let stop = stop_on_signal()?;
    let bound = bind(config, auth).await?;
    tracing::info!(grpc = %bound.grpc_addr()?, "listening");
    bound.serve(stop).await
}

/// A token that SIGTERM or SIGINT cancels.
pub fn stop_on_signal() -> std::io::Result<CancellationToken> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = CancellationToken::new();
    let on_signal = stop.clone();
    tokio::spawn(async move {
        tokio::select! { _ = term.recv() => {} _ = int.recv() => {} }
        on_signal.cancel();
    });
    Ok(stop)
}

async fn open_log(config: &LogConfig) -> anyhow::Result<Arc<dyn Store>> {
    if let Some(url) = &config.redis_url()? {
        let options = RedisOptions {
            namespace: config.redis_namespace.clone(),
            acknowledge: config.acknowledge.into(),
            ..RedisOptions::new(url)
        };
        let store = RedisStore::connect(&options).await;
        return Ok(Arc::new(store.map_err(|e| anyhow::anyhow!("cannot use Redis (--redis): {e}"))?));
    }
    let (dir, durability) = (config.data_dir.join("log"), config.durability.into());
    let open = move || EmbeddedStore::open(&dir, durability);
    Ok(Arc::new(tokio::task::spawn_blocking(open).await??))
}

impl Bound {
    /// Where gRPC listens.
    pub fn grpc_addr(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.grpc.local_addr()?)
    }

    /// The engine itself, for those who embed it.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Serves until `stop`, then drains: workers and watchers are told, and come back elsewhere or later.
    pub async fn serve(self, stop: CancellationToken) -> anyhow::Result<()> {
        let engine = self.engine;
        let (registry, metrics) = (engine.registry.clone(), engine.metrics.clone());
        let on_index = move |name: Option<&str>| match name.map(|n| n.strip_prefix(index::QUEUE_PREFIX)) {
            Some(Some(kind)) => registry.touch(&[kind]),
            Some(None) => {}
            None => {
                metrics.hints_lost.increment(1);
                registry.touch(&registry.kinds());
            }
        };
        let (reporter, health) = tonic_health::server::health_reporter();
        // Whoever asks first is answered, and not with a yes that nobody has found out yet.
        set_health(&reporter, ServingStatus::NotServing).await;
        let (mut loops, vitals) = (JoinSet::new(), Vitals::default());
        loops.spawn(engine.followers.clone().distribute(engine.store.hints(), on_index));
        loops.spawn(dispatch::assign(engine.clone(), vitals.pulse("the dispatcher", STUCK)));
        loops.spawn(dispatch::sweep(engine.clone(), vitals.pulse("the sweeper", STUCK)));
        loops.spawn(schedule::fire::run(engine.clone(), vitals.pulse("the scheduler", STUCK)));
        let shown = Admin { engine: engine.clone(), vitals: vitals.clone() };
        loops.spawn(serve_admin(self.admin, shown, self.admin_token));
        loops.spawn(report_health(reporter.clone(), engine.clone(), vitals));

        if let Some(auth) = self.auth.clone() {
            loops.spawn(auth.follow());
        }
        let services = Services { engine: engine.clone(), access: Access::new(self.auth) };
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let incoming = TcpListenerStream::new(self.grpc).map(|socket| {
            socket.inspect(|socket| {
                // A report is a small message that somebody waits for.
                let _ = socket.set_nodelay(true);
            })
        });
        let drain = async {
            stop.cancelled().await;
            engine.draining.cancel();
        };
        let server = Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(20)))
            .http2_keepalive_timeout(Some(Duration::from_secs(10)))
            .max_concurrent_streams(MAX_STREAMS)
            .initial_connection_window_size(8 << 20)
            .add_service(
                JobServiceServer::new(services.clone())
                    .max_decoding_message_size(MAX_MESSAGE_BYTES)
                    .max_encoding_message_size(MAX_MESSAGE_BYTES),
            )
            .add_service(
                ScheduleServiceServer::new(services.clone())
                    .max_decoding_message_size(MAX_MESSAGE_BYTES)
                    .max_encoding_message_size(MAX_MESSAGE_BYTES),
            )
            .add_service(WorkerServiceServer::new(services).max_decoding_message_size(MAX_MESSAGE_BYTES))
            .add_service(health)
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?)
            .serve_with_incoming_shutdown(incoming, drain);
        let too_late = async {
            stop.cancelled().await;
            tokio::time::sleep(STOP_WITHIN).await;
        };
        let served = tokio::select! {
            served = server => served.map_err(Into::into),
            () = too_late => {
                tracing::warn!("streams are still open; stopping without them");
                Ok(())
            }
            // They run for ever: one that ended has failed, and an engine without it would only look alive.
            ended = loops.join_next() => Err(anyhow::anyhow!("a part of the engine ended by itself: {ended:?}")),
        };
        engine.draining.cancel();
        // Whatever the loops hold of the log is let go before it is closed.
        loops.shutdown().await;
        engine.tasks.close();
        let _ = tokio::time::timeout(STOP_WITHIN, engine.tasks.wait()).await;
        served
    }
}

/// Keeps gRPC health at what the engine can do.
async fn report_health(reporter: HealthReporter, engine: Arc<Engine>, vitals: Vitals) {
    loop {
        let ready = readiness(&engine, &vitals).await.is_ok();
        let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        set_health(&reporter, status).await;
        engine.metrics.upkeep();
        tokio::select! {
            () = tokio::time::sleep(HEALTH_EVERY) => {}
            () = engine.draining.cancelled(), if ready => {}
        }
    }
}

async fn set_health(reporter: &HealthReporter, status: ServingStatus) {
    let names = [
        JobServiceServer::<Services>::NAME,
        ScheduleServiceServer::<Services>::NAME,
        WorkerServiceServer::<Services>::NAME,
    ];
    for service in names.into_iter().chain([""]) {
        reporter.set_service_status(service, status).await;
    }
}

/// Whether the engine can do its work; else why not.
async fn readiness(engine: &Engine, vitals: &Vitals) -> Result<(), String> {
    if engine.draining.is_cancelled() {
        return Err("draining".to_owned());
    }
    vitals.check()?;
    match tokio::time::timeout(Duration::from_secs(2), engine.store.ping()).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err("the event log does not answer".to_owned()),
    }
}

/// What the gauges show.
async fn now(engine: &Engine) -> Now {
    let extents = COUNTED.map(|index| Extent::Index(index.into()));
    let counted = tokio::time::timeout(COUNT_WITHIN, engine.store.count(extents.into())).await;
    let store = &engine.store;
    Now {
        load: engine.registry.load(),
        generation: store.generation(),
        reconnects: store.reconnects(),
        counts: counted.ok().and_then(Result::ok).and_then(|counts| counts.try_into().ok()),
    }
}

/// What the admin port shows.
#[derive(Clone)]
struct Admin {
    engine: Arc<Engine>,
    vitals: Vitals,
}

impl Part for Admin {
    async fn metrics(&self) -> String {
        self.engine.metrics.render(&now(&self.engine).await)
    }

    async fn ready(&self) -> Result<(), String> {
        readiness(&self.engine, &self.vitals).await
    }
}

async fn serve_admin(listener: TcpListener, admin: Admin, token: Option<AdminToken>) {
    if let Err(error) = axum::serve(listener, admin::router(admin, token)).await {
        tracing::error!(%error, "the admin port failed");
    }
}
