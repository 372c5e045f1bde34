//! The engine's operations on jobs, free of gRPC: submit, look, steer.
//!
//! Each is a load, a pure decision by the state machine, and one commit, tried again when somebody else was faster.
//! The engine keeps nothing that the store does not: any engine can answer for any job. What it does not do: hand
//! jobs to workers ([`crate::dispatch`]), take reports ([`crate::owner`]), or follow logs ([`crate::watch`]).

use std::{sync::Arc, time::Duration};

use tidegate_proto::v1::{Caller, Job, ListJobsRequest, ListJobsResponse, SubmitJobRequest};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use xxhash_rust::xxh3::xxh3_64;

use crate::{
    error::EngineError,
    follow::Followers,
    idempotency,
    job::{
        JobRecord, index,
        machine::{self, Draft, NewJob, Refusal, Rules},
    },
    kinds::Kinds,
    metrics::Metrics,
    page::page,
    registry::Registry,
    store::{CommitOutcome, Extent, Head, IndexChange, Snapshot, Store},
    submission::{self, Submission},
    unique::{self, Claim},
};

/// How much an engine takes in.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Jobs of one owner and kind that wait for a worker.
    pub queued_per_owner: u64,
    /// Jobs in the log, finished ones with their retention included.
    pub jobs: u64,
    /// The least time between two instants of a schedule.
    pub schedule_distance: Duration,
}

/// The state shared by everything in one engine process.
pub struct Engine {
    /// The event log.
    pub store: Arc<dyn Store>,
    /// The machine's rules.
    pub rules: Rules,
    /// How many jobs are taken in.
    pub bounds: Bounds,
    /// How closely progress reports may follow each other before they are merged; zero never merges.
    pub progress_interval: Duration,
    /// The bells of followed streams.
    pub followers: Followers,
    /// The connected workers.
    pub registry: Registry,
    /// The kinds on offer.
    pub kinds: Kinds,
    /// Set when the engine goes down.
    pub draining: CancellationToken,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What runs on behalf of a stream: sessions, owners, readers. Waited for when the engine goes down.
    pub tasks: TaskTracker,
}

impl Engine {
    /// Accepts a job, or finds the one that the same request made before. The flag says whether it is new.
    pub async fn submit(&self, request: SubmitJobRequest) -> Result<(Job, bool), EngineError> {
        self.accept(submission::check(request)?).await
    }

    /// The same of a submission that was checked.
    pub async fn accept(&self, submission: Submission) -> Result<(Job, bool), EngineError> {
        self.known_kind(&submission.kind).await?;
        let now_ms = self.store.now_ms();
        if let Some(at) = submission.options.run_at.map(machine::millis)
            && at > now_ms.saturating_add(millis(submission::YEAR))
        {
            return Err(EngineError::Invalid(vec![("options.run_at", "must be within 366 days".into())]));
        }
        let reserved = match &submission.idempotency_key {
            Some(key) => Some(idempotency::reserve(self, &submission, key).await?),
            None => None,
        };
        if let Some(reserved) = reserved.as_ref().filter(|r| r.was_made()) {
            let job = self.get(Some(&submission.caller), &reserved.job_id).await?.0.job;
            self.confirm(&job).await?;
            return Ok((job, false));
        }
        self.room(&submission).await?;
        let mut job_id = reserved.as_ref().map_or_else(|| submission.new_job_id(), |r| r.job_id.clone());
        let (caller, key) = (submission.caller.clone(), &submission.options.unique_key);
        let granted = match key.is_empty() {
            true => None,
            false => match unique::claim(self, &caller.tenant, key, &job_id).await? {
                Claim::Granted(granted) => Some(granted),
                Claim::Held(record) => {
                    let job = visible(*record, &caller)?;
                    if let Some(reserved) = reserved {
                        reserved.made(&*self.store, &job.job_id).await?;
                    }
                    self.confirm(&job).await?;
                    return Ok((job, false));
                }
            },
        };
        if let Some(granted) = &granted {
            job_id.clone_from(&granted.job_id);
        }
        let new = NewJob {
            job_id,
            epoch: new_epoch(),
            kind: submission.kind,
            tenant: submission.caller.tenant,
            owner: submission.caller.subject,
            input_json: submission.input_json,
            options: submission.options,
        };
        let mut draft = Draft::submit(new, &self.rules, now_ms);
        draft.record.traceparent = tidegate_telemetry::trace::here();
        if let Some(firing) = submission.firing {
            draft.record.job.schedule = firing.schedule;
            draft.record.job.scheduled_for = Some(machine::timestamp(firing.at_ms));
        }
        let made = match self.store.commit(draft.commit()).await? {
            CommitOutcome::Committed(_) => (draft.record.job, true),
            CommitOutcome::Conflict(Some(snapshot)) => {
                (visible(JobRecord::decode_snapshot(&snapshot)?, &caller)?, false)
            }
            CommitOutcome::Conflict(None) => return Err(EngineError::NotFound),
        };
        if let Some(reserved) = reserved {
            reserved.made(&*self.store, &made.0.job_id).await?;
        }
        if let Some(granted) = granted {
            granted.made(self).await?;
        }
        self.confirm(&made.0).await?;
        Ok(made)
    }

