from __future__ import annotations

import numpy as np

from models.data import Floats
from models.factors import item_factors
from models.loader import HeldBucket
from tests.models.learner_cases import steps
from tests.models.made import make


def dense(likes: Floats, dim: int) -> Floats:
    """The same by numpy's own decomposition of the whole matrix."""
    scaled = likes / np.sqrt(np.maximum(likes.sum(1, keepdims=True), 1)) / np.sqrt(np.maximum(likes.sum(0, keepdims=True), 1))
    _, values, rows = np.linalg.svd(scaled)
    factors = (rows[:dim] * np.sqrt(values[:dim])[:, None]).T
    return np.asarray(factors / np.sqrt(np.square(factors).mean() * dim), dtype=np.float32)


def test_they_are_the_singular_vectors_of_users_by_items() -> None:
    """Two groups of items, of which each user likes one, and some noise: products of the leading two factors, as their signs are open."""
    rng = np.random.default_rng(0)
    chances = np.kron(np.eye(2), np.full((1, 6), 0.6))[np.arange(80) % 2] + 0.05
    likes = (rng.random((80, 12)) < chances).astype(np.float32)
    log = make({f"u{user}": [(item + 1, float(likes[user, item])) for item in range(12)] * 2 for user in range(80)})
    found = item_factors(HeldBucket(log), 14, 2, seed=0)
    expected = dense(likes, 2)
    assert found.shape == (14, 2)
    assert not found[0].any()
    assert not found[13].any()
    np.testing.assert_allclose(found[1:13] @ found[1:13].T, expected @ expected.T, atol=0.02)


def test_buckets_are_parts_of_one_matrix() -> None:
    class Halves:
        """Users of two buckets."""

        def __init__(self) -> None:
            self.parts = [steps([[{"item": item, "reward": 1} for item in liked] for liked in half]) for half in ([(1, 2), (2, 3)], [(1, 3), (4,)])]
            self.sizes = [4, 3]

        def read(self, place: int) -> tuple[int, object]:
            return place, self.parts[place]

    whole = steps([[{"item": item, "reward": 1} for item in liked] for liked in [(1, 2), (2, 3), (1, 3), (4,)]])
    one, other = item_factors(HeldBucket(whole), 5, 3, seed=0), item_factors(Halves(), 5, 3, seed=0)  # type: ignore[arg-type]
    np.testing.assert_allclose(one @ one.T, other @ other.T, atol=1e-4)


def test_nothing_liked_and_more_dimensions_than_items_are_no_matter() -> None:
    assert not item_factors(HeldBucket(steps([[{"item": 1}, {"item": 2}]])), 3, 4, seed=0).any()
    found = item_factors(HeldBucket(steps([[{"item": 1, "reward": 1}, {"item": 2, "reward": 1}]])), 3, 4, seed=0)
    np.testing.assert_allclose((found**2).sum(1), [0, 1, 1], atol=1e-5)
    np.testing.assert_allclose(found[1], found[2], atol=1e-5)
