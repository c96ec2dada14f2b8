"""A lake with transitions for the tests of the torch steps."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pyarrow as pa

from jobs.lake import Lake

D = date(2026, 1, 6)
DAYS = 6  # days of transitions, up to D


def transitions(lake: Lake, users: int, items: int, as_of: date = D, days: int = DAYS) -> pa.Table:
    """One step a user and day: user u meets item (u + day) mod items; every second one is clicked."""
    rows: list[dict[str, Any]] = []
    for user in range(users):
        for back in range(days):
            day, number = D - timedelta(days=back), (user + back) % items
            clicked = number % 2 == 0
            rows.append(
                {
                    "user_id": f"u{user}",
                    "event_time": datetime(day.year, day.month, day.day, 12, tzinfo=UTC),
                    "step": 1,
                    "item": number + 1,
                    "event_type": "impression",
                    "response": "click" if clicked else None,
                    "reward": float(clicked),
                    "first": True,
                    "end": "truncated_gap",
                    "propensity": 0.5,
                    "candidate_set": None,
                    "bucket": 0,
                    "as_of_day": as_of,
                    "day": day,
                }
            )
    return pa.Table.from_pylist(rows, lake.schema("gold.transitions"))


def land(lake: Lake, users: int, items: int, days: int = DAYS) -> None:
    """Write the transitions with the numbers of their items, and a row for each item but the first, which is known from the steps alone."""
    made = [D - timedelta(days=back) for back in range(DAYS)]
    numbers = [{"item": number + 1, "item_id": f"i{number}", "day": made[-1]} for number in range(items)]
    lake.replace("gold.item_index", pa.Table.from_pylist(numbers, lake.schema("gold.item_index")), "transitions", made, {})
    lake.replace("gold.transitions", transitions(lake, users, items, days=days), "transitions", made, {})
    rows = [
        {"item_id": f"i{number}", "category": ["home", f"c{number % 2}"], "title": f"Thing {number}", "available": number != 1, "valid_from": made[-1]}
        for number in range(1, items)
    ]
    lake.replace("silver.items", pa.Table.from_pylist(rows, lake.schema("silver.items")), "silver", made, {})
