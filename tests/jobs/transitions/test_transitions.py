"""Transitions against a reference that is written from the definitions alone, in plain Python, over the whole log."""

from __future__ import annotations

from collections import defaultdict
from datetime import date, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from jobs.contracts.days import DayRange
from jobs.contracts.errors import NotReady
from jobs.contracts.rewards import UNATTRIBUTED_REASONS
from jobs.lake import Lake, insist
from jobs.settings import CONFIG_VARIABLE, Settings
from jobs.transitions.transitions import run
from tests.jobs.silver import FIRST, Row, at, event, put, random_log
from tests.jobs.transitions.reference import TYPES, Expected, as_of_days, expected, in_order, is_step, worth

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

TABLES = ("gold.transitions", "gold.unattributed", "gold.rewards", "gold.candidate_sets")
DAYS = [FIRST + timedelta(days=number) for number in range(6)]


@pytest.fixture(autouse=True)
def _no_settings_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONFIG_VARIABLE, str(tmp_path / "none.toml"))  # a file's event types would be added to those given here


@pytest.fixture
def world(tmp_path: Path) -> tuple[Settings, Lake]:
    types: Any = {
        name: {"step": step, "reward": reward, "maturity_days": maturity, "terminates": terminates}
        for name, (step, reward, maturity, terminates) in TYPES.items()
    }
    settings = Settings(lake=str(tmp_path / "lake"), event_types=types)
    return settings, Lake(settings.lake_path, tuple(settings.event_types))


def written(lake: Lake) -> Expected:
    """What the tables hold, in the terms of the reference."""
    item_ids = {row["item"]: row["item_id"] for row in lake.read("gold.item_index").to_pylist()}
    sets = {(row["day"], row["candidate_set"]): tuple(row["items"]) for row in lake.read("gold.candidate_sets").to_pylist()}
    answer = Expected({}, {}, {(day, items) for (day, _), items in sets.items()}, {})
    for row in lake.read("gold.transitions").to_pylist():
        key = row["user_id"], row["day"], row["step"]
        assert key not in answer.transitions
        names = ("event_time", "event_type", "propensity", "reward", "response", "first", "end", "as_of_day")
        answer.transitions[key] = {name: row[name] for name in names} | {
            "item_id": item_ids[row["item"]],
            "items": row["candidate_set"] and sets[row["day"], row["candidate_set"]],
        }
    for row in lake.read("gold.unattributed").to_pylist():
        answer.unattributed[row["event_id"]] = {name: row[name] for name in ("reward", "reason", "as_of_day")} | {"item_id": item_ids[row["item"]]}
    for row in lake.read("gold.rewards").to_pylist():
        answer.rewards[row["day"], row["event_day"], row["event_type"], row["reason"]] = (row["events"], Decimal(str(row["reward"])))
    return answer


def by_event(lake: Lake, log: list[Row]) -> dict[str, Row]:
    """The transitions by the event ids of their steps, of a log whose steps all have been made."""
    rows = {(row["user_id"], row["day"], row["step"]): row for row in lake.read("gold.transitions").to_pylist()}
    days: dict[tuple[str, date], list[Row]] = defaultdict(list)
    for row in in_order(filter(is_step, log)):
        days[row["user_id"], row["day"]].append(row)
    found = {row["event_id"]: rows.pop((*key, number), None) for key, steps in days.items() for number, row in enumerate(steps, 1)}
    assert not rows
    return {event_id: row for event_id, row in found.items() if row is not None}


def bits(lake: Lake) -> dict[str, Any]:
    """All that the tables hold, in an order of its own. Which number an item has depends on the order of the nights: its id stands in its place."""
    item_ids = {row["item"]: row["item_id"] for row in lake.read("gold.item_index").to_pylist()}

    def plain(row: Row) -> Row:
        return {name: item_ids[value] if name == "item" else value for name, value in row.items()}

    return {table: sorted(map(plain, lake.read(table).to_pylist()), key=repr) for table in TABLES}


