//! From the head of a stream's response on, its socket is the stream's own.
//!
//! hyper is made for requests that come and go: with each frame it looks for the next request, asks the body two or three
//! times and copies, and it keeps buffers for all that. A stream that lasts hours and has thousands of neighbours needs
//! none of it. So every connection of HTTP/1.1 offers its socket with each request; a handler that answers with a stream
//! takes the [`Offer`], hyper sends the head and the first frame, and from there on [`carry`] writes the chunks.
//!
//! Invariants: the socket changes hands only when hyper has sent all that it was given, so nothing is lost or doubled
//! at the seam; a frame is asked for only when the socket has taken the one before. The connection ends with its stream,
//! and the head says so. HTTP/2 keeps to hyper: there a connection is many streams.

use std::{
    cell::RefCell,
    convert::Infallible,
    fmt,
    future::poll_fn,
    io::{self, Write as _},
    mem::MaybeUninit,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use axum::body::Body;
use bytes::{Buf as _, Bytes};
use http::{HeaderValue, header};
use http_body::Frame;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What follows a head, frame by frame.
pub(super) type Stream = Pin<Box<dyn http_body::Body<Data = Bytes, Error = Infallible> + Send>>;

/// Frames that a connection sends before its neighbours have their turn.
const TURN: usize = 16;
/// Bytes that a client may send behind its request, which nobody will read.
const IGNORED: usize = 16 * 1024;
/// How much of them is taken at once.
const GULP: usize = 256;

/// A connection's socket, for who answers with a stream; comes with each request of HTTP/1.1.
#[derive(Clone, Default)]
pub(crate) struct Offer(Arc<Desk>);

/// Where a stream waits for its socket.
#[derive(Default)]
struct Desk {
    stream: Mutex<Option<Stream>>,
    /// Whether hyper has sent everything since the stream was left here.
    sent: AtomicBool,
}

impl Offer {
    /// The answer of status 200 whose body is `stream`, which gets the socket once the head is sent.
    pub(crate) fn take<B>(self, stream: B) -> http::Response<Body>
    where
        B: http_body::Body<Data = Bytes, Error = Infallible> + Send + 'static,
    {
        let mut response = http::Response::new(Body::new(Taken {
            desk: self.0,
            stream: Some(Box::pin(stream)),
            first: true,
        }));
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        response
    }

    /// The socket, watched for the end of the head.
    pub(super) fn watch<S>(&self, io: S) -> Watched<S> {
        Watched { io, desk: Arc::clone(&self.0) }
    }

    /// The stream that may have the socket now.
    pub(super) fn taken(&self) -> Option<Stream> {
        if self.0.sent.load(Ordering::Acquire) { self.0.stream.lock().take() } else { None }
    }
}

impl fmt::Debug for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Offer")
    }
}

/// The body that hyper sees: it leaves the stream at the desk after the first frame, and never ends.
struct Taken {
    desk: Arc<Desk>,
    stream: Option<Stream>,
    /// Whether the first frame is to come.
    first: bool,
}

impl http_body::Body for Taken {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if std::mem::take(&mut self.first)
            && let Some(stream) = &mut self.stream
            && let Poll::Ready(first) = stream.as_mut().poll_frame(cx)
        {
            if first.is_none() {
                self.stream = None;
            }
            return Poll::Ready(first); // in one packet with the head
        }
        if let Some(stream) = self.stream.take() {
            // What hyper has is in its buffer by now, and goes with what it flushes next.
            self.desk.sent.store(false, Ordering::Release);
            *self.desk.stream.lock() = Some(stream);
        }
        Poll::Pending
    }
}

/// A socket in hyper's hands; hyper flushes it only when its own buffer is empty.
pub(super) struct Watched<S> {
    io: S,
    desk: Arc<Desk>,
}

