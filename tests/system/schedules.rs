//! Recurring jobs from end to end: by HTTP, by the command line, and to the end of the jobs they make.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Options, Stack, Store, eventually};

/// A command that says for which instant it runs.
const STAMP: &str = r#"
[[exec]]
kind = "stamp"
command = ["sh", "-c", "echo \"::result {\\\"for\\\": \\\"$TIDEGATE_SCHEDULED_FOR\\\"}\""]
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_makes_jobs_that_run_until_it_is_deleted() {
    let stack = Stack::start(Options {
        config: STAMP.into(),
        engine: vec!["--schedule-min-seconds=1".into()],
        ..Store::Redis.into()
    })
    .await;
    let path = ["api", "schedules", "tick"];
    let wanted = json!({
        "kind": "demo", "input": {"steps": 1, "seconds": 0, "result": 18_446_744_073_709_551_615_u64}, "cron": "*/2 * * * * *",
        "timeZone": "Europe/Berlin", "options": {"maxAttempts": 2, "timeoutSeconds": 60, "priority": 5}
    });
    let put = async || stack.client.request(Method::PUT, &path).json(&wanted).send().await.unwrap();
    let first = put().await;
    assert_eq!(
        (first.status().as_u16(), &first.headers()["location"]),
        (201, &"/api/schedules/tick".parse().unwrap())
    );
    let made: Value = first.json().await.unwrap();
    assert_eq!((&made["input"], &made["options"]), (&wanted["input"], &wanted["options"]));
    assert_eq!(
        (&made["owner"], &made["overlap"], &made["catchUpSeconds"]),
        (&json!("anonymous"), &json!("skip"), &json!(3600))
    );
    assert_eq!(put().await.status().as_u16(), 200);

    let show = async || stack.client.call(stack.client.request(Method::GET, &path)).await.unwrap();
    let after_two = eventually("it has fired twice", async || {
        let schedule = show().await;
        (schedule["fired"].as_u64() >= Some(2)).then_some(schedule)
    })
    .await;
    let job = stack.until(after_two["lastJobId"].as_str().unwrap(), "COMPLETED").await;
    assert_eq!((&job["schedule"], &job["scheduledFor"]), (&json!("tick"), &after_two["lastAt"]));
    assert_eq!((&job["owner"], &job["input"]), (&json!("anonymous"), &wanted["input"]));
    eventually("the metrics tell of it", async || {
        let metrics = stack.engine_metrics().await;
        let fired = "tidegate_engine_schedule_firings_total{outcome=\"fired\"} ";
        let firings = metrics.lines().find_map(|line| line.strip_prefix(fired)?.parse::<u64>().ok());
        (metrics.contains("tidegate_engine_schedules 1\n") && firings >= Some(2)).then_some(())
    })
    .await;

    // The worker is told the instant.
    let stamp = stack.client.request(Method::PUT, &["api", "schedules", "stamp"]);
    stack.client.call(stamp.json(&json!({"kind": "stamp", "cron": "* * * * * *"}))).await.unwrap();
    let stamped = eventually("it has fired", async || {
        let request = stack.client.request(Method::GET, &["api", "schedules", "stamp"]);
        stack.client.call(request).await.unwrap()["lastJobId"].as_str().map(str::to_owned)
    })
    .await;
    let job = stack.until(&stamped, "COMPLETED").await;
    let at = job["scheduledFor"].as_str().unwrap().replace(".000Z", "Z");
    assert_eq!(job["result"]["for"], at, "{job}");
    assert!(stack.tidegate(&["schedule", "delete", "stamp"]).await.status.success());

    // What is shown can be put again, but for what the gateway adds.
    let list = stack.tidegate(&["schedule", "list"]).await;
    let list = String::from_utf8(list.stdout).unwrap();
    assert!(list.contains("tick") && list.contains("Europe/Berlin"), "{list}");
    let line =
        ["schedule", "put", "tick", "demo", "{}", "--cron", "@daily", "--paused", "--max-attempts", "3"];
    let paused = stack.tidegate(&line).await;
    let text = String::from_utf8(paused.stdout).unwrap();
    assert!(paused.status.success() && text.contains("paused"), "{text}");
    let schedule: Value =
        serde_json::from_slice(&stack.tidegate(&["schedule", "show", "tick"]).await.stdout).unwrap();
    assert_eq!(
        (&schedule["cron"], &schedule["timeZone"], &schedule["nextAt"]),
        (&json!("@daily"), &json!("UTC"), &Value::Null)
    );
    assert_eq!(schedule["options"], json!({"maxAttempts": 3, "priority": 0}));
    let deleted = stack.tidegate(&["schedule", "delete", "tick"]).await;
    assert!(deleted.status.success() && deleted.stdout.is_empty(), "{deleted:?}");
    let again = stack.tidegate(&["schedule", "delete", "tick"]).await;
    assert_eq!(again.status.code(), Some(65));
    assert!(String::from_utf8_lossy(&again.stderr).contains("schedule-not-found"), "{again:?}");
    let list = stack.client.call(stack.client.request(Method::GET, &["api", "schedules"])).await.unwrap();
    assert_eq!(list, json!({"schedules": []}));
}

