"""The demo: a simulated world's logs, backfilled; its last night through a real Airflow; what came out beside the truth."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import date, timedelta
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from jobs.contracts.errors import BadDay, FolderTaken, ProcessFailed
from jobs.lake import Lake
from jobs.operate.airflow import EmbeddedAirflow, Run, TaskState, tail
from jobs.operate.show import STRANGER, print_lists
from jobs.settings import CONFIG_VARIABLE, elsewhere, load_settings
from jobs.world.simulate import simulate
from jobs.world.value import print_values

FIRST_DAY = date(2026, 1, 1)
MARKER = ".nightjar-demo"  # in a folder that a demo made, and may empty
DAGS = Path(__file__).parent.parent.parent / "dags"
NIGHT = ("features_daily", "policy_daily")
FRESH_USERS = 500
LOOK_SECONDS = 2.0

console = Console(width=110, highlight=False)


def run_demo(folder: Path, *, users: int, items: int, days: int, seed: int, keep: bool) -> None:
    """Run the demo in `folder`, which is emptied first; with `keep`, Airflow runs on afterwards.

    Raises FolderTaken when the folder holds anything that no demo made, ProcessFailed when a stage fails.
    """
    if days < 2:
        raise BadDay(f"A demo needs at least 2 days, one to backfill and one night; got {days}.")
    folder = folder.absolute()
    _empty(folder)
    landing, last = folder / "landing", FIRST_DAY + timedelta(days=days - 1)
    with _stage(f"Simulating {days} days of {users:,} users and {items:,} items"):
        simulate(landing, users=users, items=items, first=FIRST_DAY, days=days, seed=seed, null=False, confounded=False, faults=False)
    environment = elsewhere(landing / "nightjar.toml")
    os.environ.clear()
    os.environ.update(environment)
    settings = load_settings()
    lake = Lake(settings.lake_path.resolve(), tuple(settings.event_types))
    backfill = ("backfill", "--from", str(FIRST_DAY), "--to", str(last - timedelta(days=1)))
    airflow = EmbeddedAirflow(folder / "airflow", DAGS, {CONFIG_VARIABLE: os.environ[CONFIG_VARIABLE]})
    with ExitStack() as until_the_night_is_over:
        with _stage(f"Backfilling {backfill[2]} to {backfill[4]}, each step in one pass, while Airflow starts"), ThreadPoolExecutor(1) as aside:
            backfilled = aside.submit(_nightjar, folder / "backfill.log", *backfill)
            until_the_night_is_over.enter_context(airflow)
            backfilled.result()
        with _stage(f"The night of {last} in Airflow, at {airflow.url}"):
            runs = [airflow.trigger(dag, {"day": str(last)}) for dag in NIGHT]
            _follow(airflow, runs)
            stop_command = airflow.keep() if keep else None
    with _stage("Playing the policy in its world"):
        print_values(landing, settings, None, users=min(users, FRESH_USERS), seed=seed)
    own = sorted(set(lake.read("serving.recommendations", ["user_id"])["user_id"].to_pylist()) - {STRANGER})
    print_lists(lake, [*own[:2], STRANGER], top=5)
    _print_places(folder, lake, last, airflow.url, stop_command)


def _empty(folder: Path) -> None:
    if folder.exists() and not (folder / MARKER).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FolderTaken(f"{folder} holds something that no demo made. Name a new or an empty folder: `nightjar demo FOLDER`.")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / MARKER).touch()


@contextmanager
def _stage(what: str) -> Iterator[None]:
    console.print(f"[bold]{what} …[/bold]")
    began = time.monotonic()
    yield
    console.print(f"  {time.monotonic() - began:.0f} s")


def _nightjar(log: Path, *words: str) -> None:
    """Run a command in a process of its own, whose memory is free again afterwards."""
    with log.open("wb") as sink:
        status = subprocess.run([sys.executable, "-m", "jobs", *words], stdout=sink, stderr=subprocess.STDOUT).returncode
    if status != 0:
        raise ProcessFailed(f"`nightjar {' '.join(words)}` ended with status {status}. {tail(log)}")


def _follow(airflow: EmbeddedAirflow, runs: list[Run]) -> None:
    """Show the tasks of some runs until each run has succeeded. Raises ProcessFailed when one fails."""
    began: dict[str, float] = {}
    told: set[str] = set()
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            states = {run.dag: airflow.state(run) for run in runs}
            tasks = {run.dag: airflow.tasks(run) for run in runs}
            for task in (task for group in tasks.values() for task in group):
                if task.state == "running":
                    began.setdefault(task.task, time.monotonic())
                if task.state == "success" and task.task not in told:
                    told.add(task.task)
                    live.console.print(f"  {task.task}: {task.seconds or 0:.0f} s")
            if console.is_terminal:
                live.update(_progress(tasks, began), refresh=True)
            for run in runs:
                if states[run.dag] == "failed":
                    raise airflow.failure(run)
            if all(state == "success" for state in states.values()):
                return
            time.sleep(LOOK_SECONDS)


def _progress(tasks: Mapping[str, list[TaskState]], began: Mapping[str, float]) -> Table:
    """The tasks that have not ended yet, with the seconds of those that run."""
    page = Table(box=None, show_header=False)
    for dag, group in tasks.items():
        for task in group:
            if task.state != "success":
                seconds = f"{time.monotonic() - began[task.task]:.0f} s" if task.state == "running" else ""
                page.add_row(dag, task.task, task.state or "waits", seconds)
    return page


def _print_places(folder: Path, lake: Lake, last: date, url: str, stop_command: str | None) -> None:
    places = {
        "table": lake.path("serving.recommendations"),
        "report": lake.root / "reports" / f"{last}.html",
        "Airflow logs": folder / "airflow" / "logs",
        "settings": f"export {CONFIG_VARIABLE}={os.environ[CONFIG_VARIABLE]}",
    }
    if stop_command:
        places["Airflow"] = f"{url} until: {stop_command}"
    for what, where in places.items():
        print(f"{what:<14}{where}")  # by print, which neither wraps nor shortens what is there to be copied
