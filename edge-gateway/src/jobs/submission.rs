//! What a submission says: the JSON of `POST /api/jobs`, and how it is told to the engine.
//!
//! Shapes only: what the values may be beyond their types is the engine's to judge.

use std::num::NonZeroU32;

use prost_types::{Duration, Timestamp};
use serde::Deserialize;
use serde_json::value::RawValue;
use tidegate_proto::v1::{Concurrency, JobOptions};
use utoipa::ToSchema;

/// A job to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Submission {
    /// What kind of job: `GET /api/kinds` lists them.
    #[schema(pattern = "^[a-z][a-z0-9._-]{0,63}$")]
    pub(super) kind: String,
    /// What the worker is given. Kept as text: 64-bit integers and the order of keys survive.
    #[serde(default)]
    #[schema(value_type = Option<Value>)]
    pub(super) input: Option<Box<RawValue>>,
    #[serde(default)]
    pub(super) options: Options,
}

/// When it runs, how often it is tried, and beside which others. Seconds may have a fraction.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Options {
    /// How long it waits before it is queued; 0 unless given.
    #[schema(value_type = Option<f64>, minimum = 0)]
    delay_seconds: Option<Seconds>,
    /// How many attempts may fail in all; 1 unless given.
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 100)]
    max_attempts: Option<NonZeroU32>,
    /// The pause after the first failure, doubled after each further one; 1 unless given.
    #[schema(value_type = Option<f64>, minimum = 0)]
    backoff_seconds: Option<Seconds>,
    /// The longest pause; 300 unless given.
    #[schema(value_type = Option<f64>, minimum = 0)]
    max_backoff_seconds: Option<Seconds>,
    /// How often a worker may vanish with it; 3 unless given.
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 100)]
    max_stalls: Option<NonZeroU32>,
    /// How long it is kept after its end, 60 at least; a week unless given.
    #[schema(value_type = Option<f64>, minimum = 60)]
    retention_seconds: Option<Seconds>,
    /// Orders an owner's own jobs of a kind: the higher starts first.
    #[serde(default)]
    #[schema(minimum = -100, maximum = 100)]
    priority: i32,
    /// Ends an attempt that takes longer, at most 30 days; none unless given.
    #[schema(value_type = Option<f64>, minimum = 1)]
    timeout_seconds: Option<Seconds>,
    /// Ends an attempt that reports nothing for so long, at most 30 days; none unless given.
    #[schema(value_type = Option<f64>, minimum = 1)]
    progress_deadline_seconds: Option<Seconds>,
    concurrency: Option<ConcurrencyKey>,
    /// One unfinished job at most has this key in the tenant.
    #[schema(max_length = 128)]
    unique_key: Option<String>,
    /// Starts at this time; instead of a delay.
    #[schema(value_type = Option<String>, format = DateTime)]
    run_at: Option<Moment>,
}

/// How many jobs with the same key run at once, in the whole tenant.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Concurrency)]
struct ConcurrencyKey {
    key: String,
    #[schema(minimum = 1, maximum = 1000)]
    limit: u32,
}

/// A time as RFC 3339 writes it, such as `2026-11-21T08:00:00Z`.
#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
struct Moment(Timestamp);

impl TryFrom<String> for Moment {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, &'static str> {
        text.parse().map(Self).map_err(|_| "a time is written like 2026-11-21T08:00:00Z (RFC 3339)")
    }
}

impl Options {
    pub(crate) fn proto(self) -> JobOptions {
        let seconds = |given: Option<Seconds>| given.and_then(Seconds::proto);
        JobOptions {
            delay: seconds(self.delay_seconds),
            max_attempts: self.max_attempts.map_or(0, NonZeroU32::get),
            backoff: seconds(self.backoff_seconds),
            max_backoff: seconds(self.max_backoff_seconds),
            max_stalls: self.max_stalls.map_or(0, NonZeroU32::get),
            retention: seconds(self.retention_seconds),
            priority: self.priority,
            timeout: seconds(self.timeout_seconds),
            progress_deadline: seconds(self.progress_deadline_seconds),
            concurrency: self.concurrency.map(|c| Concurrency { key: c.key, limit: c.limit }),
            unique_key: self.unique_key.unwrap_or_default(),
            run_at: self.run_at.map(|at| at.0),
        }
    }
}

