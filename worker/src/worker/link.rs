//! One connection to an engine: dialled, greeted and welcomed. No state beyond the stream itself.

use std::time::Duration;

use tidegate_proto::{
    limits,
    v1::{self, work_request, work_response, worker_service_client::WorkerServiceClient},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Endpoint};

/// How long dialling, greeting and the welcome may take together.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many messages may wait between the owner and the HTTP/2 stream. Small: what has not left can still be superseded.
const OUTBOUND: usize = 16;

/// A stream on which the engine has welcomed the worker.
#[derive(Debug)]
pub(super) struct Link {
    /// To the engine.
    pub(super) out: mpsc::Sender<v1::WorkRequest>,
    /// From the engine.
    pub(super) inbound: Streaming<v1::WorkResponse>,
}

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("cannot connect by gRPC: {}", source_chain(.0))]
    Dial(#[from] tonic::transport::Error),
    #[error("the engine refused the stream, or what answers there speaks no gRPC: {0}")]
    Refused(#[from] Box<Status>),
    #[error("the engine's first message was no welcome")]
    NoWelcome,
    #[error("no welcome within {PATIENCE:?}")]
    TimedOut,
}

/// The settings of a connection to `uri`; none if that is no address.
pub(super) fn endpoint(uri: &str) -> Option<Endpoint> {
    let endpoint = Endpoint::from_shared(uri.to_owned()).ok()?;
    endpoint.uri().host()?;
    // Without a scheme the dialler would fail for ever.
    matches!(endpoint.uri().scheme_str(), Some("http" | "https")).then(|| {
        endpoint
            .connect_timeout(PATIENCE)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(10))
            .keep_alive_while_idle(true)
    })
}

/// Connects, says `hello` and waits for the welcome.
pub(super) async fn open(endpoint: Endpoint, hello: v1::Hello) -> Result<(Link, v1::Welcome), LinkError> {
    tokio::time::timeout(PATIENCE, greet(endpoint, hello)).await.unwrap_or(Err(LinkError::TimedOut))
}

async fn greet(endpoint: Endpoint, hello: v1::Hello) -> Result<(Link, v1::Welcome), LinkError> {
    let mut client = WorkerServiceClient::new(endpoint.connect().await?)
        .max_decoding_message_size(limits::MAX_MESSAGE_BYTES)
        .max_encoding_message_size(limits::MAX_MESSAGE_BYTES);
    let (out, outbound) = mpsc::channel(OUTBOUND);
    // The channel is new and not full: the hello goes first, before the engine answers the call at all.
    let _ = out.try_send(request(work_request::Message::Hello(hello)));
    let response = client.work(ReceiverStream::new(outbound)).await.map_err(Box::new)?;
    let mut inbound = response.into_inner();
    let first = inbound.message().await.map_err(Box::new)?;
    match first.and_then(|response| response.message) {
        Some(work_response::Message::Welcome(welcome)) => Ok((Link { out, inbound }, welcome)),
        _ => Err(LinkError::NoWelcome),
    }
}

/// Wraps a message to the engine.
pub(super) fn request(message: work_request::Message) -> v1::WorkRequest {
    v1::WorkRequest { message: Some(message) }
}

/// tonic's own text is "transport error"; what helps is further down.
fn source_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
