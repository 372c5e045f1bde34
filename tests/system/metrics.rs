//! What is exported is what docs/metrics.md says, on a real run, and its figures are those of the run.

use std::collections::{BTreeMap, BTreeSet};

use reqwest::Method;
use serde_json::json;

use crate::support::{Options, Stack, Store, eventually, follow, metric, redis};

const PAGE: &str = include_str!("../../docs/metrics.md");

/// Metrics by name: their type and the names of their labels.
type Families = BTreeMap<String, (String, BTreeSet<String>)>;

/// What the page says below a heading.
fn documented(heading: &str) -> Families {
    let section = PAGE.split("\n## ").find_map(|s| s.strip_prefix(heading)).unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    let parse = |row: &str| {
        let cells: Vec<_> = row.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        let labels = cells[2].split(", ").map(|l| l.trim_matches('`').to_owned()).filter(|l| !l.is_empty());
        (cells[0].to_owned(), (cells[1].to_owned(), labels.collect()))
    };
    rows.map(parse).collect()
}

/// What a scrape shows, without the metrics that every process has.
fn exported(text: &str) -> Families {
    let mut families = Families::new();
    for line in text.lines() {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            families.insert(name.to_owned(), (kind.to_owned(), BTreeSet::new()));
        } else if let Some((name, rest)) = line.split_once('{').filter(|_| !line.starts_with('#')) {
            let name = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| name.strip_suffix(suffix).filter(|name| families.contains_key(*name)))
                .unwrap_or(name);
            // a="x",b="y"} 1: what stands before each =" ends with a label's name.
            let parts: Vec<_> = rest.split("=\"").collect();
            let labels = parts[..parts.len() - 1].iter().filter_map(|part| part.rsplit([',', '"']).next());
            let labels = labels.filter(|label| *label != "le").map(str::to_owned);
            families.get_mut(name).unwrap().1.extend(labels);
        }
    }
    families.retain(|name, _| !name.starts_with("process_"));
    families
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_of_a_run_are_those_of_the_page_and_count_what_happened() {
    let stack = Stack::start(Store::Redis).await;
    let job = stack.submit("demo", json!({ "steps": 3, "seconds": 1 })).await;
    let viewers = [(); 2].map(|()| tokio::spawn(follow(stack.follower(&job, ""), |_| {})));
    let mut handed = 0;
    for viewer in viewers {
        let seen = viewer.await.unwrap();
        seen.assert_whole(0);
        handed += seen.events.len();
    }
    let common = documented("All");
    let expected = |heading| documented(heading).into_iter().chain(common.clone()).collect::<Families>();
    let [of_gateway, of_engine, of_worker] = ["Gateway", "Engine", "Worker"].map(expected);
    assert!(
        of_gateway.len() > 15 && of_engine.len() > 20 && of_worker.len() > 8,
        "the page was not understood"
    );

    let malformed = stack.client.request(Method::GET, &["api", "jobs", "nonsense"]);
    assert!(stack.client.call(malformed).await.is_err());

    // Histograms show once they have been looked after, and streams count when their connections have closed.
    let (gateway, engine) = eventually("both streams are counted as closed", async || {
        let (gateway, engine) = (stack.gateway_metrics().await, stack.engine_metrics().await);
        let closed = gateway.contains("tidegate_gateway_stream_seconds_count 2");
        (closed && metric(&engine, "tidegate_engine_watches") == 0.0).then_some((gateway, engine))
    })
    .await;
    assert_eq!(exported(&gateway), of_gateway);
    assert_eq!(exported(&engine), of_engine);
    let worker = stack.worker_metrics().await;
    assert_eq!(exported(&worker), of_worker);

    for (series, expected) in [
        ("tidegate_gateway_streams{protocol=\"http/1.1\"}", 0.0),
        ("tidegate_gateway_streams{protocol=\"h2\"}", 0.0),
        ("tidegate_gateway_streams_opened_total{outcome=\"fresh\"}", 2.0),
        ("tidegate_gateway_streams_closed_total{reason=\"finished\"}", 2.0),
        ("tidegate_gateway_problems_total{problem=\"malformed-job-id\"}", 1.0),
        ("tidegate_gateway_problems_total{problem=\"job-not-found\"}", 0.0),
        ("tidegate_gateway_upstreams_opened_total", 1.0),
        ("tidegate_gateway_upstreams_shared_total", 1.0),
        ("tidegate_gateway_events_total", handed as f64),
    ] {
        assert_eq!(metric(&gateway, series), expected, "{series}");
    }
    assert!(metric(&gateway, "tidegate_gateway_delivery_lag_seconds_count") > 0.0);
    for (series, expected) in [
        ("tidegate_engine_jobs_submitted_total{kind=\"demo\"}", 1.0),
        ("tidegate_engine_attempts_total{kind=\"demo\"}", 1.0),
        ("tidegate_engine_jobs_finished_total{kind=\"demo\",outcome=\"completed\"}", 1.0),
        ("tidegate_engine_job_run_seconds_count{kind=\"demo\"}", 1.0),
        ("tidegate_engine_queue_wait_seconds_count{kind=\"demo\"}", 1.0),
        ("tidegate_engine_events_total{event=\"complete\"}", 1.0),
        ("tidegate_engine_events_total{event=\"checkpoint\"}", 3.0),
        ("tidegate_engine_reports_total{result=\"lease_lost\"}", 0.0),
        ("tidegate_engine_kind_workers{kind=\"demo\"}", 1.0),
        ("tidegate_engine_workers", 1.0),
        ("tidegate_engine_worker_slots", 4.0),
        ("tidegate_engine_jobs{state=\"kept\"}", 1.0),
        ("tidegate_engine_jobs{state=\"leased\"}", 0.0),
    ] {
        assert_eq!(metric(&engine, series), expected, "{series}");
    }
    assert!(metric(&engine, "tidegate_engine_watch_lag_seconds_count") > 0.0);
    for (series, expected) in [
        ("tidegate_worker_connected", 1.0),
        ("tidegate_worker_slots", 4.0),
        ("tidegate_worker_jobs{kind=\"demo\"}", 0.0),
        ("tidegate_worker_jobs_ended_total{kind=\"demo\",outcome=\"completed\"}", 1.0),
        ("tidegate_worker_jobs_ended_total{kind=\"csv-import\",outcome=\"completed\"}", 0.0),
        ("tidegate_worker_reports_total{result=\"lease_lost\"}", 0.0),
    ] {
        assert_eq!(metric(&worker, series), expected, "{series}");
    }
    let stored = metric(&worker, "tidegate_worker_reports_total{result=\"ok\"}");
    assert!(stored >= 4.0, "three checkpoints and the end are {stored} reports");
    for text in [gateway, engine, worker] {
        assert!(!text.contains(&job), "a job's id in the metrics");
    }
}

