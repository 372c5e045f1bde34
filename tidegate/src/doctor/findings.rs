//! What measurements mean, and what to do about it. Pure.

use std::{
    ops::Range,
    time::{Duration, SystemTime},
};

use reqwest::{
    Version,
    header::{self, HeaderMap},
};

use super::stream::{Measured, PATIENCE, Silence};
use crate::tls::Fault;

/// How far clocks may be apart: more than the second in which headers tell the time, and what a request takes.
const SKEW: Duration = Duration::from_secs(5);
/// How long before its end a certificate should have been renewed, if a third of its time is not less.
const RENEWED: Duration = Duration::from_secs(14 * 24 * 3600);
/// How long an event may take from the job to here.
const LATE: Duration = Duration::from_secs(2);

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) level: Level,
    /// What was looked at, in a word.
    pub(super) check: &'static str,
    pub(super) what: String,
    pub(super) advice: Option<&'static str>,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    Well,
    /// Not looked at.
    Left,
    /// It works, and will hurt.
    Warning,
    /// Streams break.
    Fault,
}

impl Level {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Well => "ok",
            Self::Left => "-",
            Self::Warning => "warning",
            Self::Fault => "FAULT",
        }
    }
}

impl Finding {
    pub(super) fn well(check: &'static str, what: impl Into<String>) -> Self {
        Self { level: Level::Well, check, what: what.into(), advice: None }
    }

    pub(super) fn left(check: &'static str, what: &str) -> Self {
        Self { level: Level::Left, ..Self::well(check, what) }
    }

    pub(super) fn warning(check: &'static str, what: impl Into<String>, advice: &'static str) -> Self {
        Self { level: Level::Warning, advice: Some(advice), ..Self::well(check, what) }
    }

    pub(super) fn fault(check: &'static str, what: impl Into<String>, advice: &'static str) -> Self {
        Self { level: Level::Fault, ..Self::warning(check, what, advice) }
    }
}

/// Whether the certificate, which is trusted, will go on to be; those between it and the authority are not looked at.
pub(super) fn certificate(validity: Option<Range<SystemTime>>, now: SystemTime) -> Finding {
    const WELL: &str = "the certificate is trusted, and for this name";
    let times = validity.and_then(|Range { start, end }| {
        Some((end.duration_since(now).ok()?, end.duration_since(start).ok()?))
    });
    match times {
        Some((left, whole)) if left < RENEWED.min(whole / 3) => {
            let hours = left.as_secs() / 3600;
            let left = if hours < 48 { format!("{hours} hours") } else { format!("{} days", hours / 24) };
            Finding::warning("tls", format!("{WELL}, but it ends in {left}"), Fault::Expired.advice())
        }
        _ => Finding::well("tls", WELL),
    }
}

/// Whether the server's clock is that of this machine.
pub(super) fn clock(headers: &HeaderMap, now: SystemTime) -> Finding {
    let date = headers.get(header::DATE).and_then(|date| date.to_str().ok());
    let Some(date) = date.and_then(|date| httpdate::parse_http_date(date).ok()) else {
        return Finding::left("clock", "the server does not tell its time");
    };
    let (apart, which) = match now.duration_since(date) {
        Ok(behind) => (behind, "behind"),
        Err(ahead) => (ahead.duration(), "ahead of"),
    };
    if apart <= SKEW {
        return Finding::well("clock", "the server's clock is that of this machine");
    }
    Finding::fault(
        "clock",
        format!("the server's clock is {} s {which} that of this machine", apart.as_secs()),
        "run NTP on both: tokens end too early or too late, and the delivery lag is measured wrongly",
    )
}

/// Everything about the stream, in the order of what hides what.
pub(super) fn of_stream(measured: &Measured) -> Vec<Finding> {
    let mut found = Vec::new();
    let coding = measured.headers.get(header::CONTENT_ENCODING).and_then(|coding| coding.to_str().ok());
    match (measured.status, coding, measured.first) {
        (Some(status), ..) if status != 200 => {
            found.push(Finding::fault(
                "stream",
                format!("the stream is answered with the status {status}"),
                "EventSource gives up for good on any status but 200: look at what stands between, and at the gateway's log",
            ));
            return found;
        }
        (_, Some(coding), None) => found.push(Finding::fault(
            "compression",
            format!("the stream is compressed ({coding}) and held back until the compressor's buffer is full"),
            "do not compress text/event-stream: take it out of nginx's gzip_types or brotli_types, and set proxy_buffering off",
        )),
        (_, None, None) => found.push(Finding::fault(
            "buffering",
            format!("no event arrived within {} s: something collects the stream before it passes it on", PATIENCE.as_secs()),
            "nginx: proxy_buffering off, and no proxy_ignore_headers X-Accel-Buffering; elsewhere: turn response buffering off for /api/progress/",
        )),
        (_, Some(coding), Some(_)) => found.push(Finding::warning(
            "compression",
            format!("the stream is compressed ({coding}), although it says no-transform"),
            "take text/event-stream out of what is compressed: it costs memory for each viewer, and secrets beside a stranger's text leak (BREACH)",
        )),
        (_, None, Some(first)) => {
            found.push(Finding::well("buffering", format!("the first event came after {} ms", first.as_millis())));
            found.push(Finding::well("compression", "the stream is not compressed"));
        }
    }
    found.extend(measured.silence.map(silence));
    found.extend(measured.at_once.map(at_once));
    if measured.at_once.is_some() {
        found.push(end(measured.end));
    }
    found.extend(caching(&measured.headers));
    found
}

