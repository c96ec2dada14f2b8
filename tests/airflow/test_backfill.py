"""Airflow's own backfill over three days ends in the tables that `nightjar backfill` makes. `make test-airflow`.

It starts twelve Spark sessions, one a task, and so takes minutes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.lake import Lake
from jobs.operate.airflow import EmbeddedAirflow, running
from jobs.settings import CONFIG_VARIABLE, load_settings
from jobs.steps import FEATURES_DAILY, find_step
from jobs.world.simulate import simulate

ROOT = Path(__file__).parent.parent.parent
FIRST, LAST = date(2026, 1, 1), date(2026, 1, 3)
MINUTES = 20


def rows(lake: Lake, table: str) -> list[str]:
    """Every row of a table as text, sorted: the content, whatever the files."""
    content: pa.Table = lake.read(table)
    return sorted(map(str, content.to_pylist()))


def test_backfill_by_airflow_is_backfill_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_hand, by_airflow = tmp_path / "hand", tmp_path / "airflow"
    simulate(by_hand / "landing", users=60, items=40, first=FIRST, days=3, seed=3, null=False, confounded=False, faults=True)
    shutil.copytree(by_hand / "landing", by_airflow / "landing")
    lakes = {}
    for folder in (by_hand, by_airflow):
        monkeypatch.setenv(CONFIG_VARIABLE, str(folder / "landing" / "nightjar.toml"))
        settings = load_settings()
        lakes[folder] = Lake(settings.lake_path, tuple(settings.event_types))
    monkeypatch.setenv(CONFIG_VARIABLE, str(by_hand / "landing" / "nightjar.toml"))
    command = [sys.executable, "-m", "jobs", "backfill", "--from", str(FIRST), "--to", str(LAST)]
    assert subprocess.run(command, cwd=ROOT).returncode == 0

    home = by_airflow / "home"
    with EmbeddedAirflow(home, ROOT / "dags", {CONFIG_VARIABLE: str(by_airflow / "landing" / "nightjar.toml")}) as airflow:
        airflow.command("backfill", "create", "--dag-id", "features_daily", "--from-date", str(FIRST), "--to-date", str(LAST), "--max-active-runs", "1")
        deadline = time.monotonic() + 60 * MINUTES
        while (states := [airflow.state(run) for run in airflow.runs("features_daily")]) != ["success"] * 3:
            for run, state in zip(airflow.runs("features_daily"), states, strict=True):
                if state == "failed":
                    raise airflow.failure(run)
            assert time.monotonic() < deadline, states
            time.sleep(3)
    assert running(home) == []
    for step in FEATURES_DAILY:
        for table in find_step(step).writes:
            assert rows(lakes[by_airflow], table) == rows(lakes[by_hand], table), table
            assert lakes[by_airflow].done(table) >= {FIRST, date(2026, 1, 2), LAST}
