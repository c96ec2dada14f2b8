"""The faults that the simulated world plants are the faults that ingest finds, to the line."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from jobs.contracts.days import DayRange
from jobs.ingest import bronze, silver
from jobs.lake import Lake
from jobs.settings import CONFIG_VARIABLE, load_settings
from tests.jobs.world.world_logs import written

REASONS = {
    "unknown_event_type": "unknown_type",
    "missing_field": "no_user",
    "wrong_type": "no_time",
    "propensity_out_of_range": "impossible_propensity",
    "bad_json": "cut_short",
    "event_time_in_future": "skewed",
}


def test_what_was_planted_is_what_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    landing = written(tmp_path / "landing", users=200, days=6, faults=True)
    planted = json.loads((landing / ".world" / "faults.json").read_text())
    monkeypatch.setenv(CONFIG_VARIABLE, str(landing / "nightjar.toml"))
    settings = load_settings()
    lake = Lake(settings.lake_path, tuple(settings.event_types))
    for step in (bronze, silver):
        step.run(lake, settings, DayRange.parse("2026-01-01", "2026-01-06"))
    assert Counter(REASONS[reason] for reason in lake.read("bronze.quarantine")["reason"].to_pylist()) == planted["quarantined"]
    assert lake.read("silver.repeats")["kind"].to_pylist() == ["duplicate"] * planted["duplicates"]
    assert lake.read("silver.interactions").num_rows == planted["accepted"]
    files = [row for row in lake.read("bronze.files").to_pylist() if row["feed"] == "events"]
    assert sum(row["lines"] for row in files) == planted["lines"]
