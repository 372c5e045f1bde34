//! How a session begins: what a worker may say of itself, and which of the leases that it still holds it keeps.
//!
//! Invariant: a lease is kept only by its token, and only as long as nothing ended it; every other is answered as lost,
//! with the reason. It sends nothing: the answer is the [`Welcome`].

use std::time::Duration;

use tidegate_proto::{
    limits,
    v1::{HeldLease, Hello, LeaseLost, ResumedLease, Welcome, WorkerKind},
};
use tonic::Status;

use super::{BATCH, Session};
use crate::{
    engine::check_job_id, error::EngineError, follow::Follow, job::JobRecord, kinds, store::Snapshot,
};

/// The largest capacity a worker may claim.
const MAX_CAPACITY: u32 = 10_000;
/// How many leases of a returning worker are looked at together.
const ADOPT: usize = 64;

pub(super) fn check(hello: &Hello) -> Result<(), Status> {
    if hello.kinds.is_empty()
        || hello.kinds.len() > 100
        || !hello.kinds.iter().all(|k| limits::is_name(&k.kind))
    {
        return Err(Status::invalid_argument(
            "a worker offers 1 to 100 kinds, each named [a-z][a-z0-9._-]{0,63}",
        ));
    }
    let size = |k: &WorkerKind| k.description.len() + k.input_schema_json.len() + k.example_json.len();
    if hello.kinds.iter().any(|kind| size(kind) > kinds::MAX_OFFER) {
        return Err(Status::invalid_argument(
            "a kind's description, schema and example have at most 16 KiB together",
        ));
    }
    if !(1..=MAX_CAPACITY).contains(&hello.capacity) {
        return Err(Status::invalid_argument(format!("capacity must be 1 to {MAX_CAPACITY}")));
    }
    if hello.leases.len() > MAX_CAPACITY as usize {
        return Err(Status::invalid_argument("too many leases"));
    }
    Ok(())
}

impl Session {
    /// Takes up the leases that the worker still holds, and says what holds for all that follows.
    pub(super) async fn welcome(&mut self, leases: Vec<HeldLease>) -> Result<Welcome, Status> {
        let (mut resumed, mut lost) = (Vec::new(), Vec::new());
        for leases in leases.chunks(ADOPT) {
            // Followed before they are loaded, so that nothing that happens since goes unheard.
            let follows: Vec<_> = leases.iter().map(|l| self.engine.followers.follow(&l.job_id)).collect();
            let streams = leases.iter().map(|l| l.job_id.clone()).collect();
            let snapshots = self.engine.store.load(streams).await.map_err(EngineError::from)?;
            for ((held, follow), snapshot) in leases.iter().zip(follows).zip(snapshots) {
                match self.adopt(held, follow, snapshot) {
                    Ok(lease) => resumed.push(lease),
                    Err(error) => lost.push(LeaseLost {
                        job_id: held.job_id.clone(),
                        lease_token: held.lease_token.clone(),
                        reason: error.to_string(),
                    }),
                }
            }
            // Only when it is time: those taken up first must not expire while the rest is looked at.
            self.renew(false);
        }
        self.renew(true);
        let rules = &self.engine.rules;
        let duration = |d: Duration| prost_types::Duration::try_from(d).ok();
        let bytes = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(Welcome {
            resumed,
            lost,
            lease: duration(rules.lease),
            ping_interval: duration(rules.lease / 3),
            max_checkpoint_bytes: bytes(rules.max_checkpoint),
            max_custom_bytes: bytes(rules.max_custom),
            max_result_bytes: bytes(rules.max_result),
            max_batched_reports: bytes(BATCH),
        })
    }

    /// Takes up a lease that the worker still holds.
    fn adopt(
        &mut self,
        held: &HeldLease,
        follow: Follow,
        snapshot: Option<Snapshot>,
    ) -> Result<ResumedLease, EngineError> {
        check_job_id(&held.job_id)?;
        let snapshot = snapshot.ok_or(EngineError::NotFound)?;
        let record = JobRecord::decode_snapshot(&snapshot)?;
        let lease = record.lease.as_ref().filter(|l| l.token == held.lease_token && !l.ended);
        let lease = lease.ok_or(EngineError::LeaseLost)?;
        let resumed = ResumedLease {
            job_id: held.job_id.clone(),
            last_report: lease.last_report,
            cancel_requested: record.job.cancel_requested.clone(),
        };
        if !self.jobs.contains_key(&held.job_id) {
            let slot = self.engine.registry.slot(&self.membership.member);
            self.own((record, snapshot.head, slot, follow));
        }
        Ok(resumed)
    }
}
