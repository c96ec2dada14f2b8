"""One night of the demo world, end to end: `make bench`.

Wall and CPU seconds of each command and its peak memory, those of the JVM and of the trainer included, and how much of it was
starting Spark.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import psutil  # type: ignore[import-untyped]
import typer
from rich.console import Console
from rich.table import Table

from jobs.settings import elsewhere

ROOT = Path(__file__).parent.parent.parent
LOOK_SECONDS = 0.5


def measure(arguments: list[str], environment: dict[str, str]) -> tuple[float, float, float, str]:
    """Run `nightjar …`; return wall seconds, CPU seconds and peak GB of all its processes, and what it said."""
    cpu: dict[int, float] = {}  # of each process, as last seen: nobody waits for a JVM, so the system does not add it up
    peak, began = 0.0, time.monotonic()
    with tempfile.TemporaryFile("w+") as said:
        process = psutil.Popen([sys.executable, "-m", "jobs", *arguments], stdout=said, stderr=said, env=environment, cwd=ROOT)
        while process.poll() is None:
            resident = 0
            for member in [process, *process.children(recursive=True)]:
                try:
                    used = member.cpu_times()
                    resident += member.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
                cpu[member.pid] = used.user + used.system
            peak = max(peak, resident / 1e9)
            time.sleep(LOOK_SECONDS)
        said.seek(0)
        words = said.read()
    if process.returncode != 0:
        sys.exit(f"nightjar {' '.join(arguments)} failed:\n{words[-3000:]}")
    return time.monotonic() - began, sum(cpu.values()), peak, words


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
        measure(["simulate", str(landing), "--users", str(users), "--items", str(items), "--days", str(days)], dict(os.environ))
        arrived = sorted(path.name.removeprefix("ds=") for path in (landing / "events").iterdir())
        for arguments in (["backfill", "--from", arrived[0], "--to", arrived[-2]], ["night", "--day", arrived[-1]]):
            wall, cpu, peak, said = measure(arguments, environment)
            starts = [float(seconds) for seconds in re.findall(r"Spark start: ([\d.]+) s", said)]
            rows.add_row(" ".join(arguments), f"{wall:.0f}", f"{cpu:.0f}", f"{peak:.1f}", str(len(starts)), f"{sum(starts):.0f}")
            console.print(said.strip())
    console.print(rows)


if __name__ == "__main__":
    typer.run(main)
