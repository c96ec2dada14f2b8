"""Bronze and silver over generated landing folders, against a reference that is written from the definitions alone.

By hand: NIGHTJAR_EXAMPLES=500, which are others each time; without it they are few, and the same on every run.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import hypothesis
import pytest
from hypothesis import strategies as st

from jobs.contracts.days import DayRange
from jobs.ingest import bronze, lines, silver
from jobs.lake import Lake
from jobs.settings import DuckDB, Landing, Settings
from jobs.steps import find_step
from tests.jobs.ingest.generated import EVENT_LINES, EVENTS, MACHINES, Action, Delivery, Machine, Run, as_line, deliveries, histories
from tests.jobs.ingest.reference import DAYS, EVENT_TYPES, FIRST, OPTIONAL, REQUIRED, File, Reference, Row, source_file

EXAMPLES = os.environ.get("NIGHTJAR_EXAMPLES")
FEEDS = tuple(REQUIRED)
TABLES = [table for step in ("bronze", "silver") for table in find_step(step).writes]


def examples(number: int) -> hypothesis.settings:
    return hypothesis.settings(
        max_examples=int(EXAMPLES or number),
        derandomize=EXAMPLES is None,
        deadline=None,
        database=None,
        suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
    )


@dataclass(frozen=True)
class World:
    """A landing folder and a lake."""

    folder: Path
    threads: int

    @property
    def landing(self) -> Path:
        return self.folder / "landing"

    @property
    def lake(self) -> Lake:
        return Lake(self.folder / "lake", EVENT_TYPES)

    def deliver(self, delivery: Delivery) -> None:
        for feed in FEEDS:
            shutil.rmtree(self.landing / feed / f"ds={DAYS[delivery.day]}", ignore_errors=True)
        for file in delivery.files:
            path = self.landing / source_file(delivery.day, file)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.body)

    def run(self, step: str, days: range) -> None:
        settings = Settings(landing=Landing(folder=str(self.landing)), lake=str(self.lake.root), duckdb=DuckDB(threads=self.threads))
        {"bronze": bronze, "silver": silver}[step].run(self.lake, settings, DayRange(DAYS[days[0]], DAYS[days[-1]]))


@contextmanager
def world(machine: Machine) -> Iterator[World]:
    """An empty world whose files and days are read in portions of `at_once` bytes and rows."""
    sizes = ((bronze, "_BATCH_BYTES"), (bronze, "_COMMIT_BYTES"), (silver, "_PORTION_ROWS"), (lines, "_READ_BYTES"), (lines, "_UNPACKED_BYTES"))
    with tempfile.TemporaryDirectory(prefix="nightjar-") as folder, ExitStack() as patches:
        for module, name in (*sizes, (lines, "_BLOCK_BYTES")):
            patches.enter_context(patch.object(module, name, machine.at_once))
        (Path(folder) / "landing").mkdir()
        yield World(Path(folder), machine.threads)


def act(world: World, reference: Reference, actions: Sequence[Action]) -> None:
    for action in actions:
        if isinstance(action, Delivery):
            reference.landed[action.day] = action.files
            world.deliver(action)
            continue
        days = range(action.first, action.last + 1)
        for step in action.steps:
            refusal = getattr(reference, step)(days)
            if refusal is None:
                world.run(step, days)
            else:
                with pytest.raises(refusal):
                    world.run(step, days)


def content(lake: Lake) -> dict[str, list[str]]:
    """All that the tables hold, sorted, but for the time at which a landing file was written."""
    return {table: sorted(repr({**row, "modified": 0}) for row in lake.read(table).to_pylist()) for table in TABLES if lake.exists(table)}


LEFT_OPEN = {"bronze.quarantine": ("detail",), "bronze.files": ("rules", "modified"), "silver.repeats": ("line",)}


def plain(row: Row, table: str) -> Row:
    """A row without what the definitions leave open, maps and lists in an order."""
    values = {name: value for name, value in row.items() if name not in LEFT_OPEN.get(table, ())}
    for name in ("context", "attributes", "quarantined"):
        if values.get(name) is not None:
            values[name] = dict(sorted(dict(values[name]).items()))
    if "changed" in values:
        values["changed"] = sorted(values["changed"])
    return values


def by_place(rows: Sequence[Row], table: str) -> list[Row]:
    return sorted((plain(row, table) for row in rows), key=lambda row: (row["source_file"], row.get("source_line", 0)))


def assert_as_defined(world: World, reference: Reference) -> None:
    expected = reference.tables()
    for table, rows in expected.items():
        found = world.lake.read(table).to_pylist() if world.lake.exists(table) else []
        assert by_place(found, table) == by_place(rows, table), table
    assert_nothing_lost(world.lake, reference)
    for feed in ("items", "users"):
        assert_valid(world.lake, feed, reference)


def assert_nothing_lost(lake: Lake, reference: Reference) -> None:
    """By the tables alone: a file's lines are its rows and what is kept of it, and a row of events is an interaction or a repeat."""
    if not reference.read:
        return
    for row in lake.read("bronze.files").to_pylist():
        assert row["lines"] == row["rows"] + sum(count for _, count in row["quarantined"])
    places = [
        (row["source_file"], row["source_line"])
        for table in ("bronze.quarantine", *(f"bronze.{feed}" for feed in FEEDS))
        for row in lake.read(table, ["source_file", "source_line"]).to_pylist()
    ]
    there = [
        (source_file(day, file), number)
        for day, files in reference.read.items()
        for file in files
        for number, line in enumerate(file.lines, start=1)
        if line.strip()
    ]
    assert sorted(places) == sorted(there), "each line is somewhere, once"
    if reference.done:
        arrived = [row["arrival_day"] for row in lake.read("bronze.events", ["arrival_day"]).to_pylist()]
        taken = sum(1 for day in arrived if (day - FIRST).days in reference.done)
        assert taken == lake.read("silver.interactions").num_rows + lake.read("silver.repeats").num_rows


