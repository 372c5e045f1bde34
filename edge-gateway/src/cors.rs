//! Pages of other origins that may use the API: those that are named, exactly, and no others.
//!
//! Preflights are answered here, before authentication and limits look at them. Never `*`, because requests carry
//! credentials; never `null`, because every sandboxed page has that origin.

use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, Uri, header};
use tower_http::cors::{AllowOrigin, CorsLayer};

/// How long a browser may remember a preflight.
const REMEMBERED: Duration = Duration::from_secs(600);

/// An origin as browsers write it, such as `https://app.example:8443`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin(HeaderValue);

impl std::str::FromStr for Origin {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str = "an origin such as https://app.example or http://localhost:3000";
        let uri: Uri = text.parse().map_err(|_| EXPECTED)?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(EXPECTED);
        };
        let default = match scheme {
            "http" => 80,
            "https" => 443,
            _ => return Err(EXPECTED),
        };
        // What a browser would send, to the letter: it is compared as text.
        let host = authority.host();
        let port = authority.port_u16().filter(|port| *port != default);
        let origin = match port {
            Some(port) => format!("{scheme}://{host}:{port}"),
            None => format!("{scheme}://{host}"),
        };
        if origin != text || host.is_empty() || host.contains('*') || origin != origin.to_ascii_lowercase() {
            return Err(EXPECTED);
        }
        HeaderValue::from_str(text).map(Self).map_err(|_| EXPECTED)
    }
}

impl Origin {
    /// Whether this is the origin that a request names.
    pub(crate) fn is(&self, named: &HeaderValue) -> bool {
        self.0 == named
    }
}

/// The layer for these origins; it answers preflights and leaves bodies alone.
pub(crate) fn layer(origins: &[Origin]) -> CorsLayer {
    let name = HeaderName::from_static;
    CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins.iter().map(|origin| origin.0.clone())))
        .allow_credentials(true)
        .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::DELETE])
        .allow_headers([
            header::ACCEPT,
            header::AUTHORIZATION,
            header::CACHE_CONTROL,
            header::CONTENT_TYPE,
            name("idempotency-key"),
            name("last-event-id"),
            name("x-api-key"),
            name("x-request-id"),
        ])
        .expose_headers([
            header::LOCATION,
            header::RETRY_AFTER,
            name("ratelimit"),
            name("ratelimit-policy"),
            name("x-request-id"),
        ])
        .max_age(REMEMBERED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e44_origins_are_exact() {
        for text in
            ["https://app.example", "http://localhost:3000", "https://app.example:8443", "http://[::1]:3000"]
        {
            assert!(text.parse::<Origin>().is_ok(), "{text}");
        }
        for text in [
            "*",
            "null",
            "",
            "app.example",
            "https://",
            "https://*.example",
            "https://app.example/",
            "https://app.example/x",
            "https://App.example",
            "https://app.example:443",
            "http://app.example:80",
            "https://u@app.example",
            "https://app.example?x",
            "ftp://app.example",
            "file://",
            "https://a.example,https://b.example",
            "https://a\r\nb",
        ] {
            assert!(text.parse::<Origin>().is_err(), "{text}");
        }
    }
}
