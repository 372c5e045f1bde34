//! What a failed call means: said in words for whoever looks for the mistake, and judged for whoever may repeat it.

use std::{error::Error, io, net::SocketAddr};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::{ConnectError, Status};

/// How tonic says that an HTTP answer was none of gRPC: without a body, and with one that it took for a message.
const NO_GRPC: [&str; 2] = ["grpc-status header missing", "invalid compression flag"];
/// What to look for when a peer does not speak gRPC.
const FOREIGN: &str = "; whoever listens there does not speak gRPC: is it an HTTP port, such as a gateway's?";

/// The whole story of a failed call, from the status down to its cause, with a hint when the peer does not speak gRPC.
pub fn diagnose(status: &Status) -> String {
    let mut text = status.message().to_owned();
    for cause in causes(status) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text = if text.is_empty() { cause } else { format!("{text}: {cause}") };
        }
    }
    if text.is_empty() {
        text = format!("{:?}", status.code());
    }
    if is_foreign(status) {
        text.push_str(FOREIGN);
    }
    text
}

/// Whether the request of a failed call surely never left: nobody was there to connect to. It may be made again.
pub fn is_unsent(status: &Status) -> bool {
    causes(status).any(|cause| cause.is::<ConnectError>())
}

/// Whether an HTTP/2 server answered that is none of gRPC.
pub(super) fn is_foreign(status: &Status) -> bool {
    NO_GRPC.iter().any(|sign| status.message().contains(sign))
}

/// Like [`diagnose`], with a look at a peer that broke the connection: an HTTP/1 server does so, often before anything
/// it says has been read.
pub(super) async fn diagnose_peer(status: &Status, addr: SocketAddr) -> String {
    let mut text = diagnose(status);
    if !is_unsent(status) && speaks_http1(addr).await.unwrap_or(false) {
        text.push_str(FOREIGN);
    }
    text
}

/// The HTTP/2 preface is made so that a server of HTTP/1 refuses it in words (RFC 9113, section 3.4).
async fn speaks_http1(addr: SocketAddr) -> io::Result<bool> {
    const HTTP1: &[u8; 5] = b"HTTP/";
    let mut socket = TcpStream::connect(addr).await?;
    socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
    let mut answer = [0; HTTP1.len()];
    socket.read_exact(&mut answer).await?;
    Ok(&answer == HTTP1)
}

fn causes(status: &Status) -> impl Iterator<Item = &(dyn Error + 'static)> {
    let mut next = status.source();
    std::iter::from_fn(move || {
        let cause = next?;
        next = cause.source();
        Some(cause)
    })
}
