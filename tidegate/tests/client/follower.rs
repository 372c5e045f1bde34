//! The reconnecting follower.

use std::time::{Duration, Instant};

use tidegate::{
    api::{Client, Error},
    follow::{Follower, Outcome, Step},
};

use crate::script::{End, Gateway, Reply};

/// A short reconnection time, so that tests do not wait; the follower takes it from the server.
const CONNECTED: &str = "retry: 20\nevent: connected\ndata: {\"resumed\":true}\n\n";

fn log(seq: u32) -> String {
    format!("id: {seq}-q\nevent: log\ndata: \"line {seq}\"\n\n")
}

fn complete(seq: u32) -> String {
    format!("id: {seq}-q\nevent: complete\ndata: {{\"progress\":100,\"status\":\"COMPLETED\"}}\n\n")
}

fn follower(gateway: &Gateway, start: &str) -> Follower {
    Follower::new(Client::new(&gateway.url()).unwrap(), "job-1", start, Duration::from_secs(20))
}

/// Follows to the end; returns the ids of the events and the notes of everything else.
async fn follow(follower: &mut Follower) -> (Vec<String>, Vec<String>) {
    let (mut ids, mut notes) = (Vec::new(), Vec::new());
    loop {
        let step =
            tokio::time::timeout(Duration::from_secs(30), follower.next()).await.expect("no step in 30 s");
        match step.unwrap() {
            Step::Event(event) => ids.push(event.id),
            Step::Gap(event) => notes.push(format!("gap {}", event.id)),
            Step::Connected(_) => notes.push("connected".into()),
            Step::Reconnecting { why, .. } => notes.push(why),
            Step::Ended(outcome) => {
                notes.push(outcome.to_string());
                return (ids, notes);
            }
            Step::Dismissed(reason) => {
                notes.push(format!("dismissed {reason}"));
                return (ids, notes);
            }
        }
    }
}

#[tokio::test]
async fn e7_a_cut_stream_is_resumed_at_the_last_complete_event() {
    let gateway = Gateway::start(vec![
        Reply::stream(format!("{CONNECTED}{}{}id: 3-q\nevent: log\ndata: \"li", log(1), log(2)), End::Cut),
        Reply::stream(format!("{CONNECTED}{}{}", log(3), complete(4)), End::Clean),
    ])
    .await;
    let (ids, notes) = follow(&mut follower(&gateway, "")).await;
    assert_eq!(ids, ["1-q", "2-q", "3-q", "4-q"]);
    assert!(notes[1].starts_with("the connection broke"), "{notes:?}");
    let requests = gateway.requests();
    assert_eq!(requests[0].header("last-event-id"), None);
    assert_eq!(requests[1].header("last-event-id"), Some("2-q"));
    assert_eq!(requests[0].header("accept"), Some("text/event-stream"));
}

#[tokio::test]
async fn e21_the_given_cursor_opens_and_the_seen_one_replaces_it() {
    let gateway = Gateway::start(vec![
        Reply::stream(format!("{CONNECTED}{}", log(8)), End::Clean),
        Reply::stream(format!("{CONNECTED}{}", complete(9)), End::Clean),
    ])
    .await;
    follow(&mut follower(&gateway, "7-q")).await;
    let requests = gateway.requests();
    assert_eq!(requests[0].line, "GET /api/progress/job-1?lastEventId=7-q HTTP/1.1");
    assert_eq!(requests[1].line, "GET /api/progress/job-1 HTTP/1.1");
    assert_eq!(requests[1].header("last-event-id"), Some("8-q"));
}

