from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.contracts.errors import NotReady
from jobs.lake import Lake
from jobs.settings import Gate, Settings
from models.gate import Measure, champion_before, decide, policies_of, run
from models.tracking import tracking_uri

DAY = date(2026, 1, 5)
GATE = Gate(min_users=20, min_effective_sample_size=50, min_overlap=0.2, ranking_margin=0.05, value_margin=0.2)


def measures(
    users: float = 100, sample: float = 100, overlap: float = 1, ndcg: float = 0.0, snips: float = 0.0, champion_sample: float = 100, logged: bool = True
) -> dict[tuple[str, str], Measure]:
    """The champion has NDCG 0.2 and value 1, so may be missed by 0.01 and 0.2; `ndcg` and `snips` are lower ends of the challenger's lead."""
    value = "snips" if logged else "snips_estimated_propensities"
    numbers = {
        ("challenger", "test_users"): (users, None),
        ("challenger", "effective_sample_size"): (sample, None),
        ("challenger", "overlap"): (overlap, None),
        ("challenger", "ndcg@10"): (0.21, 0.19),
        ("challenger", value): (1.1, 0.9),
        ("challenger", "ndcg@10_minus_champion"): (0.01, ndcg),
        ("challenger", f"{value}_minus_champion"): (0.1, snips),
        ("challenger", f"{value}_minus_logged"): (0.1, 0.05),
        ("popularity", "ndcg@10"): (0.2, 0.19),
        ("popularity", value): (1.0, 0.9),
        ("popularity", "effective_sample_size"): (champion_sample, None),
        ("logged", "mean_reward"): (1.0, 0.9),
    }
    return {key: Measure(number, lower, None if lower is None else number + 0.1, 300) for key, (number, lower) in numbers.items()}


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        ({}, "promote"),
        ({"ndcg": -0.0099, "snips": -0.199}, "promote"),
        ({"ndcg": -0.0101}, "promote"),
        ({"snips": -0.201}, "keep_champion"),
        ({"ndcg": -1, "snips": -1}, "keep_champion"),
        ({"users": 19}, "insufficient_support"),
        ({"users": 0}, "insufficient_support"),
        ({"sample": 49}, "insufficient_support"),
        ({"overlap": 0.19}, "insufficient_support"),
        ({"sample": 49, "ndcg": -1}, "insufficient_support"),
        # What the log can't tell of the champion's value is not held against the challenger: the logging system's is the measure.
        ({"snips": -1, "champion_sample": 3}, "promote"),
        # Without logged propensities the value is advice: neither bad nor badly supported does it count.
        ({"snips": -1, "logged": False}, "promote"),
        ({"sample": 1, "overlap": 0, "logged": False}, "promote"),
        ({"ndcg": -0.0101, "logged": False}, "keep_champion"),
    ],
)
def test_the_truth_table(given: dict[str, Any], verdict: str) -> None:
    assert decide(measures(**given), "popularity", 10, GATE).verdict == verdict


def test_reasons_are_sentences_with_the_numbers() -> None:
    value, aside = decide(measures(), "popularity", 10, GATE).reasons
    assert aside.startswith("Not counted, as it only sees what the logging system chose to show: ranking holds: NDCG@10 is 0.2100")
    ranking, _ = decide(measures(ndcg=-0.0101, logged=False), "popularity", 10, GATE).reasons
    assert ranking == (
        "Ranking does not hold: NDCG@10 is 0.2100 (0.1900 to 0.3100), that of popularity 0.2000 (0.1900 to 0.3000), over 300 test events; "
        "the difference is 0.0100 (-0.0101 to 0.1100), and its lower end may go down to -0.0100."
    )
    assert value.startswith("Value holds: reward of an item of its list by SNIPS is 1.1000 (0.9000 to 1.2000), that of popularity 1.0000")
    few = decide(measures(users=3, sample=7), "p1", 10, GATE).reasons
    assert few[0] == "Only 3 users did something rewarded on the held-out days; a verdict needs 20."
    assert "worth 7.0 steps" in few[1]
    assert few[-1] == "p1 goes on being served."
    assert decide(measures(logged=False), "popularity", 10, GATE).reasons[1].startswith("Value does not count: the log holds no propensities.")


