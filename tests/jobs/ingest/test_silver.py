from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.contracts.days import DayRange
from jobs.contracts.errors import NotReady
from jobs.ingest import silver
from jobs.lake import Lake, insist
from jobs.settings import Settings

DAYS = [date(2026, 1, 1) + timedelta(days=offset) for offset in range(4)]
Event = tuple[str, int, int]  # id, index of its day, value: what tells copies apart
Arrivals = Mapping[int, Sequence[Event]]  # by index of the arrival day, in the order of its lines


def bring(lake: Lake, table: str, day: int, rows: list[dict[str, Any]]) -> None:
    """Write what one arrival day brought, each row a line of the file p, with null where the test says nothing."""
    names = lake.schema(table).names
    lines = [{"source_file": f"ds={DAYS[day]}/p", "source_line": number, "arrival_day": DAYS[day], **row} for number, row in enumerate(rows, start=1)]
    columns = {name: [line.get(name) for line in lines] for name in names}
    lake.replace(table, pa.table(columns, schema=lake.schema(table)), "bronze", [DAYS[day]], {})


def bring_events(lake: Lake, arrivals: Arrivals) -> None:
    fixed = {"user_id": "u", "item_id": "i", "event_type": "click", "context": {"b": "1", "a": "2"}}
    for arrival, events in arrivals.items():
        stamped = [(name, DAYS[day], datetime.combine(DAYS[day], time(1), UTC), float(value)) for name, day, value in events]
        rows = [{**fixed, "event_id": name, "event_day": day, "event_time": when, "value": value} for name, day, when, value in stamped]
        bring(lake, "bronze.events", arrival, rows)


def bring_nothing_else(lake: Lake) -> None:
    for day in range(len(DAYS)):
        bring(lake, "bronze.items", day, [])
        bring(lake, "bronze.users", day, [])


def interactions(lake: Lake) -> list[tuple[Any, ...]]:
    rows = lake.read("silver.interactions").to_pylist()
    return sorted((row["event_id"], row["arrival_day"], row["source_line"], row["day"], row["value"]) for row in rows)


def repeats(lake: Lake) -> list[tuple[Any, ...]]:
    rows = lake.read("silver.repeats").to_pylist()
    return sorted((row["arrival_day"], row["source_line"], row["event_id"], row["kind"], tuple(row["changed"])) for row in rows)


def worked_out(arrivals: Arrivals) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """Interactions and repeats by plain Python: the first copy of each id, by arrival day and line, counts."""
    first: dict[str, tuple[int, int, Event]] = {}
    again = []
    for arrival, events in sorted(arrivals.items()):
        for line, event in enumerate(events, start=1):
            counts = first.setdefault(event[0], (arrival, line, event))
            if counts != (arrival, line, event):
                before = counts[2]
                changed = ("event_time",) * (event[1] != before[1]) + ("value",) * (event[2] != before[2])
                again.append((DAYS[arrival], line, event[0], "conflict" if changed else "duplicate", changed))
    return sorted((name, DAYS[arrival], line, DAYS[day], float(value)) for arrival, line, (name, day, value) in first.values()), sorted(again)


