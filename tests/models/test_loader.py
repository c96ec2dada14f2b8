"""The loader against what a plain reading of the rows gives. Every step has a reward of its own, by which it is told from all others."""

from __future__ import annotations

import json
import tracemalloc
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, fields
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from deltalake import write_deltalake

from jobs.contracts.errors import TooLittleData
from jobs.lake import Lake
from models.data import END_CODES, Steps, day_number, read_steps
from models.loader import PER_SLOT, HeldBucket, LakeBuckets, LateBuckets, Loader, Packed, Packing, Position, cut, pack
from models.shards import ShardManifest
from tests.models.made import DAY as MADE_DAY
from tests.models.made import make

FIRST = date(2026, 1, 1)
DAYS = [FIRST + timedelta(days=number) for number in range(4)]
ITEMS = 50
PLACES = np.arange(ITEMS + 1, dtype=np.int32)[::-1].copy()  # item number n is index 50 - n of the catalogue
WORKERS = {1: (0, 1, 2), 2: (0, 3), 3: (0, 1)}  # by the number of ranks
PACKING = Packing(context=8, length=24, rows=3)
TABLE = "gold.transitions"
START = Position()
Row = dict[str, Any]


def log(users: int, seed: int, buckets: int = 16, days: Sequence[date] = DAYS) -> list[Row]:
    """Steps at random, sorted as files are: many of one instant, users with none on some days and a few with very many."""
    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    for day in days:
        for user in range(users):
            count = int(rng.integers(0, 6)) + (30 if user % 17 == 0 else 0)
            times = sorted(rng.integers(0, 5, count).tolist())
            rows += [
                {
                    "user_id": f"u{user:03}",
                    "event_time": datetime(day.year, day.month, day.day, hour, tzinfo=UTC),
                    "step": number,
                    "item": int(rng.integers(1, ITEMS + 1)),
                    "event_type": ("impression", "click", "unheard of")[int(rng.integers(0, 3))],
                    "response": (None, "click", "purchase")[int(rng.integers(0, 3))],
                    "reward": float(len(rows) + number),
                    "first": number == 1,
                    "end": (None, "terminated", "truncated_gap")[int(rng.integers(0, 3))],
                    "propensity": (None, 0.25)[int(rng.integers(0, 2))],
                    "candidate_set": None,
                    "as_of_day": DAYS[-1],
                    "day": day,
                    "bucket": user * 7 % buckets,
                }
                for number, hour in enumerate(times, start=1)
            ]
    return rows


def land(lake: Lake, rows: Sequence[Row]) -> int:
    """Write the rows, a file a day and bucket, each in the order given; return the version."""
    days = sorted({row["day"] for row in rows})
    lake.replace(TABLE, pa.Table.from_pylist(list(rows), lake.schema(TABLE)), "transitions", days, {})
    return lake.version(TABLE)


def manifest_of(lake: Lake, version: int | None = None) -> ShardManifest:
    return ShardManifest.of(lake, DAYS[0], DAYS[-1], lake.version(TABLE) if version is None else version)


def loader(lake: Lake, manifest: ShardManifest | None = None, seed: int = 0, packing: Packing = PACKING, **ranks: int) -> Loader:
    return Loader(LakeBuckets(lake, (manifest or manifest_of(lake)).shards, PLACES), packing, seed, **ranks)


def epoch_of(loads: Loader, position: Position = START) -> list[tuple[Packed, Position]]:
    return list(loads.batches(position))


def fresh_rewards(batches: Sequence[tuple[Packed, Position]]) -> list[float]:
    return [reward for batch, _ in batches for reward in batch.reward[batch.fresh].tolist()]


def same(one: Packed, other: Packed) -> bool:
    return all(torch.equal(getattr(one, field.name).nan_to_num(-1), getattr(other, field.name).nan_to_num(-1)) for field in fields(Packed))


