//! The W3C trace context (<https://www.w3.org/TR/trace-context/>) between the parts, and the spans that are exported.
//!
//! A span is exported if its target is [`TARGET`]; nothing else is. Unless traces are exported, such spans are disabled where
//! they stand: no span is made, and everything here costs a look at an atomic, unless a caller named a trace. That is
//! passed on as it came, so that a part without an export is no hole in the trace of others. There is no span for an event
//! of a job, and none that lasts as long as a stream: one that is open for hours would not be seen for hours.
//!
//! `tracestate` and baggage are not passed on: they are somebody else's data in our log.

use opentelemetry::{
    Context,
    propagation::{Extractor, Injector, TextMapPropagator as _},
    trace::TraceContextExt as _,
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tonic::metadata::MetadataMap;
use tracing::{Instrument as _, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// The target of spans that are exported.
pub const TARGET: &str = "trace";

/// The header and the gRPC metadata that carry the context.
pub const TRACEPARENT: &str = "traceparent";

tokio::task_local! {
    /// What is passed on where nothing is exported.
    static PASSED: String;
}

/// Makes `span` a child of what `traceparent` names, unless that is empty or malformed. To be called before the span is
/// entered.
#[must_use]
pub fn child_of(span: Span, traceparent: &str) -> Span {
    if !span.is_disabled()
        && let Some(parent) = read(traceparent)
    {
        // It fails only for a span that has begun.
        let _ = span.set_parent(parent);
    }
    span
}

/// Runs `work` within `span`, a child of what `traceparent` names. When the span is not exported, [`here`] is
/// that traceparent for `work`, unless it is malformed. A task that `work` spawns is on its own.
pub async fn within<F: Future>(span: Span, traceparent: &str, work: F) -> F::Output {
    let span = child_of(span, traceparent);
    let passed = pass(&span, traceparent);
    if span.is_disabled() && !passed.is_empty() {
        return PASSED.scope(passed, work).await;
    }
    work.instrument(span).await
}

/// The `traceparent` of a span, to be handed on; empty when it is not exported.
pub fn of(span: &Span) -> String {
    if span.is_disabled() { String::new() } else { write(&span.context()) }
}

/// The `traceparent` to hand on for what is a child of `traceparent`: of the span, or when that is not exported, what it
/// would have been a child of. Empty when that is malformed.
pub fn pass(span: &Span, traceparent: &str) -> String {
    match span.is_disabled() {
        true => read(traceparent).as_ref().map(write).unwrap_or_default(),
        false => of(span),
    }
}

/// The `traceparent` of the current span, or what [`within`] was told; empty when there is none.
pub fn here() -> String {
    let span = Span::current();
    match span.is_disabled() {
        true => PASSED.try_with(String::clone).unwrap_or_default(),
        false => of(&span),
    }
}

/// Names what is [`here`] to the other end of a gRPC call.
pub fn carry(metadata: &mut MetadataMap) {
    carry_on(&here(), metadata);
}

/// Names `traceparent`, unless it is empty, to the other end of a gRPC call.
pub fn carry_on(traceparent: &str, metadata: &mut MetadataMap) {
    if !traceparent.is_empty()
        && let Ok(value) = traceparent.parse()
    {
        metadata.insert(TRACEPARENT, value);
    }
}

/// The context that a `traceparent` names; nothing if it is empty or malformed.
fn read(traceparent: &str) -> Option<Context> {
    if traceparent.is_empty() {
        return None;
    }
    let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &One(traceparent));
    let is_valid = parent.span().span_context().is_valid();
    is_valid.then_some(parent)
}

fn write(context: &Context) -> String {
    let mut carrier = Carrier::default();
    TraceContextPropagator::new().inject_context(context, &mut carrier);
    carrier.0
}

/// What the other end of a gRPC call named; empty if nothing.
pub fn carried(metadata: &MetadataMap) -> &str {
    metadata.get(TRACEPARENT).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// Carries the one header out.
#[derive(Default)]
struct Carrier(String);

impl Injector for Carrier {
    fn set(&mut self, key: &str, value: String) {
        if key == TRACEPARENT {
            self.0 = value;
        }
    }
}

/// Shows the one header.
struct One<'a>(&'a str);

impl Extractor for One<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        (key == TRACEPARENT).then_some(self.0)
    }

    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT]
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[test]
    fn a_context_survives_the_way_from_one_part_to_the_next() {
        let provider = SdkTracerProvider::builder().build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let outside = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
            let span = child_of(tracing::info_span!(target: TARGET, "one"), outside);
            let handed = span.in_scope(here);
            assert!(handed.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-"), "{handed}");
            assert!(!handed.contains("00f067aa0ba902b7"), "the span itself is the next one's parent");
            let mut metadata = MetadataMap::new();
            span.in_scope(|| carry(&mut metadata));
            assert_eq!(carried(&metadata), handed);
            assert_eq!(pass(&span, outside), handed, "one's own goes before the parent's");
            let long = "0".repeat(1000);
            for hostile in ["", "00-zz", "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", &long] {
                let fresh = of(&child_of(tracing::info_span!(target: TARGET, "two"), hostile));
                assert!(fresh.len() == 55 && !fresh.contains("4bf92f35"), "{hostile}: {fresh}");
            }
        });
    }

    #[tokio::test]
    async fn without_an_export_a_context_is_passed_on_as_it_came() {
        let outside = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let look = async || {
            let mut metadata = MetadataMap::new();
            carry(&mut metadata);
            (here(), carried(&metadata).to_owned())
        };
        let none = (String::new(), String::new());
        assert_eq!(look().await, none);
        let (here, carried) = within(Span::none(), outside, look()).await;
        assert_eq!((&*here, &*carried), (outside, outside));
        assert_eq!(pass(&Span::none(), outside), outside);
        let long = "0".repeat(1000);
        for hostile in ["", "00-zz", "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", &long] {
            assert_eq!(within(Span::none(), hostile, look()).await, none, "{hostile}");
            assert_eq!(pass(&Span::none(), hostile), "", "{hostile}");
        }
    }
}
