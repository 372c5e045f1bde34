//! Several engines without a registry: finds them, knows which are well, and picks one.
//!
//! A [`Pool`] is made of [`Targets`]: URLs whose hosts are addresses or names. Names are resolved again and again, so
//! engines may come and go. Each engine is asked by `grpc.health.v1` whether it serves; work goes to those that do, the
//! less loaded of two. A [`Pick`] is one engine for one call or one stream. It tells when its engine fell
//! silent while another answers ([`Pick::lost`]), because an engine that is stopped breaks no connection; and, for
//! streams that are worth moving, when another engine came ([`Pick::rebalanced`]).
//!
//! What it does not do: repeat anything. Whether a call may be made twice, and where a stream goes on, only the caller
//! knows.

mod backend;
mod choose;
mod diagnosis;
mod targets;

use std::{net::SocketAddr, sync::Arc, sync::Weak, time::Duration};

use parking_lot::RwLock;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tonic::{Status, codegen::http::Uri, service::interceptor::InterceptedService, transport::Channel};

use self::{
    backend::{Backend, Slot},
    choose::{Candidate, Health},
    targets::Resolver,
};
pub use self::{
    diagnosis::{diagnose, is_unsent},
    targets::{TargetError, Targets},
};
use crate::bearer::Bearer;

/// A connection on which every call presents the pool's token.
pub type Way = InterceptedService<Channel, Bearer>;

/// How often names are resolved again.
const RESOLVE: Duration = Duration::from_secs(5);
/// The least time between two resolutions when engines fail.
const RESOLVE_LEAST: Duration = Duration::from_millis(500);
/// How long a resolution may take.
const RESOLVE_WITHIN: Duration = Duration::from_secs(5);
/// How long a pick waits for the first addresses.
const FIRST: Duration = Duration::from_secs(3);
/// How long an engine must have been there before streams move to it.
const SETTLE: Duration = Duration::from_secs(3);
/// Over how long those that move spread.
const SPREAD: Duration = Duration::from_secs(2);

/// The engines; a cheap handle. When the last one is dropped, so are its tasks.
#[derive(Clone, Debug)]
pub struct Pool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    backends: RwLock<Vec<Arc<Backend>>>,
    /// Rung whenever an engine comes, goes, or changes its health.
    changed: watch::Sender<()>,
    resolve_now: Arc<Notify>,
    /// What the last resolution failed with, if it did.
    unresolved: RwLock<String>,
    /// What engines are shown.
    bearer: Bearer,
}

/// One engine, for one call or one stream.
#[derive(Debug)]
pub struct Pick {
    pool: Pool,
    backend: Arc<Backend>,
    channel: Channel,
    since: Instant,
    _slot: Slot,
}

impl Pool {
    /// Finds the engines at `targets`, which are shown `bearer`; must be called within a tokio runtime. Connects when there is
    /// something to do.
    pub fn new(targets: Targets, bearer: Bearer) -> Self {
        Self::with_resolver(targets, bearer, targets::system())
    }

    fn with_resolver(targets: Targets, bearer: Bearer, resolver: Resolver) -> Self {
        let pool = Self(Arc::new(Inner {
            backends: RwLock::default(),
            changed: watch::Sender::new(()),
            resolve_now: Arc::default(),
            unresolved: RwLock::default(),
            bearer,
        }));
        let resolve_now = pool.0.resolve_now.clone();
        tokio::spawn(resolve(Arc::downgrade(&pool.0), resolve_now, targets, resolver));
        pool
    }

    /// An engine for a unary call, if possible another one than at `avoid`, which just failed.
    ///
    /// # Errors
    /// UNAVAILABLE when no name has an address.
    pub async fn call(&self, avoid: Option<SocketAddr>) -> Result<Pick, Status> {
        let backend = self.choose(avoid).await?;
        Ok(Pick::new(self, backend, Backend::call))
    }

    /// An engine for a stream, likewise. Long streams must be picked by this, so that no connection carries too many.
    ///
    /// # Errors
    /// UNAVAILABLE when no name has an address.
    pub async fn stream(&self, avoid: Option<SocketAddr>) -> Result<Pick, Status> {
        let backend = self.choose(avoid).await?;
        Ok(Pick::new(self, backend, Backend::stream))
    }

    /// How many engines are known, and how many of them serve.
    pub fn size(&self) -> (usize, usize) {
        let backends = self.0.backends.read();
        (backends.len(), backends.iter().filter(|b| b.health() == Health::Serving).count())
    }

    async fn choose(&self, avoid: Option<SocketAddr>) -> Result<Arc<Backend>, Status> {
        let mut changed = self.0.changed.subscribe();
        let chosen = timeout(FIRST, async {
            loop {
                if let Some(backend) = self.best(avoid) {
                    return backend;
                }
                let _ = changed.changed().await; // cannot fail: the pool holds the sender
            }
        });
        chosen
            .await
            .map_err(|_| Status::unavailable(format!("no engine is known: {}", self.0.unresolved.read())))
    }