fn silence(silence: Silence) -> Finding {
    const ADVICE: &str = "raise the idle timeout above 60 s: nginx proxy_read_timeout, HAProxy timeout tunnel and timeout server, \
        the load balancer's idle timeout";
    match silence {
        Silence::Broken(after) => {
            Finding::well("idle", format!("a sign of life came after {} s of silence", after.as_secs()))
        }
        Silence::Cut(after) => Finding::fault(
            "idle",
            format!(
                "the connection was cut after {:.0} s of silence, before the next sign of life",
                after.as_secs_f64()
            ),
            ADVICE,
        ),
        Silence::Lasted(after) => Finding::fault(
            "idle",
            format!(
                "no sign of life came in {} s: something swallows the stream's comments",
                after.as_secs()
            ),
            "let everything pass that the gateway sends; browsers take the silence for a dead connection, and proxies cut it",
        ),
    }
}

fn at_once((opened, asked): (usize, usize)) -> Finding {
    if opened == asked {
        return Finding::well("connections", format!("{asked} streams open at once"));
    }
    Finding::fault(
        "connections",
        format!("of {asked} streams at once, only {opened} opened"),
        "raise what limits connections of one address: nginx limit_conn, the proxy's connections to the gateway, [limits] of the gateway",
    )
}

fn end(end: Option<Duration>) -> Finding {
    match end {
        Some(after) if after <= LATE => {
            Finding::well("delivery", format!("an event arrives after {} ms", after.as_millis()))
        }
        Some(after) => Finding::fault(
            "delivery",
            format!("the job's last event arrived {:.1} s late", after.as_secs_f64()),
            "something collects small pieces: turn off response buffering, and look at the gateway's delivery lag",
        ),
        None => Finding::fault(
            "delivery",
            "the job ended, and its stream did not",
            "something holds the end of the stream back: turn off response buffering",
        ),
    }
}

/// Whether a browser's streams share a connection; `encrypted` if they could.
pub(super) fn version(version: Version, encrypted: bool) -> Finding {
    if version >= Version::HTTP_2 {
        return Finding::well("http", "HTTP/2: streams share one connection");
    }
    if encrypted {
        return Finding::warning(
            "http",
            "HTTPS without HTTP/2: the server does not offer h2 by ALPN, so a browser opens at most six connections to it, all \
             tabs together; the seventh stream waits in silence",
            "offer it: nginx http2 on, HAProxy alpn h2,http/1.1, the load balancer's HTTP/2 setting; the gateway itself does",
        );
    }
    Finding::warning(
        "http",
        "HTTP/1.1: a browser opens at most six connections to a host, all tabs together; the seventh stream waits in silence",
        "serve HTTPS, which browsers speak HTTP/2 over, or follow several jobs by one stream",
    )
}

fn caching(headers: &HeaderMap) -> Option<Finding> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !text(header::CONTENT_TYPE).starts_with("text/event-stream") {
        return Some(Finding::fault(
            "headers",
            format!("the stream's type is {:?}", text(header::CONTENT_TYPE)),
            "something answers in the gateway's place, or rewrites Content-Type: EventSource takes text/event-stream only",
        ));
    }
    let caching = text(header::CACHE_CONTROL);
    (!caching.contains("no-cache") && !caching.contains("no-store")).then(|| {
        Finding::warning(
            "headers",
            format!("something took Cache-Control: no-cache away ({caching:?} is left)"),
            "do not rewrite Cache-Control of /api/progress/: a cache may keep a stream",
        )
    })
}

