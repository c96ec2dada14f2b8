from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from jobs.contracts.errors import LandingChanged
from jobs.ingest import lines
from jobs.ingest.landing import LandingFile
from jobs.ingest.lines import NOT_OPENED, Damage, LineReader, fingerprint

TEXT = b"first\r\n\nthird \xff\n" + b"long " * 500 + b"\nlast"
LINES = TEXT.splitlines(keepends=True)


def reader(path: Path, body: bytes | None = None) -> LineReader:
    if body is not None:
        path.write_bytes(body)
    return LineReader(LandingFile(path, "events", path.name, date(2026, 1, 1), None), duckdb.connect())


def read(reader: LineReader) -> tuple[list[bytes], bytes | None]:
    """The lines, and the tail where the file is damaged."""
    found: list[bytes] = []
    try:
        for block in reader.blocks():
            found += block.to_pylist()
    except Damage as damage:
        return found, damage.tail
    return found, None


@pytest.fixture(params=[1, 7, 1 << 20])
def _small_pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_READ_BYTES", "_UNPACKED_BYTES", "_BLOCK_BYTES"):
        monkeypatch.setattr(lines, name, request.param)


@pytest.mark.usefixtures("_small_pieces")
@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("plain.json", TEXT),
        ("no suffix", TEXT),
        ("marked.json", b"\xef\xbb\xbf" + TEXT),
        ("one.json.gz", gzip.compress(TEXT)),
        ("two members.json.gz", gzip.compress(TEXT[:9]) + gzip.compress(TEXT[9:])),
        ("padded.json.gz", gzip.compress(TEXT) + bytes(600)),
        ("one.json.zst", zstandard.compress(TEXT)),
        ("two frames.json.zst", zstandard.compress(TEXT[:9]) + zstandard.compress(TEXT[9:])),
    ],
)
def test_a_whole_file_is_its_lines(tmp_path: Path, name: str, body: bytes) -> None:
    file = reader(tmp_path / name, body)
    assert read(file) == (LINES, None)
    assert file.fingerprint == (len(body), hashlib.sha256(body).hexdigest()) == fingerprint(file.file)


@given(st.lists(st.binary(max_size=5).map(lambda part: part + b"\n"), max_size=30), st.integers(1, 20), st.integers(1, 20))
def test_lines_are_those_of_python_however_the_file_is_read(parts: list[bytes], at_once: int, block: int) -> None:
    body = b"".join(parts).removeprefix(b"\xef\xbb\xbf").removesuffix(b"\n")
    expected = [line + b"\n" for line in body.split(b"\n")[:-1]] + ([body.split(b"\n")[-1]] if body.split(b"\n")[-1] else [])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "_BLOCK_BYTES", block)
        found = [line for array in lines._lines(body[at : at + at_once] for at in range(0, len(body), at_once)) for line in array.to_pylist()]
    assert found == expected


@pytest.mark.parametrize(("suffix", "packed"), [(".gz", gzip.compress(TEXT)), (".zst", zstandard.compress(TEXT))])
def test_a_file_cut_short_gives_what_can_be_read_and_the_rest_as_one_tail(tmp_path: Path, suffix: str, packed: bytes) -> None:
    for length in range(1, len(packed)):
        file = reader(tmp_path / f"cut{suffix}", packed[:length])
        found, tail = read(file)
        assert tail is not None
        assert TEXT.startswith(b"".join(found) + tail)
        assert all(line.endswith(b"\n") for line in found)
        assert b"\n" not in tail
        assert file.fingerprint == (length, hashlib.sha256(packed[:length]).hexdigest())
    assert len(found) >= 3 or suffix == ".zst"  # cut in its checksum, a gzip file gives all of its lines but the last


def test_what_is_no_archive(tmp_path: Path) -> None:
    assert read(reader(tmp_path / "text.gz", TEXT)) == ([], b"")
    assert read(reader(tmp_path / "text.zst", TEXT)) == ([], b"")
    assert read(reader(tmp_path / "text.parquet", TEXT)) == ([], b"")
    assert read(reader(tmp_path / "more.gz", gzip.compress(TEXT) + b"more")) == (LINES[:-1], LINES[-1])


def test_a_line_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "_LONGEST_LINE", 100)
    monkeypatch.setattr(lines, "_READ_BYTES", 10)
    assert read(reader(tmp_path / "a", b"x\n" + b"y" * 100)) == ([b"x\n", b"y" * 100], None)
    assert read(reader(tmp_path / "b", b"x\n" + b"y" * 120 + b"\nz\n")) == ([b"x\n"], b"y" * 100)


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path: Path) -> None:
    for name in ("grows.json", "grows.json.gz"):
        file = reader(tmp_path / name, gzip.compress(TEXT)[:-9] if name.endswith(".gz") else TEXT)

        def grow(blocks: Iterator[pa.Array], path: Path) -> None:
            next(blocks)
            with path.open("ab") as stream:
                stream.write(b"more")
            for _ in blocks:
                pass

        with pytest.raises(LandingChanged, match=rf"{name} changed while it was read"):
            grow(file.blocks(), tmp_path / name)


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    missing = reader(tmp_path / "gone.json", b"x")
    (tmp_path / "gone.json").unlink()
    (tmp_path / "gone.json").symlink_to(tmp_path / "nowhere")
    assert fingerprint(missing.file) == NOT_OPENED
    if os.getuid():
        closed = reader(tmp_path / "closed.json", b"x")
        (tmp_path / "closed.json").chmod(0)
        assert read(closed) == ([], b"")
