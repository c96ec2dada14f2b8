"""One night of the demo world, end to end: `make bench`.

Wall and CPU seconds of each command and its peak memory, those of the JVM and of the trainer included, and how much of it was
starting Spark.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from jobs.settings import elsewhere
from tests.benchmarks.measured import measure

NIGHTJAR = [sys.executable, "-m", "jobs"]


def main(
    users: Annotated[int, typer.Option()] = 2000,
    items: Annotated[int, typer.Option()] = 1000,
    days: Annotated[int, typer.Option()] = 30,
) -> None:
    """Simulate, backfill all days but the last, run the last night."""
    rows = Table("command", "wall s", "CPU s", "peak GB", "Spark starts", "in them s")
    console = Console(width=110)
    with tempfile.TemporaryDirectory() as folder:
        landing = Path(folder, "landing")
        environment = elsewhere(landing / "nightjar.toml")
        measure([*NIGHTJAR, "simulate", str(landing), "--users", str(users), "--items", str(items), "--days", str(days)], dict(os.environ))
        arrived = sorted(path.name.removeprefix("ds=") for path in (landing / "events").iterdir())
        for arguments in (["backfill", "--from", arrived[0], "--to", arrived[-2]], ["night", "--day", arrived[-1]]):
            cost = measure([*NIGHTJAR, *arguments], environment)
            starts = [float(seconds) for seconds in re.findall(r"Spark start: ([\d.]+) s", cost.said)]
            rows.add_row(" ".join(arguments), f"{cost.wall:.0f}", f"{cost.cpu:.0f}", f"{cost.peak:.1f}", str(len(starts)), f"{sum(starts):.0f}")
            console.print(cost.said.strip())
    console.print(rows)


if __name__ == "__main__":
    typer.run(main)
