from __future__ import annotations

import gzip
import hashlib
import json
import random
from collections import Counter
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.contracts.days import DayRange
from jobs.contracts.errors import EmptyLanding
from jobs.contracts.landing import FEEDS, Reason
from jobs.ingest import bronze
from jobs.ingest.typed import quickly_typed
from jobs.lake import Lake
from jobs.settings import Settings
from jobs.storage import Location

FIRST, SECOND, THIRD = date(2026, 1, 1), date(2026, 1, 2), date(2026, 1, 3)
NOON = "2026-01-01T12:00:00Z"
GOOD = {"user_id": "u", "item_id": "i", "event_type": "click", "event_time": NOON}
NAMES = [field.name for field in FEEDS[0].fields]
GOOD_COLUMNS = {name: [value] for name, value in GOOD.items()}


def event(**fields: Any) -> bytes:
    return json.dumps({name: value for name, value in {**GOOD, **fields}.items() if value is not ...}, ensure_ascii=False).encode()


def land(landing: Location, name: str, *lines: bytes) -> None:
    path = landing / name
    path.parent.mkdir(parents=True, exist_ok=True)
    body = b"\n".join(lines)
    path.write_bytes(gzip.compress(body) if path.suffix == ".gz" else body)


# Lines that land as events of 2026-01-01, and the field that each shows with the value it should have.
GOOD_EVENTS: list[tuple[bytes, str, Any]] = [
    # An id is what the line spells, whatever JSON calls it.
    (event(user_id=1), "user_id", "1"),
    (event(user_id=1.0), "user_id", "1.0"),
    (event(user_id="X").replace(b'"X"', b"1.00"), "user_id", "1.00"),
    (event(user_id="X").replace(b'"X"', b"1e3"), "user_id", "1e3"),
    (event(user_id=9007199254740993), "user_id", "9007199254740993"),
    (event(user_id="X").replace(b'"X"', b"12345678901234567890.12345678901234567890"), "user_id", "12345678901234567890.12345678901234567890"),
    (event(user_id="007"), "user_id", "007"),
    (event(user_id="4e1f.5-a"), "user_id", "4e1f.5-a"),
    (event(user_id="12e45678"), "user_id", "12e45678"),
    (event(user_id="[a]"), "user_id", "[a]"),
    (event(user_id="ünï-€"), "user_id", "ünï-€"),
    (event(user_id="1.5", context={"user_id": 2.0}), "user_id", "1.5"),
    # Times: with zone, without (UTC), as a date, and as an epoch in each unit.
    (event(event_time="2026-01-01T13:00:00+01:00"), "event_time", datetime(2026, 1, 1, 12)),
    (event(event_time="2026-01-01T06:30:00-0530"), "event_time", datetime(2026, 1, 1, 12)),
    (event(event_time="2026-01-01 12:00:00.25"), "event_time", datetime(2026, 1, 1, 12, 0, 0, 250_000)),
    (event(event_time="2026-01-01T12:00"), "event_time", datetime(2026, 1, 1, 12)),
    (event(event_time="2026-01-01"), "event_time", datetime(2026, 1, 1)),
    (event(event_time=1767268800), "event_time", datetime(2026, 1, 1, 12)),
    (event(event_time=1767268800.5), "event_time", datetime(2026, 1, 1, 12, 0, 0, 500_000)),
    (event(event_time="1767268800"), "event_time", datetime(2026, 1, 1, 12)),
    (event(event_time=1767268800123), "event_time", datetime(2026, 1, 1, 12, 0, 0, 123_000)),
    (event(event_time=1767268800123456), "event_time", datetime(2026, 1, 1, 12, 0, 0, 123_456)),
    (event(event_time="2026-01-01T23:59:59.999999Z"), "event_time", datetime(2026, 1, 1, 23, 59, 59, 999_999)),
    (event(event_time="2000-01-01T00:00:00Z"), "event_time", datetime(2000, 1, 1)),
    # Optional fields.
    (event(value=-2.5), "value", -2.5),
    (event(value="1e2"), "value", 100.0),
    (event(value=None), "value", None),
    (event(position=3), "position", 3),
    (event(position=3.0), "position", 3),
    (event(propensity=1), "propensity", 1.0),
    (event(propensity=1e-300), "propensity", 1e-300),
    (event(candidates=["a", 2, "c"]), "candidates", ["a", "2", "c"]),
    (event(candidates=[]), "candidates", []),
    (event(context={"page": 3, "ab": "x", "deep": {"k": [1]}}), "context", {"page": "3", "ab": "x", "deep": '{"k":[1]}'}),
    (event(session_id=5, request_id="r"), "session_id", "5"),
    (event(event_id="e1"), "event_id", "e1"),
    (event(event_id=""), "event_id", hashlib.sha256(event(event_id="")).hexdigest()),
    (event(extra={"not": "ours"}) + b"\r", "event_id", hashlib.sha256(event(extra={"not": "ours"})).hexdigest()),
]

