//! The operator's port, the same for every part: `/metrics`, `/healthz` (the process lives), `/readyz` (it can do its work,
//! or says why not), `/loglevel`.
//!
//! Unless there is an [`AdminToken`] nobody is asked who they are: such a port belongs on loopback, or where only operators
//! reach it. With one, `/metrics` and `/loglevel` are for its bearers. `/healthz` and `/readyz` are for everybody: probes
//! have no credentials, and hear whether it is, or why not, and no secret. What it does not do: bind, or bound connections.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use axum::{
    Router,
    extract::{Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use http::{HeaderMap, StatusCode, header};

use crate::{CONTENT_TYPE, loglevel};

/// The shortest token, in bytes: a shorter one could be tried out.
const SHORTEST: usize = 16;

/// What an operator's port shows.
pub trait Part: Clone + Send + Sync + 'static {
    /// The text that Prometheus scrapes.
    fn metrics(&self) -> impl Future<Output = String> + Send;
    /// Whether the part can do its work; else why not, in a sentence that names no secret.
    fn ready(&self) -> impl Future<Output = Result<(), String>> + Send;
}

/// The token of an operator's port, in a file that is read for each request: a new one holds at once.
#[derive(Clone, Debug)]
pub struct AdminToken(Arc<Path>);

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum AdminTokenError {
    /// The file cannot be read.
    #[error("--admin-token-file {0}: {1}")]
    File(PathBuf, std::io::Error),
    /// It holds something else.
    #[error(
        "--admin-token-file {0} is no token: one line of printable ASCII, at least {SHORTEST} characters"
    )]
    Malformed(PathBuf),
}

impl AdminToken {
    /// The token that the file at `path` holds, now and later.
    ///
    /// # Errors
    /// When there is none now. Should there be none later, nobody is let in.
    pub fn file(path: &Path) -> Result<Self, AdminTokenError> {
        let text = fs::read_to_string(path).map_err(|error| AdminTokenError::File(path.to_owned(), error))?;
        token(&text).ok_or_else(|| AdminTokenError::Malformed(path.to_owned()))?;
        Ok(Self::later(path))
    }

    /// The same, not looked at yet: as long as there is none, nobody is let in.
    pub fn later(path: &Path) -> Self {
        Self(path.into())
    }

    /// Whether a request presents it.
    async fn is_shown(&self, headers: &HeaderMap) -> bool {
        let Ok(text) = tokio::fs::read_to_string(&self.0).await else { return false };
        let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let shown = shown.and_then(|value| value.split_once(' '));
        match (token(&text), shown) {
            (Some(token), Some((scheme, shown))) if scheme.eq_ignore_ascii_case("bearer") => {
                verify_slices_are_equal(token.as_bytes(), shown.trim().as_bytes()).is_ok()
            }
            _ => false,
        }
    }
}

fn token(text: &str) -> Option<&str> {
    let token = text.trim();
    (token.len() >= SHORTEST && token.bytes().all(|b| b.is_ascii_graphic())).then_some(token)
}

/// The routes of `part`; without a `token` all of them are for everybody.
pub fn router<P: Part>(part: P, token: Option<AdminToken>) -> Router {
    let guarded = Router::new()
        .route("/metrics", get(metrics::<P>))
        .merge(loglevel::routes())
        .route_layer(middleware::from_fn_with_state(token, guard));
    Router::new()
        .route("/healthz", get(async || "alive\n"))
        .route("/readyz", get(ready::<P>))
        .merge(guarded)
        .with_state(part)
}

async fn metrics<P: Part>(State(part): State<P>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], part.metrics().await)
}

async fn ready<P: Part>(State(part): State<P>) -> (StatusCode, String) {
    match part.ready().await {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, why + "\n"),
    }
}

async fn guard(State(token): State<Option<AdminToken>>, request: Request, next: Next) -> Response {
    match token {
        Some(token) if !token.is_shown(request.headers()).await => {
            let asked = [(header::WWW_AUTHENTICATE, "Bearer")];
            (StatusCode::UNAUTHORIZED, asked, "the admin token is asked for\n").into_response()
        }
        _ => next.run(request).await,
    }
}

#[cfg(test)]
mod tests {
    use tower::ServiceExt as _;

    use super::*;

    #[derive(Clone)]
    struct Busy;

    impl Part for Busy {
        async fn metrics(&self) -> String {
            "jobs 1\n".to_owned()
        }

        async fn ready(&self) -> Result<(), String> {
            Err("draining".to_owned())
        }
    }

    async fn status(router: &Router, method: &str, path: &str, authorization: &str) -> u16 {
        let request = Request::builder().method(method).uri(path);
        let request = match authorization {
            "" => request,
            value => request.header(header::AUTHORIZATION, value),
        };
        let request = request.body(axum::body::Body::from("info")).unwrap();
        router.clone().oneshot(request).await.unwrap().status().as_u16()
    }

    #[tokio::test]
    async fn without_a_token_everybody_may_look_and_probes_hear_why_it_is_not_ready() {
        let router = router(Busy, None);
        for (path, expected) in [("/metrics", 200), ("/healthz", 200), ("/readyz", 503), ("/", 404)] {
            assert_eq!(status(&router, "GET", path, "").await, expected, "{path}");
        }
    }

    #[tokio::test]
    async fn a_token_is_asked_for_wherever_more_than_health_is_told() {
        const OLD: &str = "0123456789abcdef";
        const NEW: &str = "fedcba9876543210";
        let path = std::env::temp_dir().join(format!("tidegate-admin-token-{}", std::process::id()));
        for bad in ["", "short", "has a blank in it, and is long enough"] {
            fs::write(&path, bad).unwrap();
            assert!(AdminToken::file(&path).is_err(), "{bad:?}");
        }
        fs::write(&path, format!("{OLD}\n")).unwrap();
        let router = router(Busy, Some(AdminToken::file(&path).unwrap()));
        let bearer = |token: &str| format!("Bearer {token}");
        for (method, path) in [("GET", "/metrics"), ("GET", "/loglevel"), ("PUT", "/loglevel")] {
            for wrong in ["", OLD, &bearer(NEW), &bearer(&OLD[1..]), &bearer(&format!("{OLD}0")), "Bearer "] {
                assert_eq!(status(&router, method, path, wrong).await, 401, "{method} {path} {wrong:?}");
            }
        }
        assert_eq!(status(&router, "GET", "/metrics", &bearer(OLD)).await, 200);
        assert_eq!(
            status(&router, "GET", "/metrics", &format!("bearer {OLD}")).await,
            200,
            "RFC 9110: any case"
        );
        assert_eq!(status(&router, "GET", "/healthz", "").await, 200);
        assert_eq!(status(&router, "GET", "/readyz", "").await, 503);
        fs::write(&path, NEW).unwrap();
        assert_eq!(status(&router, "GET", "/metrics", &bearer(OLD)).await, 401, "it was replaced");
        assert_eq!(status(&router, "GET", "/metrics", &bearer(NEW)).await, 200);
        fs::remove_file(&path).unwrap();
        assert_eq!(
            status(&router, "GET", "/metrics", &bearer(NEW)).await,
            401,
            "nobody is let in without it"
        );
    }
}
