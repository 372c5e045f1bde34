//! Five thousand viewers who lose their gateway at once: to a crash, and to a shutdown.

use std::time::Duration;

use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    signal::Signal,
};
use reqwest::Method;
use serde_json::json;
use tidegate::api::Client;
use tokio::time::Instant;

use crate::support::{
    Options, Process, Stack, Store, binary, eventually, free_port, herd::Herd, metric, metrics, number,
};

const VIEWERS: usize = 5000;
const JOBS: usize = 4;

/// A hundred lines at once, and then one every half a second, for ever.
const TICKER: &str = r#"
[[exec]]
kind = "ticker"
command = ["sh", "-c", "i=0; while :; do i=$((i+1)); echo tick $i; [ $i -le 100 ] || sleep 0.5; done"]
"#;

/// A stack with viewers who have seen something of every job, and the jobs.
async fn watched() -> (Stack, Vec<String>, Herd) {
    // The viewers' ends of the sockets are in this process; the gateway raises its own limit.
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let wanted = VIEWERS as u64 + 1000;
    assert!(
        hard >= wanted,
        "this test opens {VIEWERS} sockets: raise the hard limit (ulimit -Hn) to {wanted}"
    );
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(wanted), hard).unwrap();

    let stack = Stack::start(Options { config: TICKER.to_owned(), ..Options::from(Store::Embedded) }).await;
    let mut jobs = Vec::new();
    for _ in 0..JOBS {
        jobs.push(stack.submit("ticker", json!({})).await);
    }
    for job in &jobs {
        eventually("the ticker has begun to tick slowly", async || {
            (last(&stack.client, job).await > 100).then_some(())
        })
        .await;
    }
    let herd = Herd::start(VIEWERS, &jobs, &stack.http);
    eventually("everybody is connected and has seen what there was", async || {
        (herd.connected() == VIEWERS && herd.slowest() > 100).then_some(())
    })
    .await;
    (stack, jobs, herd)
}

/// The number of the last event of a job.
async fn last(client: &Client, job: &str) -> u64 {
    number(client.job(job).await.unwrap()["cursor"].as_str().unwrap())
}

/// Ends the jobs; every viewer must see it.
async fn finish(client: &Client, jobs: &[String], herd: Herd) {
    for job in jobs {
        client.call(client.request(Method::POST, &["api", "jobs", job, "cancel"])).await.unwrap();
    }
    herd.ended().await;
}

/// E42: a gateway dies; all its viewers come back in the same moment, each with its cursor.
#[tokio::test(flavor = "multi_thread")]
async fn e42_five_thousand_viewers_come_back_at_once_and_cost_one_upstream_and_one_read_a_job() {
    let (mut stack, jobs, herd) = watched().await;
    herd.shut();
    stack.gateway.kill();
    eventually("nobody is connected", async || (herd.connected() == 0).then_some(())).await;
    let missed = herd.slowest() + 3;
    stack.gateway.start_again();
    stack.ready().await;
    for job in &jobs {
        eventually("everybody has missed something", async || {
            (last(&stack.client, job).await >= missed).then_some(())
        })
        .await;
    }

    let began = Instant::now();
    herd.open(&stack.http);
    eventually("everybody is back", async || (herd.connected() == VIEWERS).then_some(())).await;
    let back = began.elapsed();
    eventually("everybody has what it missed", async || (herd.slowest() >= missed).then_some(())).await;
    println!("{VIEWERS} viewers of {JOBS} jobs: back after {back:.2?}, live after {:.2?}", began.elapsed());

    let counted = stack.gateway_metrics().await;
    let of = |name: &str| metric(&counted, name);
    assert!((of("tidegate_gateway_upstreams") - JOBS as f64).abs() < 0.5, "one upstream a job:\n{counted}");
    assert!(of("tidegate_gateway_history_reads_total") <= JOBS as f64, "one read a job:\n{counted}");
    finish(&stack.client, &jobs, herd).await;
}

/// E41: a gateway is shut down while a second one takes over.
#[tokio::test(flavor = "multi_thread")]
async fn e41_a_gateway_with_five_thousand_viewers_drains_while_another_takes_over() {
    let (mut stack, jobs, herd) = watched().await;
    let [http, admin] = [(); 2].map(|()| format!("127.0.0.1:{}", free_port()));
    let flags = vec![
        format!("--listen={http}"),
        format!("--admin-listen={admin}"),
        format!("--engine=http://{}", stack.grpc),
    ];
    let scratch = stack.path("");
    let mut second = Process::start("gateway-2", &binary("edge-gateway"), flags, &scratch);
    let client = Client::new(&format!("http://{http}")).unwrap();
    eventually("the second gateway answers", async || {
        second.assert_running();
        client.job(&jobs[0]).await.ok()
    })
    .await;

    herd.open(&http);
    let began = Instant::now();
    stack.gateway.signal(Signal::SIGTERM);
    let status = stack.gateway.wait().await;
    let ended = began.elapsed();
    assert_eq!(status.code(), Some(0), "{}", stack.gateway.output());
    eventually("everybody is at the second gateway", async || (herd.connected() == VIEWERS).then_some(()))
        .await;
    let (goodbyes, returns) = herd.moves();
    assert_eq!((goodbyes.len(), returns.len()), (VIEWERS, VIEWERS), "everybody was told to go, and went");

    // Goodbyes over seven tenths of the ten seconds' window, each with a time of its own to come back, 1 to 5 s.
    let after = |moments: &[Instant], share: usize| {
        let mut sorted: Vec<_> = moments.iter().map(|moment| moment.duration_since(began)).collect();
        sorted.sort_unstable();
        sorted[(sorted.len() - 1) * share / 100]
    };
    for (what, moments) in [("goodbyes", &goodbyes), ("returns", &returns)] {
        let at = [0, 25, 50, 75, 100].map(|share| after(moments, share));
        println!("{what}, at 0, 25, 50, 75 and 100 %: {at:.2?}");
    }
    println!("the first gateway had ended after {ended:.2?}");
    let spread = |moments: &[Instant]| after(moments, 95) - after(moments, 5);
    assert!(spread(&goodbyes) >= Duration::from_secs(5), "the goodbyes come as one wave");
    assert!(spread(&returns) >= Duration::from_secs(6), "the viewers come back as one wave");
    assert!(ended < Duration::from_secs(12), "the window is ten seconds: {ended:?}");

    let counted = metrics(&admin).await;
    let upstreams = metric(&counted, "tidegate_gateway_upstreams");
    assert!((upstreams - JOBS as f64).abs() < 0.5, "one upstream a job:\n{counted}");
    let now = last(&client, &jobs[0]).await;
    eventually("everybody is live", async || (herd.slowest() + 3 > now).then_some(())).await;
    finish(&client, &jobs, herd).await;
}
