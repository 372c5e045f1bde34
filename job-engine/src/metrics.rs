//! What an engine counts: few names, bounded labels, handles kept where reports pass.
//!
//! What happens to jobs is counted where it is committed ([`Metrics::committed`], called by [`crate::measured`]), so
//! nothing is counted that is not stored, and no path is forgotten. Kinds are labels, a bounded number of them; no
//! job, owner or worker is. Each engine has a recorder of its own. docs/metrics.md describes every name; a test compares
//! the two.

use std::{fmt, sync::Arc, time::Duration};

use tidegate_proto::v1::ReportResult;
use tidegate_telemetry::{
    Counter, Gauge, Histogram, LONG, QUICK, Recorder, SIZES, counter, gauge, histogram,
};

pub use self::peek::Committed;
use self::{
    kinds::Kinds,
    peek::{PeekKind, Step},
};
use crate::{
    job::{index, machine::millis},
    registry::Load,
    schedule::Outcome,
};

mod kinds;
mod peek;

/// What a worker is told about a report.
const RESULTS: [&str; 4] = ["ok", "cancelled", "lease_lost", "rejected"];
/// What events there are.
const EVENTS: [&str; 8] =
    ["state", "progress", "log", "checkpoint", "custom", "complete", "failed", "cancelled"];

/// What becomes of schedules' firings.
const FIRINGS: [&str; 4] = ["fired", "skipped", "missed", "refused"];

/// The indexes whose members are counted, in the order of [`Now::counts`] and of their gauges.
pub const COUNTED: [&str; 5] =
    [index::ALL_JOBS, index::LEASES, index::SCHEDULED, index::CANCELS, index::FIRINGS];

/// Histograms and their buckets.
const BUCKETS: &[(&str, &[f64])] = &[
    ("tidegate_engine_log_call_seconds", QUICK),
    ("tidegate_engine_queue_wait_seconds", LONG),
    ("tidegate_engine_job_run_seconds", LONG),
    ("tidegate_engine_checkpoint_bytes", SIZES),
    ("tidegate_engine_watch_lag_seconds", QUICK),
    ("tidegate_engine_schedule_lateness_seconds", LONG),
];

/// The handles.
pub struct Metrics {
    recorder: Arc<Recorder>,
    kinds: Kinds,
    calls: [Histogram; Call::ALL.len()],
    call_errors: [Counter; Call::ALL.len()],
    conflicts: Counter,
    events: [Counter; EVENTS.len()],
    event_bytes: Counter,
    checkpoint_bytes: Histogram,
    reports: [Counter; RESULTS.len()],
    /// Leases whose worker gave no sign of life.
    pub leases_expired: Counter,
    /// Times at which hints were lost, so that every follower looked at the log by itself.
    pub hints_lost: Counter,
    /// Followed logs.
    pub watches: Gauge,
    /// From an event's time to its being sent to a follower.
    pub watch_lag: Histogram,
    workers: Gauge,
    slots: Gauge,
    slots_used: Gauge,
    generation: Gauge,
    reconnects: Counter,
    counts: [Gauge; COUNTED.len()],
    firings: [Counter; FIRINGS.len()],
    lateness: Histogram,
}

/// A call of the event log.
#[derive(Clone, Copy, Debug)]
pub enum Call {
    /// `Store::commit`.
    Commit,
    /// `Store::read`.
    Read,
    /// `Store::load`.
    Load,
    /// `Store::claim` and `Store::take`.
    Claim,
    /// `Store::renew`.
    Renew,
    /// `Store::confirm`.
    Confirm,
    /// Everything else.
    Other,
}

