//! A small HTTP/1.1 and SSE client that hides nothing: it knows a clean end from a cut, and reads byte by byte.

use std::{collections::HashMap, net::SocketAddr};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::DEADLINE;

/// A response whose head has arrived.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HashMap<String, String>,
    stream: Box<dyn Io>,
    /// Bytes that are not decoded yet.
    raw: Vec<u8>,
    /// Body bytes that belong to no complete event yet.
    body: Vec<u8>,
    /// How much of `body` is known to hold no end of an event.
    scanned: usize,
    /// Every body byte there was.
    pub(crate) seen: Vec<u8>,
    framing: Framing,
}

/// A connection, encrypted or not.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

enum Framing {
    Length(usize),
    Chunked,
    Ended,
    Cut,
}

/// One frame: an event, or a comment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) id: Option<String>,
    pub(crate) event: String,
    pub(crate) data: String,
    pub(crate) retry: Option<u32>,
    pub(crate) comment: bool,
}

impl Event {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.data).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

pub(crate) async fn request(addr: SocketAddr, method: &str, path: &str, headers: &str, body: &str) -> Answer {
    let stream = TcpStream::connect(addr).await.unwrap();
    request_on(stream, method, path, headers, body).await
}

pub(crate) async fn request_on(
    mut stream: impl Io + 'static,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> Answer {
    let length = if body.is_empty() { String::new() } else { format!("content-length: {}\r\n", body.len()) };
    let head = format!("{method} {path} HTTP/1.1\r\nhost: edge\r\n{headers}{length}\r\n{body}");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut raw = Vec::new();
    let end = loop {
        if let Some(end) = raw.windows(4).position(|w| w == b"\r\n\r\n") {
            break end;
        }
        let read = timeout(DEADLINE, stream.read_buf(&mut raw)).await.expect("a response in time").unwrap();
        assert!(read > 0, "closed before the head: {:?}", String::from_utf8_lossy(&raw));
    };
    let head = String::from_utf8(raw[..end].to_vec()).unwrap();
    raw.drain(..end + 4);
    let mut lines = head.split("\r\n");
    let status: u16 = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let mut headers = HashMap::<String, String>::new();
    for (name, value) in lines.filter_map(|l| l.split_once(": ")) {
        // A field that comes twice is one list.
        let all = headers.entry(name.to_ascii_lowercase()).or_default();
        *all = if all.is_empty() { value.into() } else { format!("{all}, {value}") };
    }
    let framing = if method == "HEAD" || status == 204 || status == 304 {
        Framing::Ended
    } else if headers.get("transfer-encoding").is_some_and(|v| v == "chunked") {
        Framing::Chunked
    } else {
        Framing::Length(headers.get("content-length").expect("a length or chunks").parse().unwrap())
    };
    Answer {
        status,
        headers,
        stream: Box::new(stream),
        raw,
        body: Vec::new(),
        scanned: 0,
        seen: Vec::new(),
        framing,
    }
}

impl Answer {
    /// The next frame; nothing at the end of the body.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        loop {
            let end = self.body[self.scanned..].windows(2).position(|w| w == b"\n\n");
            if let Some(end) = end.map(|end| end + std::mem::take(&mut self.scanned)) {
                let frame: Vec<u8> = self.body.drain(..end + 2).collect();
                return Some(parse(std::str::from_utf8(&frame).expect("UTF-8")));
            }
            self.scanned = self.body.len().saturating_sub(1);
            if !self.more().await {
                assert!(self.body.is_empty(), "a partial event: {:?}", String::from_utf8_lossy(&self.body));
                return None;
            }
        }
    }

    /// The next frame, which must be of this kind.
    pub(crate) async fn expect(&mut self, event: &str) -> Event {
        let next = self.next().await.unwrap_or_else(|| panic!("the stream ended instead of {event}"));
        assert_eq!(next.event, event, "{next:?}");
        next
    }

    /// The next `count` frames with an id.
    pub(crate) async fn take(&mut self, count: usize) -> Vec<Event> {
        let mut events = Vec::new();
        while events.len() < count {
            let event =
                self.next().await.unwrap_or_else(|| panic!("ended after {} of {count}", events.len()));
            events.extend(Some(event).filter(|event| event.id.is_some()));
        }
        events
    }

    /// All frames to the end, which must be clean.
    pub(crate) async fn rest(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        assert!(self.ended_cleanly(), "the stream was cut");
        events
    }

    /// Reads the body to its clean end and compares it with `expected` on the way, keeping none of it.
    pub(crate) async fn expect_bytes(&mut self, expected: &[u8]) {
        let mut at = 0;
        loop {
            let body = std::mem::take(&mut self.body);
            self.seen.clear();
            assert!(expected[at..].starts_with(&body), "another byte within {at}..{}", at + body.len());
            at += body.len();
            if !self.more().await {
                break;
            }
        }
        assert!(at == expected.len() && self.ended_cleanly(), "ended at {at} of {}", expected.len());
    }

    /// The whole body as text.
    pub(crate) async fn text(&mut self) -> String {
        while self.more().await {}
        assert!(self.ended_cleanly(), "the body was cut");
        String::from_utf8(self.seen.clone()).unwrap()
    }

    pub(crate) async fn json(&mut self) -> serde_json::Value {
        let text = self.text().await;
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
    }

    /// Whether the last chunk, or the last byte of the length, has come.
    pub(crate) fn ended_cleanly(&self) -> bool {
        matches!(self.framing, Framing::Ended)
    }

    /// Decodes more of the body; false at its end.
    async fn more(&mut self) -> bool {
        loop {
            match self.framing {
                Framing::Ended | Framing::Cut => return false,
                Framing::Length(0) => self.framing = Framing::Ended,
                Framing::Length(left) if !self.raw.is_empty() => {
                    let take = left.min(self.raw.len());
                    self.accept(take);
                    self.framing = Framing::Length(left - take);
                    return true;
                }
                Framing::Chunked => {
                    if let Some(end) = self.raw.windows(2).position(|w| w == b"\r\n") {
                        let size = std::str::from_utf8(&self.raw[..end]).unwrap();
                        let size = usize::from_str_radix(size, 16).unwrap();
                        if self.raw.len() >= end + 2 + size + 2 {
                            self.raw.drain(..end + 2);
                            self.accept(size);
                            assert_eq!(&self.raw[..2], b"\r\n");
                            self.raw.drain(..2);
                            if size == 0 {
                                self.framing = Framing::Ended;
                            }
                            return size > 0;
                        }
                    }
                    self.fill().await;
                }
                Framing::Length(_) => self.fill().await,
            }
        }
    }

    fn accept(&mut self, bytes: usize) {
        self.seen.extend_from_slice(&self.raw[..bytes]);
        self.body.extend(self.raw.drain(..bytes));
    }

    async fn fill(&mut self) {
        let read = timeout(DEADLINE, self.stream.read_buf(&mut self.raw)).await.expect("more bytes in time");
        if !matches!(read, Ok(1..)) {
            self.framing = Framing::Cut;
        }
    }
}

fn parse(frame: &str) -> Event {
    let mut event = Event::default();
    for line in frame.lines().filter(|line| !line.is_empty()) {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => event.id = Some(value.into()),
            "event" => event.event = value.into(),
            "data" => event.data = value.into(),
            "retry" => event.retry = Some(value.parse().unwrap()),
            "" => event.comment = true,
            other => panic!("an unknown field {other:?}"),
        }
    }
    event
}
