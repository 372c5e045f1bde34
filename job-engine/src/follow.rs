//! Tells those who follow a stream that it moved.
//!
//! One task listens to the store's hints and rings the bell of each stream that somebody follows. A bell carries the
//! highest number heard of; whoever is woken reads the log, which alone is the truth. Lost hints ring every bell,
//! and a follower also looks by itself every few seconds ([`Follow::changed`]), so a lost hint costs time, never events.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::sync::{broadcast, watch};

use crate::store::Hint;

/// How long a follower waits at most before it looks by itself; jittered down to half of it.
pub const LOOK: Duration = Duration::from_secs(5);

/// What a bell says: the highest number heard of, and how often somebody was told to look regardless.
type Heard = (u64, u64);

/// The bells of the streams that somebody follows.
#[derive(Clone)]
pub struct Followers {
    bells: Arc<Mutex<HashMap<Arc<str>, watch::Sender<Heard>>>>,
    look: Duration,
}

/// One follower of one stream; dropping the last one of a stream takes its bell down.
pub struct Follow {
    followers: Followers,
    stream: Arc<str>,
    heard: watch::Receiver<Heard>,
    /// What was heard when this follower last returned from waiting.
    acted_on: Heard,
}

impl Followers {
    /// No bells yet; followers look by themselves after `look` (usually [`LOOK`]) at the latest.
    pub fn new(look: Duration) -> Self {
        Self { bells: Arc::default(), look }
    }

    /// Follows a stream from now on: a change after this call is heard, so read the log after it.
    pub fn follow(&self, stream: &str) -> Follow {
        let mut bells = self.bells.lock();
        let stream = bells.get_key_value(stream).map_or_else(|| Arc::from(stream), |(name, _)| name.clone());
        let heard = bells.entry(stream.clone()).or_insert_with(|| watch::channel((0, 0)).0).subscribe();
        let acted_on = (0, heard.borrow().1);
        Follow { followers: self.clone(), stream, heard, acted_on }
    }

    /// Distributes hints until the store is gone. `on_index` is called for every index hint, with `None` for lost hints.
    pub async fn distribute(self, mut hints: broadcast::Receiver<Hint>, on_index: impl Fn(Option<&str>)) {
        loop {
            match hints.recv().await {
                Ok(Hint::Stream(stream, seq)) => {
                    if let Some(bell) = self.bells.lock().get(&stream) {
                        bell.send_modify(|(heard, looks)| match seq {
                            Some(seq) if seq > *heard => *heard = seq,
                            // Deleted, or behind what was heard before: the log is not the one that it was.
                            back => (*heard, *looks) = (back.unwrap_or(0), *looks + 1),
                        });
                    }
                }
                Ok(Hint::Index(index)) => on_index(Some(&index)),
                Ok(Hint::Lost) | Err(broadcast::error::RecvError::Lagged(_)) => {
                    for bell in self.bells.lock().values() {
                        bell.send_modify(|(_, looks)| *looks += 1);
                    }
                    on_index(None);
                }
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    }
}

impl Follow {
    /// Returns when the stream may have moved beyond `after`, or after a few seconds in any case.
    pub async fn changed(&mut self, after: u64) {
        let look = self.followers.look.mul_f64(rand::random_range(0.5..1.0));
        let moved = async {
            // What was acted on once is no reason to look again: the log may have lost what it announced.
            let (seq, looks) = self.acted_on;
            if self.heard.wait_for(|(heard, now)| *heard > after.max(seq) || *now != looks).await.is_err() {
                // The bell is gone only with the engine.
                std::future::pending::<()>().await;
            }
        };
        // Elapsed is as good a reason to look as a bell.
        let _ = tokio::time::timeout(look, moved).await;
        self.acted_on = *self.heard.borrow_and_update();
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        let mut bells = self.followers.bells.lock();
        // This follower's own receiver is still counted.
        if bells.get(&self.stream).is_some_and(|bell| bell.receiver_count() <= 1) {
            bells.remove(&self.stream);
        }
    }
}
