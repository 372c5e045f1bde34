//! Tickets and session cookies: how browsers come in, who can set no headers.

use serde_json::{Value, json};

use crate::{
    auth::{NO_JOB, ROUTES, call, problem, start},
    support::{Accounts, Edge, JOB, ScriptedEngine, accounts::bearer, client, engine::log, until},
};

pub(crate) async fn ticket(edge: &Edge, headers: &str) -> Value {
    let mut answer = call(edge, ROUTES[6], JOB, headers).await;
    assert_eq!(answer.status, 201);
    answer.json().await
}

#[tokio::test]
async fn e45_an_event_source_connects_and_reconnects_with_its_ticket() {
    let (engine, accounts) = (ScriptedEngine::start(), Accounts::new());
    accounts.write("[auth.tickets]\nfirst_use_seconds = 1\n");
    let edge = start(&engine, &accounts);
    let issued = ticket(&edge, &accounts.user("anonymous")).await;
    assert!(issued["expiresAt"].as_str() > issued["connectBefore"].as_str(), "{issued}");
    let url = format!("/api/progress/{JOB}?ticket={}", issued["ticket"].as_str().unwrap());
    let source = "accept: text/event-stream\r\n";
    let mut stream = edge.get(&url, source).await;
    stream.expect("connected").await;
    let id = stream.next().await.unwrap();
    assert_eq!(
        (id.id.as_deref(), &*id.event, &*id.data),
        (Some("0-q7x2ma"), "", ""),
        "a cursor before any event"
    );
    engine.append(log("one"));
    assert_eq!(stream.take(1).await[0].id.as_deref(), Some("1-q7x2ma"));
    // Its time for a first connect is over.
    until("the first connect is over", async || edge.get(&url, source).await.status == 401).await;
    let leaks = edge.get(&format!("{url}&lastEventId=1-q7x2ma"), source).await;
    assert_eq!(problem(leaks).await, (400, "cursor-beside-ticket".into()));
    assert_eq!(edge.get(&url, &format!("{source}last-event-id: 1-other\r\n")).await.status, 401);
    // The browser's own reconnect, with and without an event seen, at this gateway and at another that shares the secret.
    let other = start(&engine, &accounts);
    for (edge, cursor, resumed) in [(&edge, "1-q7x2ma", 2), (&other, "0-q7x2ma", 1)] {
        let mut again = edge.get(&url, &format!("{source}last-event-id: {cursor}\r\n")).await;
        assert_eq!(again.status, 200);
        assert_eq!(again.expect("connected").await.json()["resumed"], true);
        again.next().await.unwrap();
        engine.append(log("more"));
        assert_eq!(again.take(1).await[0].id, Some(format!("{resumed}-q7x2ma")));
    }
}

#[tokio::test]
async fn e45_a_ticket_that_was_asked_for_with_a_cursor_begins_there() {
    let (engine, accounts) = (ScriptedEngine::start(), Accounts::new());
    let edge = start(&engine, &accounts);
    engine.append(log("one"));
    engine.append(log("two"));
    let owner = accounts.user("anonymous");
    for (cursor, resumed, first) in [("1-q7x2ma", true, 2), ("earliest", false, 1), ("", false, 1)] {
        let body = json!({"jobId": JOB, "cursor": cursor}).to_string();
        let mut answer = client::request(edge.addr, "POST", "/api/tickets", &owner, &body).await;
        let ticket = answer.json().await["ticket"].as_str().unwrap().to_owned();
        assert!(!ticket.contains("q7x2ma"));
        let mut stream = edge.get(&format!("/api/progress/{JOB}?ticket={ticket}"), "").await;
        assert_eq!(stream.expect("connected").await.json()["resumed"], resumed, "{cursor}");
        let next = stream.next().await.unwrap().id.unwrap(); // the position, before any event
        assert_eq!(next, format!("{}-q7x2ma", first - 1), "{cursor}");
        assert_eq!(stream.take(1).await[0].id, Some(format!("{first}-q7x2ma")), "{cursor}");
    }
    let bad = json!({"jobId": JOB, "cursor": "1-a\r\nset-cookie: x=y"}).to_string();
    let refused = client::request(edge.addr, "POST", "/api/tickets", &owner, &bad).await;
    assert_eq!(problem(refused).await, (400, "malformed-cursor".into()));
}

