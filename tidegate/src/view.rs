//! What a job's events look like to a person: pure functions from an event to a line or a bar.
//!
//! Everything that a job or a server wrote passes through [`visible`] here, and nowhere later.

use std::time::Duration;

use serde_json::Value;

use crate::{
    follow::Outcome,
    sse::Event,
    text::{bytes, duration, rate, visible},
};

/// Payloads of custom events and results are shown up to this many characters; `--json` shows all.
const MAX_PAYLOAD: usize = 2_000;

/// How a line is meant; the screen turns it into a colour or into nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// What the job says.
    Plain,
    /// What happens around it.
    Quiet,
    /// The goal is reached.
    Good,
    /// To be noticed.
    Warn,
    /// Something failed.
    Bad,
}

/// A line for the screen, free of control characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// How it is meant.
    pub tone: Tone,
    /// What it says.
    pub text: String,
}

/// The state of a progress bar.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    /// From 0 to 100; unknown when the job does not say.
    pub percent: Option<f64>,
    /// What stands behind the bar: amount, rate, ETA, step, message.
    pub text: String,
}

/// What an event changes on the screen.
#[derive(Clone, Debug, PartialEq)]
pub enum Shown {
    /// The bar moves.
    Bar(Bar),
    /// A line is added.
    Line(Line),
}

/// How `event` is shown.
pub fn show(event: &Event) -> Shown {
    let data: Value = serde_json::from_str(&event.data).unwrap_or_else(|_| Value::String(event.data.clone()));
    let text = |key: &str| visible(data[key].as_str().unwrap_or_default()).into_owned();
    let (tone, text) = match event.name.as_str() {
        "progress" => return Shown::Bar(bar(&data)),
        "log" => log(&data),
        "state" => state(&data),
        "checkpoint" => {
            let size = bytes(data["size"].as_f64().unwrap_or_default());
            let name = text("name");
            (Tone::Quiet, join(["checkpoint", &name, &format!("({size})")]))
        }
        "complete" => (Tone::Good, join(["COMPLETED", &payload(&data["result"])])),
        "failed" => {
            let retryable = if data["retryable"] == true { "(may succeed when retried)" } else { "" };
            (Tone::Bad, join(["FAILED", &format!("{}:", text("code")), &text("message"), retryable]))
        }
        "cancelled" => (Tone::Warn, join(["CANCELLED", &by(&data)])),
        "gap" => {
            let snapshot = &data["snapshot"];
            let missing = format!(
                "events {} to {} are missing ({}); the job is now",
                payload(&data["from"]),
                payload(&data["to"]),
                text("reason")
            );
            let percent =
                snapshot["progress"]["percent"].as_f64().map_or(String::new(), |p| format!("at {p:.0} %"));
            (Tone::Warn, join([&missing, &payload(&snapshot["status"]), &percent]))
        }
        name => (Tone::Plain, format!("{}: {}", visible(name), payload(&data))),
    };
    Shown::Line(Line { tone, text })
}

/// The closing line for a job that had ended before anything could be seen of it.
pub fn ended(job: &Value, outcome: Outcome) -> Line {
    let detail = match outcome {
        Outcome::Completed => payload(&job["result"]),
        Outcome::Failed => {
            join([&format!("{}:", payload(&job["error"]["code"])), &payload(&job["error"]["message"])])
        }
        Outcome::Cancelled => by(&job["cancelled"]),
    };
    let tone = match outcome {
        Outcome::Completed => Tone::Good,
        Outcome::Failed => Tone::Bad,
        Outcome::Cancelled => Tone::Warn,
    };
    Line { tone, text: join([&outcome.to_string(), &detail]) }
}

