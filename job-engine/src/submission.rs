//! Checks a submission completely, so that everything behind this point may trust it.

use std::time::Duration;

use tidegate_proto::{
    limits,
    v1::{Caller, Concurrency, JobOptions, SubmitJobRequest},
};

use crate::{access::internal, engine::new_job_id, error::EngineError, job::index, json::check_json};

/// A submission that obeys every rule, with its defaults filled in.
#[derive(Clone, Debug)]
pub struct Submission {
    /// On whose behalf.
    pub caller: Caller,
    /// The kind of work.
    pub kind: String,
    /// The input, a JSON text.
    pub input_json: String,
    /// The options, complete.
    pub options: JobOptions,
    /// The idempotency key, if one was given.
    pub idempotency_key: Option<String>,
    /// What it is submitted for, if a schedule submits it.
    pub firing: Option<Firing>,
}

/// One instant of a schedule.
#[derive(Clone, Debug)]
pub struct Firing {
    /// The schedule's name.
    pub schedule: String,
    /// The instant, in ms on the store's clock.
    pub at_ms: u64,
    /// The id of the job, which is decided before it is submitted.
    pub job_id: String,
}

impl Submission {
    /// A fresh job id, or that of the firing. Jobs of one concurrency key belong together: see [`new_job_id`].
    pub fn new_job_id(&self) -> String {
        if let Some(firing) = &self.firing {
            return firing.job_id.clone();
        }
        new_job_id(index::gate_of(&self.caller.tenant, &self.options).as_deref())
    }
}

const KEY: &str = "must have at most 128 printable ASCII characters";
/// The longest delay.
pub const YEAR: Duration = Duration::from_secs(366 * 24 * 3600);

