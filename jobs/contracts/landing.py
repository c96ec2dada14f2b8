"""The landing format: what a feed's line may hold, and the closed list of reasons for which a line is not taken in.

A landing folder has one folder per feed and arrival day, `events/ds=2026-01-31/`, with JSON lines (plain, `.gz` or `.zst`) or Parquet
(`.parquet`) in it, at any depth. Names that start with `.` or `_` are ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import Literal

Kind = Literal["text", "number", "integer", "boolean", "time", "texts", "path", "text_map", "vector_map"]

EXPECTED: dict[Kind, str] = {
    "text": "a string or a number",
    "number": "a finite number",
    "integer": "a whole number below 2^31",
    "boolean": "true or false",
    "time": "ISO 8601 like 2026-01-31T12:00:00Z, or an epoch in s, ms, µs or ns",
    "texts": "a list of strings",
    "path": 'a path like "a/b/c", or a list of strings',
    "text_map": "an object, each key once",
    "vector_map": "an object of lists of numbers, each key once",
}
EARLIEST = date(2000, 1, 1)  # an earlier event is a clock at zero or a unit mistaken, and would make a partition of its own
EVERYBODY = "*"  # the user whose list is for those with no history


@dataclass(frozen=True)
class Field:
    """One field of a line."""

    name: str
    kind: Kind
    required: bool = False


@dataclass(frozen=True)
class Feed:
    """One kind of line, and the table that takes it in."""

    name: str
    table: str
    fields: tuple[Field, ...]


FEEDS = (
    Feed("events", "bronze.events",
         (Field("user_id", "text", required=True), Field("item_id", "text", required=True), Field("event_type", "text", required=True),
          Field("event_time", "time", required=True), Field("event_id", "text"), Field("value", "number"), Field("session_id", "text"),
          Field("request_id", "text"), Field("position", "integer"), Field("propensity", "number"), Field("policy_id", "text"),
          Field("candidates", "texts"), Field("context", "text_map"))),
    Feed("items", "bronze.items",
         (Field("item_id", "text", required=True), Field("category", "path"), Field("price", "number"), Field("title", "text"),
          Field("available", "boolean"), Field("attributes", "text_map"), Field("embeddings", "vector_map"))),
    Feed("users", "bronze.users", (Field("user_id", "text", required=True), Field("attributes", "text_map"))),
)  # fmt: skip


class Reason(StrEnum):
    """Why a line lies in quarantine. The first that applies, in this order, is given."""

    UNREADABLE_FILE = "unreadable_file"
    """The file can't be read, or not to its end: cut short, damaged, or compressed in another way. One row for all that is left,
    with the number and the beginning of the line where the reading ended."""
    BAD_ENCODING = "bad_encoding"
    """The line is not UTF-8, or a text in it has a NUL character, which other stores can't hold."""
    BAD_JSON = "bad_json"
    """The line is not one JSON object."""
    MISSING_FIELD = "missing_field"
    """A required field is absent, null or blank."""
    WRONG_TYPE = "wrong_type"
    """A field holds something that its kind does not allow."""
    RESERVED_USER = "reserved_user"
    """The user is `*`, which stands for somebody with no history."""
    UNKNOWN_EVENT_TYPE = "unknown_event_type"
    """The settings do not name the event type."""
    EVENT_TIME_TOO_OLD = "event_time_too_old"
    """The event happened before the year 2000."""
    EVENT_TIME_IN_FUTURE = "event_time_in_future"
    """The event happened after the end of the day on which it arrived."""
    PROPENSITY_OUT_OF_RANGE = "propensity_out_of_range"
    """The propensity is no probability of something that happened: it lies outside (0, 1]."""


CONFLICT = "conflict"
"""What `silver` finds out: a line with the id of an earlier one and other content. Such lines lie in silver.repeats."""


def feed_folder(feed: str, day: date) -> str:
    """Folder, below landing, of what a feed brought on a day."""
    return f"{feed}/ds={day}"
