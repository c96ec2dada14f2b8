"""How well a ranker foresees what comes next: full ranking, lists, and intervals by resampling users."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from models.data import Bools, Floats, Ints, Ranker, Steps
from models.events import Candidates, Doubles, Events

CHUNK_SCORES = 1 << 24  # scores held at once: 64 MiB, whatever the catalogue


@dataclass(frozen=True)
class Ranks:
    """Where the item that came next stands among all candidates, one entry a moment."""

    better: Ints  # [n] candidates with a higher score
    equal: Ints  # [n] candidates with the same score, itself included
    candidates: Ints  # [n]
    eligible: Bools  # [n] false where it is no candidate, since the user has met it and repeats are not wanted

    @property
    def rank(self) -> Ints:
        """int64[n], from 1. Ties count against the ranker: who scores all items alike ranks each of them last."""
        return self.better + self.equal


def rank(ranker: Ranker, steps: Steps, events: Events, candidates: Candidates) -> Ranks:
    """Rank the item that came next among all candidates; it is one itself, even where it was not marked available.

    An item that the catalogue does not know (index 0) is ranked last, and so is one whose score is not a number.
    """
    parts = []
    for part, scores, mask in _scored(ranker, steps, events, candidates):
        rows = np.arange(len(part))
        mask[rows, part.items] = True
        own = scores[rows, part.items][:, None]
        better = np.count_nonzero((scores > own) & mask, axis=1)
        equal = np.count_nonzero((scores == own) & mask, axis=1)
        parts.append((better, equal, np.count_nonzero(mask, axis=1), candidates.eligible(steps, part)))
    if not parts:
        none = np.zeros(0, dtype=np.int64)
        return Ranks(none, none, none, none.astype(np.bool_))
    return Ranks(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def top(ranker: Ranker, steps: Steps, events: Events, candidates: Candidates, k: int) -> Ints:
    """int64[n, min(k, items)]: the best candidates of each moment, best first; 0 where there are no more."""
    k = min(k, candidates.available.shape[1])
    lists = [np.zeros((0, k), dtype=np.int64)]
    for part, scores, mask in _scored(ranker, steps, events, candidates):
        masked = np.where(mask, scores, -np.inf)
        best = np.argpartition(-masked, k - 1, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(masked, best, axis=1), axis=1, kind="stable")
        best = np.take_along_axis(best, order, axis=1)
        lists.append(np.where(mask[np.arange(len(part))[:, None], best], best, 0))
    return np.concatenate(lists)


def _scored(ranker: Ranker, steps: Steps, events: Events, candidates: Candidates) -> Iterator[tuple[Events, Floats, Bools]]:
    """Moments, their scores [n, items] and candidates [n, items], in chunks of bounded size."""
    rows = max(1, CHUNK_SCORES // candidates.available.shape[1])
    for start in range(0, len(events), rows):
        part = events[start : start + rows]
        scores = np.array(ranker.score(steps, part.users, part.ends, part.times), dtype=np.float32)
        scores[np.isnan(scores)] = -np.inf
        scores[:, 0] = -np.inf
        yield part, scores, candidates.mask(steps, part)


def recall_at(ranks: Ints, k: int) -> Doubles:
    """float64[n]: 1 where the item is among the first k. With one item sought it is the hit rate as well."""
    return (ranks <= k).astype(np.float64)


def ndcg_at(ranks: Ints, k: int) -> Doubles:
    """float64[n]: 1 / log2(1 + rank) within the first k, else 0. With one item sought the ideal gain is 1."""
    return np.where(ranks <= k, 1.0 / np.log2(1.0 + ranks), 0.0)


def reciprocal_rank(ranks: Ints) -> Doubles:
    """float64[n]: 1 / rank."""
    return 1.0 / ranks


def coverage(lists: Ints, available: Bools) -> float:
    """Share of the available items that stand in at least one list."""
    listed = np.unique(lists)
    return float(np.count_nonzero(available[listed])) / max(1.0, float(np.count_nonzero(available)))


def gini(lists: Ints, available: Bools) -> float:
    """Inequality of how often available items stand in the lists: 0 = all alike, near 1 = a few take all."""
    counts = np.sort(np.bincount(lists[lists > 0], minlength=len(available))[available])
    n, total = len(counts), counts.sum()
    if total == 0:
        return 0.0
    return float((2 * np.arange(1, n + 1) - n - 1) @ counts / (n * total))


def mean_popularity(lists: Ints, counts: Ints) -> float:
    """Mean share of all interactions (`counts`: [items]) that the listed items had: how much the lists follow the crowd."""
    listed = lists[lists > 0]
    if len(listed) == 0 or counts.sum() == 0:
        return 0.0
    return float(counts[listed].mean() / counts.sum())


@dataclass(frozen=True)
class Estimate:
    """A ratio of sums, the same ratio in every resample of users (float64[resamples], nan = undefined there), and how many rows it rests on.

    Where it is of the best of several, its interval is wider, so that all of theirs would hold at once (Bonferroni).
    """

    value: float
    draws: Doubles
    samples: int
    of_several: int = 1

    @property
    def interval(self) -> tuple[float, float] | None:
        """Ends of the 95% interval; None where there are too few users for one."""
        known = self.draws[np.isfinite(self.draws)]
        if len(known) == 0:
            return None
        tail = 0.025 / self.of_several
        lower, upper = np.quantile(known, [tail, 1 - tail])
        return float(lower), float(upper)

    def minus(self, other: Estimate) -> Estimate:
        """The difference, paired: both must come from one Resampling."""
        draws = self.draws - other.draws if len(self.draws) == len(other.draws) else np.zeros(0)
        return Estimate(self.value - other.value, draws, min(self.samples, other.samples))


class Resampling:
    """Resamples of users, with replacement: rows of one user stay together. Everybody judged by one instance meets the same resamples."""

    def __init__(self, users: Ints, resamples: int, seed: int) -> None:
        distinct, self._user = np.unique(users, return_inverse=True)
        self.users = len(distinct)
        rng = np.random.default_rng(seed)
        self._counts = np.zeros((resamples, self.users), dtype=np.float32)
        for row in self._counts:
            if self.users:
                row[:] = np.bincount(rng.integers(self.users, size=self.users), minlength=self.users)

    def ratio(self, numerator: Doubles, denominator: Doubles) -> Estimate:
        """Sum of `numerator` / sum of `denominator`, both float64[n] over the rows given at construction. 0 over no rows."""
        above = np.bincount(self._user, numerator, minlength=self.users)
        below = np.bincount(self._user, denominator, minlength=self.users)
        if below.sum() == 0:
            return Estimate(0.0, np.zeros(0), 0)
        if self.users < 2:
            return Estimate(float(above.sum() / below.sum()), np.zeros(0), len(numerator))
        with np.errstate(divide="ignore", invalid="ignore"):
            draws = (self._counts @ above) / (self._counts @ below)
        return Estimate(float(above.sum() / below.sum()), draws, len(numerator))

    def mean(self, values: Doubles) -> Estimate:
        """Mean of float64[n] over the rows."""
        return self.ratio(values, np.ones(len(values)))
