//! The accept loop and the settings of a connection.
//!
//! Its own loop because the limits matter: a cap on connections that is taken before `accept`, a deadline on request
//! heads, small write buffers (a viewer's memory is mostly these), and TCP settings that free a dead reader's
//! connection although hyper has no write timeout.

mod groups;
mod handover;

use std::{
    future::poll_fn,
    io,
    net::{IpAddr, SocketAddr},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::Router;
use http::{Request, Version};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tower::ServiceBuilder;

use crate::{
    client::Peer,
    config::Edge,
    drain::Drain,
    limits::{ConnectionPermit, Limiter},
    tls::Tls,
};
use groups::{Connection, Groups};
pub(crate) use handover::Offer;
use handover::carry;

/// Connections that the kernel keeps for us while we are busy; a wave of reconnects must not see refusals.
const BACKLOG: i32 = 4096;
/// How long sent bytes may stay unacknowledged before the kernel gives the connection up.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);
/// Bytes that the kernel takes for a viewer beyond what is on its way; bounds what a stalled one costs.
const NOT_SENT: u32 = 64 * 1024;
/// hyper's read and write buffers on HTTP/1, at most; also the longest request head.
const HTTP1_BUFFER: usize = 16 * 1024;
/// hyper's send buffer a stream on HTTP/2.
const HTTP2_BUFFER: usize = 64 * 1024;
/// The longest request head on HTTP/2, in bytes.
const HTTP2_HEAD: u32 = 16 * 1024;
/// Streams on one HTTP/2 connection: the tabs of a browser, and some.
const HTTP2_STREAMS: u32 = 256;
/// Streams that a client may open and reset before we have looked at them (rapid reset, CVE-2023-44487).
const RESETS: usize = 20;
/// Streams that we may reset for a client's errors before the connection is closed for them.
const ERRORS: usize = 128;
/// The beginning of every HTTP/2 connection.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Between two keepalive probes of an idle connection.
const PROBES: Duration = Duration::from_secs(10);

/// What clients may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Connections at once.
    pub(crate) connections: usize,
    /// How long a client may take to send a request head, or stay idle between two.
    pub(crate) head: Duration,
}

/// Who looks at a connection before it is served.
#[derive(Clone, Debug, Default)]
pub(crate) struct Door {
    /// Counts connections by address, except those of trusted proxies, which speak for many.
    pub(crate) counted: Option<(Limiter, Arc<Edge>)>,
    /// Encrypts; plain HTTP without.
    pub(crate) tls: Option<Tls>,
}

impl Door {
    /// A place for a connection of `ip`; none if it has as many as it may.
    fn admit(&self, ip: IpAddr) -> Option<Option<ConnectionPermit>> {
        match &self.counted {
            Some((limiter, edge)) if !edge.proxies.trusts(ip) => limiter.connect(ip).map(Some),
            _ => Some(None),
        }
    }
}

/// Binds a listener.
pub(crate) fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Serves connections until the drain begins, and answers those that are still open then.
pub(crate) async fn accept(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    door: Door,
    drain: Drain,
) -> JoinSet<()> {
    let permits = Arc::new(Semaphore::new(limits.connections.min(Semaphore::MAX_PERMITS)));
    let mut connections = Groups::new();
    let mut pause = Duration::ZERO;
    loop {
        let next = async {
            let permit = Arc::clone(&permits).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            next = next => next,
            () = drain.wait() => return connections.close(),
        };
        match accepted {
            Ok((stream, addr)) => {
                pause = Duration::ZERO;
                // One address too many is closed without a word: an answer would cost what the cap saves.
                let Some(counted) = door.admit(addr.ip()) else { continue };
                let (router, tls, drain) = (router.clone(), door.tls.clone(), drain.clone());
                let place = (permit, counted);
                connections.drive(Connection::new(async move {
                    serve(stream, addr, tls, router, limits.head, &drain, place).await
                }));
            }
            // That connection failed, not the listener.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
                ) => {}
            Err(error) => {
                // Out of files, most likely: trying again at once would only burn CPU.
                pause = (pause * 2).clamp(Duration::from_millis(10), Duration::from_secs(1));
                tracing::warn!(%error, ?pause, "cannot accept connections");
                sleep(pause).await;
            }
        }
    }
}

/// Serves one connection to its end, or to where it carries a stream; `place` is kept until it closes.
async fn serve(
    stream: TcpStream,
    addr: SocketAddr,
    tls: Option<Tls>,
    router: Router,
    head: Duration,
    drain: &Drain,
    place: impl Send + 'static,
) -> Option<Connection> {
    if let Err(error) = tune(&stream) {
        tracing::debug!(%error, "a connection could not be tuned");
    }
    let peer = Peer { addr, tls: tls.is_some() };
    match tls {
        None => {
            let Some(Ok(http2)) = opened(is_http2(&stream), head, drain).await else { return None };
            talk(stream, http2, peer, router, head, drain, place).await
        }
        // Apart, on the heap: a plain connection must not be as large as an encrypted one.
        Some(tls) => {
            let encrypted = async {
                match opened(tls.accept(stream), head, drain).await? {
                    Ok((stream, http2)) => talk(stream, http2, peer, router, head, drain, place).await,
                    Err(error) => {
                        tracing::debug!(%error, "a TLS handshake failed");
                        None
                    }
                }
            };
            Box::pin(encrypted).await
        }
    }
}

/// What comes before HTTP; nothing if the client takes too long, or has not got this far when the drain begins: browsers
/// open connections on which they may never say a word, and no drain waits for those.
async fn opened<T>(begin: impl Future<Output = T>, head: Duration, drain: &Drain) -> Option<T> {
    tokio::select! {
        biased;
        begun = timeout(head, begin) => begun.ok(),
        () = drain.wait() => None,
    }
}

