//! Checks a submission completely, so that everything behind this point may trust it.

use std::time::Duration;

use tidegate_proto::{
    limits,
    v1::{Caller, JobOptions, SubmitJobRequest},
};

use crate::error::EngineError;

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
}

const YEAR: Duration = Duration::from_secs(366 * 24 * 3600);

/// Checks a request; the error names every field that is wrong, not only the first.
pub fn check(request: SubmitJobRequest) -> Result<Submission, EngineError> {
    let mut wrong: Vec<(&'static str, String)> = Vec::new();
    let caller =
        request.caller.unwrap_or_else(|| Caller { tenant: "default".into(), subject: "internal".into() });
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
    if key.len() > limits::MAX_KEY_BYTES || !key.bytes().all(|b| b.is_ascii_graphic() || b == b' ') {
        wrong.push((
            "idempotency_key",
            format!("has at most {} printable ASCII characters", limits::MAX_KEY_BYTES),
        ));
    }
    let options = complete(request.options.unwrap_or_default(), &mut wrong);
    if !wrong.is_empty() {
        return Err(EngineError::Invalid(wrong));
    }
    let idempotency_key = Some(key).filter(|key| !key.is_empty());
    Ok(Submission { caller, kind: request.kind, input_json, options, idempotency_key })
}

/// Refuses what is not JSON, or nested so deeply that common readers would choke on it.
pub fn check_json(text: &str) -> Result<(), String> {
    serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|e| format!("is not JSON: {e}"))?;
    match limits::json_depth(text) {
        depth if depth > limits::MAX_JSON_DEPTH => {
            Err(format!("is nested {depth} levels deep, more than {}", limits::MAX_JSON_DEPTH))
        }
        _ => Ok(()),
    }
}

fn complete(mut options: JobOptions, wrong: &mut Vec<(&'static str, String)>) -> JobOptions {
    let mut duration = |field,
                        value: &mut Option<prost_types::Duration>,
                        default: Duration,
                        min: Duration,
                        max: Duration| {
        let given = value.map_or(Ok(default), Duration::try_from);
        match given {
            Ok(given) if given >= min && given <= max => *value = prost_types::Duration::try_from(given).ok(),
            _ => wrong.push((field, format!("must be {} to {} seconds", min.as_secs(), max.as_secs()))),
        }
    };
    let (zero, minute, day) = (Duration::ZERO, Duration::from_secs(60), Duration::from_secs(24 * 3600));
    duration("options.delay", &mut options.delay, zero, zero, YEAR);
    duration("options.backoff", &mut options.backoff, Duration::from_secs(1), zero, day);
    duration("options.max_backoff", &mut options.max_backoff, 5 * minute, zero, day);
    // At least a minute, so that whoever watches still gets the end.
    duration("options.retention", &mut options.retention, 7 * day, minute, YEAR);
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
    fn an_input_that_readers_would_choke_on_is_refused() {
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(check_json(&nested(64)).is_ok());
        assert!(check_json(&nested(65)).is_err_and(|what| what.contains("65")));
    }

    #[test]
    fn defaults_are_filled_in() {
        let request = SubmitJobRequest { kind: "demo".into(), ..SubmitJobRequest::default() };
        let checked = check(request).expect("a minimal request");
        assert_eq!((checked.input_json.as_str(), checked.options.max_attempts), ("{}", 1));
        assert_eq!(checked.options.retention.map(|d| d.seconds), Some(7 * 24 * 3600));
    }
}
