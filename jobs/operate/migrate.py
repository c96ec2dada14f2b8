"""What has to happen to tables that an older contract made, and its doing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
from rich.console import Console
from rich.table import Table

from jobs.contracts.errors import ContractBroken
from jobs.contracts.migrations import MIGRATIONS, Migration
from jobs.database import database, tables_of
from jobs.lake import Lake, insist
from jobs.schemas import Difference
from jobs.settings import Settings
from jobs.steps import STEPS


def print_migration(lake: Lake) -> None:
    """Print every column that is not as its contract has it, and what `migrate` does about it."""
    differences = _differences(lake)
    console = Console(width=130, highlight=False)
    if not differences:
        console.print("Every table is as its contract has it.")
        return
    page = Table(box=None, title=f"{lake.root}: {len(differences)} columns are not as their contracts have them", title_justify="left")
    for heading in ("table", "column", "there", "contract", "what is done"):
        page.add_column(heading)
    for one in differences:
        page.add_row(one.table, one.column, one.there or "none", one.expected or "none", _remedy(one))
    console.print(page)
    if any(one.expected for one in differences):
        console.print("`nightjar migrate --apply` does it; columns are added with the next write, too.")


def migrate(lake: Lake, settings: Settings) -> None:
    """Do what the contracts need, each table in one commit. Raises ContractBroken, before anything is done, when something can't be."""
    differences = _differences(lake)
    refused = [one for one in differences if not one.harmless and _migration(one) is None]
    if refused:
        raise ContractBroken("\n".join(["Nothing was changed.", *(f"  {one.table}.{one}. {_remedy(one)}." for one in refused)]))
    lake.require_writable([])
    with database(settings.duckdb) as duck:
        for table in dict.fromkeys(one.table for one in differences):
            insist(partial(_migrate, lake, duck, table))


def _migrate(lake: Lake, duck: duckdb.DuckDBPyConnection, table: str) -> None:
    def changed(rows: ds.Dataset, differences: Sequence[Difference]) -> Iterator[pa.Table]:
        duck.register("older", rows)
        values = {name: f'"{name}"' for name in rows.schema.names}
        values |= {one.column: migration.value for one in differences if (migration := _migration(one))}
        columns = ", ".join(f'{values.get(column.name, "null")} as "{column.name}"' for column in lake.columns(table))
        yield from tables_of(duck.sql(f"select {columns} from older"))

    if any(map(_migration, lake.differences(table))):
        lake.rewrite(table, changed)
    else:
        lake.add_columns(table)


def _differences(lake: Lake) -> list[Difference]:
    return [difference for step in STEPS for table in step.writes for difference in lake.differences(table)]


def _migration(difference: Difference) -> Migration | None:
    of_column = (one for one in MIGRATIONS if (one.table, one.column, one.before) == (difference.table, difference.column, difference.there))
    return next(of_column, None)


def _remedy(difference: Difference) -> str:
    if migration := _migration(difference):
        return f"rewritten: {migration.value}"
    if difference.harmless:
        return "added, null in the rows there are" if difference.there is None else "left, null in rows to come"
    return "refused: declare a migration in jobs/contracts/migrations.py, or make the days in a new lake"
