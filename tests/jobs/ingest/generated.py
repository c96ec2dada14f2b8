"""Generated landing folders, and what is done with them; few values each, so that what shrinks stays readable."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from hypothesis import strategies as st

from tests.jobs.ingest.reference import DAYS, File, Row


@dataclass(frozen=True)
class Delivery:
    """All that one arrival day holds from now on."""

    day: int
    files: tuple[File, ...]


@dataclass(frozen=True)
class Run:
    """Steps run for some days, in one pass."""

    steps: tuple[str, ...]
    first: int
    last: int


@dataclass(frozen=True)
class Machine:
    """How much is taken at once, which nothing may depend on."""

    threads: int
    at_once: int


Action = Delivery | Run

# Few values each, so that lines with one id agree, or differ in one field, often.
EVENTS = st.fixed_dictionaries(
    {
        "user_id": st.sampled_from(["u", "v", 7]),
        "item_id": st.sampled_from(["i", "j"]),
        "event_type": st.sampled_from(["click", "click", "impression", "wink"]),
        "event_time": st.sampled_from(
            [
                "2026-01-01T12:00:00Z",
                "2026-01-01T12:00:00Z",
                1767268800,
                "2026-01-01",
                "2026-01-02T00:30:00+01:00",
                "2026-01-03 09:00",
                "2026-01-04T23:59:59.5Z",
            ]
        ),
    },
    optional={
        "event_id": st.sampled_from(["a", "a", "b", "c", 4]),
        "value": st.sampled_from([None, 1, 2.5]),
        "propensity": st.sampled_from([0.5, 0.25]),
        "candidates": st.sampled_from([["i"], ["i", "j"], []]),
        "context": st.sampled_from([{"p": "1", "q": "2"}, {"q": "2", "p": "1"}, {"p": "2"}]),
    },
)
SPOILT = st.builds(
    lambda event, spoil: {**event, **spoil},
    EVENTS,
    st.sampled_from(
        [
            *({name: value} for name in ("user_id", "item_id", "event_type", "event_time") for value in (None, " ")),
            *(
                {name: value}
                for name, value in (("event_time", "soon"), ("event_time", "2026-02-30"), ("value", "much"), ("candidates", "i"), ("position", 2.5))
            ),
            *({"user_id": "*"}, {"event_time": "1999-12-31T23:59:59Z"}, {"propensity": 0}, {"propensity": 1.5}),
        ]
    ),
)
NO_OBJECTS = st.sampled_from([b"no json", b"[1]", b"null", b'{"user_id": "u"', b"caf\xe9", b'{"user_id": "caf\xe9"}', b"{} {}"])
BLANKS = st.sampled_from([b"", b"  ", b"\t"])


def as_line(row: Row) -> bytes:
    return json.dumps(row).encode()


EVENT_LINES = st.one_of(*[EVENTS.map(as_line)] * 4, SPOILT.map(as_line), NO_OBJECTS, BLANKS)
ITEM_LINES = st.sampled_from(
    [
        *(as_line({"item_id": item, "price": price}) for item in ("x", "y") for price in (1, 2)),
        *(as_line({"item_id": "x", "price": 1, "attributes": of}) for of in ({"a": "1", "b": "2"}, {"b": "2", "a": "1"}, {"a": "2"})),
        *(as_line(row) for row in ({"item_id": "y"}, {"item_id": ""}, {"item_id": "x", "price": "dear"})),
        *(b"no json", b"caf\xe9", b""),
    ]
)
USER_LINES = st.sampled_from(
    [*(as_line({"user_id": user, "attributes": of}) for user in ("u", "v") for of in ({"a": "1"}, None)), b'{"user_id": "*"}', b"{}", b""]
)


def pack(name: str, body: bytes) -> bytes:
    match name.rpartition(".")[2]:
        case "gz":
            return gzip.compress(body, mtime=0)
        case "zst":
            return zstandard.compress(body)
        case _:
            return body


@st.composite
def text_files(draw: st.DrawFn, feed: str, name: str, pool: Sequence[bytes]) -> File:
    name += draw(st.sampled_from(["", "", ".gz", ".zst"]))
    end = draw(st.sampled_from([b"\n", b"\r\n"]))
    held = tuple(draw(st.lists(st.sampled_from(pool), max_size=6)))
    body = end.join(held) + draw(st.sampled_from([end, b""])) * bool(held)
    return File(feed, name, held, pack(name, body))


@st.composite
def parquet_files(draw: st.DrawFn, name: str) -> File:
    """Rows of events that are objects; a column that has no value in any is not there."""
    names = ("event_id", "user_id", "item_id", "event_type", "event_time", "value", "candidates")
    texts = EVENTS.map(lambda row: {name: str(value) if name.endswith(("_id", "_time")) else value for name, value in row.items() if name in names})
    rows = draw(st.lists(texts, min_size=1, max_size=4))
    columns = {name: [row.get(name) for row in rows] for name in names}
    table = pa.table(
        {name: pa.array(values, pa.float64() if name == "value" else None) for name, values in columns.items() if any(v is not None for v in values)}
    )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return File("events", name, tuple(json.dumps(row, separators=(",", ":")).encode() for row in table.to_pylist()), sink.getvalue())


@st.composite
def deliveries(draw: st.DrawFn, day: int, pool: Sequence[bytes]) -> Delivery:
    names = draw(st.sampled_from([(), ("a.json",), ("a.json", "b.json"), ("b.json", "hour=1/a.json", "c.parquet")]))
    files = [draw(parquet_files(name) if name.endswith(".parquet") else text_files("events", name, pool)) for name in names]
    for feed, of in (("items", ITEM_LINES), ("users", USER_LINES)):
        names = draw(st.sampled_from([(), ("a.json",), ("a.json", "b.json")]))
        files += [draw(text_files(feed, name, draw(st.lists(of, min_size=1, max_size=4)))) for name in names]
    return Delivery(day, tuple(files))


@st.composite
def histories(draw: st.DrawFn) -> list[Action]:
    """Every day is delivered; then days are run, alone or in ranges, and delivered again, in any order."""
    pool = draw(st.lists(EVENT_LINES, min_size=1, max_size=12))
    actions: list[Action] = [draw(deliveries(day, pool)) for day in range(len(DAYS))]
    for _ in range(draw(st.integers(1, 6))):
        first, last = sorted(draw(st.tuples(*[st.integers(0, len(DAYS) - 1)] * 2)))
        steps = draw(st.sampled_from([("bronze", "silver"), ("bronze", "silver"), ("bronze",), ("silver",), ()]))
        actions.append(Run(steps, first, last) if steps else draw(deliveries(first, pool)))
    return actions


MACHINES = st.builds(Machine, threads=st.sampled_from([1, 2]), at_once=st.sampled_from([1 << 20, 1, 100]))