    /// Refuses a kind that no worker has ever offered.
    pub async fn known_kind(&self, kind: &str) -> Result<(), EngineError> {
        if self.kinds.exists(&*self.store, kind).await? {
            return Ok(());
        }
        let known = self.kinds.names(&*self.store).await?;
        Err(EngineError::UnknownKind { kind: kind.to_owned(), known })
    }

    /// Refuses what would overfill the owner's queue, or the engine. Submissions at the same moment do not see each
    /// other, so the bounds may be exceeded by as many.
    async fn room(&self, submission: &Submission) -> Result<(), EngineError> {
        let Caller { tenant, subject, .. } = &submission.caller;
        let lane = index::lane(tenant, subject);
        let queue = index::queue(&submission.kind);
        let mut extents =
            vec![Extent::Index(index::ALL_JOBS.into()), Extent::Lane { queue, lane: lane.clone() }];
        let gate = index::gate_of(tenant, &submission.options);
        extents.extend(gate.map(|gate| Extent::Waiting { gate, lane }));
        let counted = self.store.count(extents).await?;
        let (all, mine) = counted.split_first().map_or((0, 0), |(all, mine)| (*all, mine.iter().sum()));
        if all >= self.bounds.jobs {
            return Err(EngineError::Full(format!(
                "{all} jobs are kept here, and {} is the limit; finished ones go when their retention ends",
                self.bounds.jobs
            )));
        }
        if mine >= self.bounds.queued_per_owner {
            return Err(EngineError::Full(format!(
                "{mine} of your jobs of the kind {} wait already, and {} is the limit",
                submission.kind, self.bounds.queued_per_owner
            )));
        }
        Ok(())
    }

    /// The job with its head, if the caller may see it.
    pub async fn get(&self, caller: Option<&Caller>, job_id: &str) -> Result<(JobRecord, Head), EngineError> {
        let snapshot = self.snapshot(job_id).await?.ok_or(EngineError::NotFound)?;
        let record = JobRecord::decode_snapshot(&snapshot)?;
        if !may_see(caller, &record.job) {
            return Err(EngineError::NotFound);
        }
        Ok((record, snapshot.head))
    }

    /// A page of jobs, newest first.
    pub async fn list(&self, request: &ListJobsRequest) -> Result<ListJobsResponse, EngineError> {
        if request.states.len() > 6 {
            return Err(EngineError::Invalid(vec![("states", "there are only six states".into())]));
        }
        // Whoever sees a part only reads the index of that part: a page's token is a place in it, and names a job of it.
        let index = match &request.caller {
            Some(caller) if caller.whole_tenant => index::jobs_of_tenant(&caller.tenant),
            Some(caller) => index::jobs_of(&caller.tenant, &caller.subject),
            None => index::ALL_JOBS.to_owned(),
        };
        let wanted = |snapshot: &Snapshot| {
            let job = JobRecord::decode_snapshot(snapshot)?.job;
            let state_wanted = request.states.is_empty() || request.states.contains(&job.state);
            let kind_wanted = request.kind.is_empty() || request.kind == job.kind;
            Ok(Some(job).filter(|job| state_wanted && kind_wanted && may_see(request.caller.as_ref(), job)))
        };
        let (jobs, next_page_token) =
            page(&*self.store, &index, request.page_size, &request.page_token, wanted).await?;
        Ok(ListJobsResponse { jobs, next_page_token })
    }

    /// Asks for a job's cancellation.
    pub async fn cancel(
        &self,
        caller: Option<&Caller>,
        job_id: &str,
        reason: &str,
    ) -> Result<Job, EngineError> {
        self.steer(caller, job_id, |draft| draft.cancel(name_of(caller), reason)).await
    }

    /// Queues a finished job again.
    pub async fn retry(&self, caller: Option<&Caller>, job_id: &str) -> Result<Job, EngineError> {
        let record = self.get(caller, job_id).await?.0;
        let key = record.job.options.as_ref().map_or("", |o| o.unique_key.as_str());
        if !key.is_empty() && record.state().is_terminal() {
            match unique::claim(self, &record.job.tenant, key, job_id).await? {
                Claim::Granted(granted) if granted.job_id == job_id => granted.made(self).await?,
                Claim::Held(holder) if holder.job.job_id == job_id => {}
                _ => return Err(EngineError::UniqueConflict),
            }
        }
        self.steer(caller, job_id, |draft| draft.retry(name_of(caller))).await
    }

    /// Removes a finished job with its log.
    pub async fn delete(&self, caller: Option<&Caller>, job_id: &str) -> Result<(), EngineError> {
        let (mut record, mut head) = self.get(caller, job_id).await?;
        loop {
            if !record.state().is_terminal() {
                return Err(EngineError::State(record.state()));
            }
            match self.remove(&record.job, head).await? {
                CommitOutcome::Committed(_) => return Ok(()),
                CommitOutcome::Conflict(None) => return Err(EngineError::NotFound),
                CommitOutcome::Conflict(Some(now)) => {
                    record = JobRecord::decode_snapshot(&now)?;
                    head = now.head;
                }
            }
        }
    }

