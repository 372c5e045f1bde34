//! How long a stream lasts: as long as what it was opened with.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Accounts, Edge, JOB, ScriptedEngine, accounts::bearer, client, engine::log};

fn start(engine: &ScriptedEngine, accounts: &Accounts) -> Edge {
    Edge::with(engine, |config| config.auth = Some(accounts.authenticator()))
}

#[tokio::test]
async fn e47_a_stream_says_goodbye_before_its_token_ends_and_never_turns_anonymous() {
    let (engine, accounts) = (ScriptedEngine::start(), Accounts::new());
    let edge = start(&engine, &accounts);
    let token = accounts.token(3, json!({}));
    let ends = tidegate_auth::now() + 3;
    let mut by_token = edge.watch(&bearer(&token)).await;
    let answer = client::request(
        edge.addr,
        "POST",
        "/api/tickets",
        &bearer(&token),
        &format!(r#"{{"jobId":"{JOB}"}}"#),
    )
    .await;
    let ticket = {
        let mut answer = answer;
        answer.json().await["ticket"].as_str().unwrap().to_owned()
    };
    let url = format!("/api/progress/{JOB}?ticket={ticket}");
    let mut by_ticket = edge.get(&url, "").await;
    let answer = client::request(edge.addr, "POST", "/api/session", &bearer(&token), "").await;
    let cookie = format!("cookie: {}\r\n", answer.headers["set-cookie"].split(';').next().unwrap());
    let mut by_cookie = edge.watch(&cookie).await;
    let mut forever = edge.watch(&bearer(&accounts.key)).await;
    forever.expect("connected").await;
    for stream in [&mut by_token, &mut by_ticket, &mut by_cookie] {
        stream.expect("connected").await;
        let goodbye = stream.rest().await.pop().unwrap();
        assert_eq!(goodbye.json(), json!({"reason": "expired", "reconnect": false}));
        assert!(tidegate_auth::now() < ends, "late");
        assert!(goodbye.retry.unwrap() >= 1000);
    }
    engine.append(log("after"));
    assert_eq!(forever.take(1).await.len(), 1, "who does not expire stays");
    assert_eq!(edge.metric("tidegate_gateway_streams_closed_total{reason=\"expired\"}").await, 3.0);
    // Whatever comes back with the ended ones is refused for good.
    crate::support::until("the token has ended", async || tidegate_auth::now() > ends).await;
    let again = "accept: text/event-stream\r\nlast-event-id: 0-q7x2ma\r\n";
    assert_eq!(edge.get(&url, again).await.status, 401);
    assert_eq!(edge.watch(&format!("{again}{cookie}")).await.status, 401);
}

#[tokio::test]
async fn e48_what_is_taken_back_ends_its_open_streams_and_no_others() {
    let (engine, accounts) = (ScriptedEngine::start(), Accounts::new());
    let edge = start(&engine, &accounts);
    let one = bearer(&accounts.token(600, json!({"jti": "one"})));
    let two = bearer(&accounts.token(600, json!({"jti": "two"})));
    let body = format!(r#"{{"jobId":"{JOB}"}}"#);
    let issued = client::request(edge.addr, "POST", "/api/tickets", &one, &body).await.json().await;
    let url = format!("/api/progress/{JOB}?ticket={}", issued["ticket"].as_str().unwrap());
    let mut revoked = [edge.watch(&one).await, edge.get(&url, "").await];
    let (mut stays, mut by_key) = (edge.watch(&two).await, edge.watch(&bearer(&accounts.key)).await);
    for stream in revoked.iter_mut().chain([&mut stays, &mut by_key]) {
        stream.expect("connected").await;
    }
    let began = Instant::now();
    accounts.write("[[auth.revoked]]\njti = 'one'\n");
    for stream in &mut revoked {
        let goodbye = stream.rest().await.pop().unwrap();
        assert_eq!(goodbye.json(), json!({"reason": "revoked", "reconnect": false}));
    }
    // reload_seconds = 1, and a little for a busy machine.
    assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
    assert_eq!(edge.watch(&one).await.status, 401);
    assert_eq!(edge.get(&url, "").await.status, 401);
    accounts.write_whole("");
    assert_eq!(by_key.rest().await.pop().unwrap().json()["reason"], "revoked");
    engine.append(log("still here"));
    assert_eq!(stays.take(1).await.len(), 1);
}

#[tokio::test]
async fn e40_streams_are_moved_on_after_a_time_of_their_own() {
    let engine = ScriptedEngine::start();
    let edge = Edge::with(&engine, |config| config.longest_stream = Some(Duration::from_secs(2)));
    let began = Instant::now();
    let mut streams = Vec::new();
    for _ in 0..20 {
        let mut stream = edge.watch("").await;
        stream.expect("connected").await;
        streams.push(stream);
    }
    engine.append(log("one"));
    let mut retries = Vec::new();
    for stream in &mut streams {
        assert_eq!(stream.take(1).await[0].id.as_deref(), Some("1-q7x2ma"));
        let goodbye = stream.rest().await.pop().unwrap();
        assert_eq!(goodbye.json(), json!({"reason": "moved", "reconnect": true}));
        retries.push(goodbye.retry.unwrap());
    }
    assert!(began.elapsed() >= Duration::from_millis(1400), "{:?}", began.elapsed());
    retries.sort_unstable();
    retries.dedup();
    assert!(retries.len() > 10, "they come back as one wave: {retries:?}");
    // Whoever comes back goes on where it stopped.
    engine.append(log("two"));
    let mut again = edge.watch("last-event-id: 1-q7x2ma\r\n").await;
    assert_eq!(again.take(1).await[0].id.as_deref(), Some("2-q7x2ma"));
}
