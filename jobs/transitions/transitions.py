"""Transitions: one narrow row a step, with the reward that came of it and how its episode went on.

Nothing of a user's history is copied into a row, and episodes have no number: `first` and `end` depend on the two
neighbouring steps alone, so that a day can be rebuilt from the days around it.

Spark spreads the work. Inside a task it is Arrow: what days show is read once and parted by user, what belongs to a user is then
worked out column by column, in `sequences`, and what comes of that is parted by day and bucket and written. Spark's window
functions would sort all rows once for each of four orders, at five times the CPU time.
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

from jobs.contracts.days import DayRange
from jobs.contracts.rewards import MICRO, UNATTRIBUTED_REASONS
from jobs.contracts.tables import ENDS
from jobs.database import database, one_of
from jobs.files import runs
from jobs.lake import Lake
from jobs.settings import Settings
from jobs.spark import from_tasks
from jobs.steps import find_step
from jobs.transitions.cuts import Sight, around, as_of_days, looks, reach_days, sights, touched
from jobs.transitions.items import INDEX, number_items
from jobs.transitions.parcels import packed, unpacked
from jobs.transitions.sequences import SUMS, Rules, outcomes
from jobs.transitions.sources import SILVER, Sources

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_SIGHT_EVENTS = 500_000  # that a task reads at once
_GROUP_EVENTS = 1_000_000  # of the users that a task works out at once, in some 300 MB
WRITTEN = {"strays": "gold.unattributed", "steps": "gold.transitions"}  # by the tasks; in the order of their commits, which `went` relies on
_PARCELS = pa.schema({"kind": pa.string(), "day": pa.date32(), "bucket": pa.int32(), "part": pa.int32(), "parcel": pa.binary()})


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
    parts = math.ceil(sum(sizes.values()) / _GROUP_EVENTS / settings.episodes.buckets)
    with lake.in_tasks(WRITTEN["steps"]):
        files, ledger = written(outcomes_of(seen, sources, max(parts, 1)), sources)
    partitions, rules = gone | as_of.keys(), settings.rules(step.name)
    for table, rows in (("gold.candidate_sets", candidate_sets(seen, sources)), ("gold.rewards", ledger)):
        lake.replace(table, rows, step.name, [*days], inputs, partitions, versions[table], rules)
    for table in WRITTEN.values():
        lake.replace_by_files(table, files[table], step.name, [*days], inputs, partitions, versions[table], rules)


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


def outcomes_of(sights: DataFrame, sources: Sources, parts: int) -> DataFrame:
    """What `sequences.outcomes` makes of what the sights show, in parcels: `kind` (steps, strays or sums), `day`, `bucket`, `part`, `parcel`.

    The users of a bucket are worked out in as many `parts`. A parcel has the rows of one day; but sums have no day, nor strays a bucket.
    """
    rules, buckets = Rules.of(sources.settings), sources.settings.episodes.buckets
    groups = buckets * parts

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
        part, bucket = divmod(group["users"][0].as_py(), buckets)
        parcels: list[tuple[object, ...]] = [("sums", None, None, part, packed(made["sums"]))]
        for kind, of_bucket in (("steps", bucket), ("strays", None)):
            rows = made[kind].sort_by("day") if kind == "strays" else made[kind]
            parcels += [(kind, of_day["day"][0].as_py(), of_bucket, part, packed(of_day)) for of_day in runs(rows, ["day"])]
        return pa.table([*zip(*parcels, strict=True)], schema=_PARCELS)

    return sights.mapInArrow(parted, "cut date, users int, parcel binary").groupBy("cut", "users").applyInArrow(worked_out, from_arrow_schema(_PARCELS))


def written(outcomes: DataFrame, sources: Sources) -> tuple[dict[str, list[str]], pa.Table]:
    """Write the steps and the strays as files, of which no table knows yet, by table; and sum the sums: the rows of `gold.rewards`."""
    settings, writers = sources.settings, {kind: sources.lake.writer(table) for kind, table in WRITTEN.items()}

    def write(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        parcels = (row for batch in batches for row in zip(*(batch[name] for name in ("kind", "bucket", "parcel")), strict=True))
        for kind, of_kind in itertools.groupby(parcels, key=lambda parcel: parcel[0].as_py()):
            if kind == "sums":
                made = [parcel.as_py() for _, _, parcel in of_kind]
            else:
                made = [file.encode() for file in writers[kind].write(_finished(unpacked([parcel]), bucket, settings) for _, bucket, parcel in of_kind)]
            yield pa.record_batch({"kind": [kind] * len(made), "made": pa.array(made, pa.binary())})

    # A file a day and bucket, in it one user after the other.
    by_file = outcomes.repartition("kind", "day", "bucket").sortWithinPartitions("kind", "day", "bucket", "part")
    made = by_file.mapInArrow(write, "kind string, made binary").collect()
    files = {table: [row["made"].decode() for row in made if row["kind"] == kind] for kind, table in WRITTEN.items()}
    keys = ["day", "event_day", "event_type", "reason", "as_of_day"]
    sums = pa.concat_tables([SUMS.empty_table(), *(unpacked([row["made"]]) for row in made if row["kind"] == "sums")])
    summed = sums.group_by(keys).aggregate([("events", "sum"), ("reward", "sum")]).rename_columns([*keys, "events", "reward"])
    return files, _finished(summed.sort_by([(key, "ascending") for key in keys]), None, settings)


def candidate_sets(sights: DataFrame, sources: Sources) -> Iterator[pa.Table]:
    """The distinct candidate sets of each day: `candidate_set`, `items`, `day`."""

    def listed(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for sets in sources.candidate_sets(batches):
            yield pa.record_batch({"parcel": [packed(sets)]})

    # Few rows for few files, which go through the driver one part at a time.
    with from_tasks():
        for row in sights.mapInArrow(listed, "parcel binary").toLocalIterator():
            yield unpacked([row["parcel"]])


def _finished(rows: pa.Table, bucket: pa.Scalar | None, settings: Settings) -> pa.Table:
    """Names in place of codes, rewards as they are, and the bucket."""
    names = {"event_type": settings.event_types, "response": settings.event_types, "end": ENDS, "reason": UNATTRIBUTED_REASONS}
    for column in names.keys() & {*rows.column_names}:
        named = pa.DictionaryArray.from_arrays(rows[column].combine_chunks(), pa.array(names[column], pa.string()))
        rows = rows.set_column(rows.column_names.index(column), column, named)
    rows = rows.set_column(rows.column_names.index("reward"), "reward", pc.divide(rows["reward"].cast(pa.float64()), float(MICRO)))
    return rows if bucket is None else rows.append_column("bucket", pa.repeat(bucket, rows.num_rows))
