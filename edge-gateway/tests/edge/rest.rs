//! The REST side: shapes, bad input, and static files.

use serde_json::json;

use crate::support::{Edge, JOB, ScriptedEngine, client};

#[tokio::test]
async fn a_job_is_submitted_shown_listed_cancelled() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    let body = r#"{"kind":"demo","input":{"z":18446744073709551615,"a":1.50},"options":{"maxAttempts":3,"delaySeconds":0.5}}"#;
    let mut answer = edge.post("/api/jobs", body).await;
    assert_eq!((answer.status, &*answer.headers["location"]), (201, &*format!("/api/jobs/{JOB}")));
    let text = answer.text().await;
    assert!(text.contains(r#""input":{"z":18446744073709551615,"a":1.50}"#), "{text}");
    assert!(text.contains(r#""cursor":"0-q7x2ma""#), "{text}");
    let replay = "content-type: application/json\r\nidempotency-key: k\r\n";
    let answer = client::request(edge.addr, "POST", "/api/jobs", replay, r#"{"kind":"demo"}"#).await;
    assert_eq!(answer.status, 200);

    assert_eq!(edge.get(&format!("/api/jobs/{JOB}"), "").await.json().await["status"], "PROCESSING");
    let list = edge.get("/api/jobs?limit=10&status=PROCESSING,QUEUED", "").await.json().await;
    assert_eq!((list["jobs"].as_array().unwrap().len(), list["next"].as_str()), (1, Some("more")));
    let list = edge.get("/api/jobs?status=FAILED", "").await.json().await;
    assert_eq!(list["jobs"], json!([]));
    let mut answer = edge.post(&format!("/api/jobs/{JOB}/cancel"), r#"{"reason":"enough"}"#).await;
    assert_eq!(answer.status, 202);
    assert_eq!(answer.json().await["cancelRequested"], json!({"by": "anonymous", "reason": "enough"}));
    assert_eq!(edge.post(&format!("/api/jobs/{JOB}/cancel"), "").await.status, 202);
    let mut answer = edge.post(&format!("/api/jobs/{JOB}/retry"), "").await;
    assert_eq!((answer.status, answer.json().await["type"].as_str()), (409, Some("/problems/conflict")));
    let answer = client::request(edge.addr, "DELETE", &format!("/api/jobs/{JOB}"), "", "").await;
    assert_eq!(answer.status, 204);
    let kinds = edge.get("/api/kinds", "").await.json().await;
    let kind =
        json!({"kind": "demo", "description": "Pretends.", "inputSchema": {"type": "object"}, "live": true});
    assert_eq!(kinds["kinds"], json!([kind]));
}

#[tokio::test]
async fn bad_input_gets_its_problem_and_disturbs_nothing() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    let mut witness = edge.watch("").await;
    witness.expect("connected").await;
    let big = format!(r#"{{"kind":"demo","input":"{}"}}"#, "x".repeat(300 * 1024));
    let huge = format!(r#"{{"kind":"demo","input":"{}"}}"#, "x".repeat(600 * 1024));
    for (body, status, slug) in [
        ("{", 400, "malformed-json"),
        ("", 400, "malformed-json"),
        ("{\"kind\":\"demo\",\"extra\":1}", 400, "invalid-argument"),
        ("{\"input\":{}}", 400, "invalid-argument"),
        ("[]", 400, "invalid-argument"),
        ("{\"kind\":\"nonsense\"}", 400, "unknown-kind"),
        ("{\"kind\":\"broken-store\"}", 503, "engine-unavailable"),
        ("{\"kind\":\"conflict\"}", 409, "idempotency-conflict"),
        (&big, 400, "invalid-argument"),
        (&huge, 413, "body-too-large"),
    ] {
        let mut answer = edge.post("/api/jobs", body).await;
        let problem = answer.json().await;
        assert_eq!(answer.headers["content-type"], "application/problem+json");
        assert_eq!(
            (answer.status, &problem["type"]),
            (status, &json!(format!("/problems/{slug}"))),
            "{problem}"
        );
        assert_eq!(problem["status"], status);
        assert!(problem["title"].is_string() && problem["detail"].is_string());
    }
    let problem = edge.post("/api/jobs", "{\n\"kind\":}").await.json().await;
    assert_eq!((problem["line"].as_u64(), problem["column"].as_u64()), (Some(2), Some(8)));
    let problem = edge.post("/api/jobs", "{\"kind\":\"a\",\"extra\":1}").await.json().await;
    assert_eq!(problem["fields"][0]["field"], "extra");
    let problem = edge.post("/api/jobs", "{\"kind\":\"nonsense\"}").await.json().await;
    assert_eq!(problem["known"], json!(["csv-import", "demo"]));
    for path in ["/api/jobs/x", "/api/jobs/x/cancel", "/api/progress/x"] {
        let method = if path.ends_with("cancel") { "POST" } else { "GET" };
        let mut answer = client::request(edge.addr, method, path, "", "").await;
        assert_eq!(
            (answer.status, answer.json().await["type"].as_str()),
            (400, Some("/problems/malformed-job-id"))
        );
    }
    for query in ["status=nonsense", "limit=x", "more=1"] {
        let mut answer = edge.get(&format!("/api/jobs?{query}"), "").await;
        assert_eq!(
            (answer.status, answer.json().await["type"].as_str()),
            (400, Some("/problems/invalid-argument"))
        );
    }
    engine.append(crate::support::engine::log("undisturbed"));
    assert_eq!(witness.take(1).await.len(), 1);
}

#[tokio::test]
async fn e44_a_page_of_another_site_cannot_steer_jobs() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    let foreign = "origin: http://evil.example\r\nsec-fetch-site: cross-site\r\n";
    let mut answer = client::request(edge.addr, "POST", "/api/jobs", foreign, r#"{"kind":"demo"}"#).await;
    assert_eq!((answer.status, answer.json().await["type"].as_str()), (403, Some("/problems/cross-origin")));
}

#[tokio::test]
async fn the_console_is_served_from_the_binary_and_revalidated() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    for (path, kind) in [
        ("/", "text/html; charset=utf-8"),
        ("/app.js", "text/javascript; charset=utf-8"),
        ("/client.js", "text/javascript; charset=utf-8"),
        ("/style.css", "text/css; charset=utf-8"),
        ("/favicon.svg", "image/svg+xml"),
    ] {
        let mut answer = edge.get(path, "").await;
        assert_eq!((answer.status, &*answer.headers["content-type"]), (200, kind), "{path}");
        let etag = answer.headers["etag"].clone();
        assert!(!answer.text().await.is_empty());
        let answer = edge.get(path, &format!("if-none-match: {etag}\r\n")).await;
        assert_eq!(answer.status, 304, "{path}");
    }
}
