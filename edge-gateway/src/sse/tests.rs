//! Golden frames, and the property that no payload breaks the framing, read back by an independent parser.

use proptest::prelude::*;
use tidegate_proto::v1::{Checkpoint, Completed, Custom, Failed, Progress, StateChanged};

use super::*;

fn at(seq: u64, kind: Kind) -> Event {
    let time = Some(prost_types::Timestamp { seconds: 0, nanos: 7_000_000 });
    Event { seq, time, attempt: 1, kind: Some(kind) }
}

fn encode(kind: Kind) -> String {
    String::from_utf8(event("q7x2ma", &at(3, kind)).to_vec()).unwrap()
}

#[test]
fn frames_are_exactly_those_of_the_contract() {
    let cursor = Cursor::new(2, "q7x2ma");
    assert_eq!(
        connected("J", "PROCESSING", &cursor, true),
        "retry: 2000\nevent: connected\ndata: {\"jobId\":\"J\",\"status\":\"PROCESSING\",\"cursor\":\"2-q7x2ma\",\"resumed\":true}\n\n"
    );
    let progress =
        Progress { percent: Some(25.0), message: "Step 1/4 complete".into(), ..Progress::default() };
    assert_eq!(
        encode(Kind::Progress(progress)),
        "id: 3-q7x2ma\nevent: progress\ndata: {\"progress\":25,\"status\":\"PROCESSING\",\"message\":\"Step 1/4 complete\"}\n\n"
    );
    let log = Log {
        level: LogLevel::Info.into(),
        text: "Processing file data.csv...".into(),
        source: String::new(),
    };
    assert_eq!(encode(Kind::Log(log)), "id: 3-q7x2ma\nevent: log\ndata: \"Processing file data.csv...\"\n\n");
    assert_eq!(
        encode(Kind::Complete(Completed { result_json: "\"Success!\"".into() })),
        "id: 3-q7x2ma\nevent: complete\ndata: {\"progress\":100,\"status\":\"COMPLETED\",\"result\":\"Success!\"}\n\n"
    );
    let log = Log { level: LogLevel::Warn.into(), text: "disk".into(), source: "stderr".into() };
    assert_eq!(
        encode(Kind::Log(log)),
        "id: 3-q7x2ma\nevent: log\ndata: {\"text\":\"disk\",\"level\":\"warn\",\"source\":\"stderr\"}\n\n"
    );
    let change = StateChanged { state: 1, reason: "again".into(), ..StateChanged::default() };
    assert_eq!(
        encode(Kind::State(change)),
        "id: 3-q7x2ma\nevent: state\ndata: {\"status\":\"SCHEDULED\",\"attempt\":1,\"at\":\"1970-01-01T00:00:00.007Z\",\"reason\":\"again\"}\n\n"
    );
    let checkpoint = Checkpoint { name: "row 7".into(), size: 3, data: Bytes::from_static(b"abc") };
    assert_eq!(
        encode(Kind::Checkpoint(checkpoint)),
        "id: 3-q7x2ma\nevent: checkpoint\ndata: {\"name\":\"row 7\",\"size\":3}\n\n"
    );
    let failed = Failed { code: "io".into(), message: "no".into(), retryable: true };
    assert_eq!(
        encode(Kind::Failed(failed)),
        "id: 3-q7x2ma\nevent: failed\ndata: {\"status\":\"FAILED\",\"code\":\"io\",\"message\":\"no\",\"retryable\":true}\n\n"
    );
    assert_eq!(
        goodbye(Goodbye::Draining, 2750),
        "retry: 2750\nevent: goodbye\ndata: {\"reason\":\"draining\",\"reconnect\":true}\n\n"
    );
}

#[test]
fn every_event_is_in_the_api_document() {
    use utoipa::PartialSchema as _;

    let schema = serde_json::to_value(ServerEvent::schema()).unwrap();
    let documented = |frame: &str| {
        let line = frame.lines().find_map(|line| line.strip_prefix("event: ")).unwrap();
        let carries_id = frame.contains("id: ");
        let one = schema["oneOf"].as_array().unwrap().iter().find(|one| {
            let names = one["properties"]["event"]["enum"].as_array();
            names.is_some_and(|names| names.iter().any(|name| name == line))
        });
        one.is_some_and(|one| one["properties"]["id"].is_object() == carries_id)
    };
    let cursor = Cursor::new(2, "q7x2ma");
    for kind in [
        Kind::State(StateChanged::default()),
        Kind::Progress(Progress::default()),
        Kind::Log(Log::default()),
        Kind::Checkpoint(Checkpoint::default()),
        Kind::Complete(Completed::default()),
        Kind::Failed(Failed::default()),
        Kind::Cancelled(tidegate_proto::v1::Cancelled::default()),
    ] {
        let frame = encode(kind);
        assert!(documented(&frame), "{frame}");
    }
    let text = |bytes: Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    assert!(documented(&text(connected("j", "QUEUED", &cursor, true))));
    assert!(documented(&text(gap(1, &cursor, "trimmed", None))));
    assert!(documented(&text(goodbye(Goodbye::Limit, 1))));
    assert!(!documented(&encode(Kind::Custom(Custom { name: "chart".into(), json: "1".into() }))));
}

#[test]
fn unknown_progress_is_null_and_all_measures_keep_their_order() {
    let progress = Progress {
        percent: None,
        done: Some(1),
        total: Some(4),
        unit: "steps".into(),
        step: Some(1),
        steps: Some(4),
        step_name: "load".into(),
        rate: Some(1.5),
        eta: Some(prost_types::Duration { seconds: 12, nanos: 500_000_000 }),
        message: "m".into(),
    };
    assert_eq!(
        encode(Kind::Progress(progress)),
        "id: 3-q7x2ma\nevent: progress\ndata: {\"progress\":null,\"status\":\"PROCESSING\",\"message\":\"m\",\"done\":1,\
         \"total\":4,\"unit\":\"steps\",\"step\":1,\"steps\":4,\"stepName\":\"load\",\"rate\":1.5,\"etaSeconds\":12.5}\n\n"
    );
}

