"""Reads a landing file as lines, whatever it is: text, compressed or not, or Parquet, each of whose rows is a line of JSON."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from jobs.contracts.errors import LandingChanged
from jobs.ingest.landing import LandingFile
from jobs.storage import Location, local_copy

_READ_BYTES = 1 << 20
_UNPACKED_BYTES = 1 << 16  # what is unpacked at once: 64 kB may become 64 MB
_BLOCK_BYTES = 1 << 23
_LONGEST_LINE = 1 << 26
_PARQUET_ROWS = 1 << 15
NOT_OPENED = (0, "")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Damage(Exception):
    """Where a file can't be read any further: `tail` is the line that it stopped in."""

    def __init__(self, why: str, tail: bytes) -> None:
        super().__init__(why)
        self.tail = tail


def fingerprint(file: LandingFile) -> tuple[int, str]:
    """Size and SHA-256 of a file; nothing of one that isn't, or can't be, opened."""
    if file.refusal:
        return NOT_OPENED
    try:
        checksum = hashlib.sha256()
        with file.path.open("rb") as stream:
            while chunk := stream.read(_READ_BYTES):
                checksum.update(chunk)
        return file.path.stat().st_size, checksum.hexdigest()
    except OSError:
        return NOT_OPENED


class LineReader:
    """The lines of one file."""

    def __init__(self, file: LandingFile, duck: duckdb.DuckDBPyConnection) -> None:
        self.file = file
        self.modified: int | None = None  # as `stamp`, when the reading began
        self._size = 0
        self._damaged = False
        self._duck = duck
        self._hash = hashlib.sha256()

    @property
    def fingerprint(self) -> tuple[int, str]:
        """Size and SHA-256 of the file, once its lines have been read."""
        return fingerprint(self.file) if self._damaged else (self._size, self._hash.hexdigest())

    def blocks(self) -> Iterator[pa.Array]:
        """Arrays of lines (binary, each with its line feed), in order.

        Raises Damage after what can be read, LandingChanged when the file is no longer what it was when the reading began.
        """
        before = stamp(self.file.path)
        self.modified = before[1]
        if before[0] == 0:
            return  # a file without a byte has no lines, whatever it is
        try:
            if self.file.path.suffix == ".parquet":
                yield from self._parquet_rows()
            else:
                yield from _lines(self._unpacked())
        except Damage:
            self._damaged = True  # so the rest of the file has not been seen
            self._refuse_unless(before)
            raise
        self._refuse_unless(before)

    def _refuse_unless(self, before: tuple[int, int]) -> None:
        if stamp(self.file.path) != before:
            raise LandingChanged(f"{self.file.path} changed while it was read. Run the step again once it is complete.")

    def _unpacked(self) -> Iterator[bytes]:
        match self.file.path.suffix:
            case ".gz":
                return _unpack(self._bytes(_UNPACKED_BYTES), lambda: zlib.decompressobj(wbits=31))
            case ".zst":
                return _unpack(self._bytes(_UNPACKED_BYTES), lambda: zstandard.ZstdDecompressor().decompressobj())
            case _:
                return self._bytes(_READ_BYTES)

    def _bytes(self, at_once: int) -> Iterator[bytes]:
        with self.file.path.open("rb") as stream:
            while chunk := stream.read(at_once):
                self._hash.update(chunk)
                self._size += len(chunk)
                yield chunk

    def _parquet_rows(self) -> Iterator[pa.Array]:
        with local_copy(self.file.path, self._bytes(_READ_BYTES)) as path:  # of which every byte counts for its size and checksum
            yield from self._rows(path)

    def _rows(self, path: Path) -> Iterator[pa.Array]:
        try:
            with pq.ParquetFile(path) as parquet:
                for batch in parquet.iter_batches(_PARQUET_ROWS):
                    self._duck.register("parquet_rows", batch)
                    lines = self._duck.sql("select cast(to_json(parquet_rows) as varchar) as line from parquet_rows").to_arrow_table()["line"]
                    yield from (chunk.cast(pa.binary()) for chunk in lines.chunks)
        except (OSError, pa.ArrowException, duckdb.Error) as error:
            raise Damage(f"expected a whole Parquet file, got: {error}", b"") from error


class _Unpacker(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


def _unpack(chunks: Iterable[bytes], new: Callable[[], _Unpacker]) -> Iterator[bytes]:
    """What is in one or several members, one after the other. Raises EOFError when the last one has no end."""
    unpacker = new()
    for chunk in chunks:
        rest = chunk
        while rest:
            if unpacker.eof:
                rest = rest.lstrip(b"\0")  # gzip allows zeros after a member
                if not rest:
                    break
                unpacker = new()
            yield unpacker.decompress(rest)
            rest = unpacker.unused_data
    if not unpacker.eof:
        raise EOFError("it ends before its end mark")


def _lines(chunks: Iterator[bytes]) -> Iterator[pa.Array]:
    """Arrays of lines, some 8 MB each. Raises Damage, after the lines before it, where `chunks` fail or a line has no end."""
    whole: list[bytes] = []
    begun: list[bytes] = []  # of a line whose end is still to come
    damage = None
    mark = _BYTE_ORDER_MARK
    try:
        for chunk in chunks:
            cut = chunk.rfind(b"\n") + 1
            if cut:
                whole += [*begun, chunk[:cut]]
                begun = [chunk[cut:]]
            else:
                begun.append(chunk)
            if _length(whole) >= _BLOCK_BYTES:
                yield _split(b"".join(whole).removeprefix(mark))
                whole, mark = [], b""
            if _length(begun) > _LONGEST_LINE:
                raise EOFError(f"a line longer than {_LONGEST_LINE >> 20} MB, of which the beginning is kept")
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        damage = Damage(f"expected a whole file of lines, got: {error}", b"".join(begun)[:_LONGEST_LINE])
    else:
        whole += begun
    if any(whole):
        yield _split(b"".join(whole).removeprefix(mark))
    if damage:
        raise damage


def _length(parts: list[bytes]) -> int:
    return sum(map(len, parts))


def _split(block: bytes) -> pa.Array:
    """The lines of a block, without a copy; what follows the last line feed is one too."""
    ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + 1
    bounds = np.concatenate(([0], ends, [len(block)] if not block.endswith(b"\n") else [])).astype(np.int32)
    return pa.Array.from_buffers(pa.binary(), len(bounds) - 1, [None, pa.py_buffer(bounds.tobytes()), pa.py_buffer(block)])


def stamp(path: Location) -> tuple[int, int]:
    """Size and time of change: what tells that a file is no longer what it was."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns
