//! A TCP proxy that can be cut, can swallow everything in silence, and can lead elsewhere.
#![allow(dead_code)] // shared by tests that each use a part of it

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
};

pub(crate) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    target: Mutex<u16>,
    paused: watch::Sender<bool>,
    connections: Mutex<JoinSet<()>>,
    refusals: AtomicUsize,
}

impl Proxy {
    /// A proxy to a port of this machine.
    pub(crate) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (target, paused) = (Mutex::new(port), watch::channel(false).0);
        let (connections, refusals) = (Mutex::default(), AtomicUsize::new(0));
        let shared = Arc::new(Shared { target, paused, connections, refusals });
        let accepting = shared.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let shared = accepting.clone();
                accepting.connections.lock().spawn(async move {
                    passed(&shared).await;
                    let target = *shared.target.lock();
                    let Ok(far) = TcpStream::connect(("127.0.0.1", target)).await else { return };
                    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                    tokio::select! {
                        () = copy(&shared, near_in, far_out, |_| ()) => {}
                        () = copy(&shared, far_in, near_out, |answer| shared.note(answer)) => {}
                    }
                });
            }
        });
        Self { address, shared }
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Nothing passes while `paused`, in either direction; connections stay open, and new ones are accepted.
    pub(crate) fn pause(&self, paused: bool) {
        self.shared.paused.send_replace(paused);
    }

    /// How many answers were errors so far, of those that came alone.
    pub(crate) fn refusals(&self) -> usize {
        self.shared.refusals.load(Ordering::Relaxed)
    }

    /// Cuts every connection, in the middle of whatever it carries.
    pub(crate) fn cut(&self) {
        self.shared.connections.lock().abort_all();
    }

    /// Leads new connections to another port, and cuts the old ones.
    pub(crate) fn lead_to(&self, port: u16) {
        *self.shared.target.lock() = port;
        self.cut();
    }
}

impl Shared {
    fn note(&self, answer: &[u8]) {
        self.refusals.fetch_add(usize::from(answer.starts_with(b"-")), Ordering::Relaxed);
    }
}

/// Returns when things may pass.
async fn passed(shared: &Shared) {
    let mut paused = shared.paused.subscribe();
    // The sender is in `shared`.
    let _ = paused.wait_for(|paused| !paused).await;
}

async fn copy(shared: &Shared, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, note: impl Fn(&[u8])) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        passed(shared).await;
        let Ok(n @ 1..) = from.read(&mut buffer).await else { return };
        passed(shared).await;
        note(&buffer[..n]);
        if to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}
