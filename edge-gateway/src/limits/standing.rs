//! What a client is told about its quotas: the fields of draft-ietf-httpapi-ratelimit-headers-10 (September 2025).
//!
//! `q` is the quota and `w` the window in which an exhausted quota is whole again; `r` is what is left and `t` the
//! seconds until one more is allowed than that. A waiting client therefore needs to wait `t`, not the whole window.

use std::{fmt::Write as _, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{gcra::Rate, memory::Key};

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// Between how many seconds a client that has too many streams is told to come back.
const STREAMS_AGAIN: std::ops::RangeInclusive<u32> = 5..=15;

/// How a client stands in each policy that applies to it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standing(Vec<Item>);

#[derive(Clone, Copy, Debug)]
enum Item {
    Rate { policy: &'static str, rate: Rate, debt: u64 },
    Streams { policy: &'static str, cap: u32, open: u32 },
}

impl Standing {
    pub(super) fn of_rates(charges: &[(Key, Rate)], debts: &[u64]) -> Self {
        let item = |((key, rate), debt): (&(Key, Rate), &u64)| Item::Rate {
            policy: key.what,
            rate: *rate,
            debt: *debt,
        };
        Self(charges.iter().zip(debts).map(item).collect())
    }

    pub(super) fn of_streams(caps: &[(Key, u32)], mut open: impl FnMut(&Key) -> u32) -> Self {
        let item = |(key, cap): &(Key, u32)| Item::Streams { policy: key.what, cap: *cap, open: open(key) };
        Self(caps.iter().map(item).collect())
    }

    /// With what the answer already says, such as how many streams are open.
    pub(crate) fn and(mut self, other: Option<&Self>) -> Self {
        self.0.extend(other.into_iter().flat_map(|other| other.0.iter().copied()));
        self
    }

    /// Writes the fields, if anything is limited.
    pub(crate) fn write(&self, headers: &mut HeaderMap) {
        let (mut policies, mut limits) = (String::new(), String::new());
        for item in &self.0 {
            if !policies.is_empty() {
                policies.push_str(", ");
                limits.push_str(", ");
            }
            // Writing to a String cannot fail. Names of policies are ours, so they need no escapes.
            let _ = match item {
                Item::Rate { policy, rate, debt } => {
                    let _ = write!(policies, "\"{policy}\";q={};w={}", rate.quota(), rate.seconds());
                    write!(limits, "\"{policy}\";r={};t={}", rate.remaining(*debt), seconds(rate.next(*debt)))
                }
                Item::Streams { policy, cap, open } => {
                    let _ = write!(policies, "\"{policy}\";q={cap};qu=\"concurrent-requests\"");
                    write!(limits, "\"{policy}\";r={}", cap.saturating_sub(*open))
                }
            };
        }
        for (name, text) in [(POLICY, policies), (LIMIT, limits)] {
            if let Some(value) = HeaderValue::from_str(&text).ok().filter(|value| !value.is_empty()) {
                headers.insert(name, value);
            }
        }
    }
}

/// Why a client has to wait, and how long.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) standing: Standing,
    /// Seconds; never before any `t` that the standing names for a violated policy.
    pub(crate) retry_after: u32,
}

impl Refusal {
    pub(super) fn new(standing: Standing) -> Self {
        let wait = |item: &Item| match item {
            Item::Rate { rate, debt, .. } if rate.charge(*debt).is_none() => seconds(rate.next(*debt)),
            Item::Streams { cap, open, .. } if open >= cap => rand::random_range(STREAMS_AGAIN),
            _ => 0,
        };
        let retry_after = standing.0.iter().map(wait).max().unwrap_or(0).max(1);
        Self { standing, retry_after }
    }

    /// The policies that were exceeded.
    pub(crate) fn violated(&self) -> Vec<&'static str> {
        let violated = |item: &Item| match item {
            Item::Rate { policy, rate, debt } => rate.charge(*debt).is_none().then_some(*policy),
            Item::Streams { policy, cap, open } => (open >= cap).then_some(*policy),
        };
        self.standing.0.iter().filter_map(violated).collect()
    }
}

/// Whole seconds, rounded up.
fn seconds(wait: Duration) -> u32 {
    u32::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e52_the_fields_are_those_of_the_draft() {
        let rate = Rate::new(3.try_into().unwrap(), 30.try_into().unwrap()).unwrap();
        let key = |what| Key::tenant(what, "t");
        let caps = [(key("streams-ip"), 4)];
        let streams = Standing::of_streams(&caps, |_| 1);
        let standing = Standing::of_rates(&[(key("read-ip"), rate)], &[20_000_000]).and(Some(&streams));
        let mut headers = HeaderMap::new();
        standing.write(&mut headers);
        assert_eq!(
            headers["ratelimit-policy"],
            "\"read-ip\";q=3;w=30, \"streams-ip\";q=4;qu=\"concurrent-requests\""
        );
        assert_eq!(headers["ratelimit"], "\"read-ip\";r=1;t=10, \"streams-ip\";r=3");
        let mut none = HeaderMap::new();
        Standing::default().write(&mut none);
        assert!(none.is_empty());
    }

    #[test]
    fn e52_nobody_is_called_back_too_early() {
        let rate = Rate::new(3.try_into().unwrap(), 30.try_into().unwrap()).unwrap();
        let key = |what| Key::tenant(what, "t");
        let charges = [(key("read-ip"), rate), (key("read-tenant"), rate)];
        let refusal = Refusal::new(Standing::of_rates(&charges, &[20_000_001, 10]));
        assert_eq!((refusal.retry_after, refusal.violated()), (1, vec!["read-ip"]));
        let refusal = Refusal::new(Standing::of_rates(&charges, &[29_500_001, 30_000_000]));
        assert_eq!((refusal.retry_after, refusal.violated()), (10, vec!["read-ip", "read-tenant"]));
        let refusal = Refusal::new(Standing::of_streams(&[(key("streams-ip"), 1)], |_| 1));
        assert!(STREAMS_AGAIN.contains(&refusal.retry_after));
    }
}
