"""Features: what users did and what was done with items, at the end of each day.

A partial is what one arrival day brought for one event day. The snapshot of day D sums the partials of the event days
within each window that had arrived by D; so a late row counts from the day it arrived on, and a night costs one day of
events and one window of partials.
"""

from __future__ import annotations

from datetime import date, timedelta
from typing import TYPE_CHECKING

from pyspark.sql import functions as sf

from jobs.contracts.days import DayRange
from jobs.contracts.features import WINDOWS, Count, Feature, Rate, Sum, declared
from jobs.contracts.rewards import AMOUNT
from jobs.lake import Lake
from jobs.settings import Settings
from jobs.steps import find_step

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

SILVER = "silver.interactions"
REACH = max(WINDOWS)


def run(spark: SparkSession, lake: Lake, settings: Settings, days: DayRange) -> None:
    """Write the partials of the arrival days `days`, then the snapshots at the end of each of them.

    Partials that an earlier night left out are made as well: without them a snapshot would count too little.
    Raises NotReady when silver does not hold the days yet.
    """
    step = find_step("features")
    lake.require(SILVER, days)
    arrived = lake.done(SILVER)
    version = lake.version(SILVER)  # after what has arrived, so that it holds all of that
    silver = lake.frame(spark, SILVER, version)
    features = declared(tuple(settings.event_types))
    earliest = days.first - timedelta(days=REACH - 1)
    for entity in ("user", "item"):
        table = f"gold.{entity}_partials"
        due = sorted({*days} | {day for day in arrived - lake.done(table) if earliest <= day <= days.last})
        lake.replace_frame(table, partials(silver, f"{entity}_id", due), step.name, due, {SILVER: version})
        made = lake.version(table)
        known = lake.frame(spark, table, made).where(sf.col("arrival_day").between(earliest, days.last))
        made_of = snapshots(known, f"{entity}_id", features, days)
        lake.replace_frame(f"gold.{entity}_features", made_of, step.name, [*days], {table: made}, fingerprint=settings.rules(step.name))


def partials(interactions: DataFrame, key: str, arrival_days: list[date]) -> DataFrame:
    """Count events and sum their values by (`key`, event_day, event_type, arrival_day) for rows that arrived on the given days.

    An event with no value, or with one that is no finite number below 1e22, adds 0 to the sum.
    """
    return (
        interactions.where(sf.col("arrival_day").isin(arrival_days))
        .groupBy(key, sf.col("day").alias("event_day"), "event_type", "arrival_day")
        .agg(sf.count("*").alias("event_count"), sf.sum(sf.expr(AMOUNT.format("value"))).alias("value_sum"))
        .repartition("arrival_day")
        .sortWithinPartitions("arrival_day", key, "event_day", "event_type")
        .select(key, "event_day", "event_type", "event_count", "value_sum", "arrival_day")
    )


def snapshots(partials: DataFrame, key: str, features: tuple[Feature, ...], days: DayRange) -> DataFrame:
    """Features of every `key` met within the longest window, at the end of each day of `days`: `key`, `day`, one double a feature."""
    first_day = sf.greatest("event_day", "arrival_day", sf.lit(days.first))
    last_day = sf.least(sf.date_add("event_day", REACH - 1), sf.lit(days.last))
    sums = {feature for feature in features if not isinstance(feature, Rate)}
    return (
        partials.where(first_day <= last_day)
        .withColumn("day", sf.explode(sf.sequence(first_day, last_day, sf.expr("interval 1 day"))))
        .groupBy(key, "day")
        .agg(*(sf.expr(_sum(feature)) for feature in sorted(sums, key=lambda feature: feature.name)))
        .selectExpr(key, "day", *(f"{_value(feature)} as {feature.name}" for feature in features))
        .repartition("day")
        .sortWithinPartitions("day", key)
    )


# As text: put together column by column, the expressions of a night cost a third of its time in calls to the JVM.


def _sum(feature: Count | Sum) -> str:
    summed = "event_count" if isinstance(feature, Count) else "value_sum"
    counts = f"event_type = '{feature.event_type}' and date_diff(day, event_day) < {feature.days}"
    return f"sum(case when {counts} then {summed} end) as {feature.name}"


def _value(feature: Feature) -> str:
    if isinstance(feature, Rate):
        part, whole = (_value(Count(event_type, feature.days)) for event_type in (feature.part, feature.whole))
        return f"({part} + 1) / ({whole} + 20)"
    return f"coalesce(cast({feature.name} as double), 0D)"
