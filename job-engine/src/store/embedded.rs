//! The event log in a directory of this machine, on fjall (a log-structured merge tree).
//!
//! One thread owns all writing ([`committer`]): it takes what is pending, checks it, writes it as one batch with one
//! sync, and answers. So a sync is shared by everybody who waited for the one before. Readers look at what is
//! written, off the async threads; indexes are mirrored in memory.
//! Invariant: see `Store`; and one process at a time holds the directory.
//! Does not: replicate, or hint to other processes (there are none).

mod clock;
mod committer;
mod disk;
mod index;
mod journal;
mod queues;
mod record;
mod request;

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, OnceLock},
    thread::JoinHandle,
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot};

use super::{
    Answer, Commit, CommitOutcome, Extent, HINT_BUFFER, Head, Hint, IndexChange, Page, Snapshot, Store,
    StoreError,
};
use clock::Clock;
use committer::Committer;
use disk::Disk;
use index::Index;
use queues::Queues;
use request::{Reply, Request};

/// Requests that wait for the writer; more wait in their callers.
const QUEUE: usize = 1024;
/// Reads at a time.
const READERS: usize = 8;
/// Space kept free on the file system, in bytes: deletions and the log's own tidying need some.
const RESERVE_BYTES: u64 = 64 << 20;

/// What a commit survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// The loss of power: every batch is synced before it is answered.
    #[default]
    Sync,
    /// The death of this process, but not of the machine: the operating system has it.
    Buffer,
}

/// The event log in a directory. Dropping it answers what is pending, syncs and closes; this blocks.
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    /// `None` only while dropping.
    requests: Option<mpsc::Sender<Request>>,
    writer: Option<JoinHandle<()>>,
    readers: Semaphore,
}

/// What the writer and the readers share.
struct Shared {
    disk: Disk,
    /// Written by the writer alone; an empty index is none.
    indexes: RwLock<HashMap<String, Index>>,
    /// Changed by the writer alone.
    queues: Mutex<Queues>,
    clock: Clock,
    hints: broadcast::Sender<Hint>,
    /// The first error of a write, which is the last write.
    failed: OnceLock<StoreError>,
    reserve_bytes: u64,
}

impl EmbeddedStore {
    /// Opens the log in `dir`, making it if need be. Blocks.
    ///
    /// # Errors
    /// `Unavailable` when another process holds the directory or the disk fails, `Damaged` when a newer version
    /// wrote it or what is there cannot be understood.
    pub fn open(dir: impl AsRef<Path>, durability: Durability) -> Result<Self, StoreError> {
        Self::open_with_reserve(dir, durability, RESERVE_BYTES)
    }

    /// Like [`open`](Self::open); commits are refused as [`StoreError::Full`] while the file system has less than
    /// `reserve_bytes` left.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn open_with_reserve(
        dir: impl AsRef<Path>,
        durability: Durability,
        reserve_bytes: u64,
    ) -> Result<Self, StoreError> {
        let opened = Disk::open(dir.as_ref())?;
        let mut indexes: HashMap<String, Index> = HashMap::new();
        for (name, member, due) in opened.index {
            indexes.entry(name).or_default().set(&member, Some(due));
        }
        let shared = Arc::new(Shared {
            disk: opened.disk,
            indexes: RwLock::new(indexes),
            queues: Mutex::new(opened.queues),
            clock: Clock::new(opened.clock),
            hints: broadcast::channel(HINT_BUFFER).0,
            failed: OnceLock::new(),
            reserve_bytes,
        });
        let committer = Committer {
            shared: shared.clone(),
            durability,
            next_log: opened.next_log,
            drops: opened.drops.into_iter().collect(),
        };
        let (requests, receiver) = mpsc::channel(QUEUE);
        let writer = std::thread::Builder::new().name("event-log".into()).spawn(|| committer.run(receiver));
        let writer = writer.map_err(|e| StoreError::Unavailable(format!("cannot start a thread: {e}")))?;
        Ok(Self { shared, requests: Some(requests), writer: Some(writer), readers: Semaphore::new(READERS) })
    }

    /// Sends a request to the writer and waits for its answer.
    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, StoreError> {
        let stopped = || StoreError::Unavailable("the event log has stopped".into());
        let (reply, answer) = oneshot::channel();
        let requests = self.requests.as_ref().ok_or_else(stopped)?;
        requests.send(request(reply)).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }

    /// Reads from the disk, off the async threads.
    async fn look<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Disk) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let failed = |e: &dyn std::fmt::Display| StoreError::Unavailable(format!("a read failed: {e}"));
        let _turn = self.readers.acquire().await.map_err(|e| failed(&e))?;
        let shared = self.shared.clone();
        tokio::task::spawn_blocking(move || read(&shared.disk)).await.map_err(|e| failed(&e))?
    }
}

