//! Unique keys: at most one unfinished job at a time under a key within a tenant.
//!
//! A key is a stream of its own, `unique/<hash>`, whose state names the job that has it. Whoever moves the stream to a
//! new job id decides; concurrent submissions then create that job, and only one succeeds. So a crash between the
//! two steps leaves nothing that the next submission does not complete. A key may change hands when its job has
//! ended, and is forgotten [`KEEP`] after that.
//! Does not: exclude a retry of a finished job that comes in the very moment in which another takes its key.

use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;

use crate::{
    engine::{Engine, new_epoch},
    error::EngineError,
    idempotency,
    job::{JobRecord, index},
    store::{Commit, CommitOutcome, Expect, Head, IndexChange, StoreError},
};

/// How often a key is looked at, to be forgotten once its job has ended.
pub const KEEP: Duration = Duration::from_secs(24 * 3600);
/// What the name of every key's stream begins with.
pub const PREFIX: &str = "unique/";

/// The job that has a key.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct Holder {
    #[prost(string, tag = "1")]
    job_id: String,
    /// Set once the job was made: if it is not there then, it was removed.
    #[prost(bool, tag = "2")]
    made: bool,
}

/// Whose a key is now.
pub enum Claim {
    /// The caller's, whose job is to be made now.
    Granted(Granted),
    /// An unfinished job's.
    Held(Box<JobRecord>),
}

/// A key in the hands of the submission that may make its job.
pub struct Granted {
    /// The job's id.
    pub job_id: String,
    stream: String,
    head: Head,
}

impl Granted {
    /// Notes that the job was made.
    pub async fn made(self, engine: &Engine) -> Result<(), StoreError> {
        let holder = Holder { job_id: self.job_id, made: true };
        // If the key has moved, somebody else made the job, and perhaps it has ended already.
        put(engine, &self.stream, Expect::At(self.head), holder).await.map(drop)
    }
}

/// Takes the key for the job `job_id`, or finds who has it.
pub async fn claim(engine: &Engine, tenant: &str, key: &str, job_id: &str) -> Result<Claim, EngineError> {
    let stream = idempotency::name(PREFIX, &[tenant, key]);
    loop {
        let there = engine.store.load(vec![stream.clone()]).await?.pop().flatten();
        let (expect, holder) = match there {
            None => (Expect::Absent { epoch: new_epoch(), fixed: Bytes::new() }, Holder::default()),
            Some(now) => (Expect::At(now.head), holder(&now.state)?),
        };
        if let Expect::At(head) = &expect {
            match engine.store.load(vec![holder.job_id.clone()]).await?.pop().flatten() {
                Some(found) => {
                    let record = JobRecord::decode_snapshot(&found)?;
                    if !record.state().is_terminal() {
                        return Ok(Claim::Held(Box::new(record)));
                    }
                }
                // Whoever took it is about to make the job, or died before: who comes first makes it.
                None if !holder.made => {
                    let (job_id, head) = (holder.job_id, head.clone());
                    return Ok(Claim::Granted(Granted { job_id, stream, head }));
                }
                None => {}
            }
        }
        let mine = Holder { job_id: job_id.to_owned(), made: false };
        if let Some(head) = put(engine, &stream, expect, mine).await? {
            return Ok(Claim::Granted(Granted { job_id: job_id.to_owned(), stream, head }));
        }
    }
}

/// Moves the key; `None` if somebody else did.
async fn put(
    engine: &Engine,
    stream: &str,
    expect: Expect,
    holder: Holder,
) -> Result<Option<Head>, StoreError> {
    let first_seq = if let Expect::At(Head { seq, .. }) = &expect { seq + 1 } else { 0 };
    let commit = Commit {
        stream: stream.to_owned(),
        expect,
        state: holder.encode_to_vec().into(),
        events: vec![Bytes::new()],
        // Who had the key before interests nobody.
        first_seq,
        index: vec![IndexChange::Put {
            index: index::EXPIRIES.into(),
            member: stream.to_owned(),
            after: KEEP,
        }],
    };
    Ok(match engine.store.commit(commit).await? {
        CommitOutcome::Committed(head) => Some(head),
        CommitOutcome::Conflict(_) => None,
    })
}

/// Removes a key whose job has ended; looks again later if it has not.
pub async fn forget(engine: &Engine, stream: &str) -> Result<(), EngineError> {
    let Some(there) = engine.store.load(vec![stream.to_owned()]).await?.pop().flatten() else {
        return Ok(());
    };
    let job = engine.store.load(vec![holder(&there.state)?.job_id]).await?.pop().flatten();
    let ended = match job {
        Some(job) => JobRecord::decode_snapshot(&job)?.state().is_terminal(),
        None => true,
    };
    if ended {
        let index = vec![IndexChange::Remove { index: index::EXPIRIES.into(), member: stream.to_owned() }];
        engine.store.delete(stream, there.head, index).await?;
    } else {
        engine.store.renew(index::EXPIRIES, vec![stream.to_owned()], KEEP).await?;
    }
    Ok(())
}

fn holder(state: &Bytes) -> Result<Holder, StoreError> {
    Holder::decode(&state[..]).map_err(|e| StoreError::Damaged(format!("a unique key: {e}")))
}
