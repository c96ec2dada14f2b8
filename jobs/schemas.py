"""Contracts as schemas of Arrow and Delta: what a table looks like, how its files are written, and how one that is there differs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from deltalake import ColumnProperties, Field, WriterProperties

from jobs.contracts.tables import Column, Table

_SKIPPED_BY = ("arrival_day", "event_day", "valid_from", "as_of_day", "bucket", "user_id")
# What has few values is written once and then referred to. For what has many, to find that out would cost as much as to write it.
_DICTIONARIES = ("event_type", "policy_id", "source_file", "feed", "reason", "response", "end", "policy_version")
_DICTIONARY_TYPES = ("date", "int")
# By what each differs from the one before: less to compress than if they were written out.
_DIFFERENCE_TYPES = ("bigint", "timestamp")
_ARROW = {
    "string": pa.string(),
    "bigint": pa.int64(),
    "int": pa.int32(),
    "float": pa.float32(),
    "double": pa.float64(),
    "boolean": pa.bool_(),
    "binary": pa.binary(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us", tz="UTC"),
    "decimal(38,0)": pa.decimal128(38, 0),
    "decimal(38,6)": pa.decimal128(38, 6),
    "array<bigint>": pa.list_(pa.int64()),
    "array<string>": pa.list_(pa.string()),
    "map<string,bigint>": pa.map_(pa.string(), pa.int64()),
    "map<string,string>": pa.map_(pa.string(), pa.string()),
    "map<string,array<float>>": pa.map_(pa.string(), pa.list_(pa.float32())),
}


@dataclass(frozen=True)
class Difference:
    """A column of a table that is not as its contract has it: its type there, and that of the contract (null = no such column)."""

    table: str
    column: str
    there: str | None
    expected: str | None
    harmless: bool  # null, where there is nothing, is what the contract allows

    def __str__(self) -> str:
        if self.there is None:
            return f"{self.column}: expected {self.expected}, and there is no such column"
        return f"{self.column}: expected {self.expected or 'no such column'}, got {self.there}"


def arrow_schema(columns: Iterable[Column]) -> pa.Schema:
    """Arrow schema of the columns."""
    return pa.schema([pa.field(column.name, _ARROW[column.type], column.nullable) for column in columns])


def skipped_by(contract: Table) -> list[str]:
    """Columns by whose extremes readers leave files out. Statistics of all columns would cost more than a small day itself."""
    names = [column.name for column in contract.columns if column.name not in contract.partition_by]
    return [name for name in names if name in _SKIPPED_BY] or names[:1]


@dataclass(frozen=True)
class Encoding:
    """How the files of a table are written: which columns with a dictionary, which by differences, and of which the extremes are told."""

    dictionaries: list[str]
    differences: list[str]
    extremes: list[str]


def encoding_of(contract: Table, columns: Iterable[Column]) -> Encoding:
    """How the files of a table are written. The extremes of a column by which nobody skips would cost more than they give."""
    # The few users of a day and bucket have many rows each there: that reads a fifth faster.
    names = (*_DICTIONARIES, "user_id") if "bucket" in contract.partition_by else _DICTIONARIES
    written = [column for column in columns if column.name not in contract.partition_by]
    return Encoding(
        [column.name for column in written if column.name in names or column.type in _DICTIONARY_TYPES],
        [column.name for column in written if column.type in _DIFFERENCE_TYPES],
        skipped_by(contract),
    )


def writer_properties(contract: Table, columns: Iterable[Column]) -> WriterProperties:
    """The same for deltalake's writer."""
    columns = [*columns]
    encoding = encoding_of(contract, columns)
    return WriterProperties(
        compression="ZSTD",
        default_column_properties=ColumnProperties(dictionary_enabled=False, statistics_enabled="NONE"),
        column_properties={
            column.name: ColumnProperties(
                dictionary_enabled=column.name in encoding.dictionaries,
                statistics_enabled="CHUNK" if column.name in encoding.extremes else "NONE",
                encoding="DELTA_BINARY_PACKED" if column.name in encoding.differences else None,
            )
            for column in columns
        },
    )


def differences_of(table: str, columns: Iterable[Column], fields: Iterable[Field]) -> list[Difference]:
    """How the fields of a table's log differ from the columns of its contract."""
    there = {field.name: field for field in fields}
    expected = {column.name: column for column in columns}
    found = []
    for name in dict.fromkeys((*expected, *there)):
        before = _spelled(json.loads(there[name].type.to_json())) if name in there else None
        after = expected[name].type if name in expected else None
        if before != after:
            harmless = (before is None and expected[name].nullable) or (after is None and there[name].nullable)
            found.append(Difference(table, name, before, after, harmless))
    return found


def _spelled(delta_type: str | dict[str, Any]) -> str:
    """A type of Delta's log as contracts spell it."""
    if isinstance(delta_type, str):
        return {"long": "bigint", "integer": "int"}.get(delta_type, delta_type.replace(" ", ""))
    if delta_type["type"] == "array":
        return f"array<{_spelled(delta_type['elementType'])}>"
    if delta_type["type"] == "map":
        return f"map<{_spelled(delta_type['keyType'])},{_spelled(delta_type['valueType'])}>"
    return str(delta_type)