/// Speaks HTTP over a stream that carries nothing else; answers how it goes on if an answer takes it over.
async fn talk(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    http2: bool,
    peer: Peer,
    router: Router,
    head: Duration,
    drain: &Drain,
    place: impl Send + 'static,
) -> Option<Connection> {
    let offer = Offer::default();
    let offered = offer.clone();
    let service = ServiceBuilder::new().map_request(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        if request.version() == Version::HTTP_11 {
            request.extensions_mut().insert(offered.clone());
        }
        request
    });
    let service = TowerToHyperService::new(service.service(router));
    let ended = if http2 {
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(UNACKNOWLEDGED)
            .max_concurrent_streams(HTTP2_STREAMS)
            .max_send_buf_size(HTTP2_BUFFER)
            .max_header_list_size(HTTP2_HEAD)
            .max_pending_accept_reset_streams(RESETS)
            .max_local_error_reset_streams(ERRORS)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = Box::pin(connection);
        drained(drain, connection.as_mut(), |c, cx| c.poll(cx), |c| c.graceful_shutdown()).await
    } else {
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(head)
            .max_buf_size(HTTP1_BUFFER)
            // One copy of a small frame costs less than a vectored write of its chunk's three parts.
            .writev(false)
            .serve_connection(TokioIo::new(offer.watch(stream)), service);
        // On the heap, which it leaves when a stream takes the socket.
        let mut connection = Box::new(connection);
        let poll = |c: Pin<&mut _>, cx: &mut Context<'_>| match http1::Connection::poll(c, cx) {
            Poll::Ready(ended) => Poll::Ready(ended.map(|()| None)),
            Poll::Pending => offer.taken().map_or(Poll::Pending, |stream| Poll::Ready(Ok(Some(stream)))),
        };
        match drained(drain, Pin::new(&mut *connection), poll, |c| c.graceful_shutdown()).await {
            Ok(Some(stream)) => {
                let carried = carry(connection.into_parts().io.into_inner().into_inner(), stream);
                return Some(Connection::new(async move {
                    if let Err(error) = carried.await {
                        tracing::debug!(%error, "a stream was cut");
                    }
                    drop(place);
                    None
                }));
            }
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early"); // clients leave; that is no fault of ours
    }
    drop(place);
    None
}

/// Drives a connection; once the drain begins, it finishes what is open and closes.
///
/// The wait for the drain is polled once and then only after the drain has begun: its lock is shared by all
/// connections, and this runs with every frame.
async fn drained<C, T>(
    drain: &Drain,
    mut connection: Pin<&mut C>,
    mut poll: impl FnMut(Pin<&mut C>, &mut Context<'_>) -> Poll<T>,
    mut shut: impl FnMut(Pin<&mut C>),
) -> T {
    let mut begun = pin!(drain.wait());
    let (mut registered, mut told) = (false, false);
    poll_fn(move |cx| {
        if !told && (!registered || drain.begun()) {
            registered = true;
            if begun.as_mut().poll(cx).is_ready() {
                told = true;
                // A request that is here already is answered.
                if let ended @ Poll::Ready(_) = poll(connection.as_mut(), cx) {
                    return ended;
                }
                shut(connection.as_mut());
            }
        }
        poll(connection.as_mut(), cx)
    })
    .await
}

fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(UNACKNOWLEDGED).with_interval(PROBES))?;
    #[cfg(target_os = "linux")]
    {
        socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
        socket.set_tcp_notsent_lowat(NOT_SENT)?;
    }
    Ok(())
}

/// Looks at the first bytes without taking them.
async fn is_http2(stream: &TcpStream) -> io::Result<bool> {
    let mut seen = [0; PREFACE.len()];
    let began = Instant::now();
    loop {
        let len = stream.peek(&mut seen).await?;
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if seen[..len] != PREFACE[..len] {
            return Ok(false);
        }
        if len == PREFACE.len() {
            return Ok(true);
        }
        // Part of the preface: the rest follows, but a peek would answer at once with the same bytes.
        sleep(Duration::from_millis(5).max(began.elapsed() / 4)).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn e41_a_request_that_is_here_when_the_drain_begins_is_answered() {
        let (mut client, server) = tokio::io::duplex(4096);
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let drain = Drain::default();
        drain.begin();
        let peer = Peer { addr: ([127, 0, 0, 1], 1).into(), tls: false };
        let router = Router::new().fallback(async || "answer");
        assert!(talk(server, false, peer, router, Duration::from_secs(30), &drain, ()).await.is_none());
        let mut seen = String::new();
        client.read_to_string(&mut seen).await.unwrap();
        assert!(seen.starts_with("HTTP/1.1 200") && seen.ends_with("answer"), "{seen}");
    }

    #[tokio::test]
    async fn e37_the_kernel_reaps_a_reader_that_is_gone_without_a_word() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        tune(&stream).unwrap();
        let socket = SockRef::from(&stream);
        // What was sent must be acknowledged; where nothing is sent, probes must be.
        assert!(socket.keepalive().unwrap());
        #[cfg(target_os = "linux")]
        {
            assert_eq!(socket.tcp_user_timeout().unwrap(), Some(UNACKNOWLEDGED));
            assert_eq!(socket.tcp_keepalive_time().unwrap(), UNACKNOWLEDGED);
            assert_eq!(socket.tcp_keepalive_interval().unwrap(), PROBES);
        }
    }
}
