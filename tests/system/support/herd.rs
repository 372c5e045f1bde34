//! Thousands of viewers in this process, each no more than a socket and a parser: they notice every hole, and come back
//! when they are told to, as EventSource does.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tidegate::sse;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    sync::watch,
    task::JoinSet,
    time::Instant,
};

use super::{DEADLINE, number};

/// A viewer's connection after its request, with the answer unread. A small `window` lets the kernel hold next to
/// nothing for a viewer that does not read.
pub(crate) async fn connect(
    http: &str,
    job: &str,
    cursor: &str,
    window: Option<u32>,
) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if let Some(bytes) = window {
        socket.set_recv_buffer_size(bytes)?;
    }
    let mut socket = socket.connect(http.parse().unwrap()).await?;
    let cursor = if cursor.is_empty() { String::new() } else { format!("last-event-id: {cursor}\r\n") };
    let request = format!(
        "GET /api/progress/{job} HTTP/1.1\r\nhost: {http}\r\naccept: text/event-stream\r\n{cursor}\r\n"
    );
    socket.write_all(request.as_bytes()).await?;
    Ok(socket)
}

/// Takes the chunked transfer coding off; hyper's client would cost more than thousands of viewers may.
#[derive(Default)]
struct Chunks {
    /// The bytes of a size line that is not complete yet.
    size: Vec<u8>,
    /// What is left of the chunk, with its line end.
    left: usize,
    ended: bool,
}

impl Chunks {
    fn body(&mut self, mut bytes: &[u8]) -> Vec<u8> {
        let mut body = Vec::new();
        while let Some(&byte) = bytes.first() {
            if self.left > 0 {
                let count = self.left.min(bytes.len());
                // The last two bytes of the rest are the line end.
                body.extend_from_slice(&bytes[..count.min(self.left.saturating_sub(2))]);
                self.left -= count;
                bytes = &bytes[count..];
                continue;
            }
            bytes = &bytes[1..];
            self.size.push(byte);
            if self.size.ends_with(b"\r\n") {
                let size = std::str::from_utf8(&self.size[..self.size.len() - 2]).unwrap();
                let size =
                    usize::from_str_radix(size, 16).unwrap_or_else(|_| panic!("a chunk of size {size:?}"));
                self.size.clear();
                self.left = size + 2;
                self.ended = size == 0;
            }
        }
        body
    }
}

/// Reads the event stream behind a connection to its end, and gives `see` each event. Whether it ended in order, with its
/// final chunk, and how long to wait before coming back, if that was said.
pub(crate) async fn read(mut socket: TcpStream, mut see: impl FnMut(sse::Event)) -> (bool, Option<Duration>) {
    let (mut head, mut headed) = (Vec::new(), false);
    let (mut parser, mut chunks) = (sse::Parser::default(), Chunks::default());
    let mut buffer = [0; 4096];
    while !chunks.ended {
        let mut body = match socket.read(&mut buffer).await {
            Ok(count) if count > 0 => &buffer[..count],
            _ => break,
        };
        if !headed {
            head.extend_from_slice(body);
            let Some(end) = head.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
            assert!(head.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&head));
            headed = true;
            head.drain(..end + 4);
            body = &head;
        }
        parser.feed(&chunks.body(body), &mut see).unwrap();
    }
    (chunks.ended, parser.retry())
}

/// Where viewers connect; they wait while it is nowhere.
type Door = watch::Sender<Option<String>>;

/// Viewers, and what became of them.
pub(crate) struct Herd {
    door: Door,
    shared: Arc<Shared>,
    viewers: JoinSet<()>,
}

#[derive(Default)]
struct Shared {
    /// The last event that each viewer saw, by its number.
    seen: Vec<AtomicU64>,
    connected: AtomicUsize,
    /// When connections ended with a goodbye, and when the viewers came back thereafter.
    goodbyes: Mutex<Vec<Instant>>,
    returns: Mutex<Vec<Instant>>,
}

impl Herd {
    /// `count` viewers, spread evenly over the jobs, who connect to `http`.
    pub(crate) fn start(count: usize, jobs: &[String], http: &str) -> Self {
        let door = Door::new(Some(http.to_owned()));
        let seen = (0..count).map(|_| AtomicU64::new(0)).collect();
        let shared = Arc::new(Shared { seen, ..Shared::default() });
        let mut viewers = JoinSet::new();
        for n in 0..count {
            let viewer = Viewer {
                n,
                job: jobs[n % jobs.len()].clone(),
                cursor: String::new(),
                retry: Duration::ZERO,
                door: door.subscribe(),
                shared: Arc::clone(&shared),
            };
            viewers.spawn(viewer.watch());
        }
        Self { door, shared, viewers }
    }

