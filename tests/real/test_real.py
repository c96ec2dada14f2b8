"""The whole chain on real logs, every day of each: convert, backfill, the last night, the published table. `make test-real`.

The data sets lie beside the project and never enter it. At the end the README's table of figures is printed.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pyarrow.compute as pc
import pytest

from jobs.lake import Lake
from jobs.settings import CONFIG_VARIABLE, elsewhere, load_settings
from jobs.steps import STEPS

ROOT = Path(__file__).parent.parent.parent
DATA = ROOT.parent / "shared" / "data"
SETS = {"movietweetings": DATA / "movietweetings", "taobao": DATA / "taobao_userbehavior"}


def nightjar(config: Path | None, *arguments: str) -> None:
    environment = elsewhere(config) if config else None
    answer = subprocess.run([sys.executable, "-m", "jobs", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, f"nightjar {' '.join(arguments)}\n{answer.stdout[-2000:]}\n{answer.stderr[-4000:]}"


@pytest.mark.parametrize("name", SETS)
def test_the_whole_chain(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    landing = tmp_path / "landing"
    config = landing / "nightjar.toml"
    nightjar(None, "convert", name, str(SETS[name]), str(landing))
    days = sorted(path.name.removeprefix("ds=") for path in (landing / "events").iterdir())
    nightjar(config, "backfill", "--from", days[0], "--to", days[-2])
    nightjar(config, "night", "--day", days[-1])
    minutes = (time.monotonic() - began) / 60

    monkeypatch.setenv(CONFIG_VARIABLE, str(config))
    settings = load_settings()
    lake = Lake(settings.lake_path, tuple(settings.event_types))
    for step in STEPS:
        for table in step.writes:
            assert days[-1] in {str(day) for day in lake.done(table)}, table
    check_nothing_is_lost(lake, landing)
    lists = lake.read("serving.recommendations")
    assert pc.max(lists["rank"]).as_py() <= settings.score.top_n
    assert {str(day) for day in lists["day"].unique().to_pylist()} == {days[-1]}
    users = set(lists["user_id"].to_pylist())
    assert "*" in users
    assert pc.sum(lake.read("gold.audits")["offending"]).as_py() == 0

    with capsys.disabled():
        print_figures(name, lake, len(users) - 1, minutes)
    figures = evaluations(lake)
    assert figures["challenger"]["recall@10"] > figures["popularity"]["recall@10"]
    assert all(0 <= row["ndcg@10"] <= row["recall@10"] <= 1 for row in figures.values())


def check_nothing_is_lost(lake: Lake, landing: Path) -> None:
    """Each line of the landing folder is an event or in quarantine."""
    command = f"find {landing}/events -type f -name '*.gz' -exec zcat {{}} + | wc -l"
    lines = int(subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout)
    quarantined = lake.read("bronze.quarantine", ["feed"])
    bad = pc.sum(pc.equal(quarantined["feed"], "events")).as_py() or 0
    assert lines > 0
    assert lake.read("bronze.events", ["event_id"]).num_rows + bad == lines


def evaluations(lake: Lake) -> dict[str, dict[str, float]]:
    """Who was judged → metric → value."""
    figures: dict[str, dict[str, float]] = defaultdict(dict)
    for row in lake.read("gold.evaluations", ["name", "metric", "value"]).to_pylist():
        figures[row["name"]][row["metric"]] = row["value"]
    return {name: metrics for name, metrics in figures.items() if "recall@10" in metrics}


def print_figures(name: str, lake: Lake, users: int, minutes: float) -> None:
    rows = lake.read("silver.interactions", ["event_id"]).num_rows
    steps = lake.read("gold.transitions", ["step"]).num_rows
    print(f"\n\n{name}: {rows:,} interactions, {steps:,} steps, lists for {users:,} users, {minutes:.1f} minutes from raw files to the published table\n")
    print("| | HR@10 | NDCG@10 | first HR@10 | first NDCG@10 |\n|---|---|---|---|---|")
    for who, metrics in sorted(evaluations(lake).items(), key=lambda row: -row[1]["recall@10"]):
        print("|", who, "|", " | ".join(f"{metrics[metric]:.3f}" for metric in ("recall@10", "ndcg@10", "first_recall@10", "first_ndcg@10")), "|")
