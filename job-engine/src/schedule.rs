//! Schedules: what is stored of one, and what becomes of it when it is put or its time comes. Pure.
//!
//! A schedule is a stream of its own, `schedule/<hash>`, named by its tenant, owner and name; its next instant is when it
//! is due in the index [`index::FIRINGS`]. A firing takes two commits: the first moves the schedule on and takes the
//! firing in hand, with the id of the job to be made; the second puts it down when that job is there. The id is made of the
//! schedule and the instant, so whoever finds a firing in hand can only make the same job.
//!
//! Invariants, property-tested below: instants that are fired only grow; of those that went by unseen at most one is
//! fired, and none later than the schedule allows; a paused schedule fires nothing. No I/O here and no clock: [`fire`] does the
//! firing, [`desk`] serves the callers, [`rpc`] speaks gRPC.

pub mod desk;
pub mod fire;
pub mod rpc;
pub mod timetable;

use std::time::Duration;

use prost::Message as _;
use tidegate_proto::{
    limits::{self, MAX_SCHEDULE_INPUT_BYTES},
    v1::{Caller, Job, Overlap, Schedule, SubmitJobRequest},
};

use crate::{
    engine::job_id_at,
    error::EngineError,
    idempotency,
    job::{
        index,
        machine::{millis, timestamp},
    },
    store::{IndexChange, Snapshot, StoreError},
    submission::{self, Firing, Submission},
};
use timetable::Timetable;

/// What the name of every schedule's stream begins with.
pub const PREFIX: &str = "schedule/";
/// How late a firing may be unless the schedule says otherwise.
const CATCH_UP: Duration = Duration::from_secs(3600);
/// What it may say: no less than a claim is hidden, no more than a day.
const CATCH_UPS: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(60)..=Duration::from_secs(24 * 3600);

/// A schedule's stored state.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Record {
    /// The schedule as callers see it.
    #[prost(message, required, tag = "1")]
    pub schedule: Schedule,
    /// The firing in hand: its job may have been made, or not.
    #[prost(message, optional, tag = "2")]
    pub in_hand: Option<InHand>,
    /// Whether the engine refused the job of its last firing.
    #[prost(bool, tag = "3")]
    pub is_refused: bool,
}

/// A firing that was begun.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct InHand {
    /// The instant, in ms on the store's clock.
    #[prost(uint64, tag = "1")]
    pub at_ms: u64,
    /// The id of the job.
    #[prost(string, tag = "2")]
    pub job_id: String,
}

/// What a schedule does when it is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Passed {
    /// Nothing: its time has not come.
    Early,
    /// It has taken a firing in hand.
    Fires,
    /// Its last job has not ended.
    Skipped,
    /// The instant is longer ago than the schedule allows.
    Missed,
}

/// What became of a firing in hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The job is there.
    Fired,
    /// Another unfinished job has its unique key.
    Skipped,
    /// It is too late.
    Missed,
    /// The engine refused the job: a queue is full.
    Refused,
    /// A later instant has come: that one takes its place.
    Superseded,
}

/// The name of a schedule's stream.
pub fn stream(tenant: &str, owner: &str, name: &str) -> String {
    idempotency::name(PREFIX, &[tenant, owner, name])
}

