//! The gateway's one irreversible step: from serving to draining.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

/// Whether the gateway is draining; a cheap handle.
#[derive(Clone, Debug, Default)]
pub(crate) struct Drain(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Looked at with every frame, so no lock.
    begun: AtomicBool,
    token: CancellationToken,
}

impl Drain {
    /// Begins: from here on nobody is let in.
    pub(crate) fn begin(&self) {
        self.0.begun.store(true, Ordering::SeqCst);
        self.0.token.cancel();
    }

    /// Whether it has begun.
    pub(crate) fn begun(&self) -> bool {
        self.0.begun.load(Ordering::SeqCst)
    }

    /// Waits for it.
    pub(crate) fn wait(&self) -> WaitForCancellationFuture<'_> {
        self.0.token.cancelled()
    }
}
