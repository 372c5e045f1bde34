"""Imports CSV files into SQLite, losing no row and doubling none, whatever is killed when.

    python csv_import.py --dir ./data --database ./imports.db
    tidegate submit csv-import-python '{"path": "airports.csv"}' --watch

How it is exact: each batch of rows is committed *together with its position in the file*, in one transaction of the database.
The database, not the engine, says where to go on; the engine's checkpoint tells viewers, and that the database is not empty.
Each batch is written only while the import is still this attempt's: a worker that was paused past its lease, and wakes up
beside its successor, writes nothing.

SQLite blocks, so the handler is a plain function: it runs in a thread, and every call of `ctx` is a place where a
cancellation stops it.
"""

import argparse
import csv
import logging
import pathlib
import re
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from tidegate import JobFailed, JobReleased, SyncContext, Worker

#: The longest line, in bytes: a binary file has lines of any length.
MAX_LINE = 1 << 20
SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["path"],
    "properties": {
        "path": {"type": "string", "description": "The file, below the directory that --dir names."},
        "table": {
            "type": "string",
            "pattern": "^[A-Za-z_][A-Za-z0-9_]{0,62}$",
            "description": "By default named after the file.",
        },
        "batch_rows": {"type": "integer", "minimum": 1, "maximum": 100000, "default": 500},
        "rows_per_second": {"type": "number", "exclusiveMinimum": 0, "description": "Spares the disk; no limit by default."},
    },
}
STATE = """CREATE TABLE IF NOT EXISTS imports (
    job_id TEXT PRIMARY KEY, attempt INTEGER NOT NULL, lease TEXT NOT NULL,
    size INTEGER NOT NULL, modified_ns INTEGER NOT NULL, columns INTEGER NOT NULL,
    offset INTEGER NOT NULL, rows INTEGER NOT NULL, done INTEGER NOT NULL DEFAULT 0
) STRICT"""


class Records:
    """The records of a CSV file (RFC 4180, UTF-8), and where the next one begins."""

    def __init__(self, file: BinaryIO, offset: int) -> None:
        file.seek(offset)
        self._file = file
        self.offset = offset
        # The reader takes lines only as it needs them: between two records, `offset` is exactly at the next one.
        self._reader = csv.reader(self._lines(), strict=True)

    def _lines(self) -> Iterator[str]:
        while line := self._file.readline(MAX_LINE):
            if len(line) == MAX_LINE:
                raise csv.Error(f"a line is longer than {MAX_LINE} bytes")
            start = self.offset == 0
            self.offset += len(line)
            yield line.decode("utf-8-sig" if start else "utf-8")

    def __iter__(self) -> Iterator[list[str]]:
        return self

    def __next__(self) -> list[str]:
        try:
            return next(self._reader)
        except (csv.Error, UnicodeDecodeError) as error:
            raise JobFailed("not_a_csv", f"before byte {self.offset}: {error}") from None


class Import:
    """One attempt at importing one file."""

    def __init__(self, ctx: SyncContext, file: BinaryIO, database: pathlib.Path, table: str) -> None:
        self.ctx = ctx
        self.file = file
        self.size = file.seek(0, 2)
        self.modified_ns = pathlib.Path(file.name).stat().st_mtime_ns
        self.table = table
        # No transaction but those begun here. Another writer is waited for: it may be a worker that was paused.
        self.db = sqlite3.connect(database, timeout=600, isolation_level=None)
        self.db.execute("PRAGMA journal_mode = wal")
        self.db.execute("PRAGMA synchronous = full")
        self.db.execute(STATE)

    def claim(self) -> tuple[int, int, int]:
        """Makes this attempt the only writer; returns the columns, the offset and the rows so far."""
        ctx, db = self.ctx, self.db
        db.execute("BEGIN IMMEDIATE")
        found = db.execute(
            "SELECT attempt, size, modified_ns, columns, offset, rows FROM imports WHERE job_id = ?", [ctx.job_id]
        ).fetchone()
        if found is None:
            records = Records(self.file, 0)
            header = next(records, None)
            if not header:
                raise JobFailed("empty_file", "the file has no header")
            names = ", ".join(f'"{name.replace(chr(34), chr(34) * 2)}" TEXT' for name in header)
            try:
                db.execute(f'CREATE TABLE "{self.table}" ({names})')
            except sqlite3.OperationalError as error:
                raise JobFailed("table", f"the table {self.table!r}: {error}") from None
            columns, offset, rows = len(header), records.offset, 0
            db.execute(
                "INSERT INTO imports (job_id, attempt, lease, size, modified_ns, columns, offset, rows) VALUES (?,?,?,?,?,?,?,?)",
                [ctx.job_id, ctx.attempt, ctx.lease_token, self.size, self.modified_ns, columns, offset, rows],
            )
        else:
            attempt, size, modified_ns, columns, offset, rows = found
            if attempt > ctx.attempt:
                raise JobReleased("a later attempt has taken over")
            if (size, modified_ns) != (self.size, self.modified_ns):
                raise JobFailed("input_changed", "the file was changed during the import")
            db.execute("UPDATE imports SET attempt = ?, lease = ? WHERE job_id = ?", [ctx.attempt, ctx.lease_token, ctx.job_id])
        db.execute("COMMIT")
        return columns, offset, rows

    def run(self, batch_rows: int, rows_per_second: float | None) -> int:
        """Imports what is left; returns the rows of the table."""
        columns, offset, rows = self.claim()
        if rows:
            self.ctx.log(f"goes on after row {rows}, byte {offset}")
        records = Records(self.file, offset)
        insert = f'INSERT INTO "{self.table}" VALUES ({", ".join("?" * columns)})'
        while True:
            self.db.execute("BEGIN IMMEDIATE")
            taken = 0
            for record in records:
                if len(record) != columns:
                    raise JobFailed("ragged", f"before byte {records.offset}: {len(record)} fields instead of {columns}")
                self.db.execute(insert, record)
                taken += 1
                if taken == batch_rows:
                    break
            rows += taken
            fenced = self.db.execute(
                "UPDATE imports SET offset = ?, rows = ?, done = ? WHERE job_id = ? AND attempt = ? AND lease = ?",
                [records.offset, rows, taken < batch_rows, self.ctx.job_id, self.ctx.attempt, self.ctx.lease_token],
            )
            if fenced.rowcount == 0:
                raise JobReleased("a later attempt has taken over")
            self.db.execute("COMMIT")
            self.ctx.progress(100 * records.offset / max(1, self.size), done=rows, unit="rows", message=f"{rows} rows loaded")
            self.ctx.checkpoint(f"row {rows}", str(records.offset).encode())
            if taken < batch_rows:
                return rows
            if rows_per_second:
                self.ctx.sleep(taken / rows_per_second)

    def close(self) -> None:
        # What is not committed is rolled back.
        self.db.close()


