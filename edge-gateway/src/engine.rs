//! The way to the engines: a deadline on every call that is not a stream, and another engine when one is away.
//!
//! The gateway knows engines by this client only. A call is repeated elsewhere when its engine broke, and only if it
//! may be made twice ([`Engine::call`]) or surely was not made ([`Engine::call_once`]). What an engine answers is never asked twice.

use std::{error::Error as _, net::SocketAddr, time::Duration};

use tidegate_proto::{
    bearer::Bearer,
    limits::MAX_MESSAGE_BYTES,
    pool::{Pick, Pool, Targets, Way, is_unsent},
    v1::{job_service_client::JobServiceClient, schedule_service_client::ScheduleServiceClient},
};
use tidegate_telemetry::trace;
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt as _;

/// How long a call may take, all tries together.
const CALL: Duration = Duration::from_secs(10);
/// On how many engines a call is tried.
const TRIES: usize = 3;

/// The client of the generated service.
pub(crate) type Client = JobServiceClient<Way>;
/// The client of the service that keeps schedules.
pub(crate) type Schedules = ScheduleServiceClient<Way>;

/// A cheap handle on the engines.
#[derive(Clone, Debug)]
pub(crate) struct Engine {
    pool: Pool,
}

impl Engine {
    /// A handle that presents `bearer`, connects when it is first used, and again whenever it has to.
    pub(crate) fn new(targets: Targets, bearer: Bearer) -> Self {
        Self { pool: Pool::new(targets, bearer) }
    }

    /// An engine for a stream, if possible another one than at `avoid`.
    pub(crate) async fn stream(&self, avoid: Option<SocketAddr>) -> Result<(Client, Pick), Status> {
        let pick = self.pool.stream(avoid).await?;
        Ok((client(&pick), pick))
    }

    /// How many engines are known, and how many of them serve.
    pub(crate) fn size(&self) -> (usize, usize) {
        self.pool.size()
    }

    /// Makes one call within its deadline, which the engine is told, too. It may be made twice.
    pub(crate) async fn call<Q: Clone, A, F>(
        &self,
        request: Q,
        call: impl Fn(Client, Request<Q>) -> F,
    ) -> Result<A, Status>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        self.try_calls(request, client, call, true).await
    }

    /// Like [`Engine::call`], but the engine never sees it twice.
    pub(crate) async fn call_once<Q: Clone, A, F>(
        &self,
        request: Q,
        call: impl Fn(Client, Request<Q>) -> F,
    ) -> Result<A, Status>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        self.try_calls(request, client, call, false).await
    }

    /// A call of the service that keeps schedules; `repeatable` says whether it may be made twice.
    pub(crate) async fn ask<Q: Clone, A, F>(
        &self,
        request: Q,
        call: impl Fn(Schedules, Request<Q>) -> F,
        repeatable: bool,
    ) -> Result<A, Status>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let schedules =
            |pick: &Pick| Schedules::new(pick.channel()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        self.try_calls(request, schedules, call, repeatable).await
    }

    async fn try_calls<C, Q: Clone, A, F>(
        &self,
        message: Q,
        connect: impl Fn(&Pick) -> C,
        call: impl Fn(C, Request<Q>) -> F,
        repeatable: bool,
    ) -> Result<A, Status>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let deadline = Instant::now() + CALL;
        let (mut avoid, mut tries) = (None, TRIES);
        loop {
            tries -= 1;
            let pick = self.pool.call(avoid).await?;
            let mut request = Request::new(message.clone());
            trace::carry(request.metadata_mut());
            request.set_timeout(deadline.saturating_duration_since(Instant::now()));
            let answer = tokio::select! {
                answer = timeout_at(deadline, call(connect(&pick), request)) => answer,
                () = pick.lost(), if repeatable && tries > 0 => Ok(Err(Status::unavailable("the engine fell silent"))),
            };
            let Ok(answer) = answer else {
                return Err(Status::deadline_exceeded("the engine did not answer in time"));
            };
            let Err(status) = answer else { return answer.map(Response::into_inner) };
            if !broke(&status) {
                return Err(status);
            }
            pick.failed();
            if tries == 0 || !(repeatable || is_unsent(&status)) {
                return Err(status);
            }
            avoid = Some(pick.addr());
        }
    }
}

/// Whether the way to the engine broke, or the engine drains: another one may do better. What an engine says of its log
/// is no such thing, because they share it.
pub(crate) fn broke(status: &Status) -> bool {
    let says = status.get_details_error_info().is_some_and(|info| info.reason != "DRAINING");
    !says && (status.source().is_some() || status.code() == Code::Unavailable)
}

fn client(pick: &Pick) -> Client {
    JobServiceClient::new(pick.channel()).max_decoding_message_size(MAX_MESSAGE_BYTES)
}
