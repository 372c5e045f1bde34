"""The CSV import alone, attempt by attempt, on real files and a real database; the engine is played."""

from __future__ import annotations

import csv
import pathlib
import sqlite3
import sys
import unittest
from collections.abc import Callable
from typing import Any, cast

from tests.support import AIRPORTS, PYTHON, scratch
from tidegate import JobFailed, JobReleased, SyncContext

sys.path.insert(0, str(PYTHON / "examples"))
import csv_import


class Played:
    """The part of a context that an import uses."""

    def __init__(self, attempt: int, at_checkpoint: Callable[[str], None] = lambda name: None) -> None:
        self.job_id, self.attempt, self.lease_token = "job", attempt, f"{attempt}-x"
        self._at_checkpoint = at_checkpoint

    def progress(self, *args: Any, **more: Any) -> None: ...

    def log(self, *args: Any) -> None: ...

    def checkpoint(self, name: str, data: bytes) -> None:
        self._at_checkpoint(name)


class Killed(Exception):
    pass


class Attempts(unittest.TestCase):
    def setUp(self) -> None:
        self.directory = scratch(self)
        self.database = self.directory / "t.db"

    def write(self, content: bytes) -> None:
        (self.directory / "t.csv").write_bytes(content)

    def run_import(
        self, attempt: int = 1, at_checkpoint: Callable[[str], None] = lambda name: None, **input: Any
    ) -> dict[str, Any]:
        handler = csv_import.handler(self.directory, self.database)
        context = cast(SyncContext, Played(attempt, at_checkpoint))
        result: dict[str, Any] = handler(context, {"path": "t.csv", **input})
        return result

    def rows(self) -> list[list[str]]:
        database = sqlite3.connect(self.database)
        try:
            return [list(row) for row in database.execute("SELECT * FROM t ORDER BY rowid")]
        finally:
            database.close()

    def test_j1_an_attempt_that_was_overtaken_writes_nothing_more(self) -> None:
        self.write(AIRPORTS.read_bytes())

        def overtake(name: str) -> None:
            if name == "row 1000":
                self.run_import(2)

        with self.assertRaises(JobReleased):
            self.run_import(1, overtake)
        with self.assertRaises(JobReleased):
            self.run_import(1)
        with AIRPORTS.open(newline="") as file:
            [_, *expected] = csv.reader(file)
        self.assertEqual(self.rows(), expected)

    def test_j2_an_import_killed_behind_any_batch_is_exact(self) -> None:
        # Records over several lines, quoted separators, a byte order mark, no line end at the end.
        expected = [[f"{i}", f'a "quoted", {i}\nsecond line ä'] for i in range(23)]
        records = "\r\n".join(f'{i},"{text.replace(chr(34), chr(34) * 2)}"' for i, text in expected)
        self.write("\ufeffnumber,text\r\n".encode() + records.encode())

        def kill(name: str) -> None:
            raise Killed

        for attempt in range(1, 10):
            try:
                result = self.run_import(attempt, kill, batch_rows=5)
            except Killed:
                continue
            self.fail(f"{result} although it was killed")
        self.assertEqual(self.run_import(10)["rows"], 23)
        self.assertEqual(self.rows(), expected)

    def test_a_file_that_was_changed_is_not_gone_on_with(self) -> None:
        self.write(b"a\n1\n2\n3\n")

        def change(name: str) -> None:
            self.write(b"a\n1\n2\n4\n5\n")
            raise Killed

        with self.assertRaises(Killed):
            self.run_import(1, change, batch_rows=1)
        with self.assertRaises(JobFailed) as caught:
            self.run_import(2)
        self.assertEqual(caught.exception.code, "input_changed")

    def test_what_cannot_be_imported_is_said(self) -> None:
        for content, code in (
            (b"", "empty_file"),
            (b"a,b\n1\n", "ragged"),
            (b'a\n"1\n', "not_a_csv"),
            (b"a\n\xff\n", "not_a_csv"),
            (b"a,a\n1,2\n", "table"),
        ):
            with self.subTest(content):
                self.database.unlink(missing_ok=True)
                self.write(content)
                with self.assertRaises(JobFailed) as caught:
                    self.run_import()
                self.assertEqual(caught.exception.code, code)

    def test_j37_hostile_input_is_refused(self) -> None:
        outside = pathlib.Path(scratch(self)) / "secret.csv"
        outside.write_text("a\n1\n")
        (self.directory / "link.csv").symlink_to(outside)
        self.write(b"a\n1\n")
        for input in (
            {"path": str(outside)},
            {"path": "../" * 20 + str(outside)},
            {"path": "link.csv"},
            {"path": "."},
            {"path": "nul\0"},
            {"path": 1},
            {"table": 't"; DROP TABLE imports; --'},
            {"table": "imports"},
            {"table": "sqlite_master"},
            {"batch_rows": 0},
            {"batch_rows": True},
            {"rows_per_second": -1},
            {"rows_per_second": float("nan")},
            {"surprise": 1},
        ):
            with self.subTest(input), self.assertRaises(JobFailed):
                self.run_import(**input)
        self.assertFalse(self.database.exists() and self.rows_of_all())

    def rows_of_all(self) -> list[Any]:
        database = sqlite3.connect(self.database)
        try:
            return database.execute("SELECT * FROM imports").fetchall()
        finally:
            database.close()


if __name__ == "__main__":
    unittest.main()
