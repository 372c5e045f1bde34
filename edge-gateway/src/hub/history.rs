//! Pages of the stored log, for viewers that are behind the ring.
//!
//! Reads are single-flight and shared: thousands of viewers that come back with cursors cost one read a page. Pages
//! begin at multiples of [`PAGE`] wherever they can, so that different cursors meet on the same ones. Invariant: at
//! most [`CACHED`] pages a hub are kept, and a viewer keeps none while it waits for its socket.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use parking_lot::Mutex;
use tidegate_proto::v1::{GetJobRequest, Job, ReadEventsRequest};
use tidegate_telemetry::Counter;
use tonic::Code;

use super::ring::{self, Burst};
use crate::{engine::Engine, sse};

/// Events per page, at most; the engine also ends a page after about 256 KiB.
const PAGE: u64 = 256;
/// How many pages a hub keeps.
const CACHED: usize = 8;
/// How often a page is asked for while the engine is away; the pauses between add up to a quarter of a minute.
const TRIES: u32 = 8;

/// One page of a log, ready to be sent.
#[derive(Debug)]
pub(crate) struct Page {
    /// The page answers readers after this event.
    after: u64,
    /// The number of the first frame; beyond `after + 1` when older ones are no longer kept.
    first: u64,
    frames: Vec<Bytes>,
    /// The oldest event kept when the page was read.
    pub(crate) first_kept: u64,
    /// The job as it stands in for what is missing, if something is.
    pub(crate) snapshot: Option<Box<Job>>,
}

/// What a page has for a reader.
pub(crate) enum PageTake {
    /// The next frames.
    Burst(Burst),
    /// The events from the reader's next one to `to` are no longer kept.
    Trimmed { to: u64 },
}

/// Why there is no page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadFailed {
    /// The engine did not answer for a long time.
    Unavailable,
    /// The log is another one than it was, or lacks what it had: the upstream will find out, too.
    Stale,
    /// The job is gone.
    Deleted,
}

/// A read in flight, or done.
pub(crate) type PageRead = Shared<BoxFuture<'static, Result<Arc<Page>, ReadFailed>>>;

/// The pages of one hub.
#[derive(Debug)]
pub(crate) struct History {
    job_id: Arc<str>,
    engine: Engine,
    reads: Counter,
    cache: Mutex<VecDeque<Entry>>,
}

#[derive(Debug)]
struct Entry {
    epoch: Arc<str>,
    after: u64,
    read: PageRead,
}

impl Page {
    /// Whether the page leads on from `cursor`.
    fn serves(&self, cursor: u64) -> bool {
        self.after <= cursor && cursor + 1 < self.first + self.frames.len() as u64
    }

    /// Whether the events right after `cursor` were no longer kept when the page was read.
    pub(crate) fn lacks(&self, cursor: u64) -> bool {
        cursor + 1 < self.first
    }

    /// What comes after `cursor`; nothing if the page does not lead there.
    pub(crate) fn take(&self, cursor: u64) -> Option<PageTake> {
        if !self.serves(cursor) {
            return None;
        }
        Some(match (cursor + 1).checked_sub(self.first) {
            None => PageTake::Trimmed { to: self.first - 1 },
            Some(skip) => {
                let skip = usize::try_from(skip).unwrap_or(usize::MAX);
                PageTake::Burst(ring::join(cursor, self.frames[skip..].iter()))
            }
        })
    }
}

impl History {
    pub(crate) fn new(job_id: Arc<str>, engine: Engine, reads: Counter) -> Self {
        Self { job_id, engine, reads, cache: Mutex::default() }
    }

