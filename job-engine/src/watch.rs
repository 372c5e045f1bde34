//! Follows one job's log for one reader: replay, seam, live, end.
//!
//! The seam is simple because there is only one source: the reader is registered with the bells first, then the log is
//! read from the cursor, page by page, and read again whenever the bell rings. Nothing is ever taken from a hint, so
//! nothing can be missed, doubled or reordered by one. A log that lost its beginning, or is another log than the
//! cursor's, is announced by a gap. So is one that lost its end, but not at once: whoever wrote it may be about to write
//! it again, and then nothing has happened.

use std::{sync::Arc, time::Duration};

use prost::Message as _;
use tidegate_proto::{
    cursor::Cursor,
    v1::{
        CursorOutcome, Event, Gap, Heartbeat, Job, WatchJobRequest, WatchJobResponse, WatchOpened,
        event::Kind, watch_job_response::Message,
    },
};
use tokio::{sync::mpsc, time::Instant};
use tonic::Status;

use crate::{
    engine::Engine,
    error::EngineError,
    job::{JobRecord, machine::millis},
    store::{Entry, Page, StoreError},
};

/// How many events one read of the log takes.
const PAGE: usize = 256;
/// After how many bytes a page ends.
pub const PAGE_BYTES: usize = 256 * 1024;
/// How long events that were there and are not any more may take to come back.
const MEND: Duration = Duration::from_millis(3500);
/// How long a stream stays silent.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Where a reader begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// What became of the cursor.
    pub outcome: CursorOutcome,
    /// Reading goes on after this event.
    pub after: u64,
    /// The gap to announce first, as (from, to, reason).
    pub gap: Option<(u64, u64, &'static str)>,
}

/// Decides where a reader begins, given its cursor and the log's bounds.
pub fn start(cursor: Option<&Cursor>, tail: u64, first: u64, last: u64, epoch: &str) -> Start {
    let oldest = first.saturating_sub(1);
    match cursor {
        None => {
            let after = if tail > 0 { oldest.max(last.saturating_sub(tail)) } else { oldest };
            let gap = (tail == 0 && oldest > 0).then_some((1, oldest, "trimmed"));
            Start { outcome: CursorOutcome::Fresh, after, gap }
        }
        Some(c) if c.epoch != epoch || c.seq > last => {
            Start { outcome: CursorOutcome::Reset, after: oldest, gap: Some((1, oldest, "reset")) }
        }
        Some(c) if c.seq < oldest => Start {
            outcome: CursorOutcome::Trimmed,
            after: oldest,
            gap: Some((c.seq + 1, oldest, "trimmed")),
        },
        Some(c) => Start { outcome: CursorOutcome::Exact, after: c.seq, gap: None },
    }
}

type Out = mpsc::Sender<Result<WatchJobResponse, Status>>;

/// Opens a followed log. The receiver ends cleanly after the terminal event, or with a status.
pub async fn open(
    engine: Arc<Engine>,
    request: WatchJobRequest,
) -> Result<mpsc::Receiver<Result<WatchJobResponse, Status>>, EngineError> {
    let cursor = match request.cursor.as_str() {
        "" => None,
        text => Some(text.parse::<Cursor>().map_err(EngineError::MalformedCursor)?),
    };
    // Registered before the first read: whatever comes after that read rings.
    let mut follow = engine.followers.follow(&request.job_id);
    let until = Instant::now() + MEND;
    let (record, head) = loop {
        let found = engine.get(request.caller.as_ref(), &request.job_id).await;
        // What a returning reader has seen may be missing only for a moment, if something was lost at all.
        let missing = engine.store.generation() > 0
            && cursor.as_ref().is_some_and(|cursor| match &found {
                Ok((_, head)) => cursor.epoch == head.epoch && cursor.seq > head.seq,
                Err(error) => matches!(error, EngineError::NotFound),
            });
        if !missing || Instant::now() >= until {
            break found?;
        }
        let _ = tokio::time::timeout_at(until, follow.changed(0)).await;
    };
    let start = start(cursor.as_ref(), u64::from(request.tail), record.job.first_seq, head.seq, &head.epoch);
    let (out, stream) = mpsc::channel(64);
    engine.tasks.clone().spawn(async move {
        let draining = engine.draining.clone();
        let mut reader = Reader {
            engine,
            job_id: request.job_id,
            epoch: head.epoch,
            after: start.after,
            ended: false,
            missing: None,
            live: false,
            out,
        };
        reader.engine.metrics.watches.increment(1.0);
        let end = tokio::select! {
            end = reader.run(record, start, &mut follow) => end,
            () = draining.cancelled() => Err(EngineError::Draining),
        };
        reader.engine.metrics.watches.decrement(1.0);
        if let Err(error) = end {
            let _ = reader.out.send(Err(error.into())).await;
        }
    });
    Ok(stream)
}

struct Reader {
    engine: Arc<Engine>,
    job_id: String,
    epoch: String,
    after: u64,
    /// Whether the event `after` is terminal.
    ended: bool,
    /// Since when events that were sent are not in the log.
    missing: Option<Instant>,
    /// Whether everything was read, so that what comes now is new.
    live: bool,
    out: Out,
}

/// The reader went away.
struct Gone;

