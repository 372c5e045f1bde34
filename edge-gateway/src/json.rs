//! Contract messages as the JSON that browsers see: their values, and the pieces that jobs and events share.
//!
//! camelCase keys in a fixed order, absent means omitted, times are RFC 3339 UTC with milliseconds. Documents that
//! users supplied (input, result, example) pass through as text, so that 64-bit integers and key order survive; a
//! text that is no JSON after all is shown as a JSON string rather than breaking the document around it.

mod job;

use prost_types::{Duration, Timestamp};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use tidegate_proto::v1::{CancelRequested, JobState, Progress};
use utoipa::{
    ToSchema,
    openapi::{Object, ObjectBuilder, Type},
};

pub(crate) use job::{JobView, KindView};

/// A JSON document supplied by somebody else.
pub(crate) enum Document<'a> {
    /// Checked to be one JSON value.
    Json(&'a RawValue),
    /// Not JSON: carried as a string.
    Text(&'a str),
    /// Nothing at all.
    Null,
}

impl<'a> Document<'a> {
    /// Checks `text`; its outer white space is dropped.
    pub(crate) fn new(text: &'a str) -> Self {
        if text.is_empty() {
            return Self::Null;
        }
        serde_json::from_str(text).map_or(Self::Text(text), Self::Json)
    }

    /// The document, or nothing when it is empty.
    fn present(text: &'a str) -> Option<Self> {
        (!text.is_empty()).then(|| Self::new(text))
    }
}

impl Serialize for Document<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Json(raw) => raw.serialize(serializer),
            Self::Text(text) => serializer.serialize_str(text),
            Self::Null => serializer.serialize_unit(),
        }
    }
}

/// A number that prints without a fraction when it has none; NaN and infinity print as null.
#[derive(Clone, Copy)]
pub(crate) struct Number(pub(crate) f64);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        const EXACT: f64 = 9_007_199_254_740_992.0; // 2^53: every whole number below is exact
        if !self.0.is_finite() {
            serializer.serialize_unit()
        } else if self.0.fract() == 0.0 && self.0.abs() <= EXACT {
            #[expect(clippy::cast_possible_truncation, reason = "whole and within 2^53")]
            serializer.serialize_i64(self.0 as i64)
        } else {
            serializer.serialize_f64(self.0)
        }
    }
}

/// The text unless it is empty, because protobuf knows no absent string.
pub(crate) fn text(value: &str) -> Option<&str> {
    (!value.is_empty()).then_some(value)
}

/// RFC 3339 in UTC, cut to milliseconds.
pub(crate) fn time(at: &Timestamp) -> String {
    let millis = at.nanos.clamp(0, 999_999_999) / 1_000_000;
    let mut out = Timestamp { seconds: at.seconds, nanos: millis * 1_000_000 }.to_string();
    if millis == 0 && out.ends_with('Z') && !out.contains('.') {
        out.truncate(out.len() - 1);
        out.push_str(".000Z");
    }
    out
}

/// A time in seconds since 1970, as [`time`] has it.
pub(crate) fn unix(seconds: u64) -> String {
    time(&Timestamp { seconds: i64::try_from(seconds).unwrap_or(i64::MAX), nanos: 0 })
}

/// Seconds with their fraction.
pub(crate) fn seconds(duration: &Duration) -> Number {
    #[expect(clippy::cast_precision_loss, reason = "an estimate; 2^53 seconds are 285 million years")]
    Number(duration.seconds as f64 + f64::from(duration.nanos) / 1e9)
}

/// The state's name; a state of a newer engine must not break the document.
pub(crate) fn state(number: i32) -> &'static str {
    JobState::try_from(number).unwrap_or_default().short_name()
}

/// How the API document describes a state's name.
pub(crate) fn state_schema() -> Object {
    let names = (1..).map_while(|number| JobState::try_from(number).ok()).map(JobState::short_name);
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(names)).build()
}

/// A checkpoint's name and size in bytes; its content is the worker's own.
#[derive(Serialize, ToSchema)]
#[schema(as = Checkpoint)]
pub(crate) struct CheckpointView<'a> {
    pub(crate) name: &'a str,
    pub(crate) size: u32,
}

/// A cancellation that was asked for, and by when the worker has to obey.
#[derive(Serialize, ToSchema)]
#[schema(as = CancelRequested)]
pub(crate) struct CancelView<'a> {
    by: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    deadline: Option<String>,
}

impl<'a> From<&'a CancelRequested> for CancelView<'a> {
    fn from(cancel: &'a CancelRequested) -> Self {
        Self { by: &cancel.by, reason: text(&cancel.reason), deadline: cancel.deadline.as_ref().map(time) }
    }
}

/// How far the work is, besides its percentage and message.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Measure<'a> {
    /// Counted in `unit`, as are `total` and `rate`; may exceed 2^53.
    #[serde(skip_serializing_if = "Option::is_none")]
    done: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unit: Option<&'a str>,
    /// The step at hand, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    steps: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    step_name: Option<&'a str>,
    /// Per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<f64>)]
    rate: Option<Number>,
    /// How long it may take until the end, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<f64>)]
    eta_seconds: Option<Number>,
}

impl<'a> From<&'a Progress> for Measure<'a> {
    fn from(progress: &'a Progress) -> Self {
        Self {
            done: progress.done,
            total: progress.total,
            unit: text(&progress.unit),
            step: progress.step,
            steps: progress.steps,
            step_name: text(&progress.step_name),
            rate: progress.rate.map(Number),
            eta_seconds: progress.eta.as_ref().map(seconds),
        }
    }
}

/// A field of a gRPC request as the HTTP side calls it.
pub(crate) fn field_name(field: &str) -> &str {
    match field {
        "input_json" => "input",
        "idempotency_key" => "Idempotency-Key",
        "page_size" => "limit",
        "page_token" => "cursor",
        "time_zone" => "timeZone",
        "catch_up" => "catchUpSeconds",
        "options.delay" => "options.delaySeconds",
        "options.max_attempts" => "options.maxAttempts",
        "options.backoff" => "options.backoffSeconds",
        "options.max_backoff" => "options.maxBackoffSeconds",
        "options.max_stalls" => "options.maxStalls",
        "options.retention" => "options.retentionSeconds",
        "options.timeout" => "options.timeoutSeconds",
        "options.progress_deadline" => "options.progressDeadlineSeconds",
        "options.unique_key" => "options.uniqueKey",
        "options.run_at" => "options.runAt",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_carry_milliseconds_always() {
        let at = |seconds, nanos| time(&Timestamp { seconds, nanos });
        assert_eq!(at(0, 0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(1_700_000_000, 123_456_789), "2023-11-14T22:13:20.123Z");
        assert_eq!(at(1_700_000_000, 5), "2023-11-14T22:13:20.000Z");
    }

    #[test]
    fn e57_numbers_and_unknown_states_are_pinned() {
        let print = |n| serde_json::to_string(&Number(n)).unwrap();
        assert_eq!(print(25.0), "25");
        assert_eq!(print(12.5), "12.5");
        assert_eq!(print(f64::NAN), "null");
        assert_eq!(print(f64::INFINITY), "null");
        assert_eq!(state(3), "PROCESSING");
        assert_eq!(state(99), "UNSPECIFIED");
    }
}
