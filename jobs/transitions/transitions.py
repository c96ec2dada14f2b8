"""Transitions: one narrow row a step, with the reward that came of it and how its episode went on.

Nothing of a user's history is copied into a row, and episodes have no number: `first` and `end` depend on the two
neighbouring steps alone, so that a day can be rebuilt from the days around it.

Spark spreads the work and writes. Inside a task it is Arrow: what days show is read once and parted by user, and what belongs
to a user is then worked out column by column, in `sequences`. Spark's window functions would sort all rows once for each of four
orders, at five times the CPU time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from datetime import date
from typing import TYPE_CHECKING
from zlib import crc32

import duckdb
import numpy as np
import pyarrow as pa  # not for the type checker alone: Spark reads the type hints of functions that it is given
import pyarrow.compute as pc
from pyspark.sql.pandas.types import from_arrow_schema
from pyspark.storagelevel import StorageLevel

from jobs.contracts.days import DayRange
from jobs.contracts.rewards import MICRO, UNATTRIBUTED_REASONS
from jobs.contracts.tables import ENDS
from jobs.database import database, one_of
from jobs.lake import Lake
from jobs.settings import Settings
from jobs.steps import find_step
from jobs.transitions.cuts import Sight, around, as_of_days, looks, reach_days, sights, touched
from jobs.transitions.items import INDEX, number_items
from jobs.transitions.parcels import packed, unpacked
from jobs.transitions.sequences import STEPS, SUMS, Rules, outcomes
from jobs.transitions.sources import SILVER, Sources

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_SIGHT_EVENTS = 500_000  # that a task reads at once
_GROUP_EVENTS = 1_000_000  # of the users that a task works out at once, in some 300 MB
_PARCEL_ROWS = 1 << 17  # at most; what goes through the driver is one of them at a time


def run(spark: SparkSession, lake: Lake, settings: Settings, days: DayRange) -> None:
    """Write candidate sets, rewards and transitions of `days`, and of earlier days about which something became known on `days`.

    Raises NotReady when silver does not hold the days yet.
    """
    step = find_step("transitions")
    lake.require(SILVER, days)
    for table in step.writes:
        lake.ensure(table)
    versions = lake.versions(step.writes)
    inputs = lake.versions(step.reads)
    reach = reach_days(settings)
    with database(settings.duckdb) as duck:
        duck.register("interactions", lake.dataset(SILVER, inputs[SILVER]))
        gone = {near for day in went(lake, days, inputs[SILVER]) for near in around(day, reach)}
        rebuilt = gone | touched(days, reach, arrivals(duck, one_of("arrival_day", days))).keys()
        nights = {*days}.union(*map(lake.done, step.writes))  # one that is just being written counts already
        near = {near for day in rebuilt for near in around(day, reach)}
        newest = touched(nights, reach, arrivals(duck, f"{one_of('day', near)} and {one_of('arrival_day', nights)}"))
        as_of = as_of_days(newest, rebuilt)
        known = f"{one_of('day', near)} and arrival_day <= date '{max(nights)}'"
        sizes = dict(duck.sql(f"select day, count(*) from interactions where {known} group by day").fetchall())
        number_items(lake, duck, days, known, inputs, versions[INDEX])
    sources = Sources(lake, settings, inputs[SILVER], lake.version(INDEX))
    seen = spread(spark, sights(looks(as_of, reach, days.last), sizes, _SIGHT_EVENTS))
    made = made_of(seen, sources, math.ceil(sum(sizes.values()) / _GROUP_EVENTS / settings.episodes.buckets)).persist(StorageLevel.DISK_ONLY)
    try:
        for table, rows in (
            ("gold.candidate_sets", candidate_sets(seen, sources)),
            ("gold.unattributed", unattributed(made, settings)),
            ("gold.rewards", rewards(made, settings)),
        ):
            lake.replace(table, rows, step.name, [*days], inputs, gone | as_of.keys(), versions[table], settings.rules(step.name))
        frame, table = transitions(made, settings), "gold.transitions"
        lake.replace_frame(table, frame, step.name, [*days], inputs, gone | as_of.keys(), versions[table], settings.rules(step.name))
    finally:
        made.unpersist()


def arrivals(duck: duckdb.DuckDBPyConnection, condition: str) -> list[tuple[date, date]]:
    """Pairs (event day, arrival day) of the interactions that meet a condition."""
    return duck.sql(f"select distinct day, arrival_day from interactions where {condition}").fetchall()


def went(lake: Lake, days: DayRange, version: int) -> set[date]:
    """Event days of which rows that had arrived on `days` may have gone, up to a version of silver, since the arrival day was last run.

    What a day had brought, and brings no more once it is delivered again, has to leave the days on which it happened.
    """
    commits = [commit for commit in lake.commits(SILVER) if commit.version <= version]
    read = {day: commit.version for commit in reversed(commits) for day in commit.days}  # a day that was never run lost nothing by its first version
    read |= {day: commit.inputs.get(SILVER, -1) for commit in lake.commits("gold.transitions") for day in commit.days}
    since = {day: read.get(day, version) for day in days}
    return {
        event_day
        for commit in commits
        if any(since[day] < commit.version for day in since.keys() & (commit.days | commit.changed))
        for event_day in commit.replaced
    }


def spread(spark: SparkSession, sights: list[Sight]) -> DataFrame:
    """The sights, each for a task of its own to take."""
    rows = [(sight.cut, sight.days, sight.as_of_days) for sight in sights]
    return spark.createDataFrame(spark.sparkContext.parallelize(rows, max(len(rows), 1)), "cut date, days array<date>, as_of_days array<date>")


def made_of(sights: DataFrame, sources: Sources, parts: int) -> DataFrame:
    """What `sequences.outcomes` makes of what the sights show: `kind` (steps, strays or sums) and `parcel`.

    The users of a bucket are worked out in as many `parts`.
    """
    rules, buckets = Rules.of(sources.settings), sources.settings.episodes.buckets
    groups = buckets * max(parts, 1)

    def parted(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for cut, rows in sources.looked_at(batches):
            users = rows["user_id"].combine_chunks().dictionary_encode()
            group = np.array([crc32(user.encode()) % groups for user in users.dictionary.to_pylist()], dtype=np.int32)[users.indices]
            order = np.argsort(group, kind="stable")
            edges = np.flatnonzero(np.diff(group[order], prepend=-1, append=groups))
            by_group = rows.take(order)
            parcels = [packed(by_group[begin:end]) for begin, end in itertools.pairwise(edges.tolist())]
            yield pa.record_batch({"cut": pa.array([cut] * len(parcels)), "users": pa.array(group[order][edges[:-1]]), "parcel": parcels})

    def worked_out(group: pa.Table) -> pa.Table:
        made = outcomes(unpacked(group["parcel"]), rules)
        bucket = pa.scalar(group["users"][0].as_py() % buckets, pa.int32())
        made["steps"] = made["steps"].append_column("bucket", pa.repeat(bucket, len(made["steps"])))
        cut = [(kind, packed(table[at : at + _PARCEL_ROWS])) for kind, table in made.items() for at in range(0, len(table), _PARCEL_ROWS)]
        return pa.table([[kind for kind, _ in cut], [parcel for _, parcel in cut]], schema=pa.schema({"kind": pa.string(), "parcel": pa.binary()}))

    return sights.mapInArrow(parted, "cut date, users int, parcel binary").groupBy("cut", "users").applyInArrow(worked_out, "kind string, parcel binary")


def candidate_sets(sights: DataFrame, sources: Sources) -> Iterator[pa.Table]:
    """The distinct candidate sets of each day: `candidate_set`, `items`, `day`."""

    def listed(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for sets in sources.candidate_sets(batches):
            yield pa.record_batch({"parcel": [packed(sets)]})

    return _through_the_driver(sights.mapInArrow(listed, "parcel binary"))


def unattributed(made: DataFrame, settings: Settings) -> Iterator[pa.Table]:
    """Rewarded answers that belong to no step, with a reason of `jobs.contracts.rewards.UNATTRIBUTED_REASONS`."""
    for rows in _through_the_driver(made.where("kind = 'strays'").select("parcel")):
        yield _named(rows, settings)


def rewards(made: DataFrame, settings: Settings) -> pa.Table:
    """Where rewards went, summed over the users."""
    keys = ["day", "event_day", "event_type", "reason", "as_of_day"]
    sums = pa.concat_tables([SUMS.empty_table(), *_through_the_driver(made.where("kind = 'sums'").select("parcel"))])
    summed = sums.group_by(keys).aggregate([("events", "sum"), ("reward", "sum")])
    return _named(summed.rename_columns([*keys, "events", "reward"]).sort_by([(key, "ascending") for key in keys]), settings)


def _through_the_driver(parcels: DataFrame) -> Iterator[pa.Table]:
    """Few rows for few files: a write of Spark's costs four CPU seconds before its first row."""
    return (unpacked([row["parcel"]]) for row in parcels.toLocalIterator())