/// j1, j2: what an operator sees of a worker that died: its lease expired, and the job went to another attempt.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_died_shows_as_an_expired_lease() {
    let mut stack = Stack::start(Store::Embedded).await;
    let job = stack.submit("demo", json!({ "steps": 40, "seconds": 20 })).await;
    stack.until(&job, "PROCESSING").await;
    let worker = stack.worker_metrics().await;
    assert_eq!(metric(&worker, "tidegate_worker_jobs{kind=\"demo\"}"), 1.0);
    stack.worker.kill();
    let expired = "tidegate_engine_leases_expired_total";
    eventually("the lease expires", async || {
        (metric(&stack.engine_metrics().await, expired) == 1.0).then_some(())
    })
    .await;
    stack.worker.start_again();
    let again = "tidegate_engine_attempts_total{kind=\"demo\"}";
    eventually("another attempt begins", async || {
        (metric(&stack.engine_metrics().await, again) == 2.0).then_some(())
    })
    .await;
}

/// j27: what an operator sees of connections that were cut: who had to connect again, and that they did.
#[tokio::test(flavor = "multi_thread")]
async fn connections_that_were_cut_show_as_reconnects() {
    let mut stack = Stack::start(Store::Redis).await;
    let reconnects = "tidegate_engine_log_reconnects_total{store=\"redis\"}";
    assert_eq!(metric(&stack.engine_metrics().await, reconnects), 0.0);
    // Commands and wake-ups have a connection each.
    redis::cut(&stack.redis_url);
    eventually("both are made anew", async || {
        (metric(&stack.engine_metrics().await, reconnects) >= 2.0).then_some(())
    })
    .await;

    let reconnects = "tidegate_worker_reconnects_total";
    assert_eq!(metric(&stack.worker_metrics().await, reconnects), 0.0);
    stack.engine.kill();
    eventually("the worker is without an engine", async || {
        (metric(&stack.worker_metrics().await, "tidegate_worker_connected") == 0.0).then_some(())
    })
    .await;
    stack.engine.start_again();
    eventually("an engine welcomes it again", async || {
        (metric(&stack.worker_metrics().await, reconnects) == 1.0).then_some(())
    })
    .await;
}

/// With a token file, every part tells figures to its bearers alone, and health to everybody.
#[tokio::test(flavor = "multi_thread")]
async fn admin_ports_ask_for_their_token() {
    const TOKEN: &str = "0123456789abcdef-of-the-test";
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("token");
    std::fs::write(&file, TOKEN).unwrap();
    let all = vec![format!("--admin-token-file={}", file.display())];
    let stack = Stack::start(Options { all, ..Options::from(Store::Embedded) }).await;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    for admin in [&stack.gateway_admin, &stack.engine_admin, &stack.worker_admin] {
        let ask = async |path: &str, token: &str| {
            let answer = http.get(format!("http://{admin}{path}")).bearer_auth(token).send().await.unwrap();
            answer.status().as_u16()
        };
        for path in ["/metrics", "/loglevel"] {
            assert_eq!(ask(path, "another-token-of-that-size").await, 401, "{admin}{path}");
            assert_eq!(ask(path, TOKEN).await, 200, "{admin}{path}");
        }
        for path in ["/healthz", "/readyz"] {
            assert_eq!(ask(path, "").await, 200, "{admin}{path}");
        }
    }
}
