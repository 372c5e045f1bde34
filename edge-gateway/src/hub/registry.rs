//! All hubs of a gateway: finds or opens one, attaches viewers, and empties the house on shutdown.
//!
//! Invariant: at most one hub a job takes new viewers. A hub that has ended is out of the map at once but its viewers
//! may still be reading, so every living hub is also remembered weakly for the drain.

use std::{
    collections::HashMap,
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tidegate_proto::cursor::Cursor;
use tokio::time::{Instant, interval};

use super::{
    Hub, Place, Stage, StreamId, Tenures, Timing, User,
    admission::Admission,
    attach::{Plan, Position, View, decide},
    history::{History, ReadFailed},
    upstream,
    viewer::Viewer,
};
use crate::{
    caller::{Caller, Via},
    drain::Drain,
    engine::Engine,
    limits::StreamPermit,
    metrics::Metrics,
    problem::Problem,
    sse,
};

/// How often an attach looks again when the log's beginning moved under it.
const LOOKS: usize = 3;

/// The hubs of a gateway; a cheap handle.
#[derive(Clone, Debug)]
pub(crate) struct Registry(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    hubs: Mutex<Hubs>,
    engine: Engine,
    timing: Timing,
    metrics: Arc<Metrics>,
    drain: Drain,
    admission: Admission,
    tenures: Tenures,
}

#[derive(Debug, Default)]
struct Hubs {
    by_job: HashMap<Arc<str>, Arc<Hub>>,
    living: Vec<Weak<Hub>>,
}

impl Registry {
    pub(crate) fn new(
        engine: Engine,
        timing: Timing,
        metrics: Arc<Metrics>,
        drain: Drain,
        tenures: Tenures,
    ) -> Self {
        Self(Arc::new(Inner {
            hubs: Mutex::default(),
            engine,
            timing,
            metrics,
            drain,
            admission: Admission::default(),
            tenures,
        }))
    }

    /// Attaches a viewer to the log of `job_id` at `position`, as part of `stream`; `permit` is its slot, unless the connection
    /// has one for several. Nothing if it has seen the job's last event.
    pub(crate) async fn attach(
        &self,
        caller: &Caller,
        job_id: &str,
        position: &Position,
        stream: StreamId,
        permit: Option<StreamPermit>,
    ) -> Result<Option<Viewer>, Problem> {
        if self.0.drain.begun() {
            return Err(Problem::Draining);
        }
        let began = Instant::now();
        let hub = match self.find(job_id) {
            Some(hub) => {
                self.0.metrics.shared.increment(1);
                hub
            }
            None => {
                self.ask(caller, job_id).await?;
                self.join(job_id)
            }
        };
        self.opened(&hub).await?;
        if !hub.view(|_, state| caller.may_see(&state.tenant, &state.owner)) {
            // Told by the engine, as if there were no hub: neither the answer nor its time say that there is one.
            drop(hub);
            self.ask(caller, job_id).await?;
            return Err(Problem::JobNotFound);
        }
        // The slot comes before the look, so that whoever is told to leave meanwhile is among those told.
        let slot = hub.crowd.join();
        let tenure = self.0.tenures.enter(caller, &slot, stream, &hub.job_id)?;
        let (plan, place, epoch, status) = look(&hub, position).await?;
        let outcome = match plan {
            Plan::Finished => {
                self.0.metrics.opened("finished");
                return Ok(None);
            }
            Plan::Fresh { .. } | Plan::Ahead { .. } => "fresh",
            Plan::Exact { .. } => "exact",
            Plan::Trimmed { .. } => "trimmed",
            Plan::Reset { .. } => "reset",
        };
        self.0.metrics.opened(outcome);
        let after = Cursor::new(place.cursor, &*epoch);
        let resumed = matches!(plan, Plan::Exact { .. });
        let mut greeting = BytesMut::from(&*sse::connected(&hub.job_id, status, &after, resumed));
        if let Plan::Trimmed { from, .. } = plan {
            greeting.extend_from_slice(&self.gap(&hub, from, &after, "trimmed").await?);
        } else if let Plan::Reset { .. } = plan {
            greeting.extend_from_slice(&self.gap(&hub, 1, &after, "reset").await?);
        }
        if caller.via == Via::Ticket {
            // Its reconnects need a cursor, also if no event comes before the first.
            greeting.extend_from_slice(&sse::position(&after));
        }
        if self.0.drain.begun() {
            return Err(Problem::Draining); // the drain may have counted the crowd before this slot was taken
        }
        self.0.metrics.open.record(began.elapsed());
        Ok(Some(Viewer::new(hub, tenure, slot, place, greeting.freeze(), permit)))
    }

    /// The gap frame of a viewer that cannot read on where it stopped.
    async fn gap(&self, hub: &Hub, from: u64, after: &Cursor, reason: &str) -> Result<Bytes, Problem> {
        let request = tidegate_proto::v1::GetJobRequest { job_id: hub.job_id.to_string(), caller: None };
        let answer =
            self.0.engine.call(request, |mut client, r| async move { client.get_job(r).await }).await?;
        Ok(sse::gap(from, after, reason, answer.job.as_ref()))
    }

    /// Asks the engine whether the caller may see the job.
    async fn ask(&self, caller: &Caller, job_id: &str) -> Result<(), Problem> {
        self.0.admission.ask(&self.0.engine, caller.proto(), job_id, self.0.timing.open).await
    }

    /// The hub of a job, if there is one.
    fn find(&self, job_id: &str) -> Option<User> {
        self.0.hubs.lock().by_job.get(job_id).map(User::new)
    }

    /// The hub of a job, opened if there is none.
    fn join(&self, job_id: &str) -> User {
        let mut hubs = self.0.hubs.lock();
        if let Some(hub) = hubs.by_job.get(job_id) {
            self.0.metrics.shared.increment(1);
            return User::new(hub);
        }
        let job_id: Arc<str> = Arc::from(job_id);
        let metrics = Arc::clone(&self.0.metrics);
        let history = History::new(Arc::clone(&job_id), self.0.engine.clone(), metrics.history_reads.clone());
        let hub = Arc::new(Hub::new(Arc::clone(&job_id), history, metrics));
        let user = User::new(&hub);
        if hubs.living.len() > 2 * hubs.by_job.len() + 16 {
            hubs.living.retain(|hub| hub.strong_count() > 0);
        }
        hubs.living.push(Arc::downgrade(&hub));
        hubs.by_job.insert(job_id, Arc::clone(&hub));
        drop(hubs);
        tokio::spawn(upstream::run(hub, self.0.engine.clone(), self.clone(), self.0.timing));
        user
    }

    /// All open streams.
    pub(crate) fn tenures(&self) -> &Tenures {
        &self.0.tenures
    }

    /// What the hubs count.
    pub(super) fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.0.metrics)
    }

    /// The bytes that all rings keep.
    pub(crate) fn ring_bytes(&self) -> usize {
        let hubs: Vec<_> = self.0.hubs.lock().living.iter().filter_map(Weak::upgrade).collect();
        hubs.iter().map(|hub| hub.state.lock().ring.bytes()).sum()
    }

    /// Waits until the log is open.
    async fn opened(&self, hub: &Hub) -> Result<(), Problem> {
        let mut stage = hub.stage.subscribe();
        let decided = stage.wait_for(|stage| !matches!(stage, Stage::Opening));
        match tokio::time::timeout(self.0.timing.open, decided).await {
            Ok(Ok(stage)) => match &*stage {
                Stage::Refused(problem) => Err(problem.clone()),
                Stage::Open | Stage::Opening => Ok(()),
            },
            _ => Err(Problem::EngineUnavailable),
        }
    }

    /// Takes a hub out of the map, unless another one has its place.
    pub(super) fn remove(&self, hub: &Arc<Hub>) {
        let mut hubs = self.0.hubs.lock();
        if hubs.by_job.get(&hub.job_id).is_some_and(|current| Arc::ptr_eq(current, hub)) {
            hubs.by_job.remove(&hub.job_id);
        }
    }

    /// Takes a hub out of the map if nobody uses it; whoever comes later opens a new one.
    pub(super) fn retire(&self, hub: &Arc<Hub>) -> bool {
        let mut hubs = self.0.hubs.lock();
        let deserted = hub.users.load(Ordering::Acquire) == 0;
        if deserted && hubs.by_job.get(&hub.job_id).is_some_and(|current| Arc::ptr_eq(current, hub)) {
            hubs.by_job.remove(&hub.job_id);
        }
        deserted
    }

    /// Says goodbye to all viewers, spread over `window` so that they do not come back as one wave.
    ///
    /// How many should have gone is reckoned from the clock, so that neither timers that are late nor a busy machine make
    /// the spread longer than the window.
    pub(crate) async fn dismiss(&self, window: Duration) {
        /// Between two looks at the clock; few viewers need no long spread.
        const STEP: Duration = Duration::from_millis(20);
        let hubs: Vec<_> = self.0.hubs.lock().living.iter().filter_map(Weak::upgrade).collect();
        let viewers: usize = hubs.iter().map(|hub| hub.crowd.len()).sum();
        tracing::info!(viewers, "saying goodbye to all viewers");
        let window = window.min(STEP.saturating_mul(u32::try_from(viewers).unwrap_or(u32::MAX)));
        let (began, mut ticks) = (Instant::now(), interval(STEP));
        let mut hubs = hubs.iter().peekable();
        let mut gone = 0;
        loop {
            ticks.tick().await;
            let elapsed = began.elapsed();
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
            let due = if elapsed < window {
                (viewers as f64 * elapsed.div_duration_f64(window)).ceil() as usize
            } else {
                usize::MAX
            };
            while let Some(hub) = hubs.peek()
                && gone < due
            {
                match hub.crowd.dismiss(due - gone) {
                    0 => drop(hubs.next()),
                    dismissed => gone += dismissed,
                }
            }
            if hubs.peek().is_none() {
                return;
            }
        }
    }
}

