"""DuckDB: what types, deduplicates and audits tables without a JVM, in memory that has a limit."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import date

import duckdb
import pyarrow as pa

from jobs.contracts.errors import MachineUnfit
from jobs.settings import DuckDB


@contextmanager
def database(settings: DuckDB) -> Iterator[duckdb.DuckDBPyConnection]:
    """An empty database in UTC that spills to a temporary folder what does not fit into its memory.

    Raises MachineUnfit when neither has room for what is asked of it.
    """
    config: dict[str, str | bool | int | float | list[str]] = {"threads": settings.threads, "memory_limit": settings.memory}
    with tempfile.TemporaryDirectory(prefix="nightjar-") as spill, duckdb.connect(config={**config, "temp_directory": spill}) as connection:
        connection.execute("set timezone = 'UTC'")
        try:
            yield connection
        except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
            raise MachineUnfit(
                f"DuckDB had no room: {str(error).splitlines()[0]} It may use {settings.memory} of memory, and spills to {tempfile.gettempdir()}: "
                "set `memory` of [duckdb], or TMPDIR."
            ) from error


def tables_of(relation: duckdb.DuckDBPyRelation, rows: int = 1 << 17) -> Iterator[pa.Table]:
    """The rows of a query, part by part of about as many rows, as they are found."""
    for batch in relation.to_arrow_reader(rows):
        yield pa.Table.from_batches([batch])


def one_of(column: str, days: Iterable[date]) -> str:
    """A condition that the reader of files understands, and leaves out those of other days."""
    listed = ", ".join(f"date '{day}'" for day in sorted(days))
    return f"{column} in ({listed})" if listed else "false"
