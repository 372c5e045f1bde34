//! One engine at one address: its connections, and what is known of its health.
//!
//! A task asks the engine by `grpc.health.v1` whether it serves: often while somebody uses it, seldom otherwise. A
//! process that is stopped, or a host that is cut off, keeps its connections and answers nothing: only asking finds
//! out. Invariants: at most [`STREAMS`] streams share a connection, because a peer that caps them queues the next one
//! in silence; calls and the health checks have a connection of their own, so no stream can starve them.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout},
};
use tonic::{
    Code, Status,
    codegen::http::Uri,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{
    choose::Health,
    diagnosis::{diagnose, diagnose_peer, is_foreign},
};

/// Streams on one connection, at most: RFC 9113 recommends that peers allow at least 100, and many allow no more.
pub(super) const STREAMS: usize = 100;
/// How often an engine that is used is asked. With [`ANSWER`]: one that falls silent is known within 0.7 s.
const ASK: Duration = Duration::from_millis(200);
/// How long it may take to answer.
const ANSWER: Duration = Duration::from_millis(500);
/// How often an engine is asked that nobody uses, or that is away.
const ASK_IDLE: Duration = Duration::from_secs(2);
/// How long an engine counts as used after it was last picked.
const USED: Duration = Duration::from_secs(10);
/// The least time between two questions, whatever happens.
const ASK_LEAST: Duration = Duration::from_millis(20);
/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(2);
/// HTTP/2 PINGs, so that a connection that was cut off in silence is dialled anew; health checks and heartbeats find
/// out earlier that nobody answers.
const PING: Duration = Duration::from_secs(20);
/// How long a PING may stay unanswered.
const PONG: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Backend {
    pub(super) addr: SocketAddr,
    /// What led to it.
    pub(super) target: Uri,
    endpoint: Endpoint,
    /// For unary calls and health checks.
    calls: Channel,
    streams: Mutex<Vec<Arc<Connection>>>,
    /// Streams and calls that are open.
    load: AtomicUsize,
    used: AtomicBool,
    state: Mutex<State>,
    ask_now: Arc<Notify>,
    /// Rung whenever the health of any engine of the pool changes.
    changed: watch::Sender<()>,
}

#[derive(Debug)]
struct State {
    health: Health,
    /// When it was found to answer after it had not, or when it was first heard of.
    came: Instant,
    /// Why it is not serving, as it was logged.
    why: String,
}

/// One connection for streams.
#[derive(Debug)]
struct Connection {
    channel: Channel,
    open: AtomicUsize,
}

/// A stream or a call that is open; counted until it is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    backend: Arc<Backend>,
    connection: Option<Arc<Connection>>,
}

