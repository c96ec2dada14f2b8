"""Feeds a learner bucket by bucket: rows of packed windows, in an order that seed and epoch alone decide.

A bucket is read, sorted and packed as one piece, while the learner is at an earlier one: some buckets are in memory, never the
table. Files and row groups of other buckets are not opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from jobs.contracts.errors import TooLittleData
from jobs.lake import Lake
from jobs.storage import S3Path
from models.candidates import CandidateSets
from models.data import DAY_SECONDS, Ints, Steps, read_steps
from models.events import since
from models.shards import Shard
from models.user_features import FeatureFiles


@dataclass(frozen=True)
class Packed:
    """Windows end to end in rows of one length. All but `features` [rows, length]; behind the last window of a row everything is 0.

    A window begins with a slot for the state before its first step, in which all is 0 but the segment, the time, and what is known of the user.
    """

    segment: Tensor  # int32: place of the slot's window in the row, from 1; a step sees its own window alone. 0 = padding
    fresh: Tensor  # bool: learnt here; the others are context, and learnt in another window
    item: Tensor  # int32; this and the rest as in Steps
    event: Tensor  # int8
    response: Tensor  # int8
    reward: Tensor  # float32
    time: Tensor  # int64; in the first slot of a window that of the step before, where the user has one, else that of the first step
    wait: Tensor  # int32: seconds from there to the user's next step; after the last one to the end of the bucket's last day
    first: Tensor  # bool
    end: Tensor  # int8
    propensity: Tensor  # float32
    candidates: Tensor  # int32
    day: Tensor  # int32
    known: Tensor  # int32: row of `features` that the slot's state has, those of the eve of its moment
    features: Tensor  # float32[user-days, names] of gold.user_features, each once; nan = null, and so is all of the first row

    def __len__(self) -> int:
        return len(self.segment)

    def __getitem__(self, rows: slice) -> Packed:
        return Packed(**{name: getattr(self, name)[rows] for name in PER_SLOT}, features=self.features)

    def pin_memory(self) -> Packed:
        """The same in memory that a GPU reads from by itself, as DataLoader asks for."""
        return Packed(*(getattr(self, field.name).pin_memory() for field in fields(self)))

    @classmethod
    def of_nobody(cls, length: int, day: int, features: int = 0) -> Packed:
        """A row with a window of no step on a day: nothing is learnt from it."""
        large, number, small, flag, real = (torch.zeros(1, length, dtype=kind) for kind in (torch.int64, torch.int32, torch.int8, torch.bool, torch.float32))
        segment = number.clone()
        segment[0, 0] = 1
        nothing = torch.full((1, features), torch.nan)
        return cls(segment, flag, number, small, small, real, large, number, flag, small, real, number, number + day, number, nothing)


PER_SLOT = tuple(field.name for field in fields(Packed) if field.name != "features")


@dataclass(frozen=True)
class Position:
    """How far a rank has got: the next batch begins with this row of this bucket, counted in the rank's order of the epoch."""

    epoch: int = 0
    bucket: int = 0
    row: int = 0


@dataclass(frozen=True)
class Packing:
    """Windows of at most `context` steps, in rows of `length` slots, `rows` of them a batch."""

    context: int
    length: int
    rows: int

    def __post_init__(self) -> None:
        if not 2 <= self.context < self.length or self.rows < 1:
            raise ValueError(f"Expected 2 <= context < length and 1 <= rows, got {self}.")


class Buckets(Protocol):
    """Steps in parts, each of whole users."""

    @property
    def sizes(self) -> Sequence[int]:
        """Number of steps of each bucket, none of them 0."""

    def read(self, place: int) -> tuple[int, Steps]:
        """The steps of the bucket at a place, and its number, which seeds how they are cut."""


@dataclass(frozen=True)
class LakeBuckets:
    """Those of gold.transitions, of which no other is opened when one is read."""

    lake: Lake
    shards: tuple[Shard, ...]
    places: NDArray[np.int32]  # as of `item_places`
    sets: CandidateSets | None = None
    features: FeatureFiles | None = None

    @property
    def sizes(self) -> Sequence[int]:
        """As `Buckets` says."""
        return [shard.rows for shard in self.shards]

    def read(self, place: int) -> tuple[int, Steps]:
        """As `Buckets` says."""
        shard = self.shards[place]
        steps = read_steps(self.lake, shard.files, self.places, self.lake.event_types, self.sets)
        return shard.bucket, self.features.beside(steps, 0, int(steps.day.max(initial=0))) if self.features else steps


