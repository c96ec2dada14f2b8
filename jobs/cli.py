"""The command line. Each command is one line of work; what it does lies in the module that it imports."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.contracts.days import DayRange, parse_day
from jobs.contracts.errors import NotYet, exit_status
from jobs.contracts.exports import EXPORT_FORMATS, HISTORY, check_format
from jobs.lake import Lake
from jobs.settings import CONFIG_VARIABLE, Settings, load_settings
from jobs.steps import FEATURES_DAILY, STEPS, find_step
from jobs.storage import S3Path

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Nightly recommendations from raw interaction logs.",
)

Day = Annotated[str, typer.Option("--day", help="data day, YYYY-MM-DD", metavar="DAY")]
From = Annotated[str, typer.Option("--from", help="first data day", metavar="DAY")]
To = Annotated[str, typer.Option("--to", help="last data day", metavar="DAY")]
Seed = Annotated[int, typer.Option(help="same seed, same bytes")]


def main() -> None:
    """Run the command line; a user's mistake ends with its message and status 1."""
    sys.exit(exit_status(app))


@app.callback()
def configure(config: Annotated[Path | None, typer.Option(help="settings file; else $NIGHTJAR_CONFIG, else nightjar.toml here")] = None) -> None:
    """Name the settings file before any command reads it, for the processes that it starts too."""
    if config is not None:
        os.environ[CONFIG_VARIABLE] = str(config.absolute())


def _lake(settings: Settings) -> Lake:
    return Lake(settings.lake_path, tuple(settings.event_types))


@app.command()
def run(
    step: Annotated[str, typer.Argument(help=" ".join(step.name for step in STEPS))],
    day: Day,
    to: Annotated[str | None, typer.Option(help="last day of a range; no torch steps", metavar="DAY")] = None,
) -> None:
    """Run one step for a day, or for a range of days in one pass."""
    from jobs.operate.run import run_steps

    run_steps([(step, DayRange.parse(day, to))], load_settings())


@app.command()
def night(day: Day) -> None:
    """Run the whole chain for one day, without Airflow."""
    from jobs.operate.run import run_steps

    run_steps([(step.name, DayRange.parse(day)) for step in STEPS], load_settings())


@app.command()
def backfill(first: From, last: To) -> None:
    """Make the tables up to transitions for a range of days, each step in one pass."""
    from jobs.operate.run import run_steps

    run_steps([(step, DayRange.parse(first, last)) for step in FEATURES_DAILY], load_settings())


@app.command()
def ready(step: Annotated[str, typer.Argument(help="name of a step")], day: Day) -> None:
    """End with status 0 if the tables of a step hold the day, with 75 and what is missing if they don't yet."""
    lake, wanted = _lake(load_settings()), parse_day(day)
    missing = [table for table in find_step(step).writes if wanted not in lake.done(table)]
    if missing:
        raise NotYet(f"{wanted} is not in {', '.join(missing)} yet.")


@app.command()
def simulate(
    landing: Annotated[Path, typer.Argument(help="folder to write; its nightjar.toml is written too")],
    users: Annotated[int, typer.Option(min=1)] = 2000,
    items: Annotated[int, typer.Option(min=1)] = 1000,
    days: Annotated[int, typer.Option(min=1)] = 30,
    first: Annotated[str, typer.Option(metavar="DAY", help="first day of the log")] = "2026-01-01",
    seed: Seed = 0,
    null: Annotated[bool, typer.Option("--null", help="a world without the long-term effect")] = False,
    confounded: Annotated[bool, typer.Option("--confounded", help="log by a policy that knows the hidden state")] = False,
    faults: Annotated[bool, typer.Option("--faults", help="duplicates, late events, malformed lines, bots, clock skew, …")] = False,
) -> None:
    """Write the logs of a small world whose best policy is known."""
    from jobs.world.simulate import simulate as write

    write(landing, users=users, items=items, first=parse_day(first), days=days, seed=seed, null=null, confounded=confounded, faults=faults)


