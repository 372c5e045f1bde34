//! The SSE encoder: an event of the log becomes the bytes that every viewer is sent.
//!
//! Pure, and called once an event. Invariant: a frame is one event of the WHATWG grammar, whatever its payload holds.
//! Payloads are JSON on one line, so CR, LF and NUL cannot reach the framing; names and ids come from checked
//! alphabets. It knows nothing of viewers or sockets.

use std::{borrow::Cow, io::Write as _};

use bytes::Bytes;
use serde::{Serialize, ser::SerializeMap as _};
use tidegate_proto::{
    cursor::Cursor,
    limits::is_custom_event_name,
    v1::{Event, Job, Log, LogLevel, event::Kind},
};
use utoipa::ToSchema;

use crate::json::{
    CancelView, CheckpointView, Document, JobView, Measure, Number, state, state_schema, text, time,
};

mod schema;

pub(crate) use schema::{BundledEvent, ServerEvent};

/// What an idle stream is sent, so that proxies keep it open: a comment, which no handler sees.
pub(crate) const IDLE: Bytes = Bytes::from_static(b":\n\n");

/// How long a browser waits before it reconnects, in milliseconds, unless a goodbye says otherwise.
pub(crate) const RETRY_MS: u32 = 2000;

/// Why a stream ends without a terminal event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Goodbye {
    /// The gateway shuts down; another one may be there already.
    Draining,
    /// The gateway serves as many streams as it may.
    TooManyStreams,
    /// The client has used up what it may have, for now.
    Limit,
    /// The engine does not answer, so nothing can be said about the job.
    EngineUnavailable,
    /// The job was removed.
    Deleted,
    /// The credential behind the stream ends; another one is needed.
    Expired,
    /// The credential behind the stream was taken back.
    Revoked,
    /// Nothing can be said about the credential now.
    AuthUnavailable,
    /// The stream has lasted as long as one may; it goes on wherever it is opened next.
    Moved,
    /// Somebody closed the stream who may.
    Closed,
}

impl Goodbye {
    /// Whether trying again, with the same credential, makes sense.
    pub(crate) fn reconnect(self) -> bool {
        !matches!(self, Self::Deleted | Self::Expired | Self::Revoked | Self::Closed)
    }

    /// The reason's label in metrics.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::TooManyStreams => "too-many-streams",
            Self::Limit => "limit",
            Self::EngineUnavailable => "engine-unavailable",
            Self::Deleted => "deleted",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::AuthUnavailable => "auth-unavailable",
            Self::Moved => "moved",
            Self::Closed => "closed",
        }
    }
}

/// Encodes one event of the log `epoch`.
///
/// A kind that this version does not know becomes an id without data: browsers store it and dispatch nothing.
pub(crate) fn event(epoch: &str, event: &Event) -> Bytes {
    let mut out = Vec::with_capacity(160);
    // Writing to a Vec cannot fail.
    let _ = writeln!(out, "id: {}-{epoch}", event.seq);
    match &event.kind {
        Some(Kind::State(change)) => data(
            &mut out,
            "state",
            &StateData {
                status: state(change.state),
                attempt: event.attempt,
                at: event.time.as_ref().map(time),
                reason: text(&change.reason),
                run_at: change.run_at.as_ref().map(time),
                cancel_requested: change.cancel_requested.as_ref().map(CancelView::from),
            },
        ),
        Some(Kind::Progress(progress)) => data(
            &mut out,
            "progress",
            &ProgressData {
                progress: progress.percent.map(Number),
                status: "PROCESSING",
                message: text(&progress.message),
                measure: progress.into(),
            },
        ),
        Some(Kind::Log(log)) => data(&mut out, "log", &LogData(log)),
        Some(Kind::Checkpoint(c)) => {
            data(&mut out, "checkpoint", &CheckpointView { name: &c.name, size: c.size });
        }
        Some(Kind::Custom(custom)) => {
            let json = single_line(&custom.json);
            let document = Document::new(&json);
            if is_custom_event_name(&custom.name) {
                data(&mut out, &custom.name, &document);
            } else {
                // The engine refuses such names; should one come, it must not take another event's place.
                data(&mut out, "custom", &Misnamed { name: &custom.name, data: document });
            }
        }
        Some(Kind::Complete(complete)) => {
            let json = single_line(&complete.result_json);
            let result = Document::new(&json);
            data(&mut out, "complete", &CompleteData { progress: 100, status: "COMPLETED", result });
        }
        Some(Kind::Failed(f)) => data(
            &mut out,
            "failed",
            &FailedData { status: "FAILED", code: &f.code, message: &f.message, retryable: f.retryable },
        ),
        Some(Kind::Cancelled(c)) => {
            data(&mut out, "cancelled", &CancelledData { status: "CANCELLED", by: &c.by, reason: &c.reason });
        }
        None => {}
    }
    out.push(b'\n');
    out.into()
}

/// The first frame of every stream: where the viewer stands.
pub(crate) fn connected(job_id: &str, status: &str, cursor: &Cursor, resumed: bool) -> Bytes {
    let mut out = Vec::with_capacity(192);
    let _ = writeln!(out, "retry: {RETRY_MS}");
    data(&mut out, "connected", &ConnectedData { job_id, status, cursor: cursor.to_string(), resumed });
    out.push(b'\n');
    out.into()
}

/// How long to wait before reconnecting, where nothing else is said first.
pub(crate) fn retry() -> Bytes {
    format!("retry: {RETRY_MS}\n\n").into()
}

