from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from models import metrics
from models.data import Floats, Ints, Steps
from models.events import Candidates, history, nightly, rolling, until
from models.metrics import Estimate, Resampling, coverage, gini, mean_popularity, ndcg_at, rank, recall_at, reciprocal_rank, top
from tests.models.made import DAY, make


class Fixed:
    """The same scores for everybody."""

    name = "fixed"

    def __init__(self, scores: list[float]) -> None:
        self._scores = np.array(scores, dtype=np.float32)

    def score(self, steps: Steps, users: Ints, ends: Ints, now: Ints | None = None) -> Floats:
        return np.tile(self._scores, (len(users), 1))


def candidates(available: list[int], repeats: bool = True) -> Candidates:
    return Candidates(np.array([available], dtype=np.bool_), DAY, repeats)


def test_three_items_by_hand() -> None:
    """Scores b > c > a: who took a, b, c finds them at 3, 1, 2. NDCG@2: 0, 1, 1/log2(3); recall@2: 0, 1, 1; MRR: 1/3, 1, 1/2."""
    steps = make({"u": [(1, 1.0), (2, 1.0), (3, 1.0)]})
    ranks = rank(Fixed([9, 0.1, 0.9, 0.5]), steps, rolling(steps, DAY), candidates([0, 1, 1, 1])).rank
    assert ranks.tolist() == [3, 1, 2]
    assert recall_at(ranks, 2).tolist() == [0, 1, 1]
    assert ndcg_at(ranks, 2).tolist() == [0, 1, 1 / math.log2(3)]
    assert reciprocal_rank(ranks).tolist() == [1 / 3, 1, 1 / 2]


def test_ties_count_against_the_ranker() -> None:
    steps = make({"u": [(1, 1.0), (2, 1.0), (3, 1.0)]})
    events = rolling(steps, DAY)
    assert rank(Fixed([0, 5, 5, 5]), steps, events, candidates([0, 1, 1, 1])).rank.tolist() == [3, 3, 3]
    assert rank(Fixed([0, 5, 5, 9]), steps, events, candidates([0, 1, 1, 1])).rank.tolist() == [3, 3, 1]


def test_a_score_that_is_no_number_and_an_unknown_item_rank_last() -> None:
    steps = make({"u": [(1, 1.0), (0, 1.0), (2, 1.0)]})
    ranks = rank(Fixed([9, float("nan"), 1, 2]), steps, rolling(steps, DAY), candidates([0, 1, 1, 1]))
    assert ranks.rank.tolist() == [3, 4, 2]


def test_items_out_of_stock_are_no_rivals_and_what_was_taken_always_competes() -> None:
    """Item 3 is gone: it does not push 1 down, and who took it nevertheless finds it ranked, first of three."""
    steps = make({"u": [(1, 1.0), (3, 1.0)]})
    ranks = rank(Fixed([0, 1, 2, 3]), steps, rolling(steps, DAY), candidates([0, 1, 1, 0]))
    assert ranks.rank.tolist() == [2, 1]
    assert ranks.candidates.tolist() == [2, 3]


def test_without_repeats_a_met_item_is_neither_rival_nor_target() -> None:
    steps = make({"u": [(3, 1.0), (1, 1.0), (3, 1.0)]})
    ranks = rank(Fixed([0, 1, 2, 3]), steps, rolling(steps, DAY), candidates([0, 1, 1, 1], repeats=False))
    assert ranks.eligible.tolist() == [True, True, False]
    assert ranks.rank[:2].tolist() == [1, 2]


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    steps = make({f"u{user}": [(int(item), 1.0) for item in rng.integers(1, 9, size=7)] for user in range(5)})
    events, ranker, which = rolling(steps, DAY), Fixed(list(rng.random(9))), candidates([0, *[1] * 8], repeats=False)
    whole, lists = rank(ranker, steps, events, which), top(ranker, steps, events, which, 3)
    monkeypatch.setattr(metrics, "CHUNK_SCORES", 20)
    assert rank(ranker, steps, events, which).rank.tolist() == whole.rank.tolist()
    assert top(ranker, steps, events, which, 3).tolist() == lists.tolist()