/// Seconds, perhaps with a fraction; not negative, and at most a hundred years.
#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "f64")]
pub(crate) struct Seconds(std::time::Duration);

impl TryFrom<f64> for Seconds {
    type Error = &'static str;

    fn try_from(seconds: f64) -> Result<Self, &'static str> {
        const LONGEST: f64 = 100.0 * 365.0 * 86_400.0;
        if !(0.0..=LONGEST).contains(&seconds) {
            return Err("seconds must not be negative, nor more than a hundred years");
        }
        Ok(Self(std::time::Duration::from_secs_f64(seconds)))
    }
}

impl Seconds {
    pub(crate) fn proto(self) -> Option<Duration> {
        self.0.try_into().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{jobs::parse, problem::Problem};

    #[test]
    fn every_option_reaches_the_engine() {
        let body = r#"{"kind":"a","options":{"delaySeconds":0.5,"maxAttempts":3,"backoffSeconds":2,"maxBackoffSeconds":9,
            "maxStalls":4,"retentionSeconds":60,"priority":-7,"timeoutSeconds":1.5,"progressDeadlineSeconds":10,
            "concurrency":{"key":"k","limit":2},"uniqueKey":"u","runAt":"2026-11-21T09:00:00.5+01:00"}}"#;
        let duration = |seconds, nanos| Some(Duration { seconds, nanos });
        let expected = JobOptions {
            delay: duration(0, 500_000_000),
            max_attempts: 3,
            backoff: duration(2, 0),
            max_backoff: duration(9, 0),
            max_stalls: 4,
            retention: duration(60, 0),
            priority: -7,
            timeout: duration(1, 500_000_000),
            progress_deadline: duration(10, 0),
            concurrency: Some(Concurrency { key: "k".into(), limit: 2 }),
            unique_key: "u".into(),
            run_at: Some(Timestamp { seconds: 1_795_248_000, nanos: 500_000_000 }),
        };
        assert_eq!(parse::<Submission>(body.as_bytes()).unwrap().options.proto(), expected);
    }

    #[test]
    fn bodies_are_parsed_strictly() {
        let kind = |body: &str| parse::<Submission>(body.as_bytes());
        let raw = kind(r#"{"kind":"a","input":{"n":18446744073709551615 , "a":1}}"#).unwrap().input.unwrap();
        assert_eq!(raw.get(), r#"{"n":18446744073709551615 , "a":1}"#);
        assert!(matches!(kind("{\n  \"kind\": }"), Err(Problem::MalformedJson { line: 2, column: 11, .. })));
        assert!(matches!(kind(""), Err(Problem::MalformedJson { .. })));
        assert!(matches!(kind("{\"kind\":\"a\"} x"), Err(Problem::MalformedJson { .. })));
        assert!(matches!(kind("\u{1}"), Err(Problem::MalformedJson { .. })));
        assert!(matches!(
            kind(&"[".repeat(10_000)),
            Err(Problem::MalformedJson { .. } | Problem::InvalidArgument { .. })
        ));
        for bad in [
            r#"{}"#,
            r#"{"kind":"a","more":1}"#,
            r#"{"kind":1}"#,
            r#"{"kind":"a","options":{"delaySeconds":-1}}"#,
            r#"{"kind":"a","options":{"delaySeconds":1e300}}"#,
            r#"{"kind":"a","options":{"maxAttempts":1.5}}"#,
            r#"{"kind":"a","options":{"maxAttempts":0}}"#,
            r#"{"kind":"a","options":{"priority":0.5}}"#,
            r#"{"kind":"a","options":{"concurrency":"key"}}"#,
            r#"{"kind":"a","options":{"concurrency":{"key":"k"}}}"#,
            r#"{"kind":"a","options":{"concurrency":{"key":"k","limit":-1}}}"#,
            r#"{"kind":"a","options":{"runAt":"tomorrow"}}"#,
            r#"{"kind":"a","options":{"runAt":1700000000}}"#,
        ] {
            assert!(matches!(kind(bad), Err(Problem::InvalidArgument { .. })), "{bad}");
        }
    }
}