def put_policies(lake: Lake, day: date, *versions: str) -> None:
    learnt = {"trained_from": day, "trained_to": day, "steps": 9, "items": 9, "manifest": "{}", "day": day}
    rows = [{"policy_version": version, "name": version, "path": f"policies/{version}", **learnt} for version in versions]
    lake.replace("gold.policies", pa.Table.from_pylist(rows, lake.schema("gold.policies")), "train", [day], {})
    for version in versions:
        (lake.root / "policies" / version).mkdir(parents=True)
        (lake.root / "policies" / version / "manifest.json").write_text("{}")


def put_evaluation(lake: Lake, day: date, version: str, judged: dict[tuple[str, str], Measure]) -> None:
    rows = [{"policy_version": version, "name": name, "metric": metric, "day": day, **vars(measure)} for (name, metric), measure in judged.items()]
    lake.replace("gold.evaluations", pa.Table.from_pylist(rows, lake.schema("gold.evaluations")), "evaluate", [day], {})


def test_a_night_is_recorded_once_however_often_it_runs(lake: Lake, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    next_day = DAY + timedelta(days=1)
    assert champion_before(lake, DAY).version == "popularity"
    put_policies(lake, DAY, "p0", "p1")
    put_policies(lake, next_day, "p2")
    with pytest.raises(NotReady, match=r"gold\.evaluations"):
        run(lake, settings, DAY)
    put_evaluation(lake, DAY, "p1", measures())
    judged = measures(snips=-1)
    put_evaluation(lake, next_day, "p2", judged | {("champion", metric): row for (name, metric), row in judged.items() if name == "popularity"})
    for day in (DAY, next_day, next_day, DAY):
        run(lake, settings, day)
    rows = lake.read("gold.verdicts", ["day", "challenger", "champion", "verdict", "serving"]).sort_by("day").to_pylist()
    assert rows == [
        {"day": DAY, "challenger": "p1", "champion": "popularity", "verdict": "promote", "serving": "p1"},
        {"day": next_day, "challenger": "p2", "champion": "p1", "verdict": "keep_champion", "serving": "p1"},
    ]

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri(lake), tracking_uri(lake))
    experiment = client.get_experiment_by_name("nightjar")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(found.data.tags["nightjar.day"] for found in runs) == [str(DAY), str(next_day)]
    assert {found.data.metrics["challenger/ndcg_at_10"] for found in runs} == {0.21}
    versions = {alias: client.get_model_version_by_alias("nightjar", alias).tags["nightjar.policy_version"] for alias in ("champion", "challenger")}
    assert versions == {"champion": "p1", "challenger": "p2"}
    assert len(client.search_model_versions("name = 'nightjar'")) == 2


def test_a_champion_whose_day_was_trained_again_is_found(lake: Lake) -> None:
    put_policies(lake, DAY, "p1")
    verdict = {"challenger": "p1", "champion": "popularity", "verdict": "promote", "serving": "p1", "reasons": []}
    rows = [verdict | {"effective_sample_size": 1.0, "overlap": 1.0, "day": DAY}]
    lake.replace("gold.verdicts", pa.Table.from_pylist(rows, lake.schema("gold.verdicts")), "gate", [DAY], {})
    put_policies(lake, DAY, "p1-again")
    assert [policy.version for policy in policies_of(lake, DAY)] == ["p1-again"]
    assert champion_before(lake, DAY + timedelta(days=1)).version == "p1"
    (lake.root / "policies" / "p1" / "manifest.json").unlink()
    with pytest.raises(NotReady, match="no policy 'p1'"):
        champion_before(lake, DAY + timedelta(days=1))


def test_an_evaluation_of_another_policy_is_refused(lake: Lake, settings: Settings) -> None:
    put_policies(lake, DAY, "p2")
    put_evaluation(lake, DAY, "p1", measures())
    with pytest.raises(NotReady, match="judges p1, not p2"):
        run(lake, settings, DAY)
    assert not lake.exists("gold.verdicts")