impl Call {
    const ALL: [(Call, &'static str); 7] = [
        (Call::Commit, "commit"),
        (Call::Read, "read"),
        (Call::Load, "load"),
        (Call::Claim, "claim"),
        (Call::Renew, "renew"),
        (Call::Confirm, "confirm"),
        (Call::Other, "other"),
    ];
}

/// What is connected and kept, as of now.
#[derive(Clone, Debug, Default)]
pub struct Now {
    /// What is connected here.
    pub load: Load,
    /// How often the log may have lost something, see `Store::generation`.
    pub generation: u64,
    /// Connections to the log's server made after the first, see `Store::reconnects`.
    pub reconnects: u64,
    /// How many members each of [`COUNTED`] has in the whole log; unknown when the log does not answer.
    pub counts: Option<[u64; COUNTED.len()]>,
}

impl Metrics {
    /// Metrics of an engine on the `store` named so.
    pub fn new(store: &'static str) -> Self {
        let jobs = |state| gauge("tidegate_engine_jobs", "Jobs in the whole log.", &[("state", state)]);
        let recorder = Arc::new(Recorder::new("engine", env!("CARGO_PKG_VERSION"), BUCKETS));
        recorder.clone().with(|| Self {
            kinds: Kinds::default(),
            calls: Call::ALL.map(|(_, c)| {
                histogram(
                    "tidegate_engine_log_call_seconds",
                    "How long calls of the event log take.",
                    &[("call", c), ("store", store)],
                )
            }),
            call_errors: Call::ALL.map(|(_, c)| {
                counter(
                    "tidegate_engine_log_errors_total",
                    "Calls of the event log that failed.",
                    &[("call", c), ("store", store)],
                )
            }),
            conflicts: counter(
                "tidegate_engine_log_conflicts_total",
                "Commits that somebody else was faster than.",
                &[],
            ),
            events: EVENTS
                .map(|e| counter("tidegate_engine_events_total", "Events stored.", &[("event", e)])),
            event_bytes: counter("tidegate_engine_event_bytes_total", "Bytes of events stored.", &[]),
            checkpoint_bytes: histogram("tidegate_engine_checkpoint_bytes", "Sizes of checkpoints.", &[]),
            reports: RESULTS.map(|r| {
                counter(
                    "tidegate_engine_reports_total",
                    "Reports by what the worker was told; lease_lost: refused.",
                    &[("result", r)],
                )
            }),
            leases_expired: counter(
                "tidegate_engine_leases_expired_total",
                "Leases whose worker gave no sign of life.",
                &[],
            ),
            hints_lost: counter(
                "tidegate_engine_hints_lost_total",
                "Times at which wake-ups were lost.",
                &[],
            ),
            watches: gauge("tidegate_engine_watches", "Logs followed here.", &[]),
            watch_lag: histogram(
                "tidegate_engine_watch_lag_seconds",
                "From an event's time to its being sent to a follower.",
                &[],
            ),
            workers: gauge("tidegate_engine_workers", "Workers connected here.", &[]),
            slots: gauge(
                "tidegate_engine_worker_slots",
                "Jobs that the workers connected here can run at once.",
                &[],
            ),
            slots_used: gauge(
                "tidegate_engine_worker_slots_used",
                "Jobs that the workers connected here run.",
                &[],
            ),
            reconnects: counter(
                "tidegate_engine_log_reconnects_total",
                "Connections to the log's server made after the first.",
                &[("store", store)],
            ),
            generation: gauge(
                "tidegate_engine_log_generation",
                "Grows when the log's server was replaced or emptied.",
                &[],
            ),
            counts: [
                jobs("kept"),
                jobs("leased"),
                jobs("scheduled"),
                jobs("cancelling"),
                gauge("tidegate_engine_schedules", "Schedules in the whole log that are not paused.", &[]),
            ],
            firings: FIRINGS.map(|f| {
                counter(
                    "tidegate_engine_schedule_firings_total",
                    "Firings of schedules, by what became of them.",
                    &[("outcome", f)],
                )
            }),
            lateness: histogram(
                "tidegate_engine_schedule_lateness_seconds",
                "From a firing's instant to its job's being stored.",
                &[],
            ),
            recorder,
        })
    }

    /// Counts a call of the log.
    pub fn called<T, E>(&self, call: Call, took: Duration, answer: &Result<T, E>) {
        let i = call as usize;
        self.calls[i].record(took);
        if answer.is_err() {
            self.call_errors[i].increment(1);
        }
    }

    /// Counts a commit that found something else than it expected.
    pub fn conflict(&self) {
        self.conflicts.increment(1);
    }

    /// Counts what became of jobs by a commit that happened.
    pub fn committed(&self, commit: &Committed) {
        let mut job = None;
        for (event, len) in &commit.events {
            let Some(kind) = &event.kind else { continue };
            self.events[kind.number()].increment(1);
            self.event_bytes.increment(*len);
            if let PeekKind::Checkpoint(checkpoint) = kind {
                self.checkpoint_bytes.record(f64::from(checkpoint.size));
            }
            let Some(step) = Step::of(event, kind) else { continue };
            let job = job.get_or_insert_with(|| commit.job());
            let of_kind = self.kinds.of(&job.kind, &self.recorder);
            match step {
                Step::Started => of_kind.started.increment(1),
                Step::Retried => of_kind.retried.increment(1),
                Step::Ended(outcome) => {
                    of_kind.finished[outcome].increment(1);
                    if let (Some(from), Some(to)) = (job.started_at, job.finished_at) {
                        let run = millis(to).saturating_sub(millis(from));
                        of_kind.run.record(Duration::from_millis(run));
                    }
                }
            }
        }
        if commit.is_new {
            self.kinds.of(&commit.job().kind, &self.recorder).submitted.increment(1);
        }
    }