impl<S> Watched<S> {
    /// The socket alone.
    pub(super) fn into_inner(self) -> S {
        self.io
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.desk.sent.store(true, Ordering::Release);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Sends `stream` to its end in the chunked coding (RFC 9112 §7.1), or until the client leaves.
///
/// # Errors
/// When the connection breaks, or the client sends more behind its request than a client would.
pub(super) fn carry(
    mut io: impl AsyncRead + AsyncWrite + Unpin,
    stream: Stream,
) -> impl Future<Output = io::Result<()>> {
    let (mut stream, mut unsent, mut ignored) = (Some(stream), Bytes::new(), 0);
    poll_fn(move |cx| {
        match poll_ignore(&mut io, cx)? {
            Poll::Ready(0) => return Poll::Ready(Ok(())),
            Poll::Ready(read) => {
                ignored += read;
                if ignored > IGNORED {
                    return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                }
                cx.waker().wake_by_ref();
            }
            Poll::Pending => {}
        }
        for _ in 0..TURN {
            while !unsent.is_empty() {
                match ready!(Pin::new(&mut io).poll_write(cx, &unsent))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    written => unsent.advance(written),
                }
            }
            unsent = Bytes::new(); // what is sent is not kept while nothing follows
            let Some(frames) = &mut stream else {
                ready!(Pin::new(&mut io).poll_shutdown(cx))?;
                // A socket that is closed with something unread is reset, and the end lost with it.
                while ignored <= IGNORED
                    && let Poll::Ready(read @ 1..) = poll_ignore(&mut io, cx)?
                {
                    ignored += read;
                }
                return Poll::Ready(Ok(()));
            };
            match frames.as_mut().poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    // An empty chunk would be the end.
                    Ok(data) if !data.is_empty() => unsent = chunk(data),
                    _ => {}
                },
                // Its slot is free before the last bytes are taken.
                Poll::Ready(None) => (unsent, stream) = (Bytes::from_static(b"0\r\n\r\n"), None),
                Poll::Pending => {
                    // Encryption may hold bytes back.
                    ready!(Pin::new(&mut io).poll_flush(cx))?;
                    return Poll::Pending;
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
}

thread_local! {
    /// What was coded last, and its chunk: an event goes to one viewer after the other.
    static LAST: RefCell<(Bytes, Bytes)> = const { RefCell::new((Bytes::new(), Bytes::new())) };
}

/// One chunk of the coding, made once for all that are handed the same bytes.
fn chunk(data: Bytes) -> Bytes {
    LAST.with_borrow_mut(|(last, chunk)| {
        // Bytes that are kept cannot be at the place of others.
        if last.as_ptr() != data.as_ptr() || last.len() != data.len() {
            let mut coded = Vec::with_capacity(data.len() + 12);
            // Writing to a Vec cannot fail.
            let _ = write!(coded, "{:x}\r\n", data.len());
            coded.extend_from_slice(&data);
            coded.extend_from_slice(b"\r\n");
            (*last, *chunk) = (data, coded.into());
        }
        chunk.clone()
    })
}

/// Reads what nobody wants, to hear that the client has left: how many bytes there were, and none at the end.
fn poll_ignore(io: &mut (impl AsyncRead + Unpin), cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
    let mut space = [MaybeUninit::uninit(); GULP];
    let mut read = ReadBuf::uninit(&mut space);
    ready!(Pin::new(io).poll_read(cx, &mut read))?;
    Poll::Ready(Ok(read.filled().len()))
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, net::Ipv4Addr, time::Duration};

    use axum::{Extension, Router, routing::get};
    use proptest::prelude::*;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
        sync::oneshot,
        task::JoinHandle,
        time::timeout,
    };

    use super::*;
    use crate::{client::Peer, drain::Drain, serve::talk};

    const DEADLINE: Duration = Duration::from_secs(30);
    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";

    /// Frames, each of which waits once, and what hears that they are dropped.
    struct Frames {
        frames: VecDeque<Bytes>,
        waited: bool,
        ends: bool,
        _gone: oneshot::Sender<()>,
    }

    impl http_body::Body for Frames {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            self.waited = !self.waited;
            if self.waited {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            match self.frames.pop_front() {
                None if !self.ends => Poll::Pending,
                next => Poll::Ready(next.map(|frame| Ok(Frame::data(frame)))),
            }
        }
    }

    /// A connection whose every answer is these frames; the client's side takes `room` bytes before it blocks.
    fn connect(
        frames: &[&str],
        ends: bool,
        room: usize,
    ) -> (DuplexStream, oneshot::Receiver<()>, JoinHandle<()>) {
        let (client, server) = duplex(room);
        let (gone, dropped) = oneshot::channel();
        let frames = frames.iter().map(|frame| Bytes::copy_from_slice(frame.as_bytes())).collect();
        let body = Frames { frames, waited: true, ends, _gone: gone };
        let body = Arc::new(Mutex::new(Some(body)));
        let handler = async move |Extension(offer): Extension<Offer>| offer.take(body.lock().take().unwrap());
        let router = Router::new().route("/", get(handler));
        let served = tokio::spawn(async move {
            let peer = Peer { addr: (Ipv4Addr::LOCALHOST, 1).into(), tls: false };
            let mut next = talk(server, false, peer, router, DEADLINE, &Drain::default(), ()).await;
            while let Some(connection) = next {
                next = connection.0.await;
            }
        });
        (client, dropped, served)
    }

    /// What a client sees to the end, in sips of `sip` bytes: the head, and the frames.
    async fn read_all(mut client: DuplexStream, sip: usize) -> (String, Vec<String>) {
        let (mut seen, mut space) = (Vec::new(), vec![0; sip]);
        loop {
            match timeout(DEADLINE, client.read(&mut space)).await.expect("in time").unwrap() {
                0 => break,
                read => seen.extend_from_slice(&space[..read]),
            }
        }
        let seen = String::from_utf8(seen).unwrap();
        let (head, mut chunks) = seen.split_once("\r\n\r\n").expect("a whole head");
        let mut frames = Vec::new();
        loop {
            let (len, rest) = chunks.split_once("\r\n").expect("the length of a chunk");
            let len = usize::from_str_radix(len, 16).unwrap();
            let (frame, rest) = rest.split_at(len);
            chunks = rest.strip_prefix("\r\n").expect("the end of a chunk");
            if len == 0 {
                assert_eq!(chunks, "", "nothing after the end");
                return (head.into(), frames);
            }
            frames.push(frame.into());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// However little the socket takes at once, also of the head.
        #[test]
        fn e31_nothing_is_lost_or_doubled_where_the_socket_changes_hands(
            frames in proptest::collection::vec("[a-z:\r\n]{0,40}", 0..40), room in 1usize..400, sip in 1usize..200,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let frames: Vec<&str> = frames.iter().map(String::as_str).collect();
                let (mut client, _, served) = connect(&frames, true, room);
                // The request may be larger than what the socket takes.
                let (mut reads, mut writes) = tokio::io::split(client);
                let sent = tokio::spawn(async move { writes.write_all(REQUEST).await.map(|()| writes) });
                let first = reads.read_u8().await.unwrap();
                client = reads.unsplit(sent.await.unwrap().unwrap());
                let (head, seen) = read_all(client, sip).await;
                assert_eq!(first, b'H');
                assert!(head.starts_with("TTP/1.1 200 OK\r\n"), "{head}");
                assert!(head.contains("connection: close") && head.contains("transfer-encoding: chunked"), "{head}");
                let wanted: Vec<&str> = frames.into_iter().filter(|frame| !frame.is_empty()).collect();
                assert_eq!(seen, wanted);
                served.await.unwrap();
            });
        }
    }

    #[tokio::test]
    async fn e37_a_client_that_leaves_is_noticed_while_nothing_is_sent() {
        let (mut client, dropped, served) = connect(&["a"], false, 4096);
        client.write_all(REQUEST).await.unwrap();
        let mut space = [0; 4096];
        while !space.starts_with(b"HTTP") {
            assert!(client.read(&mut space).await.unwrap() > 0);
        }
        drop(client);
        timeout(DEADLINE, dropped).await.expect("the stream is dropped").unwrap_err();
        timeout(DEADLINE, served).await.expect("the connection ends").unwrap();
    }

    #[tokio::test]
    async fn what_follows_the_request_is_ignored_up_to_a_bound() {
        let (mut client, mut dropped, served) = connect(&["a"], false, 64 * 1024);
        client.write_all(REQUEST).await.unwrap();
        client.write_all(&[b'x'; IGNORED / 2]).await.unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"1\r\na\r\n") {
            assert!(client.read_buf(&mut seen).await.unwrap() > 0, "it goes on");
        }
        assert!(dropped.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty));
        // More than is ignored, and than hyper may have taken before.
        let _ = client.write_all(&[b'x'; IGNORED + 32 * 1024]).await;
        timeout(DEADLINE, dropped).await.expect("the stream is dropped").unwrap_err();
        timeout(DEADLINE, served).await.expect("the connection ends").unwrap();
    }
}
