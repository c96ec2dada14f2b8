"""Features against a reference that counts the whole log anew for every day, in plain Python."""

from __future__ import annotations

import math
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from deltalake import DeltaTable

from jobs.contracts.days import DayRange
from jobs.contracts.errors import NotReady
from jobs.features.features import run
from jobs.lake import Lake
from jobs.settings import CONFIG_VARIABLE, Settings
from tests.jobs.silver import FIRST, Row, at, event, put, random_log

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

DAYS = [FIRST + timedelta(days=number) for number in range(6)]
TYPES = ("show", "click", "buy")
ENTITIES = ("user", "item")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv(CONFIG_VARIABLE, str(tmp_path / "none.toml"))  # a file's event types would be added to those given here
    types: Any = {"show": {"step": True}, "click": {}, "buy": {}}
    return Settings(lake=str(tmp_path / "lake"), event_types=types)


def snapshot(log: list[Row], entity: str, day: date) -> dict[str, dict[str, float]]:
    """Features of each user or item at the end of a day."""
    seen = [row for row in log if row["arrival_day"] <= day and timedelta(0) <= day - row["day"] < timedelta(days=30)]
    return {key: features([row for row in seen if row[f"{entity}_id"] == key], day) for key in {row[f"{entity}_id"] for row in seen}}


def features(rows: list[Row], day: date) -> dict[str, float]:
    answer: dict[str, float] = {}
    for window in (1, 7, 30):
        recent = [row for row in rows if day - row["day"] < timedelta(days=window)]
        for event_type in TYPES:
            values = [row.get("value") for row in recent if row["event_type"] == event_type]
            answer[f"{event_type}_count_{window}d"] = len(values)
            answer[f"{event_type}_value_sum_{window}d"] = float(sum(Decimal(str(value)) for value in values if value is not None and not math.isnan(value)))
        for event_type in TYPES[1:]:
            counts = (answer[f"{event_type}_count_{window}d"] + 1, answer[f"show_count_{window}d"] + 20)
            answer[f"{event_type}_per_show_rate_{window}d"] = counts[0] / counts[1]
    return answer


def written(lake: Lake, entity: str) -> dict[date, dict[str, dict[str, float]]]:
    days: dict[date, dict[str, dict[str, float]]] = {}
    for row in lake.read(f"gold.{entity}_features").to_pylist():
        key, day = row.pop(f"{entity}_id"), row.pop("day")
        assert key not in days.setdefault(day, {})
        days[day][key] = row
    return days


def bits(lake: Lake) -> dict[str, Any]:
    tables = [f"gold.{entity}_{kind}" for entity in ENTITIES for kind in ("partials", "features")]
    return {table: sorted(lake.read(table).to_pylist(), key=repr) for table in tables}


def test_every_day_is_what_had_arrived_by_then(spark: SparkSession, settings: Settings, lake: Lake, tmp_path: Path) -> None:
    log = random_log(seed=5, days=len(DAYS), events=300, types=TYPES)
    # One user was met 29 days before the third day and never since; the last day of a window is in it, the day after is not.
    log.append(event("click", at(-27), user_id="long ago", value=4.0, event_id="old"))
    log.append(event("click", at(-27), late=28, user_id="long ago", value=0.5, event_id="old and late"))
    put(lake, log, DAYS)
    # Silver holds the whole log from the start: each night has the rows of later ones before its eyes, and must not look.
    expected = {entity: {day: snapshot(log, entity, day) for day in DAYS} for entity in ENTITIES}
    for first, last in ((0, 2), (3, 3), (2, 2)):
        run(spark, lake, settings, DayRange(DAYS[first], DAYS[last]))
        for entity in ENTITIES:
            assert written(lake, entity) == {day: expected[entity][day] for day in DAYS[:4] if day <= max(DAYS[last], DAYS[2]) or first == 2}
    assert "long ago" in written(lake, "user")[DAYS[2]]
    assert "long ago" not in written(lake, "user")[DAYS[3]]
    # A night that was left out leaves no hole in the sums of the next one.
    run(spark, lake, settings, DayRange(DAYS[5], DAYS[5]))
    assert written(lake, "item")[DAYS[5]] == expected["item"][DAYS[5]]
    run(spark, lake, settings, DayRange(DAYS[4], DAYS[4]))

    fresh = Lake(tmp_path / "fresh", lake.event_types)
    put(fresh, log, DAYS)
    run(spark, fresh, settings, DayRange(DAYS[0], DAYS[5]))
    assert bits(fresh) == bits(lake), "a backfill is night after night"
    assert len(DeltaTable(fresh.path("gold.user_features")).file_uris()) == len(DAYS)
    with pytest.raises(NotReady, match=r"does not hold 2026-03-07 yet"):
        run(spark, fresh, settings, DayRange(DAYS[5], DAYS[5] + timedelta(days=1)))
