//! What is counted of each kind of job. The handles are made when the kind is first met.
//!
//! Invariant: at most [`MAX_KINDS`] kinds are told apart, whatever workers and clients send; further ones are counted
//! together. What it does not do: decide what is counted.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tidegate_telemetry::{Counter, Gauge, Histogram, Recorder, counter, gauge, histogram};

/// How many kinds are told apart; further ones are counted together as [`OTHER`].
const MAX_KINDS: usize = 100;

/// The name under which further kinds are counted.
const OTHER: &str = "other";

/// Ways for a job to end, as [`super::peek::Step::Ended`] numbers them.
const OUTCOMES: [&str; 3] = ["completed", "failed", "cancelled"];

/// The kinds met so far.
#[derive(Default)]
pub(super) struct Kinds(Mutex<HashMap<String, Arc<OfKind>>>);

/// The handles of one kind of job.
pub(super) struct OfKind {
    pub(super) submitted: Counter,
    pub(super) started: Counter,
    pub(super) retried: Counter,
    pub(super) wait: Histogram,
    pub(super) run: Histogram,
    pub(super) finished: [Counter; OUTCOMES.len()],
    workers: Gauge,
}

impl Kinds {
    /// The handles of a kind.
    pub(super) fn of(&self, kind: &str, recorder: &Recorder) -> Arc<OfKind> {
        let mut kinds = self.0.lock();
        if let Some(known) = kinds.get(kind) {
            return known.clone();
        }
        let name = if kinds.len() < MAX_KINDS { kind } else { OTHER };
        let made = kinds.get(name).cloned().unwrap_or_else(|| {
            let of_kind = [("kind", name)];
            Arc::new(recorder.with(|| OfKind {
                submitted: counter("tidegate_engine_jobs_submitted_total", "Jobs accepted.", &of_kind),
                started: counter("tidegate_engine_attempts_total", "Jobs given to workers.", &of_kind),
                retried: counter(
                    "tidegate_engine_retries_total",
                    "Attempts that failed and are to be followed by another.",
                    &of_kind,
                ),
                wait: histogram(
                    "tidegate_engine_queue_wait_seconds",
                    "From being queued to being given to a worker.",
                    &of_kind,
                ),
                run: histogram(
                    "tidegate_engine_job_run_seconds",
                    "From the first attempt's start to the job's end.",
                    &of_kind,
                ),
                workers: gauge(
                    "tidegate_engine_kind_workers",
                    "Workers connected here that offer the kind.",
                    &of_kind,
                ),
                finished: OUTCOMES.map(|outcome| {
                    counter(
                        "tidegate_engine_jobs_finished_total",
                        "Jobs that ended, by how.",
                        &[("kind", name), ("outcome", outcome)],
                    )
                }),
            }))
        });
        kinds.insert(name.to_owned(), made.clone());
        made
    }

    /// Sets how many workers offer each kind. Each gauge goes from one truth to the next, however many set it at once.
    #[expect(clippy::cast_precision_loss, reason = "gauges are floating-point numbers")]
    pub(super) fn set_workers(&self, by_kind: &HashMap<String, usize>, recorder: &Recorder) {
        for kind in by_kind.keys() {
            self.of(kind, recorder);
        }
        let kinds = self.0.lock();
        let mut sums: HashMap<&str, usize> = HashMap::new();
        for (kind, workers) in by_kind {
            // Those that have no name of their own add up.
            let name = if kinds.contains_key(kind) { kind } else { OTHER };
            *sums.entry(name).or_default() += workers;
        }
        for (kind, known) in &*kinds {
            known.workers.set(sums.get(&**kind).copied().unwrap_or_default() as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_bounded_however_many_kinds_there_are() {
        let (kinds, recorder) = (Kinds::default(), Recorder::new("test", "1", &[]));
        for n in 0..1000 {
            kinds.of(&format!("kind-{n}"), &recorder).started.increment(1);
        }
        let text = recorder.render();
        let attempts = text.lines().filter(|l| l.starts_with("tidegate_engine_attempts_total{")).count();
        assert_eq!(attempts, MAX_KINDS + 1);
        assert!(text.contains("kind=\"other\"} 900"), "{text}");
    }

    #[test]
    fn whoever_sets_the_workers_at_once_neither_doubles_nor_hides_them() {
        let (kinds, recorder) = (Kinds::default(), Recorder::new("test", "1", &[]));
        let by_kind: HashMap<_, _> = (0..MAX_KINDS + 2).map(|n| (format!("kind-{n}"), 3)).collect();
        kinds.set_workers(&by_kind, &recorder);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..200).for_each(|_| kinds.set_workers(&by_kind, &recorder)));
            }
            for _ in 0..200 {
                let text = recorder.render();
                let gauges = text.lines().filter(|line| line.starts_with("tidegate_engine_kind_workers{"));
                let wrong: Vec<_> = gauges
                    .filter(|line| !line.ends_with(if line.contains("\"other\"") { " 6" } else { " 3" }))
                    .collect();
                assert!(wrong.is_empty(), "{wrong:?}");
            }
        });
        kinds.set_workers(&HashMap::new(), &recorder);
        let text = recorder.render();
        let mut gauges = text.lines().filter(|line| line.starts_with("tidegate_engine_kind_workers{"));
        assert!(gauges.all(|line| line.ends_with(" 0")), "those that left are counted no more");
    }
}
