//! A viewer: the body of one SSE response, pulled by its socket.
//!
//! It owns a cursor and a slot, nothing else of size: no task, no timer, no queue. hyper asks for the next frame only
//! when the connection can take more, so a slow browser slows nobody but itself. Whatever it is handed are whole
//! frames; the body ends cleanly, and only after a terminal event or a goodbye.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Instant, SystemTime},
};

use super::{
    End, Next, Place, User,
    crowd::Slot,
    history::{Page, PageRead, PageTake, ReadFailed},
    tenure::Tenure,
};
use crate::{
    limits::StreamPermit,
    metrics::Metrics,
    sse::{self, Goodbye},
};
use bytes::Bytes;
use futures_util::FutureExt as _;
use http::Version;
use http_body::{Body, Frame};
use tidegate_proto::cursor::Cursor;

/// The body of one SSE response. Small: what an event does not need is on the heap, so that a crowd's turn touches
/// little memory.
#[derive(Debug)]
pub(crate) struct Viewer {
    hub: User,
    /// Before the slot, which must not be another's while the book of tenures still knows it.
    stay: Box<Stay>,
    slot: Slot,
    place: Place,
    /// What is sent before anything else: `connected`, and perhaps a `gap`.
    greeting: Option<Box<Bytes>>,
    /// A page that the viewer waits for; never held while its socket is full.
    reading: Option<Box<(PageRead, Arc<str>)>>,
    /// Whether it once had all there was: a viewer that then falls behind is slow.
    up_to_date: bool,
    /// Set with the last frame.
    closed: Option<&'static str>,
}

/// What lasts as long as the viewer.
#[derive(Debug)]
struct Stay {
    /// How long it may stay.
    tenure: Tenure,
    opened: Instant,
    /// What it is counted as; nothing until [`Viewer::over`].
    version: Option<Version>,
    _permit: Option<StreamPermit>,
}

impl Viewer {
    /// A viewer after `place`; `permit` is its share of the stream cap.
    pub(super) fn new(
        hub: User,
        tenure: Tenure,
        slot: Slot,
        place: Place,
        greeting: Bytes,
        permit: Option<StreamPermit>,
    ) -> Self {
        let stay = Stay { tenure, opened: Instant::now(), version: None, _permit: permit };
        Self {
            hub,
            stay: Box::new(stay),
            slot,
            place,
            greeting: Some(Box::new(greeting)),
            reading: None,
            up_to_date: false,
            closed: None,
        }
    }

    /// Counts it as open, over this version of HTTP.
    pub(crate) fn over(mut self, version: Version) -> Self {
        self.hub.metrics.active(version).increment(1.0);
        self.stay.version = Some(version);
        self
    }