/// Checks a request; the error names every field that is wrong, not only the first.
pub fn check(request: SubmitJobRequest) -> Result<Submission, EngineError> {
    let mut wrong: Vec<(&'static str, String)> = Vec::new();
    let caller = request.caller.unwrap_or_else(internal);
    if !limits::is_name(&caller.tenant) {
        wrong.push(("caller.tenant", "must be [a-z][a-z0-9._-]{0,63}".into()));
    }
    if caller.subject.is_empty() || caller.subject.len() > 256 || caller.subject.chars().any(char::is_control)
    {
        wrong.push(("caller.subject", "must have 1 to 256 bytes and no control characters".into()));
    }
    if !limits::is_name(&request.kind) {
        wrong.push(("kind", "must be [a-z][a-z0-9._-]{0,63}".into()));
    }
    let input_json = if request.input_json.is_empty() { "{}".to_owned() } else { request.input_json };
    if input_json.len() > limits::MAX_INPUT_BYTES {
        wrong.push(("input_json", format!("has at most {} bytes", limits::MAX_INPUT_BYTES)));
    } else if let Err(what) = check_json(&input_json) {
        wrong.push(("input_json", what));
    }
    let key = request.idempotency_key;
    if !key.is_empty() && !limits::is_key(&key) {
        wrong.push(("idempotency_key", KEY.into()));
    }
    let options = complete(request.options.unwrap_or_default(), &mut wrong);
    if !wrong.is_empty() {
        return Err(EngineError::Invalid(wrong));
    }
    let idempotency_key = Some(key).filter(|key| !key.is_empty());
    Ok(Submission { caller, kind: request.kind, input_json, options, idempotency_key, firing: None })
}

/// Fills the defaults in.
fn complete(mut options: JobOptions, wrong: &mut Vec<(&'static str, String)>) -> JobOptions {
    type Given = Option<prost_types::Duration>;
    let mut check = |field, value: &mut Given, default: Option<Duration>, min: Duration, max: Duration| {
        let given = value.map(Duration::try_from).or(default.map(Ok));
        match given {
            None => {}
            Some(Ok(given)) if given >= min && given <= max => {
                *value = prost_types::Duration::try_from(given).ok();
            }
            Some(_) => wrong.push((field, format!("must be {} to {} seconds", min.as_secs(), max.as_secs()))),
        }
    };
    let (zero, second) = (Duration::ZERO, Duration::from_secs(1));
    let (minute, day) = (60 * second, 24 * 3600 * second);
    check("options.delay", &mut options.delay, None, zero, YEAR);
    check("options.backoff", &mut options.backoff, Some(second), zero, day);
    check("options.max_backoff", &mut options.max_backoff, Some(5 * minute), zero, day);
    // At least a minute, so that whoever watches still gets the end.
    check("options.retention", &mut options.retention, Some(7 * day), minute, YEAR);
    check("options.timeout", &mut options.timeout, None, second, 30 * day);
    check("options.progress_deadline", &mut options.progress_deadline, None, second, 30 * day);
    for (field, value, default) in [
        ("options.max_attempts", &mut options.max_attempts, 1),
        ("options.max_stalls", &mut options.max_stalls, 3),
    ] {
        match *value {
            0 => *value = default,
            1..=100 => {}
            _ => wrong.push((field, "must be 1 to 100".into())),
        }
    }
    if !limits::PRIORITIES.contains(&options.priority) {
        wrong.push(("options.priority", "must be -100 to 100".into()));
    }
    if let Some(Concurrency { key, limit }) = &options.concurrency {
        if !limits::is_key(key) {
            wrong.push(("options.concurrency.key", KEY.into()));
        }
        if !(1..=limits::MAX_CONCURRENCY).contains(limit) {
            wrong.push(("options.concurrency.limit", format!("must be 1 to {}", limits::MAX_CONCURRENCY)));
        }
    }
    if !options.unique_key.is_empty() && !limits::is_key(&options.unique_key) {
        wrong.push(("options.unique_key", KEY.into()));
    }
    if let Some(at) = options.run_at {
        if options.delay.is_some_and(|d| d.seconds != 0 || d.nanos != 0) {
            wrong.push(("options.run_at", "excludes a delay".into()));
        }
        // Against the clock of the log it is checked where that clock is known.
        if at.seconds < 0 || !(0..1_000_000_000).contains(&at.nanos) {
            wrong.push(("options.run_at", "must be a time after 1970".into()));
        }
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wrong_field_is_named_at_once() {
        let request = SubmitJobRequest {
            kind: "Nope!".into(),
            input_json: "{".into(),
            idempotency_key: "a\nb".into(),
            options: Some(JobOptions { max_attempts: 1000, ..JobOptions::default() }),
            ..SubmitJobRequest::default()
        };
        let Err(EngineError::Invalid(wrong)) = check(request) else { panic!("accepted") };
        let fields: Vec<_> = wrong.iter().map(|(field, _)| *field).collect();
        assert_eq!(fields, ["kind", "input_json", "idempotency_key", "options.max_attempts"]);
    }

    #[test]
    fn every_option_has_its_bounds() {
        let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        let key = |key: &str, limit| Some(Concurrency { key: key.into(), limit });
        let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        let none = JobOptions::default;
        for (field, options) in [
            ("options.priority", JobOptions { priority: 101, ..none() }),
            ("options.priority", JobOptions { priority: i32::MIN, ..none() }),
            ("options.timeout", JobOptions { timeout: seconds(0), ..none() }),
            ("options.timeout", JobOptions { timeout: seconds(31 * 24 * 3600), ..none() }),
            ("options.progress_deadline", JobOptions { progress_deadline: seconds(-1), ..none() }),
            ("options.concurrency.key", JobOptions { concurrency: key("", 1), ..none() }),
            ("options.concurrency.key", JobOptions { concurrency: key("ä", 1), ..none() }),
            ("options.concurrency.limit", JobOptions { concurrency: key("a", 0), ..none() }),
            ("options.concurrency.limit", JobOptions { concurrency: key("a", 1001), ..none() }),
            ("options.unique_key", JobOptions { unique_key: "x".repeat(129), ..none() }),
            ("options.run_at", JobOptions { run_at: at(1), delay: seconds(1), ..none() }),
            ("options.run_at", JobOptions { run_at: at(-1), ..none() }),
            ("options.delay", JobOptions { delay: seconds(-1), ..none() }),
            ("options.max_stalls", JobOptions { max_stalls: 101, ..none() }),
        ] {
            let request =
                SubmitJobRequest { kind: "demo".into(), options: Some(options), ..Default::default() };
            let Err(EngineError::Invalid(wrong)) = check(request) else { panic!("accepted: {field}") };
            assert_eq!(wrong.iter().map(|(field, _)| *field).collect::<Vec<_>>(), [field]);
        }
    }

    #[test]
    fn defaults_are_filled_in() {
        let request = SubmitJobRequest { kind: "demo".into(), ..SubmitJobRequest::default() };
        let checked = check(request).expect("a minimal request");
        assert_eq!((checked.input_json.as_str(), checked.options.max_attempts), ("{}", 1));
        assert_eq!(checked.options.retention.map(|d| d.seconds), Some(7 * 24 * 3600));
    }
}