    fn best(&self, avoid: Option<SocketAddr>) -> Option<Arc<Backend>> {
        let backends = self.0.backends.read();
        let candidate =
            |b: &Arc<Backend>| Candidate { health: b.health(), load: b.load(), avoid: Some(b.addr) == avoid };
        let candidates: Vec<_> = backends.iter().map(candidate).collect();
        let chosen = choose::choose(&candidates, |n| rand::random_range(0..n))?;
        Some(backends[chosen].clone())
    }

    /// Takes over what the names lead to now. Streams on an engine that is no longer among them go on.
    fn update(&self, found: &[(SocketAddr, &Uri)]) {
        let mut backends = self.0.backends.write();
        backends.retain(|backend| found.iter().any(|(addr, _)| *addr == backend.addr));
        for (addr, target) in found {
            if !backends.iter().any(|backend| backend.addr == *addr) {
                backends.push(Backend::new(*addr, target, self.0.changed.clone()));
            }
        }
        drop(backends);
        self.0.changed.send_replace(());
    }
}

/// Resolves all names, again and again, until the pool is dropped.
async fn resolve(pool: Weak<Inner>, now: Arc<Notify>, targets: Targets, resolver: Resolver) {
    loop {
        let (mut found, mut failed, mut errors) = (Vec::new(), Vec::new(), String::new());
        for target in targets.uris() {
            let (host, port) = targets::host_and_port(target);
            let why = match timeout(RESOLVE_WITHIN, resolver(host.clone(), port)).await {
                Ok(Ok(addrs)) if !addrs.is_empty() => {
                    found.extend(addrs.into_iter().map(|addr| (addr, target)));
                    continue;
                }
                Ok(Ok(_)) => "it has no address".to_owned(),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "the name service does not answer".to_owned(),
            };
            errors = format!("{host}: {why}");
            failed.push(target);
        }
        let Some(pool) = pool.upgrade().map(Pool) else { return };
        if *pool.0.unresolved.read() != errors && !errors.is_empty() {
            tracing::warn!(
                error = errors,
                "a name of engines could not be resolved; what is known of it stays"
            );
        }
        // A name service that is away takes nobody away.
        let known: Vec<_> = pool.0.backends.read().iter().map(|b| (b.addr, b.target.clone())).collect();
        found.extend(
            known.iter().filter(|(_, target)| failed.contains(&target)).map(|(addr, target)| (*addr, target)),
        );
        pool.update(&found);
        *pool.0.unresolved.write() = errors;
        drop(pool);
        sleep(RESOLVE_LEAST).await;
        let _ = timeout(RESOLVE, now.notified()).await;
    }
}

impl Pick {
    fn new(pool: &Pool, backend: Arc<Backend>, open: impl FnOnce(&Arc<Backend>) -> (Channel, Slot)) -> Self {
        let (channel, slot) = open(&backend);
        Self { pool: pool.clone(), backend, channel, since: Instant::now(), _slot: slot }
    }

    /// The way to the engine.
    pub fn channel(&self) -> Way {
        InterceptedService::new(self.channel.clone(), self.pool.0.bearer.clone())
    }

    /// Where the engine is.
    pub fn addr(&self) -> SocketAddr {
        self.backend.addr
    }

    /// To be told when a call or stream broke, though not when the engine merely refused it: other engines
    /// are preferred until this one has answered again, and names are resolved again.
    pub fn failed(&self) {
        self.backend.suspect();
        self.pool.0.resolve_now.notify_one();
    }

    /// Returns when the engine does not answer, but another one serves: time to go there. Does not borrow the pick.
    pub fn lost(&self) -> impl Future<Output = ()> + Send + use<> {
        let (pool, backend) = (self.pool.clone(), self.backend.clone());
        async move {
            let mut changed = pool.0.changed.subscribe();
            while backend.health() != Health::Unreachable || pool.size().1 == 0 {
                let _ = changed.changed().await;
            }
        }
    }

    /// Returns a pick of another engine that came after this one was picked, if this stream is among those that should
    /// move there; most never return. Does not borrow the pick.
    ///
    /// Every stream decides for itself: of `n` engines the newcomer gets each stream with probability 1/n, which makes all
    /// loads equal without anybody counting. It must have been there for a few seconds, and moves are spread over some more.
    pub fn rebalanced(&self) -> impl Future<Output = Pick> + Send + use<> {
        let (pool, own, mut seen) = (self.pool.clone(), self.backend.clone(), self.since);
        async move {
            let mut changed = pool.0.changed.subscribe();
            loop {
                let came = {
                    let backends = pool.0.backends.read();
                    let came = backends.iter().filter(|b| b.addr != own.addr).filter_map(|b| {
                        let since = b.serves_since().filter(|since| *since > seen)?;
                        Some((since, b.clone()))
                    });
                    came.min_by_key(|(since, _)| *since)
                };
                let Some((since, newcomer)) = came else {
                    let _ = changed.changed().await;
                    continue;
                };
                seen = since;
                sleep_until(since + SETTLE + SPREAD.mul_f64(rand::random_range(0.0..1.0))).await;
                let stays = newcomer.serves_since() == Some(since);
                if stays && rand::random_range(0..pool.size().1.max(2)) == 0 {
                    return Pick::new(&pool, newcomer, Backend::stream);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
