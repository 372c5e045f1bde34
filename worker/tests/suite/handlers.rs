//! Handlers that do what a test says.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use futures_util::{FutureExt as _, future::BoxFuture};
use serde_json::json;
use tidegate_worker::{JobContext, JobError, JobHandler, JobResult, Offer};

/// A handler made of a closure.
struct Closure<F>(&'static str, F);

impl<F: Fn(JobContext) -> BoxFuture<'static, JobResult> + Send + Sync + 'static> JobHandler for Closure<F> {
    fn offer(&self) -> Offer {
        Offer { kind: self.0.into(), description: String::new(), input_schema: json!({}), example: json!({}) }
    }

    fn run(&self, job: JobContext) -> BoxFuture<'_, JobResult> {
        (self.1)(job)
    }
}

pub(crate) fn closure<F, R>(kind: &'static str, run: F) -> Arc<dyn JobHandler>
where
    F: Fn(JobContext) -> R + Send + Sync + 'static,
    R: Future<Output = JobResult> + Send + 'static,
{
    Arc::new(Closure(kind, move |job| run(job).boxed()))
}

/// A job that waits until it is told to stop, and says so.
pub(crate) fn obedient() -> Arc<dyn JobHandler> {
    closure("obedient", |job| async move {
        job.info("begun").await;
        job.cancelled().await;
        Err(JobError::Cancelled)
    })
}

pub(crate) fn quick() -> Arc<dyn JobHandler> {
    closure("quick", |_| async { Ok(json!("done")) })
}

/// Sets its flag when it is dropped.
struct Dropped(Arc<AtomicBool>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// A job that listens to nobody.
pub(crate) fn deaf(dropped: &Arc<AtomicBool>) -> Arc<dyn JobHandler> {
    let dropped = dropped.clone();
    closure("deaf", move |job| {
        let guard = Dropped(dropped.clone());
        async move {
            let _guard = guard;
            job.info("begun").await;
            std::future::pending().await
        }
    })
}