# Lines that can't be taken in, and why.
BAD_EVENTS: list[tuple[bytes, Reason]] = [
    (b'{"user_id": "caf\xe9"}', Reason.BAD_ENCODING),
    (b"not json", Reason.BAD_JSON),
    (b"\xef\xbb\xbf" + event(), Reason.BAD_JSON),
    (event()[:-5], Reason.BAD_JSON),
    (b"[" + event() + b"]", Reason.BAD_JSON),
    (b"[]", Reason.BAD_JSON),
    (b"null", Reason.BAD_JSON),
    (b"17", Reason.BAD_JSON),
    (b'"text"', Reason.BAD_JSON),
    (b"\0\0\0\0", Reason.BAD_JSON),
    (event(user_id="X").replace(b"X", b"a\0b"), Reason.BAD_JSON),
    (event() + event(), Reason.BAD_JSON),
    (event() + b"," + event(), Reason.BAD_JSON),
    (event() + b" trailing", Reason.BAD_JSON),
    (b"{'user_id': 'u'}", Reason.BAD_JSON),
    (event()[:-1] + b', "value": NaN}', Reason.WRONG_TYPE),
    (event()[:-1] + b', "value": -Infinity}', Reason.WRONG_TYPE),
    (event(user_id="X").replace(b'"X"', b"NaN"), Reason.WRONG_TYPE),
    (event(item_id="a\0b"), Reason.BAD_ENCODING),
    (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, Reason.MISSING_FIELD),
    (b"{}", Reason.MISSING_FIELD),
    (event(user_id=...), Reason.MISSING_FIELD),
    (event(item_id=None), Reason.MISSING_FIELD),
    (event(event_type=""), Reason.MISSING_FIELD),
    (event(user_id="  "), Reason.MISSING_FIELD),
    (event(event_time=...), Reason.MISSING_FIELD),
    (event(user_id={"id": 1}), Reason.WRONG_TYPE),
    (event(item_id=["i"]), Reason.WRONG_TYPE),
    (event(event_time="yesterday"), Reason.WRONG_TYPE),
    (event(event_time="10:00"), Reason.WRONG_TYPE),
    (event(event_time="2026-02-30T00:00:00Z"), Reason.WRONG_TYPE),
    (event(event_time="2026-01-01T12:00:00 Europe/Paris"), Reason.WRONG_TYPE),
    (event(event_time=True), Reason.WRONG_TYPE),
    (event(event_time={"$date": 1}), Reason.WRONG_TYPE),
    (event(value="much"), Reason.WRONG_TYPE),
    (event(value="1d"), Reason.WRONG_TYPE),
    (event(value="NaN"), Reason.WRONG_TYPE),
    (event(value="X").replace(b'"X"', b"1e999"), Reason.WRONG_TYPE),
    (event(value=[1]), Reason.WRONG_TYPE),
    (event(position=1.5), Reason.WRONG_TYPE),
    (event(position=2**40), Reason.WRONG_TYPE),
    (event(propensity="often"), Reason.WRONG_TYPE),
    (event(candidates="a"), Reason.WRONG_TYPE),
    (event(candidates=["a", None]), Reason.WRONG_TYPE),
    (event(context=[1]), Reason.WRONG_TYPE),
    (event(context="x"), Reason.WRONG_TYPE),
    (event(session_id={}), Reason.WRONG_TYPE),
    (event(user_id="*"), Reason.RESERVED_USER),
    (event(event_type="clik"), Reason.UNKNOWN_EVENT_TYPE),
    (event(event_time=0), Reason.EVENT_TIME_TOO_OLD),
    (event(event_time=-1), Reason.EVENT_TIME_TOO_OLD),
    (event(event_time=20260101), Reason.EVENT_TIME_TOO_OLD),
    (event(event_time="2026-01-02T00:00:00Z"), Reason.EVENT_TIME_IN_FUTURE),
    (event(event_time="9999-12-31T00:00:00Z"), Reason.EVENT_TIME_IN_FUTURE),
    (event(event_time=10**30), Reason.WRONG_TYPE),
    (event(propensity=0), Reason.PROPENSITY_OUT_OF_RANGE),
    (event(propensity=1.0000001), Reason.PROPENSITY_OUT_OF_RANGE),
    (event(propensity=-0.5), Reason.PROPENSITY_OUT_OF_RANGE),
]


def plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).replace(tzinfo=None)
    return dict(value) if isinstance(value, list) and value and isinstance(value[0], tuple) else value


def test_every_event_line_is_typed_or_kept_with_its_reason(lake: Lake, settings: Settings) -> None:
    """Good and bad lines alternate with blank ones in one file, so that a wrong line number can't hide."""
    lines: list[bytes] = []
    good: dict[int, tuple[str, Any]] = {}
    bad: dict[int, tuple[Reason, bytes]] = {}
    for line, name, value in GOOD_EVENTS:
        lines += [line, b" \t"]
        good[len(lines) - 1] = (name, value)
    for line, reason in BAD_EVENTS:
        lines += [b"", line]
        bad[len(lines)] = (reason, line)
    land(settings.landing_path, f"events/ds={FIRST}/all.json", *lines)
    bronze.run(lake, settings, DayRange(FIRST, FIRST))

    events = {row["source_line"]: row for row in lake.read("bronze.events").to_pylist()}
    assert {line: plain(events[line][name]) for line, (name, _) in good.items() if line in events} == {line: value for line, (_, value) in good.items()}
    quarantine = {row["source_line"]: row for row in lake.read("bronze.quarantine").to_pylist()}
    assert {line: row["reason"] for line, row in quarantine.items()} == {line: reason.value for line, (reason, _) in bad.items()}
    kept = {line: row["line"] for line, row in quarantine.items()}
    assert kept == {line: text for line, (_, text) in bad.items()}
    assert events.keys() == good.keys()
    row = events[1]
    assert (row["source_file"], row["arrival_day"], row["event_day"]) == (f"events/ds={FIRST}/all.json", FIRST, FIRST)
    details = {row["reason"]: row["detail"] for row in quarantine.values()}
    assert details[Reason.UNKNOWN_EVENT_TYPE] == "event_type: expected one of impression, click, purchase, got clik"
    assert details[Reason.PROPENSITY_OUT_OF_RANGE] == "propensity: expected a probability in (0, 1], got -0.5"
    assert set(details) == set(Reason) - {Reason.UNREADABLE_FILE}