@dataclass(frozen=True)
class HeldBucket:
    """One bucket, which is in memory."""

    steps: Steps

    @property
    def sizes(self) -> Sequence[int]:
        """As `Buckets` says."""
        return [len(self.steps)] if len(self.steps) else []

    def read(self, place: int) -> tuple[int, Steps]:
        """As `Buckets` says."""
        return place, self.steps


@dataclass(frozen=True)
class LateBuckets:
    """Of other buckets the users who have steps from a day on: these, and so many steps before them as a state sees."""

    buckets: Buckets
    first_day: int  # days since 1970-01-01
    context: int

    @property
    def sizes(self) -> Sequence[int]:
        """As `Buckets` says, those of the others: what is left of one is only known once it has been read."""
        return self.buckets.sizes

    def read(self, place: int) -> tuple[int, Steps]:
        """As `Buckets` says; nothing may be left."""
        bucket, steps = self.buckets.read(place)
        return bucket, since(steps, self.first_day, self.context)


class Loader:
    """The batches of one rank; every rank has the same buckets and seed, and reads buckets of its own.

    Neither the number of workers nor an interruption changes a batch. Ranks may have different numbers of batches.
    """

    def __init__(self, buckets: Buckets, packing: Packing, seed: int, rank: int = 0, ranks: int = 1, workers: int = 0) -> None:
        """Raises TooLittleData where there are fewer buckets than ranks."""
        if len(buckets.sizes) < ranks:
            raise TooLittleData(
                f"{ranks} ranks need a bucket each, and there are steps in {len(buckets.sizes)}. "
                "Train with fewer ranks, or raise episodes.buckets and make the transitions again."
            )
        self._buckets, self._packing, self._seed, self._rank, self._ranks, self._workers = buckets, packing, seed, rank, ranks, workers

    def batches(self, position: Position) -> Iterator[tuple[Packed, Position]]:
        """The rest of the epoch from `position` on; with each batch the position behind it, which after the last one is the next epoch's start."""
        order = np.random.default_rng([self._seed, position.epoch]).permutation(len(self._buckets.sizes))
        places = order[self._rank :: self._ranks].tolist()
        bucket, row, rows = position.bucket, position.row, self._packing.rows
        for packed in self._packed(places[bucket:], position.epoch):
            behind = Position(position.epoch, bucket + 1) if bucket + 1 < len(places) else Position(position.epoch + 1)
            for begin in range(row, len(packed), rows):
                yield packed[begin : begin + rows], Position(position.epoch, bucket, begin + rows) if begin + rows < len(packed) else behind
            bucket, row = bucket + 1, 0
            del packed  # or there would be two while the next one is made

    def _packed(self, places: Sequence[int], epoch: int) -> Iterator[Packed]:
        """Each bucket, packed, in this order; each worker is at one of the next."""
        is_remote = isinstance(self._buckets, LakeBuckets) and isinstance(self._buckets.lake.root, S3Path)
        return iter(
            DataLoader(
                _PackedBuckets(self._buckets, places, self._packing, self._seed, epoch),
                batch_size=None,
                num_workers=self._workers,
                pin_memory=self._workers > 0 and torch.cuda.is_available(),
                prefetch_factor=1 if self._workers else None,
                generator=torch.Generator(),  # else it would draw from the global one
                # AWS's client does not survive a fork.
                multiprocessing_context=None if self._workers == 0 else "spawn" if is_remote else "fork",
            )
        )


class _PackedBuckets(Dataset[Packed]):
    """Buckets by their place in the order of an epoch."""

    def __init__(self, buckets: Buckets, places: Sequence[int], packing: Packing, seed: int, epoch: int) -> None:
        self._buckets, self._places, self._packing, self._seed, self._epoch = buckets, places, packing, seed, epoch

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, place: int) -> Packed:
        bucket, steps = self._buckets.read(self._places[place])
        return pack(steps, self._packing.context, self._packing.length, np.random.default_rng([self._seed, self._epoch, bucket]))


