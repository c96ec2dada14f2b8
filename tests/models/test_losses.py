from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from models import losses
from models.data import END_CODES
from models.losses import Head, all_scores, catalogue_logsumexp, chosen_score, lambda_returns, listed_logsumexp, n_step_targets

DAYS, STATES, ITEMS, DIM, FEATURES, CATEGORIES = 3, 17, 11, 4, 2, 3


def head(seed: int = 0, items: int = ITEMS) -> Head:
    """Random states; in each, the items 1 and 5 were met, and one place is empty."""
    draw = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).requires_grad_()

    met = torch.tensor([1, 0, 5]).repeat(STATES, 1)
    meeting = (torch.randn(STATES, 3, generator=draw, dtype=torch.float64) * (met > 0)).requires_grad_()
    popularity = torch.randn(DAYS, items, FEATURES, generator=draw, dtype=torch.float64)
    category, kin = torch.arange(items) % (CATEGORIES + 1), leaf(STATES, CATEGORIES + 1)
    return Head(leaf(STATES, DIM), leaf(items, DIM), leaf(items), leaf(STATES, FEATURES), popularity, torch.arange(STATES) % DAYS, category, kin, met, meeting)


def eligible(items: int = ITEMS) -> Tensor:
    allowed = torch.ones(DAYS, items, dtype=torch.bool)
    allowed[:, 0] = False
    allowed[1, 3] = False
    return allowed


def dense(states: Head) -> Tensor:
    """z by its definition: [states, items]."""
    scores = states.query @ states.keys.T + states.bias + torch.einsum("sf,sif->si", states.weights, states.popularity[states.day])
    scores = scores + states.kin[:, states.leaf]
    return scores.scatter_add(1, states.met_item, states.meeting)


def leaves(states: Head) -> list[Tensor]:
    return [states.query, states.keys, states.bias, states.weights, states.kin, states.meeting]


@pytest.mark.parametrize("scores_at_once", [ITEMS, 5 * ITEMS, 10**6])
def test_the_chunked_logsumexp_is_the_dense_one_in_value_and_gradient(monkeypatch: pytest.MonkeyPatch, scores_at_once: int) -> None:
    monkeypatch.setitem(losses._CHUNK_SCORES, "cpu", scores_at_once)
    monkeypatch.setattr(losses, "_CHUNK_STATES", 1)
    states, weight = head(), torch.rand(STATES, dtype=torch.float64)
    masked = dense(states).masked_fill(~eligible()[states.day], -torch.inf)
    expected = (weight * masked.logsumexp(1)).sum()
    expected_gradients = torch.autograd.grad(expected, leaves(states))

    total, lse, best = catalogue_logsumexp(states, eligible(), weight)
    gradients = torch.autograd.grad(3 * total, leaves(states))

    torch.testing.assert_close(total, expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(lse, masked.logsumexp(1), atol=1e-12, rtol=1e-12)
    assert torch.equal(best, masked.argmax(1))
    unsought, same, none = catalogue_logsumexp(states, eligible(), weight, seek=False)
    assert torch.equal(unsought, total)
    assert torch.equal(same, lse)
    assert not none.any()
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, 3 * wanted, atol=1e-12, rtol=1e-12)


