//! One stream to an engine: dialled, greeted and welcomed. No state beyond the stream itself.

use std::{net::SocketAddr, time::Duration};

use tidegate_proto::{
    limits,
    pool::{Pick, Pool, diagnose},
    v1::{self, work_request, work_response, worker_service_client::WorkerServiceClient},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

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
    /// The engine.
    pub(super) pick: Pick,
}

/// What became of a try to connect.
pub(super) struct Dialled {
    /// Where the engine is; nothing if none is known.
    pub(super) engine: Option<SocketAddr>,
    pub(super) outcome: Result<(Link, v1::Welcome), LinkError>,
}

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("no stream by gRPC: {}", diagnose(.0))]
    Refused(#[from] Box<Status>),
    #[error("the engine's first message was no welcome")]
    NoWelcome,
    #[error("no welcome within {PATIENCE:?}")]
    TimedOut,
    #[error("the engine fell silent, and another one serves")]
    Lost,
}

/// Picks an engine, if possible another one than at `avoid`, says `hello` and waits for the welcome.
pub(super) async fn open(pool: Pool, avoid: Option<SocketAddr>, hello: v1::Hello) -> Dialled {
    match pool.stream(avoid).await {
        Ok(pick) => open_on(pick, hello).await,
        Err(status) => Dialled { engine: None, outcome: Err(Box::new(status).into()) },
    }
}

/// Says `hello` to one engine and waits for the welcome.
pub(super) async fn open_on(pick: Pick, hello: v1::Hello) -> Dialled {
    let engine = Some(pick.addr());
    let greeted = tokio::select! {
        greeted = tokio::time::timeout(PATIENCE, greet(&pick, hello)) => greeted.unwrap_or(Err(LinkError::TimedOut)),
        () = pick.lost() => Err(LinkError::Lost),
    };
    let outcome = match greeted {
        Ok((out, inbound, welcome)) => Ok((Link { out, inbound, pick }, welcome)),
        Err(error) => {
            pick.failed();
            Err(error)
        }
    };
    Dialled { engine, outcome }
}

type Greeted = (mpsc::Sender<v1::WorkRequest>, Streaming<v1::WorkResponse>, v1::Welcome);

async fn greet(pick: &Pick, hello: v1::Hello) -> Result<Greeted, LinkError> {
    let mut client = WorkerServiceClient::new(pick.channel())
        .max_decoding_message_size(limits::MAX_MESSAGE_BYTES)
        .max_encoding_message_size(limits::MAX_MESSAGE_BYTES);
    let (out, outbound) = mpsc::channel(OUTBOUND);
    // The channel is new and not full: the hello goes first, before the engine answers the call at all.
    let _ = out.try_send(request(work_request::Message::Hello(hello)));
    let response = client.work(ReceiverStream::new(outbound)).await.map_err(Box::new)?;
    let mut inbound = response.into_inner();
    let first = inbound.message().await.map_err(Box::new)?;
    match first.and_then(|response| response.message) {
        Some(work_response::Message::Welcome(welcome)) => Ok((out, inbound, welcome)),
        _ => Err(LinkError::NoWelcome),
    }
}

/// Wraps a message to the engine.
pub(super) fn request(message: work_request::Message) -> v1::WorkRequest {
    v1::WorkRequest { message: Some(message) }
}
