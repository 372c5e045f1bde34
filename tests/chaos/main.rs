//! Chaos: two engines, two gateways, workers in Rust and Python, and a Redis with AOF, while processes are killed and
//! frozen, connections are cut and Redis restarts, jobs run and people watch. Nothing may be lost, doubled or run on.
//!
//! ```text
//! tests/run chaos                                          # short, as in CI
//! CHAOS_FAULTS=250 CHAOS_SEED=7 tests/run chaos            # long
//! ```
//!
//! The seed decides which faults happen and what is submitted, not how the machine schedules: it repeats the plan, not
//! every interleaving. What is proved: every acknowledged submission ends; each viewer's sequence is dense, or its
//! gaps were announced, and equals what is stored; every acknowledged checkpoint is stored; a cancelled job runs in
//! no later attempt; the rows of every import are those of its file.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![allow(
    unreachable_pub,
    dead_code,
    unused_imports,
    reason = "the system tests' support serves here, too, and not all of it"
)]

mod faults;
mod fleet;
mod ledger;
mod load;
mod proxy;
mod report;
#[path = "../system/support/mod.rs"]
mod support;
mod verify;
mod viewer;

use rand::{SeedableRng as _, rngs::StdRng};

/// Faults of the short run.
const SHORT: usize = 14;

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text:?}")))
}

/// j2, j5, j10, j12, j22, j27, e56: all of them at once.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_whatever_is_killed() {
    let seed = number("CHAOS_SEED").unwrap_or_else(|| rand::random_range(0..1_000_000));
    let count = number("CHAOS_FAULTS").map_or(SHORT, |n| usize::try_from(n).unwrap());
    println!("chaos: {count} faults with CHAOS_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut fleet = fleet::Fleet::start().await;
    let ledger = ledger::Ledger::start(&fleet.engine_urls());
    let load = load::Load::start(&fleet, StdRng::seed_from_u64(seed ^ 1)).await;
    let mut report = report::Report::default();
    for at in 1..=count {
        let fault = faults::Fault::pick(&mut rng);
        println!("{at:4}/{count} {fault:?}");
        report.note(&fault);
        faults::strike(fault, &mut fleet, &load.sightings, &mut report, &mut rng).await;
    }
    fleet.heal().await;
    let jobs = load.finish().await;
    verify::all(&fleet, &jobs, &ledger, &mut report).await;
    ledger.stop().await;
    println!("{report}");
}
