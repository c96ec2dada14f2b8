from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.data import Catalogue, DailyCounts, Steps
from models.learner import _unread
from models.loader import pack
from models.network import ENCODERS, ItemTable, Network, Rows, States, item_table, log_bucket, rows_of, view_of
from models.objective import batch_of
from models.popularity import HALF_LIVES, DecayedCounts
from tests.models.learner_cases import HOUR, catalogue, network, random_steps, steps

CPU = torch.device("cpu")
every_encoder = pytest.mark.parametrize("encoder", ENCODERS)


def table(items: Catalogue) -> ItemTable:
    return item_table(items.item_ids, items.categories, items, CPU)


def states_of(made: Network, rows: Rows, known: Catalogue | ItemTable, at: torch.Tensor | None = None) -> States:
    (states,) = made.states(rows, view_of(rows, made.config.context, at), made.items(table(known) if isinstance(known, Catalogue) else known))
    return states


@every_encoder
def test_later_steps_change_no_earlier_state(encoder: str) -> None:
    items, log = catalogue(9), random_steps(1, 8, 9, seed=1)
    made = network(items, encoder=encoder)
    whole = np.array([0]), np.array([8])
    other = Steps(**{**vars(log), "item": log.item.copy(), "response": log.response.copy()})
    other.item[5:] = 10 - other.item[5:]
    other.response[5:] = 2 - other.response[5:]
    with torch.no_grad():
        one, two = (states_of(made, rows_of(kind, *whole, CPU), items) for kind in (log, other))
    for name in ("query", "value", "nearer", "popularity", "kin", "meeting", "met_item"):
        before, after = getattr(one, name), getattr(two, name)
        shared = np.s_[:, :6, :6] if name in ("kin", "meeting", "met_item") else np.s_[:, :6]
        torch.testing.assert_close(before[shared], after[shared], atol=1e-6, rtol=0)
    assert (one.query[:, 6:] - two.query[:, 6:]).abs().max() > 1e-3


