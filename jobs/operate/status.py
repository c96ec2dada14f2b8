"""Which days each table holds."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from rich.console import Console
from rich.table import Table

from jobs.contracts.days import DayRange
from jobs.contracts.errors import NotReady
from jobs.lake import Lake
from jobs.steps import STEPS

SHOWN_DAYS = 31


def print_status(lake: Lake) -> None:
    """Print a calendar: a row a table, a column a day, the newest days last; a day on which nothing came is told from one not run.

    Raises NotReady for a lake without any day."""
    calendar = done_days(lake)
    known = frozenset[date]().union(*calendar.values())
    if not known:
        raise NotReady(f"No step has made anything in {lake.root} yet. `nightjar backfill` makes the tables for a range of days.")
    shown = list(DayRange(min(known), max(known)))[-SHOWN_DAYS:]
    page = Table(
        title=f"{lake.root}: {shown[0]} to {shown[-1]}",
        caption="● made   ○ made, without a row   · not made",
        box=None,
        title_justify="left",
        caption_justify="left",
    )
    for heading in ("step", "table", "days", "newest", ruler(shown)):
        page.add_column(heading, no_wrap=True, justify="right" if heading == "days" else "left")
    for step in STEPS:
        for place, table in enumerate(step.writes):
            days = calendar[table]
            filled = lake.filled(table)
            marks = "".join("·" if day not in days else "●" if day in filled else "○" for day in shown)
            page.add_row(step.name if place == 0 else "", table, str(len(days)), str(max(days, default="none")), marks)
    Console(width=110).print(page)


def done_days(lake: Lake) -> dict[str, frozenset[date]]:
    """The days that were made of each table of the plan, in its order."""
    return {table: lake.done(table) for step in STEPS for table in step.writes}


def ruler(days: Sequence[date]) -> str:
    """The last digit of each day of the month, so that a mark can be told its day."""
    return "".join(str(day.day % 10) for day in days)
