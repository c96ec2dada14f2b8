from __future__ import annotations

from datetime import date

import pytest

from jobs.contracts.days import DayRange, parse_day, portions, ranges
from jobs.contracts.errors import BadDay


def test_a_day() -> None:
    assert parse_day("2024-02-29") == date(2024, 2, 29)


@pytest.mark.parametrize("text", ["", "today", "2026-1-1", "20260101", "2026-W01-1", "2025-02-29", "2026-01-01T00:00", " 2026-01-01"])
def test_no_day(text: str) -> None:
    with pytest.raises(BadDay, match="Expected YYYY-MM-DD"):
        parse_day(text)


def test_a_range_holds_both_ends_and_crosses_months() -> None:
    days = DayRange.parse("2026-02-27", "2026-03-02")
    assert [str(day) for day in days] == ["2026-02-27", "2026-02-28", "2026-03-01", "2026-03-02"]
    assert len(days) == 4
    assert date(2026, 3, 2) in days
    assert date(2026, 3, 3) not in days
    assert str(days) == "2026-02-27..2026-03-02"


def test_one_day_is_a_range() -> None:
    assert list(DayRange.parse("2026-01-01")) == [date(2026, 1, 1)]


def test_a_range_upside_down() -> None:
    with pytest.raises(BadDay, match="before it begins"):
        DayRange.parse("2026-01-02", "2026-01-01")


def test_portions() -> None:
    first, *others = days = list(DayRange.parse("2026-01-30", "2026-02-03"))
    assert list(portions(days, dict(zip(days, [2, 3, 0, 1, 9], strict=True)), 5)) == [days[:3], [days[3]], [days[4]]]
    assert list(portions(days, {}, 5)) == [days]
    assert list(portions(days, {first: 9}, 5)) == [[first], others]
    assert list(portions([], {}, 5)) == []


def test_ranges() -> None:
    days = list(DayRange.parse("2026-01-30", "2026-02-03"))
    assert ranges([days[4], days[0], days[1], days[0], days[3]]) == [DayRange(days[0], days[1]), DayRange(days[3], days[4])]
    assert ranges([]) == []
