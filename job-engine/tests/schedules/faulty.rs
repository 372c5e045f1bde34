//! A store that can be refused to an engine, and whose clock can be set ahead.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use job_engine::store::{
    Answer, Commit, CommitOutcome, Expect, Extent, Head, Hint, IndexChange, Page, Snapshot, Store, StoreError,
};
use tokio::sync::{Notify, RwLock, broadcast};

/// A store that fails from a chosen call on, and whose clock is ahead.
pub(crate) struct Faulty {
    inner: Arc<dyn Store>,
    ahead_ms: AtomicU64,
    calls_left: AtomicI64,
    commits_left: AtomicI64,
    /// How many of the failing calls take effect.
    effective: AtomicU64,
    /// What writes wait for, while somebody else has it.
    pub(crate) gate: RwLock<()>,
    /// Told when a write waits.
    pub(crate) waits: Notify,
}

impl Faulty {
    pub(crate) fn new(inner: Arc<dyn Store>) -> Self {
        Self {
            inner,
            ahead_ms: AtomicU64::new(0),
            calls_left: AtomicI64::new(i64::MAX),
            commits_left: AtomicI64::new(i64::MAX),
            effective: AtomicU64::new(0),
            gate: RwLock::new(()),
            waits: Notify::new(),
        }
    }

    pub(crate) fn set_ahead(&self, ms: u64) {
        self.ahead_ms.store(ms, Ordering::SeqCst);
    }

    /// Answers so many calls more; the next fails, with its effect or without, and so do all that follow.
    pub(crate) fn die_after(&self, calls: i64, effective: bool) {
        self.effective.store(effective.into(), Ordering::SeqCst);
        self.calls_left.store(calls, Ordering::SeqCst);
    }

    /// Answers one commit more; the next fails, and so does every call that follows.
    pub(crate) fn die_at_second_commit(&self) {
        self.die_after_commits(1, false);
    }

    /// Answers so many commits more; the next fails, with its effect or without, and so does every call that follows.
    pub(crate) fn die_after_commits(&self, commits: i64, effective: bool) {
        self.effective.store(effective.into(), Ordering::SeqCst);
        self.commits_left.store(commits, Ordering::SeqCst);
    }

    pub(crate) fn revive(&self) {
        self.calls_left.store(i64::MAX, Ordering::SeqCst);
        self.commits_left.store(i64::MAX, Ordering::SeqCst);
    }

    /// The clock as it is set.
    pub(crate) fn now(&self) -> u64 {
        self.now_ms()
    }

    /// The clock behind it.
    pub(crate) fn own_ms(&self) -> u64 {
        self.inner.now_ms()
    }

    /// The members of an index.
    pub(crate) async fn members(&self, index: &str) -> Vec<String> {
        let listed = self.inner.list(index, None, 1000).await.expect("the log answers");
        listed.into_iter().map(|(_, member)| member).collect()
    }

    /// When the member of an index is due, in ms on the clock behind it.
    pub(crate) async fn due(&self, index: &str, member: &str) -> Option<u64> {
        let listed = self.inner.list(index, None, 1000).await.expect("the log answers");
        listed.into_iter().find(|(_, found)| found == member).map(|(due, _)| due)
    }

    /// A stream as it is.
    pub(crate) async fn snapshot(&self, stream: &str) -> Snapshot {
        let there = self.inner.load(vec![stream.to_owned()]).await.expect("the log answers").pop().flatten();
        there.expect("the stream is there")
    }

    /// Makes a stream what it was before.
    pub(crate) async fn put_back(&self, stream: &str, before: &Snapshot) {
        let now = self.snapshot(stream).await;
        self.inner.delete(stream, now.head, Vec::new()).await.expect("the log answers");
        let commit = Commit {
            stream: stream.to_owned(),
            expect: Expect::Absent { epoch: before.head.epoch.clone(), fixed: before.fixed.clone() },
            state: before.state.clone(),
            events: vec![Bytes::new()],
            first_seq: 0,
            index: Vec::new(),
        };
        let outcome = self.inner.commit(commit).await.expect("the log answers");
        assert!(matches!(outcome, CommitOutcome::Committed(_)), "{outcome:?}");
    }

    /// Waits until writes may pass.
    async fn pass(&self) {
        if self.gate.try_read().is_err() {
            self.waits.notify_one();
        }
        drop(self.gate.read().await);
    }

    async fn call<T>(&self, call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let dead = || StoreError::Unavailable("this engine is dead".into());
        let is_alive = self.commits_left.load(Ordering::SeqCst) >= 0;
        if is_alive && self.calls_left.fetch_sub(1, Ordering::SeqCst) > 0 {
            return call.await;
        }
        if self.effective.swap(0, Ordering::SeqCst) == 1 {
            call.await?;
        }
        Err(dead())
    }
}

impl Store for Faulty {
    fn commit(&self, commit: Commit) -> Answer<'_, CommitOutcome> {
        self.commits_left.fetch_sub(1, Ordering::SeqCst);
        Box::pin(async {
            self.pass().await;
            self.call(self.inner.commit(commit)).await
        })
    }
    fn delete(&self, stream: &str, expect: Head, index: Vec<IndexChange>) -> Answer<'_, CommitOutcome> {
        Box::pin(self.call(self.inner.delete(stream, expect, index)))
    }
    fn load(&self, streams: Vec<String>) -> Answer<'_, Vec<Option<Snapshot>>> {
        Box::pin(self.call(self.inner.load(streams)))
    }
    fn read(&self, stream: &str, after: u64, limit: usize, max_bytes: usize) -> Answer<'_, Option<Page>> {
        Box::pin(self.call(self.inner.read(stream, after, limit, max_bytes)))
    }
    fn claim(&self, index: &str, n: usize, hold: Duration) -> Answer<'_, Vec<String>> {
        Box::pin(self.call(self.inner.claim(index, n, hold)))
    }
    fn take(&self, queue: &str, n: usize, hold: Duration) -> Answer<'_, Vec<String>> {
        Box::pin(self.call(self.inner.take(queue, n, hold)))
    }
    fn count(&self, extents: Vec<Extent>) -> Answer<'_, Vec<u64>> {
        Box::pin(self.call(self.inner.count(extents)))
    }
    fn renew(&self, index: &str, members: Vec<String>, after: Duration) -> Answer<'_, Vec<bool>> {
        let renewed = self.inner.renew(index, members, after);
        Box::pin(async {
            self.pass().await;
            self.call(renewed).await
        })
    }
    fn list(
        &self,
        index: &str,
        before: Option<(u64, String)>,
        limit: usize,
    ) -> Answer<'_, Vec<(u64, String)>> {
        Box::pin(self.call(self.inner.list(index, before, limit)))
    }
    fn now_ms(&self) -> u64 {
        self.inner.now_ms() + self.ahead_ms.load(Ordering::SeqCst)
    }
    fn hints(&self) -> broadcast::Receiver<Hint> {
        self.inner.hints()
    }
    fn ping(&self) -> Answer<'_, ()> {
        self.inner.ping()
    }
}
