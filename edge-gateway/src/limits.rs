//! How much a client may have: rates of requests, and streams at once, per address, subject, tenant and process.
//!
//! - `gcra`: the algorithm, pure · `settings`: the `[limits]` section · `memory`: what one gateway remembers ·
//!   `shared`: what several know together, in Redis.
//! - `standing`: what clients are told: `RateLimit`, `RateLimit-Policy`.
//! - `layer`: where requests meet the limits.
//!
//! Invariants: a request is charged to all of its keys or, if one of them refuses, to none; a refused one changes
//! nothing; the newest is refused, never the oldest evicted; a stream's slot lives in its [`StreamPermit`], so it comes
//! back exactly once on every way out.

mod gcra;
pub(crate) mod layer;
mod memory;
mod settings;
mod shared;
mod standing;

use std::{fmt, net::IpAddr, sync::Arc, time::Instant};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub use self::settings::{LimitSettings, RedisUrl};
pub(crate) use self::standing::{Refusal, Standing};
use self::{
    gcra::Rate,
    memory::{Cells, Counts, Key},
    settings::{Class, Scope},
    shared::Shared,
};
use crate::{caller::Caller, metrics::Metrics, problem::Problem};

/// The policy of the process's own cap.
const PROCESS: &str = "streams-process";
/// The key of connections of an address.
const CONNECTIONS: &str = "connections-ip";

/// The limits of a gateway; a cheap handle.
#[derive(Clone, Debug)]
pub(crate) struct Limiter(Arc<Inner>);

struct Inner {
    settings: LimitSettings,
    cells: Mutex<Cells>,
    counts: Mutex<Counts>,
    /// Streams that the process may still open.
    process: Arc<Semaphore>,
    began: Instant,
    shared: Option<Shared>,
    metrics: Arc<Metrics>,
}

/// Whom a request counts for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Who<'a> {
    /// The client's address.
    pub(crate) ip: IpAddr,
    /// The authenticated caller, if any.
    pub(crate) caller: Option<&'a Caller>,
}

impl Limiter {
    /// Limits that this gateway keeps, or shares through the Redis that the settings name; then [`keep`](Self::keep) must run.
    pub(crate) fn new(settings: LimitSettings, max_streams: usize, metrics: Arc<Metrics>) -> Self {
        let shared = settings.redis.clone().map(|url| Shared::new(url, settings.lease, Arc::clone(&metrics)));
        Self(Arc::new(Inner {
            cells: Mutex::new(Cells::new(settings.max_keys)),
            counts: Mutex::default(),
            process: Arc::new(Semaphore::new(max_streams.min(Semaphore::MAX_PERMITS))),
            began: Instant::now(),
            shared,
            settings,
            metrics,
        }))
    }

    /// Whether an address has used up its quota: asked before anything costly, such as verifying a token, is done for
    /// it. Charges nothing, and asks nobody: memory knows what Redis said last.
    pub(crate) fn barred(&self, class: Class, ip: IpAddr) -> Result<(), Refusal> {
        let charges = self.charges(class, Who { ip, caller: None }, self.nodes());
        let now = self.now();
        let debts: Vec<u64> = {
            let cells = self.0.cells.lock();
            charges.iter().map(|(key, _)| cells.debt(key, now)).collect()
        };
        if charges.iter().zip(&debts).all(|((_, rate), debt)| rate.charge(*debt).is_some()) {
            return Ok(());
        }
        Err(self.refused(Standing::of_rates(&charges, &debts)))
    }

    /// Charges a request.
    pub(crate) async fn admit(&self, class: Class, who: Who<'_>) -> Result<Standing, Refusal> {
        let mut charges = self.charges(class, who, 1);
        if charges.is_empty() {
            return Ok(Standing::default());
        }
        let asked = match &self.0.shared {
            Some(shared) => shared.charge(&charges).await,
            None => None,
        };
        let (debts, allowed) = if let Some(answer) = asked {
            let (now, mut cells) = (self.now(), self.0.cells.lock());
            for ((key, _), debt) in charges.iter().zip(&answer.0) {
                cells.set(*key, now, *debt);
            }
            answer
        } else {
            charges = self.charges(class, who, self.nodes());
            self.0.cells.lock().charge(&charges, self.now())
        };
        let standing = Standing::of_rates(&charges, &debts);
        if allowed { Ok(standing) } else { Err(self.refused(standing)) }
    }

    /// Takes a slot for one stream.
    pub(crate) async fn open_stream(&self, who: Who<'_>) -> Result<(StreamPermit, Standing), Problem> {
        let process = Arc::clone(&self.0.process).try_acquire_owned().map_err(|_| {
            self.0.metrics.refused(PROCESS);
            Problem::TooManyStreams
        })?;
        let full = |caps: &[(Key, u32)], full: usize| {
            Problem::from(self.refused(Standing::of_streams(&caps[full..=full], |_| caps[full].1)))
        };
        let mut caps = self.caps(who, self.nodes());
        // What is too much for one gateway is too much for all of them.
        self.0.counts.lock().take(&caps).map_err(|index| full(&caps, index))?;
        let keys: Box<[Key]> = caps.iter().map(|(key, _)| *key).collect();
        let slot = self.0.shared.as_ref().map_or(0, |shared| shared.hold(&keys));
        // From here on, also if the client leaves while Redis is asked, the slot comes back.
        let permit = StreamPermit { limiter: self.clone(), keys, slot, _process: process };
        let mut counts = None;
        if let Some(shared) = self.0.shared.as_ref().filter(|_| !caps.is_empty()) {
            match shared.take(slot, &caps).await {
                Some(taken) => counts = Some(taken.map_err(|index| full(&caps, index))?),
                None => {
                    caps = self.caps(who, self.nodes());
                    if let Some(index) = self.0.counts.lock().over(&caps) {
                        return Err(full(&caps, index));
                    }
                }
            }
        }
        let counts = counts.unwrap_or_else(|| {
            let counts = self.0.counts.lock();
            caps.iter().map(|(key, _)| counts.of(key)).collect()
        });
        let mut counts = counts.into_iter();
        Ok((permit, Standing::of_streams(&caps, |_| counts.next().unwrap_or(0))))
    }

