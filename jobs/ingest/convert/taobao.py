"""Taobao UserBehavior: views, carts, favourites and purchases of a shop, 2017-11-25 to 2017-12-03 China time."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from jobs.ingest.convert.source import bad_line, find_file, read_rows, utc_day
from jobs.ingest.convert.writer import LandingWriter

_BEHAVIOUR = "user,item,category,pv|cart|fav|buy,unix seconds"
_EVENT_TYPES = {"pv": "view", "cart": "cart", "fav": "favourite", "buy": "purchase"}
# The window in UTC, in which China's days begin eight hours earlier.
_FIRST_DAY, _LAST_DAY = date(2017, 11, 24), date(2017, 12, 3)

SETTINGS = """\
# A shop. Only what people did is known, not what they were shown, so every event is a step of its own: two carts in three
# have no view in the log that they could answer.
lake = "../lake"

[landing]
folder = "."

[event_types.view]
step = true
reward = "0.1"

[event_types.cart]
step = true
reward = "0.4"

[event_types.favourite]
step = true
reward = "0.3"

[event_types.purchase]
step = true
reward = "1"

[episodes]
gap_hours = 6
buckets = 1 # a few thousand steps a day: one file of them

[train]
window_days = 10 # all of it

[evaluate]
holdout_days = 1
repeats = true # people come back to what they have looked at
"""


def write(source: Path, landing: LandingWriter) -> None:
    """Write events by UTC day, and each item on the days on which its category is first seen or changes.

    A few events lie outside the window: logged late, or by a wrong clock. They arrive on the nearest day inside it, so
    that bronze takes in the late ones with their time kept, and puts those from the future in quarantine.
    """
    path = find_file(source, "UserBehavior*.csv", _BEHAVIOUR)
    categories: dict[str, dict[date, tuple[int, str]]] = {}
    for number, fields in read_rows(path, ",", 5, _BEHAVIOUR):
        user, item, category, behaviour, seconds = fields
        if behaviour not in _EVENT_TYPES or not seconds.removeprefix("-").isdecimal():
            bad_line(path, number, ",".join(fields), _BEHAVIOUR)
        time = int(seconds)
        day = min(max(utc_day(time), _FIRST_DAY), _LAST_DAY)
        landing.write("events", day, {"user_id": user, "item_id": item, "event_type": _EVENT_TYPES[behaviour], "event_time": time})
        # Of one day the last event counts; of one instant the category that sorts last, whatever the order of the lines.
        seen = categories.setdefault(item, {})
        seen[day] = max(seen.get(day, (time, category)), (time, category))
    for item, by_day in categories.items():
        before = None
        for day, (_, category) in sorted(by_day.items()):
            if category != before:
                landing.write("items", day, {"item_id": item, "category": category})
            before = category
