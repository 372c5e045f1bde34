//! What the gateway counts: few names, bounded labels, handles kept where events pass.
//!
//! Each gateway has a recorder of its own, so that several in one process (tests, embedders) do not share figures.
//! No job, user or address is ever a label.

use std::{fmt, sync::Arc};

use http::Version;
use tidegate_telemetry::{Counter, Gauge, Histogram, LONG, QUICK, Recorder, counter, gauge, histogram};

use crate::problems;

/// What became of a viewer's position when it attached.
const OUTCOMES: [&str; 5] = ["fresh", "exact", "trimmed", "reset", "finished"];
/// Why a stream ended; all but the first two are the reasons of goodbyes.
const REASONS: [&str; 9] = [
    "finished",
    "client-left",
    "draining",
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

/// What streams come over, by the names of ALPN.
const PROTOCOLS: [&str; 2] = ["http/1.1", "h2"];

/// Histograms and their buckets.
const BUCKETS: &[(&str, &[f64])] = &[
    ("tidegate_gateway_delivery_lag_seconds", QUICK),
    ("tidegate_gateway_stream_seconds", LONG),
    ("tidegate_gateway_open_seconds", QUICK),
];

/// The handles.
pub(crate) struct Metrics {
    recorder: Arc<Recorder>,
    /// Open SSE streams, in the order of [`PROTOCOLS`].
    active: [Gauge; PROTOCOLS.len()],
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
    /// From an event's time to a connection.
    pub(crate) lag: Histogram,
    /// How long streams lasted.
    pub(crate) lifetime: Histogram,
    /// How long opening a stream took.
    pub(crate) open: Histogram,
    /// Logs that began to be followed.
    pub(crate) upstreams_opened: Counter,
    /// Streams that joined a followed log.
    pub(crate) shared: Counter,
    /// Times at which a viewer had fallen behind the ring.
    pub(crate) slow: Counter,
    ring_bytes: Gauge,
    opened: [Counter; OUTCOMES.len()],
    closed: [Counter; REASONS.len()],
    refused: [Counter; POLICIES.len()],
    problems: Vec<(&'static str, Counter)>,
    /// Clients whose quota is not whole.
    pub(crate) limit_keys: Gauge,
    /// Questions about limits that Redis did not answer.
    pub(crate) limit_outages: Counter,
    /// Times at which that Redis answered again.
    pub(crate) limit_reconnects: Counter,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let recorder = Arc::new(Recorder::new("gateway", env!("CARGO_PKG_VERSION"), BUCKETS));
        recorder.clone().with(|| Self {
            recorder,
            lag: histogram(
                "tidegate_gateway_delivery_lag_seconds",
                "From an event's time to its being handed to the connection, by one \
                 viewer in 64 that are up to date.",
                &[],
            ),
            lifetime: histogram("tidegate_gateway_stream_seconds", "How long streams lasted.", &[]),
            open: histogram("tidegate_gateway_open_seconds", "How long opening a stream took.", &[]),
            upstreams_opened: counter(
                "tidegate_gateway_upstreams_opened_total",
                "Logs that began to be followed at the engine.",
                &[],
            ),
            shared: counter(
                "tidegate_gateway_upstreams_shared_total",
                "Streams that joined a followed log.",
                &[],
            ),
            slow: counter(
                "tidegate_gateway_slow_viewers_total",
                "Times at which a viewer had fallen behind the ring and read history.",
                &[],
            ),
            ring_bytes: gauge(
                "tidegate_gateway_ring_bytes",
                "Bytes of events kept in rings, shared by viewers.",
                &[],
            ),
            active: PROTOCOLS.map(|p| {
                gauge(
                    "tidegate_gateway_streams",
                    "Open SSE streams; one that follows several jobs counts for each.",
                    &[("protocol", p)],
                )
            }),
            events: counter("tidegate_gateway_events_total", "Events handed to viewers.", &[]),
            bytes: counter("tidegate_gateway_bytes_total", "Bytes of events handed to viewers.", &[]),
            upstreams: gauge("tidegate_gateway_upstreams", "Logs that are followed at the engine.", &[]),
            breaks: counter(
                "tidegate_gateway_upstream_breaks_total",
                "Upstreams that broke and were resumed.",
                &[],
            ),
            history_reads: counter(
                "tidegate_gateway_history_reads_total",
                "Pages read for viewers behind the ring.",
                &[],
            ),
            engines_known: gauge("tidegate_gateway_engines_known", "Addresses of engines.", &[]),
            engines_serving: gauge(
                "tidegate_gateway_engines_serving",
                "Engines that say that they serve.",
                &[],
            ),
            opened: OUTCOMES.map(|o| {
                counter(
                    "tidegate_gateway_streams_opened_total",
                    "Streams by what became of their cursor.",
                    &[("outcome", o)],
                )
            }),
            limit_keys: gauge("tidegate_gateway_limit_keys", "Clients whose quota is not whole.", &[]),
            limit_reconnects: counter(
                "tidegate_gateway_limit_redis_reconnects_total",
                "Times at which the Redis of limits answered again after it had not.",
                &[],
            ),
            limit_outages: counter(
                "tidegate_gateway_limit_redis_failures_total",
                "Questions about limits that Redis did not answer.",
                &[],
            ),
            refused: POLICIES.map(|p| {
                counter(
                    "tidegate_gateway_refused_total",
                    "Refusals by the policy that was exceeded.",
                    &[("policy", p)],
                )
            }),
            problems: problems::slugs()
                .map(|slug| {
                    let says = "Requests refused, by the problem that was told.";
                    (slug, counter("tidegate_gateway_problems_total", says, &[("problem", slug)]))
                })
                .collect(),
            closed: REASONS.map(|r| {
                counter(
                    "tidegate_gateway_streams_closed_total",
                    "Streams by why they ended.",
                    &[("reason", r)],
                )
            }),
        })
    }

    /// How many streams are open over this version of HTTP; what is older than 1.1 counts as that.
    pub(crate) fn active(&self, version: Version) -> &Gauge {
        &self.active[usize::from(version >= Version::HTTP_2)]
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

    /// Counts a request that was refused.
    pub(crate) fn problem(&self, problem: &'static str) {
        if let Some((_, counter)) = self.problems.iter().find(|(known, _)| *known == problem) {
            counter.increment(1);
        }
    }

    /// The text that Prometheus scrapes.
    #[expect(clippy::cast_precision_loss, reason = "gauges are floating-point numbers")]
    pub(crate) fn render(&self, ring_bytes: usize) -> String {
        self.ring_bytes.set(ring_bytes as f64);
        self.recorder.render()
    }

    /// To be called every few seconds, scraped or not.
    pub(crate) fn upkeep(&self) {
        self.recorder.upkeep();
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
