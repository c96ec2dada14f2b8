"""`python -m models STEP … --day D` runs torch steps, in order; `nightjar run` starts it. `recommend` answers on stdin and stdout."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from jobs.contracts.days import DayRange, parse_day
from jobs.contracts.errors import BadRequest, exit_status
from jobs.lake import Lake
from jobs.runs import carry_out
from jobs.settings import load_settings
from jobs.steps import find_step

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
RECOMMEND = "recommend"


@app.command()
def run(
    steps: Annotated[list[str], typer.Argument(help="train evaluate gate score; or recommend, alone")],
    day: Annotated[str, typer.Option(help="data day, YYYY-MM-DD")],
    policy: Annotated[str | None, typer.Option(help="recommend only: a policy version, or popularity; else what the day's verdict serves")] = None,
) -> None:
    """Run torch steps for one day, or answer histories, a JSON line each, with lists."""
    settings, wanted = load_settings(), parse_day(day)
    lake = Lake(settings.lake_path, tuple(settings.event_types))
    if steps == [RECOMMEND]:
        from models.recommend import answers

        for answer in answers(iter(sys.stdin.readline, ""), lake, settings, wanted, policy):
            print(answer, flush=True)
        return
    if policy is not None:
        raise BadRequest(f"--policy is for `{RECOMMEND}` alone; a step takes the policy that the lake names.")
    for step in map(find_step, steps):
        carry_out(lake, step, DayRange(wanted, wanted), lake, settings, wanted)


if __name__ == "__main__":
    sys.exit(exit_status(app))
