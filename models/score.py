"""Makes tonight's lists: the best items for every user who was active lately, and for somebody with no history."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.contracts.landing import EVERYBODY
from jobs.lake import Lake
from jobs.settings import Settings
from jobs.steps import find_step
from models.data import Bools, Floats, Ints, Ranker, Steps, day_number, noon_of
from models.policy import Policy
from models.reading import Reading
from models.reasons import Reasons
from models.serving import Served, load_served, with_stranger
from models.user_features import FeatureFiles

_BATCH = 512  # users scored at once

ScoreAfter = Callable[[Ints], Floats]


def run(lake: Lake, settings: Settings, day: date) -> None:
    """Write gold.recommendations of `day` with the policy that its verdict serves.

    Raises NotReady when the day has no verdict, the policy is gone, or it needs features of the day that were not made; FutureData when the
    transitions know more than `day`.
    """
    inputs = lake.versions(find_step("score").reads)
    served = load_served(lake, settings, day, None)
    inputs["gold.transitions"] = served.transitions_version
    names = served.ranker.user_features if isinstance(served.ranker, Policy) else ()
    features = FeatureFiles.load(lake, names, day, day, inputs.pop("gold.user_features", None))
    evening = day_number(day)
    rows = lists(replace(served, steps=features.beside(served.steps, evening + 1, evening)), settings, day)
    lake.replace("gold.recommendations", pa.table(rows, lake.schema("gold.recommendations")), "score", [day], inputs | features.inputs)


def lists(served: Served, settings: Settings, day: date) -> dict[str, list[Any]]:
    """Columns of gold.recommendations. A user with fewer candidates than `score.top_n` gets a shorter list."""
    steps = with_stranger(served.steps, EVERYBODY)
    users = np.append(active_users(served.steps, day, settings.score.active_days), len(steps.user_ids) - 1)
    noon = noon_of(day_number(day) + 1)
    reading = Reading.of(steps) if settings.score.as_read and isinstance(served.ranker, Policy) else None
    reasons = Reasons(served, steps, settings, day)
    columns: dict[str, list[Any]] = {name: [] for name in ("user_id", "rank", "item_id", "score", "propensity", "reason", "day", "policy_version")}
    for first in range(0, len(users), _BATCH):
        batch = users[first : first + _BATCH]
        allowed = served.candidates(steps, batch, settings.evaluate.repeats)
        rngs = [generator(day, steps.user_ids[user]) for user in batch.tolist()]
        drawn = draw_lists(_scored(served.ranker, steps, batch, noon, reading), allowed, settings.score.top_n, settings.score.exploration, rngs)
        for row, user in enumerate(batch.tolist()):
            own = drawn.of(row)
            columns["user_id"] += [steps.user_ids[user]] * len(own.items)
            columns["rank"] += range(1, len(own.items) + 1)
            columns["item_id"] += [served.catalogue.item_ids[item] for item in own.items.tolist()]
            columns["score"] += own.scores.tolist()
            columns["propensity"] += own.propensities.tolist()
            columns["reason"] += reasons.of(user, own.items, own.by_chance)
    columns["day"] = [day] * len(columns["rank"])
    columns["policy_version"] = [served.version] * len(columns["rank"])
    return columns


def _scored(ranker: Ranker, steps: Steps, users: Ints, now: int, reading: Reading | None) -> ScoreAfter:
    """The scores of the next place of each user's list: by the state after those above it, or, without a reading, always the same."""
    first = ranker.score(steps, users, steps.offsets[users + 1], np.full(len(users), now))

    def after(items: Ints) -> Floats:
        if reading is None or items.shape[1] == 0:
            return first
        read = reading.after(steps, users, items, now)
        return ranker.score(read, np.arange(len(users)), read.offsets[1:], np.full(len(users), now + reading.seconds * items.shape[1]))

    return after


def active_users(steps: Steps, day: date, active_days: int) -> Ints:
    """Users with a step within the last `active_days` days: int64[users]."""
    return np.unique(steps.users()[steps.day > day_number(day) - active_days])


def generator(day: date, user_id: str) -> np.random.Generator:
    """Random numbers of one user's list, the same whenever it is made again."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(f"{day} {user_id}".encode()).digest()[:16], "big"))


@dataclass(frozen=True)
class Lists:
    """Lists, all [users, places], or [places] of one user; item 0 is none, and there is none after it."""

    items: Ints
    scores: Floats
    propensities: NDArray[np.float64]  # of each given the ranks above
    by_chance: Bools

    def of(self, row: int) -> Lists:
        """That of one user, without the places that have no item."""
        there = self.items[row] > 0
        return Lists(*(getattr(self, field.name)[row][there] for field in fields(self)))


def draw_lists(score_after: ScoreAfter, allowed: Bools, top_n: int, exploration: float, rngs: Sequence[np.random.Generator]) -> Lists:
    """Rank by rank the best item that is left, or, with chance `exploration`, any of those left with equal chances.

    `score_after` gives the scores [users, items] after the items int64[users, ranks above]; `allowed` is bool[users, items].
    """
    left, count = allowed.copy(), allowed.sum(1)
    shape = (len(allowed), min(top_n, int(count.max(initial=0))))
    drawn = Lists(np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.float32), np.zeros(shape), np.zeros(shape, dtype=np.bool_))
    for rank in range(shape[1]):
        scores = score_after(drawn.items[:, :rank])
        leaders = np.where(left, scores, -np.inf).argmax(1)
        for row in np.flatnonzero(count > rank).tolist():
            item = leader = int(leaders[row])
            if by_chance := bool(rngs[row].random() < exploration):
                item = int(rngs[row].choice(np.flatnonzero(left[row])))
            drawn.items[row, rank], drawn.scores[row, rank], drawn.by_chance[row, rank] = item, scores[row, item], by_chance
            drawn.propensities[row, rank] = (1 - exploration) * (item == leader) + exploration / (count[row] - rank)
            left[row, item] = False
    return drawn
