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
from jobs.contracts.features import RATE_PRIOR, SKETCH, TOP, WINDOWS, Entity, Feature, met_types

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
    key, known = f"{entity}_id", _known(items, days)
    meeting = [feature for feature in features if feature.meets]
    found = _numbers(_aged(partials, days, REACH), key, features)
    met = _aged(partials.where(sf.col("event_type").isin([*met_types(features)])), days, max((one.days for one in meeting), default=1))
    if entity == "user":
        met = _join_known(_met(met, meeting), known, "left")
        for part in (_tastes(met, meeting), _vectors(met, meeting)):
            found = found.join(part, [key, "day"], "left")
    else:
        found = _with_items(found.join(_approximate(met, meeting), [key, "day"], "left"), known, features)
    columns = (f"coalesce(`{one.name}`, {one.default}D) as `{one.name}`" if one.default is not None else f"`{one.name}`" for one in features)
    return found.selectExpr(key, "day", *columns).repartition("day").sortWithinPartitions("day", key)


def _aged(partials: DataFrame, days: DayRange, reach: int) -> DataFrame:
    """Each partial once for every day of `days` that knows it and on which its `age` is below `reach`."""
    first = sf.greatest("event_day", "arrival_day", sf.lit(days.first))
    last = sf.least(sf.date_add("event_day", reach - 1), sf.lit(days.last))
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


def _met(aged: DataFrame, features: Iterable[Feature]) -> DataFrame:
    """How often a user has met an item: user_id, day, event_type, item_id, and for each window that is asked for `times_30d`, null = not at all."""
    windows = sorted({feature.days for feature in features})
    return (
        aged.selectExpr("user_id", "day", "event_type", "age", "explode(items) as (item_id, times)")
        .groupBy("user_id", "day", "event_type", "item_id")
        .agg(*(sf.expr(f"sum(times) filter (where age < {days}) as times_{days}d") for days in windows))
    )


def _tastes(met: DataFrame, features: Iterable[Feature]) -> DataFrame:
    """How many items a user has met, and the categories of most of these meetings: null where none is known."""
    of_type = "filter (where event_type = '{0.event_type}' and times_{0.days}d > 0"
    most = f"collect_list(struct(-times_{{0.days}}d as fewer, root)) {of_type} and root is not null)"
    aggregates = {
        "distinct": f"sum(items_{{0.days}}d) {of_type})",
        "top": f"nullif(transform(slice(array_sort({most}), 1, {TOP}), one -> one.root), cast(array() as array<string>))",
    }
    asked = [feature for feature in features if feature.operation in aggregates]
    sums = (f"{{}}(times_{days}d) as {{}}_{days}d" for days in sorted({feature.days for feature in asked}))
    return (
        met.groupBy("user_id", "day", "event_type", "root")
        .agg(*(sf.expr(each.format(*names)) for each in sums for names in (("sum", "times"), ("count", "items"))))
        .groupBy("user_id", "day")
        .agg(*(sf.expr(f"{aggregates[one.operation].format(one)} as `{one.name}`") for one in asked))
    )


def _vectors(met: DataFrame, features: Iterable[Feature]) -> DataFrame:
    """The mean vectors, by name, of the items that a user has met: null where none is known."""
    asked = [feature for feature in features if feature.input == "vectors"]
    by_item = "(one, other) -> case when one.item_id < other.item_id then -1 when one.item_id > other.item_id then 1 else 0 end"
    alike = "collect_list(struct(item_id, times_{0.days}d as times, embeddings)) filter (where event_type = '{0.event_type}' and times_{0.days}d > 0)"
    return (
        met.where(f"embeddings is not null and event_type in ({', '.join(repr(one) for one in met_types(asked))})")
        .groupBy("user_id", "day")
        .agg(*(sf.expr(f"array_sort({alike.format(one)}, {by_item}) as `{one.name}`") for one in asked))
        .selectExpr("user_id", "day", *(f"{_MEAN_VECTORS.format(one.name)} as `{one.name}`" for one in asked))
    )


# Of an array of item_id, times, embeddings, sorted: by name, the mean of the vectors, each as often as its item was met. In the
# order of the items, as a sum of floats in any other has other bits. A vector of another length than the first is left out.
_NAMES = "array_sort(array_distinct(flatten(transform(`{0}`, one -> map_keys(one.embeddings)))))"
_NAMED = "filter(transform(`{0}`, one -> struct(one.times, one.embeddings[name] as vector)), one -> one.vector is not null)"
_ALIKE = f"transform(array({_NAMED}), all -> filter(all, one -> size(one.vector) = size(all[0].vector)))[0]"
_ADD = "struct(zip_with(so_far.sum, one.vector, (s, x) -> s + one.times * x) as sum, so_far.times + one.times as times)"
_MEAN = f"""
    transform(array({_ALIKE}), alike -> aggregate(
        alike,
        struct(transform(alike[0].vector, x -> 0D) as sum, 0L as times),
        (so_far, one) -> {_ADD},
        total -> transform(total.sum, x -> cast(x / total.times as float))
    ))[0]
"""
_MEAN_VECTORS = f"case when size({_NAMES}) > 0 then map_from_entries(transform({_NAMES}, name -> struct(name, {_MEAN}))) end"


def _with_items(numbers: DataFrame, known: DataFrame, features: Iterable[Feature]) -> DataFrame:
    """Price and age of the items, null where they are not known, and the shares of their categories in place of their own counts."""
    found = _join_known(numbers, known, "left").withColumn("age_days", sf.date_diff("day", "first_known"))
    share = "case when root is not null then sum(`{0}`) over (partition by day, root) / nullif(sum(`{0}`) over (partition by day), 0) end"
    shares = {feature.name: sf.expr(share.format(feature.name)) for feature in features if feature.operation == "share"}
    return found.repartition("day").withColumns(shares)  # a day is sorted, and written, as a whole anyway


def _approximate(aged: DataFrame, features: Iterable[Feature]) -> DataFrame:
    """Numbers of different users, from the smallest hashes: the k-th smallest of n even ones lies at about k / n of their range."""
    asked = {feature.name: f"event_type = '{feature.event_type}' and age < {feature.days}" for feature in features}
    sketch = "slice(sort_array(array_distinct(flatten(collect_list(users) filter (where {})))), 1, {}) as `{}`"
    beyond = f"{SKETCH - 1} * {2.0**64!r}D / (element_at(`{{0}}`, {SKETCH}) + {2.0**63!r}D)"
    estimate = f"case when size(`{{0}}`) < {SKETCH} then cast(size(`{{0}}`) as double) else {beyond} end as `{{0}}`"
    return (
        aged.groupBy("item_id", "day")
        .agg(*(sf.expr(sketch.format(condition, SKETCH, name)) for name, condition in asked.items()))
        .selectExpr("item_id", "day", *(estimate.format(name) for name in asked))
    )
