from __future__ import annotations

import json
import random
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from jobs.contracts.days import DayRange
from jobs.contracts.errors import NotReady
from jobs.ingest import bronze, silver
from jobs.lake import Lake
from jobs.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

DAYS = [date(2026, 1, 1) + timedelta(days=offset) for offset in range(4)]
Event = tuple[str, int, int]  # id, index of its day, value: what tells copies apart


def land(landing: Path, feed: str, day: date, lines: Iterable[dict[str, Any]], part: str = "p") -> None:
    path = landing / feed / f"ds={day}" / f"{part}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def line(event: Event) -> dict[str, Any]:
    name, day, value = event
    time = datetime.combine(DAYS[day], datetime.min.time(), UTC) + timedelta(hours=1)
    return {"event_id": name, "user_id": "u", "item_id": "i", "event_type": "click", "event_time": time.isoformat(), "value": value}


def land_events(landing: Path, arrivals: dict[int, list[Event]]) -> None:
    for day, events in arrivals.items():
        land(landing, "events", DAYS[day], map(line, events))


def make(spark: SparkSession, lake: Lake, settings: Settings, *days: int) -> None:
    wanted = DayRange(DAYS[days[0]], DAYS[days[-1]])
    bronze.run(spark, lake, settings, wanted)
    silver.run(spark, lake, settings, wanted)


def rows(lake: Lake) -> list[tuple[str, date, date, float]]:
    return sorted((row["event_id"], row["arrival_day"], row["day"], row["value"]) for row in lake.read("silver.interactions").to_pylist())


def first_arrivals(arrivals: dict[int, list[Event]]) -> list[tuple[str, date, date, float]]:
    """The same by plain Python: the first copy of each id, by arrival day and line."""
    first: dict[str, tuple[str, date, date, float]] = {}
    for arrival, events in sorted(arrivals.items()):
        for name, day, value in events:
            first.setdefault(name, (name, DAYS[arrival], DAYS[day], float(value)))
    return sorted(first.values())


def test_late_repeated_and_redelivered_events(spark: SparkSession, lake: Lake, settings: Settings) -> None:
    """Night after night, then in one pass, then with a day delivered again: always the first arrivals.

    `b` comes again with another event day, and `a`'s first copy is withdrawn, so that its second one must come to light.
    """
    arrivals: dict[int, list[Event]] = {
        0: [("a", 0, 1), ("b", 0, 2), ("b", 0, 3), ("c", 0, 4)],
        1: [("b", 1, 5), ("d", 0, 6), ("e", 1, 7), ("a", 1, 8)],
        2: [],
        3: [("f", 3, 9), ("e", 0, 10), ("d", 0, 11)],
    }
    land_events(settings.landing_path, arrivals)
    for day in range(4):
        make(spark, lake, settings, day)
        assert rows(lake) == first_arrivals({arrival: events for arrival, events in arrivals.items() if arrival <= day})
    assert lake.done("silver.interactions") == set(DAYS)
    night_after_night = rows(lake)
    at_once = Lake(lake.root / "again", lake.event_types)
    make(spark, at_once, settings, 0, 3)
    assert rows(at_once) == night_after_night == first_arrivals(arrivals)

    arrivals[0] = [("c", 0, 12)]
    land_events(settings.landing_path, arrivals)
    make(spark, lake, settings, 0)
    assert rows(lake) == first_arrivals(arrivals)
    last = lake.commits("silver.interactions")[-1]
    assert last.days == {DAYS[0]}
    assert last.inputs == {"bronze.events": lake.version("bronze.events")}


def test_validity(spark: SparkSession, lake: Lake, settings: Settings) -> None:
    landing = settings.landing_path
    same = {"item_id": "x", "price": 1, "attributes": {"a": 1, "b": 2}}
    turned = {"item_id": "x", "price": 1.0, "attributes": {"b": 2, "a": 1}}
    land(landing, "items", DAYS[0], [{"item_id": "x", "price": 9}, same, {"item_id": "y", "title": "T"}])
    land(landing, "items", DAYS[1], [turned])
    land(landing, "items", DAYS[2], [{"item_id": "x", "price": 2}], part="b")
    land(landing, "items", DAYS[2], [{"item_id": "x", "price": 3}], part="a")
    land(landing, "items", DAYS[3], [same])
    land(landing, "users", DAYS[1], [{"user_id": 7}])
    land(landing, "users", DAYS[3], [{"user_id": 7, "attributes": {"k": "v"}}])
    make(spark, lake, settings, 0, 3)
    make(spark, lake, settings, 1)
    items = sorted((row["item_id"], row["valid_from"], row["valid_to"], row["price"]) for row in lake.read("silver.items").to_pylist())
    assert items == [("x", DAYS[0], DAYS[2], 1.0), ("x", DAYS[2], DAYS[3], 2.0), ("x", DAYS[3], None, 1.0), ("y", DAYS[0], None, None)]
    users = sorted((row["user_id"], row["valid_from"], row["valid_to"], row["attributes"]) for row in lake.read("silver.users").to_pylist())
    assert users == [("7", DAYS[1], DAYS[3], None), ("7", DAYS[3], None, [("k", "v")])]


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
