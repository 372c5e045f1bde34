//! The gateway's HTTP interface, as the client commands call it.
//!
//! Thin on purpose: JSON bodies stay [`serde_json::Value`], so that an older command prints what a newer gateway
//! says. What matters is the failures: a refusal keeps its whole problem document, and a server that cannot be
//! reached is told apart from one that refuses.

use std::{
    error::Error as _,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use reqwest::{
    Certificate, Method, RequestBuilder, Response, StatusCode, Url,
    header::{self, HeaderValue},
    redirect::Policy,
};
use serde_json::Value;

use crate::tls::Fault;

mod problem;

pub use problem::Problem;

/// How long an ordinary call may take; streams have no limit but their silence.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is not one that this command can talk to.
    #[error("--server {0:?}: {1}")]
    BadServer(String, String),
    /// What is to be presented is no token.
    #[error("{0} is no token: one line of printable ASCII")]
    BadToken(String),
    /// The file of certificates to trust holds none, or there is nobody to trust.
    #[error("--ca {0}")]
    BadCa(String),
    /// The server cannot be trusted, or does not speak TLS.
    #[error("{server}: {fault}\n  {}", .fault.advice())]
    Untrusted {
        /// The server's address.
        server: String,
        /// What is wrong.
        fault: Fault,
    },
    /// No answer: refused, timed out, or cut before the status line.
    #[error(
        "cannot reach {server}: {cause}\n  is `tidegate` running there? Another address: --server URL or TIDEGATE_SERVER"
    )]
    Unreachable {
        /// The server's address.
        server: String,
        /// The innermost cause.
        cause: String,
    },
    /// The server refused, and said why.
    #[error("{0}")]
    Refused(Box<Problem>),
    /// The server sends whoever asks elsewhere.
    #[error("{server} answers elsewhere: {hint}")]
    Moved {
        /// The server's address.
        server: String,
        /// Where, and what to do about it.
        hint: String,
    },
    /// Something answered that is not a Tidegate gateway.
    #[error("{server} does not answer like a Tidegate gateway: {detail}")]
    Foreign {
        /// The server's address.
        server: String,
        /// What was odd.
        detail: String,
    },
}

/// A gateway's address and the connections to it; cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    /// What is presented; it prints as "Sensitive".
    authorization: Option<HeaderValue>,
    /// Where that comes from, if it may change.
    token_file: Option<PathBuf>,
}

impl Client {
    /// A client of the gateway at `server`, such as `http://127.0.0.1:8080`; a path prefix is kept.
    ///
    /// # Errors
    /// [`Error::BadServer`] when `server` is no `http` or `https` URL.
    pub fn new(server: &str) -> Result<Self, Error> {
        Self::trusting(server, None)
    }

    /// Like [`Client::new`], and trusts the certificates (PEM) in the file `ca` beside the system's.
    ///
    /// # Errors
    /// [`Error::BadCa`], too.
    pub fn trusting(server: &str, ca: Option<&Path>) -> Result<Self, Error> {
        let bad = |why: String| Error::BadServer(server.to_owned(), why);
        let base: Url =
            server.parse().map_err(|e| bad(format!("{e}; an address looks like http://127.0.0.1:8080")))?;
        let encrypted = base.scheme() == "https";
        if !(encrypted || base.scheme() == "http") || base.host().is_none() {
            return Err(bad("it must begin with http:// or https://".into()));
        }
        if let Some(ca) = ca.filter(|_| !encrypted) {
            return Err(Error::BadCa(format!(
                "{} (TIDEGATE_CA) says whose certificates are trusted, and {server} is not encrypted: use https://, or leave it out",
                ca.display()
            )));
        }
        let trusted = ca.map(certificates).transpose()?.unwrap_or_default();
        let mut http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            // So that the doctor sees the certificate.
            .tls_info(true)
            // A token is for the server that was named, and so is what is trusted.
            .redirect(Policy::none())
            .user_agent(concat!("tidegate/", env!("CARGO_PKG_VERSION")));
        if is_loopback(&base) {
            // A proxy of the environment cannot reach this machine's own loopback address.
            http = http.no_proxy();
        }
        // Reading the system's certificates takes time, and fails where there are none.
        http = if encrypted { http.tls_certs_merge(trusted) } else { http.tls_certs_only([]) };
        let http = http.build().map_err(|e| bad(innermost(&e)))?;
        Ok(Self { http, base, authorization: None, token_file: None })
    }

