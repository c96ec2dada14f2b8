"""Files that people do have, each with its right answer: rows, lines in quarantine by reason, and that they add up."""

from __future__ import annotations

import gzip
import io
import json
import os
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from jobs.contracts.days import DayRange
from jobs.ingest import bronze, silver
from jobs.lake import Lake
from jobs.settings import Settings
from tests.jobs.ingest.test_bronze import GOOD_COLUMNS, event

DAY = date(2024, 2, 29)
DAYS = DayRange(DAY, DAY)
NOON = "2024-02-29T12:00:00Z"


def at(**fields: Any) -> bytes:
    return event(**{"event_time": NOON, **fields})


def parquet(**columns: Any) -> bytes:
    sink = io.BytesIO()
    rows = max((len(values) for values in columns.values()), default=1)
    pq.write_table(pa.table({**{name: value * rows for name, value in GOOD_COLUMNS.items()}, "event_time": [NOON] * rows, **columns}), sink)
    return sink.getvalue()


def lines(*of: bytes) -> bytes:
    return b"\n".join(of) + b"\n"


IDS: list[Any] = ["1", "1.0", "1.00", "1e0", "1e3", "9007199254740993", "9007199254740992", "a/b", "a'b", 'a"b', "😀", "אבג", " a ", "a", "x" * 10_000]
NUMBERS = {"1", "1.0", "1.00", "1e0", "1e3", "9007199254740993", "9007199254740992"}  # spelled without quotes
TIMES = [1709208000, "1709208000", 1709208000123, 1709208000123456, 1709208000123456789, "2024-02-29T13:00:00+01:00", "2024-02-29 12:00", "2024-02-29"]


@dataclass(frozen=True)
class Case:
    """A file: its name, its bytes, how many rows come of it, and how many lines are kept for which reason."""

    name: str
    body: bytes
    rows: int
    kept: dict[str, int]
    duplicates: int = 0


