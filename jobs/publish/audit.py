"""The audit: every check of `sql/checks/` over the lists of a day and what they were made of. It fails closed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from typing import Any

import duckdb
import pyarrow as pa

from jobs.contracts.days import DayRange
from jobs.contracts.errors import AuditFailed
from jobs.contracts.rewards import micros_sql
from jobs.database import database
from jobs.lake import Lake
from jobs.settings import Settings
from jobs.steps import find_step
from sql import checks


def run(lake: Lake, settings: Settings, days: DayRange) -> None:
    """Run every check over each day and write what was found to gold.audits.

    Raises NotReady when a table or a day's lists are missing, AuditFailed when a row breaks a check; what was found is
    written all the same.
    """
    step = find_step("audit")
    lake.require("gold.recommendations", days)
    inputs = {table: lake.version(table) for table in step.reads}
    with opened(lake, inputs, settings) as duck:
        found = [row for day in days for row in findings(duck, checks(), day, settings)]
    lake.replace("gold.audits", pa.Table.from_pylist(found, lake.schema("gold.audits")), step.name, list(days), inputs)
    refuse(found)


@contextmanager
def opened(lake: Lake, versions: Mapping[str, int], settings: Settings) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database that sees the given versions of some tables as views, `gold.recommendations` as `gold_recommendations`, and knows `reward_micros`."""
    with database(settings.duckdb) as duck:
        for table, version in versions.items():
            duck.register(table.replace(".", "_"), lake.dataset(table, version))
        worth = micros_sql({name: event_type.reward for name, event_type in settings.event_types.items()})
        duck.execute(f"create temp macro reward_micros(event_type, value) as {worth}")
        yield duck


def findings(duck: duckdb.DuckDBPyConnection, queries: Mapping[str, str], day: date, settings: Settings) -> list[dict[str, Any]]:
    """Rows of gold.audits for one day: how many rows break each check, and one of them."""
    rows = []
    for name, query in queries.items():
        counted = f"select count(*), min(to_json(broken)::varchar) from ({query}) as broken"
        offending, sample = duck.execute(counted, named_arguments(query, day, settings)).fetchall()[0]
        rows.append({"check": name, "offending": offending, "sample": [sample] if offending else [], "day": day})
    return rows


def named_arguments(query: str, day: date, settings: Settings) -> dict[str, Any]:
    """The parameters of a check, of which DuckDB wants those that it names and no others."""
    values = {"day": day, "active_days": settings.score.active_days, "top_n": settings.score.top_n, "step_types": list(settings.step_types)}
    return {name: value for name, value in values.items() if f"${name}" in query}


def refuse(found: Collection[Mapping[str, Any]]) -> None:
    """Raise AuditFailed, which lists each broken check with one of its rows, if there is one."""
    broken = [row for row in found if row["offending"]]
    if broken:
        lines = [f"  {row['day']} {row['check']}: {row['offending']:,} rows, for example {row['sample'][0]}" for row in broken]
        advice = "Nothing is published. Mend what made these rows, run its step again, then audit."
        raise AuditFailed("\n".join([f"{len(broken)} of {len(found)} checks found rows that break them:", *lines, advice]))
