"""Landing to bronze: every line of the days is typed, or lies in quarantine with a reason; a ledger of files accounts for all."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.contracts.days import DayRange, portions
from jobs.contracts.landing import FEEDS, Feed, Reason
from jobs.database import database
from jobs.ingest.landing import LandingFile, landing_files
from jobs.ingest.lines import NOT_OPENED, Damage, LineReader, fingerprint, stamp
from jobs.ingest.typed import quickly_typed, typed
from jobs.lake import Lake
from jobs.settings import Settings
from jobs.steps import find_step
from sql import macros

QUARANTINE, LEDGER = "bronze.quarantine", "bronze.files"
_PLACE = ("source_file", "source_line", "arrival_day")
_BATCH_BYTES = 1 << 24
_COMMIT_BYTES = 1 << 29  # of landing files: while a commit is written, a file of each of its days is open


def run(lake: Lake, settings: Settings, days: DayRange) -> None:
    """Write bronze.events, .items, .users, .quarantine and .files for the days, each in one commit for every 500 MB of them.

    A day whose files are those of the ledger is left as it is. Raises EmptyLanding when nothing has arrived up to the last
    day, LandingChanged when a file is still being written.
    """
    files = landing_files(settings.landing_path, days)
    sizes: Counter[date] = Counter()
    for file in files:
        sizes[file.arrival_day] += file.path.stat().st_size
    with database(settings.duckdb) as duck:
        duck.execute(macros("typing"))
        for some_days in portions(unknown_days(lake, files, days, settings.rules("bronze")), sizes, _COMMIT_BYTES):
            _take_in(duck, lake, settings, some_days, [file for file in files if file.arrival_day in some_days])


def unknown_days(
    lake: Lake, files: Iterable[LandingFile], days: DayRange, rules: str, fingerprint: Callable[[LandingFile], tuple[int, str]] = fingerprint
) -> list[date]:
    """The days whose files, sizes, checksums and rules are not all those of the ledger.

    A day of which landing holds no file any more keeps what it brought: an empty file would take it back.
    """
    known: dict[date, set[tuple[str, int, str, str]]] = {day: set() for day in _whole_days(lake) if day in days}
    if not known:
        return list(days)
    columns = ["source_file", "bytes", "sha256", "rules", "arrival_day"]
    for row in lake.read(LEDGER, columns, pc.field("arrival_day").isin(list(known))).to_pylist():
        known[row["arrival_day"]].add((row["source_file"], row["bytes"], row["sha256"], row["rules"]))
    there: dict[date, set[tuple[str, int, str, str]]] = {}
    for file in files:
        if file.arrival_day in known:
            there.setdefault(file.arrival_day, set()).add((file.source_file, *fingerprint(file), rules))
    return [day for day in days if day not in known or there.get(day, known[day]) != known[day]]


def _whole_days(lake: Lake) -> set[date]:
    """The days that one run has made in every table. Where two have met, it can be some tables of the one and some of the other."""
    made = []
    for table in find_step("bronze").writes:
        last = {day: commit.fingerprint for commit in lake.commits(table) for day in commit.days}
        made.append(set(last.items()))
    return {day for day, _ in set.intersection(*made)}


def _take_in(duck: duckdb.DuckDBPyConnection, lake: Lake, settings: Settings, days: Collection[date], files: Sequence[LandingFile]) -> None:
    """Replace the days in every table. The ledger comes last: a day that it knows is whole in the others."""
    schema, mark = lake.schema(QUARANTINE), _mark(settings, files)
    with tempfile.TemporaryDirectory(prefix="nightjar-") as folder:
        bad_lines = Path(folder, "quarantine.parquet")
        accounts = {file.source_file: Account(file.source_file, file.feed, file.arrival_day, settings.rules("bronze")) for file in files}
        with pq.ParquetWriter(bad_lines, schema) as quarantine:
            for feed in FEEDS:
                intake = Intake(duck, feed, settings, quarantine, accounts)
                lake.replace(feed.table, intake.rows([file for file in files if file.feed == feed.name]), "bronze", days, {}, fingerprint=mark)
        with pq.ParquetFile(bad_lines) as quarantined:
            lake.replace(QUARANTINE, (pa.Table.from_batches([batch], schema) for batch in quarantined.iter_batches()), "bronze", days, {}, fingerprint=mark)
    ledger = pa.Table.from_pylist([account.row() for account in accounts.values()], lake.schema(LEDGER))
    lake.replace(LEDGER, [ledger], "bronze", days, {}, fingerprint=mark)


def _mark(settings: Settings, files: Sequence[LandingFile]) -> str:
    """What tells runs of other files, or of other contents, apart."""
    stamps = [(file.source_file, *stamp(file.path)) for file in files]
    return hashlib.sha256(json.dumps([settings.rules("bronze"), stamps]).encode()).hexdigest()[:16]


@dataclass
class Account:
    """What became of the lines of a file: a row of the ledger in the making."""

    source_file: str
    feed: str
    arrival_day: date
    rules: str
    fingerprint: tuple[int, str] = NOT_OPENED
    modified: int | None = None
    rows: int = 0
    requeued: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)

    def row(self) -> dict[str, object]:
        size, checksum = self.fingerprint
        return {
            "source_file": self.source_file,
            "feed": self.feed,
            "bytes": size,
            "sha256": checksum,
            "modified": self.modified,
            "lines": self.rows + self.quarantined.total(),
            "rows": self.rows,
            "requeued": self.requeued,
            "quarantined": sorted((+self.quarantined).items()),
            "rules": self.rules,
            "arrival_day": self.arrival_day,
        }


@dataclass(frozen=True)
class Intake:
    """Reads the files of one feed. What can't be typed goes to `quarantine`; `accounts`, by source file, count both."""

    duck: duckdb.DuckDBPyConnection
    feed: Feed
    settings: Settings
    quarantine: pq.ParquetWriter
    accounts: Mapping[str, Account]

    def rows(self, files: Iterable[LandingFile]) -> Iterator[pa.Table]:
        """The typed rows of some files, some 16 MB of lines at a time."""
        waiting: list[pa.Table] = []
        for lines in self._lines(files):
            waiting.append(lines)
            if sum(table.nbytes for table in waiting) >= _BATCH_BYTES:
                yield self.typed(pa.concat_tables(waiting))
                waiting = []
        if waiting:
            yield self.typed(pa.concat_tables(waiting))

    def _lines(self, files: Iterable[LandingFile]) -> Iterator[pa.Table]:
        """Lines of the files: line (binary), source_file, source_line (from 1), arrival_day."""
        for file in files:
            number = 1
            if file.refusal:
                self._set_aside(_lines(file, pa.array([b""]), 0), Reason.UNREADABLE_FILE, file.refusal)
                continue
            reader = LineReader(file, self.duck)
            try:
                for block in reader.blocks():
                    yield _lines(file, block, number)
                    number += len(block)
            except Damage as damage:
                self._set_aside(_lines(file, pa.array([damage.tail]), number), Reason.UNREADABLE_FILE, str(damage))
            account = self.accounts[file.source_file]
            account.fingerprint, account.modified = reader.fingerprint, reader.modified

    def typed(self, lines: pa.Table) -> pa.Table:
        """Rows of the lines (line, source_file, source_line, arrival_day) that are fine, as the feed's table holds them."""
        lines = self._decoded(lines)
        self.duck.register("lines", lines)
        quick = self.duck.sql(quickly_typed(self.feed, self.settings)).to_arrow_table()
        fine, rows = quick["fine"], quick.drop_columns("fine")
        for name in _PLACE:
            rows = rows.append_column(name, lines[name])
        if not pc.all(fine).as_py():
            self.duck.register("lines", lines.filter(pc.invert(fine)))
            careful = self.duck.sql(typed(self.feed, self.settings)).to_arrow_table()
            good = pc.is_null(careful["problem"])
            bad = careful.filter(pc.invert(good))
            self._set_aside(bad, pc.struct_field(bad["problem"], "reason"), pc.struct_field(bad["problem"], "detail"))
            rows = pa.concat_tables([rows.filter(fine), careful.filter(good).select(rows.column_names)])
        for counted in pc.value_counts(rows["source_file"]).to_pylist():
            self.accounts[counted["values"]].rows += counted["counts"]
        return rows

    def _decoded(self, lines: pa.Table) -> pa.Table:
        """The lines as text, without those that are not UTF-8."""
        try:
            return lines.set_column(0, "line", lines["line"].cast(pa.string()))
        except pa.ArrowInvalid:
            good = pa.array([_is_utf8(line) for line in lines["line"].to_pylist()])
            self._set_aside(lines.filter(pc.invert(good)), Reason.BAD_ENCODING, "expected UTF-8, got other bytes")
            return self._decoded(lines.filter(good))

    def _set_aside(self, lines: pa.Table, reason: pa.ChunkedArray | str, detail: pa.ChunkedArray | str) -> None:
        """Put lines (line, source_file, source_line, arrival_day) into quarantine, each with its reason or all with the one given."""
        if not lines.num_rows:
            return
        constant = {"feed": self.feed.name, "reason": reason, "detail": detail}
        columns = {name: pa.repeat(value, lines.num_rows) if isinstance(value, str) else value for name, value in constant.items()}
        columns["line"] = pa.array([line.rstrip(b"\r\n") for line in lines["line"].cast(pa.binary()).to_pylist()], pa.binary())
        columns |= {name: lines[name] for name in _PLACE}
        rows = pa.table(columns).select(self.quarantine.schema.names).cast(self.quarantine.schema)
        self.quarantine.write_table(rows)
        for row, count in Counter(zip(rows["source_file"].to_pylist(), rows["reason"].to_pylist(), strict=True)).items():
            self.accounts[row[0]].quarantined[row[1]] += count


def _lines(file: LandingFile, block: pa.Array, first: int) -> pa.Table:
    """A block of a file's lines: line (binary), source_file, source_line, arrival_day."""
    place = {"source_file": file.source_file, "arrival_day": file.arrival_day}
    numbers = pa.array(np.arange(first, first + len(block)))
    return pa.table({"line": block, "source_line": numbers} | {name: pa.repeat(value, len(block)) for name, value in place.items()})


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True
