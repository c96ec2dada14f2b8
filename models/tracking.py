"""The experiment record: one MLflow run a night, and aliases in the registry for what is served and what was trained."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.contracts.errors import TrackingFailed
from jobs.lake import Lake
from jobs.settings import config_path

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from models.gate import Measures, PolicyRecord

EXPERIMENT = "nightjar"
MODEL = "nightjar"
_DAY, _VERSION = "nightjar.day", "nightjar.policy_version"


def record_night(lake: Lake, day: date, challenger: PolicyRecord, serving: PolicyRecord, verdict: Mapping[str, Any], measures: Measures) -> None:
    """Write the run of `day` anew, in place of any run of that day, and point `challenger` and `champion` to their policies.

    Where: `$MLFLOW_TRACKING_URI`, else SQLite in `record_folder`. Raises TrackingFailed when the record can't be written.
    """
    uri = tracking_uri(lake)
    client = _client(lake, uri)
    with _tracking_failures(uri):
        run_id = _replace_run(client, _experiment(client, lake), day, challenger, verdict, measures)
        _register(client, lake, challenger, run_id)
        if not _has_later_verdict(lake, day):
            for alias, policy in (("challenger", challenger), ("champion", serving)):
                for version in _registered(client, policy.version):
                    client.set_registered_model_alias(MODEL, alias, version)


def tracking_uri(lake: Lake) -> str:
    """Where MLflow keeps its record."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{record_folder(lake) / 'mlflow.db'}"


def record_folder(lake: Lake) -> Path:
    """Where the record lies when no server keeps it: in a local lake, else beside the settings file, as SQLite needs a disk."""
    folder = lake.root if isinstance(lake.root, Path) else config_path().parent
    return folder.absolute() / "_mlflow"


def _client(lake: Lake, uri: str) -> MlflowClient:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read at import; nobody's night is told to a third party
    from mlflow import MlflowClient

    # MLflow tells of each migration of a new database on stderr.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    record_folder(lake).mkdir(parents=True, exist_ok=True)
    with _tracking_failures(uri):
        return MlflowClient(uri, uri)


def _has_later_verdict(lake: Lake, day: date) -> bool:
    return lake.exists("gold.verdicts") and any(later > day for later in lake.read("gold.verdicts", ["day"])["day"].to_pylist())


@contextmanager
def _tracking_failures(uri: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        advice = "Mend it, or set MLFLOW_TRACKING_URI, and run the gate again"
        raise TrackingFailed(f"MLflow at {uri} did not take the record of the night: {error}. {advice}.") from error


def _experiment(client: MlflowClient, lake: Lake) -> str:
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return str(found.experiment_id)
    # A server knows where its artifacts go; else they go beside SQLite.
    artifacts = None if os.environ.get("MLFLOW_TRACKING_URI") else (record_folder(lake) / "artifacts").as_uri()
    return str(client.create_experiment(EXPERIMENT, artifact_location=artifacts))


def _replace_run(client: MlflowClient, experiment: str, day: date, challenger: PolicyRecord, verdict: Mapping[str, Any], measures: Measures) -> str:
    from mlflow.entities import Metric, Param, RunTag

    earlier = client.search_runs([experiment], f"tags.`{_DAY}` = '{day}'")
    # A run is dated by the evening of its data, since nothing here reads the clock.
    evening = int(datetime.combine(day, time.max, UTC).timestamp() * 1000)
    run_id = str(client.create_run(experiment, start_time=evening, run_name=f"night {day}", tags={_DAY: str(day)}).info.run_id)
    params = [Param(key, str(verdict[key])) for key in ("challenger", "champion", "serving", "verdict")]
    tags = [RunTag("mlflow.note.content", "\n\n".join(verdict["reasons"]))]
    metrics = [Metric(_metric_name(name, metric), measure.value, evening, 0) for (name, metric), measure in measures.items()]
    client.log_batch(run_id, metrics, params, tags)
    client.log_text(run_id, challenger.manifest, "manifest.json")
    client.set_terminated(run_id, end_time=evening)
    for run in earlier:
        client.delete_run(run.info.run_id)
    return run_id


def _metric_name(name: str, metric: str) -> str:
    return f"{name}/{metric.replace('@', '_at_')}"  # MLflow takes no @ in a name


def _register(client: MlflowClient, lake: Lake, policy: PolicyRecord, run_id: str) -> None:
    """Make the policy a version of the registered model, in place of any that an earlier run of the day made, whose aliases it takes."""
    if not client.search_registered_models(f"name = '{MODEL}'"):
        client.create_registered_model(MODEL)
    aliases = []
    for version in _registered(client, policy.version):
        aliases += client.get_model_version(MODEL, version).aliases
        client.delete_model_version(MODEL, version)
    source = (lake.root.absolute() / policy.path).as_uri()
    made = client.create_model_version(MODEL, source, run_id, tags={_VERSION: policy.version})
    for alias in aliases:
        client.set_registered_model_alias(MODEL, alias, made.version)


def _registered(client: MlflowClient, policy_version: str) -> list[str]:
    """Versions of the registered model that are that policy: one, or none for what was never trained, as popularity."""
    found = client.search_model_versions(f"name = '{MODEL}' AND tags.`{_VERSION}` = '{policy_version}'")
    return [str(version.version) for version in found]
