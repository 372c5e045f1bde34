//! The kinds of job that workers offer, known to every engine through the store.
//!
//! A kind is a stream `kind/<name>` whose state is its last offer; the index of kinds holds, under the same name, when a
//! worker was last seen to offer it. A kind stays known when its workers are gone, so that jobs can be queued for them.

use std::{collections::HashSet, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message as _;
use tidegate_proto::v1::{KindOffer, WorkerKind};

use crate::{
    engine::new_epoch,
    job::index,
    store::{Commit, CommitOutcome, Expect, IndexChange, Store, StoreError},
};

/// How often an engine says that its workers still offer their kinds.
pub const REFRESH: Duration = Duration::from_secs(20);
/// How long a kind counts as live after it was last seen.
const LIVE_MS: u64 = 60_000;
/// How many kinds are listed: as many as fit into one message, each of at most [`MAX_OFFER`].
const MAX_KINDS: usize = 200;
/// The size of a kind's description, schema and example together, in bytes.
pub const MAX_OFFER: usize = 16 * 1024;

/// The kinds, with a memory of names that are known to exist.
#[derive(Default)]
pub struct Kinds {
    seen: Mutex<HashSet<String>>,
}

impl Kinds {
    /// Records that a worker offers a kind.
    pub async fn offer(&self, store: &dyn Store, kind: &WorkerKind) -> Result<(), StoreError> {
        let state = Bytes::from(kind.encode_to_vec());
        let stream = stream(&kind.kind);
        let mut expect = Expect::Absent { epoch: new_epoch(), fixed: Bytes::new() };
        loop {
            let first_seq = if let Expect::At(head) = &expect { head.seq + 1 } else { 0 };
            let commit = Commit {
                stream: stream.clone(),
                expect,
                state: state.clone(),
                events: vec![Bytes::new()],
                // A kind's history interests nobody: only the newest entry is kept.
                first_seq,
                index: vec![IndexChange::Put {
                    index: index::KINDS.into(),
                    member: stream.clone(),
                    after: Duration::ZERO,
                }],
            };
            match store.commit(commit).await? {
                CommitOutcome::Conflict(Some(now)) if now.state != state => expect = Expect::At(now.head),
                CommitOutcome::Conflict(None) => {
                    expect = Expect::Absent { epoch: new_epoch(), fixed: Bytes::new() }
                }
                CommitOutcome::Conflict(Some(_)) => {
                    self.refresh(store, vec![kind.kind.clone()]).await?;
                    break;
                }
                CommitOutcome::Committed(_) => break,
            }
        }
        self.seen.lock().insert(kind.kind.clone());
        Ok(())
    }

    /// Says that workers still offer these kinds.
    pub async fn refresh(&self, store: &dyn Store, names: Vec<String>) -> Result<(), StoreError> {
        let members = names.iter().map(|name| stream(name)).collect();
        store.renew(index::KINDS, members, Duration::ZERO).await.map(drop)
    }

    /// Whether a worker has ever offered the kind.
    pub async fn exists(&self, store: &dyn Store, name: &str) -> Result<bool, StoreError> {
        if self.seen.lock().contains(name) {
            return Ok(true);
        }
        let exists = store.load(vec![stream(name)]).await?.pop().flatten().is_some();
        if exists {
            self.seen.lock().insert(name.to_owned());
        }
        Ok(exists)
    }

    /// Every kind's name, sorted.
    pub async fn names(&self, store: &dyn Store) -> Result<Vec<String>, StoreError> {
        let mut names: Vec<_> = seen(store).await?.into_iter().map(|(_, name)| name).collect();
        names.sort();
        Ok(names)
    }

    /// Every kind, sorted by name.
    pub async fn list(&self, store: &dyn Store) -> Result<Vec<KindOffer>, StoreError> {
        let mut seen = seen(store).await?;
        seen.sort_by(|a, b| a.1.cmp(&b.1));
        let snapshots = store.load(seen.iter().map(|(_, name)| stream(name)).collect()).await?;
        let now = store.now_ms();
        let offers = seen.into_iter().zip(snapshots).filter_map(|((at, _), snapshot)| Some((at, snapshot?)));
        offers
            .map(|(at, snapshot)| {
                let kind = WorkerKind::decode(snapshot.state)
                    .map_err(|e| StoreError::Damaged(format!("a kind's offer: {e}")))?;
                Ok(KindOffer {
                    kind: kind.kind,
                    description: kind.description,
                    input_schema_json: kind.input_schema_json,
                    example_json: kind.example_json,
                    live: now.saturating_sub(at) < LIVE_MS,
                })
            })
            .collect()
    }
}

const PREFIX: &str = "kind/";

fn stream(name: &str) -> String {
    format!("{PREFIX}{name}")
}

/// The kinds that were seen last, and when.
async fn seen(store: &dyn Store) -> Result<Vec<(u64, String)>, StoreError> {
    let seen = store.list(index::KINDS, None, MAX_KINDS).await?.into_iter();
    Ok(seen.filter_map(|(at, member)| Some((at, member.strip_prefix(PREFIX)?.to_owned()))).collect())
}