    /// Keeps what is shared through Redis alive, for ever.
    pub(crate) async fn keep(&self) {
        if let Some(shared) = &self.0.shared {
            shared.run().await;
        }
    }

    /// Among how many gateways what this one may give away is divided now: one, unless Redis is away.
    fn nodes(&self) -> u32 {
        self.0.shared.as_ref().filter(|shared| shared.away()).map_or(1, |shared| shared.nodes())
    }

    /// Takes a place for one connection of `ip`; none if it has as many as it may.
    pub(crate) fn connect(&self, ip: IpAddr) -> Option<ConnectionPermit> {
        let Some(cap) = self.0.settings.ip.connections else { return Some(ConnectionPermit(None)) };
        let key = Key::ip(CONNECTIONS, ip);
        if self.0.counts.lock().take(&[(key, cap)]).is_err() {
            self.0.metrics.refused(CONNECTIONS);
            return None;
        }
        Some(ConnectionPermit(Some((self.clone(), key))))
    }

    /// Forgets whoever is as good as new; to be called every few seconds.
    pub(crate) fn tidy(&self) {
        let mut cells = self.0.cells.lock();
        cells.tidy(self.now());
        #[allow(clippy::cast_precision_loss, reason = "a gauge")]
        self.0.metrics.limit_keys.set(cells.len() as f64);
    }

    fn refused(&self, standing: Standing) -> Refusal {
        let refusal = Refusal::new(standing);
        for policy in refusal.violated() {
            self.0.metrics.refused(policy);
        }
        refusal
    }

    fn now(&self) -> u64 {
        u64::try_from(self.0.began.elapsed().as_micros()).unwrap_or(u64::MAX / 2)
    }

    /// Whom a request of `class` is charged to, and how much each may have when it is divided among `nodes`.
    fn charges(&self, class: Class, who: Who<'_>, nodes: u32) -> Vec<(Key, Rate)> {
        self.keys(who, |scope| {
            Some((class.policy(scope), self.0.settings.of(scope).rate(class)?.share(nodes)))
        })
    }

    /// Whose streams one more would count among, and the cap of each when it is divided among `nodes`.
    fn caps(&self, who: Who<'_>, nodes: u32) -> Vec<(Key, u32)> {
        let share = |cap: u32| if cap == 0 { 0 } else { (cap / nodes).max(1) };
        self.keys(who, |scope| Some((scope.streams(), share(self.0.settings.of(scope).streams?))))
    }

    /// The keys of `who` in the scopes that `limit` limits.
    fn keys<T>(&self, who: Who<'_>, limit: impl Fn(Scope) -> Option<(&'static str, T)>) -> Vec<(Key, T)> {
        let key = |scope| {
            let (what, limit) = limit(scope)?;
            let key = match scope {
                Scope::Ip => Key::ip(what, who.ip),
                // Everybody is anonymous: as one subject, they would use up each other's share.
                Scope::Subject => {
                    let caller = who.caller.filter(|caller| !caller.is_anonymous())?;
                    Key::subject(what, caller.tenant(), caller.subject())
                }
                Scope::Tenant => Key::tenant(what, who.caller?.tenant()),
            };
            Some((key, limit))
        };
        Scope::ALL.into_iter().filter_map(key).collect()
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Limiter")
    }
}

/// A stream's slot; given back on drop. It belongs into the body of the response.
#[derive(Debug)]
pub(crate) struct StreamPermit {
    limiter: Limiter,
    keys: Box<[Key]>,
    /// Its number in Redis.
    slot: u64,
    _process: OwnedSemaphorePermit,
}

#[cfg(test)]
impl StreamPermit {
    /// A slot of a limiter of its own.
    pub(crate) fn alone() -> Self {
        let limiter = Limiter::new(LimitSettings::default(), 1, Arc::new(Metrics::new()));
        let process = Arc::clone(&limiter.0.process).try_acquire_owned().unwrap();
        Self { limiter, keys: Box::default(), slot: 0, _process: process }
    }
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        self.limiter.0.counts.lock().give_back(self.keys.iter().copied());
        if let Some(shared) = &self.limiter.0.shared {
            shared.release(self.slot);
        }
    }
}

/// A connection's place; given back on drop.
#[derive(Debug)]
pub(crate) struct ConnectionPermit(Option<(Limiter, Key)>);

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        if let Some((limiter, key)) = self.0.take() {
            limiter.0.counts.lock().give_back([key]);
        }
    }
}
