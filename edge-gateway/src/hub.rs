//! The hub: one followed log, any number of viewers.
//!
//! ```text
//!  engine ══ WatchJob ══► upstream (the hub's only task: encodes once, publishes)
//!                            │ push under a short lock, then wake
//!                            ▼
//!                          Ring ◄── cursor ── Viewer (a response body) ──► socket
//!                                              │ behind the ring
//!                                              ▼
//!                                           History (shared pages) ◄── ReadEvents ── engine
//! ```
//!
//! Invariants: events leave a hub in order and without a hole, or with a `gap` in the hole's place; memory is bounded
//! per hub and per viewer; a viewer costs no task, timer or buffer while it waits. A hub never cancels its job.
//! Who may see a job is asked in [`Registry::attach`], for every viewer, because hubs are shared; how long it may stay is
//! kept in [`tenure`].

mod admission;
mod attach;
mod bundle;
mod crowd;
mod history;
mod registry;
mod ring;
mod tenure;
mod upstream;
mod user;
mod viewer;

use std::{
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tidegate_proto::{
    cursor::Cursor,
    v1::{Event, Job, JobState, event::Kind},
};
use tidegate_telemetry::trace;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

pub(crate) use self::{
    attach::Position,
    bundle::{BETWEEN, Bundle, MAX_JOBS, positions},
    registry::Registry,
    tenure::{Listed, StreamId, Tenures},
    viewer::jittered_retry,
};
use self::{
    attach::View,
    crowd::Crowd,
    history::History,
    ring::{Ring, Take},
    user::User,
};
use crate::{
    metrics::Metrics,
    problem::Problem,
    sse::{self, Goodbye},
};

/// Times that tests shorten.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The longest silence on a stream; a comment follows after two thirds of it at the earliest.
    pub heartbeat: Duration,
    /// How long a hub stays without viewers.
    pub linger: Duration,
    /// How long a request waits for the engine to open a log.
    pub open: Duration,
    /// The longest pause between two tries to reach the engine.
    pub max_backoff: Duration,
    /// How long a client may take to send a request head, or stay idle between two.
    pub head: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(15),
            linger: Duration::from_secs(5),
            open: Duration::from_secs(5),
            max_backoff: Duration::from_secs(5),
            head: Duration::from_secs(10),
        }
    }
}

/// One followed log.
#[derive(Debug)]
pub(crate) struct Hub {
    job_id: Arc<str>,
    /// The trace of the request that opened it.
    opener: String,
    state: Mutex<State>,
    /// Viewers, and the version that they compare before they sleep.
    crowd: Crowd,
    history: History,
    /// Whether the log is open; requests wait for it.
    stage: watch::Sender<Stage>,
    /// Viewers and requests that are about to become viewers.
    users: AtomicUsize,
    /// Rung when the last user leaves.
    deserted: Notify,
    metrics: Arc<Metrics>,
}

/// How far a hub has come.
#[derive(Clone, Debug)]
enum Stage {
    /// The engine has not answered yet.
    Opening,
    /// The log is open; from here on `State` describes it.
    Open,
    /// The engine refused for good.
    Refused(Problem),
}

/// What viewers look at, under one short lock.
#[derive(Debug)]
struct State {
    ring: Ring,
    epoch: Arc<str>,
    /// Raised when the log turns out to be another one; viewers of an older generation start over.
    generation: u32,
    /// The frame that tells them, and the position it takes them to.
    reset: (Bytes, u64),
    tenant: String,
    owner: String,
    /// The time of the first event that was published last: it has waited longest of those that came together.
    stored: Option<prost_types::Timestamp>,
    /// The oldest event kept, as far as known.
    first_kept: u64,
    /// The newest event stored, as far as known; the ring may still be on its way there.
    head: u64,
    /// The job's state at `head`.
    status: JobState,
    /// Set when nothing will follow.
    end: Option<End>,
    /// When something was last sent to everybody.
    last_sent: Instant,
    /// How many idle comments there have been.
    beats: u32,
}

/// How a hub ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The job has ended and its last event is published.
    Finished,
    /// There is another reason, which viewers are told.
    Goodbye(Goodbye),
}

/// What a viewer gets when it looks.
enum Next {
    Send(Bytes),
    Behind(Arc<str>),
    Wait,
    End(End),
}

/// A viewer's place in the log.
#[derive(Debug)]
struct Place {
    cursor: u64,
    generation: u32,
    beats: u32,
    /// The crowd's version when there was nothing to send.
    seen: u64,
    /// Set when what was sent last brought the viewer up to date: the time of the event in it that waited longest.
    stored: Option<prost_types::Timestamp>,
}

impl Hub {
    fn new(job_id: Arc<str>, history: History, metrics: Arc<Metrics>) -> Self {
        let state = State {
            ring: Ring::new(1),
            epoch: Arc::from(""),
            generation: 0,
            reset: (Bytes::new(), 0),
            tenant: String::new(),
            owner: String::new(),
            stored: None,
            first_kept: 1,
            head: 0,
            status: JobState::Unspecified,
            end: None,
            last_sent: Instant::now(),
            beats: 0,
        };
        Self {
            job_id,
            opener: trace::here(),
            state: Mutex::new(state),
            crowd: Crowd::default(),
            history,
            stage: watch::Sender::new(Stage::Opening),
            users: AtomicUsize::new(0),
            deserted: Notify::new(),
            metrics,
        }
    }

    /// The cursor from which a broken upstream goes on; nothing before the first opening.
    fn resume_cursor(&self) -> Option<Cursor> {
        let state = self.state.lock();
        (!state.epoch.is_empty()).then(|| Cursor::new(state.ring.next() - 1, &*state.epoch))
    }

