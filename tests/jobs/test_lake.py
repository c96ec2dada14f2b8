from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from jobs.contracts.errors import ConcurrentWrite, LakeUnwritable, NotReady
from jobs.lake import Lake, insist

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

FIRST, SECOND = date(2026, 1, 1), date(2026, 1, 2)


def unattributed(lake: Lake, **columns: list[Any]) -> pa.Table:
    rows = len(columns["day"])
    filled: dict[str, list[Any]] = {"user_id": ["u"] * rows, "item": [1] * rows, "event_type": ["click"] * rows}
    filled |= {"reward": [1.0] * rows, "reason": ["no_step"] * rows, "as_of_day": [SECOND] * rows, **columns}
    return pa.table(filled).select(lake.schema("gold.unattributed").names)


def test_replace_changes_the_days_named_and_no_other(lake: Lake) -> None:
    lake.replace("gold.unattributed", unattributed(lake, event_id=["a", "b"], day=[FIRST, SECOND]), "transitions", [FIRST, SECOND], {})
    lake.replace("gold.unattributed", unattributed(lake, event_id=["c"], day=[SECOND]), "transitions", [SECOND], {"silver.interactions": 7})
    rows = lake.read("gold.unattributed", ["event_id", "day"]).sort_by("event_id").to_pylist()
    assert rows == [{"event_id": "a", "day": FIRST}, {"event_id": "c", "day": SECOND}]
    last = lake.commits("gold.unattributed")[-1]
    assert (last.step, last.days, last.inputs) == ("transitions", frozenset([SECOND]), {"silver.interactions": 7})


def test_a_day_without_rows_is_done(lake: Lake) -> None:
    lake.replace("gold.unattributed", lake.schema("gold.unattributed").empty_table(), "transitions", [FIRST], {})
    assert lake.done("gold.unattributed") == {FIRST}
    assert lake.read("gold.unattributed").num_rows == 0


def test_a_table_that_is_not_there(lake: Lake) -> None:
    with pytest.raises(NotReady, match=r"no table gold\.transitions"):
        lake.read("gold.transitions")


def test_another_event_type_is_a_new_column(lake: Lake) -> None:
    """Its features are null in what was made before."""
    lake.ensure("gold.user_features")
    wider = Lake(lake.root, (*lake.event_types, "share"))
    assert "share_count_1d" in wider.read("gold.user_features").column_names
    wider.require_writable(["gold.item_features", "gold.user_features"])
    assert not lake.exists("gold.item_features")


@pytest.mark.parametrize("folder", ["lake", "my lake, née"])
def test_both_engines_write_and_read_the_same(spark: SparkSession, tmp_path: Path, folder: str) -> None:
    lake = Lake(tmp_path / folder, ("impression", "click"))
    rows = unattributed(lake, event_id=["a", "b"], day=[FIRST, SECOND])
    lake.replace("gold.unattributed", rows, "transitions", [FIRST, SECOND], {})
    frame = lake.frame(spark, "gold.unattributed")
    lake.replace_frame("gold.unattributed", frame.where("day = '2026-01-02'"), "transitions", [SECOND], {"silver.items": 1})
    lake.replace_frame("gold.unattributed", frame.where("false"), "transitions", [date(2026, 1, 3)], {}, partitions=[])
    assert lake.read("gold.unattributed").sort_by("event_id").equals(rows.cast(lake.schema("gold.unattributed")))
    assert lake.done("gold.unattributed") == {FIRST, SECOND, date(2026, 1, 3)}
    assert [commit.inputs for commit in lake.commits("gold.unattributed")] == [{}, {"silver.items": 1}, {}]
    assert lake.is_whole("gold.unattributed", lake.version("gold.unattributed"))
    assert [lake.read_file("gold.unattributed", file, ["event_id"]).num_rows for file in lake.files("gold.unattributed")] == [1, 1]


def while_spark_writes(lake: Lake, frame: DataFrame, day: date, folder: Path, other: Callable[[], None]) -> BaseException | None:
    """Replace a day by a frame, do `other` after that has begun and before it commits, and return what it raised."""
    from pyspark.sql.functions import udf

    begun, done = folder / "begun", folder / "done"

    def wait() -> bool:
        begun.touch()
        while not done.exists():
            time.sleep(0.05)
        return True

    held_up = frame.where(udf(wait, "boolean")())
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(lake.replace_frame, "gold.unattributed", held_up, "transitions", [day], {})
        try:
            while not begun.exists() and not running.done():
                time.sleep(0.05)
            other()
        finally:
            done.touch()
        return running.exception()


def test_who_is_overtaken_while_spark_writes_is_told(spark: SparkSession, lake: Lake, tmp_path: Path) -> None:
    table, days = "gold.unattributed", [FIRST, SECOND]
    lake.replace(table, unattributed(lake, event_id=["a", "b"], day=days), "transitions", days, {})
    frame = spark.createDataFrame(unattributed(lake, event_id=["spark"], day=[SECOND]).to_pandas())
    newer = unattributed(lake, event_id=["arrow"], day=[SECOND])
    refused = while_spark_writes(lake, frame, SECOND, tmp_path, lambda: lake.replace(table, newer, "transitions", [SECOND], {}))
    assert isinstance(refused, ConcurrentWrite)
    assert sorted(lake.read(table)["event_id"].to_pylist()) == ["a", "arrow"]


@pytest.mark.parametrize("spoil", ["unwritable", "a file"])
def test_a_lake_that_cannot_be_written(tmp_path: Path, spoil: str) -> None:
    root = tmp_path / "lake"
    if spoil == "a file":
        root.write_text("")
    else:
        root.mkdir(mode=0o500)
    assert message_without_privileges(Lake(root, ("view",))).startswith(f"The lake {root} can't be ")
    assert not root.is_dir() or list(root.iterdir()) == []


