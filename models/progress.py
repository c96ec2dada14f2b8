"""How far a training has come: a bar on a terminal, else a line an epoch."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def training_progress(epochs: int, steps: int, done: int) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """Yields what is to be called after each batch with its number of steps and the parts of its loss (means over the batch).

    A part that only some batches have, as the validation loss of an epoch's last one, is averaged over these.
    `steps` is how many steps an epoch has, `done` how many have been learnt before. Everything goes to stderr.
    """
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("train"), BarColumn(), TextColumn("{task.percentage:3.0f}%"), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        yield _Meter(console, bar, epochs, steps, done).add


class _Meter:
    def __init__(self, console: Console, bar: Progress, epochs: int, steps: int, done: int) -> None:
        self._console, self._bar, self._epochs, self._steps = console, bar, epochs, steps
        self._task = bar.add_task("", total=epochs * steps)
        self._began = time.monotonic()
        self._before = self._done = done
        self._sums: dict[str, tuple[float, int]] = {}  # by name: of the values by their steps, and of these

    def add(self, steps: int, parts: dict[str, float]) -> None:
        self._done += steps
        for name, value in parts.items():
            summed, over = self._sums.get(name, (0.0, 0))
            self._sums[name] = summed + steps * value, over + steps
        epoch, rest = divmod(self._done, self._steps)
        self._bar.update(self._task, completed=self._done, description=f"epoch {min(epoch + 1, self._epochs)} of {self._epochs}")
        if rest == 0:
            means = ", ".join(f"{name} {summed / over:.4f}" for name, (summed, over) in self._sums.items())
            rate = (self._done - self._before) / max(1e-9, time.monotonic() - self._began)
            self._console.print(f"train: epoch {epoch} of {self._epochs}: {means}; {rate:,.0f} steps/s", soft_wrap=True)
            self._sums = {}
