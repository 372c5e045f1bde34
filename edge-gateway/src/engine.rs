//! The way to the engine: one lazily connected channel, and a deadline on every call that is not a stream.
//!
//! The gateway knows the engine by this client only. A call that fails is not repeated here: whoever calls knows
//! whether that would be safe.

use std::time::Duration;

use tidegate_proto::{limits::MAX_MESSAGE_BYTES, v1::job_service_client::JobServiceClient};
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint},
};

/// How long a call may take.
const CALL: Duration = Duration::from_secs(10);
/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(3);
/// HTTP/2 PINGs while calls are open, so that a dead engine is noticed by streams that merely wait.
const PING: Duration = Duration::from_secs(20);

/// The client of the generated service.
pub(crate) type Client = JobServiceClient<Channel>;

/// A cheap handle on the engine.
#[derive(Clone, Debug)]
pub(crate) struct Engine {
    client: Client,
}

impl Engine {
    /// A handle that connects when it is first used, and again whenever it has to.
    pub(crate) fn new(endpoint: Endpoint) -> Self {
        let channel = endpoint
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING)
            .keep_alive_timeout(Duration::from_secs(10))
            .connect_lazy();
        Self { client: JobServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES) }
    }

    /// The bare client, for streams.
    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    /// Makes one call within its deadline, which the engine is told, too.
    pub(crate) async fn call<Q, A, F>(
        &self,
        request: Q,
        call: impl FnOnce(Client, Request<Q>) -> F,
    ) -> Result<A, Status>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let mut request = Request::new(request);
        request.set_timeout(CALL);
        match tokio::time::timeout(CALL, call(self.client(), request)).await {
            Ok(answer) => answer.map(Response::into_inner),
            Err(_) => Err(Status::deadline_exceeded("the engine did not answer in time")),
        }
    }
}