def test_lines_of_every_file_are_rows_or_quarantined(lake: Lake, settings: Settings) -> None:
    """Many small files over days, odd names, folders and kinds: each line has its file and number, blank ones are nothing."""
    landing = settings.landing_path
    for day in (FIRST, THIRD):
        for part in range(5):
            land(landing, f"events/ds={day}/hour=0{part}/p.json.gz", *[event(event_id=f"{day}-{part}-{line}") for line in range(part + 2)], b"broken", b"")
    land(landing, f"events/ds={FIRST}/a b#100%25+[1]{{x}}*é.jsonl", event(event_id="odd"), b"broken")
    land(landing, f"events/ds={FIRST}/_SUCCESS", b"x")
    land(landing, f"events/ds={FIRST}/.hidden/p.json", b"x")
    land(landing, f"events/ds={FIRST}/empty.json")
    land(landing, f"events/ds={FIRST}/cut.json.gz", event())
    cut = landing / f"events/ds={FIRST}/cut.json.gz"
    cut.write_bytes(cut.read_bytes()[:-10])
    land(landing, f"events/ds={FIRST}/later.json.zst", b"\x28\xb5\x2f\xfd")
    land(landing, f"users/ds={THIRD}/p.parquet", b"no parquet")
    land(landing, f"events/ds={SECOND}x/p.json", event())
    rows = {"user_id": [1, 2, None], "item_id": ["a", "b", "c"], "event_type": ["click"] * 3, "candidates": [["a", "z"], None, None]}
    times = pa.array([1767268800000000000, 1767268800000000001, 1767268800000001000], pa.timestamp("ns"))
    pq.write_table(pa.table({**rows, "event_time": times, "value": pa.array([1.5, None, 2.0])}), landing / f"events/ds={THIRD}/p.parquet")
    pq.write_table(pa.table({**GOOD_COLUMNS, "user_id": ["x"]}), landing / f"events/ds={THIRD}/q.parquet")
    bronze.run(lake, settings, DayRange(FIRST, THIRD))

    events = lake.read("bronze.events").to_pylist()
    quarantine = lake.read("bronze.quarantine").to_pylist()
    for row in events:
        if ".gz" in row["source_file"]:
            day, part, line = row["event_id"].rsplit("-", 2)
            assert (row["source_file"], row["source_line"]) == (f"events/ds={day}/hour=0{part}/p.json.gz", int(line) + 1)
    taken, left = Counter(row["source_file"] for row in events), Counter(row["source_file"] for row in quarantine)
    expected = {f"events/ds={day}/hour=0{part}/p.json.gz": (part + 2, 1) for day in (FIRST, THIRD) for part in range(5)}
    expected |= {f"events/ds={FIRST}/a b#100%25+[1]{{x}}*é.jsonl": (1, 1), f"events/ds={THIRD}/p.parquet": (2, 1), f"events/ds={THIRD}/q.parquet": (1, 0)}
    whole = {f"events/ds={FIRST}/cut.json.gz", f"events/ds={FIRST}/later.json.zst", f"users/ds={THIRD}/p.parquet"}
    assert {name: (taken[name], left[name]) for name in taken | left} == expected | dict.fromkeys(whole, (0, 1))
    unreadable = [row for row in quarantine if row["reason"] == Reason.UNREADABLE_FILE]
    tails = {row["source_file"]: (row["source_line"], row["line"]) for row in unreadable}
    assert tails == dict.fromkeys(whole, (1, b"")) | {f"events/ds={FIRST}/cut.json.gz": (1, event()[: len(tails[f"events/ds={FIRST}/cut.json.gz"][1])])}
    parquet = sorted((row for row in events if row["source_file"].endswith("p.parquet")), key=lambda row: row["source_line"])
    assert [(row["user_id"], row["value"], row["candidates"], plain(row["event_time"])) for row in parquet] == [
        ("1", 1.5, ["a", "z"], datetime(2026, 1, 1, 12)),
        ("2", None, None, datetime(2026, 1, 1, 12)),
    ]
    assert [(row["source_line"], row["reason"]) for row in quarantine if row["source_file"].endswith("p.parquet") and row["feed"] == "events"] == [
        (3, Reason.MISSING_FIELD)
    ]
    for table in ("bronze.events", "bronze.items", "bronze.users", "bronze.quarantine"):
        assert lake.done(table) == {FIRST, SECOND, THIRD}
        assert len(lake.commits(table)) == 1


