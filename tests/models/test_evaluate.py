from __future__ import annotations

import json
from dataclasses import replace
from datetime import date, timedelta

import numpy as np
import pytest

from jobs.contracts.errors import NotReady
from jobs.lake import Lake
from jobs.settings import Evaluate, PolicySettings, Score, Settings, Train
from models import evaluate, gate, train
from models.baselines import Popularity
from models.data import Bools, Floats, Ints, Steps
from models.evaluate import Court, Judgement, judge
from models.events import Candidates, until
from models.metrics import Estimate
from tests.models.learner_lake import D, land
from tests.models.made import DAY, make

FIRST = date(1970, 1, 1) + timedelta(days=DAY + 1)  # the held-out day of the logs below
SMALL = Train(dim=8, heads=1, layers=1, epochs=1, context=4, batch_steps=64)


class Knower:
    """Scores highest whatever a table says comes next at this moment."""

    name = "knower"

    def __init__(self, steps: Steps, items: int) -> None:
        self._next, self._items = steps.item, items

    def score(self, steps: Steps, users: Ints, ends: Ints, now: Ints | None = None) -> Floats:
        scores = np.zeros((len(users), self._items), dtype=np.float32)
        scores[np.arange(len(users)), self._next[ends]] = 1
        return scores


def log(propensity: float = 0.25) -> Steps:
    """Forty users; day 0: items 1 to 3, day 1: four steps, of which the second and the fourth are rewarded."""
    rng = np.random.default_rng(5)
    histories, days = {}, {}
    for user in range(40):
        items = rng.integers(1, 9, size=7)
        histories[f"u{user:02}"] = [(int(item), float(place in (1, 4, 6))) for place, item in enumerate(items)]
        days[f"u{user:02}"] = [0, 0, 0, 1, 1, 1, 1]
    return make(histories, days, propensity)


def everything_available(items: int = 9) -> Bools:
    available = np.ones((1, items), dtype=np.bool_)
    available[0, 0] = False
    return available


def judged(steps: Steps, settings: Settings) -> Judgement:
    return judge({"": Knower(steps, 9)}, None, steps, everything_available(), FIRST, settings)[1]


def test_who_knows_what_comes_next_is_judged_perfect(settings: Settings) -> None:
    """With ε = 0.02, 8 items and π_b = 1/4 each logged step weighs (0.98 + 0.0025) · 4: evenly, so SNIPS is the mean reward, 1/2."""
    result = judged(log(), settings)
    assert result["challenger", "ndcg@10"].value == 1
    assert result["challenger", "mrr"].interval == (1, 1)
    assert (result["challenger", "ndcg@10"].samples, result["challenger", "first_ndcg@10"].samples) == (80, 40)
    assert result["challenger", "test_users"].value == 40
    assert result["challenger", "snips"].value == result["logged", "mean_reward"].value == 0.5
    assert result["challenger", "effective_sample_size"].value == pytest.approx(160)
    difference = result["challenger", "ndcg@10_minus_champion"]
    assert difference.value == pytest.approx(1 - result["popularity", "ndcg@10"].value)
    assert {name for name, _ in result} == {"challenger", "popularity", "recency_popularity", "repeat", "item_knn", "logged"}


def test_the_champion_is_the_opponent_where_there_is_one(settings: Settings) -> None:
    steps = log()
    knower = Knower(steps, 9)
    _, result = judge({"": knower}, knower, steps, everything_available(), FIRST, settings)
    assert result["challenger", "ndcg@10_minus_champion"].interval == (0, 0)
    assert result["challenger", "snips_minus_champion"].interval == (0, 0)


def test_the_best_of_tonights_policies_is_the_challenger(settings: Settings) -> None:
    """One that knows what comes next, and one that does not; the interval of the difference is that of the best of two."""
    steps = log(propensity=np.nan)
    blind = Popularity(until(steps, DAY), 9)
    chosen, result = judge({"blind": blind, "sure": Knower(steps, 9)}, None, steps, everything_available(), FIRST, settings)
    assert chosen == "sure"
    assert result["challenger", "ndcg@10"].value == 1
    assert result["policy blind", "mrr"].value == result["popularity", "mrr"].value
    assert ("policy sure", "ndcg@10") not in result
    alone, wider = judged(steps, settings)["challenger", "ndcg@10_minus_champion"].interval, result["challenger", "ndcg@10_minus_champion"].interval
    assert alone is not None
    assert wider is not None
    assert wider[0] < alone[0] < alone[1] <= wider[1]


def test_of_the_policies_that_the_log_can_tell_of_the_best_is_chosen(settings: Settings) -> None:
    """The last is worth most, and rests on 9 steps; a log without propensities goes by ranking."""
    steps = log()
    court = Court(steps, until(steps, DAY), Candidates(everything_available(), DAY + 1, True), settings)

    def found(value: float, sample: float) -> dict[str, Estimate]:
        figures = {"snips": value, "effective_sample_size": sample, "overlap": 1.0, "ndcg@10": 1 - value}
        return {metric: Estimate(figure, np.zeros(0), 9) for metric, figure in figures.items()}

    policies = {"worse": found(0.2, 99), "better": found(0.3, 99), "untold": found(0.9, 9)}
    assert court.best(policies) == "better"
    assert court.best({"untold": policies["untold"]}) == "untold"
    guessed = Court(replace(steps, propensity=steps.propensity * np.nan), until(steps, DAY), Candidates(everything_available(), DAY + 1, True), settings)
    assert guessed.best(policies) == "worse"


