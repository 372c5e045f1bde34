//! What the writer is asked, and what each request is answered once its batch is written, or refused.

use std::time::Duration;

use tokio::sync::oneshot;

use super::disk::MAX_NAME;
use crate::store::{Commit, CommitOutcome, Head, IndexChange, Place, StoreError};

pub(super) type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

pub(super) enum Request {
    Commit { commit: Commit, reply: Reply<CommitOutcome> },
    Delete { stream: String, expect: Head, index: Vec<IndexChange>, reply: Reply<CommitOutcome> },
    Claim { index: String, n: usize, hold: Duration, reply: Reply<Vec<String>> },
    Take { queue: String, n: usize, hold: Duration, reply: Reply<Vec<String>> },
    Renew { index: String, members: Vec<String>, after: Duration, reply: Reply<Vec<bool>> },
    Ping { reply: Reply<()> },
}

impl Request {
    pub(super) fn refuse(self, error: StoreError) {
        match self {
            Self::Commit { reply, .. } | Self::Delete { reply, .. } => drop(reply.send(Err(error))),
            Self::Claim { reply, .. } | Self::Take { reply, .. } => drop(reply.send(Err(error))),
            Self::Renew { reply, .. } => drop(reply.send(Err(error))),
            Self::Ping { reply } => drop(reply.send(Err(error))),
        }
    }
}

/// A checked request, to be answered when its batch is written.
pub(super) enum Checked {
    Changed(CommitOutcome, Reply<CommitOutcome>),
    Claimed(Vec<String>, Reply<Vec<String>>),
    Renewed(Vec<bool>, Reply<Vec<bool>>),
    Seen(Reply<()>),
}

impl Checked {
    pub(super) fn answer(self, written: Result<(), &StoreError>) {
        let written = written.map_err(Clone::clone);
        match self {
            Self::Changed(outcome, reply) => drop(reply.send(written.map(|()| outcome))),
            Self::Claimed(members, reply) => drop(reply.send(written.map(|()| members))),
            Self::Renewed(there, reply) => drop(reply.send(written.map(|()| there))),
            Self::Seen(reply) => drop(reply.send(written)),
        }
    }
}

pub(super) fn check_names(changes: &[IndexChange]) -> Result<(), StoreError> {
    let fits = |names: &[&String]| names.iter().all(|name| name.len() <= MAX_NAME);
    let fits = changes.iter().all(|change| match change {
        IndexChange::Put { index, member, .. } | IndexChange::Remove { index, member } => {
            fits(&[index, member])
        }
        IndexChange::Enqueue { place: Place { queue, lane, member, .. }, gate } => {
            fits(&[queue, lane, member]) && gate.as_ref().is_none_or(|g| fits(&[&g.name]))
        }
        IndexChange::Dequeue { place } => fits(&[&place.queue, &place.lane, &place.member]),
        IndexChange::Leave { gate, lane, member } => fits(&[gate, lane, member]),
    });
    fits.then_some(()).ok_or_else(|| {
        StoreError::Damaged(format!(
            "the name of an index, queue, lane, gate or member has {MAX_NAME} bytes at most"
        ))
    })
}
