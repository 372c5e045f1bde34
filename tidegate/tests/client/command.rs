//! The `tidegate` binary as a client: what it prints, and the exit codes it promises.

use std::process::{Output, Stdio};

use tokio::{io::AsyncWriteExt as _, process::Command};

use crate::script::{End, Gateway, Reply};

const JOB: &str = r#"{"jobId":"0190a","kind":"demo","status":"QUEUED"}"#;

async fn tidegate(gateway: Option<&Gateway>, args: &[&str], stdin: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TIDEGATE_")) {
        command.env_remove(name);
    }
    if let Some(gateway) = gateway {
        command.env("TIDEGATE_SERVER", gateway.url());
    }
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).await.unwrap();
    child.wait_with_output().await.unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn ending(event: &str, data: &str) -> Reply {
    let log = "id: 1-q\nevent: log\ndata: \"\\u001b[2Jhostile\"\n\n";
    Reply::stream(format!("{log}id: 2-q\nevent: {event}\ndata: {data}\n\n"), End::Clean)
}

#[tokio::test]
async fn the_exit_code_says_how_the_job_ended() {
    for (event, data, code, last) in [
        (
            "complete",
            r#"{"progress":100,"status":"COMPLETED","result":{"rows":3}}"#,
            0,
            r#"COMPLETED {"rows":3}"#,
        ),
        (
            "failed",
            r#"{"status":"FAILED","code":"not_found","message":"no file","retryable":false}"#,
            1,
            "FAILED not_found: no file",
        ),
        ("cancelled", r#"{"status":"CANCELLED","by":"ann"}"#, 2, "CANCELLED by ann"),
    ] {
        let gateway = Gateway::start(vec![Reply::json("201 Created", JOB), ending(event, data)]).await;
        let output =
            tidegate(Some(&gateway), &["submit", "demo", r#"{"a":1.50}"#, "--watch", "--key", "k1"], "")
                .await;
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert_eq!(out(&output), format!("\\x1b[2Jhostile\n{last}\n"));
        let requests = gateway.requests();
        assert_eq!(requests[0].body, r#"{"kind":"demo","input":{"a":1.50},"options":{}}"#);
        assert_eq!(requests[0].header("idempotency-key"), Some("k1"));
    }
}

#[tokio::test]
async fn submit_prints_the_id_alone_and_reads_its_input_from_a_pipe() {
    let gateway = Gateway::start(vec![Reply::json("201 Created", JOB)]).await;
    let output = tidegate(Some(&gateway), &["submit", "demo", "-", "--priority=5"], " {\"b\": 2}\n").await;
    assert_eq!((output.status.code(), out(&output).as_str()), (Some(0), "0190a\n"));
    let body = r#"{"kind":"demo","input":{"b": 2},"options":{"priority":5}}"#;
    assert_eq!(gateway.requests()[0].body, body);
}

#[tokio::test]
async fn json_lines_carry_ids_and_data_as_they_were_sent() {
    let gateway = Gateway::start(vec![ending("complete", r#"{"z":1,"a":2.50}"#)]).await;
    let output = tidegate(Some(&gateway), &["watch", "0190a", "--json"], "").await;
    assert_eq!(
        out(&output),
        "{\"id\":\"1-q\",\"event\":\"log\",\"data\":\"\\u001b[2Jhostile\"}\n{\"id\":\"2-q\",\"event\":\"complete\",\"data\":{\"z\":1,\"a\":2.50}}\n"
    );
}

#[tokio::test]
async fn a_job_that_has_ended_and_was_seen_is_summed_up() {
    let job = r#"{"jobId":"0190a","status":"FAILED","error":{"code":"x","message":"broke"}}"#;
    let gateway = Gateway::start(vec![Reply::json("204 No Content", ""), Reply::json("200 OK", job)]).await;
    let output = tidegate(Some(&gateway), &["watch", "0190a", "--cursor", "9-q"], "").await;
    assert_eq!((output.status.code(), out(&output).as_str()), (Some(1), "FAILED x: broke\n"));
}

#[tokio::test]
async fn refusals_are_printed_with_every_particular() {
    let problem = r#"{"type":"/problems/unknown-kind","title":"Unknown kind","status":400,"detail":"no worker offers x","known":["demo"]}"#;
    let gateway = Gateway::start(vec![Reply::problem("400 Bad Request", problem)]).await;
    let output = tidegate(Some(&gateway), &["submit", "x", "{}"], "").await;
    assert_eq!(output.status.code(), Some(65));
    assert_eq!(
        err(&output),
        "tidegate: Unknown kind: no worker offers x (400 unknown-kind)\n  known: demo\n"
    );

    let gateway = Gateway::start(vec![Reply::json("200 OK", "<html>")]).await;
    let output = tidegate(Some(&gateway), &["kinds"], "").await;
    assert_eq!(output.status.code(), Some(69));
    assert!(err(&output).contains("does not answer like a Tidegate gateway"), "{output:?}");
}

#[tokio::test]
async fn a_redirect_is_told_and_not_followed() {
    let elsewhere = Gateway::start(vec![Reply::json("200 OK", r#"{"kinds":[]}"#)]).await;
    for (location, told) in [
        (
            "https://edge.example/api/kinds".to_owned(),
            "it answers at https://edge.example; use that as --server",
        ),
        ("https://edge.example/t/api/kinds?x=1".to_owned(), "it answers at https://edge.example/t; use that"),
        ("/login?back=%2Fapi".to_owned(), "/login; a gateway does not"),
        (format!("{}/api/kinds", elsewhere.url()), "it answers at http://127.0.0.1:"),
    ] {
        let moved = Reply::json("301 Moved Permanently", "").with_header(&format!("location: {location}"));
        let gateway = Gateway::start(vec![moved]).await;
        let output = tidegate(Some(&gateway), &["kinds", "--token", "t"], "").await;
        assert_eq!(output.status.code(), Some(69));
        assert!(err(&output).contains(told) && err(&output).contains(&gateway.url()), "{output:?}");
        let output = tidegate(Some(&gateway), &["watch", "x"], "").await;
        assert!(err(&output).contains("redirects to"), "{output:?}");
    }
    assert!(elsewhere.requests().is_empty(), "a token went to somebody else");
}

#[tokio::test]
async fn j40_json_holds_no_control_characters() {
    let job = "{\"jobId\":\"0190a\",\"kind\":\"demo\",\"message\":\"\u{9b}2J\u{7f}\u{202e}\"}";
    let (jobs, schedules) = (format!(r#"{{"jobs":[{job}]}}"#), format!(r#"{{"schedules":[{job}]}}"#));
    let kinds = format!(r#"{{"kinds":[{job}]}}"#);
    for (args, answer) in [
        (&["jobs", "--json"][..], &*jobs),
        (&["schedule", "show", "nightly"], job),
        (&["schedule", "list", "--json"], &schedules),
        (&["kinds", "--json"], &kinds),
        (&["submit", "demo", "{}", "--json"], job),
    ] {
        let gateway = Gateway::start(vec![Reply::json("200 OK", answer)]).await;
        let output = tidegate(Some(&gateway), args, "").await;
        assert!(out(&output).contains(r"\u009b2J\u007f\u202e"), "{args:?}: {output:?}");
    }
    let event = "id: 1-q\nevent: log\ndata: \"\u{9b}2J\"\n\nid: 2-q\nevent: complete\ndata: {}\n\n";
    let gateway = Gateway::start(vec![Reply::stream(event, End::Clean)]).await;
    let output = tidegate(Some(&gateway), &["watch", "0190a", "--json"], "").await;
    assert!(out(&output).contains(r#""data":"\u009b2J""#), "{output:?}");
}

#[tokio::test]
async fn usage_errors_exit_64_and_unreachable_servers_69() {
    for args in [
        &["nonsense"][..],
        &["submit", "demo"],
        &["submit", "demo", "{"],
        &["jobs", "--status", "odd"],
        &["kinds", "--server", "ftp://x"],
    ] {
        let output = tidegate(None, args, "").await;
        assert_eq!(output.status.code(), Some(64), "{args:?}: {output:?}");
        assert!(!err(&output).is_empty());
    }
    let output = tidegate(None, &["jobs", "--server", "http://127.0.0.1:1"], "").await;
    assert_eq!(output.status.code(), Some(69));
    assert!(err(&output).contains("cannot reach http://127.0.0.1:1"), "{output:?}");
}

#[tokio::test]
async fn jobs_are_listed_page_by_page() {
    let page = |id: &str, next: &str| {
        let job = format!(
            r#"{{"jobId":"{id}","kind":"demo","status":"PROCESSING","createdAt":"2026-11-20T10:00:00.000Z","progress":{{"percent":25,"message":"m"}}}}"#
        );
        Reply::json("200 OK", format!(r#"{{"jobs":[{job}]{next}}}"#))
    };
    let gateway = Gateway::start(vec![page("a", r#","next":"n1""#), page("b", "")]).await;
    let output = tidegate(Some(&gateway), &["jobs", "--status", "PROCESSING", "--kind", "demo"], "").await;
    let lines: Vec<_> =
        out(&output).lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(
        lines[1..],
        [
            "a PROCESSING 25 % 2026-11-20T10:00:00.000Z demo m",
            "b PROCESSING 25 % 2026-11-20T10:00:00.000Z demo m"
        ]
    );
    assert_eq!(
        gateway.requests()[1].line,
        "GET /api/jobs?limit=49&cursor=n1&status=PROCESSING&kind=demo HTTP/1.1"
    );
}

#[tokio::test]
async fn help_teaches_examples_and_exit_codes() {
    for args in [&["--help"][..], &["submit", "--help"], &["watch", "--help"]] {
        let output = tidegate(None, args, "").await;
        assert_eq!(output.status.code(), Some(0));
        assert!(
            out(&output).contains("Examples:") && out(&output).contains("Exit codes:"),
            "{args:?}: {}",
            out(&output)
        );
    }
}

#[tokio::test]
async fn config_tells_all_that_is_wrong_and_starts_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let data = format!("--data-dir={}", dir.path().join("none").display());
    let good = tidegate(None, &["config", "check", &data, "--workers=2"], "").await;
    assert_eq!(good.status.code(), Some(0), "{good:?}");
    assert!(!dir.path().join("none").exists(), "a directory was made");
    let bad =
        tidegate(None, &["config", "check", &data, "--listen=0.0.0.0:1", "--config=/not/there"], "").await;
    assert_eq!(bad.status.code(), Some(64));
    for part in ["--listen 0.0.0.0:1", "/not/there"] {
        assert!(err(&bad).contains(part), "{part} is missing in {bad:?}");
    }
    let shown = tidegate(None, &["config", "print", &data, "--redis=redis://:secret@r"], "").await;
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.lines().any(|l| l.starts_with("--data-dir ") && l.ends_with("# flag")), "{shown}");
    assert!(shown.contains("# default") && !shown.contains("secret"), "{shown}");
}

#[tokio::test]
async fn health_answers_by_its_exit_code() {
    let gateway = Gateway::start(vec![
        Reply::json("200 OK", "ready"),
        Reply::json("503 Service Unavailable", "the event log does not answer"),
    ])
    .await;
    let url = format!("{}/readyz", gateway.url());
    assert_eq!(tidegate(None, &["health", &url], "").await.status.code(), Some(0));
    let sick = tidegate(None, &["health", &url], "").await;
    assert_eq!(sick.status.code(), Some(69));
    assert!(err(&sick).contains("503 Service Unavailable: the event log does not answer"), "{sick:?}");
    drop(gateway);
    assert_eq!(tidegate(None, &["health", &url, "--timeout=5"], "").await.status.code(), Some(69));
    assert_eq!(tidegate(None, &["health", "nonsense"], "").await.status.code(), Some(64));
}