    /// Removes a job and every trace of it in the indexes, if its head is still `head`.
    pub async fn remove(&self, job: &Job, head: Head) -> Result<CommitOutcome, EngineError> {
        let from = |index: String| IndexChange::Remove { index, member: job.job_id.clone() };
        let indexes = [
            index::ALL_JOBS.to_owned(),
            index::jobs_of_tenant(&job.tenant),
            index::jobs_of(&job.tenant, &job.owner),
            index::EXPIRIES.to_owned(),
        ];
        Ok(self.store.delete(&job.job_id, head, indexes.map(from).to_vec()).await?)
    }

    async fn steer(
        &self,
        caller: Option<&Caller>,
        job_id: &str,
        command: impl FnMut(&mut Draft<'_>) -> Result<(), Refusal> + Send,
    ) -> Result<Job, EngineError> {
        let (record, head) = self.get(caller, job_id).await?;
        let job = self.transact(record, head, command).await?.0.job;
        self.confirm(&job).await?;
        Ok(job)
    }

    /// Waits until a job, as it is told to somebody, survives what the log is set up to survive.
    async fn confirm(&self, job: &Job) -> Result<(), EngineError> {
        let head = Head { seq: job.last_seq, epoch: job.epoch.clone() };
        Ok(self.store.confirm(&job.job_id, &head).await?)
    }

    /// Tries a command on a job until it is committed, refused, or the job is gone; conflicts are tried again on what
    /// is there now. A command that changes nothing commits nothing.
    pub async fn transact(
        &self,
        mut record: JobRecord,
        mut head: Head,
        mut command: impl FnMut(&mut Draft<'_>) -> Result<(), Refusal> + Send,
    ) -> Result<(JobRecord, Head), EngineError> {
        loop {
            let mut draft = Draft::of(record, head.clone(), &self.rules, self.store.now_ms());
            command(&mut draft)?;
            if draft.is_empty() {
                return Ok((draft.record, head));
            }
            match self.store.commit(draft.commit()).await? {
                CommitOutcome::Committed(head) => return Ok((draft.record, head)),
                CommitOutcome::Conflict(None) => return Err(EngineError::NotFound),
                CommitOutcome::Conflict(Some(now)) => {
                    record = JobRecord::decode_snapshot(&now)?;
                    head = now.head;
                }
            }
        }
    }

    async fn snapshot(&self, job_id: &str) -> Result<Option<Snapshot>, EngineError> {
        check_job_id(job_id)?;
        Ok(self.store.load(vec![job_id.to_owned()]).await?.pop().flatten())
    }
}

/// Whether the caller may know of the job.
pub fn may_see(caller: Option<&Caller>, job: &Job) -> bool {
    caller.is_none_or(|c| c.tenant == job.tenant && (c.whole_tenant || c.subject == job.owner))
}

/// The job that has the unique key of another submission, as that one's caller may know of it.
fn visible(record: JobRecord, caller: &Caller) -> Result<Job, EngineError> {
    if may_see(Some(caller), &record.job) { Ok(record.job) } else { Err(EngineError::UniqueConflict) }
}

/// Refuses what is not a UUID in its canonical lower-case text.
pub fn check_job_id(job_id: &str) -> Result<(), EngineError> {
    let canonical = |id: &uuid::Uuid| id.as_hyphenated().to_string() == job_id;
    uuid::Uuid::try_parse(job_id).ok().filter(canonical).map(drop).ok_or(EngineError::MalformedJobId)
}

/// A fresh job id: UUID v7 (RFC 9562), so that ids sort by time.
///
/// Everything that one commit moves must lie together: jobs of one `partition_key` (their gate) share a partition of the
/// log where it has several, and its last two bytes are where that partition is found.
pub fn new_job_id(partition_key: Option<&str>) -> String {
    placed(uuid::Uuid::now_v7(), partition_key)
}

/// The id of the job of an instant: always the same for the same instant, seed and key.
pub fn job_id_at(at_ms: u64, seed: &[u8; 32], partition_key: Option<&str>) -> String {
    let mut random = [0; 10];
    random.copy_from_slice(&seed[..10]);
    placed(uuid::Builder::from_unix_timestamp_millis(at_ms, &random).into_uuid(), partition_key)
}

fn placed(id: uuid::Uuid, partition_key: Option<&str>) -> String {
    let mut id = id.into_bytes();
    if let Some(key) = partition_key {
        id[14..].copy_from_slice(&xxh3_64(key.as_bytes()).to_be_bytes()[..2]);
    }
    uuid::Uuid::from_bytes(id).as_hyphenated().to_string()
}

/// A fresh log token: eight characters, about 41 bits, enough to tell the logs of one job apart.
pub fn new_epoch() -> String {
    const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    (0..8).map(|_| char::from(ALPHABET[rand::random_range(0..ALPHABET.len())])).collect()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn name_of(caller: Option<&Caller>) -> &str {
    caller.map_or("system", |c| c.subject.as_str())
}
