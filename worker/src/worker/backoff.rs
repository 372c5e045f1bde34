//! The pause between two tries to connect: doubled when every engine has had its try, jittered, and forgotten only
//! after a healthy time.

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
    /// The pause before the next try, after a connection that lasted `lasted` (zero if there was none), when `engines`
    /// of them seem to serve.
    ///
    /// `jitter` is uniform in [0, 1); the pause lies between a half and the whole of the doubled time.
    pub(super) fn pause(&mut self, lasted: Duration, engines: usize, jitter: f64) -> Duration {
        if lasted >= HEALTHY {
            self.tries = 0;
        }
        let rounds = self.tries / u32::try_from(engines.max(1)).unwrap_or(u32::MAX);
        let whole = FIRST.saturating_mul(1 << rounds.min(16)).min(LONGEST);
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
            let pause = backoff.pause(Duration::from_secs(1), 1, 0.0);
            assert!(pause > last, "{pause:?} after {last:?}");
            last = pause;
        }
        for _ in 0..100 {
            assert!(backoff.pause(Duration::ZERO, 1, 0.999) <= LONGEST);
        }
        assert_eq!(backoff.pause(HEALTHY, 1, 0.0), FIRST / 2);
    }

    #[test]
    fn each_engine_has_its_try_before_the_pause_grows() {
        let mut backoff = Backoff::default();
        let pauses = [(); 6].map(|()| backoff.pause(Duration::ZERO, 3, 0.0));
        let (short, long) = (FIRST / 2, FIRST);
        assert_eq!(pauses, [short, short, short, long, long, long]);
    }
}
