//! E1: whatever a worker reports, it is one frame: the event's id, one name, one line of valid JSON.
#![no_main]

use libfuzzer_sys::{arbitrary, fuzz_target};
use prost_types::Timestamp;
use tidegate_proto::v1::{
    CancelRequested, Cancelled, Checkpoint, Completed, Custom, Event, Failed, Log, Progress, StateChanged,
    event::Kind,
};

#[derive(arbitrary::Arbitrary, Debug)]
enum Said<'a> {
    State(i32, &'a str, Option<(i64, i32)>, Option<(&'a str, &'a str)>),
    Progress {
        percent: Option<f64>,
        done: Option<u64>,
        total: Option<u64>,
        step: Option<u32>,
        rate: Option<f64>,
        texts: [&'a str; 3],
    },
    Log(i32, &'a str, &'a str),
    Checkpoint(&'a str, u32),
    Custom(&'a str, &'a str),
    Complete(&'a str),
    Failed(&'a str, &'a str, bool),
    Cancelled(&'a str, &'a str),
    Unknown,
}

fuzz_target!(|input: (u64, u32, Option<(i64, i32)>, Said<'_>)| {
    let (seq, attempt, time, said) = input;
    let time = time.map(|(seconds, nanos)| Timestamp { seconds, nanos });
    let event = Event { seq, attempt, time, kind: kind(&said) };
    let frame = edge_gateway::fuzzing::event("q7x2ma", &event);
    let frame = std::str::from_utf8(&frame).expect("a frame is UTF-8");
    let rest = frame.strip_prefix(&format!("id: {seq}-q7x2ma\n")).expect("a frame begins with its id");
    if event.kind.is_none() {
        assert_eq!(rest, "\n");
        return;
    }
    let rest = rest.strip_suffix("\n\n").expect("a frame ends with a blank line");
    let (name, data) = rest.split_once('\n').expect("a frame has two more lines");
    let name = name.strip_prefix("event: ").expect("a name");
    let data = data.strip_prefix("data: ").expect("data");
    assert!(!data.contains(['\r', '\n']) && !name.contains(['\r', '\n', '\0']), "{frame:?}");
    // Judged by its grammar alone: 1e999 is JSON, although it is no f64.
    serde_json::from_str::<&serde_json::value::RawValue>(data).expect("data is JSON");
    match said {
        Said::Log(_, text, _) => {
            let data: serde_json::Value = serde_json::from_str(data).expect("a line of a log");
            assert!(data == *text || data["text"] == *text, "{frame:?}");
        }
        Said::Custom(own, _) => assert!(name == own || name == "custom", "{frame:?}"),
        _ => {}
    }
});

fn kind(said: &Said<'_>) -> Option<Kind> {
    let text = |text: &str| text.to_owned();
    Some(match said {
        Said::State(state, reason, at, cancel) => Kind::State(StateChanged {
            state: *state,
            reason: text(reason),
            run_at: at.map(|(seconds, nanos)| Timestamp { seconds, nanos }),
            cancel_requested: cancel.map(|(by, reason)| CancelRequested {
                by: text(by),
                reason: text(reason),
                ..CancelRequested::default()
            }),
        }),
        Said::Progress { percent, done, total, step, rate, texts: [message, unit, step_name] } => {
            Kind::Progress(Progress {
                percent: *percent,
                done: *done,
                total: *total,
                step: *step,
                rate: *rate,
                message: text(message),
                unit: text(unit),
                step_name: text(step_name),
                ..Progress::default()
            })
        }
        Said::Log(level, line, source) => {
            Kind::Log(Log { level: *level, text: text(line), source: text(source), ..Log::default() })
        }
        Said::Checkpoint(name, size) => {
            Kind::Checkpoint(Checkpoint { name: text(name), size: *size, ..Checkpoint::default() })
        }
        Said::Custom(name, json) => Kind::Custom(Custom { name: text(name), json: text(json) }),
        Said::Complete(json) => Kind::Complete(Completed { result_json: text(json) }),
        Said::Failed(code, message, retryable) => Kind::Failed(Failed {
            code: text(code),
            message: text(message),
            retryable: *retryable,
            ..Failed::default()
        }),
        Said::Cancelled(by, reason) => Kind::Cancelled(Cancelled { by: text(by), reason: text(reason) }),
        Said::Unknown => return None,
    })
}