def test_late_repeated_and_redelivered_events(lake: Lake, settings: Settings) -> None:
    """One night, three in one pass, then a day delivered again: always the first arrivals, and no day is written that nothing touches.

    `b` comes again with another event day; `a`'s first copy is withdrawn, so that its second one, of another day, comes to light.
    """
    arrivals: dict[int, list[Event]] = {
        0: [("a", 0, 1), ("b", 0, 2), ("b", 0, 3), ("c", 0, 4)],
        1: [("b", 1, 5), ("d", 0, 6), ("e", 1, 7), ("a", 1, 8)],
        2: [],
        3: [("f", 3, 9), ("e", 0, 10), ("d", 0, 6)],
    }
    for day in range(4):
        bring(lake, "bronze.items", day, [{"item_id": "x", "price": float(day // 2)}])
        bring(lake, "bronze.users", day, [{"user_id": "u"}])
    bring_events(lake, {0: arrivals[0]})
    silver.run(lake, settings, DayRange(DAYS[0], DAYS[0]))
    assert (interactions(lake), repeats(lake)) == worked_out({0: arrivals[0]})

    bring_events(lake, arrivals)
    silver.run(lake, settings, DayRange(DAYS[1], DAYS[3]))
    assert (interactions(lake), repeats(lake)) == worked_out(arrivals)
    assert ("d", "duplicate") in [row[2:4] for row in repeats(lake)]
    assert lake.done("silver.interactions") == set(DAYS)
    assert lake.commits("silver.interactions")[-1].changed == set(), "a copy that comes later changes nothing of the first"

    arrivals[0] = [("c", 0, 12)]
    bring_events(lake, {0: arrivals[0]})
    files = {path: path.stat().st_mtime_ns for path in Path(lake.path("silver.interactions"), f"day={DAYS[3]}").iterdir()}
    silver.run(lake, settings, DayRange(DAYS[0], DAYS[0]))
    assert (interactions(lake), repeats(lake)) == worked_out(arrivals)
    assert {path: path.stat().st_mtime_ns for path in Path(lake.path("silver.interactions"), f"day={DAYS[3]}").iterdir()} == files
    last = lake.commits("silver.interactions")[-1]
    assert last.days == {DAYS[0]}
    assert last.changed == {DAYS[1]}, "two copies of day 1 are the first ones now"
    assert last.replaced == {DAYS[0], DAYS[1]}
    assert last.inputs == {"bronze.events": lake.version("bronze.events")}
    items = sorted((row["item_id"], row["valid_from"], row["valid_to"], row["price"]) for row in lake.read("silver.items").to_pylist())
    assert items == [("x", DAYS[0], DAYS[2], 0.0), ("x", DAYS[2], None, 1.0)]
    assert [(row["user_id"], row["valid_from"], row["valid_to"]) for row in lake.read("silver.users").to_pylist()] == [("u", DAYS[0], None)]


@pytest.mark.parametrize("seed", range(4))
def test_days_in_any_order_and_delivered_again_end_in_the_same_rows(settings: Settings, tmp_path: Path, seed: int) -> None:
    """80 copies of 25 ids by chance; the days run in a random order, in twos where they are neighbours, some again with other lines."""
    chance = random.Random(seed)
    lake = Lake(tmp_path / "lake", ("click",))
    bring_nothing_else(lake)
    delivered: dict[int, list[Event]] = {}
    order = chance.sample(range(len(DAYS)), len(DAYS)) + [chance.randrange(len(DAYS)) for _ in range(4)]
    for day in order:
        delivered[day] = [(f"e{chance.randrange(25)}", chance.randrange(len(DAYS)), chance.randrange(3)) for _ in range(20)]
        bring_events(lake, {day: delivered[day]})
        first = day - 1 if day - 1 in delivered and chance.random() < 0.5 else day
        before = interactions(lake) if lake.exists("silver.interactions") else []
        silver.run(lake, settings, DayRange(DAYS[first], DAYS[day]))
        assert (interactions(lake), repeats(lake)) == worked_out(delivered)
        changed = {row[1] for row in {*before} ^ {*interactions(lake)}}
        assert lake.commits("silver.interactions")[-1].changed == changed - {DAYS[first], DAYS[day]}


def test_a_day_that_bronze_holds_but_that_was_not_taken_in_is_not_there(lake: Lake, settings: Settings) -> None:
    bring_nothing_else(lake)
    arrivals: dict[int, list[Event]] = {0: [("a", 0, 1)], 1: [("a", 1, 2), ("b", 0, 3)], 2: [("b", 0, 3), ("a", 0, 1)]}
    bring_events(lake, arrivals)
    silver.run(lake, settings, DayRange(DAYS[2], DAYS[2]))
    assert (interactions(lake), repeats(lake)) == worked_out({2: arrivals[2]})
    silver.run(lake, settings, DayRange(DAYS[0], DAYS[0]))
    assert (interactions(lake), repeats(lake)) == worked_out({0: arrivals[0], 2: arrivals[2]})


@pytest.mark.parametrize("when", ["before it looks", "before it writes"])
def test_another_day_that_comes_in_between(lake: Lake, settings: Settings, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """Day 2 is taken in whole while the run of day 1 goes on. They share ids, whose copies lie on other event days."""
    bring_nothing_else(lake)
    arrivals: dict[int, list[Event]] = {0: [("z", 0, 0)], 1: [("a", 0, 1), ("b", 1, 2)], 2: [("a", 2, 3), ("b", 3, 4), ("c", 2, 5)]}
    bring_events(lake, {0: arrivals[0], 1: arrivals[1]})
    silver.run(lake, settings, DayRange(DAYS[0], DAYS[0]))
    place, name = (silver, "database") if when == "before it looks" else (Lake, "replace")
    original = getattr(place, name)

    def come_in_between(*arguments: Any, **named: Any) -> Any:
        if when == "before it looks" or arguments[1] == "silver.interactions":
            monkeypatch.setattr(place, name, original)
            bring_events(lake, {2: arrivals[2]})
            silver.run(lake, settings, DayRange(DAYS[2], DAYS[2]))
        return original(*arguments, **named)

    monkeypatch.setattr(place, name, come_in_between)
    insist(partial(silver.run, lake, settings, DayRange(DAYS[1], DAYS[1])))
    assert (interactions(lake), repeats(lake)) == worked_out(arrivals)


def test_another_first_run_that_dies_between_the_two_writes(lake: Lake, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Day 1's run has written its repeats when day 2's writes its own and is killed; neither knows of the other."""
    bring_nothing_else(lake)
    arrivals: dict[int, list[Event]] = {0: [("a", 0, 1), ("a", 0, 1), ("b", 0, 2), ("b", 0, 3)], 1: [("b", 1, 4), ("c", 1, 5), ("c", 1, 5)]}
    bring_events(lake, arrivals)
    original = Lake.replace

    def die(*arguments: Any, **named: Any) -> None:
        if arguments[1] == "silver.interactions":
            raise KeyboardInterrupt
        original(*arguments, **named)

    def come_in_between(*arguments: Any, **named: Any) -> None:
        if arguments[1] == "silver.interactions":
            monkeypatch.setattr(Lake, "replace", die)
            with pytest.raises(KeyboardInterrupt):
                silver.run(lake, settings, DayRange(DAYS[1], DAYS[1]))
            monkeypatch.setattr(Lake, "replace", original)
        original(*arguments, **named)

    monkeypatch.setattr(Lake, "replace", come_in_between)
    silver.run(lake, settings, DayRange(DAYS[0], DAYS[0]))
    silver.run(lake, settings, DayRange(DAYS[1], DAYS[1]))
    assert (interactions(lake), repeats(lake)) == worked_out(arrivals)


def test_an_id_that_bronze_has_moved_to_a_day_that_is_taken_in_first(lake: Lake, settings: Settings) -> None:
    """Day 0 is delivered again without it; day 1 brings it, on another event day, and is taken in before day 0 is."""
    bring_nothing_else(lake)
    bring_events(lake, {0: [("y", 0, 1), ("x", 2, 1)]})
    silver.run(lake, settings, DayRange(DAYS[0], DAYS[0]))
    arrivals: dict[int, list[Event]] = {0: [("y", 0, 1)], 1: [("x", 1, 2)]}
    bring_events(lake, arrivals)
    silver.run(lake, settings, DayRange(DAYS[1], DAYS[1]))
    assert (interactions(lake), repeats(lake)) == worked_out(arrivals)
    assert lake.commits("silver.interactions")[-1].changed == {DAYS[0]}


def test_portions_change_nothing(lake: Lake, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silver, "_PORTION_ROWS", 3)
    bring_nothing_else(lake)
    arrivals = {day: [(f"e{place}", (day + place) % 4, place) for place in range(day, day + 2)] for day in range(4)}
    bring_events(lake, arrivals)
    silver.run(lake, settings, DayRange(DAYS[0], DAYS[3]))
    assert (interactions(lake), repeats(lake)) == worked_out(arrivals)
    assert len(lake.commits("silver.interactions")) == 4


def test_validity(lake: Lake, settings: Settings) -> None:
    """The last line of a day counts; the order of a map's entries says nothing; what returns is a new interval."""
    first, turned = {"a": "1", "b": "2"}, {"b": "2", "a": "1"}
    said: dict[int, list[tuple[str, float | None, Mapping[str, str] | None]]] = {
        0: [("x", 9.0, None), ("x", 1.0, first)],
        1: [("x", 1.0, turned), ("y", None, None)],
        2: [("x", 3.0, None), ("x", 2.0, None)],
        3: [("x", 1.0, first), ("y", None, first)],
    }
    for day, rows in said.items():
        bring(lake, "bronze.items", day, [{"item_id": item, "price": price, "attributes": attributes} for item, price, attributes in rows])
        bring(lake, "bronze.users", day, [])
        bring(lake, "bronze.events", day, [])
    silver.run(lake, settings, DayRange(DAYS[0], DAYS[3]))
    found = sorted(lake.read("silver.items").to_pylist(), key=lambda row: (row["item_id"], row["valid_from"]))
    assert [(row["item_id"], row["price"], row["attributes"] and dict(row["attributes"]), row["valid_from"], row["valid_to"]) for row in found] == [
        ("x", 1.0, first, DAYS[0], DAYS[2]),
        ("x", 2.0, None, DAYS[2], DAYS[3]),
        ("x", 1.0, first, DAYS[3], None),
        ("y", None, None, DAYS[1], DAYS[3]),
        ("y", None, first, DAYS[3], None),
    ]


def test_bronze_must_hold_the_days(lake: Lake, settings: Settings) -> None:
    with pytest.raises(NotReady, match=r"bronze\.events .* does not hold 2026-01-01"):
        silver.run(lake, settings, DayRange(DAYS[0], DAYS[0]))