@app.command()
def value(
    landing: Annotated[Path, typer.Argument(help="folder that `simulate` wrote")],
    day: Annotated[str | None, typer.Option(help="day of the policy; else the newest", metavar="DAY")] = None,
    users: Annotated[int, typer.Option(min=1, help="fresh users to play with")] = 500,
    seed: Seed = 0,
) -> None:
    """Play the served policy in its simulated world, beside popularity and the planners, and print the true values."""
    from jobs.world.value import print_values

    print_values(landing, load_settings(), parse_day(day) if day else None, users=users, seed=seed)


@app.command()
def convert(
    format: Annotated[str, typer.Argument(help="movielens, movietweetings, retailrocket, taobao or yoochoose")],
    source: Annotated[Path, typer.Argument(help="folder with the files as published")],
    landing: Annotated[Path, typer.Argument(help="folder to write; its nightjar.toml is written too")],
) -> None:
    """Turn a public data set into the landing format."""
    from jobs.ingest.convert import convert as write

    write(format, source, landing)


@app.command()
def tune(
    day: Day,
    trials: Annotated[int, typer.Option(min=1, help="trials in all: the same command again goes on to so many")],
    timeout: Annotated[float | None, typer.Option(min=0, help="no trial begins after so many minutes", metavar="MINUTES")] = None,
    storage: Annotated[Path | None, typer.Option(help="record of the trials; else tune/DAY.log beside the settings file", metavar="FILE")] = None,
) -> None:
    """Look for better settings of the learner, judged on the last training days, and write a settings file with the best.

    The held-out days that the night is judged on are not looked at. Ctrl-C ends it once the trial in course is stored.
    """
    from jobs.operate.run import become_models

    options = [word for name, value in (("--timeout", timeout), ("--storage", storage)) if value is not None for word in (name, str(value))]
    become_models("tune", "--day", str(parse_day(day)), "--trials", str(trials), options)


@app.command()
def status() -> None:
    """Show which days each table holds, what is stale, what is running and what has failed."""
    from jobs.operate.status import print_status

    settings = load_settings()
    print_status(_lake(settings), settings)


@app.command()
def stale(recompute: Annotated[bool, typer.Option("--recompute", help="make it again, and what is made from it")] = False) -> None:
    """List what would come out otherwise by now, why, and in how many rows: late and restated data, other settings."""
    from jobs.operate import stale as module

    settings = load_settings()
    if recompute:
        module.recompute(_lake(settings), settings)
    module.print_stale(_lake(settings), settings)


@app.command()
def migrate(apply: Annotated[bool, typer.Option("--apply", help="do it")] = False) -> None:
    """Show, or do, what tables need that were made by an older contract: a version before this one, or other event types."""
    from jobs.operate import migrate as module

    settings = load_settings()
    if apply:
        module.migrate(_lake(settings), settings)
    module.print_migration(_lake(settings))


export = typer.Typer(no_args_is_help=True, help="Transitions for other learners, and a policy for a service of your own.")
app.add_typer(export, name="export")


@export.command("transitions")
def export_transitions(
    folder: Annotated[Path, typer.Argument(help="folder to write: a new or an empty one")],
    to: Annotated[str, typer.Option(metavar="FORMAT", help="; ".join(f"{name}: {what}" for name, what in EXPORT_FORMATS.items()))],
    day: Annotated[str | None, typer.Option(help="last data day, and as of whose end; else the newest", metavar="DAY")] = None,
    first: Annotated[str | None, typer.Option("--from", help="first data day; else that of training's window", metavar="DAY")] = None,
    history: Annotated[int, typer.Option(min=1, help="last steps of the user that a state holds")] = HISTORY,
) -> None:
    """Write transitions, flat (s, a, r, s', terminated, truncated), for other learners.

    A state is the user's last steps: of each, oldest first, four whole numbers: item, event type, response, seconds since the step
    before it; 0 = none. An action is an item, by its place in items.parquet. Steps whose reward can still grow are left out.
    """
    from jobs.operate.run import run_models

    check_format(to)
    options = [word for name, text in (("--day", day), ("--from", first)) if text for word in (name, str(parse_day(text)))]
    run_models("export-transitions", "--to", to, options, "--history", str(history), "--", str(folder))


