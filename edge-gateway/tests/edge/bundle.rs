//! Several jobs on one connection: each as if it had one of its own.

use std::collections::HashMap;

use serde_json::json;

use crate::support::{
    Accounts, Answer, Edge, JOB, ScriptedEngine,
    accounts::bearer,
    client,
    client::Event,
    engine::{complete, log},
    until,
};

/// Two jobs beside [`JOB`].
const TWO: &str = "01900000-0000-7000-8000-000000000002";
const THREE: &str = "01900000-0000-7000-8000-000000000003";

fn path(jobs: &[&str]) -> String {
    let jobs: Vec<_> = jobs.iter().map(|job| format!("job={job}")).collect();
    format!("/api/progress?{}", jobs.join("&"))
}

async fn bundle(edge: &Edge, jobs: &[&str], last_event_id: &str) -> Answer {
    let header =
        if last_event_id.is_empty() { String::new() } else { format!("last-event-id: {last_event_id}\r\n") };
    edge.get(&path(jobs), &header).await
}

/// What is seen of each job: its events' numbers.
fn by_job(events: &[Event]) -> HashMap<String, Vec<u64>> {
    let mut seen: HashMap<String, Vec<u64>> = HashMap::new();
    for event in events.iter().filter(|event| event.id.is_some() && !event.event.is_empty()) {
        let data = event.json();
        let seq = data["cursor"].as_str().unwrap().split_once('-').unwrap().0.parse().unwrap();
        seen.entry(data["jobId"].as_str().unwrap().to_owned()).or_default().push(seq);
    }
    seen
}

/// An engine whose two jobs have ended, after ten and five events.
fn finished() -> ScriptedEngine {
    let engine = ScriptedEngine::start();
    engine.add_job(TWO);
    engine.log_to(9);
    engine.append(complete());
    for _ in 0..4 {
        engine.append_to(TWO, log("x"));
    }
    engine.append_to(TWO, complete());
    engine
}

#[tokio::test]
async fn e19_a_break_between_any_two_frames_loses_and_doubles_nothing() {
    let engine = finished();
    let edge = Edge::start(&engine);
    let jobs = [JOB, TWO];
    let whole = bundle(&edge, &jobs, "").await.rest().await;
    let ids: Vec<_> = whole.iter().filter_map(|event| event.id.clone()).collect();
    assert_eq!(ids.len(), 15);
    for (n, id) in ids.iter().enumerate() {
        let mut answer = bundle(&edge, &jobs, id).await;
        if n + 1 == ids.len() {
            assert_eq!((answer.status, &*answer.text().await), (204, ""), "everything was seen");
            break;
        }
        let mut seen: Vec<_> = whole.iter().filter(|event| event.id.is_some()).take(n + 1).cloned().collect();
        seen.extend(answer.rest().await);
        let seen = by_job(&seen);
        assert_eq!(seen[JOB], (1..=10).collect::<Vec<_>>(), "cut after {id}");
        assert_eq!(seen[TWO], (1..=5).collect::<Vec<_>>(), "cut after {id}");
    }
}

#[tokio::test]
async fn e19_live_events_of_all_jobs_arrive_with_their_job() {
    let engine = ScriptedEngine::start();
    engine.add_job(TWO);
    let edge = Edge::start(&engine);
    let mut answer = bundle(&edge, &[JOB, TWO], "").await;
    assert_eq!(answer.headers["content-type"], "text/event-stream");
    assert_eq!(answer.next().await.unwrap().retry, Some(2000));
    for job in [JOB, TWO] {
        let connected = answer.expect("connected").await.json();
        assert_eq!((&connected["jobId"], &connected["data"]["jobId"]), (&job.into(), &job.into()));
    }
    for (job, id) in [(TWO, "0-q7x2ma~1-q7x2ma"), (JOB, "1-q7x2ma~1-q7x2ma"), (TWO, "1-q7x2ma~2-q7x2ma")] {
        engine.append_to(job, log("hello"));
        let event = answer.expect("log").await;
        assert_eq!(event.id.as_deref(), Some(id));
        assert_eq!(
            (event.json()["jobId"].as_str(), event.json()["data"].as_str()),
            (Some(job), Some("hello"))
        );
    }
    // The end of one job is not the end of the stream.
    engine.append(complete());
    assert_eq!(answer.expect("complete").await.json()["data"]["status"], "COMPLETED");
    engine.append_to(TWO, complete());
    let rest = answer.rest().await;
    assert_eq!(by_job(&rest), HashMap::from([(TWO.to_owned(), vec![3])]));
    // Two logs, two upstreams; one connection.
    drop(answer);
    until("nobody is left", async || edge.metric("tidegate_gateway_streams").await == 0.0).await;
}

