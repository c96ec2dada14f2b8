"""Feeds a learner bucket by bucket: rows of packed windows, in an order that seed and epoch alone decide.

A bucket is read, sorted and packed as one piece, while the learner is at an earlier one: some buckets are in memory, never the
table. Files and row groups of other buckets are not opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from jobs.contracts.errors import TooLittleData
from jobs.lake import Lake
from jobs.storage import S3Path
from models.data import Ints, Steps, read_steps
from models.shards import Shard, ShardManifest


@dataclass(frozen=True)
class Packed:
    """Windows end to end in rows of one length. All [rows, length]; behind the last window of a row everything is 0."""

    segment: Tensor  # int32: place of the step's window in the row, from 1; a step sees its own window alone. 0 = padding
    fresh: Tensor  # bool: learnt here; the others are context, and learnt in another window
    item: Tensor  # int32; this and the rest as in Steps
    event: Tensor  # int8
    response: Tensor  # int8
    reward: Tensor  # float32
    time: Tensor  # int64
    first: Tensor  # bool
    end: Tensor  # int8
    propensity: Tensor  # float32
    day: Tensor  # int32

    def __len__(self) -> int:
        return len(self.segment)

    def __getitem__(self, rows: slice) -> Packed:
        return Packed(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass(frozen=True)
class Position:
    """How far a rank has got: the next batch begins with this row of this bucket, counted in the rank's order of the epoch."""

    epoch: int = 0
    bucket: int = 0
    row: int = 0


@dataclass(frozen=True)
class Packing:
    """Windows of at most `context` steps, in rows of `length`, `rows` of them a batch."""

    context: int
    length: int
    rows: int

    def __post_init__(self) -> None:
        if not 2 <= self.context <= self.length or self.rows < 1:
            raise ValueError(f"Expected 2 <= context <= length and 1 <= rows, got {self}.")


class Loader:
    """The batches of one rank; every rank has the same manifest and seed, and buckets of its own.

    Neither the number of workers nor an interruption changes a batch. Ranks may have different numbers of batches.
    """

    def __init__(
        self,
        lake: Lake,
        manifest: ShardManifest,
        places: NDArray[np.int32],
        packing: Packing,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        workers: int = 0,
    ) -> None:
        """`places` as of `item_places`. Raises TooLittleData where there are fewer buckets than ranks."""
        if len(manifest.shards) < ranks:
            raise TooLittleData(
                f"{ranks} ranks need a bucket each; version {manifest.version} of {manifest.table} in {lake.root} has rows in {len(manifest.shards)} "
                f"from {manifest.first_day} to {manifest.last_day}. Train with fewer ranks, or raise episodes.buckets and make the transitions again."
            )
        self._lake, self._manifest, self._places, self._packing = lake, manifest, places, packing
        self._seed, self._rank, self._ranks, self._workers = seed, rank, ranks, workers

    def batches(self, position: Position) -> Iterator[tuple[Packed, Position]]:
        """The rest of the epoch from `position` on; with each batch the position behind it, which after the last one is the next epoch's start."""
        order = np.random.default_rng([self._seed, position.epoch]).permutation(len(self._manifest.shards))
        shards = [self._manifest.shards[place] for place in order[self._rank :: self._ranks].tolist()]
        bucket, row, rows = position.bucket, position.row, self._packing.rows
        for packed in self._packed(shards[bucket:], position.epoch):
            behind = Position(position.epoch, bucket + 1) if bucket + 1 < len(shards) else Position(position.epoch + 1)
            for begin in range(row, len(packed), rows):
                yield packed[begin : begin + rows], Position(position.epoch, bucket, begin + rows) if begin + rows < len(packed) else behind
            bucket, row = bucket + 1, 0
            del packed  # or there would be two while the next one is made

    def _packed(self, shards: Sequence[Shard], epoch: int) -> Iterator[Packed]:
        """Each bucket, packed, in this order; each worker is at one of the next."""
        buckets = _Buckets(self._lake, shards, self._places, self._packing, self._seed, epoch)
        return iter(
            DataLoader(
                buckets,
                batch_size=None,
                num_workers=self._workers,
                prefetch_factor=1 if self._workers else None,
                generator=torch.Generator(),  # else it would draw from the global one
                # AWS's client does not survive a fork.
                multiprocessing_context=None if self._workers == 0 else "spawn" if isinstance(self._lake.root, S3Path) else "fork",
            )
        )


class _Buckets(Dataset[Packed]):
    """Buckets by their place in the order of an epoch."""

    def __init__(self, lake: Lake, shards: Sequence[Shard], places: NDArray[np.int32], packing: Packing, seed: int, epoch: int) -> None:
        self._lake, self._shards, self._places, self._packing, self._seed, self._epoch = lake, shards, places, packing, seed, epoch

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, place: int) -> Packed:
        shard = self._shards[place]
        steps = read_steps(self._lake, shard.files, self._places, self._lake.event_types)
        return pack(steps, self._packing.context, self._packing.length, np.random.default_rng([self._seed, self._epoch, shard.bucket]))


def pack(steps: Steps, context: int, length: int, rng: np.random.Generator) -> Packed:
    """Every step once as fresh, in windows of at most `context` steps, packed into rows of `length`, rows in random order."""
    begins, ends, fresh = cut(steps.offsets, context, rng)
    order = rng.permutation(len(begins))
    order = order[np.argsort(begins[order] - ends[order], kind="stable")]  # the longest first, those of one length at random
    sizes = (ends - begins)[order]
    row, rows = _rows_of(sizes, length)
    row = rng.permutation(rows)[row]
    # Behind the windows of a row its padding, as a window of nobody.
    padding, nothing = length - np.bincount(row, weights=sizes, minlength=rows).astype(np.int64), np.zeros(rows, dtype=np.int64)
    put = np.argsort(np.concatenate([row, np.arange(rows)]), kind="stable")
    is_padding = put >= len(sizes)
    pairs = ((row, np.arange(rows)), (sizes, padding), (begins[order], nothing), ((fresh - begins)[order], nothing))
    row, size, begin, seen = (np.concatenate(pair)[put] for pair in pairs)

    place = np.arange(len(row)) - np.searchsorted(row, row) + 1
    segment = np.repeat(np.where(is_padding, 0, place).astype(np.int32), size)
    flags, lengths = np.column_stack([np.zeros_like(is_padding), ~is_padding]), np.column_stack([seen, size - seen])
    is_fresh = np.repeat(flags.ravel(), lengths.ravel())
    step = np.arange(rows * length) + np.repeat(begin - (np.cumsum(size) - size), size)
    padded = np.flatnonzero(segment == 0)
    step[padded] = 0

    def gathered(values: NDArray[np.generic]) -> Tensor:
        found = values[step]
        found[padded] = 0
        return torch.from_numpy(found.reshape(rows, length))

    names = [field.name for field in fields(Packed)][2:]
    marks = (torch.from_numpy(values.reshape(rows, length)) for values in (segment, is_fresh))
    return Packed(*marks, *(gathered(getattr(steps, name)) for name in names))


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
