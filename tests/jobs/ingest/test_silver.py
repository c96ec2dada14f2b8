from __future__ import annotations

import random
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from jobs.contracts.days import DayRange
from jobs.contracts.errors import NotReady
from jobs.ingest import silver
from jobs.lake import Lake
from jobs.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

DAYS = [date(2026, 1, 1) + timedelta(days=offset) for offset in range(4)]
Event = tuple[str, int, int]  # id, index of its day, value: what tells copies apart


def bring(lake: Lake, table: str, day: int, rows: list[dict[str, Any]]) -> None:
    """Write what one arrival day brought, each row a line of the file p, with null where the test says nothing."""
    names = lake.schema(table).names
    lines = [{"source_file": "p", "source_line": number, "arrival_day": DAYS[day], **row} for number, row in enumerate(rows, start=1)]
    columns = {name: [line.get(name) for line in lines] for name in names}
    lake.replace(table, pa.table(columns, schema=lake.schema(table)), "bronze", [DAYS[day]], {})


def bring_events(lake: Lake, arrivals: dict[int, list[Event]]) -> None:
    fixed = {"user_id": "u", "item_id": "i", "event_type": "click"}
    for arrival, events in arrivals.items():
        stamped = [(name, DAYS[day], datetime.combine(DAYS[day], time(1), UTC), float(value)) for name, day, value in events]
        rows = [{**fixed, "event_id": name, "event_day": day, "event_time": when, "value": value} for name, day, when, value in stamped]
        bring(lake, "bronze.events", arrival, rows)


def interactions(lake: Lake) -> list[tuple[str, date, date, float]]:
    return sorted((row["event_id"], row["arrival_day"], row["day"], row["value"]) for row in lake.read("silver.interactions").to_pylist())


def first_arrivals(arrivals: dict[int, list[Event]]) -> list[tuple[str, date, date, float]]:
    """The same by plain Python: the first copy of each id, by arrival day and line."""
    first: dict[str, tuple[str, date, date, float]] = {}
    for arrival, events in sorted(arrivals.items()):
        for name, day, value in events:
            first.setdefault(name, (name, DAYS[arrival], DAYS[day], float(value)))
    return sorted(first.values())


def test_late_repeated_and_redelivered_events(spark: SparkSession, lake: Lake, settings: Settings) -> None:
    """One night, three in one pass, then a day delivered again: always the first arrivals, and no day is written that nothing touches.

    `b` comes again with another event day; `a`'s first copy is withdrawn, so that its second one, of another day, comes to light.
    """
    arrivals: dict[int, list[Event]] = {
        0: [("a", 0, 1), ("b", 0, 2), ("b", 0, 3), ("c", 0, 4)],
        1: [("b", 1, 5), ("d", 0, 6), ("e", 1, 7), ("a", 1, 8)],
        2: [],
        3: [("f", 3, 9), ("e", 0, 10), ("d", 0, 11)],
    }
    for day in range(4):
        bring(lake, "bronze.items", day, [{"item_id": "x", "price": float(day // 2)}])
        bring(lake, "bronze.users", day, [{"user_id": "u"}])
    bring_events(lake, {0: arrivals[0]})
    silver.run(spark, lake, settings, DayRange(DAYS[0], DAYS[0]))
    assert interactions(lake) == first_arrivals({0: arrivals[0]})

    bring_events(lake, arrivals)
    silver.run(spark, lake, settings, DayRange(DAYS[1], DAYS[3]))
    assert interactions(lake) == first_arrivals(arrivals)
    assert lake.done("silver.interactions") == set(DAYS)

    arrivals[0] = [("c", 0, 12)]
    bring_events(lake, {0: arrivals[0]})
    files = {path: path.stat().st_mtime_ns for path in Path(lake.path("silver.interactions"), f"day={DAYS[3]}").iterdir()}
    silver.run(spark, lake, settings, DayRange(DAYS[0], DAYS[0]))
    assert interactions(lake) == first_arrivals(arrivals)
    assert {path: path.stat().st_mtime_ns for path in Path(lake.path("silver.interactions"), f"day={DAYS[3]}").iterdir()} == files
    last = lake.commits("silver.interactions")[-1]
    assert last.days == {DAYS[0]}
    assert last.inputs == {"bronze.events": lake.version("bronze.events")}
    items = sorted((row["item_id"], row["valid_from"], row["valid_to"], row["price"]) for row in lake.read("silver.items").to_pylist())
    assert items == [("x", DAYS[0], DAYS[2], 0.0), ("x", DAYS[2], None, 1.0)]
    assert [(row["user_id"], row["valid_from"], row["valid_to"]) for row in lake.read("silver.users").to_pylist()] == [("u", DAYS[0], None)]


def test_validity(spark: SparkSession) -> None:
    """The last line of a day counts; the order of a map's entries says nothing; what returns is a new interval."""
    first, turned = {"a": "1", "b": "2"}, {"b": "2", "a": "1"}
    rows = [
        ("x", 9.0, None, DAYS[0], "p", 1),
        ("x", 1.0, first, DAYS[0], "p", 2),
        ("x", 1.0, turned, DAYS[1], "p", 1),
        ("x", 2.0, None, DAYS[2], "q", 1),
        ("x", 3.0, None, DAYS[2], "p", 7),
        ("x", 1.0, first, DAYS[3], "p", 1),
        ("y", None, None, DAYS[1], "p", 3),
        ("y", None, first, DAYS[3], "p", 2),
    ]
    frame = spark.createDataFrame(rows, "id string, price double, attributes map<string,string>, arrival_day date, source_file string, source_line bigint")
    found = silver.validity(frame, "id", ["price", "attributes"]).orderBy("id", "valid_from").collect()
    assert [tuple(row) for row in found] == [
        ("x", 1.0, first, DAYS[0], DAYS[2]),
        ("x", 2.0, None, DAYS[2], DAYS[3]),
        ("x", 1.0, first, DAYS[3], None),
        ("y", None, None, DAYS[1], DAYS[3]),
        ("y", None, first, DAYS[3], None),
    ]


def test_bronze_must_hold_the_days(spark: SparkSession, lake: Lake, settings: Settings) -> None:
    with pytest.raises(NotReady, match=r"bronze\.events .* does not hold 2026-01-01"):
        silver.run(spark, lake, settings, DayRange(DAYS[0], DAYS[0]))


def test_many_copies_in_any_order(spark: SparkSession, settings: Settings) -> None:
    """The transform alone, on 600 rows of 60 ids spread over days, files and lines by chance, against plain Python."""
    chance = random.Random(5)
    places = {(chance.choice(DAYS), f"f{chance.randrange(5)}", chance.randrange(1000)) for _ in range(600)}
    copies = [(f"e{chance.randrange(60)}", chance.choice(DAYS), *place) for place in places]
    events = spark.createDataFrame(copies, "event_id string, event_day date, arrival_day date, source_file string, source_line bigint")
    first = {name: min(copy[2:] for copy in copies if copy[0] == name) for name in {copy[0] for copy in copies}}
    for wanted in (DAYS, DAYS[1:3], []):
        found = sorted(tuple(row)[:5] for row in silver.interactions(events, wanted).select(*events.columns).collect())
        assert found == sorted(copy for copy in copies if copy[2:] == first[copy[0]] and copy[1] in wanted)