def test_several_policies_are_trained_and_judged(lake: Lake, settings: Settings) -> None:
    policies = {"bold": PolicySettings(alpha=0.0), "close": PolicySettings(alpha=5.0, gamma=0.0)}
    changes = {"train": SMALL.model_copy(update={"policies": policies}), "evaluate": Evaluate(cutoff=3, bootstrap=20)}
    settings = settings.model_copy(update=changes)
    land(lake, users=30, items=10)
    train.run(lake, settings, D)
    trained = {row["name"]: row for row in lake.read("gold.policies").to_pylist()}
    assert {*trained} == {"bold", "close"}
    configs = {name: json.loads((lake.root / row["path"] / "config.json").read_text())["train"] for name, row in trained.items()}
    found = {name: (config["alpha"], config["gamma"], config["critics"]) for name, config in configs.items()}
    assert found == {"bold": (0.0, 0.9, 3), "close": (5.0, 0.0, 3)}  # so few steps have three critics
    evaluate.run(lake, settings, D)
    (challenger,) = {row["policy_version"] for row in lake.read("gold.evaluations").to_pylist()}
    (other,) = (name for name, row in trained.items() if row["policy_version"] != challenger)
    names = {row["name"] for row in lake.read("gold.evaluations").to_pylist()}
    assert {name for name in names if name.startswith("policy")} == {f"policy {other}"}


def test_without_propensities_the_name_says_that_they_are_estimated(settings: Settings) -> None:
    result = judged(log(propensity=np.nan), settings)
    assert ("challenger", "snips") not in result
    assert result["challenger", "snips_estimated_propensities"].samples == 160
    assert 1 < result["logged", "perplexity"].value < 20


def test_a_held_out_day_teaches_nobody(settings: Settings) -> None:
    """What the held-out day brings changes no baseline's score: same scores at the first held-out moment of each user, whatever comes after."""
    steps = log()
    other_items = np.where(steps.day > DAY, 9 - steps.item, steps.item).astype(np.int32)
    changed = replace(steps, item=other_items, reward=np.where(steps.day > DAY, 1, steps.reward).astype(np.float32))
    users, ends = np.arange(40), steps.offsets[:-1] + 3
    for name in ("popularity", "recency_popularity", "repeat", "item_knn"):
        before, after = (evaluate.baselines(until(each, DAY), 9, DAY, settings)[name].score(each, users, ends) for each in (steps, changed))
        np.testing.assert_array_equal(before, after)


def test_nothing_held_out_is_told_and_not_a_crash(settings: Settings) -> None:
    steps = until(log(), DAY)
    result = judged(steps, settings)
    assert result["challenger", "ndcg@10"].samples == 0
    assert result["challenger", "ndcg@10_minus_champion"].interval is None
    measures = {key: gate.Measure(estimate.value, None, None, estimate.samples) for key, estimate in result.items()}
    assert gate.decide(measures, "popularity", 10, settings.gate).verdict == "insufficient_support"


def test_many_steps_are_judged_by_whole_users(settings: Settings) -> None:
    result = judged(log(), settings.model_copy(update={"evaluate": Evaluate(max_steps=50)}))
    assert result["challenger", "ndcg@10"].samples == 24  # 12 users of 4 steps fit, each with 2 rewarded
    assert result["challenger", "first_ndcg@10"].samples == 12


def test_exploration_is_part_of_the_policy_that_is_judged(settings: Settings) -> None:
    """Served all by chance, everybody earns what a uniform policy earns: the same for all."""
    result = judged(log(), settings.model_copy(update={"score": Score(exploration=0.999999)}))
    assert result["challenger", "snips"].value == pytest.approx(result["popularity", "snips"].value, abs=1e-4)


def test_a_night_is_judged_from_the_lake(lake: Lake, settings: Settings) -> None:
    """Thirty users, one click on every second item: popularity's figures are as worked out over the arrays; a second run replaces the first."""
    settings = settings.model_copy(update={"train": SMALL, "evaluate": Evaluate(cutoff=3, bootstrap=20)})
    land(lake, users=30, items=10)
    with pytest.raises(NotReady, match=r"gold\.policies"):
        evaluate.run(lake, settings, D)
    train.run(lake, settings, D)
    for _ in range(2):
        evaluate.run(lake, settings, D)
    rows = lake.read("gold.evaluations").to_pylist()
    assert len({(row["name"], row["metric"]) for row in rows}) == len(rows)
    values = {(row["name"], row["metric"]): row for row in rows}
    assert values["challenger", "ndcg@3"]["samples"] == 15
    assert 0 <= values["challenger", "ndcg@3"]["lower"] <= values["challenger", "ndcg@3"]["value"] <= values["challenger", "ndcg@3"]["upper"] <= 1
    assert values["logged", "mean_reward"]["value"] == 0.5
    assert values["logged", "propensities_logged"]["value"] == 1
    assert {row["policy_version"] for row in rows} == set(lake.read("gold.policies", ["policy_version"])["policy_version"].to_pylist())
    assert set(lake.commits("gold.evaluations")[-1].inputs) >= {"gold.transitions", "gold.policies", "silver.items"}


def test_popularity_ranks_as_its_counts_say() -> None:
    steps = log()
    counts = np.bincount(steps.item[(steps.day == DAY) & (steps.reward > 0)], minlength=9)
    assert Popularity(until(steps, DAY), 9).score(steps, np.array([0]), np.array([0]))[0].tolist() == counts.tolist()
