"""Features: what users did and what was done with items, at the end of each day.

A partial is what one arrival day brought for one event day. The snapshot of day D sums the partials of the event days
within each window that had arrived by D; so a late row counts from the day it arrived on, and a night costs one day of
events and one window of partials.
"""

from __future__ import annotations

from datetime import date, timedelta
from typing import TYPE_CHECKING

import pyarrow as pa
from pyspark.sql import functions as sf

from jobs.contracts.days import DayRange
from jobs.contracts.features import ENTITIES, declared_of, met_types
from jobs.database import database, one_of
from jobs.features.partials import partials
from jobs.features.snapshots import REACH, snapshots
from jobs.features.statistics import statistics
from jobs.lake import Lake
from jobs.noise import set_aside
from jobs.settings import Settings
from jobs.steps import find_step

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

SILVER, ITEMS, SET_ASIDE, STATISTICS = "silver.interactions", "silver.items", "gold.set_aside", "gold.feature_statistics"


def run(spark: SparkSession, lake: Lake, settings: Settings, days: DayRange) -> None:
    """Write the partials of the arrival days `days`, then the snapshots at the end of each of them, and their statistics.

    Partials that an earlier night left out, or made by another contract, are made as well: without them a snapshot would count
    too little. Raises NotReady when silver does not hold the days yet.
    """
    step = find_step("features")
    for table in step.reads:
        lake.require(table, days)
    arrived = lake.done(SILVER)
    versions = lake.versions(step.reads)  # after what has arrived, so that they hold all of that
    interactions, items = (lake.frame(spark, table, versions[table]) for table in (SILVER, ITEMS))
    earliest = days.first - timedelta(days=REACH - 1)

    def due_of(table: str) -> list[date]:
        made = {day for commit in lake.commits(table) if commit.fingerprint == settings.rules(table) for day in commit.days}
        return sorted({*days} | {day for day in arrived - made if earliest <= day <= days.last})

    _set_aside(lake, settings, due_of(SET_ASIDE), versions[SILVER])
    beyond = lake.frame(spark, SET_ASIDE).selectExpr("user_id", "event_day as day", "arrival_day")
    interactions = interactions.join(sf.broadcast(beyond), on=["user_id", "day", "arrival_day"], how="left_anti")
    for entity in ENTITIES:
        table, snapshot, features = f"gold.{entity}_partials", f"gold.{entity}_features", declared_of(entity, lake.event_types)
        due, read = due_of(table), {SILVER: versions[SILVER]}
        lake.replace_frame(table, partials(interactions, entity, met_types(features), due), step.name, due, read, fingerprint=settings.rules(table))
        inputs = {table: lake.version(table), ITEMS: versions[ITEMS]}
        known = lake.frame(spark, table, inputs[table]).where(sf.col("arrival_day").between(earliest, days.last))
        made_of = snapshots(known, items, entity, features, days)
        lake.replace_frame(snapshot, made_of, step.name, [*days], inputs, fingerprint=settings.rules(snapshot))
    inputs = lake.versions(f"gold.{entity}_features" for entity in ENTITIES)
    lake.replace(STATISTICS, _statistics(lake, days, inputs), step.name, [*days], inputs)


def _set_aside(lake: Lake, settings: Settings, arrival_days: list[date], version: int) -> None:
    """Write what is beyond the limits among the rows that arrived on the days."""
    with database(settings.duckdb) as duck:
        duck.register("interactions", lake.dataset(SILVER, version))
        arrived = f"(from interactions where {one_of('arrival_day', arrival_days)})"
        rows = duck.sql(f"from ({set_aside(arrived, settings.limits)}) order by arrival_day, user_id, event_day").to_arrow_table()
    lake.replace(SET_ASIDE, rows, find_step("features").name, arrival_days, {SILVER: version}, fingerprint=settings.rules(SET_ASIDE))


def _statistics(lake: Lake, days: DayRange, versions: dict[str, int]) -> pa.Table:
    rows = []
    for day in days:
        for entity in ENTITIES:
            table = f"gold.{entity}_features"
            features = declared_of(entity, lake.event_types)
            snapshot = lake.dataset(table, versions[table], [day]).to_table([feature.name for feature in features if feature.is_number])
            rows += statistics(snapshot, features, day)
    return pa.Table.from_pylist(rows, lake.schema(STATISTICS))