def assert_read_as(steps: Steps, rows: Sequence[Row], event_types: Sequence[str]) -> None:
    """Each user's steps by day and place in the day, every column as the row says."""
    histories: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (row["user_id"], row["day"], row["step"])):
        histories[row["user_id"]].append(row)
    assert steps.user_ids == tuple(histories)
    assert np.diff(steps.offsets).tolist() == [len(history) for history in histories.values()]
    expected = [row for history in histories.values() for row in history]
    codes = {name: code for code, name in enumerate(event_types, start=1)}
    assert steps.reward.tolist() == [row["reward"] for row in expected]
    assert steps.item.tolist() == [ITEMS - row["item"] for row in expected]
    assert steps.event.tolist() == [codes.get(row["event_type"], 0) for row in expected]
    assert steps.response.tolist() == [codes.get(row["response"], 0) for row in expected]
    assert steps.time.tolist() == [int(row["event_time"].timestamp()) for row in expected]
    assert steps.first.tolist() == [row["first"] for row in expected]
    assert steps.end.tolist() == [END_CODES.get(row["end"], 0) for row in expected]
    assert steps.day.tolist() == [day_number(row["day"]) for row in expected]
    np.testing.assert_array_equal(steps.propensity, np.array([row["propensity"] for row in expected], dtype=np.float32))
    kinds = {name: getattr(steps, name).dtype for name in ("item", "event", "response", "reward", "time", "first", "end", "propensity", "day")}
    assert list(map(str, kinds.values())) == ["int32", "int8", "int8", "float32", "int64", "bool", "int8", "float32", "int32"]


@pytest.mark.parametrize("order", ["sorted", "shuffled", "steps shuffled", "users dealt out"])
def test_a_bucket_is_read_in_order_whatever_its_files_are_in(lake: Lake, order: str) -> None:
    rows = log(60, seed=1, buckets=2)
    rng = np.random.default_rng(0)
    drawn = rng.permutation(len(rows)).tolist()
    orders = {
        "sorted": list(range(len(rows))),
        "shuffled": drawn,
        "steps shuffled": sorted(drawn, key=lambda place: rows[place]["user_id"]),
        "users dealt out": sorted(drawn, key=lambda place: (rows[place]["step"], rows[place]["user_id"])),
    }
    land(lake, [rows[place] for place in orders[order]])
    for shard in manifest_of(lake).shards:
        steps = read_steps(lake, shard.files, PLACES, lake.event_types)
        assert_read_as(steps, [row for row in rows if row["bucket"] == shard.bucket], lake.event_types)
        assert shard.rows == len(steps)


def test_a_day_and_bucket_may_have_several_files(lake: Lake) -> None:
    """As Spark may write them: the users of each are others."""
    rows = log(20, seed=2, buckets=1)
    land(lake, [row for row in rows if row["user_id"] >= "u010"])
    rest = pa.Table.from_pylist([row for row in rows if row["user_id"] < "u010"], lake.schema(TABLE))
    write_deltalake(lake.path(TABLE), rest, mode="append", partition_by=["day", "bucket"])
    (shard,) = manifest_of(lake).shards
    assert len(shard.files) == 2 * len(DAYS)
    assert_read_as(read_steps(lake, shard.files, PLACES, lake.event_types), rows, lake.event_types)


def test_files_as_spark_writes_them(lake: Lake) -> None:
    """Snappy, a dictionary for every column, times of 96 bits."""
    rows = log(20, seed=13, buckets=1)
    land(lake, rows)
    for file in Path(lake.path(TABLE)).rglob("*.parquet"):
        pq.write_table(pq.ParquetFile(file).read(), file, compression="snappy", use_deprecated_int96_timestamps=True)
    (shard,) = manifest_of(lake).shards
    assert_read_as(read_steps(lake, shard.files, PLACES, lake.event_types), rows, lake.event_types)


def test_a_column_that_came_later_is_null_in_older_files(lake: Lake) -> None:
    rows = log(9, seed=3, buckets=1)
    schema = lake.schema(TABLE)
    older, newer = (pa.Table.from_pylist([row for row in rows if (row["day"] in DAYS[:2]) is is_older], schema) for is_older in (True, False))
    write_deltalake(lake.path(TABLE), older.drop_columns(["propensity", "response"]), partition_by=["day", "bucket"])
    lake.ensure(TABLE)
    write_deltalake(lake.path(TABLE), newer, mode="append", partition_by=["day", "bucket"])
    (shard,) = manifest_of(lake).shards
    expected = [row | ({"propensity": None, "response": None} if row["day"] in DAYS[:2] else {}) for row in rows]
    assert_read_as(read_steps(lake, shard.files, PLACES, lake.event_types), expected, lake.event_types)


