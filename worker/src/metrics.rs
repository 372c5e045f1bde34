//! What a worker counts: few names, labels that are its own kinds and a handful of words.
//!
//! Each worker has a recorder of its own, so that several in one process share no figure. Nothing is sampled, so nothing
//! has to be looked after: whoever wants the text asks [`Metrics::render`]. What it does not do: serve it; the
//! `tidegate-worker` binary does with `--admin-listen`.

use std::{collections::HashMap, fmt, sync::Arc};

use tidegate_proto::v1::ReportResult;
use tidegate_telemetry::{Counter, Gauge, Recorder, counter, gauge};

/// How a job leaves the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Completed,
    Failed,
    /// It was called off.
    Cancelled,
    /// It was given back.
    Released,
    /// Its lease was lost: it is another worker's, or nobody's.
    Lost,
}

impl Ending {
    /// A word for it.
    pub(crate) fn name(self) -> &'static str {
        ENDINGS[self as usize]
    }
}

/// In the order of [`Ending`].
const ENDINGS: [&str; 5] = ["completed", "failed", "cancelled", "released", "lost"];
/// What the engine says of a report.
const RESULTS: [&str; 4] = ["ok", "cancelled", "lease_lost", "rejected"];

/// A worker's metrics; see [`Worker::metrics`](crate::Worker::metrics).
pub struct Metrics {
    recorder: Recorder,
    kinds: HashMap<String, Arc<OfKind>>,
    reports: [Counter; RESULTS.len()],
    connected: Gauge,
    reconnects: Counter,
    /// Tries to connect that failed.
    pub(crate) connect_failures: Counter,
}

struct OfKind {
    running: Gauge,
    ended: [Counter; ENDINGS.len()],
}

impl Metrics {
    /// Metrics of a worker that runs `slots` jobs of these kinds at once.
    pub(crate) fn new<'a>(kinds: impl Iterator<Item = &'a str>, slots: u32) -> Self {
        let recorder = Recorder::new("worker", env!("CARGO_PKG_VERSION"), &[]);
        let of_kind = |kind: &str| OfKind {
            running: gauge("tidegate_worker_jobs", "Jobs that run here.", &[("kind", kind)]),
            ended: ENDINGS.map(|ending| {
                counter(
                    "tidegate_worker_jobs_ended_total",
                    "Attempts that ended here, by how; lost: with their lease.",
                    &[("kind", kind), ("outcome", ending)],
                )
            }),
        };
        let says = "Reports by what the engine answered; lease_lost: refused.";
        let metrics = recorder.with(|| {
            gauge("tidegate_worker_slots", "Jobs that can run here at once.", &[]).set(slots);
            (
                kinds.map(|kind| (kind.to_owned(), Arc::new(of_kind(kind)))).collect(),
                RESULTS.map(|result| counter("tidegate_worker_reports_total", says, &[("result", result)])),
                gauge("tidegate_worker_connected", "Whether an engine has welcomed the worker: 1 or 0.", &[]),
                counter("tidegate_worker_reconnects_total", "Engines that welcomed it after the first.", &[]),
                counter(
                    "tidegate_worker_connect_failures_total",
                    "Tries to reach an engine that failed.",
                    &[],
                ),
            )
        });
        let (kinds, reports, connected, reconnects, connect_failures) = metrics;
        Self { recorder, kinds, reports, connected, reconnects, connect_failures }
    }

    /// The text that Prometheus scrapes; [`tidegate_telemetry::CONTENT_TYPE`] is its type.
    pub fn render(&self) -> String {
        self.recorder.render()
    }

    /// Counts a job of the kind as running.
    pub(crate) fn begins(&self, kind: &str) -> Counted {
        let of = self.kinds.get(kind).cloned();
        of.iter().for_each(|of| of.running.increment(1.0));
        Counted(of)
    }

    /// Counts an answer to a report.
    pub(crate) fn answered(&self, result: i32) {
        let i = match ReportResult::try_from(result).unwrap_or_default() {
            ReportResult::Ok | ReportResult::Unspecified => 0,
            ReportResult::Cancelled => 1,
            ReportResult::LeaseLost => 2,
            ReportResult::Rejected => 3,
        };
        self.reports[i].increment(1);
    }

    /// An engine has welcomed the worker; `again` if it was not the first.
    pub(crate) fn connected(&self, again: bool) {
        self.connected.set(1.0);
        self.reconnects.increment(u64::from(again));
    }

    /// The connection is gone.
    pub(crate) fn disconnected(&self) {
        self.connected.set(0.0);
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

/// A job that counts as running until it is dropped.
pub(crate) struct Counted(Option<Arc<OfKind>>);

impl Counted {
    /// Counts how it ended.
    pub(crate) fn ended(self, ending: Ending) {
        self.0.iter().for_each(|of| of.ended[ending as usize].increment(1));
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.iter().for_each(|of| of.running.decrement(1.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_and_what_ended_are_told_apart_by_kind() {
        let metrics = Metrics::new(["a", "b"].into_iter(), 3);
        let (first, _second) = (metrics.begins("a"), metrics.begins("a"));
        metrics.begins("b").ended(Ending::Lost);
        first.ended(Ending::Completed);
        for result in [ReportResult::Ok, ReportResult::LeaseLost, ReportResult::Ok] {
            metrics.answered(result.into());
        }
        metrics.answered(99);
        metrics.connected(false);
        metrics.connected(true);
        let text = metrics.render();
        for line in [
            "tidegate_worker_slots 3",
            "tidegate_worker_jobs{kind=\"a\"} 1",
            "tidegate_worker_jobs{kind=\"b\"} 0",
            "tidegate_worker_jobs_ended_total{kind=\"a\",outcome=\"completed\"} 1",
            "tidegate_worker_jobs_ended_total{kind=\"b\",outcome=\"lost\"} 1",
            "tidegate_worker_jobs_ended_total{kind=\"b\",outcome=\"failed\"} 0",
            "tidegate_worker_reports_total{result=\"ok\"} 3",
            "tidegate_worker_reports_total{result=\"lease_lost\"} 1",
            "tidegate_worker_connected 1",
            "tidegate_worker_reconnects_total 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
    }
}
