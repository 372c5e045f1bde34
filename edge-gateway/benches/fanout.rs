//! What one delivered event costs the gateway, against a bare loop of `write` calls. Run it with
//!
//! ```text
//! cargo bench -p edge-gateway --bench fanout             # all cases
//! cargo bench -p edge-gateway --bench fanout -- 100      # those with 100 viewers
//! ```
//!
//! Four parts: this process runs the real gateway (and, at other times, the bare loop), so that its CPU time can be
//! read alone; a child plays the engine, over gRPC; a child holds the viewers' sockets and notes latencies. The bare
//! loop writes the same SSE bytes, one event at a time, at the same pace, to the same number of sockets held by the
//! same kind of child. At a rate, events come one by one; `flat out`, as fast as the gateway takes them.
//!
//! The gateway and the loop have one thread and the first core, the children the others: what a write costs depends on
//! where its reader sleeps, and the scheduler's mood would be most of the difference. They take turns, and the middle
//! one of five rounds is told. `FANOUT_THREADS=2` gives the gateway more threads, and all parts all cores.

#![allow(clippy::unwrap_used, reason = "a benchmark stops at the first surprise")]

use std::{
    env,
    io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use edge_gateway::{Config, Gateway};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use parking_lot::Mutex;

#[path = "fanout/engine.rs"]
mod engine;

const JOB: &str = "01900000-0000-7000-8000-000000000001";
const ROLE: &str = "FANOUT_ROLE";

/// One line of the table: viewers, events, and events per second (none: flat out).
const CASES: [(usize, u32, Option<u32>); 6] = [
    (5000, 60, Some(8)),
    (5000, 400, None),
    (100, 1000, Some(200)),
    (100, 20_000, None),
    (1, 3000, Some(1000)),
    (1, 200_000, None),
];

/// How often each case is run.
const ROUNDS: usize = 5;

fn main() {
    match env::var(ROLE).as_deref() {
        Ok("engine") => {
            pin(2);
            engine::run();
        }
        Ok("viewers") => {
            pin(1);
            viewers();
        }
        _ => bench(),
    }
}

/// How many threads the gateway has.
fn threads() -> usize {
    env::var("FANOUT_THREADS").map_or(1, |threads| threads.parse().unwrap())
}

/// Keeps this process on one core, the last one if there are not so many.
fn pin(core: usize) {
    if threads() == 1 {
        let on = |core| {
            let mut set = CpuSet::new();
            set.set(core).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set)).is_ok()
        };
        assert!((0..=core).rev().any(on), "cannot be kept on a core");
    }
}

