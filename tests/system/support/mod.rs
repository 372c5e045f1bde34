//! What every system test needs: processes that can be killed, a whole Tidegate, and conditions to wait for.

pub(crate) mod certificates;
pub(crate) mod fleet;
pub(crate) mod herd;
mod process;
pub(crate) mod proxy;
pub(crate) mod redis;
mod stack;

use std::{collections::BTreeSet, net::TcpListener, time::Duration};

use parking_lot::Mutex;
use serde_json::Value;
use tidegate::{
    follow::{Follower, Outcome, Step},
    sse::Event,
};
use tokio::time::Instant;

pub(crate) use process::{Process, binary};
pub(crate) use stack::{Options, Stack, Store};

/// Far beyond what anything here takes, even on a loaded machine; a test that reaches it has failed.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Polls `look` until it finds something.
pub(crate) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {} s in vain: {what}", DEADLINE.as_secs());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A port that nobody listens on, below the range that the kernel gives to outgoing connections, and that no other test
/// was given: it stays free until its process listens, and while that is being restarted.
pub(crate) fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let port = rand::random_range(10_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() && GIVEN.lock().insert(port) {
            return port;
        }
    }
}

/// What a viewer saw, from its first event to the end.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Seen {
    pub(crate) events: Vec<Event>,
    pub(crate) gaps: Vec<Event>,
    /// How often the connection was lost.
    pub(crate) losses: usize,
    pub(crate) outcome: Option<Outcome>,
}

impl Seen {
    /// The events' numbers.
    pub(crate) fn numbers(&self) -> Vec<u64> {
        self.events.iter().map(|e| number(&e.id)).collect()
    }

    /// Asserts that every event after `after` was seen once, in order, without a hole, up to the terminal one.
    #[track_caller]
    pub(crate) fn assert_whole(&self, after: u64) {
        let numbers = self.numbers();
        let expected: Vec<u64> = (after + 1..=after + numbers.len() as u64).collect();
        assert_eq!(numbers, expected, "events are missing, doubled or out of order");
        assert_eq!(self.gaps, [], "a gap was told");
        let ends: Vec<_> = self.events.iter().filter(|e| Outcome::from_event(&e.name).is_some()).collect();
        assert_eq!(ends.len(), 1, "not exactly one end: {ends:?}");
        assert!(Outcome::from_event(&self.events.last().unwrap().name).is_some(), "events follow the end");
    }
}

/// The number in a cursor.
pub(crate) fn number(cursor: &str) -> u64 {
    cursor
        .split_once('-')
        .and_then(|(seq, _)| seq.parse().ok())
        .unwrap_or_else(|| panic!("no cursor: {cursor:?}"))
}

/// An event's data.
pub(crate) fn data(event: &Event) -> Value {
    serde_json::from_str(&event.data).unwrap_or_else(|e| panic!("{event:?}: {e}"))
}

/// Follows to the end; `seen_one` hears of every event.
pub(crate) async fn follow(mut follower: Follower, mut seen_one: impl FnMut(&Event)) -> Seen {
    let mut seen = Seen::default();
    loop {
        let step = tokio::time::timeout(DEADLINE, follower.next()).await;
        match step.unwrap_or_else(|_| panic!("nothing for {} s after {seen:?}", DEADLINE.as_secs())).unwrap()
        {
            Step::Connected(_) => {}
            Step::Event(event) => {
                seen_one(&event);
                seen.events.push(event);
            }
            Step::Gap(event) => seen.gaps.push(event),
            Step::Reconnecting { .. } => seen.losses += 1,
            Step::Ended(outcome) => {
                seen.outcome = Some(outcome);
                return seen;
            }
            Step::Dismissed(reason) => panic!("dismissed: {reason}"),
        }
    }
}

/// The value of a series: its name and labels as they stand before the value in `text`. Of a name alone, the sum over
/// all labels.
pub(crate) fn metric(text: &str, series: &str) -> f64 {
    let value = |line: &str| -> Option<f64> {
        let rest = line.strip_prefix(series)?;
        let labels = rest.strip_prefix('{').and_then(|labels| labels.rsplit(' ').next());
        labels.or(rest.strip_prefix(' '))?.parse().ok()
    };
    let values = text.lines().filter_map(value);
    values.reduce(|a, b| a + b).unwrap_or_else(|| panic!("no {series} in:\n{text}"))
}

/// What a gateway counts, as text; `admin` is `host:port`.
pub(crate) async fn metrics(admin: &str) -> String {
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build().unwrap();
    client.get(format!("http://{admin}/metrics")).send().await.unwrap().text().await.unwrap()
}