impl Store for EmbeddedStore {
    fn commit(&self, commit: Commit) -> Answer<'_, CommitOutcome> {
        Box::pin(self.ask(|reply| Request::Commit { commit, reply }))
    }

    fn delete(&self, stream: &str, expect: Head, index: Vec<IndexChange>) -> Answer<'_, CommitOutcome> {
        let stream = stream.to_owned();
        Box::pin(self.ask(|reply| Request::Delete { stream, expect, index, reply }))
    }

    fn load(&self, streams: Vec<String>) -> Answer<'_, Vec<Option<Snapshot>>> {
        Box::pin(self.look(move |disk| disk.load(&streams)))
    }

    fn read(&self, stream: &str, after: u64, limit: usize, max_bytes: usize) -> Answer<'_, Option<Page>> {
        let stream = stream.to_owned();
        Box::pin(self.look(move |disk| disk.read(&stream, after, limit, max_bytes)))
    }

    fn claim(&self, index: &str, n: usize, hold: Duration) -> Answer<'_, Vec<String>> {
        let index = index.to_owned();
        Box::pin(async move {
            let now = self.now_ms();
            if n == 0 || !self.shared.indexes.read().get(&index).is_some_and(|i| i.has_due(now)) {
                return Ok(Vec::new());
            }
            self.ask(|reply| Request::Claim { index, n, hold, reply }).await
        })
    }

    fn take(&self, queue: &str, n: usize, hold: Duration) -> Answer<'_, Vec<String>> {
        let queue = queue.to_owned();
        Box::pin(async move {
            if n == 0 || !self.shared.queues.lock().holds(&queue) {
                return Ok(Vec::new());
            }
            self.ask(|reply| Request::Take { queue, n, hold, reply }).await
        })
    }

    fn count(&self, extents: Vec<Extent>) -> Answer<'_, Vec<u64>> {
        let count = |extent: &Extent| match extent {
            Extent::Index(index) => self.shared.indexes.read().get(index).map_or(0, Index::len),
            queued => self.shared.queues.lock().count(queued),
        };
        Box::pin(std::future::ready(Ok(extents.iter().map(|e| count(e) as u64).collect())))
    }

    fn renew(&self, index: &str, members: Vec<String>, after: Duration) -> Answer<'_, Vec<bool>> {
        let index = index.to_owned();
        Box::pin(self.ask(move |reply| Request::Renew { index, members, after, reply }))
    }

    fn list(
        &self,
        index: &str,
        before: Option<(u64, String)>,
        limit: usize,
    ) -> Answer<'_, Vec<(u64, String)>> {
        let listed = self.shared.indexes.read().get(index).map(|i| i.list(before, limit));
        Box::pin(std::future::ready(Ok(listed.unwrap_or_default())))
    }

    fn now_ms(&self) -> u64 {
        self.shared.clock.now_ms()
    }

    fn hints(&self) -> broadcast::Receiver<Hint> {
        self.shared.hints.subscribe()
    }

    fn ping(&self) -> Answer<'_, ()> {
        Box::pin(async move {
            self.ask(|reply| Request::Ping { reply }).await?;
            self.shared.want_of_space().map_or(Ok(()), Err)
        })
    }
}

impl Shared {
    /// Shows index changes to everybody; they are written.
    fn publish(&self, changes: &HashMap<String, HashMap<String, Option<u64>>>) {
        if changes.is_empty() {
            return;
        }
        let mut indexes = self.indexes.write();
        for (name, members) in changes {
            let index = indexes.entry(name.clone()).or_default();
            for (member, due) in members {
                index.set(member, *due);
            }
            if index.is_empty() {
                indexes.remove(name);
            }
        }
    }

    /// Why nothing can be added now, if nothing can.
    fn want_of_space(&self) -> Option<StoreError> {
        let free = self.disk.free_bytes()?;
        (free < self.reserve_bytes).then(|| {
            StoreError::Full(format!(
                "{free} bytes are left on the disk, {} are kept free",
                self.reserve_bytes
            ))
        })
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the event log's writer panicked");
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
