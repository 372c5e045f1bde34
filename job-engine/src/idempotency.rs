//! Idempotency keys: the same key with the same request is the same job.
//!
//! A key is a stream of its own, `idem/<hash>`, whose creation is the reservation: of many concurrent requests exactly
//! one creates it and so decides the job's id; all of them then create that job, and again only one succeeds. So a
//! crash between the two steps leaves nothing that a repeated request does not complete. Keys expire after [`KEEP`].

use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use sha2::{Digest as _, Sha256};

use crate::{
    engine::{Engine, new_epoch},
    error::EngineError,
    job::index,
    store::{Commit, CommitOutcome, Expect, Head, IndexChange, Store, StoreError},
    submission::Submission,
};

/// How long a key is remembered.
pub const KEEP: Duration = Duration::from_secs(24 * 3600);
/// What the name of every key's stream begins with.
pub const PREFIX: &str = "idem/";

/// What a key stands for.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct Reservation {
    #[prost(string, tag = "1")]
    job_id: String,
    /// SHA-256 of the request.
    #[prost(bytes = "vec", tag = "2")]
    fingerprint: Vec<u8>,
    /// Set once the job was made: if it is gone then, it was removed and must not run again.
    #[prost(bool, tag = "3")]
    made: bool,
}

/// A key in the hands of the request that may make its job.
pub struct Reserved {
    /// The job's id.
    pub job_id: String,
    stream: String,
    head: Head,
    record: Reservation,
}

impl Reserved {
    /// Notes which job was made, or was there under the request's unique key. If this gets lost, a repeated request
    /// notes it.
    pub async fn made(mut self, store: &dyn Store, job_id: &str) -> Result<(), StoreError> {
        if !self.record.made {
            self.record.made = true;
            self.record.job_id = job_id.to_owned();
            let commit = Commit {
                stream: self.stream,
                expect: Expect::At(self.head),
                state: self.record.encode_to_vec().into(),
                events: vec![Bytes::new()],
                first_seq: 0,
                index: Vec::new(),
            };
            // In a conflict somebody else has noted the same.
            store.commit(commit).await?;
        }
        Ok(())
    }

    /// Whether the job was made before; if it is not there now, it was removed.
    pub fn was_made(&self) -> bool {
        self.record.made
    }
}

/// The job id that belongs to the key: a new one, or the one that an equal request reserved before.
pub async fn reserve(engine: &Engine, submission: &Submission, key: &str) -> Result<Reserved, EngineError> {
    let caller = &submission.caller;
    let stream = name(PREFIX, &[&caller.tenant, &caller.subject, key]);
    let options = submission.options.encode_to_vec();
    let fingerprint =
        digest(&[submission.kind.as_bytes(), submission.input_json.as_bytes(), &options]).to_vec();
    let mine = Reservation { job_id: submission.new_job_id(), fingerprint, made: false };
    let commit = Commit {
        stream: stream.clone(),
        expect: Expect::Absent { epoch: new_epoch(), fixed: Bytes::new() },
        state: mine.encode_to_vec().into(),
        events: vec![Bytes::new()],
        first_seq: 0,
        index: vec![IndexChange::Put { index: index::EXPIRIES.into(), member: stream.clone(), after: KEEP }],
    };
    let (head, record) = match engine.store.commit(commit).await? {
        CommitOutcome::Committed(head) => (head, mine),
        CommitOutcome::Conflict(None) => {
            return Err(StoreError::Unavailable("a reservation vanished".into()).into());
        }
        CommitOutcome::Conflict(Some(theirs)) => {
            let record = Reservation::decode(theirs.state)
                .map_err(|e| StoreError::Damaged(format!("an idempotency key: {e}")))?;
            if record.fingerprint != mine.fingerprint {
                return Err(EngineError::IdempotencyConflict);
            }
            (theirs.head, record)
        }
    };
    Ok(Reserved { job_id: record.job_id.clone(), stream, head, record })
}

/// Removes an expired key.
pub async fn forget(engine: &Engine, stream: &str) -> Result<(), EngineError> {
    if let Some(snapshot) = engine.store.load(vec![stream.to_owned()]).await?.pop().flatten() {
        let index = vec![IndexChange::Remove { index: index::EXPIRIES.into(), member: stream.to_owned() }];
        engine.store.delete(stream, snapshot.head, index).await?;
    }
    Ok(())
}

/// The name of a key's stream; keys are as long and as odd as their owners like.
pub fn name(prefix: &str, parts: &[&str]) -> String {
    let parts: Vec<_> = parts.iter().map(|part| part.as_bytes()).collect();
    digest(&parts).iter().fold(prefix.to_owned(), |name, byte| format!("{name}{byte:02x}"))
}

/// SHA-256 over the parts, each preceded by its length so that parts cannot run into each other.
pub fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}
