//! What a job may not exceed.

use std::time::Duration;

use tidegate_proto::limits;

use crate::job::log_ring::LogBudget;

/// What the machine may not exceed; the same for every job of an engine.
#[derive(Clone, Debug)]
pub struct Rules {
    /// How large a job's log may grow.
    pub log: LogBudget,
    /// The largest checkpoint, in bytes.
    pub max_checkpoint: usize,
    /// The largest custom event, in bytes of JSON.
    pub max_custom: usize,
    /// The largest result, in bytes of JSON.
    pub max_result: usize,
    /// How long a worker may go without a sign of life.
    pub lease: Duration,
    /// How long a worker has to obey a cancellation.
    pub cancel_grace: Duration,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            log: LogBudget { events: 50_000, bytes: 16 << 20 },
            max_checkpoint: limits::MAX_CHECKPOINT_BYTES,
            max_custom: limits::MAX_CUSTOM_BYTES,
            max_result: limits::MAX_RESULT_BYTES,
            lease: Duration::from_secs(15),
            cancel_grace: Duration::from_secs(10),
        }
    }
}
