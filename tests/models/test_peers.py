from __future__ import annotations

import numpy as np
import pytest

from tests.benchmarks.logs import DATA, core, movietweetings, taobao
from tests.benchmarks.peers import Linear, ease, popularity
from tests.benchmarks.quality import clustered
from tests.models.made import make


def test_ease_by_hand() -> None:
    """Two users met items 1 and 2, one met 3: X'X + 1 = [[3, 2, 0], [2, 3, 0], [0, 0, 2]], and -P12 / P22 = 2/5 : 3/5 = 2/3."""
    log = make({"u": [(1, 1.0), (2, 1.0)], "v": [(2, 1.0), (1, 1.0)], "w": [(3, 1.0)]})
    expected = np.zeros((4, 4))
    expected[1, 2] = expected[2, 1] = 2 / 3
    np.testing.assert_allclose(ease(log, 4, ridge=1.0, half_life=np.inf), expected, atol=1e-6)


def test_ease_weighs_the_last_meeting() -> None:
    """With a half-life of a step the row is 1 for item 1, met last, and 1/2 for item 2: X'X + 1 = [[2, 1/2], [1/2, 5/4]]."""
    log = make({"u": [(1, 1.0), (2, 1.0), (1, 1.0)]})
    weights = ease(log, 3, ridge=1.0, half_life=1.0)
    np.testing.assert_allclose(weights[[1, 2], [2, 1]], [0.5 / 2, 0.5 / 1.25], atol=1e-6)


def test_a_linear_ranker_adds_prior_own_items_and_what_goes_with_them() -> None:
    """After items 1, 2: own 1/2 and 1; by the weights item 3 gets 4 · 1 for item 2, with a half-life of two steps, and nothing for item 1."""
    log = make({"u": [(1, 1.0), (2, 1.0)]})
    weights = np.zeros((4, 4), dtype=np.float32)
    weights[2, 3] = 4
    ranker = Linear("", np.array([0, 10, 20, 30], dtype=np.float32), 1.0, weights, 2.0)
    np.testing.assert_allclose(ranker.score(log, np.array([0]), np.array([2])), [[0, 10.5, 21, 34]])


def test_popularity_is_that_of_the_eve() -> None:
    log = make({"u": [(1, 1.0), (1, 1.0), (2, 0.0)], "v": [(2, 1.0)]}, {"u": [0, 1, 1], "v": [2]})
    first = int(log.day.min())
    eves = popularity(log, 3, first, 4, half_life=1.0)
    np.testing.assert_allclose(eves, np.array([[0, 0, 0], [0, 1, 0], [0, 1.5, 0], [0, 0.75, 1]]))


def test_a_core_is_filtered_until_nothing_falls_out() -> None:
    """Item 3 has one row; without it user 2 has one; without that item 2 has one, and so user 1; user 0 and item 0 have two each, of their own."""
    users, items = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 0, 1, 2, 2, 3])
    assert core(users, items, 2).tolist() == [0, 1]


def test_an_error_clustered_by_user() -> None:
    """Of users (1, 1) and (0, 0) the sums of the deviations are 1 and -1: sqrt(2 / 1 · 2) / 4. Each row by itself: sqrt(4 / 3 · 1) / 4."""
    values = np.array([1.0, 1.0, 0.0, 0.0])
    assert clustered(values, np.array([5, 5, 7, 7])) == pytest.approx((0.5, 0.5))
    assert clustered(values, np.arange(4)) == pytest.approx((0.5, np.sqrt(4 / 3) / 4))


@pytest.mark.skipif(not DATA.is_dir(), reason="there is no ../shared/data here")
def test_the_logs() -> None:
    films = movietweetings(DATA / "movietweetings")
    assert (len(films.steps), len(films.steps.user_ids), len(films.catalogue) - 1) == (68_055, 4_333, 2_414)
    for by_item, steps, items in ((False, 84_440, 2_913), (True, 7_831, 1_530)):
        log = taobao(DATA / "taobao_userbehavior", by_item)
        assert (len(log.steps), len(log.catalogue) - 1) == (steps, items)
        met = np.full(items + 1, np.iinfo(np.int64).max)
        np.minimum.at(met, log.steps.item, log.steps.time)
        assert np.all(np.diff(met[1:]) >= 0), "items are numbered as they were first met"