    /// Counts how long a job of the kind has waited for a worker.
    pub fn waited(&self, kind: &str, waited: Duration) {
        self.kinds.of(kind, &self.recorder).wait.record(waited);
    }

    /// Counts what became of a schedule's firing, and how long after its instant.
    pub fn fired(&self, outcome: Outcome, late: Duration) {
        match outcome {
            Outcome::Fired => {
                self.firings[0].increment(1);
                self.lateness.record(late);
            }
            Outcome::Skipped => self.firings[1].increment(1),
            Outcome::Missed => self.firings[2].increment(1),
            Outcome::Refused => self.firings[3].increment(1),
            Outcome::Superseded => {}
        }
    }

    /// Counts what a worker is told about a report.
    pub fn reported(&self, result: ReportResult) {
        let i = match result {
            ReportResult::Ok => 0,
            ReportResult::Cancelled => 1,
            ReportResult::LeaseLost => 2,
            ReportResult::Rejected | ReportResult::Unspecified => 3,
        };
        self.reports[i].increment(1);
    }

    /// The text that Prometheus scrapes.
    #[expect(clippy::cast_precision_loss, reason = "gauges are floating-point numbers")]
    pub fn render(&self, now: &Now) -> String {
        self.kinds.set_workers(&now.load.by_kind, &self.recorder);
        self.workers.set(now.load.workers as f64);
        self.slots.set(now.load.slots as f64);
        self.slots_used.set(now.load.used as f64);
        self.generation.set(now.generation as f64);
        self.reconnects.absolute(now.reconnects);
        for (gauge, value) in self.counts.iter().zip(now.counts.iter().flatten()) {
            gauge.set(*value as f64);
        }
        self.recorder.render()
    }

    /// To be called every few seconds.
    pub fn upkeep(&self) {
        self.recorder.upkeep();
    }
}

impl Default for Metrics {
    /// For tests that look at none.
    fn default() -> Self {
        Self::new("none")
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        job::machine::{Draft, NewJob, Rules},
        store::Head,
    };
    use tidegate_proto::v1::{Checkpoint, Completed, report::Body};

    /// Commits as the machine makes them, so that a field that moves in the contract is noticed here.
    #[test]
    fn a_job_is_counted_from_what_is_committed() {
        let rules = Rules::default();
        let metrics = Metrics::new("test");
        let new = NewJob {
            job_id: "j".into(),
            epoch: "e".into(),
            kind: "demo".into(),
            tenant: "t".into(),
            owner: "o".into(),
            input_json: "{}".into(),
            options: Default::default(),
        };
        let draft = Draft::submit(new, &rules, 1000);
        metrics.committed(&Committed::of(&draft.commit()).unwrap());
        let head = Head { seq: 1, epoch: "e".into() };
        let mut draft = Draft::of(draft.record, head.clone(), &rules, 2000);
        draft.assign("w", "n").unwrap();
        metrics.committed(&Committed::of(&draft.commit()).unwrap());
        let mut draft = Draft::of(draft.record, head, &rules, 5000);
        let data = vec![1; 300].into();
        let saved = Body::Checkpoint(Checkpoint { data, ..Checkpoint::default() });
        draft.report("1-n", 1, &saved, 1.0).unwrap();
        draft.report("1-n", 2, &Body::Complete(Completed::default()), 1.0).unwrap();
        metrics.committed(&Committed::of(&draft.commit()).unwrap());
        metrics.waited("demo", Duration::from_secs(1));
        metrics.upkeep();
        let text = metrics.render(&Now { counts: Some([1, 0, 0, 0, 2]), ..Now::default() });
        for line in [
            "tidegate_engine_jobs_submitted_total{kind=\"demo\"} 1",
            "tidegate_engine_attempts_total{kind=\"demo\"} 1",
            "tidegate_engine_jobs_finished_total{kind=\"demo\",outcome=\"completed\"} 1",
            "tidegate_engine_jobs_finished_total{kind=\"demo\",outcome=\"failed\"} 0",
            "tidegate_engine_job_run_seconds_bucket{kind=\"demo\",le=\"2.5\"} 0",
            "tidegate_engine_job_run_seconds_bucket{kind=\"demo\",le=\"5\"} 1",
            "tidegate_engine_checkpoint_bytes_bucket{le=\"256\"} 0",
            "tidegate_engine_checkpoint_bytes_bucket{le=\"1024\"} 1",
            "tidegate_engine_events_total{event=\"state\"} 2",
            "tidegate_engine_events_total{event=\"complete\"} 1",
            "tidegate_engine_jobs{state=\"kept\"} 1",
            "tidegate_engine_schedules 2",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }
}
