"""Silver rows for tests: a row names only the columns under test."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pyarrow as pa

from jobs.lake import Lake

Row = dict[str, Any]
FIRST = date(2026, 3, 1)


def at(day: int, hour: float = 12) -> datetime:
    """The instant `hour` hours into the day `day` days after FIRST."""
    return datetime(FIRST.year, FIRST.month, FIRST.day, tzinfo=UTC) + timedelta(days=day, hours=hour)


def event(event_type: str, event_time: datetime, late: int = 0, **columns: Any) -> Row:
    """One row that arrived `late` days after it happened."""
    day = event_time.date()
    return {
        "user_id": "u",
        "item_id": "i",
        "event_type": event_type,
        "event_time": event_time,
        "day": day,
        "arrival_day": day + timedelta(days=late),
        **columns,
    }


def put(lake: Lake, rows: Sequence[Row], days: Collection[date] = (), replaced: Collection[date] | None = None) -> None:
    """Make silver.interactions of the rows, as a run for `days` that replaced those event days; ids are given to rows that have none.

    Without `replaced` it is the run for `days` and all event days.
    """
    names = lake.schema("silver.interactions").names
    filled = [dict.fromkeys(names) | {"event_id": f"e{number:04}", "source_file": "p", "source_line": number} | row for number, row in enumerate(rows)]
    done = {*days} if replaced else {*days, *(row["day"] for row in rows)}
    lake.replace("silver.interactions", pa.Table.from_pylist(filled, lake.schema("silver.interactions")), "silver", done, {}, replaced)


def random_log(seed: int, days: int, events: int, types: Sequence[str]) -> list[Row]:
    """A small dense log: few users, items and instants, so that ties, repeats and crossings of midnight are common; a third arrives late."""
    draw = random.Random(seed)
    log = []
    for number in range(events):
        row = event(draw.choice(types), at(draw.randrange(days), draw.choice((0, 0.5, 3, 9, 14, 20, 23, 23.75))), late=draw.choice((0, 0, 0, 0, 1, 2, 3)))
        row |= {
            "event_id": f"e{number * 7919 % 10_000:04}",
            "user_id": f"user {draw.randrange(4)}",
            "item_id": f"item {draw.randrange(4)}",
            "value": draw.choice((None, 0.1, 0.2, 2.5, 30.0, float("nan"))),
            "request_id": draw.choice((None, "r1", "r2")),
            "position": draw.choice((None, 1, 2)),
            "propensity": draw.choice((None, 0.25)),
            "candidates": draw.choice((None, [], ["item 1", "item 0", "item 1"], ["item 0", "item 1"], ["item 0,item 1"])),
        }
        log.append(row)
    return log
