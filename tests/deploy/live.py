"""Processes and questions that the live tests of Prometheus share."""

from __future__ import annotations

import contextlib
import os
import pathlib
import random
import signal
import socket
import subprocess
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yml"
DEBUG = ROOT / "target" / "debug"
#: Far beyond what anything here takes, in seconds.
DEADLINE = 60.0


def free_port() -> int:
    """A port below those that the kernel gives to outgoing connections: it stays free while its server is being restarted."""
    while True:
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", random.randrange(10_000, 32_000))) as held:
            return held.getsockname()[1]


def until(what: str, look, seconds: float = DEADLINE):
    """Waits until `look` finds something."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            if found := look():
                return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.1)


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


def listens(port: int) -> bool:
    socket.create_connection(("127.0.0.1", port), 1).close()
    return True


class Processes:
    """What a test has started, killed when it ends."""

    def __init__(self, scratch: pathlib.Path, stack: contextlib.ExitStack) -> None:
        self.scratch, self.stack = scratch, stack

    def start(self, name: str, program: object, *arguments: object, files: int | None = None) -> subprocess.Popen:
        """Starts a program; `files` is how many it may open."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("TIDEGATE_")}
        command = [str(program), *map(str, arguments)]
        if files is not None:
            command = ["sh", "-c", f'ulimit -n {files}; exec "$@"', "sh", *command]
        with (self.scratch / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=kept)

        def end() -> None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            process.wait()

        self.stack.callback(end)
        return process
