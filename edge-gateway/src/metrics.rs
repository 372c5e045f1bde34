//! What the gateway counts: few names, bounded labels, handles kept where events pass.
//!
//! Each gateway has a recorder of its own, so that several in one process (tests, embedders) do not share figures.
//! No job, user or address is ever a label.

use std::fmt;

use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

/// What became of a viewer's position when it attached.
const OUTCOMES: [&str; 5] = ["fresh", "exact", "trimmed", "reset", "finished"];
/// Why a stream ended; all but the first two are the reasons of goodbyes.
const REASONS: [&str; 10] = [
    "finished",
    "client-left",
    "draining",
    "too-many-streams",
    "engine-unavailable",
    "deleted",
    "expired",
    "revoked",
    "moved",
    "closed",
];

/// The limits that refuse requests, streams and connections.
const POLICIES: [&str; 14] = [
    "submit-ip",
    "submit-subject",
    "submit-tenant",
    "connect-ip",
    "connect-subject",
    "connect-tenant",
    "read-ip",
    "read-subject",
    "read-tenant",
    "streams-ip",
    "streams-subject",
    "streams-tenant",
    "streams-process",
    "connections-ip",
];

/// The handles.
pub(crate) struct Metrics {
    handle: PrometheusHandle,
    /// Open SSE streams.
    pub(crate) active: Gauge,
    /// Events handed to viewers.
    pub(crate) events: Counter,
    /// Bytes handed to viewers.
    pub(crate) bytes: Counter,
    /// Logs that are followed.
    pub(crate) upstreams: Gauge,
    /// Breaks of upstreams, each followed by another try.
    pub(crate) breaks: Counter,
    /// Pages read for viewers behind the ring.
    pub(crate) history_reads: Counter,
    engines_known: Gauge,
    engines_serving: Gauge,
    opened: [Counter; OUTCOMES.len()],
    closed: [Counter; REASONS.len()],
    refused: [Counter; POLICIES.len()],
    /// Clients whose quota is not whole.
    pub(crate) limit_keys: Gauge,
    /// Questions about limits that Redis did not answer.
    pub(crate) limit_outages: Counter,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            describe_gauge!(
                "tidegate_gateway_streams",
                "Open SSE streams; one that follows several jobs counts for each."
            );
            describe_counter!("tidegate_gateway_events_total", "Events handed to viewers.");
            describe_counter!("tidegate_gateway_bytes_total", "Bytes of events handed to viewers.");
            describe_gauge!("tidegate_gateway_upstreams", "Logs that are followed at the engine.");
            describe_counter!(
                "tidegate_gateway_upstream_breaks_total",
                "Upstreams that broke and were resumed."
            );
            describe_counter!(
                "tidegate_gateway_history_reads_total",
                "Pages read for viewers behind the ring."
            );
            describe_counter!(
                "tidegate_gateway_streams_opened_total",
                "Streams by what became of their cursor."
            );
            describe_counter!("tidegate_gateway_streams_closed_total", "Streams by why they ended.");
            describe_gauge!("tidegate_gateway_engines_known", "Addresses of engines.");
            describe_gauge!("tidegate_gateway_engines_serving", "Engines that say that they serve.");
            describe_counter!("tidegate_gateway_refused_total", "Refusals by the policy that was exceeded.");
            describe_gauge!("tidegate_gateway_limit_keys", "Clients whose quota is not whole.");
            describe_counter!(
                "tidegate_gateway_limit_redis_failures_total",
                "Questions about limits that Redis did not answer."
            );
            Self {
                handle,
                active: gauge!("tidegate_gateway_streams"),
                events: counter!("tidegate_gateway_events_total"),
                bytes: counter!("tidegate_gateway_bytes_total"),
                upstreams: gauge!("tidegate_gateway_upstreams"),
                breaks: counter!("tidegate_gateway_upstream_breaks_total"),
                history_reads: counter!("tidegate_gateway_history_reads_total"),
                engines_known: gauge!("tidegate_gateway_engines_known"),
                engines_serving: gauge!("tidegate_gateway_engines_serving"),
                opened: OUTCOMES.map(|o| counter!("tidegate_gateway_streams_opened_total", "outcome" => o)),
                limit_keys: gauge!("tidegate_gateway_limit_keys"),
                limit_outages: counter!("tidegate_gateway_limit_redis_failures_total"),
                refused: POLICIES.map(|p| counter!("tidegate_gateway_refused_total", "policy" => p)),
                closed: REASONS.map(|r| counter!("tidegate_gateway_streams_closed_total", "reason" => r)),
            }
        })
    }

    /// Counts a stream by what became of its cursor.
    pub(crate) fn opened(&self, outcome: &'static str) {
        count(&OUTCOMES, &self.opened, outcome);
    }

    /// Notes how many engines there are, and how many of them serve.
    #[expect(clippy::cast_precision_loss, reason = "nobody has that many engines")]
    pub(crate) fn engines(&self, (known, serving): (usize, usize)) {
        self.engines_known.set(known as f64);
        self.engines_serving.set(serving as f64);
    }

    /// Counts a stream by why it ended.
    pub(crate) fn closed(&self, reason: &'static str) {
        count(&REASONS, &self.closed, reason);
    }

    /// Counts a refusal by the policy that was exceeded.
    pub(crate) fn refused(&self, policy: &'static str) {
        count(&POLICIES, &self.refused, policy);
    }

    /// The text that Prometheus scrapes.
    pub(crate) fn render(&self) -> String {
        self.handle.render()
    }

    /// To be called every few seconds, scraped or not.
    pub(crate) fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

fn count(labels: &[&str], counters: &[Counter], label: &str) {
    if let Some((_, counter)) = labels.iter().zip(counters).find(|(known, _)| **known == label) {
        counter.increment(1);
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}
