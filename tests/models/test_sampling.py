from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from models.losses import Drawn, Head, chosen_score, drawn_logsumexp
from models.sampling import Proposal, RowAdagrad
from tests.models.test_losses import DAYS, ITEMS, STATES, dense, eligible, head, leaves


def content(states: Head) -> Tensor:
    """query·key of the items that were met."""
    return (states.query[:, None] * states.keys[states.met_item]).sum(2)


def by_day(states: Head) -> Head:
    """The same states, as if they had come in the order of the days."""
    return dataclasses.replace(states, day=states.day.sort()[0])


def everything(items: int = ITEMS) -> Drawn:
    """Each item once, so that the sum over them is that over the catalogue."""
    return Drawn(torch.arange(1, items), torch.zeros(items - 1, dtype=torch.float64))


NOTHING = Drawn(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64))
EVEN = torch.ones(STATES, dtype=torch.float64)
ACTIONS = torch.arange(STATES) % ITEMS  # some are none, some were met, some neither


def test_the_whole_catalogue_drawn_is_the_exact_logsumexp_in_value_and_gradient() -> None:
    states, weight = by_day(head()), torch.rand(STATES, dtype=torch.float64)
    masked = dense(states).masked_fill(~eligible()[states.day], -torch.inf)
    total, lse, best = drawn_logsumexp(states, content(states), eligible(), everything(), ACTIONS, weight)
    torch.testing.assert_close(lse, masked.logsumexp(1), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(total, (weight * masked.logsumexp(1)).sum(), atol=1e-12, rtol=1e-12)
    assert torch.equal(best, masked.argmax(1))
    gradients, expected = (torch.autograd.grad(3 * value, leaves(states)) for value in (total, (weight * masked.logsumexp(1)).sum()))
    for gradient, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, wanted, atol=1e-12, rtol=1e-12)


def test_what_is_not_drawn_counts_where_it_was_met_or_chosen() -> None:
    """Of nothing else anything is known: the sum is over the items 1 and 5, and the action."""
    states = by_day(head())
    _, lse, best = drawn_logsumexp(states, content(states), eligible(), NOTHING, ACTIONS, EVEN)
    allowed = eligible()[states.day]
    for row in range(STATES):
        items = sorted({1, 5, int(ACTIONS[row])} & set(allowed[row].nonzero().flatten().tolist()))
        z = dense(states)[row, items].detach()
        assert float(lse[row]) == pytest.approx(float(z.logsumexp(0)))
        assert int(best[row]) == items[int(z.argmax())]


def test_the_sum_has_no_bias_and_its_logarithm_one_that_shrinks() -> None:
    """Over 600 draws the mean of the estimated sums is the sum, within four standard errors; ten times the items leave a tenth of the bias."""
    items = 40
    states = by_day(head(items=items))
    states = dataclasses.replace(states, query=0.5 * states.query.detach(), kin=0.5 * states.kin.detach())
    allowed = torch.ones(DAYS, items, dtype=torch.bool)
    allowed[:, 0] = False
    exact = dense(states).masked_fill(~allowed[states.day], -torch.inf).logsumexp(1).detach()
    proposal, bias = Proposal(np.arange(items) ** 2, allowed[0].numpy()), {}
    torch.manual_seed(0)
    for number in (30, 300):
        draws = [proposal.draw(number) for _ in range(600)]
        with torch.no_grad():
            found = [drawn_logsumexp(states, content(states), allowed, Drawn(one.items, one.offset.double()), ACTIONS, EVEN)[1] for one in draws]
        lse = torch.stack(found)
        ratio = (lse - exact).exp()
        assert ((ratio.mean(0) - 1).abs() < 4 * ratio.std(0) / math.sqrt(len(found))).all()
        bias[number] = float((lse - exact).mean())
    print(f"bias of the logarithm by the number drawn: {bias}")
    assert bias[30] < bias[300] < 0
    assert bias[300] == pytest.approx(bias[30] / 10, rel=0.4)


def test_a_state_in_which_nothing_may_be_chosen() -> None:
    states = by_day(head())
    total, lse, best = drawn_logsumexp(states, content(states), torch.zeros(DAYS, ITEMS, dtype=torch.bool), everything(), ACTIONS, EVEN)
    assert (lse.tolist(), best.tolist()) == ([0.0] * STATES, [0] * STATES)
    assert not any(gradient.any() for gradient in torch.autograd.grad(total, leaves(states)))


def test_an_item_that_may_not_come_again_is_looked_at_by_nobody() -> None:
    states = by_day(head())
    states = dataclasses.replace(states, meeting=states.meeting.masked_fill(states.met_item > 0, -torch.inf))
    _, lse, best = drawn_logsumexp(states, content(states), eligible(), everything(), torch.full((STATES,), 4), EVEN)
    masked = dense(states).masked_fill(~eligible()[states.day], -torch.inf)
    torch.testing.assert_close(lse, masked.logsumexp(1))
    assert not {1, 5} & set(best.tolist())


def test_items_are_drawn_as_often_as_their_chance_says() -> None:
    """Half of the chance evenly over the items 1 to 3, half by the counts 16, 1, 0 to the power of 3/4: 8 to 1 to 0. Item 0 is not available."""
    torch.manual_seed(0)
    drawn = Proposal(np.array([99, 16, 1, 0]), np.array([False, True, True, True])).draw(90_000)
    chance = np.array([1 / 6 + 4 / 9, 1 / 6 + 1 / 18, 1 / 6])
    assert drawn.items.tolist() == [1, 2, 3]
    times = 90_000 * chance * drawn.offset.exp().numpy()
    assert times.sum() == pytest.approx(90_000)
    np.testing.assert_allclose(times / 90_000, chance, atol=0.01)
    assert set(Proposal(np.zeros(3, dtype=np.int64), np.array([False, True, True])).draw(50).items.tolist()) == {1, 2}


def test_rows_move_by_their_own_rate() -> None:
    """Row 1 with the gradients (3, 4) and then (0, 1): mean squares 12.5 and 13; row 0 is left alone."""
    table, bias = torch.zeros(3, 2), torch.zeros(3, 1)
    moved = RowAdagrad(table, bias)
    moved.step(torch.tensor([1]), (torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0]])), 0.1)
    moved.step(torch.tensor([1, 2]), (torch.tensor([[0.0, 1.0], [5.0, 5.0]]), torch.tensor([[0.0], [1.0]])), 0.1)
    torch.testing.assert_close(table, -0.1 * torch.tensor([[0, 0], [3 / 12.5**0.5, 4 / 12.5**0.5 + 1 / 13**0.5], [1, 1]]))
    torch.testing.assert_close(bias, -0.1 * torch.tensor([[0.0], [1.0], [1.0]]))


def test_the_score_of_an_item_that_was_met_is_the_same_either_way() -> None:
    states = by_day(head())
    _, lse, _ = drawn_logsumexp(states, content(states), eligible(), NOTHING, torch.ones_like(ACTIONS), EVEN)
    one, five = (chosen_score(states, torch.full((STATES,), item)) for item in (1, 5))
    torch.testing.assert_close(lse, torch.stack([one, five]).logsumexp(0))
