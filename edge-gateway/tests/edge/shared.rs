//! Limits that several gateways share through a real Redis, and what happens without it.

use std::time::{Duration, Instant};

use crate::support::{
    Answer, JOB, ScriptedEngine, client,
    process::{self, Gateway},
    until,
};

/// Two gateways behind one proxy.
async fn pair(engine: &ScriptedEngine, redis: &str, config: &str) -> [Gateway; 2] {
    let flags = ["--trusted-proxy=127.0.0.1".to_owned(), format!("--limits-redis={redis}")];
    [Gateway::start(engine, config, &flags).await, Gateway::start(engine, config, &flags).await]
}

/// Two gateways that have reached their Redis: the first question also connects, which on a busy machine takes longer
/// than a request waits for it. One read must count for long in `config`, so that its key can be seen.
async fn sharing(engine: &ScriptedEngine, redis: &str, config: &str) -> [Gateway; 2] {
    let pair = pair(engine, redis, config).await;
    for (n, gateway) in pair.iter().enumerate() {
        until("the gateway's questions are answered by Redis", async || {
            read(gateway, &format!("203.0.113.{n}")).await;
            ask(redis, &["KEYS", "*:c:read-ip:*"]).await.len() > n
        })
        .await;
    }
    pair
}

async fn read(gateway: &Gateway, ip: &str) -> Answer {
    gateway.get("/api/kinds", &format!("x-forwarded-for: {ip}\r\n")).await
}

async fn watch(gateway: &Gateway, ip: &str) -> Answer {
    gateway.get(&format!("/api/progress/{JOB}"), &format!("x-forwarded-for: {ip}\r\n")).await
}

fn remaining(answer: &Answer, policy: &str) -> u64 {
    let limits = &answer.headers["ratelimit"];
    let rest = limits.split(&format!("\"{policy}\";r=")).nth(1).unwrap();
    rest.split([';', ',']).next().unwrap().parse().unwrap()
}

