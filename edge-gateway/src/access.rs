//! Who comes in: reads the credentials of a request, each kind in its place, and puts a [`Caller`] into the request.
//!
//! A request that needs a credential and has none, or a bad one, goes no further. A credential that is there decides: a
//! bad header is never passed over for a good cookie. Headers with credentials are taken out of the request once they are
//! read, so that nothing behind can log them.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header, request::Parts};
use tidegate_auth::{Authenticator, Refused, Sealer};

use crate::{
    caller::{Caller, Via},
    cors::Origin,
    problem::Problem,
    progress,
    session::{self, Session},
    tickets::{self, Ticket},
};

/// An API key, for those who cannot set `Authorization`.
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Everything that decides who comes in.
#[derive(Debug)]
pub(crate) struct Access {
    /// None where nobody has to say who it is.
    pub(crate) auth: Option<Authenticator>,
    /// Seals tickets and sessions.
    pub(crate) sealer: Sealer,
    /// Whether cookies are `Secure` unless configured.
    pub(crate) secure: bool,
    /// Whether this is for the people at this machine only, because it asks nobody who they are.
    pub(crate) local: bool,
    /// Origins whose pages may use what a session may.
    pub(crate) origins: Vec<Origin>,
}

/// Files of the console and documents are for everybody; so are questions of browsers about methods, which never carry
/// credentials (Fetch standard, CORS-preflight), and the end of a session, which must work when it has ended already.
fn needs_caller(method: &Method, path: &str) -> bool {
    path.starts_with("/api/")
        && method != Method::OPTIONS
        && !(method == Method::DELETE && path == session::PATH)
}

impl Access {
    /// Puts the caller into a request that needs one, or says why it goes no further.
    pub(crate) async fn identify(&self, parts: &mut Parts) -> Result<(), Problem> {
        if needs_caller(&parts.method, parts.uri.path()) {
            let caller = self.admit(parts).await?;
            parts.extensions.insert(caller);
        }
        Ok(())
    }

    async fn admit(&self, parts: &mut Parts) -> Result<Caller, Problem> {
        let Some(auth) = &self.auth else {
            // Any site can give its own name the address 127.0.0.1, and its pages then are of this very origin.
            if self.local && host(parts).is_some_and(is_public_name) {
                return Err(Problem::ForeignHost);
            }
            // A ticket opens nothing here, but may say where to begin.
            let ticket = tickets::of(&parts.uri)?;
            let ticket: Option<Ticket> = ticket.and_then(|text| self.sealer.open(tickets::PURPOSE, &text));
            if let Some(ticket) = ticket {
                let _ = ticket.admit(progress::jobs_of(&parts.uri).as_deref(), &mut parts.headers, 0);
            }
            return Ok(Caller::anonymous());
        };
        let token = token(&mut parts.headers)?;
        let cookie = session::cookie(&mut parts.headers, self.cookie_name())?;
        // SameSite keeps other sites out, but not other origins of the same site.
        let foreign = is_foreign(&parts.uri, &parts.headers, &self.origins);
        let by_cookie = |text: String| {
            if foreign {
                return Err(Problem::CrossOrigin);
            }
            let session: Session = self.sealer.open(session::PURPOSE, &text).ok_or(Refused::Malformed)?;
            auth.standing(&session.0)?;
            Ok(Caller { principal: Arc::new(session.0), via: Via::Cookie })
        };
        let by_header = match token {
            Some(token) => Some(Caller { principal: auth.bearer(&token).await?, via: Via::Header }),
            None => None,
        };
        let Some(ticket) = tickets::of(&parts.uri)? else {
            return match (by_header, cookie) {
                (Some(caller), _) => Ok(caller),
                (None, Some(cookie)) => by_cookie(cookie),
                (None, None) => Err(Problem::Unauthenticated(None)),
            };
        };
        let ticket: Ticket = self.sealer.open(tickets::PURPOSE, &ticket).ok_or(Refused::Malformed)?;
        let caller = ticket.admit(
            progress::jobs_of(&parts.uri).as_deref(),
            &mut parts.headers,
            tidegate_auth::now(),
        )?;
        auth.standing(&caller.principal)?;
        // Whoever says in another way, too, who it is, must be the one that the ticket was made for.
        let other = by_header.or_else(|| cookie.and_then(|cookie| by_cookie(cookie).ok()));
        let same = |other: &Caller| {
            other.principal.tenant == caller.principal.tenant
                && other.principal.subject == caller.principal.subject
        };
        if other.as_ref().is_none_or(same) { Ok(caller) } else { Err(Refused::Malformed.into()) }
    }

    /// Whether cookies are for HTTPS only.
    pub(crate) fn secure_cookies(&self) -> bool {
        self.auth.as_ref().and_then(|auth| auth.session().secure).unwrap_or(self.secure)
    }

    /// The prefix makes browsers refuse the cookie unless it came over HTTPS from this very host (RFC 6265bis).
    pub(crate) fn cookie_name(&self) -> &'static str {
        if self.secure_cookies() { "__Host-tidegate" } else { "tidegate" }
    }
}

/// The name by which the gateway was called.
fn host(parts: &Parts) -> Option<&str> {
    parts.uri.host().or_else(|| parts.headers.get(header::HOST)?.to_str().ok())
}

