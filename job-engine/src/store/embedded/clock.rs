//! The store's clock: the system's, but never going backwards, neither while running nor across a restart.
//!
//! Invariant: it always runs. When the system's clock is set back, this one goes on from where it was at the speed
//! of the monotonic clock, rather than standing still until the system catches up.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

/// See the module's documentation.
pub(super) struct Clock(Mutex<Anchor>);

struct Anchor {
    ms: u64,
    at: Instant,
}

impl Clock {
    /// A clock that is never before `at_least`, the last time that was written down.
    pub(super) fn new(at_least: u64) -> Self {
        Self(Mutex::new(Anchor { ms: at_least.max(system_ms()), at: Instant::now() }))
    }

    /// Milliseconds since the Unix epoch.
    pub(super) fn now_ms(&self) -> u64 {
        let mut anchor = self.0.lock();
        let running = anchor.ms.saturating_add(super::millis(anchor.at.elapsed()));
        let system = system_ms();
        if system > running {
            *anchor = Anchor { ms: system, at: Instant::now() };
        }
        running.max(system)
    }
}

fn system_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, super::millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_ahead_goes_on_running() {
        let ahead = system_ms() + 3_600_000;
        let clock = Clock::new(ahead);
        let deadline = Instant::now() + std::time::Duration::from_secs(5);
        while clock.now_ms() < ahead + 5 {
            assert!(Instant::now() < deadline, "the clock stands still");
            std::thread::yield_now();
        }
    }
}
