//! Real processes: gateways that can be killed, Redis, nginx.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;
use tokio::net::TcpStream;

use super::{Edge, ScriptedEngine, client, until};

/// A process that ends with its test, and what it has to do with it.
pub(crate) struct Process {
    child: Child,
    scratch: TempDir,
}

impl Process {
    /// Starts `program` with its output in `log` below `scratch`.
    fn start(program: &Path, args: &[String], env: &[(&str, &str)], scratch: TempDir) -> Self {
        let log = std::fs::File::create(scratch.path().join("log")).unwrap();
        let child = Command::new(program)
            .args(args)
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}; `tests/run` installs what is missing", program.display()));
        Self { child, scratch }
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGSTOP, SIGCONT and the like, by name.
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(status.unwrap().success());
    }

    /// What it has printed so far.
    pub(crate) fn output(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.scratch.path().join("log")).unwrap()).into_owned()
    }

    /// Resident memory in KiB.
    pub(crate) fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    async fn listens(&mut self, addr: SocketAddr) {
        until("the process listens", async || {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("ended with {status}: {}", self.output());
            }
            TcpStream::connect(addr).await.is_ok()
        })
        .await;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// An address that was free a moment ago.
pub(crate) fn free_addr() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn scratch() -> TempDir {
    tempfile::Builder::new().prefix("tidegate-edge-").tempdir().unwrap()
}

/// An `edge-gateway` process.
pub(crate) struct Gateway {
    pub(crate) process: Process,
    pub(crate) addr: SocketAddr,
    pub(crate) admin: SocketAddr,
}

impl Gateway {
    /// With `config` as its configuration file, and more flags.
    pub(crate) async fn start(engine: &ScriptedEngine, config: &str, flags: &[String]) -> Self {
        let scratch = scratch();
        let file = scratch.path().join("tidegate.toml");
        std::fs::write(&file, config).unwrap();
        Self::launch(engine, &file, flags, "info", scratch).await
    }

    /// With a configuration file of somebody else's, and a log of this verbosity.
    pub(crate) async fn logging(engine: &ScriptedEngine, config: &Path, level: &str) -> Self {
        Self::launch(engine, config, &[], level, scratch()).await
    }

    async fn launch(
        engine: &ScriptedEngine,
        config: &Path,
        flags: &[String],
        level: &str,
        scratch: TempDir,
    ) -> Self {
        let (addr, admin) = (free_addr(), free_addr());
        let mut args = vec![
            format!("--listen={addr}"),
            format!("--admin-listen={admin}"),
            format!("--engine=http://{}", engine.addr()),
            format!("--config={}", config.display()),
        ];
        args.extend_from_slice(flags);
        let program = Path::new(env!("CARGO_BIN_EXE_edge-gateway"));
        let mut process = Process::start(program, &args, &[("RUST_LOG", level)], scratch);
        process.listens(addr).await;
        Self { process, addr, admin }
    }

    /// The value of a metric.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        Edge::metric_of(self.admin, name).await
    }

    pub(crate) async fn get(&self, path: &str, headers: &str) -> client::Answer {
        client::request(self.addr, "GET", path, headers, "").await
    }
}

/// A Redis process, and its URL.
pub(crate) async fn redis() -> (Process, String) {
    let (addr, scratch) = (free_addr(), scratch());
    let dir = scratch.path().display().to_string();
    let args = ["--port", &addr.port().to_string(), "--bind", "127.0.0.1", "--dir", &dir, "--save", ""];
    let args: Vec<String> = args.map(str::to_owned).into();
    let mut process = Process::start(Path::new("redis-server"), &args, &[], scratch);
    process.listens(addr).await;
    (process, format!("redis://{addr}"))
}

/// An nginx process with these server blocks; `{dir}` in them is a directory with `files`.
pub(crate) async fn nginx(servers: &str, files: &[(&str, &str)], addr: SocketAddr) -> Process {
    let scratch = scratch();
    let dir = scratch.path().display().to_string();
    for (name, content) in files {
        std::fs::write(scratch.path().join(name), content).unwrap();
    }
    let config = format!(
        "daemon off;\nmaster_process off;\npid {dir}/pid;\nerror_log {dir}/error.log;\n\
         events {{ worker_connections 256; }}\n\
         http {{\n  access_log off;\n  client_body_temp_path {dir}/body;\n  proxy_temp_path {dir}/proxy;\n  \
         fastcgi_temp_path {dir}/f;\n  uwsgi_temp_path {dir}/u;\n  scgi_temp_path {dir}/s;\n{}\n}}\n",
        servers.replace("{dir}", &dir)
    );
    let file = scratch.path().join("nginx.conf");
    std::fs::write(&file, config).unwrap();
    let args = ["-e".into(), format!("{dir}/error.log"), "-c".into(), file.display().to_string()];
    // Debian keeps it where only root's path leads.
    let program = ["/usr/sbin/nginx", "/usr/bin/nginx"].into_iter().map(PathBuf::from).find(|p| p.exists());
    let mut process = Process::start(&program.unwrap_or_else(|| "nginx".into()), &args, &[], scratch);
    process.listens(addr).await;
    process
}
