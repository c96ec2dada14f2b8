"""One night of the demo world, end to end: `make bench`.

Wall and CPU seconds of each command, the peak memory of its largest process, and how much of it was starting Spark.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent.parent


def measure(arguments: list[str], environment: dict[str, str]) -> tuple[float, float, float, str]:
    """Run `nightjar …`; return wall seconds, CPU seconds, peak GB of its largest process, and what it said."""
    command = [sys.executable, "-m", "jobs", *arguments]
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=ROOT)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"nightjar {' '.join(arguments)} failed:\n{said[-3000:]}")
    return time.monotonic() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e6, said


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
        environment = os.environ | {"NIGHTJAR_CONFIG": str(landing / "nightjar.toml")}
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