    /// Takes over what the engine says of the log when an upstream opens after `from`.
    fn open(&self, job: &Job, from: &Cursor) {
        let mut state = self.state.lock();
        let known = !state.epoch.is_empty();
        // Another log under the same id, or the same one without its tail: what viewers have seen of it is lost.
        let reset = known && (*state.epoch != *from.epoch || from.seq + 1 < state.ring.next());
        if !known || reset || state.ring.next() != from.seq + 1 {
            state.ring.restart(from.seq + 1);
        }
        if reset {
            let after = Cursor::new(job.first_seq.max(1) - 1, from.epoch.as_str());
            state.reset = (sse::gap(1, &after, "lost", Some(job)), after.seq);
            state.generation = state.generation.wrapping_add(1);
            state.head = 0;
            self.history.forget();
        }
        state.epoch = Arc::from(from.epoch.as_str());
        state.tenant.clone_from(&job.tenant);
        state.owner.clone_from(&job.owner);
        state.first_kept = job.first_seq.max(1);
        if job.last_seq >= state.head {
            state.head = job.last_seq;
            state.status = job.state();
        }
        drop(state);
        self.crowd.wake();
        self.stage.send_replace(Stage::Open);
    }

    /// The number of the event to be published next, and the log's token.
    fn expected(&self) -> (u64, Arc<str>) {
        let state = self.state.lock();
        (state.ring.next(), Arc::clone(&state.epoch))
    }

    /// Publishes events that follow each other and the ring.
    fn publish(&self, batch: &mut Vec<(Bytes, Event)>) {
        if batch.is_empty() {
            return;
        }
        let mut state = self.state.lock();
        state.stored = batch.first().and_then(|(_, event)| event.time);
        for (frame, event) in batch.drain(..) {
            debug_assert_eq!(event.seq, state.ring.next(), "density is checked before publishing");
            state.ring.push(frame);
            if event.seq > state.head {
                state.head = event.seq;
                state.status = status_after(&event).unwrap_or(state.status);
            }
        }
        state.last_sent = Instant::now();
        drop(state);
        self.crowd.wake();
    }

    /// Notes that events up to `to` cannot be had: viewers find out by reading history, each from its own place.
    fn skip(&self, to: u64) {
        let mut state = self.state.lock();
        if to >= state.ring.next() {
            state.ring.restart(to + 1);
            state.first_kept = state.first_kept.max(to + 1);
            drop(state);
            self.crowd.wake();
        }
    }

    /// Sends everybody an idle comment if nothing was sent since `quiet_since`.
    fn beat(&self, quiet_since: Instant) {
        let mut state = self.state.lock();
        if state.last_sent > quiet_since {
            return;
        }
        state.last_sent = Instant::now();
        state.beats = state.beats.wrapping_add(1);
        drop(state);
        self.history.forget();
        self.crowd.wake();
    }

    /// Whether the job has ended and the ring holds its last event.
    fn finished(&self) -> bool {
        let state = self.state.lock();
        state.status.is_terminal() && state.ring.next() == state.head + 1
    }

    /// Nothing more will come.
    fn finish(&self, end: End) {
        self.state.lock().end = Some(end);
        self.crowd.wake();
    }

    /// Raises the oldest event kept, as a page has shown it.
    fn raise_first_kept(&self, first: u64) {
        let mut state = self.state.lock();
        state.first_kept = state.first_kept.max(first);
    }

    /// What there is for a viewer, moving its place.
    fn next(&self, place: &mut Place) -> Next {
        let version = self.crowd.version();
        if place.seen == version {
            return Next::Wait; // nothing new since the last look: no need for the lock
        }
        let mut state = self.state.lock();
        if place.generation != state.generation {
            place.generation = state.generation;
            place.cursor = state.reset.1;
            return Next::Send(state.reset.0.clone());
        }
        match state.ring.take(place.cursor) {
            Take::Burst(burst) => {
                self.metrics.events.increment(burst.last - place.cursor);
                place.cursor = burst.last;
                place.beats = state.beats;
                if burst.last + 1 == state.ring.next() {
                    place.stored = state.stored;
                    if state.end.is_none() {
                        place.seen = version;
                    }
                }
                Next::Send(burst.bytes)
            }
            Take::Behind => Next::Behind(Arc::clone(&state.epoch)),
            Take::AtHead => {
                if let Some(end) = state.end {
                    return Next::End(end);
                }
                if place.beats != state.beats {
                    place.beats = state.beats;
                    return Next::Send(sse::IDLE);
                }
                place.seen = version;
                Next::Wait
            }
        }
    }

    /// Runs `decide` on what is known of the log now.
    fn view<T>(&self, decide: impl FnOnce(View<'_>, &State) -> T) -> T {
        let state = self.state.lock();
        let view = View {
            epoch: &state.epoch,
            first: state.first_kept,
            head: state.head,
            terminal: state.status.is_terminal(),
        };
        decide(view, &state)
    }
}

/// The job's state after `event`, if the event says something about it.
fn status_after(event: &Event) -> Option<JobState> {
    match event.kind.as_ref()? {
        Kind::State(change) => Some(change.state()),
        Kind::Complete(_) => Some(JobState::Completed),
        Kind::Failed(_) => Some(JobState::Failed),
        Kind::Cancelled(_) => Some(JobState::Cancelled),
        Kind::Progress(_) | Kind::Log(_) | Kind::Checkpoint(_) | Kind::Custom(_) => None,
    }
}

#[cfg(test)]
mod tests;
