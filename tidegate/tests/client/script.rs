//! A gateway that answers from a script: real sockets, HTTP/1.1, chunked bodies that can be cut anywhere.

use std::{net::SocketAddr, sync::Arc};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};

/// A request as it arrived: its first line, and its headers in lower case.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) line: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// How an answer's body ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    /// With the final chunk, as a planned close does.
    Clean,
    /// In the middle, as a crash does.
    Cut,
    /// Never; the connection stays open and silent.
    Silent,
}

#[derive(Clone, Debug)]
pub(crate) struct Reply {
    status: &'static str,
    headers: String,
    body: String,
    end: End,
}

impl Reply {
    pub(crate) fn stream(body: impl Into<String>, end: End) -> Self {
        Self {
            status: "200 OK",
            headers: "content-type: text/event-stream\r\n".into(),
            body: body.into(),
            end,
        }
    }

    pub(crate) fn json(status: &'static str, body: impl Into<String>) -> Self {
        Self {
            status,
            headers: "content-type: application/json\r\n".into(),
            body: body.into(),
            end: End::Clean,
        }
    }

    pub(crate) fn problem(status: &'static str, body: impl Into<String>) -> Self {
        Self { headers: "content-type: application/problem+json\r\n".into(), ..Self::json(status, body) }
    }

    pub(crate) fn with_header(mut self, header: &str) -> Self {
        self.headers += header;
        self.headers += "\r\n";
        self
    }
}

/// A running script; the n-th request gets the n-th reply, and the last one ever after.
pub(crate) struct Gateway {
    pub(crate) addr: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Gateway {
    pub(crate) async fn start(replies: Vec<Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = requests.clone();
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let (seen, replies) = (seen.clone(), replies.clone());
                tokio::spawn(async move {
                    // A client may go away at any time; that is part of what is tested.
                    let _ = answer(socket, &seen, &replies).await;
                });
            }
        });
        Self { addr, requests }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().clone()
    }
}

async fn answer(socket: TcpStream, seen: &Mutex<Vec<Request>>, replies: &[Reply]) -> std::io::Result<()> {
    let mut socket = BufReader::new(socket);
    let mut line = String::new();
    socket.read_line(&mut line).await?;
    let mut request = Request { line: line.trim().to_owned(), headers: Vec::new(), body: String::new() };
    loop {
        let mut line = String::new();
        socket.read_line(&mut line).await?;
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        request.headers.push((name.to_ascii_lowercase(), value.to_owned()));
    }
    let length = request.header("content-length").map_or(0, |l| l.parse().unwrap());
    let mut body = vec![0; length];
    socket.read_exact(&mut body).await?;
    request.body = String::from_utf8(body).unwrap();
    let number = {
        let mut seen = seen.lock();
        seen.push(request);
        seen.len() - 1
    };
    let reply = &replies[number.min(replies.len() - 1)];
    let head = format!("HTTP/1.1 {}\r\nconnection: close\r\n{}", reply.status, reply.headers);
    if reply.status.starts_with("204") {
        return socket.write_all(format!("{head}\r\n").as_bytes()).await;
    }
    socket.write_all(format!("{head}transfer-encoding: chunked\r\n\r\n").as_bytes()).await?;
    if !reply.body.is_empty() {
        socket.write_all(format!("{:x}\r\n{}\r\n", reply.body.len(), reply.body).as_bytes()).await?;
    }
    socket.flush().await?;
    match reply.end {
        End::Clean => socket.write_all(b"0\r\n\r\n").await,
        End::Cut => Ok(()),
        End::Silent => std::future::pending().await,
    }
}
