"""From transitions in warm files to packed sequences, against the plain way to a sorted table: `make bench-loader`.

The peer reads the whole table with pyarrow's dataset, sorts it by user and time, and has its columns as numpy arrays; it packs nothing.
Both have one thread. CPU seconds, as the machine may be shared; memory is what comes on top of Python with its packages.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from rich.console import Console
from rich.table import Table

from jobs.lake import Lake
from models.loader import LakeBuckets, Loader, Packing, Position
from models.shards import ShardManifest
from tests.benchmarks.measured import measure, resident

FIRST = date(2026, 1, 1)
TABLE = "gold.transitions"
ITEMS = 20_000
SESSION = 8  # steps
PACKING = Packing(context=64, length=512, rows=8)
COLUMNS = ["user_id", "event_time", "item", "event_type", "response", "reward", "first", "end", "propensity"]

app = typer.Typer()


def lake_at(root: Path) -> Lake:
    return Lake(root, ("impression", "click", "purchase"))


def write(lake: Lake, rows: int, days: int, users: int, buckets: int) -> None:
    """Sessions of some users a day, few of whom are there often; a file a day and bucket, sorted by user and time."""
    rng = np.random.default_rng(0)
    ids = pa.array([f"u{number:07}" for number in range(users)])
    activity = rng.pareto(1.5, users) + 0.2
    activity /= activity.sum()

    def blocks() -> Iterator[pa.Table]:
        for number in range(days):
            user = np.repeat(rng.choice(users, rows // days // SESSION, p=activity), SESSION)
            time = rng.integers(0, 86_400, len(user)) * 1_000_000
            order = np.lexsort((time, user, user % buckets))
            user, time, count = user[order], time[order], len(user)
            start = np.flatnonzero(np.append(True, user[1:] != user[:-1]))
            step = np.arange(count) - np.repeat(start, np.diff(start, append=count)) + 1
            is_clicked, is_last = rng.random(count) < 0.1, step % SESSION == 0
            day = np.datetime64(FIRST + timedelta(days=number), "D")
            columns = {
                "user_id": pa.DictionaryArray.from_arrays(user.astype(np.int32), ids).cast(pa.string()),
                "event_time": day.astype("datetime64[us]") + time,
                "step": step,
                "item": rng.zipf(1.3, count) % ITEMS + 1,
                "event_type": np.full(count, "impression"),
                "response": pa.array(np.full(count, "click"), mask=~is_clicked),
                "reward": is_clicked.astype(np.float64),
                "first": step % SESSION == 1,
                "end": pa.array(np.full(count, "truncated_gap"), mask=~is_last),
                "propensity": rng.random(count).round(2),
                "candidate_set": pa.nulls(count, pa.int64()),
                "as_of_day": np.full(count, day),
                "day": np.full(count, day),
                "bucket": user % buckets,
            }
            schema = lake.schema(TABLE)
            yield pa.table({name: pa.array(values).cast(schema.field(name).type) for name, values in columns.items()}, schema)

    lake.replace(TABLE, blocks(), "transitions", [FIRST + timedelta(days=number) for number in range(days)], {})


@app.command()
def packed(root: Path, buckets: int, epochs: int) -> None:
    """Figures of the loader over the first buckets: the best of some epochs."""
    import torch

    torch.set_num_threads(1)
    opened = 0

    class Counted(pq.ParquetFile):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            nonlocal opened
            super().__init__(*arguments, **options)
            opened += self.num_row_groups

    lake = lake_at(root)
    whole = ShardManifest.of(lake, FIRST, date.max, lake.version(TABLE))
    loader = Loader(LakeBuckets(lake, whole.shards[:buckets], np.arange(ITEMS + 1, dtype=np.int32)), PACKING, seed=0)
    before, position, seconds, padding, places = resident("VmRSS"), Position(), [], 0, 0
    pq.ParquetFile = Counted
    for _ in range(epochs):
        began = cpu_seconds()
        for batch, after in loader.batches(position):
            position = after
            padding += int((batch.segment == 0).sum())
            places += batch.segment.numel()
        seconds.append(cpu_seconds() - began)
    print(
        json.dumps(
            figures(sum(shard.rows for shard in whole.shards[:buckets]), min(seconds), before) | {"opened": opened / epochs, "padding": padding / places}
        )
    )


@app.command()
def plain(root: Path) -> None:
    """Figures of the peer."""
    before, began = resident("VmRSS"), cpu_seconds()
    table = lake_at(root).dataset(TABLE).scanner(columns=COLUMNS).to_table()
    table = table.sort_by([("user_id", "ascending"), ("event_time", "ascending")])
    arrays = {name: table[name].dictionary_encode().combine_chunks().indices.to_numpy(False) for name in COLUMNS if table[name].type == pa.string()}
    arrays |= {name: table[name].to_numpy() for name in COLUMNS if name not in arrays}
    print(json.dumps(figures(len(arrays["item"]), cpu_seconds() - began, before)))


def cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system


def figures(rows: int, seconds: float, before: int) -> dict[str, float]:
    return {"rows": rows, "seconds": seconds, "megabytes": (resident("VmHWM") - before) / 1e6}


def ask(*arguments: object) -> dict[str, float]:
    """What this program says of itself, as a process of its own with one thread for Arrow."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    said = measure([sys.executable, "-m", "tests.benchmarks.loader", *map(str, arguments)], environment).said
    answer: dict[str, float] = json.loads(said.splitlines()[-1])
    return answer


@app.command()
def bench(
    rows: Annotated[int, typer.Option()] = 20_000_000,
    days: Annotated[int, typer.Option()] = 80,
    users: Annotated[int, typer.Option()] = 100_000,
    buckets: Annotated[int, typer.Option()] = 16,
) -> None:
    """Write the transitions, then read them: one bucket, all buckets, the plain way."""
    page = Table("what", "CPU s", "million rows/s/core", "ratio", "peak MB on top", "row groups opened", "padding")
    with tempfile.TemporaryDirectory(prefix="nightjar-bench-") as folder:
        root = Path(folder)
        write(lake_at(root), rows, days, users, buckets)
        files = lake_at(root).files(TABLE)
        row_groups = sum(pq.read_metadata(root / "gold/transitions" / file.path).num_row_groups for file in files)
        peer = ask("plain", root)
        page.add_row("plain: to_table, sort_by, numpy", *speed(peer, peer), "all", "nothing packed")
        for name, count in (("one bucket", 1), ("all buckets", buckets)):
            found = ask("packed", root, count, 48 // count)
            page.add_row(f"loader: {name}", *speed(found, peer), f"{found['opened'] / row_groups:.2%}", f"{found['padding']:.2%}")
        console = Console(width=130)
        console.print(page)
        console.print(f"{len(files):,} files, {sum(file.bytes for file in files) / sum(file.rows for file in files):.1f} bytes a row")


def speed(found: dict[str, float], peer: dict[str, float]) -> tuple[str, str, str, str]:
    rate, of_peer = (each["rows"] / each["seconds"] / 1e6 for each in (found, peer))
    return f"{found['seconds']:.2f}", f"{rate:.2f}", f"{rate / of_peer:.1f}", f"{found['megabytes']:,.0f}"


if __name__ == "__main__":
    app()
