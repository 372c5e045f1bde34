//! What can go wrong, and what is done about it.

use std::time::Duration;

use nix::sys::signal::Signal;
use rand::{RngExt as _, rngs::StdRng};
use tokio::time::{Instant, sleep};

use crate::{
    fleet::{Fleet, LEASE},
    report::Report,
    viewer::Sightings,
};

/// How long after a fault every running job must have shown something new. Generous: it is asserted.
const RECOVERY: Duration = Duration::from_secs(45);

/// One fault; the number says which of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    KillWorker(usize),
    KillEngine(usize),
    KillGateway(usize),
    /// Frozen for longer than the lease.
    FreezeWorker(usize),
    FreezeEngine(usize),
    FreezeGateway(usize),
    FreezeRedis,
    CutEngine(usize),
    CutViewers,
    RestartRedis,
    /// Leaves as it was asked to.
    DrainEngine(usize),
    DrainGateway(usize),
    DrainWorker(usize),
    KillEngineAndWorker(usize, usize),
}

impl Fault {
    /// Any fault, the usual ones more often.
    pub fn pick(rng: &mut StdRng) -> Self {
        let worker = rng.random_range(0..3);
        let one = rng.random_range(0..2);
        match rng.random_range(0..100) {
            0..18 => Self::KillWorker(worker),
            18..34 => Self::KillEngine(one),
            34..42 => Self::KillGateway(one),
            42..50 => Self::FreezeWorker(worker),
            50..56 => Self::FreezeEngine(one),
            56..60 => Self::FreezeGateway(one),
            60..64 => Self::FreezeRedis,
            64..74 => Self::CutEngine(one),
            74..82 => Self::CutViewers,
            82..88 => Self::RestartRedis,
            88..91 => Self::DrainEngine(one),
            91..94 => Self::DrainGateway(one),
            94..97 => Self::DrainWorker(worker),
            _ => Self::KillEngineAndWorker(one, worker),
        }
    }

    /// Its kind, without the number.
    pub fn name(self) -> &'static str {
        match self {
            Self::KillWorker(_) => "SIGKILL worker",
            Self::KillEngine(_) => "SIGKILL engine",
            Self::KillGateway(_) => "SIGKILL gateway",
            Self::FreezeWorker(_) => "SIGSTOP worker beyond its lease",
            Self::FreezeEngine(_) => "SIGSTOP engine beyond the lease",
            Self::FreezeGateway(_) => "SIGSTOP gateway",
            Self::FreezeRedis => "SIGSTOP Redis",
            Self::CutEngine(_) => "cut connections to an engine",
            Self::CutViewers => "cut viewers' connections",
            Self::RestartRedis => "SIGKILL and restart Redis",
            Self::DrainEngine(_) => "SIGTERM engine",
            Self::DrainGateway(_) => "SIGTERM gateway",
            Self::DrainWorker(_) => "SIGTERM worker",
            Self::KillEngineAndWorker(..) => "SIGKILL engine and worker",
        }
    }
}

/// Does it, mends it, and waits until every job that was under way has moved on.
pub async fn strike(
    fault: Fault,
    fleet: &mut Fleet,
    seen: &Sightings,
    report: &mut Report,
    rng: &mut StdRng,
) {
    let struck = Instant::now();
    let running = seen.lively(struck);
    let down = Duration::from_millis(rng.random_range(50..1500));
    let frozen = LEASE + Duration::from_millis(rng.random_range(500..2500));
    match fault {
        Fault::KillWorker(at) => {
            fleet.workers[at].kill();
            sleep(down).await;
            fleet.workers[at].start_again();
        }
        Fault::KillEngine(at) => {
            fleet.engines[at].kill();
            sleep(down).await;
            fleet.engines[at].start_again();
        }
        Fault::KillGateway(at) => {
            fleet.gateways[at].kill();
            sleep(down).await;
            fleet.gateways[at].start_again();
        }
        Fault::KillEngineAndWorker(engine, worker) => {
            fleet.engines[engine].kill();
            fleet.workers[worker].kill();
            sleep(down).await;
            fleet.engines[engine].start_again();
            fleet.workers[worker].start_again();
        }
        Fault::FreezeWorker(at) => {
            fleet.workers[at].signal(Signal::SIGSTOP);
            sleep(frozen).await;
            fleet.workers[at].signal(Signal::SIGCONT);
        }
        Fault::FreezeEngine(at) => {
            fleet.engines[at].signal(Signal::SIGSTOP);
            sleep(frozen).await;
            fleet.engines[at].signal(Signal::SIGCONT);
        }
        Fault::FreezeGateway(at) => {
            fleet.gateways[at].signal(Signal::SIGSTOP);
            sleep(down).await;
            fleet.gateways[at].signal(Signal::SIGCONT);
        }
        Fault::FreezeRedis => {
            fleet.redis.signal(Signal::SIGSTOP);
            sleep(Duration::from_millis(rng.random_range(200..5000))).await;
            fleet.redis.signal(Signal::SIGCONT);
        }
        Fault::CutEngine(at) => fleet.engine_proxies[at].cut(),
        Fault::CutViewers => fleet.front.cut(),
        Fault::RestartRedis => {
            fleet.redis.kill();
            sleep(down).await;
            fleet.restart_redis().await;
        }
        Fault::DrainEngine(at) => {
            fleet.engines[at].stop().await;
            fleet.engines[at].start_again();
        }
        Fault::DrainGateway(at) => {
            fleet.gateways[at].stop().await;
            fleet.gateways[at].start_again();
        }
        Fault::DrainWorker(at) => {
            fleet.workers[at].stop().await;
            fleet.workers[at].start_again();
        }
    }
    // Now and then the next fault comes before this one is over.
    if rng.random_bool(0.2) {
        return;
    }
    let recovered = loop {
        if let Some(last) = seen.moved_on(&running, struck) {
            break last;
        }
        assert!(
            struck.elapsed() < RECOVERY,
            "{RECOVERY:?} after {fault:?} nothing new of {:?}",
            seen.waiting(&running, struck)
        );
        sleep(Duration::from_millis(20)).await;
    };
    if !running.is_empty() {
        report.recovered(fault, recovered);
    }
    sleep(Duration::from_millis(rng.random_range(0..700))).await;
}
