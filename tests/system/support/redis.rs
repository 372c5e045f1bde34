//! A Redis of one's own, configured as the README asks for.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    time::Duration,
};

use super::{Process, eventually, free_port};

/// Starts a Redis in `scratch` and waits until it answers; returns its URL too.
pub(crate) async fn start(scratch: &Path) -> (Process, String) {
    let port = free_port();
    (run(scratch, port, "everysec").await, format!("redis://127.0.0.1:{port}"))
}

/// A Redis that has on its disk what it has answered.
#[allow(dead_code, reason = "for the chaos test")]
pub(crate) async fn start_durable(scratch: &Path, port: u16) -> Process {
    run(scratch, port, "always").await
}

/// Waits until a Redis answers that was started again.
#[allow(dead_code, reason = "for the chaos test")]
pub(crate) async fn answering(port: u16) {
    eventually("Redis answers", async || answers(port).then_some(())).await;
}

async fn run(scratch: &Path, port: u16, fsync: &str) -> Process {
    let dir = scratch.join("redis");
    std::fs::create_dir_all(&dir).unwrap();
    let (number, dir) = (port.to_string(), dir.display().to_string());
    let args = ["--port", &number, "--bind", "127.0.0.1", "--dir", &dir, "--save", "", "--daemonize", "no"];
    let durable = ["--appendonly", "yes", "--appendfsync", fsync, "--maxmemory-policy", "noeviction"];
    let args = args.into_iter().chain(durable).map(str::to_owned).collect();
    let program = which("redis-server")
        .expect("redis-server is missing: run `tests/run`, or install it (apt: redis-server)");
    let mut process = Process::start("redis", &program, args, scratch);
    eventually("Redis answers", async || {
        process.assert_running();
        answers(port).then_some(())
    })
    .await;
    process
}

/// Cuts all connections of others to a Redis: for commands, and for what is published.
pub(crate) fn cut(url: &str) {
    let mut socket = TcpStream::connect(url.strip_prefix("redis://").unwrap()).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    for kind in ["normal", "pubsub"] {
        socket.write_all(format!("CLIENT KILL TYPE {kind} SKIPME yes\r\n").as_bytes()).unwrap();
        let mut answer = [0; 16];
        let read = socket.read(&mut answer).unwrap();
        assert!(answer.starts_with(b":") && read > 3, "{:?}", String::from_utf8_lossy(&answer));
        assert_ne!(answer[1], b'0', "there was no connection of the type {kind}");
    }
}

fn answers(port: u16) -> bool {
    let ping = || -> std::io::Result<bool> {
        let mut socket = TcpStream::connect(("127.0.0.1", port))?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        socket.write_all(b"PING\r\n")?;
        let mut answer = [0; 7];
        socket.read_exact(&mut answer)?;
        Ok(&answer == b"+PONG\r\n")
    };
    ping().unwrap_or(false)
}

fn which(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}