/// Decides where a viewer begins, asking the engine where the gateway cannot know.
async fn look(hub: &Hub, position: &Position) -> Result<(Plan, Place, Arc<str>, &'static str), Problem> {
    let mut last = None;
    for _ in 0..LOOKS {
        let (mut plan, mut place, ring_first, epoch, status) = hub.view(|view: View<'_>, state| {
            let place = Place {
                cursor: 0,
                generation: state.generation,
                beats: state.beats,
                seen: Place::UNSEEN,
                stored: None,
            };
            let status = state.status.short_name();
            (decide(position, view), place, state.ring.first(), Arc::clone(&state.epoch), status)
        });
        if let Plan::Ahead { seq } = plan {
            // The upstream may lag behind another gateway: only the engine can tell a lost tail from a late one.
            let head = hub.history.head(&epoch).await?;
            plan = match head {
                Some(head) if head >= seq => Plan::Exact { after: seq },
                _ => Plan::Reset { after: hub.view(|view, _| view.first) - 1 },
            };
        }
        let (Plan::Fresh { after }
        | Plan::Exact { after }
        | Plan::Trimmed { after, .. }
        | Plan::Reset { after }
        | Plan::Ahead { seq: after }) = plan
        else {
            return Ok((plan, place, epoch, status));
        };
        place.cursor = after;
        if after + 1 >= ring_first {
            return Ok((plan, place, epoch, status));
        }
        // Below the ring: the page that is needed next also tells whether its events are still kept.
        match hub.history.page(&epoch, after).await {
            Ok(page) if page.first_kept > after + 1 && page.lacks(after) => {
                hub.raise_first_kept(page.first_kept);
                last = Some((plan, place, epoch, status));
            }
            Ok(_) | Err(ReadFailed::Stale) => return Ok((plan, place, epoch, status)),
            Err(ReadFailed::Deleted) => return Err(Problem::JobNotFound),
            Err(ReadFailed::Unavailable) => return Err(Problem::EngineUnavailable),
        }
    }
    // The log is trimmed faster than it is looked at: the viewer will be told of the gap while it reads.
    last.ok_or(Problem::Internal)
}