/// Checks what a schedule is to say, and fills in the defaults; the error names every field that is wrong. Instants that
/// are closer than `least` are refused.
pub fn check(
    wanted: Schedule,
    caller: &Caller,
    least: Duration,
) -> Result<(Schedule, Timetable), EngineError> {
    let mut wrong: Vec<(&'static str, String)> = Vec::new();
    let mut schedule = Schedule {
        name: wanted.name,
        kind: wanted.kind,
        input_json: if wanted.input_json.is_empty() { "{}".into() } else { wanted.input_json },
        options: Some(wanted.options.unwrap_or_default()),
        cron: wanted.cron,
        time_zone: wanted.time_zone,
        overlap: wanted.overlap,
        catch_up: Some(wanted.catch_up.unwrap_or(prost_types::Duration {
            seconds: i64::try_from(CATCH_UP.as_secs()).unwrap_or(i64::MAX),
            nanos: 0,
        })),
        paused: wanted.paused,
        tenant: caller.tenant.clone(),
        owner: caller.subject.clone(),
        ..Schedule::default()
    };
    if !limits::is_name(&schedule.name) {
        wrong.push(("name", "must be [a-z][a-z0-9._-]{0,63}".into()));
    }
    if schedule.input_json.len() > MAX_SCHEDULE_INPUT_BYTES {
        wrong.push(("input_json", format!("has at most {MAX_SCHEDULE_INPUT_BYTES} bytes")));
    }
    let timetable = match Timetable::parse(&schedule.cron, &schedule.time_zone) {
        Ok(timetable) => {
            schedule.time_zone = timetable.zone().to_owned();
            if timetable.closest() < least {
                wrong.push((
                    "cron",
                    format!("must leave at least {} s between two instants", least.as_secs()),
                ));
            }
            Some(timetable)
        }
        Err(bad) => {
            wrong.push(bad);
            None
        }
    };
    match Overlap::try_from(schedule.overlap) {
        Ok(Overlap::Unspecified) => schedule.set_overlap(Overlap::Skip),
        Ok(Overlap::Skip | Overlap::Allow) => {}
        Err(_) => wrong.push(("overlap", "must be skip or allow".into())),
    }
    match schedule.catch_up.map(Duration::try_from) {
        Some(Ok(catch_up)) if CATCH_UPS.contains(&catch_up) => {}
        _ => {
            let (least, most) = (CATCH_UPS.start().as_secs(), CATCH_UPS.end().as_secs());
            wrong.push(("catch_up", format!("must be {least} to {most} seconds")));
        }
    }
    if let Some(options) = &schedule.options {
        for (field, given) in
            [("options.delay", options.delay.is_some()), ("options.run_at", options.run_at.is_some())]
        {
            if given {
                wrong.push((field, "must not be given: the schedule says when".into()));
            }
        }
    }
    // The rest is what every submission has to obey.
    if let Err(error) = submission::check(request(&schedule)) {
        match error {
            EngineError::Invalid(more) => wrong.extend(more),
            error => return Err(error),
        }
    }
    match timetable {
        Some(timetable) if wrong.is_empty() => Ok((schedule, timetable)),
        _ => Err(EngineError::Invalid(wrong)),
    }
}

/// What is submitted for each firing.
fn request(schedule: &Schedule) -> SubmitJobRequest {
    SubmitJobRequest {
        caller: Some(Caller {
            tenant: schedule.tenant.clone(),
            subject: schedule.owner.clone(),
            whole_tenant: false,
        }),
        kind: schedule.kind.clone(),
        input_json: schedule.input_json.clone(),
        options: schedule.options.clone(),
        idempotency_key: String::new(),
    }
}

impl Record {
    /// A new schedule, or what `old` becomes; `None` if it says just that already.
    pub fn put(old: Option<&Self>, wanted: Schedule, timetable: &Timetable, now_ms: u64) -> Option<Self> {
        let now = Some(timestamp(now_ms));
        let mut schedule = Schedule { created_at: now, updated_at: now, ..wanted };
        let mut keeps = false;
        if let Some(old) = old.map(|record| &record.schedule) {
            keeps = (&old.cron, &old.time_zone, old.paused)
                == (&schedule.cron, &schedule.time_zone, schedule.paused);
            schedule.created_at = old.created_at;
            schedule.updated_at = old.updated_at;
            schedule.last_at = old.last_at;
            schedule.last_job_id.clone_from(&old.last_job_id);
            (schedule.fired, schedule.skipped, schedule.missed) = (old.fired, old.skipped, old.missed);
            // Not from now: an instant that has come, and was not seen yet, must not be lost by a put that repeats itself.
            schedule.next_at = old.next_at.filter(|_| keeps);
            if schedule == *old {
                return None;
            }
            schedule.updated_at = now;
        }
        if !keeps && !schedule.paused {
            schedule.next_at = timetable.after(now_ms).map(timestamp);
        }
        Some(Self { schedule, in_hand: None, is_refused: old.is_some_and(|old| old.is_refused) })
    }

    /// Passes over every instant up to now, and says what becomes of the last of them.
    pub fn pass(&mut self, timetable: &Timetable, now_ms: u64, is_busy: bool) -> Passed {
        let Some(next) = self.next_ms().filter(|next| *next <= now_ms) else { return Passed::Early };
        let since = next.max(now_ms.saturating_sub(self.catch_up_ms()));
        self.schedule.next_at = timetable.after(now_ms).map(timestamp);
        let Some(at_ms) = timetable.last(since, now_ms) else {
            self.schedule.missed += 1;
            return Passed::Missed;
        };
        if is_busy && self.schedule.overlap() != Overlap::Allow {
            self.schedule.skipped += 1;
            return Passed::Skipped;
        }
        self.in_hand = Some(InHand { at_ms, job_id: self.job_id(at_ms) });
        Passed::Fires
    }

    /// Why the firing in hand may be made no more, now that it was left lying; `None` if it may.
    pub fn stale(&self, now_ms: u64) -> Option<Outcome> {
        let firing = self.in_hand.as_ref()?;
        if self.next_ms().is_some_and(|next| next <= now_ms) {
            Some(Outcome::Superseded)
        } else if now_ms > firing.at_ms.saturating_add(self.catch_up_ms()) {
            Some(Outcome::Missed)
        } else {
            None
        }
    }

    /// Puts the firing down that is in hand.
    pub fn put_down(&mut self, outcome: Outcome) {
        let Some(firing) = self.in_hand.take() else { return };
        self.is_refused = outcome == Outcome::Refused;
        match outcome {
            Outcome::Fired => {
                self.schedule.fired += 1;
                self.schedule.last_at = Some(timestamp(firing.at_ms));
                self.schedule.last_job_id = firing.job_id;
            }
            Outcome::Skipped => self.schedule.skipped += 1,
            Outcome::Missed | Outcome::Refused => self.schedule.missed += 1,
            Outcome::Superseded => {}
        }
    }

    /// Whether a job is that of the firing.
    pub fn made(&self, firing: &InHand, job: &Job) -> bool {
        let Schedule { owner, name, .. } = &self.schedule;
        (&job.owner, &job.schedule) == (owner, name) && job.scheduled_for.map(millis) == Some(firing.at_ms)
    }

    /// The submission of the firing in hand.
    pub fn submission(&self, firing: &InHand) -> Result<Submission, EngineError> {
        let firing = Firing {
            schedule: self.schedule.name.clone(),
            at_ms: firing.at_ms,
            job_id: firing.job_id.clone(),
        };
        Ok(Submission { firing: Some(firing), ..submission::check(request(&self.schedule))? })
    }

    /// The name of its stream.
    pub fn stream(&self) -> String {
        stream(&self.schedule.tenant, &self.schedule.owner, &self.schedule.name)
    }

    /// The next instant, in ms; `None` while it rests.
    pub fn next_ms(&self) -> Option<u64> {
        self.schedule.next_at.map(millis)
    }

    /// When it is to be looked at: at its next instant, or after `hold` while a firing is in hand.
    pub fn due(&self, now_ms: u64, hold: Duration) -> IndexChange {
        let (index, member) = (index::FIRINGS.to_owned(), self.stream());
        match (&self.in_hand, self.next_ms()) {
            (Some(_), _) => IndexChange::Put { index, member, after: hold },
            (None, Some(next)) => {
                let after = Duration::from_millis(next.saturating_sub(now_ms));
                IndexChange::Put { index, member, after }
            }
            (None, None) => IndexChange::Remove { index, member },
        }
    }

    /// Reads a record from a stored state.
    pub fn decode_snapshot(snapshot: &Snapshot) -> Result<Self, StoreError> {
        Self::decode(&snapshot.state[..]).map_err(|e| StoreError::Damaged(format!("a schedule: {e}")))
    }

    /// Its times.
    pub fn timetable(&self) -> Result<Timetable, StoreError> {
        let Schedule { cron, time_zone, .. } = &self.schedule;
        Timetable::parse(cron, time_zone)
            .map_err(|(field, what)| StoreError::Damaged(format!("a schedule: {field} {what}")))
    }

    fn catch_up_ms(&self) -> u64 {
        let catch_up = self.schedule.catch_up.and_then(|d| Duration::try_from(d).ok()).unwrap_or(CATCH_UP);
        u64::try_from(catch_up.as_millis()).unwrap_or(u64::MAX)
    }

    /// The id of the job of an instant.
    fn job_id(&self, at_ms: u64) -> String {
        let Schedule { tenant, owner, name, options, .. } = &self.schedule;
        let parts = [tenant.as_bytes(), owner.as_bytes(), name.as_bytes(), &at_ms.to_be_bytes()];
        let gate = options.as_ref().and_then(|options| index::gate_of(tenant, options));
        job_id_at(at_ms, &idempotency::digest(&parts), gate.as_deref())
    }
}

#[cfg(test)]
mod tests;
