//! Many viewers of one job, some of which do not read.

use std::time::Duration;

use serde_json::json;
use tokio::net::TcpStream;

use crate::support::{
    DEADLINE, Options, Stack, Store, eventually, follow,
    herd::{connect, read},
    metric,
};

const VIEWERS: usize = 500;
const STALLED: usize = 20;

/// A command that says much: 1 MB in all, and pauses so that everybody is there before it ends.
const TALKER: &str = r#"
[[exec]]
kind = "talker"
command = ["sh", "-c", "i=0; while [ $i -lt 200 ]; do i=$((i+1)); printf 'line %05000d\n' $i; sleep 0.03; done"]
lines_per_second = 10000
"#;

/// The ids of all events behind a connection, which must end in order.
async fn ids(socket: TcpStream) -> Vec<String> {
    let mut ids = Vec::new();
    let read = read(socket, |event| {
        assert!(!matches!(event.name.as_str(), "gap" | "goodbye"), "{event:?}");
        if event.name != "connected" {
            ids.push(event.id);
        }
    });
    let (whole, _) = tokio::time::timeout(DEADLINE, read).await.expect("a viewer starves");
    assert!(whole, "the connection ended without its final chunk, after {} events", ids.len());
    ids
}

/// Promise 6, j19: one upstream, all see the same, and who does not read costs little and harms nobody.
#[tokio::test(flavor = "multi_thread")]
async fn j19_five_hundred_viewers_see_the_same_while_twenty_stall() {
    let stack = Stack::start(Options { config: TALKER.to_owned(), ..Options::from(Store::Embedded) }).await;
    let job = stack.submit("talker", json!({})).await;
    let mut readers = Vec::new();
    let mut stalled = Vec::new();
    for n in 0..VIEWERS {
        if n % (VIEWERS / STALLED) == 0 {
            stalled.push(connect(&stack.http, &job, "", Some(4096)).await.unwrap());
        } else {
            readers.push(tokio::spawn(ids(connect(&stack.http, &job, "", None).await.unwrap())));
        }
    }
    assert_eq!(stalled.len(), STALLED);
    eventually("all viewers are counted, on one upstream", async || {
        let metrics = stack.gateway_metrics().await;
        (metric(&metrics, "tidegate_gateway_streams") == VIEWERS as f64).then(|| {
            let upstreams = metric(&metrics, "tidegate_gateway_upstreams");
            assert!((upstreams - 1.0).abs() < f64::EPSILON, "{upstreams} upstreams for one job");
        })
    })
    .await;
    let before = stack.gateway.memory();

    let mut all = Vec::new();
    for reader in readers {
        all.push(reader.await.unwrap());
    }
    let expected: Vec<u64> = (1..=all[0].len() as u64).collect();
    let numbers: Vec<u64> = all[0].iter().map(|id| crate::support::number(id)).collect();
    assert_eq!(numbers, expected);
    assert!(all.iter().all(|ids| *ids == all[0]), "two viewers saw different events");
    let grown = stack.gateway.memory().saturating_sub(before);
    println!("the gateway grew by {} kB under {VIEWERS} viewers, {STALLED} of them stalled", grown >> 10);
    assert!(grown < 16 << 20, "the gateway grew by {} MB", grown >> 20);

    eventually(
        "only the stalled are left, because the gateway still has something for each of them",
        async || {
            let open = metric(&stack.gateway_metrics().await, "tidegate_gateway_streams");
            assert!(
                open >= STALLED as f64,
                "only {open} streams are left: not all of the {STALLED} did stall"
            );
            (open < STALLED as f64 + 0.5).then_some(())
        },
    )
    .await;

    // Who comes to after the end has missed nothing.
    for socket in stalled {
        assert_eq!(ids(socket).await, all[0], "a stalled viewer missed something");
    }
    let late = tokio::time::timeout(Duration::from_secs(30), follow(stack.follower(&job, ""), |_| {}))
        .await
        .unwrap();
    assert_eq!(late.events.len(), all[0].len());
}
