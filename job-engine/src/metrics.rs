//! What an engine counts: few names, bounded labels, handles kept where reports pass.
//!
//! What happens to jobs is counted where it is committed ([`Metrics::committed`], called by [`crate::measured`]), so
//! nothing is counted that is not stored, and no path is forgotten. Kinds are labels, at most [`MAX_KINDS`] of them; no
//! job, owner or worker is. Each engine has a recorder of its own. docs/metrics.md describes every name; a test compares
//! the two.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};
use parking_lot::Mutex;
use tidegate_proto::v1::ReportResult;
use tidegate_telemetry::{LONG, QUICK, Recorder, SIZES};

pub use self::peek::Committed;
use self::peek::{PeekKind, Step};
use crate::job::machine::millis;

mod peek;

/// How many kinds are told apart; further ones are counted together as `other`.
const MAX_KINDS: usize = 100;

/// Ways for a job to end.
const OUTCOMES: [&str; 3] = ["completed", "failed", "cancelled"];
/// What a worker is told about a report.
const RESULTS: [&str; 4] = ["ok", "cancelled", "lease_lost", "rejected"];
/// What events there are.
const EVENTS: [&str; 8] =
    ["state", "progress", "log", "checkpoint", "custom", "complete", "failed", "cancelled"];

/// Histograms and their buckets.
const BUCKETS: &[(&str, &[f64])] = &[
    ("tidegate_engine_log_call_seconds", QUICK),
    ("tidegate_engine_queue_wait_seconds", LONG),
    ("tidegate_engine_job_run_seconds", LONG),
    ("tidegate_engine_checkpoint_bytes", SIZES),
    ("tidegate_engine_watch_lag_seconds", QUICK),
];

