"""Bronze and silver, as processes, killed and set upon each other: what stands at the end is what one clean run makes."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import resource
import signal
import tempfile
from collections.abc import Callable, Sequence
from datetime import date, timedelta
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from jobs.contracts.days import DayRange
from jobs.contracts.errors import LakeUnwritable
from jobs.ingest import bronze, silver
from jobs.lake import Lake, insist
from jobs.settings import Landing, Settings
from jobs.steps import find_step
from jobs.storage import Location
from tests.jobs.ingest.test_bronze import event, land

DAYS = [date(2026, 1, 1) + timedelta(days=offset) for offset in range(4)]
TABLES = [table for step in ("bronze", "silver") for table in find_step(step).writes]

# A server that has imported what the children need, and forks them: a process costs 20 ms in the place of 1.5 s.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["jobs.ingest.bronze", "jobs.ingest.silver", "tests.jobs.ingest.test_breaking"])


def land_day(landing: Location, day: int, seed: int) -> None:
    """Two files of events with repeats, conflicts, late rows and lines of every quality; items and users beside them."""
    chance = random.Random(f"{day} {seed}")
    for file in ("a.json", "b.json.gz"):
        times = [f"{DAYS[chance.randrange(day + 1)]}T12:00:00Z" for _ in range(30)]
        lines = [event(event_id=f"e{chance.randrange(60)}", event_time=time, value=chance.randrange(2)) for time in times]
        land(landing, f"events/ds={DAYS[day]}/{file}", *lines, b"no json", event(event_type="wink"), b"caf\xe9")
    land(landing, f"items/ds={DAYS[day]}/i.json", *(json.dumps({"item_id": f"i{n}", "price": chance.randrange(3)}).encode() for n in range(5)))
    land(landing, f"users/ds={DAYS[day]}/u.json", b'{"user_id": "u"}', b"{}")


def lake_of(settings: Settings) -> Lake:
    return Lake(settings.lake_path, tuple(settings.event_types))


def ingest(settings: Settings, days: Sequence[int]) -> None:
    for day in days:
        for module in (bronze, silver):
            insist(partial(module.run, lake_of(settings), settings, DayRange(DAYS[day], DAYS[day])))


def content(settings: Settings) -> dict[str, list[str]]:
    """All that the tables hold, but for the time at which a landing file was written, which is another in another place."""
    lake = lake_of(settings)
    return {table: sorted(repr({**row, "modified": 0}) for row in lake.read(table).to_pylist()) for table in TABLES}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = Settings(landing=Landing(folder=str(tmp_path / "landing")), lake=str(tmp_path / "lake"))
    for day in range(len(DAYS)):
        land_day(settings.landing_path, day, seed=0)
    return settings


def clean(settings: Settings) -> dict[str, list[str]]:
    """What one run over all days, in one pass, makes of the landing folder in a new lake."""
    other = settings.model_copy(update={"lake": tempfile.mkdtemp(dir=Path(settings.landing.folder).parent)})
    for module in (bronze, silver):
        module.run(lake_of(other), other, DayRange(DAYS[0], DAYS[-1]))
    return content(other)


def start(work: Callable[..., None], *arguments: Any) -> BaseProcess:
    process = _processes.Process(target=work, args=arguments)
    process.start()
    return process


def die_at(boundary: int, settings: Settings, day: int) -> None:
    """Ingest a day; SIGKILL at the n-th boundary of a write (from 0: before the first, after the first, before the second …)."""
    boundaries = iter(range(1000))
    replace = Lake.replace

    def cross() -> None:
        if next(boundaries) == boundary:
            os.kill(os.getpid(), signal.SIGKILL)

    def replace_and_die(self: Lake, *arguments: Any, **named: Any) -> None:
        cross()
        replace(self, *arguments, **named)
        cross()

    Lake.replace = replace_and_die  # type: ignore[method-assign]
    ingest(settings, [day])


def test_killed_at_every_boundary_of_a_write(settings: Settings) -> None:
    """Day 1 is delivered again, differently each time, and its run is killed at one boundary after the other."""
    ingest(settings, range(4))
    for boundary in range(2 * len(TABLES)):
        land_day(settings.landing_path, 1, seed=boundary + 1)
        process = start(die_at, boundary, settings, 1)
        process.join()
        assert process.exitcode == -signal.SIGKILL, "there are as many writes as tables"
        ingest(settings, [1])
        assert_as_clean(settings)
    process = start(die_at, 2 * len(TABLES), settings, 1)
    process.join()
    assert process.exitcode == 0


def test_killed_at_any_instant(settings: Settings) -> None:
    chance = random.Random(7)
    ingest(settings, range(4))
    killed = 0
    for attempt in range(20):
        land_day(settings.landing_path, attempt % 4, seed=100 + attempt)
        process = start(ingest, settings, [attempt % 4])
        process.join(chance.uniform(0.02, 0.8))
        process.kill()
        process.join()
        killed += process.exitcode != 0
        ingest(settings, [attempt % 4])
    assert_as_clean(settings)
    assert killed >= 10


@pytest.mark.parametrize("days", [((0, 1, 2, 3),) * 2, ((0, 1, 2, 3), (3, 2, 1, 0)), ((0,), (1,), (2,), (3,))], ids=["same", "opposite", "neighbours"])
def test_several_at_once(settings: Settings, days: Sequence[Sequence[int]]) -> None:
    processes = [start(ingest, settings, some) for some in days]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * len(days)
    assert_as_clean(settings)


def test_ten_times_in_a_row_and_in_any_order(settings: Settings) -> None:
    order = [*random.Random(3).choices(range(4), k=10), 3, 2, 1, 0]
    ingest(settings, order)
    assert_as_clean(settings)
    files = written(settings)
    ingest_bronze = partial(bronze.run, lake_of(settings), settings, DayRange(DAYS[0], DAYS[-1]))
    ingest_bronze()
    assert written(settings) == files, "what the ledger knows costs nothing"


def ingest_on_a_full_disk(settings: Settings, day: int, answer: Path) -> None:
    """Ingest a day where no file may grow beyond 30 kB."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
    try:
        ingest(settings, [day])
    except LakeUnwritable as error:
        answer.write_text(str(error))


def test_a_disk_that_is_full(settings: Settings, tmp_path: Path) -> None:
    ingest(settings, range(4))
    before = content(settings)
    land(settings.landing_path, f"events/ds={DAYS[1]}/a.json", *(event(event_id=hashlib.sha256(b"%d" % number).hexdigest()) for number in range(2000)))
    process = start(ingest_on_a_full_disk, settings, 1, tmp_path / "answer")
    process.join()
    message = (tmp_path / "answer").read_text()
    assert message.startswith(f"bronze.events in {settings.lake} can't be written: ")
    assert "File too large. It holds what it held before." in message
    assert content(settings) == before
    ingest(settings, [1])
    assert_as_clean(settings)


def written(settings: Settings) -> list[Path]:
    return sorted(Path(settings.lake, "bronze").rglob("*"))


def assert_as_clean(settings: Settings) -> None:
    found, expected = content(settings), clean(settings)
    for table in TABLES:
        assert found[table] == expected[table], table
    lake = lake_of(settings)
    counted = [row["lines"] == row["rows"] + sum(count for _, count in row["quarantined"]) for row in lake.read("bronze.files").to_pylist()]
    assert all(counted)
    rows = sum(row["rows"] for row in lake.read("bronze.files").to_pylist() if row["feed"] == "events")
    assert rows == lake.read("silver.interactions").num_rows + lake.read("silver.repeats").num_rows > 0
