//! A real `redis-server` on a free port with its files in a scratch directory; killed when dropped.
#![allow(dead_code)] // shared by tests and a benchmark that each use a part of it

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// How long a server may take to answer after its start.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running server.
pub(crate) struct RedisServer {
    child: Child,
    port: u16,
    dir: tempfile::TempDir,
    arguments: Vec<String>,
}

impl RedisServer {
    /// Starts a server that keeps everything in memory.
    pub(crate) fn start() -> Self {
        Self::start_with(&["--appendonly", "no"])
    }

    /// Starts a server that syncs every write, so that it can be restarted.
    pub(crate) fn start_durable() -> Self {
        Self::start_with(&["--appendonly", "yes"])
    }

    /// Starts a server with these arguments behind the usual ones.
    pub(crate) fn start_with(arguments: &[&str]) -> Self {
        let arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
        // The port is free when it is chosen, and may be taken when it is used: choose again then.
        for _ in 0..5 {
            let dir = tempfile::tempdir().expect("a scratch directory");
            let port =
                TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
            let child = spawn(port, dir.path(), &arguments);
            let mut server = Self { child, port, dir, arguments: arguments.clone() };
            if server.answers() {
                return server;
            }
        }
        panic!("redis-server did not answer within {PATIENCE:?}");
    }

    /// Where it is.
    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Its process, for signals.
    pub(crate) fn id(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"))
    }

    /// Kills the server as a crash would.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("redis-server can be killed");
        self.child.wait().expect("redis-server has ended");
    }

    /// Starts it again where it was.
    pub(crate) fn start_again(&mut self) {
        self.child = spawn(self.port, self.dir.path(), &self.arguments);
        assert!(self.answers(), "redis-server did not answer within {PATIENCE:?}");
    }

    /// Sends one command as a line of words and returns the raw reply, as far as one packet holds it.
    pub(crate) fn command(&self, line: &str) -> std::io::Result<String> {
        let mut socket = TcpStream::connect(("127.0.0.1", self.port))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.write_all(format!("{line}\r\n").as_bytes())?;
        let mut reply = vec![0; 65536];
        let length = socket.read(&mut reply)?;
        Ok(String::from_utf8_lossy(&reply[..length]).into_owned())
    }

    fn answers(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline && matches!(self.child.try_wait(), Ok(None)) {
            if self.command("PING").is_ok_and(|reply| reply.starts_with("+PONG")) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(port: u16, dir: &std::path::Path, arguments: &[String]) -> Child {
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--loglevel", "warning"]);
    command.args(["--appendfsync", "always", "--repl-diskless-sync-delay", "0"]).arg("--dir").arg(dir);
    command.args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("redis-server (7.0 or newer) must be installed to run these tests")
}
