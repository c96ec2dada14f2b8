"""What is told to be stale, against what is then made otherwise."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from jobs.contracts.days import DayRange, ranges
from jobs.contracts.errors import ConcurrentWrite, NotReady
from jobs.contracts.features import Feature, declared
from jobs.contracts.landing import Reason
from jobs.features import features
from jobs.ingest import bronze, silver
from jobs.ingest.requeue import requeue
from jobs.lake import Lake
from jobs.operate.stale import Stale, find_stale, print_stale, recompute
from jobs.settings import EventType, Settings
from jobs.steps import FEATURES_DAILY, POLICY_DAILY, find_step
from jobs.transitions import transitions
from tests.jobs.ingest.test_bronze import event, land

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

DAYS = [date(2026, 1, 1) + timedelta(days=number) for number in range(5)]
INGESTED = [table for step in ("bronze", "silver") for table in find_step(step).writes]
Days = Sequence[int]


def deliver(settings: Settings, day: int, *lines: bytes, name: str = "a.json") -> None:
    """Events of an arrival day; a file that is there is replaced."""
    land(settings.landing_path, f"events/ds={DAYS[day]}/{name}", *lines)


def line(name: str, day: int, **fields: Any) -> bytes:
    return event(**{"event_id": name, "event_time": f"{DAYS[day]}T12:00:00Z", **fields})


def say(settings: Settings, day: int, **prices: float) -> None:
    land(settings.landing_path, f"items/ds={DAYS[day]}/i.json", *(json.dumps({"item_id": item, "price": price}).encode() for item, price in prices.items()))


def ingest(lake: Lake, settings: Settings, days: Iterable[int] = range(len(DAYS))) -> None:
    for some_days in ranges(DAYS[day] for day in days):
        for module in (bronze, silver):
            module.run(lake, settings, some_days)


@pytest.fixture
def taken_in(lake: Lake, settings: Settings) -> Lake:
    """Five days, each with two events of its own, a line that is none, and from the second day on a copy of an event of the first day."""
    for day in range(len(DAYS)):
        copy = [line("d0 0", 0)] if day else []
        deliver(settings, day, *(line(f"d{day} {number}", day, user_id=f"u{number}") for number in range(2)), *copy, b"no json")
        say(settings, day, x=float(day // 2), y=1.0)
    ingest(lake, settings)
    return lake


def told(lake: Lake, settings: Settings) -> dict[tuple[str, date], int]:
    found = find_stale(lake, settings)
    assert len({(one.table, one.day) for one in found}) == len(found), "a day of a table is told once"
    return {(one.table, one.day): one.rows for one in found}


def rows_of(lake: Lake, tables: Iterable[str]) -> dict[str, Counter[str]]:
    return {table: Counter(map(repr, lake.read(table).to_pylist())) for table in tables}


def changed(before: Counter[str], after: Counter[str]) -> int:
    return max((before - after).total(), (after - before).total())


def assert_told_rightly(lake: Lake, settings: Settings, days: Days, reasons: dict[str, str]) -> None:
    """All that is stale are these run days, for these reasons; the rows told are those that another run then changes; after it nothing is stale."""
    found = find_stale(lake, settings)
    assert {one.table: one.reason for one in found} == reasons
    assert {one.day for one in found} == {DAYS[day] for day in days}
    before = rows_of(lake, INGESTED)
    ingest(lake, settings, days)
    after = rows_of(lake, INGESTED)
    for table in INGESTED:
        assert sum(one.rows for one in found if one.table == table) == changed(before[table], after[table]), table
    assert find_stale(lake, settings) == []


def test_nothing_is_stale_after_a_run(taken_in: Lake, settings: Settings) -> None:
    assert find_stale(taken_in, settings) == []
    for path in settings.landing_path.rglob("*.json"):
        os.utime(str(path))
    assert find_stale(taken_in, settings) == [], "the content counts, and no clock"
    bronze.run(taken_in, settings, DayRange(DAYS[0], DAYS[1]))
    silver.run(taken_in, settings, DayRange(DAYS[0], DAYS[1]))
    assert find_stale(taken_in, settings) == []


def test_a_lake_without_a_table(lake: Lake, settings: Settings) -> None:
    with pytest.raises(NotReady, match="No step has made anything"):
        print_stale(lake, settings)


def test_a_day_delivered_again(taken_in: Lake, settings: Settings) -> None:
    deliver(settings, 2, line("d2 0", 2, user_id="u0"), line("d2 1", 2, user_id="another"), line("d0 0", 0), line("late", 0), b"no json")
    why = f"events/ds={DAYS[2]}/a.json has changed"
    stale = "bronze.events is stale"
    assert_told_rightly(taken_in, settings, [2], {"bronze.events": why, "bronze.files": why, "bronze.quarantine": why, "silver.interactions": stale})


def test_a_first_copy_that_is_withdrawn(taken_in: Lake, settings: Settings) -> None:
    """The next day's copy comes to light, and is a repeat no more."""
    deliver(settings, 0, line("d0 1", 0, user_id="u1"), b"no json")
    why = f"events/ds={DAYS[0]}/a.json has changed"
    reasons = dict.fromkeys(("bronze.events", "bronze.files", "bronze.quarantine"), why)
    reasons |= dict.fromkeys(("silver.interactions", "silver.repeats"), "bronze.events is stale")
    assert_told_rightly(taken_in, settings, [0], reasons)


