//! Follows a job's event stream over any number of connections.
//!
//! [`Follower::next`] yields the job's events in order, each once: a connection that breaks, falls silent or is
//! closed with a goodbye is opened again after a jittered pause, at the cursor of the last complete event. What
//! cannot be had any more arrives as [`Step::Gap`]. It prints nothing and never cancels the job; dropping it
//! only stops the watching.

use std::{
    collections::VecDeque,
    fmt,
    time::{Duration, Instant},
};

use rand::RngExt as _;
use reqwest::{Method, Response, StatusCode, header};
use serde_json::Value;

use crate::{
    api::{Client, Error, content_type, innermost},
    sse,
};

/// The server comments at least every 15 s; three missed in a row mean that nobody is there.
pub const SILENCE: Duration = Duration::from_secs(45);
/// After a terminal event the stream ends at once, unless a retry reopened the job.
const CLOSING: Duration = Duration::from_secs(5);
/// The pause before a reconnect until the server names one.
const RETRY: Duration = Duration::from_secs(2);
/// The longest pause, however often it fails and whatever the server names.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With a result.
    Completed,
    /// With an error.
    Failed,
    /// It was called off.
    Cancelled,
}

impl Outcome {
    /// The outcome that a status such as `COMPLETED` names; none while the job is under way.
    pub fn from_status(status: &str) -> Option<Self> {
        match status {
            "COMPLETED" => Some(Self::Completed),
            "FAILED" => Some(Self::Failed),
            "CANCELLED" => Some(Self::Cancelled),
            _ => None,
        }
    }

    /// The outcome that a terminal event names; none for any other event.
    pub fn from_event(name: &str) -> Option<Self> {
        match name {
            "complete" => Some(Self::Completed),
            "failed" => Some(Self::Failed),
            "cancelled" => Some(Self::Cancelled),
            _ => None,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Completed => "COMPLETED",
            Self::Failed => "FAILED",
            Self::Cancelled => "CANCELLED",
        })
    }
}

/// What happened next.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// A connection stands; the control event's data.
    Connected(Value),
    /// An event of the job.
    Event(sse::Event),
    /// Events that cannot be had any more; reading goes on behind them.
    Gap(sse::Event),
    /// The connection is gone; the next call waits and opens another.
    Reconnecting {
        /// Why it is gone.
        why: String,
        /// How long the next call waits.
        pause: Duration,
    },
    /// The job has ended and everything was seen. Nothing follows.
    Ended(Outcome),
    /// The server says not to come back, and why. Nothing follows.
    Dismissed(String),
}

struct Open {
    response: Response,
    parser: sse::Parser,
}

/// A job's event stream, across reconnects.
pub struct Follower {
    client: Client,
    job_id: String,
    /// What the caller wants to start after: a cursor, `earliest` or `latest`. Used until an event has been seen.
    start: String,
    cursor: Option<String>,
    give_up_after: Duration,
    silence: Duration,
    open: Option<Open>,
    ready: VecDeque<sse::Event>,
    /// The outcome that the last event named; a retried job's log goes on behind one.
    outcome: Option<Outcome>,
    pause: Duration,
    retry: Duration,
    /// Connections since the last one that delivered something new.
    failures: u32,
    /// Since when nothing new could be had; `None` while a connection stands.
    lost_at: Option<Instant>,
    was_connected: bool,
}

impl Follower {
    /// Follows `job_id` from behind `start` (empty: from the oldest event kept). The first connection must
    /// succeed; a later loss ends in an error when it lasts longer than `give_up_after`.
    pub fn new(client: Client, job_id: &str, start: &str, give_up_after: Duration) -> Self {
        Self {
            client,
            job_id: job_id.to_owned(),
            start: start.to_owned(),
            cursor: None,
            give_up_after,
            silence: SILENCE,
            open: None,
            ready: VecDeque::new(),
            outcome: None,
            pause: Duration::ZERO,
            retry: RETRY,
            failures: 0,
            lost_at: None,
            was_connected: false,
        }
    }

    /// Takes a connection for dead after another time without a byte than [`SILENCE`].
    pub fn with_silence(mut self, silence: Duration) -> Self {
        self.silence = silence;
        self
    }

    /// The cursor of the last event seen, if there was one.
    pub fn cursor(&self) -> Option<&str> {
        self.cursor.as_deref()
    }

