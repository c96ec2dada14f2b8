"""Finds the files of a landing folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from jobs.contracts.days import DayRange
from jobs.contracts.errors import EmptyLanding
from jobs.contracts.landing import FEEDS, feed_folder
from jobs.storage import Location

_FOREIGN_COMPRESSIONS = {".bz2", ".deflate", ".lz4", ".snappy", ".xz", ".zip"}


@dataclass(frozen=True)
class LandingFile:
    """A file of a feed: its path, the path below landing that rows carry as `source_file`, and the day that brought it.

    `refusal` says why it isn't even opened; null = it is.
    """

    path: Location
    feed: str
    source_file: str
    arrival_day: date
    refusal: str | None


def landing_files(landing: Location, days: DayRange) -> list[LandingFile]:
    """Files of every feed that arrived on the days, in the order of feed, day and name.

    A day without a file is a day without a line. Raises EmptyLanding when nothing has arrived up to the last day.
    """
    found = [file for feed in FEEDS for day in days for file in _files(landing, feed.name, day)]
    if not found and not _anything_before(landing, days.first):
        raise EmptyLanding(
            f"Nothing has arrived in {landing.absolute()} by {days.last}. It should hold {landing / feed_folder('events', days.last)}/ with "
            "JSON lines (plain, .gz or .zst) or Parquet, and items/ and users/ beside events/. "
            "Set `folder` of [landing] in nightjar.toml, or NIGHTJAR_LANDING__FOLDER."
        )
    return found


def _files(landing: Location, feed: str, day: date) -> Iterator[LandingFile]:
    folder = landing / feed_folder(feed, day)
    below: Iterator[Location] = iter(folder.rglob("*"))
    for path in sorted(below, key=lambda path: path.parts):
        parts = path.parts[len(landing.parts) :]
        hidden = any(part.startswith((".", "_")) for part in parts[2:])
        if not hidden and path.is_file():
            yield LandingFile(path, feed, "/".join(parts), day, _refusal(landing, path))


def _refusal(landing: Location, path: Location) -> str | None:
    if isinstance(path, Path) and isinstance(landing, Path) and not path.resolve().is_relative_to(landing.resolve()):
        return f"expected a file of the landing folder, got a link to {path.resolve()}"
    if path.suffix in _FOREIGN_COMPRESSIONS:
        return f"expected JSON lines, plain, .gz or .zst, or Parquet, got {path.suffix}"
    return None


def _anything_before(landing: Location, day: date) -> bool:
    earlier = (folder for feed in FEEDS for folder in (landing / feed.name).glob("ds=*") if folder.name < f"ds={day}")
    return any(path.is_file() for folder in earlier for path in folder.rglob("*"))