def test_files_that_come_and_go(taken_in: Lake, settings: Settings) -> None:
    path = Path(settings.landing.folder, f"events/ds={DAYS[1]}/a.json")
    path.rename(path.with_name("b.json"))
    why = f"events/ds={DAYS[1]}/b.json is new, and 1 more"
    reasons = dict.fromkeys(("bronze.events", "bronze.files", "bronze.quarantine"), why)
    reasons |= dict.fromkeys(("silver.interactions", "silver.repeats"), "bronze.events is stale")
    assert_told_rightly(taken_in, settings, [1], reasons)


def test_items_delivered_again(taken_in: Lake, settings: Settings) -> None:
    say(settings, 2, x=1.0, y=2.0)
    why = f"items/ds={DAYS[2]}/i.json has changed"
    assert_told_rightly(taken_in, settings, [2], {"bronze.items": why, "bronze.files": why, "silver.items": "bronze.items is stale"})


def test_bronze_alone_was_run_again(taken_in: Lake, settings: Settings) -> None:
    deliver(settings, 3, line("d3 0", 3, value=3.5), b"no json")
    bronze.run(taken_in, settings, DayRange(DAYS[3], DAYS[3]))
    reasons = dict.fromkeys(("silver.interactions", "silver.repeats"), "bronze.events has changed")
    assert_told_rightly(taken_in, settings, [3], reasons)


def test_other_names_in_the_settings(taken_in: Lake, settings: Settings) -> None:
    """`no json` stays what it is; every day is read anew all the same, and of bronze only the ledger would tell a difference."""
    other = settings.model_copy(update={"landing": settings.landing.model_copy(update={"event_types": {"look": "impression"}})})
    found = find_stale(taken_in, other)
    assert {(one.table, one.reason, one.rows) for one in found} == {("bronze.files", "the settings name other fields or event types", 2)}
    assert [one.day for one in found] == DAYS
    recompute(taken_in, other)
    assert find_stale(taken_in, other) == []


def test_what_came_out_of_quarantine(taken_in: Lake, settings: Settings) -> None:
    deliver(settings, 4, line("d4 0", 4, event_type="look"))
    ingest(taken_in, settings, [4])
    other = settings.model_copy(update={"event_types": settings.event_types | {"look": EventType()}})
    wider = Lake(taken_in.root, tuple(other.event_types))
    requeue(wider, other, DayRange(DAYS[4], DAYS[4]), [Reason.UNKNOWN_EVENT_TYPE])
    found = [one for one in find_stale(wider, other) if one.table.startswith("silver")]
    assert found == [Stale("silver.interactions", DAYS[4], "bronze.events is stale", 1)], "the settings are others too"


def test_landing_that_was_emptied(taken_in: Lake, settings: Settings) -> None:
    """What has been taken in stays; a day of which one feed is left counts as delivered again."""
    for path in settings.landing_path.rglob(f"ds={DAYS[0]}/*.json"):
        path.unlink()
    assert find_stale(taken_in, settings) == []
    before = rows_of(taken_in, INGESTED)
    ingest(taken_in, settings)
    assert rows_of(taken_in, INGESTED) == before
    (settings.landing_path / f"events/ds={DAYS[1]}/a.json").unlink()
    assert {one.reason for one in find_stale(taken_in, settings) if one.table == "bronze.events"} == {f"events/ds={DAYS[1]}/a.json is gone"}
    for path in settings.landing_path.rglob("*.json"):
        path.unlink()
    assert find_stale(taken_in, settings) == []