#[tokio::test]
async fn e16_goodbyes_and_passing_refusals_are_outwaited_and_lasting_ones_are_not() {
    let goodbye =
        "retry: 30\nevent: goodbye\ndata: {\"reason\":\"engine-unavailable\",\"reconnect\":true}\n\n";
    let gateway = Gateway::start(vec![
        Reply::stream(goodbye, End::Clean),
        Reply::problem("503 Service Unavailable", "{}").with_header("retry-after: 1"),
        Reply::stream(format!("{CONNECTED}{}", complete(1)), End::Clean),
    ])
    .await;
    let begun = Instant::now();
    let (ids, notes) = follow(&mut follower(&gateway, "")).await;
    assert_eq!(ids, ["1-q"]);
    assert!(notes[0].contains("engine-unavailable") && notes[1].contains("503"), "{notes:?}");
    assert!(begun.elapsed() >= Duration::from_secs(1), "Retry-After was undercut");

    let gone = "event: goodbye\ndata: {\"reason\":\"deleted\",\"reconnect\":false}\n\n";
    let gateway = Gateway::start(vec![Reply::stream(gone, End::Clean)]).await;
    assert_eq!(follow(&mut follower(&gateway, "")).await.1, ["dismissed deleted"]);

    let problem = r#"{"type":"/problems/job-not-found","title":"No such job","status":404}"#;
    let gateway = Gateway::start(vec![Reply::problem("404 Not Found", problem)]).await;
    match follower(&gateway, "").next().await {
        Err(Error::Refused(problem)) => assert_eq!(problem.slug(), "job-not-found"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn e26_a_gap_is_told_and_moves_the_cursor() {
    let gap = "id: 9-q\nevent: gap\ndata: {\"from\":3,\"to\":9,\"reason\":\"trimmed\"}\n\n";
    let gateway = Gateway::start(vec![
        Reply::stream(format!("{CONNECTED}{gap}"), End::Cut),
        Reply::stream(format!("{CONNECTED}{}", complete(10)), End::Clean),
    ])
    .await;
    let (ids, notes) = follow(&mut follower(&gateway, "2-q")).await;
    assert_eq!((ids, &*notes[1]), (vec!["10-q".to_owned()], "gap 9-q"));
    assert_eq!(gateway.requests()[1].header("last-event-id"), Some("9-q"));
}

#[tokio::test]
async fn e34_a_terminal_cursor_ends_at_once_by_204() {
    let gateway = Gateway::start(vec![
        Reply::json("204 No Content", ""),
        Reply::json("200 OK", r#"{"jobId":"job-1","status":"CANCELLED"}"#),
    ])
    .await;
    let mut follower = follower(&gateway, "9-q");
    assert_eq!(follower.next().await.unwrap(), Step::Ended(Outcome::Cancelled));
    assert_eq!(gateway.requests()[1].line, "GET /api/jobs/job-1 HTTP/1.1");
}

#[tokio::test]
async fn j34_the_log_of_a_retried_job_goes_on_behind_its_first_end() {
    let failed = "id: 2-q\nevent: failed\ndata: {\"status\":\"FAILED\"}\n\n";
    let body = format!("{CONNECTED}{}{failed}{}{}", log(1), log(3), complete(4));
    let gateway = Gateway::start(vec![Reply::stream(body, End::Clean)]).await;
    let (ids, notes) = follow(&mut follower(&gateway, "")).await;
    assert_eq!((ids.len(), notes.last().unwrap().as_str()), (4, "COMPLETED"));
}

#[tokio::test]
async fn j20_silence_is_taken_for_a_dead_connection() {
    let gateway = Gateway::start(vec![
        Reply::stream(format!("{CONNECTED}{}", log(1)), End::Silent),
        Reply::stream(format!("{CONNECTED}{}", complete(2)), End::Clean),
    ])
    .await;
    let mut follower = follower(&gateway, "").with_silence(Duration::from_millis(200));
    let (ids, notes) = follow(&mut follower).await;
    assert_eq!(ids, ["1-q", "2-q"]);
    assert!(notes[1].contains("no sign of life"), "{notes:?}");
}

#[tokio::test]
async fn e43_connections_that_bring_nothing_are_retried_ever_more_slowly() {
    let gateway = Gateway::start(vec![Reply::stream(CONNECTED, End::Clean)]).await;
    let mut follower = follower(&gateway, "");
    let mut pauses = Vec::new();
    while pauses.len() < 4 {
        if let Step::Reconnecting { pause, .. } = follower.next().await.unwrap() {
            pauses.push(pause);
        }
    }
    for (n, pause) in pauses.iter().enumerate() {
        let base = Duration::from_millis(20 << n);
        assert!(*pause >= base && *pause <= base * 3 / 2, "{pauses:?}");
    }
}

#[tokio::test]
async fn a_first_connection_that_fails_is_an_error_and_a_later_loss_ends_when_patience_does() {
    let mut nobody =
        Follower::new(Client::new("http://127.0.0.1:1").unwrap(), "j", "", Duration::from_secs(60));
    assert!(matches!(nobody.next().await, Err(Error::Unreachable { .. })));

    let gateway = Gateway::start(vec![Reply::stream(CONNECTED, End::Cut)]).await;
    let client = Client::new(&gateway.url()).unwrap();
    let mut follower = Follower::new(client, "j", "", Duration::from_millis(100));
    let error = loop {
        if let Err(error) = follower.next().await {
            break error;
        }
    };
    assert!(error.to_string().contains("given up"), "{error}");
}
