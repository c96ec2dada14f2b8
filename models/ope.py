"""What a policy would have earned, from the log of another one: self-normalised importance sampling on single steps.

The policy is judged as it would be served: by an item of its list, each place alike, or by chance `exploration` a uniform draw among
all candidates. One place alone would rest on a tenth of the steps.
Rewards are those of the step itself, as known tonight; what an action does to later steps is not seen here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.data import Ints, Steps
from models.events import Doubles
from models.metrics import Estimate, Ranks, Resampling

_UNIFORM, _POPULARITY, _REPEAT = range(3)
_EM_ROUNDS = 100


def target_probabilities(ranks: Ranks, length: int, exploration: float) -> Doubles:
    """float64[n]: probability with which the ranker, served as lists of `length` with some `exploration`, chooses the logged item.

    Items of one score share the places that are left to them. An item that is no candidate is never chosen.
    """
    candidates = np.maximum(ranks.candidates, 1)
    listed = np.clip((length - ranks.better) / np.maximum(ranks.equal, 1), 0, 1) / np.minimum(length, candidates)
    chance = (1 - exploration) * listed + exploration / candidates
    return np.where(ranks.eligible, chance, 0.0)


@dataclass(frozen=True)
class Weights:
    """Importance weights of logged steps, float64[n], and the share of their sum that was cut off."""

    values: Doubles
    clipped_mass: float

    @property
    def effective_sample_size(self) -> float:
        """(Σw)² / Σw²: how many evenly weighted steps would tell as much (Kong 1992). 0 where all weights are 0."""
        squares = float((self.values**2).sum())
        return float(self.values.sum() ** 2 / squares) if squares > 0 else 0.0

    @property
    def overlap(self) -> float:
        """Mean weight before the cut, at most 1: the share of the policy's choices that the log could have made as well.

        Its expectation is the probability that the policy puts on actions that the logging system may take: 1 with full support.
        """
        return float(min(1.0, self.values.mean() / (1 - self.clipped_mass))) if len(self.values) else 0.0


def importance_weights(target: Doubles, behaviour: Doubles) -> Weights:
    """Weights target / behaviour of n steps, cut off at √n (Ionides, Truncated importance sampling, 2008): the bias vanishes as n grows."""
    raw = target / behaviour
    values = np.minimum(raw, np.sqrt(len(raw)))
    total = raw.sum()
    return Weights(values, float(1 - values.sum() / total) if total > 0 else 0.0)


def snips(weights: Weights, rewards: Doubles, resampling: Resampling) -> Estimate:
    """Σwr / Σw per step (Swaminathan and Joachims, The self-normalized estimator, NeurIPS 2015), resampled over users."""
    return resampling.ratio(weights.values * rewards, weights.values)


class EstimatedBehaviour:
    """The logging system's propensities where the log has none: a mixture whose shares maximise the likelihood of the training steps.

    What it mixes: any item alike, items by how often they were met in training, items by how often this user met them before.
    A user without a past follows the second instead of the third. Training steps are held against the counts of all others, so that
    an item met once does not explain itself.
    """

    def __init__(self, train: Steps, items: int) -> None:
        self._counts = np.bincount(train.item, minlength=items)
        popularity = (self._counts[train.item] - 1) / max(1, len(train.item) - 1)
        parts = self._parts(train, popularity, items)
        shares = np.full(3, 1 / 3)
        for _ in range(_EM_ROUNDS if len(parts) else 0):
            blame = parts * shares
            shares = (blame / blame.sum(axis=1, keepdims=True)).mean(axis=0)
        self.shares = shares

    def propensities(self, steps: Steps) -> Doubles:
        """float64[n]: probability of each step, given the steps of the user before it. `steps` may go on after the training ones."""
        popularity = self._counts[steps.item] / max(1, self._counts.sum())
        chances: Doubles = self._parts(steps, popularity, len(self._counts)) @ self.shares
        return chances

    def _parts(self, steps: Steps, popularity: Doubles, items: int) -> Doubles:
        """float64[n, 3]: probability of each step under each part of the mixture."""
        parts = np.empty((len(steps.item), 3))
        parts[:, _UNIFORM] = 1 / max(1, items - 1)
        parts[:, _POPULARITY] = popularity
        users = steps.users()
        before = np.arange(len(users)) - steps.offsets[users]
        parts[:, _REPEAT] = np.where(before > 0, _times_met(users, steps.item.astype(np.int64), items) / np.maximum(before, 1), popularity)
        return parts


def _times_met(users: Ints, item: Ints, items: int) -> Ints:
    """int64[n]: how many earlier steps of the same user have the same item."""
    pairs = users * items + item
    order = np.argsort(pairs, kind="stable")
    ordered = pairs[order]
    met = np.empty(len(pairs), dtype=np.int64)
    met[order] = np.arange(len(pairs)) - np.searchsorted(ordered, ordered, side="left")
    return met
