//! The server's clock, as far as it can be known from here, and the look at the server that keeps it known.
//!
//! An answer that came between two moments was given between them, which bounds how far the server's clock is from ours
//! (Cristian, "Probabilistic clock synchronization", 1989). What is believed of it is moved by as much as an answer proves
//! and no more: an answer that took seconds proves little, so a server that stalls puts no event into the future.
//!
//! Invariant: what is believed agrees with the last answer. Does not: promise to be in step with the server when no answer
//! comes; the two clocks then part by their drift.

use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use redis::cmd;
use tokio::{sync::broadcast, time::Instant};

use super::{connection::Connection, millis, origin::Origin, parse};
use crate::{
    store::{Hint, StoreError},
    vitals::Pulse,
};

/// How often the server's clock and the log's origin are looked at.
pub(super) const LOOK: Duration = Duration::from_secs(2);

/// See the module's documentation.
pub(super) struct Clock {
    connection: Connection,
    /// The server's clock minus ours, in ms.
    ahead: AtomicI64,
}

impl Clock {
    /// The clock of the server behind `connection`.
    pub(super) async fn read(connection: Connection) -> Result<Self, StoreError> {
        let clock = Self { connection, ahead: AtomicI64::new(0) };
        // The first answer waits for the connection, too, and so proves little.
        for _ in 0..2 {
            clock.look().await?;
        }
        Ok(clock)
    }

    /// The time on the server's clock, about.
    pub(super) fn now_ms(&self) -> u64 {
        local_ms().saturating_add_signed(self.ahead.load(Ordering::Relaxed))
    }

    /// Keeps it on the server's clock, and notices when the log is not the one that it was.
    pub(super) async fn follow(
        self: Arc<Self>,
        origin: Arc<Origin>,
        hints: broadcast::Sender<Hint>,
        pulse: Pulse,
    ) {
        let mut generation = origin.generation();
        loop {
            tokio::time::sleep(LOOK).await;
            match self.look().await {
                Ok(()) => match self.connection.check_origin().await {
                    Ok(()) => pulse.beat(),
                    Err(error) => tracing::debug!(%error, "cannot look at the log's origin"),
                },
                Err(error) => tracing::debug!(%error, "cannot read the server's clock"),
            }
            if generation != origin.generation() {
                generation = origin.generation();
                // Whoever holds something in memory looks whether it is still there.
                let _ = hints.send(Hint::Lost);
            }
        }
    }

    async fn look(&self) -> Result<(), StoreError> {
        let asked = local_ms();
        let (seconds, micros): (u64, u64) = parse(self.connection.command(&cmd("TIME")).await?)?;
        let ahead = believe(
            self.ahead.load(Ordering::Relaxed),
            asked,
            seconds.saturating_mul(1000).saturating_add(micros / 1000),
            local_ms(),
        );
        self.ahead.store(ahead, Ordering::Relaxed);
        Ok(())
    }
}

/// What is believed of the distance once `server` was the time at some moment from `asked` to `answered`, times in ms.
fn believe(ahead: i64, asked: u64, server: u64, answered: u64) -> i64 {
    let minus = |local: u64| server.cast_signed().saturating_sub(local.cast_signed());
    ahead.clamp(minus(answered.max(asked)), minus(asked))
}

/// A time of this process: nobody can set it, unlike this machine's clock.
fn local_ms() -> u64 {
    static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
    millis(BEGAN.elapsed())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::believe;

    const SERVER: u64 = 1_800_000_000_000;

    proptest! {
        /// Whatever came before, and wherever in its wait the answer was given: it is off by that wait at most.
        #[test]
        fn what_is_believed_is_off_by_no_more_than_an_answer_took(
            believed in any::<i64>(), ahead in 0..SERVER, asked in 0u64..1_000_000, before in 0u64..9000, after in 0u64..9000,
        ) {
            let now = believe(believed, asked, asked + before + ahead, asked + before + after);
            prop_assert!(now.abs_diff(ahead.cast_signed()) <= before + after);
        }

        /// An answer that a stalled server gave late never spoils what was right.
        #[test]
        fn j27_an_answer_that_took_long_moves_nothing_that_was_right(
            ahead in 0..SERVER, asked in 0u64..1_000_000, before in 0u64..9000, after in 0u64..9000,
        ) {
            let now = believe(ahead.cast_signed(), asked, asked + before + ahead, asked + before + after);
            prop_assert_eq!(now, ahead.cast_signed());
        }
    }
}