/// The handles.
pub struct Metrics {
    recorder: Arc<Recorder>,
    kinds: Mutex<HashMap<String, Arc<OfKind>>>,
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
    jobs: [Gauge; 4],
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

/// The handles of one kind of job.
struct OfKind {
    submitted: Counter,
    started: Counter,
    retried: Counter,
    wait: Histogram,
    run: Histogram,
    finished: [Counter; OUTCOMES.len()],
    workers: Gauge,
}

/// What is connected and kept, as of now.
#[derive(Clone, Debug, Default)]
pub struct Now {
    /// Connected workers.
    pub workers: usize,
    /// The jobs they can run at once.
    pub slots: usize,
    /// The jobs they run.
    pub slots_used: usize,
    /// How often the log may have lost something, see `Store::generation`.
    pub generation: u64,
    /// How many workers offer each kind.
    pub by_kind: HashMap<String, usize>,
    /// Jobs in the whole log: kept, leased, scheduled, asked to stop; unknown when the log does not answer.
    pub jobs: Option<[u64; 4]>,
}

impl Metrics {
    /// Metrics of an engine on the `store` named so.
    pub fn new(store: &'static str) -> Self {
        let recorder = Arc::new(Recorder::new("engine", env!("CARGO_PKG_VERSION"), BUCKETS));
        recorder.with(describe);
        recorder.clone().with(|| Self {
            kinds: Mutex::default(),
            calls: Call::ALL
                .map(|(_, c)| histogram!("tidegate_engine_log_call_seconds", "call" => c, "store" => store)),
            call_errors: Call::ALL
                .map(|(_, c)| counter!("tidegate_engine_log_errors_total", "call" => c, "store" => store)),
            conflicts: counter!("tidegate_engine_log_conflicts_total"),
            events: EVENTS.map(|e| counter!("tidegate_engine_events_total", "event" => e)),
            event_bytes: counter!("tidegate_engine_event_bytes_total"),
            checkpoint_bytes: histogram!("tidegate_engine_checkpoint_bytes"),
            reports: RESULTS.map(|r| counter!("tidegate_engine_reports_total", "result" => r)),
            leases_expired: counter!("tidegate_engine_leases_expired_total"),
            hints_lost: counter!("tidegate_engine_hints_lost_total"),
            watches: gauge!("tidegate_engine_watches"),
            watch_lag: histogram!("tidegate_engine_watch_lag_seconds"),
            workers: gauge!("tidegate_engine_workers"),
            slots: gauge!("tidegate_engine_worker_slots"),
            slots_used: gauge!("tidegate_engine_worker_slots_used"),
            generation: gauge!("tidegate_engine_log_generation"),
            jobs: ["kept", "leased", "scheduled", "cancelling"]
                .map(|state| gauge!("tidegate_engine_jobs", "state" => state)),
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
            let of_kind = self.of_kind(&job.kind);
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
            self.of_kind(&commit.job().kind).submitted.increment(1);
        }
    }

    /// Counts how long a job of the kind has waited for a worker.
    pub fn waited(&self, kind: &str, waited: Duration) {
        self.of_kind(kind).wait.record(waited);
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
        let known: Vec<_> = self.kinds.lock().values().cloned().collect();
        known.iter().for_each(|kind| kind.workers.set(0.0));
        for (kind, workers) in &now.by_kind {
            // Those that have no name of their own add up.
            self.of_kind(kind).workers.increment(*workers as f64);
        }
        self.workers.set(now.workers as f64);
        self.slots.set(now.slots as f64);
        self.slots_used.set(now.slots_used as f64);
        self.generation.set(now.generation as f64);
        for (gauge, value) in self.jobs.iter().zip(now.jobs.iter().flatten()) {
            gauge.set(*value as f64);
        }
        self.recorder.render()
    }

    /// To be called every few seconds.
    pub fn upkeep(&self) {
        self.recorder.upkeep();
    }

    fn of_kind(&self, kind: &str) -> Arc<OfKind> {
        let mut kinds = self.kinds.lock();
        if let Some(known) = kinds.get(kind) {
            return known.clone();
        }
        let name = if kinds.len() < MAX_KINDS { kind } else { "other" };
        let made = kinds.get(name).cloned().unwrap_or_else(|| {
            let name = name.to_owned();
            self.recorder.with(|| {
                Arc::new(OfKind {
                    submitted: counter!("tidegate_engine_jobs_submitted_total", "kind" => name.clone()),
                    started: counter!("tidegate_engine_attempts_total", "kind" => name.clone()),
                    retried: counter!("tidegate_engine_retries_total", "kind" => name.clone()),
                    wait: histogram!("tidegate_engine_queue_wait_seconds", "kind" => name.clone()),
                    run: histogram!("tidegate_engine_job_run_seconds", "kind" => name.clone()),
                    workers: gauge!("tidegate_engine_kind_workers", "kind" => name.clone()),
                    finished: OUTCOMES.map(|outcome| {
                        counter!("tidegate_engine_jobs_finished_total", "kind" => name.clone(), "outcome" => outcome)
                    }),
                })
            })
        });
        kinds.insert(name.to_owned(), made.clone());
        made
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

fn describe() {
    describe_counter!("tidegate_engine_jobs_submitted_total", "Jobs accepted.");
    describe_counter!("tidegate_engine_attempts_total", "Jobs given to workers.");
    describe_counter!(
        "tidegate_engine_retries_total",
        "Attempts that failed and are to be followed by another."
    );
    describe_counter!("tidegate_engine_jobs_finished_total", "Jobs that ended, by how.");
    describe_histogram!(
        "tidegate_engine_queue_wait_seconds",
        "From being queued to being given to a worker."
    );
    describe_histogram!(
        "tidegate_engine_job_run_seconds",
        "From the first attempt's start to the job's end."
    );
    describe_histogram!("tidegate_engine_log_call_seconds", "How long calls of the event log take.");
    describe_counter!("tidegate_engine_log_errors_total", "Calls of the event log that failed.");
    describe_counter!("tidegate_engine_log_conflicts_total", "Commits that somebody else was faster than.");
    describe_counter!("tidegate_engine_events_total", "Events stored.");
    describe_counter!("tidegate_engine_event_bytes_total", "Bytes of events stored.");
    describe_histogram!("tidegate_engine_checkpoint_bytes", "Sizes of checkpoints.");
    describe_counter!(
        "tidegate_engine_reports_total",
        "Reports by what the worker was told; lease_lost: refused."
    );
    describe_counter!("tidegate_engine_leases_expired_total", "Leases whose worker gave no sign of life.");
    describe_counter!("tidegate_engine_hints_lost_total", "Times at which wake-ups were lost.");
    describe_gauge!("tidegate_engine_watches", "Logs followed here.");
    describe_histogram!(
        "tidegate_engine_watch_lag_seconds",
        "From an event's time to its being sent to a follower."
    );
    describe_gauge!("tidegate_engine_workers", "Workers connected here.");
    describe_gauge!("tidegate_engine_worker_slots", "Jobs that the workers connected here can run at once.");
    describe_gauge!("tidegate_engine_worker_slots_used", "Jobs that the workers connected here run.");
    describe_gauge!("tidegate_engine_kind_workers", "Workers connected here that offer the kind.");
    describe_gauge!("tidegate_engine_log_generation", "Grows when the log's server was replaced or emptied.");
    describe_gauge!("tidegate_engine_jobs", "Jobs in the whole log.");
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
        let text = metrics.render(&Now { jobs: Some([1, 0, 0, 0]), ..Now::default() });
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
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn labels_are_bounded_however_many_kinds_there_are() {
        let metrics = Metrics::new("test");
        for n in 0..1000 {
            metrics.waited(&format!("kind-{n}"), Duration::ZERO);
        }
        let text = metrics.render(&Now::default());
        let attempts = text.lines().filter(|l| l.starts_with("tidegate_engine_attempts_total{")).count();
        assert_eq!(attempts, MAX_KINDS + 1);
        assert!(text.contains("kind=\"other\""));
    }
}
