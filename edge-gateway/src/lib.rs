//! The HTTP and SSE edge.
//!
//! - [`config`]: flags, and what must hold between them.
//! - `serve`: the accept loop · `routes`: the whole surface · `admin`: what the operator's port shows · `console`: static files.
//! - `jobs`, `schedules`: REST, one call each · `progress`: the SSE handler · `hub`: one upstream a job, any number of viewers.
//! - `tls`: certificates · `cors`: pages of other origins.
//! - `limits`: who may have how much · `client`: whose address counts.
//! - `json`, `sse`, `problem`: contract messages as JSON, as SSE frames, as RFC 9457 problems. Pure.
//! - `access`: who comes in · `caller`: what it may do · `tickets`, `session`: credentials for browsers.
//! - `engine`: the way to the engine, known by gRPC only.
//!
//! A gateway holds no state that the engine does not: run as many as you like.

mod access;
mod admin;
mod caller;
mod client;
pub mod config;
mod console;
mod cors;
mod drain;
mod engine;
mod file;
mod files;
#[cfg(fuzzing)]
pub mod fuzzing;
mod hub;
mod jobs;
mod json;
mod limits;
mod metrics;
mod openapi;
mod problem;
mod problems;
mod progress;
mod routes;
mod schedules;
mod serve;
mod session;
mod sse;
mod streams;
mod tickets;
mod tls;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tidegate_auth::{Authenticator, Sealer, SecretError};
use tokio::{
    net::TcpListener,
    time::{interval, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    access::Access,
    admin::Admin,
    config::ConfigErrors,
    drain::Drain,
    engine::Engine,
    hub::{Registry, Tenures},
    limits::Limiter,
    metrics::Metrics,
    routes::App,
    serve::{Door, Limits},
    tls::{Seen, Tls},
};
pub use crate::{
    client::{ForwardedBy, Proxies},
    config::{Config, Edge},
    cors::Origin,
    hub::Timing,
    limits::{LimitSettings, RedisUrl},
    tls::{TlsError, TlsFiles},
};

/// Connections on the operator's port at once.
const ADMIN_CONNECTIONS: usize = 64;

/// Why a gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration would be unsafe.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// An address could not be bound.
    #[error("cannot listen on {addr}: {error}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// The secret of tickets and sessions cannot be read or made.
    #[error(transparent)]
    Secret(#[from] SecretError),
}

/// Binds and serves until `shutdown` completes, then drains.
///
/// # Errors
/// When the configuration is unsafe or an address cannot be bound; never once serving has begun.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), StartError> {
    Gateway::bind(config)?.serve(shutdown).await;
    Ok(())
}

/// The edge gateway.
#[derive(Debug)]
pub struct Gateway;

/// A gateway with its sockets bound, not serving yet.
#[derive(Debug)]
pub struct Bound {
    config: Config,
    public: TcpListener,
    admin: Option<TcpListener>,
    access: Arc<Access>,
    tenures: Tenures,
    /// And what its files were when it was made.
    tls: Option<(Tls, Seen)>,
}

impl Gateway {
    /// Checks the configuration and binds the sockets; must be called within a tokio runtime.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn bind(config: Config) -> Result<Bound, StartError> {
        config.check()?;
        let tls = config.edge.tls.clone().map(Tls::open).transpose()?;
        let listen = |addr| serve::listen(addr).map_err(|error| StartError::Listen { addr, error });
        let public = listen(config.listen)?;
        let admin = config.admin_listen.map(listen).transpose()?;
        let sealer = match &config.auth {
            Some(auth) => auth.sealer(config.secret_file.as_deref()),
            None => Sealer::ephemeral(),
        };
        let loopback = config.listen.ip().is_loopback();
        let access = Access {
            auth: config.auth.clone(),
            sealer: sealer?,
            secure: tls.is_some() || !loopback,
            local: loopback && !config.insecure,
            origins: config.edge.origins.clone(),
        };
        let tenures = Tenures::new(config.auth.clone(), config.longest_stream);
        Ok(Bound { config, public, admin, access: Arc::new(access), tenures, tls })
    }
}