impl Backend {
    /// An engine at `addr`, found under `target`. It is asked for its health from now on, until it is dropped.
    pub(super) fn new(addr: SocketAddr, target: &Uri, changed: watch::Sender<()>) -> Arc<Self> {
        // A socket address always makes a URI.
        let endpoint = Endpoint::from_shared(format!("http://{addr}"))
            .unwrap_or_else(|_| Endpoint::from(target.clone()))
            .origin(target.clone())
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING)
            .keep_alive_timeout(PONG)
            .keep_alive_while_idle(true);
        let state = State { health: Health::Unknown, came: Instant::now(), why: String::new() };
        let backend = Arc::new(Self {
            addr,
            target: target.clone(),
            calls: endpoint.connect_lazy(),
            endpoint,
            streams: Mutex::default(),
            load: AtomicUsize::new(0),
            used: AtomicBool::new(false),
            state: Mutex::new(state),
            ask_now: Arc::default(),
            changed,
        });
        tokio::spawn(look_after(Arc::downgrade(&backend), backend.ask_now.clone()));
        backend
    }

    pub(super) fn health(&self) -> Health {
        self.state.lock().health
    }

    pub(super) fn load(&self) -> usize {
        self.load.load(Ordering::Relaxed)
    }

    /// When it came, if it serves.
    pub(super) fn serves_since(&self) -> Option<Instant> {
        let state = self.state.lock();
        (state.health == Health::Serving).then_some(state.came)
    }

    /// The channel for a call.
    pub(super) fn call(self: &Arc<Self>) -> (Channel, Slot) {
        self.begin();
        (self.calls.clone(), Slot { backend: self.clone(), connection: None })
    }

    /// The channel for a stream, on a connection that has room.
    pub(super) fn stream(self: &Arc<Self>) -> (Channel, Slot) {
        self.begin();
        let mut streams = self.streams.lock();
        let room = streams.iter().find(|connection| connection.open.load(Ordering::Relaxed) < STREAMS);
        let connection = room.cloned().unwrap_or_else(|| {
            let channel = self.endpoint.connect_lazy();
            let connection = Arc::new(Connection { channel, open: AtomicUsize::new(0) });
            streams.push(connection.clone());
            connection
        });
        connection.open.fetch_add(1, Ordering::Relaxed);
        (connection.channel.clone(), Slot { backend: self.clone(), connection: Some(connection) })
    }

    /// The streams on each connection.
    #[cfg(test)]
    pub(super) fn connections(&self) -> Vec<usize> {
        self.streams.lock().iter().map(|connection| connection.open.load(Ordering::Relaxed)).collect()
    }

    fn begin(&self) {
        self.load.fetch_add(1, Ordering::Relaxed);
        if !self.used.swap(true, Ordering::Relaxed) {
            self.ask_now.notify_one();
        }
    }

    /// Something on it broke: others are better until it has answered again.
    pub(super) fn suspect(&self) {
        let mut state = self.state.lock();
        if state.health == Health::Serving {
            state.health = Health::Unknown;
        }
        drop(state);
        self.ask_now.notify_one();
    }

    /// Asks once.
    pub(super) async fn ask(&self) -> (Health, String) {
        let mut client = HealthClient::new(self.calls.clone());
        match timeout(ANSWER, client.check(HealthCheckRequest::default())).await {
            Ok(Ok(answer)) if answer.get_ref().status() == ServingStatus::NotServing => {
                (Health::NotServing, "it says that it does not serve".to_owned())
            }
            Ok(Ok(_)) => (Health::Serving, String::new()),
            Ok(Err(status)) if answers(&status) => (Health::Serving, String::new()),
            Ok(Err(status)) => {
                let why = timeout(ANSWER, diagnose_peer(&status, self.addr)).await;
                (Health::Unreachable, why.unwrap_or_else(|_| diagnose(&status)))
            }
            Err(_) => (Health::Unreachable, format!("no answer within {ANSWER:?}")),
        }
    }

    /// Takes over what was found out.
    fn judge(&self, health: Health, why: String) {
        let mut state = self.state.lock();
        if state.health == Health::Unreachable && health != Health::Unreachable {
            state.came = Instant::now();
        }
        let (engine, news) = (self.addr, state.why != why);
        match health {
            Health::Serving if news => tracing::info!(%engine, "the engine serves again"),
            Health::Serving | Health::Unknown => {}
            Health::NotServing | Health::Unreachable if news => {
                tracing::warn!(%engine, why, "the engine is away");
            }
            Health::NotServing | Health::Unreachable => {}
        }
        let changed = state.health != health;
        (state.health, state.why) = (health, why);
        drop(state);
        if changed {
            self.changed.send_replace(());
        }
    }
}

/// Whether a failed health check came from an engine all the same: one without the health service, or one that wants
/// to know first who asks.
fn answers(status: &Status) -> bool {
    let said_by_peer = std::error::Error::source(status).is_none() && !is_foreign(status);
    said_by_peer
        && matches!(
            status.code(),
            Code::Unimplemented | Code::NotFound | Code::Unauthenticated | Code::PermissionDenied
        )
}

/// Asks again and again, until nobody needs the backend any more.
async fn look_after(backend: Weak<Backend>, ask_now: Arc<Notify>) {
    let (mut last_used, mut away) = (Instant::now(), 0u32);
    loop {
        let Some(backend) = backend.upgrade() else { return };
        let (health, why) = backend.ask().await;
        backend.judge(health, why);
        away = if health == Health::Unreachable { away.saturating_add(1) } else { 0 };
        if backend.used.swap(false, Ordering::Relaxed) || backend.load() > 0 {
            last_used = Instant::now();
        }
        let idle = last_used.elapsed() > USED;
        drop(backend);
        let pause = if idle { ASK_IDLE } else { (ASK * (1 << away.min(4))).min(ASK_IDLE) };
        let jitter: f64 = rand::random_range(0.8..1.0);
        tokio::select! {
            () = sleep(pause.mul_f64(jitter)) => {}
            () = ask_now.notified() => sleep(ASK_LEAST).await,
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.backend.load.fetch_sub(1, Ordering::Relaxed);
        let Some(connection) = &self.connection else { return };
        let mut streams = self.backend.streams.lock();
        // One empty connection is kept, so that the next stream finds it open.
        if connection.open.fetch_sub(1, Ordering::Relaxed) == 1 && streams.len() > 1 {
            streams.retain(|other| !Arc::ptr_eq(other, connection));
        }
    }
}