@export.command("policy")
def export_policy(
    folder: Annotated[Path, typer.Argument(help="folder to write: a new or an empty one")],
    day: Day,
    policy: Annotated[str | None, typer.Option(help="a policy version, or popularity; else what the day's verdict serves", metavar="VERSION")] = None,
) -> None:
    """Write what is served after a day as a program that torch runs without Nightjar, and its items with their vectors.

    README.md has a service in a few lines.
    """
    from jobs.operate.run import run_models

    run_models("export-policy", "--day", str(parse_day(day)), ["--policy", policy] if policy else [], "--", str(folder))


quarantine = typer.Typer(no_args_is_help=True, help="What could not be taken in: count it, look at it, take it in again.")
app.add_typer(quarantine, name="quarantine")


@quarantine.command("list")
def quarantine_list() -> None:
    """Count the lines in quarantine by arrival day, feed and reason."""
    from jobs.operate.quarantine import print_counts

    print_counts(_lake(load_settings()))


@quarantine.command("show")
def quarantine_show(
    day: Day,
    reason: Annotated[str | None, typer.Option(help="only lines with this reason")] = None,
    top: Annotated[int, typer.Option(min=1, help="lines shown")] = 10,
) -> None:
    """Show lines of an arrival day: where each stood, what was expected and what came."""
    from jobs.operate.quarantine import print_lines

    print_lines(_lake(load_settings()), parse_day(day), reason, top)


@quarantine.command("requeue")
def quarantine_requeue(
    first: From,
    last: To,
    reason: Annotated[list[str] | None, typer.Option(help="only lines with this reason; may be given several times")] = None,
) -> None:
    """After a mend of the reader or the settings: take in what it can type by now."""
    from jobs.operate.quarantine import print_requeued

    settings = load_settings()
    print_requeued(_lake(settings), settings, DayRange.parse(first, last), reason or [])


features = typer.Typer(no_args_is_help=True, help="What is known of users and items.")
app.add_typer(features, name="features")


@features.command("list")
def features_list() -> None:
    """Show each feature with its definition."""
    from jobs.operate.features import print_features

    print_features(tuple(load_settings().event_types))


@app.command("set-aside")
def set_aside(
    day: Annotated[str | None, typer.Option(help="arrival day: who they are", metavar="DAY")] = None,
    top: Annotated[int, typer.Option(min=1, help="users shown")] = 20,
) -> None:
    """Count the events of users that are beyond the limits: bots, most likely."""
    from jobs.operate.set_aside import print_set_aside

    print_set_aside(_lake(load_settings()), parse_day(day) if day else None, top)


@app.command()
def show(user: Annotated[str, typer.Argument(help="user id, or * for somebody with no history")]) -> None:
    """Show the list that a user is served, with reasons."""
    from jobs.operate.show import print_lists

    print_lists(_lake(load_settings()), [user])


@app.command()
def report(day: Day) -> None:
    """Write the page of one night: verdict, metrics, lists."""
    from jobs.operate.report import write_report

    print(write_report(_lake(load_settings()), parse_day(day)))


@app.command()
def doctor() -> None:
    """Say whether this machine is fit, and what to do where it is not."""
    from jobs.operate.doctor import print_diagnosis

    print_diagnosis(load_settings())


@app.command()
def jars(s3: Annotated[bool, typer.Option("--s3", help="those of a lake on S3 too, 700 MB, whatever the settings say")] = False) -> None:
    """Resolve the Delta JARs into a folder, where the lake lies on S3 those of S3 too, and archive the classes that Spark loads, once."""
    from jobs.operate.jars import fill_jars

    fill_jars(s3 or isinstance(load_settings().lake_path, S3Path))


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="folder to work in; emptied first")] = Path("demo"),
    users: Annotated[int, typer.Option(min=1)] = 2000,
    items: Annotated[int, typer.Option(min=1)] = 1000,
    days: Annotated[int, typer.Option(min=2)] = 30,
    seed: Seed = 0,
    keep: Annotated[bool, typer.Option("--keep", help="leave Airflow running afterwards")] = False,
) -> None:
    """Simulate a world, backfill it, run its last night through Airflow, and compare what came out with the truth."""
    from jobs.operate.demo import run_demo

    run_demo(folder, users=users, items=items, days=days, seed=seed, keep=keep)
