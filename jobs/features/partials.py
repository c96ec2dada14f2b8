"""Partials: what one arrival day brought for one event day, in a form that adds up, whatever the order, bit for bit.

Sums are of decimals; of the users of an item only the smallest hashes are kept, of which those of a union are the smallest too.
"""

from __future__ import annotations

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
_PAIR = (
    "count(*) as event_count",
    "sum(amount) as value_sum",
    "count(amount) as value_count",
    "min(amount) as value_min",
    "max(amount) as value_max",
    "max_by(amount, place) as value_last",
    "max(place) as value_last_order",
)
_ALL = (
    "sum(event_count) as event_count",
    "coalesce(sum(value_sum), 0) as value_sum",
    "sum(value_count) as value_count",
    "min(value_min) as value_min",
    "max(value_max) as value_max",
    "max_by(value_last, value_last_order) as value_last",
    "max(value_last_order) as value_last_order",
)
_OTHERS = {
    "user": "map_from_entries(array_sort(collect_list(struct(item_id, event_count)))) as items",
    "item": f"array_sort(collect_list(case when place <= {SKETCH} then hash end)) as users",
}


def partials(interactions: DataFrame, entity: Entity, arrival_days: list[date]) -> DataFrame:
    """One row an entity, event day, event type and arrival day, for what arrived on the given days: the columns of `gold.*_partials`."""
    key = f"{entity}_id"
    met = _pairs(interactions.where(sf.col("arrival_day").isin(arrival_days)))
    if entity == "item":
        by_hash = f"row_number() over (partition by {', '.join((key, *_GRAIN))} order by hash)"
        met = met.selectExpr("*", "xxhash64(user_id) as hash").selectExpr("*", f"{by_hash} as place")
    return (
        met.groupBy(key, *_GRAIN)
        .agg(*map(sf.expr, (*_ALL, _OTHERS[entity])))
        .repartition("arrival_day")
        .sortWithinPartitions("arrival_day", key, "event_day", "event_type")
    )


def _pairs(arrived: DataFrame) -> DataFrame:
    """What each user did with each item: of these there are fewer than events, and a partial knows each user, or item, once."""
    columns = ("user_id", "item_id", "day as event_day", "event_type", "arrival_day", f"{_VALUE} as amount", "event_time", "event_id")
    return (
        arrived.selectExpr(*columns)
        .selectExpr("*", f"case when amount is not null then {_ORDER} end as place")
        .groupBy("user_id", "item_id", *_GRAIN)
        .agg(*map(sf.expr, _PAIR))
    )
