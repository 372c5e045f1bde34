//! Fires schedules whose time has come.
//!
//! One task claims members of [`index::FIRINGS`]; each is hidden for [`HOLD`], and then [`super::Record`] decides. An engine that
//! dies in between loses nothing: the member becomes due again, and whoever claims it finds the firing in hand. Does not:
//! retry what is refused.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use prost::Message as _;
use tidegate_proto::v1::Schedule;

use super::{InHand, Outcome, Passed, Record};
use crate::{
    engine::Engine,
    error::EngineError,
    job::{JobRecord, index},
    store::{Commit, CommitOutcome, Expect, Head, IndexChange, StoreError},
    vitals::Pulse,
};

/// How long what was claimed is hidden from other engines, and how soon a firing that was left in hand is finished.
pub const HOLD: Duration = Duration::from_secs(10);
/// How many schedules are claimed at once, at most.
const CLAIM: usize = 64;
/// How often due times are looked at.
const EVERY: Duration = Duration::from_millis(500);

/// A schedule as it is stored.
pub(super) type Stored = (Record, Head);

/// Fires what is due, for ever.
pub async fn run(engine: Arc<Engine>, pulse: Pulse) {
    loop {
        tokio::time::sleep(EVERY.mul_f64(rand::random_range(0.8..1.2))).await;
        loop {
            pulse.beat();
            let claimed = match engine.store.claim(index::FIRINGS, CLAIM, HOLD).await {
                Ok(claimed) => claimed,
                Err(error) => {
                    tracing::warn!(%error, "cannot look at what schedules are due");
                    break;
                }
            };
            let fire = async |stream: &String| {
                if let Err(error) = due(&engine, stream).await {
                    tracing::warn!(stream, %error, "a schedule could not fire; it is tried again");
                }
            };
            join_all(claimed.iter().map(fire)).await;
            if claimed.len() < CLAIM || engine.draining.is_cancelled() {
                break;
            }
        }
    }
}

/// Does what is to be done about a schedule that was claimed.
///
/// # Errors
/// Those of the log: then the schedule is claimed again.
pub async fn due(engine: &Engine, stream: &str) -> Result<(), EngineError> {
    let Some(stored) = load(engine, stream).await? else { return Ok(()) };
    let Some((mut record, head)) = finish(engine, stored).await? else { return Ok(()) };
    let (timetable, is_busy) = (record.timetable()?, is_busy(engine, &record).await?);
    let now_ms = engine.store.now_ms();
    match record.pass(&timetable, now_ms, is_busy) {
        Passed::Early => {
            // The two clocks differ by a little, or it was put while it was claimed. A commit, because one that is put
            // right now has a due time of its own, which must stay.
            commit(engine, record, head).await?;
        }
        Passed::Fires => {
            let Some(stored) = commit(engine, record, head).await? else { return Ok(()) };
            conclude(engine, stored, None).await?;
        }
        Passed::Skipped => {
            if commit(engine, record, head).await?.is_some() {
                engine.metrics.fired(Outcome::Skipped, Duration::ZERO);
            }
        }
        Passed::Missed => {
            if commit(engine, record, head).await?.is_some() {
                engine.metrics.fired(Outcome::Missed, Duration::ZERO);
            }
        }
    }
    Ok(())
}

/// Finishes a firing that was left in hand; `None` if somebody else changed the schedule meanwhile.
pub(super) async fn finish(engine: &Engine, (record, head): Stored) -> Result<Option<Stored>, EngineError> {
    if record.in_hand.is_none() {
        return Ok(Some((record, head)));
    }
    let stale = record.stale(engine.store.now_ms());
    conclude(engine, (record, head), stale).await
}

