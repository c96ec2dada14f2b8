"""The audit: every check of `sql/checks/` over the lists of a day and what they were made of. It fails closed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import date
from functools import reduce
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyspark.sql import functions as sf

from jobs.contracts.days import DayRange
from jobs.contracts.errors import AuditFailed
from jobs.lake import Lake
from jobs.settings import Settings
from jobs.steps import find_step
from sql import checks

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def run(spark: SparkSession, lake: Lake, settings: Settings, days: DayRange) -> None:
    """Run every check over each day and write what was found to gold.audits.

    Raises NotReady when a day has no lists, AuditFailed when a row breaks a check; what was found is written all the same.
    """
    step = find_step("audit")
    lake.require("gold.recommendations", days)
    inputs = lake.versions(step.reads)
    for table, version in inputs.items():
        lake.frame(spark, table, version).createOrReplaceTempView(view_name(table))
    found = [row for day in days for row in findings(spark, checks(), day, settings)]
    lake.replace("gold.audits", pa.Table.from_pylist(found, lake.schema("gold.audits")), step.name, list(days), inputs)
    refuse(found)


def findings(spark: SparkSession, queries: Mapping[str, str], day: date, settings: Settings) -> list[dict[str, Any]]:
    """Rows of gold.audits for one day: how many rows break each check, and one of them. All checks are one Spark job."""
    frames = [
        spark.sql(query, named_arguments(query, day, settings)).select(sf.lit(name).alias("check"), sf.to_json(sf.struct("*")).alias("row"))
        for name, query in queries.items()
    ]
    counted = reduce(lambda left, right: left.unionByName(right), frames).groupBy("check").agg(sf.count("*").alias("offending"), sf.min("row").alias("row"))
    broken = {row["check"]: row for row in counted.collect()}
    return [
        {"check": name, "offending": broken[name]["offending"], "sample": [broken[name]["row"]], "day": day}
        if name in broken
        else {"check": name, "offending": 0, "sample": [], "day": day}
        for name in queries
    ]


def named_arguments(query: str, day: date, settings: Settings) -> dict[str, Any]:
    """The parameters of a check, of which Spark wants those that it names and no others."""
    values = {"day": day, "active_days": settings.score.active_days, "top_n": settings.score.top_n, "step_types": list(settings.step_types)}
    return {name: value for name, value in values.items() if f":{name}" in query}


def refuse(found: Collection[Mapping[str, Any]]) -> None:
    """Raise AuditFailed, which lists each broken check with some of its rows, if there is one."""
    broken = [row for row in found if row["offending"]]
    if broken:
        lines = [f"  {row['day']} {row['check']}: {row['offending']:,} rows, for example {row['sample'][0]}" for row in broken]
        advice = "Nothing is published. Mend what made these rows run its step again, then audit."
        raise AuditFailed("\n".join([f"{len(broken)} of {len(found)} checks found rows that break them:", *lines, advice]))


def view_name(table: str) -> str:
    """What the checks call a table: `gold.recommendations` is `gold_recommendations`."""
    return table.replace(".", "_")
