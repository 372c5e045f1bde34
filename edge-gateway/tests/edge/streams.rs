//! Open streams: who is told of them, and who may close them.

use serde_json::{Value, json};

use crate::support::{Accounts, Edge, JOB, ScriptedEngine, accounts::bearer, client, until};

const TWO: &str = "01900000-0000-7000-8000-000000000002";

async fn stats(edge: &Edge, headers: &str) -> Value {
    let mut answer = edge.get("/api/stats", headers).await;
    assert_eq!(answer.status, 200);
    answer.json().await
}

async fn close(edge: &Edge, stream: &Value, headers: &str) -> u16 {
    let path = format!("/api/streams/{}", stream.as_str().unwrap());
    client::request(edge.addr, "DELETE", &path, headers, "").await.status
}

#[tokio::test]
async fn e48_a_stream_is_listed_and_closed_for_good() {
    let engine = ScriptedEngine::start();
    engine.add_job(TWO);
    let edge = Edge::with(&engine, |config| config.longest_stream = Some(std::time::Duration::from_secs(60)));
    assert_eq!(stats(&edge, "").await, json!({ "total": 0, "streams": [] }));
    let mut one = edge.watch("").await;
    one.expect("connected").await;
    until("it is listed", async || stats(&edge, "").await["total"] == 1).await;
    let mut both = edge.get(&format!("/api/progress?job={JOB}&job={TWO}"), "").await;
    both.next().await.unwrap();
    both.expect("connected").await;
    both.expect("connected").await;
    let listed = stats(&edge, "").await;
    assert_eq!(listed["total"], 2, "a connection is one stream: {listed}");
    let jobs = |n: usize| {
        let mut jobs: Vec<_> =
            listed["streams"][n]["jobIds"].as_array().unwrap().iter().map(|j| j.as_str().unwrap()).collect();
        jobs.sort_unstable();
        jobs
    };
    let (alone, bundled) = if jobs(0).len() == 1 { (0, 1) } else { (1, 0) };
    assert_eq!((jobs(alone), jobs(bundled)), (vec![JOB], vec![JOB, TWO]));
    assert!(listed["streams"][0]["openedAt"].as_str() < listed["streams"][0]["endsAt"].as_str());

    assert_eq!(close(&edge, &listed["streams"][bundled]["streamId"], "").await, 204);
    let goodbye = both.rest().await;
    assert_eq!(goodbye.len(), 1, "one goodbye a connection: {goodbye:?}");
    assert_eq!(goodbye[0].json(), json!({ "reason": "closed", "reconnect": false }));
    assert_eq!(close(&edge, &listed["streams"][bundled]["streamId"], "").await, 404);
    for nonsense in ["x", "0", "+000000000000001", "ABCDEFABCDEFABCD"] {
        assert_eq!(close(&edge, &nonsense.into(), "").await, 404);
    }
    engine.append(crate::support::engine::log("still here"));
    assert_eq!(one.take(1).await.len(), 1, "the other one stays");
    drop(one);
    until("who left is not listed", async || stats(&edge, "").await["total"] == 0).await;
}

#[tokio::test]
async fn e25_streams_of_others_are_neither_seen_nor_closed_but_by_the_tenants_admin() {
    let (engine, accounts) = (ScriptedEngine::start(), Accounts::new());
    let edge = Edge::with(&engine, |config| config.auth = Some(accounts.authenticator()));
    let user = |subject: &str, tenant: &str, scope: &str| {
        let claims = json!({ "sub": subject, "tenant": tenant, "scope": scope });
        bearer(&accounts.token(600, claims))
    };
    let mut watch = edge.watch(&user("anonymous", "default", "jobs:read")).await;
    watch.expect("connected").await;
    let own = stats(&edge, &user("anonymous", "default", "jobs:read")).await;
    assert_eq!((&own["total"], &own["streams"][0]["subject"]), (&json!(1), &json!("anonymous")));
    let stream = &own["streams"][0]["streamId"];
    for other in [
        user("eve", "default", "jobs:read jobs:control"),
        user("anonymous", "other", "jobs:read"),
        user("root", "other", "jobs:read jobs:admin"),
    ] {
        assert_eq!(stats(&edge, &other).await["total"], 0);
        assert_eq!(close(&edge, stream, &other).await, 404);
    }
    assert_eq!(edge.get("/api/stats", "").await.status, 401);
    assert_eq!(edge.get("/api/stats", &user("anonymous", "default", "jobs:submit")).await.status, 403);
    let admin = user("root", "default", "jobs:read jobs:admin");
    assert_eq!(stats(&edge, &admin).await["total"], 1);
    assert_eq!(close(&edge, stream, &admin).await, 204);
    assert_eq!(watch.rest().await[0].json()["reason"], "closed");
}
