"""Judges tonight's policies on the held-out days, beside the champion and the baselines. The best of them is the challenger."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import date, timedelta

import numpy as np
import pyarrow as pa

from jobs.lake import Lake
from jobs.settings import Settings
from jobs.steps import find_step
from models.baselines import ItemKNN, Popularity, RecencyPopularity, Repeat
from models.data import Bools, DailyCounts, Ints, Ranker, Steps, day_number, load_availability, load_catalogue, load_steps, version_as_of
from models.events import Candidates, Events, nightly, rolling, until
from models.gate import POPULARITY, champion_before, policies_of
from models.metrics import Estimate, Ranks, Resampling, coverage, gini, mean_popularity, ndcg_at, rank, recall_at, reciprocal_rank, top
from models.ope import EstimatedBehaviour, importance_weights, snips, target_probabilities
from models.policy import Policy
from models.popularity import DecayedCounts
from models.user_features import FeatureFiles

CHALLENGER, CHAMPION, LOGGED = "challenger", "champion", "logged"

Judgement = dict[tuple[str, str], Estimate]  # by name and metric


def run(lake: Lake, settings: Settings, day: date) -> None:
    """Write gold.evaluations of `day`: everybody learns from the days up to `day` - holdout_days and is judged on those after.

    With nothing to judge by, the rows say samples 0. Raises NotReady when no policy was trained that day, or features that one of them needs
    were not made; FutureData when the transitions know more than the day.
    """
    inputs = lake.versions(find_step("evaluate").reads)
    window_start, held_out = day - timedelta(days=settings.train.window_days - 1), day - timedelta(days=settings.evaluate.holdout_days - 1)
    inputs["gold.transitions"] = version = version_as_of(lake, window_start, day)
    policies, champion = policies_of(lake, day), champion_before(lake, day)
    catalogue = load_catalogue(lake, day, version)
    steps = load_steps(lake, catalogue, tuple(settings.event_types), window_start, day, version)
    # Every policy knows the popularity of the evening before the held-out days, however long ago it was trained.
    train = until(steps, day_number(held_out) - 1)
    popularity = DecayedCounts.of(DailyCounts.of([train]), len(catalogue), day_number(held_out), 1).features()[0]
    event_types = tuple(settings.event_types)
    tonight = {policy.name: Policy.load(lake.root / policy.path, catalogue, event_types, popularity) for policy in policies}
    served = None if champion.version == POPULARITY else Policy.load(lake.root / champion.path, catalogue, event_types, popularity)
    names = dict.fromkeys(name for policy in [*tonight.values(), *([served] if served else [])] for name in policy.user_features)
    features = FeatureFiles.load(lake, [*names], held_out - timedelta(days=1), day, inputs.pop("gold.user_features", None))
    steps = features.beside(steps, day_number(held_out), day_number(day))
    chosen, judged = judge(tonight, served, steps, load_availability(lake, catalogue, DailyCounts.of([steps]), held_out, day), held_out, settings)
    challenger = next(policy for policy in policies if policy.name == chosen)
    rows = [
        {"policy_version": challenger.version, "name": name, "metric": metric, "day": day, "value": estimate.value, "samples": estimate.samples}
        | dict(zip(("lower", "upper"), estimate.interval or (None, None), strict=True))
        for (name, metric), estimate in judged.items()
    ]
    lake.replace("gold.evaluations", pa.Table.from_pylist(rows, lake.schema("gold.evaluations")), "evaluate", [day], inputs | features.inputs)


def judge(tonight: Mapping[str, Ranker], champion: Ranker | None, steps: Steps, available: Bools, first_day: date, settings: Settings) -> tuple[str, Judgement]:
    """Judge tonight's policies, the champion and baselines learnt here, from the held-out `first_day` on; `steps` hold the training days before too.

    `available`: bool[held-out days, items]. Returns the name of the best of tonight's, which is the challenger, and what was found of everybody.
    Its differences to the champion (popularity where there is none) and to the logging system are paired: the same resamples of users.
    """
    train = until(steps, day_number(first_day) - 1)
    rankers = baselines(train, available.shape[1], day_number(first_day) - 1, settings) | ({CHAMPION: champion} if champion else {})
    court = Court(steps, train, Candidates(available, day_number(first_day), settings.evaluate.repeats), settings)
    judged = court.log()
    for name, ranker in rankers.items():
        judged |= {(name, metric): estimate for metric, estimate in court.judge(ranker)}
    found = {name: dict(court.judge(ranker)) for name, ranker in tonight.items()}
    chosen = court.best(found)
    for name, measures in found.items():
        judged |= {(CHALLENGER if name == chosen else f"policy {name}", metric): estimate for metric, estimate in measures.items()}
    reference = CHAMPION if CHAMPION in rankers else POPULARITY
    for metric in (f"ndcg@{settings.evaluate.cutoff}", court.value_metric):
        judged[CHALLENGER, f"{metric}_minus_champion"] = judged[CHALLENGER, metric].minus(judged[reference, metric])
    judged[CHALLENGER, f"{court.value_metric}_minus_logged"] = judged[CHALLENGER, court.value_metric].minus(judged[LOGGED, "mean_reward"])
    for key in [key for key in judged if "_minus_" in key[1]]:
        judged[key] = replace(judged[key], of_several=len(tonight))
    return chosen, judged


def baselines(train: Steps, items: int, last_training_day: int, settings: Settings) -> dict[str, Ranker]:
    """The baselines by name, learnt from training steps; `last_training_day` in days since 1970-01-01."""
    rewarded = [code for code, event_type in enumerate(settings.event_types.values(), start=1) if _is_worth_something(event_type.reward)]
    learnt: list[Ranker] = [
        Popularity(train, items),
        RecencyPopularity(train, items, last_training_day),
        Repeat(train, items, rewarded),
        ItemKNN(train, items, rewarded),
    ]
    return {ranker.name: ranker for ranker in learnt}


def _is_worth_something(reward: str) -> bool:
    """Whether a reward expression is positive for some events: a number above 0, or anything that is worked out of `value`."""
    return "value" in reward or not set(reward) <= set("0. ")


class Court:
    """The held-out steps, and what judging each ranker by them has in common."""

    def __init__(self, steps: Steps, train: Steps, candidates: Candidates, settings: Settings) -> None:
        self._steps, self._candidates, self._settings = steps, candidates, settings
        items = candidates.available.shape[1]
        everything = rolling(steps, candidates.first_day)
        drawn = _draw_users(everything.users, settings.evaluate.max_steps, settings.train.seed)
        chosen = np.isin(everything.users, drawn)
        self._events = everything[chosen]
        first = nightly(steps, candidates.first_day)
        self._first = first[np.isin(first.users, drawn)]
        self._popularity = np.bincount(train.item, minlength=items)
        self._with_propensity = np.isfinite(self._events.propensities)
        self.is_logged = len(self._events) > 0 and bool(self._with_propensity.mean() >= 0.5)  # the propensities of most steps
        self._behaviour = self._events.propensities
        if not self.is_logged:
            self._with_propensity = np.ones(len(self._events), dtype=bool)
            self._behaviour = EstimatedBehaviour(train, items).propensities(steps)[steps.day >= candidates.first_day][chosen]

    @property
    def value_metric(self) -> str:
        """`snips`, or where propensities are not logged a name that says that they are estimated."""
        return "snips" if self.is_logged else "snips_estimated_propensities"

    def log(self) -> Judgement:
        """What the logging system earned per step, how much of its log can be used, and how surely it chose."""
        used = self._with_propensity
        behaviour = self._behaviour[used]
        judged = {
            (LOGGED, "mean_reward"): self._resampling(self._events.users[used]).mean(self._events.rewards[used]),
            (LOGGED, "propensities_logged"): _plain(np.isfinite(self._events.propensities).mean() if len(used) else 0.0, len(used)),
        }
        if len(behaviour):
            judged[LOGGED, "perplexity"] = _plain(float(np.exp(-np.log(behaviour).mean())), len(behaviour))
        return judged

    def best(self, found: Mapping[str, Mapping[str, Estimate]]) -> str:
        """Of some policies, each with its metrics, the one to serve: by what the gate goes by, of those first of which the log can tell enough."""
        gate = self._settings.gate

        def worth(name: str) -> tuple[bool, float]:
            metrics = found[name]
            if not self.is_logged:
                return True, metrics[f"ndcg@{self._settings.evaluate.cutoff}"].value
            is_told = metrics["effective_sample_size"].value >= gate.min_effective_sample_size and metrics["overlap"].value >= gate.min_overlap
            return is_told, metrics[self.value_metric].value

        return max(found, key=worth)

    def judge(self, ranker: Ranker) -> Iterator[tuple[str, Estimate]]:
        """Metrics of one ranker, by name."""
        yield from self.judge_steps(ranker)
        yield from self._ranking("first_", rank(ranker, self._steps, self._first, self._candidates), self._first)
        yield from self._lists(ranker)

    def judge_steps(self, ranker: Ranker) -> Iterator[tuple[str, Estimate]]:
        """Of these metrics those over all steps, each after all of the user's steps before it: ranking and value."""
        ranks = rank(ranker, self._steps, self._events, self._candidates)
        yield from self._ranking("", ranks, self._events)
        yield from self._value(ranks)

    def _ranking(self, prefix: str, ranks: Ranks, events: Events) -> Iterator[tuple[str, Estimate]]:
        k = self._settings.evaluate.cutoff
        sought = ranks.eligible & (events.rewards > 0)
        places = ranks.rank[sought]
        resampling = self._resampling(events.users[sought])
        yield f"{prefix}recall@{k}", resampling.mean(recall_at(places, k))
        yield f"{prefix}ndcg@{k}", resampling.mean(ndcg_at(places, k))
        yield f"{prefix}mrr", resampling.mean(reciprocal_rank(places))
        yield f"{prefix}test_users", _plain(resampling.users, len(places))

    def _lists(self, ranker: Ranker) -> Iterator[tuple[str, Estimate]]:
        k = self._settings.evaluate.cutoff
        lists = top(ranker, self._steps, self._first, self._candidates, k)
        yield f"coverage@{k}", _plain(coverage(lists, self._candidates.ever), len(lists))
        yield f"gini@{k}", _plain(gini(lists, self._candidates.ever), len(lists))
        yield f"mean_popularity@{k}", _plain(mean_popularity(lists, self._popularity), len(lists))

    def _value(self, ranks: Ranks) -> Iterator[tuple[str, Estimate]]:
        used = self._with_propensity
        target = target_probabilities(ranks, self._settings.evaluate.cutoff, self._settings.score.exploration)[used]
        weights = importance_weights(target, self._behaviour[used])
        rows = len(target)
        yield self.value_metric, snips(weights, self._events.rewards[used], self._resampling(self._events.users[used]))
        yield "effective_sample_size", _plain(weights.effective_sample_size, rows)
        yield "overlap", _plain(weights.overlap, rows)
        yield "clipped_mass", _plain(weights.clipped_mass, rows)

    def _resampling(self, users: Ints) -> Resampling:
        return Resampling(users, self._settings.evaluate.bootstrap, self._settings.train.seed)


def _draw_users(users: Ints, max_rows: int, seed: int) -> Ints:
    """Distinct users, in random order as far as their rows together stay within `max_rows`; at least one, if there is any."""
    distinct, counts = np.unique(users, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(distinct))
    fitting = np.cumsum(counts[order]) <= max_rows
    fitting[:1] = True
    return distinct[order[fitting]]


def _plain(value: float, samples: int) -> Estimate:
    """A number without an interval."""
    return Estimate(float(value), np.zeros(0), samples)
