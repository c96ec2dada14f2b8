"""Who was set aside as beyond the limits, for a person to read."""

from __future__ import annotations

from datetime import date

import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from jobs.lake import Lake
from jobs.noise import REASONS

TABLE = "gold.set_aside"


def print_set_aside(lake: Lake, day: date | None, top: int) -> None:
    """Print how many users and events were set aside, by arrival day and reason; of one arrival day who they are, most events first."""
    rows = lake.read(TABLE, filter=None if day is None else pc.field("arrival_day") == day).to_pylist()
    events = sum(row["events"] for row in rows)
    on = "" if day is None else f" that arrived on {day}"
    page = Table(box=None, title=f"{lake.root}: {events:,} events{on} are beyond the limits", title_justify="left")
    headings: tuple[str, ...]
    lines: list[tuple[str, ...]]
    if day is None:
        headings = ("arrival day", "reason", "users", "events")
        counts: dict[tuple[date, str], list[int]] = {}
        for row in rows:
            counts.setdefault((row["arrival_day"], row["reason"]), []).append(row["events"])
        lines = [(str(arrival), reason, f"{len(each):,}", f"{sum(each):,}") for (arrival, reason), each in sorted(counts.items())]
    else:
        headings = ("user", "event day", "reason", "events", "busiest minute")
        most = sorted(rows, key=lambda row: (-row["events"], row["user_id"], row["event_day"]))[:top]
        lines = [(row["user_id"], str(row["event_day"]), row["reason"], f"{row['events']:,}", f"{row['busiest_minute']:,}") for row in most]
    for place, heading in enumerate(headings):
        page.add_column(heading, justify="right" if lines and lines[0][place].replace(",", "").isdigit() and place > 1 else "left")
    for line in lines:
        page.add_row(*line)
    console = Console(width=110, highlight=False)
    console.print(page)
    for reason in sorted({row["reason"] for row in rows}):
        console.print(f"{reason}: {REASONS[reason]}", markup=False)
    if rows:
        console.print("To count them after all: raise the limit, or name the users in `exempt` of [limits]; then `nightjar stale --recompute`.", markup=False)