@dataclass(frozen=True)
class Order:
    """A job's input, checked."""

    path: pathlib.Path
    table: str
    batch_rows: int
    rows_per_second: float | None

    @staticmethod
    def of(input: Any, root: pathlib.Path) -> "Order":
        if not isinstance(input, dict) or not isinstance(input.get("path"), str) or "\0" in input["path"]:
            raise invalid("path: the name of a file is needed")
        if unknown := input.keys() - SCHEMA["properties"].keys():
            raise invalid(f"there is no field {min(unknown)!r}")
        path = (root / input["path"]).resolve()
        if not path.is_relative_to(root) or not path.is_file():
            raise JobFailed("not_found", f"there is no file {input['path']!r} below the import directory")
        table = input.get("table", re.sub(r"\W", "_", path.stem, flags=re.ASCII))
        if not isinstance(table, str) or not re.fullmatch("[A-Za-z_][A-Za-z0-9_]{0,62}", table):
            raise invalid(f"table: {table!r} cannot name a table")
        if table.lower() == "imports" or table.lower().startswith("sqlite_"):
            raise invalid(f"table: the name {table!r} is reserved")
        batch_rows, pace = input.get("batch_rows", 500), input.get("rows_per_second")
        if type(batch_rows) is not int or not 1 <= batch_rows <= 100_000:
            raise invalid("batch_rows: a whole number from 1 to 100000 is needed")
        if pace is not None and (type(pace) not in (int, float) or not pace > 0):
            raise invalid("rows_per_second: a number above 0 is needed")
        return Order(path, table, batch_rows, pace)


def invalid(message: str) -> JobFailed:
    return JobFailed("input_invalid", message)


def handler(directory: pathlib.Path, database: pathlib.Path) -> Callable[[SyncContext, Any], dict[str, Any]]:
    """The handler of `csv-import-python` for files below `directory`."""
    root = directory.resolve(strict=True)

    def csv_import(ctx: SyncContext, input: Any) -> dict[str, Any]:
        order = Order.of(input, root)
        with order.path.open("rb") as file:
            work = Import(ctx, file, database, order.table)
            try:
                rows = work.run(order.batch_rows, order.rows_per_second)
            finally:
                work.close()
        return {"rows": rows, "table": order.table, "database": database.name}

    return csv_import


def main() -> None:
    parser = argparse.ArgumentParser(description="A Tidegate worker that imports CSV files into SQLite.")
    parser.add_argument("--engine", help="engines to work for, with commas [TIDEGATE_ENGINE, or http://127.0.0.1:50051]")
    parser.add_argument("--dir", type=pathlib.Path, required=True, help="the directory below which files may be read")
    parser.add_argument("--database", type=pathlib.Path, default="imports.db", help="the SQLite file [imports.db]")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    worker = Worker(args.engine)
    worker.kind(
        "csv-import-python",
        description="Imports a CSV file into a SQLite table, as text.",
        input_schema=SCHEMA,
        example={"path": "airports.csv"},
    )(handler(args.dir, args.database))
    worker.run()


if __name__ == "__main__":
    main()