#[tokio::test(flavor = "multi_thread")]
async fn schedules_that_make_no_sense_get_their_problem() {
    let stack = Stack::start(Store::Embedded).await;
    let put = |name: &str, body: &str| {
        let request = stack.client.request(Method::PUT, &["api", "schedules", name]);
        request.header("content-type", "application/json").body(body.to_owned())
    };
    let with = |more: &str| format!(r#"{{"kind":"demo","cron":"@daily"{more}}}"#);
    let query =
        |key: &str, value: &str| stack.client.query(Method::GET, &["api", "schedules"], &[(key, value)]);
    let large = with(&format!(r#","input":"{}""#, "x".repeat(65 << 10)));
    let invalid = "invalid-argument";
    for (request, status, slug, field) in [
        (put("s", "{"), 400, "malformed-json", ""),
        (put("s", r#"{"kind":"demo"}"#), 400, invalid, "cron"),
        (put("s", &with(r#","name":"t""#)), 400, invalid, "name"),
        (put("No Name", &with("")), 400, invalid, "name"),
        (put("s", r#"{"kind":"demo","cron":"0 0 31 2 *"}"#), 400, invalid, "cron"),
        (put("s", r#"{"kind":"demo","cron":"every day"}"#), 400, invalid, "cron"),
        (put("s", r#"{"kind":"demo","cron":"0,30 0 0 * * *"}"#), 400, invalid, "cron"),
        (
            stack
                .client
                .query(Method::PUT, &["api", "schedules", "s"], &[("owner", "bob")])
                .json(&json!({"kind": "demo", "cron": "@daily"})),
            400,
            invalid,
            "",
        ),
        (put("s", &with(r#","timeZone":"Mars/Olympus""#)), 400, invalid, "timeZone"),
        (put("s", &with(r#","catchUpSeconds":1"#)), 400, invalid, "catchUpSeconds"),
        (put("s", &with(r#","overlap":"queue""#)), 400, invalid, ""),
        (put("s", &with(r#","options":{"delaySeconds":5}"#)), 400, invalid, "options.delaySeconds"),
        (put("s", &with(r#","options":{"runAt":"2030-01-01T00:00:00Z"}"#)), 400, invalid, "options.runAt"),
        (put("s", &with(r#","options":{"maxAttempts":1000}"#)), 400, invalid, "options.maxAttempts"),
        (put("s", &large), 400, invalid, "input"),
        (put("s", r#"{"kind":"nonsense","cron":"@daily"}"#), 400, "unknown-kind", ""),
        (stack.client.request(Method::GET, &["api", "schedules", "s"]), 404, "schedule-not-found", ""),
        (stack.client.request(Method::DELETE, &["api", "schedules", "../s"]), 404, "schedule-not-found", ""),
        (
            stack.client.query(Method::GET, &["api", "schedules", "s"], &[("owner", "bob")]),
            404,
            "schedule-not-found",
            "",
        ),
        (stack.client.request(Method::POST, &["api", "schedules"]), 405, "method-not-allowed", ""),
        (query("limit", "1000"), 400, invalid, "limit"),
        (query("cursor", "%%"), 400, invalid, "cursor"),
        (query("odd", "1"), 400, invalid, ""),
    ] {
        let answer = request.send().await.unwrap();
        let found = answer.status().as_u16();
        let problem: Value = answer.json().await.unwrap();
        assert_eq!(
            (found, problem["type"].as_str()),
            (status, Some(&*format!("/problems/{slug}"))),
            "{problem}"
        );
        let fields = problem["fields"].as_array().map(Vec::as_slice).unwrap_or_default();
        assert!(field.is_empty() || fields.iter().any(|f| f["field"] == field), "{field}: {problem}");
    }
}
