"""The demo, small but whole: a real Airflow runs both DAGs over a simulated world."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from deltalake import DeltaTable

from jobs.operate.airflow import running

ROOT = Path(__file__).parent.parent.parent
STEPS = ("bronze", "silver", "features", "transitions", "transitions_ready", "train", "evaluate", "gate", "score", "audit", "publish", "report")


def demo(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "jobs", "demo", str(folder), *options], capture_output=True, text=True, cwd=ROOT)


def test_the_demo_ends_in_a_published_table_and_leaves_no_process(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    answer = demo(folder, "--users", "120", "--items", "60", "--days", "4")
    assert answer.returncode == 0, answer.stdout[-3000:] + answer.stderr[-3000:]
    for step in STEPS:
        assert f"  {step}: " in answer.stdout, step
    for who in ("policy", "popularity", "logging policy", "myopic planner", "full-information planner"):
        assert f"│ {who} " in answer.stdout, who
    report = folder / "lake" / "reports" / "2026-01-04.html"
    for place in (folder / "lake" / "serving" / "recommendations", report, folder / "airflow" / "logs"):
        assert str(place) in answer.stdout
        assert place.exists()
    assert report.read_text().lower().startswith("<!doctype html>")
    lists = DeltaTable(str(folder / "lake" / "serving" / "recommendations")).to_pandas()
    assert "*" in set(lists["user_id"])
    assert set(lists["day"].astype(str)) == {"2026-01-04"}
    assert running(folder / "airflow") == []


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    answer = demo(tmp_path)
    assert answer.returncode == 1
    assert "holds something that no demo made" in answer.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
