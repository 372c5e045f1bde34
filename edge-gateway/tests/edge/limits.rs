//! Rates, caps and what refused clients are told.

use std::time::{Duration, Instant};

use edge_gateway::Proxies;
use serde_json::json;
use tokio::{io::AsyncReadExt as _, net::TcpStream};

use crate::support::{
    Accounts, Answer, Edge, JOB, ScriptedEngine,
    accounts::bearer,
    client,
    engine::{complete, log},
    until,
};

const QUOTA_EXCEEDED: &str = "https://iana.org/assignments/http-problem-types#quota-exceeded";

/// A gateway behind a proxy on loopback, so that tests can come from any address.
fn limited(engine: &ScriptedEngine, section: &str) -> Edge {
    Edge::with(engine, |config| {
        config.limits = section.parse().unwrap();
        config.edge.proxies =
            Proxies { trusted: vec!["127.0.0.1/32".parse().unwrap()], ..Proxies::default() };
    })
}

async fn from(edge: &Edge, ip: &str, path: &str) -> Answer {
    edge.get(path, &format!("x-forwarded-for: {ip}\r\n")).await
}

#[tokio::test]
async fn e50_a_rate_is_kept_by_address_and_told_in_every_answer() {
    let engine = ScriptedEngine::start();
    let edge = limited(&engine, "ip = { read = { quota = 3, seconds = 3600 } }\ntenant = { read = \"off\" }");
    for left in [2, 1, 0] {
        let answer = from(&edge, "192.0.2.1", "/api/kinds").await;
        assert_eq!((answer.status, &*answer.headers["ratelimit-policy"]), (200, "\"read-ip\";q=3;w=3600"));
        assert!(answer.headers["ratelimit"].starts_with(&format!("\"read-ip\";r={left};t=")));
    }
    // Tries that are refused do not prolong the ban: the announced time only shrinks.
    let mut last = u64::MAX;
    for _ in 0..20 {
        let mut answer = from(&edge, "192.0.2.1", "/api/kinds").await;
        assert_eq!(answer.status, 429);
        let told = answer.headers["ratelimit"].strip_prefix("\"read-ip\";r=0;t=").unwrap().to_owned();
        let (told, retry): (u64, u64) =
            (told.parse().unwrap(), answer.headers["retry-after"].parse().unwrap());
        assert!(told <= last && told <= 1200 && told > 1100, "{told}");
        assert!(retry >= told, "E52: called back at {retry}, before {told}");
        last = told;
        let problem = answer.json().await;
        assert_eq!(
            (&problem["type"], &problem["violated-policies"]),
            (&json!(QUOTA_EXCEEDED), &json!(["read-ip"]))
        );
    }
    // Another address, another class, and what is no API are not concerned.
    assert_eq!(from(&edge, "192.0.2.2", "/api/kinds").await.status, 200);
    assert_eq!(from(&edge, "192.0.2.1", "/").await.status, 200);
    let forwarded = "x-forwarded-for: 192.0.2.1\r\ncontent-type: application/json\r\n";
    let answer = client::request(edge.addr, "POST", "/api/jobs", forwarded, r#"{"kind":"demo"}"#).await;
    assert_eq!(answer.status, 201);
    assert!(edge.metric("tidegate_gateway_refused_total{policy=\"read-ip\"}").await == 20.0);
}

#[tokio::test]
async fn e51_what_a_client_says_of_itself_changes_nothing() {
    let engine = ScriptedEngine::start();
    let edge = Edge::with(&engine, |config| {
        config.limits = "[ip]\nread = { quota = 2, seconds = 3600 }".parse().unwrap();
    });
    for (n, status) in [(1, 200), (2, 200), (3, 429), (4, 429)] {
        assert_eq!(from(&edge, &format!("192.0.2.{n}"), "/api/kinds").await.status, status, "{n}");
    }
    let edge = limited(&engine, "[ip]\nread = { quota = 2, seconds = 3600 }");
    for (n, status) in [(1, 200), (2, 200), (3, 429)] {
        let chain = format!("192.0.2.{n}, 198.51.100.7");
        assert_eq!(from(&edge, &chain, "/api/kinds").await.status, status, "{chain}");
    }
}

#[tokio::test]
async fn e50_a_stream_is_refused_at_the_cap_and_its_slot_comes_back_on_every_way_out() {
    let engine = ScriptedEngine::start();
    let edge = limited(&engine, "[ip]\nstreams = 2");
    let watch = async |ip: &str, accept: &str| {
        let headers = format!("x-forwarded-for: {ip}\r\n{accept}");
        edge.get(&format!("/api/progress/{JOB}"), &headers).await
    };
    let left = |answer: &Answer| {
        let limits = &answer.headers["ratelimit"];
        limits.split("\"streams-ip\";r=").nth(1).unwrap()[..1].to_owned()
    };
    let (mut first, second) = (watch("192.0.2.1", "").await, watch("192.0.2.1", "").await);
    assert_eq!((left(&first), left(&second)), ("1".into(), "0".into()));
    let policy = "\"streams-ip\";q=2;qu=\"concurrent-requests\"";
    assert!(first.headers["ratelimit-policy"].contains(policy), "{:?}", first.headers);
    // The newest is refused, the oldest stays; another address has its own share.
    let mut third = watch("192.0.2.1", "").await;
    assert_eq!((third.status, left(&third)), (429, "0".into()));
    let wait: u64 = third.headers["retry-after"].parse().unwrap();
    assert!((5..=16).contains(&wait), "{wait}");
    assert_eq!(third.json().await["violated-policies"], json!(["streams-ip"]));
    let other = watch("192.0.2.2", "").await;
    assert_eq!(other.status, 200);
    first.expect("connected").await;
    engine.append(log("still here"));
    first.expect("log").await;
    // Way out: the client leaves.
    drop(second);
    until("the slot is free", async || watch("192.0.2.1", "").await.status == 200).await;
    until("both slots are free again", async || {
        let (a, b) = (watch("192.0.2.1", "").await, watch("192.0.2.1", "").await);
        a.status == 200 && b.status == 429
    })
    .await;
    // Way out: a refusal after the slot was taken, a HEAD, a snapshot, a 404.
    for n in 0..5 {
        let unknown = "/api/progress/01900000-0000-7000-8000-00000000ffff";
        assert_eq!(from(&edge, "192.0.2.1", unknown).await.status, 404, "{n}");
    }
    // Way out: the job ends.
    engine.append(complete());
    assert_eq!(first.rest().await.last().unwrap().event, "complete");
    until("all slots are free", async || {
        edge.metric("tidegate_gateway_streams").await == 0.0 && left(&watch("192.0.2.1", "").await) == "1"
    })
    .await;
}

#[tokio::test]
async fn e16_an_eventsource_over_its_limit_is_called_back_and_a_program_gets_429() {
    let engine = ScriptedEngine::start();
    let edge = limited(&engine, "[ip]\nstreams = 1\n[tenant]\nconnect = { quota = 3, seconds = 3600 }");
    let _open = edge.watch("accept: text/event-stream\r\n").await;
    // The cap, then the rate of the tenant.
    for (earliest, latest) in [(5_000, 16_000), (5_000, 16_000), (1_190_000, 1_202_000)] {
        let mut answer = edge.watch("accept: text/event-stream\r\n").await;
        assert_eq!((answer.status, &*answer.headers["content-type"]), (200, "text/event-stream"));
        assert!(answer.headers.contains_key("ratelimit"));
        let goodbye = answer.expect("goodbye").await;
        assert_eq!(goodbye.json(), json!({"reason": "limit", "reconnect": true}));
        let retry = goodbye.retry.unwrap();
        assert!((earliest..latest).contains(&retry), "{retry}");
        assert!(answer.rest().await.is_empty());
    }
    assert_eq!(edge.watch("accept: text/event-stream, application/json\r\n").await.status, 429);
}

#[tokio::test]
async fn e59_a_client_that_loops_on_204_is_slowed_down() {
    let engine = ScriptedEngine::start();
    let edge = limited(&engine, "[ip]\nconnect = { quota = 5, seconds = 3600 }");
    engine.append(complete());
    for n in 0..10 {
        let answer = edge.watch("last-event-id: 1-q7x2ma\r\n").await;
        assert_eq!(answer.status, if n < 5 { 204 } else { 429 }, "{n}");
    }
}

#[tokio::test]
async fn e50_anonymous_callers_do_not_share_one_subjects_quota() {
    let engine = ScriptedEngine::start();
    let edge = limited(&engine, "[subject]\nread = { quota = 1, seconds = 3600 }\nstreams = 1");
    for n in 1..5 {
        let answer = from(&edge, &format!("192.0.2.{n}"), "/api/kinds").await;
        assert_eq!(answer.status, 200);
        assert!(!answer.headers["ratelimit-policy"].contains("subject"));
    }
}

#[tokio::test]
async fn e50_an_address_with_too_many_connections_is_closed_before_it_costs_anything() {
    let engine = ScriptedEngine::start();
    let edge = Edge::with(&engine, |config| config.limits = "[ip]\nconnections = 3".parse().unwrap());
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut answer = edge.watch("").await;
        answer.expect("connected").await;
        open.push(answer);
    }
    let mut fourth = TcpStream::connect(edge.addr).await.unwrap();
    let began = Instant::now();
    assert!(!matches!(fourth.read(&mut [0; 1]).await, Ok(1..)), "closed");
    assert!(began.elapsed() < Duration::from_secs(5));
    drop(open);
    // A connection that closed frees its place; requests on it were never counted twice.
    until("a place is free", async || {
        let stream = TcpStream::connect(edge.addr).await.unwrap();
        let request = "GET /api/kinds HTTP/1.1\r\nhost: edge\r\nconnection: close\r\n\r\n";
        let mut stream = stream;
        let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await;
        matches!(stream.read(&mut [0; 1]).await, Ok(1))
    })
    .await;
}

