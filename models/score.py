"""Makes tonight's lists: the best items for every user who was active lately, and for somebody with no history."""

from __future__ import annotations

import hashlib
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.contracts.landing import EVERYBODY
from jobs.lake import Lake
from jobs.settings import Settings
from jobs.steps import find_step
from models.data import Bools, Floats, Ints, Steps, day_number, noon_of
from models.reasons import Reasons
from models.serving import Served, load_served, with_stranger

_BATCH = 512  # users scored at once


def run(lake: Lake, settings: Settings, day: date) -> None:
    """Write gold.recommendations of `day` with the policy that its verdict serves.

    Raises NotReady when the day has no verdict, or the policy is gone; FutureData when the transitions know more than `day`.
    """
    inputs = lake.versions(find_step("score").reads)
    served = load_served(lake, settings, day, None)
    inputs["gold.transitions"] = served.transitions_version
    rows = lists(served, settings, day)
    lake.replace("gold.recommendations", pa.table(rows, lake.schema("gold.recommendations")), "score", [day], inputs)


def lists(served: Served, settings: Settings, day: date) -> dict[str, list[Any]]:
    """Columns of gold.recommendations. A user with fewer candidates than `score.top_n` gets a shorter list."""
    steps = with_stranger(served.steps, EVERYBODY)
    users = np.append(active_users(served.steps, day, settings.score.active_days), len(steps.user_ids) - 1)
    tomorrow = noon_of(np.array([day_number(day) + 1]))
    reasons = Reasons(served, steps, settings, day)
    columns: dict[str, list[Any]] = {name: [] for name in ("user_id", "rank", "item_id", "score", "propensity", "reason", "day", "policy_version")}
    for first in range(0, len(users), _BATCH):
        batch = users[first : first + _BATCH]
        scores = served.ranker.score(steps, batch, steps.offsets[batch + 1], np.broadcast_to(tomorrow, len(batch)))
        allowed = served.candidates(steps, batch, settings.evaluate.repeats)
        for row, user in enumerate(batch.tolist()):
            user_id = steps.user_ids[user]
            items, propensities, drawn = draw_list(scores[row], allowed[row], settings.score.top_n, settings.score.exploration, generator(day, user_id))
            columns["user_id"] += [user_id] * len(items)
            columns["rank"] += range(1, len(items) + 1)
            columns["item_id"] += [served.catalogue.item_ids[item] for item in items.tolist()]
            columns["score"] += scores[row, items].tolist()
            columns["propensity"] += propensities.tolist()
            columns["reason"] += reasons.of(user, items, drawn)
    columns["day"] = [day] * len(columns["rank"])
    columns["policy_version"] = [served.version] * len(columns["rank"])
    return columns


def active_users(steps: Steps, day: date, active_days: int) -> Ints:
    """Users with a step within the last `active_days` days: int64[users]."""
    return np.unique(steps.users()[steps.day > day_number(day) - active_days])


def generator(day: date, user_id: str) -> np.random.Generator:
    """Random numbers of one user's list, the same whenever it is made again."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(f"{day} {user_id}".encode()).digest()[:16], "big"))


def draw_list(scores: Floats, allowed: Bools, top_n: int, exploration: float, rng: np.random.Generator) -> tuple[Ints, np.ndarray, Bools]:
    """Rank by rank the best item that is left, or, with chance `exploration`, any of those left with equal chances.

    `scores` and `allowed` are [items]. Returns items, the probability of each given the ranks above, and whether it was drawn by chance.
    """
    candidates = np.flatnonzero(allowed)
    length = min(top_n, len(candidates))
    order = np.argsort(-scores[candidates], kind="stable")[:length]
    best = candidates[order].tolist()  # the best item left is always among the first `length`, as fewer than that are taken
    items: list[int] = []
    propensities, drawn = np.empty(length), rng.random(length) < exploration
    taken: set[int] = set()
    for rank in range(length):
        leader = next(item for item in best if item not in taken)
        chosen = leader
        if drawn[rank]:
            chosen = int(rng.choice(candidates))
            while chosen in taken:
                chosen = int(rng.choice(candidates))
        propensities[rank] = (1 - exploration) * (chosen == leader) + exploration / (len(candidates) - rank)
        items.append(chosen)
        taken.add(chosen)
    return np.array(items, dtype=np.int64), propensities, drawn