impl Reader {
    async fn run(
        &mut self,
        record: JobRecord,
        start: Start,
        follow: &mut crate::follow::Follow,
    ) -> Result<(), EngineError> {
        self.ended = record.state().is_terminal() && start.after == record.job.last_seq;
        let mut opened = WatchOpened {
            job: Some(record.job.clone()),
            cursor: Cursor::new(start.after, self.epoch.clone()).to_string(),
            ..WatchOpened::default()
        };
        opened.set_outcome(start.outcome);
        if self.say(Message::Opened(opened)).await.is_err() {
            return Ok(());
        }
        if let Some((from, to, reason)) = start.gap
            && self.gap(from, to, reason, Some(record.job)).await.is_err()
        {
            return Ok(());
        }
        let mut silent_since = Instant::now();
        loop {
            match self.page().await? {
                // The reader is gone, or everything is read and the last event was terminal.
                Err(Gone) => return Ok(()),
                Ok(0) if self.ended => return Ok(()),
                Ok(0) => {
                    if silent_since.elapsed() >= HEARTBEAT {
                        silent_since = Instant::now();
                        if self.say(Message::Heartbeat(Heartbeat {})).await.is_err() {
                            return Ok(());
                        }
                    }
                    self.live = true;
                    let out = self.out.clone();
                    let mended = self.missing.map_or_else(Instant::now, |since| since + MEND);
                    tokio::select! {
                        () = follow.changed(self.after) => {}
                        () = tokio::time::sleep_until(mended), if self.missing.is_some() => {}
                        () = out.closed() => return Ok(()),
                    }
                }
                Ok(_) => silent_since = Instant::now(),
            }
        }
    }

    /// Sends the next page; says how many events it had.
    async fn page(&mut self) -> Result<Result<usize, Gone>, EngineError> {
        let page = self.engine.store.read(&self.job_id, self.after, PAGE, PAGE_BYTES).await?;
        let behind = |page: &Page| page.head.epoch == self.epoch && page.head.seq < self.after;
        // Only a finished job can be deleted.
        if page.as_ref().map_or(!self.ended, behind) {
            if self.missing.get_or_insert_with(Instant::now).elapsed() < MEND {
                return Ok(Ok(0));
            }
        } else {
            self.missing = None;
        }
        let Some(page) = page else { return Err(EngineError::NotFound) };
        let oldest = page.first_seq.saturating_sub(1);
        let reset = page.head.epoch != self.epoch || page.head.seq < self.after;
        if reset || oldest > self.after {
            let (from, reason) = if reset { (1, "lost") } else { (self.after + 1, "trimmed") };
            self.missing = None;
            let (record, _) = self.engine.get(None, &self.job_id).await?;
            self.epoch.clone_from(&page.head.epoch);
            self.after = oldest;
            self.ended = false;
            if self.gap(from, oldest, reason, Some(record.job)).await.is_err() {
                return Ok(Err(Gone));
            }
            if reset {
                // What was read began after a position in another log.
                return Ok(Ok(1));
            }
        }
        let count = page.entries.len();
        for entry in page.entries {
            let event = decode(&entry)?;
            // Once a page: the event that has waited longest.
            if std::mem::take(&mut self.live) {
                let stored = event.time.map_or(0, millis);
                let lag = self.engine.store.now_ms().saturating_sub(stored);
                self.engine.metrics.watch_lag.record(Duration::from_millis(lag));
            }
            self.after = event.seq;
            self.ended = event.is_terminal();
            if self.say(Message::Event(event)).await.is_err() {
                return Ok(Err(Gone));
            }
        }
        // The end of the log is only the end if nothing was appended behind the terminal event by a retry.
        Ok(Ok(if self.ended && self.after == page.head.seq { 0 } else { count }))
    }

    async fn gap(&self, from_seq: u64, to_seq: u64, reason: &str, snapshot: Option<Job>) -> Result<(), Gone> {
        self.say(Message::Gap(Gap { from_seq, to_seq, reason: reason.to_owned(), snapshot })).await
    }

    async fn say(&self, message: Message) -> Result<(), Gone> {
        self.out.send(Ok(WatchJobResponse { message: Some(message) })).await.map_err(|_| Gone)
    }
}

/// A stored event as readers may see it: a checkpoint's bytes stay inside.
pub fn decode(entry: &Entry) -> Result<Event, StoreError> {
    let mut event = Event::decode(entry.data.clone())
        .map_err(|e| StoreError::Damaged(format!("event {}: {e}", entry.seq)))?;
    event.seq = entry.seq;
    if let Some(Kind::Checkpoint(checkpoint)) = &mut event.kind {
        checkpoint.data.clear();
    }
    Ok(event)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn j15_every_cursor_has_a_defined_outcome() {
        let at = |seq, epoch: &str| Some(Cursor::new(seq, epoch));
        let outcome = |cursor: Option<Cursor>| start(cursor.as_ref(), 0, 5, 9, "e").outcome;
        assert_eq!(outcome(None), CursorOutcome::Fresh);
        assert_eq!(outcome(at(4, "e")), CursorOutcome::Exact);
        assert_eq!(outcome(at(9, "e")), CursorOutcome::Exact);
        assert_eq!(outcome(at(3, "e")), CursorOutcome::Trimmed);
        assert_eq!(outcome(at(10, "e")), CursorOutcome::Reset);
        assert_eq!(outcome(at(7, "other")), CursorOutcome::Reset);
    }

    proptest! {
        #[test]
        fn what_is_skipped_is_announced(seq in 0u64..20, same in any::<bool>(), first in 1u64..10, len in 0u64..10) {
            let last = first + len - 1;
            let cursor = Cursor::new(seq, if same { "e" } else { "f" });
            let start = start(Some(&cursor), 0, first, last, "e");
            prop_assert!(start.after + 1 >= first && start.after <= last);
            match start.gap {
                None => prop_assert_eq!(start.after, seq),
                Some((from, to, "trimmed")) => prop_assert_eq!((from, to, to), (seq + 1, first - 1, start.after)),
                Some((from, to, _)) => prop_assert_eq!((from, to), (1, start.after)),
            }
        }
    }
}
