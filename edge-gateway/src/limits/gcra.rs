//! The generic cell rate algorithm (ITU-T I.371, ATM Forum TM 4.1): a token bucket whose whole state is one point in time.
//!
//! Pure: no clock and no storage. Memory and Redis keep, per key, the theoretical arrival time; what both hand in here
//! is the *debt*, the microseconds until the key is as good as unused. A request that is refused changes nothing, so
//! trying again does not prolong the wait.

use std::{num::NonZeroU32, time::Duration};

/// At most `quota` requests at once, and in the long run `quota` a `window`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    quota: u32,
    seconds: u32,
    /// What one request costs: microseconds of debt.
    interval: u64,
}

impl Rate {
    /// `quota` requests in `seconds`; `None` if that is more than a million a second.
    pub(crate) fn new(quota: NonZeroU32, seconds: NonZeroU32) -> Option<Self> {
        let window = u64::from(seconds.get()) * 1_000_000;
        // Rounded up: never more than was configured.
        let interval = window.div_ceil(quota.get().into());
        (u64::from(quota.get()) <= window).then_some(Self {
            quota: quota.get(),
            seconds: seconds.get(),
            interval,
        })
    }

    /// Requests at once.
    pub(crate) fn quota(self) -> u32 {
        self.quota
    }

    /// In what time an exhausted quota is whole again, in seconds.
    pub(crate) fn seconds(self) -> u32 {
        self.seconds
    }

    /// What one request costs, in microseconds of debt.
    pub(crate) fn interval(self) -> u64 {
        self.interval
    }

    /// The highest debt that a key may have, in microseconds.
    pub(crate) fn limit(self) -> u64 {
        self.interval * u64::from(self.quota)
    }

    /// The part of this rate that one of `nodes` may give away without asking the others; at least one request.
    pub(crate) fn share(self, nodes: u32) -> Self {
        let quota = (self.quota / nodes.max(1)).max(1);
        let interval = (u64::from(self.seconds) * 1_000_000).div_ceil(quota.into());
        Self { quota, interval, ..self }
    }

    /// The debt after one more request, if it is allowed.
    pub(crate) fn charge(self, debt: u64) -> Option<u64> {
        let next = debt.saturating_add(self.interval);
        (next <= self.limit()).then_some(next)
    }

    /// How many requests are allowed now.
    pub(crate) fn remaining(self, debt: u64) -> u64 {
        self.limit().saturating_sub(debt) / self.interval
    }

    /// How long until one more request is allowed than now; nothing when the quota is whole.
    pub(crate) fn next(self, debt: u64) -> Duration {
        let kept = u64::from(self.quota).min(self.remaining(debt) + 1) * self.interval;
        Duration::from_micros((debt + kept).saturating_sub(self.limit()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rate(quota: u32, seconds: u32) -> Rate {
        Rate::new(quota.try_into().unwrap(), seconds.try_into().unwrap()).unwrap()
    }

    #[test]
    fn a_quota_is_spent_at_once_and_comes_back_evenly() {
        let rate = rate(3, 30);
        let mut debt = 0;
        for left in [2, 1, 0] {
            debt = rate.charge(debt).unwrap();
            assert_eq!(rate.remaining(debt), left);
        }
        assert_eq!((rate.charge(debt), rate.next(debt)), (None, Duration::from_secs(10)));
        debt -= 10_000_000;
        assert_eq!((rate.remaining(debt), rate.next(debt)), (1, Duration::from_secs(10)));
        assert_eq!(rate.next(0), Duration::ZERO);
    }

    #[test]
    fn a_share_is_never_nothing_and_never_more() {
        assert_eq!((rate(10, 60).share(3).quota(), rate(10, 60).share(0)), (3, rate(10, 60)));
        assert_eq!(rate(1, 60).share(5), rate(1, 60));
    }

    #[test]
    fn absurd_rates_are_no_rates() {
        assert_eq!(Rate::new(2_000_001.try_into().unwrap(), 2.try_into().unwrap()), None);
        assert!(Rate::new(u32::MAX.try_into().unwrap(), u32::MAX.try_into().unwrap()).is_some());
    }

    proptest! {
        /// However requests arrive, no interval of any length sees more than the quota and what came back meanwhile.
        #[test]
        fn no_interval_sees_more_than_its_share(
            quota in 1u32..50, seconds in 1u32..100, gaps in prop::collection::vec(0u64..5_000_000, 1..200),
        ) {
            let rate = rate(quota, seconds);
            let (mut now, mut tat, mut allowed) = (0u64, 0u64, Vec::new());
            for gap in gaps {
                now += gap;
                if let Some(debt) = rate.charge(tat.saturating_sub(now)) {
                    tat = now + debt;
                    allowed.push(now);
                }
            }
            for (i, from) in allowed.iter().enumerate() {
                for (j, to) in allowed.iter().enumerate().skip(i) {
                    prop_assert!((j - i + 1) as u64 <= u64::from(quota) + (to - from) / rate.interval());
                }
            }
        }

        /// E50: after a refusal, a client is let in exactly when it was told, however often it tries meanwhile.
        #[test]
        fn e50_rejected_tries_do_not_prolong_a_ban(
            quota in 1u32..20, seconds in 1u32..100, tries in prop::collection::vec(0.0f64..1.0, 0..50),
        ) {
            let rate = rate(quota, seconds);
            let mut tat = 0;
            for _ in 0..quota {
                tat = rate.charge(tat).unwrap();
            }
            let back = u64::try_from(rate.next(tat).as_micros()).unwrap();
            for early in tries {
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
                let now = (early * (back as f64 - 1.0)) as u64;
                prop_assert_eq!(rate.charge(tat - now), None);
            }
            prop_assert!(rate.charge(tat - back).is_some());
        }

        /// What is announced as remaining is allowed, and not one more.
        #[test]
        fn e52_the_remaining_quota_is_true(quota in 1u32..50, seconds in 1u32..100, debt in 0u64..100_000_000) {
            let rate = rate(quota, seconds);
            let mut debt = debt.min(rate.limit());
            for _ in 0..rate.remaining(debt) {
                debt = rate.charge(debt).unwrap();
            }
            prop_assert_eq!(rate.charge(debt), None);
        }
    }
}
