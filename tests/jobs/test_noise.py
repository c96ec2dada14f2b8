"""Who is set aside, against counting by hand; and that it counts nowhere."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from jobs.contracts.days import DayRange
from jobs.features import features
from jobs.lake import Lake
from jobs.noise import REASONS, set_aside
from jobs.operate.set_aside import print_set_aside
from jobs.settings import Limits, Settings
from jobs.transitions import transitions
from tests.jobs.silver import FIRST, Row, at, event, put

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

LIMITS = Limits(events_per_day=6, events_per_minute=3, exempt=["o'hara"])
ROWS = st.builds(
    lambda day, minute, late, user: event("click", at(day, minute / 60), late=late, user_id=user),
    st.integers(0, 1),
    st.sampled_from((0, 0.5, 0.99, 1, 2, 3)),
    st.integers(0, 1),
    st.sampled_from(("a", "b", "o'hara")),
)


def by_hand(log: list[Row]) -> list[tuple[Any, ...]]:
    answer = []
    for group in {(row["user_id"], row["day"], row["arrival_day"]) for row in log}:
        rows = [row for row in log if (row["user_id"], row["day"], row["arrival_day"]) == group]
        busiest = max(Counter(row["event_time"].replace(second=0, microsecond=0) for row in rows).values())
        if group[0] != "o'hara" and (len(rows) > 6 or busiest > 3):
            answer.append((group[0], group[1], "events_per_day" if len(rows) > 6 else "events_per_minute", len(rows), busiest, group[2]))
    return sorted(answer)


@hypothesis_settings(max_examples=150, deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=40))
def test_each_arrival_day_is_judged_by_what_it_brings(log: list[Row]) -> None:
    with duckdb.connect() as duck:
        duck.execute("set timezone = 'UTC'")
        duck.register("interactions", pa.Table.from_pylist(log))
        assert sorted(duck.sql(set_aside("interactions", LIMITS)).fetchall()) == by_hand(log)


def test_what_is_set_aside_counts_nowhere_and_can_be_taken_back(
    spark: SparkSession, settings: Settings, lake: Lake, capsys: pytest.CaptureFixture[str]
) -> None:
    person = [event("impression", at(0, hour), user_id="ann", event_id=f"a{hour}") for hour in (1, 2)]
    bot = [event("impression", at(0, 3 + number / 3600), user_id="bot", event_id=f"b{number}") for number in range(8)]
    late = [event("click", at(0, 4), late=1, user_id="bot", event_id="late")]
    days = DayRange(FIRST, FIRST + timedelta(days=1))
    put(lake, [*person, *bot, *late], [*days])
    lake.replace("silver.items", lake.schema("silver.items").empty_table(), "silver", [*days], {})
    strict = settings.model_copy(update={"limits": LIMITS})
    for step in (features, transitions):
        step.run(spark, lake, strict, days)
    assert lake.read("gold.set_aside").to_pylist() == [
        {"user_id": "bot", "event_day": FIRST, "reason": "events_per_day", "events": 8, "busiest_minute": 8, "arrival_day": FIRST}
    ]
    assert {row["user_id"] for row in lake.read("gold.transitions").to_pylist()} == {"ann"}
    counted = {row["user_id"]: row["impression_count_1d"] for row in lake.read("gold.user_features").to_pylist() if row["day"] == FIRST}
    assert counted == {"ann": 2}
    assert [(row["reason"], row["events"]) for row in lake.read("gold.rewards").to_pylist()] == [("no_step", 1)], (
        "what came later is a person's, as far as it shows"
    )
    print_set_aside(lake, None, 20)
    print_set_aside(lake, FIRST, 20)
    printed = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "2026-03-01 events_per_day 1 8" in printed
    assert "bot 2026-03-01 events_per_day 8 8" in printed
    assert f"events_per_day: {REASONS['events_per_day']}" in printed

    mild = settings.model_copy(update={"limits": LIMITS.model_copy(update={"exempt": ["bot"]})})
    for step in (features, transitions):
        step.run(spark, lake, mild, days)
    assert lake.read("gold.set_aside").num_rows == 0
    assert {row["user_id"]: row["reward"] for row in lake.read("gold.transitions").to_pylist()} == {"ann": 0, "bot": 1}
