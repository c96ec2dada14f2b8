"""How rows of an older contract become rows of the present one, where that needs to be said: a new nullable column needs nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Migration:
    """Of a column of a table: its type before (null = the table had no such column), and its value, as DuckDB's SQL over an older row."""

    table: str
    column: str
    before: str | None
    value: str


MIGRATIONS = (Migration("bronze.quarantine", "line", "string", "encode(line)"),)
