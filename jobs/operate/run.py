"""Runs steps: Spark ones in this process with one session, arrow ones without, torch ones in a process of their own."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console

from jobs.contracts.days import DayRange
from jobs.contracts.errors import BadDay, ProcessFailed
from jobs.lake import Lake
from jobs.runs import carry_out
from jobs.settings import Settings
from jobs.spark import require_engine, start_session
from jobs.steps import find_step

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

console = Console(stderr=True, highlight=False)


def run_steps(work: Sequence[tuple[str, DayRange]], settings: Settings) -> None:
    """Run the named steps, each for its days and in the order given, Spark ones over the whole range in one pass.

    Raises UnknownStep before anything runs; BadDay for a torch step over more than one day; ProcessFailed when a torch
    step fails, after its own message; EngineMissing, before anything runs, when a Spark step is among them and Java or the
    JARs don't fit.
    """
    steps = [(find_step(name), days) for name, days in work]
    for step, days in steps:
        if step.engine == "torch" and len(days) > 1:
            raise BadDay(f"Step {step.name} makes one day at a time; got {days}. Leave out --to.")
    if any(step.engine == "spark" for step, _ in steps):
        require_engine(settings)
    lake = Lake(settings.lake_path, tuple(settings.event_types))
    for (engine, night), group in itertools.groupby(steps, key=lambda item: (item[0].engine, item[1] if item[0].engine == "torch" else None)):
        if night:
            run_models("run", [step.name for step, _ in group], "--day", str(night.first))
            continue
        with _spark(settings) if engine == "spark" else nullcontext() as spark:
            for step, days in group:
                with _timed(f"{step.name} {days}"):
                    carry_out(lake, step, days, *([spark] if spark else []), lake, settings, days)


def run_models(*arguments: Sequence[str] | str) -> None:
    """Start `python -m models …` and wait. Raises ProcessFailed when it ends with a failure."""
    words = _words(arguments)
    status = subprocess.run([sys.executable, *words], env=_environment()).returncode
    if status != 0:
        raise ProcessFailed(f"`python {' '.join(words)}` ended with status {status}; its own message stands above.")


def become_models(*arguments: Sequence[str] | str) -> NoReturn:
    """Go on as `python -m models …`: signals reach it, and its status is this process's."""
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *_words(arguments)], _environment())


def _words(arguments: Sequence[Sequence[str] | str]) -> list[str]:
    return ["-m", "models", *(word for argument in arguments for word in ([argument] if isinstance(argument, str) else argument))]


def _environment() -> dict[str, str]:
    """Threads that spin while they wait make a training step 40 times slower beside one busy neighbour."""
    return {"OMP_WAIT_POLICY": "passive"} | os.environ


@contextmanager
def _spark(settings: Settings) -> Iterator[SparkSession]:
    with _timed("Spark start"):
        spark = start_session(settings)
    try:
        yield spark
    finally:
        spark.stop()


@contextmanager
def _timed(what: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    console.print(f"{what}: {time.monotonic() - began:.1f} s")
