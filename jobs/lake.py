"""The lake: Delta tables below one folder. The only module that touches storage.

What needs no JVM goes through deltalake and pyarrow; Spark frames go through Spark, whose packages are imported only then.
Every write is one atomic commit that replaces whole days, and carries in its log entry which step made which days from
which versions of which tables: that entry is what `commits` and `done` read.

Nobody holds a lock. A write that another one has overtaken raises ConcurrentWrite and leaves nothing; `insist` then does the
step again, from what is there by then. Runs of other days don't meet.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from deltalake import ColumnProperties, CommitProperties, DeltaTable, WriterProperties, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from jobs.contracts.errors import ConcurrentWrite, ContractBroken, LakeUnwritable, NotReady
from jobs.contracts.features import declared
from jobs.contracts.tables import TABLES, Column, Table

if TYPE_CHECKING:
    import pyarrow.dataset as ds
    from pyspark.sql import DataFrame, SparkSession

_ATTEMPTS = 10
_RECORD = "userMetadata"  # the key under which Spark keeps a writer's note in the log; deltalake writes the same one
_TABLE_PROPERTIES = {
    "delta.enableDeletionVectors": "false",  # readers without a JVM take files as they are
    "delta.logRetentionDuration": "interval 3650 days",  # the log is the record of what is done
}
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
    "double": pa.float64(),
    "boolean": pa.bool_(),
    "binary": pa.binary(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us", tz="UTC"),
    "decimal(38,6)": pa.decimal128(38, 6),
    "array<string>": pa.list_(pa.string()),
    "map<string,bigint>": pa.map_(pa.string(), pa.int64()),
    "map<string,string>": pa.map_(pa.string(), pa.string()),
    "map<string,array<float>>": pa.map_(pa.string(), pa.list_(pa.float32())),
}


@dataclass(frozen=True)
class Commit:
    """What one commit of a table records: its version, the step, the days it made, and the versions of what was read."""

    version: int
    step: str
    days: frozenset[date]
    inputs: Mapping[str, int]
    revision: str
    fingerprint: str = ""


@dataclass(frozen=True)
class Lake:
    """The tables below `root`, made for logs whose event types are `event_types`."""

    root: Path
    event_types: tuple[str, ...]

    def path(self, table: str) -> str:
        """Folder of a table: `gold.transitions` lies in `gold/transitions`."""
        return str(self.root.joinpath(*_contract(table).name.split(".")))

    def columns(self, table: str) -> tuple[Column, ...]:
        """Columns of a table, its declared features included."""
        contract = _contract(table)
        if not contract.has_features:
            return contract.columns
        return contract.columns + tuple(Column(feature.name, "double", feature.__doc__ or "") for feature in declared(self.event_types))

    def schema(self, table: str) -> pa.Schema:
        """Arrow schema of a table."""
        return pa.schema([pa.field(column.name, _ARROW[column.type], column.nullable) for column in self.columns(table)])

    def exists(self, table: str) -> bool:
        """Whether the table has been made."""
        return DeltaTable.is_deltatable(self.path(table))

    def version(self, table: str) -> int:
        """Newest version of a table. Raises NotReady when there is none."""
        return self._open(table, None).version()

    def versions(self, tables: Iterable[str]) -> dict[str, int]:
        """Newest version of each table that exists: what a step records as its inputs."""
        return {table: self.version(table) for table in tables if self.exists(table)}

    def commits(self, table: str) -> list[Commit]:
        """Commits that replaced days of a table, oldest first."""
        if not self.exists(table):
            return []
        commits = []
        for entry in self._open(table, None).history():
            if _RECORD not in entry:
                continue
            record = json.loads(entry[_RECORD])
            days = frozenset(date.fromisoformat(day) for day in record["days"])
            commits.append(Commit(entry["version"], record["step"], days, record["inputs"], record["revision"], record.get("fingerprint", "")))
        return sorted(commits, key=lambda commit: commit.version)

    def done(self, table: str) -> frozenset[date]:
        """Days that some commit of the table has made, days without a row included."""
        return frozenset().union(*(commit.days for commit in self.commits(table)))

    def filled(self, table: str) -> frozenset[date]:
        """Days of which the table has a row; of a table without partitions, all that were made."""
        partition_by = _contract(table).partition_by
        if partition_by is None or not self.exists(table):
            return self.done(table)
        return frozenset(date.fromisoformat(str(partition[partition_by])) for partition in self._open(table, None).partitions())

    def require(self, table: str, days: Iterable[date]) -> None:
        """Raise NotReady when some of the days of a table have not been made."""
        missing = sorted(set(days) - self.done(table))
        if missing:
            raise NotReady(f"{table} in {self.root} does not hold {', '.join(map(str, missing))} yet. Run the step that makes it for those days first.")

    def read(
        self,
        table: str,
        columns: Sequence[str] | None = None,
        filter: ds.Expression | None = None,
        version: int | None = None,
    ) -> pa.Table:
        """Read a table without a JVM. Raises NotReady when it does not exist, ContractBroken when a column is missing."""
        return self.dataset(table, version).to_table(columns=list(columns) if columns else None, filter=filter)

    def dataset(self, table: str, version: int | None = None) -> ds.Dataset:
        """A table whose files are read as they are asked for. Raises as `read` does."""
        import pyarrow.dataset as ds  # loads pandas, which most commands can do without

        delta = self._open(table, version)
        self._check(table, delta)
        schema = self.schema(table)
        # Over file_uris and not to_pyarrow_dataset(), which aborts the process at its exit.
        uris = delta.file_uris()
        if not uris:
            return ds.dataset(schema.empty_table())
        partition_by = _contract(table).partition_by
        partitioning = ds.partitioning(pa.schema([schema.field(partition_by)]), flavor="hive") if partition_by else None
        return ds.dataset(uris, schema=schema, format="parquet", partitioning=partitioning, partition_base_dir=self.path(table))

    def replace(
        self,
        table: str,
        rows: pa.Table | Iterable[pa.Table],
        step: str,
        days: Collection[date],
        inputs: Mapping[str, int],
        partitions: Collection[date] | None = None,
        seen: int | None = None,
        fingerprint: str = "",
    ) -> None:
        """Replace days of a table in one commit, recorded as making `days`; `rows` may come table by table, and are written as they come.

        `partitions` are the days replaced where they are more, or others, than those that the run is for. A table without
        partitions is replaced whole. The rows need every column of the contract and may have more. `seen` is the version of the
        table itself that they were made from, if they were; `fingerprint` tells what they were made from that is no table.
        Raises ConcurrentWrite when somebody else has written to the table since `seen`, or these days from newer inputs. `seen`
        has to be read before the versions of the inputs: then these hold all that the table was made from.
        """
        self.ensure(table)
        self._refuse_overtaken(table, days, inputs)
        contract = _contract(table)
        schema = self.schema(table)
        stream = _Stream(schema, [rows] if isinstance(rows, pa.Table) else rows)
        try:
            write_deltalake(
                self._open(table, seen),
                stream.reader(),
                mode="overwrite",
                predicate=_days_in(contract.partition_by, days if partitions is None else partitions) if contract.partition_by else None,
                writer_properties=self._writer(table),
                commit_properties=CommitProperties(
                    custom_metadata={_RECORD: _record(step, days, inputs, fingerprint)},
                    # A commit that finds another one before it is tried after it, if they touch other days. Not where the rows
                    # were made from the table itself: what the other one wrote, on whichever days, could have changed them. Nor
                    # where the table is replaced whole: had it been empty, deltalake would see no conflict.
                    max_commit_retries=None if contract.partition_by and seen is None else 0,
                ),
            )
        except CommitFailedError as error:
            raise self._overtaken(table, days) from error
        except Exception as error:
            if stream.failure:
                raise stream.failure from None
            if refusal := re.search(r"([^:]+) \(os error \d+\)", str(error)):
                raise LakeUnwritable(
                    f"{table} in {self.root} can't be written: {refusal[1].strip()}. It holds what it held before. Mend that, and run the step again."
                ) from error
            raise

    def frame(self, spark: SparkSession, table: str, version: int | None = None) -> DataFrame:
        """A table as a Spark frame. Raises NotReady when it does not exist, ContractBroken when a column is missing."""
        self._check(table, self._open(table, version))
        reader = spark.read.format("delta")
        return (reader if version is None else reader.option("versionAsOf", version)).load(self.path(table))

    def replace_frame(
        self,
        table: str,
        frame: DataFrame,
        step: str,
        days: Collection[date],
        inputs: Mapping[str, int],
        partitions: Collection[date] | None = None,
        seen: int | None = None,
    ) -> None:
        """Replace days of a table by a Spark frame in one commit, recorded as making `days`; the rest is as in `replace`."""
        from delta.exceptions import DeltaConcurrentModificationException

        self.ensure(table)
        self._refuse_overtaken(table, days, inputs)
        contract = _contract(table)
        columns = self.columns(table)
        missing = [column.name for column in columns if column.name not in frame.columns]
        if missing:
            raise ContractBroken(f"Step {step} made no column {', '.join(missing)} for {table}; it made {', '.join(frame.columns)}.")
        writer = (
            frame.selectExpr(*(f"cast(`{column.name}` as {column.type}) as `{column.name}`" for column in columns))
            .write.format("delta")
            .mode("overwrite")
            .option(_RECORD, _record(step, days, inputs))
        )
        if contract.partition_by:
            writer = writer.option("replaceWhere", _days_in(contract.partition_by, days if partitions is None else partitions))
        try:
            writer.save(self.path(table))
        except DeltaConcurrentModificationException as error:
            raise self._overtaken(table, days) from error
        # Spark can't be told which version the rows were made from: whether it was the last one shows afterwards.
        if seen is not None and self.version(table) != seen + 1:
            raise self._overtaken(table, days)

    def require_writable(self, tables: Collection[str]) -> None:
        """Raise LakeUnwritable or, where one of these tables is there without a column of its contract, ContractBroken. Nothing is made."""
        nearest = next(folder for folder in (self.root, *self.root.absolute().parents) if os.path.lexists(folder))
        if not nearest.is_dir() or not os.access(nearest, os.W_OK) or os.statvfs(nearest).f_flag & os.ST_RDONLY:
            raise LakeUnwritable(f"The lake {self.root} can't be written to. Mend its rights, or set `lake` in nightjar.toml, or NIGHTJAR_LAKE.")
        for table in tables:
            if self.exists(table):
                self._check(table, self._open(table, None))

    def ensure(self, table: str) -> None:
        """Create an empty table from its contract when there is none. Raises LakeUnwritable when that can't be done."""
        contract = _contract(table)
        self.require_writable([])
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LakeUnwritable(f"The lake {self.root} can't be made: {error.strerror}. Set `lake` in nightjar.toml, or NIGHTJAR_LAKE.") from error
        try:
            DeltaTable.create(
                self.path(table),
                self.schema(table),
                mode="ignore",
                partition_by=contract.partition_by,
                description=contract.doc,
                configuration={**_TABLE_PROPERTIES, "delta.dataSkippingStatsColumns": ",".join(self._skipped_by(table))},
            )
        except DeltaError:
            if not self.exists(table):  # else somebody was faster
                raise

    def _refuse_overtaken(self, table: str, days: Collection[date], inputs: Mapping[str, int]) -> None:
        if not inputs:
            return
        for commit in self.commits(table):
            if commit.days & {*days} and any(commit.inputs.get(name, -1) > version for name, version in inputs.items()):
                raise self._overtaken(table, days)

    def _overtaken(self, table: str, days: Collection[date]) -> ConcurrentWrite:
        return ConcurrentWrite(
            f"Another run has changed {table} in {self.root} for {_listed(days)} meanwhile. Nothing of this one is in it: run the step again."
        )

    def _open(self, table: str, version: int | None) -> DeltaTable:
        try:
            return DeltaTable(self.path(table), version=version)
        except TableNotFoundError as error:
            raise NotReady(f"There is no table {table} in {self.root} yet. Run the step that makes it: `nightjar status` shows which.") from error

    def _skipped_by(self, table: str) -> list[str]:
        """Columns by whose extremes readers leave files out. Statistics of all columns would cost more than a small day itself."""
        names = [column.name for column in _contract(table).columns if column.name != _contract(table).partition_by]
        return [name for name in names if name in _SKIPPED_BY] or names[:1]

    def _writer(self, table: str) -> WriterProperties:
        """How the files of a table are written. The extremes of a column by which nobody skips would cost more than they give."""
        skipped_by = self._skipped_by(table)
        return WriterProperties(
            compression="ZSTD",
            default_column_properties=ColumnProperties(dictionary_enabled=False, statistics_enabled="NONE"),
            column_properties={
                column.name: ColumnProperties(
                    dictionary_enabled=column.name in _DICTIONARIES or column.type in _DICTIONARY_TYPES,
                    statistics_enabled="CHUNK" if column.name in skipped_by else "NONE",
                    encoding="DELTA_BINARY_PACKED" if column.type in _DIFFERENCE_TYPES else None,
                )
                for column in self.columns(table)
            },
        )

    def _check(self, table: str, delta: DeltaTable) -> None:
        there = {field.name for field in delta.schema().fields}
        missing = [column.name for column in self.columns(table) if column.name not in there]
        if missing:
            raise ContractBroken(
                f"Table {table} in {self.root} has no column {', '.join(missing)}; it has {', '.join(sorted(there))}. "
                "It was made by another version, or with other event types: make it again in a new lake."
            )


