"""Features and transitions, as processes, killed and set upon each other: what stands at the end is what one clean run makes.

`make test-breaking`: a Spark session for each process, so it takes minutes.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import psutil  # type: ignore[import-untyped]
import pytest

from jobs.contracts.days import DayRange
from jobs.features import features
from jobs.ingest import bronze, silver
from jobs.lake import Lake, insist
from jobs.settings import CONFIG_VARIABLE, Settings, elsewhere, load_settings
from jobs.steps import find_step
from jobs.transitions import transitions
from jobs.transitions.items import INDEX
from tests.jobs.silver import FIRST, Row, at, event, random_log

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROOT = Path(__file__).parent.parent.parent
DAYS = [FIRST + timedelta(days=number) for number in range(5)]
STEPS = {"features": features, "transitions": transitions}
TABLES = [table for step in STEPS for table in find_step(step).writes]
MOMENTS = ("files", "commit")
# What Spark writes has files long before its commit: each step's largest table stands for it here. The other tables are written in an instant.
OF_SPARK = ("gold.user_features", "gold.transitions")
BOUNDARIES = [(step, table, moment) for step in STEPS for table in find_step(step).writes for moment in MOMENTS if moment == "commit" or table in OF_SPARK]
# What each step has Spark write first, however often it has been run before.
FIRST_OF_SPARK = {"features": "gold.user_partials", "transitions": "gold.transitions"}
SECONDS = 600
CONFIG = """
lake = "lake"
[landing]
folder = "landing"
[event_types.impression]
step = true
[event_types.click]
reward = "1"
maturity_days = 1
[event_types.purchase]
reward = "5 + 0.1 * value"
maturity_days = 2
[limits]
events_per_day = 30
[spark]
memory = "1g"
java_options = "-XX:TieredStopAtLevel=1"
"""


@dataclass(frozen=True)
class World:
    """A folder with settings, landing and lake."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "nightjar.toml"

    @property
    def settings(self) -> Settings:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(CONFIG_VARIABLE, str(self.config))
            return load_settings()

    @property
    def lake(self) -> Lake:
        return lake_of(self.settings)

    def copy(self, folder: Path) -> World:
        return World(shutil.copytree(self.folder, folder))

    def ingest(self, first: int, last: int) -> None:
        for module in (bronze, silver):
            insist(partial(module.run, self.lake, self.settings, days(first, last)))

    def run(self, spark: SparkSession, first: int, last: int, steps: Sequence[str] = tuple(STEPS)) -> None:
        for step in steps:
            insist(partial(STEPS[step].run, spark, self.lake, self.settings, days(first, last)))

    def content(self) -> dict[str, list[str]]:
        """Rows of each table. Which number an item has depends on the order of the nights: its id stands in its place."""
        item_ids = {row["item"]: row["item_id"] for row in self.lake.read(INDEX).to_pylist()}

        def plain(row: Row) -> Row:
            return {name: item_ids[value] if name == "item" else value for name, value in row.items()}

        rows = {table: [plain(row) for row in self.lake.read(table).to_pylist()] for table in TABLES if table != INDEX}
        return {INDEX: sorted(item_ids.values()), **{table: sorted(map(repr, made)) for table, made in rows.items()}}


def lake_of(settings: Settings) -> Lake:
    return Lake(settings.lake_path, tuple(settings.event_types))


def days(first: int, last: int) -> DayRange:
    return DayRange(DAYS[first], DAYS[last])


def arrivals() -> list[Row]:
    """A dense log, a third of it late by up to three days; of every tenth line there is a second one, half of them with another value.

    On each day there is a new item, and somebody who is no person.
    """
    rows = random_log(seed=11, days=len(DAYS), events=240, types=["impression", "impression", "click", "purchase"])
    for day in range(len(DAYS)):
        rows += [event("click", at(day, 8), event_id=f"bot {day} {number}", user_id="bot") for number in range(40)]
        rows.append(event("impression", at(day, 9), event_id=f"new {day}", user_id="user 1", item_id=f"new {day}"))
    again = [
        {**row, "value": row.get("value") if number % 2 else 7.0, "arrival_day": row["arrival_day"] + timedelta(days=1)}
        for number, row in enumerate(rows[::10])
    ]
    return rows + again


def land(landing: Path, day: int, rows: Sequence[Row]) -> None:
    """Deliver an arrival day: the rows among these that it brings."""
    folder = landing / f"events/ds={DAYS[day]}"
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for row in rows:
        if row["arrival_day"] == DAYS[day]:
            fields = {name: value for name, value in row.items() if name not in ("day", "arrival_day") and not (isinstance(value, float) and math.isnan(value))}
            lines.append(json.dumps(fields | {"event_time": row["event_time"].isoformat()}))
    (folder / "events.json").write_text("\n".join([*lines, "no json"]))


