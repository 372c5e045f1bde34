"""Every alert fires and clears, seen through the API of a real Prometheus that scrapes a real Tidegate, when a fault is done to it.

The rules are those that are deployed, in a copy whose time is shorter (`shortened`): windows of minutes are seconds, expressions and
thresholds are the same. The faults are real: processes are killed and frozen, Redis stalls, is full, and loses its connections; callers
come without a key, too often, or with cursors of other logs. Only four would take minutes or thousands of viewers, and are
shown by a small exporter beside the real ones: `EXPORTED`.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import itertools
import json
import pathlib
import queue
import re
import signal
import socket
import sys
import tempfile
import threading
import time
import unittest
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable

import grpc
import yaml
from live import DEADLINE, DEBUG, ROOT, RULES, Processes, free_port, get, listens, until

sys.path.insert(0, str(ROOT / "clients" / "python"))
from tidegate.v1 import job_pb2  # noqa: E402
from tidegate.v1 import worker_service_pb2 as worker_pb2  # noqa: E402
from tidegate.v1.worker_service_pb2_grpc import WorkerServiceStub  # noqa: E402

#: By how much time is shorter, and the shortest window in seconds: a rate needs two scrapes, an engine's are a second apart, and
#: between two of them a stalled Redis may have answered nothing.
FASTER, SHORTEST = 150, 4.5
#: How long a worker may be silent, in seconds; Redis stalls for less, and workers are frozen for more.
LEASE, STALL, FREEZE = 2, 1.3, 3.0
SLOTS = 6
#: How many files the gateway may open that is to run out of them.
FILES = 128
KEY = "tg_a-key-of-the-test-of-alerts"

#: What is not done for real, as the exporter shows it: jobs that have waited for minutes, thousands of viewers that
#: fall behind, a process with too little CPU, schedules, which fire by the minute.
EXPORTED = {
    "TidegateJobsWait": """
