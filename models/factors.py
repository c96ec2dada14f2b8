"""Where the vectors of items begin: close together for items that the same users liked."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from models.data import Floats, Steps
from models.loader import Buckets

_PASSES = 4
_LEAST = 1e-6  # of the largest eigenvalue; what is below is noise of float32


def item_factors(buckets: Buckets, items: int, dim: int, seed: int) -> Floats:
    """float32[items, dim], of length 1 in the mean square: the leading right singular vectors of users by items, each times the root of its value.

    An entry is 1 where a user has a rewarded step with the item, over the roots of how many the user and the item have. By subspace
    iteration (Halko, Martinsson and Tropp 2011, Finding structure with randomness, algorithm 4.4), a bucket at a time: some passes over the
    buckets, and memory for two such arrays. An item without a rewarded step has zeros.
    """
    liked = np.zeros(items)
    for bucket in range(len(buckets.sizes)):
        liked += _likes(buckets.read(bucket)[1], items).sum(0)
    scale = (1 / np.sqrt(np.maximum(liked, 1))).astype(np.float32)
    basis = np.random.default_rng(seed).normal(size=(items, dim)).astype(np.float32)
    for _ in range(_PASSES):
        basis = _orthonormal(basis)
        image = np.zeros_like(basis)
        for bucket in range(len(buckets.sizes)):
            likes = _likes(buckets.read(bucket)[1], items)
            by_user = 1 / np.maximum(likes.sum(1), 1)
            image += likes.T @ (by_user[:, None] * (likes @ (scale[:, None] * basis)))
        image *= scale[:, None]
        square = basis.T @ image  # of the values, in this basis
        basis = image
    values, turn = np.linalg.eigh((square + square.T) / 2)
    # basis = (AᵀA) Q, so its turned columns have the length of an eigenvalue λ, which is the square of a singular value: λ^(1/4) is sought.
    known = values > _LEAST * max(values.max(), _LEAST)
    factors = basis @ (turn * np.where(known, np.maximum(values, _LEAST) ** -0.75, 0.0).astype(np.float32))
    size = np.sqrt(np.square(factors).sum() / max(1, np.count_nonzero(liked)))
    scaled: Floats = (factors / max(size, _LEAST)).astype(np.float32)
    return scaled


def _likes(steps: Steps, items: int) -> sp.csr_array:
    """float32[users, items]: 1 where the user has a rewarded step with the item."""
    rewarded = (steps.reward > 0) & (steps.item > 0)
    users, item = steps.users()[rewarded], steps.item[rewarded]
    likes = sp.csr_array((np.ones(len(item), dtype=np.float32), (users, item)), shape=(len(steps.user_ids), items))
    likes.sum_duplicates()
    likes.data[:] = 1
    return likes


def _orthonormal(columns: NDArray[np.float32]) -> NDArray[np.float32]:
    """Columns of length 1 that span the same space, or 0 where it has fewer dimensions."""
    values, turn = np.linalg.eigh(columns.T.astype(np.float64) @ columns)
    known = values > _LEAST**2 * values.max(initial=0)
    return columns @ (turn * np.where(known, 1 / np.sqrt(np.maximum(values, np.finfo(float).tiny)), 0.0)).astype(np.float32)
