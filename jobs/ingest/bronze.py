"""Landing to bronze: every line of the days is typed, or lies in quarantine with a reason."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import TYPE_CHECKING

from pyspark.sql import Observation
from pyspark.sql import functions as sf

from jobs.contracts.days import DayRange
from jobs.contracts.landing import FEEDS, Feed, Reason
from jobs.ingest.landing import LandingFile, landing_files, read_lines, reading_session
from jobs.ingest.typed import typed
from jobs.lake import Lake
from jobs.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_QUARANTINE = "bronze.quarantine"
_QUARANTINE_ROW = "feed string, reason string, detail string, line string, source_file string, source_line bigint, arrival_day date"


def run(spark: SparkSession, lake: Lake, settings: Settings, days: DayRange) -> None:
    """Write bronze.events, bronze.items, bronze.users and bronze.quarantine for the days, each in one commit.

    Raises EmptyLanding when nothing has arrived up to the last day.
    """
    found = landing_files(settings.landing_path, days)
    session = reading_session(spark)
    bad = [_damaged(session, found)]
    for feed in FEEDS:
        whole = [file for file in found[feed.name] if file.damage is None]
        if whole:
            with_problems = _write_good(session, lake, feed, whole, days)
            if with_problems:
                bad.append(_quarantined(typed(read_lines(session, feed.name, with_problems), feed, lake.event_types), feed))
        else:
            lake.replace(feed.table, lake.schema(feed.table).empty_table(), "bronze", list(days), {})
    lake.replace_frame(_QUARANTINE, reduce(lambda left, right: left.unionByName(right), bad), "bronze", list(days), {})


def _write_good(session: SparkSession, lake: Lake, feed: Feed, files: Sequence[LandingFile], days: DayRange) -> list[LandingFile]:
    """Write the lines without a problem, and return the files that have others: only those are read again."""
    seen = Observation()
    lines = typed(read_lines(session, feed.name, files), feed, lake.event_types)
    observed = lines.observe(seen, sf.collect_set(sf.when(sf.col("problem").isNotNull(), sf.col("source_file"))).alias("files"))
    lake.replace_frame(feed.table, _rows(observed.where("problem IS NULL"), feed), "bronze", list(days), {})
    with_problems = set(seen.get["files"])
    return [file for file in files if file.source_file in with_problems]


def _rows(lines: DataFrame, feed: Feed) -> DataFrame:
    if feed.name != "events":
        return lines
    # The same line delivered twice is the same event.
    event_id = sf.coalesce("event_id", sf.sha2("line", 256))
    return lines.withColumn("event_id", event_id).withColumn("event_day", sf.to_date("event_time"))


def _quarantined(lines: DataFrame, feed: Feed) -> DataFrame:
    badly_encoded = sf.col("problem.reason") == str(Reason.BAD_ENCODING)
    return lines.where("problem IS NOT NULL").select(
        sf.lit(feed.name).alias("feed"),
        "problem.reason",
        "problem.detail",
        sf.when(badly_encoded, sf.decode(sf.col("line").cast("binary"), "ISO-8859-1")).otherwise(sf.col("line")).alias("line"),
        "source_file",
        "source_line",
        "arrival_day",
    )


def _damaged(session: SparkSession, found: dict[str, list[LandingFile]]) -> DataFrame:
    rows = [
        (feed, str(Reason.UNREADABLE_FILE), file.damage, None, file.source_file, 0, file.arrival_day)
        for feed, files in found.items()
        for file in files
        if file.damage is not None
    ]
    return session.createDataFrame(rows, _QUARANTINE_ROW)