#[tokio::test]
async fn e45_a_ticket_opens_its_own_stream_for_its_own_subject_and_nothing_else() {
    let (engine, accounts) = (ScriptedEngine::start(), Accounts::new());
    engine.add_job(NO_JOB);
    let edge = start(&engine, &accounts);
    let owner = accounts.user("anonymous");
    let issued = ticket(&edge, &owner).await;
    let ticket = issued["ticket"].as_str().unwrap();
    let query = format!("?ticket={ticket}");
    assert_eq!(
        edge.get(&format!("/api/progress/{NO_JOB}{query}"), "").await.status,
        401,
        "another stream of the same owner"
    );
    for (method, path) in [
        ("GET", "/api/jobs"),
        ("GET", &*format!("/api/jobs/{JOB}")),
        ("POST", "/api/tickets"),
        ("POST", "/api/session"),
        ("GET", "/api/kinds"),
    ] {
        let answer = client::request(edge.addr, method, &format!("{path}{query}"), "", "").await;
        assert_eq!(answer.status, 401, "{method} {path}");
    }
    let own = format!("/api/progress/{JOB}{query}");
    assert_eq!(edge.get(&own, &owner).await.status, 200);
    assert_eq!(edge.get(&own, &accounts.user("mallory")).await.status, 401, "replayed by somebody else");
    assert_eq!(edge.get(&own, &bearer(&accounts.token(600, json!({"tenant": "other"})))).await.status, 401);
    assert_eq!(edge.get(&own, "authorization: Bearer x\r\n").await.status, 401);
    let forged = format!("/api/progress/{JOB}?ticket={}", ticket.replace(&ticket[40..44], "AAAA"));
    for bad in [&*forged, &*format!("/api/progress/{JOB}?ticket="), &*format!("{own}A")] {
        assert_eq!(edge.get(bad, "").await.status, 401, "{bad}");
    }
    // Neither is a session a ticket, nor a token.
    let session = session(&edge, &owner).await;
    let text = session.split_once('=').unwrap().1;
    assert_eq!(edge.get(&format!("/api/progress/{JOB}?ticket={text}"), "").await.status, 401);
    assert_eq!(edge.get("/api/jobs", &bearer(ticket)).await.status, 401);
    assert_eq!(edge.get("/api/jobs", &format!("cookie: tidegate={ticket}\r\n")).await.status, 401);
    // A gateway with another secret knows none of them.
    let stranger = Accounts::new();
    assert_eq!(start(&engine, &stranger).get(&own, "").await.status, 401);
}

/// The cookie of a new session, as browsers send it back.
async fn session(edge: &Edge, headers: &str) -> String {
    let answer = client::request(edge.addr, "POST", "/api/session", headers, "").await;
    assert_eq!(answer.status, 200);
    answer.headers["set-cookie"].split(';').next().unwrap().to_owned()
}

#[tokio::test]
async fn e44_a_session_cookie_lets_its_own_pages_in_and_no_others() {
    let (engine, accounts) = (ScriptedEngine::start(), Accounts::new());
    let edge = start(&engine, &accounts);
    let owner = accounts.user("anonymous");
    let answer = client::request(edge.addr, "POST", "/api/session", &owner, "").await;
    let cookie = &answer.headers["set-cookie"];
    for part in ["tidegate=", "; Path=/;", "HttpOnly", "SameSite=Strict", "Max-Age="] {
        assert!(cookie.contains(part), "{part} is missing in {cookie}");
    }
    assert!(!cookie.contains("Secure"), "on loopback there is no TLS");
    let cookie = format!("cookie: {}\r\n", session(&edge, &owner).await);
    assert_eq!(edge.get("/api/session", &cookie).await.json().await["subject"], "anonymous");
    assert_eq!(edge.watch(&cookie).await.status, 200);
    for foreign in [
        "sec-fetch-site: cross-site\r\n",
        "sec-fetch-site: same-site\r\n",
        "origin: http://evil\r\n",
        "origin: null\r\n",
    ] {
        let headers = format!("{cookie}{foreign}");
        assert_eq!(problem(edge.watch(&headers).await).await, (403, "cross-origin".into()), "{foreign}");
        let cancel = call(&edge, ROUTES[3], JOB, &headers).await;
        assert_eq!(problem(cancel).await, (403, "cross-origin".into()), "{foreign}");
    }
    assert_eq!(edge.get("/api/jobs", &format!("{cookie}sec-fetch-site: same-origin\r\n")).await.status, 200);
    assert_eq!(
        client::request(edge.addr, "POST", "/api/session", &cookie, "").await.status,
        401,
        "it does not prolong itself"
    );
    let answer = client::request(edge.addr, "DELETE", "/api/session", "", "").await;
    assert_eq!(answer.status, 204);
    assert!(answer.headers["set-cookie"].contains("Max-Age=0"));

    let secure = Edge::with(&engine, |config| {
        accounts.write("[auth.session]\nsecure = true\n");
        config.auth = Some(accounts.authenticator());
    });
    let answer = client::request(secure.addr, "POST", "/api/session", &owner, "").await;
    let cookie = &answer.headers["set-cookie"];
    assert!(cookie.starts_with("__Host-tidegate=") && cookie.ends_with("; Secure"), "{cookie}");
}