/// Makes the job of the firing in hand, unless it is there or the firing is `stale`, and puts the firing down.
async fn conclude(
    engine: &Engine,
    (mut record, head): Stored,
    stale: Option<Outcome>,
) -> Result<Option<Stored>, EngineError> {
    let Some(mut firing) = record.in_hand.clone() else { return Ok(Some((record, head))) };
    let outcome = if is_made(engine, &firing.job_id).await? {
        // Looked for first: itself it may fill the queue, or it has ended and another job has its unique key.
        Outcome::Fired
    } else if let Some(outcome) = stale {
        outcome
    } else {
        make(engine, &record, &mut firing).await?
    };
    record.in_hand = Some(firing);
    put_down(engine, (record, head), outcome).await
}

/// Makes the job of a firing, which then has the job's id.
async fn make(engine: &Engine, record: &Record, firing: &mut InHand) -> Result<Outcome, EngineError> {
    Ok(match engine.accept(record.submission(firing)?).await {
        // Under another id, if that was given the unique key by a submission that died before it made its job.
        Ok((job, _)) if record.made(firing, &job) => {
            firing.job_id = job.job_id;
            Outcome::Fired
        }
        // The unfinished job that has the unique key.
        Ok(_) | Err(EngineError::UniqueConflict) => Outcome::Skipped,
        // Tried again; what is full now is refused.
        Err(EngineError::Store(error)) if !matches!(error, StoreError::Full(_)) => return Err(error.into()),
        Err(error) => {
            // One line for each row of refusals, or one owner could fill the log.
            if !record.is_refused {
                let Schedule { tenant, owner, name, .. } = &record.schedule;
                tracing::warn!(tenant, owner, name, %error, "a schedule's jobs are refused");
            }
            Outcome::Refused
        }
    })
}

async fn put_down(
    engine: &Engine,
    (mut record, head): Stored,
    outcome: Outcome,
) -> Result<Option<Stored>, EngineError> {
    let at_ms = record.in_hand.as_ref().map_or(0, |firing| firing.at_ms);
    record.put_down(outcome);
    let stored = commit(engine, record, head).await?;
    if stored.is_some() {
        let late = Duration::from_millis(engine.store.now_ms().saturating_sub(at_ms));
        engine.metrics.fired(outcome, late);
    }
    Ok(stored)
}

/// Stores a schedule that was changed; `None` if somebody else changed it meanwhile.
async fn commit(engine: &Engine, record: Record, head: Head) -> Result<Option<Stored>, EngineError> {
    let change = record.due(engine.store.now_ms(), HOLD);
    let outcome = engine.store.commit(change_of(&record, Expect::At(head), vec![change])).await?;
    Ok(match outcome {
        CommitOutcome::Committed(head) => Some((record, head)),
        CommitOutcome::Conflict(_) => None,
    })
}

/// The commit that stores a schedule. What it said before interests nobody.
pub(super) fn change_of(record: &Record, expect: Expect, index: Vec<IndexChange>) -> Commit {
    let first_seq = if let Expect::At(Head { seq, .. }) = &expect { seq + 1 } else { 0 };
    let state = record.encode_to_vec().into();
    Commit { stream: record.stream(), expect, state, events: vec![Bytes::new()], first_seq, index }
}

/// The schedule, if it is there.
pub(super) async fn load(engine: &Engine, stream: &str) -> Result<Option<Stored>, EngineError> {
    let there = engine.store.load(vec![stream.to_owned()]).await?.pop().flatten();
    there.map(|there| Ok((Record::decode_snapshot(&there)?, there.head))).transpose()
}

/// Whether the schedule's last job has not ended.
async fn is_busy(engine: &Engine, record: &Record) -> Result<bool, StoreError> {
    let last = record.schedule.last_job_id.clone();
    if last.is_empty() {
        return Ok(false);
    }
    match engine.store.load(vec![last]).await?.pop().flatten() {
        Some(job) => Ok(!JobRecord::decode_snapshot(&job)?.state().is_terminal()),
        None => Ok(false),
    }
}

/// Whether the job is there, to stay.
async fn is_made(engine: &Engine, job_id: &str) -> Result<bool, StoreError> {
    let Some(job) = engine.store.load(vec![job_id.to_owned()]).await?.pop().flatten() else {
        return Ok(false);
    };
    engine.store.confirm(job_id, &job.head).await?;
    Ok(true)
}
