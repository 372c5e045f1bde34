//! Sessions: a bearer token exchanged for a cookie, for pages that come from this gateway.
//!
//! The cookie is a sealed principal; no gateway stores it, and all that share the secret read it. It is `HttpOnly`,
//! `SameSite=Strict`, `Path=/`, and `Secure` unless the gateway listens on loopback. It ends with its token. To end one
//! in another's browser, revoke its token or subject.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use tidegate_auth::{Principal, Refused};
use utoipa::ToSchema;

use crate::{
    access::Access,
    caller::{Anybody, Caller, May, Via},
    jobs, json,
    openapi::Problems,
    problem::Problem,
    routes::App,
};

/// What cookies are sealed for.
pub(crate) const PURPOSE: &str = "session";

/// Where sessions begin and end.
pub(crate) const PATH: &str = "/api/session";

/// What a sealed cookie says.
#[derive(Serialize, Deserialize)]
pub(crate) struct Session(pub(crate) Principal);

/// The cookie of that name; it is taken out with all others.
pub(crate) fn cookie(headers: &mut HeaderMap, name: &str) -> Result<Option<String>, Problem> {
    let mut found = None;
    for line in headers.get_all(header::COOKIE) {
        let Ok(line) = line.to_str() else { continue };
        for (_, value) in
            line.split(';').filter_map(|pair| pair.trim().split_once('=')).filter(|(n, _)| *n == name)
        {
            // A second one was planted by a neighbour; which is which cannot be known.
            if found.replace(value.to_owned()).is_some_and(|first| first != value) {
                return Err(Refused::Malformed.into());
            }
        }
    }
    headers.remove(header::COOKIE);
    Ok(found)
}

/// Who the caller is.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Caller)]
struct Who<'a> {
    tenant: &'a str,
    subject: &'a str,
    scopes: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    expires_at: Option<String>,
}

fn who(principal: &Principal) -> Response {
    jobs::json(&Who {
        tenant: &principal.tenant,
        subject: &principal.subject,
        scopes: principal.scopes.names(),
        expires_at: principal.expires.map(json::unix),
    })
}

/// Show who one is
#[utoipa::path(
    get, path = PATH, tag = "access", operation_id = "showSession",
    responses((status = 200, description = "The caller", body = Who<'_>), Problems)
)]
pub(crate) async fn show(May(caller): Anybody) -> Response {
    who(&caller.principal)
}

/// Begin a session
///
/// A token or API key for a cookie, which pages of this gateway's own origin then need not handle.
#[utoipa::path(
    post, path = PATH, tag = "access", operation_id = "beginSession",
    responses((status = 200, description = "The caller, and `Set-Cookie`", body = Who<'_>), Problems)
)]
pub(crate) async fn begin(State(app): State<App>, May(caller): Anybody) -> Result<Response, Problem> {
    let Caller { principal, via } = caller;
    let Some(settings) = app.access.auth.as_ref().map(tidegate_auth::Authenticator::session) else {
        return Ok(who(&principal)); // nobody has to say who it is
    };
    if !settings.enabled {
        return Err(Problem::NotFound);
    }
    if via != Via::Header {
        return Err(Problem::Unauthenticated(None)); // a session is not prolonged by itself
    }
    let now = tidegate_auth::now();
    let ends = (now + settings.lifetime.as_secs()).min(principal.expires.unwrap_or(u64::MAX));
    let session = Session(Principal { expires: Some(ends), ..Principal::clone(&principal) });
    let sealed = app.access.sealer.seal(PURPOSE, &session).ok_or(Problem::Internal)?;
    let mut response = who(&session.0);
    set_cookie(&app.access, &mut response, &sealed, ends.saturating_sub(now))?;
    Ok(response)
}

/// End a session
///
/// The browser forgets the cookie. Needs no credential.
#[utoipa::path(
    delete, path = PATH, tag = "access", operation_id = "endSession", security(()),
    responses((status = 204, description = "No session any more"), Problems)
)]
pub(crate) async fn end(State(app): State<App>) -> Result<Response, Problem> {
    let mut response = StatusCode::NO_CONTENT.into_response();
    set_cookie(&app.access, &mut response, "", 0)?;
    Ok(response)
}

fn set_cookie(access: &Access, response: &mut Response, value: &str, max_age: u64) -> Result<(), Problem> {
    let secure = if access.secure_cookies() { "; Secure" } else { "" };
    let text = format!(
        "{}={value}; Path=/; Max-Age={max_age}; HttpOnly; SameSite=Strict{secure}",
        access.cookie_name()
    );
    let mut cookie = HeaderValue::from_str(&text).map_err(|_| Problem::Internal)?;
    cookie.set_sensitive(true);
    response.headers_mut().insert(header::SET_COOKIE, cookie);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_cookie_is_read_and_planted_ones_are_refused() {
        let read = |lines: &[&'static str]| {
            let line = |line: &&'static str| (header::COOKIE, HeaderValue::from_static(line));
            let mut headers = HeaderMap::new();
            for (name, value) in lines.iter().map(line) {
                headers.append(name, value);
            }
            let read = cookie(&mut headers, "tidegate");
            assert!(read.is_err() || headers.is_empty());
            read
        };
        assert_eq!(read(&["a=b; tidegate=x=y; c=d"]).unwrap().as_deref(), Some("x=y"));
        assert_eq!(read(&["tidegate=x", "tidegate=x"]).unwrap().as_deref(), Some("x"));
        assert_eq!(read(&["__Host-tidegate=x; tidegate2=y"]).unwrap(), None);
        assert!(read(&["tidegate=x; tidegate=y"]).is_err());
        assert!(read(&["tidegate=x", "tidegate=y"]).is_err());
    }
}
