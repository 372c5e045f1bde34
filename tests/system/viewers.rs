//! Many viewers of one job, some of which do not read.

use std::time::Duration;

use serde_json::json;
use tidegate::sse;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};

use crate::support::{DEADLINE, Options, Stack, Store, eventually, follow};

const VIEWERS: usize = 500;
const STALLED: usize = 20;

/// A command that says much: 1 MB in all, and pauses so that everybody is there before it ends.
const TALKER: &str = r#"
[[exec]]
kind = "talker"
command = ["sh", "-c", "i=0; while [ $i -lt 200 ]; do i=$((i+1)); printf 'line %05000d\n' $i; sleep 0.03; done"]
lines_per_second = 10000
"#;

/// A viewer's connection after its request, with the answer unread. A small `window` lets the kernel hold next to
/// nothing for a viewer that does not read.
async fn connect(http: &str, job: &str, window: Option<u32>) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    if let Some(bytes) = window {
        socket.set_recv_buffer_size(bytes).unwrap();
    }
    let mut socket = socket.connect(http.parse().unwrap()).await.unwrap();
    let request =
        format!("GET /api/progress/{job} HTTP/1.1\r\nhost: {http}\r\naccept: text/event-stream\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    socket
}

/// Reads the event stream behind a connection to its end; returns the ids.
async fn read(mut socket: TcpStream) -> Vec<String> {
    let mut ids = Vec::new();
    let mut head = Vec::new();
    let mut parser = sse::Parser::default();
    let mut buffer = vec![0; 16 * 1024];
    let mut chunks = Chunks::default();
    loop {
        let count = tokio::time::timeout(DEADLINE, socket.read(&mut buffer))
            .await
            .expect("a viewer starves")
            .unwrap();
        assert!(count > 0, "the connection ended without its final chunk, after {} events", ids.len());
        let mut bytes = &buffer[..count];
        if !head.ends_with(b"\r\n\r\n") {
            let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").expect("the head came in pieces") + 4;
            head.extend_from_slice(&bytes[..end]);
            bytes = &bytes[end..];
        }
        let body = chunks.body(bytes);
        parser
            .feed(&body, &mut |event| {
                assert!(!matches!(event.name.as_str(), "gap" | "goodbye"), "{event:?}");
                if event.name != "connected" {
                    ids.push(event.id);
                }
            })
            .unwrap();
        if chunks.ended {
            return ids;
        }
    }
}

/// Takes the chunked transfer coding off; hyper's client would cost more than 500 viewers may.
#[derive(Default)]
struct Chunks {
    /// The bytes of a size line that is not complete yet.
    size: Vec<u8>,
    /// What is left of the chunk, with its line end.
    left: usize,
    ended: bool,
}

impl Chunks {
    fn body(&mut self, mut bytes: &[u8]) -> Vec<u8> {
        let mut body = Vec::new();
        while let Some(&byte) = bytes.first() {
            if self.left > 0 {
                let count = self.left.min(bytes.len());
                // The last two bytes of the rest are the line end.
                body.extend_from_slice(&bytes[..count.min(self.left.saturating_sub(2))]);
                self.left -= count;
                bytes = &bytes[count..];
                continue;
            }
            bytes = &bytes[1..];
            self.size.push(byte);
            if self.size.ends_with(b"\r\n") {
                let size = std::str::from_utf8(&self.size[..self.size.len() - 2]).unwrap();
                let size =
                    usize::from_str_radix(size, 16).unwrap_or_else(|_| panic!("a chunk of size {size:?}"));
                self.size.clear();
                self.left = size + 2;
                self.ended = size == 0;
            }
        }
        body
    }
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
            stalled.push(connect(&stack.http, &job, Some(4096)).await);
        } else {
            readers.push(tokio::spawn(read(connect(&stack.http, &job, None).await)));
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
        assert_eq!(read(socket).await, all[0], "a stalled viewer missed something");
    }
    let late = tokio::time::timeout(Duration::from_secs(30), follow(stack.follower(&job, ""), |_| {}))
        .await
        .unwrap();
    assert_eq!(late.events.len(), all[0].len());
}

/// The value of a gauge.
fn metric(text: &str, name: &str) -> f64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or_else(|| panic!("no gauge {name} in:\n{text}"))
}