/// The bar that a progress object describes: an event's data, or a job's `progress`.
pub fn bar(data: &Value) -> Bar {
    let number = |key: &str| data[key].as_f64();
    let unit = data["unit"].as_str().unwrap_or_default();
    let mut parts = Vec::new();
    match (unit, number("done"), number("total")) {
        ("bytes", Some(done), Some(total)) => parts.push(format!("{} of {}", bytes(done), bytes(total))),
        ("bytes", Some(done), None) => parts.push(bytes(done)),
        (_, Some(done), Some(total)) => parts.push(join([&format!("{done} of {total}"), &visible(unit)])),
        (_, Some(done), None) => parts.push(join([&done.to_string(), &visible(unit)])),
        (_, None, _) => {}
    }
    if let Some(per_second) = number("rate") {
        parts.push(rate(per_second, &visible(unit)));
    }
    let percent = number("progress").or_else(|| number("percent")).map(|p| p.clamp(0.0, 100.0));
    let under_way = percent.is_none_or(|p| p < 100.0);
    if let Some(eta) =
        number("etaSeconds").filter(|_| under_way).and_then(|s| Duration::try_from_secs_f64(s).ok())
    {
        parts.push(format!("ETA {}", duration(eta)));
    }
    // Work that is counted in steps has said so already.
    if let Some(step) = number("step").filter(|_| unit != "steps") {
        let of = number("steps").map_or(String::new(), |steps| format!("/{steps}"));
        let name = visible(data["stepName"].as_str().unwrap_or_default());
        parts.push(join([&format!("step {step}{of}"), &name]));
    }
    if let Some(message) = data["message"].as_str().filter(|m| !m.is_empty()) {
        parts.push(visible(message).into_owned());
    }
    Bar { percent, text: parts.join(" · ") }
}

fn log(data: &Value) -> (Tone, String) {
    if let Some(text) = data.as_str() {
        return (Tone::Plain, visible(text).into_owned());
    }
    let level = data["level"].as_str().unwrap_or("info");
    let tone = match level {
        "error" => Tone::Bad,
        "warn" => Tone::Warn,
        "debug" => Tone::Quiet,
        _ => Tone::Plain,
    };
    let source = data["source"].as_str().filter(|s| !s.is_empty());
    let label = match (level, source) {
        ("info", source) => source.map(|s| format!("{s}:")),
        (level, None) => Some(format!("{level}:")),
        (level, Some(source)) => Some(format!("{level} {source}:")),
    };
    let text = data["text"].as_str().unwrap_or_default();
    (tone, join([&visible(&label.unwrap_or_default()), &visible(text)]))
}

fn state(data: &Value) -> (Tone, String) {
    let text = |key: &str| visible(data[key].as_str().unwrap_or_default()).into_owned();
    let cancel = &data["cancelRequested"];
    if cancel.is_object() {
        return (Tone::Warn, join(["cancellation requested", &by(cancel)]));
    }
    let attempt = match (data["status"].as_str(), data["attempt"].as_u64()) {
        (Some("PROCESSING"), Some(attempt)) => format!("(attempt {attempt})"),
        _ => String::new(),
    };
    let run_at = data["runAt"].as_str().map_or(String::new(), |at| format!("until {}", visible(at)));
    let reason = Some(text("reason")).filter(|r| !r.is_empty()).map_or(String::new(), |r| format!("· {r}"));
    (Tone::Quiet, join([&text("status"), &attempt, &run_at, &reason]))
}

/// `by alice: too slow`, as far as it is known.
fn by(data: &Value) -> String {
    let reason = visible(data["reason"].as_str().unwrap_or_default()).into_owned();
    match data["by"].as_str().filter(|by| !by.is_empty()) {
        Some(by) if reason.is_empty() => format!("by {}", visible(by)),
        Some(by) => format!("by {}: {reason}", visible(by)),
        None => reason,
    }
}

/// A JSON value on one line, strings bare, nothing for null, cut when very long.
pub fn payload(value: &Value) -> String {
    let text = match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let text = match text.char_indices().nth(MAX_PAYLOAD) {
        Some((end, _)) => format!("{}… ({} bytes; --json shows all)", &text[..end], text.len()),
        None => text,
    };
    visible(&text).into_owned()
}

