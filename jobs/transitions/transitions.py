"""Transitions: one narrow row a step, with the reward that came of it and how its episode went on.

Nothing of a user's history is copied into a row, and episodes have no number: `first` and `end` depend on the two
neighbouring steps alone, so that a day can be rebuilt from the days around it.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from typing import TYPE_CHECKING

from pyspark.sql import Window
from pyspark.sql import functions as sf

from jobs.contracts.days import DayRange
from jobs.contracts.rewards import AMOUNT, reward_sql
from jobs.lake import Lake
from jobs.settings import Settings
from jobs.steps import find_step
from jobs.transitions.cuts import Look, around, as_of_days, looks, maturity_days, reach_days, touched

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

SILVER = "silver.interactions"
USER = ("cut", "user_id")
STEP_ORDER = ("event_time", "position", "event_id")  # a missing position comes first


def run(spark: SparkSession, lake: Lake, settings: Settings, days: DayRange) -> None:
    """Write candidate sets, unattributed rewards and transitions of `days`, and of earlier days about which something became known on `days`.

    Raises NotReady when silver does not hold the days yet.
    """
    step = find_step("transitions")
    lake.require(SILVER, days)
    for table in step.writes:
        lake.ensure(table)
    versions = lake.versions(step.writes)
    inputs = lake.versions(step.reads)
    silver = lake.frame(spark, SILVER, inputs[SILVER])
    reach = reach_days(settings)
    gone = {near for day in went(lake, days, inputs[SILVER]) for near in around(day, reach)}
    rebuilt = gone | touched(days, reach, arrivals(silver, days)).keys()
    nights = {*days}.union(*map(lake.done, step.writes))  # one that is just being written counts already
    near = {near for day in rebuilt for near in around(day, reach)}
    newest = touched(nights, reach, arrivals(silver.where(sf.col("day").isin(sorted(near))), nights))
    as_of = as_of_days(newest, rebuilt)
    seen = visible(spark, silver, looks(as_of, reach, days.last), settings)
    events = attributed(with_neighbours(narrow(seen, settings)), settings).persist()
    try:
        for table, frame in (
            ("gold.candidate_sets", candidate_sets(seen)),
            ("gold.unattributed", unattributed(events, reach)),
            ("gold.transitions", transitions(events, settings)),
        ):
            lake.replace_frame(table, frame, step.name, [*days], inputs, gone | as_of.keys(), versions[table], settings.rules(step.name))
    finally:
        events.unpersist()


def arrivals(interactions: DataFrame, days: Iterable[date]) -> list[tuple[date, date]]:
    """Pairs (event day, arrival day) of the rows that arrived on `days`."""
    arrived = interactions.where(sf.col("arrival_day").isin(sorted(days)))
    return [(row["day"], row["arrival_day"]) for row in arrived.select("day", "arrival_day").distinct().collect()]


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


def visible(spark: SparkSession, interactions: DataFrame, looks: list[Look], settings: Settings) -> DataFrame:
    """Rows that each look shows, with its `cut` and `as_of_day`, `is_step`, and the items that could have been chosen, sorted."""
    look = spark.createDataFrame([(look.day, look.cut, look.as_of_day) for look in looks], "day date, cut date, as_of_day date")
    items = sf.array_sort(sf.array_distinct(sf.array_compact("candidates")))
    return (
        interactions.where(sf.col("day").isin(sorted({look.day for look in looks})))
        .join(sf.broadcast(look), on="day", how="inner")
        .where(sf.col("arrival_day") <= sf.col("cut"))
        .withColumn("is_step", sf.col("event_type").isin(*settings.step_types))
        .withColumn("items", sf.when(sf.col("is_step") & (sf.size(items) > 0), items))
    )


def candidate_sets(visible: DataFrame) -> DataFrame:
    """The distinct candidate sets of each day: `candidate_set`, `items`, `day`."""
    return (
        visible.where(sf.col("as_of_day").isNotNull() & sf.col("items").isNotNull())
        .groupBy("day", _candidate_set().alias("candidate_set"))
        .agg(sf.any_value("items").alias("items"))
        .repartition("day")
        .sortWithinPartitions("day", "candidate_set")
    )


def narrow(visible: DataFrame, settings: Settings) -> DataFrame:
    """Visible rows without what no transition needs, each with its own `reward` (a decimal), clustered by user."""
    value = sf.when(sf.abs("value") < 1e22, sf.col("value")).otherwise(sf.lit(0.0))
    reward = sf.lit(0).cast("decimal(28,6)")
    for name, event_type in settings.event_types.items():
        reward = sf.when(sf.col("event_type") == name, sf.expr(AMOUNT.format(reward_sql(event_type.reward)))).otherwise(reward)
    return (
        visible.withColumn("value", value)
        .select(
            *("cut", "as_of_day", "day", "user_id", "event_time", "position", "event_id", "item_id", "event_type", "request_id", "propensity", "is_step"),
            reward.alias("reward"),
            _candidate_set().alias("candidate_set"),
        )
        # Every window below then finds a user's rows in one place: this is the one shuffle but for the writer's.
        .repartition(*USER)
    )


def with_neighbours(events: DataFrame) -> DataFrame:
    """Add `previous_time` and `next_time`, the times of the user's steps before and after a step."""
    order = Window.partitionBy(*USER, "is_step").orderBy(*STEP_ORDER)
    return events.select(
        "*",
        sf.when(sf.col("is_step"), sf.lag("event_time").over(order)).alias("previous_time"),
        sf.when(sf.col("is_step"), sf.lead("event_time").over(order)).alias("next_time"),
    )