#[tokio::test]
async fn e50_a_gateway_on_loopback_without_limits_says_nothing_of_them() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    for _ in 0..700 {
        let answer = edge.get("/api/kinds", "").await;
        assert!(answer.status == 200 && !answer.headers.contains_key("ratelimit"));
    }
}

#[tokio::test]
async fn e33_whoever_replays_from_the_start_in_a_loop_is_slowed_down_and_reads_nothing_anew() {
    let engine = ScriptedEngine::start();
    engine.log_to(3000);
    let edge = limited(&engine, "[ip]\nconnect = { quota = 20, seconds = 3600 }");
    let _open = edge.watch("last-event-id: 3000-q7x2ma\r\n").await;
    let mut refused = 0;
    for _ in 0..40 {
        let path = format!("/api/progress/{JOB}?lastEventId=earliest");
        let mut answer = from(&edge, "192.0.2.1", &path).await;
        match answer.status {
            200 => assert_eq!(answer.take(600).await.len(), 600),
            status => {
                assert_eq!(status, 429);
                refused += 1;
            }
        }
    }
    assert_eq!(refused, 20);
    let reads = engine.counts().reads.load(std::sync::atomic::Ordering::SeqCst);
    assert!(reads <= 12, "3,000 events are 12 pages, read {reads} times for 20 replays");
}