#[test]
fn e6_an_unknown_kind_moves_the_cursor_and_dispatches_nothing() {
    assert_eq!(event("e", &Event { seq: 9, ..Event::default() }), "id: 9-e\n\n");
}

#[test]
fn e10_a_custom_event_cannot_take_a_reserved_name() {
    let custom = Custom { name: "error".into(), json: "1".into() };
    assert_eq!(
        encode(Kind::Custom(custom)),
        "id: 3-q7x2ma\nevent: custom\ndata: {\"name\":\"error\",\"data\":1}\n\n"
    );
}

#[test]
fn e1_pretty_printed_json_becomes_one_line() {
    let custom = Custom { name: "chart".into(), json: "{\r\n  \"a\": \"x\\ny\"\r}\n".into() };
    assert_eq!(encode(Kind::Custom(custom)), "id: 3-q7x2ma\nevent: chart\ndata: {    \"a\": \"x\\ny\" }\n\n");
}

/// The WHATWG parser, byte by byte: LF, CRLF and lone CR end a line, also across chunk borders.
#[derive(Default)]
struct Parser {
    line: Vec<u8>,
    after_cr: bool,
    id: String,
    name: String,
    data: Option<String>,
    events: Vec<(String, String, String)>,
}

impl Parser {
    fn feed(&mut self, byte: u8) {
        if std::mem::take(&mut self.after_cr) && byte == b'\n' {
            return;
        }
        match byte {
            b'\r' => {
                self.after_cr = true;
                self.end_of_line();
            }
            b'\n' => self.end_of_line(),
            other => self.line.push(other),
        }
    }

    fn end_of_line(&mut self) {
        let line = String::from_utf8(std::mem::take(&mut self.line)).expect("UTF-8");
        if line.is_empty() {
            let name = std::mem::take(&mut self.name);
            if let Some(data) = self.data.take() {
                self.events.push((self.id.clone(), name, data));
            }
            return;
        }
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" if !value.contains('\0') => self.id = value.into(),
            "event" => self.name = value.into(),
            "data" => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.into()),
            },
            _ => {}
        }
    }
}

fn parse(bytes: &[u8]) -> Vec<(String, String, String)> {
    let mut parser = Parser::default();
    bytes.iter().for_each(|b| parser.feed(*b));
    parser.events
}

fn nasty() -> impl Strategy<Value = String> {
    proptest::collection::vec(
        prop_oneof![
            Just('\r'),
            Just('\n'),
            Just('\0'),
            Just(':'),
            Just(' '),
            Just('"'),
            Just('\\'),
            Just('\u{2028}'),
            Just('\u{feff}'),
            any::<char>(),
        ],
        0..40,
    )
    .prop_map(String::from_iter)
}

proptest! {
    #[test]
    fn e1_no_text_breaks_the_framing(text in nasty(), source in nasty(), seq in 1u64..) {
        let log = Log { level: LogLevel::Info.into(), text: text.clone(), source: source.clone() };
        let frame = event("e", &at(seq, Kind::Log(log)));
        let parsed = parse(&frame);
        prop_assert_eq!(parsed.len(), 1);
        prop_assert_eq!((&*parsed[0].0, &*parsed[0].1), (&*format!("{seq}-e"), "log"));
        let value: serde_json::Value = serde_json::from_str(&parsed[0].2).unwrap();
        if source.is_empty() {
            prop_assert_eq!(value, serde_json::Value::String(text));
        } else {
            prop_assert_eq!(value, serde_json::json!({"text": text, "level": "info", "source": source}));
        }
    }

    #[test]
    fn e1_no_custom_payload_breaks_the_framing(json in prop_oneof![
        nasty(),
        nasty().prop_map(|t| serde_json::to_string_pretty(&serde_json::json!({"a": [t, 1.5, null]})).unwrap()),
    ], name in nasty()) {
        let frame = event("e", &at(1, Kind::Custom(Custom { name: name.clone(), json: json.clone() })));
        let parsed = parse(&frame);
        prop_assert_eq!(parsed.len(), 1);
        let value: serde_json::Value = serde_json::from_str(&parsed[0].2).unwrap();
        let expected = match serde_json::from_str(&json) {
            Ok(value) => value,
            Err(_) if json.is_empty() => serde_json::Value::Null,
            Err(_) => serde_json::Value::String(json),
        };
        // Once in a while a nasty name is a good one.
        let data = if is_custom_event_name(&name) { &value } else { &value["data"] };
        prop_assert_eq!(data, &expected);
    }

    #[test]
    fn e1_messages_and_results_stay_on_one_line(message in nasty(), result in nasty()) {
        let mut bytes = event("e", &at(1, Kind::Failed(Failed { code: message.clone(), message, retryable: false }))).to_vec();
        bytes.extend_from_slice(&event("e", &at(2, Kind::Complete(Completed { result_json: result }))));
        let snapshot = Job { input_json: "{\n\"a\":\r1}".into(), ..Job::default() };
        bytes.extend_from_slice(&gap(1, &Cursor::new(4, "e"), "trimmed", Some(&snapshot)));
        let ids: Vec<_> = parse(&bytes).into_iter().map(|(id, ..)| id).collect();
        prop_assert_eq!(ids, ["1-e", "2-e", "4-e"]);
    }
}