def test_top_lists_stop_where_candidates_do() -> None:
    steps = make({"u": [(2, 1.0), (1, 1.0)]})
    lists = top(Fixed([9, 1, 2, 3]), steps, rolling(steps, DAY), candidates([0, 1, 1, 1], repeats=False), 3)
    assert lists.tolist() == [[3, 2, 1], [3, 1, 0]]


def test_rolling_and_nightly_moments() -> None:
    """Day 1 is held out. Rolling: each of its steps after all before it. Nightly: u's first rewarded one, after what day 0 brought, at noon; v is new."""
    steps = make({"u": [(1, 1.0), (2, 0.0), (3, 0.0), (4, 1.0), (5, 1.0)], "v": [(6, 1.0)], "w": [(7, 1.0)]}, {"u": [0, 0, 1, 1, 1], "v": [1], "w": [0]})
    every, first = rolling(steps, DAY + 1), nightly(steps, DAY + 1)
    assert (every.users.tolist(), every.ends.tolist(), every.items.tolist()) == ([0, 0, 0, 1], [2, 3, 4, 5], [3, 4, 5, 6])
    assert (first.users.tolist(), first.ends.tolist(), first.items.tolist()) == ([0, 1], [2, 5], [4, 6])
    assert every.times.tolist() == steps.time[[2, 3, 4, 5]].tolist()
    assert first.times.tolist() == [(DAY + 1) * 86_400 + 43_200] * 2
    moments, before = history(steps, first.users, first.ends)
    assert (moments.tolist(), before.tolist()) == ([0, 0], [0, 1])
    train = until(steps, DAY)
    assert (train.item.tolist(), train.offsets.tolist(), train.user_ids) == ([1, 2, 7], [0, 2, 2, 3], ("u", "v", "w"))


def test_coverage_gini_and_popularity_by_hand() -> None:
    """Lists hold item 1 twice, 2 once, 3 never: Gini of (0, 1, 2) = Σ(2i - n - 1)x / (nΣx) = (-2·0 + 0·1 + 2·2) / (3·3) = 4/9."""
    lists, available = np.array([[1, 2], [1, 0]]), np.array([False, True, True, True])
    assert coverage(lists, available) == pytest.approx(2 / 3)
    assert gini(lists, available) == pytest.approx(4 / 9)
    assert mean_popularity(lists, np.array([0, 6, 3, 1])) == pytest.approx((0.6 + 0.3 + 0.6) / 3)


def test_intervals_resample_users_and_not_rows() -> None:
    """Ten users of 100 equal rows each, five all 1 and five all 0: the mean of a resample has sd √(0.25/10) = 0.158; by rows it would be 0.016."""
    users = np.repeat(np.arange(10), 100)
    estimate = Resampling(users, 2000, seed=1).mean((users < 5).astype(float))
    assert estimate.value == 0.5
    assert np.std(estimate.draws) == pytest.approx(math.sqrt(0.025), rel=0.1)
    assert estimate.interval == pytest.approx((0.2, 0.8), abs=0.05)
    assert estimate.samples == 1000


def test_differences_are_paired() -> None:
    """A ranker that is better by 0.1 for everybody is better by 0.1 in every resample."""
    resampling = Resampling(np.arange(8), 50, seed=0)
    values = np.arange(8.0)
    difference = resampling.mean(values + 0.1).minus(resampling.mean(values))
    assert difference.interval == pytest.approx((0.1, 0.1))


def test_the_best_of_several_has_a_wider_interval() -> None:
    """Of 0, 1 … 1000: 95% lie from 25 to 975, and of the best of five 99%, from 5 to 995."""
    one = Estimate(500.0, np.arange(1001.0), 9)
    assert one.interval == (25, 975)
    assert replace(one, of_several=5).interval == pytest.approx((5, 995))


def test_nothing_and_one_user_have_no_interval() -> None:
    empty = Resampling(np.zeros(0, dtype=np.int64), 50, seed=0).mean(np.zeros(0))
    assert (empty.value, empty.interval, empty.samples) == (0.0, None, 0)
    assert Resampling(np.array([3, 3]), 50, seed=0).mean(np.array([1.0, 2.0])).interval is None
