"""Commits that meet in a store: by deltalake, by Spark, by two Sparks. One of each pair is taken, the other one told."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest

from jobs.contracts.days import DayRange
from jobs.contracts.errors import ConcurrentWrite, LakeUnwritable
from jobs.lake import Lake, insist
from jobs.operate.run import run_steps
from jobs.settings import S3, Settings
from jobs.storage import S3Path
from tests.jobs.test_lake import unattributed, while_spark_writes
from tests.s3.conftest import ROOT, make_bucket, settings_in

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

TABLE = "gold.unattributed"
FIRST, SECOND = date(2026, 1, 1), date(2026, 1, 2)


@pytest.fixture
def lake(settings: Settings) -> Lake:
    lake = Lake(settings.lake_path, tuple(settings.event_types))
    lake.replace(TABLE, unattributed(lake, event_id=["a"], day=[FIRST]), "transitions", [FIRST], {})
    return lake


def rows(lake: Lake, name: str, day: date) -> pa.Table:
    return unattributed(lake, event_id=[name], day=[day])


def frame(spark: SparkSession, lake: Lake, name: str, day: date) -> DataFrame:
    return spark.createDataFrame(rows(lake, name, day).to_pandas())


def slowly(lake: Lake, name: str, day: date, seconds: float = 3) -> Iterator[pa.Table]:
    threading.Event().wait(seconds)
    yield rows(lake, name, day)


def held(lake: Lake) -> set[tuple[str, date]]:
    return {(row["event_id"], row["day"]) for row in lake.read(TABLE, ["event_id", "day"]).to_pylist()}


def meanwhile(work: partial[None], other: partial[None]) -> BaseException | None:
    """Do `work` and, a second into it, `other`; return what `work` raised."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(work)
        threading.Event().wait(1)
        other()
        return running.exception()


def test_deltalake_meets_deltalake(lake: Lake) -> None:
    refused = meanwhile(
        partial(lake.replace, TABLE, slowly(lake, "late", FIRST), "transitions", [FIRST], {}),
        partial(lake.replace, TABLE, rows(lake, "other", FIRST), "transitions", [FIRST], {}),
    )
    assert isinstance(refused, ConcurrentWrite)
    assert held(lake) == {("other", FIRST)}


@pytest.mark.parametrize("day", [FIRST, SECOND], ids=["a day that is there", "a new day"])
def test_deltalake_is_first_while_spark_writes(spark: SparkSession, lake: Lake, tmp_path: Path, day: date) -> None:
    commit = partial(lake.replace, TABLE, rows(lake, "arrow", day), "transitions", [day], {})
    refused = while_spark_writes(lake, frame(spark, lake, "spark", day), day, tmp_path, commit)
    assert isinstance(refused, ConcurrentWrite)
    assert held(lake) == ({("a", FIRST), ("arrow", SECOND)} if day == SECOND else {("arrow", FIRST)})


def test_who_writes_another_day_is_let_in(spark: SparkSession, lake: Lake, tmp_path: Path) -> None:
    before = lake.version(TABLE)
    commit = partial(lake.replace, TABLE, rows(lake, "arrow", FIRST), "transitions", [FIRST], {})
    assert while_spark_writes(lake, frame(spark, lake, "spark", SECOND), SECOND, tmp_path, commit) is None
    assert held(lake) == {("arrow", FIRST), ("spark", SECOND)}
    assert lake.version(TABLE) == before + 2


def test_spark_is_first_while_deltalake_writes(spark: SparkSession, lake: Lake) -> None:
    """Spark's first write of a session takes some seconds."""
    quick = frame(spark, lake, "spark", FIRST)
    refused = meanwhile(
        partial(lake.replace, TABLE, slowly(lake, "arrow", FIRST, seconds=12), "transitions", [FIRST], {}),
        partial(lake.replace_frame, TABLE, quick, "transitions", [FIRST], {}),
    )
    assert isinstance(refused, ConcurrentWrite)
    assert held(lake) == {("spark", FIRST)}


