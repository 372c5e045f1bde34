//! The worker's admin port: `/healthz` (the process lives) and `/readyz` (an engine has welcomed it and may assign jobs).
//!
//! Ready means assignable, not merely connected: a worker that drains, or whose engine does, says so. Says nothing of
//! jobs, so it asks nobody who they are.

use std::net::{SocketAddr, TcpListener};

use axum::{Router, http::StatusCode, routing::get};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::{Status, config::ConfigError};

/// Binds `addr` and serves until the handle is dropped.
pub(crate) fn serve(
    addr: SocketAddr,
    status: watch::Receiver<Status>,
) -> Result<AbortOnDropHandle<()>, ConfigError> {
    let bind = || {
        let listener = TcpListener::bind(addr)?;
        listener.set_nonblocking(true)?;
        tokio::net::TcpListener::from_std(listener)
    };
    let listener = bind()
        .map_err(|error| ConfigError(vec![format!("cannot listen on {addr} (--admin-listen): {error}")]))?;
    let ready = move || {
        let answer = match *status.borrow() {
            Status::Connected => (StatusCode::OK, "ready\n"),
            Status::Connecting => (StatusCode::SERVICE_UNAVAILABLE, "no engine has welcomed the worker\n"),
            Status::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
            Status::Stopped => (StatusCode::SERVICE_UNAVAILABLE, "stopped\n"),
        };
        std::future::ready(answer)
    };
    let router = Router::new().route("/healthz", get(async || "alive\n")).route("/readyz", get(ready));
    let router = router.merge(tidegate_telemetry::loglevel::routes());
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
        let taken = serve(addr, status.subscribe()).err().unwrap();
        assert!(taken.to_string().contains("--admin-listen"), "{taken}");
        drop(held);
        let _admin = serve(addr, status.subscribe()).unwrap();
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
    }
}
