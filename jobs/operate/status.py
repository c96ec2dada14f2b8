"""A calendar of the tables: which days each holds, which would come out otherwise by now, what is running and what has failed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date

from rich.console import Console
from rich.table import Table

from jobs.contracts.days import DayRange, ranges
from jobs.contracts.errors import NightjarError
from jobs.lake import Lake
from jobs.operate.stale import find_stale, nothing_made
from jobs.runs import Run, runs
from jobs.settings import Settings
from jobs.steps import STEPS

SHOWN_DAYS = 31
MADE, EMPTY, MISSING, STALE, RUNNING, FAILED = "●○·↻▶✗"
_CAPTION = f"{MADE} made   {EMPTY} made, without a row   {MISSING} not made   {STALE} stale   {RUNNING} running   {FAILED} failed"


def print_status(lake: Lake, settings: Settings) -> None:
    """Print a calendar: a row a table, a column a day, the newest days last; below it, what is running, what has failed and what is stale.

    Raises NotReady for a lake without any day.
    """
    notes = runs(lake)
    known = {day for step in STEPS for table in step.writes for day in lake.done(table)} | _days_of(notes)
    if not known:
        raise nothing_made(lake)
    shown = list(DayRange(min(known), max(known)))[-SHOWN_DAYS:]
    try:
        stale, unknown = find_stale(lake, settings), ""
    except NightjarError as error:  # landing is being written to, for one; the calendar is wanted most when something is wrong
        stale, unknown = [], f"What is stale can't be told: {error}"
    page = Table(title=f"{lake.root}: {shown[0]} to {shown[-1]}", caption=_CAPTION, box=None, title_justify="left", caption_justify="left")
    for heading in ("step", "table", "days", "newest", ruler(shown)):
        page.add_column(heading, no_wrap=True, justify="right" if heading == "days" else "left")
    for step in STEPS:
        of_step = {mark: _days_of(run for run in notes if run.step == step.name and bool(run.failure) == (mark == FAILED)) for mark in (RUNNING, FAILED)}
        for place, table in enumerate(step.writes):
            days = lake.done(table)
            of_table = {**of_step, STALE: {one.day for one in stale if one.table == table}, MADE: lake.filled(table) & days, EMPTY: days}
            marks = "".join(next((mark for mark, among in of_table.items() if day in among), MISSING) for day in shown)
            page.add_row(step.name if place == 0 else "", table, str(len(days)), str(max(days, default="none")), marks)
    console = Console(width=110, highlight=False)
    console.print(page)
    for run in notes:
        console.print(_line(run), markup=False)
    if unknown:
        console.print(unknown, markup=False)
    if stale:
        console.print(f"{STALE} {len(stale):,} days of tables would come out otherwise by now: `nightjar stale` says why.")


def ruler(days: Sequence[date]) -> str:
    """The last digit of each day of the month, so that a mark can be told its day."""
    return "".join(str(day.day % 10) for day in days)


def _days_of(notes: Iterable[Run]) -> set[date]:
    return {day for run in notes for day in run.days}


def _line(run: Run) -> str:
    days = ", ".join(map(str, ranges(run.days)))
    if run.failure:
        return f"{FAILED} {run.step} {days} failed: {run.failure}"
    return f"{RUNNING} {run.step} {days} is running: process {run.process} of {run.host}"
