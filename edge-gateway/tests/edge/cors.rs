//! Pages of other origins: those that are named, and no others.

use edge_gateway::Origin;

use crate::support::{Edge, JOB, ScriptedEngine, client};

const APP: &str = "https://app.example";

fn open(engine: &ScriptedEngine) -> Edge {
    Edge::with(engine, |config| config.edge.origins = vec![APP.parse::<Origin>().unwrap()])
}

#[tokio::test]
async fn e44_a_named_origin_is_echoed_and_no_other_is() {
    let engine = ScriptedEngine::start();
    let edge = open(&engine);
    let answer = edge.watch(&format!("origin: {APP}\r\n")).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["access-control-allow-origin"], APP);
    assert_eq!(answer.headers["access-control-allow-credentials"], "true");
    let exposed = &answer.headers["access-control-expose-headers"];
    for name in ["ratelimit", "ratelimit-policy", "retry-after", "location", "x-request-id"] {
        assert!(exposed.split(',').any(|e| e.trim() == name), "{name} in {exposed}");
    }
    for origin in ["https://evil.example", "null", "*", "http://app.example", "https://app.example.evil", ""]
    {
        let answer = edge.watch(&format!("origin: {origin}\r\n")).await;
        assert!(!answer.headers.contains_key("access-control-allow-origin"), "{origin}");
        let vary = &answer.headers["vary"];
        assert!(vary.contains("origin") && vary.contains("accept"), "{vary:?}");
    }
    let closed = Edge::start(&engine);
    let answer = closed.watch(&format!("origin: {APP}\r\n")).await;
    assert!(!answer.headers.keys().any(|name| name.starts_with("access-control")));
}

#[tokio::test]
async fn e15_a_preflight_is_answered_before_anything_else() {
    let engine = ScriptedEngine::start();
    let edge = Edge::with(&engine, |config| {
        config.edge.origins = vec![APP.parse::<Origin>().unwrap()];
        config.limits = "[ip]\nread = { quota = 1, seconds = 3600 }\nsubmit = { quota = 1, seconds = 3600 }"
            .parse()
            .unwrap();
    });
    for _ in 0..5 {
        let headers = format!(
            "origin: {APP}\r\naccess-control-request-method: POST\r\n\
             access-control-request-headers: authorization,last-event-id,content-type,idempotency-key\r\n"
        );
        let answer = client::request(edge.addr, "OPTIONS", "/api/jobs", &headers, "").await;
        assert_eq!((answer.status, &*answer.headers["access-control-allow-origin"]), (200, APP));
        let allowed = &answer.headers["access-control-allow-headers"];
        for name in ["authorization", "last-event-id", "content-type", "idempotency-key"] {
            assert!(allowed.contains(name), "{name} in {allowed}");
        }
        assert!(answer.headers["access-control-allow-methods"].contains("DELETE"));
        assert!(!answer.headers["access-control-allow-methods"].contains('*') && !allowed.contains('*'));
    }
    let evil = "origin: https://evil.example\r\naccess-control-request-method: DELETE\r\n";
    let answer = client::request(edge.addr, "OPTIONS", &format!("/api/jobs/{JOB}"), evil, "").await;
    assert!(!answer.headers.contains_key("access-control-allow-origin"));
    // Without origins there is nothing to preflight.
    let closed = Edge::start(&engine);
    let answer = client::request(closed.addr, "OPTIONS", "/api/jobs", "", "").await;
    assert_eq!((answer.status, &*answer.headers["allow"]), (405, "GET,HEAD,POST"));
}

#[tokio::test]
async fn e44_only_pages_of_named_origins_change_anything() {
    let engine = ScriptedEngine::start();
    let edge = open(&engine);
    for (origin, status) in [(APP, 202), ("https://evil.example", 403), ("null", 403)] {
        let headers = format!("origin: {origin}\r\nsec-fetch-site: cross-site\r\n");
        let path = format!("/api/jobs/{JOB}/cancel");
        let answer = client::request(edge.addr, "POST", &path, &headers, "").await;
        assert_eq!(answer.status, status, "{origin}");
        assert_eq!(answer.headers.contains_key("access-control-allow-origin"), origin == APP);
    }
}
