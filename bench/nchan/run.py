#!/usr/bin/env python3
"""Memory of viewers, beside nginx with nchan: idle ones, and ones that do not read.

    apt-get install nginx libnginx-mod-nchan
    cargo build --release
    bench/nchan/run.py [--viewers 5000] [--rounds 1]

Each server is started anew for each row, warmed up by 200 viewers who leave again, and then gets its viewers, all of one job
(one channel). What is counted is what the server's processes occupy in memory, each shared page once (Pss of
/proc/PID/smaps_rollup), and by how much that grew: the kernel's socket buffers are not in it, and are the same for both.

idle      every viewer has had the answer's head, and nothing has happened since.
stalled   then 250 events of 1,000 bytes happen, and nobody reads. Segments and receive buffers are small, as they are far from
          the server, so that the kernel takes little of it. Afterwards a hundred of the viewers read on, and must have missed
          nothing.

Tidegate's figure is the gateway's; an engine and a worker run beside it, as they must.
"""

import argparse
import contextlib
import http.client
import os
import pathlib
import re
import resource
import socket
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
BINARIES = pathlib.Path(os.environ.get("TIDEGATE_BIN_DIR", HERE / "../../target/release"))
NGINX = "/usr/sbin/nginx"
NCHAN = "/usr/lib/nginx/modules/ngx_nchan_module.so"
EVENTS, BYTES = 250, 1000
WARM_UP, SAMPLE = 200, 100
DEADLINE = 120


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--viewers", type=int, default=5000)
    options.add_argument("--rounds", type=int, default=1)
    options = options.parse_args()
    for path in [NGINX, NCHAN, *(BINARIES / name for name in ("job-engine", "edge-gateway", "tidegate-worker"))]:
        if not os.path.exists(path):
            sys.exit(f"{path} is missing; this script's first lines say how to get it")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard < options.viewers + 1000:
        sys.exit(f"{options.viewers} viewers need that many open files, and the hard limit is {hard} (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    print(f"{options.viewers} viewers, bytes a viewer")
    print("| viewers | Tidegate | nchan | ratio |\n| --- | ---: | ---: | ---: |")
    for _ in range(options.rounds):
        ours, theirs = measure(Tidegate, options.viewers), measure(Nchan, options.viewers)
        for name, a, b in zip(("idle", "stalled, more than idle"), ours, theirs):
            print(f"| {name} | {a:,.0f} | {b:,.0f} | {a / b:.2f} |", flush=True)


def measure(kind, count):
    """Bytes for an idle viewer, and for how much more while it does not read."""
    with contextlib.ExitStack() as stack:
        scratch = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tidegate-nchan-")))
        server = stack.enter_context(kind(scratch))
        for viewer in [connect(server) for _ in range(WARM_UP)]:
            viewer.close()
        until("the first viewers are gone", lambda: server.viewers() == 0)
        empty = settled(server)
        viewers = [stack.enter_context(connect(server)) for _ in range(count)]
        until("all viewers are there", lambda: server.viewers() == count)
        idle = settled(server)
        server.talk()
        stalled = settled(server)
        for viewer in viewers[:: count // SAMPLE]:
            read_all(viewer)
        return (idle - empty) / count, (stalled - idle) / count


def connect(server):
    """A viewer's socket, its answer's head read."""
    viewer = socket.socket()
    viewer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    viewer.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)
    viewer.settimeout(DEADLINE)
    viewer.connect(("127.0.0.1", server.port))
    viewer.sendall(f"GET {server.path} HTTP/1.1\r\nHost: bench\r\nAccept: text/event-stream\r\n\r\n".encode())
    head = b""
    while b"\r\n\r\n" not in head:
        more = viewer.recv(4096)
        if not more:
            sys.exit(f"no stream: {head!r}")
        head += more
    if not head.startswith(b"HTTP/1.1 200"):
        sys.exit(f"no stream: {head!r}")
    return viewer


def read_all(viewer):
    """Reads until the last event has come; all of them must."""
    viewer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    seen, rest = 0, b""
    while seen < EVENTS:
        more = viewer.recv(65536)
        if not more:
            sys.exit(f"a viewer that did not read was cut off after {seen} events")
        *lines, rest = (rest + more).split(b"\n")
        for line in lines:
            found = re.match(rb'data: .{,32}?event (\d+) ', line)
            if found:
                seen += 1
                if int(found[1]) != seen:
                    sys.exit(f"a viewer that did not read missed event {seen}")


def until(what, holds, every=0.05):
    deadline = time.monotonic() + DEADLINE
    while not holds():
        if time.monotonic() > deadline:
            sys.exit(f"waited {DEADLINE} s in vain: {what}")
        time.sleep(every)


def settled(server):
    """What the server's processes occupy once they are idle, in bytes."""
    ticks = cpu(server.pids())

    def idle():
        nonlocal ticks
        before, ticks = ticks, cpu(server.pids())
        return ticks - before <= 2  # hundredths of a second: heartbeats and clocks go on

    until("the server is idle", idle, every=1.0)
    return sum(pss(pid) for pid in server.pids())


def cpu(pids):
    """CPU time of the processes, in ticks."""
    return sum(sum(map(int, pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1].split()[11:13])) for pid in pids)


