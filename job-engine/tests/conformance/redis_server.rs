//! A real `redis-server` on a free port with its files in a scratch directory; killed when dropped.
#![allow(dead_code)] // shared by tests and a benchmark that each use a part of it

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

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
        Self::begin(free_port, |port, dir| usual(port, dir, arguments))
    }

    /// Starts a node that may join a Cluster.
    pub(crate) fn start_node() -> Self {
        let node = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--appendonly", "no"];
        // Its bus is 10,000 ports above.
        let port = || {
            let mut ports = (0..100).map(|_| rand::random_range(10_000..22_000));
            let free =
                |port: &u16| [0, 10_000].iter().all(|n| TcpListener::bind(("127.0.0.1", port + n)).is_ok());
            ports.find(free).expect("two free ports")
        };
        Self::begin(port, |port, dir| usual(port, dir, &node))
    }

    /// Starts a sentinel that watches over `mymaster` at this port, with others; two of them decide.
    pub(crate) fn start_sentinel(master: u16) -> Self {
        Self::begin(free_port, |port, dir| {
            let file = dir.join("sentinel.conf");
            let text = format!(
                "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor mymaster 127.0.0.1 {master} 2\n\
                 sentinel down-after-milliseconds mymaster 1000\nsentinel failover-timeout mymaster 5000\n",
                dir.display()
            );
            std::fs::write(&file, text).expect("the file is written");
            vec![file.display().to_string(), "--sentinel".into()]
        })
    }

    fn begin(port: impl Fn() -> u16, arguments: impl Fn(u16, &Path) -> Vec<String>) -> Self {
        // The port is free when it is chosen, and may be taken when it is used: choose again then.
        for _ in 0..5 {
            let dir = tempfile::tempdir().expect("a scratch directory");
            let port = port();
            let arguments = arguments(port, dir.path());
            let mut server = Self { child: spawn(&arguments), port, dir, arguments };
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
        self.child = spawn(&self.arguments);
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

    /// A line of `INFO`.
    pub(crate) fn info(&self, name: &str) -> Option<String> {
        let info = self.command("INFO").ok()?;
        info.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim().to_owned()))
    }

    fn answers(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline && matches!(self.child.try_wait(), Ok(None)) {
            let answers = self.command("PING").is_ok_and(|reply| reply.starts_with("+PONG"));
            // Another server may have been faster to take the port.
            if answers && self.info("process_id") == Some(self.child.id().to_string()) {
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

/// A port that nobody listens on, below those that the kernel gives to outgoing connections, and that no other test was
/// given: it stays free while its server is being restarted.
fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let port = rand::random_range(10_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() && GIVEN.lock().insert(port) {
            return port;
        }
    }
}

fn usual(port: u16, dir: &Path, more: &[&str]) -> Vec<String> {
    let (port, dir) = (port.to_string(), dir.display().to_string());
    let usual =
        ["--bind", "127.0.0.1", "--port", &port, "--dir", &dir, "--save", "", "--loglevel", "warning"];
    let durable = ["--appendfsync", "always", "--repl-diskless-sync-delay", "0"];
    usual.iter().chain(&durable).chain(more).map(|argument| (*argument).to_owned()).collect()
}

fn spawn(arguments: &[String]) -> Child {
    let mut command = Command::new("redis-server");
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("redis-server (7.0 or newer) must be installed to run these tests")
}