def test_items_and_users_and_a_day_delivered_again(lake: Lake, settings: Settings) -> None:
    landing = settings.landing_path
    items: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"item_id": 1, "category": "a/b /c"}, {"item_id": "1", "category": ["a", "b", "c"]}),
        ({"item_id": "2", "category": ["a", "b/c"]}, {"category": ["a", "b/c"]}),
        ({"item_id": "3", "category": 17}, {"category": ["17"]}),
        ({"item_id": "4", "price": 9.5, "title": "1.50", "available": False}, {"price": 9.5, "title": "1.50", "available": False}),
        ({"item_id": "5", "attributes": {"a": 1}}, {"attributes": {"a": "1"}}),
        ({"item_id": "6", "embeddings": {"text": [1, 0.5], "image": []}}, {"embeddings": {"text": [1.0, 0.5], "image": []}}),
    ]
    bad = [{"item_id": None}, {"item_id": "7", "price": "x"}, {"item_id": "8", "available": "perhaps"}, {"item_id": "9", "category": {"a": 1}}]
    bad += [{"item_id": "10", "embeddings": {"text": vector}} for vector in ([1, None], [1, "x"], 3, [1e39])]
    land(landing, f"items/ds={FIRST}/p.json", *(json.dumps(line).encode() for line, _ in items), *(json.dumps(line).encode() for line in bad))
    twice = b'{"user_id": 4, "attributes": {"age": 3, "age": 4}}'
    land(landing, f"users/ds={FIRST}/p.json", b'{"user_id": 1, "attributes": {"age": 4}}', twice, b'{"user_id": "*"}')
    land(landing, f"users/ds={SECOND}/p.json", b'{"user_id": 2}')
    bronze.run(lake, settings, DayRange(FIRST, SECOND))
    rows = sorted(lake.read("bronze.items").to_pylist(), key=lambda row: int(row["source_line"]))
    assert [{name: plain(row[name]) for name in shown} for row, (_, shown) in zip(rows, items, strict=True)] == [shown for _, shown in items]
    reasons = Counter((row["feed"], row["reason"]) for row in lake.read("bronze.quarantine").to_pylist())
    assert reasons == {("items", "missing_field"): 1, ("items", "wrong_type"): 7, ("users", "wrong_type"): 1, ("users", "reserved_user"): 1}
    assert sorted((row["user_id"], plain(row["attributes"])) for row in lake.read("bronze.users").to_pylist()) == [("1", {"age": "4"}), ("2", None)]

    land(landing, f"users/ds={FIRST}/p.json", b'{"user_id": 3}')
    bronze.run(lake, settings, DayRange(FIRST, FIRST))
    assert sorted(row["user_id"] for row in lake.read("bronze.users").to_pylist()) == ["2", "3"]
    assert "users" not in lake.read("bronze.quarantine")["feed"].to_pylist()


def test_nothing_has_arrived(lake: Lake, settings: Settings) -> None:
    land(settings.landing_path, f"events/ds={SECOND}/p.json", event())
    with pytest.raises(EmptyLanding, match=rf"landing by {FIRST}\. It should hold .*landing/events/ds={FIRST}/ with JSON lines"):
        bronze.run(lake, settings, DayRange(FIRST, FIRST))
    assert not lake.root.exists()


