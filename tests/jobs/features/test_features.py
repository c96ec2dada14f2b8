"""Features against a reference that looks at the whole log anew for every day, in plain Python."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from pyspark.sql import functions as sf

from jobs.contracts.days import DayRange
from jobs.contracts.errors import NotReady
from jobs.contracts.features import ENTITIES, Feature, Operation, declared_of
from jobs.features.features import run
from jobs.features.partials import partials
from jobs.features.snapshots import snapshots
from jobs.features.statistics import statistics
from jobs.lake import Lake
from jobs.settings import CONFIG_VARIABLE, Settings
from tests.jobs.features.reference import Features, snapshot
from tests.jobs.silver import FIRST, Row, at, event, put, random_log

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

DAYS = [FIRST + timedelta(days=number) for number in range(6)]
TYPES = ("show", "click", "buy")
TABLES = (*(f"gold.{entity}_{kind}" for entity in ENTITIES for kind in ("partials", "features")), "gold.feature_statistics")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv(CONFIG_VARIABLE, str(tmp_path / "none.toml"))  # a file's event types would be added to those given here
    types: Any = {"show": {"step": True}, "click": {}, "buy": {}}
    return Settings(lake=str(tmp_path / "lake"), event_types=types)


def random_items(seed: int, days: int) -> list[Row]:
    """Three of the four items of `random_log`, in up to three states each: with and without category, price and vectors, some of another length."""
    draw = random.Random(seed)
    rows = []
    for number in range(3):
        starts = sorted(draw.sample(range(days), draw.randint(1, 3)))
        for start, end in zip(starts, [*starts[1:], None], strict=True):
            rows.append(
                {
                    "item_id": f"item {number}",
                    "category": draw.choice((None, [], ["a"], ["b", "a"], ["c"])),
                    "price": draw.choice((None, 9.5, 20.0)),
                    "embeddings": draw.choice((None, {}, {"text": [0.1, -2.0]}, {"text": [1.5, 0.3], "image": [0.7]}, {"text": [3.0]})),
                    "valid_from": DAYS[start],
                    "valid_to": None if end is None else DAYS[end],
                }
            )
    return rows


def put_items(lake: Lake, rows: Sequence[Row], days: Sequence[date]) -> None:
    schema = lake.schema("silver.items")
    lake.replace("silver.items", pa.Table.from_pylist([dict.fromkeys(schema.names) | row for row in rows], schema), "silver", days, {})


def written(lake: Lake, entity: str) -> dict[date, dict[str, Features]]:
    days: dict[date, dict[str, Features]] = {}
    for row in lake.read(f"gold.{entity}_features").to_pylist():
        key, day = row.pop(f"{entity}_id"), row.pop("day")
        assert key not in days.setdefault(day, {})
        days[day][key] = row
    return days


def assert_same(found: dict[str, Features], expected: dict[str, Features]) -> None:
    assert found.keys() == expected.keys()
    for key, features in expected.items():
        assert found[key].keys() == features.keys()
        for name, value in features.items():
            assert found[key][name] in value if isinstance(value, set) else found[key][name] == value, (key, name, found[key][name], value)


def bits(lake: Lake, days: Sequence[date] = DAYS) -> dict[str, list[str]]:
    """All that the step has made of the days, to the last bit."""
    return {table: sorted(repr(row) for row in lake.read(table).to_pylist() if row.get("arrival_day", row.get("day")) in days) for table in TABLES}


@pytest.mark.parametrize("seed", [5, 6])
def test_every_day_is_what_had_arrived_by_then(spark: SparkSession, settings: Settings, lake: Lake, tmp_path: Path, seed: int) -> None:
    log, items = random_log(seed=seed, days=len(DAYS), events=300, types=TYPES), random_items(seed, len(DAYS))
    # One user was met 89 days before the third day and never since; the last day of a window is in it, the day after is not.
    log.append(event("click", at(-87), user_id="long ago", value=4.0, event_id="old"))
    log.append(event("click", at(-87), late=88, user_id="long ago", value=0.5, event_id="old and late"))
    put(lake, log, DAYS)
    put_items(lake, items, DAYS)
    # Silver holds the whole log from the start: each night has the rows of later ones before its eyes, and must not look.
    for first, last in ((0, 2), (3, 3), (2, 2), (5, 5), (4, 4)):  # a night that was left out leaves no hole in the sums of the next one
        run(spark, lake, settings, DayRange(DAYS[first], DAYS[last]))
    for entity in ENTITIES:
        found = written(lake, entity)
        assert sorted(found) == DAYS
        for day in DAYS:
            assert_same(found[day], snapshot(log, items, entity, day, TYPES))
    assert "long ago" in written(lake, "user")[DAYS[2]]
    assert "long ago" not in written(lake, "user")[DAYS[3]]

    fresh = Lake(tmp_path / "fresh", lake.event_types)
    put(fresh, log, DAYS)
    put_items(fresh, items, DAYS)
    run(spark, fresh, settings, DayRange(DAYS[0], DAYS[5]))
    assert bits(fresh) == bits(lake), "a backfill is night after night"
    assert len(DeltaTable(fresh.path("gold.user_features")).file_uris()) == len(DAYS)
    with pytest.raises(NotReady, match=r"does not hold 2026-03-07 yet"):
        run(spark, fresh, settings, DayRange(DAYS[5], DAYS[5] + timedelta(days=1)))


def test_rows_of_the_future_change_not_one_bit(spark: SparkSession, settings: Settings, lake: Lake) -> None:
    """Planted in event time, in arrival day, and among the items, with something else in every column."""
    log, items = random_log(seed=7, days=4, events=120, types=TYPES), random_items(7, 4)
    put(lake, log, DAYS)
    put_items(lake, items, DAYS)
    run(spark, lake, settings, DayRange(DAYS[1], DAYS[3]))
    before = bits(lake)
    loud = {"user_id": "user 1", "item_id": "item 1", "value": 1e9, "request_id": "r9", "position": 9, "propensity": 1.0, "candidates": ["item 9"]}
    put(
        lake,
        [
            *log,
            *(event(one, at(day), late=late, event_id=f"{one} {day} {late}", **loud) for one in TYPES for day, late in ((4, 0), (2, 2), (-30, 34), (0, 5))),
            event("buy", at(2), late=2, event_id="new user and item", user_id="user 9", item_id="item 9", value=-1e9),
        ],
        DAYS,
    )
    restated = [row | {"valid_to": DAYS[4]} if row["valid_to"] is None else row for row in items]
    new = [{"item_id": f"item {number}", "category": ["z"], "price": 1e9, "embeddings": {"text": [9.0, 9.0], "new": [1.0]}} for number in range(5)]
    put_items(lake, [*restated, *(row | {"valid_from": DAYS[4], "valid_to": None} for row in new)], DAYS)
    run(spark, lake, settings, DayRange(DAYS[1], DAYS[3]))
    assert bits(lake) == before
    run(spark, lake, settings, DayRange(DAYS[4], DAYS[4]))
    assert bits(lake, DAYS[:4]) == before
    assert written(lake, "item")[DAYS[4]]["item 9"]["buy_value_min_90d"] == -1e9


def test_neither_order_nor_partitioning_changes_a_bit(spark: SparkSession, lake: Lake) -> None:
    """Many users of one item, so that hashes are left out; values whose sum as doubles depends on their order; equal instants."""
    lake = Lake(lake.root, TYPES)
    draw = random.Random(1)
    log = [
        event("click", at(draw.randrange(3)), user_id=f"user {draw.randrange(1500)}", item_id=draw.choice("ab"), value=draw.choice((0.1, 1e15, -1e15, 7.3)))
        for _ in range(4000)
    ]
    put(lake, log)
    put_items(lake, [{"item_id": item, "category": [item], "embeddings": {"t": [0.1, 1e8]}, "valid_from": DAYS[0], "valid_to": None} for item in "ab"], DAYS)
    silver, items = lake.frame(spark, "silver.interactions"), lake.frame(spark, "silver.items")
    day = DayRange(DAYS[2], DAYS[2])
    for entity in ENTITIES:
        features = declared_of(entity, TYPES)
        found = []
        for order, parts in (("event_id", 1), ("-source_line", 5)):
            shuffled = silver.orderBy(sf.expr(order)).repartition(parts)
            made = partials(shuffled, entity, ("click", "buy"), DAYS[:3])
            found.append(sorted(map(repr, snapshots(made.repartition(parts), items.repartition(parts), entity, features, day).collect())))
        assert found[0] == found[1]
        if entity == "item":
            (row,) = (row for row in snapshots(made, items, entity, features, day).collect() if row.item_id == "a")
            users = len({one["user_id"] for one in log if one["item_id"] == "a"})
            assert users > 600
            assert row.click_user_approx_distinct_7d == pytest.approx(users, rel=0.3)
            assert row.click_user_approx_distinct_7d != users


@pytest.mark.parametrize(
    ("feature", "name"),
    [
        (Feature("user", "count", "event", "click", 7), "click_count_7d"),
        (Feature("user", "sum", "value", "purchase", 30), "purchase_value_sum_30d"),
        (Feature("item", "rate", "event", "click", 7, whole="impression"), "click_per_impression_rate_7d"),
        (Feature("user", "trend", "event", "click", 7, longer=30), "click_trend_7d_30d"),
        (Feature("user", "top", "category", "click", 30), "click_category_top_30d"),
        (Feature("user", "mean", "vectors", "click", 30), "click_vectors_mean_30d"),
        (Feature("item", "approx_distinct", "user", "click", 7), "click_user_approx_distinct_7d"),
        (Feature("item", "current", "price"), "price"),
        (Feature("item", "age", "first_known"), "age_days"),
    ],
)
def test_a_name_is_derived(feature: Feature, name: str) -> None:
    assert feature.name == name


def test_each_operation_is_declared_and_no_name_twice() -> None:
    features = [feature for entity in ENTITIES for feature in declared_of(entity, TYPES)]
    assert {feature.operation for feature in features} == {*get_args(Operation)}
    for entity in ENTITIES:
        names = [feature.name for feature in declared_of(entity, TYPES)]
        assert len({*names}) == len(names)
        assert all(feature.definition for feature in declared_of(entity, TYPES))
    assert declared_of("user", ["play"]), "a log of one type has features too"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("item", "distinct", "user", "click", 7), "distinct takes item of user; got user of item"),
        (("user", "count", "event", "click", 8), "got 'click', 8"),
        (("user", "count", "event"), "needs an event type"),
        (("user", "rate", "event", "click", 7), "has a `whole`"),
        (("user", "trend", "event", "click", 30, "", 7), "a `longer` window"),
    ],
)
def test_a_declaration_that_means_nothing(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Feature(*arguments)


def test_statistics() -> None:
    """Of 1, 2, 6 the mean is 3 and the variance (4 + 1 + 9) / 3; what is null or no finite number does not count."""
    feature = Feature("item", "current", "price")
    table = pa.table({"price": [1.0, None, 2.0, math.inf, 6.0, math.nan]})
    row = {"entity": "item", "feature": "price", "day": DAYS[0]}
    expected = {"rows": 3, "mean": 3.0, "deviation": math.sqrt(14 / 3), "minimum": 1.0, "maximum": 6.0}
    assert statistics(table, [feature, Feature("user", "top", "category", "click", 7)], DAYS[0]) == [row | expected]
    assert statistics(table.slice(1, 1), [feature], DAYS[0]) == [row | {"rows": 0} | dict.fromkeys(("mean", "deviation", "minimum", "maximum"))]
    draw = random.Random(3)
    values = [draw.uniform(-1e9, 1) for _ in range(999)]
    assert statistics(pa.table({"price": values}), [feature], DAYS[0]) == statistics(pa.table({"price": sorted(values)}), [feature], DAYS[0])
