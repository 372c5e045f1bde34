"""The worker under judgement: a process of its own, its output line by line, its memory, its end."""

import asyncio
import json
import os
import pathlib
import signal


class WorkerProcess:
    def __init__(self, command, environment, scratch: pathlib.Path, note):
        self.command, self.environment, self.note = command, environment, note
        self.errors_file = scratch / "stderr"
        self.errors_file.touch()
        self.process = None
        # The JSON objects of stdout, in order.
        self.lines: list[dict] = []
        self.exited = asyncio.Event()
        # Whether the case expects it to exit.
        self.may_exit = False
        self.code: int | None = None

    async def start(self) -> None:
        with self.errors_file.open("wb") as errors:
            self.process = await asyncio.create_subprocess_exec(
                *self.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                env=self.environment,
                start_new_session=True,
                limit=2**24,
            )
        self.reader = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        async for line in self.process.stdout:
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                self.note(f"stdout: {line.decode(errors='replace').strip()}")
                self.lines.append(value)
        self.code = await self.process.wait()
        self.exited.set()

    @property
    def errors(self) -> str:
        return self.errors_file.read_text(errors="replace")

    def terminate(self) -> None:
        """SIGTERM, after which it may exit."""
        self.may_exit = True
        self.process.send_signal(signal.SIGTERM)

    def memory(self) -> int:
        """The resident memory of the worker and of whatever it started, in bytes. Linux only."""
        total = 0
        for entry in pathlib.Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                # The session (field 6) is the worker's own; field 24 counts resident pages.
                if int(fields[3]) == self.process.pid:
                    total += int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
            except (OSError, IndexError):
                continue
        return total

    async def close(self) -> None:
        """Kills what is left of it, with everything it started."""
        if self.process is None:
            return
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        await self.process.wait()
        self.reader.cancel()
