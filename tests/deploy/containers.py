"""Brings docker-compose.yml up for real, starts a job from the console in a browser, kills a gateway and an engine under it and
under viewers of its API, and looks at what they saw.

Needs Docker with Compose, and what the images need; so it is no part of `tests/run`. Leaves nothing behind. The browser is
Chromium, as in tests/browser.

    npm ci --prefix tests/browser
    python3 tests/deploy/containers.py

TIDEGATE_IMAGE names an image to use instead of building one.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import threading
import time
import unittest
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROJECT = "tidegate-containers-test"
#: Far beyond what anything here takes, in seconds.
DEADLINE = 180.0
VIEWERS = 6
STEPS = 60


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as held:
        return held.getsockname()[1]


HTTP, PROMETHEUS, GRAFANA = free_port(), free_port(), free_port()
ENVIRONMENT = {
    **os.environ,
    "TIDEGATE_PORT": str(HTTP),
    "PROMETHEUS_PORT": str(PROMETHEUS),
    "GRAFANA_PORT": str(GRAFANA),
}
API = f"http://127.0.0.1:{HTTP}"


def compose(*arguments: str, check: bool = True) -> str:
    command = ["docker", "compose", "--project-name", PROJECT, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, text=True, capture_output=True, check=False)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    return done.stdout


#: The operator's API key, once there is one.
KEY: list[str] = []


def request(url: str, body: bytes | None = None, **headers: str) -> urllib.request.Request:
    if KEY and url.startswith(API):
        headers["authorization"] = f"Bearer {KEY[0]}"
    return urllib.request.Request(url, body, {name.replace("_", "-"): value for name, value in headers.items()})


def get(url: str) -> str:
    with urllib.request.urlopen(request(url), timeout=10) as answer:
        return answer.read().decode()


def until(what: str, look, seconds: float = DEADLINE):
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError, KeyError):
            if found := look():
                return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.2)


class Console(threading.Thread):
    """The console in a browser: starts a job from its form and shows it to the end."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        command = ["node", "tests/browser/containers.mjs", API, str(STEPS), "30"]
        environment = {**os.environ, "TIDEGATE_TOKEN": KEY[0]}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE)
        #: The job's id, the number of each last event that was shown, how the job ended.
        self.said: list[str] = []
        self.start()

    def run(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.said.append(line.strip())

    @property
    def job(self) -> str:
        return until("a job is started from the console", lambda: self.said or (self.process.poll() is not None and [""]))[0]

    @property
    def shown(self) -> int:
        return max(map(int, filter(str.isdecimal, self.said[1:])), default=0)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.join()
        if self.process.stdout:
            self.process.stdout.close()


class Viewer(threading.Thread):
    """What EventSource does: comes back with the last id until the job has ended."""

    def __init__(self, job: str) -> None:
        super().__init__(daemon=True)
        self.job = job
        self.seen: list[tuple[str, str]] = []
        self.losses = 0
        self.start()

    def run(self) -> None:
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if self.connect():
                    return
            self.losses += 1
            time.sleep(0.3)

    def connect(self) -> bool:
        headers = {"accept": "text/event-stream"}
        if self.seen:
            headers["last_event_id"] = self.seen[-1][0]
        with urllib.request.urlopen(request(f"{API}/api/progress/{self.job}", **headers), timeout=30) as stream:
            event, number = "", ""
            for line in map(bytes.decode, stream):
                name, _, value = line.rstrip("\r\n").partition(": ")
                if name == "event":
                    event = value
                elif name == "id":
                    number = value
                elif not name:
                    # A blank line: the event is whole.
                    if number:
                        self.seen.append((number, event))
                    if event in ("complete", "failed", "cancelled"):
                        return True
                    event, number = "", ""
        return False

    @property
    def numbers(self) -> list[int]:
        return [int(number.split("-")[0]) for number, _ in self.seen]


class Containers(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.addClassCleanup(lambda: compose("down", "--volumes", "--timeout", "5", check=False))
        try:
            compose("up", "--detach", "--wait", "--no-build" if "TIDEGATE_IMAGE" in os.environ else "--build")
        except AssertionError:
            print(compose("ps", "--all", check=False), compose("logs", "--tail", "20", check=False))
            raise
        read = ["run", "--rm", "--no-deps", "--no-TTY", "--entrypoint", "cat", "init", "/secrets/operator/api-key"]
        KEY[:] = [compose(*read).strip()]

    def test_nobody_is_let_in_without_a_key(self) -> None:
        key = KEY.pop()
        try:
            with self.assertRaises(urllib.error.HTTPError) as refused:
                get(f"{API}/api/jobs")
            self.assertEqual(refused.exception.code, 401)
        finally:
            KEY.append(key)
        self.assertIn("jobs", json.loads(get(f"{API}/api/jobs")))

    def test_a_gateway_and_an_engine_are_killed_and_nothing_is_lost(self) -> None:
        until("the kinds are on offer", lambda: '"demo"' in get(f"{API}/api/kinds"))
        console = Console()
        self.addCleanup(console.stop)
        job = console.job
        self.assertNotEqual(job, "", "the console has failed")
        viewers = [Viewer(job) for _ in range(VIEWERS)]
        until("all viewers are under way", lambda: all(len(viewer.seen) > 5 for viewer in viewers))
        for service in ["edge-gateway", "job-engine"]:
            victim = compose("ps", "--quiet", service).split()[0]
            subprocess.run(["docker", "kill", "--signal", "KILL", victim], check=True, capture_output=True)
            before, shown = [len(viewer.seen) for viewer in viewers], console.shown
            until(
                f"all go on without a {service}",
                lambda before=before: all(len(v.seen) > n + 10 for v, n in zip(viewers, before, strict=True)),
            )
            until(f"the console goes on without a {service}", lambda shown=shown: console.shown > shown + 10)
        for viewer in viewers:
            viewer.join(DEADLINE)
            self.assertEqual(viewer.numbers, list(range(1, len(viewer.seen) + 1)), "a hole, a double or a swap")
            self.assertEqual(viewer.seen, viewers[0].seen, "two viewers saw different events")
            self.assertEqual(viewer.seen[-1][1], "complete")
        self.assertEqual(console.process.wait(DEADLINE), 0, "the console has failed")
        console.join(DEADLINE)
        self.assertEqual((console.shown, console.said[-1]), (len(viewers[0].seen), "COMPLETED"))
        names = [event for _, event in viewers[0].seen]
        self.assertEqual(names.count("checkpoint"), STEPS, "a step was done twice, or not at all")
        self.assertGreater(sum(viewer.losses for viewer in viewers), 0, "no viewer was at the gateway that was killed")
        stored = json.loads(get(f"{API}/api/jobs/{job}"))
        self.assertEqual(stored["status"], "COMPLETED")
        compose("up", "--detach", "--wait")

    def test_what_watches_over_it_is_reachable_and_sees_all(self) -> None:
        self.assertIn("<title>", get(API))
        self.assertIn("ok", get(f"http://127.0.0.1:{GRAFANA}/api/health"))

        def all_up() -> bool:
            query = f"http://127.0.0.1:{PROMETHEUS}/api/v1/query?query=sum%20by%20(job)%20(up)"
            found = {r["metric"]["job"]: r["value"][1] for r in json.loads(get(query))["data"]["result"]}
            jobs = ["tidegate-engine", "tidegate-gateway", "tidegate-worker", "load-balancer"]
            return tuple(map(found.get, jobs)) == ("2", "2", "1", "1")

        until("Prometheus sees two engines, two gateways, the worker and the load balancer", all_up)
        query = f"http://127.0.0.1:{PROMETHEUS}/api/v1/query?query="

        def serving() -> list[str]:
            found = json.loads(get(query + "tidegate_gateway_engines_serving"))["data"]["result"]
            return [series["value"][1] for series in found]

        until("both gateways see both engines", lambda: serving() == ["2", "2"])
        rules = json.loads(get(f"http://127.0.0.1:{PROMETHEUS}/api/v1/rules?type=alert"))["data"]["groups"]
        self.assertGreater(len(rules), 1)
        firing = json.loads(get(query + "ALERTS%7Balertstate=%22firing%22%7D"))["data"]["result"]
        self.assertEqual(firing, [])

    def test_the_secrets_are_their_readers_alone_and_made_once(self) -> None:
        read = "stat -c '%a %u' /run/secrets/redis.conf; sha256sum </run/secrets/redis.conf"
        before = compose("exec", "--no-TTY", "redis", "sh", "-c", read)
        self.assertTrue(before.startswith("400 999"), before)
        compose("up", "--detach", "--wait", "init", check=False)
        self.assertEqual(compose("exec", "--no-TTY", "redis", "sh", "-c", read), before)

    def test_every_container_is_confined(self) -> None:
        for container in compose("ps", "--quiet").split():
            told = subprocess.run(["docker", "inspect", container], text=True, capture_output=True, check=True).stdout
            facts = json.loads(told)[0]
            with self.subTest(container=facts["Name"]):
                self.assertTrue(facts["HostConfig"]["ReadonlyRootfs"])
                self.assertNotIn(facts["Config"]["User"].split(":")[0], ["", "0", "root"])
                self.assertGreater(facts["HostConfig"]["Memory"], 0)
                self.assertEqual(facts["State"]["Health"]["Status"], "healthy")


if __name__ == "__main__":
    unittest.main()
