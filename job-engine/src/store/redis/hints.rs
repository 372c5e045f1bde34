//! Listens to the hint channel on a connection of its own, for ever.
//!
//! One connection per engine, never one per viewer or per job. While it is broken hints are lost, so every
//! (re)subscription begins with [`Hint::Lost`], which makes listeners look for themselves. A connection that was cut
//! in silence is noticed by a ping that is not answered. Does not: know what the hints are about.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt as _;
use tokio::{
    sync::broadcast,
    time::{Instant, sleep, timeout},
};

use super::{connection::response_timeout, server::Server};
use crate::{store::Hint, vitals::Pulse};

/// Where to listen, and whom to tell.
pub(super) struct Listener {
    pub(super) server: Arc<Server>,
    /// One of each partition. On a Cluster every node hears them all.
    pub(super) channels: Vec<String>,
    pub(super) hints: broadcast::Sender<Hint>,
    /// See [`super::RedisOptions::patience`].
    pub(super) patience: Duration,
    /// How many subscriptions there were.
    pub(super) subscriptions: Arc<AtomicU64>,
}

impl Listener {
    /// Listens, and subscribes again whenever the subscription breaks.
    pub(super) async fn listen(self, pulse: Pulse) {
        let mut pause = Duration::from_millis(20);
        loop {
            let begun = Instant::now();
            let error = match self.subscribed(&pulse).await {
                Ok(()) => "the connection ended".to_owned(),
                Err(error) => error,
            };
            if begun.elapsed() > Duration::from_secs(10) {
                pause = Duration::from_millis(20);
            }
            tracing::warn!(error, "the hint subscription broke; subscribing again");
            sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    async fn subscribed(&self, pulse: &Pulse) -> Result<(), String> {
        let text = |error: redis::RedisError| error.to_string();
        let answer = response_timeout(self.patience);
        let subscribe = async {
            let mut pubsub = self.server.client().await?.get_async_pubsub().await?;
            pubsub.subscribe(&self.channels).await?;
            Ok(pubsub)
        };
        let pubsub = timeout(answer, subscribe).await.map_err(|_| "no answer")?.map_err(text)?;
        pulse.beat();
        self.subscriptions.fetch_add(1, Ordering::Relaxed);
        // Sending fails only while nobody listens, and then nobody misses anything.
        let _ = self.hints.send(Hint::Lost);
        let (mut pings, mut messages) = pubsub.split();
        loop {
            let message = match timeout(self.patience / 2, messages.next()).await {
                Ok(Some(message)) => message,
                Ok(None) => return Ok(()),
                Err(_) => {
                    let pong = timeout(answer, pings.ping::<redis::Value>()).await;
                    pong.map_err(|_| "a ping was not answered")?.map_err(text)?;
                    pulse.beat();
                    continue;
                }
            };
            pulse.beat();
            for line in message.get_payload_bytes().split(|b| *b == b'\n') {
                if let Some(hint) = std::str::from_utf8(line).ok().and_then(parse) {
                    let _ = self.hints.send(hint);
                }
            }
        }
    }
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