def test_of_sixteen_buckets_one_is_a_sixteenth_of_the_row_groups(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing else is needed: the files of the others may be gone."""
    rows = log(64, seed=4)
    land(lake, rows)
    opened: list[int] = []

    class Counted(pq.ParquetFile):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            opened.append(self.num_row_groups)

    manifest = manifest_of(lake)
    files = list(Path(lake.path(TABLE)).rglob("*.parquet"))
    row_groups = sum(pq.ParquetFile(file).num_row_groups for file in files)
    monkeypatch.setattr(pq, "ParquetFile", Counted)
    for file in files:
        if "bucket=5" not in file.parts:
            file.unlink()
    steps = read_steps(lake, manifest.shards[5].files, PLACES, lake.event_types)
    assert len(steps) == sum(row["bucket"] == 5 for row in rows)
    assert sum(opened) * 16 <= row_groups


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_share_the_steps_and_workers_change_nothing(lake: Lake, ranks: int) -> None:
    rows = log(120, seed=5)
    land(lake, rows)
    learnt = []
    for rank in range(ranks):
        alone, *others = (epoch_of(loader(lake, rank=rank, ranks=ranks, workers=workers)) for workers in WORKERS[ranks])
        for other in others:
            assert [position for _, position in other] == [position for _, position in alone]
            assert all(same(one, another) for (one, _), (another, _) in zip(alone, other, strict=True))
        learnt += fresh_rewards(alone)
    assert sorted(learnt) == [row["reward"] for row in rows]


def test_the_order_is_that_of_seed_and_epoch(lake: Lake) -> None:
    land(lake, log(120, seed=6))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    orders = {(seed, epoch): fresh_rewards(epoch_of(loader(lake, seed=seed), Position(epoch))) for seed in (0, 1) for epoch in (0, 1)}
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    for (seed, epoch), order in orders.items():
        assert fresh_rewards(epoch_of(loader(lake, seed=seed), Position(epoch))) == order
        assert [other for other in orders if orders[other] == order] == [(seed, epoch)]
        assert sorted(order) == sorted(orders[0, 0])
    assert len({frozenset(order[:50]) for order in orders.values()}) > 1, "the buckets too come in another order"


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_is_uninterrupted(lake: Lake, workers: int) -> None:
    land(lake, log(40, seed=7, buckets=5))
    loads = loader(lake, seed=3, rank=1, ranks=2)
    whole = epoch_of(loads, Position(4))
    assert whole[-1][1] == Position(5)
    for stop in range(0, len(whole), 1 if workers == 0 else 4):
        position = Position(**json.loads(json.dumps(asdict(whole[stop][1]))))
        rest = epoch_of(loader(lake, seed=3, rank=1, ranks=2, workers=workers), position) if position.epoch == 4 else []
        assert [position for _, position in rest] == [position for _, position in whole[stop + 1 :]]
        assert all(same(one, other) for (one, _), (other, _) in zip(rest, whole[stop + 1 :], strict=True))


def test_a_window_is_what_a_user_did_in_order(lake: Lake) -> None:
    """A segment is consecutive steps of one user, at most `context`; it begins with his first step, or has a third of `context` before what is fresh."""
    rows = log(60, seed=8)
    land(lake, rows)
    place = {row["reward"]: number for number, row in enumerate(sorted(rows, key=lambda row: (row["user_id"], row["day"], row["step"])))}
    first_of = {user: min(place[row["reward"]] for row in rows if row["user_id"] == user) for user in {row["user_id"] for row in rows}}
    user_of = {row["reward"]: row["user_id"] for row in rows}
    times = {place[row["reward"]]: int(row["event_time"].timestamp()) for row in rows}
    last_of = {user: max(place[row["reward"]] for row in rows if row["user_id"] == user) for user in first_of}
    ends = {row["bucket"]: 86_400 * (1 + max(day_number(other["day"]) for other in rows if other["bucket"] == row["bucket"])) for row in rows}
    end_of = {row["user_id"]: ends[row["bucket"]] for row in rows}
    batches = epoch_of(loader(lake))
    assert max(len(batch) for batch, _ in batches) == PACKING.rows
    for batch, _ in batches:
        assert batch.segment.shape[1] == PACKING.length
        for row in range(len(batch)):
            segments = batch.segment[row].tolist()
            windows = max(segments)
            assert [segment for segment in segments if segment] == sorted(segment for segment in segments if segment)
            for segment in range(1, windows + 1):
                start, *slots = (batch.segment[row] == segment).nonzero().flatten().tolist()
                inside = torch.tensor(slots)
                assert not any(getattr(batch, name)[row, start] for name in PER_SLOT if name not in ("segment", "time", "wait"))
                rewards = batch.reward[row][inside].tolist()
                places, fresh = [place[reward] for reward in rewards], batch.fresh[row][inside].tolist()
                assert places == list(range(places[0], places[0] + len(places)))
                assert len({user_of[reward] for reward in rewards}) == 1
                assert 1 <= len(places) <= PACKING.context
                assert fresh == sorted(fresh)
                assert fresh[-1]
                earlier = max(place[rewards[0]] - 1, first_of[user_of[rewards[0]]])
                assert batch.time[row, start] == times[earlier]
                user, last = user_of[rewards[0]], places[-1]
                following = times[last + 1] if last < last_of[user] else end_of[user]
                moments = [times[at] for at in places] + [following]
                assert (batch.time + batch.wait)[row, [start, *slots]].tolist() == moments
                before = fresh.index(True)
                assert before >= PACKING.context // 3 or places[0] == first_of[user_of[rewards[0]]]
            padding = batch.segment[row] == 0
            for name in PER_SLOT:
                assert not getattr(batch, name)[row][padding].any(), name


def users_of(lengths: Sequence[int]) -> Steps:
    """Users with so many steps, whose items are 1, 2, 3 …"""
    histories, numbers = {}, iter(range(1, sum(lengths) + 1))
    for user, length in enumerate(lengths):
        histories[f"u{user}"] = [(next(numbers), 0.0) for _ in range(length)]
    return make(histories)


def test_windows_are_packed_by_best_fit() -> None:
    """Users of 3, 2, 4 and 1 steps, each with a slot before them, fill two rows of 7: 5 + 2 and 4 + 3."""
    packed = pack(users_of([3, 2, 4, 1]), 4, 7, np.random.default_rng(0))
    found = {tuple(item): tuple(segment) for item, segment in zip(packed.item.tolist(), packed.segment.tolist(), strict=True)}
    assert found == {(0, 6, 7, 8, 9, 0, 10): (1, 1, 1, 1, 1, 2, 2), (0, 1, 2, 3, 0, 4, 5): (1, 1, 1, 1, 2, 2, 2)}
    assert torch.equal(packed.fresh, packed.item > 0)


def test_what_does_not_fit_is_padded() -> None:
    packed = pack(users_of([3, 3]), 4, 6, np.random.default_rng(0))
    assert sorted(packed.item.tolist()) == [[0, 1, 2, 3, 0, 0], [0, 4, 5, 6, 0, 0]]
    assert packed.segment.tolist() == [[1, 1, 1, 1, 0, 0]] * 2
    assert packed.fresh.tolist() == [[False, True, True, True, False, False]] * 2


@pytest.mark.parametrize("seed", range(3))
def test_little_is_padding(seed: int) -> None:
    lengths = np.random.default_rng(seed).geometric(0.05, 1000).tolist()
    packed = pack(users_of(lengths), 64, 512, np.random.default_rng(seed))
    assert float((packed.segment == 0).float().mean()) < 0.02
    assert int(packed.fresh.sum()) == sum(lengths)


@pytest.mark.parametrize("context", [2, 3, 8])
def test_of_late_steps_the_context_comes_along(context: int) -> None:
    """Each user's rewards from the third day on, and so many before them; of a user with none of these days nothing."""
    rng = np.random.default_rng(context)
    days = {f"u{user}": sorted(rng.integers(0, 4, size=user).tolist()) for user in range(14)} | {"early": [0, 1, 1]}
    histories = {user: [(1, float(100 * place + step)) for step in range(len(days[user]))] for place, user in enumerate(days)}
    steps = make(histories, days)
    expected = []
    for user, rewards in histories.items():
        late = [place for place, day in enumerate(days[user]) if day >= 2]
        expected.append([reward for _, reward in rewards[max(0, late[0] - context) :]] if late else [])
    bucket, found = LateBuckets(HeldBucket(steps), MADE_DAY + 2, context).read(0)
    assert (bucket, found.user_ids) == (0, steps.user_ids)
    assert [found.reward[begin:end].tolist() for begin, end in pairwise(found.offsets)] == expected


def test_of_late_steps_none_may_be_left() -> None:
    late = LateBuckets(HeldBucket(make({"u": [(1, 1.0), (2, 1.0)]})), MADE_DAY + 1, 8)
    assert list(Loader(late, PACKING, 0).batches(START)) == []


def test_nobody_is_no_row() -> None:
    assert len(pack(users_of([]), 4, 6, np.random.default_rng(0))) == 0
    assert [bounds.tolist() for bounds in cut(np.array([0, 0, 0]), 4, np.random.default_rng(0))] == [[], [], []]


def test_buckets_that_are_empty_or_much_larger_than_others(lake: Lake) -> None:
    """Bucket 0 has nine tenths of the users, 3 a user, 1 and 2 nobody: three ranks can't each have one."""
    rows = [row | {"bucket": 3 if row["user_id"] == "u000" else 0} for row in log(50, seed=9, buckets=1)]
    land(lake, rows)
    manifest = manifest_of(lake)
    assert [(shard.bucket, shard.rows > 0) for shard in manifest.shards] == [(0, True), (3, True)]
    assert sorted(fresh_rewards(epoch_of(loader(lake)))) == [row["reward"] for row in rows]
    with pytest.raises(TooLittleData, match=r"3 ranks need a bucket each, and there are steps in 2"):
        loader(lake, ranks=3)


def test_a_version_stays_what_it_was(lake: Lake) -> None:
    """A newer commit lands between two batches, and between two epochs."""
    rows, later = log(40, seed=10), log(40, seed=11)
    version = land(lake, rows)
    manifest = manifest_of(lake)
    loads = loader(lake, manifest)
    batches = loads.batches(START)
    taken = [next(batches)]
    land(lake, later)
    taken += batches
    assert sorted(fresh_rewards(taken)) == sorted(fresh_rewards(epoch_of(loads, Position(1)))) == [row["reward"] for row in rows]
    assert manifest_of(lake, version) == manifest
    newer = manifest_of(lake)
    assert newer.version > version
    assert not {shard.sha256 for shard in newer.shards} & {shard.sha256 for shard in manifest.shards}


def test_a_manifest_names_every_file_once(lake: Lake) -> None:
    rows = log(40, seed=12)
    land(lake, rows)
    manifest = manifest_of(lake)
    told = json.loads(json.dumps(asdict(manifest)))
    assert (told["table"], told["version"], told["first_day"], told["last_day"]) == (TABLE, 1, "2026-01-01", "2026-01-04")
    root = Path(lake.path(TABLE))
    assert sorted(root / file["path"] for shard in told["shards"] for file in shard["files"]) == sorted(root.rglob("*.parquet"))
    for shard in told["shards"]:
        assert shard["rows"] == sum(row["bucket"] == shard["bucket"] for row in rows)
        assert shard["bytes"] == sum((root / file["path"]).stat().st_size for file in shard["files"])
        assert [file["partition"]["day"] for file in shard["files"]] == sorted(file["partition"]["day"] for file in shard["files"])
    assert ShardManifest.of(lake, DAYS[1], DAYS[2], 1).shards[0].rows == sum(row["bucket"] == 0 and row["day"] in DAYS[1:3] for row in rows)


def test_memory_is_that_of_a_bucket_and_not_of_the_table(lake: Lake) -> None:
    """An epoch over sixteen buckets of 30,000 rows takes as much at a time as one over two: a bucket being made, and one whose last batch is in use."""
    rng = np.random.default_rng(0)
    count = 30_000
    blocks = [
        pa.table(
            {
                "user_id": np.sort([f"{bucket}-{user}" for user in rng.integers(0, 300, count)]),
                "event_time": pa.array([datetime(2026, 1, 1, tzinfo=UTC)] * count, pa.timestamp("us", tz="UTC")),
                "step": np.arange(1, count + 1, dtype=np.int32),
                "item": rng.integers(1, ITEMS + 1, count).astype(np.int32),
                "event_type": ["click"] * count,
                "response": pa.nulls(count, pa.string()),
                "reward": rng.random(count),
                "first": [False] * count,
                "end": pa.nulls(count, pa.string()),
                "propensity": rng.random(count).astype(np.float32),
                "candidate_set": pa.nulls(count, pa.int64()),
                "as_of_day": [FIRST] * count,
                "day": [FIRST] * count,
                "bucket": np.full(count, bucket, dtype=np.int32),
            },
            lake.schema(TABLE),
        )
        for bucket in range(16)
    ]
    peaks = []
    for buckets in (2, 16):
        lake.replace(TABLE, pa.concat_tables(blocks[:buckets]), "transitions", [FIRST], {})
        peaks.append(peak_of(loader(lake, packing=Packing(64, 512, 4))))
    assert peaks[1] < 1.05 * peaks[0]
    assert peaks[0] > 20 * count, "some 20 bytes a step at the least"


def peak_of(loads: Loader) -> int:
    """Most bytes that an epoch has at a time, those of Arrow included."""
    default = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(default)
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        steps = sum(int(batch.fresh.sum()) for batch, _ in loads.batches(START))
        assert steps > 0
        return int(pool.max_memory()) + tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(default)
