"""What the definitions say of landing, bronze and silver, in plain Python that shares no code with what it judges."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any

from jobs.contracts.errors import EmptyLanding, NotReady

Row = dict[str, Any]
FIRST = date(2026, 1, 1)
DAYS = [FIRST + timedelta(days=number) for number in range(4)]
EVENT_TYPES = ("impression", "click", "purchase")
REQUIRED = {"events": ("user_id", "item_id", "event_type", "event_time"), "items": ("item_id",), "users": ("user_id",)}
OPTIONAL = {
    "events": ("event_id", "value", "session_id", "request_id", "position", "propensity", "policy_id", "candidates", "context"),
    "items": ("category", "price", "title", "available", "attributes", "embeddings"),
    "users": ("attributes",),
}


@dataclass(frozen=True)
class File:
    """A file of a feed: its name below the day's folder, its lines (of Parquet: each row as a line of JSON) and its bytes."""

    feed: str
    name: str
    lines: tuple[bytes, ...]
    body: bytes = field(repr=False)


class Refused(Exception):
    """A line that is no row; the message is the reason."""


def cast(name: str, value: Any) -> Any:
    """What a field means. Raises ValueError when it means nothing."""
    if name == "event_time":
        time = datetime.fromtimestamp(int(value), UTC) if str(value).isdigit() else datetime.fromisoformat(value)
        return time.replace(tzinfo=time.tzinfo or UTC).astimezone(UTC)
    if name in ("value", "propensity", "price"):
        return float(value)
    if name == "position" and value != int(value):
        raise ValueError
    if name == "candidates" and not isinstance(value, list):
        raise ValueError
    return str(value) if name.endswith("_id") else value


def understood(feed: str, line: bytes, arrival_day: date) -> Row:
    """The row that a line is. Raises Refused with the first reason for which it is none."""
    try:
        said = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise Refused("bad_encoding") from error
    except ValueError as error:
        raise Refused("bad_json") from error
    if not isinstance(said, dict):
        raise Refused("bad_json")
    said = {name: value for name, value in said.items() if value is not None and str(value).strip()}
    if not said.keys() >= {*REQUIRED[feed]}:
        raise Refused("missing_field")
    try:
        row: Row = {name: cast(name, said[name]) if name in said else None for name in (*REQUIRED[feed], *OPTIONAL[feed])}
    except ValueError as error:
        raise Refused("wrong_type") from error
    if row.get("user_id") == "*":
        raise Refused("reserved_user")
    return as_event(row, line, arrival_day) if feed == "events" else row


def as_event(row: Row, line: bytes, arrival_day: date) -> Row:
    day, propensity = row["event_time"].date(), row["propensity"]
    rules = {
        "unknown_event_type": row["event_type"] in EVENT_TYPES,
        "event_time_too_old": day.year >= 2000,
        "event_time_in_future": day <= arrival_day,
        "propensity_out_of_range": propensity is None or 0 < propensity <= 1,
    }
    for reason, kept in rules.items():
        if not kept:
            raise Refused(reason)
    return row | {"event_id": row["event_id"] or hashlib.sha256(line).hexdigest(), "event_day": day}


@dataclass
class Reference:
    """What has been delivered, what of it bronze has read, and which days silver has taken in."""

    landed: dict[int, tuple[File, ...]] = field(default_factory=dict)
    read: dict[int, tuple[File, ...]] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)
    stale: set[int] = field(default_factory=set)

    def bronze(self, days: range) -> type[Exception] | None:
        if not any(self.landed.get(day) for day in range(days.stop)):
            return EmptyLanding
        for day in days:
            files = self.landed[day] or self.read.get(day, ())  # a day whose files are gone keeps what they brought
            self.stale |= {day} if self.read.get(day) != files else set()
            self.read[day] = files
        return None

    def silver(self, days: range) -> type[Exception] | None:
        if not self.read.keys() >= {*days}:
            return NotReady
        self.done |= {*days}
        self.stale -= {*days}
        return None

    def rows(self, feed: str, days: set[int]) -> tuple[list[Row], list[Row]]:
        """Rows and lines in quarantine of a feed, in the order of their arrival: day, file, line."""
        rows, bad = [], []
        for day in sorted(days):
            for file in sorted(self.read[day], key=lambda file: file.name):
                for number, line in enumerate(file.lines, start=1):
                    if file.feed != feed or not line.strip():
                        continue
                    place = {"source_file": source_file(day, file), "source_line": number, "arrival_day": DAYS[day]}
                    try:
                        rows.append(understood(feed, line, DAYS[day]) | place)
                    except Refused as refused:
                        bad.append({"feed": feed, "reason": str(refused), "line": line, **place})
        return rows, bad

    def tables(self) -> dict[str, list[Row]]:
        """What every table holds, but for silver.items and silver.users."""
        of = {feed: self.rows(feed, {*self.read}) for feed in REQUIRED}
        tables = {f"bronze.{feed}": rows for feed, (rows, _) in of.items()}
        tables["bronze.quarantine"] = [row for _, bad in of.values() for row in bad]
        tables["bronze.files"] = [self.account(day, file, of[file.feed]) for day, files in self.read.items() for file in files]
        first: dict[str, Row] = {}
        repeats = []
        for row in self.rows("events", self.done)[0]:
            before = first.setdefault(row["event_id"], row)
            if before is not row:
                changed = sorted(name for name in (*REQUIRED["events"], *OPTIONAL["events"]) if row[name] != before[name])
                kind = "conflict" if changed else "duplicate"
                place = {name: row[name] for name in ("event_id", "source_file", "source_line", "arrival_day")}
                repeats.append(place | {"kind": kind, "changed": changed, **{f"first_{name}": before[name] for name in ("source_file", "source_line")}})
        tables["silver.repeats"] = repeats
        tables["silver.interactions"] = [{("day" if name == "event_day" else name): value for name, value in row.items()} for row in first.values()]
        return tables

    def account(self, day: int, file: File, of: tuple[list[Row], list[Row]]) -> Row:
        name = source_file(day, file)
        rows, bad = ([row for row in some if row["source_file"] == name] for some in of)
        return {
            "source_file": name,
            "feed": file.feed,
            "bytes": len(file.body),
            "sha256": hashlib.sha256(file.body).hexdigest(),
            "lines": sum(1 for line in file.lines if line.strip()),
            "rows": len(rows),
            "requeued": 0,
            "quarantined": Counter(row["reason"] for row in bad),
            "arrival_day": DAYS[day],
        }

    def said(self, feed: str, day: int) -> dict[str, Row]:
        """What the last line up to a day says of each key."""
        key = REQUIRED[feed][0]
        return {row[key]: {name: row[name] for name in OPTIONAL[feed]} for row in self.rows(feed, {done for done in self.done if done <= day})[0]}


def source_file(day: int, file: File) -> str:
    return f"{file.feed}/ds={DAYS[day]}/{file.name}"