/// Whether a name may be one that strangers have registered: no address, no `localhost`, and more than one label.
fn is_public_name(host: &str) -> bool {
    let name =
        host.rsplit_once(':').map_or(host, |(name, _)| name).trim_end_matches('.').to_ascii_lowercase();
    let is_address = host.starts_with('[') || name.parse::<std::net::Ipv4Addr>().is_ok();
    name.contains('.') && !is_address && !name.ends_with(".localhost")
}

/// The token of the one header that may carry one; the header is taken out.
fn token(headers: &mut HeaderMap) -> Result<Option<String>, Problem> {
    let mut given = Vec::new();
    for name in [header::AUTHORIZATION, API_KEY] {
        given.extend(headers.get_all(&name).iter().map(|value| (name.clone(), value.clone())));
        headers.remove(&name);
    }
    let malformed = || Problem::from(Refused::Malformed);
    let (name, value) = match <[_; 1]>::try_from(given) {
        Ok([one]) => one,
        Err(none) if none.is_empty() => return Ok(None),
        Err(_several) => return Err(malformed()),
    };
    let text = value.to_str().map_err(|_| malformed())?;
    if name == API_KEY {
        return Ok(Some(text.to_owned()));
    }
    match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(Some(token.trim().to_owned())),
        _ => Err(malformed()),
    }
}

/// Whether a page of another origin makes the browser send this.
///
/// Browsers say so themselves; programs that are no browsers send neither header. Pages of the `allowed` origins may.
pub(crate) fn is_foreign(uri: &Uri, headers: &HeaderMap, allowed: &[Origin]) -> bool {
    if headers.get(header::ORIGIN).is_some_and(|named| allowed.iter().any(|origin| origin.is(named))) {
        return false;
    }
    let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    match (text(HeaderName::from_static("sec-fetch-site")), text(header::ORIGIN)) {
        (Some(site), _) => !matches!(site, "same-origin" | "none"),
        (None, Some(origin)) => {
            // HTTP/2 has the host in the URI.
            let host = uri.authority().map(http::uri::Authority::as_str).or(text(header::HOST));
            origin.split_once("://").map(|(_, host)| host) != host
        }
        (None, None) => false,
    }
}

/// The challenge of a refusal (RFC 6750, section 3).
pub(crate) fn challenge(problem: &Problem) -> Option<HeaderValue> {
    let text = match problem {
        Problem::Unauthenticated(None) => "Bearer realm=\"tidegate\"".to_owned(),
        Problem::Unauthenticated(Some(why)) => {
            format!("Bearer realm=\"tidegate\", error=\"invalid_token\", error_description=\"{why}\"")
        }
        Problem::InsufficientScope(scope) => {
            format!("Bearer realm=\"tidegate\", error=\"insufficient_scope\", scope=\"{}\"", scope.name())
        }
        _ => return None,
    };
    HeaderValue::from_str(&text).ok()
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Unavailable => Self::AuthUnavailable,
            why => Self::Unauthenticated(Some(why)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        let mut map = HeaderMap::new();
        for (name, value) in pairs.iter().map(pair) {
            map.append(name, value);
        }
        map
    }

    #[test]
    fn one_header_carries_the_token_and_is_taken_out() {
        let mut bearer = headers(&[("authorization", "bEaReR  abc ")]);
        assert_eq!(token(&mut bearer).unwrap().unwrap(), "abc");
        assert!(bearer.is_empty());
        assert_eq!(token(&mut headers(&[("x-api-key", "tg_x")])).unwrap().unwrap(), "tg_x");
        assert!(token(&mut headers(&[("cookie", "tidegate=x")])).unwrap().is_none());
        for bad in [
            &[("authorization", "Basic eDp5")][..],
            &[("authorization", "Bearer")],
            &[("authorization", "")],
            &[("authorization", "Bearer a"), ("authorization", "Bearer b")],
            &[("authorization", "Bearer a"), ("x-api-key", "b")],
        ] {
            assert!(token(&mut headers(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_public_name_is_told_from_the_names_of_this_machine() {
        for own in [
            "localhost:8080",
            "127.0.0.1:8080",
            "[::1]:8080",
            "[::1]",
            "a.localhost",
            "tidegate:80",
            "LOCALHOST.",
        ] {
            assert!(!is_public_name(own), "{own}");
        }
        for public in
            ["evil.example:8080", "127.0.0.1.nip.io", "EVIL.example.", "localhost.evil.example", "1.2.3.4.5"]
        {
            assert!(is_public_name(public), "{public}");
        }
    }

    #[test]
    fn everything_below_api_needs_a_caller() {
        for path in ["/api/jobs", "/api/progress/x", "/api/session", "/api/", "/api/what/ever"] {
            assert!(needs_caller(&Method::GET, path) && needs_caller(&Method::POST, path), "{path}");
        }
        assert!(
            needs_caller(&Method::DELETE, "/api/jobs/x") && !needs_caller(&Method::DELETE, "/api/session")
        );
        for path in ["/", "/client.js", "/openapi.json"] {
            assert!(!needs_caller(&Method::GET, path));
        }
    }
}
