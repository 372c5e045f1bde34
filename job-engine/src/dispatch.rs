//! Hands queued jobs to workers with free slots, and sweeps up what became due.
//!
//! One loop takes jobs from the queues, the other claims members of an index; both are hidden for [`HOLD`], and then
//! the state machine decides on each. An engine that dies in between loses nothing: they come back, here or on
//! another engine.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use tidegate_telemetry::trace;
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::{
    engine::Engine,
    error::EngineError,
    idempotency,
    job::{
        index,
        machine::{Draft, millis},
    },
    kinds,
    session::Assigned,
    store::StoreError,
    unique,
    vitals::Pulse,
};

/// How long what was taken or claimed is hidden from other engines.
const HOLD: Duration = Duration::from_secs(10);
/// How many members are taken or claimed at once, at most.
const CLAIM: usize = 64;
/// How long one index may keep the sweeper busy in one round.
const ROUND: Duration = Duration::from_secs(2);
/// How often due times are looked at.
const SWEEP: Duration = Duration::from_millis(500);

/// Assigns queued jobs, for ever.
pub async fn assign(engine: Arc<Engine>, pulse: Pulse) {
    loop {
        pulse.rest();
        for kind in engine.registry.dirty().await {
            pulse.beat();
            loop {
                let free = engine.registry.free(&kind).min(CLAIM);
                if free == 0 || engine.draining.is_cancelled() {
                    break;
                }
                let taken = match engine.store.take(&index::queue(&kind), free, HOLD).await {
                    Ok(taken) => taken,
                    Err(error) => {
                        tracing::warn!(kind, %error, "cannot take queued jobs");
                        break;
                    }
                };
                let found = taken.len();
                join_all(taken.into_iter().map(|id| assign_one(&engine, &kind, id))).await;
                if found < free {
                    break;
                }
            }
        }
    }
}

async fn assign_one(engine: &Arc<Engine>, kind: &str, job_id: String) {
    let Some(slot) = engine.registry.reserve(kind) else { return };
    let nonce = format!("{:016x}", rand::random::<u64>());
    let follow = engine.followers.follow(&job_id);
    let assigned = async {
        let (record, head) = engine.get(None, &job_id).await?;
        let queued = record.job.updated_at.map_or(0, millis);
        let span = tracing::info_span!(
            target: trace::TARGET, "dispatch", otel.kind = "producer", job = job_id, kind, worker = slot.member.name
        );
        let span = trace::child_of(span, &record.traceparent);
        let traceparent = trace::pass(&span, &record.traceparent);
        let assign = |draft: &mut Draft<'_>| {
            if !traceparent.is_empty() {
                draft.record.traceparent.clone_from(&traceparent);
            }
            draft.assign(&slot.member.name, &nonce)
        };
        let assigned = engine.transact(record, head, assign).instrument(span).await?;
        let waited = engine.store.now_ms().saturating_sub(queued);
        engine.metrics.waited(kind, Duration::from_millis(waited));
        Ok::<_, EngineError>(assigned)
    };
    match assigned.await {
        Ok((record, head)) => {
            // Never waited for: one worker that does not listen must not keep jobs from the others.
            let member = slot.member.clone();
            if let Err(unsent) = member.to_session.try_send((record, head, slot, follow)) {
                member.leave();
                give_back(engine, unsent.into_inner()).await;
            }
        }
        // Cancelled, or taken by another engine, since it was claimed.
        Err(EngineError::State(_) | EngineError::NotFound) => {}
        Err(error) => tracing::warn!(job_id, %error, "a job could not be assigned"),
    }
}

/// Queues a job again whose worker left before it was told.
pub async fn give_back(engine: &Engine, (record, head, _slot, _follow): Assigned) {
    let job_id = record.job.job_id.clone();
    let token = record.lease.as_ref().map(|l| l.token.clone()).unwrap_or_default();
    if let Err(error) = engine.transact(record, head, |draft| draft.unassign(&token)).await {
        tracing::debug!(job_id, %error, "an unsent assignment waits for its lease to expire");
    }
}