#[tokio::test]
async fn e26_a_job_that_is_not_there_ends_alone() {
    let engine = finished();
    let edge = Edge::start(&engine);
    let mut answer = bundle(&edge, &[JOB, THREE, TWO], "").await;
    let events = answer.rest().await;
    let goodbyes: Vec<_> = events.iter().filter(|event| event.event == "goodbye").collect();
    assert_eq!(goodbyes.len(), 1);
    assert_eq!(
        goodbyes[0].json(),
        json!({ "jobId": THREE, "data": { "reason": "deleted", "reconnect": false } })
    );
    let last = events.iter().rev().find_map(|event| event.id.clone()).unwrap();
    assert_eq!(last, "10-q7x2ma~~5-q7x2ma");
    assert_eq!(bundle(&edge, &[JOB, THREE, TWO], &last).await.status, 204, "nothing is left to wait for");
    assert_eq!(bundle(&edge, &[THREE], "").await.status, 404);
    // Should it be there later, it is read from its beginning.
    engine.add_job(THREE);
    engine.append_to(THREE, complete());
    let rest = bundle(&edge, &[JOB, THREE, TWO], &last).await.rest().await;
    assert_eq!(by_job(&rest), HashMap::from([(THREE.to_owned(), vec![1])]));
}

#[tokio::test]
async fn e25_anothers_job_in_a_bundle_is_one_that_is_not_there() {
    let (engine, accounts) = (ScriptedEngine::start(), Accounts::new());
    let edge = Edge::with(&engine, |config| config.auth = Some(accounts.authenticator()));
    engine.add_job(TWO);
    engine.give_to("somebody");
    engine.append(log("a secret"));
    engine.append_to(TWO, complete());
    // Once without a hub, once with one that is full of events and has a viewer.
    let mut viewer = None;
    for _ in 0..2 {
        let mut seen = Vec::new();
        for other in [JOB, THREE] {
            let mut answer = edge.get(&path(&[other, TWO]), &accounts.user("anonymous")).await;
            let text = format!("{:?}", answer.rest().await);
            assert!(!text.contains("secret"));
            seen.push(text.replace(other, "other"));
            assert_eq!(edge.get(&path(&[other]), &accounts.user("anonymous")).await.status, 404);
        }
        assert_eq!(seen[0], seen[1]);
        viewer = Some(edge.watch(&accounts.user("somebody")).await);
        viewer.as_mut().unwrap().expect("connected").await;
    }
    drop(viewer);
    // The ticket of one stream opens no other.
    let order = json!({ "jobId": TWO }).to_string();
    let mut issued =
        client::request(edge.addr, "POST", "/api/tickets", &accounts.user("anonymous"), &order).await;
    let ticket = issued.json().await["ticket"].as_str().unwrap().to_owned();
    for query in [format!("job={TWO}&job={JOB}"), format!("job={TWO}&j%6fb={JOB}"), format!("job={JOB}")] {
        assert_eq!(
            edge.get(&format!("/api/progress?{query}&ticket={ticket}"), "").await.status,
            401,
            "{query}"
        );
    }
}

#[tokio::test]
async fn e45_a_ticket_opens_the_one_stream_of_several_jobs_and_its_reconnects() {
    let (engine, accounts) = (ScriptedEngine::start(), Accounts::new());
    accounts.write("[auth.tickets]\nfirst_use_seconds = 1\n");
    let edge = Edge::with(&engine, |config| config.auth = Some(accounts.authenticator()));
    engine.add_job(TWO);
    engine.append(log("one"));
    let issue = async |order: serde_json::Value| {
        client::request(edge.addr, "POST", "/api/tickets", &accounts.user("anonymous"), &order.to_string())
            .await
    };
    let mut issued = issue(json!({ "jobIds": [JOB, THREE, TWO], "cursor": "1-q7x2ma~~" })).await;
    let url =
        format!("{}&ticket={}", path(&[JOB, THREE, TWO]), issued.json().await["ticket"].as_str().unwrap());
    let source = "accept: text/event-stream\r\n";
    let mut stream = edge.get(&url, source).await;
    engine.append_to(TWO, log("two"));
    // A cursor before any event, of each job that is there; then what comes behind.
    let events = stream.take(3).await;
    assert_eq!(events[0].id.as_deref(), Some("1-q7x2ma~~0-q7x2ma"));
    assert_eq!(by_job(&events), HashMap::from([(TWO.to_owned(), vec![1])]), "it began where it was to");
    until("the first connect is over", async || edge.get(&url, source).await.status == 401).await;
    assert_eq!(edge.get(&url, &format!("{source}last-event-id: 1-other~~1-other\r\n")).await.status, 401);
    engine.append(complete());
    engine.append_to(TWO, complete());
    let mut again = edge.get(&url, &format!("{source}last-event-id: 1-q7x2ma~~1-q7x2ma\r\n")).await;
    let rest = by_job(&again.rest().await);
    assert_eq!(rest, HashMap::from([(JOB.to_owned(), vec![2]), (TWO.to_owned(), vec![2])]));
    for (order, status) in [
        (json!({ "jobId": JOB, "jobIds": [TWO] }), 400),
        (json!({}), 400),
        (json!({ "jobIds": [JOB, JOB] }), 400),
        (json!({ "jobIds": [JOB, TWO], "cursor": "1-q7x2ma" }), 400),
        (json!({ "jobIds": [THREE] }), 404),
    ] {
        assert_eq!(issue(order.clone()).await.status, status, "{order}");
    }
}

