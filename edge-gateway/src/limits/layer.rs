//! The way in: around every route, before its handler. An address that has used up its share is refused before the
//! costly check of who is calling; then the caller is found, and the request is charged to all whom it counts for.

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use http::{Method, request::Parts};

use super::{Refusal, Standing, Who, settings::Class};
use crate::{caller::Caller, client::Client, problem::Problem, progress, routes::App};

/// Finds out who is calling, charges the request, and tells how the client stands.
pub(crate) async fn enter(State(app): State<App>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let (mut response, standing) = match admit(&app, &mut parts).await {
        Ok((standing, Ok(()))) => (next.run(Request::from_parts(parts, body)).await, standing),
        Ok((standing, Err(problem))) => (progress::refusal(problem, &parts), standing),
        Err(refusal) => (progress::refusal(refusal.into(), &parts), Standing::default()),
    };
    // The answer may say more: how many streams are open, or which limit is reached.
    let standing = standing.and(response.extensions().get::<Standing>());
    standing.write(response.headers_mut());
    response
}

/// How the client stands, and whether it is known who it is; or why it gets nothing.
async fn admit(app: &App, parts: &mut Parts) -> Result<(Standing, Result<(), Problem>), Refusal> {
    let (class, ip) = (class(&parts.method, parts.uri.path()), Client::of(&parts.extensions));
    if let Some(class) = class {
        app.limiter.barred(class, ip)?;
    }
    let identified = app.access.identify(parts).await;
    // Who cannot say who it is, is refused; the attempt counts for the address.
    let caller = parts.extensions.get::<Caller>();
    let standing = match class {
        Some(class) => app.limiter.admit(class, Who { ip, caller }).await?,
        None => Standing::default(),
    };
    Ok((standing, identified))
}

/// What a request asks for; nothing that is limited outside the API.
fn class(method: &Method, path: &str) -> Option<Class> {
    let path = path.strip_prefix("/api/")?;
    match *method {
        // Said by the browser on its own account, and answered without looking at anything.
        Method::OPTIONS => None,
        Method::GET if path == "progress" || path.starts_with("progress/") => Some(Class::Connect),
        // A ticket is the first half of a connect.
        Method::POST if path == "tickets" => Some(Class::Connect),
        Method::GET | Method::HEAD => Some(Class::Read),
        _ => Some(Class::Submit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_classed_by_what_they_cost() {
        for (method, path, expected) in [
            (Method::GET, "/api/progress/x", Some(Class::Connect)),
            (Method::GET, "/api/progress", Some(Class::Connect)),
            (Method::HEAD, "/api/progress/x", Some(Class::Read)),
            (Method::POST, "/api/tickets", Some(Class::Connect)),
            (Method::GET, "/api/jobs", Some(Class::Read)),
            (Method::POST, "/api/jobs", Some(Class::Submit)),
            (Method::DELETE, "/api/jobs/x", Some(Class::Submit)),
            (Method::OPTIONS, "/api/jobs", None),
            (Method::GET, "/", None),
            (Method::GET, "/client.js", None),
        ] {
            assert_eq!(class(&method, path), expected, "{method} {path}");
        }
    }
}