def pack(steps: Steps, context: int, length: int, rng: np.random.Generator) -> Packed:
    """Every step once as fresh, in windows of at most `context` steps, packed into rows of `length`, rows in random order."""
    begins, ends, fresh = cut(steps.offsets, context, rng)
    order = rng.permutation(len(begins))
    order = order[np.argsort(begins[order] - ends[order], kind="stable")]  # the longest first, those of one length at random
    sizes = (ends - begins)[order] + 1
    row, rows = _rows_of(sizes, length)
    row = rng.permutation(rows)[row]
    # Behind the windows of a row its padding, as a window of nobody.
    padding, nothing = length - np.bincount(row, weights=sizes, minlength=rows).astype(np.int64), np.zeros(rows, dtype=np.int64)
    put = np.argsort(np.concatenate([row, np.arange(rows)]), kind="stable")
    is_padding = put >= len(sizes)
    pairs = ((row, np.arange(rows)), (sizes, padding), (begins[order], nothing), ((fresh - begins)[order] + 1, nothing))
    row, size, begin, seen = (np.concatenate(pair)[put] for pair in pairs)

    place = np.arange(len(row)) - np.searchsorted(row, row) + 1
    segment = np.repeat(np.where(is_padding, 0, place).astype(np.int32), size)
    flags, lengths = np.column_stack([np.zeros_like(is_padding), ~is_padding]), np.column_stack([seen, size - seen])
    is_fresh = np.repeat(flags.ravel(), lengths.ravel())
    start = np.cumsum(size) - size
    step = np.arange(rows * length) + np.repeat(begin - 1 - start, size)
    step[segment == 0] = 0
    is_first = np.zeros(len(steps) + 1, dtype=np.bool_)
    is_first[steps.offsets] = True
    start, begin = start[~is_padding], begin[~is_padding]
    step[start] = np.where(is_first[begin], begin, begin - 1)
    padded = np.flatnonzero(segment == 0)
    blank = np.concatenate([start, padded])

    def gathered(name: str) -> NDArray[Any]:
        found: NDArray[Any] = getattr(steps, name)[step]
        found[padded if name == "time" else blank] = 0
        return found

    wait = _waits(steps)[step]
    wait[start] = np.where(is_first[begin], 0, wait[start])
    wait[padded] = 0
    before, after = _known(steps)
    known = after[step]
    known[start] = before[begin]
    known[padded] = 0
    columns = {"segment": segment, "fresh": is_fresh, "wait": wait, "known": known}
    columns |= {name: gathered(name) for name in PER_SLOT if name not in columns}
    tensors = {name: torch.from_numpy(values.reshape(rows, length)) for name, values in columns.items()}
    return Packed(**tensors, features=torch.from_numpy(steps.known.values))


def _known(steps: Steps) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The row of what is known of the user, in the states before and after each step; as in `_waits`, the last one's is of the end of the last day."""
    users = steps.users()
    before = steps.known.rows(users, steps.day - 1)
    after, last = np.roll(before, -1), steps.offsets[1:][np.diff(steps.offsets) > 0] - 1
    after[last] = steps.known.rows(users[last], int(steps.day.max(initial=0)))
    return before, after


def _waits(steps: Steps) -> NDArray[np.int32]:
    """Seconds from each step to the user's next one, or, from the last one, to the end of the last day."""
    following = np.roll(steps.time, -1)
    following[steps.offsets[1:][np.diff(steps.offsets) > 0] - 1] = (int(steps.day.max(initial=0)) + 1) * DAY_SECONDS
    longest = np.iinfo(np.int32).max
    waits: NDArray[np.int32] = np.clip(following - steps.time, 0, longest).astype(np.int32)
    return waits


def cut(offsets: Ints, context: int, rng: np.random.Generator) -> tuple[Ints, Ints, Ints]:
    """Windows of at most `context` steps: where each begins, where it ends (exclusive), and its first fresh step; each step is fresh once.

    A user with more steps is cut at places that differ from epoch to epoch; a later window looks back on at least a third of `context`.
    """
    stride = context - context // 3
    counts = np.diff(offsets)
    first_end = counts.copy()
    is_long = counts > context
    first_end[is_long] = context - rng.integers(0, stride, size=int(is_long.sum()))
    windows = np.where(counts > 0, 1 + -(-(counts - first_end) // stride), 0)
    user = np.repeat(np.arange(len(counts)), windows)
    place = np.arange(len(user)) - np.repeat(np.cumsum(windows) - windows, windows)
    start, stop = offsets[:-1][user], offsets[1:][user]
    reach = start + first_end[user] + place * stride  # where it would end, did the user not end before
    return np.maximum(start, np.minimum(stop, reach) - context), np.minimum(stop, reach), np.where(place == 0, start, reach - stride)


def _rows_of(sizes: Ints, length: int) -> tuple[Ints, int]:
    """The row of each window, sizes falling: the fullest one that it fits into, else a new one; and how many rows there are."""
    with_space: list[list[int]] = [[] for _ in range(length + 1)]  # rows by the space left in them
    spaces = 0  # bit s: some row has s left
    rows, found = 0, []
    for size in sizes.tolist():
        fitting = spaces >> size
        if fitting:
            space = size + (fitting & -fitting).bit_length() - 1
            row = with_space[space].pop()
            if not with_space[space]:
                spaces ^= 1 << space
        else:
            space, row, rows = length, rows, rows + 1
        left = space - size
        if left:
            with_space[left].append(row)
            spaces |= 1 << left
        found.append(row)
    return np.array(found, dtype=np.int64), rows