def pss(pid):
    return int(re.search(r"^Pss: +(\d+) kB", pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)[1]) * 1024


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def ask(port, method, path, body=None, headers=None):
    """An answer's status and text; nothing while nobody listens."""
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except ConnectionError:
        return None, ""


class Server:
    """Processes that end with the block."""

    def __init__(self, scratch):
        self.scratch, self.children = scratch, []
        self.port = free_port()

    def start(self, *command):
        log = open(self.scratch / "log", "ab")
        self.children.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, "RUST_LOG": "warn"}))
        return self.children[-1].pid

    def __enter__(self):
        return self

    def __exit__(self, failed, *_):
        for child in self.children:
            child.terminate()
        for child in self.children:
            child.wait()
        if failed:
            print((self.scratch / "log").read_text()[-2000:], file=sys.stderr)


class Nchan(Server):
    path = "/watch"

    def __init__(self, scratch):
        super().__init__(scratch)
        conf = scratch / "nginx.conf"
        conf.write_text(
            f"""load_module {NCHAN};
daemon off; pid {scratch}/pid; error_log {scratch}/log warn; worker_processes 1; worker_rlimit_nofile 20000;
events {{ worker_connections 12000; }}
http {{
  access_log off; client_body_temp_path {scratch}/body; proxy_temp_path {scratch}/proxy; fastcgi_temp_path {scratch}/fastcgi;
  uwsgi_temp_path {scratch}/uwsgi; scgi_temp_path {scratch}/scgi;
  nchan_shared_memory_size 128M; nchan_message_buffer_length {2 * EVENTS}; nchan_message_timeout 1h;
  server {{
    listen 127.0.0.1:{self.port} backlog=4096;
    location = /watch {{ nchan_subscriber eventsource; nchan_channel_id job; nchan_subscriber_first_message newest; }}
    location = /say {{ nchan_publisher; nchan_channel_id job; }}
    location = /status {{ nchan_stub_status; }}
  }}
}}
"""
        )
        if os.geteuid() == 0:
            conf.write_text("user root;\n" + conf.read_text())
        self.master = self.start(NGINX, "-p", str(scratch), "-c", str(conf))
        until("nginx listens", lambda: ask(self.port, "GET", "/status")[0] == 200)

    def pids(self):
        children = pathlib.Path(f"/proc/{self.master}/task/{self.master}/children").read_text().split()
        return [self.master, *map(int, children)]

    def viewers(self):
        return int(re.search(r"subscribers: (\d+)", ask(self.port, "GET", "/status")[1])[1])

    def talk(self):
        publisher = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        for number in range(1, EVENTS + 1):
            publisher.request("POST", "/say", f"event {number} ".ljust(BYTES, "."))
            answer = publisher.getresponse()
            answer.read()
            if answer.status not in (201, 202):
                sys.exit(f"nchan took no event: {answer.status}")


class Tidegate(Server):
    def __init__(self, scratch):
        super().__init__(scratch)
        grpc, self.admin, data = free_port(), free_port(), scratch / "data"
        data.mkdir()
        self.go, self.said = scratch / "go", scratch / "said"
        line = "." * (BYTES - 12)
        script = f"while ! [ -e {self.go} ]; do sleep 0.05; done; i=0; while [ $i -lt {EVENTS} ]; do i=$((i+1)); echo event $i {line}; done; touch {self.said}; sleep 3600"
        config = scratch / "worker.toml"
        config.write_text(f'[[exec]]\nkind = "talker"\ncommand = ["sh", "-c", "{script}"]\nlines_per_second = 10000\n')
        self.start(BINARIES / "job-engine", f"--grpc-listen=127.0.0.1:{grpc}", f"--admin-listen=127.0.0.1:{free_port()}", f"--data-dir={data}")
        self.start(BINARIES / "tidegate-worker", f"--engine=http://127.0.0.1:{grpc}", f"--data-dir={data}", f"--config={config}")
        self.gateway = self.start(
            BINARIES / "edge-gateway", f"--listen=127.0.0.1:{self.port}", f"--admin-listen=127.0.0.1:{self.admin}", f"--engine=http://127.0.0.1:{grpc}"
        )
        until("the worker's kind is on offer", lambda: '"talker"' in ask(self.port, "GET", "/api/kinds")[1])
        status, answer = ask(self.port, "POST", "/api/jobs", '{"kind":"talker","input":{}}', {"Content-Type": "application/json"})
        if status not in (200, 201, 202):
            sys.exit(f"no job: {answer}")
        job = re.search(r'"jobId":"([^"]+)"', answer)[1]
        until("the job runs", lambda: '"PROCESSING"' in ask(self.port, "GET", f"/api/jobs/{job}")[1])
        self.path = f"/api/progress/{job}?lastEventId=latest"

    def pids(self):
        return [self.gateway]

    def viewers(self):
        figures = re.findall(r"^tidegate_gateway_streams\{.*\} (\S+)", ask(self.admin, "GET", "/metrics")[1], re.M)
        return int(sum(map(float, figures)))

    def talk(self):
        self.go.touch()
        until("everything is said", self.said.exists)


if __name__ == "__main__":
    main()