def test_over_listed_items_it_is_the_dense_one_over_these_alone() -> None:
    """Lists of up to four items, one of them met, one list without the action, one state with neither."""
    states, weight = head(), torch.rand(STATES, dtype=torch.float64)
    listed = torch.stack([torch.randperm(ITEMS - 1, generator=torch.Generator().manual_seed(state))[:4] + 1 for state in range(STATES)])
    listed[0], listed[1], listed[2, 2:] = torch.tensor([5, 2, 7, 9]), 0, 0
    action = listed[:, 0].clone()
    action[3] = next(item for item in range(1, ITEMS) if item not in listed[3])
    allowed = torch.zeros(STATES, ITEMS, dtype=torch.bool)
    for state in range(STATES):
        allowed[state, [*listed[state].tolist(), int(action[state])]] = True
    allowed[:, 0] = False
    masked = dense(states).masked_fill(~allowed, -torch.inf)
    some = torch.arange(STATES) != 1
    expected = (weight * masked.logsumexp(1))[some].sum()

    total, lse, best = listed_logsumexp(states, listed, action, weight)
    torch.testing.assert_close(total, expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(lse, torch.where(some, masked.logsumexp(1), 0.0), atol=1e-12, rtol=1e-12)
    assert torch.equal(best, torch.where(some, masked.argmax(1), 0))
    for gradient, wanted in zip(torch.autograd.grad(total, leaves(states)), torch.autograd.grad(expected, leaves(states)), strict=True):
        torch.testing.assert_close(gradient, wanted, atol=1e-12, rtol=1e-12)


def test_a_candidate_that_may_not_come_again_never_wins_and_gets_no_gradient() -> None:
    states = head()
    barred = dataclasses.replace(states, meeting=states.meeting.detach().masked_fill(states.met_item > 0, -torch.inf).requires_grad_())
    listed = torch.tensor([5, 2, 7]).repeat(STATES, 1)
    total, _, best = listed_logsumexp(barred, listed, torch.full((STATES,), 2), torch.ones(STATES, dtype=torch.float64))
    gradient = torch.autograd.grad(total, leaves(barred))
    assert set(best.tolist()) <= {2, 7}
    assert gradient[2][[1, 3, 4, 5, 6, 8, 9, 10]].abs().max() == 0
    assert all(tensor.isfinite().all() for tensor in gradient)


def test_the_gradient_of_the_penalty_is_softmax_minus_one_hot() -> None:
    """In b(a), which adds to each z(a) alone: the mean over states of softmax - one-hot of the logged action."""
    states, action = head(), torch.arange(STATES) % (ITEMS - 4) + 4
    weight = torch.full((STATES,), 1 / STATES, dtype=torch.float64)
    total, _, _ = catalogue_logsumexp(states, eligible(), weight)
    (gradient,) = torch.autograd.grad(total - (weight * chosen_score(states, action)).sum(), [states.bias])
    softmax = dense(states).masked_fill(~eligible()[states.day], -torch.inf).softmax(1)
    torch.testing.assert_close(gradient, (softmax - torch.nn.functional.one_hot(action, ITEMS)).mean(0), atol=1e-12, rtol=1e-12)


def test_the_penalty_changes_with_the_logged_action() -> None:
    states = head()
    one, other = (chosen_score(states, torch.full((STATES,), item)) for item in (4, 5))
    assert (one - other).abs().min() > 1e-6
    torch.testing.assert_close(one, dense(states)[:, 4])
    torch.testing.assert_close(other, dense(states)[:, 5])  # an item that was met


def test_items_that_are_not_eligible_change_nothing() -> None:
    states = head()
    more = 6
    wider = dataclasses.replace(
        states,
        keys=torch.cat([states.keys, 50 * torch.ones(more, DIM, dtype=torch.float64)]),
        bias=torch.cat([states.bias, 50 * torch.ones(more, dtype=torch.float64)]),
        leaf=torch.cat([states.leaf, torch.ones(more, dtype=torch.int64)]),
        popularity=torch.cat([states.popularity, torch.ones(DAYS, more, FEATURES, dtype=torch.float64)], dim=1),
    )
    allowed = torch.cat([eligible(), torch.zeros(DAYS, more, dtype=torch.bool)], dim=1)
    weight = torch.rand(STATES, dtype=torch.float64)
    small, large = catalogue_logsumexp(states, eligible(), weight), catalogue_logsumexp(wider, allowed, weight)
    torch.testing.assert_close(small[0], large[0], atol=1e-12, rtol=1e-12)
    assert torch.equal(small[2], large[2])
    for one, other in zip(torch.autograd.grad(small[0], leaves(states)), torch.autograd.grad(large[0], leaves(states)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


def test_an_item_that_may_not_come_again_never_wins_and_gets_no_gradient() -> None:
    states = head()
    barred = dataclasses.replace(states, meeting=states.meeting.detach().masked_fill(states.met_item > 0, -torch.inf).requires_grad_())
    total, _, best = catalogue_logsumexp(barred, eligible(), torch.ones(STATES, dtype=torch.float64))
    gradient = torch.autograd.grad(total, leaves(barred))
    assert not set(best.tolist()) & {0, 1, 5}
    assert gradient[2][[0, 1, 5]].abs().max() == 0
    assert gradient[5].abs().max() == 0


def test_a_state_without_a_candidate_costs_nothing() -> None:
    states = head()
    total, lse, best = catalogue_logsumexp(states, torch.zeros(DAYS, ITEMS, dtype=torch.bool), torch.ones(STATES, dtype=torch.float64))
    assert (total.item(), lse.abs().sum().item(), best.sum().item()) == (0, 0, 0)
    assert all(gradient.abs().max() == 0 for gradient in torch.autograd.grad(total, leaves(states)))


def test_scores_of_all_items_are_those_of_the_first_day() -> None:
    states = dataclasses.replace(head(), day=torch.zeros(STATES, dtype=torch.int64))
    torch.testing.assert_close(all_scores(states), dense(states).detach())


def test_kin_is_summed_by_category() -> None:
    """Steps of the categories 2 0 2 1 with terms 1 10 3 5: none, 5 for 1, 4 for 2, nothing for 3."""
    found = losses.by_category(torch.tensor([[2, 0, 2, 1]]), torch.tensor([[1.0, 10, 3, 5]]), 3)
    assert found.tolist() == [[0, 5, 4, 0]]


def targets(
    reward: list[float],
    end: list[str],
    bootstrap: list[float],
    gamma: float,
    n_step: int,
    length: int | None = None,
    elapsed: list[float] | None = None,
) -> tuple[list[float], list[bool]]:
    steps = len(reward) if length is None else length
    codes = torch.tensor([[END_CODES.get(name, 0) for name in (*end, "")]])
    acts = torch.arange(len(reward) + 1)[None] < steps
    passed = torch.tensor([[*(elapsed or [1.0] * len(reward)), 1.0]])
    found, valid = n_step_targets(torch.tensor([[*reward, 0.0]]), codes, acts, passed, torch.tensor([bootstrap]), gamma, n_step)
    return [round(value, 6) for value in found[0, :-1].tolist()], valid[0, :-1].tolist()


def test_n_step_targets_by_hand() -> None:
    """Rewards 1 2 3 4, gamma 1/2, two steps, values 10 20 30 40 50 of the states 0 to 4.

    t=0: 1 + 2/2 + 30/4 = 9.5; t=1: 2 + 3/2 + 40/4 = 13.5; t=2: 3 + 4/2 + 50/4 = 17.5; t=3: the window ends: 4 + 50/2 = 29.
    """
    found, valid = targets([1, 2, 3, 4], ["", "", "", ""], [10, 20, 30, 40, 50], 0.5, 2)
    assert (found, valid) == ([9.5, 13.5, 17.5, 29.0], [True] * 4)


def test_no_return_crosses_an_episode() -> None:
    """As above; `terminated` after step 1 leaves 1 + 2/2 and 2; truncated there adds 30/4 and 30/2, the value of the state after it."""
    assert targets([1, 2, 3, 4], ["", "terminated", "", ""], [10, 20, 30, 40, 50], 0.5, 3)[0][:2] == [2.0, 2.0]
    for end in ("truncated_gap", "truncated_window"):
        assert targets([1, 2, 3, 4], ["", end, "", ""], [10, 20, 30, 40, 50], 0.5, 3)[0][:2] == [9.5, 17.0]


def test_an_immature_step_is_never_a_target_nor_part_of_one() -> None:
    """Step 2 is immature: t=0 is 1 + 2/2 + 30/4, t=1 is 2 + 30/2, whatever its reward; t=3 is as ever."""
    for unknown in (3.0, 300.0):
        found, valid = targets([1, 2, unknown, 4], ["", "", "immature", ""], [10, 20, 30, 40, 50], 0.5, 3)
        assert valid == [True, True, False, True]
        assert [found[0], found[1], found[3]] == [9.5, 17.0, 29.0]


def test_gamma_0_is_a_bandit() -> None:
    assert targets([1, 2, 3, 4], ["", "terminated", "truncated_gap", ""], [10, 20, 30, 40, 50], 0.0, 5)[0] == [1, 2, 3, 4]


def test_padding_is_no_target() -> None:
    found, valid = targets([1, 2, 9, 9], ["", "", "", ""], [10, 20, 30, 40, 50], 0.5, 4, length=2)
    assert (found[:2], valid) == ([9.5, 17.0], [True, True, False, False])


def test_ragged_episodes_against_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    names = ["", "", "", "terminated", "truncated_gap", "immature"]
    for n_step in (1, 3, 5):
        end = [names[code] for code in rng.integers(0, len(names), 40)]
        reward, bootstrap = rng.random(40).round(2).tolist(), rng.random(41).round(2).tolist()
        elapsed = rng.uniform(0.1, 3, 40).round(2).tolist()
        found, valid = targets(reward, end, bootstrap, 0.9, n_step, elapsed=elapsed)
        for t in range(40):
            total, at = 0.0, t
            while True:
                if end[at] == "immature":
                    total += 0.9 ** sum(elapsed[t:at]) * bootstrap[at]
                    break
                total += 0.9 ** sum(elapsed[t:at]) * reward[at]
                if end[at] == "terminated":
                    break
                if end[at] or at == 39 or at - t + 1 == n_step:
                    total += 0.9 ** sum(elapsed[t : at + 1]) * bootstrap[at + 1]
                    break
                at += 1
            assert valid[t] == (end[t] != "immature")
            if valid[t]:
                assert found[t] == pytest.approx(total, abs=1e-5)


def logged_returns(
    reward: list[float], end: list[str], value: list[float], gamma: float, mixing: float, elapsed: list[float] | None = None
) -> tuple[list[float], list[bool]]:
    passed = torch.tensor([[*(elapsed or [1.0] * len(reward)), 1.0]], dtype=torch.float64)
    codes = torch.tensor([[END_CODES.get(name, 0) for name in (*end, "")]])
    acts = torch.arange(len(reward) + 1)[None] < len(reward)
    found, valid = lambda_returns(
        torch.tensor([[*reward, 0.0]], dtype=torch.float64), codes, acts, passed, torch.tensor([value], dtype=torch.float64)[:, :, None], [gamma], [mixing]
    )
    return found[0, :-1, 0].tolist(), valid[0, :-1].tolist()


def test_lambda_returns_by_hand() -> None:
    """Rewards 1 2 3, gamma and lambda 1/2, values 10 20 30 40: G2 = 3 + 40/2; G1 = 2 + (30 + 23)/4; G0 = 1 + (20 + 15.25)/4."""
    assert logged_returns([1, 2, 3], ["", "", ""], [10, 20, 30, 40], 0.5, 0.5) == ([9.8125, 15.25, 23.0], [True] * 3)


def test_lambda_0_is_one_step_and_1_is_the_log_itself() -> None:
    """With 0 what follows is the value of the next state; with 1 the rewards to the end, and the value of the state after it."""
    assert logged_returns([1, 2, 3], ["", "", ""], [10, 20, 30, 40], 0.5, 0.0)[0] == [11.0, 17.0, 23.0]
    assert logged_returns([1, 2, 3], ["", "", ""], [10, 20, 30, 40], 0.5, 1.0)[0] == [1 + 1 + 0.75 + 5, 2 + 1.5 + 10, 3 + 20]


def test_lambda_returns_of_several_discounts_and_mixings_are_those_of_each() -> None:
    reward, values, no_end = (
        torch.tensor([[1.0, 2.0, 3.0, 0.0]]),
        torch.tensor([[10.0, 20.0, 30.0, 40.0]])[:, :, None].expand(1, 4, 3),
        torch.zeros(1, 4).long(),
    )
    found, _ = lambda_returns(reward, no_end, reward > 0, torch.ones(1, 4), values, [0.5, 0.5, 0.0], [0.5, 0.0, 1.0])
    assert found[0, :3].T.tolist() == [[9.8125, 15.25, 23.0], [11.0, 17.0, 23.0], [1.0, 2.0, 3.0]]


def test_lambda_returns_end_as_the_steps_do() -> None:
    """After a terminated step nothing follows, after a truncated one the value of the state behind it; an immature step is nobody's return."""
    assert logged_returns([1, 2, 3], ["", "terminated", ""], [10, 20, 30, 40], 0.5, 1.0)[0] == [2.0, 2.0, 23.0]
    assert logged_returns([1, 2, 3], ["", "truncated_gap", ""], [10, 20, 30, 40], 0.5, 1.0)[0] == [1 + 1 + 7.5, 17.0, 23.0]
    for unknown in (3.0, 300.0):
        found, valid = logged_returns([1, 2, unknown], ["", "", "immature"], [10, 20, 30, 40], 0.5, 1.0)
        assert (found[:2], valid) == ([1 + 1 + 7.5, 17.0], [True, True, False])


def test_returns_by_elapsed_time() -> None:
    """Two units to step 1 and half a unit to step 2, gamma 1/4: G2 = 3 + 40/4; G1 = 2 + 13/2; G0 = 1 + 8.5/16."""
    assert logged_returns([1, 2, 3], ["", "", ""], [10, 20, 30, 40], 0.25, 1.0, [2.0, 0.5, 1.0])[0] == [1 + 8.5 / 16, 8.5, 13.0]
