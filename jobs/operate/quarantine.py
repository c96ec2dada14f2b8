"""What lies in quarantine, for a person to read, and what comes out of it again."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.contracts.days import DayRange
from jobs.contracts.errors import UnknownReason
from jobs.contracts.landing import CONFLICT, Reason
from jobs.ingest.requeue import requeue
from jobs.lake import Lake
from jobs.settings import Settings

_SHOWN = 400  # characters of a line

console = Console(width=110, highlight=False)


def print_counts(lake: Lake) -> None:
    """Print how many lines lie in quarantine, by arrival day, feed and reason."""
    kept = lake.read("bronze.quarantine", ["arrival_day", "feed", "reason"])
    counts = kept.group_by(["arrival_day", "feed", "reason"]).aggregate([([], "count_all")]).to_pylist()
    if lake.exists("silver.repeats"):
        conflicts = lake.read("silver.repeats", ["arrival_day"], pc.field("kind") == CONFLICT)
        counts += [row | {"feed": "events", "reason": CONFLICT} for row in conflicts.group_by("arrival_day").aggregate([([], "count_all")]).to_pylist()]
    page = Table(box=None, title=f"{lake.root}: {sum(row['count_all'] for row in counts):,} lines in quarantine", title_justify="left")
    for heading in ("arrival day", "feed", "reason", "lines"):
        page.add_column(heading, justify="right" if heading == "lines" else "left")
    for row in sorted(counts, key=lambda row: (row["arrival_day"], row["feed"], row["reason"])):
        page.add_row(str(row["arrival_day"]), row["feed"], row["reason"], f"{row['count_all']:,}")
    console.print(page)


def print_lines(lake: Lake, day: date, reason: str | None, top: int) -> None:
    """Print lines of an arrival day in quarantine: where each stood, what was expected and what came, and the line."""
    rows = [row for row in _lines(lake, day) if reason is None or row["reason"] == _known(reason)]
    for row in rows[:top]:
        console.print(Text(f"{row['source_file']}:{row['source_line']} {row['reason']}", style="bold"))
        console.print(Text(f"  {row['detail']}"))
        text = row["line"].decode(errors="backslashreplace")
        console.print(Text(f"  {text[:_SHOWN]}{f' … and {len(text) - _SHOWN:,} more characters' if len(text) > _SHOWN else ''}"))
    console.print(f"{min(top, len(rows)):,} of {len(rows):,} lines of {day}.")


def print_requeued(lake: Lake, settings: Settings, days: DayRange, reasons: Sequence[str]) -> None:
    """Type again what lies in quarantine for one of the reasons (none given: for any), and print what came of it."""
    tried = requeue(lake, settings, days, [Reason(_known(reason)) for reason in reasons if reason != CONFLICT] if reasons else list(Reason))
    for day in tried:
        console.print(f"{day.day}: {day.taken_in:,} of {day.tried:,} lines taken in, {day.tried - day.taken_in:,} still in quarantine.")
    changed = [day.day for day in tried if day.taken_in]
    if changed:
        console.print(f"Now run `nightjar run silver --day {min(changed)} --to {max(changed)}` and the steps after it.")
    else:
        console.print("Nothing was taken in.")


def _lines(lake: Lake, day: date) -> list[dict[str, Any]]:
    arrived = pc.field("arrival_day") == day
    rows = lake.read("bronze.quarantine", filter=arrived).to_pylist()
    if lake.exists("silver.repeats"):
        conflicts: pa.Table = lake.read("silver.repeats", filter=arrived & (pc.field("kind") == CONFLICT))
        rows += [row | {"reason": CONFLICT, "detail": _conflict(row)} for row in conflicts.to_pylist()]
    return sorted(rows, key=lambda row: (row["source_file"], row["source_line"]))


def _conflict(row: dict[str, Any]) -> str:
    first = f"{row['first_source_file']}:{row['first_source_line']}"
    return f"event_id {row['event_id']}: expected the content of its first line, {first}, got another {', '.join(row['changed'])}"


def _known(reason: str) -> str:
    known = [*map(str, Reason), CONFLICT]
    if reason not in known:
        raise UnknownReason(f"There is no reason {reason!r}. Reasons: {', '.join(known)}.")
    return reason
