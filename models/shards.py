"""The files of gold.transitions that somebody reads, bucket by bucket; without torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from itertools import groupby

from jobs.files import DataFile
from jobs.lake import Lake
from models.data import files_of


@dataclass(frozen=True)
class Shard:
    """What a bucket's steps are read from."""

    bucket: int
    files: tuple[DataFile, ...]  # in order of the day
    rows: int
    bytes: int
    sha256: str  # of the names and sizes of its files; a file that has a name never changes

    @property
    def content(self) -> dict[str, int]:
        """It by what it holds and not by its files, which have other names wherever the same rows are written again."""
        return {"bucket": self.bucket, "rows": self.rows, "bytes": self.bytes}

    @classmethod
    def of(cls, bucket: int, files: Sequence[DataFile]) -> Shard:
        """The shard of the files of a bucket."""
        told = "\n".join(f"{file.path} {file.rows} {file.bytes}" for file in files)
        return cls(bucket, tuple(files), sum(file.rows for file in files), sum(file.bytes for file in files), hashlib.sha256(told.encode()).hexdigest())


@dataclass(frozen=True)
class ShardManifest:
    """What is read: some days of one version of gold.transitions, by bucket. `dataclasses.asdict` of it is JSON."""

    table: str
    version: int
    first_day: str
    last_day: str
    shards: tuple[Shard, ...]  # by bucket; those that have a row

    @classmethod
    def of(cls, lake: Lake, first_day: date, last_day: date, version: int) -> ShardManifest:
        """What a version holds of the days first_day..last_day. Raises as `Lake.read` does."""
        files = sorted(files_of(lake, first_day, last_day, version), key=_bucket)  # stable: the days of a bucket stay in order
        shards = (Shard.of(bucket, list(of_bucket)) for bucket, of_bucket in groupby(files, key=_bucket))
        return cls("gold.transitions", version, str(first_day), str(last_day), tuple(shard for shard in shards if shard.rows))


def _bucket(file: DataFile) -> int:
    return int(file.partition["bucket"])