def test_half_a_first_run_of_silver(lake: Lake, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before silver.items: what is there is compared."""
    deliver(settings, 0, line("a", 0))
    bronze.run(lake, settings, DayRange(DAYS[0], DAYS[0]))
    with monkeypatch.context() as patch:
        patch.setattr(silver, "validity", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            silver.run(lake, settings, DayRange(DAYS[0], DAYS[0]))
    deliver(settings, 0, line("a", 0, value=2.5))
    say(settings, 0, x=1.0)
    assert told(lake, settings).keys() >= {("bronze.items", DAYS[0]), ("silver.interactions", DAYS[0])}


def test_a_table_that_was_removed_and_made_again(lake: Lake, settings: Settings) -> None:
    """Its versions begin anew: what was made from the one before is stale, and nothing has overtaken it."""
    lake.replace("bronze.events", lake.schema("bronze.events").empty_table(), "bronze", DAYS, {})
    lake.replace("gold.user_partials", row(lake, "gold.user_partials", DAYS[0]), "features", DAYS, {"silver.interactions": 7})
    lake.replace("silver.interactions", row(lake, "silver.interactions", DAYS[0]), "silver", DAYS, {})
    assert told(lake, settings) == {("gold.user_partials", DAYS[0]): 1}
    lake.replace("gold.user_partials", row(lake, "gold.user_partials", DAYS[0]), "features", DAYS, {"silver.interactions": 1})
    assert find_stale(lake, settings) == []
    lake.replace("silver.interactions", row(lake, "silver.interactions", DAYS[0]), "silver", DAYS, {})
    lake.replace("gold.user_partials", row(lake, "gold.user_partials", DAYS[0]), "features", DAYS, {"silver.interactions": 2})
    with pytest.raises(ConcurrentWrite):
        lake.replace("gold.user_partials", row(lake, "gold.user_partials", DAYS[0]), "features", DAYS, {"silver.interactions": 1})


def test_what_a_table_was_made_from_is_gone(taken_in: Lake, settings: Settings) -> None:
    """With nothing left to compare bronze with, all ids of the day may have changed: silver itself is compared."""
    old = {Path(uri) for uri in taken_in.dataset("bronze.events").files}
    deliver(settings, 3, line("d3 0", 3, user_id="u0"), line("d3 1", 3, user_id="u1"), line("d0 0", 0), b"no json", b"nor this")
    bronze.run(taken_in, settings, DayRange(DAYS[3], DAYS[3]))
    assert find_stale(taken_in, settings) == [], "but for the line in quarantine it brought the same"
    for path in old - {Path(uri) for uri in taken_in.dataset("bronze.events").files}:
        path.unlink()
    assert find_stale(taken_in, settings) == [], "of the ids that may have changed, silver is made anew and compared"


FEATURES = ("gold.user_partials", "gold.item_partials", "gold.user_features", "gold.item_features", "gold.feature_statistics")
TRANSITIONS = ("gold.candidate_sets", "gold.unattributed", "gold.transitions", "gold.rewards", "gold.item_index")


def test_all_that_follows_from_a_day_delivered_again(
    spark: SparkSession, lake: Lake, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever then changes was told before, with at least as many rows; made again, all is as in a new lake."""
    monkeypatch.setattr("jobs.operate.run._spark", lambda settings: nullcontext(spark))  # the session of the tests
    for day in range(4):
        shown = [line(f"s{day} {user}", day, event_type="impression", user_id=f"u{user}", item_id=f"i{(user + day) % 3}") for user in range(4)]
        clicks = [line(f"c{day} {user}", day, event_type="click", user_id=f"u{user}", item_id=f"i{(user + day) % 3}") for user in range(0, 4, 2)]
        late = [line(f"late{day}", day - 1, event_type="click", user_id="u1", item_id=f"i{day % 3}")] if day else []
        deliver(settings, day, *shown, *clicks, *late)
    run_all(spark, lake, settings, DAYS[0], DAYS[3])
    assert find_stale(lake, settings) == []

    # Of the third day one user's click is another's, the late one is gone, and one of the first day has come.
    kept = [line(f"s2 {user}", 2, event_type="impression", user_id=f"u{user}", item_id=f"i{(user + 2) % 3}") for user in range(4)]
    come = [line("c2 0", 2, event_type="click", user_id="u3", item_id="i2"), line("new", 0, event_type="purchase", user_id="u2", item_id="i9")]
    deliver(settings, 2, *kept, *come)
    expected = told(lake, settings)
    assert {day for table, day in expected if table not in FEATURES} == {DAYS[2]}, "the day of the run that makes it again"
    before = by_day(lake)
    recompute(lake, settings)
    after = by_day(lake)
    different = {key: changed(before[key], after[key]) for key in before.keys() | after.keys() if before[key] != after[key]}
    assert {table for table, _ in different} == {*FEATURES, "gold.item_index", "gold.rewards", "gold.transitions", "gold.unattributed"}
    assert {key for key in different if key[0] in FEATURES} == {key for key in expected if key[0] in FEATURES}
    for (table, key), rows in different.items():
        assert rows <= expected[table, key if table in FEATURES else DAYS[2]], (table, key)
    assert ("gold.user_features", DAYS[1]) not in expected
    assert find_stale(lake, settings) == []
    commits = [len(lake.commits(table)) for table in FEATURES]
    recompute(lake, settings)
    assert [len(lake.commits(table)) for table in FEATURES] == commits

    fresh = Lake(tmp_path / "fresh", lake.event_types)
    run_all(spark, fresh, settings, DAYS[0], DAYS[3])
    tables = [table for step in FEATURES_DAILY for table in find_step(step).writes]
    assert rows_of(lake, tables) == rows_of(fresh, tables)

    richer = settings.model_copy(update={"event_types": settings.event_types | {"click": EventType(reward="2", maturity_days=1)}})
    found = find_stale(lake, richer)
    assert {one.reason for one in found} == {"the settings of rewards, episodes or limits are others"}
    of_every_day = {(table, day) for table in ("gold.transitions", "gold.rewards") for day in DAYS[:4]}
    assert {(one.table, one.day) for one in found} == {*of_every_day, ("gold.unattributed", DAYS[0])}


def run_all(spark: SparkSession, lake: Lake, settings: Settings, first: date, last: date) -> None:
    days = DayRange(first, last)
    for ingesting in (bronze, silver):
        ingesting.run(lake, settings, days)
    for building in (features, transitions):
        building.run(spark, lake, settings, days)


def by_day(lake: Lake) -> dict[tuple[str, date], Counter[str]]:
    """Rows of the tables that Spark makes, by table and day of the run that would make them again."""
    found: dict[tuple[str, date], Counter[str]] = defaultdict(Counter)
    for table in (*FEATURES, *TRANSITIONS):
        for held in lake.read(table).to_pylist():
            found[table, held.get("arrival_day") or held["day"]][repr(held)] += 1
    return found


def test_the_newest_night(lake: Lake, settings: Settings) -> None:
    """Another transition of its window makes the night stale from its policy on; a night before it stays as it was decided."""
    night, before = DAYS[4], DAYS[3]
    for table in ("silver.interactions", "silver.items", "gold.transitions"):
        lake.replace(table, row(lake, table, night), "test", [before, night], {})
    for day in (before, night):
        for step in POLICY_DAILY:
            for table in find_step(step).writes:
                inputs = lake.versions(find_step(step).reads)
                lake.replace(table, row(lake, table, day), step, [day], inputs)
    assert find_stale(lake, settings) == []
    lake.replace("gold.verdicts", row(lake, "gold.verdicts", before, serving="another"), "gate", [before], {})
    lake.replace("gold.transitions", row(lake, "gold.transitions", night), "transitions", [night], {})
    assert find_stale(lake, settings) == [], "the same rows again"

    lake.replace("gold.evaluations", row(lake, "gold.evaluations", night, value=1.0), "evaluate", [night], lake.versions(find_step("evaluate").reads))
    assert [(one.table, one.day, one.reason) for one in find_stale(lake, settings)] == [
        ("gold.verdicts", night, "gold.evaluations has changed"),
        ("gold.recommendations", night, "gold.verdicts is stale"),
        ("gold.audits", night, "gold.verdicts is stale"),
        ("serving.recommendations", night, "gold.recommendations is stale"),
    ]
    lake.replace("gold.transitions", row(lake, "gold.transitions", before), "transitions", [before], {})
    found = find_stale(lake, settings)
    assert [one.table for one in found] == [table for step in POLICY_DAILY for table in find_step(step).writes]
    assert (found[0].day, found[0].reason) == (night, "gold.transitions has changed")
    lake.replace("gold.transitions", row(lake, "gold.transitions", night + timedelta(days=1)), "transitions", [night + timedelta(days=1)], {})
    assert find_stale(lake, settings) == [], "the next night has not run, and is not stale"


def test_a_policy_that_knows_its_users(lake: Lake, settings: Settings) -> None:
    """Other features on an evening of its window make it stale; one that was trained without any stays."""
    night, before, after = DAYS[4], DAYS[3], DAYS[4] + timedelta(days=1)
    for table in ("silver.interactions", "silver.items", "gold.transitions", "gold.user_features"):
        lake.replace(table, row(lake, table, night), "test", [before, night], {})
    for reads_features in (False, True):
        inputs = lake.versions(find_step("train").reads)
        if not reads_features:
            inputs.pop("gold.user_features")
        lake.replace("gold.policies", row(lake, "gold.policies", night), "train", [night], inputs)
        lake.replace("gold.user_features", row(lake, "gold.user_features", after), "features", [after], {})
        assert find_stale(lake, settings) == [], "the next evening is none of its"
        lake.replace("gold.user_features", row(lake, "gold.user_features", before, click_count_7d=float(reads_features)), "features", [before], {})
        found = [(one.table, one.day, one.reason) for one in find_stale(lake, settings)]
        assert found == [("gold.policies", night, "gold.user_features has changed")] * reads_features


def make_features(lake: Lake, settings: Settings, days: Sequence[date]) -> None:
    """One row of each table of features for each of the days, from what there is."""
    for table in FEATURES:
        inputs = lake.versions(source for source in ("silver.interactions", "silver.items", *FEATURES) if source != table)
        rows = [row(lake, table, day, **({"entity": "user", "feature": "click_count_1d"} if table == FEATURES[-1] else {})) for day in days]
        lake.replace(table, pa.concat_tables(rows), "features", days, inputs, fingerprint=settings.rules(table))


def test_a_feature_declared_otherwise(lake: Lake, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """It makes the table of its entity stale, and the statistics of that; no other."""
    for table in ("silver.interactions", "silver.items"):
        lake.replace(table, row(lake, table, DAYS[0]), "silver", DAYS, {})
    make_features(lake, settings, DAYS[:2])
    assert find_stale(lake, settings) == []
    before = declared(lake.event_types)
    monkeypatch.setattr("jobs.contracts.features.declared", lambda event_types: (*before, Feature("user", "count", "event", "view", 7)))
    assert [(one.table, one.day, one.reason) for one in find_stale(lake, settings)] == [
        *(("gold.user_features", day, "the features are declared otherwise, or the limits are others") for day in DAYS[:2]),
        *((FEATURES[-1], day, "gold.user_features is stale") for day in DAYS[:2]),
    ]
    monkeypatch.setattr("jobs.contracts.features.declared", lambda event_types: before[:-1])
    assert {one.table for one in find_stale(lake, settings)} == {"gold.item_features"}, "there are no statistics of items here"


def test_an_item_restated(lake: Lake, settings: Settings) -> None:
    """Another price, from a day on: the item features from that day on are stale, those of users never; a title changes neither."""
    item = "silver.items"
    lake.replace("silver.interactions", row(lake, "silver.interactions", DAYS[0]), "silver", DAYS, {})
    lake.replace(item, row(lake, item, DAYS[0], price=1.0), "silver", DAYS, {})
    make_features(lake, settings, DAYS[:3])
    lake.replace(item, row(lake, item, DAYS[0], price=1.0, title="another"), "silver", DAYS, {})
    assert find_stale(lake, settings) == []
    restated = [row(lake, item, DAYS[0], price=1.0, valid_to=DAYS[1]), row(lake, item, DAYS[1], price=2.0)]
    lake.replace(item, pa.concat_tables(restated), "silver", DAYS, {})
    assert [(one.table, one.day, one.reason) for one in find_stale(lake, settings)] == [
        ("gold.item_features", day, "silver.items has changed") for day in DAYS[1:3]
    ]


def row(lake: Lake, table: str, day: date, **columns: Any) -> Any:
    """One row of a table, as small as it may be but for these columns."""
    smallest: dict[str, Any] = {"string": "", "double": 0.0, "bigint": 0, "int": 0, "decimal(38,6)": Decimal(0), "boolean": False, "date": day}
    smallest |= {"timestamp": datetime(day.year, day.month, day.day, tzinfo=UTC)}
    values = {column.name: None if column.nullable else [] if column.type.startswith("array") else smallest[column.type] for column in lake.columns(table)}
    return pa.Table.from_pylist([values | columns], lake.schema(table))