/// Tells what cannot be had any more; `after` is the position from which reading goes on, `from` the first event missing.
pub(crate) fn gap(from: u64, after: &Cursor, reason: &str, snapshot: Option<&Job>) -> Bytes {
    let mut out = Vec::with_capacity(512);
    let _ = writeln!(out, "id: {after}");
    let snapshot = snapshot.map(JobView::from);
    // A snapshot carries documents as they were given, perhaps over several lines.
    let json = serde_json::to_string(&GapData { from, to: after.seq, reason, snapshot }).unwrap_or_default();
    data(&mut out, "gap", &Document::new(&single_line(&json)));
    out.push(b'\n');
    out.into()
}

/// Ends a stream for a reason other than the end of its job.
pub(crate) fn goodbye(reason: Goodbye, retry_ms: u32) -> Bytes {
    let mut out = Vec::with_capacity(96);
    let _ = writeln!(out, "retry: {retry_ms}");
    data(&mut out, "goodbye", &GoodbyeData { reason, reconnect: reason.reconnect() });
    out.push(b'\n');
    out.into()
}

/// A frame that moves the browser's cursor and dispatches nothing (WHATWG HTML, "dispatch the event", step 2).
pub(crate) fn position(after: &Cursor) -> Bytes {
    format!("id: {after}\n\n").into()
}

/// Writes the `event` and `data` lines.
fn data(out: &mut Vec<u8>, name: &str, payload: &impl Serialize) {
    let _ = write!(out, "event: {name}\ndata: ");
    if serde_json::to_writer(&mut *out, payload).is_err() {
        // Only a map with keys that are no strings can fail, and there is none.
        out.extend_from_slice(b"null");
    }
    out.push(b'\n');
}

/// JSON without line ends. In valid JSON a raw CR or LF can only stand between tokens, where a blank does as well.
fn single_line(json: &str) -> Cow<'_, str> {
    if json.bytes().any(|b| matches!(b, b'\r' | b'\n')) {
        // Text that is no JSON keeps its line ends, escaped, because it is sent as a string.
        let flat = json.replace(['\r', '\n'], " ");
        if serde_json::from_str::<&serde_json::value::RawValue>(json).is_ok() {
            return Cow::Owned(flat);
        }
    }
    Cow::Borrowed(json)
}

/// The job changed its state.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = StateEvent)]
struct StateData<'a> {
    #[schema(schema_with = state_schema)]
    status: &'static str,
    attempt: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    run_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cancel_requested: Option<CancelView<'a>>,
}

/// How far the job is.
#[derive(Serialize, ToSchema)]
#[schema(as = ProgressEvent)]
struct ProgressData<'a> {
    /// Null when unknown, so that a page can tell "unknown" from "not said".
    #[schema(value_type = Option<f64>, required = true, minimum = 0, maximum = 100)]
    progress: Option<Number>,
    #[schema(schema_with = state_schema)]
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
    #[serde(flatten)]
    measure: Measure<'a>,
}

/// The end: the job has a result.
#[derive(Serialize, ToSchema)]
#[schema(as = CompleteEvent)]
struct CompleteData<'a> {
    progress: u32,
    #[schema(schema_with = state_schema)]
    status: &'static str,
    #[schema(value_type = Value)]
    result: Document<'a>,
}

/// The end: the job failed.
#[derive(Serialize, ToSchema)]
#[schema(as = FailedEvent)]
struct FailedData<'a> {
    #[schema(schema_with = state_schema)]
    status: &'static str,
    code: &'a str,
    message: &'a str,
    retryable: bool,
}

/// The end: the job was cancelled.
#[derive(Serialize, ToSchema)]
#[schema(as = CancelledEvent)]
struct CancelledData<'a> {
    #[schema(schema_with = state_schema)]
    status: &'static str,
    by: &'a str,
    reason: &'a str,
}

/// Where the viewer stands: the first event of every stream.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = ConnectedEvent)]
struct ConnectedData<'a> {
    job_id: &'a str,
    #[schema(schema_with = state_schema)]
    status: &'a str,
    /// Where reading begins.
    cursor: String,
    /// Whether the client's own position was honoured.
    resumed: bool,
}

/// Events that cannot be had any more; `snapshot` is the job as it stands in for them.
#[derive(Serialize, ToSchema)]
#[schema(as = GapEvent)]
struct GapData<'a> {
    /// The first event missing.
    from: u64,
    /// The last event missing.
    to: u64,
    reason: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot: Option<JobView<'a>>,
}

/// The stream ends, and not because the job did.
#[derive(Serialize, ToSchema)]
#[schema(as = GoodbyeEvent)]
struct GoodbyeData {
    reason: Goodbye,
    /// Whether coming back makes sense.
    reconnect: bool,
}

#[derive(Serialize)]
struct Misnamed<'a> {
    name: &'a str,
    data: Document<'a>,
}

/// A plain line is a plain string; only what differs from the ordinary costs an object.
struct LogData<'a>(&'a Log);

impl Serialize for LogData<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let level = match self.0.level() {
            LogLevel::Unspecified | LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Warn => "warn",
            LogLevel::Error => "error",
        };
        if level == "info" && self.0.source.is_empty() {
            return serializer.serialize_str(&self.0.text);
        }
        let mut map = serializer.serialize_map(Some(3))?;
        map.serialize_entry("text", &self.0.text)?;
        map.serialize_entry("level", level)?;
        map.serialize_entry("source", &self.0.source)?;
        map.end()
    }
}

#[cfg(test)]
mod tests;