@pytest.fixture(scope="module")
def landed(tmp_path_factory: pytest.TempPathFactory) -> World:
    """All that arrived, up to silver."""
    world = World(tmp_path_factory.mktemp("landed"))
    world.config.write_text(CONFIG)
    for day in range(len(DAYS)):
        land(world.folder / "landing", day, arrivals())
    world.ingest(0, len(DAYS) - 1)
    return world


@pytest.fixture(scope="module")
def begun(landed: World, spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> World:
    """The nights of the first three days have been run."""
    world = landed.copy(tmp_path_factory.mktemp("begun") / "world")
    world.run(spark, 0, 2)
    return world


@pytest.fixture(scope="module")
def clean(landed: World, spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What one run over all days, in one pass, makes."""
    world = landed.copy(tmp_path_factory.mktemp("clean") / "world")
    world.run(spark, 0, len(DAYS) - 1)
    content = world.content()
    assert all(content.values())
    return content


def assert_same(found: dict[str, list[str]], expected: dict[str, list[str]]) -> None:
    for table in TABLES:
        assert found[table] == expected[table], table


# A process group of its own: the JVM that the process starts is in it.


@contextmanager
def process(world: World, *command: str) -> Iterator[subprocess.Popen[str]]:
    """A command of this Python; at the end, whatever is left of it and of its JVM is killed."""
    with (world.folder / f"{time.monotonic_ns()}.log").open("w+") as said:
        child = subprocess.Popen(
            [sys.executable, *command],
            stdout=said,
            stderr=said,
            env=elsewhere(world.config) | {"PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            start_new_session=True,
            text=True,
        )
        try:
            yield child
            child.wait(SECONDS)
            if child.returncode not in (0, -signal.SIGKILL):
                said.seek(0)
                pytest.fail(f"{' '.join(command)} ended with {child.returncode}:\n{said.read()[-3000:]}")
        finally:
            kill_all(child)


def kill_all(child: subprocess.Popen[str]) -> None:
    """Kill a process and its JVM, and wait until neither can write any more."""
    if members(child):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    wait_for(lambda: not members(child))


def members(child: subprocess.Popen[str]) -> list[int]:
    """Processes of the child's group that are alive."""
    found = []
    for member in psutil.process_iter():
        try:
            if os.getpgid(member.pid) == child.pid and member.status() != psutil.STATUS_ZOMBIE:
                found.append(member.pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def written(world: World, table: str, moment: str) -> frozenset[Path]:
    """Files of a table's rows, or its commits."""
    folder = Path(world.lake.path(table))
    return frozenset(folder.glob("_delta_log/*.json") if moment == "commit" else folder.glob("*=*/**/*.parquet"))


def wait_until_written(child: subprocess.Popen[str], world: World, table: str, moment: str, before: frozenset[Path]) -> None:
    """Wait until a table that the child writes has a new file, or commit."""
    made = 1 if moment == "commit" and not before else 0  # the first commit makes the table
    wait_for(lambda: len(written(world, table, moment) - before) > made or child.poll() is not None)
    assert child.poll() is None


@pytest.mark.parametrize(("step", "table", "moment"), BOUNDARIES)
def test_killed_as_a_table_is_written(
    spark: SparkSession, begun: World, clean: dict[str, list[str]], tmp_path: Path, step: str, table: str, moment: str
) -> None:
    """Killed with its JVM as files of a table appear that no commit names yet, or as its commit appears."""
    world = begun.copy(tmp_path / "world")
    before = written(world, table, moment)
    with process(world, "-m", "jobs", "run", step, "--day", str(DAYS[3]), "--to", str(DAYS[4])) as child:
        wait_until_written(child, world, table, moment, before)
        kill_all(child)
    assert child.returncode == -signal.SIGKILL
    world.run(spark, 3, 4)
    assert_same(world.content(), clean)


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_instant(spark: SparkSession, begun: World, clean: dict[str, list[str]], tmp_path: Path, step: str) -> None:
    """Twice in a row, each time further on; the third run is let alone."""
    chance = random.Random(step)
    world = begun.copy(tmp_path / "world")
    table = FIRST_OF_SPARK[step]
    for _ in range(2):
        before = written(world, table, "files")
        with process(world, "-m", "jobs", "run", step, "--day", str(DAYS[3]), "--to", str(DAYS[4])) as child:
            wait_until_written(child, world, table, "files", before)
            time.sleep(chance.uniform(0, 3))
            kill_all(child)
    world.run(spark, 3, 4)
    assert_same(world.content(), clean)


@pytest.mark.parametrize("step", STEPS)
def test_a_jvm_that_outlives_its_run(spark: SparkSession, begun: World, clean: dict[str, list[str]], tmp_path: Path, step: str) -> None:
    """Python alone is killed. Its JVM finds that out by and by, and until then writes beside the run that has begun again."""
    world = begun.copy(tmp_path / "world")
    table = FIRST_OF_SPARK[step]
    before = written(world, table, "files")
    with process(world, "-m", "jobs", "run", step, "--day", str(DAYS[3]), "--to", str(DAYS[4])) as child:
        wait_until_written(child, world, table, "files", before)
        child.kill()
        child.wait()
        world.run(spark, 3, 4)
        wait_for(lambda: not members(child))
    assert_same(world.content(), clean)


def work(ready: str, go: str, *ranges: str) -> None:
    """In a process of its own: features and transitions of the ranges, one after the other, once the others are there too."""
    from jobs.spark import start_session

    settings = load_settings()
    spark = start_session(settings)
    Path(ready).touch()
    wait_for(Path(go).exists)
    for pair in ranges:
        for step in STEPS.values():
            insist(partial(step.run, spark, lake_of(settings), settings, DayRange.parse(*pair.split(":"))))
    spark.stop()


@contextmanager
def workers(world: World, *works: Sequence[tuple[int, int]]) -> Iterator[list[subprocess.Popen[str]]]:
    """A process for each list of ranges of days; all begin when the last one is ready."""
    go, code = world.folder / "go", "import sys; from tests.breaking.test_spark_steps import work; work(*sys.argv[1:])"
    with ExitStack() as stack:
        ready = [world.folder / f"ready-{number}" for number in range(len(works))]
        children = [
            stack.enter_context(process(world, "-c", code, str(mark), str(go), *(f"{DAYS[first]}:{DAYS[last]}" for first, last in ranges)))
            for mark, ranges in zip(ready, works, strict=True)
        ]
        wait_for(lambda: all(mark.exists() for mark in ready) or any(child.poll() is not None for child in children))
        go.touch()
        yield children
        for child in children:
            child.wait(SECONDS)


AT_ONCE: dict[str, list[list[tuple[int, int]]]] = {
    "the same days": [[(2, 4)], [(2, 4)]],
    "opposite orders": [[(2, 2), (3, 3), (4, 4)], [(4, 4), (3, 3), (2, 2)]],
    "neighbours": [[(3, 3)] * 2, [(4, 4)] * 2],
}


@pytest.mark.parametrize("works", AT_ONCE.values(), ids=AT_ONCE)
def test_two_at_once(begun: World, clean: dict[str, list[str]], tmp_path: Path, works: list[list[tuple[int, int]]]) -> None:
    world = begun.copy(tmp_path / "world")
    with workers(world, *works):
        pass
    assert_same(world.content(), clean)


def test_silver_takes_in_a_day_again_meanwhile(spark: SparkSession, begun: World, tmp_path: Path) -> None:
    """Day 1 is delivered anew again and again, with other values and more rows, while the days are made from it; then they are made once more."""
    world = begun.copy(tmp_path / "world")
    last = len(DAYS) - 1
    with workers(world, [(0, last)] * 2) as (child,):
        deliveries = 0
        while child.poll() is None:
            deliveries += 1
            more = [{**row, "event_id": f"more {deliveries} {number}"} for number, row in enumerate(arrivals()[:40])]
            land(world.folder / "landing", 1, [{**row, "value": float(deliveries)} for row in (*arrivals(), *more)])
            world.ingest(1, 1)
            time.sleep(1)
    assert deliveries > 1
    world.run(spark, 0, last)
    fresh = World(tmp_path / "fresh")
    shutil.copytree(world.folder / "landing", fresh.folder / "landing")
    shutil.copy(world.config, fresh.config)
    fresh.ingest(0, last)
    fresh.run(spark, 0, last)
    assert_same(world.content(), fresh.content())


def test_ten_times_in_a_row_and_in_any_order(spark: SparkSession, landed: World, clean: dict[str, list[str]], tmp_path: Path) -> None:
    world = landed.copy(tmp_path / "world")
    for day in [4, 3, 2, 1, 0, *random.Random(5).choices(range(len(DAYS)), k=5)]:
        world.run(spark, day, day)
    assert_same(world.content(), clean)
