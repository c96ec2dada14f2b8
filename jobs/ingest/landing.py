"""Reads landing files as numbered lines."""

from __future__ import annotations

import gzip
import re
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import functions as sf

from jobs.contracts.days import DayRange
from jobs.contracts.errors import EmptyLanding
from jobs.contracts.landing import FEEDS, feed_folder

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_NEVER_SPLIT = str(1 << 40)
_FOREIGN_COMPRESSIONS = {".bz2", ".deflate", ".lz4", ".snappy", ".xz", ".zip", ".zst"}


@dataclass(frozen=True)
class LandingFile:
    """A file of a feed: its path, the path below landing that rows carry as `source_file`, and the day that brought it.

    `damage` says why it can't be read as a whole; null = it can.
    """

    path: Path
    source_file: str
    arrival_day: date
    damage: str | None


def landing_files(landing: Path, days: DayRange) -> dict[str, list[LandingFile]]:
    """Files of each feed that arrived on the days, by name of the feed; files without a byte are left out.

    A day without a file is a day without a line. Raises EmptyLanding when nothing has arrived up to the last day.
    """
    found = {feed.name: [file for day in days for file in _files(landing, feed.name, day)] for feed in FEEDS}
    if not any(found.values()) and not _anything_before(landing, days.first):
        raise EmptyLanding(
            f"Nothing has arrived in {landing.absolute()} by {days.last}. It should hold {landing / feed_folder('events', days.last)}/ with "
            "JSON lines (plain or .gz) or Parquet, and items/ and users/ beside events/. Set `landing` in nightjar.toml, or NIGHTJAR_LANDING."
        )
    return found


def reading_session(spark: SparkSession) -> SparkSession:
    """A session in which each landing file is one task: then a row's place in its task is its line in the file.

    It costs no second pass and no shuffle. What it gives up is that one large plain file is read by several cores.
    """
    session = spark.newSession()
    session.conf.set("spark.sql.files.maxPartitionBytes", _NEVER_SPLIT)
    session.conf.set("spark.sql.files.openCostInBytes", _NEVER_SPLIT)
    session.conf.set("spark.sql.mapKeyDedupPolicy", "LAST_WIN")  # a key given twice is no reason to stop
    session.conf.set("spark.sql.legacy.parquet.nanosAsLong", "true")  # what pandas writes; an epoch in ns is a time to us
    return session


def read_lines(session: SparkSession, feed: str, files: Sequence[LandingFile]) -> DataFrame:
    """Lines of a feed that are not blank: line, source_file, source_line (from 1), arrival_day. A row of Parquet is a line of JSON.

    `session` is a `reading_session`; there is at least one file, and none is damaged.
    """
    parquet: dict[str, list[Path]] = defaultdict(list)
    text: list[Path] = []
    for file in files:
        if file.path.suffix == ".parquet":
            # Files that differ in a column's type can't be read as one.
            parquet[str(pq.read_schema(file.path).remove_metadata())].append(file.path)
        else:
            text.append(file.path)
    frames = [_parquet_rows(session, paths) for paths in parquet.values()]
    if text:
        frames.append(_text_lines(session, text))
    below = sf.substring_index("file_path", f"/{feed}/ds=", -1)
    decoded = sf.when(below.contains("%"), sf.url_decode(sf.replace(below, sf.lit("+"), sf.lit("%2B")))).otherwise(below)
    # The files of many days are numbered one by one, and typed together: setting up the typing costs a task 0.2 s.
    tasks = 4 * session.sparkContext.defaultParallelism
    return (
        reduce(lambda left, right: left.unionByName(right), frames)
        .coalesce(tasks)
        .where("trim(BOTH ' \t\r\f' FROM line) != ''")
        .select(
            "line",
            sf.concat(sf.lit(f"{feed}/ds="), decoded).alias("source_file"),
            "source_line",
            sf.substring(below, 1, len("2026-01-31")).cast("date").alias("arrival_day"),
        )
    )


def _text_lines(session: SparkSession, paths: Sequence[Path]) -> DataFrame:
    place_in_task = sf.monotonically_increasing_id().bitwiseAND((1 << 33) - 1)
    return (
        session.read.option("lineSep", "\n")
        .text(_literal(paths))
        .select(sf.rtrim("value", sf.lit("\r")).alias("line"), (place_in_task + 1).alias("source_line"), "_metadata.file_path")
    )


def _parquet_rows(session: SparkSession, paths: Sequence[Path]) -> DataFrame:
    micros = "yyyy-MM-dd'T'HH:mm:ss.SSSSSS"
    rows = session.read.parquet(*_literal(paths))
    line = sf.to_json(sf.struct(*(sf.col(f"`{name}`") for name in rows.columns)), {"timestampFormat": f"{micros}XXX", "timestampNTZFormat": micros})
    return rows.select(line.alias("line"), (sf.col("_metadata.row_index") + 1).alias("source_line"), "_metadata.file_path")


def _literal(paths: Sequence[Path]) -> list[str]:
    """Paths that Spark does not take for patterns."""
    return [re.sub(r"([\\*?{}\[\]])", r"\\\1", str(path.absolute())) for path in paths]


def _files(landing: Path, feed: str, day: date) -> Iterator[LandingFile]:
    folder = landing / feed_folder(feed, day)
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
        if not hidden and path.is_file() and path.stat().st_size > 0:
            yield LandingFile(path, path.relative_to(landing).as_posix(), day, _damage(path))


def _damage(path: Path) -> str | None:
    try:
        if path.suffix == ".parquet":
            pq.read_schema(path)
        elif path.suffix == ".gz":
            # Spark would stop the whole step at the damage, or drop the rest without a word.
            with gzip.open(path) as stream:
                while stream.read(1 << 20):
                    pass
        elif path.suffix in _FOREIGN_COMPRESSIONS:
            return f"expected JSON lines, plain or .gz, or Parquet, got {path.suffix}"
        else:
            path.open("rb").close()
    except (OSError, EOFError, zlib.error, pa.ArrowInvalid) as error:
        return f"expected a whole {path.suffix.removeprefix('.') or 'text'} file, got: {error}"
    return None


def _anything_before(landing: Path, day: date) -> bool:
    earlier = (folder for feed in FEEDS for folder in landing.glob(f"{feed.name}/ds=*") if folder.name < f"ds={day}")
    return any(path.is_file() for folder in earlier for path in folder.rglob("*"))
