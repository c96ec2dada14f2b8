"""The rule, worked out again in plain Python from what a log shows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest

from jobs.world.episodes import NOTHING, Hidden, Log
from jobs.world.truth import World
from tests.jobs.world.world_logs import drawn, lived, sketched

SEEDS = range(8)


def replayed(world: World, steps: Sequence[tuple[int, bool]]) -> tuple[int, int, int]:
    """(Group, length, sated) after these steps (item, clicked), oldest first."""
    group, row, sated = NOTHING, 0, 0
    for item, clicked in steps:
        sated = max(sated - 1, 0)
        if clicked:
            row = row + 1 if world.item_group[item] == group else 1
            group = world.item_group[item]
            if row == world.row:
                group, row, sated = NOTHING, 0, world.pause
    return int(group), row, sated


@pytest.mark.parametrize("seed", SEEDS)
def test_the_hidden_state_follows_from_the_last_20_steps_of_the_log(seed: int) -> None:
    """From the steps after the last pause of two hours, 20 at most: groups, k and m known, nothing else hidden is needed."""
    world = drawn(seed)
    days = lived(world, 60, 3)
    checked = 0
    for number, (log, hidden) in enumerate(days):
        past = [earlier for earlier, _ in days[:number]]
        for user, step in zip(*np.nonzero(log.item != NOTHING), strict=True):
            history = [(int(day.item[user, s]), bool(day.click_time[user, s]), int(day.time[user, s])) for day in past for s in shown(day, user)]
            history += [(int(log.item[user, s]), bool(log.click_time[user, s]), int(log.time[user, s])) for s in range(step)]
            recent = history[-20:]
            times = [*(time for _, _, time in recent), int(log.time[user, step])]
            begins = max((place + 1 for place, (one, two) in enumerate(pairwise(times)) if two - one > 7200), default=0)
            state = replayed(world, [(item, clicked) for item, clicked, _ in recent[begins:]])
            assert state == (hidden.row_group[user, step], hidden.row[user, step], hidden.sated[user, step])
            checked += 1
    assert checked > 1000


def shown(log: Log, user: int) -> list[int]:
    return [int(step) for step in np.flatnonzero(log.item[user] != NOTHING)]


@pytest.mark.parametrize("seed", SEEDS)
def test_it_matters_in_2_to_10_per_cent_of_the_steps(seed: int) -> None:
    world = drawn(seed, items=400)
    days = lived(world, 300, 8)
    share = sum(hidden.critical(world).sum() for _, hidden in days) / sum(hidden.length.sum() for _, hidden in days)
    assert 0.02 <= share <= 0.10


def test_who_is_sated_answers_nothing_and_only_then() -> None:
    world = drawn(2)
    days = lived(world, 300, 4)
    sated, free = answers(days, True), answers(days, False)
    assert sated[0] > 100
    assert sated[1] == 0
    assert free[1] / free[0] > 0.15


def answers(days: list[tuple[Log, Hidden]], sated: bool) -> tuple[int, int]:
    """Steps of users in that state, and clicks."""
    here = [((hidden.sated > 0) == sated) & (log.item != NOTHING) for log, hidden in days]
    return sum(int(mask.sum()) for mask in here), sum(int((log.click_time[mask] > 0).sum()) for mask, (log, _) in zip(here, days, strict=True))


def test_a_null_world_is_the_same_world_without_the_rule() -> None:
    world, null = drawn(3), drawn(3, null=True)
    assert (world.effect, null.effect) == (True, False)
    np.testing.assert_array_equal(world.tastes, null.tastes)
    np.testing.assert_array_equal(world.group, null.group)
    assert not any(hidden.sated.any() for _, hidden in lived(null, 200, 2))


def test_worlds_differ_in_their_rule() -> None:
    worlds = [sketched(seed) for seed in range(16)]
    assert {world.row for world in worlds} == {3, 4, 5, 6}
    assert all(3 <= world.pause <= 8 for world in worlds)
    assert len({tuple(world.group) for world in worlds}) == 16
