//! The worker's admin port: what it counts, and whether an engine has welcomed it and may assign jobs.
//!
//! Ready means assignable, not merely connected: a worker that drains, or whose engine does, says so.

use std::{
    net::{SocketAddr, TcpListener},
    sync::Arc,
};

use tidegate_telemetry::admin::{self, AdminToken, Part};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::{Metrics, Status, config::ConfigError};

/// What the port shows.
#[derive(Clone)]
struct Admin {
    status: watch::Receiver<Status>,
    metrics: Arc<Metrics>,
}

impl Part for Admin {
    async fn metrics(&self) -> String {
        self.metrics.render()
    }

    async fn ready(&self) -> Result<(), String> {
        let why = match *self.status.borrow() {
            Status::Connected => return Ok(()),
            Status::Connecting => "no engine has welcomed the worker",
            Status::Draining => "draining",
            Status::Stopped => "stopped",
        };
        Err(why.to_owned())
    }
}

/// Binds `addr` and serves until the handle is dropped.
pub(crate) fn serve(
    addr: SocketAddr,
    token: Option<AdminToken>,
    status: watch::Receiver<Status>,
    metrics: Arc<Metrics>,
) -> Result<AbortOnDropHandle<()>, ConfigError> {
    let bind = || {
        let listener = TcpListener::bind(addr)?;
        listener.set_nonblocking(true)?;
        tokio::net::TcpListener::from_std(listener)
    };
    let listener = bind()
        .map_err(|error| ConfigError(vec![format!("cannot listen on {addr} (--admin-listen): {error}")]))?;
    let router = admin::router(Admin { status, metrics }, token);
    Ok(AbortOnDropHandle::new(tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the admin port failed");
        }
    })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };

    async fn get(addr: SocketAddr, path: &str) -> String {
        let mut socket = TcpStream::connect(addr).await.unwrap();
        let request = format!("GET {path} HTTP/1.0\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn j39_ready_means_assignable() {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = held.local_addr().unwrap();
        let status = watch::Sender::new(Status::Connecting);
        let metrics = Arc::new(Metrics::new(["demo"].into_iter(), 1));
        let serve = || serve(addr, None, status.subscribe(), metrics.clone());
        let taken = serve().err().unwrap();
        assert!(taken.to_string().contains("--admin-listen"), "{taken}");
        drop(held);
        let _admin = serve().unwrap();
        for (now, code) in [
            (Status::Connecting, " 503 "),
            (Status::Connected, " 200 "),
            (Status::Draining, " 503 "),
            (Status::Connected, " 200 "),
            (Status::Stopped, " 503 "),
        ] {
            status.send_replace(now);
            let answer = get(addr, "/readyz").await;
            assert!(answer.contains(code), "{now:?}: {answer}");
            assert!(get(addr, "/healthz").await.contains(" 200 "));
        }
        assert!(get(addr, "/metrics").await.contains("\ntidegate_worker_slots 1\n"));
    }
}
