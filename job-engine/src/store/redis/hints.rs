//! Listens to the hint channel on a connection of its own, for ever.
//!
//! One subscription per engine, never one per viewer or per job. While it is broken hints are lost, so every
//! (re)subscription begins with [`Hint::Lost`], which makes listeners look for themselves.

use std::time::Duration;

use futures_util::StreamExt as _;
use redis::Client;
use tokio::{sync::broadcast, time::Instant};

use crate::store::Hint;

pub(super) async fn listen(client: Client, channel: String, hints: broadcast::Sender<Hint>) {
    let mut pause = Duration::from_millis(20);
    loop {
        let begun = Instant::now();
        let error = match subscribed(&client, &channel, &hints).await {
            Ok(()) => "the connection ended".to_owned(),
            Err(error) => error.to_string(),
        };
        if begun.elapsed() > Duration::from_secs(10) {
            pause = Duration::from_millis(20);
        }
        tracing::warn!(%error, "the hint subscription broke; subscribing again");
        tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

async fn subscribed(
    client: &Client,
    channel: &str,
    hints: &broadcast::Sender<Hint>,
) -> redis::RedisResult<()> {
    let mut pubsub = client.get_async_pubsub().await?;
    pubsub.subscribe(channel).await?;
    // Sending fails only while nobody listens, and then nobody misses anything.
    let _ = hints.send(Hint::Lost);
    let mut messages = pubsub.into_on_message();
    while let Some(message) = messages.next().await {
        for line in message.get_payload_bytes().split(|b| *b == b'\n') {
            if let Some(hint) = std::str::from_utf8(line).ok().and_then(parse) {
                let _ = hints.send(hint);
            }
        }
    }
    Ok(())
}

/// One line of a message: `s <seq> <stream>`, `d <stream>` or `i <index>`.
fn parse(line: &str) -> Option<Hint> {
    let (what, rest) = line.split_once(' ')?;
    match what {
        "s" => {
            let (seq, stream) = rest.split_once(' ')?;
            Some(Hint::Stream(stream.into(), Some(seq.parse().ok()?)))
        }
        "d" => Some(Hint::Stream(rest.into(), None)),
        "i" => Some(Hint::Index(rest.into())),
        _ => None,
    }
}