CASES = {
    "invalid utf-8": Case("a.json", lines(at(), at(user_id="caf").replace(b"caf", b"caf\xe9"), at(user_id="v")), 2, {"bad_encoding": 1}),
    "nul bytes": Case("a.json", lines(at(), b"\0\0\0", at(user_id="a\0b")), 1, {"bad_json": 1, "bad_encoding": 1}),
    "byte order mark": Case("a.json", b"\xef\xbb\xbf" + lines(at()), 1, {}),
    "crlf": Case("a.json", at() + b"\r\n" + at(user_id="v") + b"\r\n", 2, {}),
    "no newline at the end": Case("a.json", at() + b"\n" + at(user_id="v"), 2, {}),
    "blank lines": Case("a.json", b"\n \n\t\r\n\n", 0, {}),
    "a line of 20 MB": Case("a.json", lines(at(), at(context={"long": "x" * 20_000_000}), at(user_id="v")), 3, {}),
    "nested 10,000 deep": Case("a.json", lines(at(extra=1).replace(b"1}", b"[" * 10_000 + b"]" * 10_000 + b"}"), at(user_id="v")), 2, {}),
    "an array in the place of lines": Case("a.json", b"[\n" + at() + b",\n" + at(user_id="v") + b"\n]\n", 1, {"bad_json": 3}),
    "an array on one line": Case("a.json", b"[" + at() + b"," + at() + b"]", 0, {"bad_json": 1}),
    "a key given twice": Case("a.json", lines(at().replace(b'"user_id"', b'"user_id": "first", "user_id"')), 1, {}),
    "nan and infinity": Case(
        "a.json", lines(*(at()[:-1] + b', "value": %s}' % word for word in (b"NaN", b"Infinity", b"-Infinity", b"1e999"))), 0, {"wrong_type": 4}
    ),
    "ids": Case("a.json", lines(*(at(user_id=i).replace(f'"{i}"'.encode(), i.encode()) if i in NUMBERS else at(user_id=i) for i in IDS)), len(IDS), {}),
    "times": Case("a.json", lines(*(at(event_time=time) for time in TIMES)), len(TIMES), {}),
    "impossible times": Case(
        "a.json",
        lines(
            *(at(event_time=time) for time in ("0000-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "2024-03-01T00:00:00Z", "2023-02-29", "2024-02-29T25:00:00Z"))
        ),
        0,
        {"event_time_too_old": 1, "event_time_in_future": 2, "wrong_type": 2},
    ),
    "400 days late": Case("a.json", lines(at(event_time="2023-01-25T12:00:00Z")), 1, {}),
    "propensities": Case(
        "a.json",
        lines(*(at(propensity=chance) for chance in (0, 1, 1.0000001, -0.5, "often", 0.5, "0.5"))),
        3,
        {"propensity_out_of_range": 3, "wrong_type": 1},
    ),
    "candidates": Case(
        "a.json", lines(*(at(candidates=of) for of in (["x"], ["i", "i"], [], [f"i{n}" for n in range(10_000)], ["i", None], "i"))), 4, {"wrong_type": 2}
    ),
    "gzip cut short": Case("a.json.gz", gzip.compress(lines(*(at(user_id=f"{n}") for n in range(2000))))[:-8], 2000, {"unreadable_file": 1}),
    "gzip of two members": Case("a.json.gz", gzip.compress(lines(at())) + gzip.compress(lines(at(user_id="v"))), 2, {}),
    "zstd": Case("a.json.zst", zstandard.compress(lines(at(), at(user_id="v"))), 2, {}),
    "no gzip": Case("a.json.gz", lines(at()), 0, {"unreadable_file": 1}),
    "another compression": Case("a.json.bz2", b"BZh", 0, {"unreadable_file": 1}),
    "parquet without its footer": Case("a.parquet", parquet()[:-20], 0, {"unreadable_file": 1}),
    "parquet with columns of other types": Case(
        "a.parquet",
        parquet(user_id=pa.array([7, 8]), value=["1.5", "much"], position=pa.array([1.0, 2.5]), propensity=pa.array([Decimal("0.5")] * 2)),
        1,
        {"wrong_type": 1},
    ),
    "parquet with dictionaries and decimals": Case(
        "a.parquet", parquet(user_id=pa.array(["u", "v", None]).dictionary_encode(), value=pa.array([Decimal("1.50"), None, None])), 2, {"missing_field": 1}
    ),
    "parquet with numbers that are none": Case("a.parquet", parquet(value=pa.array([float("nan"), float("inf"), 1.0])), 1, {"wrong_type": 2}),
    "parquet with every unit of time": Case("a.parquet", parquet(event_time=pa.array([1709208000], pa.timestamp("s"))), 1, {}),
    "the same line twice": Case("a.json", lines(at(), at()), 2, {}, duplicates=1),
}


def ingest(lake: Lake, settings: Settings) -> None:
    for step in (bronze, silver):
        step.run(lake, settings, DAYS)


@pytest.mark.parametrize("name", CASES)
def test_a_file(lake: Lake, settings: Settings, name: str) -> None:
    case = CASES[name]
    path = settings.landing_path / f"events/ds={DAY}" / case.name
    path.parent.mkdir(parents=True)
    path.write_bytes(case.body)
    ingest(lake, settings)
    assert balance(lake) == {f"events/ds={DAY}/{case.name}": (case.rows - case.duplicates, case.duplicates, case.kept)}


def balance(lake: Lake) -> dict[str, tuple[int, int, dict[str, int]]]:
    """Accepted, duplicates and conflicts, and quarantined by reason of each file; as the ledger says, and as the tables hold."""
    silver_rows = Counter(lake.read("silver.interactions")["source_file"].to_pylist())
    repeats = Counter(lake.read("silver.repeats")["source_file"].to_pylist())
    kept: dict[str, Counter[str]] = {}
    for row in lake.read("bronze.quarantine").to_pylist():
        kept.setdefault(row["source_file"], Counter())[row["reason"]] += 1
    answer = {}
    for row in lake.read("bronze.files").to_pylist():
        file = row["source_file"]
        assert dict(row["quarantined"]) == kept.get(file, {})
        assert row["rows"] == silver_rows[file] + repeats[file]
        assert row["lines"] == row["rows"] + sum(dict(row["quarantined"]).values())
        answer[file] = (silver_rows[file], repeats[file], dict(row["quarantined"]))
    return answer


def test_ids_stay_distinct_and_keep_their_spelling(lake: Lake, settings: Settings) -> None:
    path = settings.landing_path / f"events/ds={DAY}/a.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(CASES["ids"].body)
    ingest(lake, settings)
    assert sorted(lake.read("silver.interactions")["user_id"].to_pylist()) == sorted(IDS)


def test_times_are_the_instants_meant(lake: Lake, settings: Settings) -> None:
    path = settings.landing_path / f"events/ds={DAY}/a.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(CASES["times"].body)
    units = ("s", "ms", "us", "ns")
    for unit, factor in zip(units, (1, 10**3, 10**6, 10**9), strict=True):
        for zone in (None, "UTC", "Asia/Tokyo"):
            times = pa.array([1709208000 * factor], pa.timestamp(unit, zone))
            (path.parent / f"{unit} {zone and zone[:3]}.parquet").write_bytes(parquet(event_time=times, event_id=[f"{unit}{zone}"]))
    ingest(lake, settings)
    noon = datetime(2024, 2, 29, 12, tzinfo=UTC)
    found = Counter(lake.read("bronze.events")["event_time"].to_pylist())
    assert found == {
        noon: 4 + 12,
        noon.replace(microsecond=123_000): 1,
        noon.replace(microsecond=123_456): 1,
        noon.replace(microsecond=123_457): 1,
        noon.replace(hour=0): 1,
    }


@pytest.mark.parametrize(
    ("other", "body", "expected"),
    [
        ("sub.json/b.json", lines(at(user_id="v")), (1, 0, {})),
        (".b.json", lines(at(user_id="v")), None),
        ("_tmp/b.json", lines(at(user_id="v")), None),
        ("twin.json", lines(at()), (0, 1, {})),
        ("empty.json", b"", (0, 0, {})),
        ("empty.json.gz", b"", (0, 0, {})),
    ],
)
def test_another_file_in_the_folder(lake: Lake, settings: Settings, other: str, body: bytes, expected: tuple[int, int, dict[str, int]] | None) -> None:
    folder = settings.landing_path / f"events/ds={DAY}"
    (folder / other).parent.mkdir(parents=True)
    (folder / "a.json").write_bytes(lines(at()))
    (folder / other).write_bytes(body)
    ingest(lake, settings)
    found = balance(lake)
    assert found.pop(f"events/ds={DAY}/a.json") == (1, 0, {})
    assert found == ({} if expected is None else {f"events/ds={DAY}/{other}": expected})


def test_the_details_say_what_came(lake: Lake, settings: Settings, tmp_path: Path) -> None:
    folder = settings.landing_path / f"events/ds={DAY}"
    folder.mkdir(parents=True)
    (tmp_path / "secret").write_bytes(b"x")
    Path(str(folder), "link.json").symlink_to(tmp_path / "secret")
    (folder / "cut.json.gz").write_bytes(gzip.compress(lines(at(), at(user_id=os.urandom(5000).hex())))[:3000])
    (folder / "a.json").write_bytes(json.dumps([1]).encode())
    ingest(lake, settings)
    details = {row["source_file"].split("/")[-1]: row["detail"] for row in lake.read("bronze.quarantine").to_pylist()}
    assert details == {
        "link.json": f"expected a file of the landing folder, got a link to {tmp_path / 'secret'}",
        "cut.json.gz": "expected a whole file of lines, got: it ends before its end mark",
        "a.json": "expected one JSON object on the line, got something else, more, or less",
    }