def test_a_log_that_calls_things_otherwise(settings: Settings, lake: Lake) -> None:
    """Names of its own, nested ones among them, and its own event types; spelled numbers and wrong values are found there too."""
    fields = {"user_id": "visitor.id", "item_id": "visitor.at.item id", "event_type": "what", "event_time": "ts", "value": "o'clock"}
    theirs = settings.model_copy(update={"landing": settings.landing.model_copy(update={"fields": fields, "event_types": {"it's": "purchase"}})})
    good = {"visitor": {"id": "u", "at": {"item id": "i"}}, "what": "it's", "ts": 1767268800, "o'clock": 2, "user_id": "not this one"}
    lines = [json.dumps(line).encode() for line in (good, {**good, "what": "click"}, {**good, "what": "look"}, {**good, "visitor": 3}, GOOD)]
    lines.append(lines[0].replace(b'"u"', b"1.50"))
    land(settings.landing_path, f"events/ds={FIRST}/a.json", *lines)
    flat = {"what": ["click"], "ts": pa.array([1767268800123], pa.timestamp("ms")), "o'clock": pa.array(["2.5"]).dictionary_encode()}
    nested = pa.array([{"id": 7, "at": {"item id": "i"}}])
    pq.write_table(pa.table({"visitor": nested, **flat}), settings.landing_path / f"events/ds={FIRST}/b.parquet")
    bronze.run(lake, theirs, DayRange(FIRST, FIRST))
    rows = sorted(lake.read("bronze.events").to_pylist(), key=lambda row: (row["source_file"], row["source_line"]))
    assert [(row["source_line"], row["user_id"], row["item_id"], row["event_type"], row["value"]) for row in rows] == [
        (1, "u", "i", "purchase", 2.0),
        (2, "u", "i", "click", 2.0),
        (6, "1.50", "i", "purchase", 2.0),
        (1, "7", "i", "click", 2.5),
    ]
    assert plain(rows[3]["event_time"]) == datetime(2026, 1, 1, 12, 0, 0, 123_000)
    kept = {row["source_line"]: (row["reason"], row["detail"]) for row in lake.read("bronze.quarantine").to_pylist()}
    assert kept == {
        3: ("unknown_event_type", "event_type: expected one of impression, click, purchase, got look"),
        4: ("missing_field", "expected user_id, got none"),
        5: ("missing_field", "expected user_id, got none"),
    }


@pytest.mark.parametrize("name", ["it's", 'the "id"', "a/b~c", "(1+", "ü"])
def test_a_field_whose_name_needs_care(settings: Settings, lake: Lake, name: str) -> None:
    """A number is looked up in the line by its key: it keeps its spelling, and a list is still no id."""
    theirs = settings.model_copy(update={"landing": settings.landing.model_copy(update={"fields": {"user_id": f"v.{name}"}})})
    values = ["1.50", '"1.50"', "[1.50]"]
    lines = [f"{event(v='X')[:-4].decode()}{{{json.dumps(name, ensure_ascii=False)}: {value}}}}}".encode() for value in values]
    land(settings.landing_path, f"events/ds={FIRST}/a.json", *lines)
    bronze.run(lake, theirs, DayRange(FIRST, FIRST))
    assert sorted((row["source_line"], row["user_id"]) for row in lake.read("bronze.events").to_pylist()) == [(1, "1.50"), (2, "1.50")]
    assert [(row["source_line"], row["reason"]) for row in lake.read("bronze.quarantine").to_pylist()] == [(3, "wrong_type")]


@pytest.mark.parametrize("seed", range(3))
def test_the_quick_way_types_as_the_careful_one(settings: Settings, lake: Lake, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Every good and bad line, each alone in a field of another good line's, through both queries."""
    lines: list[bytes] = [line for line, *_ in GOOD_EVENTS] + [line for line, _ in BAD_EVENTS]
    values: list[Any] = ["x", "7", 7, 7.5, "7.5", "1e3", "", " ", "-0", 0, "0", True, None, [], ["a"], {}, {"a": 1}, "NaN", "_1", "1_0", "[", "{", "*", "a.b"]
    chance = random.Random(seed)
    lines += [event(**{name: chance.choice(values) for name in chance.sample(NAMES, 2)}) for _ in range(300)]
    land(settings.landing_path, f"events/ds={FIRST}/a.json", *lines)
    bronze.run(lake, settings, DayRange(FIRST, FIRST))
    careful = Lake(lake.root.parent / "careful", lake.event_types)
    monkeypatch.setattr(bronze, "quickly_typed", lambda feed, settings: f"select * replace (false as fine) from ({quickly_typed(feed, settings)})")
    bronze.run(careful, settings, DayRange(FIRST, FIRST))
    for table in ("bronze.events", "bronze.quarantine", "bronze.files"):
        rows, others = (sorted(some.read(table).to_pylist(), key=lambda row: row.get("source_line", 0)) for some in (lake, careful))
        assert repr(rows) == repr(others)
    assert lake.read("bronze.events").num_rows > 100
