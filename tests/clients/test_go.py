"""The Go worker without a library, at a real `tidegate`: its count is exact across a SIGKILL, and it can be called off.

`test_go.py WORKER` is given the program that clients/go/build made.
"""

import hashlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import unittest
import urllib.request

from server import Server

DEADLINE = 90  # seconds; a killed worker's lease alone lasts 15
BELOW = 4_000_000
PRIMES = 283_146  # below 4,000,000


class GoWorker(unittest.TestCase):
    worker_binary = ""

    def setUp(self):
        # It is let in by its own key, and nobody else by that one.
        self.user, self.key = (f"tg_{secrets.token_urlsafe(32)}" for _ in range(2))
        entries = (
            f"[[auth.api_key]]\nname = '{name}'\nsha256 = '{hashlib.sha256(key.encode()).hexdigest()}'\n"
            f"subject = '{name}'\nscopes = {scopes}\n"
            for name, key, scopes in [
                ("user", self.user, ["jobs:submit", "jobs:read", "jobs:control"]),
                ("go", self.key, ["engine:work"]),
            ]
        )
        self.server = self.enterContext(Server("".join(entries)))

    def start(self) -> subprocess.Popen:
        environment = os.environ | {
            "TIDEGATE_ENGINE": f"http://{self.server.grpc}",
            "TIDEGATE_TOKEN": self.key,
            "TIDEGATE_GRACE_SECONDS": "0",
        }
        worker = subprocess.Popen([self.worker_binary], env=environment, stderr=subprocess.DEVNULL)
        self.addCleanup(worker.wait)
        self.addCleanup(worker.kill)
        self.until("/api/kinds", lambda kinds: '"primes-go"' in json.dumps(kinds), "the worker is known")
        return worker

    def call(self, method: str, path: str, body=None):
        request = urllib.request.Request(f"http://{self.server.http}{path}", method=method)
        request.add_header("Authorization", f"Bearer {self.user}")
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.loads(response.read() or "null")

    def submit(self, below: int) -> str:
        job = self.call("POST", "/api/jobs", {"kind": "primes-go", "input": {"below": below}})
        return f"/api/jobs/{job['jobId']}"

    def until(self, path: str, condition, what: str):
        deadline = time.monotonic() + DEADLINE
        while not condition(answer := self.call("GET", path)):
            self.assertLess(time.monotonic(), deadline, f"not in time: {what}; {path} says {answer}")
            time.sleep(0.05)
        return answer

    def until_ended(self, job: str):
        return self.until(job, lambda job: job["status"] in ("COMPLETED", "FAILED", "CANCELLED"), "the end")

    def is_under_way(self, job) -> bool:
        return int((job.get("progress") or {}).get("done") or 0) > 100_000 and job.get("checkpoint") is not None

    def test_j2_a_killed_workers_count_goes_on_at_another_and_is_exact(self):
        first = self.start()
        job = self.submit(BELOW)
        before = self.until(job, self.is_under_way, "a part is counted")
        first.send_signal(signal.SIGKILL)
        first.wait()
        self.assertEqual(before["status"], "PROCESSING", "it was killed in the middle")
        self.start()
        job = self.until_ended(job)
        self.assertEqual((job["status"], job.get("result"), job["attempt"]), ("COMPLETED", {"primes": PRIMES}, 2))

    def test_j36_a_leaving_workers_job_goes_on_at_once(self):
        first = self.start()
        job = self.submit(BELOW)
        self.until(job, self.is_under_way, "a part is counted")
        first.send_signal(signal.SIGTERM)
        self.assertEqual(first.wait(20), 0)
        self.start()
        job = self.until_ended(job)
        # A third attempt would be one that waited for the lease of a worker that was gone.
        self.assertEqual((job["status"], job.get("result"), job["attempt"]), ("COMPLETED", {"primes": PRIMES}, 2))

    def test_j10_a_count_is_called_off(self):
        worker = self.start()
        job = self.submit(10**12)
        self.until(job, self.is_under_way, "a part is counted")
        begun = time.monotonic()
        self.call("POST", f"{job}/cancel", {"reason": "enough"})
        self.assertEqual(self.until_ended(job)["status"], "CANCELLED")
        self.assertLess(time.monotonic() - begun, 8, "it stopped by itself, before the deadline of 10 s")
        self.assertIsNone(worker.poll(), "the worker goes on")
        self.assertEqual(self.until_ended(self.submit(100))["result"], {"primes": 25})


if __name__ == "__main__":
    GoWorker.worker_binary = os.path.abspath(sys.argv.pop(1))
    unittest.main()