    /// From now on viewers who come back wait until there is a door again.
    pub(crate) fn shut(&self) {
        self.door.send_replace(None);
    }

    /// Where viewers who come back connect from now on; those who wait do so at once.
    pub(crate) fn open(&self, http: &str) {
        self.door.send_replace(Some(http.to_owned()));
    }

    /// How many have a stream.
    pub(crate) fn connected(&self) -> usize {
        self.shared.connected.load(Ordering::SeqCst)
    }

    /// The number of the last event that the one of them saw who is farthest behind.
    pub(crate) fn slowest(&self) -> u64 {
        self.shared.seen.iter().map(|seen| seen.load(Ordering::SeqCst)).min().unwrap()
    }

    /// When the streams ended that ended with a goodbye, and when their viewers came back.
    pub(crate) fn moves(&self) -> (Vec<Instant>, Vec<Instant>) {
        (self.shared.goodbyes.lock().clone(), self.shared.returns.lock().clone())
    }

    /// Waits until every viewer has seen the end of its job; panics if one missed anything.
    pub(crate) async fn ended(mut self) {
        let all = async {
            while let Some(viewer) = self.viewers.join_next().await {
                viewer.unwrap();
            }
        };
        tokio::time::timeout(DEADLINE, all).await.expect("some viewers never see the end");
    }
}

struct Viewer {
    n: usize,
    job: String,
    cursor: String,
    retry: Duration,
    door: watch::Receiver<Option<String>>,
    shared: Arc<Shared>,
}

/// Why a connection is over.
enum Over {
    /// The job has ended.
    Finished,
    /// The server asked to come back.
    Goodbye,
    /// It broke.
    Lost,
}

impl Viewer {
    async fn watch(mut self) {
        let mut dismissed = false;
        loop {
            let http = self.door.wait_for(Option::is_some).await.unwrap().clone().unwrap();
            if std::mem::take(&mut dismissed) {
                self.shared.returns.lock().push(Instant::now());
            }
            let over = match connect(&http, &self.job, &self.cursor, None).await {
                Ok(socket) => self.read(socket).await,
                Err(_) => Over::Lost,
            };
            match over {
                Over::Finished => return,
                Over::Goodbye => {
                    dismissed = true;
                    tokio::time::sleep(self.retry).await;
                }
                // Nobody is there: not a busy loop. A door that opens is noticed at once.
                Over::Lost => {
                    let _ = tokio::time::timeout(Duration::from_millis(50), self.door.changed()).await;
                }
            }
        }
    }

    /// Reads one connection to its end.
    async fn read(&mut self, socket: TcpStream) -> Over {
        let mut over = None;
        let mut counted = Counted(None);
        let (n, shared, cursor) = (self.n, &self.shared, &mut self.cursor);
        let (whole, retry) = read(socket, |event| match event.name.as_str() {
            "connected" => counted.begin(shared),
            "goodbye" => {
                shared.goodbyes.lock().push(Instant::now());
                over = Some(Over::Goodbye);
            }
            "gap" => panic!("viewer {n} was told of a gap: {event:?}"),
            name => {
                let (before, now) = (shared.seen[n].load(Ordering::SeqCst), number(&event.id));
                assert_eq!(now, before + 1, "viewer {n} misses something, or sees it twice");
                shared.seen[n].store(now, Ordering::SeqCst);
                let ends = matches!(name, "complete" | "failed" | "cancelled");
                *cursor = event.id;
                if ends {
                    over = Some(Over::Finished);
                }
            }
        })
        .await;
        self.retry = retry.unwrap_or(self.retry);
        assert!(over.is_some() || !whole, "a stream ended without a word");
        over.unwrap_or(Over::Lost)
    }
}

/// A stream that counts as open until it is dropped.
struct Counted(Option<Arc<Shared>>);

impl Counted {
    fn begin(&mut self, shared: &Arc<Shared>) {
        shared.connected.fetch_add(1, Ordering::SeqCst);
        self.0 = Some(Arc::clone(shared));
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(shared) = &self.0 {
            shared.connected.fetch_sub(1, Ordering::SeqCst);
        }
    }
}
