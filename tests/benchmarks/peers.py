"""Rankers to beat, each of them linear in the user's history: popularity, the user's own items, EASE."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from models.data import Floats, Ints, Steps
from models.events import history


def popularity(steps: Steps, items: int, first: int, days: int, half_life: float) -> Floats:
    """Rewarded steps with each item as known on the eve of each day from `first` on, where a step counts half after each half-life, in days: [days, items]."""
    begin = int(steps.day.min())
    counts = np.zeros((first + days - begin, items))
    is_rewarded = steps.reward > 0
    np.add.at(counts, (steps.day[is_rewarded] - begin, steps.item[is_rewarded]), 1)
    ago = np.arange(first, first + days)[:, None] - 1 - np.arange(begin, first + days)
    return np.asarray(np.where(ago >= 0, 0.5 ** (np.maximum(ago, 0) / half_life), 0) @ counts, dtype=np.float32)


@dataclass
class Linear:
    """Scores prior + own history + history @ weights. In a history an item is the sum of 0.5^(steps since then / half-life) over the steps with it."""

    name: str
    prior: Floats  # [items]
    own_half_life: float | None = None  # in steps; None = own items count for nothing
    weights: Floats | None = None  # [items, items]
    half_life: float = 1.0

    def score(self, steps: Steps, users: Ints, ends: Ints, now: Ints | None = None) -> Floats:
        """As `models.data.Ranker` says."""
        scores = np.tile(self.prior, (len(users), 1))
        if self.own_half_life is not None:
            scores += self._history(steps, users, ends, self.own_half_life).toarray()
        if self.weights is not None:
            scores += self._history(steps, users, ends, self.half_life) @ self.weights
        return scores

    def _history(self, steps: Steps, users: Ints, ends: Ints, half_life: float) -> sp.csr_array:
        moments, before = history(steps, users, ends)
        decayed = 0.5 ** ((ends[moments] - before - 1) / half_life)
        return sp.csr_array((decayed.astype(np.float32), (moments, steps.item[before])), shape=(len(users), len(self.prior)))


def ease(steps: Steps, items: int, ridge: float, half_life: float) -> Floats:
    """Item-item weights that give back each user's row from the other items, by ridge regression without a diagonal: float32[items, items].

    Steck, Embarrassingly shallow autoencoders for sparse data, WWW 2019, equation 8. A user's row holds the weight of the last meeting with each
    item, 0.5^(steps since then / half-life).
    """
    users = steps.users()
    ago = steps.offsets[users + 1] - 1 - np.arange(len(steps))
    _, last = np.unique((users * items + steps.item)[::-1], return_index=True)
    last = len(steps) - 1 - last
    rows = sp.csr_array((0.5 ** (ago[last] / half_life), (users[last], steps.item[last])), shape=(len(steps.user_ids), items))
    inverse = np.linalg.inv((rows.T @ rows).toarray() + ridge * np.eye(items))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return weights.astype(np.float32)