/// Acts on expired leases, overdue cancellations and attempts, due jobs and ended retentions, for ever.
pub async fn sweep(engine: Arc<Engine>, pulse: Pulse) {
    let mut refreshed = Instant::now();
    // Workers could not renew their leases while this engine or the log was away: give them the time to.
    let mut leases_from = Instant::now() + engine.rules.lease;
    loop {
        let rested = Instant::now();
        tokio::time::sleep(SWEEP.mul_f64(rand::random_range(0.8..1.2))).await;
        pulse.beat();
        if rested.elapsed() > SWEEP * 2 + stall(&engine) {
            leases_from = Instant::now() + engine.rules.lease;
        }
        if !engine.store.is_whole() {
            leases_from = Instant::now() + engine.rules.lease;
        }
        for index in [index::LEASES, index::CANCELS, index::ATTEMPTS, index::SCHEDULED, index::EXPIRIES] {
            if [index::LEASES, index::ATTEMPTS].contains(&index) && Instant::now() < leases_from {
                continue;
            }
            let begun = Instant::now();
            if let Err(error) = sweep_index(&engine, index).await {
                tracing::warn!(index, %error, "cannot look at what is due");
                leases_from = Instant::now() + engine.rules.lease;
            }
            // The log stood still, or this process did: renewals, too.
            if begun.elapsed() > ROUND + stall(&engine) {
                leases_from = Instant::now() + engine.rules.lease;
            }
        }
        let kinds = engine.registry.kinds();
        if refreshed.elapsed() > kinds::REFRESH && !kinds.is_empty() {
            refreshed = Instant::now();
            if let Err(error) = engine.kinds.refresh(&*engine.store, kinds.clone()).await {
                tracing::warn!(%error, "cannot refresh the kinds on offer");
            }
        }
        // Claims of engines that died become due without a hint.
        engine.registry.touch(&kinds);
    }
}

/// A call to the log that takes longer than this stands for a stall, during which no lease could be renewed.
fn stall(engine: &Engine) -> Duration {
    engine.rules.lease / 4
}

/// Acts on everything that is due in an index, for a while; the rest waits for the next round.
async fn sweep_index(engine: &Engine, index: &str) -> Result<(), StoreError> {
    let until = Instant::now() + ROUND;
    loop {
        let begun = Instant::now();
        let members = engine.store.claim(index, CLAIM, HOLD).await?;
        if index == index::LEASES && begun.elapsed() > stall(engine) {
            return Err(StoreError::Unavailable(
                "the log stood still; leases are given time to be renewed".into(),
            ));
        }
        join_all(members.iter().map(|member| sweep_one(engine, index, member))).await;
        if members.len() < CLAIM || Instant::now() > until {
            return Ok(());
        }
    }
}

async fn sweep_one(engine: &Engine, index: &str, member: &str) {
    let done = async {
        if member.starts_with(idempotency::PREFIX) {
            return idempotency::forget(engine, member).await;
        }
        if member.starts_with(unique::PREFIX) {
            return unique::forget(engine, member).await;
        }
        let (job_id, attempt) = member.split_once('/').unwrap_or((member, "0"));
        let (record, head) = engine.get(None, job_id).await?;
        if index == index::EXPIRIES {
            // A retry may have been faster; if it comes now, the head is no longer the one that was loaded.
            return match record.state() {
                state if state.is_terminal() => engine.remove(&record.job, head).await.map(drop),
                state => Err(EngineError::State(state)),
            };
        }
        let attempt = attempt.parse().unwrap_or(0);
        let (jitter, mut early) = (rand::random_range(0.5..=1.0), None);
        let command = engine.transact(record, head, |draft| match index {
            index::LEASES => draft.lease_expired(attempt),
            index::CANCELS => draft.cancel_due(),
            index::ATTEMPTS => draft.attempt_due(attempt, jitter).map(|left| early = left),
            _ => draft.due(),
        });
        command.await?;
        if let Some(left) = early {
            // It has reported since: a report does not move it, because there are many reports to one look.
            engine.store.renew(index, vec![member.to_owned()], left).await?;
        }
        if index == index::LEASES {
            engine.metrics.leases_expired.increment(1);
        }
        Ok(())
    };
    match done.await {
        // Somebody else was faster.
        Ok(()) | Err(EngineError::State(_) | EngineError::NotFound) => {}
        Err(error) => tracing::warn!(index, member, %error, "something due could not be done"),
    }
}
