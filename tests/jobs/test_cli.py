"""The command line, in this process: what a mistake prints, and with which status it ends."""

from __future__ import annotations

import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

from jobs.cli import main
from jobs.contracts.features import ENTITIES, declared_of
from jobs.lake import Lake
from jobs.settings import CONFIG_VARIABLE

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "nightjar.toml"
    path.write_text('lake = "lake"\n')
    monkeypatch.setenv(CONFIG_VARIABLE, str(path))
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["nightjar", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "sliver", "--day", "2026-01-01"], "Did you mean 'silver'?"),
        (["run", "bronze", "--day", "yesterday"], "'yesterday' is no day. Expected YYYY-MM-DD"),
        (["run", "bronze", "--day", "2026-01-02", "--to", "2026-01-01"], "before it begins on 2026-01-02"),
        (["backfill", "--from", "2026-01-02", "--to", "2026-01-01"], "before it begins on 2026-01-02"),
        (["run", "train", "--day", "2026-01-01", "--to", "2026-01-02"], "train makes one day at a time"),
        (["night", "--day", "2026-13-01"], "is no day"),
        (["tune", "--day", "soon", "--trials", "2"], "'soon' is no day"),
        (["show", "u1"], "no table serving.recommendations"),
        (["convert", "taobaoo", "here", "there"], "taobao"),
        (["simulate", "there", "--first", "2026"], "is no day"),
        (["export", "transitions", "--to", "csv", "there"], "no export format 'csv'. Expected parquet, jsonl, d3rlpy, minari."),
        (["export", "transitions", "--to", "jsonl", "there", "--day", "tomorrow"], "is no day"),
        (["export", "policy", "there", "--day", "soon"], "is no day"),
    ],
)
def test_a_mistake_gets_its_message_and_status_1(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run(monkeypatch, *arguments) == 1
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert len(printed.err.splitlines()) < 24, "an error fits on one screen"
    assert list(config.parent.iterdir()) == [config], "nothing half written"


def test_a_command_that_is_none(config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "nite") == 2
    assert "nite" in capsys.readouterr().err


def test_ready_when_each_table_of_the_step_holds_the_day(config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Not yet is 75, at which Airflow's sensor asks again; whatever is wrong is 1, at which it fails."""
    lake = Lake(config.parent / "lake", ("impression", "click", "purchase"))
    for table in ("gold.item_index", "gold.candidate_sets", "gold.unattributed", "gold.rewards", "gold.transitions"):
        assert run(monkeypatch, "ready", "transitions", "--day", "2026-01-01") == 75
        assert f"2026-01-01 is not in {table}" in capsys.readouterr().err
        lake.replace(table, lake.schema(table).empty_table(), "transitions", [date(2026, 1, 1)], {})
    assert run(monkeypatch, "ready", "transitions", "--day", "2026-01-01") == 0
    assert run(monkeypatch, "ready", "transitions", "--day", "soon") == 1


def test_the_list_of_features(config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the event types of the settings: each by its name, with what it is made from, what holds where nothing is known, and its meaning."""
    config.write_text("[event_types]\nimpression = {step = true}\nclick = {}\npurchase = {}\nwish = {}\n")
    assert run(monkeypatch, "features", "list") == 0
    printed = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "wish_value_sum_30d sum value wish 30d 0 sum of the values of wish events, last 30 days" in printed
    assert "click_per_impression_rate_7d rate event click 7d null (click events + 1) / (impression events + 20), last 7 days" in printed
    features = [feature for entity in ENTITIES for feature in declared_of(entity, ("impression", "click", "purchase", "wish"))]
    assert {line.split(" ")[0] for line in printed} >= {feature.name for feature in features}
    assert sum("features of" in line for line in printed) == 2


def test_tuning_goes_on_as_the_torch_process(config: Path) -> None:
    """In the place of this one, so that signals reach it: its message, and no other."""
    answer = subprocess.run([sys.executable, "-m", "jobs", "tune", "--day", "2026-01-01", "--trials", "2"], capture_output=True, text=True, cwd=ROOT)
    assert answer.returncode == 1
    assert answer.stderr.startswith(f"nightjar: gold.transitions in {config.parent}/lake does not hold 2026-01-01 yet.")
    assert len(answer.stderr.splitlines()) == 1
    assert list(config.parent.iterdir()) == [config], "nothing half written"


def test_the_module_is_the_command(config: Path) -> None:
    answer = subprocess.run([sys.executable, "-m", "jobs", "run", "sliver", "--day", "2026-01-01"], capture_output=True, text=True, cwd=ROOT)
    assert answer.returncode == 1
    assert answer.stderr.startswith("nightjar: There is no step 'sliver'.")
