//! Metrics: one recorder a part, so that several parts in one process (`tidegate`, tests, embedders) do not share
//! figures, and what every process has in common.
//!
//! Invariant: nothing that is measured carries a job, a user or an address. What it does not do: serve anything; each part
//! has its own admin port.

use std::fmt;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use metrics_process::Collector;
use tokio::runtime::Handle;

use crate::handles::{Gauge, gauge};

/// Buckets for what should be quick, in seconds: from a quarter of a millisecond to ten seconds.
pub const QUICK: &[f64] =
    &[0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Buckets for what may take its time, in seconds: from 50 milliseconds to a day.
pub const LONG: &[f64] =
    &[0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0];
/// Buckets for sizes, in bytes: from 64 bytes to 1 MiB.
pub const SIZES: &[f64] = &[64.0, 256.0, 1024.0, 4096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0];

/// The content type of [`Recorder::render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// One part's metrics.
pub struct Recorder {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    process: Collector,
    tasks: Gauge,
    queue: Gauge,
}

impl Recorder {
    /// A recorder for `part`, such as `gateway`. `buckets` are those of each histogram, by its full name.
    ///
    /// # Panics
    /// When a histogram has no buckets.
    pub fn new(part: &'static str, version: &'static str, buckets: &[(&str, &[f64])]) -> Self {
        let mut builder = PrometheusBuilder::new();
        for (name, bounds) in buckets {
            let name = Matcher::Full((*name).to_owned());
            builder = builder.set_buckets_for_metric(name, bounds).expect("a histogram has buckets");
        }
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        let (process, tasks, queue) = metrics::with_local_recorder(&recorder, || {
            let process = Collector::default();
            process.describe();
            let labels = [("part", part), ("version", version)];
            let build = "Always 1; the labels say which part and version this is.";
            gauge("tidegate_build_info", build, &labels).set(1.0);
            let tasks = gauge("tidegate_runtime_tasks", "Tasks alive in the asynchronous runtime.", &[]);
            let queue = gauge("tidegate_runtime_queue", "Tasks that wait for a thread of the runtime.", &[]);
            (process, tasks, queue)
        });
        Self { recorder, handle, process, tasks, queue }
    }

    /// Makes metrics: within `make`, [`counter`](crate::counter), [`gauge`](crate::gauge) and
    /// [`histogram`](crate::histogram) mean this recorder.
    pub fn with<T>(&self, make: impl FnOnce() -> T) -> T {
        metrics::with_local_recorder(&self.recorder, make)
    }

    /// The text that Prometheus scrapes.
    #[expect(clippy::cast_precision_loss, reason = "nobody has that many tasks")]
    pub fn render(&self) -> String {
        self.with(|| self.process.collect());
        if let Ok(runtime) = Handle::try_current() {
            let runtime = runtime.metrics();
            self.tasks.set(runtime.num_alive_tasks() as f64);
            self.queue.set(runtime.global_queue_depth() as f64);
        }
        self.handle.render()
    }

    /// To be called every few seconds, scraped or not: samples of histograms pile up until then.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recorder")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{counter, histogram};

    #[test]
    fn two_recorders_of_one_process_share_no_figure() {
        let [a, b] = [(); 2].map(|()| Recorder::new("test", "1", &[("seconds", QUICK)]));
        a.with(|| counter("counted_total", "Things.", &[])).increment(3);
        b.with(|| counter("counted_total", "Things.", &[])).increment(5);
        assert!(a.render().contains("counted_total 3\n"), "{}", a.render());
        assert!(b.render().contains("counted_total 5\n"));
    }

    #[test]
    fn histograms_have_their_buckets_and_processes_their_usual_names() {
        let recorder = Recorder::new("test", "1", &[("seconds", QUICK)]);
        recorder.with(|| histogram("seconds", "How long it took.", &[("of", "a \"call\"")])).record(0.3);
        recorder.upkeep();
        let text = recorder.render();
        for line in [
            "# HELP seconds How long it took.",
            r#"seconds_bucket{of="a \"call\"",le="0.25"} 0"#,
            r#"seconds_bucket{of="a \"call\"",le="0.5"} 1"#,
            "process_resident_memory_bytes ",
            "tidegate_build_info{part=\"test\",version=\"1\"} 1",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }
}