#[tokio::test]
async fn e50_a_subject_and_a_tenant_have_their_share_wherever_they_come_from() {
    let (engine, accounts) = (ScriptedEngine::start(), Accounts::new());
    let edge = Edge::with(&engine, |config| {
        config.auth = Some(accounts.authenticator());
        config.edge.proxies.trusted = vec!["127.0.0.1/32".parse().unwrap()];
        let section =
            "[subject]\nread = { quota = 2, seconds = 3600 }\n[tenant]\nread = { quota = 5, seconds = 3600 }";
        config.limits = section.parse().unwrap();
    });
    let read = async |ip: u8, credential: &str| {
        edge.get("/api/kinds", &format!("x-forwarded-for: 192.0.2.{ip}\r\n{credential}")).await
    };
    let (alice, bob, carol) = (accounts.user("alice"), accounts.user("bob"), accounts.user("carol"));
    for (ip, who, status, violated) in [
        (1, &alice, 200, None),
        (2, &alice, 200, None),
        (3, &alice, 429, Some(json!(["read-subject"]))),
        (4, &bob, 200, None),
        (5, &bob, 200, None),
        // What alice was refused was not charged to the tenant: one is left for carol.
        (6, &carol, 200, None),
        (7, &carol, 429, Some(json!(["read-tenant"]))),
    ] {
        let mut answer = read(ip, who).await;
        assert_eq!(answer.status, status, "{ip}");
        if let Some(violated) = violated {
            assert_eq!(answer.json().await["violated-policies"], violated, "{ip}");
        }
    }
    let elsewhere = bearer(&accounts.token(600, json!({"tenant": "other", "sub": "alice"})));
    assert_eq!(read(8, &elsewhere).await.status, 200, "another tenant's alice is another one");
}

#[tokio::test]
async fn e50_who_fails_to_prove_who_it_is_is_slowed_down_by_address() {
    let (engine, accounts) = (ScriptedEngine::start(), Accounts::new());
    let edge = Edge::with(&engine, |config| {
        config.auth = Some(accounts.authenticator());
        config.limits = "[ip]\nread = { quota = 3, seconds = 3600 }".parse().unwrap();
    });
    for n in 0..6 {
        let answer = edge.get("/api/kinds", "x-api-key: tg_guess\r\n").await;
        assert_eq!(answer.status, if n < 3 { 401 } else { 429 }, "{n}");
        assert!(answer.headers.contains_key("ratelimit"), "{n}");
    }
    // Barred before the credential is looked at: a good one makes no difference either.
    assert_eq!(edge.get("/api/kinds", &accounts.user("alice")).await.status, 429);
}
