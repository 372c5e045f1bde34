//! The limits of several gateways together, in Redis: cells by the algorithm of `gcra`, and slots of streams as leases.
//!
//! Invariants: no request waits for Redis longer than [`PATIENCE`], and none at all while Redis is known to be away; a
//! slot that nobody renews is free after its lease, so a gateway that dies leaks none. One task renews all slots of a
//! gateway. Redis sees hashes of subjects and addresses only. While it is away, each gateway gives away its own share
//! from memory; `limits` does that.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use redis::{
    RedisError, RedisResult, Script,
    aio::{ConnectionManager, ConnectionManagerConfig},
};
use tokio::{
    sync::{OnceCell, mpsc},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

use super::{
    gcra::Rate,
    memory::{Key, hex},
    settings::RedisUrl,
};
use crate::metrics::Metrics;

/// How long a request waits for Redis.
const PATIENCE: Duration = Duration::from_millis(250);
/// Renewals within a lease: two may be lost.
const RENEWALS: u32 = 3;
/// Between two looks whether Redis is back.
const RETRY: Duration = Duration::from_secs(1);
/// Slots renewed by one run of the script.
const CHUNK: usize = 256;
/// Slots that wait to be given back; beyond, they end with their lease.
const RELEASES: usize = 4096;

/// A slot that is to be given back, and the sets it is in.
type Released = (u64, Box<[Key]>);

/// A gateway's side of the shared limits.
pub(super) struct Shared {
    lease: Duration,
    url: RedisUrl,
    manager: OnceCell<ConnectionManager>,
    charge: Script,
    take: Script,
    renew: Script,
    /// This gateway in the set of gateways, and the first part of its slots' names.
    id: String,
    next: AtomicU64,
    held: Mutex<HashMap<u64, Box<[Key]>>>,
    releases: mpsc::Sender<Released>,
    /// The task's end of it.
    queue: Mutex<Option<mpsc::Receiver<Released>>>,
    away: AtomicBool,
    /// Gateways that were there when Redis last answered.
    nodes: AtomicU32,
    metrics: Arc<Metrics>,
}

impl Shared {
    /// Connects when first used; `lease` is how long a slot lasts without renewal.
    pub(super) fn new(url: RedisUrl, lease: Duration, metrics: Arc<Metrics>) -> Self {
        let (releases, queue) = mpsc::channel(RELEASES);
        Self {
            lease,
            url,
            manager: OnceCell::new(),
            charge: Script::new(include_str!("charge.lua")),
            take: Script::new(include_str!("take.lua")),
            renew: Script::new(include_str!("renew.lua")),
            id: hex(&rand::random::<[u8; 8]>()),
            next: AtomicU64::new(0),
            held: Mutex::default(),
            releases,
            queue: Mutex::new(Some(queue)),
            away: AtomicBool::new(false),
            nodes: AtomicU32::new(1),
            metrics,
        }
    }

    /// Whether requests are decided without Redis.
    pub(super) fn away(&self) -> bool {
        self.away.load(Ordering::Relaxed)
    }

    /// Among how many gateways the limits are shared.
    pub(super) fn nodes(&self) -> u32 {
        self.nodes.load(Ordering::Relaxed)
    }

    /// Charges all or none: the debts, and whether they were charged. `None` if Redis cannot be asked.
    pub(super) async fn charge(&self, charges: &[(Key, Rate)]) -> Option<(Vec<u64>, bool)> {
        let mut call = self.charge.prepare_invoke();
        for (key, rate) in charges {
            call.key(cell(key)).arg(rate.interval()).arg(rate.limit());
        }
        let reply: Vec<u64> = self.ask(async |manager| call.invoke_async(manager).await).await?;
        let (allowed, debts) = reply.split_first()?;
        (debts.len() == charges.len()).then(|| (debts.to_vec(), *allowed == 1))
    }

    /// A new slot, which [`release`](Self::release) must be called for.
    pub(super) fn hold(&self, keys: &[Key]) -> u64 {
        let slot = self.next.fetch_add(1, Ordering::Relaxed);
        self.held.lock().insert(slot, keys.into());
        slot
    }

    /// Takes the slot in all sets or in none: how many slots each has, or the index of the first that is full.
    /// `None` if Redis cannot be asked.
    pub(super) async fn take(&self, slot: u64, caps: &[(Key, u32)]) -> Option<Result<Vec<u32>, usize>> {
        let mut call = self.take.prepare_invoke();
        call.arg(self.name(slot)).arg(millis(self.lease));
        for (key, cap) in caps {
            call.key(set(key)).arg(*cap);
        }
        let reply: Vec<u32> = self.ask(async |manager| call.invoke_async(manager).await).await?;
        match reply.split_first()? {
            (0, counts) if counts.len() == caps.len() => Some(Ok(counts.to_vec())),
            (full, []) => Some(Err((*full as usize).checked_sub(1).filter(|full| *full < caps.len())?)),
            _ => None,
        }
    }

    /// Gives a slot back, soon.
    pub(super) fn release(&self, slot: u64) {
        if let Some(keys) = self.held.lock().remove(&slot).filter(|keys| !keys.is_empty()) {
            // No room, or nobody there: the lease ends by itself.
            let _ = self.releases.try_send((slot, keys));
        }
    }

    /// Renews what is held and gives back what is not, for ever.
    pub(super) async fn run(&self) {
        let Some(mut queue) = self.queue.lock().take() else { return };
        let mut renewal = interval(self.lease / RENEWALS);
        renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut released = Vec::new();
        loop {
            tokio::select! {
                _ = renewal.tick() => self.renew_all().await,
                () = sleep(RETRY), if self.away() => self.renew_all().await,
                count = queue.recv_many(&mut released, CHUNK) => {
                    if count == 0 {
                        return;
                    }
                    self.give_back(std::mem::take(&mut released)).await;
                }
            }
        }
    }

    async fn give_back(&self, slots: Vec<Released>) {
        if self.away() {
            return;
        }
        let mut pipe = redis::pipe();
        for (slot, keys) in &slots {
            for key in keys {
                pipe.zrem(set(key), self.name(*slot)).ignore();
            }
        }
        let _: Option<()> = self.ask(async |manager| pipe.query_async(manager).await).await;
    }

    /// Tells Redis all slots that are held; the first answer after an outage ends it.
    async fn renew_all(&self) {
        let held: Vec<(String, String)> = {
            let held = self.held.lock();
            let each = held.iter().flat_map(|(slot, keys)| keys.iter().map(|key| (key, *slot)));
            each.map(|(key, slot)| (set(key), self.name(slot))).collect()
        };
        let mut chunks = held.chunks(CHUNK);
        let mut chunk = chunks.next().unwrap_or_default();
        loop {
            let mut call = self.renew.prepare_invoke();
            call.key("{tidegate-limits}:gateways").arg(millis(self.lease)).arg(&self.id);
            for (set, slot) in chunk {
                call.key(set).arg(slot);
            }
            let Some(nodes) = self.try_ask(async |manager| call.invoke_async::<u32>(manager).await).await
            else {
                return;
            };
            self.nodes.store(nodes.max(1), Ordering::Relaxed);
            match chunks.next() {
                Some(next) => chunk = next,
                None => return,
            }
        }
    }

    /// Asks Redis unless it is known to be away.
    async fn ask<T>(
        &self,
        question: impl AsyncFnOnce(&mut ConnectionManager) -> RedisResult<T>,
    ) -> Option<T> {
        if self.away() { None } else { self.try_ask(question).await }
    }

    /// Asks Redis, and notices when it goes or comes back.
    async fn try_ask<T>(
        &self,
        question: impl AsyncFnOnce(&mut ConnectionManager) -> RedisResult<T>,
    ) -> Option<T> {
        let began = Instant::now();
        let answer = timeout(PATIENCE, async { question(&mut self.manager().await?).await }).await;
        let error: RedisError = match answer {
            Ok(Ok(answer)) => {
                if self.away.swap(false, Ordering::Relaxed) {
                    self.metrics.limit_reconnects.increment(1);
                    tracing::info!("the Redis of the limits is back: they are shared again");
                }
                return Some(answer);
            }
            Ok(Err(error)) => error,
            Err(_) => std::io::Error::from(std::io::ErrorKind::TimedOut).into(),
        };
        self.metrics.limit_outages.increment(1);
        if !self.away.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                %error, waited = ?began.elapsed(), nodes = self.nodes(),
                "the Redis of the limits does not answer: this gateway gives away its own share from memory"
            );
        }
        None
    }

    async fn manager(&self) -> RedisResult<ConnectionManager> {
        let connect = async || {
            let config = ConnectionManagerConfig::new()
                .set_connection_timeout(Some(PATIENCE))
                .set_response_timeout(Some(PATIENCE))
                .set_number_of_retries(0);
            ConnectionManager::new_lazy_with_config(self.url.client()?, config)
        };
        self.manager.get_or_try_init(connect).await.cloned()
    }

    fn name(&self, slot: u64) -> String {
        format!("{}-{slot:x}", self.id)
    }
}

/// The key of a cell. One hash tag for all: a request's keys are charged together.
fn cell(key: &Key) -> String {
    format!("{{tidegate-limits}}:c:{}:{}", key.what, hex(&key.who))
}

/// The key of a set of slots.
fn set(key: &Key) -> String {
    format!("{{tidegate-limits}}:s:{}:{}", key.what, hex(&key.who))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
