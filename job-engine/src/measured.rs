//! An event log that is measured: passes every call on, and counts how long it took and what was committed.
//!
//! Invariant: answers, and their order, are those of the log behind it.

use std::{sync::Arc, time::Duration};

use tidegate_telemetry::trace;
use tokio::{sync::broadcast, time::Instant};
use tracing::{Instrument as _, Span};

use crate::{
    metrics::{Call, Committed, Metrics},
    store::{
        Answer, Commit, CommitOutcome, Extent, Head, Hint, IndexChange, Page, Snapshot, Store, StoreError,
    },
};

/// A measured log.
pub struct Measured {
    log: Arc<dyn Store>,
    metrics: Arc<Metrics>,
}

impl Measured {
    /// `log`, measured by `metrics`.
    pub fn new(log: Arc<dyn Store>, metrics: Arc<Metrics>) -> Self {
        Self { log, metrics }
    }

    async fn time<T>(
        &self,
        call: Call,
        answer: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let begun = Instant::now();
        let answer = answer.await;
        self.metrics.called(call, begun.elapsed(), &answer);
        answer
    }
}

// A method that is not passed on would silently do what the trait does by default.
#[deny(clippy::missing_trait_methods)]
impl Store for Measured {
    fn commit(&self, commit: Commit) -> Answer<'_, CommitOutcome> {
        Box::pin(async move {
            let committed = Committed::of(&commit);
            // As part of something that is traced; alone, a commit of reports would be a span for every few events.
            let span = match Span::current().is_disabled() {
                true => Span::none(),
                false => tracing::info_span!(target: trace::TARGET, "commit", events = commit.events.len()),
            };
            let outcome = self.time(Call::Commit, self.log.commit(commit)).instrument(span).await;
            match (&outcome, committed) {
                (Ok(CommitOutcome::Committed(_)), Some(committed)) => self.metrics.committed(&committed),
                (Ok(CommitOutcome::Conflict(_)), Some(_)) => self.metrics.conflict(),
                _ => {}
            }
            outcome
        })
    }

    fn delete(&self, stream: &str, expect: Head, index: Vec<IndexChange>) -> Answer<'_, CommitOutcome> {
        Box::pin(self.time(Call::Other, self.log.delete(stream, expect, index)))
    }

    fn load(&self, streams: Vec<String>) -> Answer<'_, Vec<Option<Snapshot>>> {
        Box::pin(self.time(Call::Load, self.log.load(streams)))
    }

    fn read(&self, stream: &str, after: u64, limit: usize, max_bytes: usize) -> Answer<'_, Option<Page>> {
        Box::pin(self.time(Call::Read, self.log.read(stream, after, limit, max_bytes)))
    }

    fn claim(&self, index: &str, n: usize, hold: Duration) -> Answer<'_, Vec<String>> {
        Box::pin(self.time(Call::Claim, self.log.claim(index, n, hold)))
    }

    fn take(&self, queue: &str, n: usize, hold: Duration) -> Answer<'_, Vec<String>> {
        Box::pin(self.time(Call::Claim, self.log.take(queue, n, hold)))
    }

    fn count(&self, extents: Vec<Extent>) -> Answer<'_, Vec<u64>> {
        Box::pin(self.time(Call::Other, self.log.count(extents)))
    }

    fn renew(&self, index: &str, members: Vec<String>, after: Duration) -> Answer<'_, Vec<bool>> {
        Box::pin(self.time(Call::Renew, self.log.renew(index, members, after)))
    }

    fn list(
        &self,
        index: &str,
        before: Option<(u64, String)>,
        limit: usize,
    ) -> Answer<'_, Vec<(u64, String)>> {
        Box::pin(self.time(Call::Other, self.log.list(index, before, limit)))
    }

    fn now_ms(&self) -> u64 {
        self.log.now_ms()
    }

    fn hints(&self) -> broadcast::Receiver<Hint> {
        self.log.hints()
    }

    fn ping(&self) -> Answer<'_, ()> {
        self.log.ping()
    }

    fn confirm(&self, stream: &str, at: &Head) -> Answer<'_, ()> {
        Box::pin(self.time(Call::Confirm, self.log.confirm(stream, at)))
    }

    fn generation(&self) -> u64 {
        self.log.generation()
    }

    fn reconnects(&self) -> u64 {
        self.log.reconnects()
    }

    fn is_whole(&self) -> bool {
        self.log.is_whole()
    }
}