def assert_valid(lake: Lake, feed: str, reference: Reference) -> None:
    """On every day at most one interval of a key holds, from its first line on exactly one, and it says what the last line said."""
    key = REQUIRED[feed][0]
    table = f"silver.{feed}"
    rows = [plain(row, table) for row in lake.read(table).to_pylist()] if reference.done else []
    for number, day in enumerate(DAYS):
        holding = [row for row in rows if row["valid_from"] <= day and (row["valid_to"] is None or day < row["valid_to"])]
        found = {row[key]: {name: row[name] for name in OPTIONAL[feed]} for row in holding}
        assert len(found) == len(holding)
        assert found == reference.said(feed, number)
    assert all(row["valid_to"] is None or row["valid_from"] < row["valid_to"] for row in rows)
    for row in rows:
        following = [other for other in rows if other[key] == row[key] and other["valid_from"] == row["valid_to"]]
        assert [{**other, "valid_from": 0, "valid_to": 0} for other in following] != [{**row, "valid_from": 0, "valid_to": 0}], "what goes on is one interval"


@examples(25)
@hypothesis.given(histories(), MACHINES)
def test_any_history_ends_in_what_the_definitions_give(history: list[Action], machine: Machine) -> None:
    """When silver has taken in what bronze read anew, and once more when all that is in the landing folder has been read."""
    reference = Reference()
    with world(machine) as some_world:
        act(some_world, reference, history)
        act(some_world, reference, [Run(("silver",), day, day) for day in sorted(reference.stale & reference.done, reverse=True)])
        assert_as_defined(some_world, reference)
        act(some_world, reference, [Run(("bronze", "silver"), 0, len(DAYS) - 1)])
        assert_as_defined(some_world, reference)


@examples(5)
@hypothesis.given(st.data(), st.permutations(range(len(DAYS))))
def test_neither_the_order_of_runs_nor_the_machine_changes_a_row(data: st.DataObject, order: list[int]) -> None:
    """All columns of all tables, those that the definitions leave open too: days one by one on one machine, in one pass on another."""
    pool = data.draw(st.lists(EVENT_LINES, min_size=4, max_size=12))
    landed = [data.draw(deliveries(day, pool)) for day in range(len(DAYS))]
    hypothesis.assume(landed[0].files)
    found = []
    for machine, runs in (
        (Machine(1, 1 << 20), [Run(("bronze", "silver"), 0, len(DAYS) - 1)]),
        (Machine(2, 1), [Run(("bronze", "silver"), day, day) for day in order]),
    ):
        with world(machine) as some_world:
            act(some_world, Reference(), [*landed, *runs])
            found.append(content(some_world.lake))
    assert found[0] == found[1]


@examples(5)
@hypothesis.given(st.data())
def test_lines_of_a_file_in_another_order(data: st.DataObject) -> None:
    """Where no id comes twice, only the number of its line changes in a row."""
    rows = data.draw(st.lists(EVENTS, min_size=2, max_size=8))
    held = [as_line({**row, "event_id": f"e{number}"}) for number, row in enumerate(rows)]
    found = []
    for order in (held, data.draw(st.permutations(held))):
        with world(Machine(2, 1 << 20)) as some_world:
            act(some_world, Reference(), [Delivery(0, (File("events", "a.json", tuple(order), b"\n".join(order)),)), Run(("bronze", "silver"), 0, 0)])
            tables = {
                table: some_world.lake.read(table).to_pylist() for table in ("bronze.events", "bronze.quarantine", "silver.interactions", "silver.repeats")
            }
            found.append({table: sorted(repr({**row, "source_line": 0}) for row in some) for table, some in tables.items()})
    assert found[0] == found[1]
