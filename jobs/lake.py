"""The lake: Delta tables below one folder, of this machine or of an object store. The only module that touches tables.

What needs no JVM goes through deltalake and pyarrow. Spark reads tables as frames; what its tasks make they write themselves, as
Parquet by Arrow, and deltalake commits it: Spark's own writer costs as much as all else that a night does, and a second set of
rules for who may commit after whom. Every write is one atomic commit that replaces whole days, and carries in its log entry which
step made which days from which versions of which tables: that entry is what `commits` and `done` read.

Nobody holds a lock. A write that another one has overtaken raises ConcurrentWrite and leaves nothing; `insist` then does the
step again, from what is there by then. Runs of other days don't meet.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Schema, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction

from jobs.commits import Commit, commit_of, record, texts
from jobs.contracts.errors import ConcurrentWrite, ContractBroken, LakeUnwritable, NotReady
from jobs.contracts.features import declared_of
from jobs.contracts.tables import TABLES, Column, Table
from jobs.files import DataFile, FileWriter, added, opened
from jobs.schemas import Difference, arrow_schema, differences_of, skipped_by, writer_properties
from jobs.storage import S3A_SCHEME, SCHEME, Location, S3Path, delta_options, prove_reachable, prove_writable, unreachable
from jobs.streams import Stream

if TYPE_CHECKING:
    import pyarrow.dataset as ds
    from pyspark.sql import DataFrame, SparkSession

_ATTEMPTS = 10
_RECORD = "userMetadata"  # the key under which Spark keeps a writer's note in the log; deltalake writes the same one
_TABLE_PROPERTIES = {
    "delta.enableDeletionVectors": "false",  # readers without a JVM take files as they are
    "delta.logRetentionDuration": "interval 3650 days",  # the log is the record of what is done
}


@dataclass(frozen=True)
class Lake:
    """The tables below `root`, made for logs whose event types are `event_types`."""

    root: Location
    event_types: tuple[str, ...]

    def path(self, table: str) -> str:
        """Folder of a table: `gold.transitions` lies in `gold/transitions`."""
        return str(self._folder(table))

    def columns(self, table: str) -> tuple[Column, ...]:
        """Columns of a table, its declared features included."""
        contract = _contract(table)
        if not contract.has_features:
            return contract.columns
        features = declared_of(contract.grain[0].removesuffix("_id"), self.event_types)
        return contract.columns + tuple(Column(feature.name, feature.type, feature.definition) for feature in features)

    def schema(self, table: str) -> pa.Schema:
        """Arrow schema of a table."""
        return arrow_schema(self.columns(table))

    def exists(self, table: str) -> bool:
        """Whether the table has been made."""
        with self._store():
            return DeltaTable.is_deltatable(self.path(table), self._options())

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
        history = self._open(table, None).history()
        return sorted((commit_of(entry["version"], entry[_RECORD]) for entry in history if _RECORD in entry), key=lambda commit: commit.version)

    def done(self, table: str) -> frozenset[date]:
        """Days that some commit of the table has made, days without a row included."""
        return frozenset().union(*(commit.days for commit in self.commits(table)))

    def filled(self, table: str) -> frozenset[date]:
        """Days of which the table has a row; of a table without partitions, all that were made."""
        column = _contract(table).day_column
        if column is None or not self.exists(table):
            return self.done(table)
        return frozenset(date.fromisoformat(str(partition[column])) for partition in self._open(table, None).partitions())

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
        with self._store():
            return self.dataset(table, version).to_table(columns=list(columns) if columns else None, filter=filter)

    def dataset(self, table: str, version: int | None = None, partitions: Collection[date] | None = None) -> ds.Dataset:
        """A table, or some partitions of it, whose files are read as they are asked for. Raises as `read` does."""
        delta = self._open(table, version)
        self._check(table, delta)
        return self._dataset(table, delta, self.schema(table), partitions)

    def files(self, table: str, version: int | None = None) -> list[DataFile]:
        """The files of a version of a table, by partition and path. Raises as `read` does."""
        delta = self._open(table, version)
        self._check(table, delta)
        columns = _contract(table).partition_by
        actions = pa.table(delta.get_add_actions(flatten=True)).select(["path", "num_records", "size_bytes", *(f"partition.{name}" for name in columns)])
        ordered = actions.sort_by([(name, "ascending") for name in (*actions.column_names[3:], "path")])
        return [
            DataFile(path, {name: str(value) for name, value in zip(columns, partition, strict=True)}, rows, size)
            for path, rows, size, *partition in zip(*(column.to_pylist() for column in ordered.columns), strict=True)
        ]

    def read_file(self, table: str, file: DataFile, columns: Sequence[str]) -> pa.Table:
        """Some columns of one file of a table, as `DataFile.read` does."""
        with self._store():
            return file.read(self._folder(table), self.schema(table), columns)

    def is_whole(self, table: str, version: int, partitions: Collection[date] | None = None) -> bool:
        """Whether a version is of this table, the files of it or of some of its partitions are still there, and they hold what the contract has."""
        if version > self.version(table):
            return False
        delta = self._open(table, version)
        if not all(difference.harmless for difference in differences_of(table, self.columns(table), delta.schema().fields)):
            return False
        files, paths = opened(_places(table, delta, partitions), self.root)
        return all(info.is_file for info in files.get_file_info(paths))

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
        changed: Collection[date] = (),
    ) -> None:
        """Replace days of a table in one commit, recorded as making `days`; `rows` may come table by table, and are written as they come.

        `partitions` are the days replaced where they are more, or others, than those that the run is for. A table without
        partitions is replaced whole. The rows need every column of the contract and may have more. `seen` is the version of the
        table itself that they were made from, if they were; `fingerprint` tells what they were made from that is no table;
        `changed` are days, beside `days`, of which rows come or go, in the sense in which later steps are run for a day.
        Raises ConcurrentWrite when somebody else has written to the table since `seen`, or these days from newer inputs. `seen`
        has to be read before the versions of the inputs: then these hold all that the table was made from.
        """
        self.ensure(table)
        self._refuse_overtaken(table, days, inputs)
        contract = _contract(table)
        schema = self.schema(table)
        replaced = days if partitions is None else partitions
        delta = self._open(table, seen)
        gone = [field for field in pa.schema(delta.schema().to_arrow()) if field.name not in schema.names]
        stream = Stream(schema, [rows] if isinstance(rows, pa.Table) else rows, gone)
        with self._writing(table, days, stream):
            write_deltalake(
                delta,
                stream.reader(),
                mode="overwrite",
                predicate=_days_in(contract.day_column, replaced) if contract.day_column else None,
                writer_properties=writer_properties(_contract(table), self.columns(table)),
                commit_properties=CommitProperties(
                    custom_metadata={_RECORD: record(step, days, inputs, fingerprint, replaced, changed)},
                    # A commit that finds another one before it is tried after it, if they touch other days. Not where the rows
                    # were made from the table itself: what the other one wrote, on whichever days, could have changed them. Nor
                    # where the table is replaced whole: had it been empty, deltalake would see no conflict.
                    max_commit_retries=None if contract.day_column and seen is None else 0,
                ),
            )

    def frame(self, spark: SparkSession, table: str, version: int | None = None) -> DataFrame:
        """A table as a Spark frame. Raises NotReady when it does not exist, ContractBroken when a column is missing."""
        delta = self._open(table, version)
        lacking = [difference for difference in self._check(table, delta) if difference.there is None]
        reader = spark.read.format("delta")
        frame = (reader if version is None else reader.option("versionAsOf", version)).load(self._spark_path(table))
        return frame.selectExpr("*", *(f"cast(null as {difference.expected}) as `{difference.column}`" for difference in lacking))

    def writer(self, table: str) -> FileWriter:
        """What writes files of a table in the tasks of Spark, to be told to `replace_by_files`."""
        return FileWriter(self._folder(table), _contract(table), self.columns(table))

    def replace_frame(
        self,
        table: str,
        frame: DataFrame,
        step: str,
        days: Collection[date],
        inputs: Mapping[str, int],
        partitions: Collection[date] | None = None,
        seen: int | None = None,
        fingerprint: str = "",
    ) -> None:
        """Replace days of a table by a Spark frame whose rows come in the order of the days; the rest is as in `replace`."""
        columns = self.columns(table)
        missing = [column.name for column in columns if column.name not in frame.columns]
        if missing:
            raise ContractBroken(f"Step {step} made no column {', '.join(missing)} for {table}; it made {', '.join(frame.columns)}.")
        writer = self.writer(table)

        def written(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            for file in writer.write(pa.Table.from_batches([batch]) for batch in batches):
                yield pa.record_batch({"file": [file]})

        def files() -> Iterator[str]:
            rows = frame.selectExpr(*(f"cast(`{column.name}` as {column.type}) as `{column.name}`" for column in columns))
            with self.in_tasks(table):
                made = rows.mapInArrow(written, "file string").collect()
            yield from (row["file"] for row in made)

        self.replace_by_files(table, files(), step, days, inputs, partitions, seen, fingerprint)

    def replace_by_files(
        self,
        table: str,
        files: Iterable[str],
        step: str,
        days: Collection[date],
        inputs: Mapping[str, int],
        partitions: Collection[date] | None = None,
        seen: int | None = None,
        fingerprint: str = "",
    ) -> None:
        """Replace days of a table by files that its `writer` has written, or writes meanwhile, in one commit; the rest is as in `replace`.

        Where there is no commit, nobody ever reads the files.
        """
        self.ensure(table)
        self._refuse_overtaken(table, days, inputs)
        column = _contract(table).day_column
        assert column is not None  # a table that is replaced whole is none of Spark's
        replaced = days if partitions is None else partitions
        before = self.version(table) if seen is None else seen
        actions: list[AddAction | RemoveAction] = [added(file) for file in files]
        while True:
            delta = self._open(table, None)
            others = [commit for commit in self.commits(table) if before < commit.version]
            # Of a commit that does not say what it has changed, anything is assumed.
            if len(others) < delta.version() - before or any(seen is not None or commit.replaced & {*replaced} for commit in others):
                raise self._overtaken(table, days)
            try:
                delta.create_write_transaction(
                    actions,
                    "overwrite" if replaced else "append",
                    delta.schema(),
                    list(_contract(table).partition_by),
                    _filters(column, replaced) if replaced else None,
                    commit_properties=CommitProperties({_RECORD: record(step, days, inputs, fingerprint, replaced, ())}, max_commit_retries=0),
                )
            except CommitFailedError:  # another one was faster: is it in the way?
                continue
            return

    def differences(self, table: str) -> list[Difference]:
        """How the columns of a table differ from its contract; not at all where there is no table."""
        return differences_of(table, self.columns(table), self._open(table, None).schema().fields) if self.exists(table) else []

    def add_columns(self, table: str) -> None:
        """Add the nullable columns that the contract has and the table has not; in the rows that are there they are null."""
        added = {difference.column for difference in self.differences(table) if difference.there is None and difference.harmless}
        if added:
            fields = [field for field in Schema.from_arrow(self.schema(table)).fields if field.name in added]
            try:
                self._open(table, None).alter.add_columns(fields)
            except CommitFailedError as error:
                raise self._overtaken(table, []) from error

    def rewrite(self, table: str, change: Callable[[ds.Dataset, Sequence[Difference]], Iterable[pa.Table]]) -> None:
        """Write a table whole, with the columns of its contract, in one commit; `change` makes the rows from those that are there, as they are.

        Raises ConcurrentWrite when somebody else has written to it meanwhile.
        """
        delta = self._open(table, None)
        rows = self._dataset(table, delta, pa.schema(delta.schema().to_arrow()), None)
        stream = Stream(self.schema(table), change(rows, differences_of(table, self.columns(table), delta.schema().fields)))
        with self._writing(table, [], stream):
            write_deltalake(
                delta,
                stream.reader(),
                mode="overwrite",
                schema_mode="overwrite",
                partition_by=list(_contract(table).partition_by),
                writer_properties=writer_properties(_contract(table), self.columns(table)),
                commit_properties=CommitProperties(max_commit_retries=0),
            )

    def require_writable(self, tables: Collection[str]) -> None:
        """Raise LakeUnwritable or, where one of these tables is there without a column of its contract, ContractBroken. Nothing is made."""
        if isinstance(self.root, S3Path):
            prove_writable(self.root)
        else:
            self._require_rights(self.root)
        for table in tables:
            if self.exists(table):
                self._check(table, self._open(table, None))

    def _require_rights(self, root: Path) -> None:
        nearest = next(folder for folder in (root, *root.absolute().parents) if os.path.lexists(folder))
        if not nearest.is_dir() or not os.access(nearest, os.W_OK) or os.statvfs(nearest).f_flag & os.ST_RDONLY:
            raise LakeUnwritable(f"The lake {root} can't be written to. Mend its rights, or set `lake` in nightjar.toml, or NIGHTJAR_LAKE.")

    def ensure(self, table: str) -> None:
        """Create an empty table from its contract when there is none; add the nullable columns that it lacks.

        Raises LakeUnwritable when that can't be done, ConcurrentWrite when it was undecided who is to do it.
        """
        contract = _contract(table)
        self.require_writable([])
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LakeUnwritable(f"The lake {self.root} can't be made: {error.strerror}. Set `lake` in nightjar.toml, or NIGHTJAR_LAKE.") from error
        try:
            with self._store():
                DeltaTable.create(
                    self.path(table),
                    self.schema(table),
                    mode="ignore",
                    partition_by=list(contract.partition_by),
                    description=contract.doc,
                    configuration={**_TABLE_PROPERTIES, "delta.dataSkippingStatsColumns": ",".join(skipped_by(contract))},
                    storage_options=self._options(),
                )
        except DeltaError as error:
            if not self.exists(table):  # else somebody was faster
                if "Invalid table version: 0" in str(error):  # 409: a store between two PUTs of one object, of which it has taken none yet
                    raise self._overtaken(table, []) from error
                raise
        self.add_columns(table)

    @contextmanager
    def _writing(self, table: str, days: Collection[date], stream: Stream) -> Iterator[None]:
        """What goes wrong while deltalake writes, as the message that it is."""
        try:
            yield
        except CommitFailedError as error:
            raise self._overtaken(table, days) from error
        except Exception as error:
            if stream.failure:
                raise stream.failure from None
            if isinstance(self.root, S3Path) and isinstance(error, OSError):
                raise unreachable(f"{table} in {self.root}", self.root.s3, error) from error
            if refusal := re.search(r"([^:]+) \(os error \d+\)", str(error)):
                raise self._unwritable(table, refusal[1]) from error
            raise

    @contextmanager
    def in_tasks(self, table: str) -> Iterator[None]:
        """What goes wrong while tasks of Spark write, as the message that it is."""
        from jobs.spark import from_tasks

        try:
            with from_tasks():
                yield
        except OSError as error:
            if isinstance(self.root, S3Path):
                raise unreachable(f"{table} in {self.root}", self.root.s3, error) from error
            raise self._unwritable(table, error.strerror or str(error)) from error

    def _unwritable(self, table: str, refusal: str) -> LakeUnwritable:
        return LakeUnwritable(f"{table} in {self.root} can't be written: {refusal.strip()}. It holds what it held before. Mend that, and run the step again.")

    def _refuse_overtaken(self, table: str, days: Collection[date], inputs: Mapping[str, int]) -> None:
        if not inputs:
            return
        for commit in self.commits(table):
            if commit.days & {*days}:
                newer = {name for name, version in inputs.items() if commit.inputs.get(name, -1) > version}
                # What is newer than the newest was read from a table that has been removed, and made again, since.
                if any(not self.exists(name) or commit.inputs[name] <= self.version(name) for name in newer):
                    raise self._overtaken(table, days)

    def _overtaken(self, table: str, days: Collection[date]) -> ConcurrentWrite:
        return ConcurrentWrite(
            f"Another run has changed {table} in {self.root} for {_listed(days)} meanwhile. Nothing of this one is in it: run the step again."
        )

    def _folder(self, table: str) -> Location:
        return self.root / _contract(table).name.replace(".", "/")

    def _open(self, table: str, version: int | None) -> DeltaTable:
        try:
            with self._store():
                return DeltaTable(self.path(table), version=version, storage_options=self._options())
        except TableNotFoundError as error:
            raise NotReady(f"There is no table {table} in {self.root} yet. Run the step that makes it: `nightjar status` shows which.") from error

    def _dataset(self, table: str, delta: DeltaTable, schema: pa.Schema, partitions: Collection[date] | None) -> ds.Dataset:
        import pyarrow.dataset as ds  # loads pandas, which most commands can do without

        contract = _contract(table)
        # Over the files and not to_pyarrow_dataset(), which aborts the process at its exit.
        places = _places(table, delta, partitions)
        if not places:
            return ds.dataset(schema.empty_table())
        partitioning = ds.partitioning(pa.schema([schema.field(name) for name in contract.partition_by]), flavor="hive") if contract.partition_by else None
        files, paths = opened(places, self.root)
        base = self.path(table).removeprefix(SCHEME)
        return ds.dataset(paths, schema=schema, format="parquet", filesystem=files, partitioning=partitioning, partition_base_dir=base)

    def _options(self) -> dict[str, str] | None:
        return delta_options(self.root.s3) if isinstance(self.root, S3Path) else None

    def _spark_path(self, table: str) -> str:
        return self.path(table).replace(SCHEME, S3A_SCHEME, 1) if isinstance(self.root, S3Path) else self.path(table)

    @contextmanager
    def _store(self) -> Iterator[None]:
        """What the store refuses is a message; that it answers at all is asked first, as deltalake would try for minutes."""
        if not isinstance(self.root, S3Path):
            yield
            return
        prove_reachable(self.root)
        try:
            yield
        except OSError as error:
            raise unreachable(str(self.root), self.root.s3, error) from error

    def _check(self, table: str, delta: DeltaTable) -> list[Difference]:
        """The differences from the contract that do no harm. Raises ContractBroken for others."""
        found = differences_of(table, self.columns(table), delta.schema().fields)
        harmful = [difference for difference in found if not difference.harmless]
        if harmful:
            raise ContractBroken(
                f"Table {table} in {self.root} is not as its contract has it:\n"
                + "\n".join(f"  {difference}" for difference in harmful)
                + "\nIt was made by another version of Nightjar. `nightjar migrate` says what can be done."
            )
        return found


def _contract(table: str) -> Table:
    return TABLES[table]


def _days_in(column: str, days: Collection[date]) -> str:
    """A condition; with no day to replace, the commit still records that the run was made."""
    quoted = ", ".join(f"'{day}'" for day in sorted(days))
    return f"{column} IN ({quoted})" if days else "false"


def _filters(column: str | None, partitions: Collection[date] | None) -> list[tuple[str, str, list[str]]] | None:
    return None if column is None or partitions is None else [(column, "in", texts(partitions))]


def _places(table: str, delta: DeltaTable, partitions: Collection[date] | None) -> list[str]:
    """Where the files of a table, or of some partitions of it, are; deltalake tells it as URIs, in which a space is %20."""
    return [unquote(uri) for uri in delta.file_uris(_filters(_contract(table).day_column, partitions))]


def _listed(days: Collection[date]) -> str:
    first, *others = sorted(map(str, days)) or ["no day"]
    return f"{first} to {others[-1]}" if others else first


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
