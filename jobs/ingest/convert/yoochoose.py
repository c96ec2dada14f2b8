"""Yoochoose (RecSys Challenge 2015): clicks and purchases of anonymous sessions of a shop, April to September 2014."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from itertools import chain
from pathlib import Path

from jobs.ingest.convert.source import bad_line, find_file, read_rows
from jobs.ingest.convert.writer import LandingWriter

_CLICKS = "session,2014-04-07T10:51:09.277Z,item,category"
_BUYS = "session,2014-04-07T10:51:09.277Z,item,price,quantity"

SETTINGS = """\
# A shop that knows sessions and no people. A click is a step; a purchase of the session answers it.
lake = "../lake"

[landing]
folder = "."

[event_types.click]
step = true
reward = "0.1"

[event_types.purchase]
reward = "1"
maturity_days = 1

[episodes]
gap_hours = 6

[train]
window_days = 30

[evaluate]
holdout_days = 1
repeats = true
"""


def write(source: Path, landing: LandingWriter) -> None:
    """Write clicks and purchases by UTC day; the user is the session."""
    for day, event in chain(_events(source, "*clicks.dat", _CLICKS, 4), _events(source, "*buys.dat", _BUYS, 5)):
        landing.write("events", day, event)


def _events(source: Path, pattern: str, holds: str, columns: int) -> Iterator[tuple[date, dict[str, object]]]:
    path = find_file(source, pattern, holds)
    for number, fields in read_rows(path, ",", columns, holds):
        session, time, item, *others = fields
        try:
            day = datetime.fromisoformat(time).astimezone(UTC).date()
            event: dict[str, object] = {"user_id": session, "session_id": session, "item_id": item, "event_time": time}
            if columns == 4:
                event |= {"event_type": "click", "context": {"category": others[0]}}
            else:
                event |= {"event_type": "purchase", "value": float(others[0]), "context": {"quantity": others[1]}}
        except ValueError:
            bad_line(path, number, ",".join(fields), holds)
        yield day, event