def message_without_privileges(lake: Lake) -> str:
    """The error of lake.ensure, in a child that is not root (root may write anywhere)."""
    source, sink = os.pipe()
    child = os.fork()
    if child == 0:
        if os.getuid() == 0:
            os.setuid(65534)
        answer = "written"
        try:
            lake.ensure("gold.verdicts")
        except BaseException as error:
            answer = str(error) if isinstance(error, LakeUnwritable) else repr(error)
        finally:
            os.write(sink, answer.encode())
            os._exit(0)  # whatever happened, the child must not go on with the tests
    os.close(sink)
    os.waitpid(child, 0)
    with os.fdopen(source) as stream:
        return stream.read()


@pytest.mark.parametrize("table", ["gold.unattributed", "serving.recommendations"])
def test_what_another_run_has_replaced_meanwhile_is_not_overwritten(lake: Lake, table: str) -> None:
    """From an empty table and from one with rows: the second writer, whose rows were made from the version before, is turned away."""
    for before in range(2):
        lake.ensure(table)
        seen = lake.version(table)
        rows = blank(lake, table, FIRST)
        lake.replace(table, rows, "first", [FIRST], {})
        with pytest.raises(ConcurrentWrite, match=rf"{table} in .* for 2026-01-01 meanwhile"):
            lake.replace(table, pa.concat_tables([rows, rows]), "second", [FIRST], {}, seen=seen)
        assert lake.read(table).num_rows == 1
        assert [commit.step for commit in lake.commits(table)] == ["first"] * (before + 1)


def test_runs_of_neighbouring_days_do_not_meet(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both from the version before; unless the rows were made from the table itself, which the other day's may have changed."""
    table = "gold.unattributed"
    lake.ensure(table)
    seen = lake.version(table)
    old = Lake._open
    with monkeypatch.context() as patch:
        patch.setattr(Lake, "_open", lambda self, table, version: old(self, table, seen))
        for day in (FIRST, SECOND):
            lake.replace(table, blank(lake, table, day), "step", [day], {})
    assert sorted(lake.read(table)["day"].to_pylist()) == [FIRST, SECOND]
    with pytest.raises(ConcurrentWrite):
        lake.replace(table, blank(lake, table, SECOND), "step", [SECOND], {}, seen=seen)


def test_older_inputs_do_not_replace_newer_ones(spark: SparkSession, lake: Lake) -> None:
    table = "gold.unattributed"
    lake.replace(table, blank(lake, table, FIRST), "step", [FIRST], {"silver.interactions": 5})
    with pytest.raises(ConcurrentWrite):
        lake.replace(table, blank(lake, table, FIRST), "step", [FIRST], {"silver.interactions": 4})
    with pytest.raises(ConcurrentWrite):
        lake.replace_frame(table, lake.frame(spark, table), "step", [FIRST], {"silver.interactions": 4})
    lake.replace(table, blank(lake, table, SECOND), "step", [SECOND], {"silver.interactions": 4})
    lake.replace(table, blank(lake, table, FIRST), "step", [FIRST], {"silver.interactions": 5})


def test_a_spark_step_that_was_overtaken_says_so(spark: SparkSession, lake: Lake) -> None:
    table = "gold.unattributed"
    lake.replace(table, blank(lake, table, FIRST), "step", [FIRST], {})
    seen = lake.version(table)
    lake.replace(table, blank(lake, table, FIRST), "other", [FIRST], {})
    with pytest.raises(ConcurrentWrite):
        lake.replace_frame(table, lake.frame(spark, table), "step", [FIRST], {}, seen=seen)


def test_a_conflict_that_delta_itself_finds(spark: SparkSession, lake: Lake) -> None:
    """The other commit comes while Spark makes its rows."""
    table = "gold.unattributed"
    row = blank(lake, table, FIRST)
    lake.replace(table, row, "step", [FIRST], {})

    def meanwhile(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        lake.replace(table, row, "other", [FIRST], {})
        yield from batches

    frame = lake.frame(spark, table)
    with pytest.raises(ConcurrentWrite):
        lake.replace_frame(table, frame.mapInArrow(meanwhile, frame.schema), "step", [FIRST], {})
    assert [commit.step for commit in lake.commits(table)] == ["step", "other"]


def test_insisting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    tries: list[int] = []

    def work() -> None:
        tries.append(len(tries))
        if len(tries) < 3:
            raise ConcurrentWrite("met")

    insist(work)
    assert len(tries) == 3
    with pytest.raises(ConcurrentWrite):
        insist(never)


def never() -> None:
    raise ConcurrentWrite("met")


def test_what_goes_wrong_while_rows_are_made_is_told_as_it_is(lake: Lake) -> None:
    def rows() -> Iterator[pa.Table]:
        yield blank(lake, "gold.unattributed", FIRST)
        raise NotReady("no more")

    with pytest.raises(NotReady, match="no more"):
        lake.replace("gold.unattributed", rows(), "step", [FIRST], {})
    assert lake.read("gold.unattributed").num_rows == 0


def blank(lake: Lake, table: str, day: date) -> pa.Table:
    """One row of a table, of the day, with the smallest value in every other column."""
    smallest: dict[str, Any] = {"string": "", "double": 0.0, "bigint": 0, "int": 0, "date": day}
    return pa.table({column.name: [smallest[column.type]] for column in lake.columns(table)}, lake.schema(table))