    /// The next frames, the end, or a wait.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Some(greeting) = self.greeting.take() {
            return Poll::Ready(Some(*greeting));
        }
        if self.closed.is_some() {
            return Poll::Ready(None);
        }
        loop {
            if self.slot.leaving() {
                return self.leave(self.stay.tenure.ended().unwrap_or(Goodbye::Draining));
            }
            if let Some(reading) = &mut self.reading {
                let (read, epoch) = &mut **reading;
                match read.poll_unpin(cx) {
                    Poll::Pending => {
                        if self.slot.remember(cx.waker()) {
                            return Poll::Pending;
                        }
                        continue;
                    }
                    Poll::Ready(outcome) => {
                        let epoch = Arc::clone(epoch);
                        self.reading = None;
                        match outcome {
                            Ok(page) => match self.turn(&page, &epoch) {
                                Some(bytes) => return Poll::Ready(Some(bytes)),
                                None => continue,
                            },
                            Err(ReadFailed::Deleted) => return self.leave(Goodbye::Deleted),
                            Err(_) => return self.leave(Goodbye::EngineUnavailable),
                        }
                    }
                }
            }
            match self.hub.next(&mut self.place) {
                Next::Send(bytes) => {
                    self.measure();
                    return Poll::Ready(Some(bytes));
                }
                Next::Behind(epoch) => {
                    if std::mem::take(&mut self.up_to_date) {
                        self.hub.metrics.slow.increment(1);
                    }
                    let read = self.hub.history.page(&epoch, self.place.cursor);
                    self.reading = Some(Box::new((read, epoch)));
                }
                Next::End(End::Goodbye(reason)) => return self.leave(reason),
                Next::End(End::Finished) => {
                    self.closed = Some("finished");
                    return Poll::Ready(None);
                }
                Next::Wait => {
                    if self.slot.arm(&self.hub.crowd, cx.waker(), self.place.seen) {
                        return Poll::Pending;
                    }
                    self.place.seen = Place::UNSEEN;
                }
            }
        }
    }

    /// Where it begins to read; nothing if the log is another one by now.
    pub(super) fn position(&self) -> Option<Cursor> {
        let state = self.hub.state.lock();
        (state.generation == self.place.generation).then(|| Cursor::new(self.place.cursor, &*state.epoch))
    }

    /// Why it has left, once it has.
    pub(super) fn left(&self) -> Option<&'static str> {
        self.closed
    }

    /// Takes what `page` has; nothing if the page ends before the viewer's place, or belongs to an older log.
    fn turn(&mut self, page: &Page, epoch: &str) -> Option<Bytes> {
        let current = self.hub.state.lock().generation == self.place.generation;
        match page.take(self.place.cursor).filter(|_| current)? {
            PageTake::Burst(burst) => {
                self.hub.metrics.events.increment(burst.last - self.place.cursor);
                self.place.cursor = burst.last;
                Some(burst.bytes)
            }
            PageTake::Trimmed { to } => {
                let from = self.place.cursor + 1;
                self.place.cursor = to;
                Some(sse::gap(from, &Cursor::new(to, epoch), "trimmed", page.snapshot.as_deref()))
            }
        }
    }

    /// Measures how long the oldest of what it is handed took to get here. One viewer in 64 does: figures that all viewers of a crowd
    /// touch would cost more than handing them the event.
    fn measure(&mut self) {
        let Some(stored) = self.place.stored.take() else { return };
        // What it gets while it catches up was published before it came.
        if !std::mem::replace(&mut self.up_to_date, true) || !self.slot.is_first() {
            return;
        }
        let Ok(stored) = SystemTime::try_from(stored) else { return };
        // The log's clock may be ahead of this machine's.
        self.hub.metrics.lag.record(stored.elapsed().unwrap_or_default());
    }

    /// The last frame: why the stream ends.
    fn leave(&mut self, reason: Goodbye) -> Poll<Option<Bytes>> {
        self.closed = Some(reason.label());
        let rest = if reason == Goodbye::Expired { self.stay.tenure.rest() } else { 0 };
        Poll::Ready(Some(sse::goodbye(reason, jittered_retry() + rest)))
    }
}

/// Between one and five seconds, so that viewers do not come back as one wave.
pub(crate) fn jittered_retry() -> u32 {
    rand::random_range(1000..=5000)
}

/// What a connection is handed: its bytes are counted here.
pub(super) fn counted(
    next: Poll<Option<Bytes>>,
    metrics: &Metrics,
) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
    next.map(|next| {
        next.map(|bytes| {
            metrics.bytes.increment(bytes.len() as u64);
            Ok(Frame::data(bytes))
        })
    })
}

impl Place {
    /// No version is this one: look before sleeping.
    pub(super) const UNSEEN: u64 = u64::MAX;
}

impl Body for Viewer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        counted(this.poll_next(cx), &this.hub.metrics)
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        if let Some(version) = self.stay.version {
            self.hub.metrics.active(version).decrement(1.0);
        }
        self.hub.metrics.lifetime.record(self.stay.opened.elapsed());
        self.hub.metrics.closed(self.closed.unwrap_or("client-left"));
    }
}