class _Stream:
    """Rows that a writer in another language asks for: what goes wrong while they are made is kept, as it can't pass through that writer."""

    def __init__(self, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
        self.failure: Exception | None = None
        self._schema = schema
        self._tables = tables

    def reader(self) -> pa.RecordBatchReader:
        return pa.RecordBatchReader.from_batches(self._schema, self._batches())

    def _batches(self) -> Iterator[pa.RecordBatch]:
        try:
            for table in self._tables:
                yield from table.select(self._schema.names).cast(self._schema).to_batches()
        except Exception as error:
            self.failure = error
            raise


def _contract(table: str) -> Table:
    return TABLES[table]


def _days_in(column: str, days: Collection[date]) -> str:
    """A condition; with no day to replace, the commit still records that the run was made."""
    quoted = ", ".join(f"'{day}'" for day in sorted(days))
    return f"{column} IN ({quoted})" if days else "false"


def _listed(days: Collection[date]) -> str:
    first, *others = sorted(map(str, days)) or ["no day"]
    return f"{first} to {others[-1]}" if others else first


def _record(step: str, days: Collection[date], inputs: Mapping[str, int], fingerprint: str = "") -> str:
    record: dict[str, Any] = {"step": step, "days": [str(day) for day in sorted(days)], "inputs": dict(inputs), "revision": revision()}
    if fingerprint:
        record["fingerprint"] = fingerprint
    return json.dumps(record, sort_keys=True)


def insist(work: Callable[[], None]) -> None:
    """Do `work`, and do it again when another run has overtaken it: several times, then ConcurrentWrite is raised."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            work()
        except ConcurrentWrite:
            if attempt == _ATTEMPTS:
                raise
            time.sleep(random.uniform(0, attempt))  # so that two runs which met do not meet again
        else:
            return


@cache
def revision() -> str:
    """Code revision: `$NIGHTJAR_REVISION` (set in images), else git's, else `unknown`."""
    if "NIGHTJAR_REVISION" in os.environ:
        return os.environ["NIGHTJAR_REVISION"]
    here = Path(__file__).parent
    answer = subprocess.run(["git", "-C", str(here), "describe", "--always", "--dirty"], capture_output=True, text=True)
    return answer.stdout.strip() if answer.returncode == 0 else "unknown"
