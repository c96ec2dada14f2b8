"""Runs that go on, and runs that failed: a note of each lies in the lake from its beginning until it ends well.

Nothing waits for a note, and no table depends on one. It is there for a person to read, through `nightjar status`.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import psutil  # type: ignore[import-untyped]

from jobs.contracts.days import DayRange
from jobs.contracts.errors import StoreUnreachable
from jobs.lake import Lake, insist
from jobs.steps import Step
from jobs.storage import Location, write_whole

_FOLDER = "_runs"
_LONGEST_MESSAGE = 2000
_CLOCK_SECONDS = 60
_KILLED = "it ended without a word: killed, or the machine went down"


@dataclass(frozen=True)
class Run:
    """One run of a step: the days that it is for, the process that it is, and why it failed (null = it has not)."""

    name: str
    step: str
    days: frozenset[date]
    host: str
    process: int
    born: float  # tells the process from a later one with the same number
    failure: str | None = None

    @property
    def here(self) -> bool:
        return self.host == socket.gethostname()

    @property
    def alive(self) -> bool:
        """Whether the process goes on; its birth is reckoned from the clock, which may have been set meanwhile."""
        born = _born(self.process)
        return born is not None and abs(born - self.born) < _CLOCK_SECONDS

    def text(self) -> str:
        """What the note says."""
        return json.dumps({**vars(self), "days": sorted(map(str, self.days))}, indent=2)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The run of a note; one whose process is no more, on this host, has failed."""
        fields: dict[str, Any] = json.loads(text)
        run = cls(**fields | {"days": frozenset(map(date.fromisoformat, fields["days"]))})
        return run if run.failure or not run.here or run.alive else replace(run, failure=_KILLED)


@contextmanager
def noted(lake: Lake, step: Step, days: DayRange) -> Iterator[None]:
    """Keep a note of a run while it goes on. One that fails leaves it behind, until its days have been run again."""
    run = Run(f"{step.name}-{uuid4().hex}.json", step.name, frozenset(days), socket.gethostname(), os.getpid(), _born(os.getpid()) or 0)
    folder = lake.root / _FOLDER
    new = isinstance(folder, Path) and not folder.parent.exists()
    _write(folder, run)
    try:
        yield
    except BaseException as error:
        message = str(error) or type(error).__name__
        with suppress(OSError, StoreUnreachable):  # a disk that is full, or a store that is gone, has been told already
            _write(folder, replace(run, failure=message[:_LONGEST_MESSAGE]))
            if new and isinstance(folder, Path):
                _remove_unless_a_lake(folder, run)
        raise
    with suppress(OSError, StoreUnreachable):  # the tables are made, and no note may undo that
        for other in runs(lake):
            # Whether a process of another host lives can't be seen from here: what it was to make has been made.
            if other.step == run.step and (other.name == run.name or other.failure or not other.here):
                _write(folder, replace(other, days=other.days - run.days))


def carry_out(lake: Lake, step: Step, days: DayRange, *arguments: object) -> None:
    """Run a step's module with the arguments, noted, and again where another run has overtaken it. Raises what it raises, and as `require_writable`."""
    lake.require_writable(step.writes)
    run = importlib.import_module(step.module).run
    with noted(lake, step, days):
        insist(partial(run, *arguments))


def runs(lake: Lake) -> list[Run]:
    """Every run of which there is a note, in the order of steps' names."""
    found = []
    folder = lake.root / _FOLDER
    for name in sorted(path.name for path in folder.glob("*.json")):
        # It has ended well meanwhile; or it is none of this version's, or half of one that a machine wrote as it went down.
        with suppress(FileNotFoundError, ValueError, TypeError, KeyError):
            found.append(Run.parse((folder / name).read_text()))
    return found


def _write(folder: Location, run: Run) -> None:
    """Write a note; of no day, remove it."""
    if not run.days:
        (folder / run.name).unlink(missing_ok=True)
        return
    write_whole(folder / run.name, run.text())


def _remove_unless_a_lake(folder: Path, run: Run) -> None:
    """A first run that made nothing, in the wrong place perhaps, leaves nothing."""
    if [path.name for path in folder.parent.iterdir()] == [_FOLDER]:
        (folder / run.name).unlink()
        folder.rmdir()
        folder.parent.rmdir()


def _born(process: int) -> float | None:
    try:
        return float(psutil.Process(process).create_time())
    except psutil.NoSuchProcess:
        return None
