//! `tidegate doctor`: looks from outside for what silently breaks event streams on their way to a browser.
//!
//! It submits a job that does not run (it is due in an hour), follows it as a browser would, and watches when bytes arrive
//! and what happens in silence; then it cancels and deletes the job. [`stream`] measures, [`findings`] judges, purely. It
//! sees what lies between itself and the gateway: run it where the browsers are.

mod certificate;
mod findings;
mod redis;
mod stream;

use std::{
    io::{self, Write as _},
    time::{Duration, SystemTime},
};

use reqwest::{Method, header, tls::TlsInfo};
use serde_json::{Value, json};

use self::findings::{Finding, Level};
use crate::{
    api::{self, Client},
    args,
    exit::Failure,
    text::{visible, visible_json},
};

/// How many streams are opened at once: more than a browser would by HTTP/1.1.
const STREAMS: usize = 8;
/// How long each request of the clean-up may take.
const CLEAN_UP: Duration = Duration::from_secs(5);

/// Looks at everything and prints what it finds; the exit code is 1 if something is broken.
///
/// # Errors
/// [`Failure::Api`] when the gateway cannot be asked at all, [`Failure::Output`].
pub(crate) async fn run(args: &args::Doctor, client: &Client) -> Result<u8, Failure> {
    let mut found = Vec::new();
    let kinds = client.request(Method::GET, &["api", "kinds"]);
    let kinds = match &args.origin {
        Some(origin) => kinds.header(header::ORIGIN, origin),
        None => kinds,
    };
    let answer = match client.send(kinds.timeout(stream::PATIENCE)).await {
        Err(api::Error::Untrusted { fault, .. }) => {
            let found = [Finding::fault("tls", fault.to_string(), fault.advice())];
            print(&found, args.json)?;
            return Ok(1);
        }
        answer => client.accepted(answer?).await?,
    };
    let encrypted = answer.url().scheme() == "https";
    let now = SystemTime::now();
    let shown = answer.extensions().get::<TlsInfo>().and_then(TlsInfo::peer_certificate);
    found.extend(encrypted.then(|| findings::certificate(shown.and_then(certificate::validity), now)));
    let headers = answer.headers().clone();
    found.push(findings::clock(&headers, now));
    let offers: Value = answer.json().await.map_err(|error| client.foreign(error.to_string()))?;
    match submit(args, client, &offers["kinds"]).await? {
        None => found.push(Finding::fault(
            "kinds",
            "no worker offers a kind of job, so no stream was looked at",
            "start a worker, or name a kind that is known with --kind",
        )),
        Some(job) => {
            let measured = stream::measure(client, &job, STREAMS).await;
            let preflight = match &args.origin {
                Some(origin) => Some(preflight(client, &job, origin).await?),
                None => None,
            };
            clean_up(client, &job).await;
            found.extend(findings::of_stream(&measured));
            found.extend(measured.version.map(|version| findings::version(version, encrypted)));
            let origin = args.origin.as_deref().zip(preflight.as_ref());
            found.push(findings::cors(origin.map(|(origin, preflight)| (origin, &headers, preflight))));
        }
    }
    found.push(match &args.redis {
        Some(url) => redis::look(url).await,
        None => Finding::left("redis", "not asked: --redis URL"),
    });
    print(&found, args.json)?;
    Ok(u8::from(found.iter().any(|finding| finding.level == Level::Fault)))
}

/// Submits a job that is due in an hour; nothing if there is no kind to submit.
async fn submit(args: &args::Doctor, client: &Client, offers: &Value) -> Result<Option<String>, api::Error> {
    let offers = offers.as_array().map(Vec::as_slice).unwrap_or_default();
    let wanted = |offer: &&Value| match &args.kind {
        Some(kind) => offer["kind"] == **kind,
        None => offer["live"] == true,
    };
    let Some(offer) = offers.iter().find(wanted) else { return Ok(None) };
    let input = if offer["example"].is_null() { json!({}) } else { offer["example"].clone() };
    let job = json!({ "kind": offer["kind"], "input": input, "options": { "delaySeconds": 3600 } });
    let job = client.call(client.request(Method::POST, &["api", "jobs"]).json(&job)).await?;
    let id = job["jobId"].as_str().map(|id| visible(id).into_owned());
    id.map(Some).ok_or_else(|| client.foreign("its job has no jobId".to_owned()))
}

/// What a browser asks before it lets a page of another origin follow a job.
async fn preflight(client: &Client, job: &str, origin: &str) -> Result<header::HeaderMap, api::Error> {
    let request = client.request(Method::OPTIONS, &["api", "progress", job]);
    let request = request
        .header(header::ORIGIN, origin)
        .header(header::ACCESS_CONTROL_REQUEST_METHOD, "GET")
        .header(header::ACCESS_CONTROL_REQUEST_HEADERS, "authorization,last-event-id")
        .timeout(stream::PATIENCE);
    Ok(client.send(request).await?.headers().clone())
}

/// Leaves nothing behind, as far as it can.
async fn clean_up(client: &Client, job: &str) {
    stream::end(client, job, CLEAN_UP).await;
    let delete = client.request(Method::DELETE, &["api", "jobs", job]);
    let _ = client.send(delete.timeout(CLEAN_UP)).await;
}

fn print(found: &[Finding], as_json: bool) -> io::Result<()> {
    let mut out = io::stdout();
    for finding in found {
        if as_json {
            let line = json!({
                "check": finding.check, "result": finding.level.name(), "found": finding.what, "advice": finding.advice,
            });
            writeln!(out, "{}", visible_json(line))?;
            continue;
        }
        writeln!(out, "{:7} {:12} {}", finding.level.name(), finding.check, visible(&finding.what))?;
        if let Some(advice) = &finding.advice {
            writeln!(out, "{:20} {advice}", "")?;
        }
    }
    Ok(())
}