def test_any_order_of_nights_ends_in_the_tables_that_the_definitions_give(spark: SparkSession, world: tuple[Settings, Lake], tmp_path: Path) -> None:
    settings, lake = world
    log = random_log(seed=3, days=len(DAYS), events=420, types=list(TYPES))
    put(lake, log, DAYS)
    # Silver holds the whole log from the start: each night has the rows of later ones before its eyes, and must not look.
    for first, last in ((0, 2), (3, 3), (4, 4)):
        run(spark, lake, settings, DayRange(DAYS[first], DAYS[last]))
        assert written(lake) == expected(log, as_of_days(log, DAYS[: last + 1], DAYS)), f"after {DAYS[last]}"
    before = bits(lake)
    run(spark, lake, settings, DayRange(DAYS[2], DAYS[2]))
    assert bits(lake) == before, "an old night run again lowers or raises no knowledge"
    run(spark, lake, settings, DayRange(DAYS[5], DAYS[5]))

    fresh = Lake(tmp_path / "fresh", lake.event_types)
    put(fresh, log, DAYS)
    run(spark, fresh, settings, DayRange(DAYS[0], DAYS[5]))
    assert bits(fresh) == bits(lake), "a backfill is night after night"
    out = written(fresh)
    assert out == expected(log, as_of_days(log, DAYS, DAYS))

    # The log is rich enough for that to mean something.
    assert {row["end"] for row in out.transitions.values()} == {"immature", "terminated", "truncated_gap", None}
    assert {row["response"] for row in out.transitions.values()} == {"click", "buy", "hide", "share", "leave", None}
    assert {row["reason"] for row in out.unattributed.values()} == set(UNATTRIBUTED_REASONS)
    assert len(out.candidate_sets) > len(DAYS)
    arrived = [row for row in log if row["arrival_day"] <= DAYS[5]]
    assert sum(reward for _, reward in out.rewards.values()) == sum(worth(row) for row in arrived)
    rewards = [row["reward"] for row in (*out.transitions.values(), *out.unattributed.values())]
    assert sum(map(Decimal, map(str, rewards))) == sum(worth(row) for row in arrived)
    assert_laid_out_for_readers(fresh, settings)


def test_what_a_day_brings_no_more_leaves_the_days_on_which_it_happened(spark: SparkSession, world: tuple[Settings, Lake], tmp_path: Path) -> None:
    """The fifth day had brought a step of the first day and one of a day that no night made, and is delivered again without them."""
    settings, lake = world
    log = [event("show", at(day, hour), event_id=f"kept {day} {hour}") for day in range(5) for hour in (1, 3)]
    late = [event("show", at(0, 2), late=4, event_id="late"), event("show", at(-5, 2), late=9, event_id="later")]
    put(lake, [*log, *late], DAYS[:5])
    run(spark, lake, settings, DayRange(DAYS[0], DAYS[4]))
    assert {"late", "later"} <= by_event(lake, [*log, *late]).keys()
    put(lake, log, DAYS[4:5], replaced=[row["day"] for row in (*log, *late)])
    run(spark, lake, settings, DayRange(DAYS[4], DAYS[4]))

    fresh = Lake(tmp_path / "fresh", lake.event_types)
    put(fresh, log, DAYS[:5])
    run(spark, fresh, settings, DayRange(DAYS[0], DAYS[4]))
    assert bits(lake) == bits(fresh)


def test_a_night_that_was_left_out_and_delivered_again_meanwhile(spark: SparkSession, world: tuple[Settings, Lake], tmp_path: Path) -> None:
    """A later night had shown what the fifth day brought of the first; it is not there any more when the fifth is run at last."""
    settings, lake = world
    log = [event("show", at(day, hour), event_id=f"kept {day} {hour}") for day in range(6) for hour in (1, 3)]
    late = [event("show", at(0, 2), late=4, event_id="late"), event("show", at(0, 4), late=5, event_id="shows the first day")]
    put(lake, [*log, *late], DAYS)
    for first, last in ((0, 3), (5, 5)):
        run(spark, lake, settings, DayRange(DAYS[first], DAYS[last]))
    assert lake.read("gold.transitions").num_rows == len(log) + 2
    put(lake, [*log, late[1]], DAYS[4:5], replaced=[row["day"] for row in (*log, *late)])
    run(spark, lake, settings, DayRange(DAYS[4], DAYS[4]))
    fresh = Lake(tmp_path / "fresh", lake.event_types)
    put(fresh, [*log, late[1]], DAYS)
    run(spark, fresh, settings, DayRange(DAYS[0], DAYS[5]))
    assert bits(lake) == bits(fresh)


