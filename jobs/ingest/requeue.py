"""Out of quarantine: lines that the reader can type by now are taken in, from what is kept of them; the landing files may be gone."""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.contracts.days import DayRange
from jobs.contracts.landing import FEEDS, Feed, Reason
from jobs.database import database
from jobs.ingest.bronze import LEDGER, QUARANTINE, Account, Intake
from jobs.lake import Lake
from jobs.settings import Settings
from sql import macros


@dataclass(frozen=True)
class Requeued:
    """What became of the lines in quarantine of a day."""

    day: date
    tried: int
    taken_in: int


def requeue(lake: Lake, settings: Settings, days: DayRange, reasons: Collection[Reason]) -> list[Requeued]:
    """Type again the lines of the days that lie in quarantine for one of the reasons, and return what came of each day that has some.

    What can't be read to its end can't be read again. Raises NotReady when bronze does not hold the days, ConcurrentWrite when
    another run writes to them meanwhile.
    """
    lake.require(LEDGER, days)
    again = sorted(str(reason) for reason in {*reasons} - {Reason.UNREADABLE_FILE})
    answer = []
    with database(settings.duckdb) as duck:
        duck.execute(macros("typing"))
        for day in days:
            seen = lake.version(QUARANTINE)
            kept = lake.read(QUARANTINE, filter=pc.field("arrival_day") == day, version=seen)
            chosen = pc.is_in(kept["reason"], pa.array(again, pa.string()))
            if pc.any(chosen).as_py():
                taken_in = _take_in(duck, lake, settings, day, kept.filter(chosen), kept.filter(pc.invert(chosen)), seen)
                answer.append(Requeued(day, pc.sum(chosen).as_py(), taken_in))
            _balance(lake, day)
    return answer


def _take_in(duck: duckdb.DuckDBPyConnection, lake: Lake, settings: Settings, day: date, lines: pa.Table, others: pa.Table, seen: int) -> int:
    """Replace the day in every table but the ledger. Until the lines have left quarantine, the same can be done again."""
    inputs, mark = {QUARANTINE: seen}, _mark(lake, day)
    taken_in = 0
    with tempfile.TemporaryDirectory(prefix="nightjar-") as folder:
        still_bad = Path(folder, "quarantine.parquet")
        with pq.ParquetWriter(still_bad, others.schema) as quarantine:
            quarantine.write_table(others)
            for feed in FEEDS:
                accounts = {source_file: Account(source_file, feed.name, day, "") for source_file in set(lines["source_file"].to_pylist())}
                rows = Intake(duck, feed, settings, quarantine, accounts).typed(lines.filter(pc.equal(lines["feed"], feed.name)))
                if rows.num_rows:
                    held = lake.version(feed.table)
                    together = [_others(duck, lake, feed, day, rows, held), rows]
                    lake.replace(feed.table, together, "bronze", [day], inputs, seen=held, fingerprint=mark)
                    taken_in += rows.num_rows
        kept = pq.read_table(still_bad)
        if not taken_in and _reasons(kept) == _reasons(pa.concat_tables([lines, others])):
            return 0
        lake.replace(QUARANTINE, kept, "bronze", [day], inputs, seen=seen, fingerprint=mark)
    return taken_in


def _reasons(kept: pa.Table) -> set[tuple[str, int, str, str]]:
    return {(row["source_file"], row["source_line"], row["reason"], row["detail"]) for row in kept.to_pylist()}


def _balance(lake: Lake, day: date) -> None:
    """Bring the day's ledger up to what the tables hold, if it isn't: a run that was killed may have left it behind, too."""
    arrived = pc.field("arrival_day") == day
    rows = Counter(name for feed in FEEDS for name in lake.read(feed.table, ["source_file"], arrived)["source_file"].to_pylist())
    kept = lake.read(QUARANTINE, ["source_file", "reason"], arrived)
    quarantined: dict[str, Counter[str]] = defaultdict(Counter)
    for source_file, reason in zip(kept["source_file"].to_pylist(), kept["reason"].to_pylist(), strict=True):
        quarantined[source_file][reason] += 1
    before = lake.read(LEDGER, filter=arrived).to_pylist()
    after = []
    for row in before:
        name, checksum = row["source_file"], (row["bytes"], row["sha256"])
        requeued = row["requeued"] + rows[name] - row["rows"]
        after.append(Account(name, row["feed"], day, row["rules"], checksum, row["modified"], rows[name], requeued, quarantined[name]))
    ledger = pa.Table.from_pylist([account.row() for account in after], lake.schema(LEDGER))
    if ledger.to_pylist() != before:
        lake.replace(LEDGER, ledger, "bronze", [day], {QUARANTINE: lake.version(QUARANTINE)}, fingerprint=_mark(lake, day))


def _mark(lake: Lake, day: date) -> str:
    """That of the run which read the day's files: what is taken in now is theirs."""
    return next(commit.fingerprint for commit in reversed(lake.commits(LEDGER)) if day in commit.days)


def _others(duck: duckdb.DuckDBPyConnection, lake: Lake, feed: Feed, day: date, rows: pa.Table, version: int) -> pa.Table:
    """What the feed's table holds of the day, without these rows: a run that was killed half way may have brought them."""
    duck.register("held", lake.read(feed.table, filter=pc.field("arrival_day") == day, version=version))
    duck.register("came", rows)
    return duck.sql("from held where (source_file, source_line) not in (select (source_file, source_line) from came)").to_arrow_table()
