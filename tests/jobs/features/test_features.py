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


def by_then(log: Sequence[Row], items: Sequence[Row], day: date) -> tuple[list[Row], list[Row]]:
    """What of the log had happened and arrived by the end of a day, and of the items what was known by then."""
    known = [row | ({} if row["valid_to"] is None or row["valid_to"] <= day else {"valid_to": None}) for row in items if row["valid_from"] <= day]
    return [row for row in log if max(row["day"], row["arrival_day"]) <= day], known


def loud(day: date) -> tuple[list[Row], list[Row]]:
    """Rows of the future of a day, in event time, in arrival day and among the items, with something else in every column."""
    said = {"user_id": "user 1", "item_id": "item 1", "value": 1e9, "request_id": "r9", "position": 9, "propensity": 1.0, "candidates": ["item 9"]}
    now = (day - FIRST).days
    moments = ((now + 1, 0), (now - 1, 2), (now - 30, 31), (0, now + 1), (now + 1, 1))
    log = [event(one, at(past), late=late, event_id=f"loud {one} {past} {late}", **said) for one in TYPES for past, late in moments]
    log.append(event("buy", at(now - 1), late=2, event_id="loud", user_id="user 9", item_id="item 9", value=-1e9))
    new = {"category": ["z"], "price": 1e9, "embeddings": {"text": [9.0, 9.0], "new": [1.0]}, "valid_from": day + timedelta(days=1), "valid_to": None}
    return log, [new | {"item_id": f"item {number}"} for number in range(3, 9)]


def test_every_day_is_what_had_arrived_by_then(spark: SparkSession, settings: Settings, lake: Lake, tmp_path: Path) -> None:
    """Night after night, over a silver that holds the future from the start: as the reference has it, and, bit for bit, as where no future is."""
    log, items = random_log(seed=5, days=len(DAYS), events=300, types=TYPES), random_items(5, len(DAYS))
    # One user was met 89 days before the third day and never since; the last day of a window is in it, the day after is not.
    log.append(event("click", at(-87), user_id="long ago", value=4.0, event_id="old"))
    log.append(event("click", at(-87), late=88, user_id="long ago", value=0.5, event_id="old and late"))
    future_log, future_items = loud(DAYS[3])
    put(lake, [*log, *future_log], DAYS)
    put_items(lake, [*items, *future_items], DAYS)
    for first, last in ((0, 2), (5, 5), (3, 4)):  # nights that were left out leave no hole in the sums of the next one
        run(spark, lake, settings, DayRange(DAYS[first], DAYS[last]))
    for entity in ENTITIES:
        found = written(lake, entity)
        assert sorted(found) == DAYS
        for day in DAYS:
            assert_same(found[day], snapshot([*log, *future_log], [*items, *future_items], entity, day, TYPES))
    assert "long ago" in written(lake, "user")[DAYS[2]]
    assert "long ago" not in written(lake, "user")[DAYS[3]]
    assert len(DeltaTable(lake.path("gold.user_features")).file_uris()) == len(DAYS)

    before = Lake(tmp_path / "before", lake.event_types)
    past_log, past_items = by_then(log, items, DAYS[3])
    put(before, past_log, DAYS[:4])
    put_items(before, past_items, DAYS[:4])
    run(spark, before, settings, DayRange(DAYS[0], DAYS[3]))
    assert bits(before) == bits(lake, DAYS[:4])
    with pytest.raises(NotReady, match=r"does not hold 2026-03-05 yet"):
        run(spark, before, settings, DayRange(DAYS[3], DAYS[4]))


@pytest.mark.parametrize("seed", range(6, 8))
def test_another_log(spark: SparkSession, settings: Settings, lake: Lake, seed: int) -> None:
    log, items = random_log(seed=seed, days=len(DAYS), events=200, types=TYPES), random_items(seed, len(DAYS))
    put(lake, log, DAYS)
    put_items(lake, items, DAYS)
    run(spark, lake, settings, DayRange(DAYS[0], DAYS[5]))
    for entity in ENTITIES:
        found = written(lake, entity)
        for day in DAYS:
            assert_same(found[day], snapshot(log, items, entity, day, TYPES))


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