def attributed(events: DataFrame, settings: Settings) -> DataFrame:
    """Add the `step` that each event belongs to (event_id, day, next_time; null = none), and its `latest_step`, whatever its age.

    A step belongs to itself. An answer belongs to the step of the same request, user and item, else to the latest one of the
    user and item; neither lies after the answer, nor more than the maturity of its type before it.
    """
    maturity = sf.lit(0)
    for name, event_type in settings.event_types.items():
        maturity = sf.when(sf.col("event_type") == name, sf.lit(event_type.maturity_days)).otherwise(maturity)
    step = sf.when(sf.col("is_step"), sf.struct("event_id", "day", "next_time"))
    # At the same instant the step comes before its answer.
    order = ("event_time", sf.col("is_step").desc(), "position", "event_id")
    past = (Window.unboundedPreceding, Window.currentRow)
    by_item = sf.last(step, ignorenulls=True).over(Window.partitionBy(*USER, "item_id").orderBy(*order).rowsBetween(*past))
    by_request = sf.last(step, ignorenulls=True).over(Window.partitionBy(*USER, "item_id", "request_id").orderBy(*order).rowsBetween(*past))

    def in_time(step: str) -> Column:
        return sf.when(sf.date_diff("day", sf.col(step)["day"]) <= maturity, sf.col(step))

    return (
        events.withColumn("latest_step", by_item)
        .withColumn("step_of_request", sf.when(sf.col("request_id").isNotNull(), by_request))
        .withColumn("step", sf.when(sf.col("is_step"), step).otherwise(sf.coalesce(in_time("step_of_request"), in_time("latest_step"))))
        .drop("step_of_request")
    )


def unattributed(events: DataFrame, reach: int) -> DataFrame:
    """Rewarded answers that belong to no step, with a reason of `jobs.contracts.rewards.UNATTRIBUTED_REASONS`."""
    # Further back than `reach` lies what a run over more days would see and a run over fewer would not.
    too_late = sf.coalesce(sf.date_diff("day", sf.col("latest_step")["day"]) <= reach, sf.lit(False))
    return (
        events.where(sf.col("as_of_day").isNotNull() & sf.col("step").isNull() & (sf.col("reward") != 0))
        .withColumn("reason", sf.when(too_late, "too_late").otherwise("no_step"))
        .repartition("day")
        .sortWithinPartitions("day", "user_id", "event_time", "event_id")
        .select("event_id", "user_id", "item_id", "event_type", "reward", "reason", "as_of_day", "day")
    )


def transitions(events: DataFrame, settings: Settings) -> DataFrame:
    """One row a step of the days to rebuild, as `gold.transitions` has them."""
    of_step = Window.partitionBy(*USER, sf.col("step")["event_id"])
    next_time = sf.col("step")["next_time"]
    in_state = ~sf.col("is_step") & (next_time.isNull() | (sf.col("event_time") < next_time))
    weight = sf.when(in_state, sf.struct("reward", "event_time", "event_id"))
    pause = sf.unix_micros("event_time") - sf.unix_micros("previous_time")
    return (
        events.where(sf.col("step").isNotNull())
        .withColumn("response", sf.max_by("event_type", weight).over(of_step))
        .withColumn("reward", sf.sum("reward").over(of_step))
        .where(sf.col("is_step") & sf.col("as_of_day").isNotNull())
        .withColumn("first", sf.coalesce(pause > _gap_micros(settings), sf.lit(True)))
        .withColumn("end", _end(settings))
        .withColumn("bucket", sf.pmod(sf.xxhash64("user_id"), sf.lit(settings.episodes.buckets)))
        .repartition("day")
        .sortWithinPartitions("day", "bucket", "user_id", *STEP_ORDER)
        .select(
            *("user_id", "event_time", "position", "event_id", "item_id", "event_type", "response", "reward"),
            *("first", "end", "propensity", "candidate_set", "bucket", "as_of_day", "day"),
        )
    )


def _end(settings: Settings) -> Column:
    """Why the episode ends at a step, as far as the log can know: it never says `terminated`, as no event of the log does."""
    gap = _gap_micros(settings)
    time = sf.unix_micros("event_time")
    known_until = sf.unix_micros(sf.date_add("as_of_day", 1).cast("timestamp"))
    return (
        sf.when(sf.date_add("day", maturity_days(settings)) > sf.col("as_of_day"), "immature")
        .when(sf.unix_micros("next_time") - time <= gap, sf.lit(None))
        .when(time + gap < known_until, "truncated_gap")
        .otherwise("truncated_window")
    )


def _gap_micros(settings: Settings) -> int:
    return round(settings.episodes.gap_hours * 3_600_000_000)


def _candidate_set() -> Column:
    return sf.md5(sf.to_json("items"))
