from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from jobs.world.episodes import NOTHING, Policy, play
from jobs.world.planners import Myopic, Planner
from jobs.world.truth import Floats, World
from jobs.world.value import expected
from tests.jobs.world.world_logs import drawn

USERS = 300


def rewards(world: World) -> dict[str, Floats]:
    _, tastes = world.draw_tastes(np.random.default_rng(7), USERS)
    policies: dict[str, Policy] = {"myopic": Myopic(world, keeps_rule=False), "rule": Myopic(world, keeps_rule=True), "planner": Planner(world)}
    return {name: expected(world, 0, tastes, policy, seed=0) for name, policy in policies.items()}


@pytest.mark.parametrize("seed", range(6))
def test_greed_is_not_best_and_the_rule_mends_it(seed: int) -> None:
    found = rewards(drawn(seed, items=400))
    gain = found["rule"] - found["myopic"]
    assert gain.mean() > 3 * gain.std() / np.sqrt(USERS)
    assert gain.mean() > 0.03 * found["myopic"].mean()
    ahead = found["planner"] - found["rule"]
    assert ahead.mean() > -2 * ahead.std() / np.sqrt(USERS)


def test_without_the_rule_the_three_planners_are_one() -> None:
    found = rewards(drawn(1, items=400, null=True))
    np.testing.assert_array_equal(found["myopic"], found["rule"])
    np.testing.assert_array_equal(found["myopic"], found["planner"])


def test_no_planner_shows_an_item_twice_or_one_that_is_not_there() -> None:
    world = drawn(4, items=40)
    _, tastes = world.draw_tastes(np.random.default_rng(7), 50)
    for policy in (Myopic(world, keeps_rule=True), Planner(world)):
        log, _ = play(world, 5, tastes, policy, np.random.default_rng(8))
        for items in log.item:
            shown = items[items != NOTHING]
            assert len(set(shown.tolist())) == len(shown)
            assert world.available(5)[shown].all()


def small() -> World:
    """Seven items in two groups, a row of three, two steps of pause: small enough to search whole."""
    world = drawn(0, items=7)
    group = np.zeros(36, dtype=np.int64)
    category = np.array([0, 0, 0, 0, 3, 3, 3])
    group[3:6] = 1
    appeal = np.array([2.0, 1.8, 1.6, 1.4, 0.8, 0.6, 0.4])
    appears, leaves = np.zeros(7, dtype=np.int64), np.full(7, 99)
    return replace(world, row=3, pause=2, group=group, category=category, appeal=appeal, appears=appears, leaves=leaves)


def test_the_planner_comes_near_to_the_best_of_all_plans() -> None:
    """The optimum by exhaustive search over every order of items and every answer, 7 steps; the planner reaches 98% of it, greed does not."""
    world = small()
    rate: list[float] = world.click_rates(np.zeros((1, 36)))[0].tolist()
    reward: list[float] = world.reward.tolist()
    group: list[int] = world.item_group.tolist()

    @cache
    def best(shown: frozenset[int], row_group: int, row: int, sated: int, left: int) -> float:
        if not left:
            return 0.0
        return max(value(item, shown, row_group, row, sated, left) for item in range(7) if item not in shown)

    def value(item: int, shown: frozenset[int], row_group: int, row: int, sated: int, left: int) -> float:
        after = shown | {item}
        refused = best(after, row_group, row, max(sated - 1, 0), left - 1)
        if sated:
            return refused
        longer = row + 1 if group[item] == row_group else 1
        clicked = best(after, NOTHING, 0, 2, left - 1) if longer == 3 else best(after, group[item], longer, 0, left - 1)
        return rate[item] * (reward[item] + clicked) + (1 - rate[item]) * refused

    optimum = best(frozenset(), NOTHING, 0, 0, 7)
    twins = np.zeros((20_000, 36))
    planned, greedy = (expected(world, 0, twins, policy, seed=0) for policy in (Planner(world), Myopic(world, keeps_rule=False)))
    error = 3 * planned.std() / np.sqrt(len(twins))
    assert 0.98 * optimum - error < planned.mean() < optimum + error
    assert greedy.mean() < planned.mean() - error
