"""Starts a whole Tidegate on free ports, in a scratch directory, for one test file."""

import os
import pathlib
import signal
import socket
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]


def binary() -> pathlib.Path:
    """The `tidegate` binary: TIDEGATE_BIN, or the debug build of this checkout."""
    path = pathlib.Path(os.environ.get("TIDEGATE_BIN", ROOT / "target" / "debug" / "tidegate"))
    if not path.exists():
        raise SystemExit(f"{path} is missing: run `cargo build --workspace`, or the whole of `tests/run`")
    return path


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on; all are held until all are found, so they differ."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Server:
    """A running `tidegate`; use it as a context manager. `config` is what its configuration file says."""

    def __init__(self, config: str = "") -> None:
        self.config = config

    def __enter__(self) -> "Server":
        self.scratch = tempfile.TemporaryDirectory(prefix="tidegate-clients-")
        http, grpc, gateway_admin, engine_admin = free_ports(4)
        self.http, self.grpc = f"127.0.0.1:{http}", f"127.0.0.1:{grpc}"
        self.log = pathlib.Path(self.scratch.name) / "log"
        file = pathlib.Path(self.scratch.name) / "tidegate.toml"
        file.write_text(self.config)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TIDEGATE_")}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    str(binary()),
                    f"--listen={self.http}",
                    f"--grpc-listen={self.grpc}",
                    f"--admin-listen=127.0.0.1:{gateway_admin}",
                    f"--engine-admin-listen=127.0.0.1:{engine_admin}",
                    f"--data-dir={self.scratch.name}/data",
                    f"--config={file}",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        deadline = time.monotonic() + 30
        # The banner is printed once everything is ready, the local worker too.
        while f"http://{self.http}" not in self.log.read_text(errors="replace"):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise AssertionError(f"tidegate is not ready:\n{self.output}")
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.output = self.log.read_text(errors="replace")
        self.scratch.cleanup()