    /// The page that leads on from `cursor` in the log `epoch`: from the cache, from a read in flight, or newly read.
    ///
    /// A page may end before it reaches `cursor`, because pages are bounded by bytes, too; then ask again.
    pub(crate) fn page(&self, epoch: &Arc<str>, cursor: u64) -> PageRead {
        let aligned = cursor - cursor % PAGE;
        let mut cache = self.cache.lock();
        cache.retain(|entry| !matches!(entry.read.peek(), Some(Err(_))));
        let mut cut_short = false;
        for entry in cache.iter().filter(|entry| entry.epoch == *epoch) {
            match entry.read.peek() {
                Some(Ok(page)) if page.serves(cursor) => return entry.read.clone(),
                Some(_) => cut_short |= entry.after == aligned,
                None if entry.after == cursor || (entry.after == aligned && !cut_short) => {
                    return entry.read.clone();
                }
                None => {}
            }
        }
        let after = if cut_short { cursor } else { aligned };
        if cache.len() >= CACHED {
            cache.pop_front();
        }
        self.reads.increment(1);
        let read = load(self.engine.clone(), Arc::clone(&self.job_id), Arc::clone(epoch), after);
        // A task of its own: the read goes on even if the viewer that asked first stops polling.
        let read =
            tokio::spawn(read).map(|done| done.unwrap_or(Err(ReadFailed::Unavailable))).boxed().shared();
        cache.push_back(Entry { epoch: Arc::clone(epoch), after, read: read.clone() });
        read
    }

    /// Drops the pages; called when the hub is idle.
    pub(crate) fn forget(&self) {
        self.cache.lock().clear();
    }

    /// The newest event that the engine has stored in the log `epoch`; nothing if the log is another one now.
    pub(crate) async fn head(&self, epoch: &str) -> Result<Option<u64>, tonic::Status> {
        let request = ReadEventsRequest { job_id: self.job_id.to_string(), limit: 1, ..Default::default() };
        let answer =
            self.engine.call(request, |mut client, r| async move { client.read_events(r).await }).await?;
        Ok((answer.epoch == epoch).then_some(answer.last_seq))
    }
}

/// Reads the page after `after`, patiently.
async fn load(
    engine: Engine,
    job_id: Arc<str>,
    epoch: Arc<str>,
    after: u64,
) -> Result<Arc<Page>, ReadFailed> {
    for attempt in 0..TRIES {
        if attempt > 0 {
            let pause = Duration::from_millis(100 << attempt.min(6));
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
        }
        match read(&engine, &job_id, &epoch, after).await {
            Ok(page) => return page.map(Arc::new),
            Err(status) if status.code() == Code::NotFound => return Err(ReadFailed::Deleted),
            Err(status) => tracing::debug!(%job_id, after, code = ?status.code(), "a page could not be read"),
        }
    }
    Err(ReadFailed::Unavailable)
}

/// One try.
async fn read(
    engine: &Engine,
    job_id: &str,
    epoch: &str,
    after: u64,
) -> Result<Result<Page, ReadFailed>, tonic::Status> {
    #[expect(clippy::cast_possible_truncation, reason = "at most PAGE")]
    let limit = (PAGE - after % PAGE) as u32;
    let request = ReadEventsRequest { job_id: job_id.to_owned(), after_seq: after, limit, caller: None };
    let answer = engine.call(request, |mut client, r| async move { client.read_events(r).await }).await?;
    let Some(first) = answer.events.first().map(|event| event.seq) else {
        return Ok(Err(ReadFailed::Stale));
    };
    let dense = answer.events.iter().zip(first..).all(|(event, seq)| event.seq == seq);
    if answer.epoch != epoch || first <= after || !dense {
        return Ok(Err(ReadFailed::Stale));
    }
    let mut snapshot = None;
    if first > after + 1 {
        let request = GetJobRequest { job_id: job_id.to_owned(), caller: None };
        let answer = engine.call(request, |mut client, r| async move { client.get_job(r).await }).await?;
        snapshot = answer.job.map(Box::new);
    }
    let frames = answer.events.iter().map(|event| sse::event(epoch, event)).collect();
    Ok(Ok(Page { after, first, frames, first_kept: answer.first_seq.max(1), snapshot }))
}