def commit_often(spark: SparkSession, lake: Lake, name: str, times: int) -> None:
    """Commit days of one's own, and the one day that everybody wants, again and again."""
    for number in range(times):
        own = FIRST + timedelta(days=10 + 2 * number + (name == "child"))
        for day in (own, SECOND):
            insist(partial(lake.replace_frame, TABLE, frame(spark, lake, name, day), f"{name} {number} {day}", [day], {}))


_CHILD = """
import sys
from jobs.lake import Lake
from jobs.settings import Settings
from jobs.spark import start_session
from tests.s3.test_races import commit_often
settings = Settings.model_validate_json(sys.argv[1])
spark = start_session(settings)
print("ready", flush=True)
sys.stdin.readline()
commit_often(spark, Lake(settings.lake_path, tuple(settings.event_types)), "child", int(sys.argv[2]))
spark.stop()
"""


def test_two_sparks_and_deltalake_at_once(spark: SparkSession, lake: Lake, settings: Settings) -> None:
    """Every commit that was taken is in the log once, none over another."""
    times, before = 2, lake.version(TABLE)
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, settings.model_dump_json(), str(times)], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"

    def commit_by_deltalake() -> None:
        for number in range(3 * times):
            insist(partial(lake.replace, TABLE, rows(lake, "arrow", SECOND), f"arrow {number} {SECOND}", [SECOND], {}))

    with ThreadPoolExecutor(2) as pool:
        works = [pool.submit(commit_often, spark, lake, "parent", times), pool.submit(commit_by_deltalake)]
        child.communicate("go\n", timeout=300)
        assert child.returncode == 0
        assert [work.exception() for work in works] == [None, None]
    made = [commit.step for commit in lake.commits(TABLE) if commit.version > before]
    assert len(made) == len(set(made)) == 2 * 2 * times + 3 * times
    assert lake.version(TABLE) == before + len(made)
    own = {(name, FIRST + timedelta(days=10 + 2 * number + (name == "child"))) for name in ("parent", "child") for number in range(times)}
    found = held(lake)
    assert found >= own
    assert len([name for name, day in found if day == SECOND]) == 1


def test_a_put_that_meets_another_is_made_once(store: S3) -> None:
    """S3 answers 409 while it is between two PUTs of one object: to whoever makes a table, and to whoever commits to it, in each of three ways."""
    lake = Lake(settings_in(make_bucket(store, "undecided"), store).lake_path, ("view",))
    with pytest.raises(ConcurrentWrite):
        lake.ensure(TABLE)
    lake.ensure(TABLE)
    lake.replace(TABLE, rows(lake, "a", FIRST), "first", [FIRST], {})
    works = (
        lambda: lake.replace(TABLE, rows(lake, "b", FIRST), "second", [FIRST], {}, seen=lake.version(TABLE)),
        lambda: lake.replace_by_files(TABLE, lake.writer(TABLE).write([rows(lake, "c", SECOND)]), "third", [SECOND], {}),
    )
    for work in works:
        insist(work)
    assert [commit.step for commit in lake.commits(TABLE)] == ["first", "second", "third"]
    assert held(lake) == {("b", FIRST), ("c", SECOND)}


@pytest.mark.parametrize("kind", ["careless", "unable"])
def test_a_store_that_knows_no_conditions_is_found_out(store: S3, kind: str) -> None:
    bucket = make_bucket(store, kind)
    settings = settings_in(bucket, store)
    with pytest.raises(LakeUnwritable, match="knows no conditional PUT"):
        run_steps([("bronze", DayRange(FIRST, FIRST))], settings)
    with pytest.raises(LakeUnwritable, match="knows no conditional PUT"):
        Lake(settings.lake_path, ("view",)).ensure(TABLE)
    assert list(S3Path(bucket, store).glob("*")) == []