impl Bound {
    /// Where browsers connect.
    pub fn addr(&self) -> SocketAddr {
        self.public.local_addr().unwrap_or(self.config.listen)
    }

    /// Where operators look.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin.as_ref().and_then(|admin| admin.local_addr().ok())
    }

    /// Serves until `shutdown` completes; then turns unready, accepts nothing more, says goodbye to all viewers over
    /// the drain window, and returns when the last connection has closed or the window is over.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        let (addr, admin_addr) = (self.addr(), self.admin_addr());
        files::make_room(self.config.max_connections);
        let (metrics, drain) = (Arc::new(Metrics::new()), Drain::default());
        let engine = Engine::new(self.config.engines, self.config.bearer);
        let registry = Registry::new(
            engine.clone(),
            self.config.timing,
            Arc::clone(&metrics),
            drain.clone(),
            self.tenures.clone(),
        );
        let limiter = Limiter::new(self.config.limits, self.config.max_streams, Arc::clone(&metrics));
        let edge = Arc::new(self.config.edge);
        let tls = self.tls.as_ref().map(|(tls, _)| tls.clone());
        let door = Door { counted: Some((limiter.clone(), Arc::clone(&edge))), tls };
        let auth = self.access.auth.clone();
        let app = routes::router(App {
            engine: engine.clone(),
            registry: registry.clone(),
            access: self.access,
            limiter: limiter.clone(),
            edge,
            metrics: Arc::clone(&metrics),
        });
        let limits = Limits { connections: self.config.max_connections, head: self.config.timing.head };
        let public = serve::accept(self.public, app, limits, door, drain.clone());
        let public = tokio::spawn(public);

        // The operator's port outlives the public one: it says that the gateway is draining.
        let closed = Drain::default();
        let admin =
            Admin { engine, registry: registry.clone(), metrics: Arc::clone(&metrics), drain: drain.clone() };
        let admin = tidegate_telemetry::admin::router(admin, self.config.admin_token);
        let admin_limits = Limits { connections: ADMIN_CONNECTIONS, ..limits };
        let admin = self.admin.map(|listener| {
            tokio::spawn(serve::accept(listener, admin, admin_limits, Door::default(), closed.clone()))
        });
        // Also while it drains: streams that stay open keep their slots.
        let _shared = AbortOnDropHandle::new(tokio::spawn({
            let limiter = limiter.clone();
            async move { limiter.keep().await }
        }));
        let encrypted = self.tls.is_some();
        let _certificates = self
            .tls
            .map(|(tls, seen)| AbortOnDropHandle::new(tokio::spawn(async move { tls.follow(seen).await })));
        tracing::info!(%addr, ?admin_addr, encrypted, "the gateway serves");

        tokio::select! {
            () = shutdown => {}
            () = upkeep(&metrics, &limiter) => {}
            () = self.tenures.run() => {}
            () = follow(auth) => {}
        }
        tracing::info!(window = ?self.config.drain, "the gateway drains");
        let deadline = tokio::time::Instant::now() + self.config.drain;
        drain.begin();
        let all_gone = async {
            // Most of the window for the goodbyes, the rest for slow sockets to take them.
            registry.dismiss(self.config.drain.mul_f64(0.7)).await;
            if let Ok(mut connections) = public.await {
                while connections.join_next().await.is_some() {}
            }
        };
        if timeout_at(deadline, all_gone).await.is_err() {
            tracing::warn!("the drain window is over; closing what is still open");
        }
        closed.begin();
        if let Some(admin) = admin {
            // Dropping the set closes the operator's connections.
            let _ = admin.await;
        }
    }
}

/// Follows the files and keys of `auth`, for ever.
async fn follow(auth: Option<Authenticator>) {
    match auth {
        Some(auth) => auth.follow().await,
        None => std::future::pending().await,
    }
}

/// Keeps the recorder and the limits tidy, for ever.
async fn upkeep(metrics: &Metrics, limiter: &Limiter) {
    let mut every = interval(Duration::from_secs(5));
    loop {
        every.tick().await;
        metrics.upkeep();
        limiter.tidy();
    }
}
