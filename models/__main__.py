"""`python -m models COMMAND`: what needs torch, or what only a learner reads; `nightjar` starts it, each time as a process of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.contracts.days import DayRange, parse_day
from jobs.contracts.errors import NotShared, exit_status
from jobs.contracts.exports import EXPORT_FORMATS, HISTORY
from jobs.lake import Lake
from jobs.runs import carry_out
from jobs.settings import Settings, config_path, load_settings
from jobs.steps import find_step

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Day = Annotated[str, typer.Option(help="data day, YYYY-MM-DD")]


def _lake(settings: Settings) -> Lake:
    return Lake(settings.lake_path, tuple(settings.event_types))


@app.command()
def run(steps: Annotated[list[str], typer.Argument(help="train evaluate gate score")], day: Day) -> None:
    """Run torch steps for one day, in order."""
    settings, wanted = load_settings(), parse_day(day)
    lake = _lake(settings)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # torchrun says so
        if steps != ["train"]:
            raise NotShared(f"Only the step train is shared by several processes; got {' '.join(steps)}. Run the others without torchrun.")
        from models.train import run_together

        run_together(lake, settings, wanted)
        return
    for step in map(find_step, steps):
        carry_out(lake, step, DayRange(wanted, wanted), lake, settings, wanted)


@app.command()
def recommend(day: Day, policy: Annotated[str | None, typer.Option(help="a policy version, or popularity; else what the day's verdict serves")] = None) -> None:
    """Answer histories, a JSON line each on stdin, with lists on stdout."""
    from models.recommend import answers

    settings = load_settings()
    for answer in answers(iter(sys.stdin.readline, ""), _lake(settings), settings, parse_day(day), policy):
        print(answer, flush=True)


@app.command()
def tune(
    day: Day,
    trials: Annotated[int, typer.Option(min=1, help="trials in all")],
    timeout: Annotated[float | None, typer.Option(help="minutes")] = None,
    storage: Annotated[Path | None, typer.Option(help="record of the trials")] = None,
) -> None:
    """Tune the learner."""
    from models.tune import tune as search

    settings, wanted = load_settings(), parse_day(day)
    search(_lake(settings), settings, wanted, trials, timeout, storage or config_path().parent / "tune" / f"{wanted}.log")


@app.command("export-transitions")
def export_transitions(
    folder: Path,
    to: Annotated[str, typer.Option(help=" ".join(EXPORT_FORMATS))],
    day: Annotated[str | None, typer.Option(help="last day, and what is known by then; else the newest")] = None,
    first: Annotated[str | None, typer.Option("--from", help="first day; else that of training's window")] = None,
    history: Annotated[int, typer.Option(min=1, help="last steps that a state holds")] = HISTORY,
) -> None:
    """Export transitions."""
    from models.export import export_transitions as write
    from models.export import told

    settings = load_settings()
    last, begin = (parse_day(text) if text else None for text in (day, first))
    print(f"{folder}: {told(write(_lake(settings), settings, folder, to, last, begin, history))}")


@app.command("export-policy")
def export_policy(
    folder: Path,
    day: Day,
    policy: Annotated[str | None, typer.Option(help="a policy version, or popularity; else what the day's verdict serves")] = None,
) -> None:
    """Export a policy."""
    from models.online import export_policy as write

    settings = load_settings()
    manifest = write(_lake(settings), settings, folder, parse_day(day), policy)
    print(f"{folder}: {manifest['policy_version']} with the items and the popularity of {manifest['day']}")


if __name__ == "__main__":
    sys.exit(exit_status(app))
