"""The DAGs: that they load, and light; that their graph is the one on record; which day each kind of run is for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.contracts.errors import BadDay

DAGS = Path(__file__).parent.parent.parent / "dags"
SNAPSHOT = Path(__file__).parent / "graph.json"
HEAVY = ("pyspark", "torch", "pandas", "numpy", "pyarrow", "deltalake", "mlflow")

LOAD = f"""
import json, sys
sys.path.insert(0, {str(DAGS)!r})
from airflow.dag_processing.dagbag import DagBag
bag = DagBag(dag_folder={str(DAGS)!r})
graph = {{
    name: {{
        task.task_id: {{"after": sorted(task.upstream_task_ids), "pool": task.pool, "runs": task.bash_command.split(" -m ")[1]}} for task in dag.tasks
    }}
    for name, dag in sorted(bag.dags.items())
}}
print(json.dumps({{"errors": bag.import_errors, "graph": graph, "heavy": sorted(set({HEAVY!r}) & set(sys.modules))}}))
"""

# Each task writes the day that its command would have been given, in the place of the command.
RUN = f"""
import json, sys
from datetime import datetime, timezone
from pathlib import Path
sys.path.insert(0, {str(DAGS)!r})
from airflow.dag_processing.dagbag import DagBag
days = Path(sys.argv[1])
told = {{}}
for name, dag in sorted(DagBag(dag_folder={str(DAGS)!r}).dags.items()):
    for task in dag.tasks:
        task.bash_command = f"echo {{{{{{{{ data_day() }}}}}}}} >> {{days}}/{{name}}"
        task.pool = "default_pool"
    for logical_date, conf in ((datetime(2026, 3, 1, tzinfo=timezone.utc), {{}}), (None, {{"day": "2026-02-14"}})):
        dag.test(logical_date=logical_date, run_conf=conf)
    told[name] = [(days / name).read_text().split(), len(dag.tasks)]
print(json.dumps(told))
"""


def python(program: str, home: Path, *arguments: str) -> Any:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    environment |= {"AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False", "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS), "PYTHONWARNINGS": "ignore"}
    if arguments:
        migrated = subprocess.run([sys.executable, "-m", "airflow", "db", "migrate"], env=environment, capture_output=True, text=True)
        assert migrated.returncode == 0, migrated.stderr[-2000:]
    answer = subprocess.run([sys.executable, "-c", program, *arguments], env=environment, capture_output=True, text=True, cwd=home)
    assert answer.returncode == 0, answer.stdout[-2000:] + answer.stderr[-3000:]
    return json.loads(answer.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What loading the DAG files, in a process of its own, gave."""
    result: dict[str, Any] = python(LOAD, tmp_path_factory.mktemp("airflow"))
    return result


def test_every_dag_loads(loaded: dict[str, Any]) -> None:
    assert loaded["errors"] == {}
    assert sorted(loaded["graph"]) == ["features_daily", "policy_daily"]


def test_loading_a_dag_loads_nothing_heavy(loaded: dict[str, Any]) -> None:
    assert loaded["heavy"] == []


def test_the_graph_is_the_one_on_record(loaded: dict[str, Any]) -> None:
    """A change of the graph is right when it is meant: then write the new one to graph.json."""
    assert loaded["graph"] == json.loads(SNAPSHOT.read_text()), json.dumps(loaded["graph"], indent=2)


def test_every_dag_runs_with_a_logical_date_and_with_none(tmp_path: Path) -> None:
    """A run at the logical date 2026-03-01T00:00 is for the day whose interval ends there; one without is for its param."""
    told = python(RUN, tmp_path, str(tmp_path))
    for name, (days, tasks) in told.items():
        assert days == ["2026-02-28"] * tasks + ["2026-02-14"] * tasks, name


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def told_day(day: str | None = None, partition_key: str | None = None, start: str | None = None, end: str | None = None, logical: str | None = None) -> date:
    sys.path.insert(0, str(DAGS))
    try:
        from nightly import data_day
    finally:
        sys.path.remove(str(DAGS))
    run = SimpleNamespace(
        run_id="manual__1",
        partition_key=partition_key,
        data_interval_start=start and moment(start),
        data_interval_end=end and moment(end),
        logical_date=logical and moment(logical),
    )
    return data_day({"dag_run": run, "params": {"day": day}})


@pytest.mark.parametrize(
    ("kind", "run", "expected"),
    [
        ("scheduled, backfill", {"start": "2026-01-30T00:00", "end": "2026-01-31T00:00", "logical": "2026-01-30T00:00"}, "2026-01-30"),
        ("manual with a param", {"day": "2026-01-05", "start": "2026-01-30T00:00", "end": "2026-01-31T00:00"}, "2026-01-05"),
        ("API without a logical date", {"day": "2026-01-05"}, "2026-01-05"),
        ("asset-triggered with a partition", {"partition_key": "2026-01-07"}, "2026-01-07"),
        ("param over partition", {"day": "2026-01-05", "partition_key": "2026-01-07"}, "2026-01-05"),
        ("an empty interval counts for nothing", {"start": "2026-01-31T00:00", "end": "2026-01-31T00:00", "logical": "2026-01-31T09:30"}, "2026-01-31"),
        ("logical date alone", {"logical": "2026-01-31T23:59"}, "2026-01-31"),
    ],
)
def test_the_day_of_a_run(kind: str, run: dict[str, str], expected: str) -> None:
    assert str(told_day(**run)) == expected, kind


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({}, "its day is not known"),
        ({"start": "2026-01-30T00:00", "end": "2026-01-30T00:00"}, "its day is not known"),
        ({"day": "30.01.2026"}, "is no day"),
        ({"partition_key": "eu"}, "is no day"),
        ({"start": "2026-02-01T00:00", "end": "2026-02-02T00:00", "logical": "2026-01-01T00:00"}, "begins later"),
    ],
)
def test_a_run_whose_day_is_not_known_is_refused(run: dict[str, str], message: str) -> None:
    with pytest.raises(BadDay, match=message):
        told_day(**run)