def test_nights_whose_arrivals_come_in_the_reverse_order(spark: SparkSession, world: tuple[Settings, Lake], tmp_path: Path) -> None:
    """Silver takes in the second day first. When that night is run, the first day has no row yet that could tell of it."""
    settings, lake = world
    log = [event("show", at(day, hour), event_id=f"{day} {hour}") for day in range(2) for hour in (1, 3)]
    put(lake, log[2:], DAYS[1:2])
    run(spark, lake, settings, DayRange(DAYS[1], DAYS[1]))
    put(lake, log, DAYS[:2])
    run(spark, lake, settings, DayRange(DAYS[0], DAYS[0]))
    assert written(lake) == expected(log, as_of_days(log, DAYS[:2], DAYS))


def test_a_night_that_begins_between_the_writes_of_a_later_one(spark: SparkSession, world: tuple[Settings, Lake], monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks before the later one has written its transitions, and writes its own after that: what the later one knew is not lost."""
    settings, lake = world
    log = [event("show", at(day, hour), event_id=f"{day} {hour}") for day in range(2) for hour in (1, 3)]
    put(lake, log, DAYS[:2])
    original = Lake.replace_by_files
    held_back: list[Any] = []

    def come_in_between(self: Lake, *arguments: Any) -> None:
        if held_back:
            monkeypatch.setattr(Lake, "replace_by_files", original)
            original(self, *held_back)
        elif arguments[0] == "gold.transitions":
            held_back.extend(arguments)
            insist(partial(run, spark, lake, settings, DayRange(DAYS[0], DAYS[0])))
            return
        original(self, *arguments)

    monkeypatch.setattr(Lake, "replace_by_files", come_in_between)
    run(spark, lake, settings, DayRange(DAYS[1], DAYS[1]))
    assert {event_id: row["as_of_day"] for event_id, row in by_event(lake, log).items()} == {row["event_id"]: DAYS[1] for row in log}


def assert_laid_out_for_readers(lake: Lake, settings: Settings) -> None:
    """One file a day and bucket, its rows in the order of the user and the steps; a bucket is a function of the user."""
    rows = lake.read("gold.transitions", ["user_id", "day", "bucket"]).to_pylist()
    files = DeltaTable(lake.path("gold.transitions")).file_uris()
    assert len(files) == len({(row["day"], row["bucket"]) for row in rows})
    for file in files:
        keys = [(row["user_id"], row["step"]) for row in pq.ParquetFile(file).read(["user_id", "step"]).to_pylist()]
        assert keys == sorted(keys)
    assert {(row["user_id"], row["bucket"]) for row in rows} == {(row["user_id"], crc32(row["user_id"].encode()) % settings.episodes.buckets) for row in rows}


def test_cases_worked_out_by_hand(spark: SparkSession, world: tuple[Settings, Lake]) -> None:
    settings, lake = world
    cases = [
        # An episode across midnight, then a pause of more than six hours.
        *(event("show", at(0, hour), user_id="night owl", event_id=f"owl {hour}") for hour in (23.5, 24.5, 31.0)),
        # Two purchases of one shown item: the second comes after the next step, so the state never learns of it.
        event("show", at(0, 1), user_id="buyer", event_id="shown"),
        event("click", at(0, 1.5), user_id="buyer"),
        event("buy", at(0, 2), user_id="buyer", value=10.0),
        event("show", at(0, 3), user_id="buyer", item_id="other", event_id="shown next"),
        event("buy", at(1, 2), user_id="buyer", value=20.0),
        # A purchase past the edge of its maturity, one without any step, one that arrives after the night.
        event("show", at(0, 1), user_id="slow", event_id="too old"),
        event("click", at(2, 1), user_id="slow", event_id="late click"),
        event("buy", at(1, 1), user_id="nobody", event_id="stray"),
        event("buy", at(1, 1), late=4, user_id="slow"),
        # The request says which of two shows was answered.
        event("show", at(0, 8), user_id="asker", request_id="first", event_id="asked"),
        event("show", at(0, 9), user_id="asker", request_id="second", event_id="asked again"),
        event("click", at(0, 10), user_id="asker", request_id="first"),
    ]
    put(lake, cases, DAYS)
    run(spark, lake, settings, DayRange(DAYS[0], DAYS[3]))
    rows = by_event(lake, cases)
    assert [(rows[f"owl {hour}"]["first"], rows[f"owl {hour}"]["end"]) for hour in (23.5, 24.5, 31.0)] == [
        (True, None),
        (False, "truncated_gap"),
        (True, "truncated_gap"),
    ]
    assert (rows["shown"]["reward"], rows["shown"]["response"], rows["shown"]["end"]) == (1 + 6 + 7, "buy", None)
    assert (rows["shown next"]["reward"], rows["shown next"]["response"]) == (0, None)
    assert (rows["too old"]["reward"], rows["too old"]["as_of_day"]) == (0, DAYS[2])
    assert {name: (rows[name]["reward"], rows[name]["response"]) for name in ("asked", "asked again")} == {"asked": (1, None), "asked again": (0, None)}
    stray = {row["event_id"]: (row["reason"], row["reward"]) for row in lake.read("gold.unattributed").to_pylist()}
    assert stray == {"stray": ("no_step", 5), "late click": ("too_late", 1)}


def test_a_pause_that_may_still_end_is_the_edge_of_the_data(spark: SparkSession, tmp_path: Path) -> None:
    """With nothing to mature, a step at 17:59 has been followed by six hours of silence when the day ends; one at 18:00 not quite."""
    types: Any = {"view": {"step": True, "reward": "1"}}
    settings = Settings(lake=str(tmp_path / "lake"), event_types=types)
    lake = Lake(settings.lake_path, ("view",))
    put(lake, [event("view", at(0, 18 - 1 / 60), user_id="before"), event("view", at(0, 18), user_id="at")])
    run(spark, lake, settings, DayRange(DAYS[0], DAYS[0]))
    rows = lake.read("gold.transitions").to_pylist()
    assert {row["user_id"]: row["end"] for row in rows} == {"before": "truncated_gap", "at": "truncated_window"}
    with pytest.raises(NotReady, match=r"silver\.interactions in .* does not hold 2026-03-02 yet"):
        run(spark, lake, settings, DayRange(DAYS[0], DAYS[1]))


def test_nothing_from_the_future_changes_a_bit(spark: SparkSession, world: tuple[Settings, Lake], tmp_path: Path) -> None:
    """Of rows that arrive after the last night, or happen after it, in every column, no earlier output knows: as it was before they were there."""
    settings, lake = world
    log = random_log(seed=11, days=len(DAYS), events=150, types=list(TYPES))
    last = DAYS[3]
    known = [row for row in log if row["arrival_day"] <= last]
    future = [row | {"event_id": f"later {number}", "arrival_day": last + timedelta(days=1 + number % 3)} for number, row in enumerate(log)]
    future += [
        row | {"event_id": f"after {number}", "event_time": row["event_time"] + timedelta(days=9), "day": row["day"] + timedelta(days=9)}
        for number, row in enumerate(future)
    ]
    for row in future:
        row |= {"value": 99.0, "request_id": "r1", "position": 0, "propensity": 0.75, "candidates": ["item 9"], "item_id": row["item_id"] + " from the future"}
    put(lake, known, DAYS[:4])
    run(spark, lake, settings, DayRange(DAYS[0], last))
    fresh = Lake(tmp_path / "fresh", lake.event_types)
    put(fresh, [*known, *future], DAYS[:4])
    run(spark, fresh, settings, DayRange(DAYS[0], last))
    assert bits(fresh) == bits(lake)
    assert lake.read("gold.item_index").to_pylist() == fresh.read("gold.item_index").to_pylist()
