"""RetailRocket: views, carts and purchases of a shop, May to September 2015 (events.csv)."""

from __future__ import annotations

from pathlib import Path

from jobs.ingest.convert.source import bad_line, find_file, read_csv, utc_day
from jobs.ingest.convert.writer import LandingWriter

_EVENTS = "timestamp in ms,visitorid,view|addtocart|transaction,itemid,transactionid"
_EVENT_TYPES = {"view": "view", "addtocart": "cart", "transaction": "purchase"}

SETTINGS = """\
# A shop. Only what people did is known, not what they were shown: a view is a step, carts and purchases answer one.
lake = "../lake"

[landing]
folder = "."

[event_types.view]
step = true
reward = "0.1"

[event_types.cart]
reward = "0.4"
maturity_days = 1

[event_types.purchase]
reward = "1"
maturity_days = 3

[episodes]
gap_hours = 6
buckets = 1 # a few thousand steps a day: one file of them

[train]
window_days = 140 # all of it

[evaluate]
holdout_days = 7
repeats = true # people come back to what they have looked at
"""


def write(source: Path, landing: LandingWriter) -> None:
    """Write events by UTC day; its transaction is the context of a purchase."""
    path = find_file(source, "events.csv", _EVENTS)
    for number, fields in read_csv(path, 5, _EVENTS):
        milliseconds, visitor, behaviour, item, transaction = fields
        if behaviour not in _EVENT_TYPES or not milliseconds.isdecimal():
            bad_line(path, number, ",".join(fields), _EVENTS)
        event: dict[str, object] = {"user_id": visitor, "item_id": item, "event_type": _EVENT_TYPES[behaviour], "event_time": int(milliseconds)}
        if transaction:
            event["context"] = {"transaction": transaction}
        landing.write("events", utc_day(int(milliseconds) // 1000), event)
