"""Partials: what one arrival day brought for one event day, in a form that adds up, whatever the order, bit for bit.

Sums are of decimals; of the users of an item only the smallest hashes are kept, of which those of a union are the smallest too.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import date
from typing import TYPE_CHECKING

from pyspark.sql import functions as sf

from jobs.contracts.features import SKETCH, Entity

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_GRAIN = ("event_day", "event_type", "arrival_day")
# A value that is no finite number below 1e22 counts as missing.
_VALUE = "try_cast(value as decimal(28,6))"
_ORDER = "cast(unix_micros(event_time) * 100000000000000000000BD + xxhash64(event_id) as decimal(38,0))"
_NUMBERS = (
    "count(*) as event_count",
    "coalesce(sum(amount), 0) as value_sum",
    "count(amount) as value_count",
    "min(amount) as value_min",
    "max(amount) as value_max",
    "max_by(amount, place) as value_last",
    "max(place) as value_last_order",
)
_OTHERS = {
    "user": "map_from_entries(array_sort(collect_list(struct(item_id, times)))) as items",
    "item": f"array_sort(collect_list(case when place <= {SKETCH} then hash end)) as users",
}


def partials(interactions: DataFrame, entity: Entity, met_types: Sequence[str], arrival_days: Collection[date]) -> DataFrame:
    """One row an entity, event day, event type and arrival day, for what arrived on the given days: the columns of `gold.*_partials`.

    The items of a user, or the users of an item, are told for the event types `met_types` alone, and are null for others: they
    cost more than all the rest.
    """
    key = f"{entity}_id"
    arrived = interactions.where(sf.col("arrival_day").isin([*arrival_days])).withColumnRenamed("day", "event_day")
    numbers = (
        arrived.selectExpr(key, *_GRAIN, f"{_VALUE} as amount", "event_time", "event_id")
        .selectExpr("*", f"case when amount is not null then {_ORDER} end as place")
        .groupBy(key, *_GRAIN)
        .agg(*map(sf.expr, _NUMBERS))
    )
    return (
        numbers.join(_others(arrived.where(sf.col("event_type").isin([*met_types])), entity), [key, *_GRAIN], "left")
        .repartition("arrival_day")
        .sortWithinPartitions("arrival_day", key, "event_day", "event_type")
    )


def _others(arrived: DataFrame, entity: Entity) -> DataFrame:
    """The items of each user, or the users of each item, in a row of a partial: each is known once, so that there are fewer than events."""
    key = f"{entity}_id"
    pairs = arrived.groupBy("user_id", "item_id", *_GRAIN).agg(sf.count("*").alias("times"))
    if entity == "item":
        by_hash = f"row_number() over (partition by {', '.join((key, *_GRAIN))} order by hash)"
        pairs = pairs.selectExpr("*", "xxhash64(user_id) as hash").selectExpr("*", f"{by_hash} as place")
    return pairs.groupBy(key, *_GRAIN).agg(sf.expr(_OTHERS[entity]))
