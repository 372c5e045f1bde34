//! Bad input from end to end: each gets its documented problem or event, and nothing else is disturbed.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Stack, Store, data, follow};

/// A well-formed id that no job has.
const NOBODY: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_make_no_sense_get_their_problem() {
    let stack = Stack::start(Store::Embedded).await;
    let bystander = stack.submit("demo", json!({ "steps": 10, "seconds": 2 })).await;
    let job = stack.submit("demo", json!({ "steps": 1, "seconds": 0 })).await;
    let post = |body: String| {
        let request = stack.client.request(Method::POST, &["api", "jobs"]);
        request.header("content-type", "application/json").body(body)
    };
    let progress = |id: &str, cursor: &str| {
        let request = stack.client.request(Method::GET, &["api", "progress", id]);
        let request = request.header("accept", "text/event-stream");
        if cursor.is_empty() { request } else { request.header("last-event-id", cursor) }
    };
    let get = |id: &str| stack.client.request(Method::GET, &["api", "jobs", id]);
    // From just beyond the limit of 512 KiB to far beyond: the answer must arrive although the client still sends.
    let huge =
        |kib: usize| json!({ "kind": "demo", "input": { "result": "x".repeat(kib << 10) } }).to_string();
    let nested = format!(r#"{{"kind":"demo","input":{}{}}}"#, "[".repeat(100), "]".repeat(100));
    let large = json!({ "kind": "demo", "input": { "result": "x".repeat(300 << 10) } }).to_string();
    for (what, request, status, slug) in [
        ("an unknown kind", post(r#"{"kind":"nonsense","input":{}}"#.into()), 400, "unknown-kind"),
        ("a kind that is no name", post(r#"{"kind":"No Name","input":{}}"#.into()), 400, "invalid-argument"),
        ("malformed JSON", post(r#"{"kind":"demo","#.into()), 400, "malformed-json"),
        ("an unknown field", post(r#"{"kind":"demo","inptu":{}}"#.into()), 400, "invalid-argument"),
        ("a field of the wrong type", post(r#"{"kind":7}"#.into()), 400, "invalid-argument"),
        (
            "an option out of range",
            post(r#"{"kind":"demo","options":{"maxAttempts":1000}}"#.into()),
            400,
            "invalid-argument",
        ),
        ("a body over the limit", post(huge(512)), 413, "body-too-large"),
        ("a body well over the limit", post(huge(600)), 413, "body-too-large"),
        ("a body far over the limit", post(huge(2048)), 413, "body-too-large"),
        ("an input nested too deeply", post(nested), 400, "invalid-argument"),
        ("an input over the limit", post(large), 400, "invalid-argument"),
        ("an id that is no UUID", get("no-uuid"), 400, "malformed-job-id"),
        ("the id of no job", get(NOBODY), 404, "job-not-found"),
        ("a stream of no UUID", progress("no-uuid", ""), 400, "malformed-job-id"),
        ("a stream of no job", progress(NOBODY, ""), 404, "job-not-found"),
        ("a cursor that is none", progress(&job, "$"), 400, "malformed-cursor"),
        (
            "a cursor that is too long",
            progress(&job, &format!("1-{}", "a".repeat(200))),
            400,
            "malformed-cursor",
        ),
        (
            "a page token that is none",
            stack.client.query(Method::GET, &["api", "jobs"], &[("cursor", "%%")]),
            400,
            "invalid-argument",
        ),
        (
            "a status that is none",
            stack.client.query(Method::GET, &["api", "jobs"], &[("status", "ODD")]),
            400,
            "invalid-argument",
        ),
        ("a path that is none", stack.client.request(Method::GET, &["api", "nothing"]), 404, "not-found"),
        (
            "a method that is none",
            stack.client.request(Method::PUT, &["api", "jobs"]),
            405,
            "method-not-allowed",
        ),
    ] {
        let response = request.send().await.unwrap();
        let (code, headers) = (response.status().as_u16(), response.headers().clone());
        let problem: Value = response.json().await.unwrap_or_else(|e| panic!("{what}: no JSON: {e}"));
        assert_eq!(code, status, "{what}: {problem}");
        assert_eq!(problem["type"], format!("/problems/{slug}"), "{what}: {problem}");
        assert_eq!(problem["status"], status, "{what}: {problem}");
        assert_eq!(headers["content-type"], "application/problem+json", "{what}");
        if slug == "unknown-kind" {
            assert!(problem["known"].as_array().unwrap().contains(&json!("demo")), "{problem}");
        }
        if slug == "invalid-argument" {
            let named = problem["fields"][0]["field"].is_string();
            assert!(named || problem["detail"].is_string(), "{what}: nothing says what is wrong: {problem}");
        }
    }
    let seen = follow(stack.follower(&bystander, ""), |_| {}).await;
    seen.assert_whole(0);
    assert_eq!((seen.events.last().unwrap().name.as_str(), seen.losses), ("complete", 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_make_no_sense_fail_their_job_alone() {
    let stack = Stack::start(Store::Embedded).await;
    let outside = stack.path("outside.csv");
    std::fs::write(&outside, "a,b\n1,2\n").unwrap();
    std::os::unix::fs::symlink(&outside, stack.path("import").join("link.csv")).unwrap();
    stack.import_file("empty.csv", "");
    stack.import_file("binary.csv", b"a,b\n\x00\x01\x02,\xff\n");
    let path = |name: &str| stack.path("import").join(name).display().to_string();
    for (what, file, code) in [
        ("a file that does not exist", path("missing.csv"), "not_found"),
        ("a file outside", outside.display().to_string(), "not_allowed"),
        ("a link that leads outside", path("link.csv"), "not_allowed"),
        ("a path that climbs out", path("../outside.csv"), "not_allowed"),
        ("an empty file", path("empty.csv"), "empty_file"),
        ("a binary file", path("binary.csv"), "not_a_csv"),
    ] {
        let job = stack.submit("csv-import", json!({ "path": file })).await;
        let seen = follow(stack.follower(&job, ""), |_| {}).await;
        seen.assert_whole(0);
        let end = seen.events.last().unwrap();
        assert_eq!((end.name.as_str(), &data(end)["code"]), ("failed", &json!(code)), "{what}: {end:?}");
    }
    let wrong = stack.submit("csv-import", json!({ "paht": "x.csv" })).await;
    let seen = follow(stack.follower(&wrong, ""), |_| {}).await;
    assert_eq!(data(seen.events.last().unwrap())["code"], "input_invalid");
}

#[tokio::test(flavor = "multi_thread")]
async fn ragged_and_endless_lines_are_rejected_by_number_and_the_rest_is_kept() {
    let stack = Stack::start(Store::Embedded).await;
    let endless = "x".repeat(10 << 20);
    let text = format!("a,b\n1,2\n3\n4,5,6\n{endless},7\n8,9\n");
    let file = stack.import_file("ragged.csv", text);
    let job = stack.submit("csv-import", json!({ "path": file })).await;
    let seen = follow(stack.follower(&job, ""), |_| {}).await;
    seen.assert_whole(0);
    let end = data(seen.events.last().unwrap());
    assert_eq!((&end["result"]["rows"], &end["result"]["rejected"]), (&json!(2), &json!(3)), "{end}");
    let warnings: Vec<_> =
        seen.events.iter().filter(|e| e.name == "log" && data(e)["level"] == "warn").collect();
    for line in [3, 4, 5] {
        let named =
            warnings.iter().any(|w| data(w)["text"].as_str().unwrap().contains(&format!("line {line}")));
        assert!(named, "line {line} is not reported: {warnings:?}");
    }
}
