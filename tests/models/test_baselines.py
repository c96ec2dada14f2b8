from __future__ import annotations

import numpy as np
import pytest

from models import baselines
from models.baselines import ItemKNN, Popularity, RecencyPopularity, Repeat
from models.data import Floats, Ranker
from models.events import Doubles
from tests.models.made import CLICK, DAY, make

ITEMS = 6
LOG = make(
    {"u": [(1, 1.0), (2, 5.0), (3, 0.0)], "v": [(2, 1.0), (4, 1.0)], "w": [(1, 1.0), (2, 1.0), (1, 1.0)]},
    {"u": [0, 0, 7], "v": [7, 7], "w": [0, 7, 7]},
)


def scores_of(ranker: Ranker, user: int, end: int) -> Floats:
    """Scores for a user of LOG after the steps before its `end`-th."""
    scores: Floats = ranker.score(LOG, np.array([user]), LOG.offsets[[user]] + end)[0]
    return scores


def test_popularity_counts_rewarded_steps() -> None:
    assert scores_of(Popularity(LOG, ITEMS), 0, 0).tolist() == [0, 3, 3, 0, 1, 0]


def test_recency_popularity_halves_each_seven_days() -> None:
    """As of day 7: item 1 has two steps of day 0 and one of day 7: 0.5 + 0.5 + 1; item 2 one and two; item 4 one of day 7."""
    assert scores_of(RecencyPopularity(LOG, ITEMS, DAY + 7), 0, 0).tolist() == [0, 2.0, 2.5, 0, 1, 0]


def test_repeat_puts_what_the_user_liked_last_and_most_on_top() -> None:
    """w liked 1, 2, 1. After two steps: 2 (1 ago) before 1 (2 ago). After three: 1 (1 and 3 ago) before 2 (2 ago). Others by popularity."""
    ranker = Repeat(LOG, ITEMS, [CLICK])
    assert np.argsort(-scores_of(ranker, 2, 2), kind="stable")[:3].tolist() == [2, 1, 4]
    after = scores_of(ranker, 2, 3)
    assert after[1] == pytest.approx(1 + 0.5**0.1 + 0.5**0.3)
    assert after[2] == pytest.approx(1 + 0.5**0.2)
    assert after[4] == pytest.approx(1 / 4)


def test_what_was_shown_and_not_liked_is_not_the_users_own() -> None:
    assert scores_of(Repeat(LOG, ITEMS, [CLICK]), 0, 3)[3] == 0


def test_repeat_of_a_user_without_a_past_is_popularity() -> None:
    assert scores_of(Repeat(LOG, ITEMS, [CLICK]), 1, 0) == pytest.approx(np.array([0, 3, 3, 0, 1, 0]) / 4)


def dense_cosine(likes: Doubles) -> Doubles:
    """Reference: cosine of all pairs of columns, by the definition; 0 on the diagonal and where a column is empty."""
    similarity = np.zeros((likes.shape[1], likes.shape[1]))
    for i in range(likes.shape[1]):
        for j in range(likes.shape[1]):
            a, b = likes[:, i], likes[:, j]
            if i != j and a.any() and b.any():
                similarity[i, j] = a @ b / np.sqrt((a @ a) * (b @ b))
    return similarity


def test_item_knn_is_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    log = make({f"u{user}": [(int(item), float(rng.random() < 0.6)) for item in rng.integers(1, 30, size=12)] for user in range(25)})
    likes = np.zeros((25, 30))
    likes[log.users()[log.reward > 0], log.item[log.reward > 0]] = 1
    popularity = np.bincount(log.item[log.reward > 0], minlength=30)
    wanted = likes @ dense_cosine(likes) + 1e-4 * popularity / (popularity.max() + 1)
    monkeypatch.setattr(baselines, "_BLOCK_ROWS", 7)
    got = ItemKNN(log, 30, [CLICK]).score(log, np.arange(25), log.offsets[1:])
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-7)


def test_item_knn_keeps_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Item 1 was liked with 2 by u and w, and with nobody else; 2 was liked with 1 twice (2/√6) and with 4 once (1/√3)."""
    monkeypatch.setattr(baselines, "NEIGHBOURS", 1)
    scores = scores_of(ItemKNN(LOG, ITEMS, [CLICK]), 1, 1)  # v has liked 2
    assert scores[1] == pytest.approx(2 / np.sqrt(6), abs=1e-3)
    assert scores[4] < 1e-3


def test_only_the_last_likes_of_a_user_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "USER_ITEMS", 1)
    ranker = ItemKNN(LOG, ITEMS, [CLICK])
    assert scores_of(ranker, 2, 3).max() < 1e-3  # with one like a user no pair is left


@pytest.mark.parametrize("name", ["popularity", "recency_popularity", "repeat", "item_knn"])
def test_an_empty_training_log_ranks_without_failing(name: str) -> None:
    none = make({"u": []})
    rankers: list[Ranker] = [Popularity(none, 3), RecencyPopularity(none, 3, DAY), Repeat(none, 3, [CLICK]), ItemKNN(none, 3, [CLICK])]
    ranker = next(ranker for ranker in rankers if ranker.name == name)
    assert ranker.score(none, np.array([0]), np.array([0])).tolist() == [[0, 0, 0]]