async fn ask(redis: &str, command: &[&str]) -> Vec<String> {
    let mut connection =
        redis::Client::open(redis).unwrap().get_multiplexed_async_connection().await.unwrap();
    let mut cmd = redis::cmd(command[0]);
    cmd.arg(&command[1..]);
    cmd.query_async(&mut connection).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn e50_two_gateways_let_no_more_through_than_one() {
    let engine = ScriptedEngine::start();
    let (_redis, url) = process::redis().await;
    let config = "[limits.ip]\nread = { quota = 10, seconds = 3600 }\n[limits.tenant]\nread = \"off\"\n";
    let gateways = sharing(&engine, &url, config).await;
    for n in 0..10 {
        let answer = read(&gateways[n % 2], "192.0.2.1").await;
        assert_eq!((answer.status, remaining(&answer, "read-ip")), (200, 9 - n as u64), "{n}");
    }
    let mut last = u64::MAX;
    for n in 0..20 {
        let answer = read(&gateways[n % 2], "192.0.2.1").await;
        assert_eq!(answer.status, 429, "{n}");
        let wait: u64 = answer.headers["retry-after"].parse().unwrap();
        assert!(wait <= 362 && wait <= last.saturating_add(1), "the ban grew to {wait}");
        last = wait;
    }
    // Two keys, or one refuses and neither is charged: another address still has all.
    assert_eq!(remaining(&read(&gateways[1], "192.0.2.2").await, "read-ip"), 9);
    // At once, too, no more than the quota get through.
    let tries = (0..60).map(|n| read(&gateways[n % 2], "198.51.100.1"));
    let answers = futures_util::future::join_all(tries).await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 200).count(), 10);
    let keys = ask(&url, &["KEYS", "*"]).await;
    assert!(keys.len() >= 3, "{keys:?}");
    for key in keys {
        assert!(key.starts_with("{tidegate-limits}:"), "{key}");
        assert!(!key.contains("192.0") && !key.contains("default"), "a name in {key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn e50_a_cap_holds_across_gateways_and_a_killed_one_gives_its_slots_back_within_their_lease() {
    let engine = ScriptedEngine::start();
    let (_redis, url) = process::redis().await;
    let config =
        "[limits]\nlease_seconds = 3\n[limits.ip]\nstreams = 4\nread = { quota = 100, seconds = 3600 }\n";
    let [mut first, second] = sharing(&engine, &url, config).await;
    let mut open = Vec::new();
    for n in 0..4 {
        let mut answer = watch(if n < 3 { &first } else { &second }, "192.0.2.1").await;
        assert_eq!((answer.status, remaining(&answer, "streams-ip")), (200, 3 - n));
        answer.expect("connected").await;
        open.push(answer);
    }
    for gateway in [&first, &second] {
        assert_eq!(watch(gateway, "192.0.2.1").await.status, 429);
    }
    assert_eq!(watch(&second, "192.0.2.2").await.status, 200);
    // A viewer leaves one gateway: the other one has its slot, long before any lease ends.
    let began = Instant::now();
    drop(open.pop());
    until("the slot is free", async || watch(&first, "192.0.2.1").await.status == 200).await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    // Leases end only with their gateway: three are left, the probe's own slot is free, and each outlives its first end.
    renewed(&url, &keys(&url).await, 3, Duration::from_secs(3)).await;
    let probe = watch(&second, "192.0.2.1").await;
    assert_eq!((probe.status, watch(&second, "192.0.2.1").await.status), (200, 429));
    let killed = Instant::now();
    first.process.kill();
    assert_eq!(watch(&second, "192.0.2.1").await.status, 429, "no word of it yet");
    let mut again = Vec::new();
    until("its slots are free", async || {
        let answer = watch(&second, "192.0.2.1").await;
        if answer.status == 200 {
            again.push(answer);
        }
        again.len() == 3
    })
    .await;
    assert!(killed.elapsed() < Duration::from_secs(4), "{:?}", killed.elapsed());
    assert_eq!(watch(&second, "192.0.2.1").await.status, 429);
    drop(probe);
}

/// The set of slots of the only address that has any.
async fn keys(url: &str) -> String {
    let sets = ask(url, &["KEYS", "*:s:streams-ip:*"]).await;
    let mut fullest = (0, String::new());
    for set in sets {
        let len = ask(url, &["ZRANGE", &set, "0", "-1"]).await.len();
        fullest = fullest.max((len, set));
    }
    fullest.1
}

/// Waits until a set has `count` leases, and the end of each is later by more than `by` than all of them were.
async fn renewed(url: &str, set: &str, count: usize, by: Duration) {
    let mut first: Option<f64> = None;
    until("the leases are renewed", async || {
        let answer = ask(url, &["ZRANGE", set, "0", "-1", "WITHSCORES"]).await;
        let ends: Vec<f64> = answer.chunks(2).map(|lease| lease[1].parse().unwrap()).collect();
        if ends.len() != count {
            first = None;
            return false;
        }
        let first = *first.get_or_insert(ends.iter().copied().fold(0.0, f64::max));
        ends.iter().all(|end| *end > first + by.as_secs_f64() * 1000.0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e50_without_redis_each_gateway_gives_away_its_own_share_and_nothing_hangs() {
    let engine = ScriptedEngine::start();
    let (redis, url) = process::redis().await;
    let config =
        "[limits]\nlease_seconds = 3\n[limits.ip]\nread = { quota = 10, seconds = 3600 }\nstreams = 4\n";
    let gateways = sharing(&engine, &url, config).await;
    assert_eq!(remaining(&read(&gateways[0], "192.0.2.1").await, "read-ip"), 9);
    // Both know of each other once both have renewed.
    renewed(&url, "{tidegate-limits}:gateways", 2, Duration::ZERO).await;
    redis.signal("STOP");
    for gateway in &gateways {
        let began = Instant::now();
        let mut open = Vec::new();
        let answer = read(gateway, "192.0.2.9").await;
        assert!(began.elapsed() < Duration::from_secs(1), "waited for Redis: {:?}", began.elapsed());
        assert_eq!((answer.status, remaining(&answer, "read-ip")), (200, 4));
        assert!(answer.headers["ratelimit-policy"].contains("\"read-ip\";q=5;w=3600"));
        let began = Instant::now();
        for n in 1..8 {
            let status = read(gateway, "192.0.2.9").await.status;
            assert_eq!(status, if n < 5 { 200 } else { 429 }, "{n}");
            let answer = watch(gateway, "192.0.2.9").await;
            assert_eq!(answer.status, if n < 3 { 200 } else { 429 }, "{n}");
            open.push(answer);
        }
        // Known to be away: nobody else waits for it, except one probe's worth now and then.
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        assert!(gateway.metric("tidegate_gateway_limit_redis_failures_total").await >= 1.0);
        assert_eq!(gateway.process.output().matches("the Redis of the limits does not answer").count(), 1);
    }
    redis.signal("CONT");
    for gateway in &gateways {
        until("the limits are shared again", async || {
            read(gateway, "192.0.2.77").await.headers["ratelimit-policy"].contains("q=10;")
        })
        .await;
        assert!(gateway.metric("tidegate_gateway_limit_redis_reconnects_total").await >= 1.0);
    }
    assert_eq!(remaining(&read(&gateways[0], "192.0.2.1").await, "read-ip"), 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn e50_a_gateway_starts_and_serves_although_its_redis_is_not_there() {
    let engine = ScriptedEngine::start();
    let url = format!("redis://{}", process::free_addr());
    let [gateway, _] = pair(&engine, &url, "[limits.ip]\nread = { quota = 2, seconds = 3600 }\n").await;
    for (n, status) in [200, 200, 429].into_iter().enumerate() {
        assert_eq!(read(&gateway, "192.0.2.1").await.status, status, "{n}");
    }
    let mut answer = client::request(gateway.addr, "GET", &format!("/api/progress/{JOB}"), "", "").await;
    answer.expect("connected").await;
}
