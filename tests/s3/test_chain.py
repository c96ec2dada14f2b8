"""The whole chain from logs in a store to a table in a store: row for row what it makes on a local disk."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jobs.contracts.days import DayRange
from jobs.contracts.tables import TABLES
from jobs.features import features
from jobs.ingest import bronze, silver
from jobs.lake import Lake
from jobs.operate.report import write_report
from jobs.operate.stale import find_stale
from jobs.operate.status import print_status
from jobs.publish import audit, publish
from jobs.runs import noted, runs
from jobs.settings import CONFIG_VARIABLE, Evaluate, Gate, Settings, Train, load_settings
from jobs.steps import find_step
from jobs.storage import S3Path
from jobs.transitions import transitions
from jobs.world.simulate import simulate
from models import evaluate, gate, score, train
from models.gate import policies_of

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def night(spark: SparkSession, settings: Settings, days: DayRange) -> Lake:
    """Every step of the days, and those of a night for the last one."""
    lake = Lake(settings.lake_path, tuple(settings.event_types))
    for arrow_step in (bronze, silver):
        arrow_step.run(lake, settings, days)
    for spark_step in (features, transitions):
        spark_step.run(spark, lake, settings, days)
    for torch_step in (train, evaluate, gate, score):
        torch_step.run(lake, settings, days.last)
    for arrow_step in (audit, publish):
        arrow_step.run(lake, settings, DayRange(days.last, days.last))
    return lake


def test_a_store_and_a_disk_hold_the_same(spark: SparkSession, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    landing, days = tmp_path / "landing", DayRange.parse("2026-01-01", "2026-01-03")
    monkeypatch.setenv(CONFIG_VARIABLE, str(landing / "nightjar.toml"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    simulate(landing, users=25, items=20, first=days.first, days=3, seed=3, null=False, confounded=False, faults=True)
    for path in (path for path in landing.rglob("*") if path.is_file()):
        (settings.landing_path / path.relative_to(landing).as_posix()).write_bytes(path.read_bytes())
    small = {
        "train": Train(dim=8, layers=1, heads=1, context=8, epochs=1, window_days=3),
        "evaluate": Evaluate(bootstrap=20),
        "gate": Gate(min_users=1, min_effective_sample_size=0, min_overlap=0),
    }
    here = load_settings(**small)
    there = here.model_copy(update={"landing": settings.landing, "lake": settings.lake, "s3": settings.s3})
    local, remote = night(spark, here, days), night(spark, there, days)
    for table in TABLES:
        rows = [sorted(repr({**row, "modified": 0}) for row in lake.read(table).to_pylist()) for lake in (local, remote)]
        assert rows[0] == rows[1], table
        assert remote.done(table) == local.done(table)
    assert remote.read("serving.recommendations").num_rows > 20

    (version,) = (policy.version for policy in policies_of(remote, days.last))
    files = sorted(path.name for path in (remote.root / "policies" / version).rglob("*"))
    assert files == sorted(path.name for path in (local.root / "policies" / version).rglob("*"))
    assert (landing / "_mlflow" / "mlflow.db").is_file(), "beside the settings file, where the lake is no disk"
    page = write_report(remote, days.last)
    assert str(page) == f"{settings.lake}/reports/2026-01-03.html"
    assert page.read_text().count("<svg") >= 1
    assert isinstance(remote.root, S3Path)
    left = {path.parts[3] for path in remote.root.rglob("*")}
    assert left == {"bronze", "silver", "gold", "serving", "policies", "reports"}

    name = next(path for path in landing.rglob("*.gz") if "events/ds=2026-01-02" in str(path)).relative_to(landing).as_posix()
    for place in (here.landing_path, there.landing_path):
        (place / name).write_bytes(gzip.compress(b"".join(gzip.decompress((place / name).read_bytes()).splitlines(keepends=True)[5:]), mtime=0))
    told = find_stale(remote, there)
    assert told == find_stale(local, here)
    assert {"bronze.events", "silver.interactions", "gold.user_features", "gold.transitions", "serving.recommendations"} <= {one.table for one in told}
    with noted(remote, find_step("silver"), days):
        assert [(run.step, run.days, run.failure) for run in runs(remote)] == [("silver", frozenset(days), None)]
        for arrow_step in (bronze, silver):
            arrow_step.run(remote, there, days)
    assert runs(remote) == []
    again = find_stale(remote, there)
    assert "bronze.events" not in {one.table for one in again}
    assert {(one.table, one.day, one.rows) for one in again if one.table.startswith("gold")} == {
        (one.table, one.day, one.rows) for one in told if one.table.startswith("gold")
    }
    print_status(remote, there)