    /// Presents a token or API key.
    ///
    /// # Errors
    /// [`Error::BadToken`] when it has bytes that no header may have.
    pub fn with_token(mut self, token: &str) -> Result<Self, Error> {
        self.authorization =
            Some(authorization(token).ok_or_else(|| Error::BadToken("the token".to_owned()))?);
        Ok(self)
    }

    /// Presents the token or API key in a file.
    ///
    /// # Errors
    /// [`Error::BadToken`] when the file cannot be read or holds none.
    pub fn with_token_file(mut self, path: &Path) -> Result<Self, Error> {
        self.token_file = Some(path.to_owned());
        self.reread()?;
        Ok(self)
    }

    /// Reads the token's file again; answers whether there is another one now.
    pub(crate) fn reread(&mut self) -> Result<bool, Error> {
        let Some(path) = &self.token_file else { return Ok(false) };
        let bad = |why: &dyn std::fmt::Display| Error::BadToken(format!("{}: {why}", path.display()));
        let text = fs::read_to_string(path).map_err(|error| bad(&error))?;
        let token = authorization(&text).ok_or_else(|| bad(&"it"))?;
        Ok(self.authorization.replace(token.clone()).is_none_or(|old| old != token))
    }

    /// The server's address as it was given.
    pub fn server(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// A request to the path made of `segments`, each escaped.
    pub fn request(&self, method: Method, segments: &[&str]) -> RequestBuilder {
        self.query(method, segments, &[])
    }

    /// A request with a query, its values escaped; empty values are left out.
    pub fn query(&self, method: Method, segments: &[&str], query: &[(&str, &str)]) -> RequestBuilder {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        for (name, value) in query.iter().filter(|(_, value)| !value.is_empty()) {
            url.query_pairs_mut().append_pair(name, value);
        }
        let request = self.http.request(method, url);
        match &self.authorization {
            Some(value) => request.header(header::AUTHORIZATION, value.clone()),
            None => request,
        }
    }

    /// Calls and returns the JSON body, `null` when there is none.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn call(&self, request: RequestBuilder) -> Result<Value, Error> {
        let response =
            self.send(request.timeout(CALL_TIMEOUT).header(header::ACCEPT, "application/json")).await?;
        let response = self.accepted(response).await?;
        let body = response.bytes().await.map_err(|e| self.unreachable(&e))?;
        if body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&body).map_err(|e| self.foreign(format!("its answer is not JSON ({e})")))
    }

    /// One job as it is now.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn job(&self, id: &str) -> Result<Value, Error> {
        self.call(self.request(Method::GET, &["api", "jobs", id])).await
    }

    /// Sends a request and waits for the status line, whatever it says.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::Untrusted`] or [`Error::Moved`].
    pub async fn send(&self, request: RequestBuilder) -> Result<Response, Error> {
        let response = request.send().await.map_err(|e| self.unreachable(&e))?;
        match self.moved(&response) {
            Some(hint) => Err(Error::Moved { server: self.server().to_owned(), hint }),
            None => Ok(response),
        }
    }

    /// Where a redirect leads, as `--server` has to say it if it keeps the path that was asked for.
    fn moved(&self, response: &Response) -> Option<String> {
        let location =
            response.headers().get(header::LOCATION).filter(|_| response.status().is_redirection());
        let mut to = response.url().join(location?.to_str().ok()?).ok()?;
        // They may hold secrets.
        to.set_query(None);
        to.set_fragment(None);
        let asked = response.url().path().strip_prefix(self.base.path().trim_end_matches('/'))?;
        Some(match to.path().strip_suffix(asked).map(str::to_owned) {
            Some(prefix) => {
                to.set_path(&prefix);
                format!("it answers at {0}; use that as --server", to.as_str().trim_end_matches('/'))
            }
            None => format!("it redirects to {to}; a gateway does not"),
        })
    }

    /// Passes a successful response on and turns any other into its problem.
    ///
    /// # Errors
    /// [`Error::Refused`] or [`Error::Foreign`].
    pub async fn accepted(&self, response: Response) -> Result<Response, Error> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let is_problem = content_type(&response).starts_with("application/problem+json");
        let body = response.bytes().await.unwrap_or_default();
        match serde_json::from_slice::<Problem>(&body) {
            Ok(mut problem) if is_problem => {
                problem.status = status.as_u16();
                Err(Error::Refused(Box::new(problem)))
            }
            _ => Err(self.unexpected(status)),
        }
    }

    pub(crate) fn unexpected(&self, status: StatusCode) -> Error {
        self.foreign(format!("it says {status} without a problem document"))
    }

    pub(crate) fn foreign(&self, detail: String) -> Error {
        Error::Foreign { server: self.server().to_owned(), detail }
    }

    fn unreachable(&self, error: &reqwest::Error) -> Error {
        let server = self.server().to_owned();
        match Fault::of(error) {
            Some(fault) => Error::Untrusted { server, fault },
            None => Error::Unreachable { server, cause: innermost(error) },
        }
    }
}

