"""The data files of the tables: Parquet, written where the rows are made, be that a task of Spark, and committed afterwards."""

from __future__ import annotations

import itertools
import json
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake.transaction import AddAction

from jobs.contracts.tables import Column, Table
from jobs.schemas import arrow_schema, encoding_of
from jobs.storage import SCHEME, Location, S3Path, filesystem

if TYPE_CHECKING:
    import pyarrow.fs as pafs

_GROUP_ROWS = 1 << 20  # of a row group, at most


@dataclass(frozen=True)
class DataFile:
    """One Parquet file of a version of a table. It never changes: a table does by other files."""

    path: str  # below the folder of the table
    partition: dict[str, str]  # value of each partition column, as the contract would write it
    rows: int
    bytes: int

    def read(self, folder: Location, schema: pa.Schema, columns: Sequence[str]) -> pa.Table:
        """Some columns, in the order of the rows, decoded by the calling thread alone; texts as dictionaries.

        `folder` and `schema` are the table's. A column that it got after the file was written is null; partition columns are not in a file.
        """
        import pyarrow.parquet as pq

        texts = [name for name in columns if schema.field(name).type == pa.string()]
        files, (path,) = opened([f"{folder}/{self.path}"], folder)
        with files.open_input_file(path) as source:

            def decoded(dictionaries: Sequence[str]) -> pa.Table:
                # 114 ns a row of gold.transitions, 150 by read_table(), whose every call makes a dataset; and a dataset's scanner waits for threads.
                remote = isinstance(folder, S3Path)
                with pq.ParquetFile(source, read_dictionary=dictionaries, coerce_int96_timestamp_unit="us", pre_buffer=remote) as parquet:
                    return parquet.read(list(columns), use_threads=False)

            try:
                rows = decoded(texts)
            except KeyError:  # a text that the file has not
                there = pq.read_schema(source).names
                rows = decoded([name for name in texts if name in there])
        for name in {*columns} - {*rows.column_names}:
            rows = rows.append_column(name, pa.nulls(rows.num_rows, pa.dictionary(pa.int32(), pa.string()) if name in texts else schema.field(name).type))
        return rows.select(list(columns))


@dataclass(frozen=True)
class FileWriter:
    """Writes files of a table that no version of it has yet: `Lake.replace_by_files` makes them its own, all at once."""

    folder: Location
    contract: Table
    columns: tuple[Column, ...]

    def write(self, tables: Iterable[pa.Table]) -> Iterator[str]:
        """Write rows that come in the order of the partitions, a file for each of these, and yield what the log has to say of it.

        Texts may come as dictionaries. There may be other columns. Raises OSError when the disk, or the store, refuses.
        """
        names = self.contract.partition_by
        parts = (part for rows in tables for part in runs(rows, names))
        for partition, of_partition in itertools.groupby(parts, key=lambda part: {name: str(part[name][0]) for name in names}):
            yield self._file(partition, of_partition)

    def _file(self, partition: dict[str, str], tables: Iterable[pa.Table]) -> str:
        import pyarrow.parquet as pq

        path = "/".join([*(f"{name}={value}" for name, value in partition.items()), f"part-{uuid.uuid4()}.zstd.parquet"])
        files, (place,) = opened([str(self.folder / path)], self.folder)
        if not isinstance(self.folder, S3Path):
            Path(place).parent.mkdir(parents=True, exist_ok=True)
        encoding = encoding_of(self.contract, self.columns)
        groups = _in_groups(map(self._as_written, tables))
        first = next(groups)
        statistics = _Statistics(encoding.extremes)
        with (
            files.open_output_stream(place) as sink,
            pq.ParquetWriter(
                sink,
                first.schema,
                compression="zstd",
                use_dictionary=encoding.dictionaries,
                column_encoding=dict.fromkeys(encoding.differences, "DELTA_BINARY_PACKED"),
                write_statistics=encoding.extremes,
                store_schema=False,
            ) as parquet,
        ):
            for group in itertools.chain([first], groups):
                parquet.write_table(group, _GROUP_ROWS)
                statistics.add(group)
        size = files.get_file_info(place).size
        changed = int(time.time() * 1000)
        return json.dumps(
            {"path": path, "size": size, "partition_values": partition, "modification_time": changed, "data_change": True, "stats": statistics.as_json()}
        )

    def _as_written(self, rows: pa.Table) -> pa.Table:
        schema = arrow_schema(column for column in self.columns if column.name not in self.contract.partition_by)
        rows = rows.select(schema.names)
        fields = [field.with_type(there.type) if pa.types.is_dictionary(there.type) else field for there, field in zip(rows.schema, schema, strict=True)]
        return rows.cast(pa.schema(fields))


def added(file: str) -> AddAction:
    """A file as the log takes it, from what its writer told."""
    return AddAction(**json.loads(file))


def opened(uris: Iterable[str], folder: Location) -> tuple[pafs.FileSystem, list[str]]:
    """What reads and writes files in a folder, or below, and what it calls them."""
    import pyarrow.fs as pafs

    return filesystem(folder.s3) if isinstance(folder, S3Path) else pafs.LocalFileSystem(), [uri.removeprefix(SCHEME) for uri in uris]


class _Statistics:
    """What the log says of the rows of a file: how many there are, and the extremes of the columns by which readers leave files out."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._rows = 0
        self._nulls = dict.fromkeys(columns, 0)
        self._least: dict[str, Any] = {}
        self._most: dict[str, Any] = {}

    def add(self, rows: pa.Table) -> None:
        self._rows += rows.num_rows
        for name in self._nulls.keys() & {*rows.column_names}:
            column = rows[name]
            self._nulls[name] += column.null_count
            if pa.types.is_dictionary(column.type):
                column = column.cast(column.type.value_type)
            extremes = pc.min_max(column).as_py()
            if extremes["min"] is not None:
                self._least[name] = min(extremes["min"], self._least.get(name, extremes["min"]))
                self._most[name] = max(extremes["max"], self._most.get(name, extremes["max"]))

    def as_json(self) -> str:
        return json.dumps({"numRecords": self._rows, "minValues": self._least, "maxValues": self._most, "nullCount": self._nulls}, default=str)


def _in_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The rows of at least one table, in as few tables of a row group as they fit in."""
    waiting: list[pa.Table] = []
    for rows in tables:
        if waiting and sum(map(len, waiting)) + len(rows) > _GROUP_ROWS:
            yield pa.concat_tables(waiting).unify_dictionaries()
            waiting = []
        waiting.append(rows)
    yield pa.concat_tables(waiting).unify_dictionaries()


def runs(rows: pa.Table, names: Iterable[str]) -> Iterator[pa.Table]:
    """The rows, cut where one of these columns changes."""
    if not rows.num_rows:
        return
    differs = np.zeros(rows.num_rows - 1, dtype=np.bool_)
    for column in (rows[name].to_numpy() for name in names):
        differs |= column[1:] != column[:-1]
    edges = [0, *(np.flatnonzero(differs) + 1).tolist(), rows.num_rows]
    yield from (rows[begin:end] for begin, end in itertools.pairwise(edges))
