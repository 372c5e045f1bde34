//! Whether a caller may see a job, asked of the engine before anything is opened for it.
//!
//! A stranger must cost no more than a look, and must not learn from the answer or its time whether the job exists: it is
//! told so by the engine, in the same words and after the same way, whether there is no such job, no hub of it, or a hub
//! full of viewers. Callers that ask the same at the same time share the question, so that a storm costs one.

use std::{collections::HashMap, time::Duration};

use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared, WeakShared},
};
use parking_lot::Mutex;
use tidegate_proto::v1::{Caller, GetJobRequest};
use tokio::time::{Instant, sleep};

use crate::{engine::Engine, problem::Problem};

/// Questions that may have been given up before they are looked through.
const MANY: usize = 64;
/// Between the first two tries to reach the engine, before jitter; then longer and longer, because many may wait for it.
const PAUSE: Duration = Duration::from_millis(50);
/// Between the last ones.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

type Answer = BoxFuture<'static, Result<(), Problem>>;

/// The questions under way.
#[derive(Default)]
pub(super) struct Admission(Mutex<HashMap<Key, WeakShared<Answer>>>);

/// Job, tenant, subject, and whether the whole tenant is the caller's.
type Key = (String, String, String, bool);

impl std::fmt::Debug for Admission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Admission")
    }
}

impl Admission {
    /// Asks; while the engine is away it is asked again, for `within` at most.
    pub(super) async fn ask(
        &self,
        engine: &Engine,
        caller: Option<Caller>,
        job_id: &str,
        within: Duration,
    ) -> Result<(), Problem> {
        let of = caller.clone().unwrap_or_default();
        let key = (job_id.to_owned(), of.tenant, of.subject, of.whole_tenant);
        let answer = {
            let mut asked = self.0.lock();
            match asked.get(&key).and_then(WeakShared::upgrade) {
                Some(shared) => shared,
                None => {
                    let request = GetJobRequest { caller, job_id: job_id.to_owned() };
                    let shared: Shared<Answer> = ask(engine.clone(), request, within).boxed().shared();
                    if asked.len() >= MANY {
                        asked.retain(|_, answer| answer.upgrade().is_some());
                    }
                    asked.extend(shared.downgrade().map(|weak| (key, weak)));
                    shared
                }
            }
        };
        answer.await
    }
}

async fn ask(engine: Engine, request: GetJobRequest, within: Duration) -> Result<(), Problem> {
    let deadline = Instant::now() + within;
    let mut pause = PAUSE;
    loop {
        let answer =
            engine.call(request.clone(), |mut client, r| async move { client.get_job(r).await }).await;
        let Err(status) = answer else { return Ok(()) };
        let problem = Problem::from(status);
        if problem.goodbye().is_none() || Instant::now() >= deadline {
            return Err(problem);
        }
        sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
