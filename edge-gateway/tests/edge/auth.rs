//! Who comes in, by what, and what the others learn. Tickets and cookies: [`super::sessions`].

use std::{sync::atomic::Ordering, time::Duration};

use serde_json::json;

use crate::{
    sessions::ticket,
    support::{
        Accounts, Answer, Edge, JOB, ScriptedEngine, accounts::bearer, client, engine::log, process::Gateway,
    },
};

pub(crate) const NO_JOB: &str = "01900000-0000-7000-8000-00000000ffff";

pub(crate) fn start(engine: &ScriptedEngine, accounts: &Accounts) -> Edge {
    Edge::with(engine, |config| config.auth = Some(accounts.authenticator()))
}

pub(crate) async fn problem(mut answer: Answer) -> (u16, String) {
    let slug = answer.json().await["type"].as_str().unwrap().replace("/problems/", "");
    (answer.status, slug)
}

/// Every route that names a job.
pub(crate) const ROUTES: [(&str, &str, &str); 7] = [
    ("GET", "/api/jobs/{}", ""),
    ("HEAD", "/api/progress/{}", ""),
    ("GET", "/api/progress/{}", ""),
    ("POST", "/api/jobs/{}/cancel", ""),
    ("POST", "/api/jobs/{}/retry", ""),
    ("DELETE", "/api/jobs/{}", ""),
    ("POST", "/api/tickets", r#"{"jobId":"{}"}"#),
];

pub(crate) async fn call(
    edge: &Edge,
    (method, path, body): (&str, &str, &str),
    job: &str,
    headers: &str,
) -> Answer {
    client::request(edge.addr, method, &path.replace("{}", job), headers, &body.replace("{}", job)).await
}

#[tokio::test]
async fn every_route_needs_a_credential_and_files_need_none() {
    let (engine, accounts) = (ScriptedEngine::start(), Accounts::new());
    let edge = start(&engine, &accounts);
    let more = [
        ("GET", "/api/jobs", ""),
        ("POST", "/api/jobs", r#"{"kind":"demo"}"#),
        ("GET", "/api/kinds", ""),
        ("GET", "/api/schedules", ""),
        ("GET", "/api/schedules/s", ""),
        ("PUT", "/api/schedules/s", r#"{"kind":"demo","cron":"@daily"}"#),
        ("DELETE", "/api/schedules/s", ""),
        ("GET", "/api/session", ""),
        ("POST", "/api/session", ""),
        ("GET", "/api/nothing", ""),
        ("PUT", "/api/jobs", ""),
    ];
    for route in ROUTES.into_iter().chain(more) {
        let answer = call(&edge, route, JOB, "").await;
        assert_eq!(answer.headers["www-authenticate"], "Bearer realm=\"tidegate\"", "{route:?}");
        if route.0 == "HEAD" {
            assert_eq!(answer.status, 401);
        } else {
            assert_eq!(problem(answer).await, (401, "unauthenticated".into()), "{route:?}");
        }
    }
    for path in ["/", "/client.js", "/style.css"] {
        assert_eq!(edge.get(path, "").await.status, 200);
    }
    // An EventSource must see the refusal as it is, or it would come back for ever.
    assert_eq!(edge.watch("accept: text/event-stream\r\n").await.status, 401);
    for headers in [
        "authorization: Basic eDp5\r\n",
        "authorization: Bearer \r\n",
        "x-api-key: tg_x\r\n",
        "cookie: tidegate=x\r\n",
        &format!("{}{}", accounts.user("a"), accounts.user("a")),
        &format!("{}x-api-key: {}\r\n", accounts.user("a"), accounts.key),
        &bearer(&"x".repeat(9000)),
        // A bad credential is never passed over for a good one.
        &format!("authorization: Bearer x\r\nx-api-key: {}\r\n", accounts.key),
    ] {
        let answer = edge.get("/api/jobs", headers).await;
        assert!(answer.headers["www-authenticate"].contains("invalid_token"), "{headers}");
        assert_eq!(problem(answer).await.0, 401, "{headers}");
    }
    assert_eq!(engine.counts().looks.load(Ordering::SeqCst), 0, "nobody unknown reaches the engine");
}

#[tokio::test]
async fn tokens_and_api_keys_come_in_with_their_scopes_only() {
    let (engine, accounts) = (ScriptedEngine::start(), Accounts::new());
    let edge = start(&engine, &accounts);
    let with = |scope: &str| bearer(&accounts.token(600, json!({ "scope": scope })));
    let submit = ("POST", "/api/jobs", r#"{"kind":"demo"}"#);
    for (route, needs) in [
        (submit, "jobs:submit"),
        (("GET", "/api/jobs", ""), "jobs:read"),
        (ROUTES[0], "jobs:read"),
        (ROUTES[2], "jobs:read"),
        (ROUTES[3], "jobs:control"),
        (ROUTES[4], "jobs:control"),
        (ROUTES[5], "jobs:control"),
        (ROUTES[6], "jobs:read"),
    ] {
        let others: Vec<_> = ["jobs:submit", "jobs:read", "jobs:control", "engine:delegate", "engine:work"]
            .into_iter()
            .filter(|s| *s != needs)
            .collect();
        let refused = call(&edge, route, JOB, &with(&others.join(" "))).await;
        let challenge = format!("Bearer realm=\"tidegate\", error=\"insufficient_scope\", scope=\"{needs}\"");
        assert_eq!(refused.headers["www-authenticate"], challenge, "{route:?}");
        assert_eq!(problem(refused).await, (403, "insufficient-scope".into()));
        for scope in [needs, "jobs:admin"] {
            let status = call(&edge, route, JOB, &with(scope)).await.status;
            assert!(matches!(status, 200..=204 | 409), "{route:?} {scope} {status}");
        }
    }
    for headers in [bearer(&accounts.key), format!("x-api-key: {}\r\n", accounts.key)] {
        assert_eq!(edge.get(&format!("/api/jobs/{JOB}"), &headers).await.status, 200);
        assert_eq!(call(&edge, submit, JOB, &headers).await.status, 403);
    }
    let who = edge.get("/api/session", &with("jobs:read x")).await.json().await;
    assert_eq!((&who["subject"], &who["scopes"]), (&json!("anonymous"), &json!(["jobs:read"])));
}

#[tokio::test]
async fn e25_anothers_job_and_a_missing_one_answer_alike_on_every_route() {
    let (engine, accounts) = (ScriptedEngine::start(), Accounts::new());
    let edge = start(&engine, &accounts);
    engine.append(log("a secret"));
    // Once without a hub, once with one that is full of events and has a viewer.
    let mut viewer = None;
    for _ in 0..2 {
        for (name, headers) in [
            ("another subject", accounts.user("mallory")),
            ("another tenant", bearer(&accounts.token(600, json!({"tenant": "other"})))),
            (
                "another tenant's admin",
                bearer(&accounts.token(600, json!({"tenant": "other", "scope": "jobs:admin"}))),
            ),
        ] {
            for route in ROUTES {
                for more in [
                    "",
                    "last-event-id: 1-q7x2ma\r\n",
                    "accept: text/event-stream\r\nlast-event-id: 1-nothis\r\n",
                ] {
                    let headers = format!("{headers}{more}");
                    let mut answers = Vec::new();
                    for job in [JOB, NO_JOB] {
                        let mut answer = call(&edge, route, job, &headers).await;
                        let body = answer.text().await;
                        answer.headers.retain(|name, _| !matches!(&**name, "x-request-id" | "date"));
                        answers.push((answer.status, body, answer.headers));
                    }
                    assert_eq!(answers[0], answers[1], "{name} {route:?} {more}");
                    assert_eq!(answers[0].0, 404, "{name} {route:?}");
                }
            }
            let list = edge.get("/api/jobs", &headers).await.json().await;
            assert_eq!(list["jobs"], json!([]), "{name}");
        }
        if viewer.is_none() {
            assert_eq!(engine.counts().watches.load(Ordering::SeqCst), 0, "a stranger opens nothing");
            viewer = Some(edge.watch(&accounts.user("anonymous")).await);
            viewer.as_mut().unwrap().take(1).await;
        }
    }
    // The tenant's own admin sees and steers it.
    let admin = bearer(&accounts.token(600, json!({"sub": "boss", "scope": "jobs:admin"})));
    assert_eq!(edge.get(&format!("/api/jobs/{JOB}"), &admin).await.status, 200);
    assert_eq!(edge.watch(&admin).await.take(1).await.len(), 1);
    assert_eq!(edge.get("/api/jobs", &admin).await.json().await["jobs"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn e25_the_time_of_a_refusal_does_not_tell_whether_there_is_a_hub() {
    let (engine, accounts) = (ScriptedEngine::start(), Accounts::new());
    let edge = start(&engine, &accounts);
    let mut viewer = edge.watch(&accounts.user("anonymous")).await;
    viewer.expect("connected").await;
    let looks = || engine.counts().looks.load(Ordering::SeqCst);
    for job in [JOB, NO_JOB] {
        let before = looks();
        let answer = edge.get(&format!("/api/progress/{job}"), &accounts.user("mallory")).await;
        assert_eq!((answer.status, looks() - before), (404, 1), "one look at the engine, whatever there is");
    }
    let before = looks();
    edge.watch(&accounts.user("anonymous")).await.expect("connected").await;
    assert_eq!(looks(), before, "the owner is known to the hub");
}

#[tokio::test]
async fn e42_a_storm_of_reconnects_asks_once_who_may_see_the_job() {
    let (engine, accounts) = (ScriptedEngine::start(), Accounts::new());
    let edge = start(&engine, &accounts);
    let headers = accounts.user("anonymous");
    let mut viewers = Vec::new();
    for _ in 0..100 {
        let (addr, headers) = (edge.addr, headers.clone());
        viewers.push(tokio::spawn(async move {
            client::request(addr, "GET", &format!("/api/progress/{JOB}"), &headers, "")
                .await
                .expect("connected")
                .await
        }));
    }
    for viewer in viewers {
        viewer.await.unwrap();
    }
    assert_eq!(engine.counts().watches.load(Ordering::SeqCst), 1);
    let looks = engine.counts().looks.load(Ordering::SeqCst);
    assert!(looks <= 3, "{looks} looks at the engine for one job and one subject");
}

#[tokio::test]
async fn without_authentication_no_page_of_a_public_name_comes_in() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    // What a browser sends whose DNS was told that evil.example is 127.0.0.1: to it, this is the page's own origin.
    let rebound = "sec-fetch-site: same-origin\r\norigin: http://evil.example:8080\r\n";
    for (method, path) in
        [("GET", "/api/jobs"), ("GET", &*format!("/api/progress/{JOB}")), ("POST", "/api/jobs")]
    {
        let path = format!("http://evil.example:8080{path}");
        let answer = client::request(edge.addr, method, &path, rebound, r#"{"kind":"demo"}"#).await;
        assert_eq!(problem(answer).await, (421, "foreign-host".into()), "{method} {path}");
    }
    assert_eq!(edge.get("http://127.0.0.1:8080/api/jobs", "").await.status, 200);
    // Where it was asked for, or where everybody has to say who it is, names mean nothing.
    let insecure = Edge::with(&engine, |config| config.insecure = true);
    assert_eq!(insecure.get("http://evil.example/api/jobs", "").await.status, 200);
    let accounts = Accounts::new();
    let guarded = start(&engine, &accounts);
    assert_eq!(guarded.get("http://evil.example/api/jobs", &accounts.user("a")).await.status, 200);
}

#[tokio::test]
async fn without_authentication_everything_works_as_if_there_were_a_credential() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    let issued = ticket(&edge, "").await;
    let url = format!("/api/progress/{JOB}?ticket={}", issued["ticket"].as_str().unwrap());
    assert_eq!(edge.get(&url, "").await.status, 200);
    assert_eq!(edge.get("/api/session", "").await.json().await["subject"], "anonymous");
    assert_eq!(client::request(edge.addr, "POST", "/api/session", "", "").await.status, 200);
}

#[tokio::test]
async fn e17_keys_that_were_never_read_refuse_in_passing() {
    let engine = ScriptedEngine::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tidegate.toml");
    // Nothing listens there.
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let text = format!(
        "[[auth.issuer]]\nissuer = 'test'\naudience = 'tidegate'\nalgorithms = ['EdDSA']\njwks = 'http://{unused}/'\n"
    );
    std::fs::write(&file, text).unwrap();
    let edge =
        Edge::with(&engine, |config| config.auth = tidegate_auth::Authenticator::from_file(&file).unwrap());
    let (private, _) = tidegate_auth::mint::ed25519().unwrap();
    let signer = tidegate_auth::mint::SigningKey::from_jwk(&private.to_string()).unwrap();
    let token = signer
        .sign(&json!({"iss": "test", "aud": "tidegate", "sub": "a", "exp": tidegate_auth::now() + 60}))
        .unwrap();
    let answer = edge.get("/api/jobs", &bearer(&token)).await;
    assert!(answer.headers.contains_key("retry-after"));
    assert_eq!(problem(answer).await, (503, "auth-unavailable".into()));
    let mut stream = edge.watch(&format!("accept: text/event-stream\r\n{}", bearer(&token))).await;
    let goodbye = stream.expect("goodbye").await;
    assert_eq!(goodbye.json(), json!({"reason": "auth-unavailable", "reconnect": true}));
    assert!(Duration::from_millis(goodbye.retry.unwrap().into()) >= Duration::from_secs(1));
}

#[tokio::test]
async fn e46_no_credential_and_no_cursor_is_in_logs_metrics_or_referrers() {
    let (engine, accounts) = (ScriptedEngine::start(), Accounts::new());
    // With every message there is, also those of the libraries beneath.
    let gateway = Gateway::logging(&engine, &accounts.path(), "trace").await;
    let token = accounts.token(600, json!({}));
    let body = format!(r#"{{"jobId":"{JOB}"}}"#);
    let issued =
        client::request(gateway.addr, "POST", "/api/tickets", &bearer(&token), &body).await.json().await;
    let ticket = issued["ticket"].as_str().unwrap().to_owned();
    let url = format!("/api/progress/{JOB}?ticket={ticket}");
    let mut stream = gateway.get(&url, "last-event-id: 0-q7x2ma\r\n").await;
    stream.expect("connected").await;
    assert_eq!(stream.headers["referrer-policy"], "no-referrer");
    let session = client::request(gateway.addr, "POST", "/api/session", &bearer(&token), "").await;
    let cookie = session.headers["set-cookie"].split([';', '=']).nth(1).unwrap().to_owned();
    for headers in [format!("x-api-key: {}\r\n", accounts.key), format!("cookie: tidegate={cookie}\r\n")] {
        assert_eq!(gateway.get("/api/kinds", &headers).await.status, 200);
    }
    assert_eq!(gateway.get("/api/kinds", &bearer("a.bad.one")).await.status, 401);
    let log = gateway.process.output();
    assert!(log.contains("/api/progress/") && log.contains("TRACE"), "the log says nothing: {log}");
    let metrics = client::request(gateway.admin, "GET", "/metrics", "", "").await.text().await;
    for secret in [&*token, &*ticket, &*accounts.key, &*cookie, "a.bad.one", "0-q7x2ma"] {
        assert!(!log.contains(secret) && !metrics.contains(secret), "{secret} in the log or the metrics");
    }
    assert!(!metrics.contains("q7x2ma") && !metrics.contains(JOB));
}
