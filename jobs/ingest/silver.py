"""Bronze to silver: one row an event id, by the day on which it happened; items and users with validity intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING

from pyspark.sql import Window
from pyspark.sql import functions as sf
from pyspark.sql.types import MapType

from jobs.contracts.days import DayRange
from jobs.lake import Lake
from jobs.settings import Settings
from jobs.steps import find_step

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

_INTERACTIONS = "silver.interactions"
_ARRIVAL = ("arrival_day", "source_file", "source_line")


def run(spark: SparkSession, lake: Lake, settings: Settings, days: DayRange) -> None:  # noqa: ARG001
    """Write silver.interactions for the event days that the arrival days touch, and silver.items and silver.users whole.

    Raises NotReady when bronze does not hold the days.
    """
    step = find_step("silver")
    for table in step.reads:
        lake.require(table, days)
    inputs = lake.versions(step.reads)
    events = lake.frame(spark, "bronze.events", inputs["bronze.events"])
    lake.ensure(_INTERACTIONS)
    event_days = _touched_days(events, lake.frame(spark, _INTERACTIONS), days)
    lake.replace_frame(_INTERACTIONS, interactions(events, event_days), step.name, list(days), _only(inputs, "bronze.events"), partitions=event_days)
    for name, key in (("items", "item_id"), ("users", "user_id")):
        source, target = f"bronze.{name}", f"silver.{name}"
        rows = lake.frame(spark, source, inputs[source])
        held = [column.name for column in lake.columns(target) if column.name not in (key, "valid_from", "valid_to")]
        lake.replace_frame(target, validity(rows, key, held), step.name, list(days), _only(inputs, source))


def interactions(events: DataFrame, event_days: Sequence[date]) -> DataFrame:
    """The events of some days, of each event id the first arrival among all events, with `day`, the UTC day of the event.

    A repeat may carry another time, so an id is looked for in the other days too.
    """
    inside = sf.col("event_day").isin(*event_days)
    arrival = sf.struct(*_ARRIVAL)
    place = sf.row_number().over(Window.partitionBy("event_id").orderBy(*_ARRIVAL))
    here = events.where(inside).withColumn("place", place).where("place = 1")
    elsewhere = events.where(~inside).groupBy("event_id").agg(sf.min(arrival).alias("elsewhere"))
    return (
        here.join(elsewhere, "event_id", "left")
        .where(sf.col("elsewhere").isNull() | (arrival < sf.col("elsewhere")))
        .withColumn("day", sf.col("event_day"))
        .hint("rebalance", "day")
    )


def validity(rows: DataFrame, key: str, held: Sequence[str]) -> DataFrame:
    """From what each arrival day said about a key to intervals: key, held columns, valid_from, valid_to.

    The last line of a day counts. An interval ends where another row begins; rows that say the same are one.
    """
    said = sf.to_json(sf.struct(*(_comparable(rows, name) for name in held)))
    by_line = Window.partitionBy(key, "arrival_day").orderBy(sf.desc("source_file"), sf.desc("source_line"))
    by_day = Window.partitionBy(key).orderBy("arrival_day")
    changes = (
        rows.withColumn("place", sf.row_number().over(by_line))
        .where("place = 1")
        .withColumn("said", said)
        .withColumn("said_before", sf.lag("said").over(by_day))
        .where("said_before IS NULL OR said != said_before")
    )
    return changes.select(key, *held, sf.col("arrival_day").alias("valid_from"), sf.lead("arrival_day").over(by_day).alias("valid_to")).hint("rebalance")


def _comparable(rows: DataFrame, name: str) -> Column:
    """A column as something equal whenever its meaning is: the order of a map's entries has none."""
    if isinstance(rows.schema[name].dataType, MapType):
        return sf.array_sort(sf.map_entries(name)).alias(name)
    return sf.col(name)


def _touched_days(events: DataFrame, interactions: DataFrame, days: DayRange) -> list[date]:
    """Event days whose rows the arrival days may change: those of every event, whenever it arrived, that shares an id with
    what these days brought, or had brought when they were last read."""
    arrived = sf.col("arrival_day").between(days.first, days.last)
    before = interactions.where(arrived)
    ids = events.where(arrived).select("event_id").union(before.select("event_id"))
    touched = events.join(ids, "event_id", "left_semi").select("event_day").union(before.select("day"))
    return sorted(row[0] for row in touched.distinct().collect())


def _only(inputs: Mapping[str, int], table: str) -> dict[str, int]:
    return {table: inputs[table]}
