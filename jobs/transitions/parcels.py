"""Arrow tables as bytes: what Spark carries from task to task, and keeps, at a tenth of the cost of rows."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

SCHEMA = "parcel binary"
_COMPRESSED = pa.ipc.IpcWriteOptions(compression="lz4")


def packed(table: pa.Table) -> bytes:
    """The table as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=_COMPRESSED) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def unpacked(parcels: Iterable[pa.Buffer]) -> pa.Table:
    """The tables of some parcels, of which there is at least one, as one."""
    return pa.concat_tables(pa.ipc.open_stream(parcel).read_all() for parcel in parcels)
