//! Measures a stream that has something to say at once, then nothing, then an end that the measuring brings about.
//!
//! It does not judge. Bytes are counted and timed, not parsed: a stream that somebody compressed is measured, too.

use std::time::Duration;

use futures_util::future::join_all;
use reqwest::{
    Method, Response, Version,
    header::{self, HeaderMap},
};
use serde_json::json;
use tokio::time::{Instant, timeout, timeout_at};

use crate::api::Client;

/// How long what should come at once may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(8);
/// How long a sign of life is waited for: gateways send one every 15 seconds at least.
const IDLE: Duration = Duration::from_secs(40);
/// A pause that is silence, and no stutter of the first bytes.
const SILENCE: Duration = Duration::from_secs(2);
/// What the first bytes have at least: the head of a compressed body has fewer, and says nothing.
const FIRST: usize = 32;

/// What was measured.
#[derive(Debug, Default)]
pub(super) struct Measured {
    /// The status, once there was one.
    pub(super) status: Option<u16>,
    pub(super) version: Option<Version>,
    pub(super) headers: HeaderMap,
    /// From the request to the first event; nothing if it did not come while the stream was open.
    pub(super) first: Option<Duration>,
    /// What became of the silence after it.
    pub(super) silence: Option<Silence>,
    /// From the job's end to the stream's; nothing if the stream did not end of itself.
    pub(super) end: Option<Duration>,
    /// How many streams brought their first event when several were opened at once, of how many.
    pub(super) at_once: Option<(usize, usize)>,
}

/// What became of a silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Silence {
    /// A sign of life came after this time.
    Broken(Duration),
    /// The connection was cut after this time.
    Cut(Duration),
    /// Nothing came for this time.
    Lasted(Duration),
}

/// Follows the job, which it cancels in the end.
pub(super) async fn measure(client: &Client, job: &str, at_once: usize) -> Measured {
    let mut measured = Measured::default();
    let began = Instant::now();
    let request = stream(client, job);
    let mut answer = std::pin::pin!(request.send());
    let opened = match timeout(PATIENCE, &mut answer).await {
        Ok(opened) => opened.ok(),
        Err(_) => {
            // Whatever holds the head back lets it go with the end of the stream, and then the head tells what it is.
            end(client, job, PATIENCE).await;
            let late = timeout(PATIENCE, &mut answer).await.ok().and_then(Result::ok);
            late.inspect(|late| measured.note(late));
            return measured;
        }
    };
    let Some(mut response) = opened else { return measured };
    measured.note(&response);
    if measured.status != Some(200) {
        return measured;
    }
    let mut last = Instant::now();
    let mut bytes = 0;
    while bytes < FIRST {
        match timeout_at(began + PATIENCE, response.chunk()).await {
            Ok(Ok(Some(chunk))) => bytes += chunk.len(),
            Ok(Ok(None) | Err(_)) | Err(_) => return measured,
        }
        last = Instant::now();
    }
    measured.first = Some(last - began);
    measured.silence = Some(silence(&mut response, last).await);
    if matches!(measured.silence, Some(Silence::Cut(_))) {
        return measured;
    }
    let streams = join_all((0..at_once).map(|_| opens(client, job))).await;
    measured.at_once = Some((streams.iter().flatten().count(), at_once));
    drop(streams);
    let ended = Instant::now();
    end(client, job, PATIENCE).await;
    let rest = async { while let Ok(Some(_)) = response.chunk().await {} };
    measured.end = timeout(PATIENCE, rest).await.is_ok().then(|| ended.elapsed());
    measured
}

impl Measured {
    fn note(&mut self, response: &Response) {
        self.status = Some(response.status().as_u16());
        self.version = Some(response.version());
        self.headers = response.headers().clone();
    }
}

/// Waits for a sign of life after a silence that began at `last` or later.
async fn silence(response: &mut Response, mut last: Instant) -> Silence {
    let until = Instant::now() + IDLE;
    loop {
        match timeout_at(until, response.chunk()).await {
            Ok(Ok(Some(_))) if last.elapsed() > SILENCE => return Silence::Broken(last.elapsed()),
            Ok(Ok(Some(_))) => last = Instant::now(),
            Ok(Ok(None) | Err(_)) => return Silence::Cut(last.elapsed()),
            Err(_) => return Silence::Lasted(last.elapsed()),
        }
    }
}

/// One more stream, if it opens and says something in time.
async fn opens(client: &Client, job: &str) -> Option<Response> {
    let opening = async {
        let mut response = stream(client, job).send().await.ok()?;
        (response.status().is_success() && !response.chunk().await.ok()??.is_empty()).then_some(response)
    };
    timeout(PATIENCE, opening).await.ok().flatten()
}

/// As a browser asks: it always offers to take compressed bodies.
fn stream(client: &Client, job: &str) -> reqwest::RequestBuilder {
    let request = client.request(Method::GET, &["api", "progress", job]);
    request.header(header::ACCEPT, "text/event-stream").header(header::ACCEPT_ENCODING, "gzip, deflate, br")
}

/// Ends the job, and so its stream, if the gateway answers within the time.
pub(super) async fn end(client: &Client, job: &str, within: Duration) {
    let cancel = client.request(Method::POST, &["api", "jobs", job, "cancel"]).json(&json!({}));
    let _ = client.send(cancel.timeout(within)).await;
}
