"""Snapshots: the features of every entity met within the longest window, at the end of each day.

Partials are first summed by the smallest window that their age fits in, which leaves four rows a type at most, however many
days there are; each feature is then one expression over these. What needs the items of a user, or the users of an item, is
worked out beside that, from those event types and windows alone that some feature asks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pyspark.sql import functions as sf

from jobs.contracts.days import DayRange
from jobs.contracts.features import RATE_PRIOR, SKETCH, TOP, WINDOWS, Entity, Feature

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

REACH = max(WINDOWS)

# As text: put together column by column, the expressions of a night cost a third of its time in calls to the JVM.
_SMALLEST_WINDOW = f"case {' '.join(f'when age < {days} then {days}' for days in WINDOWS)} end as window"
_SUMS = (
    "sum(event_count) as event_count",
    "sum(value_sum) as value_sum",
    "sum(value_count) as value_count",
    "min(value_min) as value_min",
    "max(value_max) as value_max",
    "max_by(value_last, value_last_order) as value_last",
    "max(value_last_order) as value_last_order",
    "min(age) as age",
)


def snapshots(partials: DataFrame, items: DataFrame, entity: Entity, features: Sequence[Feature], days: DayRange) -> DataFrame:
    """The features of `entity` at the end of each day of `days`: its id, `day`, one column a feature.

    `partials` and `items` are those of the lake; what arrived, or is valid, only after a day does not count for it.
    """
    key = f"{entity}_id"
    aged = _aged(partials, key, days)
    known = _known(items, days)
    if entity == "user":
        met = _met(aged, features)
        parts = [_distinct(met, features), *_of_items(met, known, features)]
        found = _numbers(aged, key, features)
    else:
        parts = [_approximate(aged, features)]
        found = _with_items(_numbers(aged, key, features), known, features)
    for part in parts:
        found = found.join(part, [key, "day"], "left")
    columns = (f"coalesce(`{one.name}`, {one.default}D) as `{one.name}`" if one.default is not None else f"`{one.name}`" for one in features)
    return found.selectExpr(key, "day", *columns).repartition("day").sortWithinPartitions("day", key)


def _aged(partials: DataFrame, key: str, days: DayRange) -> DataFrame:
    """Each partial once for every day of `days` that knows it and whose longest window it is in, with its `age` on it."""
    first = sf.greatest("event_day", "arrival_day", sf.lit(days.first))
    last = sf.least(sf.date_add("event_day", REACH - 1), sf.lit(days.last))
    return partials.where(first <= last).withColumn("day", sf.explode(sf.sequence(first, last))).selectExpr("*", "date_diff(day, event_day) as age")


def _known(items: DataFrame, days: DayRange) -> DataFrame:
    """What is known of the items: root category, price, vectors, since when it holds, and since when the item is known at all."""
    return items.where(sf.col("valid_from") <= sf.lit(days.last)).selectExpr(
        "item_id",
        "get(category, 0) as root",
        "price",
        "embeddings",
        "valid_from",
        "valid_to",
        "min(valid_from) over (partition by item_id) as first_known",
    )


def _join_known(rows: DataFrame, known: DataFrame, how: str) -> DataFrame:
    """Rows that have `item_id` and `day`, with what was known of the item at the end of the day."""
    holds = "rows.item_id = known.item_id and valid_from <= day and (valid_to is null or day < valid_to)"
    return rows.alias("rows").join(known.alias("known"), sf.expr(holds), how).drop(known["item_id"])


def _numbers(aged: DataFrame, key: str, features: Iterable[Feature]) -> DataFrame:
    """`key`, `day` and what is made of counts and values alone; a share is the count so far."""
    expressions = {feature.name: _number(feature) for feature in features}
    return (
        aged.selectExpr("*", _SMALLEST_WINDOW)
        .groupBy(key, "day", "event_type", "window")
        .agg(*map(sf.expr, _SUMS))
        .groupBy(key, "day")
        .agg(*(sf.expr(f"{expression} as `{name}`") for name, expression in expressions.items() if expression))
    )


def _number(feature: Feature) -> str | None:
    def over(aggregate: str, event_type: str = feature.event_type, days: int = feature.days) -> str:
        return f"{aggregate} filter (where event_type = '{event_type}' and window <= {days})"

    count = over("sum(event_count)")
    value_sum = f"cast({over('sum(value_sum)')} as double)"
    long_count = over("sum(event_count)", days=feature.longer)
    of_values = {
        "sum": value_sum,
        "mean": f"{value_sum} / nullif({over('sum(value_count)')}, 0)",
        "min": f"cast({over('min(value_min)')} as double)",
        "max": f"cast({over('max(value_max)')} as double)",
        "last": f"cast({over('max_by(value_last, value_last_order)')} as double)",
    }
    of_events = {
        "count": count,
        "share": count,
        "recency": over("min(age)"),
        "rate": f"(coalesce({count}, 0) + {RATE_PRIOR[0]}) / (coalesce({over('sum(event_count)', feature.whole)}, 0) + {RATE_PRIOR[1]})",
        "trend": f"(coalesce({count}, 0) + 1) / (coalesce({long_count}, 0) * {feature.days}D / {feature.longer or 1} + 1)",
    }
    return of_values.get(feature.operation) if feature.input == "value" else of_events.get(feature.operation)


def _span(feature: Feature) -> str:
    return f"{feature.event_type}_{feature.days}d"


def _met(aged: DataFrame, features: Iterable[Feature]) -> DataFrame:
    """How often a user has met an item within each span of an event type and a window that is asked for: user_id, day, span, item_id, times."""
    asked = {_span(feature): feature for feature in features if feature.input in ("item", "category", "vectors")}
    within = {span: f"event_type = '{one.event_type}' and age < {one.days}" for span, one in asked.items()}
    spans = ", ".join(f"case when {condition} then '{span}' end" for span, condition in within.items())
    return (
        aged.selectExpr("user_id", "day", "items", f"array_compact(array({spans})) as spans")
        .where("size(spans) > 0")
        .selectExpr("user_id", "day", "spans", "explode(items) as (item_id, times)")
        .selectExpr("user_id", "day", "item_id", "times", "explode(spans) as span")
        .groupBy("user_id", "day", "span", "item_id")
        .agg(sf.sum("times").alias("times"))
    )


def _distinct(met: DataFrame, features: Iterable[Feature]) -> DataFrame:
    counts = (f"count_if(span = '{_span(one)}') as `{one.name}`" for one in features if one.operation == "distinct")
    return met.groupBy("user_id", "day").agg(*map(sf.expr, counts))


def _of_items(met: DataFrame, known: DataFrame, features: Iterable[Feature]) -> Iterable[DataFrame]:
    """The categories met most, and the mean vectors of what was met: null where nothing is known."""
    met = _join_known(met, known, "inner")
    most = "collect_list(struct(-times as fewer, root)) filter (where span = '{}')"
    top = f"transform(slice(array_sort({most}), 1, {TOP}), one -> one.root)"
    tops = [f"nullif({top.format(_span(one))}, cast(array() as array<string>)) as `{one.name}`" for one in features if one.operation == "top"]
    yield (
        met.where("root is not null")
        .groupBy("user_id", "day", "span", "root")
        .agg(sf.sum("times").alias("times"))
        .groupBy("user_id", "day")
        .agg(*map(sf.expr, tops))
    )
    # Summed in the order of the items: a sum of floats in any other has other bits. A vector of another length than the first is left out.
    alike = "filter(met, one -> size(one.vector) = size(met[0].vector)) as met"
    summed = "aggregate(met, transform(met[0].vector, x -> 0D), (so_far, one) -> zip_with(so_far, one.vector, (s, x) -> s + one.times * x))"
    mean = f"transform({summed}, x -> cast(x / aggregate(met, 0L, (so_far, one) -> so_far + one.times) as float)) as mean"
    entries = "collect_list(struct(name, mean)) filter (where span = '{}')"
    means = [f"nullif(array_sort({entries.format(_span(one))}), array()) as `{one.name}`" for one in features if one.input == "vectors"]
    yield (
        met.selectExpr("user_id", "day", "span", "item_id", "times", "explode(embeddings) as (name, vector)")
        .groupBy("user_id", "day", "span", "name")
        .agg(sf.expr("array_sort(collect_list(struct(item_id, times, vector))) as met"))
        .selectExpr("user_id", "day", "span", "name", alike)
        .selectExpr("user_id", "day", "span", "name", mean)
        .groupBy("user_id", "day")
        .agg(*map(sf.expr, means))
        .selectExpr("user_id", "day", *(f"map_from_entries(`{one.name}`) as `{one.name}`" for one in features if one.input == "vectors"))
    )


def _with_items(numbers: DataFrame, known: DataFrame, features: Iterable[Feature]) -> DataFrame:
    """Price and age of the items, null where they are not known, and the shares of their categories in place of their own counts."""
    shares = [feature.name for feature in features if feature.operation == "share"]
    found = _join_known(numbers, known, "left").withColumn("age_days", sf.date_diff("day", "first_known"))
    by_category = found.groupBy("day", "root").agg(*(sf.sum(name).alias(name) for name in shares))
    of_day = (f"`{name}` / nullif(sum(`{name}`) over (partition by day), 0) as `{name}`" for name in shares)
    return found.drop(*shares).join(by_category.selectExpr("day", "root", *of_day), ["day", "root"], "left")


def _approximate(aged: DataFrame, features: Iterable[Feature]) -> DataFrame:
    """Numbers of different users, from the smallest hashes: the k-th smallest of n even ones lies at about k / n of their range."""
    asked = [feature for feature in features if feature.operation == "approx_distinct"]
    users = "collect_list(users) filter (where event_type = '{}' and age < {})"
    sketches = (f"slice(sort_array(array_distinct(flatten({users.format(one.event_type, one.days)}))), 1, {SKETCH}) as `{one.name}`" for one in asked)
    beyond = f"{SKETCH - 1} * {2.0**64!r}D / (element_at(`{{0}}`, {SKETCH}) + {2.0**63!r}D)"
    estimate = f"case when size(`{{0}}`) < {SKETCH} then cast(size(`{{0}}`) as double) else {beyond} end as `{{0}}`"
    return (
        aged.where(f"age < {max((one.days for one in asked), default=0)}")
        .groupBy("item_id", "day")
        .agg(*map(sf.expr, sketches))
        .selectExpr("item_id", "day", *(estimate.format(one.name) for one in asked))
    )
