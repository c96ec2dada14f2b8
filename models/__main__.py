"""`python -m models STEP … --day D` runs torch steps, in order; `nightjar run` starts it."""

from __future__ import annotations

import importlib
import sys
from typing import Annotated

import typer

from jobs.contracts.days import parse_day
from jobs.contracts.errors import exit_status
from jobs.lake import Lake
from jobs.settings import load_settings
from jobs.steps import find_step

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def run(
    steps: Annotated[list[str], typer.Argument(help="train evaluate gate score")],
    day: Annotated[str, typer.Option(help="data day, YYYY-MM-DD")],
) -> None:
    """Run torch steps for one day."""
    settings, wanted = load_settings(), parse_day(day)
    lake = Lake(settings.lake_path, tuple(settings.event_types))
    for name in steps:
        importlib.import_module(find_step(name).module).run(lake, settings, wanted)


if __name__ == "__main__":
    sys.exit(exit_status(app))