    /// Waits for the next step; not to be called again after [`Step::Ended`], [`Step::Dismissed`] or an error.
    ///
    /// # Errors
    /// Lasting refusals, a first connection that fails, and losses that last too long.
    pub async fn next(&mut self) -> Result<Step, Error> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return self.take(event);
            }
            let Some(open) = &mut self.open else {
                tokio::time::sleep(std::mem::take(&mut self.pause)).await;
                if let Some(step) = self.connect().await? {
                    return Ok(step);
                }
                continue;
            };
            let patience = if self.outcome.is_some() { CLOSING } else { self.silence };
            let lost = match tokio::time::timeout(patience, open.response.chunk()).await {
                Ok(Ok(Some(chunk))) => {
                    let ready = &mut self.ready;
                    let fed = open.parser.feed(&chunk, &mut |event| ready.push_back(event));
                    self.retry = open.parser.retry().unwrap_or(self.retry).min(MAX_PAUSE);
                    let Err(too_large) = fed else { continue };
                    return Err(self.client.foreign(too_large.to_string()));
                }
                Ok(Ok(None)) => "the connection ended".to_owned(),
                Ok(Err(error)) => format!("the connection broke: {}", innermost(&error)),
                Err(_) => format!("no sign of life for {} s", patience.as_secs()),
            };
            self.open = None;
            return match self.outcome {
                Some(outcome) => Ok(Step::Ended(outcome)),
                None => self.reconnecting(lost, None),
            };
        }
    }

    /// Sorts one event; control events steer the follower, job events move its cursor.
    fn take(&mut self, event: sse::Event) -> Result<Step, Error> {
        let json = || serde_json::from_str::<Value>(&event.data).unwrap_or_default();
        match event.name.as_str() {
            "connected" => Ok(Step::Connected(json())),
            "goodbye" => {
                let data = json();
                let reason = data["reason"].as_str().unwrap_or("unknown").to_owned();
                self.open = None;
                self.ready.clear();
                match (self.outcome, data["reconnect"].as_bool().unwrap_or(true)) {
                    (Some(outcome), _) => Ok(Step::Ended(outcome)),
                    (None, true) => self.reconnecting(format!("the server says goodbye: {reason}"), None),
                    // Somebody may have put a new token into the file meanwhile.
                    (None, false) if reason == "expired" && self.client.reread()? => {
                        self.reconnecting("the token has expired; there is a new one".to_owned(), None)
                    }
                    (None, false) => Ok(Step::Dismissed(reason)),
                }
            }
            name => {
                let is_gap = name == "gap";
                self.outcome = Outcome::from_event(name);
                self.failures = 0;
                self.lost_at = None;
                if !event.id.is_empty() {
                    self.cursor = Some(event.id.clone());
                }
                Ok(if is_gap { Step::Gap(event) } else { Step::Event(event) })
            }
        }
    }

    /// Opens a connection. Returns a step unless events can be read now.
    async fn connect(&mut self) -> Result<Option<Step>, Error> {
        let path = ["api", "progress", &self.job_id];
        let request = match &self.cursor {
            Some(cursor) => self.client.request(Method::GET, &path).header("last-event-id", cursor),
            None => self.client.query(Method::GET, &path, &[("lastEventId", &self.start)]),
        };
        // Asking for the stream alone makes passing refusals arrive as a goodbye.
        let request = request.header(header::ACCEPT, "text/event-stream");
        let response = match tokio::time::timeout(self.silence, self.client.send(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) if !self.was_connected => return Err(error),
            Ok(Err(Error::Unreachable { cause, .. })) => return self.reconnecting(cause, None).map(Some),
            Ok(Err(error)) => return Err(error),
            Err(_) => return self.reconnecting("no answer".to_owned(), None).map(Some),
        };
        match response.status() {
            StatusCode::OK if content_type(&response).starts_with("text/event-stream") => {
                self.was_connected = true;
                self.open = Some(Open { response, parser: sse::Parser::default() });
                Ok(None)
            }
            StatusCode::OK => Err(self.client.foreign("no event stream".to_owned())),
            StatusCode::NO_CONTENT => {
                let job = self.client.job(&self.job_id).await?;
                let outcome = job["status"].as_str().and_then(Outcome::from_status);
                outcome
                    .map(|o| Some(Step::Ended(o)))
                    .ok_or_else(|| self.client.unexpected(StatusCode::NO_CONTENT))
            }
            status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                self.was_connected = true;
                let after = response.headers().get(header::RETRY_AFTER).and_then(|v| v.to_str().ok());
                let after = after.and_then(|v| v.parse().ok()).map(Duration::from_secs);
                self.reconnecting(format!("the server says {status}"), after).map(Some)
            }
            StatusCode::UNAUTHORIZED if self.was_connected && self.client.reread()? => {
                self.reconnecting("the token has expired; there is a new one".to_owned(), None).map(Some)
            }
            status => {
                self.client.accepted(response).await?;
                Err(self.client.unexpected(status))
            }
        }
    }

    /// The pause doubles with every connection that brought nothing, never undercuts what the server asked for,
    /// and is spread so that a thousand watchers do not come back in the same instant.
    fn reconnecting(&mut self, why: String, at_least: Option<Duration>) -> Result<Step, Error> {
        let lost_at = *self.lost_at.get_or_insert_with(Instant::now);
        if lost_at.elapsed() > self.give_up_after {
            let cause = format!("{why} (given up after {} s)", self.give_up_after.as_secs());
            return Err(Error::Unreachable { server: self.client.server().to_owned(), cause });
        }
        let base = self.retry.saturating_mul(1 << self.failures.min(5)).min(MAX_PAUSE);
        self.failures = self.failures.saturating_add(1);
        self.pause =
            base.max(at_least.unwrap_or_default().min(MAX_PAUSE)).mul_f64(rand::rng().random_range(1.0..1.5));
        Ok(Step::Reconnecting { why, pause: self.pause })
    }
}
