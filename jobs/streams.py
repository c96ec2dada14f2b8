"""Rows on their way to a writer, table by table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa


class Stream:
    """Rows that a writer in another language asks for: what goes wrong while they are made is kept, as it can't pass through that writer.

    `gone` are columns of the table that the contract has no more: they are null.
    """

    def __init__(self, schema: pa.Schema, tables: Iterable[pa.Table], gone: Iterable[pa.Field] = ()) -> None:
        self.failure: Exception | None = None
        self._schema = schema
        self._tables = tables
        self._gone = list(gone)

    def reader(self) -> pa.RecordBatchReader:
        """The rows, made as they are asked for."""
        return pa.RecordBatchReader.from_batches(pa.schema([*self._schema, *self._gone]), self._batches())

    def _batches(self) -> Iterator[pa.RecordBatch]:
        try:
            for table in self._tables:
                rows = table.select(self._schema.names).cast(self._schema)
                for field in self._gone:
                    rows = rows.append_column(field, pa.nulls(rows.num_rows, field.type))
                yield from rows.to_batches()
        except Exception as error:
            self.failure = error
            raise