/// Whether pages of the origin may follow jobs; of an answer and of a preflight's.
pub(super) fn cors(asked: Option<(&str, &HeaderMap, &HeaderMap)>) -> Finding {
    const ADVICE: &str = "start the gateway with --cors-origin for this origin, and let no proxy add, merge or drop Access-Control-… or Vary";
    let Some((origin, answer, preflight)) = asked else {
        return Finding::left("cors", "not asked: --origin https://app.example");
    };
    let is = |headers: &HeaderMap, name, expected: &str| {
        let mut values = headers.get_all(name).iter();
        values.next().is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(expected.as_bytes()))
            && values.next().is_none()
    };
    let varies = answer
        .get_all(header::VARY)
        .iter()
        .any(|vary| vary.to_str().unwrap_or_default().to_ascii_lowercase().contains("origin"));
    let wrong = [
        (
            is(answer, header::ACCESS_CONTROL_ALLOW_ORIGIN, origin),
            "the origin is not allowed, or not exactly once",
        ),
        (is(answer, header::ACCESS_CONTROL_ALLOW_CREDENTIALS, "true"), "credentials are not allowed"),
        (varies, "Vary does not name Origin, so a cache may give one origin's answer to another"),
        (is(preflight, header::ACCESS_CONTROL_ALLOW_ORIGIN, origin), "the preflight is refused"),
    ];
    match wrong.into_iter().find(|(well, _)| !well) {
        None => Finding::well("cors", format!("pages of {origin} may follow jobs")),
        Some((_, what)) => {
            Finding::fault("cors", format!("pages of {origin} cannot follow jobs: {what}"), ADVICE)
        }
    }
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| {
            (header::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn clocks_that_are_apart_are_told_with_their_direction() {
        let date = headers(&[("date", "Sun, 06 Nov 1994 08:49:37 GMT")]);
        let then = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(clock(&date, then + Duration::from_secs(1)).level, Level::Well);
        let ahead = clock(&date, then - Duration::from_secs(60));
        assert_eq!((ahead.level, ahead.what.contains("60 s ahead of")), (Level::Fault, true), "{ahead:?}");
        assert!(clock(&date, then + Duration::from_secs(60)).what.contains("60 s behind"));
        assert_eq!(clock(&HeaderMap::new(), then).level, Level::Left);
    }

    #[test]
    fn a_certificate_that_should_have_been_renewed_is_told() {
        let day = Duration::from_secs(24 * 3600);
        let now = SystemTime::UNIX_EPOCH + 20_000 * day;
        let judge = |age: u32, left: u32| certificate(Some(now - age * day..now + left * day), now);
        for (age, left, level) in [
            (76, 14, Level::Well),
            (77, 13, Level::Warning),
            (350, 15, Level::Well),
            // Some have six days in all.
            (4, 2, Level::Well),
            (5, 1, Level::Warning),
        ] {
            assert_eq!(judge(age, left).level, level, "{age} {left}");
        }
        assert!(judge(77, 13).what.ends_with("ends in 13 days"));
        assert!(judge(5, 1).what.ends_with("ends in 24 hours"));
        assert_eq!(certificate(None, now).level, Level::Well);
    }

    #[test]
    fn e44_missing_and_doubled_cors_headers_are_found() {
        let origin = "https://app.example";
        let good = [
            ("access-control-allow-origin", origin),
            ("access-control-allow-credentials", "true"),
            ("vary", "accept, origin"),
        ];
        let good = headers(&good);
        let judge = |answer: &HeaderMap, preflight: &HeaderMap| cors(Some((origin, answer, preflight)));
        assert_eq!(judge(&good, &good).level, Level::Well);
        for name in ["access-control-allow-origin", "access-control-allow-credentials", "vary"] {
            let mut less = good.clone();
            less.remove(name);
            assert_eq!(judge(&less, &good).level, Level::Fault, "{name}");
        }
        let mut doubled = good.clone();
        doubled.append("access-control-allow-origin", HeaderValue::from_static("*"));
        assert_eq!(judge(&doubled, &good).level, Level::Fault);
        assert!(judge(&good, &HeaderMap::new()).what.contains("preflight"));
    }

    #[test]
    fn what_hides_the_rest_is_told_alone() {
        let refused = Measured { status: Some(502), ..Measured::default() };
        assert_eq!(of_stream(&refused).len(), 1);
        let held = Measured {
            status: Some(200),
            headers: headers(&[("content-encoding", "gzip")]),
            ..Measured::default()
        };
        assert_eq!(of_stream(&held)[0].check, "compression");
        assert_eq!(of_stream(&Measured::default())[0].check, "buffering");
        assert_eq!(at_once((6, 8)).level, Level::Fault);
        assert_eq!(end(None).level, Level::Fault);
        assert_eq!(silence(Silence::Lasted(Duration::from_secs(40))).level, Level::Fault);
        for (encrypted, words) in [(false, "HTTP/1.1"), (true, "ALPN")] {
            let found = version(Version::HTTP_11, encrypted);
            assert!(found.level == Level::Warning && found.what.contains(words), "{found:?}");
            assert_eq!(version(Version::HTTP_2, encrypted).level, Level::Well);
        }
    }
}