/// The certificates in a file, at least one.
fn certificates(path: &Path) -> Result<Vec<Certificate>, Error> {
    let bad = |why: &dyn std::fmt::Display| Error::BadCa(format!("{}: {why}", path.display()));
    let text = fs::read(path).map_err(|error| bad(&error))?;
    match Certificate::from_pem_bundle(&text) {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(bad(&"it holds no certificate: PEM is expected")),
    }
}

/// The media type of a response, lower-case, or nothing.
pub(crate) fn content_type(response: &Response) -> String {
    let value = response.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
    value.unwrap_or_default().to_ascii_lowercase()
}

/// The cause at the bottom: "Connection refused" says more than "error sending request".
pub(crate) fn innermost(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    let text = cause.to_string();
    if error.is_timeout() && error.source().is_none() { "no answer in time".to_owned() } else { text }
}

/// The value of the header.
fn authorization(token: &str) -> Option<HeaderValue> {
    let token = token.trim();
    let plain = !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic());
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).ok().filter(|_| plain)?;
    value.set_sensitive(true);
    Some(value)
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_escaped_and_prefixes_kept() {
        let client = Client::new("http://127.0.0.1:1/edge/").unwrap();
        let request = client.request(Method::GET, &["api", "jobs", "../../x?y"]).build().unwrap();
        assert_eq!(request.url().as_str(), "http://127.0.0.1:1/edge/api/jobs/..%2F..%2Fx%3Fy");
        let request =
            client.query(Method::GET, &["api"], &[("kind", "a&b"), ("status", "")]).build().unwrap();
        assert_eq!(request.url().as_str(), "http://127.0.0.1:1/edge/api?kind=a%26b");
    }

    #[test]
    fn addresses_that_cannot_work_are_refused() {
        for bad in ["", "localhost:8080", "ftp://a", "http://", "https://"] {
            assert!(matches!(Client::new(bad), Err(Error::BadServer(..))), "{bad:?}");
        }
        let no_certificates = [Path::new("Cargo.toml"), Path::new("/does/not/exist")];
        for bad in no_certificates {
            assert!(matches!(Client::trusting("https://a", Some(bad)), Err(Error::BadCa(_))), "{bad:?}");
        }
        // Whoever says whom to trust does not want to talk to just anybody.
        let plain = Client::trusting("http://a", Some(Path::new("ca.pem"))).unwrap_err().to_string();
        assert!(plain.starts_with("--ca ca.pem ") && plain.contains("use https://"), "{plain}");
    }
}