def _named(rows: pa.Table, settings: Settings) -> pa.Table:
    """Names in place of codes, and rewards as they are."""
    names = {"event_type": settings.event_types, "reason": UNATTRIBUTED_REASONS}
    for column in names.keys() & {*rows.column_names}:
        values = pa.array(names[column], pa.string()).take(rows[column].combine_chunks())
        rows = rows.set_column(rows.column_names.index(column), column, values)
    return rows.set_column(rows.column_names.index("reward"), "reward", pc.divide(rows["reward"].cast(pa.float64()), float(MICRO)))


def transitions(made: DataFrame, settings: Settings) -> DataFrame:
    """One row a step of the days to rebuild, as `gold.transitions` has them."""
    schema = STEPS.append(pa.field("bucket", pa.int32()))

    def opened(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for parcel in batch["parcel"]:
                yield from unpacked([parcel]).to_batches()

    def named(code: str, names: Iterable[str]) -> str:
        # Not by element_at, which takes the last name where the code is null (Spark 4.2.0).
        cases = " ".join(f"when {number} then '{name}'" for number, name in enumerate(names))
        return f"case {code} {cases} end as {code}"

    return (
        made.where("kind = 'steps'")
        .select("parcel")
        .mapInArrow(opened, from_arrow_schema(schema))
        # A file a day and bucket, in the order in which a user's steps are read.
        .sortWithinPartitions("day", "bucket", "place")
        .selectExpr(
            *("user_id", "event_time", "step", "item"),
            named("event_type", settings.event_types),
            named("response", settings.event_types),
            f"reward / {MICRO}D as reward",
            "first",
            named("end", ENDS),
            *("propensity", "candidate_set", "as_of_day", "day", "bucket"),
        )
    )