tidegate_engine_queue_wait_seconds_bucket{{kind="exported",le="60"}} 0
tidegate_engine_queue_wait_seconds_bucket{{kind="exported",le="300"}} {grows}
tidegate_engine_queue_wait_seconds_bucket{{kind="exported",le="+Inf"}} {grows}
""",
    "TidegateSlowViewers": "tidegate_gateway_slow_viewers_total {grows}",
    "TidegateBusy": "tidegate_runtime_queue {high}",
    "TidegateSchedulesMissed": 'tidegate_engine_schedule_firings_total{{outcome="missed"}} {grows}',
}


def seconds(duration: str) -> float:
    return float(duration[:-1]) * {"s": 1, "m": 60, "h": 3600}[duration[-1]]


def shortened(rules: dict) -> dict:
    """The rules, with shorter durations and nothing else changed."""

    def window(found: re.Match) -> str:
        return f"[{max(SHORTEST, seconds(found[1]) / FASTER) * 1000:.0f}ms]"

    for rule in itertools.chain.from_iterable(group["rules"] for group in rules["groups"]):
        rule["expr"] = re.sub(r"\[(\d+[smh])\]", window, rule["expr"])
        if "for" in rule:
            rule["for"] = f"{seconds(rule['for']) / FASTER * 1000:.0f}ms"
    return rules


class Exporter(http.server.ThreadingHTTPServer):
    """Serves `EXPORTED`, bad while `bad` is set."""

    bad = False
    grown = 0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Exporter.Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.server.bad:
                self.server.grown += 100
            text = "\n".join(EXPORTED.values()).format(grows=self.server.grown, high=500 if self.server.bad else 0)
            self.send_response(200)
            self.end_headers()
            # A scrape that was late has left.
            with contextlib.suppress(BrokenPipeError):
                self.wfile.write((text + "\n").encode())

        def log_message(self, *_: object) -> None:
            pass


class Redis:
    """Says things to a Redis."""

    def __init__(self, port: int) -> None:
        self.connection = socket.create_connection(("127.0.0.1", port), 10)

    def say(self, line: str) -> str:
        self.connection.sendall(line.encode() + b"\r\n")
        return self.connection.recv(4096).decode()


class Alerts(unittest.TestCase):
    def setUp(self) -> None:
        stack = contextlib.ExitStack()
        self.addCleanup(stack.close)
        self.stack = stack
        self.scratch = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tidegate-alerts-")))
        self.processes = Processes(self.scratch, stack)
        self.exporter = Exporter()
        stack.callback(self.exporter.server_close)
        stack.callback(self.exporter.shutdown)
        self.fired: set[str] = set()
        (self.scratch / "data").mkdir()
        key = {"name": "test", "subject": "test", "scopes": ["jobs:submit", "jobs:read", "jobs:control"]}
        lines = [f"{name} = {json.dumps(value)}" for name, value in key.items()]
        sha256 = hashlib.sha256(KEY.encode()).hexdigest()
        (self.scratch / "auth.toml").write_text("\n".join(["[[auth.api_key]]", f'sha256 = "{sha256}"', *lines, ""]))
        ports = iter([free_port() for _ in range(11)])
        self.redis_port, self.prometheus = next(ports), next(ports)
        self.grpc, self.engine_admin = [next(ports) for _ in range(2)], [next(ports) for _ in range(2)]
        self.http, self.gateway_admin = [next(ports) for _ in range(2)], [next(ports) for _ in range(2)]
        self.worker_admin = next(ports)
        arguments = ["--port", self.redis_port, "--save", "", "--bind", "127.0.0.1", "--dir", self.scratch]
        self.processes.start("redis", "redis-server", *arguments)
        until("Redis listens", lambda: listens(self.redis_port))
        self.redis = Redis(self.redis_port)
        stack.callback(self.redis.connection.close)
        self.engines = [self.engine(n) for n in range(2)]
        self.gateways = [self.gateway(n) for n in range(2)]
        self.worker_process = self.worker()
        arguments = [f"--config.file={self.config()}", f"--storage.tsdb.path={self.scratch / 'tsdb'}"]
        self.processes.start("prometheus", "prometheus", *arguments, f"--web.listen-address=127.0.0.1:{self.prometheus}")
        until("Prometheus is ready", lambda: get(f"http://127.0.0.1:{self.prometheus}/-/ready"))
        until("the kinds are on offer", lambda: '"demo"' in get(f"http://127.0.0.1:{self.http[0]}/api/kinds"))

    def engine(self, n: int):
        return self.processes.start(
            f"engine-{n}",
            DEBUG / "job-engine",
            f"--grpc-listen=127.0.0.1:{self.grpc[n]}",
            f"--admin-listen=127.0.0.1:{self.engine_admin[n]}",
            f"--redis=redis://127.0.0.1:{self.redis_port}",
            f"--lease-seconds={LEASE}",
        )

    def gateway(self, n: int):
        """The first serves everybody; the second asks for a key, has room for two streams, and may open few files."""
        flags = [f"--listen=127.0.0.1:{self.http[n]}", f"--admin-listen=127.0.0.1:{self.gateway_admin[n]}"]
        flags += [f"--engine=http://127.0.0.1:{port}" for port in self.grpc]
        if n == 1:
            flags += [f"--config={self.scratch / 'auth.toml'}", "--max-streams=2", "--max-connections=200"]
        return self.processes.start(f"gateway-{n}", DEBUG / "edge-gateway", *flags, files=FILES if n == 1 else None)

    def worker(self):
        return self.processes.start(
            "worker",
            DEBUG / "tidegate-worker",
            "--engine=" + ",".join(f"http://127.0.0.1:{port}" for port in self.grpc),
            f"--admin-listen=127.0.0.1:{self.worker_admin}",
            f"--data-dir={self.scratch / 'data'}",
            f"--capacity={SLOTS}",
        )

    def config(self) -> pathlib.Path:
        rules = self.scratch / "rules.yml"
        rules.write_text(yaml.safe_dump(shortened(yaml.safe_load(RULES.read_text()))))
        targets = {
            "tidegate-engine": self.engine_admin,
            "tidegate-gateway": self.gateway_admin,
            "tidegate-worker": [self.worker_admin],
            "exporter": [self.exporter.server_address[1]],
        }
        config = {
            "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"},
            "rule_files": [str(rules)],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports]}]}
                for job, ports in targets.items()
            ],
        }
        # A scrape of an engine waits for Redis, half a second at most.
        config["scrape_configs"][0] |= {"scrape_interval": "1s", "scrape_timeout": "1s"}
        path = self.scratch / "prometheus.yml"
        path.write_text(yaml.safe_dump(config))
        return path

    # What is seen.

    def firing(self) -> set[str]:
        found = json.loads(get(f"http://127.0.0.1:{self.prometheus}/api/v1/alerts"))["data"]["alerts"]
        return {alert["labels"]["alertname"] for alert in found if alert["state"] == "firing"}

    def all_up(self) -> bool:
        targets = json.loads(get(f"http://127.0.0.1:{self.prometheus}/api/v1/targets"))["data"]["activeTargets"]
        return all(target["health"] == "up" for target in targets)

    def fire(self, *names: str, fault: Callable[[], object] = lambda: None) -> None:
        """Does `fault` again and again until all of these have been seen firing."""
        waited = set(names)
        deadline = time.monotonic() + DEADLINE
        while waited:
            fault()
            waited -= self.firing()
            if time.monotonic() > deadline:
                self.fail(f"did not fire: {sorted(waited)}; what does: {sorted(self.firing())}")
            time.sleep(0.1)
        self.fired |= set(names)

    def clear(self, *names: str) -> None:
        until(f"cleared: {names}", lambda: not self.firing() & set(names))

    # What is done.

    def call(self, method: str, path: str, body: object = None, gateway: int = 0, **headers: str) -> dict:
        url = f"http://127.0.0.1:{self.http[gateway]}{path}"
        text = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, text, {"content-type": "application/json", **headers}, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or b"null")

    def submit(self, options: dict | None = None, gateway: int = 0, **input: object) -> str:
        job = {"kind": "demo", "input": input, "options": options or {}}
        headers = {"authorization": f"Bearer {KEY}"} if gateway == 1 else {}
        return self.call("POST", "/api/jobs", job, gateway, **headers)["jobId"]

    def view(self, job: str, gateway: int = 0, headers: str = "") -> socket.socket:
        """Opens a stream and reads its beginning; what follows waits in the kernel."""
        viewer = socket.create_connection(("127.0.0.1", self.http[gateway]), 30)
        self.stack.callback(viewer.close)
        request = f"GET /api/progress/{job} HTTP/1.1\r\nhost: test\r\naccept: text/event-stream\r\n{headers}\r\n"
        viewer.sendall(request.encode())
        self.assertIn(b" 200 ", viewer.recv(64))
        return viewer

    def test_every_alert_fires_by_its_fault_and_clears_when_that_ends(self) -> None:
        # Jobs that are due in an hour: they have viewers, and nothing happens to them.
        later = [self.submit(options={"delaySeconds": 3600}) for _ in range(8)]
        viewers = [self.view(job) for job in later]
        until("all are scraped", self.all_up)
        until("all is well", lambda: not self.firing())

        self.callers(later[0])
        self.workers()
        self.outages(viewers)

        names = {
            rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"] if "alert" in rule
        }
        self.assertEqual(self.fired, names)
        until("all has cleared", lambda: not self.firing())

    def callers(self, job: str) -> None:
        """Callers, files, and what the exporter shows."""
        own = self.submit(options={"delaySeconds": 3600}, gateway=1)
        key = f"authorization: Bearer {KEY}\r\n"
        held = [self.view(own, 1, key) for _ in range(2)]
        figures = get(f"http://127.0.0.1:{self.gateway_admin[1]}/metrics")
        opened = int(re.search(r"(?m)^process_open_fds (\d+)", figures)[1])
        held += [socket.create_connection(("127.0.0.1", self.http[1]), 30) for _ in range(FILES * 7 // 8 - opened)]
        self.exporter.bad = True

        def fault() -> None:
            for _ in range(3):
                with self.assertRaises(urllib.error.HTTPError) as refused:
                    self.call("GET", "/api/jobs", gateway=1)
                self.assertEqual(refused.exception.code, 401)
            self.view(own, 1, key).close()
            self.view(job, 0, "last-event-id: 3-anotherlog\r\n").close()
            self.submit(steps=1, seconds=0, failAt=1)
            self.redis.say("CLIENT KILL TYPE pubsub")

        self.fire(
            "TidegateCredentialsRefused",
            "TidegateStreamsRefused",
            "TidegateLogsReset",
            "TidegateJobsFail",
            "TidegateFilesRunOut",
            "TidegateHintsLost",
            *EXPORTED,
            fault=fault,
        )
        self.exporter.bad = False
        for viewer in held:
            viewer.close()
        # What has fired clears while the next faults are done; none of these is among them.

    def workers(self) -> None:
        """Workers that have too much to do, a Redis that stalls and is full, workers that freeze and vanish."""
        running = [self.submit(steps=3000, seconds=300, customEvery=0) for _ in range(SLOTS)]
        viewers = [self.view(job) for job in running]

        def stall() -> None:
            self.redis.say(f"CLIENT PAUSE {STALL * 1000:.0f} ALL")
            time.sleep(STALL + 0.1)

        self.fire("TidegateLogSlow", "TidegateDeliverySlow", fault=stall)
        self.fire("TidegateWorkersFull")

        self.redis.say("CONFIG SET maxmemory 1")
        self.fire("TidegateLogFails")
        self.redis.say("CONFIG SET maxmemory 0")
        self.clear("TidegateLogFails", "TidegateLogSlow", "TidegateDeliverySlow")

        def freeze() -> None:
            self.worker_process.send_signal(signal.SIGSTOP)
            time.sleep(FREEZE)
            self.worker_process.send_signal(signal.SIGCONT)
            time.sleep(1)

        self.fire("TidegateLeasesExpire", fault=freeze)
        self.fire("TidegateFencedWrites", fault=self.report_on_a_job_of_others)
        self.worker_process.send_signal(signal.SIGKILL)
        self.fire("TidegateNoWorkers")
        for job in running:
            self.call("POST", f"/api/jobs/{job}/cancel", {})
        for viewer in viewers:
            viewer.close()
        self.worker_process = self.worker()
        self.clear("TidegateNoWorkers", "TidegateWorkersFull", "TidegateLeasesExpire", "TidegateFencedWrites")

    def report_on_a_job_of_others(self) -> None:
        """As a worker that was given up and does not know it; one of the libraries would, once it is told."""
        lines = [
            worker_pb2.Report(job_id=str(uuid.uuid4()), lease_token="1-gone", number=1, log=job_pb2.Log(text="late"))
            for _ in range(30)
        ]
        said = queue.SimpleQueue()
        said.put(
            worker_pb2.WorkRequest(hello=worker_pb2.Hello(name="late", kinds=[worker_pb2.WorkerKind(kind="late")], capacity=1))
        )
        with grpc.insecure_channel(f"127.0.0.1:{self.grpc[0]}") as channel:
            answers = WorkerServiceStub(channel).Work(iter(said.get, None), timeout=10)
            self.assertEqual(next(answers).WhichOneof("message"), "welcome")
            for line in lines:
                said.put(worker_pb2.WorkRequest(report=line))
            for _ in lines:
                self.assertEqual(next(answers).ack.result, worker_pb2.REPORT_RESULT_LEASE_LOST)
            said.put(None)

    def outages(self, viewers: list[socket.socket]) -> None:
        """One engine, all engines, all gateways."""
        self.assertGreater(len(viewers), 3, "a break of upstreams needs some")
        for name, parts, start in [
            ("TidegateEnginesGone", self.engines, self.engine),
            ("TidegateGatewaysGone", self.gateways, self.gateway),
        ]:
            parts[1].send_signal(signal.SIGKILL)
            self.fire("TidegateReplicaMissing")
            parts[0].send_signal(signal.SIGKILL)
            self.fire(name, *(["TidegateUpstreamsBreak"] if parts is self.engines else []))
            for n in range(2):
                parts[n].wait()
                parts[n] = start(n)
            self.clear(name, "TidegateReplicaMissing")


if __name__ == "__main__":
    unittest.main()
