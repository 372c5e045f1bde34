"""The README's worker and caller, run as they stand."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import unittest

from tests.support import DEADLINE, PYTHON, Engine, Process, offered, scratch
from tidegate import Client


class Readme(unittest.IsolatedAsyncioTestCase):
    async def test_the_worker_and_the_caller_work(self) -> None:
        directory = scratch(self)
        engine = Engine(directory)
        self.addAsyncCleanup(engine.end)
        await engine.start()
        blocks = re.findall(r"```python\n(.*?)```", (PYTHON / "README.md").read_text(), re.DOTALL)
        worker, caller = (block.replace("http://127.0.0.1:50051", engine.address) for block in blocks)
        process = Process([sys.executable, "-c", worker], directory / "worker.log")
        self.addAsyncCleanup(process.end)
        async with Client(engine.address) as client:
            await offered(client, "thumbnails")
        script = [sys.executable, "-c", caller]
        done = await asyncio.to_thread(
            subprocess.run, script, check=True, cwd=PYTHON, capture_output=True, text=True, timeout=DEADLINE
        )
        self.assertEqual(done.stdout.splitlines()[-1], "Completed(result={'thumbnails': 1})", done.stdout)


if __name__ == "__main__":
    unittest.main()