/// The parts that say something, with a space between them.
fn join<const N: usize>(parts: [&str; N]) -> String {
    parts.into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, data: &str) -> (Tone, String) {
        match show(&Event { name: name.into(), data: data.into(), id: "3-q".into() }) {
            Shown::Line(line) => (line.tone, line.text),
            Shown::Bar(bar) => panic!("a bar: {bar:?}"),
        }
    }

    #[test]
    fn every_event_of_the_contract_reads_well() {
        for (name, data, tone, text) in [
            ("log", r#""Processing file…""#, Tone::Plain, "Processing file…"),
            (
                "log",
                r#"{"text":"disk full","level":"error","source":"stderr"}"#,
                Tone::Bad,
                "error stderr: disk full",
            ),
            ("log", r#"{"text":"hi","level":"info","source":"stdout"}"#, Tone::Plain, "stdout: hi"),
            (
                "state",
                r#"{"status":"PROCESSING","attempt":2,"at":"…"}"#,
                Tone::Quiet,
                "PROCESSING (attempt 2)",
            ),
            (
                "state",
                r#"{"status":"QUEUED","attempt":1,"reason":"worker lost"}"#,
                Tone::Quiet,
                "QUEUED · worker lost",
            ),
            (
                "state",
                r#"{"status":"PROCESSING","cancelRequested":{"by":"ann","reason":"late"}}"#,
                Tone::Warn,
                "cancellation requested by ann: late",
            ),
            ("checkpoint", r#"{"name":"row 500","size":120}"#, Tone::Quiet, "checkpoint row 500 (120 B)"),
            ("chart", r#"{"y":[1,2]}"#, Tone::Plain, r#"chart: {"y":[1,2]}"#),
            (
                "complete",
                r#"{"progress":100,"status":"COMPLETED","result":"Success!"}"#,
                Tone::Good,
                "COMPLETED Success!",
            ),
            ("complete", r#"{"progress":100,"status":"COMPLETED","result":null}"#, Tone::Good, "COMPLETED"),
            (
                "failed",
                r#"{"status":"FAILED","code":"not_found","message":"no such file","retryable":true}"#,
                Tone::Bad,
                "FAILED not_found: no such file (may succeed when retried)",
            ),
            ("cancelled", r#"{"status":"CANCELLED","by":"system"}"#, Tone::Warn, "CANCELLED by system"),
            (
                "gap",
                r#"{"from":3,"to":9,"reason":"trimmed","snapshot":{"status":"PROCESSING","progress":{"percent":40}}}"#,
                Tone::Warn,
                "events 3 to 9 are missing (trimmed); the job is now PROCESSING at 40 %",
            ),
            ("log", "not json \u{1b}[31m", Tone::Plain, "not json \\x1b[31m"),
        ] {
            assert_eq!(line(name, data), (tone, text.to_owned()), "{name} {data}");
        }
    }

    #[test]
    fn j40_no_field_smuggles_control_characters() {
        let hostile = r#"{"status":"\u001b[2J","attempt":1,"reason":"\u001b]0;x","runAt":"\u001bc","by":"\u001b","text":"\u001b",
            "level":"\u001b","source":"\u001b","name":"\u001b","code":"\u001b","message":"\u001b","result":"\u001b","from":"\u001b",
            "unit":"\u001b","done":1,"rate":1,"step":1,"stepName":"\u001b","cancelRequested":{"by":"\u001b","reason":"\u001b"}}"#;
        let names = [
            "log",
            "state",
            "checkpoint",
            "complete",
            "failed",
            "cancelled",
            "gap",
            "custom",
            "\u{1b}",
            "progress",
        ];
        for name in names {
            let text = match show(&Event { name: name.into(), data: hostile.into(), id: String::new() }) {
                Shown::Line(line) => line.text,
                Shown::Bar(bar) => bar.text,
            };
            assert!(!text.contains('\u{1b}'), "{name}: {text:?}");
        }
    }

    #[test]
    fn bars_show_amount_rate_eta_step_and_message() {
        let data = serde_json::json!({"progress": 25, "done": 1_500_000, "total": 6_000_000, "unit": "bytes", "step": 1, "steps": 4,
            "stepName": "load", "rate": 750_000.0, "etaSeconds": 6.0, "message": "row 17"});
        let text = "1.5 MB of 6.0 MB · 750.0 kB/s · ETA 6s · step 1/4 load · row 17".to_owned();
        assert_eq!(bar(&data), Bar { percent: Some(25.0), text });
        assert_eq!(bar(&serde_json::json!({"progress": null})), Bar { percent: None, text: String::new() });
    }
}
