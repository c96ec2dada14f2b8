"""The audit: every check of `sql/checks/` over the lists of a day and what they were made of. It fails closed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import date
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from jobs.contracts.days import DayRange
from jobs.contracts.errors import AuditFailed
from jobs.lake import Lake
from jobs.settings import Settings
from jobs.steps import find_step
from sql import checks

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

SAMPLE_ROWS = 5


def run(spark: SparkSession, lake: Lake, settings: Settings, days: DayRange) -> None:
    """Run every check over each day and write what was found to gold.audits.

    Raises NotReady when a day has no lists, AuditFailed when a row breaks a check; what was found is written all the same.
    """
    step = find_step("audit")
    lake.require("gold.recommendations", days)
    inputs = lake.versions(step.reads)
    for table, version in inputs.items():
        lake.frame(spark, table, version).createOrReplaceTempView(view_name(table))
    found = [finding(spark, name, query, day, settings) for day in days for name, query in checks().items()]
    lake.replace("gold.audits", pa.Table.from_pylist(found, lake.schema("gold.audits")), step.name, list(days), inputs)
    refuse(found)


def finding(spark: SparkSession, name: str, query: str, day: date, settings: Settings) -> dict[str, Any]:
    """One row of gold.audits: how many rows break the check on the day, and some of them."""
    offending = spark.sql(query, named_arguments(query, day, settings))
    count = offending.count()
    return {"check": name, "offending": count, "sample": sample(offending) if count else [], "day": day}


def named_arguments(query: str, day: date, settings: Settings) -> dict[str, Any]:
    """The parameters of a check, of which Spark wants those that it names and no others."""
    values = {"day": day, "active_days": settings.score.active_days, "top_n": settings.score.top_n, "step_types": list(settings.step_types)}
    return {name: value for name, value in values.items() if f":{name}" in query}


def sample(offending: DataFrame) -> list[str]:
    """Some of the rows, as JSON; the same ones each time."""
    rows = offending.selectExpr("to_json(struct(*)) as row").orderBy("row").limit(SAMPLE_ROWS)
    return [row["row"] for row in rows.collect()]


def refuse(found: Collection[Mapping[str, Any]]) -> None:
    """Raise AuditFailed, which lists each broken check with some of its rows, if there is one."""
    broken = [row for row in found if row["offending"]]
    if broken:
        lines = [f"  {row['day']} {row['check']}: {row['offending']:,} rows, for example {row['sample'][0]}" for row in broken]
        advice = "Nothing is published. Mend what made these rows (gold.audits holds more of them), run its step again, then audit."
        raise AuditFailed("\n".join([f"{len(broken)} of {len(found)} checks found rows that break them:", *lines, advice]))


def view_name(table: str) -> str:
    """What the checks call a table: `gold.recommendations` is `gold_recommendations`."""
    return table.replace(".", "_")
