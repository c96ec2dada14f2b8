"""Days: the key of everything that Nightjar writes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta

from jobs.contracts.errors import BadDay


def parse_day(text: str) -> date:
    """Turn `YYYY-MM-DD` into a date. Raises BadDay for anything else, other spellings of ISO 8601 included."""
    try:
        day = date.fromisoformat(text)
    except ValueError:
        day = None
    if day is None or day.isoformat() != text:
        raise BadDay(f"{text!r} is no day. Expected YYYY-MM-DD, for example 2026-01-31.")
    return day


@dataclass(frozen=True)
class DayRange:
    """All days from `first` to `last`, both included. Raises BadDay when `last` lies before `first`."""

    first: date
    last: date

    def __post_init__(self) -> None:
        if self.last < self.first:
            raise BadDay(f"The range ends on {self.last}, before it begins on {self.first}. Swap the two days.")

    @classmethod
    def parse(cls, first: str, last: str | None = None) -> DayRange:
        """Read a range from one or two `YYYY-MM-DD` texts; without `last` it is the one day `first`."""
        return cls(parse_day(first), parse_day(last or first))

    def __iter__(self) -> Iterator[date]:
        for offset in range(len(self)):
            yield self.first + timedelta(days=offset)

    def __len__(self) -> int:
        return (self.last - self.first).days + 1

    def __contains__(self, day: date) -> bool:
        return self.first <= day <= self.last

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}..{self.last}"


def ranges(days: Iterable[date]) -> list[DayRange]:
    """The days as ranges without a gap, as few as there can be, in order."""
    found: list[DayRange] = []
    for day in sorted({*days}):
        if found and found[-1].last + timedelta(days=1) == day:
            found[-1] = DayRange(found[-1].first, day)
        else:
            found.append(DayRange(day, day))
    return found


def portions(days: Iterable[date], sizes: Mapping[date, int], most: int) -> Iterator[list[date]]:
    """The days in their order, in groups whose sizes add up to `most` or less; a day with more is a group of its own."""
    portion: list[date] = []
    filled = 0
    for day in days:
        size = sizes.get(day, 0)
        if portion and filled + size > most:
            yield portion
            portion, filled = [], 0
        portion.append(day)
        filled += size
    if portion:
        yield portion