#[tokio::test]
async fn e47_a_bundle_ends_before_its_token_does_with_one_goodbye() {
    let (engine, accounts) = (ScriptedEngine::start(), Accounts::new());
    let edge = Edge::with(&engine, |config| config.auth = Some(accounts.authenticator()));
    engine.add_job(TWO);
    let ends = tidegate_auth::now() + 3;
    let mut answer = edge.get(&path(&[JOB, TWO]), &bearer(&accounts.token(3, json!({})))).await;
    let events = answer.rest().await;
    assert!(tidegate_auth::now() < ends, "late");
    let goodbyes: Vec<_> = events.iter().filter(|event| event.event == "goodbye").map(Event::json).collect();
    assert_eq!(goodbyes, [json!({ "reason": "expired", "reconnect": false })]);
}

#[tokio::test]
async fn j29_a_job_that_is_deleted_while_it_is_watched_ends_alone() {
    let engine = ScriptedEngine::start();
    engine.add_job(TWO);
    let edge = Edge::start(&engine);
    let mut answer = bundle(&edge, &[JOB, TWO], "").await;
    engine.append(log("x"));
    assert_eq!(by_job(&answer.take(1).await)[JOB], [1]);
    engine.delete();
    let goodbye = answer.expect("goodbye").await;
    assert_eq!(
        (goodbye.json()["jobId"].as_str(), goodbye.json()["data"]["reason"].as_str()),
        (Some(JOB), Some("deleted"))
    );
    assert_eq!(goodbye.retry, None);
    engine.append_to(TWO, complete());
    assert_eq!(by_job(&answer.rest().await), HashMap::from([(TWO.to_owned(), vec![1])]));
}

#[tokio::test]
async fn e24_a_cursor_of_another_log_is_recognised_for_its_job_alone() {
    let engine = finished();
    let edge = Edge::start(&engine);
    let rest = bundle(&edge, &[JOB, TWO], "9-q7x2ma~3-another").await.rest().await;
    let gap = rest.iter().find(|event| event.event == "gap").unwrap();
    assert_eq!(
        (gap.json()["jobId"].as_str(), gap.json()["data"]["reason"].as_str()),
        (Some(TWO), Some("reset"))
    );
    let events: Vec<_> = rest.iter().filter(|event| event.event != "gap").cloned().collect();
    assert_eq!(
        by_job(&events),
        HashMap::from([(JOB.to_owned(), vec![10]), (TWO.to_owned(), (1..=5).collect())])
    );
}

#[tokio::test]
async fn e16_what_is_asked_for_wrongly_is_refused_and_what_passes_is_said_in_band() {
    let engine = ScriptedEngine::start();
    let mut edge = Edge::start(&engine);
    let many: Vec<_> = (0..33).map(|n| format!("01900000-0000-7000-8000-{n:012}")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    for (jobs, id, problem) in [
        (&[][..], "", "invalid-argument"),
        (&many[..], "", "invalid-argument"),
        (&[JOB, JOB], "", "invalid-argument"),
        (&["nonsense"], "", "malformed-job-id"),
        (&[JOB, TWO], "1-e", "malformed-cursor"),
        (&[JOB], "1-e~2-e", "malformed-cursor"),
        (&[JOB], "$", "malformed-cursor"),
    ] {
        let mut answer = bundle(&edge, jobs, id).await;
        assert_eq!(answer.status, 400, "{jobs:?} {id}");
        assert_eq!(answer.json().await["type"], format!("/problems/{problem}"), "{jobs:?} {id}");
    }
    let json = edge.get(&path(&[JOB]), "accept: application/json\r\n").await;
    assert_eq!(json.status, 406);
    let head = client::request(edge.addr, "HEAD", &path(&[JOB]), "", "").await;
    assert_eq!((head.status, &*head.headers["content-type"]), (200, "text/event-stream"));
    // A drain is said once, for the whole connection.
    engine.add_job(TWO);
    let mut answer = bundle(&edge, &[JOB, TWO], "").await;
    answer.next().await.unwrap();
    answer.expect("connected").await;
    answer.expect("connected").await;
    edge.stop();
    let goodbye = answer.expect("goodbye").await;
    assert_eq!(goodbye.json(), json!({ "reason": "draining", "reconnect": true }));
    assert!(goodbye.retry.is_some());
    assert!(answer.rest().await.is_empty());
    edge.ended().await;
}

#[tokio::test]
async fn e56_an_engine_that_restarts_is_not_noticed_by_any_job_of_a_bundle() {
    let engine = ScriptedEngine::start();
    engine.add_job(TWO);
    let edge = Edge::start(&engine);
    let mut answer = bundle(&edge, &[JOB, TWO], "").await;
    engine.append(log("before"));
    assert_eq!(answer.take(1).await.len(), 1);
    engine.kill();
    engine.restart().await;
    for job in [JOB, TWO] {
        engine.append_to(job, log("after"));
        engine.append_to(job, complete());
    }
    let seen = by_job(&answer.rest().await);
    assert_eq!((&*seen[JOB], &*seen[TWO]), (&[2, 3][..], &[1, 2][..]));
}
