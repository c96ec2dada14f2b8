"""Rankers that any policy has to beat. Each learns from training steps alone, and sees the user's history as it rolls on.

What a history tells is read from the types of events and responses, never from rewards, since a reward may hold a purchase
that came later than the moment judged. `rewarded` are the types (1-based, as in Steps) that are worth something.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import scipy.sparse as sp

from models.data import Bools, Floats, Ints, Steps
from models.events import history

HALF_LIFE_DAYS = 7.0
HALF_LIFE_STEPS = 10.0
NEIGHBOURS = 200  # most similar items kept an item: bounds the matrix where the catalogue is large
USER_ITEMS = 500  # last liked items of a user that count for similarity: one user of n items makes n² pairs
_BLOCK_ROWS = 1024


def liked(steps: Steps, rewarded: Collection[int]) -> Bools:
    """bool[n]: steps that are of a rewarded type, or were answered by one before the user's next step."""
    types = list(rewarded)
    return np.isin(steps.event, types) | np.isin(steps.response, types)


class Popularity:
    """By the number of rewarded steps of the training days."""

    name = "popularity"

    def __init__(self, steps: Steps, items: int) -> None:
        self._scores = np.bincount(steps.item[steps.reward > 0], minlength=items).astype(np.float32)

    def score(self, steps: Steps, users: Ints, ends: Ints, now: Ints | None = None) -> Floats:  # noqa: ARG002
        return np.broadcast_to(self._scores, (len(users), len(self._scores)))


class RecencyPopularity:
    """As Popularity, where a step counts half after each HALF_LIFE_DAYS before `as_of`, the last training day (days since 1970-01-01)."""

    name = "recency_popularity"

    def __init__(self, steps: Steps, items: int, as_of: int) -> None:
        rewarded = steps.reward > 0
        weights = 0.5 ** ((as_of - steps.day[rewarded]) / HALF_LIFE_DAYS)
        self._scores = np.bincount(steps.item[rewarded], weights, minlength=items).astype(np.float32)

    def score(self, steps: Steps, users: Ints, ends: Ints, now: Ints | None = None) -> Floats:  # noqa: ARG002
        return np.broadcast_to(self._scores, (len(users), len(self._scores)))


class Repeat:
    """The user's own liked items first, the most recent and frequent on top; then the others by popularity.

    A liked step of n steps ago counts 0.5^(n / HALF_LIFE_STEPS); an item's steps are summed.
    """

    name = "repeat"

    def __init__(self, steps: Steps, items: int, rewarded: Collection[int]) -> None:
        counts = np.bincount(steps.item[steps.reward > 0], minlength=items)
        self._popularity = (counts / (counts.max() + 1)).astype(np.float32)
        self._rewarded = rewarded

    def score(self, steps: Steps, users: Ints, ends: Ints, now: Ints | None = None) -> Floats:  # noqa: ARG002
        scores = np.tile(self._popularity, (len(users), 1))
        moments, before = history(steps, users, ends)
        own = liked(steps, self._rewarded)[before]
        moments, before = moments[own], before[own]
        ago = ends[moments] - before
        # 1 lifts whatever is the user's own above every popularity, however long ago it was.
        scores[moments, steps.item[before]] = 1
        np.add.at(scores, (moments, steps.item[before]), (0.5 ** (ago / HALF_LIFE_STEPS)).astype(np.float32))
        return scores


class ItemKNN:
    """Items liked by the same users: cosine similarity of likes (users by items), summed over the user's own.

    Sarwar et al., Item-based collaborative filtering recommendation algorithms, WWW 2001, section 3. Popularity, scaled to below
    any similarity that counts, decides among items that are like none of the user's.
    """

    name = "item_knn"

    def __init__(self, steps: Steps, items: int, rewarded: Collection[int]) -> None:
        self._rewarded = rewarded
        counts = np.bincount(steps.item[steps.reward > 0], minlength=items)
        self._prior = (1e-4 * counts / (counts.max() + 1)).astype(np.float32)
        chosen = np.flatnonzero(liked(steps, rewarded))
        self._similarity = _cosine(_likes(steps, steps.users()[chosen], chosen, len(steps.user_ids), items))

    def score(self, steps: Steps, users: Ints, ends: Ints, now: Ints | None = None) -> Floats:  # noqa: ARG002
        moments, before = history(steps, users, ends)
        own = liked(steps, self._rewarded)[before]
        likes = _likes(steps, moments[own], before[own], len(users), len(self._prior))
        scores: Floats = (likes @ self._similarity).toarray() + self._prior
        return scores


def _likes(steps: Steps, rows: Ints, chosen: Ints, n_rows: int, items: int) -> sp.csr_array:
    """float32[n_rows, items]: 1 for each item among the last USER_ITEMS of a row; `rows` is sorted."""
    last = np.searchsorted(rows, rows, side="right") - np.arange(len(rows)) <= USER_ITEMS
    rows, columns = rows[last], steps.item[chosen][last]
    matrix = sp.csr_array((np.ones(len(rows), dtype=np.float32), (rows, columns)), shape=(n_rows, items))
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix


def _cosine(likes: sp.csr_array) -> sp.csr_array:
    """float32[items, items]: cosine of the columns of `likes`, the NEIGHBOURS largest a row, no item its own neighbour."""
    norms = np.sqrt(np.asarray(likes.power(2).sum(axis=0)))
    unit = likes @ sp.diags_array(np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0))
    columns = sp.csr_array(unit.T)
    blocks = []
    for start in range(0, columns.shape[0], _BLOCK_ROWS):
        block = sp.csr_array(columns[start : start + _BLOCK_ROWS] @ unit)
        blocks.append(_largest(block, start))
    return sp.csr_array(sp.vstack(blocks, format="csr", dtype=np.float32))


def _largest(block: sp.csr_array, first_row: int) -> sp.csr_array:
    """The NEIGHBOURS largest entries of each row, without the diagonal; rows of the block begin at row `first_row` of the whole."""
    rows = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))
    off = block.indices != rows + first_row
    rows, columns, values = rows[off], block.indices[off], block.data[off]
    order = np.lexsort((columns, -values, rows))
    rows, columns, values = rows[order], columns[order], values[order]
    place = np.arange(len(rows)) - np.searchsorted(rows, rows, side="left")
    kept = place < NEIGHBOURS
    return sp.csr_array((values[kept], (rows[kept], columns[kept])), shape=block.shape)