@every_encoder
def test_padding_and_company_change_no_state(encoder: str) -> None:
    items, log = catalogue(9), random_steps(2, 8, 9, seed=2)
    made = network(items, encoder=encoder)
    with torch.no_grad():
        together = states_of(made, rows_of(log, np.array([0, 8]), np.array([3, 16]), CPU), items)
        alone = states_of(made, rows_of(log, np.array([0]), np.array([3]), CPU), items)
    torch.testing.assert_close(together.query[0, :4], alone.query[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(together.value[0, :4], alone.value[0], atol=1e-6, rtol=0)


@every_encoder
def test_a_window_sees_nothing_of_the_others_in_its_row(encoder: str) -> None:
    """Users of 8, 5 and 2 steps in one row have the states that each has in a row of its own, the last ones as of the end of the day."""
    sizes, items = (8, 5, 2), catalogue(9)
    log = steps([[{"item": 1 + place * (user + 2) % 9, "response": place % 3} for place in range(size)] for user, size in enumerate(sizes)])
    made, rows = network(items, encoder=encoder), batch_of(pack(log, 8, 18, np.random.default_rng(0)), 0, 1.0, CPU).rows
    evening = np.full(3, (int(log.day.max()) + 1) * 86_400)
    with torch.no_grad():
        together, alone = (states_of(made, kind, items) for kind in (rows, rows_of(log, log.offsets[:-1], log.offsets[1:], CPU, evening)))
    for user, size in enumerate(sizes):
        begin = rows.segment[0].tolist().index(user + 1)
        here = np.s_[begin : begin + size + 1]
        for name in ("query", "value", "nearer", "popularity"):
            torch.testing.assert_close(getattr(together, name)[0, here], getattr(alone, name)[user, : size + 1], atol=1e-6, rtol=0)
        for name in ("met_item", "meeting", "kin"):
            found = getattr(together, name)[0, here]
            torch.testing.assert_close(found[:, here], getattr(alone, name)[user, : size + 1, : size + 1], atol=1e-6, rtol=0)
            assert found.count_nonzero() == found[:, here].count_nonzero()


@every_encoder
def test_the_last_state_alone_is_the_last_of_all(encoder: str) -> None:
    """Windows of 8, 3 and no steps; the state after the last step is that of the same place among all states."""
    items, log = catalogue(9), random_steps(2, 8, 9, seed=2)
    made = network(items, encoder=encoder)
    rows, at = rows_of(log, np.array([0, 8, 8]), np.array([8, 11, 8]), CPU), torch.tensor([[8], [3], [0]])
    with torch.no_grad():
        every, last = states_of(made, rows, items), states_of(made, rows, items, at)
    for name in ("query", "value", "nearer", "popularity", "kin", "meeting", "met_item"):
        torch.testing.assert_close(getattr(last, name)[:, 0], getattr(every, name)[torch.arange(3), at[:, 0]], atol=1e-6, rtol=0)


@every_encoder
def test_a_state_is_that_of_a_moment(encoder: str) -> None:
    """After the same steps weeks later is another state, and the state before a step is that of its moment, whatever the step is."""
    items, log = catalogue(9), random_steps(1, 6, 9, seed=2)
    made, window = network(items, encoder=encoder), (np.array([0]), np.array([5]))
    with torch.no_grad():
        every = states_of(made, rows_of(log, np.array([0]), np.array([6]), CPU), items)
        then, later = (states_of(made, rows_of(log, *window, CPU, log.time[[5]] + wait), items) for wait in (0, 999 * HOUR))
    torch.testing.assert_close(then.query[0], every.query[0, :6], atol=1e-6, rtol=0)
    torch.testing.assert_close(then.meeting[0], every.meeting[0, :6, :6], atol=1e-6, rtol=0)
    torch.testing.assert_close(later.query[0, :5], then.query[0, :5], atol=1e-6, rtol=0)
    assert (later.query[0, 5] - then.query[0, 5]).abs().max() > 1e-3
    assert (later.meeting[0, 5] - then.meeting[0, 5]).abs().max() > 1e-3


def test_a_stranger_has_waited_for_nothing() -> None:
    log = steps([[], [{"item": 1, "time": HOUR}]])
    found = rows_of(log, log.offsets[:-1], log.offsets[1:], CPU, np.array([5 * HOUR, 3 * HOUR]))
    assert found.wait.tolist() == [[0, 0], [0, 2 * HOUR]]


def test_the_last_meeting_of_each_item_counts() -> None:
    """Items 3 5 3 and an unknown one: before step 0 nothing is met; before 2: 3 (step 0) and 5 (step 1); after all: 5 and 3 (step 2)."""
    items = catalogue(9)
    log = steps([[{"item": 3}, {"item": 5}, {"item": 3}, {"item": 0}]])
    made = network(items)
    with torch.no_grad():
        found = states_of(made, rows_of(log, np.array([0]), np.array([4]), CPU), items)
    assert found.met_item[0].tolist() == [[0, 0, 0, 0, 0], [0, 3, 0, 0, 0], [0, 3, 5, 0, 0], [0, 0, 5, 3, 0], [0, 0, 5, 3, 0]]
    assert torch.equal(found.meeting[0] != 0, found.met_item[0] > 0)


def test_popularity_is_that_of_the_day_before() -> None:
    """Item 1 has a rewarded step on day 0 and another on day 2; item 2 one without reward on day 1."""
    log = steps([[{"item": 1, "reward": 1, "time": 0}, {"item": 2, "time": 24 * HOUR}, {"item": 1, "reward": 2, "time": 48 * HOUR}]])
    found = DecayedCounts.of(DailyCounts.of([log]), 3, 0, 4).features()
    assert found[0].max() == 0
    for column, half_life in enumerate(HALF_LIVES):
        keep = 0.5 ** (1 / half_life)
        for kind in (0, len(HALF_LIVES)):
            assert found[1:, 1, kind + column] == pytest.approx([np.log1p(count) for count in (1, keep, 1 + keep**2)], abs=1e-6)
        assert found[:, 2, column] == pytest.approx([0, 0, np.log(2), np.log1p(keep)], abs=1e-6)
        assert found[:, 2, len(HALF_LIVES) + column].max() == 0
        np.testing.assert_allclose(found[..., 2 * len(HALF_LIVES) + column], found[..., len(HALF_LIVES) + column] ** 2 / 4, rtol=1e-6)
    np.testing.assert_allclose(DecayedCounts.of(DailyCounts.of([log]), 3, 3, 1).features()[0], found[3], rtol=1e-6)
    np.testing.assert_array_equal(DecayedCounts.of(DailyCounts.of([log]), 3, 0, 4).features(np.array([2, 0, 1])), found[:, [2, 0, 1]])


def test_an_item_is_young_from_the_day_after_its_first_step_on() -> None:
    """Item 1 is first met on day 1, item 2 never; with 4 days of half-life. The product is with log(1 + 2), its two steps of the day before."""
    log = steps([[{"item": 1, "time": 24 * HOUR}, {"item": 1, "time": 25 * HOUR}, {"item": 3, "time": 0}]])
    found = DecayedCounts.of(DailyCounts.of([log]), 4, 0, 7).features()
    assert found[:, 1, -2] == pytest.approx([0, 0, 1, 0.5**0.25, 0.5**0.5, 0.5**0.75, 0.5])
    assert found[2, 1, -1] == pytest.approx(np.log(3))
    assert found[:, 2].max() == 0
    assert DecayedCounts.of(DailyCounts.of([log]), 4, 3, 1).features()[0, 3, -2] == pytest.approx(0.5**0.5)


def test_a_step_with_an_item_that_nobody_chose_is_read_by_its_content() -> None:
    """Items 1 and 4 are of one category, 2 is not, and 8 and 9 have none: they are read by what they are."""
    items = catalogue(9, [*((f"c{number % 3}",) for number in range(7)), (), ()])
    made, known = network(items).train(), replace(table(items), unread=torch.from_numpy(_unread(np.zeros(10, dtype=np.int64), None)))

    def query(item: int) -> torch.Tensor:
        with torch.no_grad():
            return states_of(made, rows_of(steps([[{"item": item}]]), np.array([0]), np.array([1]), CPU), known).query[0, 1]

    torch.testing.assert_close(query(1), query(4))
    assert (query(1) - query(2)).abs().max() > 1e-3
    assert (query(8) - query(9)).abs().max() > 1e-3
    made.eval()
    assert (query(1) - query(4)).abs().max() > 1e-3


def test_the_more_steps_an_item_has_the_more_often_it_is_read_as_itself() -> None:
    """Of 20,000 users whose only step is with an item that has 15 steps, 5 / (5 + 15) are read by its content, standard error .003."""
    items, users = catalogue(2, [("c",), ("c",)]), 20_000
    made = network(items)
    rows = rows_of(steps([[{"item": 1}]] * users), np.arange(users), np.arange(users) + 1, CPU)
    with torch.no_grad():
        one = states_of(made, rows, items).query[0, 1]
        many = states_of(made.train(), rows, replace(table(items), unread=torch.from_numpy(_unread(np.array([0, 15, 0]), None)))).query[:, 1]
    read_as_itself = (many - one).abs().amax(1) < 1e-5
    assert float((~read_as_itself).float().mean()) == pytest.approx(0.25, abs=0.012)


def test_the_mean_knows_no_order() -> None:
    items = catalogue(9)
    there, back = (steps([[{"item": item, "time": 0} for item in order]]) for order in ((1, 5, 7), (7, 5, 1)))
    for encoder in ENCODERS:
        with torch.no_grad():
            one, other = (
                states_of(network(items, encoder=encoder), rows_of(log, np.array([0]), np.array([3]), CPU), items).query[0, 3] for log in (there, back)
            )
        assert torch.allclose(one, other, atol=1e-6) == (encoder == "mean")


def test_indices_above_2_to_the_24_stay_distinct() -> None:
    """float32 holds no odd number there."""
    large = 2**24 + 1
    log = steps([[{"item": large}, {"item": large + 1}, {"item": large}]])
    found = rows_of(log, np.array([0]), np.array([3]), CPU)
    assert found.item.tolist() == [[0, large, large + 1, large]]
    assert batch_of(pack(log, 4, 5, np.random.default_rng(0)), 0, 1.0, CPU).action.tolist() == [[large, large + 1, large, 0, 0]]


def test_an_item_without_a_vector_of_its_own_is_told_by_its_categories() -> None:
    known = catalogue(4, [("a", "b"), ("a", "c"), ("d",), ("d",)])
    newer = Catalogue((*known.item_ids, "new"), (*known.categories, ("a", "b")), (None,) * 6, np.arange(6) > 0)
    made = network(known)
    codes = item_table(known.item_ids, known.categories, newer, CPU)
    with torch.no_grad():
        vectors = made.items(codes)
        categories = made.category_vector.weight[1] + made.category_vector.weight[2]  # a, a/b of a, a/b, a/c, d
        torch.testing.assert_close(vectors.content[5], categories)
        torch.testing.assert_close(vectors.whole[5], made.item_vector.weight[0] + categories)
    assert codes.ids.tolist() == [0, 1, 2, 3, 4, 0]


def test_time_buckets() -> None:
    assert log_bucket(torch.tensor([0, 1, 2, 3, 6, 7, 2**40])).tolist() == [0, 1, 1, 2, 2, 3, 31]
