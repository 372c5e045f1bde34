//! The pause between two tries to connect: doubled each time, jittered, and forgotten only after a healthy time.

use std::time::Duration;

/// The first pause.
const FIRST: Duration = Duration::from_millis(200);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(15);
/// How long a connection must have lasted to count as healthy. A welcome alone does not: an engine that accepts and
/// then drops everybody would otherwise be stormed.
const HEALTHY: Duration = Duration::from_secs(10);

/// How often connecting has failed lately.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    tries: u32,
}

impl Backoff {
    /// The pause before the next try, after a connection that lasted `lasted` (zero if there was none).
    ///
    /// `jitter` is uniform in [0, 1); the pause lies between a half and the whole of the doubled time.
    pub(super) fn pause(&mut self, lasted: Duration, jitter: f64) -> Duration {
        if lasted >= HEALTHY {
            self.tries = 0;
        }
        let whole = FIRST.saturating_mul(1 << self.tries.min(16)).min(LONGEST);
        self.tries = self.tries.saturating_add(1);
        whole.mul_f64(0.5 + jitter / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e43_backoff_resets_only_after_a_healthy_time() {
        let mut backoff = Backoff::default();
        let mut last = Duration::ZERO;
        for _ in 0..6 {
            let pause = backoff.pause(Duration::from_secs(1), 0.0);
            assert!(pause > last, "{pause:?} after {last:?}");
            last = pause;
        }
        for _ in 0..100 {
            assert!(backoff.pause(Duration::ZERO, 0.999) <= LONGEST);
        }
        assert_eq!(backoff.pause(HEALTHY, 0.0), FIRST / 2);
    }
}