fn bench() {
    pin(0);
    let mut engine = Peer::start("engine");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(threads()).enable_all().build().unwrap();
    let engines = format!("http://{}", engine.line()).parse().unwrap();
    let gateway = runtime.block_on(async {
        let bound = Gateway::bind(Config { admin_listen: None, ..Config::local(engines) }).unwrap();
        let addr = bound.addr();
        tokio::spawn(bound.serve(std::future::pending()));
        addr
    });
    // Warm up: code paths, allocator, connection to the engine.
    run_gateway(&mut engine, gateway, 50, 200, Some(1000));

    println!(
        "| viewers | pace | gateway µs/event | bare write µs/event | ratio | p50 ms | p99 ms | bare p50 ms | bare p99 ms |"
    );
    println!("| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    let mut idle = None;
    let wanted: Vec<usize> = env::args().filter_map(|arg| arg.parse().ok()).collect();
    for (count, events, rate) in CASES {
        if !wanted.is_empty() && !wanted.contains(&count) {
            continue;
        }
        let mut rounds: Vec<_> = (0..ROUNDS)
            .map(|_| {
                let ours = run_gateway(&mut engine, gateway, count, events, rate);
                (ours, run_bare(count, events, rate))
            })
            .collect();
        idle = idle.or(Some((count, rounds[0].0.memory)));
        let ratio = |(ours, bare): &(Run, Run)| ours.cpu.as_secs_f64() / bare.cpu.as_secs_f64();
        rounds.sort_by(|a, b| ratio(a).total_cmp(&ratio(b)));
        let middle = &rounds[ROUNDS / 2];
        let (ours, bare) = middle;
        let deliveries = f64::from(events) * count as f64;
        let micros = |run: &Run| run.cpu.as_secs_f64() * 1e6 / deliveries;
        let pace = rate.map_or("flat out".to_owned(), |rate| format!("{rate}/s"));
        println!(
            "| {count} | {pace} | {:.2} | {:.2} | {:.2} | {} | {} |",
            micros(ours),
            micros(bare),
            ratio(middle),
            ours.latency,
            bare.latency
        );
    }
    if let Some((count, memory)) = idle {
        println!(
            "\nidle viewer: {:.1} KB of resident memory ({count} viewers)",
            memory as f64 / 1000.0 / count as f64
        );
    }
}

/// What a run took.
struct Run {
    cpu: Duration,
    memory: usize,
    latency: String,
}

/// Viewers through the gateway.
fn run_gateway(engine: &mut Peer, gateway: SocketAddr, count: usize, events: u32, rate: Option<u32>) -> Run {
    let before = resident();
    let mut viewers = Peer::start("viewers");
    viewers.tell(&format!("{gateway} {count}"));
    assert_eq!(viewers.line(), "connected");
    settle();
    let memory = resident().saturating_sub(before);
    let cpu = cpu_time();
    viewers.tell(&events.to_string());
    engine.tell(&format!("{events} {}", rate.unwrap_or(0)));
    let latency = viewers.line();
    Run { cpu: cpu_time() - cpu, memory, latency }
}

/// Viewers at the end of a bare loop.
fn run_bare(count: usize, events: u32, rate: Option<u32>) -> Run {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut viewers = Peer::start("viewers");
    viewers.tell(&format!("{} {count}", listener.local_addr().unwrap()));
    let mut sockets = Vec::with_capacity(count);
    for _ in 0..count {
        let (mut socket, _) = listener.accept().unwrap();
        let mut request = [0; 4096];
        let read = socket.read(&mut request).unwrap();
        assert!(request[..read].ends_with(b"\r\n\r\n"));
        socket.set_nodelay(true).unwrap();
        socket.write_all(b"HTTP/1.1 200 OK\r\n\r\nevent: connected\n\n").unwrap();
        sockets.push(socket);
    }
    assert_eq!(viewers.line(), "connected");
    viewers.tell(&events.to_string());
    settle();
    let cpu = cpu_time();
    let mut pace = Pace::new(rate);
    for seq in 1..=events {
        pace.wait();
        let frame =
            format!("id: {seq}-bench\nevent: log\ndata: {}\n\n", serde_json::Value::from(engine::line()));
        for socket in &mut sockets {
            socket.write_all(frame.as_bytes()).unwrap();
        }
    }
    let cpu = cpu_time() - cpu;
    Run { cpu, memory: 0, latency: viewers.line() }
}

/// Waits until this process is idle.
fn settle() {
    loop {
        let before = cpu_time();
        thread::sleep(Duration::from_millis(200));
        if cpu_time() - before < Duration::from_millis(2) {
            return;
        }
    }
}

/// Lets events come at a steady rate.
struct Pace {
    next: Instant,
    step: Duration,
}

impl Pace {
    fn new(rate: Option<u32>) -> Self {
        Self { next: Instant::now(), step: rate.map_or(Duration::ZERO, |rate| Duration::from_secs(1) / rate) }
    }

    fn wait(&mut self) {
        self.next += self.step;
        if let Some(left) = self.next.checked_duration_since(Instant::now()) {
            thread::sleep(left);
        }
    }
}

/// CPU time of all threads of this process, in nanoseconds' resolution.
fn cpu_time() -> Duration {
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let of = |path: std::path::PathBuf| -> Option<u64> {
        std::fs::read_to_string(path.join("schedstat")).ok()?.split(' ').next()?.parse().ok()
    };
    Duration::from_nanos(threads.filter_map(|entry| of(entry.ok()?.path())).sum())
}

/// Resident memory of this process, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

/// A child process that is told lines and answers lines.
struct Peer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Peer {
    fn start(role: &str) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .env(ROLE, role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, input, output: BufReader::new(output) }
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.output.read_line(&mut line).unwrap() > 0, "a child died");
        line.trim_end().to_owned()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The child that holds the viewers' sockets: `<addr> <count>`, then `<events>`; answers `p50 | p99` in milliseconds.
fn viewers() {
    let mut lines = std::io::stdin().lines().map(Result::unwrap);
    let first = lines.next().unwrap();
    let (addr, count) = first.split_once(' ').unwrap();
    let (addr, count): (SocketAddr, usize) = (addr.parse().unwrap(), count.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let connected = Arc::new(AtomicUsize::new(0));
    let received = Arc::new(AtomicUsize::new(0));
    let latencies = Arc::new(Mutex::new(Vec::<u64>::new()));
    // One for all: readers that are slower than a server would hide what it costs to wake one that sleeps.
    let buffer = Arc::new(Mutex::new(vec![0; 32 * 1024]));
    for _ in 0..count {
        let mut socket = TcpStream::connect(addr).unwrap();
        let request = format!("GET /api/progress/{JOB}?lastEventId=latest HTTP/1.1\r\nhost: b\r\n\r\n");
        socket.write_all(request.as_bytes()).unwrap();
        socket.set_nonblocking(true).unwrap();
        let (connected, received, latencies) = (connected.clone(), received.clone(), latencies.clone());
        let buffer = buffer.clone();
        runtime.spawn(async move {
            let socket = tokio::net::TcpStream::from_std(socket).unwrap();
            let (mut greeted, mut kept) = (false, Vec::new());
            loop {
                socket.readable().await.unwrap();
                let mut buffer = buffer.lock();
                buffer[..kept.len()].copy_from_slice(&kept);
                let read = match socket.try_read(&mut buffer[kept.len()..]) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                    read => read.unwrap(),
                };
                assert!(read > 0, "a stream ended");
                let now = engine::now();
                let text = &buffer[..kept.len() + read];
                if !greeted {
                    // In one packet with the head.
                    let is_greeting = text.starts_with(b"HTTP/1.1 200 ")
                        && text.windows(16).any(|w| w == b"event: connected");
                    assert!(is_greeting, "{}", String::from_utf8_lossy(text));
                    greeted = true;
                    connected.fetch_add(1, Ordering::SeqCst);
                }
                // The mark may be cut by the end of the buffer: what follows the last line is kept.
                let end = text.iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1);
                let mut marks = 0;
                for line in text[..end].split(|b| *b == b'\n') {
                    if let Some(rest) = line.strip_prefix(b"data: \"at ") {
                        marks += 1;
                        let sent = rest.split(|b| *b == b' ').next().unwrap();
                        let sent: u64 = std::str::from_utf8(sent).unwrap().parse().unwrap();
                        latencies.lock().push(now.saturating_sub(sent));
                    }
                }
                kept.clear();
                kept.extend_from_slice(&text[end..]);
                received.fetch_add(marks, Ordering::SeqCst);
            }
        });
    }
    let wait = |counter: &AtomicUsize, wanted: usize| {
        runtime.block_on(async {
            while counter.load(Ordering::SeqCst) < wanted {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
    };
    wait(&connected, count);
    println!("connected");
    let events: usize = lines.next().unwrap().parse().unwrap();
    wait(&received, events * count);
    let mut latencies = std::mem::take(&mut *latencies.lock());
    latencies.sort_unstable();
    let at = |share: usize| latencies[(latencies.len() - 1) * share / 100] as f64 / 1e6;
    println!("{:.2} | {:.2}", at(50), at(99));
    let _ = lines.next(); // stay until killed: closing costs the other side
}
