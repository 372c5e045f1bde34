//! A proxy like a cloud's load balancer: it cuts HTTP/2 connections that are idle, and PINGs do not count.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{Instant, sleep_until},
};

/// HTTP/2's frame types DATA and HEADERS (RFC 9113, section 6): only these are traffic.
const TRAFFIC: [u8; 2] = [0, 1];
/// What a client sends before its first frame (RFC 9113, section 3.4).
const PREFACE: u64 = 24;

/// The proxy; it ends with the test's runtime.
pub(crate) struct IdleCutter {
    pub(crate) url: String,
    cuts: Arc<AtomicUsize>,
}

impl IdleCutter {
    /// In front of `target`; cuts what has been idle for `patience`.
    pub(crate) async fn start(target: String, patience: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let cuts = Arc::new(AtomicUsize::new(0));
        let counter = cuts.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (target, counter) = (target.clone(), counter.clone());
                tokio::spawn(async move {
                    // An engine that is not there is a connection that is cut at once.
                    if let Ok(far) = TcpStream::connect(target).await
                        && carry(near, far, patience).await
                    {
                        counter.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        Self { url, cuts }
    }

    /// How many idle connections were cut.
    pub(crate) fn cuts(&self) -> usize {
        self.cuts.load(Ordering::SeqCst)
    }
}

/// Carries both ways until one side ends, or nothing but PINGs has passed for `patience`: then true.
async fn carry(near: TcpStream, far: TcpStream, patience: Duration) -> bool {
    let (active, mut activity) = watch::channel(Instant::now());
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    let idle = async {
        loop {
            let until = *activity.borrow_and_update() + patience;
            tokio::select! {
                () = sleep_until(until) => return,
                Ok(()) = activity.changed() => {}
            }
        }
    };
    tokio::select! {
        _ = frames(near_in, far_out, PREFACE, &active) => false,
        _ = frames(far_in, near_out, 0, &active) => false,
        () = idle => true,
    }
}

/// Passes frames on; those that are traffic are noted.
async fn frames(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    preface: u64,
    active: &watch::Sender<Instant>,
) -> std::io::Result<()> {
    copy(&mut (&mut from).take(preface), &mut to).await?;
    loop {
        let mut head = [0; 9];
        from.read_exact(&mut head).await?;
        to.write_all(&head).await?;
        let length = u64::from(u32::from_be_bytes([0, head[0], head[1], head[2]]));
        copy(&mut (&mut from).take(length), &mut to).await?;
        if TRAFFIC.contains(&head[3]) {
            active.send_replace(Instant::now());
        }
    }
}
